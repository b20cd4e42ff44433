//! Crashes a workload at every operation it issues, in several ways each, and has what is found
//! afterwards checked against what had been promised by then.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

use super::{PowerLoss, SimConfig, SimDisk, SimImage};

/// How a run is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    PowerLoss(PowerLoss),
    /// The process alone ends.
    Kill,
}

const CRASHES: [Crash; 5] = [
    Crash::PowerLoss(PowerLoss::Lose),
    Crash::PowerLoss(PowerLoss::Keep),
    Crash::PowerLoss(PowerLoss::InOrder),
    Crash::PowerLoss(PowerLoss::Scatter),
    Crash::Kill,
];

/// What a workload has promised so far; it writes here the moment it does.
pub type Promises<P> = Arc<Mutex<P>>;

/// A promise that a crash broke.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("seed {seed}, {crash:?} at operation {operation}: {broken}")]
pub struct Violation {
    pub seed: u64,
    pub operation: u64,
    pub crash: Crash,
    pub broken: String,
}

/// One instant at which to crash.
struct Point<P> {
    image: SimImage,
    operation: u64,
    promised: P,
}

/// Runs `workload` to its end on a fresh disk, then `check` on what each crash leaves. Returns
/// how many crashes there were. To be called where a [`SimDisk`] can be opened.
///
/// `check` gets the disk opened again and the promises as of the crash; what it returns as an
/// error is the violation. It may go on to use the disk as the next process would.
pub async fn explore<P, W, C>(
    seed: u64,
    config: SimConfig,
    nothing_promised: P,
    workload: W,
    check: C,
) -> Result<u64, Violation>
where
    P: Clone + Send + 'static,
    W: AsyncFnOnce(SimDisk, Promises<P>),
    C: AsyncFn(SimDisk, &P) -> Result<(), String>,
{
    let disk = SimDisk::with_config(seed, config);
    let promises = Arc::new(Mutex::new(nothing_promised));
    let points = Arc::new(Mutex::new(Vec::new()));
    let (record, promised) = (Arc::clone(&points), Arc::clone(&promises));
    let point = move |disk: &SimDisk| Point {
        image: disk.fork(),
        operation: disk.operations(),
        promised: promised.lock().clone(),
    };
    let at_each = point.clone();
    disk.observe(move |disk| record.lock().push(at_each(disk)));
    workload(disk.clone(), promises).await;
    let mut points = std::mem::take(&mut *points.lock());
    points.push(point(&disk));
    disk.kill();

    let mut crashes = 0;
    for point in &points {
        for crash in CRASHES {
            let chance = seed.wrapping_mul(31).wrapping_add(point.operation);
            let after = match crash {
                Crash::PowerLoss(loss) => point.image.power_loss(loss, chance),
                Crash::Kill => point.image.kill(chance),
            };
            let checked = check(after.clone(), &point.promised).await;
            after.kill();
            crashes += 1;
            checked.map_err(|broken| Violation {
                seed,
                operation: point.operation,
                crash,
                broken,
            })?;
        }
    }
    Ok(crashes)
}

impl<P: fmt::Debug> fmt::Debug for Point<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Point")
            .field("operation", &self.operation)
            .field("promised", &self.promised)
            .finish_non_exhaustive()
    }
}
