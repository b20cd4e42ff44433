//! A Kafka client of a few lines, which says whatever a test wants said.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod sasl;

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer, or the end of a connection, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the Kafka port of a node.
pub(crate) struct KafkaConn {
    stream: TcpStream,
    correlation_id: i32,
    client: &'static str,
}

/// As a connection calls itself.
const CLIENT: &str = "raw";

pub(crate) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A request as it goes over the wire.
pub(crate) fn framed<M: Encodable>(key: ApiKey, version: i16, id: i32, message: &M) -> Bytes {
    framed_by(CLIENT, key, version, id, message)
}

/// As [`framed`], by another client id.
pub(crate) fn framed_by<M: Encodable>(
    client: &str,
    key: ApiKey,
    version: i16,
    id: i32,
    message: &M,
) -> Bytes {
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(id)
        .with_client_id(Some(text(client)));
    let mut out = BytesMut::new();
    out.put_u32(0);
    let header_version = key.request_header_version(version);
    header.encode(&mut out, header_version).unwrap();
    message.encode(&mut out, version).unwrap();
    let len = u32::try_from(out.len() - 4).unwrap();
    out[..4].copy_from_slice(&len.to_be_bytes());
    out.freeze()
}

impl KafkaConn {
    pub(crate) async fn open(port: u16) -> Self {
        Self::open_named(port, CLIENT).await
    }

    /// As [`KafkaConn::open`], by another client id.
    pub(crate) async fn open_named(port: u16, client: &'static str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        Self {
            stream,
            correlation_id: 0,
            client,
        }
    }

    /// Says something that need not be a request.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        // Refused half-way is refused, too.
        let _ = self.stream.write_all(bytes).await;
    }

    /// Says no more; what is answered can still be read.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    pub(crate) async fn send<M: Encodable>(&mut self, key: ApiKey, version: i16, message: &M) {
        self.correlation_id += 1;
        let request = framed_by(self.client, key, version, self.correlation_id, message);
        self.stream.write_all(&request).await.unwrap();
    }

    /// The next answer, which must be one of this kind and end where it should.
    pub(crate) async fn receive<R: Decodable>(&mut self, key: ApiKey, version: i16) -> R {
        let receiving = async {
            let len = self.stream.read_u32().await.unwrap();
            let mut answer = BytesMut::zeroed(usize::try_from(len).unwrap());
            self.stream.read_exact(&mut answer).await.unwrap();
            answer.freeze()
        };
        let answer = timeout(PATIENCE, receiving).await;
        let mut answer = answer.unwrap_or_else(|_| panic!("no answer to {key:?} {version}"));
        let header = key.response_header_version(version);
        ResponseHeader::decode(&mut answer, header).unwrap();
        let message = R::decode(&mut answer, version).unwrap();
        assert!(!answer.has_remaining(), "{key:?} {version}");
        message
    }

    pub(crate) async fn ask<M: Encodable, R: Decodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        message: &M,
    ) -> R {
        self.send(key, version, message).await;
        self.receive(key, version).await
    }

    /// The next bytes that stand behind their length, whatever they are.
    pub(crate) async fn receive_raw(&mut self) -> Vec<u8> {
        let receiving = async {
            let len = self.stream.read_u32().await.unwrap();
            let mut answer = vec![0; usize::try_from(len).unwrap()];
            self.stream.read_exact(&mut answer).await.unwrap();
            answer
        };
        timeout(PATIENCE, receiving).await.unwrap()
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_silent(&mut self, time: Duration) -> bool {
        timeout(time, self.stream.peek(&mut [0])).await.is_err()
    }

    /// Waits until the node ends the connection, which it must do without a word.
    pub(crate) async fn await_end(mut self, why: &str) {
        let mut said = Vec::new();
        let ended = timeout(PATIENCE, self.stream.read_to_end(&mut said)).await;
        // Reset or closed, as it happens.
        drop(ended.unwrap_or_else(|_| panic!("{why}: the connection goes on")));
        assert!(said.is_empty(), "{why}: {said:?}");
    }
}
