//! One body of tests that every back-end passes: what the rest of the engine may take for
//! granted about [`Io`].

use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::sim::{self, SimConfig, SimDisk};
use super::{Backend, Choice, Io, IoFile, IoJob, OpenMode};

/// One subject of the suite.
#[derive(Clone, Copy, Debug)]
enum Case {
    ReadsBackWhatWasWritten,
    ReadsStopAtTheEnd,
    WritesGatherManySlices,
    WritesKeepTheirPlace,
    UncachedWritesAreLikeOthers,
    LengthCanBeCutAndExtended,
    ModesAreEnforced,
    FoldersNestAndList,
    RenameReplaces,
    RemovalKeepsOpenFilesAlive,
    LargeDurableWritesAreWhole,
    OperationsOverlap,
    AbandonedOperationsStillHappen,
    AbandonedOperationsHaveHappened,
    JobsSpawnAndWait,
}

const CASES: [Case; 15] = [
    Case::ReadsBackWhatWasWritten,
    Case::ReadsStopAtTheEnd,
    Case::WritesGatherManySlices,
    Case::WritesKeepTheirPlace,
    Case::UncachedWritesAreLikeOthers,
    Case::LengthCanBeCutAndExtended,
    Case::ModesAreEnforced,
    Case::FoldersNestAndList,
    Case::RenameReplaces,
    Case::RemovalKeepsOpenFilesAlive,
    Case::LargeDurableWritesAreWhole,
    Case::OperationsOverlap,
    Case::AbandonedOperationsStillHappen,
    Case::AbandonedOperationsHaveHappened,
    Case::JobsSpawnAndWait,
];

/// Runs the whole suite in folders of their own under `root`.
pub(super) async fn check(backend: &Backend, root: &Path) {
    for case in CASES {
        let dir = root.join(match case {
            Case::AbandonedOperationsHaveHappened => "AbandonedOperationsStillHappen".to_owned(),
            _ => format!("{case:?}"),
        });
        let (report, outcome) = oneshot::channel();
        let job = CaseJob { case, dir, report };
        backend.spawn("conformance", job).join().await;
        let passed = outcome.await.expect("the job reports");
        assert!(passed, "{case:?} on {}", backend.name());
    }
}

struct CaseJob {
    case: Case,
    dir: PathBuf,
    report: oneshot::Sender<bool>,
}

impl IoJob for CaseJob {
    async fn run<I: Io>(self, io: I) {
        let body = async {
            io.create_dir_all(&self.dir).await.unwrap();
            let dir = &self.dir;
            match self.case {
                Case::ReadsBackWhatWasWritten => reads_back(io, dir).boxed_local(),
                Case::ReadsStopAtTheEnd => reads_stop(io, dir).boxed_local(),
                Case::WritesGatherManySlices => writes_gather(io, dir).boxed_local(),
                Case::WritesKeepTheirPlace => writes_keep_place(io, dir).boxed_local(),
                Case::UncachedWritesAreLikeOthers => uncached(io, dir).boxed_local(),
                Case::LengthCanBeCutAndExtended => length(io, dir).boxed_local(),
                Case::ModesAreEnforced => modes(io, dir).boxed_local(),
                Case::FoldersNestAndList => folders(io, dir).boxed_local(),
                Case::RenameReplaces => rename(io, dir).boxed_local(),
                Case::RemovalKeepsOpenFilesAlive => removal(io, dir).boxed_local(),
                Case::LargeDurableWritesAreWhole => large(io, dir).boxed_local(),
                Case::OperationsOverlap => overlap(io, dir).boxed_local(),
                Case::AbandonedOperationsStillHappen => abandoned(io, dir).boxed_local(),
                Case::AbandonedOperationsHaveHappened => have_happened(io, dir).boxed_local(),
                Case::JobsSpawnAndWait => spawn_and_wait(io, dir).boxed_local(),
            }
            .await;
        };
        let passed = AssertUnwindSafe(body).catch_unwind().await.is_ok();
        let _ = self.report.send(passed);
    }
}

/// `len` bytes that differ from place to place.
fn pattern(len: usize, salt: u8) -> Bytes {
    let byte = |at: usize| u8::try_from((at * 31 + at / 251) % 256).unwrap() ^ salt;
    (0..len).map(byte).collect()
}

async fn fresh<I: Io>(io: &I, path: &Path) -> I::File {
    io.open(path, OpenMode::Create).await.unwrap()
}

async fn reads_back<I: Io>(io: I, dir: &Path) {
    let path = dir.join("a");
    let file = fresh(&io, &path).await;
    let data = pattern(10_000, 0);
    file.write_all_at(vec![data.slice(..4096)], 0)
        .await
        .unwrap();
    file.write_durable_at(vec![data.slice(4096..)], 4096)
        .await
        .unwrap();
    file.sync_data().await.unwrap();
    file.write_durable_at(vec![data.slice(..100)], 0)
        .await
        .unwrap();
    assert_eq!(file.len().await.unwrap(), 10_000);
    assert_eq!(file.read_at(0, 10_000).await.unwrap(), data);
    io.sync_dir(dir).await.unwrap();

    let again = io.open(&path, OpenMode::Read).await.unwrap();
    assert_eq!(
        again.read_at(4_000, 200).await.unwrap(),
        data[4_000..4_200],
        "a read across the border of two writes"
    );
}

async fn reads_stop<I: Io>(io: I, dir: &Path) {
    let file = fresh(&io, &dir.join("a")).await;
    file.write_all_at(vec![pattern(1_000, 7)], 0).await.unwrap();
    assert_eq!(
        file.read_at(990, 100).await.unwrap(),
        pattern(1_000, 7)[990..]
    );
    assert!(file.read_at(1_000, 1).await.unwrap().is_empty());
    assert!(file.read_at(50_000, 9).await.unwrap().is_empty());
    assert!(file.read_at(0, 0).await.unwrap().is_empty());
    let absurd = file.read_at(10, usize::MAX >> 1).await.unwrap();
    assert_eq!(absurd.len(), 990, "a wrong length costs no memory");
}

async fn writes_gather<I: Io>(io: I, dir: &Path) {
    let file = fresh(&io, &dir.join("a")).await;
    // More slices than one system call takes, empty ones among them.
    let data = pattern(3_000 * 17, 1);
    let mut slices: Vec<Bytes> = (0..3_000)
        .map(|i| data.slice(i * 17..i * 17 + 17))
        .collect();
    slices.insert(5, Bytes::new());
    slices.push(Bytes::new());
    file.write_durable_at(slices, 300).await.unwrap();
    assert_eq!(file.read_at(300, data.len()).await.unwrap(), data);
    assert_eq!(file.read_at(0, 300).await.unwrap(), vec![0; 300]);

    file.write_all_at(Vec::new(), 9).await.unwrap();
    file.write_all_at(vec![Bytes::new()], u64::from(u32::MAX))
        .await
        .unwrap();
    file.write_durable_at(Vec::new(), 0).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 300 + 51_000);
}

async fn writes_keep_place<I: Io>(io: I, dir: &Path) {
    let file = fresh(&io, &dir.join("a")).await;
    let mut model = vec![0_u8; 20_000];
    for (at, len, salt) in [
        (0, 20_000, 0),
        (511, 2, 9),
        (512, 512, 3),
        (4_095, 9_000, 5),
    ] {
        let data = pattern(len, salt);
        model[at..at + len].copy_from_slice(&data);
        file.write_all_at(vec![data], at as u64).await.unwrap();
    }
    assert_eq!(file.read_at(0, 20_000).await.unwrap(), model);
}

async fn uncached<I: Io>(io: I, dir: &Path) {
    let path = dir.join("a");
    let file = fresh(&io, &path).await;
    let data = pattern(3 << 20, 5);
    let mut pos = 0;
    // Within a page, up to its end, beyond it, over many, and in more slices than one call takes.
    for (round, len) in [64, 4_000, 32, 9_000, 700_000, 4_096, 1, 2_000_000]
        .into_iter()
        .enumerate()
    {
        let run = data.slice(pos..pos + len);
        let parts = [1, 7, 1_000, 3][round % 4].min(len);
        let slices = (0..parts).map(|part| run.slice(part * len / parts..(part + 1) * len / parts));
        let slices = slices.collect();
        file.write_uncached_at(slices, pos as u64).await.unwrap();
        pos += len;
        if round % 3 == 1 {
            file.sync_data().await.unwrap();
        }
    }
    file.write_uncached_at(Vec::new(), 5).await.unwrap();
    file.write_durable_at(vec![pattern(10, 9)], 50)
        .await
        .unwrap();
    file.sync_data().await.unwrap();
    let again = io.open(&path, OpenMode::Read).await.unwrap();
    let mut expected = data[..pos].to_vec();
    expected[50..60].copy_from_slice(&pattern(10, 9));
    assert!(again.read_at(0, 4 << 20).await.unwrap() == expected);
}

async fn length<I: Io>(io: I, dir: &Path) {
    let file = fresh(&io, &dir.join("a")).await;
    file.write_all_at(vec![pattern(5_000, 2)], 0).await.unwrap();
    file.set_len(700).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 700);
    file.set_len(6_000).await.unwrap();
    file.sync_data().await.unwrap();
    let mut expected = pattern(5_000, 2)[..700].to_vec();
    expected.resize(6_000, 0);
    assert_eq!(
        file.read_at(0, 9_000).await.unwrap(),
        expected,
        "what was cut comes back as zeros"
    );
}

async fn modes<I: Io>(io: I, dir: &Path) {
    let path = dir.join("a");
    let missing = |e: std::io::Error| e.kind() == ErrorKind::NotFound;
    assert!(io.open(&path, OpenMode::Read).await.is_err_and(missing));
    assert!(io.open(&path, OpenMode::Write).await.is_err_and(missing));
    fresh(&io, &path).await;
    let exists = |e: std::io::Error| e.kind() == ErrorKind::AlreadyExists;
    assert!(io.open(&path, OpenMode::Create).await.is_err_and(exists));
    let nowhere = dir.join("none").join("a");
    assert!(
        io.open(&nowhere, OpenMode::Create)
            .await
            .is_err_and(missing)
    );

    let reader = io.open(&path, OpenMode::Read).await.unwrap();
    let byte = || vec![Bytes::from_static(b"x")];
    assert!(reader.write_all_at(byte(), 0).await.is_err());
    assert!(reader.write_durable_at(byte(), 0).await.is_err());
    assert!(reader.set_len(4).await.is_err());
    reader.sync_data().await.unwrap();
    assert!(reader.write_durable_at(byte(), 0).await.is_err());
    let writer = io.open(&path, OpenMode::Write).await.unwrap();
    writer.write_durable_at(byte(), 3).await.unwrap();
    assert_eq!(reader.read_at(0, 9).await.unwrap(), b"\0\0\0x"[..]);
}

async fn folders<I: Io>(io: I, dir: &Path) {
    let deep = dir.join("p").join("q").join("r");
    io.create_dir_all(&deep).await.unwrap();
    io.create_dir_all(&deep).await.unwrap();
    for name in ["c", "a", "b"] {
        fresh(&io, &deep.join(name)).await;
    }
    io.sync_dir(&deep).await.unwrap();
    let names = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
    assert_eq!(io.list(&deep).await.unwrap(), names(&["a", "b", "c"]));
    assert_eq!(
        io.list(&dir.join("p")).await.unwrap(),
        names(&["q"]),
        "a folder lists folders, and only what is directly in it"
    );
    io.remove_dir_all(&dir.join("p").join("q")).await.unwrap();
    io.remove_dir_all(&dir.join("p").join("q")).await.unwrap();
    assert!(io.list(&dir.join("p")).await.unwrap().is_empty());
    assert!(io.list(&deep).await.is_err());
    assert!(io.sync_dir(&deep).await.is_err());
    io.sync_dir(&dir.join("p")).await.unwrap();

    let file = dir.join("file");
    fresh(&io, &file).await;
    assert!(io.create_dir_all(&file).await.is_err());
}

async fn rename<I: Io>(io: I, dir: &Path) {
    let (from, to) = (dir.join("new"), dir.join("old"));
    let old = fresh(&io, &to).await;
    old.write_all_at(vec![pattern(10, 1)], 0).await.unwrap();
    let new = fresh(&io, &from).await;
    new.write_all_at(vec![pattern(20, 2)], 0).await.unwrap();
    io.rename(&from, &to).await.unwrap();
    io.sync_dir(dir).await.unwrap();
    assert_eq!(io.list(dir).await.unwrap(), [PathBuf::from("old")]);
    let now = io.open(&to, OpenMode::Read).await.unwrap();
    assert_eq!(now.read_at(0, 99).await.unwrap(), pattern(20, 2));
    assert_eq!(
        old.read_at(0, 99).await.unwrap(),
        pattern(10, 1),
        "a handle follows its file, not the name"
    );
    assert!(io.rename(&from, &to).await.is_err());

    io.create_dir_all(&dir.join("p").join("q")).await.unwrap();
    fresh(&io, &dir.join("p").join("q").join("a")).await;
    io.rename(&dir.join("p"), &dir.join("r")).await.unwrap();
    let moved = dir.join("r").join("q").join("a");
    io.open(&moved, OpenMode::Read).await.unwrap();
    assert!(io.list(&dir.join("p")).await.is_err());
}

async fn removal<I: Io>(io: I, dir: &Path) {
    let path = dir.join("a");
    let file = fresh(&io, &path).await;
    file.write_all_at(vec![pattern(10, 1)], 0).await.unwrap();
    io.remove_file(&path).await.unwrap();
    assert!(io.remove_file(&path).await.is_err());
    assert!(io.open(&path, OpenMode::Read).await.is_err());
    assert_eq!(file.read_at(0, 10).await.unwrap(), pattern(10, 1));
    fresh(&io, &path).await;
}

async fn large<I: Io>(io: I, dir: &Path) {
    let file = fresh(&io, &dir.join("a")).await;
    let data = pattern(5 << 20, 3);
    // One slice, and many that end nowhere near those of the parts the write is done in.
    for (pos, parts) in [(4_096_u64, 1), (300, 777)] {
        let len = data.len();
        let slices =
            (0..parts).map(|part| data.slice(part * len / parts..(part + 1) * len / parts));
        let slices = slices.collect();
        file.write_durable_at(slices, pos).await.unwrap();
        assert!(file.read_at(pos, len).await.unwrap() == data);
    }
    file.write_durable_at(vec![pattern(10, 9)], 0)
        .await
        .unwrap();
    assert_eq!(file.read_at(0, 10).await.unwrap(), pattern(10, 9));
}

async fn overlap<I: Io>(io: I, dir: &Path) {
    let file = Rc::new(fresh(&io, &dir.join("a")).await);
    let writes = (0..64_u8).map(|i| {
        let file = Rc::clone(&file);
        let at = u64::from(i) * 512;
        tokio::task::spawn_local(async move {
            let data = vec![pattern(512, i)];
            if i % 2 == 0 {
                file.write_all_at(data, at).await.unwrap();
            } else {
                file.write_durable_at(data, at).await.unwrap();
            }
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    for i in 0..64_u8 {
        let read = file.read_at(u64::from(i) * 512, 512).await.unwrap();
        assert_eq!(read, pattern(512, i));
    }
}

async fn abandoned<I: Io>(io: I, dir: &Path) {
    let file = fresh(&io, &dir.join("a")).await;
    for i in 0..32_u8 {
        let write = file.write_durable_at(vec![pattern(65_536, i)], u64::from(i) << 16);
        // Polled once and dropped: the buffers must live until the disk is done with them.
        if let Some(result) = write.now_or_never() {
            result.unwrap();
        }
    }
    // The job ends here with operations under way; the back-end drains them.
}

/// The job after the one that abandoned its writes.
async fn have_happened<I: Io>(io: I, dir: &Path) {
    let file = io.open(&dir.join("a"), OpenMode::Read).await.unwrap();
    for i in 0..32_u8 {
        let found = file.read_at(u64::from(i) << 16, 65_536).await.unwrap();
        assert_eq!(found, pattern(65_536, i), "write {i}");
    }
}

async fn spawn_and_wait<I: Io>(io: I, dir: &Path) {
    let file = Rc::new(fresh(&io, &dir.join("a")).await);
    let (queue, mut queued) = mpsc::channel::<Bytes>(4);
    let writer = Rc::clone(&file);
    let task = tokio::task::spawn_local(async move {
        let mut pos = 0;
        while let Some(data) = queued.recv().await {
            let len = data.len() as u64;
            writer.write_durable_at(vec![data], pos).await.unwrap();
            pos += len;
        }
    });
    for i in 0..20 {
        queue.send(pattern(1_000, i)).await.unwrap();
    }
    drop(queue);
    tokio::time::timeout(Duration::from_mins(1), task)
        .await
        .expect("timers run")
        .unwrap();
    assert_eq!(file.len().await.unwrap(), 20_000);
}

#[tokio::test]
async fn threads_pass_the_suite() {
    let root = tempfile::tempdir().unwrap();
    check(&Backend::Threads, root.path()).await;
}

#[test]
fn the_simulated_disk_passes_the_suite() {
    for config in [SimConfig::default(), SimConfig::instant()] {
        sim::block_on(async {
            let disk = SimDisk::with_config(1, config);
            check(&disk.backend(), Path::new("/data")).await;
        });
    }
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "what is skipped is said")]
async fn io_uring_passes_the_suite() {
    let root = tempfile::tempdir().unwrap();
    match Backend::probe(Choice::Uring, root.path()) {
        Ok(probe) => {
            assert_eq!(probe.backend.name(), "uring");
            check(&probe.backend, root.path()).await;
        }
        Err(refused) => eprintln!("SKIPPED: {refused}"),
    }
}

#[test]
fn the_probe_leaves_no_file_and_reports_a_refusal() {
    let root = tempfile::tempdir().unwrap();
    let probe = Backend::probe(Choice::Auto, root.path()).unwrap();
    assert_eq!(probe.refusal.is_some(), probe.backend.name() == "threads");
    assert_eq!(root.path().read_dir().unwrap().count(), 0);

    let nowhere = root.path().join("none");
    let probe = Backend::probe(Choice::Auto, &nowhere).unwrap();
    assert!(probe.refusal.is_some() && probe.backend.name() == "threads");
    Backend::probe(Choice::Uring, &nowhere).unwrap_err();
    Backend::probe(Choice::Threads, &nowhere).unwrap();
    for choice in [Choice::Auto, Choice::Uring, Choice::Threads] {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
}
