//! How an error travels with a failed call: as a `trilog.v1.Error` in the status details, in the
//! envelope that gRPC tools know how to show.

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::v1::{Error, ErrorCode, Leader};

const TYPE_URL: &str = "type.googleapis.com/trilog.v1.Error";

/// `google.rpc.Status`, of which status details are an encoding.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// What a caller may conclude from an error about its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not executed and may succeed later or elsewhere.
    Retry,
    /// It may have been executed.
    Unknown,
    /// It was refused and always will be.
    Refused,
}

impl Error {
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: String::new(),
            leader: None,
        }
    }

    /// Adds what the caller could do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds where the leader is.
    #[must_use]
    pub fn with_leader(mut self, leader: Leader) -> Self {
        self.leader = Some(leader);
        self
    }

    /// What the code says about the request's fate. Codes of a newer node follow their range.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.code {
            1..20 => Outcome::Retry,
            40.. => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }

    /// The error that came with a failed call, if the other side was Trilog.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let envelope = Envelope::decode(status.details()).ok()?;
        let detail = envelope
            .details
            .into_iter()
            .find(|detail| detail.type_url == TYPE_URL)?;
        Self::decode(detail.value).ok()
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = status_code(error.code());
        let message = if error.hint.is_empty() {
            error.message.clone()
        } else {
            format!("{} ({})", error.message, error.hint)
        };
        let envelope = Envelope {
            code: code.into(),
            message: message.clone(),
            details: vec![Detail {
                type_url: TYPE_URL.to_owned(),
                value: error.encode_to_vec().into(),
            }],
        };
        Self::with_details(code, message, envelope.encode_to_vec().into())
    }
}

/// The nearest of gRPC's own codes, for callers that know no other.
fn status_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::Unspecified => Code::Unknown,
        ErrorCode::NotLeader
        | ErrorCode::NoLeader
        | ErrorCode::ShuttingDown
        | ErrorCode::SessionOver
        | ErrorCode::Damaged => Code::Unavailable,
        ErrorCode::Overloaded | ErrorCode::DiskFull => Code::ResourceExhausted,
        ErrorCode::DataLost => Code::DataLoss,
        ErrorCode::Conflict => Code::Aborted,
        ErrorCode::UnknownOutcome => Code::DeadlineExceeded,
        ErrorCode::InvalidRequest
        | ErrorCode::InvalidTopic
        | ErrorCode::InvalidConfig
        | ErrorCode::InvalidRecord
        | ErrorCode::CorruptBatch
        | ErrorCode::TooLarge
        | ErrorCode::UnsupportedCompression => Code::InvalidArgument,
        ErrorCode::UnknownTopic
        | ErrorCode::UnknownPartition
        | ErrorCode::UnknownNode
        | ErrorCode::UnknownGroup
        | ErrorCode::UnknownUser => Code::NotFound,
        ErrorCode::TopicExists | ErrorCode::NodeExists | ErrorCode::UserExists => {
            Code::AlreadyExists
        }
        ErrorCode::OffsetOutOfRange => Code::OutOfRange,
        ErrorCode::OutOfOrderSequence
        | ErrorCode::ProducerFenced
        | ErrorCode::NotEnoughNodes
        | ErrorCode::PolicyViolation
        | ErrorCode::TopicReplaced
        | ErrorCode::GroupActive
        | ErrorCode::ClusterMismatch => Code::FailedPrecondition,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::Unsupported => Code::Unimplemented,
        ErrorCode::Internal => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_trip_in_a_status() {
        let error = Error::new(ErrorCode::NotLeader, "node 2 leads orders-0")
            .with_hint("ask node 2")
            .with_leader(Leader {
                node: 2,
                address: "b:7400".into(),
                term: 9,
            });
        let status = Status::from(error.clone());
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "node 2 leads orders-0 (ask node 2)");
        assert_eq!(Error::from_status(&status), Some(error));
    }

    #[test]
    fn a_status_of_another_making_holds_no_error() {
        assert_eq!(Error::from_status(&Status::internal("no details")), None);
        let noise = Status::with_details(Code::Internal, "", Bytes::from_static(b"\xff\xff"));
        assert_eq!(Error::from_status(&noise), None);
    }

    #[test]
    fn the_outcome_of_every_code_is_the_one_of_its_range() {
        let table = [
            (0, Outcome::Unknown),
            (1, Outcome::Retry),
            (7, Outcome::Retry),
            (19, Outcome::Retry),
            (20, Outcome::Unknown),
            (39, Outcome::Unknown),
            (40, Outcome::Refused),
            (1_000, Outcome::Refused),
            (-1, Outcome::Unknown),
        ];
        for (code, outcome) in table {
            let error = Error {
                code,
                ..Error::default()
            };
            assert_eq!(error.outcome(), outcome, "{code}");
        }
    }

    #[test]
    fn a_code_of_a_newer_node_is_still_an_error() {
        let error = Error {
            code: 999,
            message: "new".into(),
            ..Error::default()
        };
        let status = Status::from(error.clone());
        assert_eq!(status.code(), Code::Unknown);
        assert_eq!(Error::from_status(&status), Some(error));
    }
}
