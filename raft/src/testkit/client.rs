//! Clients that propose numbered commands to whoever leads and remember how each ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use trilog_model::NodeId;
use trilog_storage::frame::BATCH_PREFIX_LEN;

use super::Witness;
use super::checks::{Checks, Outcome};
use crate::group::{Group, ProposeError};
use crate::types::Proposal;

/// How long a client waits for an outcome.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits before it looks for a leader again.
const PAUSE: Duration = Duration::from_millis(20);

/// The replicas clients may talk to; a scenario keeps it up to date.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<Mutex<BTreeMap<NodeId, Group<Witness>>>>);

impl Directory {
    pub fn set(&self, replicas: impl IntoIterator<Item = Group<Witness>>) {
        let entries = replicas
            .into_iter()
            .map(|replica| (replica.replica().node(), replica));
        *self.0.lock() = entries.collect();
    }

    fn leader(&self) -> Option<Group<Witness>> {
        let replicas = self.0.lock();
        let ready = replicas.values().filter(|replica| {
            let now = *replica.leadership().borrow();
            now.ready
        });
        ready
            .max_by_key(|replica| replica.leadership().borrow().term)
            .cloned()
    }
}

/// Numbers commands, over all clients of a simulation.
#[derive(Clone, Debug, Default)]
pub struct Numbers(Arc<AtomicU64>);

impl Numbers {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A batch that passes every check of the log: a v2 prefix with the right checksum over `body`.
#[must_use]
pub fn batch(body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(BATCH_PREFIX_LEN + body.len());
    out.put_u64(0);
    out.put_u32(u32::try_from(body.len() + BATCH_PREFIX_LEN - 12).unwrap_or(u32::MAX));
    out.put_u32(0);
    out.put_u8(2);
    out.put_u32(crc32c::crc32c(body));
    out.put_slice(body);
    out.freeze()
}

/// Starts a client that proposes one drain after another until its handle is aborted.
pub fn spawn(
    directory: Directory,
    numbers: Numbers,
    checks: Checks,
    mut rng: SmallRng,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let pause = Duration::from_millis(rng.random_range(0..30));
            tokio::time::sleep(pause).await;
            let Some(leader) = directory.leader() else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let drain = rng.random_range(1..6);
            let commands: Vec<u64> = (0..drain).map(|_| numbers.next()).collect();
            let proposals = commands
                .iter()
                .map(|command| proposal(*command, &mut rng))
                .collect();
            propose(&leader, &checks, &commands, proposals).await;
        }
    })
}

fn proposal(command: u64, rng: &mut SmallRng) -> Proposal {
    let records = rng.random_range(0..4u32);
    let body = vec![rng.random::<u8>(); rng.random_range(40..2_000)];
    Proposal {
        records: if records > 0 {
            batch(&body)
        } else {
            Bytes::new()
        },
        record_count: records,
        command: Bytes::copy_from_slice(&command.to_le_bytes()),
    }
}

async fn propose(
    leader: &Group<Witness>,
    checks: &Checks,
    commands: &[u64],
    proposals: Vec<Proposal>,
) {
    let term = leader.leadership().borrow().term;
    let proposed = timeout(PATIENCE, leader.propose(proposals, term)).await;
    let outcome = match proposed {
        Ok(Ok(applied)) => {
            assert_eq!(applied.len(), commands.len(), "a drain is answered whole");
            for (command, applied) in commands.iter().zip(applied) {
                let acked = Outcome::Acked {
                    index: applied.id.index,
                    offset: applied.base_offset,
                };
                checks.outcome(*command, acked);
            }
            return;
        }
        Ok(Err(ProposeError::Unknown)) | Err(_) => Outcome::Unknown,
        Ok(Err(_)) => Outcome::Refused,
    };
    for command in commands {
        checks.outcome(*command, outcome);
    }
}
