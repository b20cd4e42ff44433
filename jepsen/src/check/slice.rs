//! The part of a history that an anomaly is about: its events, cut down to what concerns it.

use std::collections::BTreeMap;

use super::Anomaly;
use crate::history::{Event, Mop, Record, What};

/// Records that are left on either side of what an anomaly is about.
const AROUND: usize = 2;

/// The events that the anomalies of a verdict refer to, picked out of a history as it passes.
#[derive(Debug, Default)]
pub struct Slice {
    events: BTreeMap<u64, Option<Event>>,
}

impl Slice {
    pub fn of(anomalies: &[Anomaly]) -> Self {
        let indexes = anomalies.iter().flat_map(|anomaly| &anomaly.events);
        Self {
            events: indexes.map(|index| (*index, None)).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Keeps an event if it is wanted.
    pub fn see(&mut self, event: &Event) {
        if let Some(place) = self.events.get_mut(&event.index) {
            *place = Some(event.clone());
        }
    }

    /// The events of an anomaly, cut down to what concerns it.
    pub fn events(&self, anomaly: &Anomaly) -> Vec<Event> {
        let places = anomaly
            .events
            .iter()
            .filter_map(|index| self.events.get(index));
        places
            .filter_map(Option::as_ref)
            .map(|event| trim(event, anomaly))
            .collect()
    }
}

/// An event without what an anomaly is not about: other keys, and records far from its own.
pub fn trim(event: &Event, anomaly: &Anomaly) -> Event {
    let mut event = event.clone();
    if let What::Op(op) = &mut event.what {
        for mop in &mut op.mops {
            if let Mop::Poll(runs) = mop {
                runs.retain(|(key, _)| anomaly.key.is_none_or(|wanted| wanted == *key));
                for (_, records) in runs.iter_mut() {
                    *records = near(records, anomaly);
                }
                runs.retain(|(_, records)| !records.is_empty());
            }
        }
    }
    event
}

fn near(records: &[Record], anomaly: &Anomaly) -> Vec<Record> {
    let wanted = |record: &Record| {
        anomaly.offsets.contains(&record.offset) || anomaly.values.contains(&record.value)
    };
    let hits: Vec<usize> = (0..records.len())
        .filter(|n| wanted(&records[*n]))
        .collect();
    let close = |nth: usize| hits.iter().any(|hit| hit.abs_diff(nth) <= AROUND);
    let kept = records.iter().enumerate().filter(|(nth, _)| close(*nth));
    kept.map(|(_, record)| *record).collect()
}
