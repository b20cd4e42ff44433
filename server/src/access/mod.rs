//! Who somebody is, and what they may do: made once, for every dialect.
//!
//! Users and rules are the controller's (`trilog_raft::controller`), and every node has them in its
//! map. Here a password or a SCRAM exchange becomes a [`Principal`], and a principal with an
//! operation on a resource becomes yes or no. Knows no dialect. Nothing here waits for another
//! node, and looking up a right takes no lock.

mod password;
mod rights;
pub mod rules;
mod scram;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

pub use password::{Passwords, credential, credential_of_salted, random};
pub use rights::{Access, Identity, Rights};
pub use scram::{Refused, Scram, Step};

/// How long somebody who failed to prove who they are waits to hear so, as at a broker.
pub const FAILURE_DELAY: Duration = Duration::from_millis(100);
/// How long somebody waits for a password to be looked at, where many are tried.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often a new password is hashed, as Kafka does.
pub const ITERATIONS: u32 = 4_096;

/// What a node is told about access.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Whether clients are asked who they are.
    pub required: bool,
    /// Names of users who may do everything.
    pub super_users: Vec<String>,
    /// Whether everybody may use what no rule is about.
    pub allow_unruled: bool,
    /// After how long somebody has to prove anew who they are; zero: never.
    pub session_lifetime: Duration,
}

/// `User:NAME`.
pub type Principal = Arc<str>;

/// The principal of a user.
#[must_use]
pub fn principal(user: &str) -> Principal {
    format!("{}{user}", trilog_raft::controller::USER_PREFIX).into()
}

/// Until whoever asked at this time, and failed, may hear so: how long it took to find out is
/// hidden in a whole number of delays, for it depends on who was named.
pub async fn pause(since: Instant) {
    let delay = FAILURE_DELAY.as_nanos();
    let delays = since.elapsed().as_nanos() / delay + 1;
    let delays = u32::try_from(delays).unwrap_or(u32::MAX);
    sleep_until(since + FAILURE_DELAY.saturating_mul(delays)).await;
}
