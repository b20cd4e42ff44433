//! One configuration key: its type and bounds, its default, what it means here.

use super::nearest::nearest;
use super::reply::ControllerError;

/// The longest value any key takes, in bytes.
pub(super) const MAX_VALUE_LEN: usize = 4_096;

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConfigType {
    Bool,
    /// A whole number within bounds, both included.
    Int {
        min: i64,
        max: i64,
    },
    /// A number within bounds, both included.
    Float {
        min: f64,
        max: f64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Some of these words, comma-separated, in any order, none twice, at least one.
    List(&'static [&'static str]),
    /// Any text.
    Text,
}

/// Whether a key changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does what its name says.
    Honoured,
    /// It is accepted, shown, and without effect; the doc says why.
    Void,
}

/// One key of a registry.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKey {
    pub name: &'static str,
    pub kind: ConfigType,
    pub default: &'static str,
    pub effect: Effect,
    pub doc: &'static str,
    /// For a topic's key: the cluster-wide key that supplies its default.
    pub cluster_name: Option<&'static str>,
    /// The feature level that brought it.
    pub since: u32,
}

/// Where a key's value comes from, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// Set on the topic.
    Topic,
    /// Set for the cluster.
    Cluster,
    Default,
}

/// A key's value and where it comes from.
#[derive(Clone, Debug)]
pub struct ConfigValue<'a> {
    pub key: &'static ConfigKey,
    pub value: &'a str,
    pub source: ConfigSource,
}

impl ConfigKey {
    /// Checks a value, answering it in the one way it is stored.
    pub fn parse(&self, value: &str) -> Result<String, ControllerError> {
        let trimmed = value.trim();
        let parsed = if value.len() > MAX_VALUE_LEN {
            Err(format!("longer than {MAX_VALUE_LEN} bytes"))
        } else {
            self.kind.canonical(trimmed)
        };
        parsed.map_err(|reason| ControllerError::InvalidConfig {
            key: self.name.to_owned(),
            value: value.chars().take(200).collect(),
            reason,
        })
    }
}

impl ConfigType {
    fn canonical(self, value: &str) -> Result<String, String> {
        match self {
            Self::Bool => match value.to_ascii_lowercase().as_str() {
                word @ ("true" | "false") => Ok(word.to_owned()),
                _ => Err("'true' or 'false' is wanted".to_owned()),
            },
            Self::Int { min, max } => value
                .parse::<i64>()
                .ok()
                .filter(|number| (min..=max).contains(number))
                .map(|number| number.to_string())
                .ok_or_else(|| format!("a whole number from {min} to {max} is wanted")),
            Self::Float { min, max } => value
                .parse::<f64>()
                .ok()
                .filter(|number| (min..=max).contains(number))
                .map(|number| number.to_string())
                .ok_or_else(|| format!("a number from {min} to {max} is wanted")),
            Self::Choice(words) => {
                let lower = value.to_ascii_lowercase();
                words
                    .iter()
                    .find(|word| word.to_ascii_lowercase() == lower)
                    .map(|word| (*word).to_owned())
                    .ok_or_else(|| format!("one of {} is wanted", words.join(", ")))
            }
            Self::List(words) => canonical_list(words, value),
            Self::Text => Ok(value.to_owned()),
        }
    }
}

fn canonical_list(words: &[&str], value: &str) -> Result<String, String> {
    let mut chosen: Vec<&str> = Vec::new();
    for item in value.split(',').map(str::trim) {
        let word = words
            .iter()
            .find(|word| word.eq_ignore_ascii_case(item))
            .ok_or_else(|| format!("a list out of {} is wanted", words.join(", ")))?;
        if !chosen.contains(word) {
            chosen.push(word);
        }
    }
    Ok(chosen.join(","))
}

/// The key of this name that the active level has, or a refusal with the nearest name.
pub(super) fn find(
    registry: &'static [ConfigKey],
    name: &str,
    level: u32,
) -> Result<&'static ConfigKey, ControllerError> {
    registry
        .iter()
        .find(|key| key.name == name && key.since <= level)
        .ok_or_else(|| ControllerError::UnknownConfig {
            key: name.chars().take(200).collect(),
            nearest: nearest(
                name,
                registry
                    .iter()
                    .filter(|key| key.since <= level)
                    .map(|key| key.name),
            )
            .map(str::to_owned),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_stored_in_one_way() {
        let int = ConfigType::Int { min: -1, max: 10 };
        let list = ConfigType::List(&["delete", "compact"]);
        let choice = ConfigType::Choice(&["CreateTime", "LogAppendTime"]);
        for (kind, given, stored) in [
            (ConfigType::Bool, "TRUE", Some("true")),
            (ConfigType::Bool, "1", None),
            (int, "+5", Some("5")),
            (int, "-1", Some("-1")),
            (int, "-2", None),
            (int, "11", None),
            (int, "99999999999999999999", None),
            (int, "", None),
            (list, "compact, DELETE", Some("compact,delete")),
            (list, "delete,delete", Some("delete")),
            (list, "", None),
            (list, "delete,", None),
            (choice, "logappendtime", Some("LogAppendTime")),
            (choice, "now", None),
            (
                ConfigType::Float { min: 0.0, max: 1.0 },
                "0.50",
                Some("0.5"),
            ),
            (ConfigType::Float { min: 0.0, max: 1.0 }, "NaN", None),
            (ConfigType::Text, "any", Some("any")),
        ] {
            assert_eq!(
                kind.canonical(given).ok().as_deref(),
                stored,
                "{kind:?} {given}"
            );
        }
    }
}
