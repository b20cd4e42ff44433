//! Whether somebody may do something.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use trilog_raft::controller::{
    CLUSTER_RESOURCE, ClusterMap, Operation, ResourceKind, USER_PREFIX, Verdict, Who,
};

use super::password::Passwords;
use super::{Principal, Settings};

/// What a node goes by when somebody wants something; cheap to clone.
#[derive(Clone, Debug)]
pub struct Access {
    settings: Arc<Settings>,
    passwords: Passwords,
}

/// Somebody, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub principal: Principal,
    /// The address, as text.
    pub host: Arc<str>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.principal, self.host)
    }
}

/// What one identity may do, as of one map.
#[derive(Clone, Copy, Debug)]
pub struct Rights<'a> {
    /// None where nobody is asked, and everybody may do everything.
    asked: Option<Asked<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    settings: &'a Settings,
    identity: &'a Identity,
    map: &'a ClusterMap,
}

impl Access {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            passwords: Passwords::default(),
        }
    }

    /// Whether clients are asked who they are.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.settings.required
    }

    /// After how long somebody has to prove anew who they are.
    #[must_use]
    pub fn session_lifetime(&self) -> Option<Duration> {
        let lifetime = self.settings.session_lifetime;
        (!lifetime.is_zero()).then_some(lifetime)
    }

    #[must_use]
    pub fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// What somebody may do; `identity` is none only where nobody is asked, or before they were.
    #[must_use]
    pub fn rights<'a>(&'a self, identity: &'a Identity, map: &'a ClusterMap) -> Rights<'a> {
        let asked = self.settings.required.then_some(Asked {
            settings: &self.settings,
            identity,
            map,
        });
        Rights { asked }
    }
}

impl Rights<'_> {
    /// Those of everybody where nobody is asked.
    pub const ALL: Rights<'static> = Rights { asked: None };

    #[must_use]
    pub fn may(&self, operation: Operation, kind: ResourceKind, name: &str) -> bool {
        self.asked.is_none_or(|asked| {
            asked.is_super() || {
                let acls = asked.map.acls();
                asked.settles(acls.judge(asked.who(), operation, kind, name))
            }
        })
    }

    #[must_use]
    pub fn may_topic(&self, operation: Operation, name: &str) -> bool {
        self.may(operation, ResourceKind::Topic, name)
    }

    #[must_use]
    pub fn may_group(&self, operation: Operation, name: &str) -> bool {
        self.may(operation, ResourceKind::Group, name)
    }

    #[must_use]
    pub fn may_cluster(&self, operation: Operation) -> bool {
        self.may(operation, ResourceKind::Cluster, CLUSTER_RESOURCE)
    }

    /// Whether there may be a resource of the kind that they may do this to.
    #[must_use]
    pub fn may_any(&self, operation: Operation, kind: ResourceKind) -> bool {
        self.asked.is_none_or(|asked| {
            asked.is_super() || {
                let acls = asked.map.acls();
                asked.settles(acls.judge_any(asked.who(), operation, kind))
            }
        })
    }

    /// Everything they may do to a resource, as one of Kafka's sets.
    #[must_use]
    pub fn operations(&self, kind: ResourceKind, name: &str) -> i32 {
        let all = kind.operations().iter();
        let allowed = all.filter(|operation| self.may(**operation, kind, name));
        allowed.fold(0, |set, operation| set | operation.bit())
    }
}

impl<'a> Asked<'a> {
    fn is_super(&self) -> bool {
        let name = self.identity.principal.strip_prefix(USER_PREFIX);
        name.is_some_and(|name| self.settings.super_users.iter().any(|user| user == name))
    }

    fn who(&self) -> Who<'a> {
        Who {
            principal: &self.identity.principal,
            host: &self.identity.host,
        }
    }

    fn settles(&self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Allowed => true,
            Verdict::Denied => false,
            Verdict::Unruled => self.settings.allow_unruled,
        }
    }
}
