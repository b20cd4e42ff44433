//! Random identities: of a cluster, of a node's data directory, of a topic.
//!
//! They are drawn by whoever proposes a command and travel inside it, so that applying stays pure.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use rand::RngCore;
use trilog_storage::env::Entropy;

/// Bytes of an identity.
const LEN: usize = 16;

/// The text or the bytes are not an identity: 16 bytes that are not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an identity: 16 bytes are wanted, not all zero")]
pub struct InvalidIdentity;

fn write_uuid(bytes: [u8; LEN], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

fn parse_uuid(text: &str) -> Result<[u8; LEN], InvalidIdentity> {
    let mut bytes = [0; LEN];
    let mut digits = 0;
    for digit in text.chars().filter(|c| *c != '-') {
        let value = u8::try_from(digit.to_digit(16).ok_or(InvalidIdentity)?)
            .map_err(|_| InvalidIdentity)?;
        let byte = bytes.get_mut(digits / 2).ok_or(InvalidIdentity)?;
        *byte = *byte << 4 | value;
        digits += 1;
    }
    if digits == LEN * 2 && bytes != [0; LEN] {
        Ok(bytes)
    } else {
        Err(InvalidIdentity)
    }
}

fn random_bytes(entropy: &Entropy) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    entropy.fork().fill_bytes(&mut bytes);
    // Version 4, variant 1: a random UUID, and never zero.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; LEN]);

        impl $name {
            /// A fresh one: a version 4 UUID.
            #[must_use]
            pub fn random(entropy: &Entropy) -> Self {
                Self(random_bytes(entropy))
            }

            /// From its 16 bytes; zero is no identity.
            pub fn from_bytes(bytes: [u8; LEN]) -> Result<Self, InvalidIdentity> {
                if bytes == [0; LEN] {
                    Err(InvalidIdentity)
                } else {
                    Ok(Self(bytes))
                }
            }

            /// From a field of a message.
            pub fn from_wire(bytes: &[u8]) -> Result<Self, InvalidIdentity> {
                Self::from_bytes(bytes.try_into().map_err(|_| InvalidIdentity)?)
            }

            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; LEN] {
                &self.0
            }

            /// As a field of a message.
            #[must_use]
            pub fn to_wire(self) -> Bytes {
                Bytes::copy_from_slice(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidIdentity;

            fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
                parse_uuid(text).map(Self)
            }
        }
    };
}

identity! {
    /// One cluster for its whole life; checked on every link and in every data directory.
    ClusterId
}
identity! {
    /// One data directory. A node that lost its disk comes back with another one.
    NodeIdentity
}
identity! {
    /// One topic from creation to deletion; a topic created again under the same name differs.
    TopicId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_text_and_bytes() {
        let id = TopicId::random(&Entropy::from_seed(7));
        assert_eq!(id.to_string().parse::<TopicId>().unwrap(), id);
        assert_eq!(TopicId::from_wire(&id.to_wire()).unwrap(), id);
        assert_eq!(id.to_string().len(), 36);
        assert_eq!(&id.to_string()[14..15], "4");
    }

    #[test]
    fn zero_and_odd_lengths_are_no_identities() {
        assert!(TopicId::from_bytes([0; 16]).is_err());
        assert!(TopicId::from_wire(&[1; 15]).is_err());
        for text in [
            "",
            "00000000-0000-0000-0000-000000000000",
            "zz",
            "1234",
            "0123456789abcdef0123456789abcdef0",
        ] {
            assert!(text.parse::<TopicId>().is_err(), "{text}");
        }
    }
}
