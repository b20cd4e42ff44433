//! What the write-ahead log says about a group besides its entries: frames of their own kinds.
//!
//! ```text
//! Vote          term; command: node u64, committed u8
//! Truncate      index kept last; flag 0: nothing is kept
//! LogStart      term, index of X; base offset; append time; flag 0: the log was emptied;
//!               command: data start u64, then the caller's meta
//! GroupCreated  command: replica u64
//! GroupRemoved  command: replica u64
//! Committed     index
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trilog_model::{EntryId, GroupId, LogIndex, Offset, ReplicaId, Term};

use super::types::{LogStart, Vote};
use crate::frame::{Frame, FrameKind, NUMBER_MAX};

/// Flag bit 0 of a truncation (keep nothing) and of a log start (the log was emptied).
const WHOLE: u16 = 1;

/// A note, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Vote(Vote),
    /// Entries from here on are gone.
    Cut(LogIndex),
    LogStart {
        start: LogStart,
        emptied: bool,
    },
    Created(ReplicaId),
    Removed(ReplicaId),
    /// Entries below this are committed.
    Committed(LogIndex),
}

impl Note {
    pub(crate) fn to_frame(&self, group: GroupId) -> Frame {
        match self {
            Self::Vote(vote) => {
                let mut command = BytesMut::with_capacity(9);
                command.put_u64_le(vote.node.0);
                command.put_u8(u8::from(vote.committed));
                let id = EntryId {
                    term: vote.term,
                    index: LogIndex(0),
                };
                Frame::bare(FrameKind::Vote, group, id, command.freeze())
            }
            Self::Cut(end) => {
                let kept = end.get().checked_sub(1);
                let id = EntryId::new(0, kept.unwrap_or(0));
                let mut frame = Frame::bare(FrameKind::Truncate, group, id, Bytes::new());
                frame.header.flags = if kept.is_none() { WHOLE } else { 0 };
                frame
            }
            Self::LogStart { start, emptied } => {
                let mut command = BytesMut::with_capacity(8 + start.meta.len());
                command.put_u64_le(start.data_start.get());
                command.put_slice(&start.meta);
                let mut frame =
                    Frame::bare(FrameKind::LogStart, group, start.purged, command.freeze());
                frame.header.flags = if *emptied { WHOLE } else { 0 };
                frame.header.base_offset = start.next_offset;
                frame.header.append_time = start.next_time;
                frame
            }
            Self::Created(replica) => replica_frame(FrameKind::GroupCreated, group, *replica),
            Self::Removed(replica) => replica_frame(FrameKind::GroupRemoved, group, *replica),
            Self::Committed(end) => {
                let id = EntryId::new(0, end.get().saturating_sub(1));
                Frame::bare(FrameKind::Committed, group, id, Bytes::new())
            }
        }
    }

    /// Reads a frame that is no entry; `None` if this build cannot tell what it says.
    pub(crate) fn from_frame(frame: &Frame) -> Option<Self> {
        let header = &frame.header;
        let mut command = frame.command.clone();
        Some(match header.kind {
            FrameKind::Vote => Self::Vote(Vote {
                term: header.term,
                node: ReplicaId(command.try_get_u64_le().ok()?),
                committed: command.try_get_u8().ok()? != 0,
            }),
            FrameKind::Truncate if header.flags & WHOLE != 0 => Self::Cut(LogIndex(0)),
            FrameKind::Truncate => Self::Cut(header.index.next()),
            FrameKind::LogStart => Self::LogStart {
                emptied: header.flags & WHOLE != 0,
                start: LogStart {
                    purged: header.id(),
                    next_offset: header.base_offset,
                    next_time: header.append_time,
                    data_start: Offset(
                        command
                            .try_get_u64_le()
                            .ok()
                            .filter(|offset| *offset <= NUMBER_MAX)?,
                    ),
                    meta: command,
                },
            },
            FrameKind::GroupCreated => Self::Created(ReplicaId(command.try_get_u64_le().ok()?)),
            FrameKind::GroupRemoved => Self::Removed(ReplicaId(command.try_get_u64_le().ok()?)),
            FrameKind::Committed => Self::Committed(header.index.next()),
            FrameKind::Blank
            | FrameKind::Data
            | FrameKind::Membership
            | FrameKind::Removed
            | FrameKind::Pointer => return None,
        })
    }
}

fn replica_frame(kind: FrameKind, group: GroupId, replica: ReplicaId) -> Frame {
    let id = EntryId {
        term: Term(0),
        index: LogIndex(0),
    };
    let command = Bytes::copy_from_slice(&replica.0.to_le_bytes());
    Frame::bare(kind, group, id, command)
}

#[cfg(test)]
mod tests {
    use trilog_model::Timestamp;

    use super::*;

    #[test]
    fn every_note_survives_the_round_trip() {
        let start = LogStart {
            purged: EntryId::new(3, 17),
            next_offset: Offset(400),
            next_time: Timestamp(12_345),
            data_start: Offset(100),
            meta: Bytes::from_static(b"members"),
        };
        let vote = Vote {
            term: Term(9),
            node: ReplicaId(77),
            committed: true,
        };
        for note in [
            Note::Vote(vote),
            Note::Cut(LogIndex(0)),
            Note::Cut(LogIndex(5)),
            Note::LogStart {
                start,
                emptied: true,
            },
            Note::Created(ReplicaId(8)),
            Note::Removed(ReplicaId(8)),
            Note::Committed(LogIndex(6)),
        ] {
            let frame = note.to_frame(GroupId(4));
            frame.verify().unwrap();
            assert_eq!(Note::from_frame(&frame), Some(note));
        }
    }

    #[test]
    fn a_note_cut_short_is_not_understood() {
        let mut frame = Note::Created(ReplicaId(8)).to_frame(GroupId(4));
        frame.command = frame.command.slice(..7);
        assert_eq!(Note::from_frame(&frame), None);
    }
}
