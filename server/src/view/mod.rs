//! Views: folds of a partition's committed entries, alike on every replica.
//!
//! A view judges a request on the leader against what is applied and what is already on its way
//! (`judge`), and replays committed entries on every replica (`replay`). Both are pure: no I/O,
//! no clock; time arrives in the entry. The reply to a request is released when its entry
//! commits. Views know no dialect, no socket and no file.

pub mod cleanness;
mod command;
pub mod group;
pub mod isolation;
pub mod partition_state;
mod partition_view;
pub mod producers;
pub mod transaction;

/// What the entries of a partition mean, beyond where it starts and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ViewKind {
    /// Records, and no more.
    #[default]
    Records,
    /// Consumer groups and their offsets.
    Groups,
    /// Transactions, by transactional id.
    Transactions,
}

pub use command::{Marker, PartitionCommand};
pub use isolation::{Aborted, Isolation};
pub use partition_state::{PartitionState, SharedState};
pub use partition_view::PartitionView;
pub use producers::{Producers, Publisher, Verdict};
