//! What a pass leaves alone: what lies beyond its plan, and the time and room of others.

use super::*;

#[test]
fn a_pass_over_small_entries_takes_what_its_rate_says() {
    block_on(async {
        let config = StoreConfig {
            compaction_bytes_per_second: 1 << 20,
            ..small()
        };
        let (store, _) = open(&disk(9), config).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        for index in 0..1_000 {
            let id = EntryId::new(1, index);
            let value = [(3, Some(index))];
            append(
                &log,
                vec![keyed(id, Compression::None, &value, Flags::Plain)],
            )
            .await;
            log.commit(LogIndex(index));
        }
        store.checkpoint().await.unwrap();
        raise_x(&log).await;
        let begun = tokio::time::Instant::now();
        clean(&log, 0).await;
        let took = begun.elapsed();
        let bytes = u32::try_from(store.stats().compacted_bytes).unwrap();
        let due = Duration::from_secs(1) * bytes / (1 << 20);
        assert!(took >= due / 2 && took <= due * 2, "{took:?} for {due:?}");
    });
}

#[test]
fn what_a_pass_did_is_in_a_checkpoint_even_if_a_cut_came_between() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(11);
        let disk = disk(11);
        let (store, log, _) = written(&disk, small(), rng).await;
        let other = store.create_group(GroupId(8), REPLICA).await.unwrap();
        let mut entry = entry(EntryId::new(1, 0), 1, 100);
        entry.header.group = other.group();
        append(&other, vec![entry]).await;
        disk.hold(Path::new("/data/wal"));
        let cut = other.truncate_after(None);
        let waiting = timeout(Duration::from_secs(1), cut).await;
        assert!(waiting.is_err(), "the cut is durable");
        clean(&log, 0).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(log.cleanness().clean, Offset(0), "no checkpoint passes it");
        disk.let_go();
        let end = clean_end(&log);
        eventually("a checkpoint has it", || log.cleanness().clean == end).await;
    });
}

#[test]
fn a_pass_says_which_markers_could_go_and_that_a_short_log_has_to_wait() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(12);
        let (store, _) = open(&disk(12), small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        let mut given = Given::default();
        let deleted = [(KEYS, Some(1)), (KEYS, None)];
        given.note(&deleted);
        let id = EntryId::new(1, 0);
        append(
            &log,
            vec![keyed(id, Compression::None, &deleted, Flags::Plain)],
        )
        .await;
        fill(&log, rng, &mut given, true).await;
        store.checkpoint().await.unwrap();
        raise_x(&log).await;
        let (_late, late) = beginner(&disk(312)).await;
        let x = BATCHES - 10;
        let start = descriptor(&log, x, 0).await;
        late.set_log_start(start).await.unwrap();
        follow(&late, read_all(&log, x + 1, 1 << 20).await).await;
        late.commit(log.state().last.unwrap().index);
        let short = late
            .clean(plan(late.state().next_offset, 0), AbortedSet::default())
            .await;
        assert!(matches!(short, Err(CleanError::Short)), "{short:?}");
        clean(&log, 0).await;
        copy_all(&log, &late).await;
        let all = clean_end(&log).get();
        let first = clean(&late, all).await;
        assert_eq!(first.markers_before, Offset(0), "it knew nothing");
        assert!(first.markers > 0);
        let second = clean(&late, all).await;
        assert_eq!(second.markers_before, clean_end(&late));
        assert_eq!(second.markers, 0);
        let left = records(&late, Offset(0)).await;
        assert_eq!(view(&left), view(&given.records));
    });
}

#[test]
fn a_disk_with_little_room_is_left_to_others_and_not_read_again_at_once() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(13);
        let disk = disk(13);
        let (store, log, given) = written(&disk, small(), rng).await;
        let before = records(&log, Offset(0)).await;
        let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
        let config = small();
        let others = config.segment_bytes + config.wal_file_bytes;
        disk.configure(|sim| sim.quota_bytes = Some(used + others + 1_000));
        let end = log.state().next_offset;
        let first = log.clean(plan(end, 0), AbortedSet::default()).await;
        assert!(matches!(first, Err(CleanError::Full)), "{first:?}");
        assert!(!store.pressure().borrow().any(), "nobody else lacked room");
        assert_eq!(clean_end(&log), Offset(0));
        assert_eq!(records(&log, Offset(0)).await, before);
        let read = store.stats().compacted_bytes;
        let second = log.clean(plan(end, 0), AbortedSet::default()).await;
        assert!(matches!(second, Err(CleanError::Full)), "{second:?}");
        assert_eq!(store.stats().compacted_bytes, read, "nothing is read");
        // Room for the smaller segments alone: these free some.
        disk.configure(|sim| sim.quota_bytes = Some(used + others + 17_000));
        tokio::time::sleep(Duration::from_mins(2)).await;
        let third = log.clean(plan(end, 0), AbortedSet::default()).await;
        assert!(store.stats().compacted_bytes > read, "{third:?}");
        disk.configure(|sim| sim.quota_bytes = None);
        tokio::time::sleep(Duration::from_mins(10)).await;
        clean(&log, 0).await;
        let left = records(&log, Offset(0)).await;
        assert_eq!(left, given.newest(clean_end(&log)));
    });
}

/// A log of random records in many segments, all of them filled, without an X.
async fn unbounded(seed: u64, config: StoreConfig) -> (SimDisk, Store, GroupLog, Given) {
    let disk = disk(seed);
    let (store, _) = open(&disk, config).await;
    let log = store.create_group(GROUP, REPLICA).await.unwrap();
    let mut given = Given::default();
    fill(&log, &mut SmallRng::seed_from_u64(seed), &mut given, true).await;
    store.checkpoint().await.unwrap();
    (disk, store, log, given)
}

#[test]
fn nothing_beyond_x_is_touched() {
    block_on(async {
        let (_disk, _store, log, given) = unbounded(14, small()).await;
        let none = clean(&log, 0).await;
        assert_eq!(none.removed, 0, "there is no X");
        let x = descriptor(&log, BATCHES / 2, 0).await;
        let beyond = x.next_offset;
        log.set_log_start(x).await.unwrap();
        let report = clean(&log, 0).await;
        assert!(report.removed > 0);
        let end = clean_end(&log);
        assert!(Offset(0) < end && end <= beyond, "{end} of {beyond}");
        let left = records(&log, Offset(0)).await;
        assert_eq!(left, given.newest(end));
        let index = LogIndex(BATCHES / 2 + 1);
        let frames = log.read(index, index.next(), 1).await.unwrap();
        assert_eq!(
            frames[0].header.id().index,
            index,
            "consensus may ask for it"
        );
    });
}

#[test]
fn a_pass_ends_where_its_plan_does() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(15);
        let config = StoreConfig {
            segment_bytes: 6_000,
            ..small()
        };
        let (_store, log, given) = written(&disk(15), config, rng).await;
        let links = log.0.state.lock().segments.links.clone();
        let by_time = |time: Timestamp| CleanPlan {
            appended_by: time,
            ..plan(log.state().next_offset, 0)
        };
        let early = Timestamp(links[0].extent.last_time.nanos() - 1);
        log.clean(by_time(early), AbortedSet::default())
            .await
            .unwrap();
        assert_eq!(clean_end(&log), Offset(0), "all of it is too young");
        // A record has to follow what is cleaned: the last one of a log is never removed.
        let end = links[1].extent.tip.next_offset;
        log.clean(plan(end, 0), AbortedSet::default())
            .await
            .unwrap();
        assert_eq!(clean_end(&log), links[1].segment.header.base_offset);
        log.clean(plan(end.next(), 0), AbortedSet::default())
            .await
            .unwrap();
        assert_eq!(clean_end(&log), end);
        assert_eq!(records(&log, Offset(0)).await, given.newest(end));
        log.clean(by_time(links[2].extent.last_time), AbortedSet::default())
            .await
            .unwrap();
        assert_eq!(clean_end(&log), links[2].extent.tip.next_offset);
    });
}

#[test]
fn what_comes_in_during_a_pass_is_not_clean() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(16);
        let config = StoreConfig {
            compaction_bytes_per_second: 16 << 10,
            ..small()
        };
        let (_store, log, given) = written(&disk(16), config, rng).await;
        let arrival = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            log.0.state.lock().rewrites.arrived(Offset(0));
        };
        let all = plan(log.state().next_offset, 0);
        let (outcome, ()) = tokio::join!(log.clean(all, AbortedSet::default()), arrival);
        assert!(
            matches!(outcome, Err(CleanError::Superseded)),
            "{outcome:?}"
        );
        assert_eq!(clean_end(&log), Offset(0));
        let left = records(&log, Offset(0)).await;
        assert_eq!(view(&left), view(&given.records));
    });
}

#[test]
fn memory_forgets_what_a_pass_has_removed() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(17);
        let config = StoreConfig {
            cache_bytes: 1 << 20,
            ..small()
        };
        let (_store, log, given) = written(&disk(17), config, rng).await;
        assert_eq!(records(&log, Offset(0)).await, given.records);
        clean(&log, 0).await;
        let end = clean_end(&log);
        assert!(end > Offset(0));
        assert_eq!(records(&log, Offset(0)).await, given.newest(end));
    });
}
