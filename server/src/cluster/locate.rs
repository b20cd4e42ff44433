//! Where starting points lie in many partitions at once, wherever they are led: looked up here,
//! or asked of the nodes that lead them, in one call each.
//!
//! ```text
//! question  u64 group | u8 kind of start | u64 its value
//! answer    u8 found | u64 offset | u64 log start | u64 end
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, StreamExt, stream};
use trilog_model::{GroupId, NodeId, Offset, Timestamp};
use trilog_raft::transport::{Lane, PeerCall, PeerHandler, PeerStream, Refusal, Route, Target};

use super::Cluster;
use super::kinds::LOCATE;
use crate::partition::{Partitions, Start};

const PATIENCE: Duration = Duration::from_secs(5);
/// Questions of one call at most.
const MAX_QUESTIONS: usize = 4_096;
/// Of one call, looked up at once: a time may have to be read from files.
const AT_ONCE: usize = 16;
const QUESTION_BYTES: usize = 17;
const ANSWER_BYTES: usize = 25;

/// Where a start lies, and what its partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    pub offset: Offset,
    pub log_start: Offset,
    /// The high watermark.
    pub end: Offset,
}

/// Which partition, and where in it.
type Question = (GroupId, Start);

impl Cluster {
    /// Where each start lies, in the order of the questions; none where the partition's leader
    /// could not say.
    pub async fn locate(&self, questions: &[Question]) -> Vec<Option<Located>> {
        let mut by_leader: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (place, (group, _)) in questions.iter().enumerate() {
            if let Some(leader) = self.leader(*group) {
                by_leader.entry(leader).or_default().push(place);
            }
        }
        let calls = by_leader.iter().flat_map(|(leader, places)| {
            let parts = places.chunks(MAX_QUESTIONS);
            parts.map(|part| self.locate_on(*leader, questions, part))
        });
        let mut answers = vec![None; questions.len()];
        for (place, answer) in join_all(calls).await.into_iter().flatten() {
            if let Some(slot) = answers.get_mut(place) {
                *slot = answer;
            }
        }
        answers
    }

    async fn locate_on(
        &self,
        leader: NodeId,
        questions: &[Question],
        places: &[usize],
    ) -> Vec<(usize, Option<Located>)> {
        let asked = places.iter().filter_map(|place| questions.get(*place));
        let asked: Vec<Question> = asked.copied().collect();
        let answers = if leader == self.node() {
            look_up(self.partitions(), asked).await
        } else {
            self.ask(leader, &asked).await
        };
        places.iter().copied().zip(answers).collect()
    }

    async fn ask(&self, leader: NodeId, asked: &[Question]) -> Vec<Option<Located>> {
        let target = Target {
            node: leader,
            lane: Lane::Live,
            kind: LOCATE,
            route: Route::default(),
        };
        let mut payload = BytesMut::with_capacity(asked.len() * QUESTION_BYTES);
        for (group, start) in asked {
            put_question(&mut payload, *group, *start);
        }
        let transport = self.controller().transport();
        let answer = transport.call(target, vec![payload.freeze()], PATIENCE);
        // A node that does not know the question, or does not answer, leaves all of them open.
        let mut answer = answer.await.unwrap_or_default();
        asked.iter().map(|_| read_answer(&mut answer)).collect()
    }
}

async fn look_up(partitions: &Partitions, asked: Vec<Question>) -> Vec<Option<Located>> {
    let each = asked.into_iter().map(|(group, start)| async move {
        let partition = partitions.get(group)?;
        if !partition.leader().1 {
            return None;
        }
        let offset = partition.locate(start).await.ok()?;
        Some(Located {
            offset,
            log_start: partition.log_start(),
            end: partition.watch().borrow().offset,
        })
    });
    stream::iter(each).buffered(AT_ONCE).collect().await
}

fn put_question(payload: &mut BytesMut, group: GroupId, start: Start) {
    payload.put_u64(group.get());
    let (kind, value) = match start {
        Start::Offset(offset) => (0, offset.get()),
        Start::Earliest => (1, 0),
        Start::Latest => (2, 0),
        Start::RecordTime(millis) => (3, millis.cast_unsigned()),
        Start::AppendTime(time) => (4, time.nanos()),
    };
    payload.put_u8(kind);
    payload.put_u64(value);
}

fn read_question(payload: &mut Bytes) -> Option<Question> {
    let group = GroupId(payload.try_get_u64().ok()?);
    let (kind, value) = (payload.try_get_u8().ok()?, payload.try_get_u64().ok()?);
    let start = match kind {
        0 => Start::Offset(Offset(value)),
        1 => Start::Earliest,
        2 => Start::Latest,
        3 => Start::RecordTime(value.cast_signed()),
        4 => Start::AppendTime(Timestamp(value)),
        _ => return None,
    };
    Some((group, start))
}

fn put_answer(answer: &mut BytesMut, located: Option<Located>) {
    let offsets = located.map_or([0; 3], |located| {
        [located.offset, located.log_start, located.end].map(Offset::get)
    });
    answer.put_u8(located.is_some().into());
    for offset in offsets {
        answer.put_u64(offset);
    }
}

fn read_answer(answer: &mut Bytes) -> Option<Located> {
    if answer.len() < ANSWER_BYTES {
        answer.clear();
        return None;
    }
    let found = answer.get_u8() != 0;
    let located = Located {
        offset: Offset(answer.get_u64()),
        log_start: Offset(answer.get_u64()),
        end: Offset(answer.get_u64()),
    };
    found.then_some(located)
}

/// Looks up for other nodes.
#[derive(Clone, Debug)]
pub(super) struct LocateService {
    partitions: Partitions,
}

impl LocateService {
    pub(super) fn new(partitions: Partitions) -> Self {
        Self { partitions }
    }
}

impl PeerHandler for LocateService {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let partitions = self.partitions.clone();
        async move {
            let mut payload = call.payload;
            let mut asked = Vec::new();
            while !payload.is_empty() {
                match read_question(&mut payload) {
                    Some(question) if asked.len() < MAX_QUESTIONS => asked.push(question),
                    _ => return Err(Refusal::Failed("these are no questions".to_owned())),
                }
            }
            let mut answer = BytesMut::with_capacity(asked.len() * ANSWER_BYTES);
            for located in look_up(&partitions, asked).await {
                put_answer(&mut answer, located);
            }
            Ok(vec![answer.freeze()])
        }
        .boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        stream.refuse(&Refusal::Unserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_survive_the_trip_and_parts_of_them_are_none() {
        let starts = [
            Start::Offset(Offset(7)),
            Start::Earliest,
            Start::Latest,
            Start::RecordTime(-5),
            Start::AppendTime(Timestamp(9)),
        ];
        for start in starts {
            let mut payload = BytesMut::new();
            put_question(&mut payload, GroupId(3), start);
            assert_eq!(payload.len(), QUESTION_BYTES);
            let whole = payload.freeze();
            assert_eq!(read_question(&mut whole.clone()), Some((GroupId(3), start)));
            for end in 0..QUESTION_BYTES {
                assert_eq!(read_question(&mut whole.slice(..end)), None);
            }
        }
        let located = Located {
            offset: Offset(5),
            log_start: Offset(2),
            end: Offset(9),
        };
        let mut answer = BytesMut::new();
        put_answer(&mut answer, Some(located));
        put_answer(&mut answer, None);
        let mut answer = answer.freeze();
        assert_eq!(answer.len(), 2 * ANSWER_BYTES);
        assert_eq!(read_answer(&mut answer), Some(located));
        assert_eq!(read_answer(&mut answer), None);
        assert_eq!(read_answer(&mut Bytes::from_static(b"short")), None);
    }
}
