//! AlterUserScramCredentials: users come, change and go. Passwords come salted and hashed.

use std::collections::BTreeMap;

use trilog_raft::controller::commands::{AlterUser, Command, Expect};
use trilog_raft::controller::{
    Credential, MAX_ITERATIONS, MAX_SALT, MIN_ITERATIONS, Mechanism, Operation,
};
use trilog_wire::kafka::messages::alter_user_scram_credentials_request::ScramCredentialUpsertion;
use trilog_wire::kafka::messages::alter_user_scram_credentials_response::AlterUserScramCredentialsResult;
use trilog_wire::kafka::messages::{
    AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse,
};
use trilog_wire::kafka::{Answer, ErrorCode, Malformed, Request, Writer, decode};

use super::text;
use crate::access::{credential_of_salted, random};
use crate::kafka::conn::Ended;
use crate::kafka::errors::Refusal;
use crate::kafka::session::Session;

/// What is to happen to one user, or why nothing does.
type Change = Result<AlterUser, Refusal>;

pub(super) async fn answer(session: &Session, request: &Request) -> Result<Answer, Ended> {
    let asked = read(request)?;
    let mut response = AlterUserScramCredentialsResponse::default();
    let allowed = {
        let map = session.kafka.inner.cluster.map();
        session.rights(&map).may_cluster(Operation::Alter)
    };
    // Keys are made for those only who may set them.
    let changes = if allowed {
        changes(&asked)
    } else {
        refused(&asked)
    };
    for (name, change) in changes {
        let outcome = match change {
            Ok(change) => session.change(&Command::AlterUser(change), false).await,
            Err(refusal) => Err(refusal),
        };
        let mut result = AlterUserScramCredentialsResult::default().with_user(text(name));
        if let Err((code, why)) = outcome {
            session.count_error(request, code.code());
            result.error_code = code.code();
            result.error_message = why.map(text);
        }
        response.results.push(result);
    }
    Ok(Writer::message(request, &response)?)
}

/// librdkafka (2.x) ends this message twice, with a byte too many that brokers overlook.
fn read(request: &Request) -> Result<AlterUserScramCredentialsRequest, Malformed> {
    match (decode(request), request.body.split_last()) {
        (Err(Malformed::Trailing), Some((0, body))) => {
            let mut once = request.clone();
            once.body = request.body.slice_ref(body);
            decode(&once)
        }
        (read, _) => read,
    }
}

/// Nothing happens to anybody.
fn refused(asked: &AlterUserScramCredentialsRequest) -> BTreeMap<String, Change> {
    let deleted = asked.deletions.iter().map(|deletion| &deletion.name);
    let set = asked.upsertions.iter().map(|upsertion| &upsertion.name);
    let each = deleted.chain(set).map(|name| {
        let refusal = (ErrorCode::ClusterAuthorizationFailed, None);
        (name.to_string(), Err(refusal))
    });
    each.collect()
}

/// One change per user.
fn changes(asked: &AlterUserScramCredentialsRequest) -> BTreeMap<String, Change> {
    let mut changes: BTreeMap<String, Change> = BTreeMap::new();
    for deletion in &asked.deletions {
        let step = mechanism(&deletion.name, deletion.mechanism);
        add(&mut changes, &deletion.name, step, |user, mechanism| {
            user.remove.push(mechanism.into());
        });
    }
    for upsertion in &asked.upsertions {
        let step = upserted(upsertion);
        add(&mut changes, &upsertion.name, step, |user, credential| {
            user.set.push(credential);
        });
    }
    changes
}

/// Adds a step to a user's change; the first fault is the one that is told.
fn add<T>(
    changes: &mut BTreeMap<String, Change>,
    name: &str,
    step: Result<(Mechanism, T), Refusal>,
    take: impl FnOnce(&mut AlterUser, T),
) {
    let change = changes.entry(name.to_owned()).or_insert_with(|| {
        Ok(AlterUser {
            name: name.to_owned(),
            expect: Expect::Any.into(),
            secret: random::<32>().to_vec().into(),
            ..AlterUser::default()
        })
    });
    let Ok(user) = change else { return };
    match step {
        Ok((mechanism, _)) if is_named(user, mechanism) => {
            let why = "A user credential cannot be altered twice in the same request";
            *change = Err((ErrorCode::DuplicateResource, Some(why.to_owned())));
        }
        Ok((_, step)) => take(user, step),
        Err(refusal) => *change = Err(refusal),
    }
}

fn is_named(user: &AlterUser, mechanism: Mechanism) -> bool {
    let number = i32::from(mechanism);
    user.remove.contains(&number) || user.set.iter().any(|set| set.mechanism == number)
}

fn mechanism(name: &str, number: i8) -> Result<(Mechanism, Mechanism), Refusal> {
    if name.is_empty() {
        return Err(unacceptable("Username must not be empty"));
    }
    match Mechanism::try_from(i32::from(number)) {
        Ok(mechanism) if mechanism != Mechanism::Unset => Ok((mechanism, mechanism)),
        Ok(_) | Err(_) => Err((
            ErrorCode::UnsupportedSaslMechanism,
            Some("Unknown SCRAM mechanism".to_owned()),
        )),
    }
}

fn upserted(upsertion: &ScramCredentialUpsertion) -> Result<(Mechanism, Credential), Refusal> {
    let (mechanism, _) = mechanism(&upsertion.name, upsertion.mechanism)?;
    let iterations = u32::try_from(upsertion.iterations).unwrap_or(0);
    if iterations < MIN_ITERATIONS {
        return Err(unacceptable("Too few iterations"));
    }
    if iterations > MAX_ITERATIONS {
        return Err(unacceptable("Too many iterations"));
    }
    let (salt, salted) = (&upsertion.salt, &upsertion.salted_password);
    if salt.is_empty() || salt.len() > MAX_SALT || salted.len() != mechanism.key_len() {
        return Err(unacceptable(
            "The salt or the salted password has a wrong length",
        ));
    }
    let credential = credential_of_salted(mechanism, salt, iterations, salted);
    Ok((mechanism, credential))
}

fn unacceptable(why: &str) -> Refusal {
    (ErrorCode::UnacceptableCredential, Some(why.to_owned()))
}
