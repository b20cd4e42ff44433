//! The check before the codec: every length a message states is held against the bytes that are
//! there, before the generated decoder, which makes room for whatever an array announces, sees it.
//!
//! Each request has a shape: its fields in order, with the versions that have them. The walk
//! follows the shape through the bytes and takes nothing on trust: a length must lie within what
//! is left, an array cannot have more elements than there are bytes left, and all arrays together
//! no more than [`MAX_ELEMENTS`](super::cursor::MAX_ELEMENTS). It must end exactly where the
//! message does.
//!
//! It is complete because it and the decoder read the same fields: the decoder's allocations
//! follow array counts (each one passed here, at the same place), and texts, blobs and tagged
//! fields, which are slices of the message. Tests hold the shapes against the codec for every api
//! and version: what the codec writes, the walk passes and ends with its last byte; a fuzz target
//! looks for bytes that only one of the two takes. No request served here has tagged fields that
//! the decoder knows, whose content it would read past the walk.

use bytes::Bytes;
use kafka_protocol::protocol::Decodable;

use super::cursor::{Cursor, Malformed};
use super::frame::Request;

/// One field of a message and the versions that have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) since: i16,
    pub(super) until: i16,
    pub(super) shape: Shape,
}

/// How a field is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// So many bytes.
    Fixed(usize),
    /// A text or null.
    Text,
    /// Bytes or null, whatever they mean.
    Blob,
    /// An array, or null, of values of one shape.
    List(&'static Shape),
    /// An array, or null, of structs.
    Structs(&'static [Field]),
    /// A struct, or null.
    Maybe(&'static [Field]),
}

pub(super) const fn field(since: i16, until: i16, shape: Shape) -> Field {
    Field {
        since,
        until,
        shape,
    }
}

/// Walks a body, and answers how many elements its arrays have.
pub fn check(request: &Request) -> Result<usize, Malformed> {
    let mut walk = Walk {
        cursor: Cursor::new(&request.body, request.is_flexible()),
        version: request.version,
    };
    walk.structure(request.api.fields)?;
    walk.cursor.end()?;
    Ok(walk.cursor.elements())
}

/// Decodes a body that has passed the check.
pub fn decode<M: Decodable>(request: &Request) -> Result<M, Malformed> {
    check(request)?;
    let mut body: Bytes = request.body.clone();
    let message = M::decode(&mut body, request.version).map_err(|_| Malformed::Content)?;
    if body.is_empty() {
        Ok(message)
    } else {
        Err(Malformed::Trailing)
    }
}

struct Walk<'a> {
    cursor: Cursor<'a>,
    version: i16,
}

impl Walk<'_> {
    fn structure(&mut self, fields: &[Field]) -> Result<(), Malformed> {
        for field in fields {
            if (field.since..=field.until).contains(&self.version) {
                self.value(field.shape)?;
            }
        }
        self.cursor.tags()
    }

    /// Shapes nest as deep as their tables do, which is four at most.
    fn value(&mut self, shape: Shape) -> Result<(), Malformed> {
        match shape {
            Shape::Fixed(bytes) => self.cursor.take(bytes).map(drop),
            Shape::Text => self.cursor.raw_text().map(drop),
            Shape::Blob => self.cursor.blob().map(drop),
            Shape::List(element) => {
                for _ in 0..self.cursor.count()?.unwrap_or(0) {
                    self.value(*element)?;
                }
                Ok(())
            }
            // As the codec has it, whatever is not one is null.
            Shape::Maybe(fields) => match self.cursor.i8()? {
                1 => self.structure(fields),
                _ => Ok(()),
            },
            Shape::Structs(fields) => {
                for _ in 0..self.cursor.count()?.unwrap_or(0) {
                    self.structure(fields)?;
                }
                Ok(())
            }
        }
    }
}
