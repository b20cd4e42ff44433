//! DescribeUserScramCredentials: who can prove who they are, and how; never with what.

use std::collections::BTreeMap;

use trilog_raft::controller::{Operation, User};
use trilog_wire::kafka::messages::describe_user_scram_credentials_response::{
    CredentialInfo, DescribeUserScramCredentialsResult,
};
use trilog_wire::kafka::messages::{
    DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

pub(super) fn answer(session: &Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeUserScramCredentialsRequest = decode(request)?;
    let mut response = DescribeUserScramCredentialsResponse::default();
    let map = session.kafka.inner.cluster.map();
    if !session.rights(&map).may_cluster(Operation::Describe) {
        response.error_code = ErrorCode::ClusterAuthorizationFailed.code();
        session.count_error(request, response.error_code);
        return Ok(Writer::message(request, &response)?);
    }
    let mut named: BTreeMap<&str, usize> = BTreeMap::new();
    let asked = asked.users.unwrap_or_default();
    for user in &asked {
        *named.entry(&user.name).or_default() += 1;
    }
    response.results = if named.is_empty() {
        map.users().map(|user| described(user)).collect()
    } else {
        let each = named.iter().map(|(name, times)| match map.user(name) {
            _ if *times > 1 => refused(
                name,
                ErrorCode::DuplicateResource,
                "Cannot describe SCRAM credentials for the same user twice in a single request",
            ),
            Some(user) => described(user),
            None => refused(
                name,
                ErrorCode::ResourceNotFound,
                "Attempt to describe a user credential that does not exist",
            ),
        });
        each.collect()
    };
    Ok(Writer::message(request, &response)?)
}

fn described(user: &User) -> DescribeUserScramCredentialsResult {
    let infos = user.credentials.iter().map(|(mechanism, credential)| {
        CredentialInfo::default()
            .with_mechanism(i8::try_from(i32::from(*mechanism)).unwrap_or(0))
            .with_iterations(i32::try_from(credential.iterations).unwrap_or(i32::MAX))
    });
    DescribeUserScramCredentialsResult::default()
        .with_user(text(user.name.to_string()))
        .with_credential_infos(infos.collect())
}

fn refused(name: &str, code: ErrorCode, why: &str) -> DescribeUserScramCredentialsResult {
    DescribeUserScramCredentialsResult::default()
        .with_user(text(name))
        .with_error_code(code.code())
        .with_error_message(Some(text(format!("{why}: {name}"))))
}
