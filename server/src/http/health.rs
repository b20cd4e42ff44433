//! Whether this node lives, and whether it can serve: checks by name, each with its reason.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Why a check does not pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub check: &'static str,
    pub reason: String,
}

/// The outcome of all checks of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub ok: bool,
    pub reasons: Vec<Reason>,
    /// What a human should know of, though the node serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Reason>,
}

/// The checks of this node. With none registered it lives, but is not ready: a node that is still
/// putting itself together cannot serve.
#[derive(Clone, Default)]
pub struct Health {
    live: Arc<Mutex<Vec<(&'static str, Check)>>>,
    ready: Arc<Mutex<Vec<(&'static str, Check)>>>,
    sound: Arc<Mutex<Vec<(&'static str, Check)>>>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("ready", &self.ready().ok)
            .finish_non_exhaustive()
    }
}

impl Health {
    /// Adds something without which the process should be restarted. Must be quick.
    pub fn must_live<F>(&self, name: &'static str, check: F)
    where
        F: Fn() -> Result<(), String> + Send + Sync + 'static,
    {
        self.live.lock().push((name, Arc::new(check)));
    }

    /// Adds something without which this node cannot serve. Must be quick.
    pub fn must_be_ready<F>(&self, name: &'static str, check: F)
    where
        F: Fn() -> Result<(), String> + Send + Sync + 'static,
    {
        self.ready.lock().push((name, Arc::new(check)));
    }

    /// Adds something that is wrong with this node, and yet no reason to send nobody here. Must be
    /// quick.
    pub fn should_hold<F>(&self, name: &'static str, check: F)
    where
        F: Fn() -> Result<(), String> + Send + Sync + 'static,
    {
        self.sound.lock().push((name, Arc::new(check)));
    }

    pub fn live(&self) -> Report {
        report(&self.live)
    }

    pub fn ready(&self) -> Report {
        if self.ready.lock().is_empty() {
            return Report {
                ok: false,
                reasons: vec![Reason {
                    check: "start",
                    reason: "the node is starting".to_owned(),
                }],
                warnings: Vec::new(),
            };
        }
        Report {
            warnings: report(&self.sound).reasons,
            ..report(&self.ready)
        }
    }
}

fn report(checks: &Mutex<Vec<(&'static str, Check)>>) -> Report {
    let checks = checks.lock().clone();
    let reasons: Vec<Reason> = checks
        .into_iter()
        .filter_map(|(check, passes)| {
            let reason = passes().err()?;
            Some(Reason { check, reason })
        })
        .collect();
    Report {
        ok: reasons.is_empty(),
        reasons,
        warnings: Vec::new(),
    }
}
