#!/bin/bash
# How many elections are held on a machine that is busy with something else: three nodes, a
# producer, and busy loops beside them for a while. Without a fault there should be none. Not part
# of CI, for what it shows depends on the machine.
#
#   tests/elections/under_load.sh [LOOPS] [SECONDS]
#
#   TRILOG   the binary               (default: target/release/trilog, else target/debug/trilog)
#   RATE     records of 1 KiB a second (default: 2000)
#   TOPICS   topics of 16 partitions beside the one written to, for their timers (default: 0)
#   PORT     first of the ports       (default: 21400)
set -eu
cd "$(dirname "$0")/../.."

loops=${1:-8}
seconds=${2:-30}
port=${PORT:-21400}
trilog=${TRILOG:-}
for built in target/release/trilog target/debug/trilog; do
    [ -n "$trilog" ] || { [ -x $built ] && trilog=$PWD/$built; }
done
[ -n "$trilog" ] || { echo "there is no binary: cargo build --release" >&2; exit 2; }

dir=$(mktemp -d)
mkfifo "$dir/in"
exec 3<>"$dir/in"
"$trilog" dev --data "$dir/data" --base-port "$port" --set raft.quiesce_after=1h \
    <"$dir/in" >"$dir/out" 2>&1 3>&- &
dev=$!
end() {
    kill "$dev" 2>/dev/null || true
    wait "$dev" 2>/dev/null || true
    rm -rf "$dir"
}
trap end EXIT
export TRILOG_SERVER="127.0.0.1:$port,127.0.0.1:$((port + 10)),127.0.0.1:$((port + 20))"

for _ in $(seq 300); do
    grep -q 'nodes are up' "$dir/out" && break
    sleep 0.1
done
"$trilog" topic create load --partitions 8 --replication 3
for topic in $(seq "${TOPICS:-0}"); do
    "$trilog" topic create "idle-$topic" --partitions 16 --replication 3
done
# Until everything has a leader, and the one that is preferred.
sleep 10

elections() {
    local sum=0 node count
    for node in 0 1 2; do
        count=$(curl -s -m 30 "http://127.0.0.1:$((port + node * 10 + 2))/metrics" |
            awk '/^trilog_raft_elections_total/ { print int($2) }')
        sum=$((sum + ${count:-0}))
    done
    echo "$sum"
}

awk 'BEGIN { s = sprintf("%1000s", "x"); for (i = 0; i < 100000000; i++) print i s }' |
    timeout "$((seconds + 4))" "$trilog" produce load --rate "${RATE:-2000}" >/dev/null 2>&1 3>&- &
before=$(elections)
for _ in $(seq "$loops"); do
    timeout "$seconds" sh -c 'while :; do :; done' 3>&- &
done
sleep "$seconds"
load=$(cut -d' ' -f1 /proc/loadavg)
sleep 5
after=$(elections)
echo "$loops loops for $seconds s, load $load: $((after - before)) elections"
[ "$after" = "$before" ]
