//! A connection to a node's Kafka port: one request after the other, each with an end to patience.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::world::{Line, World};

/// The longest answer that is taken.
const ANSWER_MAX: usize = 64 << 20;
/// Of the length that stands before everything on the wire.
const LENGTH: usize = 4;
/// So many complaints are kept.
const COMPLAINTS_MAX: usize = 32;

/// Why something was not answered as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It was not done, for certain.
    Not(String),
    /// It may have been done, or may be yet.
    Unknown(String),
}

impl Fault {
    pub fn text(&self) -> &str {
        match self {
            Self::Not(text) | Self::Unknown(text) => text,
        }
    }

    /// The same of something that changes nothing, or of which only this attempt is known.
    #[must_use]
    pub fn certain(self) -> Self {
        match self {
            Self::Not(text) | Self::Unknown(text) => Self::Not(text),
        }
    }
}

/// What nodes said that no fault of theirs permits. No history shows it: whoever is told such a
/// thing tries again. Shared by all clients of a run.
#[derive(Debug, Clone, Default)]
pub struct Complaints(Arc<Mutex<Vec<String>>>);

impl Complaints {
    /// One complaint of each wording is enough, and there are not many wordings.
    pub fn tell(&self, complaint: String) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < COMPLAINTS_MAX && !told.contains(&complaint) {
            told.push(complaint);
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A request as it goes over the wire; nothing if there is no such message of this version.
pub fn framed<M: Encodable>(key: ApiKey, version: i16, id: i32, message: &M) -> Option<Bytes> {
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(id)
        .with_client_id(Some(text("chaos")));
    let mut out = BytesMut::new();
    out.put_u32(0);
    let header_version = key.request_header_version(version);
    header.encode(&mut out, header_version).ok()?;
    message.encode(&mut out, version).ok()?;
    let len = u32::try_from(out.len() - 4).ok()?;
    out[..4].copy_from_slice(&len.to_be_bytes());
    Some(out.freeze())
}

/// What a connection is made of.
#[derive(Debug)]
enum Link {
    Socket(TcpStream),
    Line(Box<dyn Line>),
}

impl Link {
    /// Says a request, and hears the answer; nothing if that is longer than any is.
    async fn exchange(&mut self, request: Bytes) -> io::Result<Option<Bytes>> {
        let stream = match self {
            Self::Socket(stream) => stream,
            Self::Line(line) => return line.exchange(request.slice(LENGTH..)).await.map(Some),
        };
        stream.write_all(&request).await?;
        let len = stream.read_u32().await?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > ANSWER_MAX {
            return Ok(None);
        }
        let mut answer = BytesMut::zeroed(len);
        stream.read_exact(&mut answer).await?;
        Ok(Some(answer.freeze()))
    }
}

#[derive(Debug)]
pub struct Conn {
    link: Link,
    correlation_id: i32,
    /// Which life of the node it leads to, if that is known.
    pub boot: Option<u32>,
    /// Whether it has answered with something that is no answer.
    pub is_absurd: bool,
}

impl Conn {
    pub async fn open(address: SocketAddr, patience: Duration) -> Result<Self, Fault> {
        let connecting = TcpStream::connect(address);
        let stream = match timeout(patience, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Fault::Not(format!("connecting: {error}"))),
            Err(_) => return Err(Fault::Not("connecting takes too long".to_owned())),
        };
        let _small = stream.set_nodelay(true);
        Ok(Self::over(Link::Socket(stream)))
    }

    /// A connection to a node of a simulation.
    pub async fn open_in(world: &dyn World, node: u32, patience: Duration) -> Result<Self, Fault> {
        match timeout(patience, world.connect(node)).await {
            Ok(Ok(line)) => Ok(Self::over(Link::Line(line))),
            Ok(Err(error)) => Err(Fault::Not(format!("connecting: {error}"))),
            Err(_) => Err(Fault::Not("connecting takes too long".to_owned())),
        }
    }

    fn over(link: Link) -> Self {
        Self {
            link,
            correlation_id: 0,
            boot: None,
            is_absurd: false,
        }
    }

    /// Asks, and waits for the answer. After an error nothing can be asked any more.
    pub async fn ask<M: Encodable, R: Decodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        message: &M,
        patience: Duration,
    ) -> Result<R, Fault> {
        self.correlation_id += 1;
        let request = framed(key, version, self.correlation_id, message);
        let request =
            request.ok_or_else(|| Fault::Not(format!("{key:?} {version} cannot be written")))?;
        let answer = match timeout(patience, self.link.exchange(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Fault::Unknown(format!("{key:?}: {error}"))),
            Err(_) => return Err(Fault::Unknown(format!("{key:?}: no answer in time"))),
        };
        let id = self.correlation_id;
        let answer = answer.and_then(|answer| decoded(key, version, id, answer));
        self.is_absurd |= answer.is_none();
        // What was asked for may have been done all the same.
        answer.ok_or_else(|| Fault::Unknown(format!("{key:?} {version}: no answer of its kind")))
    }
}

fn decoded<R: Decodable>(key: ApiKey, version: i16, id: i32, mut answer: Bytes) -> Option<R> {
    let header = ResponseHeader::decode(&mut answer, key.response_header_version(version)).ok()?;
    let message = R::decode(&mut answer, version).ok()?;
    (header.correlation_id == id && !answer.has_remaining()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
    use tokio::net::TcpListener;

    /// What comes of a question that is answered with these bytes, and whether that is absurd.
    async fn answered(bytes: Vec<u8>) -> (Result<ApiVersionsResponse, Fault>, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let len = stream.read_u32().await.unwrap();
            let mut request = vec![0; usize::try_from(len).unwrap()];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        };
        let patience = Duration::from_mins(1);
        let asking = async {
            let mut conn = Conn::open(address, patience).await.unwrap();
            let request = ApiVersionsRequest::default();
            let answer = conn.ask(ApiKey::ApiVersions, 0, &request, patience).await;
            (answer, conn.is_absurd)
        };
        tokio::join!(answering, asking).1
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_told_from_no_answer() {
        let answer = |id: u8, rest: &[u8]| {
            let len = u8::try_from(4 + rest.len()).unwrap();
            [&[0, 0, 0, len, 0, 0, 0, id], rest].concat()
        };
        // No error, and no API.
        let whole = [0, 0, 0, 0, 0, 0];
        let (found, absurd) = answered(answer(1, &whole)).await;
        assert!(found.is_ok() && !absurd, "{found:?}");
        for (what, bytes) in [
            ("of another question", answer(2, &whole)),
            ("cut off", answer(1, &whole[..4])),
            (
                "with more behind it",
                answer(1, &[&whole[..], &[7]].concat()),
            ),
            ("without an end", vec![0xff, 0xff, 0xff, 0xff]),
        ] {
            let (found, absurd) = answered(bytes).await;
            assert!(matches!(found, Err(Fault::Unknown(_))), "{what}: {found:?}");
            assert!(absurd, "{what}");
        }
        // A node that ends in the middle of it has said nothing wrong.
        let (found, absurd) = answered(answer(1, &whole)[..7].to_vec()).await;
        assert!(
            matches!(found, Err(Fault::Unknown(_))) && !absurd,
            "{found:?}"
        );
    }

    #[test]
    fn a_complaint_is_kept_once_and_taken_once() {
        let complaints = Complaints::default();
        let other = complaints.clone();
        for nth in 0..100 {
            other.tell(format!("{}", nth / 2));
        }
        let told = complaints.take();
        assert_eq!((told.len(), &*told[1]), (COMPLAINTS_MAX, "1"));
        assert!(other.take().is_empty());
    }
}
