//! A client's side of SASL, by hand and apart from the server's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use kafka_protocol::messages::{
    ApiKey, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest,
    SaslHandshakeResponse,
};
use sha2::{Digest, Sha256, Sha512};

use super::{KafkaConn, text};

/// What authentication came to: the code, and what was said.
pub(crate) type Told = (i16, String);

fn mac<M: Mac + KeyInit>(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = <M as Mac>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

pub(crate) fn salted<M: Mac + KeyInit>(password: &str, salt: &[u8], rounds: u32) -> Vec<u8> {
    let mut block = mac::<M>(password.as_bytes(), &[salt, &[0, 0, 0, 1]].concat());
    let mut out = block.clone();
    for _ in 1..rounds {
        block = mac::<M>(password.as_bytes(), &block);
        out = xor(&out, &block);
    }
    out
}

/// The final message, and what the server's has to be.
fn answer<M: Mac + KeyInit, D: Digest>(
    password: &str,
    bare: &str,
    first: &str,
) -> (String, String) {
    let mut parts = first.split(',');
    let nonce = parts.next().unwrap();
    let salt = parts.next().unwrap().strip_prefix("s=").unwrap();
    let rounds = parts.next().unwrap().strip_prefix("i=").unwrap();
    let salt = STANDARD.decode(salt).unwrap();
    let salted = salted::<M>(password, &salt, rounds.parse().unwrap());
    let key = mac::<M>(&salted, b"Client Key");
    let without = format!("c=biws,{nonce}");
    let auth = format!("{bare},{first},{without}");
    let signature = mac::<M>(D::digest(&key).as_slice(), auth.as_bytes());
    let proof = STANDARD.encode(xor(&key, &signature));
    let server = mac::<M>(&mac::<M>(&salted, b"Server Key"), auth.as_bytes());
    let expected = format!("v={}", STANDARD.encode(server));
    (format!("{without},p={proof}"), expected)
}

impl KafkaConn {
    /// A connection of this user; panics unless it is let in.
    pub(crate) async fn open_as(port: u16, user: &str, password: &str) -> Self {
        let mut conn = Self::open(port).await;
        let told = conn.log_in("SCRAM-SHA-256", user, password).await;
        assert_eq!(told.0, 0, "{user}: {told:?}");
        conn
    }

    pub(crate) async fn handshake(&mut self, mechanism: &str) -> SaslHandshakeResponse {
        let request = SaslHandshakeRequest::default().with_mechanism(text(mechanism));
        self.ask(ApiKey::SaslHandshake, 1, &request).await
    }

    pub(crate) async fn authenticate(&mut self, token: &[u8]) -> SaslAuthenticateResponse {
        let token = Bytes::copy_from_slice(token);
        let request = SaslAuthenticateRequest::default().with_auth_bytes(token);
        self.ask(ApiKey::SaslAuthenticate, 2, &request).await
    }

    /// The whole of it.
    pub(crate) async fn log_in(&mut self, mechanism: &str, user: &str, password: &str) -> Told {
        assert_eq!(self.handshake(mechanism).await.error_code, 0);
        let answer = self.prove(mechanism, user, password).await;
        let said = answer.error_message.map(|text| text.to_string());
        (answer.error_code, said.unwrap_or_default())
    }

    /// All that follows the handshake.
    pub(crate) async fn prove(
        &mut self,
        mechanism: &str,
        user: &str,
        password: &str,
    ) -> SaslAuthenticateResponse {
        if mechanism == "PLAIN" {
            let token = format!("\0{user}\0{password}");
            return self.authenticate(token.as_bytes()).await;
        }
        let bare = format!("n={user},r=fyko+d2lbbFgONRv9qkxdawL");
        let first = self.authenticate(format!("n,,{bare}").as_bytes()).await;
        assert_eq!(first.error_code, 0, "{first:?}");
        let first = String::from_utf8(first.auth_bytes.to_vec()).unwrap();
        let (message, expected) = if mechanism == "SCRAM-SHA-512" {
            answer::<Hmac<Sha512>, Sha512>(password, &bare, &first)
        } else {
            answer::<Hmac<Sha256>, Sha256>(password, &bare, &first)
        };
        let last = self.authenticate(message.as_bytes()).await;
        if last.error_code == 0 {
            assert_eq!(
                last.auth_bytes, expected,
                "the node knows the password, too"
            );
        }
        last
    }
}
