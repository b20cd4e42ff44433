//! Puts a configuration together: default, then file, then environment, then flags.
//!
//! Whatever is wrong is collected rather than reported one at a time, and every value remembers
//! where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Problem};
use super::nearest::nearest;
use super::{Config, validate};

/// Before the upper-cased key in a variable's name: `TRILOG_RAFT_HEARTBEAT_INTERVAL`.
const PREFIX: &str = "TRILOG_";

/// Variables with that prefix which are not configuration of a node.
const OTHER_VARIABLES: &[&str] = &[
    "TRILOG_BLESS",
    "TRILOG_CACHE",
    "TRILOG_COMMIT",
    "TRILOG_CONFIG",
    #[cfg(feature = "planted")]
    "TRILOG_PLANTED",
    "TRILOG_ROUNDS",
    "TRILOG_SEEDS",
    "TRILOG_SERVER",
    "TRILOG_TRACE",
];

/// A configuration file is small; anything larger is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the value of a key came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What to put together.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// Environment variables, all there are; those without the prefix are passed over.
    pub env: Vec<(String, String)>,
    /// What flags set, as (flag, key, value): `("--data-dir", "node.data_dir", "/data")`.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// This process's environment, and nothing else yet. Variables that are not text are passed
    /// over: none of ours can be one.
    pub fn from_process() -> Self {
        Self {
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            ..Self::default()
        }
    }
}

/// A usable configuration, and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where the value of `section.field` came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }
}

/// Reads, layers and checks a configuration.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut loading = Loading::default();
    if let Some(path) = &sources.file {
        loading.file(path);
    }
    loading.env(&sources.env);
    for (flag, key, value) in &sources.flags {
        loading.flag(flag, key, value);
    }
    let Loading {
        config,
        origins,
        mut problems,
    } = loading;
    let loaded = Loaded { config, origins };
    if problems.is_empty() {
        problems = validate::problems(&loaded);
    }
    if problems.is_empty() {
        Ok(loaded)
    } else {
        Err(ConfigError { problems })
    }
}

#[derive(Debug, Default)]
struct Loading {
    config: Config,
    origins: BTreeMap<String, Origin>,
    problems: Vec<Problem>,
}

impl Loading {
    fn file(&mut self, path: &Path) {
        match read(path) {
            Ok(text) => self.text(path, &text),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn text(&mut self, path: &Path, text: &str) {
        let at = |span: Option<std::ops::Range<usize>>| Origin::File {
            path: path.to_owned(),
            line: line_of(text, span.map_or(0, |span| span.start)),
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let problem = Problem::new(at(error.span()), error.message());
                self.problems.push(problem);
                return;
            }
        };
        let before = self.problems.len();
        for (name, value) in table.get_ref() {
            let place = at(Some(name.span()));
            self.section(&place, name.get_ref(), value.get_ref(), |span| {
                at(Some(span))
            });
        }
        if self.problems.len() > before {
            return;
        }
        match toml::from_str(text) {
            Ok(config) => self.config = config,
            Err(error) => {
                let problem = Problem::new(at(error.span()), error.message());
                self.problems.push(problem);
            }
        }
    }

    /// Checks the names of one top-level item of the file and notes where its values are.
    fn section(
        &mut self,
        place: &Origin,
        name: &str,
        value: &DeValue<'_>,
        at: impl Fn(std::ops::Range<usize>) -> Origin,
    ) {
        let sections = self.config.sections();
        let Some((section, description)) = sections.iter().find(|(known, _)| *known == name) else {
            let problem = Problem::new(place, format!("there is no section [{name}]"));
            let known = sections.iter().map(|(name, _)| *name);
            let problem = match (self.section_of(name), nearest(name, known)) {
                (Some(section), _) => problem.with_hint(format!("{name} is a key of [{section}]")),
                (None, Some(near)) => problem.with_hint(format!("did you mean [{near}]?")),
                (None, None) => problem,
            };
            self.problems.push(problem);
            return;
        };
        let DeValue::Table(table) = value else {
            let problem = Problem::new(place, format!("{name} is a section")).with_hint(format!(
                "write [{name}] on a line of its own, its keys below"
            ));
            self.problems.push(problem);
            return;
        };
        let fields = description.fields();
        let mut found = Vec::new();
        for key in table.keys() {
            let field = key.get_ref().as_ref();
            let place = at(key.span());
            if fields.iter().any(|known| known.name == field) {
                found.push(Ok((format!("{section}.{field}"), place)));
                continue;
            }
            let problem = Problem::new(place, format!("[{section}] has no key {field:?}"));
            let known = fields.iter().map(|field| field.name);
            found.push(Err(match (nearest(field, known), self.section_of(field)) {
                (Some(near), _) => problem.with_hint(format!("did you mean {near}?")),
                (None, Some(other)) => problem.with_hint(format!("{field} is a key of [{other}]")),
                (None, None) => problem,
            }));
        }
        for item in found {
            match item {
                Ok((key, place)) => {
                    self.origins.insert(key, place);
                }
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    /// The section that has a key of this name.
    fn section_of(&self, field: &str) -> Option<&'static str> {
        self.config
            .sections()
            .iter()
            .find(|(_, section)| section.fields().iter().any(|known| known.name == field))
            .map(|(name, _)| *name)
    }

    fn env(&mut self, variables: &[(String, String)]) {
        let keys: BTreeMap<String, String> = self
            .config
            .keys()
            .into_iter()
            .map(|key| (variable(&key), key))
            .collect();
        let mut variables: Vec<_> = variables
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX))
            .filter(|(name, value)| !is_other(name, value))
            .collect();
        variables.sort();
        for (name, value) in variables {
            match keys.get(name) {
                Some(key) => self.set(&Origin::Env(name.clone()), key, value),
                None if is_service_link(name) => {}
                None => {
                    let problem =
                        Problem::new(name, "no key of the configuration has this variable");
                    let field = name.trim_start_matches(PREFIX).to_lowercase();
                    let section = self.section_of(&field);
                    let placed = section.map(|section| variable(&format!("{section}.{field}")));
                    let near = nearest(name, keys.keys().map(String::as_str));
                    self.problems.push(match placed.as_deref().or(near) {
                        Some(near) => problem.with_hint(format!("did you mean {near}?")),
                        None => problem.with_hint("`trilog config print` lists the keys"),
                    });
                }
            }
        }
    }

    fn flag(&mut self, flag: &str, key: &str, value: &str) {
        let keys = self.config.keys();
        if keys.iter().any(|known| known == key) {
            self.set(&Origin::Flag(flag.to_owned()), key, value);
            return;
        }
        let problem = Problem::new(flag, format!("there is no key {key:?}"));
        let near = nearest(key, keys.iter().map(String::as_str)).map(str::to_owned);
        let near = near.or_else(|| Some(format!("{}.{key}", self.section_of(key)?)));
        self.problems.push(match near {
            Some(near) => problem.with_hint(format!("did you mean {near}?")),
            None => problem.with_hint("`trilog config print` lists the keys"),
        });
    }

    fn set(&mut self, origin: &Origin, key: &str, value: &str) {
        match self.config.set(key, value) {
            Ok(()) => {
                self.origins.insert(key.to_owned(), origin.clone());
            }
            Err(message) => self
                .problems
                .push(Problem::new(origin, format!("{key}: {message}"))),
        }
    }
}

fn read(path: &Path) -> Result<String, Problem> {
    let place = path.display();
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) => {
            return Err(
                Problem::new(place, format!("cannot be read: {error}")).with_hint(format!(
                    "`trilog config init {}` writes one",
                    path.display()
                )),
            );
        }
    };
    if length > FILE_BYTES_MAX {
        return Err(Problem::new(place, "is too large for a configuration file"));
    }
    fs::read_to_string(path)
        .map_err(|error| Problem::new(place, format!("cannot be read: {error}")))
}

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Whether a variable is somebody else's. `TRILOG_SEEDS` tells simulations how many seeds to try;
/// with addresses in it, somebody means `TRILOG_CLUSTER_SEEDS`.
fn is_other(name: &str, value: &str) -> bool {
    OTHER_VARIABLES.contains(&name) && !(name == "TRILOG_SEEDS" && value.contains(':'))
}

/// Whether Kubernetes set this variable for a service whose name begins with `trilog`; it does so
/// unasked in every pod of the namespace.
fn is_service_link(name: &str) -> bool {
    let after = |marker: &str| name.split_once(marker).map(|(_, rest)| rest);
    after("_SERVICE_HOST").is_some_and(str::is_empty)
        || after("_SERVICE_PORT").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        || after("_PORT").is_some_and(|rest| {
            rest.is_empty()
                || (rest.starts_with('_') && (rest.contains("_TCP") || rest.contains("_UDP")))
        })
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    before.matches('\n').count() + 1
}

#[cfg(test)]
mod tests;
