//! Who a connection's client is: what comes before everything else, where everybody is asked.
//!
//! ```text
//! Handshake --SaslHandshake--> Exchange --SaslAuthenticate, as often as needed--> Known
//!                                                                 SaslHandshake --+ (KIP-368)
//! ```
//!
//! After a SaslHandshake of version 0 tokens come as they are, each behind its length. Until a
//! client is known nothing else is served but ApiVersions, little memory is given, one request is
//! looked at at a time, and it must be done soon. Who fails hears so after a pause, and the
//! connection ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use metrics::counter;
use tokio::time::{Instant, sleep, timeout};
use trilog_raft::controller::{Mechanism, USER_PREFIX};
use trilog_wire::kafka::messages::{
    ApiKey, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest,
    SaslHandshakeResponse,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, check, decode};

use super::DIALECT;
use super::conn::{Ended, Outcome};
use super::handlers;
use super::session::Session;
use crate::access::{FAILURE_DELAY, Identity, PATIENCE, Scram, Step, pause, principal, random};
use crate::cluster::Cluster;

/// The longest request of somebody who is not known yet, as what is made of one is at most a few
/// times as long.
pub(super) const STRANGER_BYTES: usize = 16 << 10;
/// Elements of such a request: tagged fields nobody knows are kept, too.
const STRANGER_ELEMENTS: usize = 64;
/// How long a client may take to become known.
pub(super) const STRANGER_PATIENCE: Duration = PATIENCE;
/// Nobody has a reason to prove who they are again sooner than this.
const SETTLED: Duration = Duration::from_secs(1);

/// How a client wants to prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Plain,
    Scram(Mechanism),
}

impl Method {
    const ALL: [Self; 3] = [
        Self::Plain,
        Self::Scram(Mechanism::ScramSha256),
        Self::Scram(Mechanism::ScramSha512),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Scram(mechanism) => mechanism.name(),
        }
    }

    /// Those that are offered: a password in the open only where nobody else can read it.
    fn offered(secure: bool) -> impl Iterator<Item = Self> {
        let all = Self::ALL.into_iter();
        all.filter(move |method| secure || *method != Self::Plain)
    }
}

/// How far a connection's client has come.
#[derive(Debug)]
pub(super) struct Login {
    stage: Stage,
    known: Option<Known>,
}

#[derive(Debug)]
enum Stage {
    /// Nobody is asked.
    Open,
    Handshake,
    Exchange(Exchange),
    Known,
    /// It failed, or is no user any more: what comes behind that is not looked at.
    Over,
}

#[derive(Debug)]
struct Exchange {
    method: Method,
    /// Tokens come without a request around them.
    raw: bool,
    scram: Option<Scram>,
    /// A step was answered, and the last one is yet to come.
    begun: bool,
}

/// Whoever learns a salt and goes away has tried as well.
impl Drop for Exchange {
    fn drop(&mut self) {
        if self.begun {
            count(self.method, "failure");
        }
    }
}

#[derive(Debug)]
struct Known {
    identity: Arc<Identity>,
    method: Method,
    since: Instant,
    /// When it has to prove anew who it is.
    until: Option<Instant>,
    /// The version of the map that it was last seen to be a user in.
    version: u64,
}

/// Why somebody was not let in, as they are told.
#[derive(Debug)]
struct Failure(String);

/// How a token was taken.
struct Taken {
    answer: Bytes,
    /// Whether that is all, and for how long it holds.
    lifetime: Option<Duration>,
}

impl Login {
    pub(super) fn new(required: bool) -> Self {
        Self {
            stage: if required {
                Stage::Handshake
            } else {
                Stage::Open
            },
            known: None,
        }
    }

    /// Whether whatever comes is to be served. This is all that is done for each request.
    fn serves(&self, request: &Request) -> bool {
        match &self.stage {
            Stage::Open => true,
            Stage::Handshake | Stage::Exchange(_) | Stage::Over => false,
            Stage::Known => request.api.key != ApiKey::SaslHandshake && !self.is_expired(),
        }
    }

    /// Whether the user is no more, which is looked up once for each version of the map.
    fn is_removed(&mut self, cluster: &Cluster) -> bool {
        let Some(known) = &mut self.known else {
            return false;
        };
        let version = *cluster.changes().borrow();
        if version == known.version {
            return false;
        }
        known.version = version;
        let name = known.identity.principal.strip_prefix(USER_PREFIX);
        let map = cluster.map();
        name.is_none_or(|name| map.user(name).is_none())
    }

    fn is_expired(&self) -> bool {
        let until = self.known.as_ref().and_then(|known| known.until);
        until.is_some_and(|until| Instant::now() >= until)
    }

    /// Whether the client has yet to say who it is.
    pub(super) fn is_stranger(&self) -> bool {
        self.known.is_none() && !matches!(self.stage, Stage::Open)
    }

    /// Whether tokens come as they are.
    pub(super) fn is_raw(&self) -> bool {
        matches!(&self.stage, Stage::Exchange(exchange) if exchange.raw)
    }

    /// Who the client is, once that is known; nobody where nobody is asked.
    pub(super) fn identity(&self) -> Option<&Arc<Identity>> {
        self.known.as_ref().map(|known| &known.identity)
    }
}

/// What becomes of a request that is not to be served; none of one that is.
pub(super) async fn admit(session: &mut Session, request: &Request) -> Option<Outcome> {
    if session.login.is_removed(&session.kafka.inner.cluster) {
        session.login.stage = Stage::Over;
        return Some(Outcome::Close(Ended::Removed));
    }
    if session.login.serves(request) {
        return None;
    }
    Some(Box::pin(shake(session, request)).await)
}

async fn shake(session: &mut Session, request: &Request) -> Outcome {
    if matches!(session.login.stage, Stage::Over) {
        return Outcome::Close(Ended::Unauthenticated);
    }
    // Held against a bound of its own before anything is made of it.
    match check(request) {
        Ok(elements) if elements <= STRANGER_ELEMENTS => {}
        Ok(_) => return Outcome::Close(Ended::Stranger),
        Err(_)
            if !matches!(
                request.api.key,
                ApiKey::SaslHandshake | ApiKey::SaslAuthenticate
            ) =>
        {
            return Outcome::Close(Ended::Stranger);
        }
        Err(malformed) => return Outcome::Close(malformed.into()),
    }
    match (&session.login.stage, request.api.key) {
        (Stage::Handshake, ApiKey::ApiVersions) => handlers::api_versions(session, request).into(),
        (Stage::Handshake, ApiKey::SaslHandshake) => choose(session, request).await,
        // Tokens without requests around them are for those who do not know the protocol of today.
        (Stage::Known, ApiKey::SaslHandshake) if request.version > 0 && is_due(session) => {
            choose(session, request).await
        }
        (Stage::Known, ApiKey::SaslHandshake) => illegal(request).into(),
        (Stage::Exchange(_), ApiKey::SaslAuthenticate) => authenticate(session, request).await,
        (_, ApiKey::SaslHandshake | ApiKey::SaslAuthenticate) => {
            session.login.stage = Stage::Over;
            match illegal(request) {
                Ok(answer) => Outcome::Last(answer, Ended::Stranger),
                Err(ended) => Outcome::Close(ended),
            }
        }
        (Stage::Known, _) => Outcome::Close(Ended::Expired),
        _ => Outcome::Close(Ended::Stranger),
    }
}

/// Whether there is a reason to prove again who one is.
fn is_due(session: &Session) -> bool {
    let known = session.login.known.as_ref();
    let known = known.filter(|known| known.until.is_some());
    known.is_some_and(|known| known.since.elapsed() >= SETTLED)
}

/// To a handshake, or a part of one, that comes where there is none.
pub(super) fn illegal(request: &Request) -> Result<Answer, Ended> {
    let code = ErrorCode::IllegalSaslState.code();
    Ok(if request.api.key == ApiKey::SaslHandshake {
        decode::<SaslHandshakeRequest>(request)?;
        let response = SaslHandshakeResponse::default().with_error_code(code);
        Writer::message(request, &response)?
    } else {
        decode::<SaslAuthenticateRequest>(request)?;
        let text = "SaslAuthenticate request received after successful authentication";
        let response = SaslAuthenticateResponse::default()
            .with_error_code(code)
            .with_error_message(Some(StrBytes::from_static_str(text)));
        Writer::message(request, &response)?
    })
}

async fn choose(session: &mut Session, request: &Request) -> Outcome {
    let asked: SaslHandshakeRequest = match decode(request) {
        Ok(asked) => asked,
        Err(malformed) => return Outcome::Close(malformed.into()),
    };
    let secure = session.secure;
    let names = Method::offered(secure).map(|method| StrBytes::from_static_str(method.name()));
    let mut response = SaslHandshakeResponse::default().with_mechanisms(names.collect());
    let chosen = Method::offered(secure).find(|method| method.name() == &*asked.mechanism);
    if chosen.is_none() {
        response.error_code = ErrorCode::UnsupportedSaslMechanism.code();
        session.count_error(request, response.error_code);
        sleep(FAILURE_DELAY).await;
    }
    let answer = match Writer::message(request, &response) {
        Ok(answer) => answer,
        Err(error) => return Outcome::Close(error.into()),
    };
    let Some(method) = chosen else {
        session.login.stage = Stage::Over;
        return Outcome::Last(answer, Ended::Unauthenticated);
    };
    session.login.stage = Stage::Exchange(Exchange {
        method,
        raw: request.version == 0,
        scram: match method {
            Method::Plain => None,
            Method::Scram(mechanism) => Some(Scram::new(mechanism)),
        },
        begun: false,
    });
    Outcome::Answer(answer)
}

async fn authenticate(session: &mut Session, request: &Request) -> Outcome {
    let asked: SaslAuthenticateRequest = match decode(request) {
        Ok(asked) => asked,
        Err(malformed) => return Outcome::Close(malformed.into()),
    };
    let mut response = SaslAuthenticateResponse::default();
    let taken = take(session, &asked.auth_bytes).await;
    let failed = taken.is_err();
    match taken {
        Ok(taken) => {
            let lifetime = taken.lifetime.unwrap_or_default().as_millis();
            response.auth_bytes = taken.answer;
            response.session_lifetime_ms = i64::try_from(lifetime).unwrap_or(i64::MAX);
        }
        Err(Failure(text)) => {
            response.error_code = ErrorCode::SaslAuthenticationFailed.code();
            response.error_message = Some(StrBytes::from_string(text));
            session.count_error(request, response.error_code);
        }
    }
    match Writer::message(request, &response) {
        Ok(answer) if failed => Outcome::Last(answer, Ended::Unauthenticated),
        Ok(answer) => Outcome::Answer(answer),
        Err(error) => Outcome::Close(error.into()),
    }
}

/// Takes a token that came as it is; a failure has no words then.
pub(super) async fn token(session: &mut Session, token: Bytes) -> Outcome {
    match take(session, &token).await {
        Ok(Taken { answer, .. }) => {
            let mut out = BytesMut::with_capacity(4 + answer.len());
            out.put_u32(u32::try_from(answer.len()).unwrap_or(0));
            out.put(answer);
            Outcome::Answer(Answer(vec![out.freeze()]))
        }
        Err(_) => Outcome::Close(Ended::Unauthenticated),
    }
}

/// One step of the exchange. A failure is counted, and takes a while.
async fn take(session: &mut Session, token: &[u8]) -> Result<Taken, Failure> {
    let since = Instant::now();
    // Where it stays unless this step is a good one.
    let stage = std::mem::replace(&mut session.login.stage, Stage::Over);
    let Stage::Exchange(mut exchange) = stage else {
        return Err(Failure(String::new()));
    };
    let method = exchange.method;
    let stepped = timeout(PATIENCE, step(session, &mut exchange, token)).await;
    let stepped = stepped.unwrap_or_else(|_| Err(failure(session, method)));
    let admitted = stepped.and_then(|(answer, user)| match user {
        Some(user) => Ok((answer, Some(enter(session, method, &user)?))),
        None => Ok((answer, None)),
    });
    exchange.begun = matches!(admitted, Ok((_, None)));
    match admitted {
        Ok((answer, None)) => {
            session.login.stage = Stage::Exchange(exchange);
            Ok(Taken {
                answer,
                lifetime: None,
            })
        }
        Ok((answer, Some(lifetime))) => {
            count(method, "success");
            session.login.stage = Stage::Known;
            Ok(Taken { answer, lifetime })
        }
        Err(failure) => {
            count(method, "failure");
            pause(since).await;
            Err(failure)
        }
    }
}

/// Shows what is counted before anything is, so that a first failure is seen as one.
pub(super) fn show_counts() {
    for method in Method::ALL {
        for state in ["success", "failure"] {
            counter!(
                "trilog_authentications_total",
                "dialect" => DIALECT, "op" => method.name(), "state" => state
            )
            .increment(0);
        }
    }
}

fn count(method: Method, state: &'static str) {
    counter!(
        "trilog_authentications_total",
        "dialect" => DIALECT, "op" => method.name(), "state" => state
    )
    .increment(1);
}

/// As a broker says it, for whatever reason.
fn failure(session: &Session, method: Method) -> Failure {
    let what = match session.login.known {
        Some(_) => "re-authentication",
        None => "authentication",
    };
    Failure(match method {
        Method::Plain => "Authentication failed: Invalid username or password".to_owned(),
        Method::Scram(mechanism) => format!(
            "Authentication failed during {what} due to invalid credentials with SASL mechanism {}",
            mechanism.name()
        ),
    })
}

/// The answer to a token, and who the client has shown itself to be.
async fn step(
    session: &Session,
    exchange: &mut Exchange,
    token: &[u8],
) -> Result<(Bytes, Option<String>), Failure> {
    let map = session.kafka.inner.cluster.map();
    let Some(scram) = &mut exchange.scram else {
        let (user, password) = parse_plain(token)?;
        let passwords = session.kafka.inner.access.passwords();
        let right = passwords.check(&map, user, password.as_bytes()).await;
        return match right {
            Some(_) => Ok((Bytes::new(), Some(user.to_owned()))),
            None => Err(failure(session, exchange.method)),
        };
    };
    match scram.step(token, &map, random()) {
        Ok(Step::Continue(answer)) => Ok((answer, None)),
        Ok(Step::Done(answer, user)) => Ok((answer, Some(user))),
        Err(_) => Err(failure(session, exchange.method)),
    }
}

/// `authorization id NUL name NUL password`, with Kafka's words for what is wrong.
fn parse_plain(token: &[u8]) -> Result<(&str, &str), Failure> {
    let failed = |text: &str| Failure(text.to_owned());
    let text = std::str::from_utf8(token)
        .map_err(|_| failed("Authentication failed: Invalid username or password"))?;
    let parts: Vec<&str> = text.split('\0').take(4).collect();
    let [other, user, password] = parts[..] else {
        let got = parts.len();
        return Err(Failure(format!(
            "Invalid SASL/PLAIN response: expected 3 tokens, got {got}"
        )));
    };
    if user.is_empty() {
        return Err(failed("Authentication failed: username not specified"));
    }
    if password.is_empty() {
        return Err(failed("Authentication failed: password not specified"));
    }
    if !other.is_empty() && other != user {
        return Err(failed(
            "Authentication failed: Client requested an authorization id that is different from username",
        ));
    }
    Ok((user, password))
}

/// The client is this user from now on, and for how long.
fn enter(session: &mut Session, method: Method, user: &str) -> Result<Option<Duration>, Failure> {
    let principal = principal(user);
    if let Some(known) = &session.login.known {
        if known.method != method {
            return Err(Failure(format!(
                "SASL mechanism '{}' requested by client is not supported for re-authentication of mechanism '{}'",
                method.name(),
                known.method.name()
            )));
        }
        if known.identity.principal != principal {
            let was = &known.identity.principal;
            let was = was.strip_prefix(USER_PREFIX).unwrap_or(was);
            return Err(Failure(format!(
                "Cannot change principals during re-authentication from User.{was}: User.{user}"
            )));
        }
    }
    // Rules may be about where somebody comes from, so that has to be known.
    let Some(peer) = session.peer else {
        return Err(failure(session, method));
    };
    let host = peer.ip().to_canonical().to_string();
    let lifetime = session.kafka.inner.access.session_lifetime();
    let now = Instant::now();
    session.login.known = Some(Known {
        identity: Arc::new(Identity {
            principal,
            host: host.into(),
        }),
        method,
        since: now,
        version: 0,
        until: lifetime.and_then(|lifetime| now.checked_add(lifetime)),
    });
    Ok(lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_token_has_three_parts() {
        let parse = |token: &[u8]| parse_plain(token).map(|(user, _)| user.to_owned());
        assert_eq!(parse(b"\0al\0secret").unwrap(), "al");
        assert_eq!(parse(b"al\0al\0secret").unwrap(), "al");
        let rows: [(&[u8], &str); 7] = [
            (b"", "expected 3 tokens, got 1"),
            (b"al\0secret", "expected 3 tokens, got 2"),
            (b"\0al\0se\0cret", "expected 3 tokens, got 4"),
            (b"\0\0secret", "username not specified"),
            (b"\0al\0", "password not specified"),
            (b"bo\0al\0secret", "different from username"),
            (b"\0\xff\0secret", "Invalid username or password"),
        ];
        for (token, text) in rows {
            let Failure(told) = parse(token).unwrap_err();
            assert!(told.ends_with(text), "{token:?}: {told}");
        }
    }

    #[test]
    fn a_password_in_the_open_is_asked_for_only_where_nobody_listens() {
        let names = |secure| {
            Method::offered(secure)
                .map(Method::name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(true), ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]);
        assert_eq!(names(false), ["SCRAM-SHA-256", "SCRAM-SHA-512"]);
    }
}
