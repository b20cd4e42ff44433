//! Carries a schedule out: begins and ends each fault at its time, and writes down that it did.

mod roll;

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};
use trilog_client::proto::MoveRequest;
use trilog_client::{Client, ClientConfig};

use super::damage::damage;
use super::probe::Skipped;
use super::schedule::{Fault, Scheduled};
use crate::cluster::{Cluster, ClusterError, Killed, Way, while_doing};
use crate::history::Note;
use crate::workload::{Stage, TOPIC, await_level};
use roll::Rolling;

/// How long a cluster may take to be whole before and after what costs copies.
const SETTLE: Duration = Duration::from_mins(2);
/// How long somebody is looked for who does what is asked.
const ASKING: Duration = Duration::from_secs(8);
/// How long a node may take to stop in order.
const STOP: Duration = Duration::from_secs(40);
/// How long a node may go on whose disk fails.
const NOTICE: Duration = Duration::from_secs(20);
/// How long the others of a rolling restart wait for a node while something else keeps it from them.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often files are damaged until it shows.
const DRAWS: usize = 12;

/// A fault that was carried out.
#[derive(Debug, Clone)]
pub struct Done {
    pub fault: Fault,
    pub nodes: Vec<u32>,
    /// What it came to in particular.
    pub what: String,
}

/// Strikes a cluster, which it has for itself as long as it lasts.
#[derive(Debug)]
pub struct Nemesis {
    pub cluster: Cluster,
    stage: Arc<Stage>,
    done: Vec<Done>,
    /// What was begun, and nothing came of it.
    in_vain: Vec<Skipped>,
    /// What went wrong with the cluster or with the faults themselves.
    pub troubles: Vec<String>,
    /// What was not done in time, which tells nothing if this program itself stood still.
    pub overdue: Vec<String>,
    /// Whether the cluster did not get well in time.
    late: bool,
    /// What was begun and not ended, by its place in the schedule.
    lasting: BTreeMap<usize, Scheduled>,
    /// A restart of all nodes that goes on beside other faults.
    rolling: Option<Rolling>,
    patience: Duration,
}

enum Turn {
    Begin(usize),
    End(usize),
}

/// Why a fault that was begun came to nothing, where it can.
fn why_nothing(fault: Fault) -> &'static str {
    match fault {
        Fault::Transfer => "no leadership was handed over",
        Fault::Membership => "no replica could be moved",
        Fault::Upgrade => "the feature level was not raised",
        Fault::FlipBits | Fault::Truncate | Fault::StaleChunks => {
            "nothing was changed that can be noticed"
        }
        Fault::FailedSync => "no node ended by a disk that failed",
        Fault::ClockJump => "a node has no clock of its own to set",
        Fault::Kill
        | Fault::KillAll
        | Fault::Pause
        | Fault::PauseMost
        | Fault::PowerLoss
        | Fault::Isolate
        | Fault::CutOneWay
        | Fault::Partial
        | Fault::Delay
        | Fault::Loss
        | Fault::Bandwidth
        | Fault::RollingRestart
        | Fault::Wipe
        | Fault::DiskFull
        | Fault::StallDisk => "nobody ran that it was to strike",
    }
}

impl Nemesis {
    pub fn new(cluster: Cluster, stage: &Arc<Stage>) -> Self {
        Self {
            cluster,
            stage: Arc::clone(stage),
            done: Vec::new(),
            in_vain: Vec::new(),
            troubles: Vec::new(),
            overdue: Vec::new(),
            late: false,
            lasting: BTreeMap::new(),
            rolling: None,
            patience: PATIENCE,
        }
    }

    /// Everything of the schedule, at its times; where something takes longer than it was given,
    /// all that follows is put off, so that every fault lasts as long as it should. Up to where the
    /// cluster does not get well any more, for what follows would tell nothing new, and for no
    /// longer than `limit`.
    pub async fn run(
        &mut self,
        schedule: &[Scheduled],
        limit: Duration,
    ) -> Result<(), ClusterError> {
        let began = Instant::now();
        let mut put_off = Duration::ZERO;
        let mut turns: BTreeMap<(Duration, usize), Turn> = BTreeMap::new();
        for (nth, one) in schedule.iter().enumerate() {
            turns.insert((one.at, 2 * nth), Turn::Begin(nth));
            // What goes on by itself ends by itself, unless nothing else is to happen meanwhile.
            if one.alone || !one.fault.rolls() {
                turns.insert((one.at + one.lasts, 2 * nth + 1), Turn::End(nth));
            }
        }
        for ((at, _), turn) in turns {
            let due = began + at + put_off;
            put_off += Instant::now().saturating_duration_since(due);
            let rolled = self.roll_until(due).await;
            self.unless_late(rolled)?;
            if self.late || began.elapsed() > limit && matches!(turn, Turn::Begin(_)) {
                break;
            }
            self.look_for_deaths()?;
            match turn {
                Turn::Begin(nth) => self.begin_noted(nth, &schedule[nth]).await?,
                Turn::End(nth) if self.lasting.remove(&nth).is_some() => {
                    let ended = self.end(nth, &schedule[nth]).await;
                    self.unless_late(ended)?;
                    self.note(&schedule[nth], false);
                }
                // It was never begun.
                Turn::End(_) => {}
            }
            self.look_for_deaths()?;
            if self.late {
                break;
            }
        }
        if !self.late {
            let rolled = self.finish_undisturbed().await;
            self.unless_late(rolled)?;
        }
        Ok(())
    }

    /// Begins one, and writes down that it did. What would strike nobody is no fault.
    async fn begin_noted(&mut self, nth: usize, one: &Scheduled) -> Result<(), ClusterError> {
        // Nodes are dead before it is said that they are: what is done from then on is done by
        // others.
        let ends_nodes = matches!(one.fault, Fault::Kill | Fault::KillAll);
        let going = self.rolling.as_ref().map(Rolling::fault);
        if going.is_some_and(|going| one.alone || !one.fault.may_overlap(going)) {
            let rolled = self.finish_undisturbed().await;
            if self.unless_late(rolled)?.is_none() {
                return Ok(());
            }
        }
        if one.alone {
            self.cluster.boot_all()?;
            let settled = self.cluster.await_settled(SETTLE).await;
            if self.unless_late(settled)?.is_none() {
                return Ok(());
            }
            let level = self.await_level().await;
            if self.unless_late(level)?.is_none() {
                return Ok(());
            }
        }
        if one.fault.needs_life() && !self.is_anybody_there(&one.nodes) {
            self.came_to_nothing(one.fault);
            return Ok(());
        }
        if one.fault.rolls() {
            return self.begin_rolling(nth, one).await;
        }
        if !ends_nodes {
            self.note(one, true);
            self.lasting.insert(nth, one.clone());
        }
        let began = self.begin(nth, one).await;
        let Some(what) = self.unless_late(began)? else {
            return Ok(());
        };
        if ends_nodes && what.is_some() {
            self.note(one, true);
            self.lasting.insert(nth, one.clone());
        }
        self.came(one, what);
        Ok(())
    }

    /// Begins a restart of all nodes; if nothing else is to happen meanwhile, carries it out.
    async fn begin_rolling(&mut self, nth: usize, one: &Scheduled) -> Result<(), ClusterError> {
        self.start_rolling(nth, one)?;
        if one.alone {
            let rolled = self.finish_rolling().await;
            self.unless_late(rolled)?;
        }
        Ok(())
    }

    /// Keeps what became of a fault.
    fn came(&mut self, one: &Scheduled, what: Option<String>) {
        let Some(what) = what else {
            return self.came_to_nothing(one.fault);
        };
        self.done.push(Done {
            fault: one.fault,
            nodes: one.nodes.clone(),
            what,
        });
    }

    fn came_to_nothing(&mut self, fault: Fault) {
        let why = why_nothing(fault).to_owned();
        self.in_vain.push(Skipped { fault, why });
    }

    fn is_anybody_there(&self, nodes: &[u32]) -> bool {
        let mut there = self.cluster.nodes.iter().filter(|node| node.is_started());
        there.any(|node| nodes.contains(&node.place.number))
    }

    /// A cluster that does not get well in time is trouble, and what is wrong with it shows when
    /// everything is read back; any other error ends the run.
    fn unless_late<T>(&mut self, done: Result<T, ClusterError>) -> Result<Option<T>, ClusterError> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(late @ ClusterError::Late { .. }) => {
                let words = self.cluster.last_words();
                self.overdue.push(format!("{late}\n{words}"));
                self.late = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub fn done(&self) -> &[Done] {
        &self.done
    }

    pub fn in_vain(&self) -> &[Skipped] {
        &self.in_vain
    }

    fn note(&self, one: &Scheduled, begins: bool) {
        let (fault, nodes) = (one.fault.name().to_owned(), one.nodes.clone());
        self.stage.recorder.note(if begins {
            Note::FaultBegin { fault, nodes }
        } else {
            Note::FaultEnd { fault, nodes }
        });
    }

    /// A node that ends by itself is trouble, whatever was done to it; it is started again, as
    /// whoever looks after it would.
    fn look_for_deaths(&mut self) -> Result<(), ClusterError> {
        for (number, how) in self.cluster.ended()? {
            if !self.has_stopped(number, how) {
                self.ended_by_itself(number, how);
            }
            self.cluster.boot(number, &[])?;
        }
        Ok(())
    }

    fn ended_by_itself(&mut self, number: u32, how: ExitStatus) {
        let words = self.cluster.node(number).map(|node| node.last_words(6));
        let words = words.unwrap_or_default();
        self.troubles
            .push(format!("node {number} ended by itself ({how}):\n{words}"));
    }

    /// Kills these nodes. Who was dead already is no less trouble for it.
    fn kill(&mut self, numbers: &[u32]) -> Result<Killed, ClusterError> {
        let killed = self.cluster.kill(numbers)?;
        for (number, how) in &killed.before {
            if !self.has_stopped(*number, *how) {
                self.ended_by_itself(*number, *how);
            }
        }
        Ok(killed)
    }

    /// What number `nth` of the schedule came to; nothing if it could not be done after all.
    async fn begin(&mut self, nth: usize, one: &Scheduled) -> Result<Option<String>, ClusterError> {
        let mut rng = SmallRng::seed_from_u64(one.seed);
        match one.fault {
            Fault::Kill | Fault::KillAll => {
                let Killed { count, before } = self.kill(&one.nodes)?;
                if count > 0 {
                    return Ok(Some(String::new()));
                }
                // This fault does not end, for it does not begin.
                for (number, _) in before {
                    self.cluster.boot(number, &[])?;
                }
                return Ok(None);
            }
            Fault::Pause | Fault::PauseMost => {
                let paused = self.signal(&one.nodes, true)?;
                return Ok((paused > 0).then(String::new));
            }
            Fault::Isolate
            | Fault::CutOneWay
            | Fault::Partial
            | Fault::Delay
            | Fault::Loss
            | Fault::Bandwidth => return self.spoil_links(nth, one, &mut rng).map(Some),
            Fault::Transfer => return Ok(self.transfer().await),
            Fault::Membership => return Ok(self.move_replicas(one, &mut rng).await),
            // They go on by themselves.
            Fault::RollingRestart | Fault::Upgrade => {}
            Fault::Wipe => {
                self.kill(&one.nodes)?;
                for number in &one.nodes {
                    if let Some(node) = self.cluster.node(*number) {
                        node.wipe().map_err(while_doing("wiping a disk"))?;
                    }
                }
            }
            Fault::FlipBits | Fault::Truncate | Fault::StaleChunks => {
                return self.damage(one, &mut rng).await;
            }
            Fault::DiskFull => {
                for number in &one.nodes {
                    if let Some(disk) = self.cluster.disks.get(number) {
                        disk.fill().map_err(while_doing("filling a disk"))?;
                    }
                }
            }
            Fault::StallDisk => self.stall(&one.nodes, one.lasts).await?,
            Fault::FailedSync => return self.fail_disks(&one.nodes).await,
            Fault::PowerLoss => return self.lose_power(&one.nodes, &mut rng).await,
            Fault::ClockJump => return Ok(None),
        }
        Ok(Some(String::new()))
    }

    async fn end(&mut self, nth: usize, one: &Scheduled) -> Result<(), ClusterError> {
        let mut rng = SmallRng::seed_from_u64(one.seed.rotate_left(17));
        match one.fault {
            Fault::Kill | Fault::KillAll | Fault::PowerLoss => {
                self.boot(&self.let_go(one), &[])?;
            }
            Fault::DiskFull => self.make_room(&self.let_go(one))?,
            Fault::Pause | Fault::PauseMost => {
                self.signal(&self.let_go(one), false)?;
            }
            Fault::Isolate
            | Fault::CutOneWay
            | Fault::Partial
            | Fault::Delay
            | Fault::Loss
            | Fault::Bandwidth => {
                let mended = self.cluster.network.mend(nth, rng.random_bool(0.5));
                mended.map_err(while_doing("mending links"))?;
            }
            Fault::Wipe => {
                self.boot(&one.nodes, &["--replace"])?;
                self.cluster.await_settled(SETTLE).await?;
            }
            Fault::FlipBits | Fault::Truncate | Fault::StaleChunks | Fault::FailedSync => {
                self.boot(&one.nodes, &[])?;
                self.cluster.await_settled(SETTLE).await?;
            }
            Fault::Membership | Fault::RollingRestart | Fault::Upgrade if one.alone => {
                self.cluster.await_settled(SETTLE).await?;
            }
            // With others beside them, the first of these are over when everything is healed.
            Fault::Membership
            | Fault::RollingRestart
            | Fault::Upgrade
            | Fault::Transfer
            | Fault::StallDisk
            | Fault::ClockJump => {}
        }
        Ok(())
    }

    /// Those that nothing else holds as this fault did, which is over.
    fn let_go(&self, one: &Scheduled) -> Vec<u32> {
        let others = self.lasting.values();
        let others: Vec<&Scheduled> = others
            .filter(|other| other.fault.holds_as(one.fault))
            .collect();
        let mut nodes = one.nodes.clone();
        nodes.retain(|node| !others.iter().any(|other| other.nodes.contains(node)));
        nodes
    }

    /// Damages files of nodes until it shows: much of what lies in a directory is of the past, and
    /// what is changed there changes nothing. Nothing if it never shows.
    async fn damage(
        &mut self,
        one: &Scheduled,
        rng: &mut SmallRng,
    ) -> Result<Option<String>, ClusterError> {
        self.kill(&one.nodes)?;
        let mut told = Vec::new();
        for number in &one.nodes {
            let Some(node) = self.cluster.node(*number) else {
                continue;
            };
            let verifying = while_doing("verifying files");
            // What was damaged before may not have been found yet.
            let before = node.damage_found().await.map_err(&verifying)?;
            let mut changed = Vec::new();
            for _ in 0..DRAWS {
                let done = damage(node.data(), one.fault, rng);
                changed.extend(done.map_err(while_doing("damaging files"))?);
                let found = node.damage_found().await.map_err(&verifying)?;
                if let Some(shows) = found.iter().find(|damage| !before.contains(damage)) {
                    told.push(format!("{}; noticeable: {shows}", changed.join("; ")));
                    break;
                }
            }
        }
        Ok((!told.is_empty()).then(|| told.join("; ")))
    }

    /// What is struck next may be the best copy there is, unless all are as good.
    async fn await_level(&self) -> Result<(), ClusterError> {
        let level = await_level(&self.stage, SETTLE).await;
        level.map_err(|state| ClusterError::Late {
            what: "level",
            waited: SETTLE,
            state,
        })
    }

    /// Disks of these nodes take nothing for a while. Nothing else is begun or ended meanwhile:
    /// whoever touches a disk that stands still, stands still as well.
    async fn stall(&mut self, nodes: &[u32], lasts: Duration) -> Result<(), ClusterError> {
        self.cluster.freeze(nodes)?;
        sleep(lasts).await;
        self.cluster.thaw(nodes)
    }

    /// A disk fails whatever is written to it and synced. Its node has to end by that: what it
    /// would go on with is not what is on the disk.
    async fn fail_disks(&mut self, nodes: &[u32]) -> Result<Option<String>, ClusterError> {
        let mut noticed = None;
        for number in nodes {
            let Some(disk) = self.cluster.disks.get(number) else {
                continue;
            };
            disk.cut_off().map_err(while_doing("cutting a disk off"))?;
            let began = Instant::now();
            let ended = match self.cluster.node(*number) {
                Some(node) => node.await_end(NOTICE).await,
                None => continue,
            };
            match ended.map_err(while_doing("waiting for a node"))? {
                Some(status) if !status.success() => {
                    let after = began.elapsed().as_millis();
                    noticed = Some(format!("noticed after {after} ms"));
                }
                ended => self.troubles.push(format!(
                    "node {number} did not end by a disk that fails, but {ended:?}"
                )),
            }
            self.cluster.kill(&[*number])?;
            self.cluster.network.is_gone(*number);
            if let Some(disk) = self.cluster.disks.get(number) {
                let mounting = disk.mount_again().await;
                mounting.map_err(while_doing("mounting a disk"))?;
            }
        }
        Ok(noticed)
    }

    /// Cuts the disks of all of these off at once, then kills the nodes: what was not synced is
    /// gone. Half of the time some disks have stood still for a moment before, so that nodes
    /// differ in what they have.
    async fn lose_power(
        &mut self,
        nodes: &[u32],
        rng: &mut SmallRng,
    ) -> Result<Option<String>, ClusterError> {
        let count = if rng.random_bool(0.5) {
            rng.random_range(1..=nodes.len() / 2 + 1)
        } else {
            0
        };
        let behind: Vec<u32> = nodes.choose_multiple(rng, count).copied().collect();
        let moment = Duration::from_millis(rng.random_range(20..600));
        self.cluster.freeze(&behind)?;
        if !behind.is_empty() {
            sleep(moment).await;
        }
        let disks = &self.cluster.disks;
        for disk in nodes.iter().filter_map(|number| disks.get(number)) {
            disk.cut_off().map_err(while_doing("cutting a disk off"))?;
        }
        // Who waits for a disk that stands still cannot end before it goes on; whether it fails
        // then, or was killed first, is all the same.
        self.cluster.shoot(nodes)?;
        self.cluster.thaw(&behind)?;
        // Some may have ended by what their disks said before they were killed.
        let Killed { count, before } = self.cluster.bury(nodes)?;
        let disks = &self.cluster.disks;
        for disk in nodes.iter().filter_map(|number| disks.get(number)) {
            disk.mount_again()
                .await
                .map_err(while_doing("mounting a disk"))?;
        }
        let what = if behind.is_empty() {
            String::new()
        } else {
            let millis = moment.as_millis();
            format!("the disks of {behind:?} had stood still for {millis} ms")
        };
        Ok((count + before.len() > 0).then_some(what))
    }

    fn make_room(&mut self, nodes: &[u32]) -> Result<(), ClusterError> {
        let disks = &self.cluster.disks;
        for disk in nodes.iter().filter_map(|number| disks.get(number)) {
            disk.make_room()
                .map_err(while_doing("making room on a disk"))?;
        }
        Ok(())
    }

    fn boot(&mut self, nodes: &[u32], arguments: &[&str]) -> Result<(), ClusterError> {
        for number in nodes {
            self.cluster.boot(*number, arguments)?;
        }
        Ok(())
    }

    /// How many there were that run.
    fn signal(&mut self, nodes: &[u32], pause: bool) -> Result<usize, ClusterError> {
        let mut count = 0;
        for number in nodes {
            if let Some(node) = self.cluster.node(*number) {
                let done = if pause { node.pause() } else { node.resume() };
                done.map_err(while_doing("pausing or resuming a node"))?;
                count += usize::from(node.is_started());
            }
        }
        Ok(count)
    }

    /// Who says something to whom that a fault of the links is about.
    fn pairs(&self, one: &Scheduled) -> Vec<(u32, u32)> {
        let all = self.cluster.numbers();
        let every = all
            .iter()
            .flat_map(|from| all.iter().map(move |to| (*from, *to)));
        let every = every.filter(|(from, to)| from != to);
        let is_in = |node: &u32| one.nodes.contains(node);
        match one.fault {
            Fault::Isolate => every
                .filter(|(from, to)| is_in(from) != is_in(to))
                .collect(),
            Fault::CutOneWay => one
                .nodes
                .first()
                .copied()
                .zip(one.nodes.get(1).copied())
                .into_iter()
                .collect(),
            Fault::Partial => every
                .filter(|(from, to)| is_in(from) && is_in(to))
                .collect(),
            _ => every.collect(),
        }
    }

    fn spoil_links(
        &mut self,
        nth: usize,
        one: &Scheduled,
        rng: &mut SmallRng,
    ) -> Result<String, ClusterError> {
        let way = match one.fault {
            Fault::Delay => Way {
                delay: Duration::from_millis(rng.random_range(5..120)),
                jitter: Duration::from_millis(rng.random_range(1..200)),
                ..Way::default()
            },
            Fault::Loss => Way {
                loss: rng.random_range(0.02..0.3),
                ..Way::default()
            },
            Fault::Bandwidth => Way {
                rate: Some(rng.random_range(20_000..400_000)),
                ..Way::default()
            },
            _ => Way {
                cut: true,
                ..Way::default()
            },
        };
        let pairs = self.pairs(one);
        let spoiled = self.cluster.network.spoil(nth, &pairs, way);
        spoiled.map_err(while_doing("spoiling links"))?;
        Ok(match one.fault {
            Fault::Delay => format!(
                "{} ms and up to {} more",
                way.delay.as_millis(),
                way.jitter.as_millis()
            ),
            Fault::Loss => format!("{:.1} % of pieces", way.loss * 100.0),
            Fault::Bandwidth => format!("{} bytes/s", way.rate.unwrap_or(0)),
            _ => String::new(),
        })
    }

    /// A client of whoever answers, looked for as long as faults beside this one may last.
    async fn client(&self) -> Option<Client> {
        let deadline = Instant::now() + ASKING;
        while Instant::now() < deadline {
            let config = ClientConfig {
                seeds: self.cluster.addresses(),
                connect_timeout: Duration::from_secs(1),
                call_timeout: Duration::from_secs(5),
                attempt_timeout: Duration::from_secs(1),
                ..ClientConfig::default()
            };
            if let Ok(client) = Client::connect_with(config).await {
                return Some(client);
            }
        }
        None
    }

    /// Has every key led by another node, as far as somebody is there to do it.
    async fn transfer(&self) -> Option<String> {
        let client = self.client().await?;
        let mut done = 0;
        for key in 0..self.stage.keys {
            done += u32::from(client.admin().transfer(TOPIC, key, 0).await.is_ok());
        }
        (done > 0).then(|| format!("{done} of {} keys", self.stage.keys))
    }

    /// Moves each key's replica on one node to one that has none of it.
    async fn move_replicas(&self, one: &Scheduled, rng: &mut SmallRng) -> Option<String> {
        let (client, from) = (self.client().await?, *one.nodes.first()?);
        let admin = client.admin();
        let topic = admin.describe_topic(TOPIC).await.ok()?;
        let mut moved = Vec::new();
        for place in topic
            .partitions
            .iter()
            .filter(|place| place.replicas.contains(&from))
        {
            let free = self.cluster.numbers().into_iter();
            let free: Vec<u32> = free.filter(|node| !place.replicas.contains(node)).collect();
            if free.is_empty() {
                continue;
            }
            let to = free[rng.random_range(0..free.len())];
            let request = MoveRequest {
                topic: TOPIC.to_owned(),
                partition: place.partition,
                from,
                to,
            };
            if admin.move_replica(request).await.is_ok() {
                moved.push(format!("{}: {from} to {to}", place.partition));
            }
        }
        (!moved.is_empty()).then(|| moved.join(", "))
    }

    /// Ends whatever is going on: everybody runs and hears everybody.
    pub async fn heal(&mut self) -> Result<(), ClusterError> {
        self.late = false;
        let healed = self.cluster.network.heal();
        healed.map_err(while_doing("mending links"))?;
        let numbers = self.cluster.numbers();
        self.make_room(&numbers)?;
        self.signal(&numbers, false)?;
        self.give_up_rolling().await?;
        self.look_for_deaths()?;
        self.cluster.boot_all()?;
        let settled = self.cluster.await_settled(SETTLE).await;
        self.unless_late(settled).map(drop)
    }
}

#[cfg(test)]
mod tests;
