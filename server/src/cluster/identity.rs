//! Who this data directory belongs to: the file `node.json`, written once and checked for ever.
//!
//! A node refuses to start on a directory of another node or cluster, and never deletes one: an
//! unreadable file stops it with a message that says so.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trilog_model::{NodeId, ReplicaId};
use uuid::Uuid;

const FILE: &str = "node.json";
const FORMAT: u32 = 1;

/// What the directory remembers of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    format: u32,
    node: u32,
    /// Drawn when the directory was first used: a wiped directory is a new identity.
    pub uuid: Uuid,
    /// The cluster this node has joined; none before it has.
    pub cluster: Option<Uuid>,
    /// Its replica of the controller group; none before the cluster has given it one.
    controller_replica: Option<u64>,
    /// Whether this node formed the cluster, and so may have to finish forming it.
    founder: bool,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} is unreadable ({reason}); nothing was changed: restore the file, or move the \
             whole data directory away and let the node rejoin as a replacement"
    )]
    Unreadable { path: PathBuf, reason: String },
    #[error(
        "{path}: a recovery of this node was begun and not finished: run `trilog recover` again"
    )]
    HalfRecovered { path: PathBuf },
    #[error(
        "{path} belongs to node {found}, but this is node {node}: point data_dir elsewhere \
             or set node.id = {found}"
    )]
    OtherNode {
        path: PathBuf,
        found: NodeId,
        node: NodeId,
    },
}

impl Identity {
    /// A fresh identity for an empty directory.
    #[must_use]
    pub fn new(node: NodeId, uuid: Uuid) -> Self {
        Self {
            format: FORMAT,
            node: node.get(),
            uuid,
            cluster: None,
            controller_replica: None,
            founder: false,
        }
    }

    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.node)
    }

    #[must_use]
    pub fn controller_replica(&self) -> Option<ReplicaId> {
        self.controller_replica.map(ReplicaId)
    }

    /// The identity after joining `cluster` with a replica of its controller group.
    #[must_use]
    pub fn joined(mut self, cluster: Uuid, replica: ReplicaId) -> Self {
        self.cluster = Some(cluster);
        self.controller_replica = Some(replica.0);
        self
    }

    /// The identity of a survivor that goes on under another cluster id.
    #[must_use]
    pub fn recovered(self, cluster: Uuid) -> Self {
        Self {
            cluster: Some(cluster),
            founder: false,
            ..self
        }
    }

    /// The identity of the node that forms `cluster`.
    #[must_use]
    pub fn founding(self, cluster: Uuid, replica: ReplicaId) -> Self {
        Self {
            founder: true,
            ..self.joined(cluster, replica)
        }
    }

    #[must_use]
    pub fn is_founder(&self) -> bool {
        self.founder
    }

    /// Reads the directory's identity; `None` where there is none yet.
    pub fn load(dir: &Path, node: NodeId) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        let unreadable = |reason: String| IdentityError::Unreadable {
            path: path.clone(),
            reason,
        };
        let identity: Self =
            serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        if identity.format > FORMAT {
            return Err(unreadable(format!(
                "format {} is newer than this build",
                identity.format
            )));
        }
        if identity.node != node.get() {
            return Err(IdentityError::OtherNode {
                found: identity.node(),
                path,
                node,
            });
        }
        Ok(Some(identity))
    }

    /// Replaces the file atomically; durable on return.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        self.write(dir, &path)
            .map_err(|source| IdentityError::Io { path, source })
    }

    fn write(&self, dir: &Path, path: &Path) -> io::Result<()> {
        let staged = path.with_extension("json.new");
        let mut file = File::create(&staged)?;
        file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)?;
        File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Identity::load(dir.path(), NodeId(1)).unwrap().is_none());
        let identity = Identity::new(NodeId(1), Uuid::from_u128(5))
            .joined(Uuid::from_u128(9), ReplicaId::new(NodeId(1), 4));
        identity.save(dir.path()).unwrap();
        assert_eq!(
            Identity::load(dir.path(), NodeId(1)).unwrap(),
            Some(identity)
        );
    }

    #[test]
    fn another_nodes_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        Identity::new(NodeId(1), Uuid::from_u128(5))
            .save(dir.path())
            .unwrap();
        let refused = Identity::load(dir.path(), NodeId(2));
        assert!(matches!(
            refused,
            Err(IdentityError::OtherNode {
                found: NodeId(1),
                ..
            })
        ));
        assert!(Identity::load(dir.path(), NodeId(1)).unwrap().is_some());
    }

    #[test]
    fn an_unreadable_file_stops_the_node() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"format\":1,").unwrap();
        let refused = Identity::load(dir.path(), NodeId(1));
        assert!(matches!(refused, Err(IdentityError::Unreadable { .. })));
    }
}
