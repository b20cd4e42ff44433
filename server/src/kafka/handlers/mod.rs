//! One file per request: what it means here. Versions live in the codec; a handler sees one form.

mod api_versions;
mod fetch;
mod list_offsets;
mod metadata;
mod produce;

use futures::future::BoxFuture;
use trilog_wire::kafka::messages::ApiKey;
use trilog_wire::kafka::{ErrorCode, Request, StrBytes};

use super::conn::{Ended, Outcome};
use super::session::Session;

pub(super) use api_versions::versions_unsupported;

/// How far a request has come once its turn among its connection's requests is over.
pub(super) enum Begun {
    Done(Outcome),
    /// Nothing that comes later on the connection needs to wait for the rest.
    Later(BoxFuture<'static, Outcome>),
}

/// Begins on a request, in the order of the connection.
pub(super) async fn begin(session: &mut Session, request: Request) -> Begun {
    let begun = match request.api.key {
        ApiKey::Produce => return produce::begin(session, request).await,
        ApiKey::Fetch => return fetch::begin(session, request),
        ApiKey::ApiVersions => api_versions::answer(&request),
        ApiKey::Metadata => metadata::answer(session, &request).await,
        ApiKey::ListOffsets => list_offsets::answer(session, &request).await,
        // The table of apis names no other.
        _ => Err(Ended::Stopped),
    };
    Begun::Done(begun.into())
}

fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// The error of a code; success has none.
fn named(code: i16) -> Option<ErrorCode> {
    ErrorCode::try_from_code(code)
}

/// What a metric calls the error.
fn reason(code: ErrorCode) -> String {
    format!("{code:?}").to_lowercase()
}

impl Session {
    /// Counts a refusal; success is no error.
    fn count_error(&self, request: &Request, code: i16) {
        let Some(code) = named(code) else {
            return;
        };
        if let Some(meter) = self.kafka.inner.api_meters.get(request.api.place()) {
            meter.refused(reason(code));
        }
    }
}
