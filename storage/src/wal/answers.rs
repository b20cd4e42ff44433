//! Telling waiters while the next round is written.
//!
//! To tell a waiter is to run what it left for that, a microsecond or two. For a few waiters this
//! is less than waking somebody else to do it, so the writer does it. The hundreds of a round in
//! which many groups wrote would keep the device idle meanwhile: they are told by a job of its
//! own. In order, either way: while that job has anybody to tell, everybody is handed to it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::queue::{Queue, Unit};
use super::{Shared, WalError, WalPosition};
use crate::io::{Io, IoJob};

/// Waiters that make it worth waking the other job.
const MANY: usize = 16;

/// A unit, and what its waiter is to be told.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) unit: Unit,
    pub(super) outcome: Result<WalPosition, WalError>,
}

/// What was handed over and not told yet. Bounded by what may wait for the log at all: nobody in
/// it counts as answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    waiting: Mutex<Waiting>,
    bell: Notify,
    untold: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: VecDeque<Answer>,
    ended: bool,
}

impl Answers {
    /// Tells waiters, or has them told; empties `answers`.
    pub(super) fn tell(&self, queue: &Queue, answers: &mut Vec<Answer>) {
        if answers.is_empty() {
            return;
        }
        // Pairs with the release below: who was told before has been told by now.
        let idle = self.untold.load(Ordering::Acquire) == 0;
        if idle && answers.len() < MANY {
            for Answer { unit, outcome } in answers.drain(..) {
                queue.answer(unit, outcome);
            }
            return;
        }
        self.untold.fetch_add(answers.len(), Ordering::Relaxed);
        self.waiting.lock().answers.extend(answers.drain(..));
        self.bell.notify_one();
    }

    /// Nothing more will be handed over.
    pub(super) fn end(&self) {
        self.waiting.lock().ended = true;
        self.bell.notify_one();
    }
}

/// The job that tells those who were handed over.
#[derive(Debug)]
pub(super) struct Teller {
    pub(super) shared: Arc<Shared>,
}

impl IoJob for Teller {
    async fn run<I: Io>(self, _: I) {
        let Shared { answers, queue, .. } = &*self.shared;
        let mut taken = VecDeque::new();
        loop {
            let ended = {
                let mut waiting = answers.waiting.lock();
                std::mem::swap(&mut waiting.answers, &mut taken);
                waiting.ended
            };
            if taken.is_empty() {
                if ended {
                    return;
                }
                answers.bell.notified().await;
                continue;
            }
            let told = taken.len();
            for Answer { unit, outcome } in taken.drain(..) {
                queue.answer(unit, outcome);
            }
            answers.untold.fetch_sub(told, Ordering::Release);
        }
    }
}
