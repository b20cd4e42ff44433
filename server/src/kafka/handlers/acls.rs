//! DescribeAcls, CreateAcls, DeleteAcls: the rules of who may do what.

use trilog_raft::controller::commands::{AlterAcls, Command};
use trilog_raft::controller::{Acl, ClusterMap, Operation, PatternKind, Permission, ResourceKind};
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
    host: Option<StrBytes>,
    operation: i8,
    permission: i8,
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

    fn meets(&self, acl: &Acl) -> bool {
        let number = |wanted: i8, is: i32| wanted == ANY_CODE || i32::from(wanted) == is;
        let same = |wanted: &Option<StrBytes>, is: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == is)
        };
        number(self.kind, acl.kind)
            && self.meets_name(acl)
            && same(&self.principal, &acl.principal)
            && same(&self.host, &acl.host)
            && number(self.operation, acl.operation)
            && number(self.permission, acl.permission)
    }

    fn meets_name(&self, acl: &Acl) -> bool {
        if self.pattern != MATCH_CODE {
            let pattern = self.pattern == ANY_CODE || i32::from(self.pattern) == acl.pattern;
            return pattern && self.name.as_deref().is_none_or(|name| name == acl.name);
        }
        self.name.as_deref().is_none_or(|name| {
            if acl.pattern == i32::from(PatternKind::Prefixed) {
                name.starts_with(&acl.name)
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
            host: filter.host_filter.clone(),
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
        host: asked.host_filter,
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
    for acl in map.acls().all().filter(|acl| filter.meets(acl)) {
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
        let acl = Acl {
            kind: creation.resource_type.into(),
            pattern: creation.resource_pattern_type.into(),
            name: creation.resource_name.to_string(),
            principal: creation.principal.to_string(),
            host: creation.host.to_string(),
            operation: creation.operation.into(),
            permission: creation.permission_type.into(),
        };
        let checked = allowed.clone().and_then(|()| {
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
    let added = added.await;
    let results = outcomes.into_iter().map(|outcome| {
        let mut result = AclCreationResult::default();
        if let Err((code, why)) = outcome.and_then(|()| added.clone()) {
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
    for filter in asked.filters.iter().map(Filter::from) {
        let checked = allowed.clone().and_then(|()| filter.check());
        let met = checked.and_then(|()| {
            let met: Vec<Acl> = map.acls().all().filter(|acl| filter.meets(acl)).collect();
            told += met.len();
            // A short request has no very long answer.
            if told > 2 * trilog_raft::controller::MAX_ACLS {
                return Err((
                    ErrorCode::InvalidRequest,
                    Some("too many filters".to_owned()),
                ));
            }
            Ok(met)
        });
        found.push(met);
    }
    let remove: Vec<Acl> = found.iter().flatten().flatten().cloned().collect();
    let removed = change_all(session, &remove, |remove| AlterAcls {
        add: Vec::new(),
        remove,
    });
    let removed = removed.await;
    let results = found.into_iter().map(|met| {
        let mut result = DeleteAclsFilterResult::default();
        match met.and_then(|met| removed.clone().map(|()| met)) {
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

/// Rules changed by one command: it has to fit.
const AT_ONCE: usize = 500;

async fn change_all(
    session: &Session,
    acls: &[Acl],
    change: impl Fn(Vec<Acl>) -> AlterAcls,
) -> Result<(), Refusal> {
    for some in acls.chunks(AT_ONCE) {
        let command = Command::AlterAcls(change(some.to_vec()));
        session.change(&command, false).await?;
    }
    Ok(())
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
