//! Which sealed segments' indexes are in memory, within a budget.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::segment::{IndexSlot, Segment};

/// Bytes of indexes kept, over all groups.
const BUDGET: usize = 64 << 20;

/// The indexes of sealed segments, oldest first.
#[derive(Debug, Default)]
pub(crate) struct IndexCache(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    order: VecDeque<(Weak<Segment>, usize)>,
    bytes: usize,
}

impl IndexCache {
    /// A sealed segment has its index in memory. Drops the indexes that came first over budget;
    /// they are read again when they are needed.
    pub(crate) fn keep(&self, segment: &Arc<Segment>) {
        let bytes = match &*segment.index.lock() {
            IndexSlot::Here(index) => index.memory(),
            IndexSlot::Absent => return,
        };
        let mut gone = Vec::new();
        {
            let mut held = self.0.lock();
            held.bytes += bytes;
            held.order.push_back((Arc::downgrade(segment), bytes));
            while held.bytes > BUDGET
                && let Some((oldest, bytes)) = held.order.pop_front()
            {
                held.bytes -= bytes;
                gone.push(oldest);
            }
        }
        for segment in gone.iter().filter_map(Weak::upgrade) {
            *segment.index.lock() = IndexSlot::Absent;
        }
    }
}
