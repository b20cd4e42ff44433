//! Crash, recover, write on, crash again, under many seeds: frames of three groups interleaved,
//! files recycled, the disk tearing, losing and reordering whatever was not synced.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};

use super::model::Model;
use super::support::{any_len, data, open, seeds, tiny_config, vote};
use crate::io::sim::{PowerLoss, SimConfig, SimDisk, block_on};
use crate::wal::Room;
use crate::wal::Wal;

const LIVES: u64 = 3;
const PATIENCE: Duration = Duration::from_mins(1);

/// Draws what a life of the log consists of.
struct Script {
    rng: SmallRng,
    life: u64,
    next_index: u64,
}

impl Script {
    async fn step(&mut self, wal: &Wal, model: &mut Model) {
        match self.rng.random_range(0..12) {
            0 => {
                // Alone in the queue, so that it overtakes nothing.
                model.all_acknowledged().await;
                let vote = vote(self.rng.random_range(0..3), self.next());
                model.submit(wal, vec![vote], Room::Reserved);
            }
            1 => tokio::time::sleep(Duration::from_millis(60)).await,
            2 => model.all_acknowledged().await,
            3 => tokio::task::yield_now().await,
            4 => model.checkpoint(wal),
            _ => {
                let frames = self.rng.random_range(1..5);
                let unit = (0..frames).map(|_| self.frame()).collect();
                model.submit(wal, unit, Room::Common);
            }
        }
        // Bounded as by credits, so that the reserve is never called upon.
        if model.open_units() > 3 {
            model.all_acknowledged().await;
        }
        if model.files_spanned() > 2 {
            model.checkpoint(wal);
        }
    }

    fn frame(&mut self) -> crate::frame::Frame {
        let group = self.rng.random_range(0..3);
        let len = any_len(&mut self.rng) / usize::try_from(self.life).unwrap();
        data(group, self.next(), len)
    }

    /// Never the same number twice, so that a frame that was cut is not mistaken for a later one.
    fn next(&mut self) -> u64 {
        self.next_index += 1;
        self.next_index
    }
}

/// One life: recovers, writes on, and ends when the disk halts or the script does.
async fn live(disk: &SimDisk, script: &mut Script, model: &mut Model, seed: u64) {
    let config = tiny_config();
    let start = model.start();
    let (wal, scan) = open(&disk.backend(), &config, start, seed).await.unwrap();
    let safe = model.safe();
    model.recovered(&scan.frames, safe);
    for _ in 0..script.rng.random_range(0..40) {
        script.step(&wal, model).await;
    }
    if script.rng.random_bool(0.2) {
        wal.close().await;
    }
}

async fn double_crash(seed: u64) -> u64 {
    let mut disk = SimDisk::with_config(seed, SimConfig::instant());
    let mut model = Model::new();
    let mut script = Script {
        rng: SmallRng::seed_from_u64(seed),
        life: 1,
        next_index: 0,
    };
    for life in 1..=LIVES {
        script.life = life;
        let halt = disk.operations() + script.rng.random_range(1..150);
        disk.halt_at(halt);
        let life = Box::pin(live(&disk, &mut script, &mut model, seed + life));
        let ended = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                biased;
                () = life => {}
                () = disk.halted() => {}
            }
        });
        ended.await.expect("the log is stuck");
        if script.rng.random_bool(0.2) {
            disk.kill();
        } else {
            disk.crash(PowerLoss::Any);
        }
        disk = disk.reopen();
    }
    let safe = model.safe();
    let votes = model.votes(safe);
    let opened = open(&disk.backend(), &tiny_config(), model.start(), seed).await;
    let (wal, scan) = opened.unwrap();
    model.recovered(&scan.frames, safe);
    let kept = model.votes(model.frames().len());
    for (group, term) in votes {
        assert!(kept[&group] >= term, "a vote was lost");
    }
    wal.close().await;
    disk.trace_hash()
}

fn run(seed: u64) -> u64 {
    let run = std::panic::catch_unwind(|| block_on(double_crash(seed)));
    run.unwrap_or_else(|_| panic!("seed {seed} fails"))
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_cut_returns_over_repeated_crashes() {
    let seeds = seeds(300);
    #[expect(clippy::disallowed_methods, reason = "measures the test itself")]
    let began = Instant::now();
    for seed in 0..seeds {
        run(seed);
    }
    let rate = f64::from(u32::try_from(seeds).unwrap()) / began.elapsed().as_secs_f64();
    eprintln!("{seeds} seeds at {rate:.0} a second");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed));
    }
}
