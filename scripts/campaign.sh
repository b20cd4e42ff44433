#!/bin/sh
# Runs `trilog-jepsen campaign` for one aim after the other, and adds what each proves to
# docs/proof.tsv. Goes on after one that proves less than it should; ends with the worst of them.
#
#   scripts/campaign.sh AIM[,AIM...] COUNT MINUTES [FIRST_SEED]
set -eu
cd "$(dirname "$0")/.."

programs=${CARGO_TARGET_DIR:-target}/release
commit=$(git rev-parse --short HEAD)
# What is not committed is not what the commit names.
[ -z "$(git status --porcelain -- Cargo.lock storage raft server client jepsen)" ] ||
    commit=$commit+changes
worst=0
for aim in $(echo "$1" | tr , ' '); do
    code=0
    "$programs/trilog-jepsen" campaign "$aim" --trilog "$programs/trilog" \
        --dir "${CARGO_TARGET_DIR:-target}/chaos/$aim" --count "$2" --minutes "$3" \
        ${4:+--seed "$4"} --commit "$commit" --proof docs/proof.tsv || code=$?
    # 1 is worse than 2, and that worse than 3: something is wrong, not made, not proven.
    case "$worst,$code" in
    0,* | 3,1 | 3,2 | 2,1) worst=$code ;;
    esac
done
exit "$worst"
