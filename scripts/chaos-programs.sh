# Sourced by chaos.sh and campaign.sh. Copies the two programs to $programs, so that a build that
# somebody makes meanwhile changes nothing of what is tried, and leaves PYTHON empty if it has not
# what stock clients need.

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/chaos"
programs=$(mktemp -d "$target/chaos/programs.XXXXXX")
trap 'rm -rf "$programs"' EXIT
# Not every shell thinks of that when it is told to end.
trap 'exit 130' INT
trap 'exit 143' TERM
cp "$target/release/trilog" "$target/release/trilog-jepsen" "$programs/"

PYTHON=$(command -v "${PYTHON:-python3}" || true)
if [ -z "$PYTHON" ] || ! "$PYTHON" -c 'import confluent_kafka' 2>/dev/null; then
    PYTHON=
    echo "SKIPPED clients of librdkafka: no PYTHON that has confluent_kafka" >&2
fi
[ -n "${OLDER:-}" ] || echo "SKIPPED upgrade: no build to begin with (OLDER)" >&2
