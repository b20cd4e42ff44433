//! The patterns by which members of a group want topics. Each is compiled and matched once for a
//! version of the cluster's topics and rules, however many members share it; what is kept is what it
//! matches of what they may know of.

use std::collections::{BTreeMap, BTreeSet};

use regex::{Regex, RegexBuilder};
use trilog_raft::controller::TopicId;

use super::super::GroupError;
use super::Catalogue;
use super::sight::Viewer;
use crate::access::Identity;

/// How much one compiled pattern may take, in bytes.
const MAX_COMPILED_BYTES: usize = 256 << 10;
/// Different patterns in one group, by different users: members of one kind share theirs.
const MAX_PATTERNS: usize = 64;
/// What a topic that matches costs.
const TOPIC_COST: usize = 32;

/// A pattern, and by whom it is named.
pub(super) type Wanted<'a> = (&'a str, Option<&'a Identity>);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    /// Of the topics that were looked at last, if any were yet.
    version: Option<u64>,
    /// By who named it, then by its text.
    matched: BTreeMap<Viewer, BTreeMap<String, BTreeSet<TopicId>>>,
    /// Another version of the topics, or of the rules, may have had others match.
    moved: bool,
    /// Nobody's.
    none: BTreeSet<TopicId>,
}

impl Patterns {
    /// One that a member names.
    pub(super) fn learn<'a>(
        &mut self,
        (text, member): Wanted<'a>,
        used: impl Iterator<Item = Wanted<'a>>,
        catalogue: &Catalogue,
    ) -> Result<(), GroupError> {
        let viewer = catalogue.sight.viewer(member);
        let known = self.matched.get(&viewer);
        if known.is_some_and(|known| known.contains_key(text)) {
            return Ok(());
        }
        let regex = compile(text)?;
        if self.len() >= MAX_PATTERNS {
            self.keep(used, catalogue);
        }
        if self.len() >= MAX_PATTERNS {
            return Err(GroupError::GroupFull);
        }
        let topics = matching(&regex, &viewer, catalogue);
        let known = self.matched.entry(viewer).or_default();
        known.insert(text.to_owned(), topics);
        Ok(())
    }

    fn len(&self) -> usize {
        self.matched.values().map(BTreeMap::len).sum()
    }

    /// Forgets those that nobody names any more.
    pub(super) fn keep<'a>(
        &mut self,
        used: impl Iterator<Item = Wanted<'a>>,
        catalogue: &Catalogue,
    ) {
        let used: BTreeSet<(Viewer, &str)> = used
            .map(|(text, member)| (catalogue.sight.viewer(member), text))
            .collect();
        self.matched.retain(|viewer, texts| {
            texts.retain(|text, _| used.contains(&(viewer.clone(), text.as_str())));
            !texts.is_empty()
        });
    }

    /// Matches anew what was matched with other topics, or by other rules.
    pub(super) fn refresh<'a>(
        &mut self,
        used: impl Iterator<Item = Wanted<'a>>,
        catalogue: &Catalogue,
    ) {
        if self.version == Some(catalogue.version) {
            return;
        }
        let before = std::mem::take(&mut self.matched);
        for (text, member) in used {
            let viewer = catalogue.sight.viewer(member);
            let known = self.matched.entry(viewer.clone()).or_default();
            if !known.contains_key(text)
                && let Ok(regex) = compile(text)
            {
                let topics = matching(&regex, &viewer, catalogue);
                known.insert(text.to_owned(), topics);
            }
        }
        // What was only loaded may have matched others where it was assigned.
        self.moved |= before != self.matched;
        self.version = Some(catalogue.version);
    }

    /// Whether others may match than when this was asked last.
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// What matches, as of the last look.
    pub(super) fn matching(
        &self,
        (text, member): Wanted<'_>,
        catalogue: &Catalogue,
    ) -> &BTreeSet<TopicId> {
        let of_viewer = self.matched.get(&catalogue.sight.viewer(member));
        let matched = of_viewer.and_then(|matched| matched.get(text));
        matched.unwrap_or(&self.none)
    }

    /// What they take.
    pub(super) fn bytes(&self) -> usize {
        let each = self.matched.values().flatten();
        each.map(|(text, topics)| text.len() + topics.len() * TOPIC_COST)
            .sum()
    }
}

fn matching(regex: &Regex, viewer: &Viewer, catalogue: &Catalogue) -> BTreeSet<TopicId> {
    let topics = catalogue.topics.iter();
    let seen = topics
        .filter(|(name, _)| regex.is_match(name) && catalogue.sight.sees(viewer, name))
        .map(|(_, (id, _))| *id);
    seen.collect()
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
