//! A crash at every single operation of a fixed history, and at every one of the recovery from
//! it, with each way of losing what was not synced.

use std::sync::Arc;

use parking_lot::Mutex;

use super::model::Model;
use super::support::{data, open, tiny_config, vote};
use crate::io::sim::{PowerLoss, SimConfig, SimDisk, SimImage, block_on};
use crate::wal::Room;
use crate::wal::Wal;

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::Lose,
    PowerLoss::Keep,
    PowerLoss::InOrder,
    PowerLoss::Scatter,
];

/// The disk at one moment, and how many frames were safe then.
type Moment = (SimImage, usize);

/// Submits a varied history of some files, one unit after the other.
async fn write_history(wal: &Wal, model: &Arc<Mutex<Model>>) {
    let bell = model.lock().bell();
    for index in 0..45 {
        let len = [100, 6_000, 0, 900, 3_000][usize::try_from(index % 5).unwrap()];
        let unit = vec![data(index % 3, index, len), data(7, index, 30)];
        if index % 4 == 0 && model.lock().open_units() == 0 {
            model
                .lock()
                .submit(wal, vec![vote(index % 3, index)], Room::Reserved);
        }
        model.lock().submit(wal, unit, Room::Common);
        while model.lock().open_units() > usize::from(index % 2 == 1) {
            bell.notified().await;
        }
    }
    while model.lock().open_units() > 0 {
        bell.notified().await;
    }
}

/// Every moment of the history's writing.
async fn moments_of_a_history() -> (Vec<Moment>, Vec<crate::frame::Frame>) {
    let disk = SimDisk::with_config(1, SimConfig::instant());
    let model = Arc::new(Mutex::new(Model::new()));
    let moments = Arc::new(Mutex::new(Vec::new()));
    let (watched, seen) = (Arc::clone(&model), Arc::clone(&moments));
    disk.observe(move |disk| {
        // Not while the test itself is at the model: the next operation does as well.
        if let Some(model) = watched.try_lock() {
            seen.lock().push((disk.fork(), model.safe()));
        }
    });
    let start = model.lock().start();
    let opened = open(&disk.backend(), &tiny_config(), start, 1).await;
    let (wal, _) = opened.unwrap();
    write_history(&wal, &model).await;
    wal.close().await;
    disk.kill();
    let frames = model.lock().frames().to_vec();
    let moments = std::mem::take(&mut *moments.lock());
    (moments, frames)
}

#[test]
fn every_crash_point_recovers_to_a_prefix_with_all_that_was_acknowledged() {
    block_on(async {
        let (moments, frames) = moments_of_a_history().await;
        assert!(moments.len() > 60);
        for (seed, (image, safe)) in (0..).zip(&moments) {
            for loss in LOSSES {
                let disk = image.power_loss(loss, seed);
                let mut model = Model::with_frames(frames.clone());
                let opened = open(&disk.backend(), &tiny_config(), model.start(), seed).await;
                let (wal, scan) = opened.unwrap();
                model.recovered(&scan.frames, *safe);
                drop(wal);
                disk.kill();
            }
        }
    });
}

#[test]
fn every_crash_point_of_a_recovery_recovers_too() {
    block_on(async {
        let (moments, frames) = moments_of_a_history().await;
        for (seed, (image, safe)) in (0..).zip(moments.iter().step_by(7)) {
            let disk = image.power_loss(PowerLoss::Scatter, seed);
            let again = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&again);
            disk.observe(move |disk| seen.lock().push(disk.fork()));
            let mut model = Model::with_frames(frames.clone());
            let opened = open(&disk.backend(), &tiny_config(), model.start(), seed).await;
            let (wal, scan) = opened.unwrap();
            model.recovered(&scan.frames, *safe);
            model.submit(&wal, vec![data(9, 9_999, 2_000)], Room::Common);
            model.all_acknowledged().await;
            disk.kill();
            drop(wal);
            let images = std::mem::take(&mut *again.lock());
            for image in images {
                for loss in LOSSES {
                    let disk = image.power_loss(loss, seed);
                    let mut model = Model::with_frames(model.frames().to_vec());
                    let start = model.start();
                    let opened = open(&disk.backend(), &tiny_config(), start, seed + 1).await;
                    model.recovered(&opened.unwrap().1.frames, *safe);
                    disk.kill();
                }
            }
        }
    });
}
