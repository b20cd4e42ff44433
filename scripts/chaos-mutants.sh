#!/bin/sh
# Shows that bugs planted on purpose are noticed, by a simulation and by the harness on real
# processes, and that neither cries out without them. A bug is caught only by what proves that very
# bug; where only something else was found, it says NOT PROVEN and what that was. Prints a table. Ends
# with 1 if a bug was missed or not proven, or something was found where there is none.
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

# What proves a bug in a simulation: the place, and where not all panics there are about that, the
# words, of the first panic, which has to be an invariant's own.
#
# raft/src/testkit: every entry once, the same everywhere, none acknowledged lost, no leader without
# what older ones committed; and when all is healed, all replicas come together. Where a cut is
# skipped, the log itself may be the first that notices.
healed='raft/src/testkit/cluster\.rs.* did not happen'
proof_of_simulation() {
    case $1 in
    ack-before-sync | commit-counts-unsynced | leader-restore)
        echo "raft/src/testkit/(checks|compare|majority|watch)\.rs|$healed|$forgotten" ;;
    truncation-skipped)
        echo "raft/src/testkit/(checks|compare|majority|watch)\.rs|$healed|(raft|storage)/src/.*(position|term|index|entry|follow)" ;;
    window-not-replicated)
        echo 'server/tests/admission\.rs.*(stands at|is lost|out of order|OutOfOrder|, not Offset|replicas differ)' ;;
    serves-uncommitted)
        echo 'server/tests/simulated\.rs.*seed [0-9]+(: (at|lost at|it serves what it lacks)|$)' ;;
    esac
}

# What proves a bug in a run of the harness, of the lines that `trilog-jepsen found` prints.
#
# Lost after it was acknowledged: it is missing, or others stand in its place, and whoever read, wrote
# or had committed something there sees that go back; replicas differ in it.
lost='anomaly (lost-write|unseen|inconsistent-offsets|duplicate|int-poll-skip|poll-skip|int-nonmonotonic-poll|nonmonotonic-poll|int-nonmonotonic-send|nonmonotonic-send|G1c|G1c-process|G1c-realtime|G0-realtime|torn-txn|group-regress|hw-regress|replica-divergence) '
differ='failure (of group [0-9]+ nodes|in key [0-9]+ .* read |node [0-9]+ has nothing of key|the replica of key [0-9]+ )'
# A cluster that is healed and stays stuck: replicas that contradict each other are never level.
stuck='failure (replicas are not level|.* cannot write to key|the cluster is not (whole|level)|transactions stay open)'
proof_of_run() {
    case $1 in
    ack-before-sync)
        echo "$lost|$differ" ;;
    # Who has lost what others count on, or goes on without what they have, cannot go on with them.
    commit-counts-unsynced | leader-restore | truncation-skipped)
        echo "$lost|$differ|$stuck" ;;
    # What was sent again is there twice, or who sends in sequence is told that it is not.
    window-not-replicated)
        echo 'anomaly (duplicate|nonmonotonic-send|int-nonmonotonic-send|inconsistent-offsets) |failure node [0-9]+ has lost where a producer stood' ;;
    # What was read is gone, or another's, or was never to be.
    serves-uncommitted)
        echo "$lost|anomaly (aborted-read|precommitted-read) |$differ" ;;
    esac
}

# One simulation with a bug, or with `none`: PLANTED BUG.
simulate() {
    planted=$1
    set -- $(simulation "$2")
    TRILOG_PLANTED=$planted TRILOG_SEEDS=${SEEDS:-20} \
        $cargo test --locked --features planted -p "$1" "$2" -- "$3"
}

# The first panic of a test, in a line: where, and what it says.
first_panic() {
    awk '/panicked at / { sub(/^.*panicked at /, ""); where = $0; getline; print where " " $0; exit }' "$1"
}

# What became of a simulation, by its log: LOG BUG. Only the test that was meant counts.
simulated() {
    test=$(simulation "$2" | cut -d' ' -f3)
    if grep -Eq "^test ([a-z_]+::)*$test[a-z_]* \.\.\. FAILED" "$1"; then
        seed=$(grep -aoE 'seed:? [0-9]+' "$1" | head -n 1 | tr -dc 0-9)
        panic=$(first_panic "$1")
        if echo "$panic" | grep -Eq "$(proof_of_simulation "$2")"; then
            echo "caught${seed:+, seed $seed}"
        else
            echo "NOT PROVEN: found $(echo "$panic" | cut -c 1-120)"
        fi
    elif grep -Eq "^test ([a-z_]+::)*$test[a-z_]* \.\.\. ok" "$1" &&
        grep -Eq '^test result: ok. [1-9]' "$1"; then
        echo passed
    else
        echo "did not run: $1"
    fi
}

# In short what lines say that were found.
in_short() {
    awk '$1 == "anomaly" { what = what sep $2 " x" $3; sep = ", " }
        $1 == "failure" { what = what sep substr($0, 9, 60); sep = ", " }
        END { print what != "" ? substr(what, 1, 160) : "nothing" }'
}

# One run: PLANTED BUG SEED. Its exit status is the harness's; what its report has found is beside its
# log, and there is nothing there if it came to no report.
harness() {
    dir=$out/$1-$3
    rm -rf "$dir" "$dir.found"
    code=0
    TRILOG_PLANTED=$1 timeout -k 30 "${LIMIT:-600}" "$out/trilog-jepsen" run \
        --trilog "$out/trilog" --dir "$dir" --seed "$3" --nodes 3 --network ports --seconds "$length" \
        --workers 8 --faults "$(faults "$2")" >"$dir.log" 2>&1 || code=$?
    "$out/trilog-jepsen" found "$dir/report.json" >"$dir.found" 2>>"$dir.log" || true
    # Images of disks are large, and one seed is enough to have it again.
    rm -rf "$dir/nodes"
    return "$code"
}

# What became of a bug in the harness, seed after seed until it is proven.
by_harness() {
    seed=$first
    other=
    while [ "$seed" -lt $((first + runs)) ]; do
        began=$(date +%s)
        code=0
        harness "$1" "$1" "$seed" || code=$?
        found=$out/$1-$seed.found
        if grep -q '^skipped' "$found"; then
            echo "SKIPPED $(grep '^skipped' "$found" | head -n 1 | cut -d' ' -f2-)"
            return
        elif [ "$code" = 1 ] && grep -Eq "^($(proof_of_run "$1"))" "$found"; then
            proof=$(grep -E "^($(proof_of_run "$1"))" "$found" | in_short)
            echo "$proof; seed $seed, $(($(date +%s) - began)) s"
            return
        elif [ "$code" != 0 ]; then
            other="seed $seed ended with $code, found $(in_short <"$found")"
        fi
        seed=$((seed + 1))
    done
    [ -z "$other" ] || { echo "NOT PROVEN: $other"; return; }
    echo "MISSED in $runs runs"
}

mkdir -p "$out"
# Debug builds: with planted bugs there are no others.
$cargo build --locked -p trilog-server --bin trilog --features planted
$cargo build --locked -p trilog-jepsen --bin trilog-jepsen
cp "$target/debug/trilog" "$target/debug/trilog-jepsen" "$out/"
# Nobody is to find the wrong one where the right one is looked for.
rm "$target/debug/trilog"

printf '%-24s %-32s %s\n' "bug" "simulation" "real processes"
sets=
for bug in ${*:-$every}; do
    test=$(simulation "$bug" | cut -d' ' -f3)
    for planted in none "$bug"; do
        simulate "$planted" "$bug" >"$out/$bug.$planted.log" 2>&1 || true
    done
    without=$(simulated "$out/$bug.none.log" "$bug")
    with=$(simulated "$out/$bug.$bug.log" "$bug")
    real=$(by_harness "$bug")
    [ "$without" = passed ] || with="FALSE ALARM: without it $without"
    case "$with" in caught*) ;; *) wrong=1 ;; esac
    case "$real" in MISSED* | "NOT PROVEN"*) wrong=1 ;; esac
    printf '%-24s %-32s %s\n' "$bug" "$with" "$real"
    printf '%-24s   %s\n' "" "$test"
    case " $sets " in
    *" $(faults "$bug") "*) ;;
    *) sets="$sets $(faults "$bug")" controls="${controls:-} $bug" ;;
    esac
done
# Each set of faults and no bug: what was found above is not found of itself.
for bug in $controls; do
    code=0
    harness none "$bug" "$first" || code=$?
    what="valid"
    if [ "$code" != 0 ] && grep -q '^skipped' "$out/none-$first.found"; then
        what="SKIPPED $(grep '^skipped' "$out/none-$first.found" | head -n 1 | cut -d' ' -f2-)"
    elif [ "$code" != 0 ]; then
        what="FALSE ALARM ($code): $(in_short <"$out/none-$first.found")"
        wrong=1
    fi
    printf '%-24s %-32s %s\n' "none" "passed, beside each" "$what ($(faults "$bug"))"
done
exit "$wrong"
