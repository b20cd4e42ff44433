#!/bin/sh
# Runs `trilog-jepsen run` with one seed after the other, on three and on five nodes, by wires between
# name spaces and through ports, for so many hours, or twice. Stops at the first run in which something is wrong, and keeps all of it.
#
#   scripts/chaos.sh HOURS [FIRST_SEED]
set -eu
cd "$(dirname "$0")/.."

hours=${1:-0}
seed=${2:-}
[ -n "$seed" ] || seed=$(date +%s)
programs=${CARGO_TARGET_DIR:-target}/release
end=$(($(date +%s) + hours * 3600))
runs=0
while :; do
    nodes=3
    [ $((seed % 2)) = 0 ] || nodes=5
    # Wires are more like a network, ports can lose and delay.
    network=auto
    [ $(((seed + seed / 2) % 2)) = 0 ] || network=ports
    out=${CARGO_TARGET_DIR:-target}/chaos/$seed
    "$programs/trilog-jepsen" run --trilog "$programs/trilog" --dir "$out" --seed "$seed" \
        --nodes "$nodes" --network "$network" --seconds 100 --workers 12 --pace 6 --faults all || {
        code=$?
        echo "seed $seed ended with $code: $out/report.html" >&2
        exit "$code"
    }
    # What a valid run leaves is its report; histories are large.
    rm -f "$out/history.jsonl"
    runs=$((runs + 1))
    seed=$((seed + 1))
    [ "$runs" -lt 2 ] || [ "$(date +%s)" -lt "$end" ] || break
done
echo "$runs runs, all valid"
