//! DescribeAcls, CreateAcls, DeleteAcls: the rules of who may do what.

use trilog_raft::controller::commands::{AlterAcls, Command};
use trilog_raft::controller::{
    Acl, AclEntry, ClusterMap, MAX_ACLS, Operation, PatternKind, Permission, ResourceKind,
};
use trilog_wire::kafka::messages::create_acls_response::AclCreationResult;
use trilog_wire::kafka::messages::delete_acls_request::DeleteAclsFilter;
use trilog_wire::kafka::messages::delete_acls_response::{
    DeleteAclsFilterResult, DeleteAclsMatchingAcl,
};
use trilog_wire::kafka::messages::describe_acls_response::{AclDescription, DescribeAclsResource};
use trilog_wire::kafka::messages::{
    CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse,
    DescribeAclsRequest, DescribeAclsResponse,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, decode};

use super::text;
use crate::access::rules::{fitting, host};
use crate::kafka::conn::Ended;
use crate::kafka::errors::Refusal;
use crate::kafka::session::Session;

/// Kafka's words for "whatever it is" in filters.
const ANY_CODE: i8 = 1;
/// Patterns that apply to a name, in filters.
const MATCH_CODE: i8 = 2;

/// Which rules are meant.
#[derive(Debug)]
struct Filter {
    kind: i8,
    name: Option<StrBytes>,
    pattern: i8,
    principal: Option<StrBytes>,
    /// As rules have it, if it is an address.
    host: Option<StrBytes>,
    operation: i8,
    permission: i8,
}

/// A host as rules have it, for a filter, which may be about a rule from before hosts were looked at.
fn host_filter(written: Option<StrBytes>) -> Option<StrBytes> {
    written.map(|written| host(&written).map_or(written, text))
}

impl Filter {
    /// Refuses numbers that mean nothing.
    fn check(&self) -> Result<(), Refusal> {
        let known = |number: i8, known: bool| number == ANY_CODE || known;
        let kind = ResourceKind::try_from(i32::from(self.kind));
        let pattern = PatternKind::try_from(i32::from(self.pattern));
        let operation = Operation::try_from(i32::from(self.operation));
        let permission = Permission::try_from(i32::from(self.permission));
        let fine = known(
            self.kind,
            kind.is_ok_and(|kind| kind != ResourceKind::Unset),
        ) && known(
            self.pattern,
            self.pattern == MATCH_CODE
                || pattern.is_ok_and(|pattern| pattern != PatternKind::Unset),
        ) && known(
            self.operation,
            operation.is_ok_and(|operation| operation != Operation::Unset),
        ) && known(
            self.permission,
            permission.is_ok_and(|permission| permission != Permission::Unset),
        );
        if fine {
            Ok(())
        } else {
            let why = "Filter contained UNKNOWN elements.".to_owned();
            Err((ErrorCode::InvalidRequest, Some(why)))
        }
    }

    fn meets(&self, acl: &AclEntry<'_>) -> bool {
        let number = |wanted: i8, is: i32| wanted == ANY_CODE || i32::from(wanted) == is;
        let same = |wanted: &Option<StrBytes>, is: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == is)
        };
        number(self.kind, acl.kind)
            && self.meets_name(acl)
            && same(&self.principal, acl.principal())
            && same(&self.host, acl.host())
            && number(self.operation, acl.operation())
            && number(self.permission, acl.permission())
    }

    fn meets_name(&self, acl: &AclEntry<'_>) -> bool {
        if self.pattern != MATCH_CODE {
            let pattern = self.pattern == ANY_CODE || i32::from(self.pattern) == acl.pattern;
            return pattern && self.name.as_deref().is_none_or(|name| name == acl.name);
        }
        self.name.as_deref().is_none_or(|name| {
            if acl.pattern == i32::from(PatternKind::Prefixed) {
                name.starts_with(acl.name)
            } else {
                acl.name == name || acl.name == "*"
            }
        })
    }
}

impl From<&DeleteAclsFilter> for Filter {
    fn from(filter: &DeleteAclsFilter) -> Self {
        Self {
            kind: filter.resource_type_filter,
            name: filter.resource_name_filter.clone(),
            pattern: filter.pattern_type_filter,
            principal: filter.principal_filter.clone(),
            host: host_filter(filter.host_filter.clone()),
            operation: filter.operation,
            permission: filter.permission_type,
        }
    }
}

fn code_of(number: i32) -> i8 {
    i8::try_from(number).unwrap_or(0)
}

impl Session {
    /// Whether rules may be looked at or changed at all.
    fn may_rule(&self, map: &ClusterMap, operation: Operation) -> Result<(), Refusal> {
        if !self.kafka.inner.access.is_required() {
            let why = "No Authorizer is configured.".to_owned();
            return Err((ErrorCode::SecurityDisabled, Some(why)));
        }
        if self.rights(map).may_cluster(operation) {
            Ok(())
        } else {
            Err((ErrorCode::ClusterAuthorizationFailed, None))
        }
    }
}

pub(super) fn describe(session: &Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeAclsRequest = decode(request)?;
    let filter = Filter {
        kind: asked.resource_type_filter,
        name: asked.resource_name_filter,
        // Before version 1 there were no patterns; the codec says literal then.
        pattern: asked.pattern_type_filter,
        principal: asked.principal_filter,
        host: host_filter(asked.host_filter),
        operation: asked.operation,
        permission: asked.permission_type,
    };
    let map = session.kafka.inner.cluster.map();
    let allowed = session.may_rule(&map, Operation::Describe);
    let mut response = DescribeAclsResponse::default();
    if let Err((code, why)) = allowed.and_then(|()| filter.check()) {
        session.count_error(request, code.code());
        response.error_code = code.code();
        response.error_message = why.map(text);
        return Ok(Writer::message(request, &response)?);
    }
    let mut resources: Vec<DescribeAclsResource> = Vec::new();
    let met = map.acls().entries().filter(|acl| filter.meets(acl));
    for acl in met.map(|entry| entry.to_acl()) {
        let description = AclDescription::default()
            .with_principal(text(acl.principal))
            .with_host(text(acl.host))
            .with_operation(code_of(acl.operation))
            .with_permission_type(code_of(acl.permission));
        // They come in the order of their resources.
        let (kind, pattern) = (code_of(acl.kind), code_of(acl.pattern));
        match resources.last_mut() {
            Some(last)
                if last.resource_type == kind
                    && last.pattern_type == pattern
                    && *last.resource_name == acl.name =>
            {
                last.acls.push(description);
            }
            _ => resources.push(
                DescribeAclsResource::default()
                    .with_resource_type(kind)
                    .with_pattern_type(pattern)
                    .with_resource_name(text(acl.name))
                    .with_acls(vec![description]),
            ),
        }
    }
    response.resources = resources;
    Ok(Writer::message(request, &response)?)
}

pub(super) async fn create(session: &Session, request: &Request) -> Result<Answer, Ended> {
    let asked: CreateAclsRequest = decode(request)?;
    let map = session.kafka.inner.cluster.map();
    let allowed = session.may_rule(&map, Operation::Alter);
    let mut add = Vec::new();
    let mut outcomes: Vec<Result<(), Refusal>> = Vec::new();
    for creation in asked.creations {
        let known = host(&creation.host);
        let acl = Acl {
            kind: creation.resource_type.into(),
            pattern: creation.resource_pattern_type.into(),
            name: creation.resource_name.to_string(),
            principal: creation.principal.to_string(),
            host: known.clone().unwrap_or_default(),
            operation: creation.operation.into(),
            permission: creation.permission_type.into(),
        };
        let checked = allowed.clone().and_then(|()| {
            if known.is_none() {
                let why = "A host is '*' or an IP address, neither a name nor a network.";
                return Err((ErrorCode::InvalidRequest, Some(why.to_owned())));
            }
            let checked = acl.check();
            checked.map_err(|error| (ErrorCode::InvalidRequest, Some(error.to_string())))
        });
        if checked.is_ok() {
            add.push(acl);
        }
        outcomes.push(checked);
    }
    let added = change_all(session, &add, |add| AlterAcls {
        add,
        remove: Vec::new(),
    });
    let mut added = added.await.into_iter();
    let results = outcomes.into_iter().map(|outcome| {
        let outcome = outcome.and_then(|()| added.next().unwrap_or(Ok(())));
        let mut result = AclCreationResult::default();
        if let Err((code, why)) = outcome {
            session.count_error(request, code.code());
            result.error_code = code.code();
            result.error_message = why.map(text);
        }
        result
    });
    let response = CreateAclsResponse::default().with_results(results.collect());
    Ok(Writer::message(request, &response)?)
}

pub(super) async fn delete(session: &Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DeleteAclsRequest = decode(request)?;
    // What was just added through another node is to be found.
    session.kafka.inner.cluster.is_current().await;
    let map = session.kafka.inner.cluster.map();
    let allowed = session.may_rule(&map, Operation::Alter);
    let mut found: Vec<Result<Vec<Acl>, Refusal>> = Vec::new();
    let mut told = 0;
    for (nth, filter) in asked.filters.iter().map(Filter::from).enumerate() {
        let checked = allowed.clone().and_then(|()| filter.check());
        let met = checked.and_then(|()| {
            // A short request has no very long answer, nor one that takes very long.
            if nth >= MAX_FILTERS || told > 2 * MAX_ACLS {
                let why = "too many filters".to_owned();
                return Err((ErrorCode::InvalidRequest, Some(why)));
            }
            let entries = map.acls().entries();
            let met = entries.filter(|acl| filter.meets(acl));
            let met: Vec<Acl> = met.map(|entry| entry.to_acl()).collect();
            told += met.len();
            Ok(met)
        });
        found.push(met);
        tokio::task::yield_now().await;
    }
    let remove: Vec<Acl> = found.iter().flatten().flatten().cloned().collect();
    let removed = change_all(session, &remove, |remove| AlterAcls {
        add: Vec::new(),
        remove,
    });
    let mut removed = removed.await.into_iter();
    let results = found.into_iter().map(|met| {
        let met = met.and_then(|met| {
            // Each takes its own, whatever becomes of the first of them.
            let outcomes: Vec<Result<(), Refusal>> = removed.by_ref().take(met.len()).collect();
            let all: Result<Vec<()>, Refusal> = outcomes.into_iter().collect();
            all.map(|_| met)
        });
        let mut result = DeleteAclsFilterResult::default();
        match met {
            Ok(met) => result.matching_acls = met.into_iter().map(matching).collect(),
            Err((code, why)) => {
                session.count_error(request, code.code());
                result.error_code = code.code();
                result.error_message = why.map(text);
            }
        }
        result
    });
    let response = DeleteAclsResponse::default().with_filter_results(results.collect());
    Ok(Writer::message(request, &response)?)
}

/// Filters of one request that are looked at.
const MAX_FILTERS: usize = 1_000;

/// What became of each of the rules: they are changed some at a time.
async fn change_all(
    session: &Session,
    acls: &[Acl],
    change: impl Fn(Vec<Acl>) -> AlterAcls,
) -> Vec<Result<(), Refusal>> {
    let mut outcomes = Vec::with_capacity(acls.len());
    let mut rest = acls;
    while !rest.is_empty() {
        let (some, more) = rest.split_at(fitting(rest));
        rest = more;
        let command = Command::AlterAcls(change(some.to_vec()));
        let outcome = session.change(&command, false).await;
        outcomes.extend(some.iter().map(|_| outcome.clone()));
    }
    outcomes
}

fn matching(acl: Acl) -> DeleteAclsMatchingAcl {
    DeleteAclsMatchingAcl::default()
        .with_resource_type(code_of(acl.kind))
        .with_resource_name(text(acl.name))
        .with_pattern_type(code_of(acl.pattern))
        .with_principal(text(acl.principal))
        .with_host(text(acl.host))
        .with_operation(code_of(acl.operation))
        .with_permission_type(code_of(acl.permission))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_from_before_hosts_were_looked_at_can_still_be_found() {
        for (written, meant) in [("localhost", "localhost"), ("0:0:0:0:0:0:0:1", "::1")] {
            let found = host_filter(Some(text(written)));
            assert_eq!(found.as_deref(), Some(meant));
        }
    }
}
