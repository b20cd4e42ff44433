//! Back-pressure: what a stuck receiver costs, and what it does not hold up.

use super::*;
use crate::transport::PeerError;

const MESSAGE: usize = 64 * 1024;

fn message() -> Vec<Bytes> {
    vec![Bytes::from(vec![3; MESSAGE])]
}

/// Sends until nothing has moved for a while; returns the bytes that were accepted.
async fn fill(sender: &mut super::super::StreamSender) -> usize {
    let mut accepted = 0;
    while let Ok(sent) = tokio::time::timeout(Duration::from_secs(1), sender.send(message())).await
    {
        sent.unwrap();
        accepted += MESSAGE;
    }
    accepted
}

#[tokio::test(start_paused = true)]
async fn a_stuck_receiver_holds_its_sender_at_the_stream_window() {
    let (_net, a, mut b) = sim_pair(20);
    let (mut sender, _receiver) = a
        .transport
        .open_stream(target(B, Lane::Append, ECHO), WAIT)
        .await
        .unwrap();
    let window = config(B).limits.stream_window as usize;
    let accepted = fill(&mut sender).await;
    assert!(accepted <= window, "{accepted}");
    assert!(accepted >= window - 2 * MESSAGE, "{accepted}");

    let mut far = b.next_stream().await;
    for _ in 0..accepted / MESSAGE {
        far.receiver.recv().await.unwrap().unwrap();
    }
    tokio::time::timeout(WAIT, sender.send(message()))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn leased_messages_count_until_the_lease_is_dropped() {
    let (_net, a, mut b) = sim_pair(21);
    let (mut sender, _receiver) = a
        .transport
        .open_stream(target(B, Lane::Append, ECHO), WAIT)
        .await
        .unwrap();
    let accepted = fill(&mut sender).await;
    let mut far = b.next_stream().await;
    let mut leases = Vec::new();
    for _ in 0..accepted / MESSAGE {
        leases.push(far.receiver.recv_leased().await.unwrap().unwrap());
    }
    assert_eq!(fill(&mut sender).await, 0, "all room is leased");
    leases.clear();
    assert!(fill(&mut sender).await > accepted / 2);
}

#[tokio::test(start_paused = true)]
async fn many_stuck_streams_stop_at_the_link_window_and_leave_other_lanes_free() {
    let (_net, a, _b) = sim_pair(22);
    let mut accepted = 0;
    let mut held = Vec::new();
    for _ in 0..16 {
        let opened = a
            .transport
            .open_stream(target(B, Lane::Bulk, ECHO), WAIT)
            .await;
        let (mut sender, receiver) = opened.unwrap();
        accepted += fill(&mut sender).await;
        held.push((sender, receiver));
    }
    let window = config(B).limits.link_window as usize;
    assert!(accepted <= window, "{accepted}");
    assert!(accepted >= window - 32 * MESSAGE, "{accepted}");
    let echo = a
        .transport
        .call(target(B, Lane::Control, ECHO), bytes("x"), WAIT);
    assert_eq!(echo.await.unwrap(), "x");
    // A call in the stuck lane was never sent, and says so.
    let stuck = a
        .transport
        .call(target(B, Lane::Bulk, ECHO), message(), WAIT)
        .await;
    assert!(
        matches!(stuck, Err(PeerError::Unreachable { .. })),
        "{stuck:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn abandoned_streams_give_their_share_of_the_link_back() {
    let (_net, a, mut b) = sim_pair(23);
    for round in 0..40 {
        let opened = a
            .transport
            .open_stream(target(B, Lane::Append, ECHO), WAIT)
            .await;
        let (mut sender, _receiver) = opened.unwrap();
        let accepted = fill(&mut sender).await;
        assert!(accepted > 3 << 20, "round {round}: {accepted}");
        drop(b.next_stream().await);
        tokio::time::timeout(WAIT, sender.closed()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn empty_messages_are_bounded_too() {
    let (_net, a, _b) = sim_pair(24);
    let (mut sender, _receiver) = a
        .transport
        .open_stream(target(B, Lane::Append, ECHO), WAIT)
        .await
        .unwrap();
    let mut sent = 0;
    while let Ok(done) = tokio::time::timeout(Duration::from_secs(1), sender.send(Vec::new())).await
    {
        done.unwrap();
        sent += 1;
    }
    assert_eq!(sent, config(B).limits.stream_window / 256);
}

#[tokio::test(start_paused = true)]
async fn a_message_larger_than_the_stream_window_passes() {
    let (_net, a, mut b) = sim_pair(25);
    let (mut sender, _receiver) = a
        .transport
        .open_stream(target(B, Lane::Bulk, ECHO), WAIT)
        .await
        .unwrap();
    let mut far = b.next_stream().await;
    let large = Bytes::from(vec![1; 8 << 20]);
    let sending = async {
        for _ in 0..6 {
            sender.send(vec![large.clone()]).await.unwrap();
        }
    };
    let receiving = async {
        for _ in 0..6 {
            let got = far.receiver.recv().await.unwrap().unwrap();
            assert_eq!(got.len(), large.len());
        }
    };
    let both = async { tokio::join!(sending, receiving) };
    tokio::time::timeout(WAIT, both).await.unwrap();
    let longer = vec![large, Bytes::from_static(b"x")];
    assert!(matches!(
        sender.send(longer).await,
        Err(PeerError::TooLarge { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_slots_wait_and_then_say_they_were_not_sent() {
    let net = SimNet::new(26);
    let a = TestNode::sim(&net, config(A));
    let mut busy = config(B);
    busy.limits.max_calls = 4;
    let b = TestNode::sim(&net, busy);
    a.knows(&b);
    let hang = || {
        a.transport
            .call(target(B, Lane::Control, HANG), bytes("x"), WAIT)
    };
    let hung = futures::future::join_all((0..4).map(|_| hang()));
    let fifth = async {
        until("four arrive", || b.handler.calls.lock().len() == 4).await;
        let short = Duration::from_millis(100);
        a.transport
            .call(target(B, Lane::Control, ECHO), bytes("x"), short)
            .await
    };
    let (hung, fifth) = tokio::join!(hung, fifth);
    assert!(hung.iter().all(|answer| *answer == Err(PeerError::Timeout)));
    assert!(
        matches!(fifth, Err(PeerError::Unreachable { .. })),
        "{fifth:?}"
    );
}
