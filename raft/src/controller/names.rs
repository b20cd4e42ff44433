//! Topic names: Kafka's rules, which every dialect keeps.

use super::reply::ControllerError;

/// The longest topic name, in bytes.
pub const MAX_NAME_LEN: usize = 249;

/// Checks a topic name against Kafka's alphabet and length.
pub fn check_topic_name(name: &str) -> Result<(), ControllerError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name == "." || name == ".." {
        "'.' and '..' are not names"
    } else if name.len() > MAX_NAME_LEN {
        "it is longer than 249 characters"
    } else if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        "only letters, digits, '.', '_' and '-' are allowed"
    } else {
        return Ok(());
    };
    Err(ControllerError::InvalidTopicName {
        // What a client sent is echoed, but not megabytes of it.
        name: name.chars().take(MAX_NAME_LEN).collect(),
        reason: reason.to_owned(),
    })
}

/// What two names must not share: metrics and streams write `.` as `_`.
#[must_use]
pub fn collision_key(name: &str) -> String {
    name.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_alphabet_and_length() {
        for good in ["a", "Orders.eu_west-1", "...", "_", &"x".repeat(249)] {
            assert!(check_topic_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ä", "a\n", &"x".repeat(250)] {
            assert!(check_topic_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn dots_and_underscores_collide() {
        assert_eq!(collision_key("a.b_c"), collision_key("a_b.c"));
        assert_ne!(collision_key("a-b"), collision_key("a_b"));
    }
}
