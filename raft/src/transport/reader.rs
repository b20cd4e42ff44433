//! The reader of a link: reads into large buffers, cuts frames out of them, hands them on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use super::frame::{FrameDecoder, FrameHeader, Op};
use super::link::Link;
use super::net::ReadHalf;
use super::peer::{PeerError, Refusal};
use super::service::Service;
use super::stats::{Counters, count};
use super::stream::link_cost;

/// Bytes asked of the allocator at once; payload stays in these buffers until it is dropped.
const CHUNK: usize = 256 * 1024;
/// A buffer with less room than this is not read into any more.
const MIN_ROOM: usize = 16 * 1024;
/// Room made for a frame on the strength of its header alone; more only as its bytes arrive.
const EAGER: usize = 2 << 20;
/// With more than this waiting to be written, nothing more is read that may add to it.
const MAX_UNWRITTEN: usize = 4 << 20;
/// Ops that carry a refusal's text carry no more than this.
const MAX_SMALL_PAYLOAD: usize = 1024;

/// Reads until the connection ends or the peer breaks the protocol; returns why.
pub(super) async fn read_frames(
    link: Arc<Link>,
    mut read: ReadHalf,
    service: Option<Arc<Service>>,
    counters: Arc<Counters>,
) -> PeerError {
    let mut decoder = FrameDecoder::new(link.our_limits().max_payload as usize);
    let mut buffer = BytesMut::new();
    loop {
        make_room(&mut buffer, decoder.wanted());
        let got = match read.read_buf(&mut buffer).await {
            Ok(0) => return link.broken("the peer closed the connection"),
            Ok(got) => got,
            Err(error) => return link.broken(&error.to_string()),
        };
        link.heard.store(true, Ordering::Relaxed);
        count(&counters.reads, 1);
        count(&counters.bytes_in, got as u64);
        let mut frames = 0;
        let breach = loop {
            match decoder.next(&mut buffer) {
                Ok(None) => break None,
                Ok(Some((header, payload))) => {
                    frames += 1;
                    if let Err(breach) = dispatch(&link, service.as_ref(), &header, payload) {
                        break Some(breach.to_owned());
                    }
                }
                Err(error) => break Some(error.to_string()),
            }
        };
        count(&counters.frames_in, frames);
        if let Some(breach) = breach {
            count(&counters.protocol_errors, 1);
            tracing::warn!(node = %link.peer(), breach, "peer broke the link protocol");
            return link.broken(&breach);
        }
        if service.is_some() {
            link.outbox().wait_below(MAX_UNWRITTEN).await;
        }
    }
}

/// Makes room to read into, given how many bytes the frame under way needs in all.
fn make_room(buffer: &mut BytesMut, wanted: usize) {
    let room = buffer.capacity() - buffer.len();
    let missing = wanted.saturating_sub(buffer.len());
    // Room grows with what arrived, so that a length alone never claims much memory.
    let believed = missing.min(EAGER.max(buffer.len()));
    if room < MIN_ROOM.max(believed) {
        buffer.reserve(CHUNK.max(believed));
    }
}

/// Acts on one frame; an error is the peer's breach of the protocol.
fn dispatch(
    link: &Arc<Link>,
    service: Option<&Arc<Service>>,
    header: &FrameHeader,
    payload: Bytes,
) -> Result<(), &'static str> {
    let carries_payload = matches!(header.op, Op::Call | Op::Reply | Op::Data);
    if !carries_payload && payload.len() > MAX_SMALL_PAYLOAD {
        return Err("payload where none belongs");
    }
    if carries_payload {
        link.on_payload(payload.len())?;
    }
    match header.op {
        Op::Ping => {}
        Op::Goodbye => link.drain(),
        Op::Credit => link.on_credit(header.id, header.argument)?,
        Op::Data => match link.stream(header.id) {
            Some(stream) => stream.on_data(payload)?,
            // Its receiver is gone, and the sender does not know it yet.
            None => link.consumed(link_cost(payload.len())),
        },
        Op::End => {
            if link.stream(header.id).is_some_and(|stream| stream.on_end()) {
                link.forget_stream(header.id);
            }
        }
        Op::Reset => {
            let why = Refusal::from_wire(header.code, &payload)
                .map_or(PeerError::Closed, PeerError::Refused);
            if link
                .stream(header.id)
                .is_some_and(|stream| stream.on_reset(why))
            {
                link.forget_stream(header.id);
            }
        }
        Op::Reply => {
            link.consumed(link_cost(payload.len()));
            link.on_answer(header.id, Ok(payload));
        }
        Op::Refused => {
            let refusal = Refusal::from_wire(header.code, &payload).unwrap_or(Refusal::Busy);
            link.on_answer(header.id, Err(PeerError::Refused(refusal)));
        }
        Op::Call => service
            .ok_or("a call to the side that connected")?
            .on_call(header, payload),
        Op::Open => service
            .ok_or("a stream to the side that connected")?
            .on_open(header)?,
    }
    Ok(())
}
