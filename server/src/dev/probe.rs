//! A very small HTTP client: one GET of a node's own pages, bounded in time and size.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PAGE_BYTES_MAX: u64 = 16 << 20;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub status: u16,
    pub body: String,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("no connection")]
    Io(#[from] io::Error),
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    #[error("the answer is not HTTP")]
    Malformed,
}

/// Fetches `path` from `address`.
pub async fn get(address: SocketAddr, path: &str, within: Duration) -> Result<Page, ProbeError> {
    let fetched = tokio::time::timeout(within, fetch(address, path)).await;
    fetched.map_err(|_| ProbeError::Timeout(within))?
}

async fn fetch(address: SocketAddr, path: &str) -> Result<Page, ProbeError> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the answer comes unchunked and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await?;
    parse(&answer).ok_or(ProbeError::Malformed)
}

fn parse(answer: &[u8]) -> Option<Page> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split_ascii_whitespace();
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    Some(Page {
        status: words.next()?.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_status_and_a_body() {
        let page = parse(b"HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\n{}\n").unwrap();
        assert_eq!((page.status, page.body.as_str()), (503, "{}\n"));
        for wrong in [
            "",
            "HTTP/1.0 200 OK\r\n",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 OK\r\n\r\n",
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = get(address, "/", Duration::from_millis(20)).await;
        assert!(matches!(answer, Err(ProbeError::Timeout(_))), "{answer:?}");
    }
}
