//! AlterClientQuotas: what users and client ids may write and read a second, and how long they may
//! keep threads busy. What is not held to here is refused.

use std::collections::BTreeSet;

use trilog_raft::controller::commands::{AlterQuota, Command, QuotaChange, QuotaClient};
use trilog_raft::controller::{Operation, QuotaKey, QuotaLimit};
use trilog_wire::kafka::messages::alter_client_quotas_request::{EntityData, EntryData, OpData};
use trilog_wire::kafka::messages::alter_client_quotas_response::{
    EntityData as AnsweredEntity, EntryData as Answered,
};
use trilog_wire::kafka::messages::{AlterClientQuotasRequest, AlterClientQuotasResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::Refusal;
use crate::kafka::session::Session;

pub(super) const USER: &str = "user";
pub(super) const CLIENT: &str = "client-id";
pub(super) const IP: &str = "ip";
/// What Kafka bounds, too, and nothing here is held to.
const MUTATION_RATE: &str = "controller_mutation_rate";
/// How far a rate in bytes may be from a whole number.
const EPSILON: f64 = 1e-6;
/// The largest rate in bytes: the largest number of 64 bits, as this kind of number has it.
const LARGEST: f64 = 9_223_372_036_854_775_807.0;

/// As clients call it.
pub(super) fn name_of(key: QuotaKey) -> Option<&'static str> {
    match key {
        QuotaKey::Produce => Some("producer_byte_rate"),
        QuotaKey::Fetch => Some("consumer_byte_rate"),
        QuotaKey::Request => Some("request_percentage"),
        QuotaKey::Unset => None,
    }
}

fn key_named(name: &str) -> Option<QuotaKey> {
    let all = [QuotaKey::Produce, QuotaKey::Fetch, QuotaKey::Request];
    all.into_iter().find(|key| name_of(*key) == Some(name))
}

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: AlterClientQuotasRequest = decode(request)?;
    let allowed = session.check_cluster(Operation::AlterConfigs);
    let mut response = AlterClientQuotasResponse::default();
    let mut seen = BTreeSet::new();
    for entry in asked.entries {
        let outcome = match allowed {
            Ok(()) => alter(session, &entry, &mut seen, asked.validate_only).await,
            Err(code) => Err((code, None)),
        };
        let entity = entry.entity.into_iter().map(|half| {
            AnsweredEntity::default()
                .with_entity_type(half.entity_type)
                .with_entity_name(half.entity_name)
        });
        let mut row = Answered::default()
            .with_error_message(None)
            .with_entity(entity.collect());
        if let Err((code, message)) = outcome {
            session.count_error(request, code.code());
            row.error_code = code.code();
            row.error_message = message.map(text);
        }
        response.entries.push(row);
    }
    Ok(Writer::message(request, &response)?)
}

/// An entity, to be compared with others.
type Whom = BTreeSet<(String, Option<String>)>;

async fn alter(
    session: &Session,
    entry: &EntryData,
    seen: &mut BTreeSet<Whom>,
    only_validate: bool,
) -> Result<(), Refusal> {
    let command = read(entry)?;
    let halves = entry.entity.iter().map(|half| {
        let name = half.entity_name.as_ref().map(ToString::to_string);
        (half.entity_type.to_string(), name)
    });
    if !seen.insert(halves.collect()) {
        return Err(wrong("Ignoring duplicate entity"));
    }
    let command = Command::AlterQuota(command);
    session.change(&command, only_validate).await
}

fn wrong(text: &str) -> Refusal {
    (ErrorCode::InvalidRequest, Some(text.to_owned()))
}

fn read(entry: &EntryData) -> Result<AlterQuota, Refusal> {
    let (mut user, mut client) = (None, None);
    for half in &entry.entity {
        let slot = match &*half.entity_type {
            USER => &mut user,
            CLIENT => &mut client,
            IP => return Err(wrong("Quotas of addresses are not held to here")),
            other => {
                return Err(wrong(&format!(
                    "Unhandled client quota entity type: {other}"
                )));
            }
        };
        if slot.replace(named(half)?).is_some() {
            return Err(wrong("Invalid client quota entity, duplicate entity entry"));
        }
    }
    if user.is_none() && client.is_none() {
        return Err(wrong("Invalid empty client quota entity"));
    }
    let mut keys = BTreeSet::new();
    let mut changes = Vec::new();
    for op in &entry.ops {
        if !keys.insert(op.key.clone()) {
            return Err(wrong(&format!("Duplicate quota key {}", &*op.key)));
        }
        changes.extend(change(op)?);
    }
    Ok(AlterQuota {
        user,
        client,
        changes,
    })
}

fn named(half: &EntityData) -> Result<QuotaClient, Refusal> {
    match &half.entity_name {
        Some(name) if name.is_empty() => {
            let kind = &*half.entity_type;
            Err(wrong(&format!("Empty {kind} not supported")))
        }
        name => Ok(QuotaClient {
            name: name.as_ref().map(ToString::to_string),
        }),
    }
}

/// What is to change; nothing where something is taken back that cannot be there.
fn change(op: &OpData) -> Result<Option<QuotaChange>, Refusal> {
    let name = &*op.key;
    let Some(key) = key_named(name) else {
        return match name {
            _ if op.remove => Ok(None),
            MUTATION_RATE => Err(wrong(&format!("{name} is not held to here"))),
            _ => Err(wrong(&format!("Invalid configuration key {name}"))),
        };
    };
    let limit = if op.remove {
        0.0
    } else {
        checked(key, op.value).map_err(|why| wrong(&format!("Quota {name} {why}")))?
    };
    Ok(Some(QuotaChange {
        key: key.into(),
        limit,
    }))
}

fn checked(key: QuotaKey, value: f64) -> Result<f64, &'static str> {
    let limit = QuotaLimit::new(value)
        .ok_or("must be greater than 0")?
        .get();
    let in_bytes = key != QuotaKey::Request;
    if in_bytes && limit > LARGEST {
        return Err("is too large");
    }
    if in_bytes && (limit - limit.round()).abs() > EPSILON {
        return Err("cannot be a fractional value");
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_bytes_is_a_whole_number_and_every_limit_is_above_zero() {
        let rows = [
            (1.0, true, true),
            (1_048_576.000_000_1, true, true),
            (1e15, true, true),
            (0.5, false, true),
            (33.3, false, true),
            (1e30, false, true),
            (0.0, false, false),
            (-5.0, false, false),
            (f64::NAN, false, false),
            (f64::INFINITY, false, false),
        ];
        for (value, as_bytes, as_time) in rows {
            for key in [QuotaKey::Produce, QuotaKey::Fetch] {
                assert_eq!(checked(key, value).is_ok(), as_bytes, "{value}");
            }
            assert_eq!(
                checked(QuotaKey::Request, value).is_ok(),
                as_time,
                "{value}"
            );
        }
    }
}
