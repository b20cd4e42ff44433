//! What is counted of transactions, by the node that coordinates them.

use metrics::counter;

const COMMITTED: &str = "trilog_transactions_committed_total";
const ABORTED: &str = "trilog_transactions_aborted_total";

/// Why a transaction was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AbortReason {
    /// Its producer wanted it.
    Producer,
    /// Another producer has come with the same id.
    Fenced,
    /// It took too long.
    Timeout,
    Operator,
}

impl AbortReason {
    const ALL: [Self; 4] = [Self::Producer, Self::Fenced, Self::Timeout, Self::Operator];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Fenced => "fenced",
            Self::Timeout => "timeout",
            Self::Operator => "operator",
        }
    }
}

pub(super) fn count_commit() {
    counter!(COMMITTED).increment(1);
}

pub(super) fn count_abort(reason: AbortReason) {
    counter!(ABORTED, "reason" => reason.as_str()).increment(1);
}

/// Shows them from the start, not only from the first transaction on.
pub(super) fn show_counts() {
    counter!(COMMITTED).increment(0);
    for reason in AbortReason::ALL {
        counter!(ABORTED, "reason" => reason.as_str()).increment(0);
    }
}
