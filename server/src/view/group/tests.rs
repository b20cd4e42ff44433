use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

use super::command::{
    CommitOffsets, ConsumerRecord, DeleteGroup, DeleteOffsets, EndTransaction, ExpireOffsets,
    MemberRecord, PartitionName, ProducerRef, PutConsumers, PutMembers, TopicParts,
};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn at(n: u64) -> At {
    At {
        index: LogIndex(n),
        time: Timestamp(n * SECOND),
    }
}

fn offset(topic: &str, partition: u32, offset: i64) -> OffsetEntry {
    OffsetEntry {
        topic: topic.to_owned(),
        partition,
        offset,
        leader_epoch: 3,
        metadata: "note".to_owned(),
        topic_id: bytes::Bytes::from_static(&[7; 16]),
    }
}

fn producer((producer_id, epoch): (i64, i32)) -> ProducerRef {
    ProducerRef {
        producer_id,
        epoch,
        transaction: 0,
    }
}

fn commit(group: &str, offsets: Vec<OffsetEntry>, transaction: Option<(i64, i32)>) -> GroupAction {
    GroupAction::CommitOffsets(CommitOffsets {
        group: group.to_owned(),
        offsets,
        transaction: transaction.map(producer),
    })
}

fn end(producer_id: i64, epoch: i32, commit: bool) -> GroupAction {
    GroupAction::EndTransaction(EndTransaction {
        producer: producer((producer_id, epoch)),
        commit,
    })
}

fn members(group: &str, generation: i32, ids: &[&str]) -> GroupAction {
    let members = ids.iter().map(|id| MemberRecord {
        id: (*id).to_owned(),
        subscription: bytes::Bytes::from_static(b"topics"),
        assignment: bytes::Bytes::from_static(b"partitions"),
        session_timeout_ms: 10_000,
        ..MemberRecord::default()
    });
    GroupAction::PutMembers(PutMembers {
        group: group.to_owned(),
        membership: Membership {
            protocol_type: "consumer".to_owned(),
            generation,
            protocol: "range".to_owned(),
            leader: ids.first().map(|id| (*id).to_owned()).unwrap_or_default(),
            members: members.collect(),
        },
    })
}

fn consumers(group: &str, epoch: i32, ids: &[&str]) -> GroupAction {
    let parts = |index| {
        vec![TopicParts {
            topic_id: bytes::Bytes::from_static(&[7; 16]),
            partitions: vec![index],
        }]
    };
    let members = (0..).zip(ids).map(|(index, id)| ConsumerRecord {
        id: (*id).to_owned(),
        instance: (*id).to_owned(),
        topics: vec!["a".to_owned()],
        epoch,
        assigned: parts(index),
        revoking: parts(index + 8),
        target: parts(index),
        ..ConsumerRecord::default()
    });
    GroupAction::PutConsumers(PutConsumers {
        group: group.to_owned(),
        consumers: Consumers {
            epoch,
            assignor: "uniform".to_owned(),
            topics: Vec::new(),
            members: members.collect(),
        },
    })
}

fn expire(group: &str, before: u64) -> GroupAction {
    GroupAction::ExpireOffsets(ExpireOffsets {
        group: group.to_owned(),
        before: before * SECOND,
    })
}

/// Replays these, one a second from the first second on.
fn replayed(actions: Vec<GroupAction>) -> Groups {
    let mut groups = Groups::default();
    for (n, action) in (1..).zip(actions) {
        assert!(groups.replay(&action.into(), at(n)));
    }
    groups
}

fn value(groups: &Groups, group: &str, topic: &str, partition: u32) -> Option<i64> {
    Some(groups.get(group)?.offset(topic, partition)?.offset)
}

#[test]
fn offsets_are_committed_over_one_another() {
    let groups = replayed(vec![
        commit("g", vec![offset("a", 0, 5), offset("a", 1, 6)], None),
        commit("g", vec![offset("a", 0, 9)], None),
    ]);
    assert_eq!(value(&groups, "g", "a", 0), Some(9));
    assert_eq!(value(&groups, "g", "a", 1), Some(6));
    assert_eq!(value(&groups, "h", "a", 0), None);
}

#[test]
fn offsets_of_a_transaction_count_when_it_commits_and_never_when_it_does_not() {
    for (committed, expected) in [(true, Some(9)), (false, Some(5))] {
        let open = vec![
            commit("g", vec![offset("a", 0, 5)], None),
            commit("g", vec![offset("a", 0, 9)], Some((1, 0))),
        ];
        let groups = replayed(open.clone());
        assert_eq!(value(&groups, "g", "a", 0), Some(5));
        assert!(groups.get("g").unwrap().is_pending("a", 0));
        let ended = open.into_iter().chain([end(1, 0, committed)]).collect();
        let groups = replayed(ended);
        assert_eq!(value(&groups, "g", "a", 0), expected);
        assert!(!groups.get("g").unwrap().is_pending("a", 0));
    }
}

#[test]
fn a_transaction_does_not_take_back_what_was_committed_after_its_offsets() {
    let groups = replayed(vec![
        commit("g", vec![offset("a", 0, 5)], Some((1, 0))),
        commit("g", vec![offset("a", 0, 9)], None),
        end(1, 0, true),
    ]);
    assert_eq!(value(&groups, "g", "a", 0), Some(9));
}

#[test]
fn a_fenced_producer_neither_commits_nor_ends() {
    let groups = replayed(vec![
        commit("g", vec![offset("a", 0, 5)], Some((1, 0))),
        end(1, 1, false),
        commit("g", vec![offset("a", 0, 7)], Some((1, 0))),
        end(1, 0, true),
    ]);
    assert_eq!(value(&groups, "g", "a", 0), None);
    let late = commit("g", vec![offset("a", 0, 7)], Some((1, 0)));
    assert_eq!(groups.handle(late.into()), Err(Refusal::Fenced));
}

#[test]
fn offsets_expire_a_time_after_the_last_member_left_and_not_after_their_commit() {
    let actions = vec![
        members("g", 1, &["m"]),
        commit("g", vec![offset("a", 0, 5)], None),
        expire("g", 1_000),
        members("g", 2, &[]),
    ];
    let mut groups = replayed(actions);
    for (before, left) in [(3, Some(5)), (4, None)] {
        assert!(groups.replay(&expire("g", before).into(), at(100)));
        assert_eq!(value(&groups, "g", "a", 0), left, "{before}");
    }
    assert!(groups.is_empty());
    assert_eq!(groups.bytes(), 0);
}

#[test]
fn offsets_of_nobody_expire_after_their_own_commit() {
    let mut groups = replayed(vec![
        commit("g", vec![offset("a", 0, 5)], None),
        commit("g", vec![offset("a", 1, 5)], None),
    ]);
    assert!(groups.replay(&expire("g", 1).into(), at(9)));
    assert_eq!(value(&groups, "g", "a", 0), None);
    assert_eq!(value(&groups, "g", "a", 1), Some(5));
}

#[test]
fn deleting_can_mean_one_topic_of_the_name_only() {
    let delete = |id: &'static [u8]| {
        GroupAction::DeleteOffsets(DeleteOffsets {
            group: "g".to_owned(),
            partitions: vec![PartitionName {
                topic: "a".to_owned(),
                partition: 0,
                topic_id: bytes::Bytes::from_static(id),
            }],
        })
    };
    for (id, left) in [(&[8; 16][..], Some(5)), (&[7; 16], None), (&[], None)] {
        let groups = replayed(vec![commit("g", vec![offset("a", 0, 5)], None), delete(id)]);
        assert_eq!(value(&groups, "g", "a", 0), left);
    }
}

#[test]
fn commands_beyond_their_bounds_are_refused() {
    let groups = Groups::default();
    let long = "x".repeat(MAX_NAME + 1);
    let table = [
        (commit(&long, vec![], None), Refusal::NameTooLong),
        (
            commit(
                "g",
                vec![OffsetEntry {
                    metadata: "x".repeat(MAX_COMMAND_BYTES),
                    ..offset("a", 0, 1)
                }],
                None,
            ),
            Refusal::TooLarge,
        ),
        (
            commit(
                "g",
                (0..=100_000)
                    .map(|p| offset("", p, 1))
                    .map(|o| OffsetEntry {
                        metadata: String::new(),
                        topic_id: bytes::Bytes::new(),
                        ..o
                    })
                    .collect(),
                None,
            ),
            Refusal::TooManyOffsets,
        ),
    ];
    for (action, refusal) in table {
        assert_eq!(groups.handle(action.into()), Err(refusal));
    }
    let good = GroupCommand::from(members("g", 1, &["m"]));
    assert_eq!(groups.handle(good.clone()), Ok(vec![good]));
}

/// A random command; offsets are the number of the entry, so that they only ever grow.
fn random(rng: &mut SmallRng, n: u64) -> GroupAction {
    let group = ["g", "h", "i"][rng.random_range(0..3)];
    let entries = |rng: &mut SmallRng| {
        let count = rng.random_range(1..4);
        let n = i64::try_from(n).unwrap();
        let entry = |_| {
            offset(
                ["a", "b"][rng.random_range(0..2)],
                rng.random_range(0..3),
                n,
            )
        };
        (0..count).map(entry).collect::<Vec<_>>()
    };
    match rng.random_range(0..100) {
        0..35 => commit(group, entries(rng), None),
        35..60 => {
            let producer = (rng.random_range(1..4), rng.random_range(0..3));
            commit(group, entries(rng), Some(producer))
        }
        60..75 => end(rng.random_range(1..4), rng.random_range(0..3), rng.random()),
        75..88 => {
            let count = rng.random_range(0..3);
            let generation = i32::try_from(n).unwrap();
            let ids = &["m", "n", "o"][..count];
            if rng.random() {
                members(group, generation, ids)
            } else {
                consumers(group, generation, ids)
            }
        }
        88..92 => expire(group, n.saturating_sub(rng.random_range(0..20))),
        92..96 => GroupAction::DeleteGroup(DeleteGroup {
            group: group.to_owned(),
        }),
        _ => GroupAction::DeleteOffsets(DeleteOffsets {
            group: group.to_owned(),
            partitions: vec![PartitionName {
                topic: "a".to_owned(),
                partition: rng.random_range(0..3),
                topic_id: bytes::Bytes::new(),
            }],
        }),
    }
}

type Seen = BTreeMap<(String, String, u32), i64>;

fn all(groups: &Groups) -> Seen {
    let mut seen = Seen::new();
    for (name, group) in groups.iter() {
        for (topic, partitions) in group.offsets() {
            for (partition, offset) in partitions {
                seen.insert((name.clone(), topic.clone(), *partition), offset.offset);
            }
        }
    }
    seen
}

#[test]
fn replay_gives_one_state_from_wherever_it_begins_and_no_offset_goes_back() {
    for seed in 0..200 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = rng.random_range(1..120);
        let cut = rng.random_range(0..=count);
        let (mut whole, mut resumed) = (Groups::default(), Groups::default());
        let mut before = Seen::new();
        for n in 1..=count {
            let command = GroupCommand::from(random(&mut rng, n));
            assert!(whole.replay(&command, at(n)));
            assert!(resumed.replay(&command, at(n)));
            if n == cut {
                resumed = Groups::restore(&resumed.snapshot()).unwrap();
                assert_eq!(resumed.bytes(), whole.bytes(), "seed {seed} at {n}");
            }
            let now = all(&whole);
            for (place, offset) in &now {
                let was = before.get(place).copied().unwrap_or(0);
                assert!(was <= *offset, "seed {seed} at {n}: {place:?} went back");
            }
            before = now;
        }
        assert_eq!(whole, resumed, "seed {seed}");
        assert_eq!(whole.snapshot(), resumed.snapshot(), "seed {seed}");
    }
}

#[test]
fn damaged_state_is_refused_or_read_and_never_a_panic() {
    let whole = replayed(vec![
        members("g", 1, &["m"]),
        consumers("h", 1, &["m"]),
        commit("g", vec![offset("a", 0, 5)], Some((1, 0))),
    ])
    .snapshot();
    for len in 0..whole.len() {
        drop(Groups::restore(&whole[..len]));
    }
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        drop(Groups::restore(&damaged));
    }
}

/// A coordinator that lost its newest entries for good knows an epoch too little and gives numbers
/// again: what is pending with such a number ends all the same.
#[test]
fn offsets_that_wait_for_a_number_end_with_it_whatever_else_is_known() {
    let numbered = |epoch, transaction| ProducerRef {
        producer_id: 1,
        epoch,
        transaction,
    };
    let commit_in = |producer| {
        GroupAction::CommitOffsets(CommitOffsets {
            group: "g".to_owned(),
            offsets: vec![offset("a", 0, 9)],
            transaction: Some(producer),
        })
    };
    let end_of =
        |producer, commit| GroupAction::EndTransaction(EndTransaction { producer, commit });
    let waiting = vec![end_of(numbered(3, 4), true), commit_in(numbered(4, 6))];
    for (ended, pending) in [
        (numbered(3, 5), true),
        (numbered(3, 6), false),
        (numbered(3, 1 << 32), false),
        (numbered(4, 4), true),
        (numbered(4, 6), false),
        (numbered(5, 7), false),
    ] {
        let mut groups = replayed(waiting.clone());
        groups = Groups::restore(&groups.snapshot()).unwrap();
        assert!(groups.replay(&end_of(ended, false).into(), at(9)));
        let group = groups.get("g").unwrap();
        assert_eq!(group.is_pending("a", 0), pending, "{ended:?}");
        assert!(groups.is_over(&numbered(9, ended.transaction)), "{ended:?}");
    }
}

/// One group takes its share and no more, all together what there is; and when all is taken, who does not
/// grow goes on as before.
#[test]
fn a_full_partition_takes_what_does_not_grow() {
    let note = |group: &str, topic: &str, length: usize| {
        let entries = (0..15).map(|partition| OffsetEntry {
            metadata: "x".repeat(length),
            ..offset(topic, partition, 5)
        });
        commit(group, entries.collect(), None)
    };
    let mut groups = Groups::default();
    let (mut n, mut full) = (0, Vec::new());
    assert!(groups.replay(&members("poor", 1, &["m"]).into(), at(1)));
    assert!(groups.replay(&note("poor", "a", 1).into(), at(2)));
    for group in ["g", "h", "i", "j", "k"] {
        loop {
            n += 1;
            let more = GroupCommand::from(note(group, &format!("t{n}"), 64 << 10));
            match groups.handle(more.clone()) {
                Ok(_) => assert!(groups.replay(&more, at(n))),
                Err(refusal) => {
                    full.push(refusal);
                    break;
                }
            }
        }
    }
    assert_eq!(full[..3], [Refusal::TooManyOffsets; 3]);
    assert_eq!(full[4], Refusal::NoRoom);
    assert!(groups.bytes() <= MAX_STATE_BYTES);
    // Everything that is left goes into small ones.
    loop {
        n += 1;
        let more = GroupCommand::from(note("l", &format!("t{n}"), 1));
        if groups.handle(more.clone()).is_err() {
            break;
        }
        assert!(groups.replay(&more, at(n)));
    }
    let long = "x".repeat(4_000);
    let table = [
        (note("poor", "a", 1), true),
        (note("poor", "a", 0), true),
        (members("poor", 2, &["n"]), true),
        (members("poor", 2, &[]), true),
        (commit("poor", vec![offset("a", 0, 9)], Some((1, 0))), true),
        (note("poor", "a", 9_000), false),
        (note("poor", "b", 900), false),
        (members("poor", 2, &[&long]), false),
        (members("new", 2, &[&long]), false),
    ];
    for (action, accepted) in table {
        let judged = groups.handle(action.clone().into());
        assert_eq!(judged.is_ok(), accepted, "{action:?}: {judged:?}");
    }
}
