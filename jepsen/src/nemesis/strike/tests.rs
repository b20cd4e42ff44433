//! Faults against nodes that are a shell: what counts as done, and what is written down.

use std::path::Path;

use super::*;
use crate::cluster::{Medium, Node, shell_program};
use crate::history::json::Reader;
use crate::history::{Header, What};
use crate::workload::{Load, Recorder};

/// Serves until its standard input ends, and finds damaged what is not as it was.
const PROGRAM: &str = "if [ \"$1\" = log ]; then
    cmp -s \"$5/wal/live\" \"$5/live\" && { echo '{\"damage\": []}'; exit 0; }
    echo '{\"damage\": [{\"path\": \"wal/live\", \"what\": \"not as it was\"}]}'
    exit 1
fi
exec cat > /dev/null";

async fn nemesis(dir: &Path) -> Nemesis {
    let (program, medium) = (shell_program(dir, PROGRAM), Medium::Ports(Vec::new()));
    let cluster = Cluster::prepare(&program, dir, 3, 1, &medium, false).await;
    let cluster = cluster.unwrap();
    let recorder = Recorder::create(&dir.join("history.jsonl"), &Header::default()).unwrap();
    let load = Load {
        keys: 1,
        world: None,
        python: None,
        kcat: None,
        operations: 0,
        pace: Duration::ZERO,
        patience: Duration::ZERO,
        txn_timeout: Duration::ZERO,
    };
    let (nodes, seeds, lives) = (cluster.kafka_nodes(), cluster.addresses(), cluster.lives());
    let stage = Stage::new(recorder, &load, nodes, seeds, lives);
    Nemesis::new(cluster, &stage)
}

fn scheduled(fault: Fault, nodes: &[u32]) -> Scheduled {
    Scheduled {
        at: Duration::ZERO,
        lasts: Duration::ZERO,
        fault,
        nodes: nodes.to_vec(),
        alone: false,
        seed: 1,
    }
}

fn done(nemesis: &Nemesis) -> Vec<(Fault, &[u32])> {
    let done = nemesis.done().iter();
    done.map(|one| (one.fault, one.nodes.as_slice())).collect()
}

fn noted(nemesis: &Nemesis, dir: &Path) -> Vec<String> {
    nemesis.stage.recorder.close().unwrap();
    let file = std::fs::File::open(dir.join("history.jsonl")).unwrap();
    let events = Reader::new(std::io::BufReader::new(file)).unwrap();
    let line = |event: crate::history::Event| match event.what {
        What::Note(Note::FaultBegin { fault, nodes }) => format!("{fault} {nodes:?}"),
        What::Note(Note::FaultEnd { fault, nodes }) => format!("no {fault} {nodes:?}"),
        other => panic!("{other:?}"),
    };
    events.map(|event| line(event.unwrap())).collect()
}

#[tokio::test]
async fn what_strikes_nobody_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let mut nemesis = nemesis(dir.path()).await;
    nemesis.cluster.boot(1, &[]).unwrap();
    let schedule = [
        scheduled(Fault::PowerLoss, &[2, 3]),
        scheduled(Fault::Kill, &[2]),
        scheduled(Fault::Pause, &[2, 3]),
        scheduled(Fault::Kill, &[1, 3]),
        scheduled(Fault::PowerLoss, &[1, 2, 3]),
    ];
    let limit = Duration::from_mins(1);
    nemesis.run(&schedule, limit).await.unwrap();
    assert_eq!(
        done(&nemesis),
        [
            (Fault::Kill, &[1, 3][..]),
            (Fault::PowerLoss, &[1, 2, 3][..])
        ]
    );
    let in_vain: Vec<_> = nemesis.in_vain().iter().map(|one| one.fault).collect();
    assert_eq!(in_vain, [Fault::PowerLoss, Fault::Kill, Fault::Pause]);
    let noted = noted(&nemesis, dir.path());
    let expected = [
        "kill [1, 3]",
        "no kill [1, 3]",
        "power-loss [1, 2, 3]",
        "no power-loss [1, 2, 3]",
    ];
    assert_eq!(noted, expected);
    assert_eq!(nemesis.troubles, Vec::<String>::new());
}

/// A stopped node with a file of which every byte counts, and one of which none does.
fn lay_out(nemesis: &mut Nemesis, live: usize, past: usize) {
    let data = nemesis.cluster.node(1).unwrap().data().to_owned();
    std::fs::create_dir_all(data.join("wal")).unwrap();
    for (name, len) in [("wal/live", live), ("live", live), ("wal/past", past)] {
        std::fs::write(data.join(name), vec![7; len]).unwrap();
    }
}

#[tokio::test]
async fn files_are_damaged_until_it_shows_and_what_never_does_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let mut nemesis = nemesis(dir.path()).await;
    let damage = scheduled(Fault::FlipBits, &[1]);
    lay_out(&mut nemesis, 0, 40_000);
    nemesis.begin_noted(0, &damage).await.unwrap();
    assert_eq!(done(&nemesis), []);
    assert_eq!(nemesis.in_vain()[0].fault, Fault::FlipBits);
    let never = noted(&nemesis, dir.path());
    assert_eq!(never, ["flip-bits [1]"], "the node was killed for it");

    lay_out(&mut nemesis, 40_000, 400_000);
    nemesis.begin_noted(1, &damage).await.unwrap();
    assert_eq!(done(&nemesis), [(Fault::FlipBits, &[1][..])]);
    let what = &nemesis.done()[0].what;
    assert!(what.contains("wal/live: bit "), "{what}");
    let shows = "; noticeable: wal/live: not as it was";
    assert!(what.ends_with(shows), "{what}");

    // It was found already, and is no proof that something was changed after that.
    lay_out(&mut nemesis, 40_000, 400_000);
    let data = nemesis.cluster.node(1).unwrap().data().to_owned();
    std::fs::write(data.join("live"), b"other").unwrap();
    nemesis.begin_noted(2, &damage).await.unwrap();
    assert_eq!(nemesis.done().len(), 1);
}

#[tokio::test]
async fn a_restart_goes_on_beside_other_faults_and_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut nemesis = nemesis(dir.path()).await;
    // Nobody ever has a shell back.
    nemesis.patience = Duration::from_millis(200);
    nemesis.cluster.boot_all().unwrap();
    let lasting = |fault, nodes: &[u32], at, lasts| Scheduled {
        at: Duration::from_millis(at),
        lasts: Duration::from_millis(lasts),
        ..scheduled(fault, nodes)
    };
    let schedule = [
        lasting(Fault::Partial, &[1, 2], 0, 5_000),
        lasting(Fault::RollingRestart, &[1, 2, 3], 10, 1),
        lasting(Fault::Kill, &[2], 20, 100),
        // It has to wait until nobody is told to stop any more.
        lasting(Fault::DiskFull, &[1], 30, 10),
    ];
    nemesis
        .run(&schedule, Duration::from_mins(2))
        .await
        .unwrap();
    let boots: Vec<u32> = nemesis.cluster.nodes.iter().map(Node::boots).collect();
    assert!(boots.iter().all(|boots| *boots >= 2), "{boots:?}");
    let expected = [
        (Fault::Partial, &[1, 2][..]),
        (Fault::Kill, &[2][..]),
        (Fault::RollingRestart, &[1, 2, 3][..]),
        (Fault::DiskFull, &[1][..]),
    ];
    assert_eq!(done(&nemesis), expected);
    let noted = noted(&nemesis, dir.path());
    let place = |line: &str| noted.iter().position(|noted| noted == line).unwrap();
    let restarted = place("no rolling-restart [1, 2, 3]");
    assert!(place("kill [2]") < restarted, "{noted:?}");
    assert!(restarted < place("disk-full [1]"), "{noted:?}");
    assert_eq!(nemesis.troubles, Vec::<String>::new());
    assert_eq!(nemesis.overdue, Vec::<String>::new());
}

#[tokio::test]
async fn who_is_held_by_two_faults_is_let_go_by_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut nemesis = nemesis(dir.path()).await;
    nemesis.cluster.boot_all().unwrap();
    let [most, kill] = [
        scheduled(Fault::PowerLoss, &[1, 2, 3]),
        scheduled(Fault::Kill, &[2]),
    ];
    nemesis.begin_noted(0, &kill).await.unwrap();
    nemesis.begin_noted(1, &most).await.unwrap();
    nemesis.lasting.remove(&1);
    nemesis.end(1, &most).await.unwrap();
    let runs = |nemesis: &Nemesis| -> Vec<bool> {
        let nodes = nemesis.cluster.nodes.iter();
        nodes.map(Node::is_started).collect()
    };
    assert_eq!(runs(&nemesis), [true, false, true]);
    nemesis.lasting.remove(&0);
    nemesis.end(0, &kill).await.unwrap();
    assert_eq!(runs(&nemesis), [true, true, true]);
}
