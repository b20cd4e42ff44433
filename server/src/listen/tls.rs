//! TLS for a listener: what it shows of itself, from files that may be replaced while it serves.
//!
//! ```text
//! accepted ─> handshake, of so many bytes, within the time for a first word ─> served
//! ```
//!
//! Whoever does not speak TLS, or not soon, is let go. Nobody waits for the handshakes of others, or
//! a few who say nothing could shut the door: what bounds their number is that of connections. A connection that goes on keeps the
//! certificate it began with.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

/// Bytes of the other side that are read before a handshake is done; a client without a
/// certificate takes two or three thousand.
const HANDSHAKE_BYTES: usize = 16 << 10;
/// The same once it is done, before anything comes of them: more than the longest record. Parts of a
/// message of TLS's own could be of 64 KiB else, all of which would be kept.
const RECORD_BYTES: usize = 20 << 10;
/// The longest file that is looked at.
const MAX_FILE: u64 = 1 << 20;
/// How soon a file that was replaced is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Where certificate and key are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// That of the node first, then those that vouch for it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{file}: {error}")]
    Read { file: PathBuf, error: io::Error },
    #[error("{file} holds no {what}: {error}")]
    Pem {
        file: PathBuf,
        what: &'static str,
        error: rustls::pki_types::pem::Error,
    },
    #[error(
        "{file} holds a private key under a passphrase, for which nobody would be asked here: \
         take it off with `openssl pkey -in {file} -out NEW`, and let nobody else read that file"
    )]
    Locked { file: PathBuf },
    #[error(
        "the certificate in {certificate} and the private key in {key} cannot be used: {error}"
    )]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        error: rustls::Error,
    },
}

/// Speaks TLS on a listener's connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls {
    inner: Arc<Inner>,
}

struct Inner {
    files: TlsFiles,
    config: ArcSwap<Loaded>,
}

/// The files as they were read.
struct Loaded {
    read: [Vec<u8>; 2],
    config: Arc<ServerConfig>,
}

/// Keys are for nobody's eyes.
impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let loaded = files.load()?;
        let inner = Inner {
            files,
            config: ArcSwap::from_pointee(loaded),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Goes by the files as they change; by the last ones that could be used while they cannot be.
    pub async fn keep(self) {
        let mut told = None;
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            match looked.unwrap_or(Ok(false)) {
                Ok(false) => told = None,
                Ok(true) => info!(files = ?self.inner.files, "another certificate is used now"),
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        warn!(error, "the certificate stays the one that was read before");
                    }
                    told = Some(error);
                }
            }
        }
    }

    /// Whether there was something new.
    fn look(&self) -> Result<bool, TlsError> {
        let inner = &*self.inner;
        if inner.files.read()? == inner.config.load().read {
            return Ok(false);
        }
        inner.config.store(Arc::new(inner.files.load()?));
        Ok(true)
    }

    /// Agrees on keys with whoever connected.
    pub(super) async fn shake(&self, stream: TcpStream) -> io::Result<TlsStream<Metered>> {
        let config = Arc::clone(&self.inner.config.load().config);
        let stream = Metered {
            stream,
            left: HANDSHAKE_BYTES,
            shaken: false,
        };
        let mut stream = TlsAcceptor::from(config).accept(stream).await?;
        let meter = stream.get_mut().0;
        (meter.left, meter.shaken) = (RECORD_BYTES, true);
        Ok(stream)
    }
}

/// What the other side said; no more is taken than makes up a record, whatever it may be of.
pub(super) fn poll_read(
    stream: &mut TlsStream<Metered>,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let before = buffer.filled().len();
    let read = Pin::new(&mut *stream).poll_read(cx, buffer);
    let meter = stream.get_mut().0;
    if buffer.filled().len() > before {
        meter.left = RECORD_BYTES;
    } else if read.is_pending() && meter.left == 0 {
        return Poll::Ready(Err(too_long("nothing comes of what it says")));
    }
    read
}

fn too_long(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A socket that gives no more than so many bytes at once: then it waits for [`poll_read`] to see
/// what came of them, or fails if that is to be a handshake.
#[derive(Debug)]
pub(super) struct Metered {
    pub(super) stream: TcpStream,
    left: usize,
    shaken: bool,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream,
            left,
            shaken,
        } = &mut *self;
        if *left == 0 && *shaken {
            return Poll::Pending;
        }
        if *left == 0 {
            return Poll::Ready(Err(too_long("the handshake is too long")));
        }
        let room = buffer.remaining().min(*left);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(stream).poll_read(cx, &mut part))?;
        let came = part.filled().len();
        *left -= came;
        buffer.advance(came);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Shows what is counted before anything is, so that a first failure is seen as one.
pub fn show_handshakes(dialect: &'static str) {
    for state in ["success", "failure"] {
        counter!("trilog_tls_handshakes_total", "dialect" => dialect, "state" => state)
            .increment(0);
    }
}

/// Counts a handshake.
pub(super) fn count(dialect: Option<&'static str>, done: bool) {
    let state = if done { "success" } else { "failure" };
    let dialect = dialect.unwrap_or("none");
    counter!("trilog_tls_handshakes_total", "dialect" => dialect, "state" => state).increment(1);
}

impl TlsFiles {
    fn read(&self) -> Result<[Vec<u8>; 2], TlsError> {
        Ok([read(&self.certificate)?, read(&self.key)?])
    }

    fn load(&self) -> Result<Loaded, TlsError> {
        let read = self.read()?;
        let [chain, key] = &read;
        let wrong = |file: &Path, what| {
            let file = file.to_owned();
            move |error| TlsError::Pem { file, what, error }
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.and_then(|chain| {
            if chain.is_empty() {
                return Err(rustls::pki_types::pem::Error::NoItemsFound);
            }
            Ok(chain)
        });
        let chain = chain.map_err(wrong(&self.certificate, "certificate"))?;
        if is_locked(key) {
            let file = self.key.clone();
            return Err(TlsError::Locked { file });
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(wrong(&self.key, "private key"))?;
        let config = config(chain, key).map_err(|error| TlsError::Unusable {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            error,
        })?;
        if let Some(mode) = mode_for_all(&self.key) {
            warn!(
                file = %self.key.display(),
                mode = format_args!("{mode:o}"),
                "everybody on this machine may use the private key: chmod 600 it",
            );
        }
        Ok(Loaded {
            read,
            config: Arc::new(config),
        })
    }
}

/// TLS 1.2 and 1.3, and what of them is thought safe.
fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
}

/// Whether a passphrase is needed for what is in a file of a key, in the newer form or the older.
fn is_locked(pem: &[u8]) -> bool {
    let has = |word: &[u8]| pem.windows(word.len()).any(|part| part == word);
    has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED")
}

/// The mode of a file that whoever has an account may use.
fn mode_for_all(file: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = std::fs::metadata(file).ok()?.mode() & 0o777;
    (mode & 0o007 != 0).then_some(mode)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read as _;
    let reading = || {
        let mut bytes = Vec::new();
        let opened = std::fs::File::open(file)?;
        opened.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::other("it is too long"));
        }
        Ok(bytes)
    };
    reading().map_err(|error| TlsError::Read {
        file: file.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::CryptoProvider;
    use tokio_rustls::rustls::crypto::cipher::{
        MessageEncrypter, OutboundChunks, OutboundPlainMessage,
    };
    use tokio_rustls::rustls::crypto::ring::{self, cipher_suite::TLS13_AES_128_GCM_SHA256};
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{
        ClientConfig, ConnectionTrafficSecrets, ContentType, ProtocolVersion, RootCertStore,
    };

    use super::super::{Bounds, Connection, Listener};
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        dir.join("tests/fixtures/tls").join(name)
    }

    fn files(certificate: &str, key: &str) -> TlsFiles {
        TlsFiles {
            certificate: fixture(certificate),
            key: fixture(key),
        }
    }

    #[test]
    fn files_that_do_not_fit_one_another_are_refused_with_their_names() {
        Tls::load(files("first.pem", "first.key")).unwrap();
        for (certificate, key, said) in [
            ("first.pem", "second.key", "cannot be used"),
            ("first.key", "first.key", "first.key holds no certificate"),
            ("first.pem", "first.pem", "first.pem holds no private key"),
            ("none.pem", "first.key", "none.pem: "),
            ("first.pem", "none.key", "none.key: "),
            (
                "first.pem",
                "locked.key",
                "locked.key holds a private key under a passphrase",
            ),
            ("first.pem", "locked-old.key", "openssl pkey -in "),
        ] {
            let error = Tls::load(files(certificate, key)).unwrap_err().to_string();
            assert!(error.contains(said), "{certificate} {key}: {error}");
        }
    }

    #[tokio::test]
    async fn whoever_does_not_shake_hands_in_time_is_let_go() {
        let tls = Tls::load(files("first.pem", "first.key")).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let bounds = Bounds {
            greeting: Duration::from_millis(50),
            ..Bounds::new(1)
        };
        let listener = Listener::new(socket, bounds);
        // As much of a greeting as says nothing yet.
        for begun in [&b""[..], &[0x16], &[0x16, 3, 1, 2, 0, 1]] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(begun).await.unwrap();
            let (connection, _) = listener.next().await;
            let error = connection.secured(&tls).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{begun:?}");
        }
    }

    #[tokio::test]
    async fn a_handshake_has_no_end_of_bytes() {
        let tls = Tls::load(files("first.pem", "first.key")).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::new(socket, Bounds::new(1));
        let mut client = TcpStream::connect(address).await.unwrap();
        // A greeting that says of itself that it is long, in records of 1,000 bytes each.
        let flood = tokio::spawn(async move {
            let mut record = vec![0x16, 3, 1, 3, 0xe8, 1, 0, 0xff, 0xff];
            record.resize(1_005, 0);
            for _ in 0..60 {
                if client.write_all(&record).await.is_err() {
                    return;
                }
                record[5..9].fill(0);
            }
            // It would be read to its end, were it not for the bound.
            drop(client.shutdown().await);
        });
        let (connection, _) = listener.next().await;
        let error = connection.secured(&tls).await.unwrap_err();
        assert_eq!(error.to_string(), "the handshake is too long");
        flood.await.unwrap();
    }

    /// A client and the side of the node, which have shaken hands.
    async fn connect() -> (tokio_rustls::client::TlsStream<TcpStream>, Connection) {
        let tls = Tls::load(files("first.pem", "first.key")).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener::new(socket, Bounds::new(1));
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(fixture("authority.pem")).unwrap();
        roots.add(authority).unwrap();
        let provider = CryptoProvider {
            cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
            ..ring::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        let client = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
            shaking.await.unwrap()
        };
        let served = async {
            let (connection, _) = listener.next().await;
            connection.secured(&tls).await.unwrap()
        };
        tokio::join!(client, served)
    }

    /// What a client goes on with by hand.
    fn by_hand(
        client: tokio_rustls::client::TlsStream<TcpStream>,
    ) -> (TcpStream, u64, Box<dyn MessageEncrypter>) {
        let (stream, connection) = client.into_inner();
        let secrets = connection.dangerous_extract_secrets().unwrap();
        let (sequence, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.tx else {
            panic!("another cipher was agreed on");
        };
        let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        (stream, sequence, suite.aead_alg.encrypter(key, iv))
    }

    #[tokio::test]
    async fn a_message_of_tls_has_no_end_of_bytes_after_the_handshake_either() {
        let (client, mut served) = connect().await;
        let (mut stream, first, mut encrypter) = by_hand(client);
        // One that says of itself that it is as long as rustls lets it be, a part in each record.
        let mut part = vec![0; 1_000];
        part[..4].copy_from_slice(&[24, 0, 0xff, 0xff]);
        let mut flood = Vec::new();
        for sequence in first..first + 60 {
            let message = OutboundPlainMessage {
                typ: ContentType::Handshake,
                version: ProtocolVersion::TLSv1_3,
                payload: OutboundChunks::Single(&part),
            };
            flood.extend(encrypter.encrypt(message, sequence).unwrap().encode());
            part[..4].fill(0);
        }
        let flooding = tokio::spawn(async move {
            // It would be read to its end, were it not for the bound.
            drop(stream.write_all(&flood).await);
            drop(stream.shutdown().await);
            stream
        });
        let error = served.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.to_string(), "nothing comes of what it says");
        drop(served);
        drop(flooding.await.unwrap());
    }

    #[tokio::test]
    async fn what_is_said_over_tls_may_be_of_any_length() {
        let (mut client, mut served) = connect().await;
        let said: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let saying = said.clone();
        let saying = tokio::spawn(async move {
            // In records as long as can be, and in very short ones.
            client.write_all(&saying).await.unwrap();
            for byte in 0..100 {
                client.write_all(&[byte]).await.unwrap();
                client.flush().await.unwrap();
            }
            client.shutdown().await.unwrap();
            client
        });
        let mut heard = Vec::new();
        served.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard[..said.len()], said);
        assert_eq!(heard.len(), said.len() + 100);
        drop(saying.await.unwrap());
    }
}
