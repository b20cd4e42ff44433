//! Writing a response: fresh bytes, and stored bytes between them that are shared, not copied.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::Encodable;

use super::api::Api;
use super::frame::{LENGTH_BYTES, Request};

/// Room for the fresh bytes of a usual response.
const USUAL_BYTES: usize = 256;

/// A response on the wire, as the slices of one vectored write, its length included.
#[derive(Clone, Debug, Default)]
pub struct Answer(pub Vec<Bytes>);

impl Answer {
    /// Bytes on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A response could not be written: a value does not exist in the version asked for.
#[derive(Debug, thiserror::Error)]
#[error("{api} version {version} cannot say what was to be answered: {reason}")]
pub struct Unanswerable {
    api: &'static str,
    version: i16,
    reason: String,
}

/// A response being written.
#[derive(Debug)]
pub struct Writer {
    /// The first slice once another follows it: the length goes to its front at the end.
    first: Option<BytesMut>,
    rest: Vec<Bytes>,
    shared: usize,
    fresh_done: usize,
    pub(super) fresh: BytesMut,
    pub(super) flexible: bool,
}

impl Writer {
    /// Begins the response to a request of this api and version.
    #[must_use]
    pub fn new(api: &Api, version: i16, correlation_id: i32) -> Self {
        let mut fresh = BytesMut::with_capacity(USUAL_BYTES);
        fresh.put_u32(0);
        fresh.put_i32(correlation_id);
        let flexible = api.is_flexible(version);
        if flexible && api.key != ApiKey::ApiVersions {
            fresh.put_u8(0);
        }
        Self {
            first: None,
            rest: Vec::new(),
            shared: 0,
            fresh_done: 0,
            fresh,
            flexible,
        }
    }

    /// For the content of a tagged field, which is told with its length.
    pub(super) fn of_field() -> Self {
        Self {
            first: None,
            rest: Vec::new(),
            shared: 0,
            fresh_done: 0,
            fresh: BytesMut::new(),
            flexible: true,
        }
    }

    /// The answer to `request` with a message of the codec as its body.
    pub fn message<M: Encodable>(request: &Request, message: &M) -> Result<Answer, Unanswerable> {
        Self::of(
            request.api,
            request.version,
            request.correlation_id,
            message,
        )
    }

    /// As [`Writer::message`], where there is no request that could be read.
    pub fn of<M: Encodable>(
        api: &Api,
        version: i16,
        correlation_id: i32,
        message: &M,
    ) -> Result<Answer, Unanswerable> {
        let mut writer = Self::new(api, version, correlation_id);
        let failed = |error: &dyn std::fmt::Display| Unanswerable {
            api: api.name,
            version,
            reason: error.to_string(),
        };
        let size = message.compute_size(version);
        writer.fresh.reserve(size.map_err(|error| failed(&error))?);
        let encoded = message.encode(&mut writer.fresh, version);
        encoded.map_err(|error| failed(&error))?;
        Ok(writer.finish())
    }

    /// Bytes that are stored elsewhere and go out as they are.
    pub(super) fn share(&mut self, bytes: Bytes) {
        self.cut();
        self.shared += bytes.len();
        self.rest.push(bytes);
    }

    /// Ends the run of fresh bytes.
    fn cut(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        self.fresh_done += self.fresh.len();
        let done = self.fresh.split();
        if self.first.is_none() {
            self.first = Some(done);
        } else {
            self.rest.push(done.freeze());
        }
    }

    #[must_use]
    pub(super) fn finish(mut self) -> Answer {
        self.cut();
        let length = self.fresh_done + self.shared - LENGTH_BYTES;
        let mut slices = Vec::with_capacity(1 + self.rest.len());
        if let Some(mut first) = self.first {
            if let Some(prefix) = first.first_chunk_mut::<LENGTH_BYTES>() {
                *prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
            }
            slices.push(first.freeze());
        }
        slices.append(&mut self.rest);
        Answer(slices)
    }

    pub(super) fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.fresh.put_u8(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.fresh.put_u8(value.to_le_bytes()[0]);
    }

    /// A length whose plain form has four bytes.
    pub(super) fn count(&mut self, count: usize) {
        if self.flexible {
            self.varint(count + 1);
        } else {
            self.fresh.put_i32(i32::try_from(count).unwrap_or(i32::MAX));
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        if self.flexible {
            self.varint(text.len() + 1);
        } else {
            self.fresh
                .put_i16(i16::try_from(text.len()).unwrap_or(i16::MAX));
        }
        self.fresh.put_slice(text.as_bytes());
    }

    pub(super) fn null_text(&mut self) {
        if self.flexible {
            self.fresh.put_u8(0);
        } else {
            self.fresh.put_i16(-1);
        }
    }

    pub(super) fn null_array(&mut self) {
        if self.flexible {
            self.fresh.put_u8(0);
        } else {
            self.fresh.put_i32(-1);
        }
    }

    /// The end of a struct without tagged fields.
    pub(super) fn no_tags(&mut self) {
        if self.flexible {
            self.fresh.put_u8(0);
        }
    }
}
