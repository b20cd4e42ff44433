//! ApiVersions: what can be asked, and in which versions.

use trilog_raft::controller::CONSUMERS_LEVEL;
use trilog_wire::kafka::messages::api_versions_response::{
    ApiVersion, FinalizedFeatureKey, SupportedFeatureKey,
};
use trilog_wire::kafka::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};
use trilog_wire::kafka::{APIS, Answer, Api, ErrorCode, Request, StrBytes, Writer, api_of, decode};

use crate::kafka::conn::Ended;
use crate::kafka::pace::Pace;
use crate::kafka::session::Session;

/// From here on an answer tells of features.
const FEATURES_SINCE: i16 = 3;

/// The feature that says whether consumers may have the coordinator assign (KIP-848), and its
/// only level.
pub(super) const GROUP_VERSION: &str = "group.version";
pub(super) const GROUP_LEVEL: i16 = 1;

pub(in crate::kafka) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ApiVersionsRequest = decode(request)?;
    let (name, version) = (&asked.client_software_name, &asked.client_software_version);
    let wrong = request.version >= 3 && !(is_name(name) && is_name(version));
    session.rests = Pace::is_for(name, version);
    let mut response = ApiVersionsResponse::default();
    if wrong {
        response.error_code = ErrorCode::InvalidRequest.code();
    } else {
        response.api_keys = APIS.iter().map(range).collect();
        if request.version >= FEATURES_SINCE {
            features(session, &mut response);
        }
    }
    Ok(Writer::message(request, &response)?)
}

/// What the cluster's nodes can do, and what all of them may by now.
fn features(session: &Session, response: &mut ApiVersionsResponse) {
    let supported = SupportedFeatureKey::default()
        .with_name(StrBytes::from_static_str(GROUP_VERSION))
        .with_min_version(GROUP_LEVEL)
        .with_max_version(GROUP_LEVEL);
    response.supported_features = vec![supported];
    let map = session.kafka.inner.cluster.map();
    response.finalized_features_epoch = i64::try_from(map.version()).unwrap_or(i64::MAX);
    if map.level() >= CONSUMERS_LEVEL {
        let finalized = FinalizedFeatureKey::default()
            .with_name(StrBytes::from_static_str(GROUP_VERSION))
            .with_min_version_level(GROUP_LEVEL)
            .with_max_version_level(GROUP_LEVEL);
        response.finalized_features = vec![finalized];
    }
}

/// To a version of the request that is not served: the range of those that are, in version zero.
pub(in crate::kafka) fn versions_unsupported(correlation_id: i32) -> Result<Answer, Ended> {
    let api = api_of(ApiKey::ApiVersions as i16).ok_or(Ended::Stopped)?;
    let response = ApiVersionsResponse::default()
        .with_error_code(ErrorCode::UnsupportedVersion.code())
        .with_api_keys(vec![range(api)]);
    Ok(Writer::of(api, 0, correlation_id, &response)?)
}

fn range(api: &Api) -> ApiVersion {
    ApiVersion::default()
        .with_api_key(api.key as i16)
        .with_min_version(api.min)
        .with_max_version(api.max)
}

/// As Kafka wants the name and version of a client's software (KIP-511).
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric();
    let inner = |byte: u8| letter(byte) || byte == b'-' || byte == b'.';
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|byte| letter(*byte))
        && bytes.last().is_some_and(|byte| letter(*byte))
        && bytes.iter().all(|byte| inner(*byte))
}
