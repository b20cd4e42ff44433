//! The checkers, proven: what is valid raises no alarm, and each way of spoiling a history is found
//! by the checker that is there for it.
//!
//! `TRILOG_SEEDS` sets the number of valid histories, `TRILOG_SEED` checks a single one.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod mutate;

use std::time::Duration;

use tokio::time::Instant;
use trilog_jepsen::check::{Checker, Kind, Validity, Verdict, check};
use trilog_jepsen::generate::{Plan, generate, history};
use trilog_jepsen::history::{Event, Header, json};

/// Valid histories to draw.
const SEEDS: u64 = 10_000;
/// Of how many drawn histories each mutator must have spoiled some.
const DRAWN: u64 = 100;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn verdict(header: &Header, events: &[Event]) -> Verdict {
    check(header, events).unwrap()
}

#[test]
fn a_valid_history_raises_no_alarm() {
    let seeds = match number("TRILOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TRILOG_SEEDS").unwrap_or(SEEDS),
    };
    let mut polled = 0;
    for seed in seeds {
        let plan = Plan::drawn(seed);
        let verdict = verdict(&plan.header(), &history(&plan));
        polled += verdict.counts.polled;
        assert_eq!(
            verdict.validity,
            Validity::Valid,
            "TRILOG_SEED={seed}: {:#?}",
            verdict
                .anomalies
                .iter()
                .filter(|anomaly| !anomaly.allowed)
                .collect::<Vec<_>>()
        );
    }
    assert!(polled > 0, "nothing was read, so nothing was checked");
}

/// So that the test above tests something: what a harness meets must occur in what is generated.
#[test]
fn generated_histories_have_everything_in_them() {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..1_000 {
        let plan = Plan::drawn(seed);
        let events = history(&plan);
        for event in &events {
            for what in mutate::traits(event) {
                *seen.entry(what).or_insert(0) += 1;
            }
        }
        for (kind, tally) in verdict(&plan.header(), &events).tally {
            if tally.allowed > 0 {
                *seen.entry(kind.name()).or_insert(0) += 1;
            }
        }
    }
    for what in [
        "rebalance",
        "info with results",
        "info without results",
        "failed transaction",
        "transaction",
        "crash",
        "assign",
        "subscribe",
        "seek",
        "group offsets",
        "group offsets that may be committed",
        "a group at the start",
        // Permitted, hence to be expected of a valid history.
        "G0",
        "G1c",
        "poll-skip",
        "nonmonotonic-poll",
        "int-send-skip",
        "duplicate",
    ] {
        assert!(seen.get(what).is_some_and(|n| *n >= 10), "{what}: {seen:?}");
    }
}

/// Operations of a history as a long run leaves it.
const OPERATIONS: usize = 60_000;

/// Memory is bounded by what came in, and no check takes a time for each operation that grows with
/// the history: with `TRILOG_OPERATIONS` of a million, and a release build, this takes seconds.
#[test]
fn a_long_history_is_judged_as_it_comes_in() {
    let operations = number("TRILOG_OPERATIONS").map_or(OPERATIONS, |n| n.try_into().unwrap());
    let plan = Plan::long(1, operations);
    for spoils in [false, true] {
        let mut checker = Checker::new(plan.header());
        let mut took = Duration::ZERO;
        let mut planted = false;
        generate(&plan, &mut |mut event| {
            let half = event.index > operations as u64;
            planted |= spoils && half && !planted && mutate::loses_a_record(&mut event);
            let began = Instant::now();
            checker.push(event).unwrap();
            took += began.elapsed();
        });
        let began = Instant::now();
        let verdict = checker.finish().unwrap();
        took += began.elapsed();
        let judged = verdict.counts.operations;
        let rate = u128::from(judged) * 1_000 / took.as_millis().max(1);
        eprintln!("{judged} operations judged in {took:.1?}: {rate} a second");
        assert!(judged >= operations as u64);
        assert_eq!(spoils, planted, "nothing was there to be lost");
        let expected = if spoils {
            Validity::Invalid
        } else {
            Validity::Valid
        };
        assert_eq!(verdict.validity, expected, "{:#?}", verdict.tally);
    }
}

#[test]
fn what_there_was_nothing_to_judge_by_is_told() {
    let plan = Plan::long(3, 2_000);
    let events = history(&plan);
    let not_judged = |events: &[Event]| {
        let verdict = verdict(&plan.header(), events);
        let blind = verdict.not_judged.into_iter();
        blind.map(|blind| blind.kind).collect::<Vec<_>>()
    };
    assert_eq!(not_judged(&events), []);
    for (stripped, kinds) in mutate::STRIPPED {
        let mut events = events.clone();
        stripped(&mut events);
        mutate::renumber(&mut events);
        assert_eq!(not_judged(&events), *kinds);
    }
}

#[test]
fn every_mutation_is_caught_by_its_own_checker() {
    let mut missed = Vec::new();
    for mutator in mutate::ALL {
        let mut spoiled = 0;
        for seed in 0..DRAWN {
            let plan = Plan::drawn(seed);
            let mut plan = Plan {
                idempotence: true,
                ..plan
            };
            if mutator.plain {
                plan.transactions = 0;
            }
            let mut events = history(&plan);
            let before = verdict(&plan.header(), &events);
            if (mutator.spoil)(&mut events, seed).is_none() {
                continue;
            }
            spoiled += 1;
            mutate::renumber(&mut events);
            let after = verdict(&plan.header(), &events);
            let count = |verdict: &Verdict| {
                let tally = verdict
                    .tally
                    .get(&mutator.kind)
                    .copied()
                    .unwrap_or_default();
                if mutator.allowed {
                    tally.allowed
                } else {
                    tally.errors
                }
            };
            if count(&after) <= count(&before) {
                missed.push(format!("{} ({}), seed {seed}", mutator.kind, mutator.what));
            } else if !mutator.allowed {
                assert_eq!(after.validity, Validity::Invalid);
                let found = after
                    .anomalies
                    .iter()
                    .find(|found| found.kind == mutator.kind);
                assert!(
                    !found.unwrap().events.is_empty(),
                    "{found:?} proves nothing"
                );
            }
        }
        assert!(
            spoiled >= 10,
            "{} ({}) spoiled {spoiled}",
            mutator.kind,
            mutator.what
        );
    }
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

#[test]
fn every_kind_of_anomaly_has_a_mutator() {
    for kind in Kind::ALL {
        let has = mutate::ALL.iter().any(|mutator| mutator.kind == kind);
        assert!(has, "{kind} has no mutator");
    }
}

#[test]
fn a_history_comes_back_from_disk_as_it_was() {
    for seed in 0..50 {
        let plan = Plan::drawn(seed);
        let (header, events) = (plan.header(), history(&plan));
        let mut bytes = Vec::new();
        json::write_header(&mut bytes, &header).unwrap();
        for event in &events {
            json::write_event(&mut bytes, event).unwrap();
        }
        let reader = json::Reader::new(bytes.as_slice()).unwrap();
        assert_eq!(*reader.header(), header);
        let read: Vec<Event> = reader.map(Result::unwrap).collect();
        assert_eq!(read, events, "seed {seed}");
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..20 {
        let plan = Plan::drawn(seed);
        assert_eq!(history(&plan), history(&plan));
    }
}

#[test]
fn a_history_that_was_broken_off_is_not_called_valid() {
    let plan = Plan::drawn(1);
    let mut events = history(&plan);
    events.truncate(events.len() / 2);
    let verdict = verdict(&plan.header(), &events);
    assert_eq!(verdict.validity, Validity::Unknown);
}
