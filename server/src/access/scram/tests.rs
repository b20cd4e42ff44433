//! The exchange of RFC 7677, and everything that is not quite one.

use bytes::Bytes;
use trilog_model::Timestamp;
use trilog_raft::controller::commands::{AlterUser, Bootstrap, Command, RegisterNode};
use trilog_raft::controller::{ACCESS_LEVEL, ControllerState};

use super::super::password::{Passwords, credential_of_salted, salted};
use super::*;

/// A map in which these users have these credentials.
fn map(users: &[(&str, Credential)]) -> ClusterMap {
    let mut state = ControllerState::new();
    let node = RegisterNode {
        node: 1,
        identity: Bytes::from_static(&[1; 16]),
        min_level: 1,
        max_level: ACCESS_LEVEL,
        ..RegisterNode::default()
    };
    let bootstrap = Command::Bootstrap(Bootstrap {
        cluster: Bytes::from_static(&[9; 16]),
        node,
        level: ACCESS_LEVEL,
    });
    state.carry_out(&bootstrap, Timestamp(1)).unwrap();
    for (name, credential) in users {
        let alter = Command::AlterUser(AlterUser {
            name: (*name).to_owned(),
            set: vec![credential.clone()],
            secret: Bytes::from_static(&[5; 32]),
            ..AlterUser::default()
        });
        state.carry_out(&alter, Timestamp(1)).unwrap();
    }
    state.map()
}

fn of_password(mechanism: Mechanism, password: &str, salt: &[u8]) -> Credential {
    let salted = salted(mechanism, password.as_bytes(), salt, 4_096);
    credential_of_salted(mechanism, salt, 4_096, &salted)
}

const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const OURS: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

/// A map with the user of RFC 7677.
fn rfc() -> ClusterMap {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    map(&[("user", of_password(Mechanism::ScramSha256, "pencil", &salt))])
}

/// What the second message comes to, after the first one of the document.
fn last(message: &str) -> Result<Step, Refused> {
    let map = rfc();
    let mut scram = Scram::new(Mechanism::ScramSha256);
    scram.first(CLIENT_FIRST, &map, OURS).unwrap();
    // As `step` does, but for the nonce, which is the document's.
    scram.step(message.as_bytes(), &map, [0; NONCE_BYTES])
}

#[test]
fn the_exchange_of_the_document_is_ours() {
    let map = rfc();
    let mut scram = Scram::new(Mechanism::ScramSha256);
    let answer = scram.first(CLIENT_FIRST, &map, OURS).unwrap();
    assert_eq!(answer, Step::Continue(SERVER_FIRST.into()));
    let answer = scram.step(CLIENT_FINAL.as_bytes(), &map, [0; NONCE_BYTES]);
    let signature = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    assert_eq!(answer, Ok(Step::Done(signature.into(), "user".into())));
    // It ends there.
    let more = scram.step(CLIENT_FINAL.as_bytes(), &map, [0; NONCE_BYTES]);
    assert!(more.is_err());
}

#[test]
fn whatever_differs_in_the_final_message_fails() {
    assert!(last(CLIENT_FINAL).is_ok());
    for (from, to) in [
        ("c=biws", "c=eSws"),
        ("c=biws", "c="),
        ("k0,p", "k1,p"),
        ("r=rOpr", "r=rOps"),
        ("p=dHzb", "p=eHzb"),
        ("dVQ=", "dVQ"),
        (",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", ""),
        ("p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=", "p="),
        (",r=", ",x=1,r="),
        ("$k0", "$k0,x=1"),
    ] {
        let message = CLIENT_FINAL.replacen(from, to, 1);
        assert_ne!(message, CLIENT_FINAL);
        assert!(last(&message).is_err(), "{message}");
    }
    for len in 0..CLIENT_FINAL.len() {
        assert!(last(&CLIENT_FINAL[..len]).is_err(), "{len}");
    }
}

#[test]
fn malformed_beginnings_are_refused() {
    let map = rfc();
    let begin =
        |message: &[u8]| Scram::new(Mechanism::ScramSha256).step(message, &map, [7; NONCE_BYTES]);
    assert!(begin(CLIENT_FIRST.as_bytes()).is_ok());
    assert!(
        begin(b"y,,n=user,r=abc").is_ok(),
        "a client that could bind"
    );
    assert!(begin(b"n,a=user,n=user,r=abc").is_ok());
    assert!(begin(b"n,,n=user,r=abc,x=future").is_ok());
    for bad in [
        "",
        "n",
        "n,",
        "n,,",
        "n,,n=user",
        "n,,r=abc",
        "n,,n=,r=abc",
        "n,,n=user,r=",
        "n,,n=user,r=a\u{1}c",
        "n,,n=us=er,r=abc",
        "n,,n=us=2Der,r=abc",
        "n,a=other,n=user,r=abc",
        "n,b=user,n=user,r=abc",
        "p=tls-unique,,n=user,r=abc",
        "n,,m=ext,n=user,r=abc",
        "n,,n=user,r=abc,tokenauth=true",
    ] {
        assert!(begin(bad.as_bytes()).is_err(), "{bad:?}");
    }
    assert!(begin(b"n,,n=\xff,r=abc").is_err());
    let long = format!("n,,n=user,r={}", "a".repeat(MAX_MESSAGE));
    assert!(begin(long.as_bytes()).is_err());
}

#[test]
fn names_with_commas_and_equals_signs_are_escaped() {
    assert_eq!(unescape("a=2Cb=3Dc"), Ok("a,b=c".into()));
    assert_eq!(unescape("plain"), Ok("plain".into()));
    for bad in ["=", "a=2", "a=3d", "a==3D"] {
        assert!(unescape(bad).is_err(), "{bad}");
    }
}

#[test]
fn nobody_learns_from_a_salt_who_there_is() {
    let map = rfc();
    let begin = |name: &str, nonce: u8| {
        let message = format!("n,,n={name},r=abc");
        let mut scram = Scram::new(Mechanism::ScramSha256);
        let step = scram.step(message.as_bytes(), &map, [nonce; NONCE_BYTES]);
        let Ok(Step::Continue(answer)) = step else {
            panic!("{name}: {step:?}");
        };
        let answer = String::from_utf8(answer.to_vec()).unwrap();
        let salt = answer.split(",s=").nth(1).unwrap().to_owned();
        (scram, answer, salt)
    };
    let (_, _, once) = begin("nobody", 1);
    let (mut scram, answer, again) = begin("nobody", 2);
    assert_eq!(once, again, "it is the same each time");
    assert_ne!(once, begin("nobody2", 1).2);
    // Not even with the stand-in's own keys, were they known, is there a way in.
    let transcript = format!("n=nobody,r=abc,{answer}");
    let nonce = answer.split(',').next().unwrap();
    let text = format!("{transcript},c=biws,{nonce}");
    let proof = STANDARD.encode(hmac(Mechanism::ScramSha256, &[0; 32], text.as_bytes()));
    let message = format!("c=biws,{nonce},p={proof}");
    let end = scram.step(message.as_bytes(), &map, [0; NONCE_BYTES]);
    assert!(end.is_err());
}

#[test]
fn who_is_no_user_looks_like_some_of_those_who_are() {
    let mechanism = Mechanism::ScramSha256;
    let plain = |salt: &[u8], iterations| Credential {
        mechanism: mechanism.into(),
        salt: salt.to_vec().into(),
        iterations,
        stored_key: vec![1; 32].into(),
        server_key: vec![1; 32].into(),
    };
    let (tools, library) = (plain(&[b'k'; 26], 16_384), plain(&[0xff; 64], 8_192));
    let few = map(&[
        ("t1", tools.clone()),
        ("t2", tools.clone()),
        ("t3", tools.clone()),
        ("l", library.clone()),
    ]);
    let names: Vec<String> = (0..400).map(|nth| format!("nobody{nth}")).collect();
    let shapes = |map: &ClusterMap| -> Vec<Shape> {
        let each = names.iter();
        each.map(|name| Shape::of(&stand_in(mechanism, map, name)))
            .collect()
    };
    let drawn = shapes(&few);
    let (tool, other) = (Shape::of(&tools), Shape::of(&library));
    let of_tools = drawn.iter().filter(|shape| **shape == tool).count();
    let of_library = drawn.iter().filter(|shape| **shape == other).count();
    assert_eq!(
        of_tools + of_library,
        names.len(),
        "no other than users have"
    );
    assert!(
        (240..360).contains(&of_tools),
        "{of_tools} of 400, not about 300"
    );
    // Another user changes few names' minds.
    let more = map(&[
        ("t1", tools.clone()),
        ("t2", tools.clone()),
        ("t3", tools.clone()),
        ("l", library),
        ("t4", tools),
    ]);
    let moved = shapes(&more)
        .iter()
        .zip(&drawn)
        .filter(|(now, then)| now != then)
        .count();
    assert!(moved < 60, "{moved} of 400");
    // Where nobody has the mechanism it is as this cluster would make it.
    let none = stand_in(Mechanism::ScramSha512, &few, "nobody");
    assert_eq!(Shape::of(&none), Shape::OURS);
}

#[test]
fn the_longer_hash_proves_likewise() {
    // By hand, as a client would: the server's code must take it.
    let mechanism = Mechanism::ScramSha512;
    let map = map(&[("user", of_password(mechanism, "pencil", b"saltsalt"))]);
    let theirs = [
        ("", true),
        ("abc", true),
        ("abd", false),
        ("abcabc", false),
        ("ab", false),
    ];
    let all = theirs.map(|(before, right)| ("pencil", before, right));
    // librdkafka before 2.6.1 says its own part of the nonce twice.
    for (password, before, right) in all.into_iter().chain([("pencils", "", false)]) {
        let mut scram = Scram::new(mechanism);
        let Ok(Step::Continue(first)) = scram.step(b"n,,n=user,r=abc", &map, [3; NONCE_BYTES])
        else {
            panic!("the first message is good");
        };
        let first = String::from_utf8(first.to_vec()).unwrap();
        let nonce = first.split(',').next().unwrap();
        let nonce = nonce.replacen("r=", &format!("r={before}"), 1);
        let text = format!("n=user,r=abc,{first},c=biws,{nonce}");
        let salted = salted(mechanism, password.as_bytes(), b"saltsalt", 4_096);
        let key = hmac(mechanism, &salted, b"Client Key");
        let signature = hmac(mechanism, &hash(mechanism, &key), text.as_bytes());
        let proof: Vec<u8> = key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let message = format!("c=biws,{nonce},p={}", STANDARD.encode(proof));
        let end = scram.step(message.as_bytes(), &map, [0; NONCE_BYTES]);
        assert_eq!(end.is_ok(), right, "{password} {before}: {end:?}");
    }
}

#[tokio::test]
async fn passwords_are_held_against_what_is_kept_of_them() {
    let first = map(&[
        ("al", of_password(Mechanism::ScramSha256, "secret", b"one")),
        ("bo", of_password(Mechanism::ScramSha512, "secret", b"two")),
    ]);
    let passwords = Passwords::default();
    let rows = [
        ("al", "secret", true),
        ("al", "secret", true),
        ("bo", "secret", true),
        ("al", "secrets", false),
        ("al", "", false),
        ("a", "lsecret", false),
        ("nobody", "secret", false),
    ];
    for (user, password, right) in rows {
        let found = passwords.check(&first, user, password.as_bytes()).await;
        assert_eq!(found.is_some(), right, "{user} {password}");
    }
    // What is remembered goes with the password.
    let changed = map(&[("al", of_password(Mechanism::ScramSha256, "other", b"one"))]);
    assert!(passwords.check(&changed, "al", b"secret").await.is_none());
    assert!(passwords.check(&changed, "al", b"other").await.is_some());
    assert!(passwords.check(&changed, "bo", b"secret").await.is_none());
    let shown = format!("{passwords:?}");
    assert!(!shown.contains("secret:"), "{shown}");
}
