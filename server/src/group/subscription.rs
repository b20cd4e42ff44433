//! What the members of a group of consumers subscribe to: the one kind of member whose words a
//! coordinator looks into, so that offsets in use are not deleted.
//!
//! ```text
//! i16 version | i32 count | count x (i16 length | name) | ...
//! ```

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};

/// The protocol type of consumers.
pub(super) const CONSUMER: &str = "consumer";

/// Topics named in a consumer's subscription; none if it is not one.
pub(super) fn topics(mut said: Bytes) -> Option<BTreeSet<String>> {
    let version = said.try_get_i16().ok()?;
    let count = said.try_get_i32().ok()?;
    if version < 0 {
        return None;
    }
    let mut topics = BTreeSet::new();
    for _ in 0..count {
        let length = usize::try_from(said.try_get_i16().ok()?).ok()?;
        if said.len() < length {
            return None;
        }
        let name = said.split_to(length);
        topics.insert(String::from_utf8(name.to_vec()).ok()?);
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_and_damage_is_not_believed() {
        let said = Bytes::from_static(b"\0\x01\0\0\0\x02\0\x01a\0\x02bc\0\0\0\0");
        let read = topics(said.clone()).unwrap();
        assert_eq!(read.into_iter().collect::<Vec<_>>(), ["a", "bc"]);
        for end in 0..13 {
            assert_eq!(topics(said.slice(..end)), None, "{end}");
        }
        let hostile = Bytes::from_static(b"\0\x01\x7f\xff\xff\xff\0\x01a");
        assert_eq!(topics(hostile), None);
    }
}
