//! How fast a client is answered that rests when it was given too much.
//!
//! librdkafka, on which most clients outside the JVM stand, fetches ahead of its application and, when
//! 64 MiB or 100,000 records wait for that, asks for nothing for a second
//! (`queued.max.messages.kbytes`, `queued.min.messages`, `fetch.queue.backoff.ms`). An application that
//! is done with them in a tenth of it waits for the other nine: the faster the node, the less arrives.
//!
//! ```text
//!   answers ... | rest of a second | answers ...      unpaced: a queue full for each second
//!   answer . answer . answer . answer . answer        paced: as fast as the application takes them
//! ```
//!
//! So after a rest such a client's next requests are read later, at a rate between that of the burst and
//! what the rest made of it, which then grows, slowly near the former, until there is another rest. Who
//! does not rest, or has come to the end of the log, is not paced.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest pause between an answer and the next request that is a rest, and the longest: after
/// that the client is somewhere else.
const REST: Duration = Duration::from_millis(900);
const LEFT: Duration = Duration::from_secs(10);
/// The least that a client fetches before it rests because its queue is full.
const BURST: u64 = 1 << 20;
/// Answers smaller than that are of a reader at the end of the log.
const TAIL: u64 = 64 << 10;
/// By how much the rate grows in a second: by half of what lies between it and the one that led to the
/// rest, and by no less than its 64th part.
const NEARER: u64 = 2;
const FURTHER: u64 = 64;
/// For how long a request is left unread at most.
const HELD_AT_MOST: Duration = Duration::from_millis(250);

/// What is known of one connection's fetches.
#[derive(Debug, Default)]
pub(super) struct Pace {
    burst: Option<Burst>,
    /// When the last records were sent.
    sent: Option<Instant>,
    rate: Option<Rate>,
}

/// Fetches without a rest between them.
#[derive(Clone, Copy, Debug)]
struct Burst {
    since: Instant,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Bytes a second.
    now: u64,
    /// What led to the rest.
    too_much: u64,
    /// When it last grew.
    grown: Instant,
    /// When as much as was sent is due.
    due: Instant,
}

impl Pace {
    /// Whether a client of this software rests.
    pub(super) fn is_for(name: &str, version: &str) -> bool {
        name.contains("rdkafka") || version.contains("rdkafka")
    }

    /// The client is held back for something else: that it asks for nothing then is no rest.
    pub(super) fn interrupted(&mut self) {
        *self = Self::default();
    }

    /// A fetch has arrived.
    pub(super) fn asked(&mut self, now: Instant) {
        let rested = self.sent.map(|sent| now.saturating_duration_since(sent));
        match (self.burst, rested) {
            (Some(_), Some(rested)) if rested < REST => return,
            (Some(burst), Some(rested)) if rested < LEFT && burst.bytes >= BURST => {
                self.slow_down(burst, rested, now);
            }
            _ => self.rate = None,
        }
        self.burst = Some(Burst {
            since: now,
            bytes: 0,
        });
        self.sent = None;
    }

    /// The application takes less than what filled the queue, and no less than what there was with
    /// the rest: the geometric mean of both comes near in a few rests, and near it changes little.
    fn slow_down(&mut self, burst: Burst, rested: Duration, now: Instant) {
        let whole = now.saturating_duration_since(burst.since);
        let filling = per_second(burst.bytes, whole.saturating_sub(rested));
        let filling = self.rate.map_or(filling, |rate| rate.now.min(filling));
        let least = per_second(burst.bytes, whole);
        let between = (u128::from(filling) * u128::from(least)).isqrt();
        self.rate = Some(Rate {
            now: u64::try_from(between).unwrap_or(filling).max(least),
            too_much: filling,
            grown: now,
            due: now,
        });
    }

    /// So many bytes of records were sent. Returns for how long the next request is left unread.
    pub(super) fn sent(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        self.sent = Some(now);
        if let Some(burst) = &mut self.burst {
            burst.bytes += bytes;
        }
        if bytes < TAIL {
            self.rate = None;
        }
        let rate = self.rate.as_mut()?;
        rate.grow(now);
        let takes = time_of(bytes, rate.now);
        // What was late is not made up for: that would be another burst.
        rate.due = rate.due.max(now.checked_sub(takes).unwrap_or(now)) + takes;
        let early = rate.due.saturating_duration_since(now).min(HELD_AT_MOST);
        (!early.is_zero()).then_some(early)
    }
}

impl Rate {
    fn grow(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.grown);
        let millis = u64::try_from(since.as_millis())
            .unwrap_or(u64::MAX)
            .min(1_000);
        if millis > 0 {
            let nearer = self.too_much.saturating_sub(self.now) / NEARER;
            let by = nearer.max(self.now / FURTHER) / 1_000 * millis;
            self.now = self.now.saturating_add(by.max(1));
            self.grown = now;
        }
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let nanos = time.as_nanos().max(1);
    let rate = u128::from(bytes) * 1_000_000_000 / nanos;
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);
    const NODES: usize = 3;

    /// A consumer of librdkafka before three nodes, as far as it matters here.
    struct Model {
        /// What the nodes can send, and what the application takes, in MiB a second.
        nodes: u64,
        application: u64,
        /// What one answer carries.
        answer: u64,
    }

    impl Model {
        const QUEUE: u64 = 64 * MIB;

        /// What arrives, in MiB a second, once `settling` is over, in the time after it.
        fn arrives(&self, paced: bool, settling: Duration, time: Duration) -> u64 {
            let start = Instant::now();
            let mut paces = [(); NODES].map(|()| Pace::default());
            let mut turns = [start; NODES];
            let (mut queued, mut drained_at, mut arrived) = (0, start, 0);
            loop {
                let node = (0..NODES).min_by_key(|node| turns[*node]).unwrap_or(0);
                let now = turns[node];
                if now > start + settling + time {
                    return arrived / MIB / time.as_secs();
                }
                let drained = u64::try_from((now - drained_at).as_micros()).unwrap();
                let taken = self.application * MIB * drained / 1_000_000;
                queued = u64::saturating_sub(queued, taken);
                drained_at = now;
                if queued >= Self::QUEUE {
                    turns[node] = now + SECOND;
                    continue;
                }
                paces[node].asked(now);
                let sent = now + time_of(self.answer, self.nodes * MIB / NODES as u64);
                queued += self.answer;
                if now > start + settling {
                    arrived += self.answer;
                }
                let held = paces[node].sent(self.answer, sent).filter(|_| paced);
                turns[node] = sent + held.unwrap_or_default();
            }
        }

        fn settled(&self, paced: bool) -> u64 {
            self.arrives(paced, 10 * SECOND, 50 * SECOND)
        }
    }

    #[test]
    fn who_rests_gets_almost_what_its_application_can_take() {
        for application in [100, 300, 1_000] {
            for nodes in [400, 1_500, 4_000] {
                let model = Model {
                    nodes,
                    application,
                    answer: 2 * MIB,
                };
                let (paced, can) = (model.settled(true), nodes.min(application));
                let unpaced = model.settled(false);
                assert!(
                    paced * 100 >= can * 85,
                    "{paced} of {can}, {unpaced} unpaced"
                );
            }
        }
    }

    #[test]
    fn nobody_gets_much_less_for_being_paced() {
        for application in [1, 5, 20, 60, 150, 700, 3_000] {
            for nodes in [30, 300, 1_000, 3_000] {
                for answer in [128 << 10, MIB, 8 * MIB] {
                    let model = Model {
                        nodes,
                        application,
                        answer,
                    };
                    let (paced, unpaced) = (
                        model.arrives(true, Duration::ZERO, 60 * SECOND),
                        model.arrives(false, Duration::ZERO, 60 * SECOND),
                    );
                    assert!(
                        paced * 100 >= unpaced * 90,
                        "{application} of {nodes} by {answer}: {paced}, {unpaced} unpaced"
                    );
                }
            }
        }
    }

    #[test]
    fn who_does_not_rest_is_not_paced() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for pause in [0, 1, 20, 200, 800] {
            pace.asked(now);
            now += Duration::from_millis(5);
            assert_eq!(pace.sent(8 * MIB, now), None, "{pause}");
            now += Duration::from_millis(pause);
        }
    }

    /// A pace after a rest of a second.
    fn rested() -> (Pace, Instant) {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        pace.asked(now);
        now += Duration::from_millis(10);
        assert_eq!(pace.sent(8 * MIB, now), None);
        now += SECOND;
        pace.asked(now);
        (pace, now)
    }

    #[test]
    fn a_reader_at_the_end_of_the_log_is_not_paced_any_more() {
        let (mut pace, mut now) = rested();
        now += Duration::from_millis(1);
        assert!(pace.sent(8 * MIB, now).is_some());
        now += Duration::from_millis(300);
        pace.asked(now);
        assert_eq!(pace.sent(1_000, now), None);
        pace.asked(now);
        assert_eq!(pace.sent(8 * MIB, now), None);
    }

    #[test]
    fn who_was_away_begins_anew() {
        let (mut pace, mut now) = rested();
        now += Duration::from_millis(1);
        assert!(pace.sent(8 * MIB, now).is_some());
        now += LEFT;
        pace.asked(now);
        assert_eq!(pace.sent(8 * MIB, now), None);
    }

    #[test]
    fn who_is_held_back_for_something_else_does_not_rest() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..3 {
            pace.asked(now);
            now += Duration::from_millis(10);
            assert_eq!(pace.sent(8 * MIB, now), None);
            pace.interrupted();
            now += 2 * SECOND;
        }
    }

    #[test]
    fn software_that_rests_is_known_by_name() {
        for (name, version, rests) in [
            ("librdkafka", "2.0.2", true),
            ("confluent-kafka-python", "2.16.1-rdkafka-2.16.0", true),
            ("confluent-kafka-go", "v2.4.0-librdkafka-2.4.0", true),
            ("apache-kafka-java", "4.1.0", false),
            ("franz-go", "v1.17.0", false),
        ] {
            assert_eq!(Pace::is_for(name, version), rests, "{name} {version}");
        }
    }
}
