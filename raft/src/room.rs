//! What a node does about what it leads while its disk is full: a leader without room refuses all
//! records, so it hands over to replicas that have some, and takes no leadership until it has had
//! room for a while.
//!
//! ```text
//!            a write finds no room
//!    room ───────────────────────────> short: groups are handed over, some each second, to
//!      ^                                 │    voters that are level and not short themselves
//!      └──── no such write for 15 s ─────┘
//! ```
//!
//! Where everybody is short nothing moves. Standing for election is another matter: a group with
//! a leader that refuses is better off than one without.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use trilog_storage::log::Pressure;

use crate::idle::Groups;

/// How often groups are handed over.
const ROUND: Duration = Duration::from_secs(1);
/// Groups handed over in one round, and at the same time.
const PER_ROUND: usize = 64;
const AT_ONCE: usize = 8;
/// How long there has to be room until there is room again: one write that fits says little.
const SETTLED: Duration = Duration::from_secs(15);

/// Whether a node's disk has room, as far as leading goes.
#[derive(Debug, Default)]
pub(crate) struct Room {
    short: AtomicBool,
}

impl Room {
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire)
    }
}

/// Watches a node's disk, until the node or its store is gone.
pub(crate) async fn keep<G: Groups>(
    groups: Weak<G>,
    mut pressure: watch::Receiver<Pressure>,
    room: Arc<Room>,
) {
    while pressure.wait_for(|now| now.disk_full).await.is_ok() {
        room.short.store(true, Ordering::Release);
        tracing::warn!("the disk is full: what this node leads is handed to replicas with room");
        let mut seen = Instant::now();
        while seen.elapsed() < SETTLED {
            if seen.elapsed() < ROUND {
                round(&groups).await;
            }
            sleep(ROUND).await;
            // It comes and goes: small writes fit where large ones do not.
            let again = timeout(ROUND, pressure.wait_for(|now| now.disk_full)).await;
            match again {
                Ok(Ok(_)) => seen = Instant::now(),
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
        room.short.store(false, Ordering::Release);
        tracing::info!("the disk has room again");
    }
}

async fn round<G: Groups>(groups: &Weak<G>) {
    let Some(groups) = groups.upgrade() else {
        return;
    };
    let replicas = groups.replicas();
    drop(groups);
    let led = replicas.into_iter().filter(|replica| {
        let status = &replica.status;
        status.leadership_now().leader == Some(status.replica)
    });
    let moved = stream::iter(led.take(PER_ROUND))
        .map(|replica| async move { replica.yield_to_room().await })
        .buffer_unordered(AT_ONCE)
        .filter(|moved| futures::future::ready(*moved))
        .count()
        .await;
    if moved > 0 {
        tracing::info!(groups = moved, "handed over for want of room");
    }
}
