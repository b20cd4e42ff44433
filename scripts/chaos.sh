#!/bin/sh
# Runs `trilog-jepsen run` with one seed after the other, on three and on five nodes, by wires between
# name spaces and through ports, for so many hours, or twice. Begins with a short run without faults:
# what is wrong then is no finding about faults. Stops at the first run that is not valid, and keeps
# all of it.
#
#   scripts/chaos.sh HOURS [FIRST_SEED]
#
# OLDER is a build of trilog that is older, for upgrades; PYTHON one that has confluent_kafka, for more
# kinds of clients.
set -eu
cd "$(dirname "$0")/.."

. scripts/chaos-programs.sh
hours=${1:-0}
seed=${2:-}
[ -n "$seed" ] || seed=$(date +%s)
end=$(($(date +%s) + hours * 3600))
runs=0

# One run, of which only the report is kept if it is valid, for histories are large:
# DIRECTORY SEED NODES NETWORK ARGUMENTS...
run() {
    out=$target/chaos/$1
    drawn=$2 nodes=$3 network=$4
    shift 4
    "$programs/trilog-jepsen" run --trilog "$programs/trilog" --dir "$out" --seed "$drawn" \
        --nodes "$nodes" --network "$network" ${PYTHON:+--python "$PYTHON"} "$@" || return $?
    rm -f "$out/history.jsonl"
}

for network in auto ports; do
    run "calm-$network" "$seed" 3 "$network" --seconds 8 --faults none || {
        code=$?
        echo "without any fault it ended with $code: $target/chaos/calm-$network" >&2
        echo "the set-up is broken, or a bug needs no fault; nothing was mistreated" >&2
        exit "$code"
    }
done
while :; do
    nodes=3
    [ $((seed % 2)) = 0 ] || nodes=5
    # Wires are more like a network, ports can lose and delay.
    network=auto
    [ $(((seed + seed / 2) % 2)) = 0 ] || network=ports
    run "$seed" "$seed" "$nodes" "$network" --seconds 100 --workers 12 --pace 6 --faults all \
        ${OLDER:+--older "$OLDER"} || {
        code=$?
        echo "seed $seed ended with $code: $target/chaos/$seed" >&2
        exit "$code"
    }
    runs=$((runs + 1))
    seed=$((seed + 1))
    [ "$runs" -lt 2 ] || [ "$(date +%s)" -lt "$end" ] || break
done
echo "$runs runs, all valid"
