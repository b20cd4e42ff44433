//! Holding clients to what they may move (KIP-13) and to what they may keep a node's threads busy
//! (KIP-124): each share of a quota has a rate, counted as Kafka counts it, over windows of a
//! second. Who is over its bound is answered at once and told for how long (KIP-219), and
//! meanwhile nothing more is read from its connection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use metrics::{Histogram, histogram};
use parking_lot::Mutex;
use tokio::time::Instant;
use trilog_raft::controller::{QuotaKey, USER_PREFIX, quota_of};
use trilog_wire::kafka::messages::ApiKey;
use trilog_wire::kafka::{Answer, Api, Request, StrBytes};

use super::conn::{Held, Outcome};
use super::handlers::Begun;
use super::session::Session;
use super::{DIALECT, Kafka};
use crate::access::Principal;

/// The user of a client that was not asked who it is.
const ANONYMOUS: &str = "ANONYMOUS";
/// Samples of a rate, and how long each is, as Kafka's `quota.window.num` and
/// `quota.window.size.seconds`.
const SAMPLES: u32 = 11;
const SAMPLE: Duration = Duration::from_secs(1);
/// For how long a request that took too much of the threads' time is held back at most, as at a
/// broker.
const LONGEST_FOR_TIME: Duration = SAMPLE;
/// The longest pause that an answer has room for.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);
/// Rates kept at once. Whoever comes beyond them shares one with all others that do.
const MAX_RATES: usize = 10_000;
/// As much of a client's or user's name tells it from others, in bytes.
const MAX_NAME: usize = 256;
/// Key, version, correlation id and the length of the client id.
const HEADER_BYTES: usize = 10;

/// What was moved of late, as Kafka's sampled rates have it: the window is at least ten samples
/// long, so that what comes at once after a silence may be that much.
#[derive(Debug, Default)]
struct Rate {
    samples: VecDeque<(Instant, f64)>,
}

impl Rate {
    fn forget(&mut self, now: Instant) {
        let old = |began: Instant| now.saturating_duration_since(began) >= SAMPLE * SAMPLES;
        while self.samples.front().is_some_and(|(began, _)| old(*began)) {
            self.samples.pop_front();
        }
    }

    /// Counts what was moved; for how long nothing more may be, to be at `limit` again.
    fn spend(&mut self, amount: f64, limit: f64, now: Instant) -> Duration {
        self.forget(now);
        match self.samples.back_mut() {
            Some((began, total)) if now.saturating_duration_since(*began) < SAMPLE => {
                *total += amount;
            }
            _ => self.samples.push_back((now, amount)),
        }
        let first = self.samples.front().map_or(now, |(began, _)| *began);
        let past = now.saturating_duration_since(first);
        let full = u32::try_from(past.as_secs()).unwrap_or(u32::MAX);
        let window = past + SAMPLE * (SAMPLES - 1).saturating_sub(full);
        let total: f64 = self.samples.iter().map(|(_, amount)| amount).sum();
        // The time in which the limit allows for the total, less the time it was counted in.
        let due = Duration::try_from_secs_f64(total / limit).unwrap_or(Duration::MAX);
        due.saturating_sub(window).min(LONGEST)
    }

    /// As [`Rate::spend`], of what is moved only if `may` says so, by the pauses without it and with
    /// it. What is not moved leaves no trace, whatever else is counted at the time.
    fn spend_if(
        &mut self,
        amount: f64,
        limit: f64,
        now: Instant,
        may: impl FnOnce(Duration, Duration) -> bool,
    ) -> Asked {
        let before = self.spend(0.0, limit, now);
        let counted = self.samples.back().copied();
        let after = self.spend(amount, limit, now);
        let given = may(before, after);
        if !given && let (Some(last), Some(counted)) = (self.samples.back_mut(), counted) {
            *last = counted;
        }
        Asked {
            before,
            after,
            given,
        }
    }
}

/// What became of something that was to be moved.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// The pause without it, and with it.
    before: Duration,
    after: Duration,
    given: bool,
}

/// Who counts together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Share {
    key: QuotaKey,
    user: Option<Arc<str>>,
    client: Option<Arc<str>>,
}

/// A share, and what it may have.
#[derive(Debug)]
struct Limited {
    share: Share,
    limit: f64,
}

impl Limited {
    /// What it may have in a whole window.
    fn most(&self) -> f64 {
        self.limit * f64::from(SAMPLES - 1)
    }

    fn pause(&self, pause: Duration, longest: Duration) -> Pause {
        let pause = told(pause).min(longest);
        Pause((!pause.is_zero()).then_some((self.share.key, pause)))
    }
}

/// A pause as clients are told of it: in whole milliseconds.
fn told(pause: Duration) -> Duration {
    let millis = u64::try_from((pause + Duration::from_micros(500)).as_millis());
    Duration::from_millis(millis.unwrap_or(u64::MAX))
}

/// The rates of a node's clients.
#[derive(Debug, Default)]
pub(super) struct Rates {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    rates: HashMap<Share, Rate>,
    /// When room was made last.
    cleared: Option<Instant>,
}

impl Rates {
    fn with<T>(&self, share: &Share, now: Instant, act: impl FnOnce(&mut Rate) -> T) -> T {
        let mut table = self.table.lock();
        if let Some(rate) = table.rates.get_mut(share) {
            return act(rate);
        }
        let mut share = share.clone();
        if !table.has_room(now) {
            (share.user, share.client) = (None, None);
        }
        act(table.rates.entry(share).or_default())
    }
}

impl Table {
    /// Whether there is room for one more. A rate without samples is as good as none; they are
    /// looked for once in a while, whoever asks.
    fn has_room(&mut self, now: Instant) -> bool {
        let due = |last: Instant| now.saturating_duration_since(last) >= SAMPLE;
        if self.rates.len() >= MAX_RATES && self.cleared.is_none_or(due) {
            self.cleared = Some(now);
            self.rates.retain(|_, rate| {
                rate.forget(now);
                !rate.samples.is_empty()
            });
        }
        self.rates.len() < MAX_RATES
    }
}

/// What holding back is counted by.
#[derive(Debug)]
pub(super) struct Counts {
    produce: Histogram,
    fetch: Histogram,
    request: Histogram,
    pace: Histogram,
}

impl Default for Counts {
    fn default() -> Self {
        let of = |reason| histogram!("trilog_throttle_duration_seconds", "dialect" => DIALECT, "reason" => reason);
        Self {
            produce: of("produce"),
            fetch: of("fetch"),
            request: of("request"),
            pace: of("pace"),
        }
    }
}

impl Counts {
    /// A client that rests when it is given too much is held back for so long.
    pub(super) fn paced(&self, pause: Duration) {
        self.pace.record(pause);
    }

    fn of(&self, key: QuotaKey) -> &Histogram {
        match key {
            QuotaKey::Produce => &self.produce,
            QuotaKey::Fetch => &self.fetch,
            QuotaKey::Request | QuotaKey::Unset => &self.request,
        }
    }
}

/// The bounds of a connection's client, as of one version of the map.
#[derive(Debug, Default)]
pub(super) struct Known {
    version: Option<u64>,
    /// Whose they are; everybody's, where there are no quotas.
    whose: Option<Whose>,
    produce: Option<Arc<Limited>>,
    fetch: Option<Arc<Limited>>,
    request: Option<Arc<Limited>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Whose {
    principal: Option<Principal>,
    client: Option<StrBytes>,
}

impl Session {
    /// Looks again for what bounds the client, if anything may have changed.
    fn renew_quotas(&mut self, client: Option<&StrBytes>) {
        let version = *self.kafka.inner.cluster.changes().borrow();
        let principal = self.login.identity().map(|identity| &identity.principal);
        let same = |whose: &Whose| {
            whose.principal.as_ref() == principal && whose.client.as_ref() == client
        };
        let known = &self.quotas;
        if known.version == Some(version) && known.whose.as_ref().is_none_or(same) {
            return;
        }
        let map = self.kafka.inner.cluster.map();
        if map.quotas().is_empty() {
            self.quotas = Known {
                version: Some(version),
                ..Known::default()
            };
            return;
        }
        let user = principal.map_or(ANONYMOUS, |principal| {
            principal.strip_prefix(USER_PREFIX).unwrap_or(principal)
        });
        let name = client.map_or("", |client| client);
        let limited = |key| {
            let found = quota_of(map.quotas(), key, user, name)?;
            let share = Share {
                key,
                user: found.user.as_deref().map(short),
                client: found.client.as_deref().map(short),
            };
            let limit = found.limit.get();
            Some(Arc::new(Limited { share, limit }))
        };
        let kept = client.filter(|name| name.len() <= MAX_NAME);
        self.quotas = Known {
            // A long name is not kept, and looked up each time.
            version: (name.len() <= MAX_NAME).then_some(version),
            whose: Some(Whose {
                principal: principal.cloned(),
                client: kept.map(|client| StrBytes::from_string(client.to_string())),
            }),
            produce: limited(QuotaKey::Produce),
            fetch: limited(QuotaKey::Fetch),
            request: limited(QuotaKey::Request),
        };
    }
}

/// As much of a name as is kept.
fn short(name: &str) -> Arc<str> {
    let end = name.floor_char_boundary(MAX_NAME);
    name.get(..end).unwrap_or(name).into()
}

/// What bounds the client that made a request.
pub(super) struct Bound {
    kafka: Kafka,
    api: &'static Api,
    version: i16,
    /// On what the request or its answer moves.
    bytes: Option<Arc<Limited>>,
    /// On the time it takes.
    time: Option<Arc<Limited>>,
    /// Of a produce, which is counted before anything behind it is read.
    written: Pause,
    /// For how long it has kept a thread busy, in nanoseconds.
    spent: AtomicU64,
}

/// For how long a client is held back, and because of what.
#[derive(Clone, Copy, Debug, Default)]
struct Pause(Option<(QuotaKey, Duration)>);

impl Pause {
    /// The longer of two; of equal ones this.
    fn or(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some((_, this)), Some((_, that))) if that > this => other,
            (None, _) => other,
            _ => self,
        }
    }
}

/// What bounds a request, if anything does.
pub(super) fn of(session: &mut Session, request: &Request) -> Option<Arc<Bound>> {
    session.renew_quotas(request.client_id.as_ref());
    let known = &session.quotas;
    let bytes = match request.api.key {
        ApiKey::Produce => known.produce.clone(),
        ApiKey::Fetch => known.fetch.clone(),
        _ => None,
    };
    let time = known.request.clone();
    let time = time.filter(|_| !is_exempt(request.api.key));
    if bytes.is_none() && time.is_none() {
        return None;
    }
    let client = request.client_id.as_ref().map_or(0, |client| client.len());
    let mut bound = Bound {
        kafka: session.kafka.clone(),
        api: request.api,
        version: request.version,
        bytes,
        time,
        written: Pause::default(),
        spent: AtomicU64::new(0),
    };
    if request.api.key == ApiKey::Produce {
        bound.written = bound.spend_bytes(HEADER_BYTES + client + request.body.len());
        session.pause = bound.written.0.map(|(_, pause)| pause);
    }
    Some(Arc::new(bound))
}

/// What proves who somebody is, and what ends transactions that nobody ends, waits for no quota.
fn is_exempt(key: ApiKey) -> bool {
    matches!(
        key,
        ApiKey::SaslHandshake | ApiKey::SaslAuthenticate | ApiKey::WriteTxnMarkers
    )
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate is an estimate, and no request has 2^53 bytes"
)]
fn number(bytes: usize) -> f64 {
    bytes as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is above zero, and such a conversion ends at the largest number"
)]
fn whole(bytes: f64) -> usize {
    bytes as usize
}

impl Bound {
    /// What a fetch is to read, if it can be less than a batch: what the bound allows for a sample.
    /// Answers that are as large as the window would have to wait until it is empty.
    pub(super) fn at_once(&self) -> usize {
        let limit = self.bytes.as_ref().map(|limited| limited.limit);
        limit.map_or(usize::MAX, whole)
    }

    /// Counts the time for which some work keeps its thread busy.
    pub(super) async fn timed<T>(&self, work: impl Future<Output = T>) -> T {
        if self.time.is_none() {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|ctx| {
            let since = Instant::now();
            let polled = work.as_mut().poll(ctx);
            let spent = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.spent.fetch_add(spent, Ordering::Relaxed);
            polled
        })
        .await
    }

    /// Counts what becomes of the request, and has its client wait if that is too much.
    pub(super) fn hold(self: Arc<Self>, begun: Begun) -> Begun {
        match begun {
            Begun::Done(outcome) => Begun::Done(self.judge(outcome)),
            Begun::Later(later) => Begun::Later(self.judge_later(later)),
            Begun::Alone(later) => Begun::Alone(self.judge_later(later)),
        }
    }

    fn judge_later(
        self: Arc<Self>,
        later: BoxFuture<'static, Outcome>,
    ) -> BoxFuture<'static, Outcome> {
        async move {
            let outcome = self.timed(later).await;
            self.judge(outcome)
        }
        .boxed()
    }

    fn judge(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Answer(answer) => {
                let moved = match self.api.key {
                    ApiKey::Fetch => self.spend_bytes(answer.len()),
                    _ => self.written,
                };
                let pause = moved.or(self.spend_time());
                self.held(Outcome::Answer(answer), pause)
            }
            // Whoever wants no answer is held to no time, as at a broker.
            Outcome::Silence => self.held(Outcome::Silence, self.written),
            // A fetch that has read was judged before it told its session.
            judged @ (Outcome::Records(..) | Outcome::Throttled { .. }) => judged,
            ended @ (Outcome::Last(..) | Outcome::Close(_)) => ended,
        }
    }

    /// Counts what a fetch has read, before its reader has it. A reader that is over its bound gets
    /// nothing now, as at a broker, and what it does not get does not count; but where a single
    /// batch is more than the bound allows for at once, it would never get that: such a one is given
    /// to whoever is not over already.
    pub(super) fn judge_fetch(&self, read: usize) -> Judged {
        let by_time = self.spend_time();
        let Some(limited) = &self.bytes else {
            let withheld = by_time.0.is_some();
            return Judged {
                pause: by_time,
                withheld,
            };
        };
        let (rates, now) = (&self.kafka.inner.rates, Instant::now());
        let fits = number(read) <= limited.most();
        let may = |before, after| {
            let within = told(after).is_zero() || !fits && told(before).is_zero();
            by_time.0.is_none() && within
        };
        let asked = rates.with(&limited.share, now, |rate| {
            rate.spend_if(number(read), limited.limit, now, may)
        });
        // Until it would be given.
        let pause = if asked.given || fits {
            asked.after
        } else {
            asked.before
        };
        Judged {
            pause: limited.pause(pause, LONGEST).or(by_time),
            withheld: !asked.given,
        }
    }

    /// The answer of a fetch that was judged.
    pub(super) fn fetched(&self, judged: &Judged, outcome: Outcome) -> Outcome {
        self.held(outcome, judged.pause)
    }

    fn spend_bytes(&self, moved: usize) -> Pause {
        let bytes = self.bytes.as_ref();
        bytes.map_or_else(Pause::default, |limited| {
            self.spend(limited, number(moved), LONGEST)
        })
    }

    fn spend_time(&self) -> Pause {
        self.time.as_ref().map_or_else(Pause::default, |limited| {
            // What was counted once is not counted again.
            let spent = Duration::from_nanos(self.spent.swap(0, Ordering::Relaxed));
            // In percent of a thread, for as many seconds.
            self.spend(limited, spent.as_secs_f64() * 100.0, LONGEST_FOR_TIME)
        })
    }

    fn spend(&self, limited: &Limited, amount: f64, longest: Duration) -> Pause {
        let (rates, now) = (&self.kafka.inner.rates, Instant::now());
        let pause = rates.with(&limited.share, now, |rate| {
            rate.spend(amount, limited.limit, now)
        });
        limited.pause(pause, longest)
    }

    fn held(&self, outcome: Outcome, pause: Pause) -> Outcome {
        let Some((key, pause)) = pause.0 else {
            return outcome;
        };
        let (answer, held) = match outcome {
            Outcome::Answer(answer) => (answer, Held::default()),
            Outcome::Records(answer, held) => (answer, held),
            Outcome::Silence => (Answer::default(), Held::default()),
            other @ (Outcome::Throttled { .. } | Outcome::Last(..) | Outcome::Close(_)) => {
                return other;
            }
        };
        self.kafka.inner.throttled.of(key).record(pause);
        let millis = i32::try_from(pause.as_millis()).unwrap_or(i32::MAX);
        Outcome::Throttled {
            answer: answer.throttled(self.api, self.version, millis),
            held,
            pause,
        }
    }
}

/// What a fetch may have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judged {
    pause: Pause,
    /// Nothing, for now.
    pub(super) withheld: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: f64 = 1_000_000.0;

    /// Moves `chunk` bytes again and again, held back as told; what was moved in `seconds`.
    fn moved(chunk: f64, seconds: u32) -> f64 {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let (mut now, mut moved) = (start, 0.0);
        while now - start < Duration::from_secs(seconds.into()) {
            moved += chunk;
            // Each takes a millisecond besides.
            now += rate.spend(chunk, LIMIT, now) + Duration::from_millis(1);
        }
        moved
    }

    #[test]
    fn a_client_that_has_more_moves_its_limit_and_a_window_at_the_start() {
        for chunk in [1_000.0, 50_000.0, 400_000.0, 3_000_000.0] {
            for seconds in [30, 300, 3_000] {
                let moved = moved(chunk, seconds);
                let fair = LIMIT * f64::from(seconds);
                let window = LIMIT * f64::from(SAMPLES);
                assert!(moved >= fair * 0.9, "{chunk}: {moved} in {seconds} s");
                let most = fair * 1.12 + window + chunk;
                assert!(moved <= most, "{chunk}: {moved} in {seconds} s");
            }
        }
    }

    #[test]
    fn the_pause_is_what_kafka_computes() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let millis = Duration::from_millis;
        let mut rate = Rate::default();
        // A window of ten seconds is there from the start.
        assert_eq!(rate.spend(10.0 * LIMIT, LIMIT, at(0)), Duration::ZERO);
        assert_eq!(rate.spend(LIMIT, LIMIT, at(0)), millis(1_000));
        // Half of a second into the next sample the window is half a second longer.
        assert_eq!(rate.spend(0.0, LIMIT, at(1_500)), millis(500));
        assert_eq!(rate.spend(0.0, LIMIT, at(2_000)), millis(1_000));
        // What is not moved is told of, and not counted.
        let asked = rate.spend_if(LIMIT, LIMIT, at(2_000), |_, _| false);
        assert_eq!((asked.before, asked.after), (millis(1_000), millis(2_000)));
        assert_eq!(rate.spend(0.0, LIMIT, at(2_000)), millis(1_000));
        // All but what came after the first sample is forgotten: 20 s of bytes in 10.5.
        let later = rate.spend(20.0 * LIMIT, LIMIT, at(11_000));
        assert_eq!(later, millis(9_500));
        assert_eq!(rate.spend(0.0, LIMIT, at(60_000)), Duration::ZERO);
        assert_eq!(rate.spend(1e30, 1e-9, at(60_000)), LONGEST);
    }

    #[test]
    fn what_is_not_moved_leaves_no_trace_in_any_sample() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut rate = Rate::default();
        rate.spend(LIMIT, LIMIT, at(0));
        // At the end of a sample, and at the beginning of the next one.
        for millis in [999, 1_000, 2_100] {
            let asked = rate.spend_if(90.0 * LIMIT, LIMIT, at(millis), |_, _| false);
            assert!(asked.after > Duration::from_mins(1), "{asked:?}");
        }
        assert!(rate.samples.iter().all(|(_, amount)| *amount >= 0.0));
        // Once all before it is forgotten, nothing is owed.
        for millis in [11_500, 13_000] {
            assert_eq!(rate.spend(0.0, LIMIT, at(millis)), Duration::ZERO);
        }
        let asked = rate.spend_if(90.0 * LIMIT, LIMIT, at(13_000), |before, _| {
            before.is_zero()
        });
        assert!(asked.given, "{asked:?}");
        assert_eq!(rate.spend(0.0, LIMIT, at(13_000)), asked.after);
    }

    fn share(nth: usize) -> Share {
        Share {
            key: QuotaKey::Fetch,
            user: None,
            client: Some(short(&format!("client-{nth}"))),
        }
    }

    #[test]
    fn clients_beyond_the_bound_share_one_rate_and_those_that_rest_make_room() {
        let (rates, start) = (Rates::default(), Instant::now());
        let spend = |nth, now| {
            rates.with(&share(nth), now, |rate| {
                rate.spend(10.0 * LIMIT, LIMIT, now)
            })
        };
        for nth in 0..MAX_RATES {
            assert_eq!(spend(nth, start), Duration::ZERO);
        }
        assert_eq!(spend(MAX_RATES, start), Duration::ZERO);
        assert_eq!(spend(MAX_RATES + 1, start), Duration::from_secs(10));
        assert_eq!(spend(7, start), Duration::from_secs(10), "it has its own");
        assert_eq!(rates.table.lock().rates.len(), MAX_RATES + 1);
        let later = start + SAMPLE * SAMPLES;
        assert_eq!(spend(MAX_RATES + 2, later), Duration::ZERO);
        assert_eq!(rates.table.lock().rates.len(), 1);
    }

    #[test]
    fn of_a_long_name_the_beginning_is_kept() {
        let long = "é".repeat(40_000);
        assert_eq!(short(&long).len(), MAX_NAME);
        assert_eq!(&*short("app"), "app");
    }

    #[test]
    fn of_two_pauses_the_longer_one_counts() {
        let pause = |key, millis| Pause(Some((key, Duration::from_millis(millis))));
        let rows = [
            (
                pause(QuotaKey::Produce, 2),
                pause(QuotaKey::Request, 1),
                Some((QuotaKey::Produce, 2)),
            ),
            (
                pause(QuotaKey::Produce, 1),
                pause(QuotaKey::Request, 2),
                Some((QuotaKey::Request, 2)),
            ),
            (
                Pause(None),
                pause(QuotaKey::Request, 2),
                Some((QuotaKey::Request, 2)),
            ),
            (
                pause(QuotaKey::Fetch, 2),
                Pause(None),
                Some((QuotaKey::Fetch, 2)),
            ),
            (Pause(None), Pause(None), None),
        ];
        for (this, that, expected) in rows {
            let expected = expected.map(|(key, millis)| (key, Duration::from_millis(millis)));
            assert_eq!(this.or(that).0, expected);
        }
    }
}
