//! Users and rights: what a user can prove who they are with, and the rules that say who may do
//! what to which resource.
//!
//! Numbers of kinds, patterns, operations and permissions are Kafka's; they are on disk and never
//! reused. A rule that denies wins over any that allows. Looking something up takes no lock and
//! copies nothing: the tables are immutable and hang on the [`ClusterMap`](super::ClusterMap).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::reply::ControllerError;

/// Users a cluster has at most.
pub const MAX_USERS: usize = 20_000;
/// Rules a cluster has at most.
pub const MAX_ACLS: usize = 50_000;
/// The longest name of a user, in bytes.
pub const MAX_USER_NAME: usize = 255;
// Bounds of what is kept of a password may grow and are never narrowed: a build that did would
// not read what older ones wrote.
/// How often a password is hashed, least and most, as Kafka allows.
pub const MIN_ITERATIONS: u32 = 4_096;
pub const MAX_ITERATIONS: u32 = 16_384;
/// The longest salt, in bytes.
pub const MAX_SALT: usize = 128;
/// The longest name of a resource, a principal or a host in a rule, in bytes.
const MAX_ACL_TEXT: usize = 1_024;
/// The cluster, as rules name it.
pub const CLUSTER_RESOURCE: &str = "kafka-cluster";
/// Whatever name, principal or host.
pub const ANY: &str = "*";
/// How the principal of a user begins.
pub const USER_PREFIX: &str = "User:";

/// How a user proves to know a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Mechanism {
    Unset = 0,
    ScramSha256 = 1,
    ScramSha512 = 2,
}

impl Mechanism {
    /// Those that there are.
    pub const ALL: [Self; 2] = [Self::ScramSha256, Self::ScramSha512];

    /// As SASL calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unset => "UNKNOWN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }

    /// Bytes of a key.
    #[must_use]
    pub fn key_len(self) -> usize {
        match self {
            Self::Unset => 0,
            Self::ScramSha256 => 32,
            Self::ScramSha512 => 64,
        }
    }
}

/// What is kept of a password for one mechanism (RFC 5802): enough to check who knows it, too
/// little to pass for them.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct Credential {
    #[prost(enumeration = "Mechanism", tag = "1")]
    pub mechanism: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub salt: Bytes,
    #[prost(uint32, tag = "3")]
    pub iterations: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub stored_key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub server_key: Bytes,
}

/// Keys and salts are for nobody's eyes.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("mechanism", &self.mechanism())
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl Credential {
    fn check(&self, name: &str) -> Result<Mechanism, ControllerError> {
        let mechanism = Mechanism::try_from(self.mechanism).unwrap_or(Mechanism::Unset);
        let reason = if mechanism == Mechanism::Unset {
            "the mechanism is unknown".to_owned()
        } else if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&self.iterations) {
            format!("iterations are {MIN_ITERATIONS} to {MAX_ITERATIONS}")
        } else if self.salt.is_empty() || self.salt.len() > MAX_SALT {
            format!("a salt has 1 to {MAX_SALT} bytes")
        } else if self.stored_key.len() != mechanism.key_len()
            || self.server_key.len() != mechanism.key_len()
        {
            "a key has the wrong length".to_owned()
        } else {
            return Ok(mechanism);
        };
        Err(invalid_user(name, &reason))
    }
}

/// Somebody who can prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: Arc<str>,
    /// At least one.
    pub credentials: BTreeMap<Mechanism, Credential>,
}

impl User {
    /// Puts credentials in place of those of the same mechanisms.
    pub(super) fn learn(&mut self, set: &[Credential]) -> Result<(), ControllerError> {
        for credential in set {
            let mechanism = credential.check(&self.name)?;
            self.credentials.insert(mechanism, credential.clone());
        }
        Ok(())
    }
}

pub(super) fn invalid_user(name: &str, reason: &str) -> ControllerError {
    ControllerError::InvalidUser {
        name: name.chars().take(MAX_USER_NAME).collect(),
        reason: reason.to_owned(),
    }
}

/// Whether a user may be called so.
pub fn check_user_name(name: &str) -> Result<(), ControllerError> {
    let reason = if name.is_empty() {
        "the name is empty".to_owned()
    } else if name.len() > MAX_USER_NAME {
        format!("the name is longer than {MAX_USER_NAME} bytes")
    } else if name.chars().any(char::is_control) {
        "the name has control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(invalid_user(name, &reason))
}

/// What rights are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ResourceKind {
    Unset = 0,
    Topic = 2,
    Group = 3,
    Cluster = 4,
    TransactionalId = 5,
    DelegationToken = 6,
    User = 7,
}

/// How a rule names what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PatternKind {
    Unset = 0,
    /// The very name, or `*` for all.
    Literal = 3,
    /// All names that begin so.
    Prefixed = 4,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Operation {
    Unset = 0,
    All = 2,
    Read = 3,
    Write = 4,
    Create = 5,
    Delete = 6,
    Alter = 7,
    Describe = 8,
    ClusterAction = 9,
    DescribeConfigs = 10,
    AlterConfigs = 11,
    IdempotentWrite = 12,
    CreateTokens = 13,
    DescribeTokens = 14,
    TwoPhaseCommit = 15,
}

impl Operation {
    /// Its place in Kafka's sets of operations.
    #[must_use]
    pub fn bit(self) -> i32 {
        1 << i32::from(self)
    }

    /// Whether a rule that allows `self` allows `wanted`.
    fn implies(self, wanted: Self) -> bool {
        self == wanted
            || self == Self::All
            || match wanted {
                Self::Describe => {
                    matches!(self, Self::Read | Self::Write | Self::Delete | Self::Alter)
                }
                Self::DescribeConfigs => self == Self::AlterConfigs,
                _ => false,
            }
    }
}

impl ResourceKind {
    /// What can be done to resources of the kind.
    #[must_use]
    pub fn operations(self) -> &'static [Operation] {
        use Operation as O;
        match self {
            Self::Unset => &[],
            Self::Topic => &[
                O::Read,
                O::Write,
                O::Create,
                O::Describe,
                O::Delete,
                O::Alter,
                O::DescribeConfigs,
                O::AlterConfigs,
            ],
            Self::Group => &[
                O::Read,
                O::Describe,
                O::Delete,
                O::DescribeConfigs,
                O::AlterConfigs,
            ],
            Self::Cluster => &[
                O::Create,
                O::ClusterAction,
                O::DescribeConfigs,
                O::AlterConfigs,
                O::IdempotentWrite,
                O::Alter,
                O::Describe,
            ],
            Self::TransactionalId => &[O::Describe, O::Write, O::TwoPhaseCommit],
            Self::DelegationToken => &[O::Describe],
            Self::User => &[O::CreateTokens, O::DescribeTokens],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Permission {
    Unset = 0,
    Deny = 2,
    Allow = 3,
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Message)]
pub struct Acl {
    #[prost(enumeration = "ResourceKind", tag = "1")]
    pub kind: i32,
    #[prost(enumeration = "PatternKind", tag = "2")]
    pub pattern: i32,
    #[prost(string, tag = "3")]
    pub name: String,
    /// `User:NAME`, or `User:*` for whoever it is.
    #[prost(string, tag = "4")]
    pub principal: String,
    /// An address, or `*`.
    #[prost(string, tag = "5")]
    pub host: String,
    #[prost(enumeration = "Operation", tag = "6")]
    pub operation: i32,
    #[prost(enumeration = "Permission", tag = "7")]
    pub permission: i32,
}

impl Acl {
    /// Whether this can be a rule at all.
    pub fn check(&self) -> Result<(), ControllerError> {
        let kind = ResourceKind::try_from(self.kind).unwrap_or(ResourceKind::Unset);
        let operation = Operation::try_from(self.operation).unwrap_or(Operation::Unset);
        let pattern = PatternKind::try_from(self.pattern).unwrap_or(PatternKind::Unset);
        let permission = Permission::try_from(self.permission).unwrap_or(Permission::Unset);
        let long = [&self.name, &self.principal, &self.host]
            .iter()
            .any(|text| text.len() > MAX_ACL_TEXT);
        let reason = if long {
            "a name, principal or host is too long"
        } else if kind == ResourceKind::Unset || pattern == PatternKind::Unset {
            "the kind of resource or of pattern is unknown"
        } else if operation == Operation::Unset || permission == Permission::Unset {
            "the operation or the permission is unknown"
        } else if self.name.is_empty() {
            "the resource has no name"
        } else if kind == ResourceKind::Cluster && self.name != CLUSTER_RESOURCE {
            "the cluster's only name is 'kafka-cluster'"
        } else if operation != Operation::All && !kind.operations().contains(&operation) {
            "there is no such operation on this kind of resource"
        } else if !self.principal.contains(':') {
            "a principal is written TYPE:NAME, as in User:alice"
        } else if self.host.is_empty() {
            "the host is empty; '*' means all"
        } else {
            return Ok(());
        };
        Err(ControllerError::InvalidAcl {
            reason: reason.to_owned(),
        })
    }
}

/// What a rule says of those it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    principal: String,
    host: String,
    operation: i32,
    permission: i32,
}

impl Rule {
    fn is_about(&self, who: Who<'_>) -> bool {
        let principal = &*self.principal;
        let named = principal == who.principal
            || principal.strip_prefix(USER_PREFIX) == Some(ANY)
                && who.principal.starts_with(USER_PREFIX);
        named && (self.host == ANY || self.host == who.host)
    }

    fn denies(&self, wanted: Operation) -> bool {
        self.permission == i32::from(Permission::Deny)
            && (self.operation == i32::from(Operation::All) || self.operation == i32::from(wanted))
    }

    fn allows(&self, wanted: Operation) -> bool {
        self.permission == i32::from(Permission::Allow)
            && Operation::try_from(self.operation).is_ok_and(|has| has.implies(wanted))
    }
}

/// A rule where it stands in a table.
#[derive(Clone, Copy, Debug)]
pub struct AclEntry<'a> {
    pub kind: i32,
    pub pattern: i32,
    pub name: &'a str,
    rule: &'a Rule,
}

impl<'a> AclEntry<'a> {
    #[must_use]
    pub fn principal(&self) -> &'a str {
        &self.rule.principal
    }

    #[must_use]
    pub fn host(&self) -> &'a str {
        &self.rule.host
    }

    #[must_use]
    pub fn operation(&self) -> i32 {
        self.rule.operation
    }

    #[must_use]
    pub fn permission(&self) -> i32 {
        self.rule.permission
    }

    #[must_use]
    pub fn to_acl(&self) -> Acl {
        Acl {
            kind: self.kind,
            pattern: self.pattern,
            name: self.name.to_owned(),
            principal: self.rule.principal.clone(),
            host: self.rule.host.clone(),
            operation: self.rule.operation,
            permission: self.rule.permission,
        }
    }
}

type Rules = BTreeMap<String, BTreeSet<Rule>>;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// `User:NAME`.
    pub principal: &'a str,
    /// The address they come from.
    pub host: &'a str,
}

/// What the rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Denied,
    /// No rule is about the resource, whoever asks.
    Unruled,
}

/// Every rule of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclTable {
    /// By kind of resource, then by name.
    literal: BTreeMap<i32, Rules>,
    prefixed: BTreeMap<i32, Rules>,
    len: usize,
}

impl AclTable {
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it was not there.
    pub(super) fn insert(&mut self, acl: &Acl) -> bool {
        let rule = Rule {
            principal: acl.principal.clone(),
            host: acl.host.clone(),
            operation: acl.operation,
            permission: acl.permission,
        };
        let rules = self.side(acl).entry(acl.kind).or_default();
        let new = rules.entry(acl.name.clone()).or_default().insert(rule);
        self.len += usize::from(new);
        new
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, acl: &Acl) -> bool {
        let rule = Rule {
            principal: acl.principal.clone(),
            host: acl.host.clone(),
            operation: acl.operation,
            permission: acl.permission,
        };
        let Some(rules) = self.side(acl).get_mut(&acl.kind) else {
            return false;
        };
        let Some(of_name) = rules.get_mut(&acl.name) else {
            return false;
        };
        let found = of_name.remove(&rule);
        if of_name.is_empty() {
            rules.remove(&acl.name);
        }
        self.len -= usize::from(found);
        found
    }

    fn side(&mut self, acl: &Acl) -> &mut BTreeMap<i32, Rules> {
        if acl.pattern == i32::from(PatternKind::Prefixed) {
            &mut self.prefixed
        } else {
            &mut self.literal
        }
    }

    /// All of them, in one order.
    pub fn all(&self) -> impl Iterator<Item = Acl> + '_ {
        self.entries().map(|entry| entry.to_acl())
    }

    /// As [`AclTable::all`], without a copy of any.
    pub fn entries(&self) -> impl Iterator<Item = AclEntry<'_>> {
        let sides = [
            (PatternKind::Literal, &self.literal),
            (PatternKind::Prefixed, &self.prefixed),
        ];
        sides.into_iter().flat_map(|(pattern, kinds)| {
            let named = kinds.iter().flat_map(|(kind, rules)| {
                rules.iter().map(move |(name, rules)| (kind, name, rules))
            });
            named.flat_map(move |(kind, name, rules)| {
                rules.iter().map(move |rule| AclEntry {
                    kind: *kind,
                    pattern: pattern.into(),
                    name,
                    rule,
                })
            })
        })
    }

    /// The rules about one resource, whoever they are for.
    fn about<'a>(&'a self, kind: ResourceKind, name: &'a str) -> impl Iterator<Item = &'a Rule> {
        let kind = i32::from(kind);
        let literal = self.literal.get(&kind).into_iter().flat_map(move |rules| {
            let all = rules.get(ANY).filter(|_| name != ANY);
            rules.get(name).into_iter().chain(all)
        });
        let prefixed = self.prefixed.get(&kind).into_iter();
        let prefixed = prefixed
            .flat_map(move |rules| beginnings(name).filter_map(|beginning| rules.get(beginning)));
        literal.chain(prefixed).flatten()
    }

    /// What the rules say of an operation on one resource.
    #[must_use]
    pub fn judge(
        &self,
        who: Who<'_>,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
    ) -> Verdict {
        let mut verdict = Verdict::Unruled;
        for rule in self.about(kind, name) {
            let concerned = rule.is_about(who);
            if concerned && rule.denies(operation) {
                return Verdict::Denied;
            }
            if concerned && rule.allows(operation) {
                verdict = Verdict::Allowed;
            } else if verdict == Verdict::Unruled {
                verdict = Verdict::Denied;
            }
        }
        verdict
    }

    /// Whether there may be a resource of the kind that the operation is allowed on: one that a
    /// rule allows, and no rule for the same person denies as widely.
    #[must_use]
    pub fn judge_any(&self, who: Who<'_>, operation: Operation, kind: ResourceKind) -> Verdict {
        let kind = i32::from(kind);
        let empty = Rules::new();
        let literal = self.literal.get(&kind).unwrap_or(&empty);
        let prefixed = self.prefixed.get(&kind).unwrap_or(&empty);
        if literal.is_empty() && prefixed.is_empty() {
            return Verdict::Unruled;
        }
        let denied = |rules: &Rules, name: &str| {
            let mut of_name = rules.get(name).into_iter().flatten();
            of_name.any(|rule| rule.is_about(who) && rule.denies(operation))
        };
        if denied(literal, ANY) {
            return Verdict::Denied;
        }
        let dominated = |name: &str| beginnings(name).any(|beginning| denied(prefixed, beginning));
        let exact = |rule: &&Rule| {
            rule.permission == i32::from(Permission::Allow)
                && rule.is_about(who)
                && (rule.operation == i32::from(Operation::All)
                    || rule.operation == i32::from(operation))
        };
        let allowed = |(name, rules): &(&String, &BTreeSet<Rule>)| {
            rules.iter().any(|rule| exact(&rule)) && (*name == ANY || !dominated(name))
        };
        let literally = literal
            .iter()
            .filter(allowed)
            .any(|(name, _)| name == ANY || !denied(literal, name));
        if literally || prefixed.iter().any(|entry| allowed(&entry)) {
            Verdict::Allowed
        } else {
            Verdict::Denied
        }
    }
}

/// What a prefixed rule about the name may be called. No rule's name is longer, however long a
/// stranger makes his.
fn beginnings(name: &str) -> impl Iterator<Item = &str> {
    (1..=name.len().min(MAX_ACL_TEXT)).filter_map(move |end| name.get(..end))
}

#[cfg(test)]
mod tests;
