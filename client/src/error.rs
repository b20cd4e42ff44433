//! What a caller can be told, and what the client makes of a node's answers before it tells.

use tonic::{Code, Status};
use trilog_model::batch::{BatchError, BuildError, DecompressError, RecordError};
use trilog_wire::error::Outcome;
use trilog_wire::v1::{self, ErrorCode, Leader};

/// Why something could not be done. Cheap to clone: one failed batch fails many records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No node could be reached, or none in a state to answer, within the time allowed.
    #[error("the cluster cannot be reached: {0}")]
    Unreachable(String),
    /// The cluster refused, and will refuse the same request again.
    #[error(transparent)]
    Refused(#[from] ServerError),
    /// The request may have been executed: nobody lived to tell.
    #[error("it is not known whether the request was executed: {0}")]
    UnknownOutcome(String),
    /// It was not executed within the time allowed, for certain.
    #[error("not done in the time allowed: {0}")]
    Timeout(String),
    #[error("'{0}' is not an address of the form host:port")]
    Address(String),
    /// A record, or the batch that holds it.
    #[error("{size} bytes are more than the {limit} allowed")]
    TooLarge { size: usize, limit: usize },
    #[error("topic '{topic}' has {partitions} partitions; {partition} is not one of them")]
    NoSuchPartition {
        topic: String,
        partition: u32,
        partitions: u32,
    },
    /// The records could not be made into a batch.
    #[error("the records cannot be encoded: {0}")]
    Encode(String),
    /// A node served bytes that are not what was written.
    #[error("damaged records at offset {offset} of {topic}-{partition}: {reason}")]
    Damaged {
        topic: String,
        partition: u32,
        offset: u64,
        reason: String,
    },
    /// The producer was closed or dropped first.
    #[error("the producer is closed")]
    Closed,
}

/// A refusal, in the cluster's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    pub code: ErrorCode,
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

impl std::error::Error for ServerError {}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if self.hint.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.hint)
        }
    }
}

impl Error {
    /// The code of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether the request may have been executed although this error came of it.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        matches!(self, Self::UnknownOutcome(_) | Self::Closed)
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        Self::Encode(error.to_string())
    }
}

/// Why a fetched batch is damaged; the reader adds where.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum DamageError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// One attempt's failure, by what may be concluded from it.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Not executed; worth another attempt, perhaps at the leader named.
    Retry {
        reason: String,
        leader: Option<Leader>,
    },
    /// Perhaps executed.
    Unknown(String),
    Refused(ServerError),
}

impl Failure {
    pub(crate) fn retry(reason: impl Into<String>) -> Self {
        Self::Retry {
            reason: reason.into(),
            leader: None,
        }
    }

    /// What the caller hears when no further attempt will be made.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Retry { reason, .. } => Error::Unreachable(reason),
            Self::Unknown(reason) => Error::UnknownOutcome(reason),
            Self::Refused(error) => Error::Refused(error),
        }
    }

    /// The same, for a request that changes nothing, where it is all one whether it was executed.
    pub(crate) fn of_read(self) -> Self {
        match self {
            Self::Unknown(reason) => Self::retry(reason),
            other => other,
        }
    }
}

impl From<v1::Error> for Failure {
    fn from(error: v1::Error) -> Self {
        match error.outcome() {
            Outcome::Retry => Self::Retry {
                reason: error.message,
                leader: error.leader,
            },
            Outcome::Unknown => Self::Unknown(error.message),
            Outcome::Refused => Self::Refused(ServerError {
                code: error.code(),
                message: error.message,
                hint: error.hint,
            }),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(error) = v1::Error::from_status(&status) {
            return error.into();
        }
        let code = match status.code() {
            Code::Unauthenticated => ErrorCode::Unauthenticated,
            Code::PermissionDenied => ErrorCode::PermissionDenied,
            Code::InvalidArgument => ErrorCode::InvalidRequest,
            Code::Unimplemented => ErrorCode::Unsupported,
            // From the transport, or from something between: all that is certain is that the
            // request left.
            _ => return Self::Unknown(describe(&status)),
        };
        Self::Refused(ServerError {
            code,
            message: describe(&status),
            hint: String::new(),
        })
    }
}

/// A status with the causes that tonic hides behind "transport error".
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
