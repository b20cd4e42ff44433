//! Rules as they are written: their words, the hosts that can be met, which of them are meant, and
//! how many are changed at once.

use std::net::IpAddr;

use prost::Message as _;
use trilog_raft::controller::{
    ANY, Acl, AclEntry, Operation, PatternKind, Permission, ResourceKind,
};

/// Rules changed by one command, and their bytes: it has to fit.
const AT_ONCE: usize = 500;
const AT_ONCE_BYTES: usize = 256 << 10;

/// What operators call kinds of resources, patterns, operations and permissions.
pub const RESOURCES: [(&str, ResourceKind); 6] = [
    ("topic", ResourceKind::Topic),
    ("group", ResourceKind::Group),
    ("cluster", ResourceKind::Cluster),
    ("transactional-id", ResourceKind::TransactionalId),
    ("delegation-token", ResourceKind::DelegationToken),
    ("user", ResourceKind::User),
];
pub const PATTERNS: [(&str, PatternKind); 2] = [
    ("literal", PatternKind::Literal),
    ("prefixed", PatternKind::Prefixed),
];
pub const OPERATIONS: [(&str, Operation); 14] = [
    ("all", Operation::All),
    ("read", Operation::Read),
    ("write", Operation::Write),
    ("create", Operation::Create),
    ("delete", Operation::Delete),
    ("alter", Operation::Alter),
    ("describe", Operation::Describe),
    ("cluster-action", Operation::ClusterAction),
    ("describe-configs", Operation::DescribeConfigs),
    ("alter-configs", Operation::AlterConfigs),
    ("idempotent-write", Operation::IdempotentWrite),
    ("create-tokens", Operation::CreateTokens),
    ("describe-tokens", Operation::DescribeTokens),
    ("two-phase-commit", Operation::TwoPhaseCommit),
];
pub const PERMISSIONS: [(&str, Permission); 2] =
    [("allow", Permission::Allow), ("deny", Permission::Deny)];

/// What a word stands for.
pub fn meant<T: Copy>(words: &[(&str, T)], word: &str) -> Option<T> {
    let found = words.iter().find(|(name, _)| *name == word);
    found.map(|(_, value)| *value)
}

/// The word for a number of a rule; the number itself if it is of another build.
pub fn word<T: Copy + Into<i32>>(words: &[(&'static str, T)], number: i32) -> String {
    let found = words.iter().find(|(_, value)| (*value).into() == number);
    found.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// A host as rules have it: they are compared with where somebody comes from as text, and an
/// address can be written in many ways. None of what can never be met, such as a name or a network:
/// a rule that denies would deny nobody.
#[must_use]
pub fn host(written: &str) -> Option<String> {
    if written == ANY {
        return Some(written.to_owned());
    }
    let address: IpAddr = written.parse().ok()?;
    Some(address.to_canonical().to_string())
}

/// How many of the rules go into one command: at least one.
#[must_use]
pub fn fitting(acls: &[Acl]) -> usize {
    let mut bytes = 0;
    let mut fits = acls.iter().take(AT_ONCE).take_while(|acl| {
        bytes += acl.encoded_len();
        bytes <= AT_ONCE_BYTES
    });
    fits.by_ref().count().max(1)
}

/// Which rules are meant: what is not stated may be anything.
#[derive(Clone, Debug, Default)]
pub struct Meant {
    pub kind: Option<i32>,
    pub pattern: Option<i32>,
    pub name: Option<String>,
    pub principal: Option<String>,
    pub host: Option<String>,
    pub operation: Option<i32>,
    pub permission: Option<i32>,
}

impl Meant {
    #[must_use]
    pub fn is(&self, acl: &AclEntry<'_>) -> bool {
        let number = |wanted: Option<i32>, is: i32| wanted.is_none_or(|wanted| wanted == is);
        let same =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        number(self.kind, acl.kind)
            && number(self.pattern, acl.pattern)
            && same(&self.name, acl.name)
            && same(&self.principal, acl.principal())
            && same(&self.host, acl.host())
            && number(self.operation, acl.operation())
            && number(self.permission, acl.permission())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_rule_has_a_word() {
        for number in 1..=i32::from(u8::MAX) {
            let named = |word: String| word != number.to_string();
            let kind = ResourceKind::try_from(number);
            let known = kind.is_ok_and(|kind| kind != ResourceKind::Unset);
            assert_eq!(named(word(&RESOURCES, number)), known, "{number}");
            let known = PatternKind::try_from(number).is_ok();
            assert_eq!(named(word(&PATTERNS, number)), known, "{number}");
            let known = Operation::try_from(number).is_ok();
            assert_eq!(named(word(&OPERATIONS, number)), known, "{number}");
            let known = Permission::try_from(number).is_ok();
            assert_eq!(named(word(&PERMISSIONS, number)), known, "{number}");
        }
        for (name, operation) in OPERATIONS {
            assert_eq!(meant(&OPERATIONS, name), Some(operation));
        }
        assert_eq!(meant(&OPERATIONS, "Read"), None);
    }

    #[test]
    fn hosts_are_addresses_as_rules_have_them() {
        for (written, kept) in [
            ("*", Some("*")),
            ("10.1.2.3", Some("10.1.2.3")),
            ("::ffff:10.1.2.3", Some("10.1.2.3")),
            ("0:0:0:0:0:0:0:1", Some("::1")),
            ("2001:DB8:0:0:0:0:0:1", Some("2001:db8::1")),
            ("", None),
            ("localhost", None),
            ("10.0.0.0/8", None),
            ("10.1.2.*", None),
            ("fe80::1%eth0", None),
            ("[::1]", None),
            ("010.1.2.3", None),
        ] {
            assert_eq!(host(written).as_deref(), kept, "{written}");
        }
    }

    #[test]
    fn a_command_holds_no_more_rules_than_fit_it() {
        let rule = |len: usize| Acl {
            name: "x".repeat(len),
            principal: "x".repeat(len),
            host: "x".repeat(len),
            ..Acl::default()
        };
        assert_eq!(fitting(&vec![rule(1); AT_ONCE + 1]), AT_ONCE);
        let long = vec![rule(1_024); AT_ONCE];
        let some = fitting(&long);
        let bytes: usize = long.iter().take(some).map(Acl::encoded_len).sum();
        assert!(
            some > 1 && bytes <= AT_ONCE_BYTES,
            "{some} of {bytes} bytes"
        );
        assert_eq!(fitting(&[rule(AT_ONCE_BYTES)]), 1);
    }
}
