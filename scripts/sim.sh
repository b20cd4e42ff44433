#!/bin/sh
# Simulates disks, links and whole clusters under many seeds, and says how fast that goes: seeds per
# hour of one core, and simulated to real time, test by test. With PROOF, a file such as
# docs/proof.tsv, adds a line for each test that simulates whole clusters. Ends with 1 if a seed
# failed.
#
#   scripts/sim.sh SEEDS [PROOF]
#
# SEEDS is a count, or FIRST..END. Whole nodes take longer than replicas: they get one seed in
# TRILOG_SIM_NODES (10).
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
seeds=${1:-200}
proof=${2:-}
share=${TRILOG_SIM_NODES:-10}
out=${CARGO_TARGET_DIR:-target}/figures
case $seeds in
*..*) first=${seeds%..*} end=${seeds#*..} ;;
*) first=0 end=$seeds ;;
esac
count=$((end - first))
of_nodes=$((first / share))..$(((end + share - 1) / share))
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out"/*.tsv
failed=0

# A package with the seeds for it, its figures apart: PACKAGE SEEDS ARGUMENTS...
simulate() {
    package=$1 seeds=$2
    shift 2
    TRILOG_SEEDS=$seeds TRILOG_FIGURES=$out/$package.tsv \
        $cargo test --locked --profile sim -p "trilog-$package" "$@" || failed=1
}

# The profile has debug assertions: what a simulation is for is to trip over them.
simulate storage "$count" --lib -- nothing_acknowledged any_crash promises_hold double_crash seed
simulate raft "$first..$end" --lib -- nothing_acknowledged nobody_rests seed replicas_are_equal
simulate server "$of_nodes" --test admission --test simulated --test histories

commit=$(git rev-parse --short HEAD)
# What is not committed is not what the commit names.
[ -z "$(git status --porcelain -- Cargo.lock Cargo.toml storage raft server client jepsen)" ] ||
    commit=$commit+changes
for figures in "$out"/*.tsv; do
    [ -e "$figures" ] || continue
    awk -F '\t' -v package="$(basename "$figures" .tsv)" -v commit="$commit" -v proof="$proof" '
        function figure(seeds, simulated, took) {
            if (took < 1) took = 1
            return sprintf("%d seeds per hour and core, %.0f:1 simulated to real time",
                seeds * 3600000 / took, simulated / took)
        }
        $3 > 0 || $6 != "valid" {
            name = $1
            sub(/^.*::/, "", name)
            printf "%s %s: seeds %d-%d: %s; %s\n", package, name, $2, $2 + $3 - 1, $6,
                figure($3, $4, $5)
            seeds += $3; simulated += $4; took += $5
            if (proof != "")
                printf "%s\tsimulation, %s: %s\tseeds %d-%d\t%d seeds\t%s; %s\n", commit, package,
                    name, $2, $2 + $3 - 1, $3, $6, figure($3, $4, $5) >>proof
        }
        END {
            if (seeds > 0) printf "%s, all: %d seeds; %s\n", package, seeds,
                figure(seeds, simulated, took)
        }' "$figures"
done
exit "$failed"
