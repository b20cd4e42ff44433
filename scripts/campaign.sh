#!/bin/sh
# Runs `trilog-jepsen campaign` for one aim after the other, and adds what each proves to
# docs/proof.tsv. Goes on after one that proves less than it should; ends with the worst of them.
#
#   scripts/campaign.sh AIM[,AIM...] COUNT MINUTES [FIRST_SEED]
#
# NODES (3) is how many nodes there are; OLDER a build of trilog that is older, for upgrades; PYTHON
# one that has confluent_kafka, for more kinds of clients. With DENSE histories have several times as
# many operations.
set -eu
cd "$(dirname "$0")/.."

. scripts/chaos-programs.sh
commit=$(git rev-parse --short HEAD)
# What is not committed is not what the commit names.
[ -z "$(git status --porcelain -- Cargo.toml Cargo.lock .cargo rust-toolchain.toml \
    storage raft server client jepsen)" ] || commit=$commit+changes
worst=0
for aim in $(echo "$1" | tr , ' '); do
    code=0
    "$programs/trilog-jepsen" campaign "$aim" --trilog "$programs/trilog" \
        --dir "$target/chaos/$aim-${NODES:-3}" --count "$2" --minutes "$3" ${4:+--seed "$4"} \
        --nodes "${NODES:-3}" ${DENSE:+--dense} ${OLDER:+--older "$OLDER"} ${PYTHON:+--python "$PYTHON"} \
        --commit "$commit" --proof docs/proof.tsv || code=$?
    # 1 is worse than 2, and that worse than 3: something is wrong, not made, not proven.
    case "$worst,$code" in
    0,* | 3,1 | 3,2 | 2,1) worst=$code ;;
    esac
done
exit "$worst"
