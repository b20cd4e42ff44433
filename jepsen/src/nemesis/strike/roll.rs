//! Restarts of all nodes in order, one after the other, and upgrades, which are such. They go on step
//! by step while other faults come and go, as somebody restarts nodes who does not see what else
//! happens to them.
//!
//! ```text
//! stop the next one ──> it has ended, is started ──> all have it back ──┐
//!         ^                                     or somebody is impatient │
//!         └──────────────────────── others are left ────────────────────┤
//!                 an upgrade: raise the feature level <── nobody is left ┘
//! ```

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{Nemesis, SETTLE, STOP};
use crate::cluster::{ClusterError, Node, while_doing};
use crate::nemesis::schedule::{Fault, Scheduled};

/// How long a cluster that is whole again may refuse to raise its feature level.
const RAISING: Duration = Duration::from_mins(1);
/// How much longer a node is waited for that nothing keeps from the others.
const UNDISTURBED: u32 = 6;
/// How often it is looked whether a step is due.
const LOOK: Duration = Duration::from_millis(100);

/// A restart that goes on.
#[derive(Debug)]
pub(super) struct Rolling {
    /// Its place in the schedule, and what it is there.
    nth: usize,
    one: Scheduled,
    /// Who is yet to be restarted.
    left: VecDeque<u32>,
    restarted: usize,
    step: Step,
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// This one was told to stop.
    Stopping(u32),
    /// It is started again.
    Back,
    /// Everybody runs the newer build.
    Raising,
}

impl Rolling {
    pub(super) fn fault(&self) -> Fault {
        self.one.fault
    }

    fn goes_to(&mut self, step: Step) {
        self.step = step;
        self.since = Instant::now();
    }
}

impl Nemesis {
    /// Begins a restart. What becomes of it is written down when it is over.
    pub(super) fn start_rolling(
        &mut self,
        nth: usize,
        one: &Scheduled,
    ) -> Result<(), ClusterError> {
        if one.fault == Fault::Upgrade {
            let Some(newer) = self.cluster.newer.take() else {
                self.came_to_nothing(one.fault);
                return Ok(());
            };
            for number in &one.nodes {
                if let Some(node) = self.cluster.node(*number) {
                    node.runs(&newer);
                }
            }
        }
        self.note(one, true);
        self.lasting.insert(nth, one.clone());
        self.rolling = Some(Rolling {
            nth,
            one: one.clone(),
            left: one.nodes.iter().copied().collect(),
            restarted: 0,
            step: Step::Back,
            since: Instant::now(),
        });
        self.stop_next()
    }

    /// Ends what lasts beside a restart, if there is one, by which that can come to its end, and
    /// goes on with it until it is over.
    pub(super) async fn finish_undisturbed(&mut self) -> Result<(), ClusterError> {
        if self.rolling.is_none() {
            return Ok(());
        }
        let others = self.lasting.iter().filter(|(_, one)| !one.fault.rolls());
        let others: Vec<(usize, Scheduled)> =
            others.map(|(nth, one)| (*nth, one.clone())).collect();
        for (nth, one) in others {
            self.lasting.remove(&nth);
            self.end(nth, &one).await?;
            self.note(&one, false);
        }
        self.finish_rolling().await
    }

    /// Goes on with a restart, if there is one, until it is over.
    pub(super) async fn finish_rolling(&mut self) -> Result<(), ClusterError> {
        while self.rolling.is_some() {
            self.roll_on(Instant::now() + SETTLE).await?;
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Goes on with a restart, if there is one, until then.
    pub(super) async fn roll_until(&mut self, due: Instant) -> Result<(), ClusterError> {
        while self.rolling.is_some() && Instant::now() < due {
            self.roll_on(due).await?;
            sleep_until(due.min(Instant::now() + LOOK)).await;
        }
        sleep_until(due).await;
        Ok(())
    }

    /// Does the next step if it is due, and does not wait for it longer than that.
    async fn roll_on(&mut self, until: Instant) -> Result<(), ClusterError> {
        let Some(Rolling { step, since, .. }) = &self.rolling else {
            return Ok(());
        };
        match (*step, *since) {
            (Step::Stopping(number), since) => self.await_its_end(number, since),
            (Step::Back, since) => {
                if self.is_back(since, until).await? {
                    self.stop_next()?;
                }
                Ok(())
            }
            (Step::Raising, since) => {
                let is_whole = timeout_at(until, self.cluster.check_settled()).await;
                if matches!(is_whole, Ok(Ok(()))) {
                    self.raise_level(since).await;
                } else if since.elapsed() > SETTLE {
                    // Other faults did not let it; whether it gets whole without them shows later.
                    self.is_over(None);
                }
                Ok(())
            }
        }
    }

    /// Stops the next one that runs. Who is dead by something else is started again by that.
    fn stop_next(&mut self) -> Result<(), ClusterError> {
        self.look_for_deaths()?;
        while let Some(number) = self.rolling.as_mut().and_then(|one| one.left.pop_front()) {
            let node = self.cluster.node(number).filter(|node| node.is_started());
            let (Some(node), Some(rolling)) = (node, &mut self.rolling) else {
                continue;
            };
            node.close();
            rolling.restarted += 1;
            rolling.goes_to(Step::Stopping(number));
            return Ok(());
        }
        match &mut self.rolling {
            Some(rolling) if rolling.one.fault == Fault::Upgrade => rolling.goes_to(Step::Raising),
            Some(rolling) => {
                let what = (rolling.restarted > 0).then(String::new);
                self.is_over(what);
            }
            None => {}
        }
        Ok(())
    }

    /// Whether this node has ended as it was told to. It was not by itself then.
    pub(super) fn has_stopped(&mut self, number: u32, how: ExitStatus) -> bool {
        match &mut self.rolling {
            Some(rolling) if rolling.step == Step::Stopping(number) => rolling.goes_to(Step::Back),
            _ => return false,
        }
        if !how.success() {
            let trouble = format!("node {number} did not stop in order: {how}");
            self.troubles.push(trouble);
        }
        true
    }

    fn await_its_end(&mut self, number: u32, since: Instant) -> Result<(), ClusterError> {
        self.look_for_deaths()?;
        let Some(rolling) = &mut self.rolling else {
            return Ok(());
        };
        if rolling.step != Step::Stopping(number) {
            return Ok(());
        }
        let is_dead = |node: &mut Node| !node.is_started();
        if self.cluster.node(number).is_none_or(is_dead) {
            // By something else, which starts it again.
            rolling.goes_to(Step::Back);
        } else if since.elapsed() > STOP {
            rolling.goes_to(Step::Back);
            self.overdue
                .push(format!("node {number} did not stop in time"));
            self.cluster.kill(&[number])?;
            self.cluster.boot(number, &[])?;
        }
        Ok(())
    }

    /// Whether everybody has the node back; with other faults beside it, whether it was waited for
    /// long enough.
    async fn is_back(&self, since: Instant, until: Instant) -> Result<bool, ClusterError> {
        let Ok(checked) = timeout_at(until, self.cluster.check_settled()).await else {
            return Ok(false);
        };
        let alone = self.rolling.as_ref().is_some_and(|one| one.one.alone);
        match checked {
            Ok(()) => Ok(true),
            Err(state) if alone && since.elapsed() > SETTLE => Err(ClusterError::Late {
                what: "whole",
                waited: SETTLE,
                state,
            }),
            Err(_) => {
                let others = self.lasting.len() > 1;
                let more = if others { 1 } else { UNDISTURBED };
                Ok(!alone && since.elapsed() > self.patience * more)
            }
        }
    }

    /// Has the cluster do what only the newer build can; again and again while it may refuse.
    async fn raise_level(&mut self, since: Instant) {
        let alone = self.rolling.as_ref().is_some_and(|one| one.one.alone);
        let raised = match self.client().await {
            Some(client) => client.admin().upgrade(false).await,
            None => return self.is_over(None),
        };
        match raised {
            Ok(answer) => {
                let (before, after) = (answer.level_before, answer.level);
                // Between two builds of one level there is nothing to upgrade.
                let what = (before < after).then(|| format!("feature level {before} to {after}"));
                self.is_over(what);
            }
            Err(error) if alone || since.elapsed() > RAISING => {
                let trouble = format!("the feature level cannot be raised: {error}");
                self.troubles.push(trouble);
                self.is_over(None);
            }
            Err(_) => {}
        }
    }

    fn is_over(&mut self, what: Option<String>) {
        let Some(Rolling { nth, one, .. }) = self.rolling.take() else {
            return;
        };
        // What is alone ends by the schedule, when everything is whole again.
        if !one.alone && self.lasting.remove(&nth).is_some() {
            self.note(&one, false);
        }
        self.came(&one, what);
    }

    /// Gives a restart up. Who was told to stop has to do that first.
    pub(super) async fn give_up_rolling(&mut self) -> Result<(), ClusterError> {
        let Some(Step::Stopping(number)) = self.rolling.as_ref().map(|one| one.step) else {
            self.rolling = None;
            return Ok(());
        };
        if let Some(node) = self.cluster.node(number) {
            let ended = node.await_end(STOP).await;
            let ended = ended.map_err(while_doing("waiting for a node"))?;
            self.cluster.network.is_gone(number);
            match ended {
                Some(how) => {
                    let _told = self.has_stopped(number, how);
                }
                None => {
                    self.cluster.kill(&[number])?;
                }
            }
        }
        self.rolling = None;
        Ok(())
    }
}
