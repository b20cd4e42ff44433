use std::collections::BTreeSet;

use trilog_model::{ReplicaId, Timestamp};

use super::super::TransportConfig;
use super::super::sim::{Crash, SimNet};
use super::super::tests::{A, B, C, CLUSTER, WAIT, until};
use super::*;

/// A clock that runs with tokio's time, some way off.
#[derive(Debug)]
struct OffsetClock {
    start: tokio::time::Instant,
    base: u64,
}

impl Clock for OffsetClock {
    fn now(&self) -> Timestamp {
        let since = u64::try_from(self.start.elapsed().as_nanos()).unwrap();
        Timestamp(self.base + since)
    }
}

/// Agrees to vouches unless told not to.
#[derive(Default)]
pub(super) struct Groups {
    disagree: Mutex<BTreeSet<GroupId>>,
    /// Agrees to a vouch, and wakes before that is said.
    restless: Mutex<Option<HeartbeatHub>>,
    resting: Mutex<BTreeSet<GroupId>>,
    woken: Mutex<Vec<(GroupId, WakeReason)>>,
    lost: Mutex<Vec<NodeId>>,
}

impl Groups {
    pub(super) fn rests(&self, group: GroupId) -> bool {
        self.resting.lock().contains(&group)
    }

    /// A replica wakes by itself.
    pub(super) fn wake(&self, group: GroupId) {
        self.resting.lock().remove(&group);
    }

    /// The process is gone, and what rested in it.
    pub(super) fn forget(&self) {
        self.resting.lock().clear();
    }
}

impl VouchHandler for Groups {
    fn on_vouch(&self, vouch: &Vouch) -> bool {
        let group = vouch.route.group;
        let agreed = !self.disagree.lock().contains(&group);
        if agreed {
            self.resting.lock().insert(group);
        }
        if let Some(hub) = &*self.restless.lock() {
            hub.refuse(group);
        }
        agreed
    }

    fn on_lost(&self, node: NodeId) {
        self.lost.lock().push(node);
    }

    fn on_wake(&self, group: GroupId, reason: WakeReason) {
        self.resting.lock().remove(&group);
        self.woken.lock().push((group, reason));
    }
}

pub(super) struct Node {
    transport: Transport,
    pub(super) groups: Arc<Groups>,
    pub(super) hub: HeartbeatHub,
}

pub(super) fn node(net: &SimNet, id: NodeId, seed: u64) -> Node {
    let transport = net.transport(TransportConfig::new(id, Some(CLUSTER)));
    for peer in [A, B, C] {
        transport.book().set(peer, SimNet::address(peer));
    }
    let groups = Arc::new(Groups::default());
    let clock = OffsetClock {
        start: tokio::time::Instant::now(),
        base: u64::from(id.get()) * 10_000_000_000,
    };
    let hub = HeartbeatHub::start(
        transport.clone(),
        HeartbeatConfig::default(),
        Arc::new(clock),
        &Entropy::from_seed(seed + u64::from(id.get())),
        Arc::clone(&groups) as Arc<dyn VouchHandler>,
    );
    Node {
        transport,
        groups,
        hub,
    }
}

fn route(from: NodeId, to: NodeId, group: u64) -> Route {
    Route {
        group: GroupId(group),
        from: ReplicaId::new(from, 1),
        to: ReplicaId::new(to, 1),
    }
}

pub(super) fn vouch(from: NodeId, to: NodeId, group: u64) -> Vouch {
    Vouch {
        term: Term(3),
        route: route(from, to, group),
    }
}

async fn alive(watcher: &Node, node: NodeId) {
    let mut life = watcher.hub.node_alive(node);
    let waiting = life.wait_for(|life| matches!(life, NodeLife::Alive { .. }));
    tokio::time::timeout(WAIT, waiting).await.unwrap().unwrap();
}

async fn dead(watcher: &Node, node: NodeId) {
    let mut life = watcher.hub.node_alive(node);
    let waiting = life.wait_for(|life| *life == NodeLife::Dead);
    tokio::time::timeout(WAIT, waiting).await.unwrap().unwrap();
}

/// A network in which A, B and C hear one another.
async fn trio(seed: u64) -> (SimNet, Node, Node, Node) {
    let net = SimNet::new(seed);
    let [a, b, c] = [A, B, C].map(|id| node(&net, id, seed));
    for (watcher, others) in [(&a, [B, C]), (&b, [A, C]), (&c, [A, B])] {
        for other in others {
            alive(watcher, other).await;
        }
    }
    (net, a, b, c)
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_dead_within_the_timeout_and_alive_again_when_heard() {
    let (net, a, _b, _c) = trio(4).await;
    let start = tokio::time::Instant::now();
    // Only what B says is lost: A still reaches it.
    net.cut(B, A);
    dead(&a, B).await;
    let took = start.elapsed();
    let timeout = HeartbeatConfig::default().timeout;
    assert!(took + Duration::from_millis(150) >= timeout, "{took:?}");
    assert!(took <= timeout + Duration::from_millis(150), "{took:?}");
    assert!(matches!(
        *a.hub.node_alive(C).borrow(),
        NodeLife::Alive { .. }
    ));
    net.heal_all();
    alive(&a, B).await;
}

#[tokio::test(start_paused = true)]
async fn it_is_remembered_when_a_dead_node_was_heard_last() {
    let (net, a, _b, _c) = trio(6).await;
    let timeout = HeartbeatConfig::default().timeout;
    net.cut(B, A);
    dead(&a, B).await;
    assert!(a.hub.heard_within(B, 2 * timeout));
    assert!(!a.hub.heard_within(B, timeout / 2));
    tokio::time::sleep(3 * timeout).await;
    assert!(!a.hub.heard_within(B, 2 * timeout));
    assert!(a.hub.heard_within(B, 6 * timeout));
    assert!(a.hub.heard_within(C, timeout));
    // Who is only looked for was never heard.
    let nobody = NodeId(77);
    let mut life = a.hub.node_alive(nobody);
    assert!(!a.hub.heard_within(nobody, 6 * timeout));
    let missed = life.wait_for(|life| *life == NodeLife::Dead);
    tokio::time::timeout(WAIT, missed).await.unwrap().unwrap();
    assert!(!a.hub.heard_within(nobody, 6 * timeout));
}

#[tokio::test(start_paused = true)]
async fn clocks_are_compared_within_the_time_an_answer_takes() {
    let (_net, a, _b, _c) = trio(5).await;
    until("an answer", || a.hub.clock_offset(C).is_some()).await;
    let offset = a.hub.clock_offset(C).unwrap();
    let error = (offset.ahead_nanos - 20_000_000_000).unsigned_abs();
    assert!(
        u128::from(error) <= offset.uncertainty.as_nanos(),
        "{offset:?}"
    );
    assert!(offset.uncertainty < Duration::from_millis(50), "{offset:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vouched_group_rests_until_its_leader_withdraws() {
    let (_net, a, b, _c) = trio(6).await;
    a.hub.vouch(vouch(A, B, 1), WAIT).await.unwrap();
    assert!(b.groups.resting.lock().contains(&GroupId(1)));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(b.groups.woken.lock().is_empty());
    a.hub.withdraw(GroupId(1));
    until("the follower wakes", || {
        *b.groups.woken.lock() == [(GroupId(1), WakeReason::Withdrawn)]
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_may_refuse_at_once_or_later() {
    let (_net, a, b, _c) = trio(7).await;
    b.groups.disagree.lock().insert(GroupId(1));
    let refused = a.hub.vouch(vouch(A, B, 1), WAIT).await;
    assert!(matches!(refused, Err(PeerError::Refused(_))), "{refused:?}");
    a.hub.vouch(vouch(A, B, 2), WAIT).await.unwrap();
    b.hub.refuse(GroupId(2));
    until("the leader wakes", || {
        let woken = a.groups.woken.lock();
        woken.contains(&(GroupId(2), WakeReason::Refused(B)))
    })
    .await;
    // Having taken its word back, it can give it again.
    a.hub.vouch(vouch(A, B, 2), WAIT).await.unwrap();
    assert!(b.groups.woken.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_wakes_while_it_agrees_is_heard() {
    let (_net, a, b, _c) = trio(15).await;
    *b.groups.restless.lock() = Some(b.hub.clone());
    let refused = a.hub.vouch(vouch(A, B, 1), WAIT).await;
    assert!(matches!(refused, Err(PeerError::Refused(_))), "{refused:?}");
    // The hub holds the groups, which must not hold it.
    *b.groups.restless.lock() = None;
    a.hub.vouch(vouch(A, B, 1), WAIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_vouch_for_replicas_of_other_nodes_is_refused() {
    let (_net, a, _b, _c) = trio(8).await;
    let mut forged = vouch(C, B, 1);
    let refused = a.hub.vouch(forged, WAIT).await;
    assert!(matches!(refused, Err(PeerError::Refused(_))), "{refused:?}");
    forged.route.from = ReplicaId::new(A, 2);
    a.hub.vouch(forged, WAIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_leader_wakes_its_groups_on_both_sides() {
    let (net, a, b, c) = trio(9).await;
    for group in 1..=50 {
        a.hub.vouch(vouch(A, B, group), WAIT).await.unwrap();
        a.hub.vouch(vouch(A, C, group), WAIT).await.unwrap();
    }
    let start = tokio::time::Instant::now();
    net.isolate(A);
    for follower in [&b, &c] {
        until("all wake", || follower.groups.resting.lock().is_empty()).await;
        assert!(start.elapsed() < Duration::from_secs(1));
        let woken = follower.groups.woken.lock();
        assert_eq!(woken.len(), 50);
        assert!(woken.iter().all(|(_, why)| *why == WakeReason::NodeDead(A)));
    }
    until("the leader wakes", || a.groups.woken.lock().len() == 100).await;
    net.heal_all();
    alive(&a, B).await;
    a.hub.vouch(vouch(A, B, 1), WAIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_connection_wakes_nobody() {
    let (net, a, b, _c) = trio(10).await;
    for group in 1..=20 {
        a.hub.vouch(vouch(A, B, group), WAIT).await.unwrap();
    }
    for _ in 0..10 {
        net.reset_links(A, B);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    assert_eq!(b.groups.resting.lock().len(), 20);
    assert_eq!(*b.groups.woken.lock(), []);
    assert_eq!(*a.groups.woken.lock(), []);
    assert_eq!(*b.groups.lost.lock(), []);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_process_ended_is_lost_long_before_it_is_missed() {
    let (net, a, b, c) = trio(15).await;
    net.crash(A, Crash::Process);
    drop(a);
    tokio::time::sleep(HeartbeatConfig::default().timeout / 2).await;
    for other in [&b, &c] {
        assert_eq!(*other.groups.lost.lock(), [A]);
        dead(other, A).await;
    }
    // Once, however often it is looked for.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*b.groups.lost.lock(), [A]);
    let a = node(&net, A, 97);
    alive(&b, A).await;
    drop(a);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_vanished_is_missed_and_not_known_to_be_lost() {
    let (net, _a, b, c) = trio(16).await;
    net.crash(A, Crash::Machine);
    net.isolate(C);
    for gone in [A, C] {
        dead(&b, gone).await;
    }
    for other in [&b, &c] {
        assert_eq!(*other.groups.lost.lock(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_leader_wakes_its_followers_though_it_was_hardly_missed() {
    let (net, a, b, _c) = trio(11).await;
    a.hub.vouch(vouch(A, B, 1), WAIT).await.unwrap();
    net.crash(A, Crash::Process);
    drop(a);
    let _a = node(&net, A, 99);
    until("the follower wakes", || {
        *b.groups.woken.lock() == [(GroupId(1), WakeReason::NodeRestarted(A))]
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_follower_must_agree_anew() {
    let (net, a, b, _c) = trio(12).await;
    a.hub.vouch(vouch(A, B, 1), WAIT).await.unwrap();
    net.crash(B, Crash::Process);
    drop(b);
    let b = node(&net, B, 98);
    b.groups.disagree.lock().insert(GroupId(1));
    until("the leader wakes", || {
        let woken = a.groups.woken.lock();
        woken.contains(&(GroupId(1), WakeReason::Refused(B)))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn resting_groups_cost_nothing_on_the_links() {
    let (_net, a, b, _c) = trio(13).await;
    let frames_in_ten_seconds = async || {
        let before = a.transport.stats();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let after = a.transport.stats();
        (
            after.frames_out - before.frames_out,
            after.bytes_out - before.bytes_out,
        )
    };
    let idle = frames_in_ten_seconds().await;
    let vouches = (0..5_000).map(|group| a.hub.vouch(vouch(A, B, group), WAIT));
    for agreed in futures::future::join_all(vouches).await {
        agreed.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let resting = frames_in_ten_seconds().await;
    assert_eq!(b.groups.resting.lock().len(), 5_000);
    assert!(resting.0 <= idle.0 + 5 && resting.1 <= idle.1 + 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_the_address_book_is_no_longer_vouched_to() {
    let (_net, a, b, _c) = trio(14).await;
    a.hub.vouch(vouch(A, B, 1), WAIT).await.unwrap();
    a.transport.book().remove(B);
    until("both wake", || {
        !a.groups.woken.lock().is_empty() && b.groups.resting.lock().is_empty()
    })
    .await;
    let gone = a.hub.vouch(vouch(A, B, 1), WAIT).await;
    assert!(matches!(gone, Err(PeerError::Unreachable { .. })));
}
