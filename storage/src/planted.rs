//! Bugs planted on purpose, to see that the simulation and the harness on real processes would
//! notice them (`make chaos-mutants`). Without the feature `planted` there are none: [`has`] is a
//! constant then, and not even their names are in the binary. A build with it has no release
//! profile, and runs only where `TRILOG_PLANTED` says which bug it is to have.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("planted bugs are for tests: this build could be taken for a real one");

/// A way in which a node could be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// What is written to the write-ahead log counts as durable before it is.
    AckBeforeSync,
    /// A leader that was restarted goes on in its term.
    LeaderRestore,
    /// What a new leader replaces is not cut off.
    TruncationSkipped,
    /// What a producer sent lately is known to its leader alone, and forgotten with it.
    WindowNotReplicated,
    /// A leader counts itself before its own write is durable.
    CommitCountsUnsynced,
    /// A follower serves what it holds, committed or not.
    ServesUncommitted,
}

/// Whether this process has the bug.
#[cfg(not(feature = "planted"))]
#[must_use]
pub const fn has(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use chosen::{VARIABLE, chosen, has};

#[cfg(feature = "planted")]
mod chosen {
    use std::sync::OnceLock;

    use super::Bug;

    /// Names the bug of this process, or `none`.
    pub const VARIABLE: &str = "TRILOG_PLANTED";

    const NAMES: [(&str, Option<Bug>); 7] = [
        ("none", None),
        ("ack-before-sync", Some(Bug::AckBeforeSync)),
        ("leader-restore", Some(Bug::LeaderRestore)),
        ("truncation-skipped", Some(Bug::TruncationSkipped)),
        ("window-not-replicated", Some(Bug::WindowNotReplicated)),
        ("commit-counts-unsynced", Some(Bug::CommitCountsUnsynced)),
        ("serves-uncommitted", Some(Bug::ServesUncommitted)),
    ];

    /// The bug of this process.
    ///
    /// # Panics
    ///
    /// If nobody said which: a build with bugs must not be taken for a good one, nor a test of no
    /// bug for a test of one.
    #[must_use]
    pub fn chosen() -> Option<Bug> {
        static CHOSEN: OnceLock<Option<Bug>> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let name = std::env::var(VARIABLE).unwrap_or_default();
            let found = NAMES.iter().find(|(known, _)| *known == name);
            let Some((_, bug)) = found else {
                panic!("this build has PLANTED BUGS, and {VARIABLE} names none: {name:?}");
            };
            *bug
        })
    }

    /// Whether this process has the bug.
    #[must_use]
    pub fn has(bug: Bug) -> bool {
        chosen() == Some(bug)
    }
}
