//! Memory for requests: one bound over all connections of a node, whatever they speak.
//!
//! Whoever is about to take a request in claims its length first, and keeps the claim until the
//! bytes are counted elsewhere (appends on their way have a budget of their own) or gone. Nobody
//! may hold one claim and wait for another: all might wait then. Claims are granted in the order
//! they were asked for, so a large one is not starved by small ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request waits for memory before it is refused.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests that may wait at once. The bytes that a waiting one has sent already stand in its
/// connection's own buffers, so these must be few.
const WAITING_MAX: usize = 256;

/// The memory of one node for requests; clones share it.
#[derive(Clone, Debug)]
pub struct RequestMemory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Arc<Semaphore>,
    total: usize,
    waiting: AtomicUsize,
}

/// Some of it, given back when dropped.
#[derive(Debug)]
pub struct RequestClaim {
    permits: OwnedSemaphorePermit,
}

impl RequestClaim {
    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.permits.num_permits()
    }
}

/// There is no memory for the request now, and none is expected soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's memory for requests is taken")]
pub struct Crowded;

impl RequestMemory {
    #[must_use]
    pub fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            free: Arc::new(Semaphore::new(total)),
            total,
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Memory for a request of so many bytes, waiting for it within bounds. One that is larger
    /// than all there is gets all there is.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it takes nothing, and its place in the line is lost.
    pub async fn claim(&self, bytes: usize) -> Result<RequestClaim, Crowded> {
        if let Some(claim) = self.try_claim(bytes) {
            return Ok(claim);
        }
        let _waiting = self.wait_in_line()?;
        let claiming = tokio::time::timeout(PATIENCE, self.claim_unread(bytes));
        claiming.await.unwrap_or(Err(Crowded))
    }

    /// Memory that is free now.
    #[must_use]
    pub fn try_claim(&self, bytes: usize) -> Option<RequestClaim> {
        let free = Arc::clone(&self.0.free);
        let permits = free.try_acquire_many_owned(self.permits(bytes)).ok()?;
        Some(RequestClaim { permits })
    }

    /// Memory for a request of which nothing is read but its length. It is waited for as long as
    /// the caller likes: what waits like that takes nothing.
    ///
    /// # Cancel safety
    ///
    /// As of [`RequestMemory::claim`].
    pub async fn claim_unread(&self, bytes: usize) -> Result<RequestClaim, Crowded> {
        let free = Arc::clone(&self.0.free);
        let permits = free.acquire_many_owned(self.permits(bytes)).await;
        let permits = permits.map_err(|_| Crowded)?;
        Ok(RequestClaim { permits })
    }

    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.0.total)).unwrap_or(u32::MAX)
    }

    fn wait_in_line(&self) -> Result<Waiting<'_>, Crowded> {
        let before = self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.0.waiting);
        if before < WAITING_MAX {
            Ok(waiting)
        } else {
            Err(Crowded)
        }
    }

    /// Bytes that are claimed now.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.total - self.0.free.available_permits()
    }
}

/// A place in the line.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_large_request_is_not_starved_by_small_ones() {
        let memory = RequestMemory::new(100);
        let first = memory.claim(60).await.unwrap();
        let mut large = Box::pin(memory.claim(90));
        assert!((&mut large).now_or_never().is_none());
        let small = tokio::time::timeout(Duration::from_secs(1), memory.claim(10)).await;
        assert!(small.is_err(), "it came later");
        drop(first);
        let large = large.await.unwrap();
        assert_eq!(memory.taken(), 90);
        drop(large);
        assert_eq!(memory.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_exceeds_all_memory_takes_all_of_it() {
        let memory = RequestMemory::new(100);
        let all = memory.claim(1_000).await.unwrap();
        assert_eq!(memory.taken(), 100);
        assert_eq!(memory.claim(1).await.unwrap_err(), Crowded);
        drop(all);
        memory.claim(1).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait() {
        let memory = RequestMemory::new(1);
        let _all = memory.claim(1).await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(memory.claim(1)))
            .collect();
        for claim in &mut waiting {
            assert!(claim.now_or_never().is_none());
        }
        let refused = memory.claim(1).now_or_never();
        assert!(matches!(refused, Some(Err(Crowded))));
        drop(waiting);
        assert!(memory.claim(1).now_or_never().is_none(), "it may wait");
    }
}
