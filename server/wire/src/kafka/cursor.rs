//! Reading the primitives of Kafka's protocol from a slice. Every length is held against the
//! bytes that are there before anything is made of it.

use kafka_protocol::protocol::StrBytes;

use bytes::Bytes;
use uuid::Uuid;

/// Elements of arrays, tagged fields included, that one message may hold. What is made of an
/// element is larger than what may stand for it on the wire, so their number has a bound of its
/// own.
pub const MAX_ELEMENTS: usize = 200_000;

/// Why bytes are not the message they are said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the message ends inside a field")]
    Incomplete,
    #[error("a length of the message is impossible")]
    Length,
    #[error("a text of the message is not UTF-8")]
    Text,
    #[error("a field is null that must not be")]
    Null,
    #[error("bytes follow the end of the message")]
    Trailing,
    #[error("the message holds more than {MAX_ELEMENTS} elements")]
    Elements,
    #[error("the message does not decode")]
    Content,
}

/// What is left of a message, and how its lengths are written.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    flexible: bool,
    elements: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(rest: &'a [u8], flexible: bool) -> Self {
        Self {
            rest,
            flexible,
            elements: 0,
        }
    }

    /// Elements of arrays that were announced so far.
    pub(super) fn elements(&self) -> usize {
        self.elements
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Malformed::Incomplete)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed::Incomplete)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn i8(&mut self) -> Result<i8, Malformed> {
        self.array().map(i8::from_be_bytes)
    }

    pub(super) fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid, Malformed> {
        self.array().map(Uuid::from_bytes)
    }

    /// At most five bytes, the last of them with no more than the four bits that are left of 32.
    fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0_u32;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && byte > 0x0f {
                return Err(Malformed::Length);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::Length)
    }

    /// A length whose plain form has `width` bytes; `None` is null.
    fn length(&mut self, width: usize) -> Result<Option<usize>, Malformed> {
        if self.flexible {
            let length = self.varint()?;
            return Ok(length.checked_sub(1).map(|length| length as usize));
        }
        let length = match width {
            2 => i32::from(self.i16()?),
            _ => self.i32()?,
        };
        if length == -1 {
            return Ok(None);
        }
        usize::try_from(length)
            .map(Some)
            .map_err(|_| Malformed::Length)
    }

    /// The bytes of a text or null; whether they are UTF-8 is not looked at.
    pub(super) fn raw_text(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.length(2)? {
            None => Ok(None),
            Some(length) => self.take(length).map(Some),
        }
    }

    /// A text or null, as a slice of `message`, which this reads from.
    pub(super) fn text(&mut self, message: &Bytes) -> Result<Option<StrBytes>, Malformed> {
        let Some(raw) = self.raw_text()? else {
            return Ok(None);
        };
        StrBytes::from_utf8(message.slice_ref(raw))
            .map(Some)
            .map_err(|_| Malformed::Text)
    }

    /// Bytes or null.
    pub(super) fn blob(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.length(4)? {
            None => Ok(None),
            Some(length) => self.take(length).map(Some),
        }
    }

    /// How many elements follow; `None` is null. No element is shorter than a byte, so there
    /// cannot be more than there are bytes.
    pub(super) fn count(&mut self) -> Result<Option<usize>, Malformed> {
        let count = self.length(4)?;
        if let Some(count) = count {
            self.announce(count)?;
        }
        Ok(count)
    }

    fn announce(&mut self, count: usize) -> Result<(), Malformed> {
        if count > self.rest.len() {
            return Err(Malformed::Incomplete);
        }
        self.elements += count;
        if self.elements > MAX_ELEMENTS {
            return Err(Malformed::Elements);
        }
        Ok(())
    }

    /// Passes over the tagged fields that end a struct of a flexible message.
    pub(super) fn tags(&mut self) -> Result<(), Malformed> {
        if !self.flexible {
            return Ok(());
        }
        let count = self.varint()? as usize;
        self.announce(count)?;
        for _ in 0..count {
            let _tag = self.varint()?;
            let length = self.varint()? as usize;
            self.take(length)?;
        }
        Ok(())
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Trailing)
        }
    }

    /// What is left, for another reader.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}
