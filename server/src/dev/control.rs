//! How another terminal reaches the supervisor: a Unix socket in the data directory, one JSON
//! line asked, one answered.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{DevError, NodeStatus};

/// Longest line either way.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// A caller that does not say what it wants in this time is sent away.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than a node may take to stop and to become ready.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// The longest path a socket can have, less one for the terminating zero.
const SOCKET_PATH_MAX: usize = 107;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    Kill { node: u32 },
    Restart { node: u32 },
    Status,
    Stop,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Answer {
    Done { nodes: Vec<NodeStatus> },
    Failed { message: String },
}

/// The supervisor's end.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Where the socket is, if the data directory's path is too long for one.
    pointer: Option<PathBuf>,
}

impl Control {
    /// Listens in `data`, which the caller has locked: a socket that is there is a dead one's.
    pub(super) fn listen(data: &Path) -> Result<Self, DevError> {
        let usual = data.join("dev.sock");
        let file_error = |path: &Path| {
            let path = path.to_owned();
            move |source| DevError::File {
                what: "the control socket cannot be made",
                path,
                source,
            }
        };
        let _ = fs::remove_file(&usual);
        let _ = fs::remove_file(data.join("dev.sock.path"));
        let (path, pointer) = if usual.as_os_str().len() <= SOCKET_PATH_MAX {
            (usual, None)
        } else {
            let name = format!("trilog-{}", uuid::Uuid::new_v4().simple());
            let short = std::env::temp_dir().join(name);
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&short)
                .map_err(file_error(&short))?;
            let path = short.join("dev.sock");
            let pointer = data.join("dev.sock.path");
            fs::write(&pointer, path.to_string_lossy().as_bytes()).map_err(file_error(&pointer))?;
            (path, Some(pointer))
        };
        let listener = UnixListener::bind(&path).map_err(file_error(&path))?;
        Ok(Self {
            listener,
            path,
            pointer,
        })
    }

    /// The next request; nothing for a caller that asked for none.
    pub(super) async fn next(&self) -> Option<(Request, Reply)> {
        let Ok((stream, _)) = self.listener.accept().await else {
            // Out of descriptors, most likely: leave it time to pass.
            tokio::time::sleep(ASK_TIMEOUT).await;
            return None;
        };
        let mut stream = BufReader::new(stream);
        let line = tokio::time::timeout(ASK_TIMEOUT, read_line(&mut stream)).await;
        let request = serde_json::from_slice(&line.ok()?.ok()?).ok()?;
        Some((request, Reply(stream)))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What stays behind is a dead socket, which the next start removes.
        let _ = fs::remove_file(&self.path);
        if let Some(pointer) = &self.pointer {
            let _ = fs::remove_file(pointer);
            let _ = self.path.parent().map(fs::remove_dir);
        }
    }
}

/// Where the answer goes.
#[derive(Debug)]
pub(super) struct Reply(BufReader<UnixStream>);

impl Reply {
    /// A caller that is gone needs no answer.
    pub(super) async fn send(mut self, answer: &Answer) {
        if let Ok(line) = serde_json::to_vec(answer) {
            let _ = write_line(self.0.get_mut(), line).await;
        }
    }
}

/// Asks the supervisor of `data`, from another process.
pub async fn call(data: &Path, request: &Request) -> Result<Vec<NodeStatus>, DevError> {
    let pointer = data.join("dev.sock.path");
    let path = match fs::read_to_string(&pointer) {
        Ok(path) => PathBuf::from(path),
        Err(_) => data.join("dev.sock"),
    };
    let stream = UnixStream::connect(&path)
        .await
        .map_err(|_| DevError::NotRunning(data.to_owned()))?;
    let asked = async {
        let mut stream = BufReader::new(stream);
        write_line(stream.get_mut(), serde_json::to_vec(request)?).await?;
        let line = read_line(&mut stream).await?;
        Ok::<Answer, io::Error>(serde_json::from_slice(&line)?)
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(DevError::Control)?;
    match answer {
        Answer::Done { nodes } => Ok(nodes),
        Answer::Failed { message } => Err(DevError::Refused(message)),
    }
}

async fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', &mut line)
        .await?;
    Ok(line)
}

async fn write_line(stream: &mut UnixStream, mut line: Vec<u8>) -> io::Result<()> {
    line.push(b'\n');
    stream.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer_one(control: &Control, expected: Request) {
        loop {
            if let Some((request, reply)) = control.next().await {
                assert_eq!(request, expected);
                reply.send(&Answer::Done { nodes: Vec::new() }).await;
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_request_is_carried_and_answered() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::listen(dir.path()).unwrap();
        let request = Request::Kill { node: 2 };
        let (called, ()) = tokio::join!(
            call(dir.path(), &request),
            answer_one(&control, request.clone())
        );
        assert_eq!(called.unwrap(), Vec::new());
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_works_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let control = Control::listen(&deep).unwrap();
        let (called, ()) = tokio::join!(
            call(&deep, &Request::Status),
            answer_one(&control, Request::Status)
        );
        called.unwrap();
        let socket = control.path.clone();
        drop(control);
        assert!(!socket.exists() && !deep.join("dev.sock.path").exists());
    }

    #[tokio::test]
    async fn what_is_no_request_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::listen(dir.path()).unwrap();
        let mut stranger = UnixStream::connect(dir.path().join("dev.sock"))
            .await
            .unwrap();
        stranger.write_all(b"{\"op\":\"explode\"}\n").await.unwrap();
        assert!(control.next().await.is_none());
    }

    #[tokio::test]
    async fn without_a_supervisor_the_error_says_how_to_start_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = call(dir.path(), &Request::Status).await.unwrap_err();
        assert!(error.to_string().contains("trilog dev --data"), "{error}");
    }
}
