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
                    state.opened(id, 0, Offset(at));
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
    assert_eq!(judge(&state, Some(Offset(0))), Ok(()));
    state.opened(7, 0, Offset(0));
    assert_eq!(judge(&state, None), Ok(()), "it is open");
    let other = Drain::over(&state).judge(&batch(7, 1), true, Some(Offset(1)));
    assert_eq!(other, Err(Unfit::NotShown), "another epoch");
    let plain = Drain::over(&state).judge(&batch(7, 0), false, None);
    assert_eq!(plain, Err(Unfit::Outside));
    state.ended(&marker(7, 1, true), Offset(1));
    assert_eq!(judge(&state, Some(Offset(1))), Err(Unfit::NotShown), "late");
    assert_eq!(judge(&state, Some(Offset(2))), Ok(()));
    state.forget(&[7]);
    assert_eq!(judge(&state, Some(Offset(1))), Err(Unfit::NotShown));
    assert_eq!(judge(&state, Some(Offset(2))), Ok(()));
}

#[test]
fn a_marker_in_the_same_drain_counts() {
    let state = Isolation::default();
    let mut drain = Drain::over(&state);
    assert!(drain.accept(&batch(7, 0)), "it is the first");
    assert!(!drain.accept(&batch(7, 0)));
    assert_eq!(
        drain.judge_marker(&marker(7, 1, false)),
        MarkerVerdict::Append
    );
    drain.accept_marker(&marker(7, 1, false), 3);
    let late = drain.judge(&batch(7, 0), true, Some(Offset(0)));
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
    state.opened(7, 0, Offset(0));
    state.ended(&marker(7, 4, true), Offset(1));
    state.opened(7, 0, Offset(2));
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
        state.opened(id, 0, Offset(at));
    }
    let next = batch(-5, 0);
    let judged = Drain::over(&state).judge(&next, true, Some(Offset(0)));
    assert_eq!(judged, Err(Unfit::Full));
    let at = Offset(MAX_TRANSACTIONS as u64);
    state.ended(&marker(3, 1, false), at);
    let judged = Drain::over(&state).judge(&next, true, Some(at));
    assert_eq!(
        judged,
        Err(Unfit::Full),
        "it was aborted: its place is taken"
    );
    state.ended(&marker(4, 1, true), at.plus(1));
    let judged = Drain::over(&state).judge(&next, true, Some(at));
    assert_eq!(judged, Ok(()));
}
