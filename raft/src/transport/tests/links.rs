//! Calls, streams, reconnecting, closing.

use super::*;
use crate::transport::PeerError;
use crate::transport::sim::Crash;

async fn calls_are_answered_in_every_lane(a: &TestNode, b: &TestNode) {
    for lane in [Lane::Control, Lane::Append, Lane::Bulk, Lane::Live] {
        let answer = a
            .transport
            .call(target(B, lane, ECHO), bytes("ping"), WAIT)
            .await;
        assert_eq!(answer.unwrap(), "ping");
        let call = b.handler.calls.lock().pop().unwrap();
        assert_eq!((call.peer, call.lane, call.kind), (A, lane, ECHO));
        assert_eq!(call.route, target(B, lane, ECHO).route);
    }
}

#[tokio::test]
async fn calls_over_tcp_are_answered_in_every_lane() {
    let (a, b) = tcp_pair().await;
    calls_are_answered_in_every_lane(&a, &b).await;
    a.transport.close().await;
    b.transport.close().await;
}

#[tokio::test(start_paused = true)]
async fn calls_over_a_simulated_network_are_answered_in_every_lane() {
    let (_net, a, b) = sim_pair(1);
    calls_are_answered_in_every_lane(&a, &b).await;
    a.transport.close().await;
    b.transport.close().await;
}

/// Sends many messages of many sizes and answers each; both ends check order and content.
async fn a_stream_keeps_order_and_content(a: &TestNode, b: &mut TestNode) {
    let message = |i: usize| Bytes::from(vec![i.to_le_bytes()[0]; i * 37 % 70_000]);
    let (mut sender, mut receiver) = a
        .transport
        .open_stream(target(B, Lane::Append, ECHO), WAIT)
        .await
        .unwrap();
    let mut far = b.next_stream().await;
    let sending = async {
        for i in 0..500 {
            let whole = message(i);
            let halves = vec![
                whole.slice(..whole.len() / 2),
                whole.slice(whole.len() / 2..),
            ];
            sender.send(halves).await.unwrap();
        }
        drop(sender);
    };
    let echoing = async {
        for i in 0..500 {
            let got = far.receiver.recv().await.unwrap().unwrap();
            assert_eq!(got, message(i), "request {i}");
            far.sender.send(vec![got]).await.unwrap();
        }
        assert_eq!(far.receiver.recv().await, Ok(None));
        drop(far);
    };
    let reading = async {
        for i in 0..500 {
            let got = receiver.recv().await.unwrap().unwrap();
            assert_eq!(got, message(i), "response {i}");
        }
        assert_eq!(receiver.recv().await, Ok(None));
    };
    let all = async { tokio::join!(sending, echoing, reading) };
    tokio::time::timeout(WAIT, all).await.unwrap();
}

#[tokio::test]
async fn a_stream_over_tcp_keeps_order_and_content() {
    let (a, mut b) = tcp_pair().await;
    a_stream_keeps_order_and_content(&a, &mut b).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_over_a_simulated_network_keeps_order_and_content() {
    let (_net, a, mut b) = sim_pair(2);
    a_stream_keeps_order_and_content(&a, &mut b).await;
}

#[tokio::test]
async fn a_refused_stream_reports_the_reason_on_both_halves() {
    let (a, _b) = tcp_pair().await;
    let (mut sender, mut receiver) = a
        .transport
        .open_stream(target(B, Lane::Append, PICKY), WAIT)
        .await
        .unwrap();
    let refused = PeerError::Refused(Refusal::WrongReplica);
    assert_eq!(receiver.recv().await, Err(refused.clone()));
    sender.closed().await;
    assert_eq!(sender.send(bytes("late")).await, Err(refused));
}

#[tokio::test]
async fn dropping_a_receiver_stops_the_sender() {
    let (a, mut b) = tcp_pair().await;
    let (mut sender, receiver) = a
        .transport
        .open_stream(target(B, Lane::Append, ECHO), WAIT)
        .await
        .unwrap();
    let far = b.next_stream().await;
    drop(far.receiver);
    tokio::time::timeout(WAIT, sender.closed()).await.unwrap();
    assert_eq!(sender.send(bytes("late")).await, Err(PeerError::Closed));
    drop(receiver);
}

#[tokio::test]
async fn a_refused_call_says_why() {
    let (a, _b) = tcp_pair().await;
    let call = a
        .transport
        .call(target(B, Lane::Control, PICKY), bytes(""), WAIT);
    assert_eq!(call.await, Err(PeerError::Refused(Refusal::UnknownGroup)));
    let nobody = a
        .transport
        .call(target(B, Lane::Control, Kind(900)), bytes(""), WAIT);
    assert_eq!(nobody.await, Err(PeerError::Refused(Refusal::Unserved)));
}

#[tokio::test(start_paused = true)]
async fn a_call_without_answer_times_out_and_the_link_lives_on() {
    let (_net, a, _b) = sim_pair(3);
    let hang = target(B, Lane::Control, HANG);
    let timeout = Duration::from_millis(300);
    let hung = a.transport.call(hang, bytes("x"), timeout).await;
    assert_eq!(hung, Err(PeerError::Timeout));
    let echo = a
        .transport
        .call(target(B, Lane::Control, ECHO), bytes("y"), timeout);
    assert_eq!(echo.await.unwrap(), "y");
    assert_eq!(a.transport.stats().connects, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_node_is_unreachable_at_once_until_it_gets_an_address() {
    let net = SimNet::new(4);
    let a = TestNode::sim(&net, config(A));
    let b = TestNode::sim(&net, config(B));
    let echo = target(B, Lane::Control, ECHO);
    let unknown = a.transport.call(echo, bytes("x"), WAIT).await;
    assert!(matches!(
        unknown,
        Err(PeerError::Unreachable { node: B, .. })
    ));
    a.knows(&b);
    assert_eq!(a.transport.call(echo, bytes("x"), WAIT).await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_new_address_moves_the_links() {
    let net = SimNet::new(5);
    let a = TestNode::sim(&net, config(A));
    let _b = TestNode::sim(&net, config(B));
    let book = a.transport.book();
    let echo = target(B, Lane::Control, ECHO);
    book.set(B, "sim:77");
    let nowhere = a.transport.call(echo, bytes("x"), WAIT).await;
    assert!(matches!(nowhere, Err(PeerError::Unreachable { .. })));
    book.set(B, SimNet::address(B));
    until("the link follows", || a.transport.stats().connects == 1).await;
    assert_eq!(a.transport.call(echo, bytes("x"), WAIT).await.unwrap(), "x");
    book.set(B, "sim:77");
    until("the old link closes", || a.transport.stats().breaks == 1).await;
    book.remove(B);
    let removed = a.transport.call(echo, bytes("x"), WAIT).await;
    assert!(matches!(removed, Err(PeerError::Unreachable { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_broken_link_fails_its_streams_and_calls_and_a_new_one_takes_over() {
    let (net, a, mut b) = sim_pair(6);
    let (mut sender, mut receiver) = a
        .transport
        .open_stream(target(B, Lane::Control, ECHO), WAIT)
        .await
        .unwrap();
    sender.send(bytes("one")).await.unwrap();
    let mut far = b.next_stream().await;
    assert_eq!(far.receiver.recv().await.unwrap().unwrap(), "one");
    let hang = a
        .transport
        .call(target(B, Lane::Control, HANG), bytes("x"), WAIT);
    let breaking = async {
        until("the call arrives", || !b.handler.calls.lock().is_empty()).await;
        net.reset_links(A, B);
    };
    let (hung, ()) = tokio::join!(hang, breaking);
    assert!(
        matches!(hung, Err(PeerError::Broken { node: B, .. })),
        "{hung:?}"
    );
    assert!(matches!(
        receiver.recv().await,
        Err(PeerError::Broken { .. })
    ));
    assert!(matches!(
        sender.send(bytes("two")).await,
        Err(PeerError::Broken { .. })
    ));
    assert!(matches!(
        far.receiver.recv().await,
        Err(PeerError::Broken { .. })
    ));
    let again = a
        .transport
        .call(target(B, Lane::Control, ECHO), bytes("y"), WAIT);
    assert_eq!(again.await.unwrap(), "y");
}

#[tokio::test(start_paused = true)]
async fn a_cut_in_either_direction_breaks_the_link_within_the_silence_limit() {
    for (from, to) in [(A, B), (B, A)] {
        let (net, a, b) = sim_pair(7);
        let echo = target(B, Lane::Control, ECHO);
        a.transport.call(echo, bytes("x"), WAIT).await.unwrap();
        let start = tokio::time::Instant::now();
        net.cut(from, to);
        until("one side notices", || {
            a.transport.stats().breaks + b.transport.stats().breaks > 0
        })
        .await;
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
        let failed = a
            .transport
            .call(echo, bytes("x"), Duration::from_secs(5))
            .await;
        assert!(failed.is_err());
        net.heal_all();
        let healed = async {
            while a.transport.call(echo, bytes("x"), WAIT).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), healed)
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_stays_up() {
    let (_net, a, _b) = sim_pair(8);
    let echo = target(B, Lane::Control, ECHO);
    a.transport.call(echo, bytes("x"), WAIT).await.unwrap();
    tokio::time::sleep(Duration::from_mins(1)).await;
    a.transport.call(echo, bytes("x"), WAIT).await.unwrap();
    assert_eq!(a.transport.stats().connects, 1);
    assert_eq!(a.transport.stats().breaks, 0);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_peer_is_found_again_after_either_kind_of_crash() {
    for how in [Crash::Process, Crash::Machine] {
        let (net, a, b) = sim_pair(9);
        let echo = target(B, Lane::Control, ECHO);
        a.transport.call(echo, bytes("x"), WAIT).await.unwrap();
        net.crash(B, how);
        drop(b);
        let down = a
            .transport
            .call(echo, bytes("x"), Duration::from_secs(5))
            .await;
        assert!(down.is_err(), "{how:?}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let _b = TestNode::sim(&net, config(B));
        let back = async {
            while a.transport.call(echo, bytes("x"), WAIT).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), back)
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_closing_node_finishes_the_calls_in_progress() {
    let (net, a, b) = sim_pair(10);
    net.set_default_path(super::super::sim::Path {
        latency: Duration::from_millis(20),
        ..Default::default()
    });
    let (sent, answered) = (bytes("x"), target(B, Lane::Control, ECHO));
    let call = a.transport.call(answered, sent, WAIT);
    let close = async {
        until("the call arrives", || !b.handler.calls.lock().is_empty()).await;
        b.transport.close().await;
    };
    let (answer, ()) = tokio::join!(call, close);
    assert_eq!(answer.unwrap(), "x");
    let refused = a
        .transport
        .call(answered, bytes("x"), Duration::from_secs(3))
        .await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn an_answer_larger_than_the_caller_takes_is_refused() {
    let mut small = config(A);
    small.limits.max_payload = 2_000;
    let a = TestNode::tcp(small).await;
    let b = TestNode::tcp(config(B)).await;
    a.knows(&b);
    b.knows(&a);
    let long = vec![Bytes::from(vec![1; 1_900]), Bytes::from(vec![1; 200])];
    let echo = a
        .transport
        .call(target(B, Lane::Control, ECHO), long.clone(), WAIT);
    assert!(matches!(
        echo.await,
        Err(PeerError::Refused(Refusal::Failed(_)))
    ));
    let echo = b.transport.call(target(A, Lane::Control, ECHO), long, WAIT);
    assert_eq!(
        echo.await,
        Err(PeerError::TooLarge {
            len: 2_100,
            max: 2_000
        })
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_without_cluster_may_only_introduce_itself() {
    let net = SimNet::new(11);
    let loner = TestNode::sim(&net, TransportConfig::new(C, None));
    let member = TestNode::sim(&net, config(A));
    loner.knows(&member);
    let address = SimNet::address(A);
    let hello = loner
        .transport
        .introduce(address.clone(), HELLO, bytes("hi"), WAIT);
    assert_eq!(hello.await.unwrap(), (A, "hi".into()));
    let echo = loner.transport.introduce(address, ECHO, bytes("hi"), WAIT);
    assert_eq!(echo.await, Err(PeerError::Refused(Refusal::Unclustered)));
    let call = target(A, Lane::Control, ECHO);
    let unlinked = loner.transport.call(call, bytes("x"), WAIT).await;
    assert!(
        matches!(unlinked, Err(PeerError::Unreachable { .. })),
        "{unlinked:?}"
    );
    loner.transport.join_cluster(CLUSTER);
    let joined = async {
        while loner.transport.call(call, bytes("x"), WAIT).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WAIT, joined).await.unwrap();
}
