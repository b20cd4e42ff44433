//! Three real nodes, killed and paused as a seed says while clients of all kinds work: what the
//! clients saw is a valid history, everything acknowledged is read back by everybody, and the
//! replicas' files are the same. `make chaos` does this for longer, and worse things.

use std::path::PathBuf;
use std::time::Duration;

use trilog_jepsen::check::Validity;
use trilog_jepsen::cluster::Medium;
use trilog_jepsen::nemesis::Fault;
use trilog_jepsen::run::{Options, run, tally};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_saw_while_nodes_were_killed_and_paused_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let seed = std::env::var("TRILOG_CHAOS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let options = Options {
        trilog: PathBuf::from(env!("CARGO_BIN_EXE_trilog")),
        older: None,
        dir: dir.path().to_owned(),
        seed,
        nodes: 3,
        medium: Medium::Ports(Vec::new()),
        length: Duration::from_secs(12),
        operations: 50_000,
        workers: 8,
        python: None,
        kcat: None,
        keys: 4,
        pace: Duration::from_millis(10),
        faults: vec![Fault::Kill, Fault::Pause],
        by_name: true,
        calm: false,
    };
    let outcome = run(&options, &mut |line| eprintln!("{line}"))
        .await
        .unwrap();
    let proof = format!(
        "seed {seed}: {:?}\n{:?}\n{:#?}",
        outcome.failures, outcome.gaps, outcome.verdict
    );
    if let (Validity::Unknown, Some(still)) = (outcome.validity(), outcome.standstill) {
        // Nothing is wrong; what clients and nodes did not do in time may be this machine's doing.
        eprintln!("SKIPPED: this machine stood still for {still:?}: {proof}");
        return;
    }
    assert_eq!(outcome.validity(), Validity::Valid, "{proof}");
    let counts = outcome.verdict.counts;
    assert!(counts.sent > 0 && counts.polled > counts.sent, "{proof}");
    let done = tally(&outcome.done);
    for fault in [Fault::Kill, Fault::Pause] {
        assert!(done.contains_key(&fault), "{fault} did not happen: {proof}");
    }
}
