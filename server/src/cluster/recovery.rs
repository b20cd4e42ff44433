//! The file `recovery.json`: that this directory was, or is being, recovered from the loss of a
//! majority. Written before anything is changed, so that a recovery which is cut short is carried
//! on and never mistaken for a node that may start.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use trilog_model::Timestamp;
use uuid::Uuid;

use super::{Identity, IdentityError};

const FILE: &str = "recovery.json";
const FORMAT: u32 = 1;

/// One recovery, as it was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoveryFile {
    format: u32,
    /// The cluster from then on. Once the directory's identity says so too, it is done.
    pub cluster: Uuid,
    pub survivors: BTreeSet<u32>,
    /// Per partition, what may have been lost.
    pub partitions: Vec<String>,
}

impl RecoveryFile {
    #[must_use]
    pub fn new(cluster: Uuid, survivors: BTreeSet<u32>) -> Self {
        Self {
            format: FORMAT,
            cluster,
            survivors,
            partitions: Vec::new(),
        }
    }

    /// Whether the directory of this identity is where the recovery leaves it.
    #[must_use]
    pub fn is_done(&self, identity: &Identity) -> bool {
        identity.cluster == Some(self.cluster)
    }

    /// Reads the directory's file; `None` where there never was a recovery.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
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
        let file: Self =
            serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        if file.format > FORMAT {
            let format = file.format;
            return Err(unreadable(format!(
                "format {format} is newer than this build"
            )));
        }
        Ok(Some(file))
    }

    /// Replaces the file atomically; durable on return.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        let write = || -> io::Result<()> {
            let staged = path.with_extension("json.new");
            let mut file = File::create(&staged)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&staged, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|source| IdentityError::Io {
            path: path.clone(),
            source,
        })
    }
}

/// Refuses a directory whose recovery was begun and not finished: half of its groups believe in
/// the old members and half in the new ones.
pub fn check_recovered(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    match RecoveryFile::load(dir)? {
        Some(file) if !file.is_done(identity) => Err(IdentityError::HalfRecovered {
            path: dir.join(FILE),
        }),
        _ => Ok(()),
    }
}

/// A cluster id that says when it was drawn, as version 7 of UUIDs does: what every survivor must
/// do alike then hangs on this one value.
#[must_use]
pub fn dated_cluster_id(at: Timestamp) -> Uuid {
    let mut bytes = *Uuid::new_v4().as_bytes();
    let millis = (at.nanos() / 1_000_000).to_be_bytes();
    bytes[..6].copy_from_slice(&millis[2..]);
    bytes[6] = bytes[6] & 0x0f | 0x70;
    Uuid::from_bytes(bytes)
}

/// When a cluster id was drawn, if it is one that says so.
#[must_use]
pub fn date_of(cluster: Uuid) -> Option<Timestamp> {
    let bytes = cluster.as_bytes();
    let mut millis = [0; 8];
    millis[2..].copy_from_slice(&bytes[..6]);
    (cluster.get_version_num() == 7)
        .then(|| Timestamp(u64::from_be_bytes(millis).saturating_mul(1_000_000)))
}

#[cfg(test)]
mod tests {
    use trilog_model::{NodeId, ReplicaId};

    use super::*;

    #[test]
    fn a_cluster_id_tells_when_it_was_drawn() {
        let at = Timestamp(1_790_000_000_123_000_000);
        let (one, other) = (dated_cluster_id(at), dated_cluster_id(at));
        assert_eq!(date_of(one), Some(at));
        assert_ne!(one, other);
        assert_eq!(date_of(Uuid::new_v4()), None);
    }

    #[test]
    fn a_directory_that_is_half_recovered_does_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let replica = ReplicaId::new(NodeId(3), 7);
        let before = Identity::new(NodeId(3), Uuid::new_v4()).joined(Uuid::from_u128(1), replica);
        check_recovered(dir.path(), &before).unwrap();

        let file = RecoveryFile::new(Uuid::from_u128(2), BTreeSet::from([3]));
        file.save(dir.path()).unwrap();
        assert_eq!(RecoveryFile::load(dir.path()).unwrap(), Some(file));
        assert!(matches!(
            check_recovered(dir.path(), &before),
            Err(IdentityError::HalfRecovered { .. })
        ));
        check_recovered(dir.path(), &before.recovered(Uuid::from_u128(2))).unwrap();
    }
}
