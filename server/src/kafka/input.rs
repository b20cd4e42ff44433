//! Requests as they come in: each into memory of its own, exactly as large, once the node has
//! room for it.
//!
//! Only the four bytes of a length are read before that. A request is read together with the
//! length of the next one, so that a busy connection costs one system call per request.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use trilog_wire::kafka::{LENGTH_BYTES, frame_length};

use super::conn::Ended;
use crate::listen::Connection;

/// How long a client may have nothing to say, as Kafka's `connections.max.idle.ms`.
const IDLE: Duration = Duration::from_mins(10);
/// How long a request may take from its first byte to its last, room for it included.
const ARRIVAL: Duration = Duration::from_secs(30);

/// A whole request and the room it takes, which is free again once this is dropped.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) message: Bytes,
    pub(super) room: OwnedSemaphorePermit,
}

/// The reading side of a connection.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) connection: Connection,
    limit: usize,
    budget: Arc<Semaphore>,
    prefix: [u8; LENGTH_BYTES],
    prefix_filled: usize,
    body: Option<Body>,
    deadline: Instant,
}

#[derive(Debug)]
struct Body {
    len: usize,
    bytes: BytesMut,
    room: OwnedSemaphorePermit,
}

impl Input {
    pub(super) fn new(connection: Connection, limit: usize, budget: Arc<Semaphore>) -> Self {
        Self {
            connection,
            limit,
            budget,
            prefix: [0; LENGTH_BYTES],
            prefix_filled: 0,
            body: None,
            deadline: Instant::now() + IDLE,
        }
    }

    /// The client has not been idle: an answer was on its way to it.
    pub(super) fn touch(&mut self) {
        if self.prefix_filled == 0 && self.body.is_none() {
            self.deadline = Instant::now() + IDLE;
        }
    }

    /// The client was made to wait: its time begins anew.
    pub(super) fn resume(&mut self) {
        let partial = self.prefix_filled > 0 || self.body.is_some();
        self.deadline = Instant::now() + if partial { ARRIVAL } else { IDLE };
    }

    /// Ends when the client is gone while nothing is read from it. What it says meanwhile is left
    /// to be read later; with that nothing can be known any more.
    pub(super) async fn hung_up(&self) {
        let peeked = self.connection.stream().peek(&mut [0]).await;
        if matches!(peeked, Ok(1..)) {
            std::future::pending::<()>().await;
        }
    }

    /// The next request; `None` when the client has closed between two.
    ///
    /// # Cancel safety
    ///
    /// Nothing read is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Arrived>, Ended> {
        loop {
            let deadline = self.deadline;
            let step = tokio::time::timeout_at(deadline, self.step());
            match step.await.map_err(|_| Ended::Silent)?? {
                Step::More => {}
                Step::Closed => return Ok(None),
                Step::Whole(arrived) => {
                    self.deadline = Instant::now()
                        + if self.prefix_filled == 0 {
                            IDLE
                        } else {
                            ARRIVAL
                        };
                    return Ok(Some(arrived));
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Step, Ended> {
        let Some(body) = &mut self.body else {
            if self.prefix_filled == LENGTH_BYTES {
                return self.make_room().await;
            }
            return self.read_prefix().await;
        };
        if body.bytes.len() < body.len {
            let wanted = body.len + LENGTH_BYTES - body.bytes.len();
            let mut room = (&mut body.bytes).limit(wanted);
            if self.connection.read_buf(&mut room).await? == 0 {
                return Err(Ended::Torn);
            }
        }
        Ok(self.cut())
    }

    async fn read_prefix(&mut self) -> Result<Step, Ended> {
        let room = self.prefix.get_mut(self.prefix_filled..).unwrap_or(&mut []);
        let read = self.connection.read(room).await?;
        match (read, self.prefix_filled) {
            (0, 0) => return Ok(Step::Closed),
            (0, _) => return Err(Ended::Torn),
            (_, 0) => self.deadline = Instant::now() + ARRIVAL,
            _ => {}
        }
        self.prefix_filled += read;
        Ok(Step::More)
    }

    async fn make_room(&mut self) -> Result<Step, Ended> {
        let len = frame_length(self.prefix, self.limit)?;
        let permits = u32::try_from(len).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.budget).acquire_many_owned(permits).await;
        self.body = Some(Body {
            len,
            bytes: BytesMut::with_capacity(len + LENGTH_BYTES),
            room: room.map_err(|_| Ended::Stopped)?,
        });
        self.prefix_filled = 0;
        Ok(Step::More)
    }

    /// Takes the request out if it is whole; what came beyond it begins the next one.
    fn cut(&mut self) -> Step {
        match self.body.take() {
            Some(mut body) if body.bytes.len() >= body.len => {
                let beyond = body.bytes.split_off(body.len);
                for (place, byte) in self.prefix.iter_mut().zip(&beyond) {
                    *place = *byte;
                }
                self.prefix_filled = beyond.len();
                Step::Whole(Arrived {
                    message: body.bytes.freeze(),
                    room: body.room,
                })
            }
            unfinished => {
                self.body = unfinished;
                Step::More
            }
        }
    }
}

enum Step {
    More,
    Closed,
    Whole(Arrived),
}
