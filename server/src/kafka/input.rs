//! Requests as they come in: each into memory of its own, exactly as large, once the node has
//! room for it.
//!
//! Only the four bytes of a length are read before that. A request is read together with the
//! length of the next one, so that a busy connection costs one system call per request. A
//! connection that has yet to say something sensible gets little memory for its first request,
//! whatever length it states, and more once that little is filled.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use trilog_wire::kafka::{LENGTH_BYTES, frame_length, token_length};

use super::conn::Ended;
use crate::listen::{Connection, Crowded, RequestClaim, RequestMemory};

/// How soon it is looked whether a client has gone that has something to say.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a client may have nothing to say, as Kafka's `connections.max.idle.ms`.
const IDLE: Duration = Duration::from_mins(10);
/// How long a request may take from its first byte to its last, room for it included.
const ARRIVAL: Duration = Duration::from_secs(30);

/// What a first request gets before it is there: with all that belongs to its connection it is
/// less than 64 KiB, though over TLS a record is there twice for a moment, as it came and in the
/// clear, which takes 37 KiB.
const FIRST_BYTES: usize = 16 << 10;

/// A whole request and the room it takes, which is free again once this is dropped.
pub(super) struct Arrived {
    pub(super) message: Bytes,
    pub(super) room: RequestClaim,
}

type Claiming = BoxFuture<'static, Result<RequestClaim, Crowded>>;

/// The reading side of a connection.
pub(super) struct Input {
    pub(super) connection: Connection,
    limit: usize,
    memory: RequestMemory,
    /// Kept, so that a place in the line is not lost whenever something else happens.
    claiming: Option<Claiming>,
    /// A request has come.
    known: bool,
    prefix: [u8; LENGTH_BYTES],
    prefix_filled: usize,
    body: Option<Body>,
    deadline: Instant,
    /// What comes has no header.
    raw: bool,
    /// When the client must be known by.
    stranger_until: Option<Instant>,
}

struct Body {
    len: usize,
    /// How much of it there is room for.
    room: usize,
    bytes: BytesMut,
    claim: Option<RequestClaim>,
}

impl Input {
    pub(super) fn new(connection: Connection, limit: usize, memory: RequestMemory) -> Self {
        Self {
            connection,
            limit,
            memory,
            claiming: None,
            known: false,
            prefix: [0; LENGTH_BYTES],
            prefix_filled: 0,
            body: None,
            deadline: Instant::now() + IDLE,
            raw: false,
            stranger_until: None,
        }
    }

    /// What is taken from now on: requests of at most so many bytes or, if `raw`, what has no
    /// header; and until when it is waited for.
    pub(super) fn expect(&mut self, limit: usize, raw: bool, until: Option<Instant>) {
        (self.limit, self.raw, self.stranger_until) = (limit, raw, until);
    }

    /// The client has not been idle: an answer was on its way to it.
    pub(super) fn touch(&mut self) {
        if self.prefix_filled == 0 && self.body.is_none() {
            self.deadline = Instant::now() + IDLE;
        }
    }

    /// The client was made to wait: its time begins anew, unless it was heard meanwhile.
    pub(super) fn resume(&mut self) {
        if self.holds_memory() {
            return;
        }
        let partial = self.prefix_filled > 0;
        self.deadline = Instant::now() + if partial { ARRIVAL } else { IDLE };
    }

    /// Whether there is part of a request that has memory, or is in the line for it.
    pub(super) fn holds_memory(&self) -> bool {
        self.body.is_some() || self.claiming.is_some()
    }

    /// Ends when the client is gone while nothing is read from it. What it says meanwhile is left
    /// to be read later; with that nothing can be known any more.
    pub(super) async fn hung_up(&mut self) {
        let peeked = self.connection.stream().peek(&mut [0]).await;
        if !matches!(peeked, Ok(1..)) {
            return;
        }
        if !self.connection.is_encrypted() {
            std::future::pending::<()>().await;
        }
        // Another request; or TLS saying good-bye, which is not to be told from one.
        while !self.connection.is_closed_by_peer() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The next request; `None` when the client has closed between two.
    ///
    /// # Cancel safety
    ///
    /// Nothing read is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Arrived>, Ended> {
        loop {
            let latest = self.stranger_until.unwrap_or(self.deadline);
            let deadline = self.deadline.min(latest);
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
        if body.bytes.len() == body.room && body.room < body.len {
            return self.make_more_room().await;
        }
        if body.bytes.len() < body.len {
            let beyond = if body.room < body.len {
                0
            } else {
                LENGTH_BYTES
            };
            let wanted = body.room + beyond - body.bytes.len();
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
        let len = if self.raw {
            token_length(self.prefix, self.limit)?
        } else {
            frame_length(self.prefix, self.limit)?
        };
        let room = if self.known {
            len
        } else {
            len.min(FIRST_BYTES)
        };
        let memory = self.memory.clone();
        let claim = self
            .claim(room, || {
                async move { memory.claim_unread(room).await }.boxed()
            })
            .await?;
        self.body = Some(Body {
            len,
            room,
            bytes: BytesMut::with_capacity(room + LENGTH_BYTES),
            claim: Some(claim),
        });
        self.prefix_filled = 0;
        Ok(Step::More)
    }

    /// For the rest of a first request, the beginning of which is there.
    async fn make_more_room(&mut self) -> Result<Step, Ended> {
        let Some(body) = &mut self.body else {
            return Ok(Step::More);
        };
        // Nobody waits who holds something.
        body.claim = None;
        let (len, memory) = (body.len, self.memory.clone());
        let claim = self
            .claim(len, || async move { memory.claim(len).await }.boxed())
            .await?;
        if let Some(body) = &mut self.body {
            let mut bytes = BytesMut::with_capacity(len + LENGTH_BYTES);
            bytes.extend_from_slice(&body.bytes);
            (body.bytes, body.room, body.claim) = (bytes, len, Some(claim));
        }
        Ok(Step::More)
    }

    /// Room that is free, or else waits in line for it.
    async fn claim(
        &mut self,
        bytes: usize,
        wait: impl FnOnce() -> Claiming,
    ) -> Result<RequestClaim, Ended> {
        if self.claiming.is_none()
            && let Some(claim) = self.memory.try_claim(bytes)
        {
            return Ok(claim);
        }
        let claimed = self.claiming.get_or_insert_with(wait).await;
        self.claiming = None;
        Ok(claimed?)
    }

    /// Takes the request out if it is whole; what came beyond it begins the next one.
    fn cut(&mut self) -> Step {
        match self.body.take() {
            Some(Body {
                len,
                mut bytes,
                claim: Some(room),
                ..
            }) if bytes.len() >= len => {
                let beyond = bytes.split_off(len);
                for (place, byte) in self.prefix.iter_mut().zip(&beyond) {
                    *place = *byte;
                }
                self.prefix_filled = beyond.len();
                self.known = true;
                Step::Whole(Arrived {
                    message: bytes.freeze(),
                    room,
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::listen::{Bounds, Listener};

    const LIMIT: usize = 1 << 20;
    const TOTAL: usize = 2 << 20;

    /// A client, and the side of the node that reads what it says.
    async fn connect(memory: &RequestMemory) -> (TcpStream, Input) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(socket.local_addr().unwrap()).await;
        let (connection, _) = Listener::new(socket, Bounds::new(1)).next().await;
        let input = Input::new(connection, LIMIT, memory.clone());
        (client.unwrap(), input)
    }

    fn request(len: usize) -> Vec<u8> {
        let prefix = u32::try_from(len).unwrap().to_be_bytes();
        let body = (0..len).map(|at| at.to_le_bytes()[0]);
        prefix.into_iter().chain(body).collect()
    }

    /// Reads until nothing more comes; there must be no request in it.
    async fn read_on(input: &mut Input) {
        let read = tokio::time::timeout(Duration::from_millis(50), input.next()).await;
        assert!(read.is_err(), "there is no whole request yet");
    }

    #[tokio::test]
    async fn a_stranger_gets_little_memory_whatever_length_it_states() {
        let memory = RequestMemory::new(TOTAL);
        let (mut client, mut input) = connect(&memory).await;
        let whole = request(LIMIT);
        client.write_all(&whole[..4]).await.unwrap();
        read_on(&mut input).await;
        assert_eq!(memory.taken(), FIRST_BYTES);
        client.write_all(&whole[4..FIRST_BYTES]).await.unwrap();
        read_on(&mut input).await;
        let body = input.body.as_ref().unwrap();
        assert!(body.bytes.capacity() <= FIRST_BYTES + LENGTH_BYTES);
        assert_eq!(memory.taken(), FIRST_BYTES);
        // Who fills it gets the rest.
        let rest = whole.clone();
        let write = tokio::spawn(async move {
            client.write_all(&rest[FIRST_BYTES..]).await.unwrap();
            client
        });
        let arrived = input.next().await.unwrap().unwrap();
        assert_eq!(arrived.message, whole[4..]);
        assert_eq!(memory.taken(), LIMIT);
        drop(arrived);
        assert_eq!(memory.taken(), 0);
        // And who has been heard gets all of it at once.
        let mut client = write.await.unwrap();
        client.write_all(&whole[..4]).await.unwrap();
        read_on(&mut input).await;
        assert_eq!(memory.taken(), LIMIT);
        drop(input);
        assert_eq!(memory.taken(), 0);
    }

    #[tokio::test]
    async fn requests_of_any_size_come_out_as_they_were_sent() {
        let memory = RequestMemory::new(TOTAL);
        let edges = [-2_i32, -1, 0, 1, 4, 5];
        for edge in edges {
            let (mut client, mut input) = connect(&memory).await;
            let edge = usize::try_from(i32::try_from(FIRST_BYTES).unwrap() + edge).unwrap();
            let all = [request(edge), request(8), request(3 * edge), request(9)];
            let sent = all.concat();
            let write = tokio::spawn(async move {
                client.write_all(&sent).await.unwrap();
            });
            for request in &all {
                let arrived = input.next().await.unwrap().unwrap();
                assert_eq!(arrived.message, request[4..], "{edge}");
            }
            write.await.unwrap();
            assert!(input.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_request_waits_for_memory_that_others_have_and_keeps_its_place() {
        let memory = RequestMemory::new(TOTAL);
        let others = memory.claim(TOTAL).await.unwrap();
        let (mut client, mut input) = connect(&memory).await;
        client.write_all(&request(100)).await.unwrap();
        read_on(&mut input).await;
        let behind = tokio::spawn({
            let memory = memory.clone();
            async move { memory.claim(TOTAL).await }
        });
        read_on(&mut input).await;
        drop(others);
        // One that came later and wants everything is served after it.
        let arrived = input.next().await.unwrap().unwrap();
        assert_eq!(arrived.room.bytes(), 100);
        drop(arrived);
        behind.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_and_does_not_go_on_is_let_go() {
        let memory = RequestMemory::new(TOTAL);
        for said in [1, 4, 5, 50] {
            let (mut client, mut input) = connect(&memory).await;
            client.write_all(&request(100)[..said]).await.unwrap();
            let began = Instant::now();
            let ended = input.next().await;
            assert!(matches!(ended, Err(Ended::Silent)), "{said} bytes");
            assert!(began.elapsed() <= IDLE, "{said} bytes");
        }
        // So is one that is given no memory.
        let _others = memory.claim(TOTAL).await.unwrap();
        let (mut client, mut input) = connect(&memory).await;
        client.write_all(&request(100)).await.unwrap();
        assert!(matches!(input.next().await, Err(Ended::Silent)));
    }

    #[tokio::test]
    async fn who_ends_inside_a_request_is_torn_and_between_two_is_not() {
        let memory = RequestMemory::new(TOTAL);
        for said in [1, 3, 4, 5, 103] {
            let (mut client, mut input) = connect(&memory).await;
            client.write_all(&request(100)[..said]).await.unwrap();
            drop(client);
            assert!(matches!(input.next().await, Err(Ended::Torn)), "{said}");
        }
        let (client, mut input) = connect(&memory).await;
        drop(client);
        assert!(input.next().await.unwrap().is_none());
    }
}
