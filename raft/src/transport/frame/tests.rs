use proptest::prelude::*;

use super::*;

const MAX: usize = 1 << 20;

fn encoded(header: FrameHeader, payload: &[Bytes]) -> Vec<u8> {
    let mut out = header.over(payload).encode().to_vec();
    for slice in payload {
        out.extend_from_slice(slice);
    }
    out
}

fn header(op: Op, id: u64) -> FrameHeader {
    FrameHeader {
        code: 33,
        route: Route {
            group: GroupId(7),
            from: ReplicaId(1 << 32 | 4),
            to: ReplicaId(2 << 32 | 5),
        },
        argument: 1_500,
        ..FrameHeader::bare(op, id)
    }
}

fn op() -> impl Strategy<Value = Op> {
    (1u8..=10).prop_map(|byte| Op::from_u8(byte).unwrap())
}

/// Feeds `bytes` to a decoder in pieces of the given sizes, then the rest.
fn decode_in_pieces(
    bytes: &[u8],
    pieces: &[usize],
) -> Result<Vec<(FrameHeader, Bytes)>, FrameError> {
    let mut decoder = FrameDecoder::new(MAX);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().copied();
    while !rest.is_empty() {
        let len = pieces.next().unwrap_or(rest.len()).clamp(1, rest.len());
        let (piece, tail) = rest.split_at(len);
        buffer.extend_from_slice(piece);
        rest = tail;
        while let Some(frame) = decoder.next(&mut buffer)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_survive_any_cutting_of_the_byte_stream(
        messages in prop::collection::vec(
            (op(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..6_000)), 1..6),
        pieces in prop::collection::vec(1usize..700, 0..60),
    ) {
        let mut wire = Vec::new();
        for (op, id, payload) in &messages {
            let halves = payload.split_at(payload.len() / 3);
            let slices = [Bytes::copy_from_slice(halves.0), Bytes::copy_from_slice(halves.1)];
            wire.extend(encoded(header(*op, *id), &slices));
        }
        let frames = decode_in_pieces(&wire, &pieces).unwrap();
        prop_assert_eq!(frames.len(), messages.len());
        for ((head, payload), (op, id, sent)) in frames.iter().zip(&messages) {
            prop_assert_eq!((head.op, head.id), (*op, *id));
            prop_assert_eq!(head.route, header(*op, *id).route);
            prop_assert_eq!(&payload[..], &sent[..]);
        }
    }

    #[test]
    fn random_bytes_never_panic_and_never_make_a_frame(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let frames = decode_in_pieces(&bytes, &[]).unwrap_or_default();
        prop_assert!(frames.is_empty());
    }

    #[test]
    fn every_flip_in_a_covered_frame_is_found(bit in 0usize..(HEADER_LEN + 64) * 8) {
        let mut wire = encoded(header(Op::Call, 9), &[Bytes::from_static(&[3; 64])]);
        wire[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode_in_pieces(&wire, &[]).is_err());
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_anything_is_awaited() {
    let mut head = header(Op::Data, 1);
    head.payload_len = u32::MAX;
    let mut buffer = BytesMut::from(&head.encode()[..]);
    let refused = FrameDecoder::new(MAX).next(&mut buffer);
    assert_eq!(
        refused.unwrap_err(),
        FrameError::TooLong {
            len: u32::MAX as usize,
            max: MAX
        }
    );
}

#[test]
fn an_unknown_op_is_named() {
    let mut wire = header(Op::Ping, 0).encode();
    wire[4] = 77;
    let crc = crc32c::crc32c(&wire[..CRC_AT]);
    wire[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(decode_in_pieces(&wire, &[]), Err(FrameError::Op(77)));
}

#[test]
fn the_checksum_covers_only_the_head_of_a_long_stream_message() {
    let payload = Bytes::from(vec![5; COVERED + 100]);
    let mut wire = encoded(header(Op::Data, 1), &[payload]);
    let last = wire.len() - 1;
    wire[last] ^= 1;
    assert!(
        decode_in_pieces(&wire, &[]).is_ok(),
        "its own checksums tell"
    );
    wire[last] ^= 1;
    wire[HEADER_LEN + COVERED - 1] ^= 1;
    assert_eq!(decode_in_pieces(&wire, &[]), Err(FrameError::PayloadCrc));
}

#[test]
fn payload_is_sliced_from_the_read_buffer_and_not_copied() {
    let wire = encoded(header(Op::Data, 1), &[Bytes::from_static(&[9; 500])]);
    let mut buffer = BytesMut::from(&wire[..]);
    let start = buffer.as_ptr() as usize;
    let (_, payload) = FrameDecoder::new(MAX).next(&mut buffer).unwrap().unwrap();
    assert_eq!(payload.as_ptr() as usize, start + HEADER_LEN);
}

/// Frames as the first release sends them, kept for ever: one of each kind.
#[test]
fn frames_of_format_1_are_read_and_still_written_so() {
    let v1 = include_bytes!("../../../tests/fixtures/peer/v1/frames.bin");
    let routed = |op, id| FrameHeader {
        code: 0,
        argument: 0,
        ..header(op, id)
    };
    let coded = |code, header| FrameHeader { code, ..header };
    let data: Vec<u8> = (0..5_000_u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let credit = FrameHeader {
        argument: 5_000,
        ..FrameHeader::bare(Op::Credit, 11)
    };
    let sent: [(FrameHeader, &[u8]); 10] = [
        (FrameHeader::bare(Op::Ping, 0), b""),
        (header(Op::Call, 9), b"call"),
        (routed(Op::Reply, 9), b"reply"),
        (coded(5, routed(Op::Refused, 10)), b"why"),
        (coded(33, routed(Op::Open, 11)), b"open"),
        (routed(Op::Data, 11), &data),
        (credit, b""),
        (FrameHeader::bare(Op::End, 11), b""),
        (coded(6, FrameHeader::bare(Op::Reset, 12)), b""),
        (FrameHeader::bare(Op::Goodbye, 0), b""),
    ];
    let frames = decode_in_pieces(v1, &[]).unwrap();
    assert_eq!(frames.len(), sent.len());
    let mut today = Vec::new();
    for ((head, payload), (header, bytes)) in frames.iter().zip(&sent) {
        let slices = [Bytes::copy_from_slice(bytes)];
        assert_eq!(*head, header.over(&slices));
        assert_eq!(&payload[..], *bytes);
        today.extend(encoded(*header, &slices));
    }
    assert_eq!(today, v1);
}
