//! What the kernel says of the sockets of this machine: who listens, and which process the other
//! end of a connection belongs to. Looking costs milliseconds, so it is looked for all who ask at
//! once, and seldom: nodes that cannot reach one another connect again and again, and links that
//! are busy with who that is would keep them from ever reaching one another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// The processes of nodes by their numbers; who has none is not there.
pub(super) type Pids = BTreeMap<u32, u32>;

/// From one look to the next at least.
const REST: Duration = Duration::from_millis(25);
/// How often it is looked for one connection: the kernel's table is no snapshot, and changes while
/// it is read.
const LOOKS: u32 = 5;

const LISTENING: &str = "0A";

#[derive(Debug, Default)]
pub(super) struct Sockets(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// When it was begun to look.
    at: Option<Instant>,
    listening: HashSet<u16>,
    owners: HashMap<u16, u32>,
}

impl Sockets {
    /// Which node's process has the socket that is bound to `port` and connected.
    pub(super) async fn owner(&self, port: u16, pids: &Pids) -> Option<u32> {
        for _ in 0..LOOKS {
            let owner = self.look(pids, |seen| seen.owners.get(&port).copied());
            if let Some(node) = owner.await {
                return Some(node);
            }
        }
        None
    }

    /// Whether somebody listens at a port.
    pub(super) async fn listens(&self, port: u16, pids: &Pids) -> bool {
        for _ in 0..2 {
            if self.look(pids, |seen| seen.listening.contains(&port)).await {
                return true;
            }
        }
        false
    }

    /// What is there now, or was seen by somebody who looked after this was asked.
    async fn look<T>(&self, pids: &Pids, find: impl Fn(&Seen) -> T) -> T {
        let asked = Instant::now();
        let mut seen = self.0.lock().await;
        if seen.at.is_none_or(|at| at < asked) {
            if let Some(at) = seen.at {
                sleep_until(at + REST).await;
            }
            *seen = Seen::now(pids);
        }
        find(&seen)
    }
}

impl Seen {
    fn now(pids: &Pids) -> Self {
        let at = Some(Instant::now());
        let mut by_inode: HashMap<String, u32> = HashMap::new();
        for (node, pid) in pids {
            let sockets = sockets_of(*pid).into_iter();
            by_inode.extend(sockets.map(|inode| (inode, *node)));
        }
        let mut seen = Self {
            at,
            ..Self::default()
        };
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        for line in table.lines().skip(1) {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let port = fields
                .next()
                .and_then(|local| local.strip_prefix("0100007F:"));
            let Some(port) = port.and_then(|port| u16::from_str_radix(port, 16).ok()) else {
                continue;
            };
            if fields.nth(1) == Some(LISTENING) {
                seen.listening.insert(port);
            } else if let Some(node) = fields.nth(5).and_then(|inode| by_inode.get(inode)) {
                seen.owners.insert(port, *node);
            }
        }
        seen
    }
}

/// The sockets that a process has open, by their inodes.
fn sockets_of(pid: u32) -> Vec<String> {
    let files = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
    let Ok(files) = files else {
        return Vec::new();
    };
    let targets = files
        .flatten()
        .flat_map(|file| std::fs::read_link(file.path()));
    let inodes = targets.filter_map(|target| {
        let target = target.to_str()?;
        let inode = target.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(inode.to_owned())
    });
    inodes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn who_listens_and_who_connects_is_found_and_many_ask_at_the_price_of_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut streams = Vec::new();
        for _ in 0..50 {
            streams.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        let pids = Pids::from([(7, std::process::id())]);
        let sockets = Sockets::default();
        assert!(sockets.listens(port, &pids).await);
        let began = Instant::now();
        let ports = streams.iter().map(|s| s.local_addr().unwrap().port());
        let found = futures::future::join_all(ports.map(|port| sockets.owner(port, &pids))).await;
        assert!(found.iter().all(|owner| *owner == Some(7)), "{found:?}");
        assert!(began.elapsed() < REST * 50, "each looked for itself");
        assert_eq!(sockets.owner(port, &Pids::new()).await, None);
        drop(listener);
        assert!(!sockets.listens(port, &pids).await);
    }
}
