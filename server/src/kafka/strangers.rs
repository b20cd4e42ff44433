//! Those who have yet to prove who they are: no more of them at once than so many, or whoever opens
//! connections fast enough would keep out all who are known. The oldest makes room for the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Of so many connections one may be a stranger's.
const SHARE: usize = 4;

/// The strangers of a node; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Strangers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// In the order in which they came.
    here: BTreeMap<u64, CancellationToken>,
}

/// One of them, until it is known or gone: then this is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    strangers: Strangers,
    number: u64,
    displaced: CancellationToken,
}

impl Strangers {
    /// Among so many connections.
    pub(super) fn among(connections: usize) -> Self {
        Self(Arc::new(Inner {
            most: (connections / SHARE).max(1),
            table: Mutex::default(),
        }))
    }

    pub(super) fn enter(&self) -> Stranger {
        let displaced = CancellationToken::new();
        let mut table = self.0.table.lock();
        let number = table.next;
        table.next += 1;
        table.here.insert(number, displaced.clone());
        let oldest = if table.here.len() > self.0.most {
            table.here.pop_first()
        } else {
            None
        };
        drop(table);
        if let Some((_, oldest)) = oldest {
            oldest.cancel();
        }
        Stranger {
            strangers: self.clone(),
            number,
            displaced,
        }
    }
}

impl Stranger {
    /// Fires if it has to make room; never, once it is known.
    pub(super) fn displaced(&self) -> CancellationToken {
        self.displaced.clone()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.strangers.0.table.lock().here.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_and_whoever_is_known_does_not() {
        let strangers = Strangers::among(3 * SHARE);
        let mut here: Vec<Stranger> = (0..3).map(|_| strangers.enter()).collect();
        let known = here.remove(0);
        let stays = known.displaced();
        drop(known);
        here.push(strangers.enter());
        assert!(here.iter().all(|one| !one.displaced().is_cancelled()));
        let last = strangers.enter();
        let gone: Vec<bool> = here
            .iter()
            .map(|one| one.displaced().is_cancelled())
            .collect();
        assert_eq!(gone, [true, false, false]);
        assert!(!stays.is_cancelled() && !last.displaced().is_cancelled());
        drop((here, last));
        assert!(strangers.0.table.lock().here.is_empty());
    }
}
