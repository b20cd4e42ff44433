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
    /// The identity whose place this one takes, until the cluster knows: that of a directory that
    /// turned out to be damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<Uuid>,
}

/// The part of the file that every format has.
#[derive(Deserialize)]
struct Version {
    format: u32,
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
    #[error(
        "{dir} holds a log but no {FILE} that says whose; nothing was changed: restore the file, \
             or move the whole data directory away and let the node rejoin as a replacement"
    )]
    Missing { dir: PathBuf },
}

/// What a data directory holds of a node that has run on it.
const TRACES: [&str; 4] = ["checkpoint", "wal", "p", "kv"];

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
            replaces: None,
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
        self.replaces = None;
        self
    }

    /// The identity after the directory was found damaged: the same node of the same cluster,
    /// none of its former replicas, and so no vote that counted.
    #[must_use]
    pub fn stepping_aside(self, uuid: Uuid) -> Self {
        Self {
            uuid,
            controller_replica: None,
            founder: false,
            replaces: Some(self.uuid),
            ..self
        }
    }

    /// The identity with another replica of the controller group in the place of one that was
    /// given up. It did not found anything, whatever the former did.
    #[must_use]
    pub fn with_controller_replica(self, replica: ReplicaId) -> Self {
        Self {
            controller_replica: Some(replica.0),
            founder: false,
            ..self
        }
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

    /// The identity whose place this one takes, until the cluster has given it one.
    #[must_use]
    pub fn replaces(&self) -> Option<Uuid> {
        self.replaces
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

    /// Reads the directory's identity; `None` where there is none yet, nor anything else of a node.
    pub fn load(dir: &Path, node: NodeId) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if TRACES.iter().any(|name| dir.join(name).exists()) {
                    return Err(IdentityError::Missing { dir: dir.into() });
                }
                return Ok(None);
            }
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        let unreadable = |reason: String| IdentityError::Unreadable {
            path: path.clone(),
            reason,
        };
        let parse_error = |error: serde_json::Error| unreadable(error.to_string());
        // First of all: what else stands in a newer one is not known.
        let Version { format } = serde_json::from_str(&text).map_err(parse_error)?;
        if format > FORMAT {
            return Err(unreadable(format!(
                "format {format} is newer than this build reads (up to {FORMAT})"
            )));
        }
        let identity: Self = serde_json::from_str(&text).map_err(parse_error)?;
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

    /// A file as the first release wrote it, kept for ever.
    const V1: &str = r#"{
  "format": 1,
  "node": 1,
  "uuid": "00000000-0000-0000-0000-000000000005",
  "cluster": "00000000-0000-0000-0000-000000000009",
  "controller_replica": 4294967300,
  "founder": true
}"#;

    #[test]
    fn an_identity_of_format_1_is_read_and_still_written_so() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), V1).unwrap();
        let identity = Identity::load(dir.path(), NodeId(1)).unwrap().unwrap();
        let expected = Identity::new(NodeId(1), Uuid::from_u128(5))
            .founding(Uuid::from_u128(9), ReplicaId::new(NodeId(1), 4));
        assert_eq!(identity, expected);
        identity.save(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), V1);
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let newer = r#"{"format":2,"node":1,"colour":"green"}"#;
        fs::write(dir.path().join(FILE), newer).unwrap();
        let refused = Identity::load(dir.path(), NodeId(1))
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("format 2 is newer than this build reads"),
            "{refused}"
        );
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), newer);
    }

    #[test]
    fn a_log_without_a_name_on_it_is_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("wal")).unwrap();
        let refused = Identity::load(dir.path(), NodeId(1));
        assert!(matches!(refused, Err(IdentityError::Missing { .. })));
        assert!(dir.path().join("wal").exists());
    }

    #[test]
    fn a_damaged_directory_keeps_its_cluster_and_loses_its_replicas() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, old) = (Uuid::from_u128(9), Uuid::from_u128(5));
        let replica = ReplicaId::new(NodeId(1), 1);
        let founder = Identity::new(NodeId(1), old).founding(cluster, replica);
        let aside = founder.stepping_aside(Uuid::from_u128(6));
        aside.save(dir.path()).unwrap();
        let loaded = Identity::load(dir.path(), NodeId(1)).unwrap().unwrap();
        assert_eq!(loaded.cluster, Some(cluster));
        assert_eq!(loaded.replaces(), Some(old));
        assert_eq!(loaded.controller_replica(), None);
        let back = loaded.joined(cluster, ReplicaId::new(NodeId(1), 4));
        assert_eq!(back.replaces(), None);
        assert!(!back.is_founder());
    }

    #[test]
    fn an_unreadable_file_stops_the_node() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"format\":1,").unwrap();
        let refused = Identity::load(dir.path(), NodeId(1));
        assert!(matches!(refused, Err(IdentityError::Unreadable { .. })));
    }
}
