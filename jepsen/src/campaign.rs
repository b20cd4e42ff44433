//! Many short runs with one aim, one after the other: what they prove together, as a line of
//! `docs/proof.tsv`.
//!
//! Owns what each run is to be and what is counted; carrying one out is `run`'s business.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use crate::check::Validity;
use crate::nemesis::{Fault, Means};
use crate::report::{Summary, percentile};
use crate::run::{self, Options, Outcome};

/// What is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Nothing acknowledged is lost when all nodes lose power at once.
    PowerLoss,
    /// Nor when the files of a minority are damaged, which are whole again in the end.
    Corruption,
    /// How long it takes from the death of a leader to the next acknowledgement.
    LeaderKill,
    /// How long clients stand still while all nodes are restarted in order.
    RollingRestart,
    /// Any two kinds of faults together do no harm.
    Mixes,
}

impl Aim {
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerLoss => "power-loss",
            Self::Corruption => "corruption",
            Self::LeaderKill => "leader-kill",
            Self::RollingRestart => "rolling-restart",
            Self::Mixes => "mixes",
        }
    }

    /// How long clients work in one run.
    fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::PowerLoss => 7,
            Self::Corruption => 10,
            Self::LeaderKill => 60,
            Self::RollingRestart | Self::Mixes => 20,
        })
    }

    /// What counts towards what a campaign is to reach, for people.
    fn unit(self) -> &'static str {
        match self {
            Self::LeaderKill => "kills of a leader",
            Self::RollingRestart => "rolling restarts",
            Self::PowerLoss | Self::Corruption | Self::Mixes => "histories",
        }
    }
}

/// The run of a campaign that has this number, beginning with none; `kinds` are the faults that
/// this machine can do. Nothing if it cannot be made here.
fn nth(aim: Aim, base: &Options, number: u64, kinds: &[Fault]) -> Option<Options> {
    let mut options = base.clone();
    options.seed = base.seed.wrapping_add(number);
    options.length = aim.length();
    options.calm = false;
    // By the seed, so that the campaign after this one goes on where it ends.
    let seed = options.seed;
    let turn = |of: usize| usize::try_from(seed % of.max(1) as u64).unwrap_or(0);
    options.faults = match aim {
        Aim::PowerLoss => vec![Fault::PowerLoss],
        Aim::Corruption => {
            let damages = [Fault::FlipBits, Fault::Truncate, Fault::StaleChunks];
            vec![damages[turn(damages.len())], Fault::Kill]
        }
        Aim::LeaderKill => {
            options.calm = true;
            vec![Fault::Kill]
        }
        Aim::RollingRestart => {
            options.calm = true;
            vec![Fault::RollingRestart]
        }
        Aim::Mixes => {
            let pairs = pairs(kinds);
            pairs.get(turn(pairs.len()))?.to_vec()
        }
    };
    // There has to be a node to move to.
    if options.faults.contains(&Fault::Membership) {
        options.nodes = options.nodes.max(5);
    }
    let can = options.faults.iter().all(|fault| kinds.contains(fault));
    can.then_some(options)
}

/// Any two of these.
fn pairs(kinds: &[Fault]) -> Vec<[Fault; 2]> {
    let mut pairs = Vec::new();
    for (nth, one) in kinds.iter().enumerate() {
        pairs.extend(kinds[nth + 1..].iter().map(|other| [*one, *other]));
    }
    pairs
}

/// A campaign that is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    pub aim: Aim,
    /// What all runs have in common; seeds count up from its own.
    pub base: Options,
    /// How much is to be shown: histories, or whatever an aim counts.
    pub count: u64,
    /// No run begins after that.
    pub limit: Duration,
}

/// What was found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Runs that were made, and in which everything was as it should be.
    pub runs: u64,
    pub valid: u64,
    pub operations: u64,
    /// Faults that were carried out.
    pub faults: u64,
    /// In milliseconds, from the death of each leader to the next acknowledgement in a key.
    pub successions: Vec<u64>,
    /// Leaders that were killed; one may have led more than one key.
    pub kills: u64,
    /// In milliseconds: for how long nobody had anything acknowledged, and nobody in one key.
    pub stalls: Vec<u64>,
    pub key_stalls: Vec<u64>,
    /// The seed of the run that was not valid and ended it, and what is wrong.
    pub wrong: Option<(u64, String)>,
}

impl Found {
    fn take(&mut self, seed: u64, outcome: &Outcome, summary: &Summary) {
        self.runs += 1;
        match outcome.validity() {
            Validity::Valid => self.valid += 1,
            // What proves nothing counts as nothing.
            Validity::Unknown => return,
            Validity::Invalid => {
                let tally = outcome.verdict.tally.iter();
                let mut errors = tally.filter(|(_, tally)| tally.errors > 0);
                let what = errors.next().map(|(kind, _)| kind.to_string());
                let failure = || outcome.failures.first().cloned();
                let what = what.or_else(failure).unwrap_or_default();
                let line = what.lines().next().unwrap_or_default().to_owned();
                self.wrong = Some((seed, line));
            }
        }
        self.operations += outcome.verdict.counts.operations;
        self.faults += outcome.done.len() as u64;
        let mut deaths: Vec<u64> = Vec::new();
        for one in &summary.successions {
            self.successions.push(one.took_ms);
            deaths.push(one.from_ns);
        }
        deaths.sort_unstable();
        deaths.dedup();
        self.kills += deaths.len() as u64;
        let rolling = Fault::RollingRestart.name();
        self.stalls.extend(summary.stalls.get(rolling));
        self.key_stalls.extend(summary.key_stalls.get(rolling));
    }

    /// How much of what the aim counts was shown.
    pub fn shown(&self, aim: Aim) -> u64 {
        match aim {
            Aim::LeaderKill => self.kills,
            // There are no others.
            Aim::RollingRestart => self.faults,
            Aim::PowerLoss | Aim::Corruption | Aim::Mixes => self.valid,
        }
    }

    /// Histories that prove something, whose operations and faults are counted.
    fn judged(&self) -> u64 {
        self.valid + u64::from(self.wrong.is_some())
    }

    pub fn validity(&self) -> Validity {
        if self.wrong.is_some() {
            Validity::Invalid
        } else if self.valid < self.runs || self.runs == 0 {
            Validity::Unknown
        } else {
            Validity::Valid
        }
    }

    /// The figure that an aim is about.
    fn figure(&self, aim: Aim) -> String {
        let longest = |of: &[u64]| of.iter().max().copied().unwrap_or(0);
        match aim {
            Aim::PowerLoss => "nothing acknowledged was lost".to_owned(),
            Aim::Corruption => {
                "nothing acknowledged was lost, all files verify and all replicas are alike in \
                 the end"
                    .to_owned()
            }
            Aim::Mixes => "no anomaly".to_owned(),
            Aim::LeaderKill => {
                let mut took = self.successions.clone();
                took.sort_unstable();
                let at = |percent| percentile(&took, percent);
                format!(
                    "to the first acknowledged write p50 {} ms, p99 {} ms, longest {} ms",
                    at(50),
                    at(99),
                    longest(&took)
                )
            }
            Aim::RollingRestart => format!(
                "longest stall {} ms of everything, {} ms of one key",
                longest(&self.stalls),
                longest(&self.key_stalls)
            ),
        }
    }

    /// A line of `docs/proof.tsv`: commit, what, range, count, verdict.
    pub fn row(&self, plan: &Plan, commit: &str) -> String {
        let first = plan.base.seed;
        let last = first.wrapping_add(self.runs.saturating_sub(1));
        let (aim, shown) = (plan.aim, self.shown(plan.aim));
        let (nodes, medium) = (plan.base.nodes, plan.base.medium.name());
        let what = format!("campaign {}, {nodes} nodes, {medium}", aim.name());
        let mut count = format!(
            "{} histories, {} operations, {} faults",
            self.judged(),
            self.operations,
            self.faults
        );
        if aim.unit() != "histories" {
            count = format!("{shown} {} in {count}", aim.unit());
        }
        let verdict = match &self.wrong {
            Some((seed, what)) => format!("invalid, seed {seed}: {what}"),
            None if self.valid < self.runs => {
                let unknown = self.runs - self.valid;
                format!(
                    "{} valid, {unknown} unknown; {}",
                    self.valid,
                    self.figure(aim)
                )
            }
            None => format!("valid; {}", self.figure(aim)),
        };
        format!("{commit}\t{what}\tseeds {first}-{last}\t{count}\t{verdict}")
    }
}

/// Makes one run after the other until enough was `found`, something is wrong, or time is up. `keep`
/// is given what comes of each, and says what a report says of it.
pub async fn carry_out(
    plan: &Plan,
    found: &mut Found,
    say: &mut dyn FnMut(&str),
    keep: &mut dyn FnMut(&Options, &Outcome) -> anyhow::Result<Summary>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let kinds = kinds(plan, say).await?;
    while found.shown(plan.aim) < plan.count && found.wrong.is_none() {
        if began.elapsed() >= plan.limit {
            say("time is up");
            break;
        }
        let mut options = nth(plan.aim, &plan.base, found.runs, &kinds)
            .context("this machine cannot do what this needs")?;
        options.dir = plan.base.dir.join(options.seed.to_string());
        std::fs::create_dir_all(&options.dir)
            .with_context(|| format!("cannot make {}", options.dir.display()))?;
        let of_run = || format!("seed {}, {}", options.seed, options.dir.display());
        let mut quiet = |_: &str| {};
        let outcome = run::run(&options, &mut quiet).await.with_context(of_run)?;
        let summary = keep(&options, &outcome).with_context(of_run)?;
        found.take(options.seed, &outcome, &summary);
        say(&format!(
            "{} {} of {}: seed {} {}, {} operations, {} faults, {}",
            plan.aim.name(),
            found.shown(plan.aim),
            plan.count,
            options.seed,
            outcome.validity(),
            outcome.verdict.counts.operations,
            outcome.done.len(),
            outcome.phases
        ));
        for line in outcome.failures.iter().chain(&outcome.gaps) {
            say(line);
        }
    }
    Ok(())
}

/// The kinds of faults that can be had here.
async fn kinds(plan: &Plan, say: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Fault>> {
    let (dir, base) = (&plan.base.dir, &plan.base);
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // For those that move replicas there are more of them.
    let nodes = 5;
    let (older, medium) = (base.older.is_some(), &base.medium);
    let means = Means::probe(dir, nodes, older, medium, &Fault::ALL).await;
    let (kinds, skipped) = means.sort(&Fault::ALL);
    say(&format!("network: {}", medium.about()));
    for one in skipped {
        say(&format!("SKIPPED {}: {}", one.fault, one.why));
    }
    Ok(kinds)
}

/// Adds a line to a table.
pub fn add_row(table: &Path, row: &str) -> io::Result<()> {
    let mut file = File::options().append(true).open(table)?;
    file.write_all(format!("{row}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Medium;
    use std::path::PathBuf;

    fn base() -> Options {
        Options {
            trilog: PathBuf::from("trilog"),
            older: None,
            dir: PathBuf::from("dir"),
            seed: 40,
            nodes: 3,
            medium: Medium::Ports(Vec::new()),
            length: Duration::ZERO,
            operations: 1,
            workers: 1,
            python: None,
            kcat: None,
            keys: 1,
            pace: Duration::ZERO,
            faults: Vec::new(),
            calm: false,
        }
    }

    fn plan(aim: Aim) -> Plan {
        Plan {
            aim,
            base: base(),
            count: 100,
            limit: Duration::from_hours(1),
        }
    }

    #[test]
    fn runs_differ_by_their_seeds_and_every_mix_of_two_comes() {
        let kinds = [Fault::Kill, Fault::Pause, Fault::Membership, Fault::Wipe];
        let mut seen = Vec::new();
        for number in 0..12 {
            let options = nth(Aim::Mixes, &base(), number, &kinds).unwrap();
            assert_eq!(options.seed, 40 + number);
            let moves = options.faults.contains(&Fault::Membership);
            assert_eq!(options.nodes, if moves { 5 } else { 3 });
            seen.push(options.faults);
        }
        assert_eq!(seen[..6], seen[6..]);
        seen.truncate(6);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 6);
    }

    #[test]
    fn what_a_machine_cannot_do_is_no_campaign() {
        assert!(nth(Aim::PowerLoss, &base(), 0, &[Fault::Kill]).is_none());
        assert!(nth(Aim::Mixes, &base(), 0, &[Fault::Kill]).is_none());
        assert!(nth(Aim::LeaderKill, &base(), 0, &[Fault::Kill]).is_some());
    }

    #[test]
    fn a_row_says_what_was_shown_and_what_was_wrong() {
        let mut found = Found {
            runs: 3,
            valid: 3,
            operations: 900,
            faults: 5,
            successions: vec![300, 100, 200],
            kills: 2,
            stalls: vec![20, 70],
            key_stalls: vec![250, 130],
            wrong: None,
        };
        let row = found.row(&plan(Aim::LeaderKill), "abc");
        assert_eq!(
            row,
            "abc\tcampaign leader-kill, 3 nodes, ports\tseeds 40-42\t2 kills of a leader in 3 histories, \
             900 operations, 5 faults\tvalid; to the first acknowledged write p50 200 ms, p99 300 \
             ms, longest 300 ms"
        );
        let row = found.row(&plan(Aim::RollingRestart), "abc");
        assert!(row.ends_with("longest stall 70 ms of everything, 250 ms of one key"));
        assert_eq!(found.validity(), Validity::Valid);
        found.valid = 2;
        assert_eq!(found.validity(), Validity::Unknown);
        let row = found.row(&plan(Aim::PowerLoss), "abc");
        assert!(row.contains("\t2 valid, 1 unknown; nothing"), "{row}");
        found.wrong = Some((42, "lost-write".to_owned()));
        assert_eq!(found.validity(), Validity::Invalid);
        let row = found.row(&plan(Aim::PowerLoss), "abc");
        assert!(row.ends_with("\tinvalid, seed 42: lost-write"), "{row}");
        assert_eq!(Found::default().validity(), Validity::Unknown);
    }
}
