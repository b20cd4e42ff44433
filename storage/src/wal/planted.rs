//! Faults that the tests plant in the log, one at a time, to see that they would notice. Elsewhere
//! there are none, and asking for one costs nothing.

/// A way in which the log could be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Takes any whole round for the next one, also what an earlier use of the file left.
    AdoptsStaleRounds,
    /// Takes a round of another use of the file for one of this use.
    ForgetsSignatures,
    /// Reads each file to its end, also where an earlier recovery cut it.
    ReadsPastTheCut,
    /// Leaves it to chance whether a file just made has its name after a power loss.
    LeavesNewNamesUnsynced,
    /// The same for a file found at the start, made by a process that was killed.
    TrustsFoundNames,
    /// Believes a disk the first time.
    BelievesTheFirstRead,
}

#[cfg(not(test))]
pub(super) const fn planted(_: Flaw) -> bool {
    false
}

#[cfg(test)]
pub(super) fn planted(flaw: Flaw) -> bool {
    PLANTED.get() == Some(flaw)
}

#[cfg(test)]
thread_local! {
    /// A simulation runs on one thread, so that tests side by side do not see each other's.
    static PLANTED: std::cell::Cell<Option<Flaw>> = const { std::cell::Cell::new(None) };
}

/// Runs `check` with the flaw in the log; whether it noticed, that is, panicked.
#[cfg(test)]
pub(super) fn notices(flaw: Flaw, check: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    PLANTED.set(Some(flaw));
    let outcome = std::panic::catch_unwind(check);
    PLANTED.set(None);
    outcome.is_err()
}
