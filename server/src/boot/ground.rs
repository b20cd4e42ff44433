//! What a node stands on before it knows its cluster: its log and view state, its links, its
//! clock, and the identity its data directory gives it.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tracing::{error, info, warn};
use trilog_model::{GroupId, NodeId, ReplicaId};

use trilog_raft::transport::{ClusterId, Transport, TransportConfig};
use trilog_storage::env::{Clock, Entropy, SteadyClock, SystemClock};
use trilog_storage::io::{Backend, Choice};
use trilog_storage::kv::{Kv, KvConfig};
use trilog_storage::log::StoreConfig;
use trilog_storage::store::{OpenReport, Store};

use crate::cluster::{Identity, PeerFile, check_recovered};
use crate::config::{Authentication, Config, IoChoice};

/// What a node takes from the machine it runs on.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub backend: Backend,
    pub clock: Arc<dyn Clock>,
    pub entropy: Entropy,
}

/// The log, and whose it is.
#[derive(Debug)]
pub struct Footing {
    identity: Identity,
    store: Store,
    clock: Arc<dyn Clock>,
    steady: Arc<SteadyClock>,
    entropy: Entropy,
}

/// What is open before the node knows its cluster.
#[derive(Debug)]
pub struct Ground {
    pub(super) store: Store,
    pub(super) kv: Kv,
    pub(super) transport: Transport,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) steady: Arc<SteadyClock>,
    pub(super) entropy: Entropy,
    pub(super) identity: Identity,
    pub(super) peers: PeerFile,
    pub(super) uring_fallback: bool,
}

impl Footing {
    /// Finds or makes the node's identity and opens its log. A log that is damaged where it counts
    /// is set aside, and the identity with it.
    pub async fn find(config: &Config, surroundings: Surroundings) -> anyhow::Result<Self> {
        let dir = &config.node.data_dir;
        make_private(dir)?;
        let number = NodeId(config.node.id);
        let Surroundings {
            backend,
            clock,
            entropy,
        } = surroundings;
        let identity = if let Some(identity) = Identity::load(dir, number)? {
            identity
        } else {
            let identity = Identity::new(number, draw_uuid(&entropy));
            identity.save(dir)?;
            identity
        };
        check_recovered(dir, &identity)?;
        let allowed = config.raft.clock_skew_max.get();
        let steady = Arc::new(SteadyClock::new(Arc::clone(&clock), allowed));
        let store_config = store_config(config, &identity);
        let time = Arc::clone(&steady) as Arc<dyn Clock>;
        let opened = Store::open(store_config, backend, time, entropy.clone()).await;
        let (store, report) =
            opened.with_context(|| format!("opening the log in {}", dir.display()))?;
        let identity = settle_identity(dir, identity, &report, &entropy)?;
        info!(
            groups = report.groups.len(),
            bytes_read = report.bytes_read,
            "log recovered"
        );
        Ok(Self {
            identity,
            store,
            clock,
            steady,
            entropy,
        })
    }

    /// How this node introduces itself on its links.
    #[must_use]
    pub fn transport_config(&self) -> TransportConfig {
        let cluster = self.identity.cluster;
        let cluster = cluster.map(|id| ClusterId(*id.as_bytes()));
        TransportConfig::new(self.identity.node(), cluster)
    }
}

impl Ground {
    /// Puts together what was opened.
    #[must_use]
    pub fn new(footing: Footing, kv: Kv, transport: Transport, dir: &Path) -> Self {
        let peers = PeerFile::load(dir, transport.book());
        let Footing {
            identity,
            store,
            clock,
            steady,
            entropy,
        } = footing;
        Self {
            store,
            kv,
            transport,
            clock,
            steady,
            entropy,
            identity,
            peers,
            uring_fallback: false,
        }
    }

    /// Opens the data directory and the peer port of a real machine.
    pub(super) async fn open(config: &Config, peer: SocketAddr) -> anyhow::Result<Self> {
        let dir = &config.node.data_dir;
        make_private(dir)?;
        if config.access.authentication == Authentication::Required
            && let Some(mode) = mode_for_others(dir)
        {
            warn!(
                dir = %dir.display(),
                "others than its owner may use the data directory (mode {mode:o}), where records \
                 are, and what is kept of passwords: chmod 700 it"
            );
        }
        let probe = Backend::probe(choice(config.storage.io), dir)
            .context("storage.io = \"uring\" was asked for")?;
        if let Some(reason) = &probe.refusal {
            warn!(%reason, "io_uring is not used; plain system calls do its work");
        }
        info!(io = probe.backend.name(), "file back-end");
        let surroundings = Surroundings {
            backend: probe.backend,
            clock: Arc::new(SystemClock),
            entropy: Entropy::from_os(),
        };
        let footing = Footing::find(config, surroundings).await?;
        let kv = Kv::open_rocks(
            &dir.join("kv"),
            &[trilog_raft::KV_FAMILY],
            KvConfig::default(),
        )
        .await
        .with_context(|| format!("opening the view state in {}", dir.join("kv").display()))?;
        let entropy = footing.entropy.clone();
        let transport = Transport::tcp(footing.transport_config(), &peer.to_string(), entropy)
            .await
            .with_context(|| format!("listening for peers on {peer}"))?;
        Ok(Self {
            uring_fallback: probe.refusal.is_some(),
            ..Self::new(footing, kv, transport, dir)
        })
    }
}

/// Makes a data directory, unless it is there: for its owner alone, for everything is in it.
pub fn make_private(dir: &Path) -> anyhow::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(dir)
        .with_context(|| format!("creating the data directory {}", dir.display()))
}

/// The mode of a directory that others than its owner may use.
fn mode_for_others(dir: &Path) -> Option<u32> {
    let mode = std::fs::metadata(dir).ok()?.mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

/// The replica of the controller group, which is on this disk if the node ever took part.
fn residents(identity: &Identity) -> Vec<(GroupId, ReplicaId)> {
    let replica = identity.controller_replica();
    replica
        .map(|replica| (GroupId::CONTROLLER, replica))
        .into_iter()
        .collect()
}

/// The identity in view of what the log turned out to be. A log that was set aside takes the
/// identity with it, so that the cluster gives this node new replicas for all it held; whatever
/// they knew besides the log is set aside, too. Repeated after a crash, it does the rest.
fn settle_identity(
    dir: &Path,
    identity: Identity,
    report: &OpenReport,
    entropy: &Entropy,
) -> anyhow::Result<Identity> {
    let foreign = |(_, replica): &&(GroupId, ReplicaId)| replica.node() != identity.node();
    if let Some((group, replica)) = report.groups.iter().find(foreign) {
        anyhow::bail!(
            "{} holds replica {replica} of group {group}, which is another node's: the log was \
             copied here; nothing was changed",
            dir.display()
        );
    }
    let aside = |resident| report.stepped_aside.contains(resident);
    if !residents(&identity).iter().any(aside) {
        return Ok(identity);
    }
    let uuid = draw_uuid(entropy);
    let (kv, aside) = (dir.join("kv"), dir.join(format!("kv.damaged-{uuid}")));
    if kv.exists() {
        std::fs::rename(&kv, &aside).with_context(|| format!("setting {} aside", kv.display()))?;
    }
    error!(
        damage = report.damage.as_deref().unwrap_or("found before"),
        "the log of this node is damaged: it gives up its replicas and asks the cluster for new ones"
    );
    let identity = identity.stepping_aside(uuid);
    identity.save(dir)?;
    Ok(identity)
}

fn draw_uuid(entropy: &Entropy) -> uuid::Uuid {
    let mut bytes = [0; 16];
    rand::RngCore::fill_bytes(&mut entropy.fork(), &mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

pub(super) fn choice(io: IoChoice) -> Choice {
    match io {
        IoChoice::Auto => Choice::Auto,
        IoChoice::Uring => Choice::Uring,
        IoChoice::Threads => Choice::Threads,
    }
}

/// How the log of this node is opened, by whoever does.
pub(super) fn store_config(config: &Config, identity: &Identity) -> StoreConfig {
    let storage = &config.storage;
    let defaults = StoreConfig::new(config.node.data_dir.clone());
    StoreConfig {
        wal_file_bytes: storage.wal_file_size.get(),
        // A round never spans files; small ones still hold several.
        wal_round_bytes: defaults
            .wal_round_bytes
            .min(storage.wal_file_size.as_usize() / 4),
        wal_files: storage.wal_files,
        pinned_bytes: storage.pinned_size.get(),
        cache_bytes: storage.cache_size.get(),
        segment_bytes: storage.segment_size.get(),
        fill_bytes: storage.fill_size.get(),
        scrub_bytes_per_second: storage.scrub_rate.get(),
        compaction_bytes_per_second: storage.compaction_rate.get(),
        compaction_memory: storage.compaction_memory.as_usize(),
        residents: residents(identity),
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_data_directory_is_made_for_its_owner_and_others_are_told_of() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a").join("b");
        make_private(&dir).unwrap();
        assert_eq!(mode_for_others(&dir), None);
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        let open = std::fs::Permissions::from_mode(0o750);
        std::fs::set_permissions(&dir, open).unwrap();
        make_private(&dir).unwrap();
        assert_eq!(mode_for_others(&dir), Some(0o750), "it is left as it is");
    }
}
