//! A node whose disk is full comes back: what gets it out of there needs it to run.

use bytes::Bytes;
use trilog_jepsen::cluster::{Disk, disk};
use trilog_model::{EntryId, GroupId};
use trilog_storage::kv::{Family, Kv, KvConfig, WriteBatch};

const GROUP: GroupId = GroupId(7);
const FAMILY: Family = Family("view");

#[tokio::test]
async fn view_state_opens_on_a_full_disk_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(why) = disk::probe(dir.path()).await {
        eprintln!("SKIPPED: disks of a node's own: {why}");
        return;
    }
    let at = dir.path().join("at");
    let disk = Disk::make(&dir.path().join("image"), &at, 32 << 20).unwrap();
    let store = at.join("kv");
    let open = || Kv::open_rocks(&store, &[FAMILY], KvConfig::default());
    let kv = open().await.unwrap();
    let mut batch = WriteBatch::default();
    batch.put(
        FAMILY,
        Bytes::from_static(b"key"),
        Bytes::from_static(b"value"),
    );
    kv.write(GROUP, EntryId::new(1, 1), batch).unwrap();
    kv.flush().await.unwrap();
    drop(kv);
    for attempt in 0..20 {
        disk.fill().unwrap();
        let kv = open()
            .await
            .unwrap_or_else(|error| panic!("{attempt}: {error}"));
        let found = kv.get(GROUP, FAMILY, b"key").unwrap();
        assert_eq!(found.as_deref(), Some(&b"value"[..]));
    }
}
