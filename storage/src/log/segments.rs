//! The chain of one group's segments, and how far it is written and durable.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trilog_model::{LogIndex, Offset};

use super::segment::{Extent, HEADER_LEN, IndexSlot, Segment, SegmentHeader};
use super::tip::Tip;
use super::types::LogStart;

/// A segment in its chain.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) segment: Arc<Segment>,
    /// What is written.
    pub(crate) extent: Extent,
    /// What is written and synced; `None` before the first sync.
    pub(crate) synced: Option<Extent>,
    /// Nothing is added any more.
    pub(crate) sealed: bool,
}

/// The segments of a log, oldest first; only the last may be unsealed. Without gaps.
#[derive(Debug)]
pub(crate) struct Segments {
    pub(crate) links: VecDeque<Link>,
    /// Where the chain ends: the tip of the last link, or where the log began.
    filled: Tip,
    /// Where what is durable ends.
    synced: Tip,
    /// Grows when the chain is dropped, so that a write under way is known to be void.
    era: u64,
}

impl Segments {
    /// No segments; the first will begin at `tip`.
    pub(crate) fn starting_at(tip: Tip) -> Self {
        Self {
            links: VecDeque::new(),
            filled: tip,
            synced: tip,
            era: 0,
        }
    }

    /// The chain a checkpoint lists, all of it durable, ending at `tip`.
    pub(crate) fn recovered(links: VecDeque<Link>, tip: Tip) -> Self {
        Self {
            links,
            filled: tip,
            synced: tip,
            era: 0,
        }
    }

    pub(crate) fn filled(&self) -> Tip {
        self.filled
    }

    pub(crate) fn synced(&self) -> Tip {
        self.synced
    }

    pub(crate) fn era(&self) -> u64 {
        self.era
    }

    /// The first offset that can be served.
    pub(crate) fn data_start(&self, start: Option<&LogStart>) -> Offset {
        let held = match self.links.front() {
            Some(first) => first.segment.header.base_offset,
            None => self.filled.next_offset,
        };
        start.map_or(held, |start| start.data_start.max(held))
    }

    /// The first index that can be served.
    pub(crate) fn first_index(&self) -> LogIndex {
        match self.links.front() {
            Some(first) => first.segment.header.base_index,
            None => self.filled.next_index,
        }
    }

    /// Drops the chain and starts a new one at `tip`. Returns the files to delete.
    pub(crate) fn restart(&mut self, tip: Tip) -> Vec<PathBuf> {
        self.era += 1;
        self.filled = tip;
        self.synced = tip;
        let gone = std::mem::take(&mut self.links);
        gone.into_iter()
            .map(|link| link.segment.path.clone())
            .collect()
    }

    /// Nothing is added to any segment any more.
    pub(crate) fn seal(&mut self) {
        if let Some(active) = self.active() {
            active.sealed = true;
        }
    }

    /// The unsealed segment.
    pub(crate) fn active(&mut self) -> Option<&mut Link> {
        self.links.back_mut().filter(|link| !link.sealed)
    }

    /// Starts a segment behind the last one.
    pub(crate) fn begin(&mut self, dir: &Path, header: SegmentHeader) -> &mut Link {
        let index = super::index::SparseIndex::new(i64::MIN);
        let segment = Segment::new(dir, header, 0, IndexSlot::Here(index));
        self.links.push_back(Link {
            segment: Arc::new(segment),
            extent: Extent {
                bytes: HEADER_LEN,
                tip: self.filled,
                last_time: header.base_time,
                record_time: i64::MIN,
            },
            synced: None,
            sealed: false,
        });
        let last = self.links.len() - 1;
        &mut self.links[last]
    }

    /// The active segment now reaches to `extent`.
    pub(crate) fn grow(&mut self, extent: Extent) {
        if let Some(active) = self.active() {
            active.extent = extent;
            self.filled = extent.tip;
        }
    }

    /// `segment` is durable up to `extent`.
    pub(crate) fn mark_synced(&mut self, segment: &Arc<Segment>, extent: Extent) {
        let Some(at) = self.position(segment) else {
            return;
        };
        self.links[at].synced = Some(extent);
        self.settle();
    }

    /// A damaged segment waits for nothing more: the write-ahead log cannot make it whole.
    pub(crate) fn give_up(&mut self, segment: &Arc<Segment>) {
        if let Some(at) = self.position(segment) {
            let link = &mut self.links[at];
            link.sealed = true;
            link.synced = Some(link.extent);
            self.settle();
        }
    }

    /// Puts a whole segment, which ends where it did, in the place of a damaged one.
    pub(crate) fn replace(&mut self, damaged: &Arc<Segment>, whole: Arc<Segment>, extent: Extent) {
        if let Some(at) = self.position(damaged) {
            let link = &mut self.links[at];
            link.segment = whole;
            link.extent = extent;
            link.synced = Some(extent);
            self.settle();
        }
    }

    /// Where neighbours stand that nothing is added to and that are whole and durable.
    pub(crate) fn run_of(&self, segments: &[Arc<Segment>]) -> Option<Range<usize>> {
        let first = self.position(segments.first()?)?;
        let end = first + segments.len();
        let links = self.links.iter().skip(first).take(segments.len());
        let same = links.clone().count() == segments.len()
            && links.zip(segments).all(|(link, segment)| {
                let settled = link.sealed && link.synced == Some(link.extent);
                settled && Arc::ptr_eq(&link.segment, segment) && !segment.is_damaged()
            });
        same.then_some(first..end)
    }

    /// Puts one segment in the place of neighbours that it continues and ends like. Returns those.
    pub(crate) fn merge(
        &mut self,
        places: Range<usize>,
        segment: Arc<Segment>,
        extent: Extent,
    ) -> Vec<Arc<Segment>> {
        let at = places.start;
        let gone = self.links.drain(places).map(|link| link.segment).collect();
        let link = Link {
            segment,
            extent,
            synced: Some(extent),
            sealed: true,
        };
        self.links.insert(at, link);
        gone
    }

    /// Puts a segment before the first one; the caller has checked that it joins.
    pub(crate) fn prepend(&mut self, segment: Arc<Segment>, extent: Extent) {
        self.links.push_front(Link {
            segment,
            extent,
            synced: Some(extent),
            sealed: true,
        });
    }

    /// Finds how far the chain is durable.
    fn settle(&mut self) {
        // The chain is durable up to the first link that is not wholly so.
        for link in &self.links {
            let Some(synced) = link.synced else { return };
            self.synced = synced.tip;
            if synced != link.extent {
                return;
            }
        }
    }

    pub(crate) fn position(&self, segment: &Arc<Segment>) -> Option<usize> {
        self.links
            .iter()
            .rposition(|link| Arc::ptr_eq(&link.segment, segment))
    }

    /// Takes out the leading segments that hold nothing at or beyond `data_start`, nor anything
    /// behind X. Returns the files to delete.
    pub(crate) fn purge(&mut self, start: &LogStart) -> Vec<PathBuf> {
        let mut gone = Vec::new();
        while let Some(first) = self.links.front() {
            let tip = first.extent.tip;
            let below = tip.next_offset <= start.data_start
                && tip.next_index <= start.purged.index.next()
                && first.sealed;
            if !below {
                break;
            }
            gone.push(first.segment.path.clone());
            self.links.pop_front();
        }
        gone
    }

    /// The link that holds `index`.
    pub(crate) fn find(&self, index: LogIndex) -> Option<&Link> {
        let after = self
            .links
            .partition_point(|link| link.segment.header.base_index <= index);
        self.links
            .get(after.checked_sub(1)?)
            .filter(|link| index < link.extent.tip.next_index)
    }
}
