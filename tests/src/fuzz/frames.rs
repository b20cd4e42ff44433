//! Frames: of the log, as a damaged disk might return them, and of the links between nodes, as
//! anybody might send them.

use bytes::{Bytes, BytesMut};
use trilog_raft::transport::{FrameDecoder, HEADER_LEN as PEER_HEADER_LEN};
use trilog_storage::frame::{BATCH_PREFIX_LEN, Frame, FrameHeader, HEADER_LEN};

/// Where the headers hold their own checksum, the last field of each.
const LOG_CRC_AT: usize = HEADER_LEN - 4;

/// Reads `bytes` as frames of the log, one after the other.
pub fn log_frames(bytes: &[u8]) {
    read_log(bytes);
    let mut repaired = bytes.to_vec();
    if let Some(crc_field) = repaired.get(..LOG_CRC_AT).map(crc32c::crc32c) {
        if let Some(field) = repaired.get_mut(LOG_CRC_AT..HEADER_LEN) {
            field.copy_from_slice(&crc_field.to_le_bytes());
        }
        read_log(&repaired);
    }
}

fn read_log(bytes: &[u8]) {
    let mut rest = Bytes::copy_from_slice(bytes);
    loop {
        let before = rest.len();
        let Ok(frame) = Frame::decode(&mut rest) else {
            assert_eq!(rest.len(), before, "an error takes nothing");
            return;
        };
        assert_eq!(before - rest.len(), frame.header.frame_len());
        let mut slices = Vec::new();
        frame.push_slices(&mut slices);
        let written = slices.concat();
        assert_eq!(FrameHeader::decode(&written), Ok(frame.header));
        let Ok(again) = Frame::decode(&mut Bytes::from(written)) else {
            panic!("what was written cannot be read");
        };
        // The batch's own first bytes are derived from the header.
        let body = |frame: &Frame| frame.records.get(BATCH_PREFIX_LEN..).map(<[u8]>::to_vec);
        assert_eq!(body(&again), body(&frame));
        assert_eq!(again.command, frame.command);
    }
}

/// Feeds `bytes` to a link's decoder, whole and in pieces: both must see the same frames.
pub fn peer_frames(bytes: &[u8]) {
    const MAX_PAYLOAD: usize = 1 << 16;
    let whole = decode_peer(bytes, bytes.len().max(1), MAX_PAYLOAD);
    let piece = usize::from(bytes.first().copied().unwrap_or(0) % 61) + 1;
    let pieces = decode_peer(bytes, piece, MAX_PAYLOAD);
    assert_eq!(whole, pieces, "in pieces of {piece}");
}

/// The frames' payloads and, at the end, whether the bytes were refused.
fn decode_peer(bytes: &[u8], piece: usize, max_payload: usize) -> (Vec<Bytes>, bool) {
    let mut decoder = FrameDecoder::new(max_payload);
    let mut buffer = BytesMut::new();
    let mut payloads = Vec::new();
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some((header, payload))) => {
                    assert_eq!(header.payload_len as usize, payload.len());
                    payloads.push(payload);
                }
                Ok(None) => {
                    assert!(decoder.wanted() <= max_payload.max(PEER_HEADER_LEN));
                    break;
                }
                Err(_) => return (payloads, true),
            }
        }
    }
    (payloads, false)
}
