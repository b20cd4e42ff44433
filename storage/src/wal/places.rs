//! Where the rounds of a log file lie: for whoever damages what was durable, to see that it is
//! noticed, and must spare what nobody can tell from a torn tail.

use std::ops::Range;

use super::format::{BLOCK, FileHeader, HEADER_LEN, RoundHeader, padded};

/// A file that has been begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlaces {
    pub file: u64,
    /// All rounds before this one are durable: the file's header says so.
    pub first_round: u64,
    /// The bytes of the header.
    pub header: Range<usize>,
    /// In order, up to the first that is not whole.
    pub rounds: Vec<RoundPlace>,
}

/// One round, without its padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundPlace {
    pub round: u64,
    /// The newest round that was durable when this one was written.
    pub durable: u64,
    pub bytes: Range<usize>,
}

/// What lies where in a log file, as its headers say; `None` if it was never begun.
#[must_use]
pub fn places(bytes: &[u8]) -> Option<FilePlaces> {
    let header = FileHeader::decode(bytes).ok()?;
    let mut rounds = Vec::new();
    let mut pos = BLOCK;
    while let Some(Ok(round)) = bytes.get(pos..).map(RoundHeader::decode) {
        if (round.file, round.signature) != (header.file, header.signature) {
            break;
        }
        rounds.push(RoundPlace {
            round: round.round,
            durable: round.durable,
            bytes: pos..pos + round.len(),
        });
        pos += padded(round.len());
    }
    Some(FilePlaces {
        file: header.file,
        first_round: header.first_round,
        header: 0..HEADER_LEN,
        rounds,
    })
}
