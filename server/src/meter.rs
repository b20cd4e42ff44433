//! What every edge counts: requests by kind, records and bytes by topic.
//!
//! Handles are looked up once per stream and topic; what happens per batch is an addition.

use std::collections::BTreeSet;
use std::sync::Arc;

use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Topics that are counted apart; the rest are counted together, so that nobody can fill the
/// registry by making topics.
const TOPICS: usize = 1000;
const OTHER: &str = "_other";

/// The meters of one dialect of a node.
#[derive(Clone, Debug)]
pub struct Meters {
    dialect: &'static str,
    topics: Arc<Mutex<BTreeSet<String>>>,
}

/// One topic's counters.
#[derive(Clone, Debug)]
pub struct TopicMeter {
    messages_in: Counter,
    bytes_in: Counter,
    messages_out: Counter,
    bytes_out: Counter,
}

/// One kind of request.
#[derive(Clone, Debug)]
pub struct ApiMeter {
    dialect: &'static str,
    api: &'static str,
    requests: Counter,
    duration: Histogram,
}

impl Meters {
    /// Of the dialect with this label.
    #[must_use]
    pub fn new(dialect: &'static str) -> Self {
        Self {
            dialect,
            topics: Arc::default(),
        }
    }

    #[must_use]
    pub fn topic(&self, name: &str) -> TopicMeter {
        let mut topics = self.topics.lock();
        let known = topics.contains(name);
        let topic = if known || topics.len() < TOPICS {
            if !known {
                topics.insert(name.to_owned());
            }
            name.to_owned()
        } else {
            OTHER.to_owned()
        };
        let dialect = self.dialect;
        let count =
            |name: &'static str| counter!(name, "dialect" => dialect, "topic" => topic.clone());
        TopicMeter {
            messages_in: count("trilog_messages_in_total"),
            bytes_in: count("trilog_bytes_in_total"),
            messages_out: count("trilog_messages_out_total"),
            bytes_out: count("trilog_bytes_out_total"),
        }
    }
}

impl TopicMeter {
    /// A batch was acknowledged.
    pub fn came(&self, records: u64, bytes: u64) {
        self.messages_in.increment(records);
        self.bytes_in.increment(bytes);
    }

    /// A batch was sent.
    pub fn left(&self, records: u64, bytes: u64) {
        self.messages_out.increment(records);
        self.bytes_out.increment(bytes);
    }
}

impl ApiMeter {
    #[must_use]
    pub fn new(dialect: &'static str, api: &'static str) -> Self {
        Self {
            dialect,
            api,
            requests: counter!("trilog_requests_total", "dialect" => dialect, "api" => api),
            duration: histogram!(
                "trilog_request_duration_seconds", "dialect" => dialect, "api" => api
            ),
        }
    }

    /// A request that came at `since` was answered.
    pub fn answered(&self, since: Instant) {
        self.requests.increment(1);
        self.duration.record(since.elapsed());
    }

    /// It was answered with an error, which is rare enough to look its counter up.
    pub fn refused(&self, reason: String) {
        counter!(
            "trilog_request_errors_total",
            "dialect" => self.dialect, "api" => self.api, "reason" => reason
        )
        .increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_beyond_the_limit_are_counted_together() {
        let meters = Meters::new("test");
        for topic in 0..TOPICS + 10 {
            meters.topic(&format!("topic-{topic}")).came(1, 1);
        }
        let topics = meters.topics.lock();
        assert_eq!(topics.len(), TOPICS);
        assert!(topics.contains("topic-0") && !topics.contains("topic-1005"));
    }
}
