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
use crate::cluster::disk;
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
    // A history in which one of its faults did not come counts as none.
    options.by_name = true;
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
    // Nodes would run it to the end.
    if !options.faults.contains(&Fault::Upgrade) {
        options.older = None;
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

/// What was found so far. All figures are of valid runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Runs that were made, and in which everything was as it should be.
    pub runs: u64,
    pub valid: u64,
    /// The seeds of runs that prove nothing, and so count as none.
    pub unknown: Vec<u64>,
    /// The seed of the run that was begun and is not over.
    pub going: Option<u64>,
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
    fn take(&mut self, options: &Options, outcome: &Outcome, summary: &Summary) {
        self.runs += 1;
        self.going = None;
        match outcome.validity() {
            Validity::Valid => self.valid += 1,
            Validity::Unknown => {
                self.unknown.push(options.seed);
                return;
            }
            Validity::Invalid => {
                self.wrong = Some((options.seed, what_is_wrong(outcome)));
                return;
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

    /// Valid is only who has shown as much as was to be shown.
    pub fn validity(&self, plan: &Plan) -> Validity {
        if self.wrong.is_some() {
            Validity::Invalid
        } else if self.shown(plan.aim) < plan.count.max(1) {
            Validity::Unknown
        } else {
            Validity::Valid
        }
    }

    /// The figure that an aim is about; there is none of nothing.
    fn figure(&self, aim: Aim) -> Option<String> {
        if self.shown(aim) == 0 {
            return None;
        }
        let longest = |of: &[u64]| of.iter().max().copied();
        match aim {
            Aim::PowerLoss => Some("nothing acknowledged was lost".to_owned()),
            Aim::Corruption => Some(
                "nothing acknowledged was lost, all files verify and all replicas are alike in \
                 the end"
                    .to_owned(),
            ),
            Aim::Mixes => Some("no anomaly".to_owned()),
            Aim::LeaderKill => {
                let mut took = self.successions.clone();
                took.sort_unstable();
                let at = |percent| percentile(&took, percent);
                Some(format!(
                    "to the first acknowledged write p50 {} ms, p99 {} ms, longest {} ms",
                    at(50),
                    at(99),
                    longest(&took)?
                ))
            }
            Aim::RollingRestart => Some(format!(
                "longest stall {} ms of everything, {} ms of one key",
                longest(&self.stalls)?,
                longest(&self.key_stalls)?
            )),
        }
    }

    /// A line of `docs/proof.tsv`: commit, what, range, count, verdict. `broken` is why the runs
    /// were broken off, if they were.
    pub fn row(&self, plan: &Plan, commit: &str, broken: Option<&str>) -> String {
        let first = plan.base.seed;
        let runs = self.runs + u64::from(self.going.is_some());
        let last = first.wrapping_add(runs.saturating_sub(1));
        let (aim, shown) = (plan.aim, self.shown(plan.aim));
        let (nodes, medium) = (plan.base.nodes, plan.base.medium.name());
        let what = format!("campaign {}, {nodes} nodes, {medium}", aim.name());
        let mut count = format!("{shown} of {} {}", plan.count, aim.unit());
        if aim.unit() != "histories" {
            count = format!("{count} in {} histories", self.valid);
        }
        let (operations, faults) = (self.operations, self.faults);
        let count = format!("{count}, {operations} operations, {faults} faults");
        let mut verdict = vec![match (&self.wrong, broken) {
            (Some((seed, what)), _) => format!("invalid, seed {seed}: {what}"),
            (None, Some(why)) => {
                let at = self.going.map(|seed| format!(" at seed {seed}"));
                let why = why.lines().next().unwrap_or_default().replace('\t', " ");
                format!("broken off{}: {why}", at.unwrap_or_default())
            }
            (None, None) => match self.validity(plan) {
                Validity::Valid => "valid".to_owned(),
                Validity::Unknown | Validity::Invalid => "unknown: less was shown".to_owned(),
            },
        }];
        verdict.extend(self.figure(aim).filter(|_| self.wrong.is_none()));
        if !self.unknown.is_empty() {
            let seeds: Vec<String> = self.unknown.iter().map(u64::to_string).collect();
            let (count, seeds) = (seeds.len(), seeds.join(" "));
            verdict.push(format!("{count} more prove nothing: seeds {seeds}"));
        }
        let verdict = verdict.join("; ");
        format!("{commit}\t{what}\tseeds {first}-{last}\t{count}\t{verdict}")
    }
}

/// In a line: a kind of anomaly, or else what no history shows.
fn what_is_wrong(outcome: &Outcome) -> String {
    let tally = outcome.verdict.tally.iter();
    let mut errors = tally.filter(|(_, tally)| tally.errors > 0);
    let what = errors.next().map(|(kind, _)| kind.to_string());
    let failure = || outcome.failures.first().cloned();
    let what = what.or_else(failure).unwrap_or_default();
    what.lines().next().unwrap_or_default().to_owned()
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
    let dir = &plan.base.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    disk::clear_all(dir).context("unmounting what an earlier campaign left")?;
    let kinds = kinds(plan, say).await;
    while found.shown(plan.aim) < plan.count && found.wrong.is_none() {
        if began.elapsed() >= plan.limit {
            say("time is up");
            break;
        }
        let mut options = nth(plan.aim, &plan.base, found.runs, &kinds)
            .context("this machine cannot do what this needs")?;
        options.dir = dir.join(options.seed.to_string());
        found.going = Some(options.seed);
        std::fs::create_dir_all(&options.dir)
            .with_context(|| format!("cannot make {}", options.dir.display()))?;
        let mut quiet = |_: &str| {};
        let outcome = run::run(&options, &mut quiet).await?;
        let summary = keep(&options, &outcome)?;
        found.take(&options, &outcome, &summary);
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
async fn kinds(plan: &Plan, say: &mut dyn FnMut(&str)) -> Vec<Fault> {
    let (dir, base) = (&plan.base.dir, &plan.base);
    // For those that move replicas there are more of them.
    let nodes = 5;
    let (older, medium) = (base.older.is_some(), &base.medium);
    let means = Means::probe(dir, nodes, older, medium, &Fault::ALL).await;
    let (kinds, skipped) = means.sort(&Fault::ALL);
    say(&format!("network: {}", medium.about()));
    for one in skipped {
        say(&format!("SKIPPED {}: {}", one.fault, one.why));
    }
    kinds
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
            by_name: false,
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
    fn nodes_begin_with_an_older_build_only_where_they_are_upgraded() {
        let mut base = base();
        base.older = Some(PathBuf::from("older"));
        for number in 0..3 {
            let options = nth(
                Aim::Mixes,
                &base,
                number,
                &[Fault::Kill, Fault::Upgrade, Fault::Wipe],
            );
            let options = options.unwrap();
            let upgrades = options.faults.contains(&Fault::Upgrade);
            assert_eq!(options.older.is_some(), upgrades, "{:?}", options.faults);
        }
        let options = nth(Aim::PowerLoss, &base, 0, &[Fault::PowerLoss]).unwrap();
        assert_eq!(options.older, None);
    }

    #[test]
    fn what_a_machine_cannot_do_is_no_campaign() {
        assert!(nth(Aim::PowerLoss, &base(), 0, &[Fault::Kill]).is_none());
        assert!(nth(Aim::Mixes, &base(), 0, &[Fault::Kill]).is_none());
        assert!(nth(Aim::LeaderKill, &base(), 0, &[Fault::Kill]).is_some());
    }

    fn found() -> Found {
        Found {
            runs: 3,
            valid: 3,
            operations: 900,
            faults: 5,
            successions: vec![300, 100, 200],
            kills: 2,
            stalls: vec![20, 70],
            key_stalls: vec![250, 130],
            ..Found::default()
        }
    }

    #[test]
    fn a_row_says_what_was_shown() {
        let found = found();
        let mut plan = plan(Aim::LeaderKill);
        plan.count = 2;
        assert_eq!(
            found.row(&plan, "abc", None),
            "abc\tcampaign leader-kill, 3 nodes, ports\tseeds 40-42\t2 of 2 kills of a leader in 3 \
             histories, 900 operations, 5 faults\tvalid; to the first acknowledged write p50 200 \
             ms, p99 300 ms, longest 300 ms"
        );
        assert_eq!(found.validity(&plan), Validity::Valid);
        plan.aim = Aim::RollingRestart;
        let row = found.row(&plan, "abc", None);
        assert!(row.ends_with("longest stall 70 ms of everything, 250 ms of one key"));
        plan.aim = Aim::PowerLoss;
        let row = found.row(&plan, "abc", None);
        assert!(row.contains("\t3 of 2 histories, 900 operations"), "{row}");
    }

    #[test]
    fn less_than_was_to_be_shown_is_not_valid_and_nothing_has_no_figure() {
        for (aim, few) in [
            (Aim::PowerLoss, found()),
            (Aim::LeaderKill, found()),
            (Aim::RollingRestart, Found::default()),
            (Aim::LeaderKill, Found::default()),
            (Aim::Mixes, Found::default()),
        ] {
            let plan = plan(aim);
            assert_eq!(few.validity(&plan), Validity::Unknown, "{aim:?}");
            let row = few.row(&plan, "abc", None);
            assert!(row.contains("\tunknown: less was shown"), "{row}");
            let shown = format!("\t{} of 100 ", few.shown(aim));
            assert!(row.contains(&shown), "{row}");
            assert_eq!(row.ends_with("shown"), few.runs == 0, "{row}");
        }
    }

    #[test]
    fn a_row_says_what_was_wrong_what_was_broken_off_and_what_counts_as_nothing() {
        let mut found = found();
        let mut plan = plan(Aim::PowerLoss);
        found.going = Some(43);
        let row = found.row(&plan, "abc", Some("told to stop\nby somebody"));
        assert!(
            row.contains("\tseeds 40-43\t3 of 100 histories, 900 operations"),
            "{row}"
        );
        let end = "\tbroken off at seed 43: told to stop; nothing acknowledged was lost";
        assert!(row.ends_with(end), "{row}");
        found.going = None;
        found.runs = 5;
        found.unknown = vec![41, 44];
        plan.count = 3;
        assert_eq!(found.validity(&plan), Validity::Valid);
        let row = found.row(&plan, "abc", None);
        let end = "\tvalid; nothing acknowledged was lost; 2 more prove nothing: seeds 41 44";
        assert!(row.ends_with(end), "{row}");
        found.unknown.clear();
        found.wrong = Some((42, "lost-write".to_owned()));
        assert_eq!(found.validity(&plan), Validity::Invalid);
        let row = found.row(&plan, "abc", Some("and more"));
        assert!(row.ends_with("\tinvalid, seed 42: lost-write"), "{row}");
    }
}
