use std::collections::BTreeSet;

use openraft::impls::leader_id_std::LeaderId;
use proptest::prelude::*;
use trilog_model::{EntryId, GroupId, Offset};
use trilog_storage::frame::FrameKind;

use super::*;
use crate::types::{Membership, log_id};

fn vote(term: u64, voted_for: u64, committed: bool) -> RaftVote {
    RaftVote {
        leader_id: LeaderId { term, voted_for },
        committed,
    }
}

fn id(term: u64, index: u64) -> LogId {
    log_id(EntryId::new(term, index))
}

fn data(index: u64, records: &'static [u8], command: &'static [u8]) -> Frame {
    let mut frame = Frame::bare(
        FrameKind::Data,
        GroupId(5),
        EntryId::new(3, index),
        command.into(),
    );
    frame.header.base_offset = Offset(100);
    if !records.is_empty() {
        frame.header.record_count = 1;
        frame.header.records_len = u32::try_from(records.len()).unwrap();
        frame.header.records_crc = crc32c::crc32c(&records[BATCH_PREFIX_LEN..]);
        frame.records = Bytes::from_static(records);
    }
    frame
}

fn membership_frame(index: u64) -> Frame {
    let membership = Membership::new_with_defaults(vec![BTreeSet::from([1, 2, 3])], []);
    Frame::bare(
        FrameKind::Membership,
        GroupId(5),
        EntryId::new(3, index),
        encode_membership(&membership),
    )
}

fn append() -> AppendEntriesRequest<TypeConfig> {
    let frames = [
        Frame::bare(
            FrameKind::Blank,
            GroupId(5),
            EntryId::new(3, 8),
            Bytes::new(),
        ),
        data(9, &[7; 100], b"facts"),
        data(10, &[8; 64], b""),
        data(11, b"", b"only a command"),
        membership_frame(12),
    ];
    AppendEntriesRequest {
        vote: vote(3, 9, true),
        prev_log_id: Some(id(2, 7)),
        entries: frames
            .into_iter()
            .map(|frame| Entry::stored(frame).unwrap())
            .collect(),
        leader_commit: Some(id(2, 6)),
    }
}

fn whole(slices: &[Bytes]) -> Bytes {
    slices.concat().into()
}

#[test]
fn an_append_survives_the_round_trip_with_every_kind_of_entry() {
    let sent = append();
    let got = decode_append(whole(&encode_append(sent.clone()).unwrap())).unwrap();
    assert_eq!(got.vote, sent.vote);
    assert_eq!(got.prev_log_id, sent.prev_log_id);
    assert_eq!(got.leader_commit, sent.leader_commit);
    assert_eq!(got.entries.len(), sent.entries.len());
    for (got, sent) in got.entries.iter().zip(&sent.entries) {
        assert_eq!(got.header(), sent.header());
        assert_eq!(
            openraft::entry::RaftEntry::get_membership(got),
            openraft::entry::RaftEntry::get_membership(sent)
        );
    }
}

#[test]
fn an_append_shares_the_payload_both_ways() {
    let sent = append();
    let Payload::Stored { frame, .. } = &sent.entries[1].payload else {
        unreachable!("the second entry is stored");
    };
    let body = frame.records[BATCH_PREFIX_LEN..].as_ptr();
    let slices = encode_append(sent.clone()).unwrap();
    assert!(slices.iter().any(|slice| slice.as_ptr() == body));

    let received = whole(&slices);
    let range = received.as_ptr_range();
    let got = decode_append(received.clone()).unwrap();
    for entry in &got.entries {
        let Payload::Stored { frame, .. } = &entry.payload else {
            unreachable!("what is received is stored");
        };
        if !frame.records.is_empty() {
            assert!(range.contains(&frame.records.as_ptr()));
        }
    }
}

#[test]
fn every_truncated_append_is_refused() {
    let bytes = whole(&encode_append(append()).unwrap());
    for len in 0..bytes.len() {
        assert!(decode_append(bytes.slice(..len)).is_err(), "at {len}");
    }
}

#[test]
fn an_append_whose_entries_are_not_consecutive_is_refused() {
    let mut request = append();
    request.entries.remove(1);
    let bytes = whole(&encode_append(request).unwrap());
    assert!(matches!(
        decode_append(bytes),
        Err(CodecError::Value { value: 10, .. })
    ));
}

#[test]
fn an_entry_count_beyond_the_message_allocates_nothing() {
    let mut request = append();
    request.entries.clear();
    let mut bytes = whole(&encode_append(request).unwrap()).to_vec();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        decode_append(bytes.into()),
        Err(CodecError::Truncated)
    ));
}

#[test]
fn votes_and_their_replies_survive_the_round_trip() {
    let mut request = VoteRequest::new(vote(7, 2, false), Some(id(6, 90)));
    request.leadership_transfer = true;
    assert_eq!(decode_vote(encode_vote(&request)).unwrap(), request);
    let reply = VoteResponse::new(vote(7, 2, false), None, true);
    assert_eq!(decode_vote_reply(encode_vote_reply(&reply)).unwrap(), reply);
}

#[test]
fn every_kind_of_append_reply_survives_the_round_trip() {
    let replies: [AppendReply; 4] = [
        Ok(None),
        Ok(Some(id(3, 4))),
        Err(StreamAppendError::Conflict(id(3, 4))),
        Err(StreamAppendError::HigherVote(vote(9, 1, false))),
    ];
    for reply in replies {
        assert_eq!(
            decode_append_reply(encode_append_reply(&reply)).unwrap(),
            reply
        );
    }
}

#[test]
fn transfers_and_their_replies_survive_the_round_trip() {
    let request = TransferLeaderRequest::new(vote(3, 1, true), 2, Some(id(3, 44)));
    assert_eq!(decode_transfer(encode_transfer(&request)).unwrap(), request);
    let replies: [TransferReply; 3] = [
        Ok(()),
        Err(TransferLeaderError::VoteChanged {
            expected: vote(3, 1, true),
            actual: vote(4, 3, false),
        }),
        Err(TransferLeaderError::LogNotFlushed {
            expected: Some(id(3, 44)),
            actual: None,
        }),
    ];
    for reply in replies {
        let bytes = encode_transfer_reply(&reply);
        assert_eq!(decode_transfer_reply(&request, bytes).unwrap(), reply);
    }
}

#[test]
fn a_snapshot_survives_the_round_trip_and_none_beyond_its_vote_is_taken() {
    let membership = Membership::new_with_defaults(vec![BTreeSet::from([1, 2])], [3]);
    let mut message = SnapshotMessage {
        vote: vote(5, 1, true),
        last: id(4, 80),
        membership: StoredMembership::new(Some(id(2, 3)), membership),
        descriptor: Bytes::from_static(b"descriptor"),
    };
    let got = decode_snapshot(whole(&encode_snapshot(&message))).unwrap();
    assert_eq!(got.vote, message.vote);
    assert_eq!(got.last, message.last);
    assert_eq!(got.membership, message.membership);
    assert_eq!(got.descriptor, message.descriptor);

    message.last = id(6, 80);
    assert!(decode_snapshot(whole(&encode_snapshot(&message))).is_err());
}

proptest! {
    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        let bytes = Bytes::from(bytes);
        let _ = decode_append(bytes.clone());
        let _ = decode_append_reply(bytes.clone());
        let _ = decode_vote(bytes.clone());
        let _ = decode_vote_reply(bytes.clone());
        let _ = decode_snapshot(bytes.clone());
        let _ = decode_snapshot_reply(bytes.clone());
        let _ = decode_transfer(bytes);
    }

    #[test]
    fn a_flipped_bit_in_an_append_is_found_or_harmless(bit in 0usize..2_000) {
        let mut bytes = whole(&encode_append(append()).unwrap()).to_vec();
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(got) = decode_append(bytes.into()) {
            // Only the unprotected head may differ; no entry may.
            for (got, sent) in got.entries.iter().zip(&append().entries) {
                prop_assert_eq!(got.header(), sent.header());
            }
        }
    }
}
