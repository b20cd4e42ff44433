//! A consumer of a few lines that speaks Kafka, to see what a fetch takes of a node: it looks at no
//! record but for its place.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The version of Fetch that is spoken, the oldest.
const FETCH: i16 = 1;
const VERSION: i16 = 4;
/// The most of an answer, and of one partition in it.
const MAX_BYTES: i32 = 16 << 20;
const MAX_PARTITION_BYTES: i32 = 4 << 20;
/// Where a batch says how long it is behind that, and what its last offset is.
const LENGTH_AT: usize = 8;
const DELTA_AT: usize = 23;
const BATCH_HEADER: usize = 61;

/// Reads what a node leads of a topic, from its start to its end; bytes of record batches.
pub(super) async fn drain(node: SocketAddr, topic: &str, partitions: u32) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(node).await?;
    stream.set_nodelay(true)?;
    let mut offsets = vec![0; usize::try_from(partitions)?];
    let mut all = 0;
    loop {
        stream.write_all(&request(topic, &offsets)?).await?;
        let length = stream.read_u32().await?;
        let mut answer = BytesMut::zeroed(usize::try_from(length)?);
        stream.read_exact(&mut answer).await?;
        let read = take(answer.freeze(), &mut offsets).context("reading an answer to a fetch")?;
        if read == 0 {
            return Ok(all);
        }
        all += read;
    }
}

fn request(topic: &str, offsets: &[i64]) -> anyhow::Result<Bytes> {
    let mut out = BytesMut::new();
    out.put_u32(0);
    out.put_i16(FETCH);
    out.put_i16(VERSION);
    // Correlation id, and no client id.
    out.put_i32(1);
    out.put_i16(-1);
    // Of a consumer, which waits for nothing and takes what is not committed.
    out.put_i32(-1);
    out.put_i32(0);
    out.put_i32(0);
    out.put_i32(MAX_BYTES);
    out.put_i8(0);
    out.put_i32(1);
    out.put_i16(i16::try_from(topic.len())?);
    out.put_slice(topic.as_bytes());
    out.put_i32(i32::try_from(offsets.len())?);
    for (index, offset) in (0..).zip(offsets) {
        out.put_i32(index);
        out.put_i64(*offset);
        out.put_i32(MAX_PARTITION_BYTES);
    }
    let length = u32::try_from(out.len() - size_of::<u32>())?;
    let start = out.first_chunk_mut().context("a request has a length")?;
    *start = length.to_be_bytes();
    Ok(out.freeze())
}

/// Goes on behind what an answer holds; bytes of that.
fn take(mut answer: Bytes, offsets: &mut [i64]) -> anyhow::Result<u64> {
    let mut all = 0;
    let (_correlation, _throttle) = (answer.try_get_i32()?, answer.try_get_i32()?);
    for _ in 0..answer.try_get_i32()? {
        let name = usize::try_from(answer.try_get_i16()?)?;
        ensure!(answer.remaining() >= name, "it ends in a name");
        answer.advance(name);
        for _ in 0..answer.try_get_i32()? {
            let index = usize::try_from(answer.try_get_i32()?)?;
            // Of what others lead this node says only that.
            let _code = answer.try_get_i16()?;
            let (_high_watermark, _last_stable) = (answer.try_get_i64()?, answer.try_get_i64()?);
            let aborted = answer.try_get_i32()?;
            ensure!(aborted <= 0, "there are transactions in what was filled");
            let length = usize::try_from(answer.try_get_i32()?.max(0))?;
            ensure!(answer.remaining() >= length, "it ends in records");
            let records = answer.split_to(length);
            all += u64::try_from(length)?;
            let offset = offsets
                .get_mut(index)
                .context("of a partition not asked for")?;
            *offset = end(&records)?.unwrap_or(*offset);
        }
    }
    Ok(all)
}

/// The offset behind the last of some batches; the last one may be cut off.
fn end(mut records: &[u8]) -> anyhow::Result<Option<i64>> {
    let mut end = None;
    while records.len() >= BATCH_HEADER {
        let base = field(records, 0).map(i64::from_be_bytes)?;
        let length = field(records, LENGTH_AT).map(i32::from_be_bytes)?;
        let delta = field(records, DELTA_AT).map(i32::from_be_bytes)?;
        let whole = LENGTH_AT + size_of::<i32>() + usize::try_from(length)?;
        let Some(rest) = records.get(whole..) else {
            break;
        };
        end = Some(base + i64::from(delta) + 1);
        records = rest;
    }
    Ok(end)
}

fn field<const N: usize>(records: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    let found = records.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().context("a batch ends in its header")
}

#[cfg(test)]
mod tests {
    use trilog_model::batch::{BatchBuilder, Compression};

    use super::*;

    #[test]
    fn the_offset_behind_some_batches_is_that_of_the_last_whole_one() {
        let mut builder = BatchBuilder::new(Compression::None);
        for value in [b"a", b"b", b"c"] {
            builder.push(1, None, Some(value), &[]).unwrap();
        }
        let batch = builder.build().unwrap();
        let mut second = batch.to_vec();
        second[..8].copy_from_slice(&40_i64.to_be_bytes());
        let both = [&batch[..], &second].concat();
        assert_eq!(end(&both).unwrap(), Some(43));
        assert_eq!(end(&both[..both.len() - 1]).unwrap(), Some(3));
        assert_eq!(end(&[]).unwrap(), None);
    }
}
