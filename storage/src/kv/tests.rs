//! One body of tests for both engines, and both held against each other.

use trilog_model::{EntryId, GroupId};

use super::*;

const A: Family = Family("a");
const B: Family = Family("b");
const ONE: GroupId = GroupId(1);
const TWO: GroupId = GroupId(2);
const LAST: GroupId = GroupId(u64::MAX);

fn batch(puts: &[(Family, &'static str, &'static str)]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for (family, key, value) in puts {
        batch.put(*family, *key, *value);
    }
    batch
}

fn keys(kv: &Kv, group: GroupId, family: Family) -> String {
    let found = kv.scan(group, family, b"", None, 100).unwrap();
    let pairs = found.iter().map(|(key, value)| {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        format!("{}={}", text(key), text(value))
    });
    pairs.collect::<Vec<_>>().join(" ")
}

async fn check(kv: &Kv) {
    let id = |index| EntryId::new(3, index);
    kv.write(
        ONE,
        id(5),
        batch(&[(A, "k", "1"), (A, "kk", "2"), (B, "k", "3")]),
    )
    .unwrap();
    kv.write(TWO, id(9), batch(&[(A, "k", "4")])).unwrap();
    kv.write(LAST, id(1), batch(&[(A, "k", "5")])).unwrap();
    assert_eq!(kv.get(ONE, A, b"k").unwrap().unwrap(), "1");
    assert_eq!(kv.get(TWO, A, b"k").unwrap().unwrap(), "4");
    assert_eq!(kv.get(TWO, B, b"k").unwrap(), None);
    assert_eq!(keys(kv, ONE, A), "k=1 kk=2");
    assert_eq!(keys(kv, LAST, A), "k=5");
    assert_eq!(kv.groups(), [ONE, TWO, LAST]);

    // Later changes of one batch win, and a batch is refused as a whole.
    let mut changes = batch(&[(A, "x", "1"), (A, "x", "2"), (A, "y", "3")]);
    changes.delete(A, "y");
    kv.write(ONE, id(6), changes).unwrap();
    assert_eq!(keys(kv, ONE, A), "k=1 kk=2 x=2");
    let unknown = batch(&[(A, "z", "1"), (Family("none"), "z", "1")]);
    let refused = kv.write(ONE, id(7), unknown);
    assert!(matches!(refused, Err(KvError::UnknownFamily(_))));
    let refused = kv.write(ONE, id(5), batch(&[(A, "z", "1")]));
    assert!(matches!(refused, Err(KvError::Backwards { .. })));
    assert_eq!(kv.get(ONE, A, b"z").unwrap(), None);
    assert_eq!(kv.applied(ONE), Some(id(6)));

    assert_eq!(kv.flushed(ONE), None);
    kv.flush().await.unwrap();
    kv.write(ONE, id(8), WriteBatch::new()).unwrap();
    assert_eq!(kv.applied(ONE), Some(id(8)));
    assert_eq!(kv.flushed(ONE), Some(id(6)));
    assert_eq!(kv.flushed(LAST), Some(id(1)));

    let mut install = batch(&[(A, "gone", "1")]);
    install.clear();
    install.put(A, "new", "2");
    kv.write(LAST, id(20), install).unwrap();
    assert_eq!(keys(kv, LAST, A), "new=2");
    assert_eq!(keys(kv, TWO, A), "k=4");

    kv.remove_group(ONE).unwrap();
    assert_eq!(keys(kv, ONE, A) + &keys(kv, ONE, B), "");
    assert_eq!((kv.applied(ONE), kv.flushed(ONE)), (None, None));
    assert_eq!(kv.groups(), [TWO, LAST]);
    kv.flush().await.unwrap();
    assert_eq!(kv.flushed(ONE), None);
}

fn check_scans(kv: &Kv) {
    let mut puts = WriteBatch::new();
    for key in ["a", "b1", "b2", "b3", "b\u{7f}", "c"] {
        puts.put(B, key, "");
    }
    puts.put(B, vec![0xff, 0xff], "");
    puts.put(B, vec![0xff, 0xff, 0], "");
    kv.write(TWO, EntryId::new(9, 100), puts).unwrap();
    let scan = |prefix: &[u8], from: Option<&[u8]>, limit| {
        let found = kv.scan(TWO, B, prefix, from, limit).unwrap();
        found
            .iter()
            .map(|(key, _)| key.to_vec())
            .collect::<Vec<_>>()
    };
    assert_eq!(scan(b"b", None, 9).len(), 4);
    assert_eq!(scan(b"b", None, 2), [b"b1", b"b2"]);
    assert_eq!(scan(b"b", Some(b"b2"), 2), [b"b2", b"b3"]);
    assert_eq!(scan(b"b", Some(b"b20"), 1), [b"b3"]);
    assert_eq!(
        scan(b"b", Some(b"a"), 1),
        [b"b1"],
        "never before the prefix"
    );
    assert_eq!(scan(b"b", Some(b"c"), 1).len(), 0, "never behind it");
    assert_eq!(scan(b"", None, usize::MAX).len(), 8);
    assert_eq!(scan(b"\xff\xff", None, 9).len(), 2);
    assert_eq!(scan(b"d", None, 9).len(), 0);
    assert_eq!(scan(b"b", None, 0).len(), 0);
}

#[tokio::test]
async fn the_memory_engine_keeps_its_word() {
    let kv = Kv::memory(&[A, B]);
    check(&kv).await;
    check_scans(&kv);
}

#[tokio::test]
async fn a_crash_in_memory_keeps_what_was_flushed() {
    let memory = MemoryKv::new(&[A, B]);
    let kv = memory.kv();
    let id = |index| EntryId::new(1, index);
    kv.write(ONE, id(1), batch(&[(A, "k", "1")])).unwrap();
    kv.flush().await.unwrap();
    kv.write(ONE, id(2), batch(&[(A, "k", "2")])).unwrap();
    kv.write(TWO, id(1), batch(&[(A, "k", "3")])).unwrap();

    let lucky = memory.clone().crash_after_background_flush().kv();
    assert_eq!(lucky.flushed(ONE), Some(id(2)));
    let found = memory.crash().kv();
    assert_eq!(
        found.groups(),
        [ONE, TWO],
        "the background flush went before"
    );

    let memory = MemoryKv::new(&[A]);
    memory
        .kv()
        .write(ONE, id(1), batch(&[(A, "k", "1")]))
        .unwrap();
    memory.kv().flush().await.unwrap();
    memory
        .kv()
        .write(ONE, id(2), batch(&[(A, "k", "2")]))
        .unwrap();
    let found = memory.crash();
    memory
        .kv()
        .write(ONE, id(3), batch(&[(A, "k", "3")]))
        .unwrap();
    assert_eq!(keys(&found.kv(), ONE, A), "k=1");
    assert_eq!(found.kv().applied(ONE), Some(id(1)));
    assert_eq!(found.kv().flushed(ONE), Some(id(1)));
}

#[cfg(feature = "rocksdb")]
mod rocks {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::fs;
    use std::io::ErrorKind;
    use std::path::Path;
    use std::time::Duration;

    use proptest::prelude::*;
    use tempfile::TempDir;
    use tokio::time::Instant;

    use super::*;

    async fn open(dir: &Path) -> Kv {
        Kv::open_rocks(dir, &[A, B], KvConfig::default())
            .await
            .unwrap()
    }

    /// The files as a crash would leave them: all of one moment, though background work of the
    /// engine that is still open makes new ones and removes obsolete ones meanwhile.
    fn copy(from: &Path, to: &Path) {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let before = files(from);
            fs::create_dir(to).unwrap();
            let whole = before.keys().all(|name| copy_file(from, to, name));
            // No file changed, came or went between the first copied and the last.
            if whole && before == files(from) {
                return;
            }
            assert!(Instant::now() < deadline, "{from:?} does not come to rest");
            fs::remove_dir_all(to).unwrap();
        }
    }

    /// Whether the file was there to be copied.
    fn copy_file(from: &Path, to: &Path, name: &OsString) -> bool {
        match fs::copy(from.join(name), to.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            copied => {
                copied.unwrap();
                true
            }
        }
    }

    /// The files that hold the store's state, with their lengths. Not the lock, which whoever
    /// finds it takes anew, and not the engine's diary.
    fn files(dir: &Path) -> BTreeMap<OsString, Option<u64>> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let kept = names.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name != "LOCK" && !name.starts_with("LOG")
        });
        let sized = kept.map(|entry| {
            let len = entry.metadata().ok().map(|about| about.len());
            (entry.file_name(), len)
        });
        sized.collect()
    }

    #[tokio::test]
    async fn the_rocksdb_engine_keeps_its_word() {
        let dir = TempDir::new().unwrap();
        let kv = open(dir.path()).await;
        check(&kv).await;
        check_scans(&kv);
        kv.close().await.unwrap();
        let kv = open(dir.path()).await;
        assert_eq!(keys(&kv, LAST, A), "new=2");
        assert_eq!(kv.flushed(TWO), Some(EntryId::new(9, 100)));
    }

    #[tokio::test]
    async fn rocksdb_keeps_families_it_does_not_know() {
        let dir = TempDir::new().unwrap();
        let kv = open(dir.path()).await;
        kv.write(ONE, EntryId::new(1, 1), batch(&[(B, "k", "1")]))
            .unwrap();
        kv.close().await.unwrap();
        let fewer = Kv::open_rocks(dir.path(), &[A], KvConfig::default()).await;
        fewer.unwrap().close().await.unwrap();
        assert_eq!(keys(&open(dir.path()).await, ONE, B), "k=1");
    }

    #[tokio::test]
    async fn a_foreign_or_newer_store_is_refused_and_left_alone() {
        let dir = TempDir::new().unwrap();
        drop(open(dir.path()).await);
        for (record, newer) in [(Some([FORMAT + 1]), true), (None, false)] {
            let families = [Family::META.0, A.0, B.0];
            let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.path(), families);
            let db = db.unwrap();
            if let Some(version) = record {
                db.put(FORMAT_KEY, version).unwrap();
            } else {
                db.put(b"foreign", b"1").unwrap();
                db.delete(FORMAT_KEY).unwrap();
            }
            drop(db);
            let refused = Kv::open_rocks(dir.path(), &[A, B], KvConfig::default()).await;
            match refused {
                Err(KvError::Version { found }) => assert!(newer && found == FORMAT + 1),
                Err(KvError::NotOurs) => assert!(!newer),
                other => panic!("{other:?}"),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(GroupId, Vec<Option<(Family, u8, Option<u8>)>>),
        Remove(GroupId),
        Flush,
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        let group = prop_oneof![Just(ONE), Just(TWO), Just(LAST)];
        let family = prop_oneof![Just(A), Just(B)];
        let value = prop::option::weighted(0.7, any::<u8>());
        // `None` clears the group.
        let change = prop::option::weighted(0.95, (family, 0..12_u8, value));
        prop_oneof![
            8 => (group.clone(), prop::collection::vec(change, 0..6))
                .prop_map(|(group, changes)| Step::Write(group, changes)),
            1 => group.prop_map(Step::Remove),
            2 => Just(Step::Flush),
            1 => Just(Step::Crash),
        ]
    }

    fn to_batch(changes: &[Option<(Family, u8, Option<u8>)>]) -> WriteBatch {
        let mut batch = WriteBatch::new();
        for change in changes {
            match *change {
                Some((family, key, Some(value))) => batch.put(family, vec![key], vec![value]),
                Some((family, key, None)) => batch.delete(family, vec![key]),
                None => batch.clear(),
            }
        }
        batch
    }

    fn everything(kv: &Kv) -> Vec<String> {
        let all = [ONE, TWO, LAST].map(|group| {
            let marks = (kv.applied(group), kv.flushed(group));
            let [a, b] = [A, B].map(|family| kv.scan(group, family, b"", None, 99).unwrap());
            format!("{group} {marks:?} {a:?} {b:?}")
        });
        all.into()
    }

    async fn both_agree(steps: Vec<Step>) {
        let root = TempDir::new().unwrap();
        let mut dir = root.path().join("0");
        let mut rocks = open(&dir).await;
        let mut memory = MemoryKv::new(&[A, B]);
        for (at, step) in steps.iter().enumerate() {
            let id = EntryId::new(1, at as u64);
            match step {
                Step::Write(group, changes) => {
                    for kv in [&rocks, &memory.kv()] {
                        kv.write(*group, id, to_batch(changes)).unwrap();
                    }
                }
                Step::Remove(group) => {
                    rocks.remove_group(*group).unwrap();
                    memory.kv().remove_group(*group).unwrap();
                }
                Step::Flush => {
                    rocks.flush().await.unwrap();
                    memory.kv().flush().await.unwrap();
                }
                Step::Crash => {
                    let found = root.path().join(format!("{}", at + 1));
                    copy(&dir, &found);
                    dir = found;
                    rocks = open(&dir).await;
                    memory = memory.crash();
                }
            }
            assert_eq!(everything(&rocks), everything(&memory.kv()), "step {at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn both_engines_agree(steps in prop::collection::vec(step(), 1..30)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(both_agree(steps));
        }
    }
}
