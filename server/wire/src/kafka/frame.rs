//! Where a message begins and ends, and the header every request has.
//!
//! ```text
//! request    length i32, then: api key i16, version i16, correlation id i32,
//!            client id (i16 length, -1 null), tagged fields if the version is flexible, body
//! response   length i32, then: correlation id i32,
//!            tagged fields if the version is flexible (never for ApiVersions), body
//! ```

use bytes::Bytes;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::StrBytes;

use super::api::{Api, api_of};
use super::cursor::{Cursor, Malformed};

/// Bytes of the length before each message.
pub const LENGTH_BYTES: usize = 4;
/// Key, version and correlation id: no request is shorter.
const FIXED_BYTES: usize = 8;

/// Why a connection cannot go on: its peer is out of step, or speaks something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a request of {0} bytes is too short to be one")]
    Short(i32),
    #[error("a request of {length} bytes is larger than {limit}, the most that is taken")]
    Long { length: i32, limit: usize },
    #[error("api {key} is not served in version {version}")]
    Unserved { key: i16, version: i16 },
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The length of the message that follows, if it can be one.
pub fn frame_length(prefix: [u8; LENGTH_BYTES], limit: usize) -> Result<usize, FrameError> {
    let length = i32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(bytes) if bytes > limit => Err(FrameError::Long { length, limit }),
        Ok(bytes) if bytes >= FIXED_BYTES => Ok(bytes),
        Ok(_) | Err(_) => Err(FrameError::Short(length)),
    }
}

/// The length of a token that follows as it is, without a header: Kafka's SASL before there was a
/// request for it.
pub fn token_length(prefix: [u8; LENGTH_BYTES], limit: usize) -> Result<usize, FrameError> {
    let length = i32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(bytes) if bytes > limit => Err(FrameError::Long { length, limit }),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(FrameError::Short(length)),
    }
}

/// One request, its header read and its body not.
#[derive(Clone, Debug)]
pub struct Request {
    pub api: &'static Api,
    pub version: i16,
    pub correlation_id: i32,
    pub client_id: Option<StrBytes>,
    pub body: Bytes,
}

/// What a message turned out to be.
#[derive(Clone, Debug)]
pub enum Opened {
    Request(Request),
    /// ApiVersions in a version that is not served: the one case that gets an answer, in version
    /// zero, so that its client can come down to what is.
    VersionsUnsupported {
        correlation_id: i32,
    },
}

impl Request {
    /// Reads the header of a whole message, its length left off.
    pub fn open(message: &Bytes) -> Result<Opened, FrameError> {
        let mut cursor = Cursor::new(message, false);
        let (key, version) = (cursor.i16()?, cursor.i16()?);
        let correlation_id = cursor.i32()?;
        let api = match api_of(key) {
            Some(api) if api.serves(version) => api,
            Some(api) if api.key == ApiKey::ApiVersions => {
                return Ok(Opened::VersionsUnsupported { correlation_id });
            }
            _ => return Err(FrameError::Unserved { key, version }),
        };
        let client_id = cursor.text(message)?;
        let mut tags = Cursor::new(cursor.rest(), api.is_flexible(version));
        tags.tags()?;
        Ok(Opened::Request(Self {
            api,
            version,
            correlation_id,
            client_id,
            body: message.slice_ref(tags.rest()),
        }))
    }

    /// What an answer needs of it: nothing that would keep the message in memory.
    #[must_use]
    pub fn without_body(mut self) -> Self {
        self.client_id = None;
        self.body = Bytes::new();
        self
    }

    /// Whether lengths of the body are written as varints, and structs end with tagged fields.
    #[must_use]
    pub fn is_flexible(&self) -> bool {
        self.api.is_flexible(self.version)
    }
}
