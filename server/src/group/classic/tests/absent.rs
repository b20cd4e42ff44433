//! Members that are away while the others rebalance.

use super::*;

#[test]
fn a_newcomer_that_is_gone_is_out_though_its_group_still_waits_for_others() {
    let (mut table, ids) = Table::stable(1);
    let newcomer = JoinRequest {
        rebalance_timeout: Duration::from_mins(20),
        ..request("", None, &["range"])
    };
    // Its connection ended: nobody takes the answer.
    drop(table.join(newcomer));
    assert_eq!(table.group.members.len(), 2);
    for _ in 0..60 {
        table.pass(5);
        // It is alive, and takes the time that the newcomer asked for.
        drop(table.heartbeat(&ids[0], 1));
    }
    assert_eq!(table.group.members.len(), 1);
    assert_eq!(table.group.state(), GroupState::PreparingRebalance);
    let mut one = table.join(request(&ids[0], None, &["range"]));
    assert_eq!(told(&mut one).members.len(), 1);
}

#[test]
fn a_named_member_that_is_away_during_a_rebalance_keeps_its_place() {
    let mut table = table(0);
    let named = told(&mut table.join(request("", Some("a"), &["range"])));
    table.settle(std::slice::from_ref(&named.member), 1);
    let mut other = table.join(request("", None, &["range"]));
    let beat = |table: &mut Table| {
        let named = MemberRef {
            instance: Some("a".to_owned()),
            ..member(&named.member, 1)
        };
        let now = table.now;
        table.group.heartbeat(&named, now)
    };
    for _ in 0..6 {
        waits(&mut other);
        table.pass(5);
        let again = Err(GroupError::RebalanceInProgress);
        assert!([again, Err(GroupError::IllegalGeneration)].contains(&beat(&mut table)));
    }
    let other = told(&mut other);
    assert_eq!((other.generation, other.members.len()), (2, 2));
    assert_eq!(other.leader, other.member, "who is away assigns nothing");
    assert!(table.group.members.contains_key(&named.member));
}

#[test]
fn a_group_whose_members_are_all_named_and_away_waits_for_one_of_them() {
    let mut table = table(0);
    let named = told(&mut table.join(request("", Some("a"), &["range"])));
    table.settle(std::slice::from_ref(&named.member), 1);
    let mut passing = table.join(request("", None, &["range"]));
    waits(&mut passing);
    let id = table.group.members.keys().find(|id| **id != named.member);
    let leaving = Leaving {
        member: id.unwrap().clone(),
        instance: None,
    };
    assert_eq!(table.act(|group, ctx| group.leave(&leaving, ctx)), Ok(()));
    for _ in 0..7 {
        table.pass(5);
        // It is alive, and has not heard yet that it is to join.
        let named = MemberRef {
            instance: Some("a".to_owned()),
            ..member(&named.member, 1)
        };
        let now = table.now;
        let told = table.group.heartbeat(&named, now);
        assert_eq!(told, Err(GroupError::RebalanceInProgress));
    }
    assert_eq!(table.group.state(), GroupState::PreparingRebalance);
    let again = told(&mut table.join(request(&named.member, Some("a"), &["range"])));
    assert_eq!((again.generation, again.members.len()), (2, 1));
}
