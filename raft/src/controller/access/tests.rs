//! Rules, as a broker reads them.

use super::*;

fn acl(
    (kind, pattern, name): (ResourceKind, PatternKind, &str),
    principal: &str,
    host: &str,
    operation: Operation,
    permission: Permission,
) -> Acl {
    Acl {
        kind: kind.into(),
        pattern: pattern.into(),
        name: name.to_owned(),
        principal: principal.to_owned(),
        host: host.to_owned(),
        operation: operation.into(),
        permission: permission.into(),
    }
}

fn topic(
    pattern: PatternKind,
    name: &str,
    principal: &str,
    operation: Operation,
    permission: Permission,
) -> Acl {
    acl(
        (ResourceKind::Topic, pattern, name),
        principal,
        ANY,
        operation,
        permission,
    )
}

fn table(acls: &[Acl]) -> AclTable {
    let mut table = AclTable::default();
    for acl in acls {
        acl.check().unwrap();
        assert!(table.insert(acl));
    }
    table
}

const ALICE: Who<'static> = Who {
    principal: "User:alice",
    host: "10.0.0.1",
};

#[track_caller]
fn check(acls: &[Acl], operation: Operation, name: &str, verdict: Verdict) {
    let found = table(acls).judge(ALICE, operation, ResourceKind::Topic, name);
    assert_eq!(found, verdict, "{operation:?} {name}");
}

#[test]
fn names_are_matched_literally_by_prefix_and_all_at_once() {
    use Operation::{Read, Write};
    use PatternKind::{Literal, Prefixed};
    use Permission::{Allow, Deny};
    let alice = "User:alice";
    let one = [topic(Literal, "orders", alice, Read, Allow)];
    check(&one, Read, "orders", Verdict::Allowed);
    check(&one, Read, "orders2", Verdict::Unruled);
    check(&one, Write, "orders", Verdict::Denied);
    let all = [topic(Literal, "*", alice, Read, Allow)];
    check(&all, Read, "whatever", Verdict::Allowed);
    check(&all, Read, "*", Verdict::Allowed);
    let prefix = [topic(Prefixed, "ord", alice, Read, Allow)];
    check(&prefix, Read, "ord", Verdict::Allowed);
    check(&prefix, Read, "orders", Verdict::Allowed);
    check(&prefix, Read, "or", Verdict::Unruled);
    // Not every character is one byte.
    let beyond = [topic(Prefixed, "é", alice, Read, Allow)];
    check(&beyond, Read, "éa", Verdict::Allowed);
    check(&beyond, Read, "è", Verdict::Unruled);
    let star = [topic(Prefixed, "*", alice, Read, Allow)];
    check(&star, Read, "orders", Verdict::Unruled);
    // Whatever denies wins, wherever it stands.
    for denial in [
        topic(Literal, "orders", alice, Read, Deny),
        topic(Literal, "*", "User:*", Read, Deny),
        topic(Prefixed, "o", alice, Operation::All, Deny),
    ] {
        let both = [
            topic(Literal, "orders", alice, Operation::All, Allow),
            denial,
        ];
        check(&both, Read, "orders", Verdict::Denied);
    }
}

#[test]
fn what_one_operation_implies_is_allowed_and_never_denied() {
    use Operation as O;
    use PatternKind::Literal;
    use Permission::{Allow, Deny};
    let implied = [
        (O::Read, O::Describe),
        (O::Write, O::Describe),
        (O::Delete, O::Describe),
        (O::Alter, O::Describe),
        (O::AlterConfigs, O::DescribeConfigs),
        (O::All, O::Delete),
    ];
    for (has, wants) in implied {
        let allowed = [topic(Literal, "t", "User:alice", has, Allow)];
        check(&allowed, wants, "t", Verdict::Allowed);
        let denied = [
            topic(Literal, "t", "User:alice", has, Deny),
            topic(Literal, "t", "User:alice", wants, Allow),
        ];
        let verdict = if has == O::All {
            Verdict::Denied
        } else {
            Verdict::Allowed
        };
        check(&denied, wants, "t", verdict);
    }
    for (has, wants) in [
        (O::Describe, O::Read),
        (O::DescribeConfigs, O::AlterConfigs),
    ] {
        let allowed = [topic(Literal, "t", "User:alice", has, Allow)];
        check(&allowed, wants, "t", Verdict::Denied);
    }
}

#[test]
fn rules_are_for_one_or_all_and_from_one_host_or_all() {
    use Operation::Read;
    use Permission::Allow;
    let resource = (ResourceKind::Topic, PatternKind::Literal, "t");
    let rows = [
        ("User:alice", "10.0.0.1", Verdict::Allowed),
        ("User:alice", "*", Verdict::Allowed),
        ("User:*", "*", Verdict::Allowed),
        ("User:alice", "10.0.0.2", Verdict::Denied),
        ("User:bob", "*", Verdict::Denied),
        ("Group:*", "*", Verdict::Denied),
    ];
    for (principal, host, verdict) in rows {
        let rule = acl(resource, principal, host, Read, Allow);
        check(&[rule], Read, "t", verdict);
    }
    // Another kind of resource of that name is another resource.
    let group = (ResourceKind::Group, PatternKind::Literal, "t");
    let rule = acl(group, "User:alice", ANY, Read, Allow);
    check(&[rule], Read, "t", Verdict::Unruled);
}

#[test]
fn whether_any_topic_may_be_written_to_heeds_what_denies_as_widely() {
    use Operation::Write;
    use PatternKind::{Literal, Prefixed};
    use Permission::{Allow, Deny};
    let alice = "User:alice";
    let rows: [(&[Acl], Verdict); 7] = [
        (&[], Verdict::Unruled),
        (
            &[topic(Literal, "t", "User:bob", Write, Allow)],
            Verdict::Denied,
        ),
        (
            &[topic(Literal, "t", alice, Write, Allow)],
            Verdict::Allowed,
        ),
        (
            &[
                topic(Literal, "t", alice, Write, Allow),
                topic(Literal, "t", alice, Write, Deny),
            ],
            Verdict::Denied,
        ),
        (
            &[
                topic(Prefixed, "team-", alice, Write, Allow),
                topic(Prefixed, "te", "User:*", Operation::All, Deny),
            ],
            Verdict::Denied,
        ),
        (
            &[
                topic(Prefixed, "team-", alice, Write, Allow),
                topic(Prefixed, "team-x", alice, Write, Deny),
            ],
            Verdict::Allowed,
        ),
        (
            &[
                topic(Prefixed, "team-", alice, Write, Allow),
                topic(Literal, "*", alice, Write, Deny),
            ],
            Verdict::Denied,
        ),
    ];
    for (acls, verdict) in rows {
        let found = table(acls).judge_any(ALICE, Write, ResourceKind::Topic);
        assert_eq!(found, verdict, "{acls:?}");
    }
}

#[test]
fn rules_come_out_as_they_went_in_and_go_one_by_one() {
    use Operation::{Read, Write};
    use Permission::Allow;
    let acls = [
        topic(PatternKind::Literal, "a", "User:alice", Read, Allow),
        topic(PatternKind::Literal, "a", "User:alice", Write, Allow),
        topic(PatternKind::Prefixed, "a", "User:alice", Read, Allow),
    ];
    let mut table = table(&acls);
    assert!(!table.insert(&acls[0]), "twice");
    assert_eq!(table.all().collect::<Vec<_>>(), acls);
    for (left, acl) in (0..acls.len()).rev().zip(&acls) {
        assert!(table.remove(acl));
        assert!(!table.remove(acl), "gone");
        assert_eq!(table.len(), left);
    }
    assert!(table.is_empty());
}

#[test]
fn what_is_no_rule_is_refused() {
    let good = topic(
        PatternKind::Literal,
        "t",
        "User:alice",
        Operation::Read,
        Permission::Allow,
    );
    good.check().unwrap();
    let bad: [fn(&mut Acl); 9] = [
        |acl| acl.kind = 1,
        |acl| acl.pattern = 1,
        |acl| acl.operation = 1,
        |acl| acl.permission = 1,
        |acl| acl.name.clear(),
        |acl| acl.principal = "alice".into(),
        |acl| acl.host.clear(),
        |acl| acl.kind = ResourceKind::Cluster.into(),
        |acl| acl.operation = Operation::IdempotentWrite.into(),
    ];
    for (at, spoil) in bad.iter().enumerate() {
        let mut acl = good.clone();
        spoil(&mut acl);
        assert!(acl.check().is_err(), "{at}");
    }
}

/// Whoever asks may name what he likes, as long as a request may be.
#[test]
fn no_more_of_a_name_is_looked_up_than_a_rule_can_have() {
    let longest = "é".repeat(MAX_ACL_TEXT / 2);
    let prefix = |name: &str, permission| {
        topic(
            PatternKind::Prefixed,
            name,
            "User:alice",
            Operation::Read,
            permission,
        )
    };
    let table = table(&[prefix(&longest, Permission::Allow)]);
    let judge = |name: &str| table.judge(ALICE, Operation::Read, ResourceKind::Topic, name);
    assert_eq!(judge(&longest), Verdict::Allowed);
    assert_eq!(judge(&format!("{longest}x")), Verdict::Allowed);
    assert_eq!(judge(&format!("x{longest}")), Verdict::Unruled);
    let endless = longest.repeat(32 << 10);
    assert_eq!(endless.len(), 32 << 20);
    assert_eq!(beginnings(&endless).count(), MAX_ACL_TEXT / 2);
    assert_eq!(judge(&endless), Verdict::Allowed);
}
