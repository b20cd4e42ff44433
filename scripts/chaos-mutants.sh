#!/bin/sh
# Shows that bugs planted on purpose are noticed, by a simulation and by the harness on real
# processes, and that neither cries out without them. Prints a table. Ends with 1 if a bug was
# missed, or something was found where there is none.
#
#   scripts/chaos-mutants.sh [BUG...]
#
# SEEDS (20) is how many seeds a simulation tries; RUNS how many the harness does, from SEED on, each
# with LENGTH seconds of work; OUT where logs and reports go.
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
out=${OUT:-$target/chaos-mutants}
first=${SEED:-1}
runs=${RUNS:-5}
length=${LENGTH:-45}
every="ack-before-sync leader-restore truncation-skipped window-not-replicated \
commit-counts-unsynced serves-uncommitted"
wrong=0

# The simulation that looks for what a bug breaks: package, target, test.
simulation() {
    case $1 in
    ack-before-sync | truncation-skipped | commit-counts-unsynced)
        echo trilog-raft --lib nothing_acknowledged_is_lost_whatever_happens_to_three_nodes ;;
    leader-restore)
        echo trilog-raft --lib a_leader_restarted_before_any_election_loses_nothing ;;
    window-not-replicated)
        echo trilog-server --test=admission every_batch_is_appended_once ;;
    serves-uncommitted)
        echo trilog-server --test=simulated what_a_follower_serves_is_committed ;;
    *)
        echo "there is no bug $1" >&2
        exit 2 ;;
    esac
}

# The faults of the harness that lead to it.
faults() {
    case $1 in
    ack-before-sync | leader-restore | commit-counts-unsynced | serves-uncommitted)
        echo power-loss ;;
    truncation-skipped | window-not-replicated)
        echo isolate,pause,kill,transfer ;;
    esac
}

# One simulation with a bug, or with `none`: PLANTED BUG.
simulate() {
    planted=$1
    set -- $(simulation "$2")
    TRILOG_PLANTED=$planted TRILOG_SEEDS=${SEEDS:-20} \
        $cargo test --locked --features planted -p "$1" "$2" -- "$3"
}

# What became of a simulation, by its log.
simulated() {
    if grep -q '^test result: FAILED' "$1"; then
        seed=$(grep -aoE 'seed:? [0-9]+' "$1" | head -n 1 | tr -dc 0-9)
        echo "caught${seed:+, seed $seed}"
    elif grep -Eq '^test result: ok. [1-9]' "$1"; then
        echo passed
    else
        echo "did not run: $1"
    fi
}

# What a run of the harness found, by its output.
found() {
    awk '/^anomaly / { table = 1; next }
        table && NF == 3 && $2 > 0 && ++kinds < 4 { what = what sep $1 " x" $2; sep = ", " }
        table && NF == 0 { table = 0 }
        /^FAILED:/ && !failed { failed = substr($0, 9, 60) }
        END { print what != "" ? what : failed }' "$1"
}

# One run: PLANTED BUG SEED. Its exit status is the harness's.
harness() {
    dir=$out/$1-$3
    rm -rf "$dir"
    code=0
    TRILOG_PLANTED=$1 timeout -k 30 "${LIMIT:-600}" "$out/trilog-jepsen" run \
        --trilog "$out/trilog" --dir "$dir" --seed "$3" --nodes 3 --network ports --seconds "$length" \
        --workers 8 --faults "$(faults "$2")" >"$dir.log" 2>&1 || code=$?
    # Images of disks are large, and one seed is enough to have it again.
    rm -rf "$dir/nodes"
    return "$code"
}

# What became of a bug in the harness, seed after seed until it is caught.
by_harness() {
    seed=$first
    while [ "$seed" -lt $((first + runs)) ]; do
        began=$(date +%s)
        code=0
        harness "$1" "$1" "$seed" || code=$?
        log=$out/$1-$seed.log
        if grep -q '^SKIPPED' "$log"; then
            grep '^SKIPPED' "$log" | head -n 1
            return
        elif [ "$code" = 1 ]; then
            echo "$(found "$log"); seed $seed, $(($(date +%s) - began)) s"
            return
        fi
        seed=$((seed + 1))
    done
    echo "MISSED in $runs runs, the last ended with $code"
}

mkdir -p "$out"
# Debug builds: with planted bugs there are no others.
$cargo build --locked -p trilog-server --bin trilog --features planted
$cargo build --locked -p trilog-jepsen --bin trilog-jepsen
cp "$target/debug/trilog" "$target/debug/trilog-jepsen" "$out/"
# Nobody is to find the wrong one where the right one is looked for.
rm "$target/debug/trilog"

printf '%-24s %-32s %s\n' "bug" "simulation" "real processes"
for bug in ${*:-$every}; do
    test=$(simulation "$bug" | cut -d' ' -f3)
    for planted in none "$bug"; do
        simulate "$planted" "$bug" >"$out/$bug.$planted.log" 2>&1 || true
    done
    without=$(simulated "$out/$bug.none.log")
    with=$(simulated "$out/$bug.$bug.log")
    real=$(by_harness "$bug")
    [ "$without" = passed ] || with="FALSE ALARM: without it $without"
    case "$with" in caught*) ;; *) wrong=1 ;; esac
    case "$real" in MISSED*) wrong=1 ;; esac
    printf '%-24s %-32s %s\n' "$bug" "$with" "$real"
    printf '%-24s   %s\n' "" "$test"
done
# The same faults and no bug: what was found above is not found of itself.
for bug in ack-before-sync window-not-replicated; do
    code=0
    harness none "$bug" "$first" || code=$?
    what="valid"
    [ "$code" = 0 ] || what="FALSE ALARM ($code): $(found "$out/none-$first.log")"
    [ "$code" = 0 ] || wrong=1
    printf '%-24s %-32s %s\n' "none" "passed, beside each" "$what ($(faults "$bug"))"
done
exit "$wrong"
