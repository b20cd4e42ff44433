//! Passwords: what is kept of one, and checking one that came as it is.
//!
//! Hashing is slow on purpose, so it happens on a few threads of its own: whoever tries passwords
//! waits for others who do, and nobody else. What was found right is remembered under a secret of
//! this process, so that a client which names itself with each call is checked quickly.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, Mac};
use parking_lot::Mutex;
use rand::TryRngCore;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use trilog_raft::controller::{ClusterMap, Credential, Mechanism};

use super::ITERATIONS;
use super::scram::{SALT_BYTES, hash, hmac};

/// Passwords that are hashed at once, on one node.
const HASHING: usize = 2;
/// Passwords remembered as right; beyond them all are forgotten.
const REMEMBERED: usize = 1_024;
/// The longest password that is looked at.
const MAX_PASSWORD: usize = 1_024;

/// Bytes from the operating system: secrets come from no seed.
///
/// # Panics
///
/// If the system has no randomness to give, nothing secret can be made.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = rand::rngs::OsRng.try_fill_bytes(&mut bytes);
    assert!(filled.is_ok(), "the operating system gives no randomness");
    bytes
}

/// What is kept of a password, with a fresh salt.
#[must_use]
pub fn credential(mechanism: Mechanism, password: &[u8]) -> Credential {
    let salt = random::<SALT_BYTES>();
    let salted = salted(mechanism, password, &salt, ITERATIONS);
    credential_of_salted(mechanism, &salt, ITERATIONS, &salted)
}

/// As [`credential`], of a password that was salted and hashed elsewhere.
#[must_use]
pub fn credential_of_salted(
    mechanism: Mechanism,
    salt: &[u8],
    iterations: u32,
    salted: &[u8],
) -> Credential {
    let client_key = hmac(mechanism, salted, b"Client Key");
    Credential {
        mechanism: mechanism.into(),
        salt: salt.to_vec().into(),
        iterations,
        stored_key: hash(mechanism, &client_key).into(),
        server_key: hmac(mechanism, salted, b"Server Key").into(),
    }
}

/// `Hi` of RFC 5802: PBKDF2 with one block.
pub(super) fn salted(
    mechanism: Mechanism,
    password: &[u8],
    salt: &[u8],
    iterations: u32,
) -> Vec<u8> {
    match mechanism {
        Mechanism::ScramSha512 => stretch::<Hmac<Sha512>>(password, salt, iterations),
        Mechanism::ScramSha256 | Mechanism::Unset => {
            stretch::<Hmac<Sha256>>(password, salt, iterations)
        }
    }
}

fn stretch<M: Mac + hmac::digest::KeyInit + Clone>(
    password: &[u8],
    salt: &[u8],
    iterations: u32,
) -> Vec<u8> {
    let Ok(keyed) = <M as Mac>::new_from_slice(password) else {
        return Vec::new();
    };
    let mut block = keyed
        .clone()
        .chain_update(salt)
        .chain_update(1_u32.to_be_bytes())
        .finalize()
        .into_bytes();
    let mut out = block.to_vec();
    for _ in 1..iterations {
        block = keyed.clone().chain_update(&block).finalize().into_bytes();
        for (sum, byte) in out.iter_mut().zip(&block) {
            *sum ^= byte;
        }
    }
    out
}

/// Checks passwords; cheap to clone.
#[derive(Clone, Debug)]
pub struct Passwords {
    inner: Arc<Inner>,
}

struct Inner {
    hashing: Arc<Semaphore>,
    secret: [u8; 32],
    /// By what a name and a password come to under the secret: the key they were right for.
    right: Mutex<HashMap<Vec<u8>, Bytes>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords").finish_non_exhaustive()
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                hashing: Arc::new(Semaphore::new(HASHING)),
                secret: random(),
                right: Mutex::default(),
            }),
        }
    }
}

impl Passwords {
    /// The key that the password was found right for, if it is the user's. Takes about as long for
    /// somebody who is no user.
    ///
    /// # Cancel safety
    ///
    /// What has begun to be hashed is hashed, and keeps its place among those that are: whoever
    /// hangs up makes no room for another try.
    pub async fn check(&self, map: &ClusterMap, user: &str, password: &[u8]) -> Option<Bytes> {
        if password.is_empty() || password.len() > MAX_PASSWORD {
            return None;
        }
        // The cheaper one, if there are both.
        let kept = map
            .user(user)
            .and_then(|user| user.credentials.values().next());
        let named = [user.as_bytes(), &[0], password].concat();
        let mark = hmac(Mechanism::ScramSha256, &self.inner.secret, &named);
        if let Some(kept) = kept
            && self.inner.right.lock().get(&mark) == Some(&kept.stored_key)
        {
            return Some(kept.stored_key.clone());
        }
        let hashing = Arc::clone(&self.inner.hashing).acquire_owned().await.ok()?;
        let (held, password) = (kept.cloned(), password.to_vec());
        let checking = tokio::task::spawn_blocking(move || {
            // Given back by the thread that hashes, however soon the asker is gone.
            let _hashing = hashing;
            matches(held.as_ref(), &password)
        });
        let right = checking.await.unwrap_or(false);
        let kept = kept.filter(|_| right)?;
        let mut known = self.inner.right.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(mark, kept.stored_key.clone());
        Some(kept.stored_key.clone())
    }
}

fn matches(kept: Option<&Credential>, password: &[u8]) -> bool {
    let mechanism = kept.map_or(Mechanism::ScramSha256, Credential::mechanism);
    let (salt, iterations) = kept.map_or((&[0; SALT_BYTES][..], ITERATIONS), |kept| {
        (&kept.salt, kept.iterations)
    });
    let salted = salted(mechanism, password, salt, iterations);
    let stored = hash(mechanism, &hmac(mechanism, &salted, b"Client Key"));
    kept.is_some_and(|kept| stored.ct_eq(&*kept.stored_key).into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures::FutureExt as _;
    use trilog_raft::controller::ControllerState;

    use super::*;

    #[test]
    fn whoever_hangs_up_makes_no_room_for_another_try() {
        // The one thread that could hash is busy until it is told.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (free, busy) = mpsc::channel::<()>();
            let occupied = tokio::task::spawn_blocking(move || busy.recv());
            let (passwords, map) = (Passwords::default(), ControllerState::new().map());
            for _ in 0..100 {
                let check = passwords.check(&map, "nobody", b"guess").now_or_never();
                assert!(check.is_none());
            }
            let hashing = &passwords.inner.hashing;
            assert_eq!(hashing.available_permits(), 0);
            free.send(()).unwrap();
            occupied.await.unwrap().unwrap();
            let all = u32::try_from(HASHING).unwrap();
            let all = tokio::time::timeout(Duration::from_mins(1), hashing.acquire_many(all));
            let _all = all.await.unwrap().unwrap();
        });
    }
}
