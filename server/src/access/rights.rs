//! Whether somebody may do something.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use trilog_raft::controller::{
    AclTable, CLUSTER_RESOURCE, ClusterMap, Operation, ResourceKind, USER_PREFIX, Verdict, Who,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
pub struct Rights<'a>(Extent<'a>);

#[derive(Clone, Copy, Debug)]
enum Extent<'a> {
    /// Nobody is asked, and everybody may do everything.
    All,
    Nothing,
    Asked(Asked<'a>),
}

#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    settings: &'a Settings,
    identity: &'a Identity,
    acls: &'a AclTable,
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

    /// What somebody may do; of whom nothing is known, where that is asked, nothing.
    #[must_use]
    pub fn rights<'a>(&'a self, identity: Option<&'a Identity>, map: &'a ClusterMap) -> Rights<'a> {
        self.rights_by(identity, map.acls())
    }

    /// As [`Access::rights`], by these rules.
    #[must_use]
    pub fn rights_by<'a>(
        &'a self,
        identity: Option<&'a Identity>,
        acls: &'a AclTable,
    ) -> Rights<'a> {
        Rights(match identity {
            _ if !self.settings.required => Extent::All,
            None => Extent::Nothing,
            Some(identity) => Extent::Asked(Asked {
                settings: &self.settings,
                identity,
                acls,
            }),
        })
    }

    /// Whether there is a user who may do everything.
    #[must_use]
    pub fn has_super_user(&self, map: &ClusterMap) -> bool {
        let mut names = self.settings.super_users.iter();
        names.any(|name| map.user(name).is_some())
    }
}

impl Rights<'_> {
    #[must_use]
    pub fn may(&self, operation: Operation, kind: ResourceKind, name: &str) -> bool {
        self.0
            .holds(|asked| asked.acls.judge(asked.who(), operation, kind, name))
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
        self.0
            .holds(|asked| asked.acls.judge_any(asked.who(), operation, kind))
    }

    /// Everything they may do to a resource, as one of Kafka's sets.
    #[must_use]
    pub fn operations(&self, kind: ResourceKind, name: &str) -> i32 {
        let all = kind.operations().iter();
        let allowed = all.filter(|operation| self.may(**operation, kind, name));
        allowed.fold(0, |set, operation| set | operation.bit())
    }
}

impl Extent<'_> {
    fn holds(&self, judge: impl FnOnce(&Asked<'_>) -> Verdict) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Asked(asked) => asked.is_super() || asked.settles(judge(asked)),
        }
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

#[cfg(test)]
mod tests {
    use trilog_raft::controller::ControllerState;

    use super::*;

    #[test]
    fn of_whom_nothing_is_known_may_do_nothing_where_that_is_asked() {
        let map = ControllerState::new().map();
        for required in [false, true] {
            let access = Access::new(Settings {
                required,
                allow_unruled: true,
                ..Settings::default()
            });
            let rights = access.rights(None, &map);
            assert_ne!(rights.may_topic(Operation::Read, "t"), required);
            assert_ne!(
                rights.may_any(Operation::Write, ResourceKind::Topic),
                required
            );
            assert_eq!(rights.operations(ResourceKind::Topic, "t") == 0, required);
        }
    }
}
