//! Who calls: a name and a password with each call, where everybody is asked.
//!
//! The call comes on with the caller's identity attached, and each service checks what it is asked
//! for. Passwords that were right are remembered, so that this costs little; one that is wrong is
//! answered after a pause.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use metrics::counter;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Status};
use trilog_raft::controller::{
    ACCESS_LEVEL, CLUSTER_RESOURCE, ClusterMap, Operation, ResourceKind,
};
use trilog_wire::v1::{Error, ErrorCode};

use super::{Api, DIALECT};
use crate::access::{Access, Identity, PATIENCE, pause, principal};
use crate::cluster::Cluster;

/// The longest header that is looked at.
const MAX_HEADER: usize = 4_096;

/// The methods that look themselves whether what is asked for is allowed, or that tell everybody
/// the same, by service. Any other is for whoever may do everything to the cluster, so that a check
/// that was forgotten opens nothing.
const CHECKED: &[(&str, &[&str])] = &[
    (
        "trilog.v1.Cluster",
        &[
            "Status",
            "Drain",
            "Remove",
            "Replace",
            "Transfer",
            "Move",
            "Balance",
            "Upgrade",
            "Configure",
        ],
    ),
    ("trilog.v1.Fetch", &["Fetch"]),
    ("trilog.v1.Offsets", &["Resolve"]),
    (
        "trilog.v1.Groups",
        &[
            "List",
            "Describe",
            "ResetOffsets",
            "DeleteOffsets",
            "Delete",
        ],
    ),
    (
        "trilog.v1.Producer",
        &["InitProducer", "Produce", "Publish"],
    ),
    (
        "trilog.v1.Topics",
        &["Create", "Alter", "Delete", "Describe", "List"],
    ),
    (
        "trilog.v1.Transactions",
        &["List", "Describe", "Abort", "ListOpen", "EndOpen"],
    ),
    ("trilog.v1.Users", &["List", "Put", "Remove"]),
    ("trilog.v1.Acls", &["List", "Add", "Remove"]),
    ("grpc.reflection.v1.ServerReflection", REFLECTION),
    ("grpc.reflection.v1alpha.ServerReflection", REFLECTION),
];
const REFLECTION: &[&str] = &["ServerReflectionInfo"];

/// Whether a call, by its path, has checks of its own.
fn has_checks(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/'))
    else {
        return false;
    };
    CHECKED
        .iter()
        .any(|(name, methods)| *name == service && methods.contains(&method))
}

/// Lets callers in; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Door(Option<Arc<Asking>>);

#[derive(Debug)]
struct Asking {
    access: Access,
    cluster: Cluster,
}

impl Door {
    /// Nobody is asked.
    #[cfg(test)]
    pub(super) const OPEN: Self = Self(None);

    pub(super) fn new(access: &Access, cluster: &Cluster) -> Self {
        let asking = access.is_required().then(|| Asking {
            access: access.clone(),
            cluster: cluster.clone(),
        });
        Self(asking.map(Arc::new))
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Attaches the caller's identity.
    pub(super) async fn admit(&self, request: &mut http::Request<Body>) -> Result<(), Status> {
        let Some(asking) = &self.0 else {
            return Ok(());
        };
        let since = Instant::now();
        let map = asking.cluster.map();
        if map.level() < ACCESS_LEVEL {
            return Err(levelled(&map).into());
        }
        let Some((user, password)) = credentials(request) else {
            return Err(refused("this cluster asks who you are").into());
        };
        let passwords = asking.access.passwords();
        let checking = passwords.check(&map, &user, password.as_bytes());
        let Ok(right) = timeout(PATIENCE, checking).await else {
            let text = "too many passwords are being looked at";
            return Err(Error::new(ErrorCode::Overloaded, text).into());
        };
        let state = if right.is_some() {
            "success"
        } else {
            "failure"
        };
        counter!(
            "trilog_authentications_total",
            "dialect" => DIALECT, "op" => "PLAIN", "state" => state
        )
        .increment(1);
        let Some(key) = right else {
            pause(since).await;
            return Err(refused("the user or the password is wrong").into());
        };
        let peer = request.extensions().get::<TcpConnectInfo>();
        // Rules may be about where somebody comes from, so that has to be known.
        let Some(peer) = peer.and_then(TcpConnectInfo::remote_addr) else {
            return Err(refused("it is not known where you come from").into());
        };
        let identity = Identity {
            principal: principal(&user),
            host: peer.ip().to_canonical().to_string().into(),
        };
        if !has_checks(request.uri().path()) {
            let rights = asking.access.rights(Some(&identity), &map);
            if !rights.may_cluster(Operation::All) {
                let text = "this call is for whoever may do everything to the cluster";
                return Err(Error::new(ErrorCode::PermissionDenied, text).into());
            }
        }
        let lifetime = asking.access.session_lifetime();
        let admission = Admission {
            identity,
            user,
            key,
            lifetime,
            until: lifetime.and_then(|lifetime| since.checked_add(lifetime)),
        };
        request.extensions_mut().insert(Arc::new(admission));
        Ok(())
    }
}

/// To whom the way in is closed for everybody: of a cluster without users nobody can be one.
fn levelled(map: &ClusterMap) -> Error {
    let text = format!(
        "this cluster asks who you are and has no users yet: it is at feature level {}, users come \
         with {ACCESS_LEVEL}",
        map.level()
    );
    Error::new(ErrorCode::Unauthenticated, text).with_hint(
        "start a node with access.authentication = \"none\", run `trilog cluster upgrade` through \
         it, then ask again",
    )
}

fn refused(text: &str) -> Error {
    Error::new(ErrorCode::Unauthenticated, text)
        .with_hint("give TRILOG_USER, and TRILOG_PASSWORD or TRILOG_PASSWORD_FILE")
}

/// Name and password of basic authentication (RFC 7617).
fn credentials(request: &http::Request<Body>) -> Option<(String, String)> {
    let header = request.headers().get(http::header::AUTHORIZATION)?;
    let text = header
        .to_str()
        .ok()
        .filter(|text| text.len() <= MAX_HEADER)?;
    let (scheme, value) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(value.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// How somebody was let in.
struct Admission {
    identity: Identity,
    user: String,
    /// What their password was right for.
    key: Bytes,
    /// How long that lets them stay, and until when that is.
    lifetime: Option<Duration>,
    until: Option<Instant>,
}

/// The key is for nobody's eyes.
impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Admission").field(&self.identity).finish()
    }
}

impl Admission {
    /// Whether whoever was let in would be let in again, and has not stayed for as long as they may.
    fn check(&self, map: &ClusterMap) -> Result<(), Error> {
        let user = map.user(&self.user);
        let keys = user.map(|user| user.credentials.values());
        let mut keys = keys.into_iter().flatten().map(|kept| &kept.stored_key);
        if !keys.any(|key| *key == self.key) {
            return Err(refused("the user is gone, or has another password now"));
        }
        match (self.until, self.lifetime) {
            (Some(until), Some(lifetime)) if Instant::now() >= until => {
                let text = format!("a call may go on for {lifetime:?} here: begin another");
                Err(Error::new(ErrorCode::SessionOver, text))
            }
            _ => Ok(()),
        }
    }
}

/// Whoever calls, as far as the door knows.
#[derive(Clone, Debug)]
pub(super) struct Caller(Option<Arc<Admission>>);

impl Caller {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        Self(request.extensions().get::<Arc<Admission>>().cloned())
    }

    pub(super) fn is_known(&self) -> bool {
        self.0.is_some()
    }

    fn identity(&self) -> Option<&Identity> {
        self.0.as_ref().map(|admission| &admission.identity)
    }
}

impl Api {
    /// Whether the caller of a stream may go on with it: removed users may not, nor those who were
    /// given another password, nor who came longer ago than a session lasts.
    pub(super) fn check_admission(&self, caller: &Caller) -> Result<(), Error> {
        let admission = caller.0.as_ref();
        admission.map_or(Ok(()), |admission| admission.check(&self.cluster.map()))
    }

    /// Waits until the caller may not go on, and says why.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub(super) async fn until_over(&self, caller: &Caller) -> Error {
        let Some(admission) = &caller.0 else {
            return std::future::pending().await;
        };
        let mut changes = self.cluster.changes();
        loop {
            changes.borrow_and_update();
            if let Err(over) = admission.check(&self.cluster.map()) {
                return over;
            }
            let changed = async {
                // A node that goes down closes its streams itself.
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match admission.until {
                Some(until) => drop(timeout_at(until, changed).await),
                None => changed.await,
            }
        }
    }

    pub(super) fn may(
        &self,
        caller: &Caller,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
    ) -> bool {
        let map = self.cluster.map();
        self.access
            .rights(caller.identity(), &map)
            .may(operation, kind, name)
    }

    /// Whether there may be a resource of the kind that the caller may do this to.
    pub(super) fn may_any(
        &self,
        caller: &Caller,
        operation: Operation,
        kind: ResourceKind,
    ) -> bool {
        let map = self.cluster.map();
        self.access
            .rights(caller.identity(), &map)
            .may_any(operation, kind)
    }

    fn check(
        &self,
        caller: &Caller,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
    ) -> Result<(), Error> {
        if self.may(caller, operation, kind, name) {
            return Ok(());
        }
        let what = match kind {
            ResourceKind::Topic => format!("topic '{name}'"),
            ResourceKind::Group => format!("group '{name}'"),
            ResourceKind::TransactionalId => format!("transactional id '{name}'"),
            _ => "the cluster".to_owned(),
        };
        let text = format!("you may not do this to {what}: it takes the right {operation:?}");
        Err(Error::new(ErrorCode::PermissionDenied, text))
    }

    pub(super) fn check_topic(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
    ) -> Result<(), Error> {
        self.check(caller, operation, ResourceKind::Topic, name)
    }

    pub(super) fn check_group(
        &self,
        caller: &Caller,
        operation: Operation,
        name: &str,
    ) -> Result<(), Error> {
        self.check(caller, operation, ResourceKind::Group, name)
    }

    pub(super) fn check_transaction(
        &self,
        caller: &Caller,
        operation: Operation,
        id: &str,
    ) -> Result<(), Error> {
        self.check(caller, operation, ResourceKind::TransactionalId, id)
    }

    pub(super) fn check_cluster(&self, caller: &Caller, operation: Operation) -> Result<(), Error> {
        self.check(caller, operation, ResourceKind::Cluster, CLUSTER_RESOURCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_known_to_have_checks_and_no_other_path_is() {
        // Add the checks to the method and a row to the tests of who may call what in
        // tests/kafka_acls.rs, then the name above.
        let paths = trilog_wire::descriptors::paths();
        for path in &paths {
            assert!(has_checks(path), "{path}");
        }
        let ours = CHECKED
            .iter()
            .filter(|(name, _)| name.starts_with("trilog"));
        let ours: usize = ours.map(|(_, methods)| methods.len()).sum();
        assert_eq!(paths.len(), ours);
        for path in [
            "",
            "/",
            "/trilog.v1.Users",
            "/trilog.v1.Users/New",
            "/New/List",
        ] {
            assert!(!has_checks(path), "{path}");
        }
    }

    #[test]
    fn credentials_are_read_from_what_is_basic_authentication() {
        let check = |header: &str, expect: Option<(&str, &str)>| {
            let request = http::Request::builder().header("authorization", header);
            let found = credentials(&request.body(Body::empty()).unwrap());
            let found = found
                .as_ref()
                .map(|(user, password)| (&**user, &**password));
            assert_eq!(found, expect, "{header}");
        };
        let encode = |text: &str| STANDARD.encode(text);
        check(
            &format!("Basic {}", encode("al:secret")),
            Some(("al", "secret")),
        );
        check(
            &format!("basic {}", encode("al:se:cret")),
            Some(("al", "se:cret")),
        );
        check(&format!("Basic {}", encode("al")), None);
        check(&format!("Bearer {}", encode("al:secret")), None);
        check("Basic", None);
        check("Basic !", None);
        check(
            &format!("Basic {}", encode(&format!("al:{}", "x".repeat(4_096)))),
            None,
        );
    }
}
