//! `trilog demo`: the whole thing shown and checked in a minute or two. Three nodes take real
//! data, lose one in the middle, lose nothing, and give everything back from anywhere.
//!
//! The exit status is the verdict: what came back is compared with what went in, by SHA-256.

mod check;
mod feed;
mod ledger;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;
use trilog_client::proto::CreateTopicRequest;
use trilog_client::proto::start::At;
use trilog_client::{Client, ProducerConfig};

use super::dev::data_flag;
use super::format::hex;
use super::log;
use super::output;
use super::progress::Progress;
use super::scrape::Scrape;
use crate::dev::{Dev, DevError, DevOptions};
use feed::{Account, Feed};
use ledger::{Files, Hash, Places};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How many records to feed at least
    #[arg(long, value_name = "N", default_value_t = 600_000)]
    records: u64,
    /// The checkout whose lines, and whose dependencies' lines, are the records
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
    /// Where the nodes keep their data; what an earlier run left there is replaced
    #[arg(long, value_name = "DIR", default_value = "trilog-data/demo")]
    data: PathBuf,
    /// First of the ports [default: the usual ones, others if they are taken]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// What decides which offset and which time to replay from
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

const TOPIC: &str = "source-lines";
const PARTITIONS: u32 = 6;
/// The whole of it takes a minute or two; this is for a machine on which something hangs.
const PATIENCE: Duration = Duration::from_mins(20);
const CATCH_UP: Duration = Duration::from_mins(2);
/// Ports to try when the usual ones are taken.
const OTHER_PORTS: [u16; 3] = [17_400, 27_400, 37_400];

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    tokio::time::timeout(PATIENCE, show(args))
        .await
        .with_context(|| format!("not done after {} minutes", PATIENCE.as_secs() / 60))?
}

async fn show(args: DemoArgs) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut story = Story::begin(seed);
    let files = source::gather(&args.source)?;
    story.tell(&format!(
        "{} source files of this checkout and its dependencies",
        files.len()
    ))?;

    let before = Instant::now();
    let dev = start(&args).await?;
    story.tell(&format!(
        "3 nodes are up after {:.1} s",
        before.elapsed().as_secs_f64()
    ))?;
    let outcome = play(&dev, files, args.records, &mut story).await;
    let layout = dev.layout().clone();
    dev.stop().await;
    story.tell("the nodes have stopped; their data is kept")?;
    let mut outcome = outcome?;
    for place in &layout.places {
        let found = log::look(&layout.data_dir(place.node), Box::new(|_, _| {})).await?;
        let (node, frames) = (place.node, found.frames);
        let text = format!("the log of node {node}: {frames} frames, checksums and chains hold");
        outcome.check(&text, found.damage.is_empty());
    }

    outcome.print(seed, story.begun)?;
    let port = layout.places.first().map_or(7400, |place| place.grpc);
    farewell(&args.data, port)?;
    if outcome.checks.iter().all(|check| check.passed) {
        return Ok(());
    }
    bail!("something did not come back as it went in; seed {seed}");
}

/// What is said while it goes on.
struct Story {
    begun: Instant,
    rng: SmallRng,
}

impl Story {
    fn begin(seed: u64) -> Self {
        Self {
            begun: Instant::now(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    fn tell(&self, text: &str) -> anyhow::Result<()> {
        let seconds = self.begun.elapsed().as_secs_f64();
        Ok(output::line(format_args!("{seconds:6.1} s  {text}"))?)
    }
}

/// Starts three nodes with nothing in them, on the usual ports or on others.
async fn start(args: &DemoArgs) -> anyhow::Result<Dev> {
    let binary = std::env::current_exe().context("finding this program's own file")?;
    let options = |base_port| DevOptions {
        data: args.data.clone(),
        nodes: Some(3),
        base_port,
        clean: true,
        binary: binary.clone(),
        settings: Vec::new(),
    };
    let mut started = Dev::start(options(args.base_port)).await;
    if args.base_port.is_none() {
        for base in OTHER_PORTS {
            if !matches!(started, Err(DevError::PortTaken { .. })) {
                break;
            }
            started = Dev::start(options(Some(base))).await;
        }
    }
    Ok(started?)
}

/// One thing that had to be true.
#[derive(Debug)]
struct Check {
    what: String,
    passed: bool,
}

/// How it went.
#[derive(Debug)]
struct Outcome {
    checks: Vec<Check>,
    figures: Vec<(&'static str, String)>,
}

async fn play(
    dev: &Dev,
    files: Vec<source::SourceFile>,
    records: u64,
    story: &mut Story,
) -> anyhow::Result<Outcome> {
    let client = Client::connect(dev.layout().servers()).await?;
    create(&client).await?;
    story.tell(&format!(
        "topic {TOPIC}: {PARTITIONS} partitions, 3 replicas each"
    ))?;

    let fed = feed(dev, &client, files, records, story).await?;
    let mut outcome = Outcome {
        checks: Vec::new(),
        figures: fed.figures(),
    };
    outcome.check(
        "the cluster acknowledged records after losing a leader",
        fed.failover.is_some(),
    );
    outcome.check(
        "no offset was given twice or left out",
        fed.places.holes() == 0,
    );

    await_whole(&client).await?;
    story.tell("every replica is there again and caught up")?;
    replay(&client, &fed, story, &mut outcome).await?;
    scrape(dev, story, &mut outcome).await?;
    Ok(outcome)
}

async fn create(client: &Client) -> anyhow::Result<()> {
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: PARTITIONS,
        replication: 3,
        ..CreateTopicRequest::default()
    };
    client.admin().create_topic(request).await?;
    client.admin().await_leaders(TOPIC).await?;
    Ok(())
}

/// What feeding left behind.
struct Fed {
    sent: Files,
    places: Places,
    failover: Option<Duration>,
    seconds: f64,
}

impl Fed {
    fn figures(&self) -> Vec<(&'static str, String)> {
        let (records, bytes) = (as_f64(self.sent.records), as_f64(self.sent.bytes));
        let failover = self.failover.map_or_else(
            || "never".to_owned(),
            |failover| format!("{:.2} s", failover.as_secs_f64()),
        );
        vec![
            (
                "records",
                format!("{} of {} files", self.sent.records, self.sent.count()),
            ),
            ("bytes", format!("{:.1} MB of keys and values", bytes / 1e6)),
            (
                "produced",
                format!(
                    "{:.0} records/s, {:.1} MB/s, the outage included",
                    records / self.seconds,
                    bytes / 1e6 / self.seconds
                ),
            ),
            (
                "failover",
                format!("{failover} from the kill to the next acknowledgement"),
            ),
        ]
    }
}

/// Feeds every line; meanwhile kills the leader of the busiest partition and starts it again.
async fn feed(
    dev: &Dev,
    client: &Client,
    files: Vec<source::SourceFile>,
    records: u64,
    story: &Story,
) -> anyhow::Result<Fed> {
    let account = Arc::new(Mutex::new(Account::default()));
    let (acknowledged, progressed) = watch::channel(0);
    let progress = Arc::new(Progress::records("feeding", Some(records)));
    let feed = Feed {
        topic: TOPIC.to_owned(),
        producer: client.producer_with(ProducerConfig::default()),
        files,
        records,
        account: Arc::clone(&account),
        acknowledged,
        progress: Arc::clone(&progress),
    };
    let started = Instant::now();
    let (sent, ()) = tokio::try_join!(
        feed.run(),
        harm(dev, client, &account, progressed, records, &progress, story)
    )?;
    let seconds = started.elapsed().as_secs_f64();
    progress.finish();
    story.tell(&format!("{} records are acknowledged", sent.records))?;
    let account = std::mem::take(&mut *account.lock());
    Ok(Fed {
        sent,
        places: account.places,
        failover: account.failover,
        seconds,
    })
}

/// Kills the busiest leader at two fifths of the way, and starts it again at four.
async fn harm(
    dev: &Dev,
    client: &Client,
    account: &Mutex<Account>,
    mut progressed: watch::Receiver<u64>,
    records: u64,
    progress: &Progress,
    story: &Story,
) -> anyhow::Result<()> {
    let so_far = |share: u64| records / 5 * share;
    if progressed
        .wait_for(|count| *count >= so_far(2))
        .await
        .is_err()
    {
        bail!("feeding ended before its middle");
    }
    let partition = account
        .lock()
        .busiest()
        .context("nothing was acknowledged")?;
    let described = client.admin().describe_topic(TOPIC).await?;
    let leader = described
        .partitions
        .iter()
        .find(|candidate| candidate.partition == partition)
        .map(|found| found.leader)
        .context("the busiest partition is not described")?;
    account.lock().outage(partition);
    dev.kill(leader).await?;
    let seconds = story.begun.elapsed().as_secs_f64();
    progress.note(&format!(
        "{seconds:6.1} s  node {leader}, leader of partition {partition}, is killed while it works"
    ));
    // Feeding may be over before four fifths are seen; then it is time as well.
    let _ = progressed.wait_for(|count| *count >= so_far(4)).await;
    dev.restart(leader).await?;
    let seconds = story.begun.elapsed().as_secs_f64();
    progress.note(&format!("{seconds:6.1} s  node {leader} is started again"));
    Ok(())
}

/// Waits until every partition has all its replicas.
async fn await_whole(client: &Client) -> anyhow::Result<()> {
    let deadline = Instant::now() + CATCH_UP;
    loop {
        let status = client.admin().status().await?;
        let ailing = status.under_replicated_partitions + status.leaderless_partitions;
        if ailing == 0 && status.nodes.iter().all(|node| node.alive) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "{ailing} partitions are not whole after {} s",
                CATCH_UP.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn replay(
    client: &Client,
    fed: &Fed,
    story: &mut Story,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let ends = fed.places.ends();
    let zero: BTreeMap<u32, u64> = ends.keys().map(|partition| (*partition, 0)).collect();
    let back = check::read_back(client, TOPIC, &zero, &ends).await?;
    let (sent, came) = (fed.sent.digest(), back.files.digest());
    outcome.compare("from offset 0, by file", sent, came, back.files.records);
    for name in fed.sent.differing(&back.files).iter().take(5) {
        eprintln!("          {name} differs");
    }
    let (expected, _) = fed.places.digest_from(&zero);
    outcome.compare(
        "from offset 0, by place",
        expected,
        back.chains.digest(),
        back.chains.records,
    );
    let rate = as_f64(back.chains.records) / back.seconds;
    let megabytes = as_f64(back.files.bytes) / 1e6 / back.seconds;
    outcome.figure(
        "replayed",
        format!("{rate:.0} records/s, {megabytes:.1} MB/s"),
    );
    story.tell(&format!(
        "{} records came back from offset 0",
        back.chains.records
    ))?;

    let somewhere: BTreeMap<u32, u64> = ends
        .iter()
        .map(|(partition, end)| (*partition, story.rng.random_range(0..(*end).max(1))))
        .collect();
    let back = check::read_back(client, TOPIC, &somewhere, &ends).await?;
    let (expected, count) = fed.places.digest_from(&somewhere);
    let text = format!("from offsets {}", places(&somewhere));
    outcome.compare(&text, expected, back.chains.digest(), count);
    story.tell(&format!(
        "{} records came back from arbitrary offsets",
        back.chains.records
    ))?;

    let time = fed
        .places
        .append_time(story.rng.random())
        .context("nothing was appended")?;
    let mut starts = BTreeMap::new();
    for partition in ends.keys() {
        let at = Some(At::AppendTimeNs(time));
        let answer = client.admin().resolve(TOPIC, *partition, at).await?;
        starts.insert(*partition, answer.offset);
    }
    let due = fed.places.starts_at(time);
    let text = format!("{} begins where it should", local(time));
    outcome.check(&text, starts == due);
    let back = check::read_back(client, TOPIC, &starts, &ends).await?;
    let (expected, count) = fed.places.digest_from(&due);
    outcome.compare(
        &format!("from {}", local(time)),
        expected,
        back.chains.digest(),
        count,
    );
    story.tell(&format!(
        "{} records came back from an arbitrary time",
        back.chains.records
    ))
}

/// Shows what the nodes say of themselves.
async fn scrape(dev: &Dev, story: &Story, outcome: &mut Outcome) -> anyhow::Result<()> {
    let whole = |value: f64| format!("{value:.0}");
    let mega = |value: f64| format!("{:.1}", value / 1e6);
    let mut rows = Vec::new();
    let mut series = 0;
    for place in &dev.layout().places {
        let scrape = Scrape::of(place.http_addr()).await?;
        series += scrape.series();
        rows.push(vec![
            place.node.to_string(),
            scrape.show("trilog_partitions", whole),
            scrape.show("trilog_partitions_led", whole),
            scrape.show("trilog_bytes_in_total", mega),
            scrape.show("trilog_bytes_out_total", mega),
            scrape.show("trilog_raft_elections_total", whole),
            scrape.show("process_cpu_seconds_total", |value| format!("{value:.1}")),
            scrape.show("process_resident_memory_bytes", mega),
        ]);
    }
    story.tell(&format!(
        "/metrics of the three nodes has {series} series:\n"
    ))?;
    let heading = [
        "node",
        "partitions",
        "led",
        "MB in",
        "MB out",
        "elections",
        "cpu s",
        "memory MB",
    ];
    output::table(&heading, rows)?;
    output::line("")?;
    outcome.check("every node answers on /metrics", true);
    Ok(())
}

impl Outcome {
    fn check(&mut self, what: &str, passed: bool) {
        self.checks.push(Check {
            what: what.to_owned(),
            passed,
        });
    }

    fn figure(&mut self, name: &'static str, value: String) {
        self.figures.push((name, value));
    }

    fn compare(&mut self, what: &str, sent: Hash, came: Hash, records: u64) {
        let (sent_text, came_text) = (hex(&sent[..8]), hex(&came[..8]));
        let verdict = if sent == came {
            format!("{what}: {records} records, SHA-256 {sent_text}.. went in and came back")
        } else {
            format!("{what}: {records} records, {sent_text}.. went in, {came_text}.. came back")
        };
        self.check(&verdict, sent == came);
    }

    fn print(&self, seed: u64, begun: Instant) -> anyhow::Result<()> {
        output::line("")?;
        for (name, value) in &self.figures {
            output::line(format_args!("{name:>10}  {value}"))?;
        }
        output::line("")?;
        for check in &self.checks {
            let mark = if check.passed { "ok" } else { "FAILED" };
            output::line(format_args!("{mark:>10}  {}", check.what))?;
        }
        let failed = self.checks.iter().filter(|check| !check.passed).count();
        let passed = self.checks.len() - failed;
        let seconds = begun.elapsed().as_secs_f64();
        output::line(format_args!(
            "\n{passed} checks passed, {failed} failed, in {seconds:.0} s (seed {seed})"
        ))?;
        Ok(())
    }
}

fn farewell(data: &Path, port: u16) -> anyhow::Result<()> {
    let flag = data_flag(data);
    let server = match port {
        7400 => String::new(),
        port => format!(" -s 127.0.0.1:{port}"),
    };
    output::line(format_args!(
        "\nThe data is in {}. Open it again with\n\n  \
         trilog dev{flag}\n\n\
         and try, in another terminal:\n\n  \
         trilog topic describe {TOPIC}{server}\n  \
         trilog consume {TOPIC} -o -3 -e{server}\n  \
         trilog consume {TOPIC} -o @-10m -n 5 -f '%p@%o %k: %s\\n'{server}\n  \
         trilog dev kill 2{flag}",
        data.display()
    ))?;
    Ok(())
}

fn places(starts: &BTreeMap<u32, u64>) -> String {
    let starts = starts.iter();
    let places: Vec<String> = starts
        .map(|(partition, offset)| format!("{partition}@{offset}"))
        .collect();
    places.join(" ")
}

/// A moment in the local zone, to the microsecond.
fn local(nanos: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(nanos)) {
        Ok(time) => {
            let local = time.to_zoned(jiff::tz::TimeZone::system());
            format!("@{}", local.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z"))
        }
        Err(_) => format!("@{nanos}ns"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates for people to read")]
fn as_f64(count: u64) -> f64 {
    count as f64
}
