//! What the members of a group of consumers subscribe to and are given: the one kind of member
//! whose words a coordinator looks into, so that offsets in use are not deleted and people see who
//! reads what.
//!
//! ```text
//! subscription  i16 version | i32 count | count x (i16 length | name) | ...
//! assignment    i16 version | i32 count | count x (i16 length | name | i32 count | i32s) | ...
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
        topics.insert(name(&mut said)?);
    }
    Some(topics)
}

/// Partitions in a consumer's assignment; none if it is not one.
pub(super) fn assigned(mut given: Bytes) -> Option<Vec<(String, u32)>> {
    let version = given.try_get_i16().ok()?;
    let count = given.try_get_i32().ok()?;
    if version < 0 {
        return None;
    }
    let mut assigned = Vec::new();
    for _ in 0..count {
        let topic = name(&mut given)?;
        for _ in 0..given.try_get_i32().ok()? {
            let partition = u32::try_from(given.try_get_i32().ok()?).ok()?;
            assigned.push((topic.clone(), partition));
        }
    }
    Some(assigned)
}

fn name(bytes: &mut Bytes) -> Option<String> {
    let length = usize::try_from(bytes.try_get_i16().ok()?).ok()?;
    if bytes.len() < length {
        return None;
    }
    let name = bytes.split_to(length);
    String::from_utf8(name.to_vec()).ok()
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

    #[test]
    fn assignments_are_read_and_damage_is_not_believed() {
        let given =
            Bytes::from_static(b"\0\x01\0\0\0\x01\0\x02ab\0\0\0\x02\0\0\0\x03\0\0\0\x05\0\0\0\0");
        let read = assigned(given.clone()).unwrap();
        assert_eq!(read, [("ab".to_owned(), 3), ("ab".to_owned(), 5)]);
        for end in 0..given.len() - 4 {
            assert_eq!(assigned(given.slice(..end)), None, "{end}");
        }
        let hostile = Bytes::from_static(b"\0\x01\0\0\0\x01\0\x01a\x7f\xff\xff\xff\0\0\0\x01");
        assert_eq!(assigned(hostile), None);
    }
}
