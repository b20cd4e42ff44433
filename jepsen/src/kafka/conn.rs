//! A connection to a node's Kafka port: one request after the other, each with an end to patience.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest answer that is taken.
const ANSWER_MAX: usize = 64 << 20;

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

#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    correlation_id: i32,
    /// Which life of the node it leads to, if that is known.
    pub boot: Option<u32>,
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
        Ok(Self {
            stream,
            correlation_id: 0,
            boot: None,
        })
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
        let exchange = async {
            self.stream.write_all(&request).await?;
            let len = self.stream.read_u32().await?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len > ANSWER_MAX {
                return Err(std::io::Error::other("the answer is too long"));
            }
            let mut answer = BytesMut::zeroed(len);
            self.stream.read_exact(&mut answer).await?;
            Ok(answer.freeze())
        };
        let answer = match timeout(patience, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Fault::Unknown(format!("{key:?}: {error}"))),
            Err(_) => return Err(Fault::Unknown(format!("{key:?}: no answer in time"))),
        };
        decoded(key, version, self.correlation_id, answer)
            .ok_or_else(|| Fault::Unknown(format!("{key:?} {version}: no answer of its kind")))
    }
}

fn decoded<R: Decodable>(key: ApiKey, version: i16, id: i32, mut answer: Bytes) -> Option<R> {
    let header = ResponseHeader::decode(&mut answer, key.response_header_version(version)).ok()?;
    let message = R::decode(&mut answer, version).ok()?;
    (header.correlation_id == id && !answer.has_remaining()).then_some(message)
}
