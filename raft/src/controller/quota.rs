//! How much clients may move: quotas of users, of client ids and of both together, and which of
//! them is a client's.

use std::collections::BTreeMap;
use std::fmt;

/// Quotas a cluster has at most, and the longest name of a client they are for, in bytes.
pub(super) const MAX_QUOTAS: usize = 10_000;
pub(super) const MAX_NAME: usize = 1_024;

/// Whom one half of a quota is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuotaName {
    /// All that have none of their own.
    Default,
    Named(String),
}

/// Whom a quota is for: a user, a client id, or a client id of a user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuotaEntity {
    pub user: Option<QuotaName>,
    pub client: Option<QuotaName>,
}

/// What is bounded. The numbers are on disk: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum QuotaKey {
    Unset = 0,
    /// Bytes a second.
    Produce = 1,
    /// Bytes a second.
    Fetch = 2,
    /// Time that requests take of a node's threads, in percent of one thread.
    Request = 3,
}

/// How much: above zero, and finite. Kept as bits, which for such numbers are in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuotaLimit(u64);

impl QuotaLimit {
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        (value.is_finite() && value > 0.0).then(|| Self(value.to_bits()))
    }

    #[must_use]
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for QuotaLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// The bounds of one entity.
pub type QuotaLimits = BTreeMap<QuotaKey, QuotaLimit>;

/// Every quota of a cluster.
pub type Quotas = BTreeMap<QuotaEntity, QuotaLimits>;

/// One client's bound, and who shares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaShare {
    pub limit: QuotaLimit,
    /// None: whoever it is.
    pub user: Option<String>,
    /// None: whatever it calls itself.
    pub client: Option<String>,
}

/// The bound of a client, by Kafka's order: a quota of both before one of the user before one of
/// the client id, and in each a named one before a default.
#[must_use]
pub fn quota_of(quotas: &Quotas, key: QuotaKey, user: &str, client: &str) -> Option<QuotaShare> {
    let named = |name: &str| Some(QuotaName::Named(name.to_owned()));
    let default = || Some(QuotaName::Default);
    let order = [
        (named(user), named(client)),
        (named(user), default()),
        (named(user), None),
        (default(), named(client)),
        (default(), default()),
        (default(), None),
        (None, named(client)),
        (None, default()),
    ];
    order.into_iter().find_map(|(of_user, of_client)| {
        let (by_user, by_client) = (of_user.is_some(), of_client.is_some());
        let entity = QuotaEntity {
            user: of_user,
            client: of_client,
        };
        let limit = *quotas.get(&entity)?.get(&key)?;
        Some(QuotaShare {
            limit,
            user: by_user.then(|| user.to_owned()),
            client: by_client.then(|| client.to_owned()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_quota_is_the_clients_and_says_who_shares_it() {
        let name = |name: &str| match name {
            "-" => None,
            "*" => Some(QuotaName::Default),
            name => Some(QuotaName::Named(name.to_owned())),
        };
        // From the nearest to the furthest: the entity, and whether user and client share it.
        let rows = [
            ("ann", "app", true, true),
            ("ann", "*", true, true),
            ("ann", "-", true, false),
            ("*", "app", true, true),
            ("*", "*", true, true),
            ("*", "-", true, false),
            ("-", "app", false, true),
            ("-", "*", false, true),
        ];
        let mut quotas = Quotas::new();
        for (nth, (user, client, by_user, by_client)) in rows.into_iter().enumerate().rev() {
            let entity = QuotaEntity {
                user: name(user),
                client: name(client),
            };
            let limit = f64::from(u32::try_from(nth).unwrap()) + 1.0;
            let limit = QuotaLimit::new(limit).unwrap();
            // A bound on something else says nothing.
            quotas.insert(entity, BTreeMap::from([(QuotaKey::Produce, limit)]));
            let share = QuotaShare {
                limit,
                user: by_user.then(|| "ann".to_owned()),
                client: by_client.then(|| "app".to_owned()),
            };
            let found = quota_of(&quotas, QuotaKey::Produce, "ann", "app");
            assert_eq!(found, Some(share));
            assert_eq!(quota_of(&quotas, QuotaKey::Fetch, "ann", "app"), None);
        }
        assert_eq!(quotas.len(), rows.len());
    }

    #[test]
    fn a_limit_is_above_zero_and_finite_and_in_order() {
        for value in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(QuotaLimit::new(value), None, "{value}");
        }
        let limits = [1e-300, 0.5, 1.0, 33.3, 1e18].map(|value| QuotaLimit::new(value).unwrap());
        assert!(limits.is_sorted());
        assert_eq!(limits[3].get().to_bits(), 33.3_f64.to_bits());
    }
}
