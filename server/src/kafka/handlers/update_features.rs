//! UpdateFeatures: what Kafka calls a feature comes with the cluster's feature level, which is not
//! raised from here: that takes `trilog cluster upgrade`. So only what is so already is agreed to.

use trilog_raft::controller::{CONSUMERS_LEVEL, Operation};
use trilog_wire::kafka::messages::update_features_request::FeatureUpdateKey;
use trilog_wire::kafka::messages::update_features_response::UpdatableFeatureResult;
use trilog_wire::kafka::messages::{UpdateFeaturesRequest, UpdateFeaturesResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::api_versions::{GROUP_LEVEL, GROUP_VERSION};
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::Refusal;
use crate::kafka::session::Session;

/// Which way a version is to go; the others are downgrades of two kinds.
const UPGRADE: i8 = 1;
const SAFE_DOWNGRADE: i8 = 2;
const UNSAFE_DOWNGRADE: i8 = 3;
/// The first version that says it in a number, and the first without a row for each feature.
const KINDS_SINCE: i16 = 1;
const NO_ROWS_SINCE: i16 = 2;

pub(super) fn answer(session: &Session, request: &Request) -> Result<Answer, Ended> {
    let asked: UpdateFeaturesRequest = decode(request)?;
    let mut response = UpdateFeaturesResponse::default().with_error_message(None);
    let outcome = session
        .check_cluster(Operation::Alter)
        .map_err(|code| (code, None))
        .and_then(|()| check_all(session, request.version, &asked.feature_updates));
    match outcome {
        Ok(()) if request.version < NO_ROWS_SINCE => {
            let rows = asked.feature_updates.into_iter().map(|update| {
                UpdatableFeatureResult::default()
                    .with_feature(update.feature)
                    .with_error_message(None)
            });
            response.results = rows.collect();
        }
        Ok(()) => {}
        Err((code, message)) => {
            session.count_error(request, code.code());
            response.error_code = code.code();
            response.error_message = message.map(text);
        }
    }
    Ok(Writer::message(request, &response)?)
}

fn check_all(session: &Session, version: i16, updates: &[FeatureUpdateKey]) -> Result<(), Refusal> {
    let finalized = session.kafka.inner.cluster.map().level() >= CONSUMERS_LEVEL;
    let current = if finalized { GROUP_LEVEL } else { 0 };
    for update in updates {
        let kind = match version {
            KINDS_SINCE.. => update.upgrade_type,
            _ if update.allow_downgrade => SAFE_DOWNGRADE,
            _ => UPGRADE,
        };
        check(update, kind, current).map_err(|why| {
            let (level, feature) = (update.max_version_level, &*update.feature);
            let text = format!(
                "The update failed for all features since the following feature had an error: \
                 Invalid update version {level} for feature {feature}. {why}"
            );
            (ErrorCode::InvalidUpdateVersion, Some(text))
        })?;
    }
    Ok(())
}

/// Why a version is not agreed to, where the one of the only feature is `current`.
fn check(update: &FeatureUpdateKey, kind: i8, current: i16) -> Result<(), &'static str> {
    let to = update.max_version_level;
    if !(UPGRADE..=UNSAFE_DOWNGRADE).contains(&kind) {
        return Err("The controller does not support the given upgrade type.");
    }
    if to < 0 {
        return Err("A feature version cannot be less than 0.");
    }
    if &*update.feature != GROUP_VERSION || to > GROUP_LEVEL {
        return Err("The controller does not support this feature in this version.");
    }
    match to.cmp(&current) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater if kind != UPGRADE => {
            Err("Can't downgrade to a newer version.")
        }
        std::cmp::Ordering::Greater => Err("It comes with `trilog cluster upgrade`."),
        std::cmp::Ordering::Less if kind == UPGRADE => Err(
            "Can't downgrade the version of this feature without setting the upgrade type to either \
             safe or unsafe downgrade.",
        ),
        std::cmp::Ordering::Less => Err("It cannot be downgraded."),
    }
}

#[cfg(test)]
mod tests {
    use trilog_wire::kafka::StrBytes;

    use super::*;

    #[test]
    fn only_what_is_so_already_is_agreed_to() {
        // Feature, version, kind, the current version, and whether it is agreed to.
        let rows = [
            (GROUP_VERSION, 1, UPGRADE, 1, true),
            (GROUP_VERSION, 0, UPGRADE, 0, true),
            (GROUP_VERSION, 1, SAFE_DOWNGRADE, 1, true),
            (GROUP_VERSION, 1, UPGRADE, 0, false),
            (GROUP_VERSION, 1, UNSAFE_DOWNGRADE, 0, false),
            (GROUP_VERSION, 0, UPGRADE, 1, false),
            (GROUP_VERSION, 0, UNSAFE_DOWNGRADE, 1, false),
            (GROUP_VERSION, 2, UPGRADE, 1, false),
            (GROUP_VERSION, -1, UPGRADE, 1, false),
            (GROUP_VERSION, 1, 0, 1, false),
            (GROUP_VERSION, 1, 4, 1, false),
            ("metadata.version", 27, UPGRADE, 0, false),
        ];
        for (feature, level, kind, current, agreed) in rows {
            let update = FeatureUpdateKey::default()
                .with_feature(StrBytes::from_static_str(feature))
                .with_max_version_level(level);
            let told = check(&update, kind, current);
            assert_eq!(told.is_ok(), agreed, "{feature} {level} {kind} {current}");
        }
    }
}
