//! DescribeClientQuotas: the quotas of users and client ids that a filter lets through.

use trilog_raft::controller::{Operation, QuotaEntity, QuotaLimits, QuotaName, Quotas};
use trilog_wire::kafka::messages::describe_client_quotas_request::ComponentData;
use trilog_wire::kafka::messages::describe_client_quotas_response::{
    EntityData, EntryData, ValueData,
};
use trilog_wire::kafka::messages::{DescribeClientQuotasRequest, DescribeClientQuotasResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::alter_client_quotas::{CLIENT, IP, USER, name_of};
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::Refusal;
use crate::kafka::session::Session;

/// How a component of an entity is matched.
const EXACT: i8 = 0;
const DEFAULT: i8 = 1;
const SPECIFIED: i8 = 2;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeClientQuotasRequest = decode(request)?;
    let mut response = DescribeClientQuotasResponse::default()
        .with_error_message(None)
        .with_entries(None);
    match described(session, &asked).await {
        Ok(entries) => response.entries = Some(entries),
        Err((code, message)) => {
            session.count_error(request, code.code());
            response.error_code = code.code();
            response.error_message = message.map(text);
        }
    }
    Ok(Writer::message(request, &response)?)
}

async fn described(
    session: &Session,
    asked: &DescribeClientQuotasRequest,
) -> Result<Vec<EntryData>, Refusal> {
    let checked = session.check_cluster(Operation::DescribeConfigs);
    checked.map_err(|code| (code, None))?;
    let filter = Filter::read(asked)?;
    // What was just set through another node is told of.
    let cluster = &session.kafka.inner.cluster;
    cluster.is_current().await;
    let map = cluster.map();
    Ok(filter.of(map.quotas()))
}

/// What one half of an entity must be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Half {
    Exactly(QuotaName),
    Anything,
}

impl Half {
    fn passes(&self, name: &QuotaName) -> bool {
        match self {
            Self::Exactly(wanted) => wanted == name,
            Self::Anything => true,
        }
    }
}

#[derive(Default)]
struct Filter {
    user: Option<Half>,
    client: Option<Half>,
    /// Addresses have no quotas here.
    ip: Option<Half>,
    strict: bool,
}

impl Filter {
    fn read(asked: &DescribeClientQuotasRequest) -> Result<Self, Refusal> {
        let wrong = |text: &str| (ErrorCode::InvalidRequest, Some(text.to_owned()));
        let mut filter = Self {
            strict: asked.strict,
            ..Self::default()
        };
        for component in &asked.components {
            let slot = match &*component.entity_type {
                USER => &mut filter.user,
                CLIENT => &mut filter.client,
                IP => &mut filter.ip,
                "" => return Err(wrong("Invalid empty entity type.")),
                other => {
                    let text = format!("Unsupported entity type {other}");
                    return Err((ErrorCode::UnsupportedVersion, Some(text)));
                }
            };
            if slot.replace(half(component)?).is_some() {
                return Err(wrong("An entity type appears more than once in the filter"));
            }
        }
        if filter.ip.is_some() && (filter.user.is_some() || filter.client.is_some()) {
            return Err(wrong("An address goes with no user and no client id"));
        }
        Ok(filter)
    }

    fn of(&self, quotas: &Quotas) -> Vec<EntryData> {
        let passed = quotas.iter().filter(|(entity, _)| self.passes(entity));
        passed
            .map(|(entity, limits)| entry(entity, limits))
            .collect()
    }

    fn passes(&self, entity: &QuotaEntity) -> bool {
        let half = |wanted: Option<&Half>, name: Option<&QuotaName>| match (wanted, name) {
            (Some(wanted), Some(name)) => wanted.passes(name),
            (Some(_), None) => false,
            (None, Some(_)) => !self.strict,
            (None, None) => true,
        };
        self.ip.is_none()
            && half(self.user.as_ref(), entity.user.as_ref())
            && half(self.client.as_ref(), entity.client.as_ref())
    }
}

fn half(component: &ComponentData) -> Result<Half, Refusal> {
    match (component.match_type, &component._match) {
        (EXACT, Some(name)) => Ok(Half::Exactly(QuotaName::Named(name.to_string()))),
        (DEFAULT, None) => Ok(Half::Exactly(QuotaName::Default)),
        (SPECIFIED, None) => Ok(Half::Anything),
        (kind, _) => {
            let text = format!("Match type {kind} does not go with what is to be matched");
            Err((ErrorCode::InvalidRequest, Some(text)))
        }
    }
}

fn entry(entity: &QuotaEntity, limits: &QuotaLimits) -> EntryData {
    let half = |kind, name: &QuotaName| {
        EntityData::default()
            .with_entity_type(text(kind))
            .with_entity_name(match name {
                QuotaName::Default => None,
                QuotaName::Named(name) => Some(text(name.as_str())),
            })
    };
    let user = entity.user.as_ref().map(|name| half(USER, name));
    let client = entity.client.as_ref().map(|name| half(CLIENT, name));
    let values = limits.iter().filter_map(|(key, limit)| {
        let value = ValueData::default().with_key(text(name_of(*key)?));
        Some(value.with_value(limit.get()))
    });
    EntryData::default()
        .with_entity(user.into_iter().chain(client).collect())
        .with_values(values.collect())
}
