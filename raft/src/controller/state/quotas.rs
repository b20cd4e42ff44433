//! Quotas of clients, as operators set them.

use std::sync::Arc;

use super::super::command::{AlterQuota, QuotaClient};
use super::super::quota::{MAX_NAME, MAX_QUOTAS, QuotaEntity, QuotaKey, QuotaLimit, QuotaName};
use super::super::reply::{ControllerError, Outcome, Reply};
use super::{ControllerState, malformed};

/// Takes a bound back, in a command.
const NONE: f64 = 0.0;

impl ControllerState {
    pub(super) fn alter_quota(&mut self, command: &AlterQuota) -> Outcome {
        let entity = QuotaEntity {
            user: read_name(command.user.as_ref())?,
            client: read_name(command.client.as_ref())?,
        };
        if entity.user.is_none() && entity.client.is_none() {
            return Err(malformed("a quota is for a user or a client id"));
        }
        let before = self.tables.quotas.get(&entity);
        let mut limits = before.cloned().unwrap_or_default();
        for change in &command.changes {
            let key = QuotaKey::try_from(change.key).ok();
            let key = key.filter(|key| *key != QuotaKey::Unset);
            let key = key.ok_or_else(|| malformed("unknown kind of quota"))?;
            if change.limit.to_bits() == NONE.to_bits() {
                limits.remove(&key);
                continue;
            }
            let limit = QuotaLimit::new(change.limit);
            let limit = limit.ok_or_else(|| malformed("a quota is above zero"))?;
            limits.insert(key, limit);
        }
        if before.map_or(limits.is_empty(), |before| *before == limits) {
            return Ok(Reply::Done);
        }
        if before.is_none() && self.tables.quotas.len() >= MAX_QUOTAS {
            return Err(ControllerError::Exhausted {
                what: "quotas".to_owned(),
            });
        }
        let quotas = Arc::make_mut(&mut self.tables.quotas);
        if limits.is_empty() {
            quotas.remove(&entity);
        } else {
            quotas.insert(entity, limits);
        }
        self.touch();
        Ok(Reply::Done)
    }
}

fn read_name(client: Option<&QuotaClient>) -> Result<Option<QuotaName>, ControllerError> {
    let Some(client) = client else {
        return Ok(None);
    };
    Ok(Some(match &client.name {
        None => QuotaName::Default,
        Some(name) if name.is_empty() || name.len() > MAX_NAME => {
            return Err(malformed("a quota's name is empty or far too long"));
        }
        Some(name) => QuotaName::Named(name.clone()),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::super::command::{Command, QuotaChange};
    use super::super::super::fixtures::{cluster_at, done, refused};
    use super::super::super::level::QUOTA_LEVEL;
    use super::*;

    /// A name, and none for the default.
    type Half<'a> = Option<Option<&'a str>>;

    fn alter(user: Half<'_>, client: Half<'_>, limits: &[(QuotaKey, f64)]) -> Command {
        let named = |name: Option<&str>| QuotaClient {
            name: name.map(str::to_owned),
        };
        let changes = limits.iter().map(|(key, limit)| QuotaChange {
            key: (*key).into(),
            limit: *limit,
        });
        Command::AlterQuota(AlterQuota {
            user: user.map(named),
            client: client.map(named),
            changes: changes.collect(),
        })
    }

    const ALL_CLIENTS: (Half<'_>, Half<'_>) = (None, Some(None));

    fn set(
        state: &mut ControllerState,
        (user, client): (Half<'_>, Half<'_>),
        limits: &[(QuotaKey, f64)],
    ) {
        done(state, &alter(user, client, limits));
    }

    #[test]
    fn quotas_are_set_changed_taken_back_and_survive_a_snapshot() {
        let mut state = cluster_at(1, QUOTA_LEVEL);
        let empty = state.snapshot();
        set(&mut state, ALL_CLIENTS, &[(QuotaKey::Produce, 10.0)]);
        let both = (Some(Some("ann")), Some(Some("app")));
        set(
            &mut state,
            both,
            &[(QuotaKey::Fetch, 20.0), (QuotaKey::Request, 33.3)],
        );
        let before = state.map().version();
        set(&mut state, ALL_CLIENTS, &[(QuotaKey::Produce, 10.0)]);
        set(&mut state, (Some(None), None), &[(QuotaKey::Produce, 0.0)]);
        assert_eq!(state.map().version(), before, "nothing changed");
        assert_eq!(state.map().quotas().len(), 2);
        let back = ControllerState::from_snapshot(&state.snapshot()).unwrap();
        assert_eq!(back.map(), state.map());
        assert_ne!(state.snapshot(), empty);

        let limits = [(QuotaKey::Produce, 0.0), (QuotaKey::Fetch, 5.0)];
        set(&mut state, ALL_CLIENTS, &limits);
        let map = state.map();
        let limits = map.quotas().values().next().unwrap();
        let five = QuotaLimit::new(5.0).unwrap();
        assert!(limits.iter().eq([(&QuotaKey::Fetch, &five)]), "{limits:?}");
        set(&mut state, ALL_CLIENTS, &[(QuotaKey::Fetch, 0.0)]);
        assert_eq!(state.map().quotas().len(), 1);
    }

    #[test]
    fn quotas_of_nobody_or_of_nothing_are_refused_as_they_are_below_their_level() {
        let mut state = cluster_at(1, QUOTA_LEVEL);
        let long = "a".repeat(MAX_NAME + 1);
        let some = Some(Some("a"));
        let rows: [(Half<'_>, Half<'_>, (QuotaKey, f64)); 7] = [
            (None, None, (QuotaKey::Fetch, 1.0)),
            (Some(Some("")), None, (QuotaKey::Fetch, 1.0)),
            (Some(Some(&long)), None, (QuotaKey::Fetch, 1.0)),
            (some, None, (QuotaKey::Unset, 1.0)),
            (some, None, (QuotaKey::Fetch, -1.0)),
            (some, None, (QuotaKey::Fetch, f64::NAN)),
            (some, None, (QuotaKey::Fetch, f64::INFINITY)),
        ];
        for (user, client, limit) in rows {
            refused(&mut state, &alter(user, client, &[limit]));
        }
        let mut older = cluster_at(1, QUOTA_LEVEL - 1);
        let refusal = refused(&mut older, &alter(some, None, &[(QuotaKey::Fetch, 1.0)]));
        assert!(matches!(refusal, ControllerError::LevelNotActive { .. }));
    }

    #[test]
    fn there_are_no_more_quotas_than_the_bound() {
        let mut state = cluster_at(1, QUOTA_LEVEL);
        let one = |nth: usize| format!("client-{nth}");
        for nth in 0..MAX_QUOTAS {
            set(
                &mut state,
                (None, Some(Some(&one(nth)))),
                &[(QuotaKey::Fetch, 1.0)],
            );
        }
        let more = one(MAX_QUOTAS);
        let refusal = refused(
            &mut state,
            &alter(None, Some(Some(&more)), &[(QuotaKey::Fetch, 1.0)]),
        );
        assert!(matches!(refusal, ControllerError::Exhausted { .. }));
        set(
            &mut state,
            (None, Some(Some(&one(7)))),
            &[(QuotaKey::Fetch, 2.0)],
        );
        set(
            &mut state,
            (None, Some(Some(&one(7)))),
            &[(QuotaKey::Fetch, 0.0)],
        );
        set(
            &mut state,
            (None, Some(Some(&more))),
            &[(QuotaKey::Fetch, 1.0)],
        );
    }
}
