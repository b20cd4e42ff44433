//! Who on this node serves which kinds of calls and streams.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use super::peer::{Kind, PeerHandler};

/// A handler and the end of the range it registered for.
type Registered = (u16, Arc<dyn PeerHandler>);

/// Handlers by the first kind of the range each registered for.
#[derive(Default)]
pub(super) struct Registry {
    ranges: RwLock<BTreeMap<u16, Registered>>,
}

impl Registry {
    /// Registers a handler for a range of kinds; it replaces whoever starts at the same kind.
    pub(super) fn register(&self, kinds: Range<u16>, handler: Arc<dyn PeerHandler>) {
        self.ranges
            .write()
            .insert(kinds.start, (kinds.end, handler));
    }

    pub(super) fn find(&self, kind: Kind) -> Option<Arc<dyn PeerHandler>> {
        let ranges = self.ranges.read();
        let (_, (end, handler)) = ranges.range(..=kind.0).next_back()?;
        (kind.0 < *end).then(|| Arc::clone(handler))
    }

    /// Forgets every handler, which may hold what holds the transport.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut *self.ranges.write());
        drop(dropped);
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges.read();
        f.debug_map()
            .entries(ranges.iter().map(|(start, (end, _))| (start, end)))
            .finish()
    }
}
