//! A configuration written out: as a commented file to start from, or as the values in force.

use std::fmt::Write;

use serde_json::json;

use super::load::variable;
use super::{Config, Loaded, Origin};

/// A file with every key, commented out at its default, and what it means.
pub fn commented(config: &Config) -> String {
    let mut text = String::from(
        "# Configuration of one Trilog node. Every key is shown at its default; remove the `#` to\n\
         # change it. A variable (TRILOG_ and the key, as in TRILOG_NODE_ID) overrides the file,\n\
         # and a flag the variable. A change takes effect at the next start.\n\
         # `trilog config check FILE` checks it, `trilog config print -c FILE` shows the outcome.\n",
    );
    for (name, section) in config.sections() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n[{name}]\n");
        for field in section.fields() {
            for line in field.doc {
                let _ = writeln!(text, "#{line}");
            }
            let value = section.get(field.name);
            let _ = match value {
                Some(value) => writeln!(text, "#{} = {value}", field.name),
                None => writeln!(text, "#{} = ", field.name),
            };
        }
    }
    text
}

/// The values in force as a configuration file, each with where it came from.
pub fn annotated(loaded: &Loaded) -> String {
    let mut text = String::new();
    for (name, section) in loaded.config.sections() {
        let separator = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{separator}[{name}]");
        for field in section.fields() {
            let origin = loaded.origin(&format!("{name}.{}", field.name));
            let line = match section.get(field.name) {
                Some(value) => format!("{} = {value}", field.name),
                None => format!("#{} = ", field.name),
            };
            let _ = writeln!(text, "{line:<44}  # {origin}");
        }
    }
    text
}

/// The values in force for a program to read, in the order of the file.
pub fn as_json(loaded: &Loaded) -> serde_json::Value {
    let values = serde_json::to_value(&loaded.config).unwrap_or_default();
    let keys = loaded.config.keys();
    let entries: Vec<serde_json::Value> = keys
        .iter()
        .map(|key| {
            let value = key.split_once('.').and_then(|(section, field)| {
                let section = values.get(section)?;
                section.get(field)
            });
            let origin = loaded.origin(key);
            json!({
                "key": key,
                "value": value,
                "origin": kind(origin),
                "place": (*origin != Origin::Default).then(|| origin.to_string()),
                "variable": variable(key),
            })
        })
        .collect();
    serde_json::Value::Array(entries)
}

fn kind(origin: &Origin) -> &'static str {
    match origin {
        Origin::Default => "default",
        Origin::File { .. } => "file",
        Origin::Env(_) => "env",
        Origin::Flag(_) => "flag",
    }
}
