//! Rules of who may do what: listed, added, removed.

use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use trilog_raft::controller::commands::{AlterAcls, Command};
use trilog_raft::controller::{Acl, Operation};
use trilog_wire::v1::acls_server::Acls;
use trilog_wire::v1::{
    Acl as Written, AddAclsRequest, AddAclsResponse, Error, ErrorCode, ListAclsRequest,
    ListAclsResponse, RemoveAclsRequest, RemoveAclsResponse,
};

use super::door::Caller;
use super::{Api, errors};
use crate::access::rules::{
    Meant, OPERATIONS, PATTERNS, PERMISSIONS, RESOURCES, fitting, host, meant, word,
};

/// Rules of one message.
const AT_ONCE: usize = 500;

#[tonic::async_trait]
impl Acls for Api {
    type ListStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ListAclsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<ListAclsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Describe)?;
        let wanted = filter(request.into_inner())?;
        self.cluster.is_current().await;
        let map = self.cluster.map();
        let entries = map.acls().entries().filter(|acl| wanted.is(acl));
        let found: Vec<Acl> = entries.map(|entry| entry.to_acl()).collect();
        let messages: Vec<_> = found
            .chunks(AT_ONCE)
            .map(|some| {
                let acls = some.iter().map(written).collect();
                Ok(ListAclsResponse { acls })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn add(
        &self,
        request: Request<AddAclsRequest>,
    ) -> Result<Response<AddAclsResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let rules = rules(request.into_inner().acls, true)?;
        self.alter_rules(rules, |add| AlterAcls {
            add,
            remove: Vec::new(),
        })
        .await?;
        Ok(Response::new(AddAclsResponse {}))
    }

    async fn remove(
        &self,
        request: Request<RemoveAclsRequest>,
    ) -> Result<Response<RemoveAclsResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let rules = rules(request.into_inner().acls, false)?;
        self.alter_rules(rules, |remove| AlterAcls {
            add: Vec::new(),
            remove,
        })
        .await?;
        Ok(Response::new(RemoveAclsResponse {}))
    }
}

impl Api {
    /// Changes rules, some at a time: those before one that fails are changed.
    async fn alter_rules(
        &self,
        rules: Vec<Acl>,
        change: impl Fn(Vec<Acl>) -> AlterAcls,
    ) -> Result<(), Error> {
        let mut rest = &*rules;
        while !rest.is_empty() {
            let (some, more) = rest.split_at(fitting(rest));
            rest = more;
            let command = Command::AlterAcls(change(some.to_vec()));
            let proposed = self.cluster.propose(&command).await;
            proposed.map_err(|error| errors::propose(&error))?;
        }
        Ok(())
    }
}

fn invalid(text: String) -> Error {
    Error::new(ErrorCode::InvalidRequest, text)
}

fn number<T: Copy + Into<i32>>(
    words: &[(&str, T)],
    what: &str,
    written: &str,
) -> Result<i32, Error> {
    let known = meant(words, written).map(Into::into);
    known.ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        invalid(format!(
            "there is no {what} '{written}'; there are {}",
            words.join(", ")
        ))
    })
}

fn filter(asked: ListAclsRequest) -> Result<Meant, Error> {
    let resource = asked.resource.as_deref();
    let pattern = asked.pattern.as_deref();
    let operation = asked.operation.as_deref();
    let permission = asked.permission.as_deref();
    Ok(Meant {
        kind: resource
            .map(|word| number(&RESOURCES, "kind of resource", word))
            .transpose()?,
        pattern: pattern
            .map(|word| number(&PATTERNS, "pattern", word))
            .transpose()?,
        name: asked.name,
        principal: asked.principal,
        // One from before hosts were looked at can still be found.
        host: asked.host.map(|written| host(&written).unwrap_or(written)),
        operation: operation
            .map(|word| number(&OPERATIONS, "operation", word))
            .transpose()?,
        permission: permission
            .map(|word| number(&PERMISSIONS, "permission", word))
            .transpose()?,
    })
}

/// Rules as they are kept; new ones have to be such as can be met.
fn rules(written: Vec<Written>, new: bool) -> Result<Vec<Acl>, Error> {
    let each = written.into_iter();
    each.map(|rule| read(rule, new)).collect()
}

fn read(rule: Written, new: bool) -> Result<Acl, Error> {
    let known = host(&rule.host);
    if new && known.is_none() {
        let text = "a host is '*' or an IP address, neither a name nor a network";
        return Err(invalid(text.to_owned()));
    }
    let acl = Acl {
        kind: number(&RESOURCES, "kind of resource", &rule.resource)?,
        pattern: number(&PATTERNS, "pattern", &rule.pattern)?,
        name: rule.name,
        principal: rule.principal,
        host: known.unwrap_or(rule.host),
        operation: number(&OPERATIONS, "operation", &rule.operation)?,
        permission: number(&PERMISSIONS, "permission", &rule.permission)?,
    };
    acl.check().map_err(|error| invalid(error.to_string()))?;
    Ok(acl)
}

fn written(acl: &Acl) -> Written {
    Written {
        resource: word(&RESOURCES, acl.kind),
        pattern: word(&PATTERNS, acl.pattern),
        name: acl.name.clone(),
        principal: acl.principal.clone(),
        host: acl.host.clone(),
        operation: word(&OPERATIONS, acl.operation),
        permission: word(&PERMISSIONS, acl.permission),
    }
}
