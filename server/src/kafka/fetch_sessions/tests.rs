//! Sessions against readers that are told everything, in every order of events; their bounds; and
//! those who do not keep to the rules.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trilog_wire::kafka::{EpochEnd, FetchedBatch, PREFIX_BYTES, StrBytes};

use super::*;

const TOPICS: i32 = 4;
const PARTITIONS: i32 = 5;
const SEEDS: u64 = 300;
const STEPS: usize = 80;

type Key = (i32, i32);

fn topic(number: i32, by_id: bool) -> TopicRef {
    if by_id {
        let id = u128::from(number.unsigned_abs());
        return TopicRef::Id(trilog_wire::kafka::Uuid::from_u128(id));
    }
    TopicRef::Name(StrBytes::from_string(format!("topic-{number}")))
}

fn part(key: Key, offset: i64, by_id: bool) -> Part<()> {
    let from = FetchPartition {
        index: key.1,
        leader_epoch: -1,
        offset,
        last_epoch: -1,
        max_bytes: 1,
    };
    Part::new(topic(key.0, by_id), from, ())
}

fn parts(count: i32) -> Vec<Part<()>> {
    (0..count).map(|index| part((0, index), 0, false)).collect()
}

/// What there is to know of a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    high_watermark: i64,
    log_start: i64,
    error_code: i16,
    diverging: bool,
    preferred: Option<i32>,
}

impl Truth {
    /// What a reader at `offset` is answered when it asks for everything.
    fn read(&self, topic: &TopicRef, index: i32, offset: i64) -> FetchedPartition {
        let mut answered = FetchedPartition::refused(topic.clone(), index, self.error_code);
        if self.error_code != 0 {
            return answered;
        }
        answered.high_watermark = self.high_watermark;
        answered.log_start = self.log_start;
        answered.preferred_replica = self.preferred;
        answered.diverging = self.diverging.then_some(EpochEnd {
            epoch: 1,
            end_offset: 1,
        });
        if self.preferred.is_none() && !self.diverging && offset < self.high_watermark {
            answered.batches.push(FetchedBatch {
                prefix: [0; PREFIX_BYTES],
                body: Bytes::from_static(b"x"),
            });
        }
        answered
    }

    fn change(&mut self, rng: &mut SmallRng) {
        match rng.random_range(0..8) {
            0 | 1 => self.high_watermark += rng.random_range(1..3),
            2 => self.log_start = rng.random_range(0..=self.high_watermark),
            3 => self.error_code = rng.random_range(1..7),
            4 | 5 => self.error_code = 0,
            6 => self.diverging = rng.random_bool(0.3),
            _ => self.preferred = rng.random_bool(0.3).then_some(2),
        }
    }
}

/// A consumer, what it believes, and the order in which a broker would read for it.
struct Consumer {
    id: i32,
    epoch: i32,
    by_id: bool,
    offsets: BTreeMap<Key, i64>,
    believed: BTreeMap<Key, (i64, i64, i16)>,
    order: Vec<Key>,
}

impl Consumer {
    fn hear(&mut self, answered: &[FetchedPartition]) -> Vec<Key> {
        let name = |topic: &TopicRef| {
            let number = (0..TOPICS).find(|number| *topic == self::topic(*number, self.by_id));
            number.unwrap()
        };
        let mut heard = Vec::new();
        for one in answered {
            let key = (name(&one.topic), one.index);
            heard.push(key);
            let says = (one.high_watermark, one.log_start, one.error_code);
            self.believed.insert(key, says);
            if !one.batches.is_empty() {
                *self.offsets.get_mut(&key).unwrap() += 1;
                self.order.retain(|other| *other != key);
                self.order.push(key);
            }
        }
        heard
    }
}

/// One history: after every answer the consumer believes what a full answer would have told it.
fn history(seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let rng = &mut rng;
    let sessions = FetchSessions::<()>::new(10, 1 << 20, Entropy::from_seed(seed));
    let owner = sessions.owner();
    let now = Instant::now();
    let mut truth: BTreeMap<Key, Truth> = BTreeMap::new();
    for topic in 0..TOPICS {
        for index in 0..PARTITIONS {
            truth.insert((topic, index), Truth::default());
        }
    }
    let by_id = rng.random_bool(0.5);
    let first: Vec<Key> = truth
        .keys()
        .copied()
        .filter(|_| rng.random_bool(0.5))
        .collect();
    let asked: Vec<_> = first.iter().map(|key| part(*key, 0, by_id)).collect();
    let read = asked.iter().zip(&first);
    let told: Vec<_> = read
        .map(|(part, key)| truth[key].read(&part.topic, part.from.index, 0))
        .collect();
    let id = sessions.create(owner.number(), by_id, asked, &told, now);
    let mut consumer = Consumer {
        id,
        epoch: 1,
        by_id,
        offsets: first.iter().map(|key| (*key, 0)).collect(),
        believed: BTreeMap::new(),
        order: first.clone(),
    };
    assert!(id > 0, "seed {seed}");
    // Nobody moves on the first answer: its order is the request's.
    let order = consumer.order.clone();
    consumer.hear(&told);
    consumer.order = order;
    for step in 0..STEPS {
        for _ in 0..rng.random_range(0..4) {
            let key = (rng.random_range(0..TOPICS), rng.random_range(0..PARTITIONS));
            truth.get_mut(&key).unwrap().change(rng);
        }
        turn(&owner, &sessions, &mut consumer, &truth, rng);
        if consumer.id == 0 {
            return;
        }
        for (key, offset) in &consumer.offsets {
            let whole = truth[key].read(&topic(key.0, by_id), key.1, *offset);
            let says = (whole.high_watermark, whole.log_start, whole.error_code);
            assert_eq!(
                consumer.believed[key], says,
                "seed {seed} step {step} {key:?}"
            );
        }
    }
}

/// One request and its answer.
fn turn(
    owner: &Owner<()>,
    sessions: &FetchSessions<()>,
    consumer: &mut Consumer,
    truth: &BTreeMap<Key, Truth>,
    rng: &mut SmallRng,
) {
    let by_id = consumer.by_id;
    let (mut changed, mut forgotten) = (Vec::new(), Vec::new());
    // Where it read something it says so; the rest it leaves alone, takes up or gives up.
    for key in truth.keys().copied() {
        match consumer.offsets.get(&key).copied() {
            Some(_) if rng.random_bool(0.05) => {
                forgotten.push((topic(key.0, by_id), key.1));
                consumer.offsets.remove(&key);
                consumer.believed.remove(&key);
                consumer.order.retain(|other| *other != key);
            }
            Some(offset) => changed.push(part(key, offset, by_id)),
            None if rng.random_bool(0.1) => {
                changed.push(part(key, 0, by_id));
                consumer.offsets.insert(key, 0);
                consumer.order.push(key);
            }
            None => {}
        }
    }
    let found = owner.find(consumer.id).unwrap();
    let mut session = found.try_lock().unwrap();
    let (step, now) = ((consumer.epoch, by_id), Instant::now());
    sessions
        .go_on(&mut session, step, changed, forgotten, now)
        .unwrap();
    consumer.epoch += 1;
    if session.parts.len() == 0 {
        assert!(owner.find(consumer.id).is_none());
        consumer.id = 0;
        return;
    }
    let order: Vec<TopicRef> = consumer
        .order
        .iter()
        .map(|key| topic(key.0, by_id))
        .collect();
    let order = order.iter().zip(consumer.order.iter().map(|key| key.1));
    assert!(
        session
            .parts
            .iter()
            .map(|part| (&part.topic, part.from.index))
            .eq(order)
    );
    let room = rng.random_range(1..4);
    let mut answered = Vec::new();
    let mut given = 0;
    for (part, key) in session.parts.iter().zip(&consumer.order) {
        let mut read = truth[key].read(&part.topic, part.from.index, part.from.offset);
        if given == room {
            // As when the answer is full.
            read.batches.clear();
        }
        given += read.batches.len();
        if part.is_news(&read) {
            answered.push(read);
        }
    }
    session.tell(&answered);
    consumer.hear(&answered);
}

#[test]
fn a_consumer_is_told_what_a_full_answer_would_have_told_it() {
    for seed in 0..SEEDS {
        history(seed);
    }
}

#[test]
fn what_is_not_new_is_not_told_again() {
    let old = Truth {
        high_watermark: 5,
        ..Truth::default()
    };
    let names = [part((0, 0), 5, false)];
    let read = |truth: Truth, offset| truth.read(&names[0].topic, 0, offset);
    let mut known = part((0, 0), 5, false);
    assert!(known.is_news(&read(old, 5)), "nothing was told yet");
    known.told = Some(Told::of(&read(old, 5)));
    assert!(!known.is_news(&read(old, 5)));
    assert!(known.is_news(&read(old, 4)), "records");
    let changes: [fn(&mut Truth); 5] = [
        |truth| truth.high_watermark = 6,
        |truth| truth.log_start = 1,
        |truth| truth.error_code = 6,
        |truth| truth.diverging = true,
        |truth| truth.preferred = Some(3),
    ];
    for change in changes {
        let mut changed = old;
        change(&mut changed);
        let answered = read(changed, 6);
        assert!(known.is_news(&answered), "{changed:?}");
        known.told = Some(Told::of(&answered));
        let lasts = changed.error_code != 0 || changed.diverging || changed.preferred.is_some();
        assert_eq!(known.is_news(&read(changed, 6)), lasts, "{changed:?}");
        known.told = Some(Told::of(&read(old, 5)));
    }
    // What was an error is told when it is none any more, though nothing else has changed.
    let mut failed = read(old, 5);
    failed.error_code = 6;
    known.told = Some(Told::of(&failed));
    assert!(known.is_news(&read(old, 5)));
}

/// A session of so many partitions, made then.
fn make(sessions: &FetchSessions<()>, owner: &Owner<()>, count: i32, now: Instant) -> i32 {
    let parts = parts(count);
    let read = |part: &Part<()>| Truth::default().read(&part.topic, part.from.index, 0);
    let told: Vec<_> = parts.iter().map(read).collect();
    sessions.create(owner.number(), false, parts, &told, now)
}

fn next(
    sessions: &FetchSessions<()>,
    owner: &Owner<()>,
    (id, epoch): (i32, i32),
    changed: Vec<Part<()>>,
    now: Instant,
) -> Result<(), ErrorCode> {
    let found = owner.find(id).ok_or(ErrorCode::FetchSessionIdNotFound)?;
    let mut session = found.try_lock().unwrap();
    sessions.go_on(&mut session, (epoch, false), changed, [], now)
}

#[test]
fn a_session_takes_the_place_of_another_as_at_a_broker() {
    let sessions = FetchSessions::<()>::new(2, 1 << 20, Entropy::from_seed(1));
    let owner = sessions.owner();
    let begin = Instant::now();
    let later = |seconds| begin + Duration::from_secs(seconds);
    let small = make(&sessions, &owner, 2, begin);
    let large = make(&sessions, &owner, 5, begin);
    assert!(small > 0 && large > 0 && small != large);
    // Both are new: nobody goes, however large it is that comes.
    assert_eq!(make(&sessions, &owner, 50, later(60)), 0);
    // Both are old by now and were used since: the one with fewer partitions goes, for one that
    // has more.
    for (id, epoch) in [(small, 1), (large, 1)] {
        assert_eq!(
            next(&sessions, &owner, (id, epoch), Vec::new(), later(121)),
            Ok(())
        );
    }
    assert_eq!(
        make(&sessions, &owner, 2, later(122)),
        0,
        "as many are not more"
    );
    let third = make(&sessions, &owner, 3, later(122));
    assert!(third > 0);
    assert!(owner.find(small).is_none() && owner.find(large).is_some());
    // The large one is not used for long: it goes for anybody.
    let fourth = make(&sessions, &owner, 1, later(242));
    assert!(fourth > 0);
    assert!(owner.find(large).is_none() && owner.find(third).is_some());
    // One that ends makes room.
    owner.close(third);
    assert!(make(&sessions, &owner, 1, later(242)) > 0);
}

#[test]
fn no_history_of_sessions_holds_more_than_the_bounds() {
    const MEMORY: usize = 256 << 10;
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let sessions = FetchSessions::<()>::new(8, MEMORY, Entropy::from_seed(seed));
        let mut owners: Vec<Owner<()>> = (0..3).map(|_| sessions.owner()).collect();
        let mut made: Vec<(i32, usize, i32)> = Vec::new();
        let mut reading = Vec::new();
        let mut now = Instant::now();
        let mut refused = 0;
        for step in 0..400 {
            now += Duration::from_secs(rng.random_range(0..40));
            let who = rng.random_range(0..owners.len());
            match rng.random_range(0..10) {
                0..4 => {
                    let id = make(&sessions, &owners[who], rng.random_range(0..120), now);
                    refused += usize::from(id == 0);
                    made.push((id, who, 1));
                }
                4..8 if !made.is_empty() => {
                    let at = rng.random_range(0..made.len());
                    let (id, who, epoch) = made[at];
                    let base = rng.random_range(0..500);
                    let more = (0..rng.random_range(0..60)).map(|i| part((1, base + i), 0, false));
                    let more: Vec<_> = more.collect();
                    if next(&sessions, &owners[who], (id, epoch), more, now).is_ok() {
                        made[at].2 += 1;
                    }
                }
                8 if !made.is_empty() => {
                    // Somebody reads for a long while, whatever becomes of the session.
                    let (id, who, _) = made[rng.random_range(0..made.len())];
                    reading.extend(owners[who].find(id));
                    if reading.len() > 3 {
                        reading.remove(0);
                    }
                }
                _ => {
                    owners[who] = sessions.owner();
                    made.retain(|(_, other, _)| *other != who);
                }
            }
            let (bytes, count) = sessions.held();
            assert!(
                bytes <= MEMORY + MEMORY / SHARE,
                "seed {seed} step {step}: {bytes}"
            );
            assert!(count <= 8, "seed {seed} step {step}: {count}");
        }
        assert!(refused > 0, "seed {seed}: the bounds were never met");
        drop((owners, reading));
        assert_eq!(sessions.held(), (0, 0), "seed {seed}");
    }
}

#[test]
fn who_does_not_keep_to_the_rules_gets_the_error_of_a_broker() {
    let sessions = FetchSessions::<()>::new(10, 1 << 20, Entropy::from_seed(1));
    let (owner, other) = (sessions.owner(), sessions.owner());
    let now = Instant::now();
    let id = make(&sessions, &owner, 2, now);
    let step = |owner, id, epoch| next(&sessions, owner, (id, epoch), Vec::new(), now);
    let (unknown, wrong) = (
        Err(ErrorCode::FetchSessionIdNotFound),
        Err(ErrorCode::InvalidFetchSessionEpoch),
    );
    for (id, epoch) in [
        (0, 1),
        (-1, 1),
        (i32::MIN, 1),
        (id ^ 1, 1),
        (i32::MAX, i32::MAX),
    ] {
        assert_eq!(step(&owner, id, epoch), unknown, "{id} {epoch}");
    }
    for epoch in [2, i32::MAX, i32::MIN, -2] {
        assert_eq!(step(&owner, id, epoch), wrong, "{epoch}");
    }
    // It is somebody else's, who can neither use nor end it.
    assert_eq!(step(&other, id, 1), unknown);
    other.close(id);
    assert_eq!(step(&owner, id, 1), Ok(()));
    assert_eq!(step(&owner, id, 1), wrong, "the same request again");
    assert_eq!(step(&owner, id, 2), Ok(()));
    let found = owner.find(id).unwrap();
    let mut session = found.try_lock().unwrap();
    let ids = session.advance(3, true, [], []);
    assert_eq!(ids, Err(ErrorCode::FetchSessionTopicIdError));
    // Epochs begin again after the last.
    session.epoch = i32::MAX;
    assert_eq!(session.advance(i32::MAX, false, [], []), Ok(()));
    assert_eq!(session.epoch, 1);
    // What it never read can be forgotten, and what was, twice.
    let gone = [
        (topic(0, false), 1),
        (topic(0, false), 1),
        (topic(3, false), 7),
    ];
    assert_eq!(session.advance(1, false, [], gone), Ok(()));
    assert_eq!(session.parts.len(), 1);
    // More than one session may have ends it.
    let many = parts(i32::try_from(session.most).unwrap() + 1);
    let too_many = session.advance(2, false, many, []);
    assert_eq!(too_many, Err(ErrorCode::FetchSessionIdNotFound));
    drop(session);
    drop(owner);
    assert_eq!(sessions.held().1, 0, "it ends with its connection");
}

#[test]
fn a_session_that_outgrows_its_share_keeps_nothing() {
    let sessions = FetchSessions::<()>::new(10, 1 << 20, Entropy::from_seed(1));
    let owner = sessions.owner();
    let now = Instant::now();
    let gone = Err(ErrorCode::FetchSessionIdNotFound);
    let id = make(&sessions, &owner, 1, now);
    // Somebody waits for it already.
    let found = owner.find(id).unwrap();
    let most = found.try_lock().unwrap().most;
    let many = parts(i32::try_from(most).unwrap() + 1);
    assert_eq!(next(&sessions, &owner, (id, 1), many, now), gone);
    assert!(owner.find(id).is_none());
    let mut session = found.try_lock().unwrap();
    assert_eq!(session.parts.len(), 0);
    assert_eq!(sessions.held(), (SESSION_COST, 0));
    // Whose turn comes then gets no further.
    let half = parts(i32::try_from(most / 2).unwrap());
    let next = sessions.go_on(&mut session, (2, false), half, [], now);
    assert_eq!((next, session.parts.len()), (gone, 0));
    drop(session);
    drop(found);
    assert_eq!(sessions.held(), (0, 0));
}

#[test]
fn a_session_whose_place_is_taken_is_not_found_by_who_waits_for_it() {
    let sessions = FetchSessions::<()>::new(10, 1 << 20, Entropy::from_seed(1));
    let owner = sessions.owner();
    let now = Instant::now();
    let id = make(&sessions, &owner, 3, now);
    let found = owner.find(id).unwrap();
    owner.close(id);
    let mut session = found.try_lock().unwrap();
    let next = sessions.go_on(&mut session, (1, false), parts(50), [], now);
    assert_eq!(next, Err(ErrorCode::FetchSessionIdNotFound));
    assert_eq!(sessions.held(), (SESSION_COST, 0));
}

#[test]
fn who_names_a_partition_twice_or_too_many_gets_no_session() {
    let sessions = FetchSessions::<()>::new(10, 1 << 20, Entropy::from_seed(1));
    let owner = sessions.owner();
    let now = Instant::now();
    let twice = vec![part((0, 0), 0, false), part((0, 0), 1, false)];
    let read = |part: &Part<()>| Truth::default().read(&part.topic, part.from.index, 0);
    let told: Vec<_> = twice.iter().map(read).collect();
    assert_eq!(sessions.create(owner.number(), false, twice, &told, now), 0);
    assert_eq!(make(&sessions, &owner, 1 << 12, now), 0);
    assert_eq!(sessions.held(), (0, 0));
}

#[test]
fn a_session_keeps_nothing_of_the_requests_it_came_with() {
    let request = Bytes::from(b"orders".to_vec());
    let name = StrBytes::from_utf8(request.clone()).unwrap();
    let mut parts = Parts::new();
    let named = |index| {
        let mut named = part((0, index), 0, false);
        named.topic = TopicRef::Name(name.clone());
        named
    };
    assert!(parts.set([named(0), named(1)], 10));
    drop(name);
    let kept: Vec<&TopicRef> = parts.iter().map(|part| &part.topic).collect();
    let [TopicRef::Name(first), TopicRef::Name(second)] = kept[..] else {
        panic!("{kept:?}");
    };
    assert_ne!(first.as_ptr(), request.as_ptr());
    assert_eq!(first.as_ptr(), second.as_ptr(), "one copy for both");
    assert!(request.is_unique());
}
