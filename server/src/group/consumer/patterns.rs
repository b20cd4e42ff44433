//! The patterns by which members of a group want topics. Each is compiled and matched once for a
//! version of the cluster's topics, however many members share it; what is kept is what it matches.

use std::collections::{BTreeMap, BTreeSet};

use regex::{Regex, RegexBuilder};
use trilog_raft::controller::TopicId;

use super::super::GroupError;
use super::Catalogue;

/// How much one compiled pattern may take, in bytes.
const MAX_COMPILED_BYTES: usize = 256 << 10;
/// Different patterns in one group: members of one kind share theirs.
const MAX_PATTERNS: usize = 64;
/// What a topic that matches costs.
const TOPIC_COST: usize = 32;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    by_text: BTreeMap<String, Matched>,
    /// Nobody's.
    none: BTreeSet<TopicId>,
}

#[derive(Debug, Default)]
struct Matched {
    /// Of the topics that were looked at; none of those that were only loaded.
    version: Option<u64>,
    topics: BTreeSet<TopicId>,
}

impl Matched {
    fn of(regex: &Regex, catalogue: &Catalogue) -> Self {
        let topics = catalogue.topics.iter();
        let topics = topics.filter(|(name, _)| regex.is_match(name));
        Self {
            version: Some(catalogue.version),
            topics: topics.map(|(_, (id, _))| *id).collect(),
        }
    }
}

impl Patterns {
    /// One that was looked at when it came: what it matches is found out when it is asked for.
    pub(super) fn load(&mut self, text: &str) {
        self.by_text.entry(text.to_owned()).or_default();
    }

    /// One that a member names.
    pub(super) fn learn<'a>(
        &mut self,
        text: &str,
        used: impl Iterator<Item = &'a str>,
        catalogue: &Catalogue,
    ) -> Result<(), GroupError> {
        if self.by_text.contains_key(text) {
            return Ok(());
        }
        let regex = compile(text)?;
        if self.by_text.len() >= MAX_PATTERNS {
            self.keep(used);
        }
        if self.by_text.len() >= MAX_PATTERNS {
            return Err(GroupError::GroupFull);
        }
        let matched = Matched::of(&regex, catalogue);
        self.by_text.insert(text.to_owned(), matched);
        Ok(())
    }

    /// Forgets those that nobody names any more.
    pub(super) fn keep<'a>(&mut self, used: impl Iterator<Item = &'a str>) {
        let used: BTreeSet<&str> = used.collect();
        self.by_text.retain(|text, _| used.contains(text.as_str()));
    }

    /// Matches anew what was matched with other topics.
    pub(super) fn refresh(&mut self, catalogue: &Catalogue) {
        for (text, matched) in &mut self.by_text {
            if matched.version != Some(catalogue.version)
                && let Ok(regex) = compile(text)
            {
                *matched = Matched::of(&regex, catalogue);
            }
        }
    }

    /// What matches, as of the last look.
    pub(super) fn matching(&self, text: &str) -> &BTreeSet<TopicId> {
        let known = self.by_text.get(text);
        known.map_or(&self.none, |matched| &matched.topics)
    }

    /// What they take.
    pub(super) fn bytes(&self) -> usize {
        let each = self.by_text.iter();
        each.map(|(text, matched)| text.len() + matched.topics.len() * TOPIC_COST)
            .sum()
    }
}

/// Whether a pattern matches a topic's name.
pub(super) fn matches(text: &str, name: &str) -> bool {
    compile(text).is_ok_and(|regex| regex.is_match(name))
}

/// It must match the whole name.
fn compile(text: &str) -> Result<Regex, GroupError> {
    let compiled = |text: &str| {
        let mut builder = RegexBuilder::new(text);
        builder.size_limit(MAX_COMPILED_BYTES);
        builder.dfa_size_limit(MAX_COMPILED_BYTES);
        builder.build().map_err(|_| GroupError::InvalidRegex)
    };
    // By itself, too: what closes more groups than it opens would escape the brackets.
    compiled(text)?;
    compiled(&format!("^(?:{text})$"))
}
