use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

fn marker(producer_id: i64, transaction: u64, commit: bool) -> Marker {
    Marker {
        producer_id,
        epoch: 0,
        coordinator_epoch: 1,
        transaction,
        commit,
    }
}

fn open(first_offset: u64, transaction: u64) -> Open {
    Open {
        epoch: 0,
        transaction,
        first_offset: Offset(first_offset),
    }
}

/// The first transaction of a producer, shown when the log ended here.
fn shown(since: u64) -> Inclusion {
    Inclusion {
        since: Offset(since),
        transaction: 1,
    }
}

fn batch(producer_id: i64, epoch: i16) -> Publisher {
    Publisher {
        producer_id,
        epoch,
        first_sequence: 0,
        records: 1,
    }
}

/// What a log holds at one offset, told plainly.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Data(i64),
    End(i64, bool),
}

/// Which offsets of the log do not count, by reading on to each record's marker.
fn undone(log: &[Entry]) -> Vec<bool> {
    let each = log.iter().enumerate().map(|(at, entry)| match entry {
        Entry::End(..) => true,
        Entry::Data(producer) => {
            let ends = log[at..].iter().find_map(|later| match later {
                Entry::End(of, commit) if of == producer => Some(*commit),
                _ => None,
            });
            ends == Some(false)
        }
    });
    each.collect()
}

/// Which offsets from `from` to before `to` count for a consumer that goes through the log with
/// the list it was given, as Kafka's clients do.
fn filtered(log: &[Entry], from: usize, to: usize, list: &[Aborted]) -> Vec<usize> {
    let mut list: Vec<Aborted> = list.to_vec();
    list.sort_by_key(|one| one.first_offset);
    let mut list = list.into_iter().peekable();
    let (mut out, mut aborted) = (Vec::new(), BTreeSet::new());
    for (at, entry) in log.iter().enumerate().take(to).skip(from) {
        while let Some(one) = list.next_if(|one| one.first_offset.get() <= at as u64) {
            aborted.insert(one.producer_id);
        }
        match entry {
            Entry::End(producer, false) => {
                aborted.remove(producer);
            }
            Entry::Data(producer) if !aborted.contains(producer) => out.push(at),
            Entry::End(_, true) | Entry::Data(_) => {}
        }
    }
    out
}

/// Random logs: wherever a reader begins and ends, what it is told leaves it exactly what counts,
/// before and after a trim and a restart.
#[test]
fn readers_are_told_exactly_what_does_not_count() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut state, mut log, mut numbers) = (Isolation::default(), Vec::new(), [0_u64; 4]);
        for at in 0..rng.random_range(1..80_u64) {
            let producer = rng.random_range(0..4_usize);
            let id = i64::try_from(producer).unwrap();
            if rng.random_bool(0.7) {
                if state.open(id).is_none() {
                    state.opened(id, open(at, numbers[producer] + 1));
                }
                log.push(Entry::Data(id));
            } else {
                numbers[producer] += 1;
                let commit = rng.random_bool(0.5);
                state.ended(&marker(id, numbers[producer], commit), Offset(at));
                log.push(Entry::End(id, commit));
            }
        }
        let stable = state
            .first_open()
            .map_or(log.len(), |first| usize::try_from(first.get()).unwrap());
        let undone = undone(&log);
        let mut start = 0;
        for round in 0..20 {
            if round == 10 {
                start = rng.random_range(0..=stable);
                state.trim(Offset(start as u64));
                state = Isolation::restore(&state.stored()).unwrap();
            }
            let from = rng.random_range(start..=stable);
            let to = rng.random_range(from..=stable);
            let list: Vec<Aborted> = state
                .aborted(Offset(from as u64), Offset(to as u64))
                .collect();
            let counts: Vec<usize> = (from..to).filter(|at| !undone[*at]).collect();
            let seen = filtered(&log, from, to, &list);
            assert_eq!(seen, counts, "seed {seed} {from}..{to} {log:?} {list:?}");
        }
    }
}

#[test]
fn a_batch_opens_a_transaction_only_if_it_was_shown_since_the_last_marker() {
    let mut state = Isolation::default();
    let judge = |state: &Isolation, shown| Drain::over(state).judge(&batch(7, 0), true, shown);
    assert_eq!(judge(&state, None), Err(Unfit::NotShown));
    assert_eq!(judge(&state, Some(shown(0))), Ok(()));
    state.opened(7, open(0, 1));
    assert_eq!(judge(&state, None), Ok(()), "it is open");
    let other = Drain::over(&state).judge(&batch(7, 1), true, Some(shown(1)));
    assert_eq!(other, Err(Unfit::NotShown), "another epoch");
    let plain = Drain::over(&state).judge(&batch(7, 0), false, None);
    assert_eq!(plain, Err(Unfit::Outside));
    state.ended(&marker(7, 1, true), Offset(1));
    assert_eq!(judge(&state, Some(shown(1))), Err(Unfit::NotShown), "late");
    assert_eq!(judge(&state, Some(shown(2))), Ok(()));
    state.forget(&[7]);
    assert_eq!(judge(&state, Some(shown(1))), Err(Unfit::NotShown));
    assert_eq!(judge(&state, Some(shown(2))), Ok(()));
}

#[test]
fn a_marker_in_the_same_drain_counts() {
    let state = Isolation::default();
    let mut drain = Drain::over(&state);
    let first = drain.accept(&batch(7, 0), Some(shown(0)));
    assert_eq!(first, Some(1), "it is the first");
    assert_eq!(drain.accept(&batch(7, 0), None), None);
    assert_eq!(
        drain.judge_marker(&marker(7, 1, false)),
        MarkerVerdict::Append
    );
    drain.accept_marker(&marker(7, 1, false), 3);
    let late = drain.judge(&batch(7, 0), true, Some(shown(0)));
    assert_eq!(late, Err(Unfit::NotShown));
    let again = drain.judge_marker(&marker(7, 1, false));
    assert_eq!(again, MarkerVerdict::Pending(3));
    assert_eq!(
        drain.judge_marker(&marker(7, 2, true)),
        MarkerVerdict::Append
    );
}

#[test]
fn a_marker_that_comes_again_ends_nothing_and_an_older_coordinators_is_refused() {
    let mut state = Isolation::default();
    state.opened(7, open(0, 4));
    state.ended(&marker(7, 4, true), Offset(1));
    state.opened(7, open(2, 5));
    let judge = |marker| Drain::over(&state).judge_marker(&marker);
    assert_eq!(judge(marker(7, 4, false)), MarkerVerdict::Done(Offset(1)));
    assert_eq!(judge(marker(7, 3, false)), MarkerVerdict::Done(Offset(1)));
    let older = Marker {
        coordinator_epoch: 0,
        ..marker(7, 5, true)
    };
    assert_eq!(judge(older), MarkerVerdict::Stale);
    assert_eq!(judge(marker(7, 5, true)), MarkerVerdict::Append);
}

#[test]
fn no_transaction_is_opened_that_could_not_be_remembered_as_aborted() {
    let mut state = Isolation::default();
    for (id, at) in (0..).zip(0..MAX_TRANSACTIONS as u64) {
        state.opened(id, open(at, 1));
    }
    let next = batch(-5, 0);
    let judged = Drain::over(&state).judge(&next, true, Some(shown(0)));
    assert_eq!(judged, Err(Unfit::Full));
    let at = Offset(MAX_TRANSACTIONS as u64);
    state.ended(&marker(3, 1, false), at);
    let judged = Drain::over(&state).judge(&next, true, Some(shown(at.get())));
    assert_eq!(
        judged,
        Err(Unfit::Full),
        "it was aborted: its place is taken"
    );
    state.ended(&marker(4, 1, true), at.plus(1));
    let judged = Drain::over(&state).judge(&next, true, Some(shown(at.get())));
    assert_eq!(judged, Ok(()));
}

/// A coordinator that lost its newest entries for good gives numbers again.
#[test]
fn what_is_open_ends_though_a_marker_of_its_number_stands_before_it() {
    let mut state = Isolation::default();
    state.ended(&marker(7, 4, true), Offset(1));
    for (number, expected) in [
        (3, MarkerVerdict::Append),
        (4, MarkerVerdict::Append),
        (5, MarkerVerdict::Done(Offset(1))),
        // Of one without a number nothing is known.
        (0, MarkerVerdict::Done(Offset(1))),
    ] {
        let mut state = state.clone();
        state.opened(7, open(2, number));
        let restored = Isolation::restore(&state.stored());
        assert_eq!(restored.as_ref(), Some(&state));
        let drain = Drain::over(&state);
        assert_eq!(
            drain.judge_marker(&marker(7, 4, false)),
            expected,
            "{number}"
        );
        state.ended(&marker(7, 3, false), Offset(3));
        let mark = state.mark(7).unwrap();
        assert_eq!(mark.transaction, 4, "the last number only rises");
        assert_eq!(state.first_open(), None);
    }
}

#[test]
fn an_operator_ends_whatever_is_open_or_only_what_he_named() {
    let mut state = Isolation::default();
    state.ended(&marker(7, 4, true), Offset(1));
    let judge = |state: &Isolation, coordinator_epoch, begins: Option<u64>| {
        let mut ended = Marker {
            coordinator_epoch,
            ..marker(7, 0, false)
        };
        let drain = Drain::over(state);
        let verdict = drain.judge_operators(&mut ended, begins.map(Offset));
        (verdict, ended.transaction)
    };
    assert_eq!(judge(&state, 1, None), (MarkerVerdict::Append, 4));
    assert_eq!(judge(&state, 1, Some(2)).0, MarkerVerdict::NotOpen);
    state.opened(7, open(2, 5));
    assert_eq!(judge(&state, 1, None), (MarkerVerdict::Append, 5));
    assert_eq!(judge(&state, 1, Some(2)), (MarkerVerdict::Append, 5));
    assert_eq!(judge(&state, 1, Some(3)).0, MarkerVerdict::NotOpen);
    assert_eq!(judge(&state, 0, None).0, MarkerVerdict::Stale);
    // The coordinator's own marker then has nothing left to do; that of the next one has.
    state.ended(&marker(7, 5, false), Offset(3));
    let drain = Drain::over(&state);
    let late = drain.judge_marker(&marker(7, 5, true));
    assert_eq!(late, MarkerVerdict::Done(Offset(3)));
    // The producer goes on in the same transaction: it ends with it.
    state.opened(7, open(4, 5));
    let drain = Drain::over(&state);
    assert_eq!(
        drain.judge_marker(&marker(7, 5, true)),
        MarkerVerdict::Append
    );
}
