//! The server's side of SCRAM (RFC 5802, RFC 7677), without I/O.
//!
//! ```text
//! client-first   n,,n=USER,r=NONCE
//! server-first   r=NONCE+OURS,s=SALT,i=ITERATIONS
//! client-final   c=biws,r=NONCE+OURS,p=PROOF
//! server-final   v=SIGNATURE
//! ```
//!
//! Whoever is no user gets a salt, too, the same each time and on each node, and of a kind that
//! users have, so that nobody learns who there is; the exchange then fails at its end. There is no
//! channel binding.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::digest::Digest;
use hmac::{Hmac, Mac};
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;
use trilog_raft::controller::{ClusterMap, Credential, Mechanism};

use super::ITERATIONS;

/// The longest message of a client: names and nonces are short.
const MAX_MESSAGE: usize = 4_096;
/// The longest nonce of a client.
const MAX_NONCE: usize = 1_024;
/// Bytes of our part of the nonce, before they are written as base64.
pub(super) const NONCE_BYTES: usize = 24;
/// Bytes of a salt.
pub(super) const SALT_BYTES: usize = 24;
/// What Kafka's tools write salts with.
const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// Users that are looked at for what credentials look like.
const SURVEYED: usize = 1_000;

/// The exchange has failed. Nobody is told why: to whoever tries names and passwords all failures
/// are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the exchange failed: {0}")]
pub struct Refused(pub &'static str);

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The answer to send; the client's final message follows.
    Continue(Bytes),
    /// The answer to send; the client is this user.
    Done(Bytes, String),
}

/// One exchange, at most two messages of the client long.
#[derive(Debug)]
pub struct Scram {
    mechanism: Mechanism,
    state: State,
}

enum State {
    First,
    Final(Box<Final>),
    Over,
}

/// Keys are for nobody's eyes.
impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::First => "First",
            Self::Final(_) => "Final",
            Self::Over => "Over",
        })
    }
}

/// What the second message is held against.
struct Final {
    user: String,
    known: bool,
    credential: Credential,
    gs2_header: String,
    /// The client's part, then ours.
    nonce: String,
    /// How long the client's part is.
    theirs: usize,
    /// client-first-bare, server-first: what of the authenticated text is known already.
    transcript: String,
}

impl Scram {
    #[must_use]
    pub fn new(mechanism: Mechanism) -> Self {
        Self {
            mechanism,
            state: State::First,
        }
    }

    /// Takes the client's next message. `nonce` is fresh and unguessable; it is used once.
    pub fn step(
        &mut self,
        message: &[u8],
        map: &ClusterMap,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<Step, Refused> {
        if message.len() > MAX_MESSAGE {
            return Err(Refused("the message is too long"));
        }
        let message =
            std::str::from_utf8(message).map_err(|_| Refused("the message is no text"))?;
        match std::mem::replace(&mut self.state, State::Over) {
            State::First => self.first(message, map, &STANDARD.encode(nonce)),
            State::Final(expected) => self.last(message, &expected),
            State::Over => Err(Refused("the exchange is over")),
        }
    }

    fn first(&mut self, message: &str, map: &ClusterMap, ours: &str) -> Result<Step, Refused> {
        let first = ClientFirst::parse(message)?;
        let user = unescape(first.name)?;
        if let Some(other) = first.authzid
            && unescape(other)? != user
        {
            return Err(Refused("it is to act for somebody else"));
        }
        // Made for users as well: how long it takes tells nobody who is one.
        let stand_in = stand_in(self.mechanism, map, &user);
        let kept = map.user(&user);
        let kept = kept.and_then(|kept| kept.credentials.get(&self.mechanism));
        let known = kept.is_some();
        let credential = kept.cloned().unwrap_or(stand_in);
        let nonce = format!("{}{ours}", first.nonce);
        let salt = STANDARD.encode(&credential.salt);
        let server_first = format!("r={nonce},s={salt},i={}", credential.iterations);
        self.state = State::Final(Box::new(Final {
            transcript: format!("{},{server_first}", first.bare),
            gs2_header: first.gs2_header.to_owned(),
            user,
            known,
            credential,
            nonce,
            theirs: first.nonce.len(),
        }));
        Ok(Step::Continue(server_first.into()))
    }

    fn last(&mut self, message: &str, expected: &Final) -> Result<Step, Refused> {
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or(Refused("there is no proof"))?;
        let mut parts = without_proof.split(',');
        let binding = parts.next().and_then(|part| part.strip_prefix("c="));
        let nonce = parts.next().and_then(|part| part.strip_prefix("r="));
        let (Some(binding), Some(nonce)) = (binding, nonce) else {
            return Err(Refused("the final message is malformed"));
        };
        if binding != STANDARD.encode(&expected.gs2_header) {
            return Err(Refused("the binding is another one"));
        }
        // librdkafka before 2.6.1 puts its own part before the whole once more. That is as fresh, and
        // the proof is of what was sent.
        let twice = nonce.split_at_checked(expected.theirs);
        let once = twice.filter(|(theirs, _)| expected.nonce.starts_with(theirs));
        if nonce != expected.nonce && once.is_none_or(|(_, nonce)| nonce != expected.nonce) {
            return Err(Refused("the nonce is another one"));
        }
        let proof = STANDARD
            .decode(proof)
            .map_err(|_| Refused("the proof is malformed"))?;
        let text = format!("{},{without_proof}", expected.transcript);
        let proven = proves(self.mechanism, &expected.credential, &text, &proof);
        if !(proven & expected.known) {
            return Err(Refused("the proof is wrong"));
        }
        let key = &expected.credential.server_key;
        let signature = hmac(self.mechanism, key, text.as_bytes());
        let server_final = format!("v={}", STANDARD.encode(signature));
        Ok(Step::Done(server_final.into(), expected.user.clone()))
    }
}

struct ClientFirst<'a> {
    gs2_header: &'a str,
    authzid: Option<&'a str>,
    /// From the name on.
    bare: &'a str,
    name: &'a str,
    nonce: &'a str,
}

impl<'a> ClientFirst<'a> {
    fn parse(message: &'a str) -> Result<Self, Refused> {
        let malformed = Refused("the first message is malformed");
        let (flag, rest) = message.split_once(',').ok_or(malformed)?;
        if flag != "n" && flag != "y" {
            return Err(Refused("there is no channel binding"));
        }
        let (authzid, bare) = rest.split_once(',').ok_or(malformed)?;
        let authzid = match authzid.strip_prefix("a=") {
            Some(name) => Some(name).filter(|name| !name.is_empty()),
            None if authzid.is_empty() => None,
            None => return Err(malformed),
        };
        let mut parts = bare.split(',');
        let name = parts.next().and_then(|part| part.strip_prefix("n="));
        let nonce = parts.next().and_then(|part| part.strip_prefix("r="));
        let (Some(name), Some(nonce)) = (name, nonce) else {
            return Err(malformed);
        };
        if parts.any(|extension| extension == "tokenauth=true") {
            return Err(Refused("there are no delegation tokens"));
        }
        let printable = |c: char| c.is_ascii_graphic();
        if nonce.is_empty() || nonce.len() > MAX_NONCE || !nonce.chars().all(printable) {
            return Err(malformed);
        }
        let header_len = message.len() - bare.len();
        Ok(Self {
            gs2_header: message.get(..header_len).ok_or(malformed)?,
            authzid,
            bare,
            name,
            nonce,
        })
    }
}

/// `=2C` is a comma and `=3D` is `=`; no other `=` may be there.
fn unescape(name: &str) -> Result<String, Refused> {
    let mut parts = name.split('=');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (c, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (None, Some(rest)) => ('=', rest),
            (None, None) => return Err(Refused("the name is malformed")),
        };
        out.push(c);
        out.push_str(rest);
    }
    if out.is_empty() {
        return Err(Refused("the name is empty"));
    }
    Ok(out)
}

/// What is seen of a credential in an exchange, but for the salt itself: it tells what made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    salt_len: usize,
    /// The salt is written in digits and small letters, as by Kafka's tools.
    digits: bool,
    iterations: u32,
}

impl Shape {
    const OURS: Self = Self {
        salt_len: SALT_BYTES,
        digits: false,
        iterations: ITERATIONS,
    };

    fn of(credential: &Credential) -> Self {
        let mut salt = credential.salt.iter();
        Self {
            salt_len: credential.salt.len(),
            digits: salt.all(|byte| DIGITS.contains(byte)),
            iterations: credential.iterations,
        }
    }

    /// One that is as frequent among those who are no users as it is among users. A name keeps its
    /// own while users come and go, but for few: each shape draws by name, and the least draw has it.
    fn drawn(mechanism: Mechanism, map: &ClusterMap, user: &str) -> Self {
        let mut counts: BTreeMap<Self, u32> = BTreeMap::new();
        for user in map.users().take(SURVEYED) {
            if let Some(credential) = user.credentials.get(&mechanism) {
                *counts.entry(Self::of(credential)).or_default() += 1;
            }
        }
        let draw = |shape: &Self, count: u32| {
            let text = format!("{shape:?} {user}");
            let drawn = hmac(mechanism, map.secret(), text.as_bytes());
            let drawn: [u8; 4] = drawn.first_chunk().copied().unwrap_or_default();
            let even = (f64::from(u32::from_be_bytes(drawn)) + 0.5) / 2_f64.powi(32);
            -even.ln() / f64::from(count)
        };
        let draws = counts
            .into_iter()
            .map(|(shape, count)| (draw(&shape, count), shape));
        let least = draws.min_by(|(one, _), (other, _)| one.total_cmp(other));
        least.map_or(Self::OURS, |(_, shape)| shape)
    }
}

/// What somebody who is no user is held against: it looks like a user's, and nothing proves it.
fn stand_in(mechanism: Mechanism, map: &ClusterMap, user: &str) -> Credential {
    let shape = Shape::drawn(mechanism, map, user);
    let block = |nth: u8| {
        let named = [user.as_bytes(), &[0, nth]].concat();
        hmac(mechanism, map.secret(), &named)
    };
    let mut salt: Vec<u8> = (0..=u8::MAX).flat_map(block).take(shape.salt_len).collect();
    if shape.digits {
        for byte in &mut salt {
            *byte = DIGITS[usize::from(*byte) % DIGITS.len()];
        }
    }
    Credential {
        mechanism: mechanism.into(),
        salt: salt.into(),
        iterations: shape.iterations,
        stored_key: vec![0; mechanism.key_len()].into(),
        server_key: vec![0; mechanism.key_len()].into(),
    }
}

/// Whether the proof is that of somebody who knows the client key: what the proof leaves of the
/// signature must hash to the stored key.
fn proves(mechanism: Mechanism, credential: &Credential, text: &str, proof: &[u8]) -> bool {
    let signature = hmac(mechanism, &credential.stored_key, text.as_bytes());
    if proof.len() != signature.len() {
        return false;
    }
    let key: Vec<u8> = proof.iter().zip(&signature).map(|(p, s)| p ^ s).collect();
    let stored = hash(mechanism, &key);
    stored.ct_eq(&*credential.stored_key).into()
}

pub(super) fn hash(mechanism: Mechanism, bytes: &[u8]) -> Vec<u8> {
    match mechanism {
        Mechanism::ScramSha512 => Sha512::digest(bytes).to_vec(),
        Mechanism::ScramSha256 | Mechanism::Unset => Sha256::digest(bytes).to_vec(),
    }
}

pub(super) fn hmac(mechanism: Mechanism, key: &[u8], bytes: &[u8]) -> Vec<u8> {
    match mechanism {
        Mechanism::ScramSha512 => mac::<Hmac<Sha512>>(key, bytes),
        Mechanism::ScramSha256 | Mechanism::Unset => mac::<Hmac<Sha256>>(key, bytes),
    }
}

/// A key may have any length.
fn mac<M: Mac + hmac::digest::KeyInit>(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    let Ok(mut mac) = <M as Mac>::new_from_slice(key) else {
        return Vec::new();
    };
    mac.update(bytes);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests;
