//! Crashes at random moments of random scenarios, and at every moment of a fixed one.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::driver::{Driver, GROUPS, Step, verify};
use super::model::{Model, check_recovered};
use super::*;
use crate::io::sim::{PowerLoss, SimConfig, SimImage, block_on};

/// How many random scenarios a test tries.
fn seeds() -> u32 {
    let set = std::env::var("TRILOG_SEEDS").ok();
    set.and_then(|seeds| seeds.parse().ok()).unwrap_or(200)
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0..GROUPS;
    let append = (
        group.clone(),
        1..8u64,
        50..3_000usize,
        prop::bool::weighted(0.1),
        any::<bool>(),
    );
    let append = append.prop_map(|(group, frames, len, new_term, wait)| Step::Append {
        group,
        frames,
        len,
        new_term,
        wait,
    });
    let loss = prop_oneof![
        Just(PowerLoss::Lose),
        Just(PowerLoss::Keep),
        Just(PowerLoss::InOrder),
        Just(PowerLoss::Scatter),
    ];
    let cut = (group.clone(), any::<u64>(), any::<bool>());
    let trim = (group.clone(), any::<u64>(), any::<u64>());
    let empty = (group.clone(), 0..50u64, any::<bool>());
    prop_oneof![
        30 => append,
        4 => (group.clone(), any::<bool>()).prop_map(|(group, wait)| Step::Vote { group, wait }),
        4 => cut.prop_map(|(group, at, wait)| Step::Cut { group, at, wait }),
        16 => (group.clone(), any::<u64>()).prop_map(|(group, at)| Step::Commit { group, at }),
        4 => trim.prop_map(|(group, at, data)| Step::Trim { group, at, data }),
        3 => (group.clone(), 0..40_000u64).prop_map(|(group, bytes)| Step::Retain { group, bytes }),
        1 => empty.prop_map(|(group, ahead, wait)| Step::Empty { group, ahead, wait }),
        8 => (group.clone(), any::<u64>()).prop_map(|(group, probe)| Step::Read { group, probe }),
        1 => group.prop_map(|group| Step::Remove { group }),
        8 => (1..30u64).prop_map(Step::Sleep),
        1 => (200..1_000u64).prop_map(Step::Sleep),
        1 => Just(Step::Checkpoint),
        3 => loss.prop_map(Step::Crash),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
    ]
}

#[test]
fn any_crash_leaves_what_was_acknowledged_and_no_phantom() {
    let config = Config {
        cases: seeds(),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let scenario = (any::<u64>(), prop::collection::vec(step(), 1..150));
    let outcome = runner.run(&scenario, |(seed, steps)| {
        block_on(async {
            let disk = SimDisk::new(seed);
            let mut driver = Driver::start(disk, small()).await;
            driver.run(&steps).await;
        });
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// A scenario with a bit of everything, and no crash in it: three groups, cuts, trims, retention,
/// a log emptied, groups removed and made anew, checkpoints, files recycled.
fn fixed() -> Vec<Step> {
    let append = |group, frames, len, wait| Step::Append {
        group,
        frames,
        len,
        new_term: false,
        wait,
    };
    let mut steps = Vec::new();
    for n in 0..40 {
        steps.push(append(n % 2, 3, 1_500, n % 3 == 0));
        steps.push(Step::Commit {
            group: n % 2,
            at: 2,
        });
        if n % 4 == 1 {
            steps.push(Step::Vote {
                group: n % 2,
                wait: true,
            });
            steps.push(Step::Cut {
                group: n % 2,
                at: 1,
                wait: n % 3 == 0,
            });
        }
    }
    steps.push(Step::Trim {
        group: 0,
        at: 9,
        data: 13,
    });
    for n in 0..8 {
        steps.push(append(2, 3, 2_500, n % 2 == 0));
        steps.push(Step::Commit { group: 2, at: 2 });
    }
    steps.push(Step::Sleep(300));
    steps.push(Step::Retain {
        group: 2,
        bytes: 30_000,
    });
    steps.push(append(2, 3, 700, false));
    steps.push(Step::Checkpoint);
    steps.push(Step::Retain { group: 2, bytes: 0 });
    steps.push(append(1, 4, 3_000, false));
    steps.push(Step::Empty {
        group: 1,
        ahead: 7,
        wait: false,
    });
    steps.push(append(1, 2, 500, true));
    steps.push(Step::Checkpoint);
    steps.push(Step::Remove { group: 0 });
    steps.push(append(0, 4, 900, true));
    steps.push(Step::Checkpoint);
    steps
}

/// The disk at one moment, and what a restart then has to find.
type Moment = (SimImage, Model);

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::Lose,
    PowerLoss::Keep,
    PowerLoss::InOrder,
    PowerLoss::Scatter,
];

/// Every moment of a scenario at which a disk operation was under way.
fn moments(disk: impl FnOnce() -> SimDisk, steps: &[Step]) -> Vec<Moment> {
    let moments: Arc<Mutex<Vec<Moment>>> = Arc::default();
    let seen = Arc::clone(&moments);
    block_on(async {
        let mut driver = Driver::start(disk(), small()).await;
        let model = Arc::clone(&driver.model);
        driver
            .disk
            .observe(move |disk| seen.lock().push((disk.fork(), model.lock().clone())));
        driver.perform_all(steps).await;
    });
    std::mem::take(&mut *moments.lock())
}

/// Loses the power at that moment and restarts.
fn restart((image, mut model): Moment, loss: PowerLoss, chance: u64) {
    block_on(async {
        let disk = image.power_loss(loss, chance);
        verify(&disk).await;
        let (store, report) = open(&disk, small()).await;
        assert!(!report.step_aside, "{report:?}");
        check_recovered(&store, &mut model).await;
        store.close().await.unwrap();
        verify(&disk.reopen()).await;
    });
}

#[test]
fn a_crash_at_any_operation_leaves_what_was_acknowledged() {
    let disk = || SimDisk::with_config(11, SimConfig::instant());
    let moments = moments(disk, &fixed());
    assert!(moments.len() > 100, "{} moments", moments.len());
    for (n, moment) in (0..).zip(moments) {
        for loss in LOSSES {
            restart(moment.clone(), loss, n);
        }
    }
}

/// The same for scenarios drawn by a seed, a part of their operations each.
#[test]
fn a_crash_at_operations_of_any_scenario_leaves_what_was_acknowledged() {
    const EVERY: usize = 7;
    for seed in 0..u64::from(seeds().div_ceil(20)) {
        let steps = drawn(seed);
        let moments = moments(|| SimDisk::new(seed), &steps);
        let chosen = moments
            .into_iter()
            .skip(usize::try_from(seed).unwrap() % EVERY);
        for (n, moment) in (0..).zip(chosen.step_by(EVERY)) {
            let loss = LOSSES[usize::try_from(n).unwrap() % LOSSES.len()];
            let restarted = std::panic::catch_unwind(|| restart(moment, loss, seed ^ n));
            assert!(
                restarted.is_ok(),
                "seed {seed}, moment {n}, {loss:?}: {steps:?}"
            );
        }
    }
}

/// Sixty steps without a crash in them.
fn drawn(seed: u64) -> Vec<Step> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = prop::collection::vec(step(), 60);
    let steps = steps.new_tree(&mut runner).unwrap().current();
    let crashes = |step: &Step| matches!(step, Step::Crash(_) | Step::Kill | Step::Close);
    steps.into_iter().filter(|step| !crashes(step)).collect()
}
