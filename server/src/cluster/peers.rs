//! The addresses of the other nodes as last known, in the file `peers.json`: what a node that
//! restarts together with all others has to go by before it knows any map.
//!
//! A hint and nothing more: a missing or unreadable file is no error, for the seeds are asked too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tracing::warn;
use trilog_model::NodeId;
use trilog_raft::transport::AddressBook;

const FILE: &str = "peers.json";

/// The file, and what it says.
#[derive(Clone, Debug)]
pub struct PeerFile {
    path: PathBuf,
    known: BTreeMap<u32, String>,
}

impl PeerFile {
    /// Reads the file of a data directory and enters its addresses into the book.
    #[must_use]
    pub fn load(dir: &Path, book: &AddressBook) -> Self {
        let path = dir.join(FILE);
        let known: BTreeMap<u32, String> = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        for (node, address) in &known {
            book.set(NodeId(*node), address.clone());
        }
        Self { path, known }
    }

    /// Writes the book to the file if it says something else.
    pub fn update(&mut self, book: &AddressBook) {
        let nodes = book.nodes().into_iter();
        let now: BTreeMap<u32, String> = nodes
            .filter_map(|node| Some((node.get(), book.get(node)?)))
            .collect();
        if now == self.known || now.is_empty() {
            return;
        }
        match self.write(&now) {
            Ok(()) => self.known = now,
            Err(error) => warn!(path = %self.path.display(), %error, "peer addresses not kept"),
        }
    }

    fn write(&self, now: &BTreeMap<u32, String>) -> io::Result<()> {
        let staged = self.path.with_extension("json.new");
        let mut file = File::create(&staged)?;
        file.write_all(&serde_json::to_vec_pretty(now)?)?;
        file.sync_all()?;
        fs::rename(&staged, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let book = AddressBook::new();
        let mut file = PeerFile::load(dir.path(), &book);
        book.set(NodeId(2), "127.0.0.1:7401");
        file.update(&book);

        let after = AddressBook::new();
        let _file = PeerFile::load(dir.path(), &after);
        assert_eq!(after.get(NodeId(2)).as_deref(), Some("127.0.0.1:7401"));
    }

    #[test]
    fn an_unreadable_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let book = AddressBook::new();
        let _file = PeerFile::load(dir.path(), &book);
        assert!(book.nodes().is_empty());
    }
}
