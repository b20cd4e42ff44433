mod protocol;

use super::command::{Forget, Put};
use super::machine::{self, Begin, Identity, Next, Refused};
use super::*;
use prost::Message;

const SECOND: u64 = 1_000_000_000;

fn identity(producer_id: i64, epoch: i16) -> Identity {
    Identity { producer_id, epoch }
}

fn transaction(phase: Phase) -> Transaction {
    Transaction {
        producer_id: 7,
        epoch: 3,
        last_producer_id: -1,
        last_epoch: -1,
        timeout_ms: 1_000,
        phase: phase.into(),
        number: 5,
        partitions: if phase == Phase::Ongoing || phase.is_ending() {
            vec![20, 30]
        } else {
            Vec::new()
        },
    }
}

const PHASES: [Phase; 6] = [
    Phase::Empty,
    Phase::Ongoing,
    Phase::PrepareCommit,
    Phase::PrepareAbort,
    Phase::CompleteCommit,
    Phase::CompleteAbort,
];

fn put(next: Next) -> Option<Transaction> {
    match next {
        Next::Is => None,
        Next::Put(next) => Some(next),
    }
}

#[test]
fn a_new_id_gets_a_producer_id_and_epoch_zero() {
    assert_eq!(machine::begin(None, None, 1_000, None), Ok(Begin::NeedsId));
    let Ok(Begin::Put(first)) = machine::begin(None, None, 1_000, Some(9)) else {
        panic!();
    };
    assert_eq!(first.identity(), identity(9, 0));
    assert_eq!(first.phase(), Phase::Empty);
}

#[test]
fn whoever_begins_shuts_out_who_was_before() {
    for phase in PHASES {
        let known = transaction(phase);
        let begun = machine::begin(Some(&known), None, 2_000, None);
        match phase {
            Phase::Ongoing => {
                let Ok(Begin::Abort(next)) = begun else {
                    panic!("{begun:?}");
                };
                assert_eq!(next.identity(), identity(7, 4));
                assert_eq!(next.phase(), Phase::PrepareAbort);
                assert_eq!((next.number, &next.partitions), (5, &known.partitions));
            }
            Phase::PrepareCommit | Phase::PrepareAbort => {
                assert_eq!(begun, Err(Refused::Concurrent));
            }
            Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => {
                let Ok(Begin::Put(next)) = begun else {
                    panic!("{begun:?}");
                };
                assert_eq!(next.identity(), identity(7, 4));
                assert_eq!((next.phase(), next.number), (Phase::Empty, 5));
                assert_eq!((next.timeout_ms, next.last_epoch), (2_000, -1));
            }
        }
    }
}

#[test]
fn a_producer_that_goes_on_says_what_it_was() {
    let known = transaction(Phase::CompleteAbort);
    let Ok(Begin::Put(next)) = machine::begin(Some(&known), Some(identity(7, 3)), 1_000, None)
    else {
        panic!();
    };
    assert_eq!(next.identity(), identity(7, 4));
    // The answer was lost: it asks again as what it was.
    let again = machine::begin(Some(&next), Some(identity(7, 3)), 1_000, None);
    assert_eq!(again, Ok(Begin::Is(identity(7, 4))));
    for fenced in [identity(7, 2), identity(8, 4), identity(7, 9)] {
        let refused = machine::begin(Some(&next), Some(fenced), 1_000, None);
        assert_eq!(refused, Err(Refused::Fenced), "{fenced:?}");
        let ongoing = transaction(Phase::Ongoing);
        let refused = machine::begin(Some(&ongoing), Some(fenced), 1_000, None);
        assert_eq!(
            refused,
            Err(Refused::Fenced),
            "it may not abort: {fenced:?}"
        );
    }
}

#[test]
fn epochs_that_are_used_up_begin_anew_under_another_producer_id() {
    let mut known = transaction(Phase::CompleteCommit);
    known.epoch = i32::from(i16::MAX) - 1;
    let last = known.identity();
    let begin = |known: &Transaction, was, fresh| machine::begin(Some(known), was, 1_000, fresh);
    assert_eq!(begin(&known, None, None), Ok(Begin::NeedsId));
    let Ok(Begin::Put(next)) = begin(&known, Some(last), Some(90)) else {
        panic!();
    };
    assert_eq!(next.identity(), identity(90, 0));
    let again = begin(&next, Some(last), None);
    assert_eq!(again, Ok(Begin::Is(identity(90, 0))));
    assert_eq!(
        begin(&next, Some(identity(7, 3)), None),
        Err(Refused::Fenced)
    );
    // The very last epoch is for shutting out the one before it.
    known.set_phase(Phase::Ongoing);
    let Ok(Begin::Abort(next)) = begin(&known, None, None) else {
        panic!();
    };
    assert_eq!(next.identity(), identity(7, i16::MAX));
    assert_eq!(
        begin(&machine::complete(&next), None, None),
        Ok(Begin::NeedsId)
    );
}

#[test]
fn the_first_partitions_begin_a_transaction_and_others_join_it() {
    let us = identity(7, 3);
    for phase in PHASES {
        let known = transaction(phase);
        let added = machine::add(Some(&known), us, &[30, 10], 0);
        match phase {
            Phase::PrepareCommit | Phase::PrepareAbort => {
                assert_eq!(added, Err(Refused::Concurrent));
            }
            Phase::Ongoing => {
                let next = put(added.unwrap()).unwrap();
                assert_eq!((next.number, next.partitions), (5, vec![10, 20, 30]));
            }
            Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => {
                let next = put(added.unwrap()).unwrap();
                assert_eq!((next.number, next.phase()), (6, Phase::Ongoing));
                assert_eq!(next.partitions, [10, 30]);
            }
        }
        for (who, refused) in [
            (identity(7, 2), Refused::Fenced),
            (identity(7, 4), Refused::Fenced),
            (identity(8, 3), Refused::UnknownProducer),
        ] {
            assert_eq!(machine::add(Some(&known), who, &[10], 0), Err(refused));
            assert_eq!(machine::end(Some(&known), who, true), Err(refused));
            assert_eq!(machine::shows(Some(&known), who, &[10]), Err(refused));
        }
    }
    let ongoing = transaction(Phase::Ongoing);
    assert_eq!(machine::add(Some(&ongoing), us, &[20], 0), Ok(Next::Is));
    assert_eq!(
        machine::add(None, us, &[20], 0),
        Err(Refused::UnknownProducer)
    );
    let many: Vec<u64> = (0..=MAX_PARTITIONS as u64).collect();
    let refused = machine::add(Some(&ongoing), us, &many, 0);
    assert_eq!(refused, Err(Refused::TooManyPartitions));
}

#[test]
fn an_end_is_taken_once_and_answered_as_often_as_it_is_asked() {
    let us = identity(7, 3);
    let table = [
        (Phase::Empty, true, Err(Refused::InvalidState)),
        (Phase::Empty, false, Err(Refused::InvalidState)),
        (Phase::Ongoing, true, Ok(Some(Phase::PrepareCommit))),
        (Phase::Ongoing, false, Ok(Some(Phase::PrepareAbort))),
        (Phase::PrepareCommit, true, Err(Refused::Concurrent)),
        (Phase::PrepareCommit, false, Err(Refused::InvalidState)),
        (Phase::PrepareAbort, true, Err(Refused::InvalidState)),
        (Phase::PrepareAbort, false, Err(Refused::Concurrent)),
        (Phase::CompleteCommit, true, Ok(None)),
        (Phase::CompleteCommit, false, Err(Refused::InvalidState)),
        (Phase::CompleteAbort, true, Err(Refused::InvalidState)),
        (Phase::CompleteAbort, false, Ok(None)),
    ];
    for (phase, commit, expected) in table {
        let ended = machine::end(Some(&transaction(phase)), us, commit);
        let phase_then = ended.map(|next| put(next).map(|next| next.phase()));
        assert_eq!(phase_then, expected, "{phase:?} {commit}");
    }
    assert_eq!(machine::end(None, us, true), Err(Refused::UnknownProducer));
}

#[test]
fn only_a_transaction_that_is_open_shows_its_partitions() {
    let us = identity(7, 3);
    for phase in PHASES {
        let shown = machine::shows(Some(&transaction(phase)), us, &[20, 25]);
        match phase {
            Phase::Ongoing => assert_eq!(shown, Ok((5, vec![true, false]))),
            Phase::PrepareCommit | Phase::PrepareAbort => {
                assert_eq!(shown, Err(Refused::Concurrent));
            }
            Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => {
                assert_eq!(shown, Ok((5, vec![false, false])));
            }
        }
    }
}

fn at(second: u64) -> At {
    At {
        time: Timestamp(second * SECOND),
    }
}

fn replay(all: &mut Transactions, id: &str, transaction: Transaction, second: u64) {
    let put = TransactionAction::Put(Put {
        id: id.to_owned(),
        transaction,
    });
    assert!(all.replay(&put.into(), at(second)));
}

#[test]
fn time_runs_from_the_first_partition_and_ends_with_the_decision() {
    let mut all = Transactions::default();
    let overdue = |all: &Transactions, second: u64| {
        let overdue = all.overdue(Timestamp(second * SECOND));
        overdue.cloned().collect::<Vec<_>>()
    };
    replay(&mut all, "a", transaction(Phase::Empty), 10);
    assert!(overdue(&all, 100).is_empty());
    replay(&mut all, "a", transaction(Phase::Ongoing), 20);
    // Another partition does not make it longer.
    replay(&mut all, "a", transaction(Phase::Ongoing), 30);
    assert!(overdue(&all, 20).is_empty());
    assert_eq!(overdue(&all, 21), ["a"]);
    replay(&mut all, "a", transaction(Phase::PrepareAbort), 31);
    assert!(overdue(&all, 100).is_empty());
    assert_eq!(all.ending().collect::<Vec<_>>(), ["a"]);
    let restored = Transactions::restore(&all.snapshot());
    assert_eq!(restored.as_ref(), Ok(&all));
    replay(&mut all, "a", transaction(Phase::CompleteAbort), 32);
    assert_eq!(all.ending().count(), 0);
    replay(&mut all, "a", transaction(Phase::Ongoing), 40);
    assert_eq!(overdue(&all, 41), ["a"]);
}

#[test]
fn an_id_is_forgotten_only_if_nothing_has_happened_to_it() {
    let mut all = Transactions::default();
    replay(&mut all, "idle", transaction(Phase::CompleteCommit), 10);
    replay(&mut all, "open", transaction(Phase::Ongoing), 10);
    replay(&mut all, "used", transaction(Phase::Empty), 12);
    let before = Timestamp(11 * SECOND);
    assert_eq!(all.expired(before).collect::<Vec<_>>(), ["idle"]);
    for id in ["idle", "open", "used"] {
        let forget = TransactionAction::Forget(Forget {
            id: id.to_owned(),
            before: before.nanos(),
        });
        assert!(all.replay(&forget.into(), at(13)));
    }
    let left: Vec<&String> = all.iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["open", "used"]);
    let mut other = Transactions::default();
    replay(&mut other, "open", transaction(Phase::Ongoing), 10);
    replay(&mut other, "used", transaction(Phase::Empty), 12);
    assert_eq!(other, all, "and what it took is given back");
}

#[test]
fn what_this_build_does_not_know_is_not_replayed() {
    let mut all = Transactions::default();
    let unknown = Transaction {
        phase: 77,
        ..transaction(Phase::Empty)
    };
    let put = TransactionAction::Put(Put {
        id: "a".to_owned(),
        transaction: unknown,
    });
    assert!(!all.replay(&put.into(), at(1)));
    assert!(!all.replay(&TransactionCommand { action: None }, at(1)));
    assert_eq!(Transactions::restore(b"\xff"), Err(state::Unreadable));
}

#[test]
fn numbers_rise_and_begin_no_lower_than_their_term_says() {
    let us = identity(7, 3);
    let number = |known: &Transaction, least| {
        let next = put(machine::add(Some(known), us, &[10], least).unwrap());
        next.unwrap().number
    };
    let complete = transaction(Phase::CompleteCommit);
    assert_eq!(number(&complete, 1 << 32), 1 << 32);
    assert_eq!(number(&complete, 6), 6);
    assert_eq!(number(&complete, 2), 6, "the last one was number 5");
    assert_eq!(number(&transaction(Phase::Ongoing), 1 << 32), 5);
}

/// A partition that is full can still end what is open, and so becomes less full.
#[test]
fn what_ends_a_transaction_always_has_room() {
    let mut all = Transactions::default();
    let named = |n: usize| format!("{n:0>1000}");
    let mut count = 0;
    loop {
        let open = Transaction {
            epoch: if count % 2 == 0 { 0 } else { 127 },
            ..transaction(Phase::Ongoing)
        };
        if !all.has_room(&named(count), &open) {
            break;
        }
        replay(&mut all, &named(count), open, 1);
        count += 1;
    }
    assert!(count > 50_000, "{count}");
    // To the last byte.
    let mut last = all.get(&named(2)).unwrap().transaction.clone();
    loop {
        last.partitions.push(1);
        if !all.has_room(&named(2), &last) {
            break;
        }
        replay(&mut all, &named(2), last.clone(), 1);
    }
    for n in [0, 1] {
        let id = named(n);
        let known = all.get(&id).unwrap().transaction.clone();
        let fenced = machine::fence(&known);
        assert!(fenced.encoded_len() > known.encoded_len(), "an epoch on");
        assert!(all.has_room(&id, &fenced));
        let mut more = known.clone();
        more.partitions.extend(40..400);
        assert!(!all.has_room(&id, &more));
        replay(&mut all, &id, fenced.clone(), 2);
        let complete = machine::complete(&fenced);
        assert!(all.has_room(&id, &complete));
        replay(&mut all, &id, complete, 3);
    }
}
