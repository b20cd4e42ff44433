//! Who may know of which topics: what a pattern matches goes to nobody who may not know of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use trilog_raft::controller::{AclTable, Operation, ResourceKind};

use crate::access::{Access, Identity};

/// Somebody, as far as rules about topics tell them from others; none: nothing is known of them.
pub(super) type Viewer = Option<Identity>;

/// The rules of one time. By default everybody may know of everything.
#[derive(Debug, Default)]
pub(in crate::group) struct Sight {
    access: Option<Access>,
    acls: Arc<AclTable>,
    /// The hosts that rules about topics name: to those rules all others are one.
    hosts: BTreeSet<String>,
}

impl Sight {
    pub(in crate::group) fn new(access: &Access, acls: &Arc<AclTable>) -> Self {
        if !access.is_required() {
            return Self::default();
        }
        let topics = i32::from(ResourceKind::Topic);
        let rules = acls.entries().filter(|rule| rule.kind == topics);
        Self {
            access: Some(access.clone()),
            acls: Arc::clone(acls),
            hosts: rules.map(|rule| rule.host().to_owned()).collect(),
        }
    }

    /// Whether rules have changed since.
    pub(in crate::group) fn is_older(&self, acls: &Arc<AclTable>) -> bool {
        self.access.is_some() && !Arc::ptr_eq(&self.acls, acls)
    }

    pub(super) fn viewer(&self, member: Option<&Identity>) -> Viewer {
        self.access.as_ref()?;
        let mut viewer = member?.clone();
        if !self.hosts.contains(&*viewer.host) {
            viewer.host = "".into();
        }
        Some(viewer)
    }

    pub(super) fn sees(&self, viewer: &Viewer, topic: &str) -> bool {
        self.access.as_ref().is_none_or(|access| {
            let rights = access.rights_by(viewer.as_ref(), &self.acls);
            rights.may_topic(Operation::Describe, topic)
        })
    }
}
