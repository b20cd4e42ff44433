use super::*;

#[test]
fn a_groups_partition_is_the_one_java_clients_would_compute() {
    // "".hashCode() and friends, as a Java machine gives them.
    let table = [
        ("", 0_u32),
        ("a", 97),
        ("group", 98_629_247),
        ("polygenelubricants", 0),
        ("ä€😀", 16_603_051),
    ];
    for (group, positive) in table {
        assert_eq!(positive_hash(group), positive, "{group}");
    }
}

#[test]
fn ids_are_neither_empty_nor_endless() {
    assert_eq!(check_id(""), Err(GroupError::InvalidGroupId));
    assert_eq!(check_id("g"), Ok(()));
    let long = "x".repeat(MAX_NAME + 1);
    assert_eq!(check_id(&long), Err(GroupError::InvalidGroupId));
}
