#!/bin/sh
# Fuzzes each target for a while, and says how often it ran and what was found. Ends with 1 if
# something was found, a target did not run at all, or there is none. With PROOF, a file such as
# docs/proof.tsv, adds a line for each.
#
#   scripts/fuzz.sh [TARGET...]
#
# SECONDS_EACH (60) is how long a target is tried, unless RUNS says how often; OUT where logs go.
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
fuzz=tests/fuzz
seconds=${SECONDS_EACH:-60}
runs=${RUNS:-}
out=${OUT:-${CARGO_TARGET_DIR:-$fuzz/target}/found}
failed=0

# The dependencies are those of the workspace.
cp Cargo.lock "$fuzz/Cargo.lock"
targets=$($cargo fuzz list --fuzz-dir "$fuzz")
if [ -z "$targets" ]; then
    echo "nothing to fuzz: $fuzz has no targets" >&2
    exit 1
fi
for target in "$@"; do
    if ! echo "$targets" | grep -qx "$target"; then
        echo "there is no target $target in $fuzz" >&2
        exit 1
    fi
done
commit=$(git rev-parse --short HEAD)
# What is not committed is not what the commit names.
[ -z "$(git status --porcelain -- Cargo.lock Cargo.toml storage raft server client tests)" ] ||
    commit=$commit+changes

# One target, on the pinned compiler, hence without a sanitizer: what is fuzzed has no `unsafe` code.
attempt() {
    limit=-max_total_time=$seconds
    [ -z "$runs" ] || limit=-runs=$runs
    $cargo fuzz run --fuzz-dir "$fuzz" --sanitizer none "$1" \
        "$out/$1" "$fuzz/corpus/$1" -- "$limit" -timeout=20 -rss_limit_mb=2048 \
        -print_final_stats=1
}

# How many executions libFuzzer says there were, by its log; after a finding by its last line of
# progress, for then it sums nothing up.
executions() {
    awk '/^stat::number_of_executed_units:/ { said = $2 }
        /^#[0-9]+/ { last = substr($1, 2) + 0 }
        END { print (said != "" ? said : last) + 0 }' "$1"
}

# How long it took, by the same log.
took() {
    awk '/^Done [0-9]+ runs in/ { print $5 }' "$1" | tail -n 1
}

# Files that it wrote of what it found.
findings() {
    awk '/Test unit written to / { print $NF }' "$1"
}

for target in ${*:-$targets}; do
    mkdir -p "$out/$target"
    log=$out/$target.log
    code=0
    attempt "$target" >"$log" 2>&1 || code=$?
    count=$(executions "$log")
    found=$(findings "$log")
    verdict=valid
    if [ -n "$found" ]; then
        verdict="found: $(echo "$found" | tr '\n' ' ' | sed 's/ *$//')"
    elif [ "$code" != 0 ]; then
        verdict="ended with $code: $log"
    elif [ "$count" = 0 ]; then
        verdict="unknown: it was not executed"
    fi
    [ "$verdict" = valid ] || failed=1
    length="${runs:+$runs runs}"
    length=${length:-$seconds s}
    printf '%-24s %12s executions in %s s, %s findings: %s\n' "$target" "$count" \
        "$(took "$log")" "$(printf '%s' "$found" | grep -c . || true)" "$verdict"
    [ -z "${PROOF:-}" ] || printf '%s\tfuzz, %s\t%s\t%s executions\t%s\n' \
        "$commit" "$target" "$length" "$count" "$verdict" >>"$PROOF"
done
exit "$failed"
