//! What this machine can do to a cluster: found out by trying, and said, so that a fault that did
//! not run is never taken for one that was survived.

use std::path::Path;

use super::schedule::Fault;
use crate::cluster::{Medium, disk};

/// A fault that cannot be had here, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub fault: Fault,
    pub why: String,
}

/// What faults stand on.
#[derive(Debug, Clone, Default)]
pub struct Means {
    /// Whether nodes are on wires between name spaces.
    pub wires: bool,
    /// Whether the kernel says which process a connection belongs to; links that are no wires need
    /// it.
    pub links: bool,
    /// How many nodes there are.
    pub nodes: usize,
    /// Whether there is a build to begin with that is to be replaced.
    pub older: bool,
    /// Why nodes cannot have disks of their own, if so.
    pub no_disks: Option<String>,
}

impl Means {
    /// Tries in the directory `dir` what has to be tried for these faults.
    pub async fn probe(
        dir: &Path,
        nodes: usize,
        older: bool,
        medium: &Medium,
        faults: &[Fault],
    ) -> Self {
        let wanted = faults.iter().any(|fault| fault.needs_disks());
        let no_disks = if wanted {
            disk::probe(dir).await.err()
        } else {
            None
        };
        Self {
            wires: matches!(medium, Medium::Spaces(_)),
            links: std::fs::read_to_string("/proc/net/tcp").is_ok(),
            nodes,
            older,
            no_disks,
        }
    }

    /// Which of these faults can be had, and which cannot.
    pub fn sort(&self, faults: &[Fault]) -> (Vec<Fault>, Vec<Skipped>) {
        let mut ready = Vec::new();
        let mut skipped = Vec::new();
        for fault in faults.iter().copied() {
            match self.lacks(fault) {
                None => ready.push(fault),
                Some(why) => skipped.push(Skipped { fault, why }),
            }
        }
        (ready, skipped)
    }

    fn lacks(&self, fault: Fault) -> Option<String> {
        let unless = |can: bool, why: &str| (!can).then(|| why.to_owned());
        match fault {
            Fault::Delay | Fault::Loss if self.wires => {
                let why = "wires neither lose nor delay anything; `--network ports` does";
                unless(false, why)
            }
            Fault::Isolate
            | Fault::CutOneWay
            | Fault::Partial
            | Fault::Delay
            | Fault::Loss
            | Fault::Bandwidth => unless(self.wires || self.links, "/proc/net/tcp cannot be read"),
            Fault::Membership => unless(self.nodes > 3, "there is no node to move to"),
            Fault::Upgrade => unless(self.older, "no older build was given"),
            Fault::DiskFull | Fault::StallDisk | Fault::FailedSync | Fault::PowerLoss => {
                self.no_disks.clone()
            }
            Fault::ClockJump => unless(false, "a node has no clock of its own to set"),
            Fault::Kill
            | Fault::KillAll
            | Fault::Pause
            | Fault::PauseMost
            | Fault::Transfer
            | Fault::RollingRestart
            | Fault::Wipe
            | Fault::FlipBits
            | Fault::Truncate
            | Fault::StaleChunks => None,
        }
    }
}
