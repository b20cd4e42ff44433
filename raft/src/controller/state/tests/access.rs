//! Users and rules in the controller's state.

use bytes::Bytes;

use super::super::super::access::{
    ANY, Acl, Credential, MIN_ITERATIONS, Mechanism, Operation, PatternKind, Permission,
    ResourceKind,
};
use super::super::super::command::{AlterAcls, AlterUser, Command, Expect};
use super::super::super::fixtures::{cluster, cluster_at, done, refused};
use super::super::super::level::ACCESS_LEVEL;
use super::super::{ControllerError, ControllerState};

fn credential(mechanism: Mechanism) -> Credential {
    let key = |fill: u8| Bytes::from(vec![fill; mechanism.key_len()]);
    Credential {
        mechanism: mechanism.into(),
        salt: Bytes::from_static(b"salt"),
        iterations: MIN_ITERATIONS,
        stored_key: key(0xa1),
        server_key: key(0xa2),
    }
}

fn user(name: &str, expect: Expect, set: &[Mechanism], remove: &[Mechanism]) -> Command {
    Command::AlterUser(AlterUser {
        name: name.into(),
        expect: expect.into(),
        set: set.iter().map(|one| credential(*one)).collect(),
        remove: remove.iter().map(|one| i32::from(*one)).collect(),
        secret: Bytes::from(vec![name.len().to_le_bytes()[0]; 32]),
    })
}

fn rule(name: &str) -> Acl {
    Acl {
        kind: ResourceKind::Topic.into(),
        pattern: PatternKind::Literal.into(),
        name: name.into(),
        principal: "User:alice".into(),
        host: ANY.into(),
        operation: Operation::Read.into(),
        permission: Permission::Allow.into(),
    }
}

fn rules(add: &[&str], remove: &[&str]) -> Command {
    Command::AlterAcls(AlterAcls {
        add: add.iter().map(|name| rule(name)).collect(),
        remove: remove.iter().map(|name| rule(name)).collect(),
    })
}

fn state() -> ControllerState {
    cluster_at(1, ACCESS_LEVEL)
}

#[test]
fn users_come_change_and_go() {
    use Mechanism::{ScramSha256, ScramSha512};
    let mut state = state();
    let unknown = ControllerError::UnknownUser { name: "al".into() };
    let absent = user("al", Expect::Present, &[ScramSha256], &[]);
    assert_eq!(refused(&mut state, &absent), unknown);
    done(&mut state, &user("al", Expect::New, &[ScramSha256], &[]));
    let again = user("al", Expect::New, &[ScramSha256], &[]);
    let exists = ControllerError::UserExists { name: "al".into() };
    assert_eq!(refused(&mut state, &again), exists);
    let neither = user("al", Expect::Any, &[], &[ScramSha512]);
    assert_eq!(refused(&mut state, &neither), unknown);
    let secret = state.map().secret().clone();
    done(&mut state, &user("b", Expect::Any, &[ScramSha512], &[]));
    assert_eq!(state.map().secret(), &secret, "the first one stays");
    let swap = user("al", Expect::Present, &[ScramSha512], &[ScramSha256]);
    done(&mut state, &swap);
    let map = state.map();
    let has: Vec<_> = map.user("al").unwrap().credentials.keys().collect();
    assert_eq!(has, [&ScramSha512]);
    // Whoever has nothing left to prove who they are with is gone.
    done(&mut state, &user("al", Expect::Any, &[], &[ScramSha512]));
    assert!(state.map().user("al").is_none());
    let names: Vec<String> = state.map().users().map(|u| u.name.to_string()).collect();
    assert_eq!(names, ["b"]);
}

#[test]
fn bad_credentials_and_names_are_refused() {
    let mut state = state();
    for name in ["", "a\nb", &"x".repeat(256)] {
        let refusal = refused(
            &mut state,
            &user(name, Expect::Any, &[Mechanism::ScramSha256], &[]),
        );
        assert!(matches!(refusal, ControllerError::InvalidUser { .. }));
    }
    let spoils: [fn(&mut Credential); 6] = [
        |credential| credential.mechanism = 9,
        |credential| credential.iterations = MIN_ITERATIONS - 1,
        |credential| credential.iterations = 1 << 20,
        |credential| credential.salt = Bytes::new(),
        |credential| credential.stored_key = Bytes::from_static(b"short"),
        |credential| credential.server_key = Bytes::from_static(b"short"),
    ];
    for (at, spoil) in spoils.iter().enumerate() {
        let mut bad = credential(Mechanism::ScramSha256);
        spoil(&mut bad);
        let command = Command::AlterUser(AlterUser {
            name: "al".into(),
            set: vec![bad],
            ..AlterUser::default()
        });
        let refusal = refused(&mut state, &command);
        assert!(
            matches!(refusal, ControllerError::InvalidUser { .. }),
            "{at}"
        );
    }
}

#[test]
fn rules_are_changed_all_at_once_and_a_bad_one_refuses_them_all() {
    let mut state = state();
    done(&mut state, &rules(&["a", "b"], &[]));
    let version = state.map().version();
    done(&mut state, &rules(&["a"], &["c"]));
    assert_eq!(state.map().version(), version, "nothing changed");
    refused(&mut state, &rules(&["c", ""], &["a"]));
    done(&mut state, &rules(&["c"], &["a"]));
    assert!(
        state.map().version() > version,
        "who remembers rights asks anew"
    );
    let names: Vec<String> = state.map().acls().all().map(|acl| acl.name).collect();
    assert_eq!(names, ["b", "c"]);
}

#[test]
fn users_and_rules_survive_a_snapshot_and_nobody_sees_a_key() {
    let mut state = state();
    done(&mut state, &user("al", Expect::New, &Mechanism::ALL, &[]));
    done(&mut state, &rules(&["a", "b"], &[]));
    let back = ControllerState::from_snapshot(&state.snapshot()).unwrap();
    assert_eq!(back.hash(), state.hash());
    assert_eq!(back.map(), state.map());
    // 0xa1, 0xa2: what keys are made of here; 2: what the secret is.
    let shown = format!(
        "{state:?} {:?}",
        user("al", Expect::New, &[Mechanism::ScramSha256], &[])
    );
    for secret in [
        "161, 161",
        "162, 162",
        "\\xa1",
        "\\xa2",
        "\\x02\\x02",
        "salt",
    ] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
}

#[test]
fn an_older_cluster_has_neither() {
    let mut state = cluster(1);
    for command in [
        user("al", Expect::New, &[Mechanism::ScramSha256], &[]),
        rules(&["a"], &[]),
    ] {
        let refusal = refused(&mut state, &command);
        assert!(matches!(refusal, ControllerError::LevelNotActive { .. }));
    }
}
