//! A whole cluster in one process under a seed: simulated disks, links and time.
//!
//! One seed gives one trace. Scenarios build a [`Cluster`], break it, heal it, and ask the checks
//! whether anything acknowledged was lost, anything happened twice, or replicas differ. A check
//! that fails panics where it failed.

pub mod atlas;
pub mod checks;
pub mod client;
mod clock;
mod cluster;
pub mod compare;
mod figures;
mod majority;
pub mod nemesis;
mod owner;
mod tally;
mod watch;
mod witness;

pub use checks::Checks;
pub use clock::SimClock;
pub use cluster::{Cluster, ClusterConfig, small_store};
pub use figures::{Seeds, block_on};
pub use tally::Tally;
pub use witness::Witness;

pub(crate) use owner::Owner;
pub(crate) use watch::OrderedWatch;

/// Has every random choice of consensus on this thread follow from a seed. A [`Cluster`] does so
/// itself.
pub fn seed_thread(seed: u64) {
    crate::runtime::seed_thread(seed);
}

/// The seeds to run: `TRILOG_SEEDS` as a count, as `first..end`, or a few by default. How fast
/// they were is measured, see [`Seeds`].
#[must_use]
pub fn seeds(default: u64) -> Seeds {
    let Ok(text) = std::env::var("TRILOG_SEEDS") else {
        return Seeds::new(0..default);
    };
    let range = match text.split_once("..") {
        Some((first, end)) => first.parse().ok().zip(end.parse().ok()),
        None => text.parse().ok().map(|count| (0, count)),
    };
    let (first, end) = range.unwrap_or_else(|| panic!("TRILOG_SEEDS is no count or range: {text}"));
    Seeds::new(first..end)
}
