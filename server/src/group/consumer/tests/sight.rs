//! What patterns match of what their members may know of.

use trilog_model::Timestamp;
use trilog_raft::controller::commands::{AlterAcls, Bootstrap, Command, RegisterNode};
use trilog_raft::controller::{
    ACCESS_LEVEL, Acl, AclTable, ControllerState, Operation, PatternKind, Permission, ResourceKind,
};

use super::*;
use crate::access::{Access, Identity, Settings as AccessSettings};

fn rule(name: &str, user: &str, host: &str, permission: Permission) -> Acl {
    Acl {
        kind: ResourceKind::Topic.into(),
        pattern: PatternKind::Literal.into(),
        name: name.to_owned(),
        principal: format!("User:{user}"),
        host: host.to_owned(),
        operation: Operation::Describe.into(),
        permission: permission.into(),
    }
}

fn table(rules: Vec<Acl>) -> Arc<AclTable> {
    let mut state = ControllerState::new();
    let node = RegisterNode {
        node: 1,
        identity: bytes::Bytes::from_static(&[1; 16]),
        min_level: 1,
        max_level: ACCESS_LEVEL,
        ..RegisterNode::default()
    };
    let bootstrap = Command::Bootstrap(Bootstrap {
        cluster: bytes::Bytes::from_static(&[9; 16]),
        node,
        level: ACCESS_LEVEL,
    });
    let alter = Command::AlterAcls(AlterAcls {
        add: rules,
        remove: Vec::new(),
    });
    for command in [bootstrap, alter] {
        state.carry_out(&command, Timestamp(1)).unwrap();
    }
    Arc::clone(state.map().acls())
}

/// Topics of four partitions each, and these rules.
fn ruled(version: u64, topics: usize, rules: Vec<Acl>) -> Arc<Catalogue> {
    let access = Access::new(AccessSettings {
        required: true,
        ..AccessSettings::default()
    });
    let plain = catalogue(version, &vec![4; topics]);
    Arc::new(Catalogue {
        version,
        topics: plain.topics.clone(),
        sight: Sight::new(&access, &table(rules)),
    })
}

fn named(user: &str, host: &str) -> ConsumerBeat {
    ConsumerBeat {
        topics: None,
        regex: Some("t.*".to_owned()),
        viewer: Some(Arc::new(Identity {
            principal: format!("User:{user}").into(),
            host: host.into(),
        })),
        ..join(user, &[])
    }
}

fn again(given: &Given, owned: &BTreeSet<Part>, by: &ConsumerBeat) -> ConsumerBeat {
    ConsumerBeat {
        viewer: by.viewer.clone(),
        ..next(given, owned)
    }
}

#[test]
fn a_pattern_matches_what_its_member_may_know_of_and_takes_nothing_from_others() {
    let allow = |name: &str, user: &str| rule(name, user, "*", Permission::Allow);
    let mut desk = Desk::new(&[]);
    let apart = || vec![allow("t1", "al"), allow("t2", "bo"), allow("t3", "bo")];
    desk.catalogue = ruled(1, 3, apart());
    let (al, bo) = (named("al", "10.0.0.1"), named("bo", "10.0.0.2"));
    let a = desk.beat(&al).unwrap();
    assert_eq!(parts(&a), numbers(1, 0..4));
    let b = desk.beat(&bo).unwrap();
    let of_bo: BTreeSet<Part> = &numbers(2, 0..4) | &numbers(3, 0..4);
    assert_eq!(parts(&b), of_bo);
    let nobody = named("nobody", "10.0.0.3");
    assert_eq!(parts(&desk.beat(&nobody).unwrap()), BTreeSet::new());
    assert!(desk.group.subscribes("t1", &desk.catalogue));

    // What a member may know of changes: so does what it is to read, whoever coordinates by then.
    let targets = |desk: &Desk| {
        let target = |id: &str| desk.group.members[id].target.clone();
        (target("al"), target("bo"))
    };
    let (mut told, owned) = (a, numbers(1, 0..4));
    for (version, moves) in [(2, false), (4, true)] {
        if moves {
            desk.move_on();
        }
        let shared = apart().into_iter().chain([allow("t2", "al")]);
        desk.catalogue = ruled(version, 3, shared.collect());
        told = desk.beat(&again(&told, &owned, &al)).unwrap();
        let (of_al, rest) = targets(&desk);
        assert_eq!((of_al.len(), rest.len()), (6, 6));
        assert!(owned.is_subset(&of_al));

        if moves {
            desk.move_on();
        }
        desk.catalogue = ruled(version + 1, 3, apart());
        told = desk.beat(&again(&told, &owned, &al)).unwrap();
        assert_eq!(targets(&desk), (owned.clone(), of_bo.clone()));
    }
}

#[test]
fn hosts_that_no_rule_names_are_one_and_those_that_are_named_count() {
    let everybody = || rule("*", "*", "*", Permission::Allow);
    let mut desk = Desk::new(&[]);
    desk.settings.members_max = 1_000;
    let denied = rule("t1", "*", "10.0.0.7", Permission::Deny);
    desk.catalogue = ruled(1, 1, vec![everybody(), denied]);
    // More than there may be different patterns in a group.
    for host in 0..100 {
        let beat = ConsumerBeat {
            member: format!("m{host}"),
            ..named("al", &format!("10.0.0.{host}"))
        };
        desk.beat(&beat).unwrap();
    }
    let of = |host: usize| &desk.group.members[&format!("m{host}")];
    let sees = |host: usize| of(host).wanted(&desk.group.patterns, &desk.catalogue);
    assert_eq!((sees(6).len(), sees(7).len(), sees(8).len()), (1, 0, 1));
}
