//! The messages of a copy, and a receiver among honest and dishonest senders.

use std::path::PathBuf;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use trilog_model::{EntryId, GroupId, NodeId, Offset, Term, Timestamp};
use trilog_storage::env::Entropy;
use trilog_storage::frame::Frame;
use trilog_storage::io::sim::{SimConfig, SimDisk, block_on};
use trilog_storage::log::{Appending, LogStart};
use trilog_storage::store::Store;

use super::*;
use crate::testkit::client::batch;
use crate::testkit::{SimClock, compare, small_store};
use crate::transport::sim::SimNet;
use crate::transport::{ClusterId, PeerCall, PeerHandler, TransportConfig};
use crate::types::{Draft, Proposal};

const GROUP: GroupId = GroupId(40);
const LAST: u64 = 89;
const X: u64 = 69;

#[test]
fn requests_survive_the_round_trip_and_no_truncation_does() {
    for first in [None, Some(LogIndex(7))] {
        let gap = Gap {
            first,
            end: LogIndex(99),
        };
        let bytes = encode_request(gap);
        assert_eq!(decode_request(bytes.clone()).unwrap(), gap);
        for len in 0..bytes.len() {
            assert!(decode_request(bytes.slice(..len)).is_err());
        }
    }
    assert!(decode_request(Bytes::from_static(&[9, 0])).is_err());
}

#[test]
fn answers_are_told_apart_and_bad_ones_refused() {
    let sum = CopySum { bytes: 5, crc: 77 };
    let mut frames = BytesMut::from(&encode_sum(FRAMES, sum)[..]);
    frames.put_slice(b"frame");
    let decoded = Answer::decode(frames.freeze()).unwrap();
    let expected = Answer::Frames {
        sum,
        frames: Bytes::from_static(b"frame"),
    };
    assert_eq!(decoded, expected);
    let all = encode_sum(ALL, sum);
    assert_eq!(Answer::decode(all.clone()).unwrap(), Answer::All(sum));
    for len in 0..all.len() {
        assert!(Answer::decode(all.slice(..len)).is_err());
    }
    for bad in [&[0][..], &[4], &[NOTHING, 0], &[]] {
        assert!(Answer::decode(Bytes::from_static(bad)).is_err());
    }
}

/// A store with one log of the group in it.
async fn store(node: u32) -> (Store, GroupLog) {
    let disk = SimDisk::with_config(node.into(), SimConfig::instant());
    let config = small_store(PathBuf::from("/data"));
    let clock = Arc::new(SimClock::default());
    let entropy = Entropy::from_seed(node.into());
    let opened = Box::pin(Store::open(config, disk.backend(), clock, entropy)).await;
    let (store, _) = opened.unwrap();
    let replica = ReplicaId::new(NodeId(node), 1);
    let log = store.create_group(GROUP, replica).await.unwrap();
    (store, log)
}

async fn append(log: &GroupLog, frames: Vec<Frame>, mode: Appending) {
    let (done, wait) = tokio::sync::oneshot::channel();
    let done = Box::new(move |result| drop(done.send(result)));
    log.append(frames, mode, done).unwrap();
    wait.await.unwrap().unwrap();
    log.commit(LogIndex(LAST));
}

async fn frames(log: &GroupLog, from: u64) -> Vec<Frame> {
    let mut all: Vec<Frame> = Vec::new();
    loop {
        let next = LogIndex(from + all.len() as u64);
        if next > LogIndex(LAST) {
            return all;
        }
        let read = log.read(next, LogIndex(LAST + 1), 1 << 20).await.unwrap();
        assert!(!read.is_empty());
        all.extend(read);
    }
}

/// A whole log, and one that has what follows X and lacks the rest.
async fn logs() -> ((Store, GroupLog), (Store, GroupLog)) {
    let (whole, short) = (store(1).await, store(2).await);
    let entry = |index| {
        let draft = Draft {
            proposal: Proposal {
                records: batch(&[7; 500]),
                record_count: 1,
                command: Bytes::new(),
            },
            expected_term: Term(3),
            claim: None,
        };
        draft.into_frame(GROUP, EntryId::new(3, index))
    };
    append(&whole.1, (0..=LAST).map(entry).collect(), Appending::Assign).await;
    let x = &frames(&whole.1, X).await[0].header;
    let start = LogStart {
        purged: x.id(),
        next_offset: x.next_offset(),
        next_time: Timestamp(x.append_time.nanos() + 1),
        data_start: Offset(0),
        meta: Bytes::new(),
    };
    short.1.set_log_start(start).await.unwrap();
    let tail = frames(&whole.1, X + 1).await;
    append(&short.1, tail, Appending::Assert).await;
    (whole, short)
}

/// Answers every copy with the messages it was told, or from a log.
#[derive(Clone)]
struct Sender(Arc<Mutex<Script>>);

enum Script {
    Messages(Vec<Bytes>),
    Honest(Copies, GroupLog),
}

impl PeerHandler for Sender {
    fn on_call(&self, _: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        async { Err(Refusal::Unserved) }.boxed()
    }

    fn on_stream(&self, mut stream: PeerStream) {
        match &*self.0.lock() {
            Script::Messages(messages) => {
                let messages = messages.clone();
                tokio::spawn(async move {
                    stream.receiver.recv().await.unwrap();
                    for message in messages {
                        if stream.sender.send(vec![message]).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Script::Honest(copies, log) => {
                let (copies, log) = (copies.clone(), log.clone());
                tokio::spawn(async move { copies.serve(&log, stream).await });
            }
        }
    }
}

/// The messages of an honest sender of entries `from..=X`, a few frames each.
fn honest(frames: &[Frame]) -> Vec<Bytes> {
    let mut sum = CopySum::default();
    let mut messages = Vec::new();
    for frames in frames.chunks(9) {
        let bytes: Vec<u8> = frames.iter().flat_map(compare::bytes).collect();
        sum.add(&bytes);
        let mut message = BytesMut::from(&encode_sum(FRAMES, sum)[..]);
        message.put_slice(&bytes);
        messages.push(message.freeze());
    }
    messages.push(encode_sum(ALL, sum));
    messages
}

fn flipped(messages: &[Bytes], message: usize, at: usize) -> Vec<Bytes> {
    let mut messages = messages.to_vec();
    let mut bytes = messages[message].to_vec();
    bytes[at] ^= 1;
    messages[message] = bytes.into();
    messages
}

fn transport(net: &SimNet, node: u32) -> Transport {
    net.transport(TransportConfig::new(NodeId(node), Some(ClusterId([7; 16]))))
}

#[test]
fn a_sender_of_damaged_or_unfinished_copies_is_refused_and_an_honest_one_believed() {
    block_on(async {
        let ((_source, whole), (_target, short)) = logs().await;
        let net = SimNet::new(1);
        let (sending, receiving) = (transport(&net, 1), transport(&net, 2));
        receiving.book().set(NodeId(1), SimNet::address(NodeId(1)));
        let throttle = || Arc::new(Throttle::new(0));
        let good = honest(&frames(&whole, 0).await[..=usize::try_from(X).unwrap()]);
        let last = good.len() - 1;
        let script = Arc::new(Mutex::new(Script::Messages(Vec::new())));
        let kinds = Kind::FIRST_RAFT..Kind::FIRST_SERVER;
        sending.register(kinds, Arc::new(Sender(Arc::clone(&script))));
        let copies = Copies::new(receiving.clone(), throttle());
        let from = whole.replica();
        let gaps = short.gaps();
        let [gap] = gaps[..] else {
            panic!("{gaps:?}");
        };
        let mut wrong = vec![
            Vec::new(),
            good[..last].to_vec(),
            good[1..].to_vec(),
            vec![good[last].clone()],
            vec![Bytes::from_static(&[NOTHING])],
            vec![Bytes::new()],
            vec![good[0].clone(), Bytes::from_static(&[9])],
        ];
        // The kind, the sums, a frame's header, its payload; of the first piece and of the end.
        wrong.extend([0, 2, 10, 13, 30, 89, 300].map(|at| flipped(&good, 0, at)));
        wrong.extend([0, 1, 12].map(|at| flipped(&good, last, at)));
        for (n, messages) in wrong.into_iter().enumerate() {
            *script.lock() = Script::Messages(messages);
            let fetched = copies.fetch(&short, from, gap).await;
            assert!(fetched.is_err(), "case {n}");
            assert_eq!(short.gaps(), gaps, "case {n}");
        }
        *script.lock() = Script::Honest(Copies::new(sending.clone(), throttle()), whole.clone());
        while let Some(gap) = short.gaps().first().copied() {
            copies.fetch(&short, from, gap).await.unwrap();
        }
        assert!(short.is_whole());
        let images = |frames: Vec<Frame>| frames.iter().map(compare::bytes).collect::<Vec<_>>();
        assert_eq!(
            images(frames(&short, 0).await),
            images(frames(&whole, 0).await)
        );
    });
}
