//! Ways of spoiling what a cluster said of itself: where groups are, how far keys are committed, what
//! replicas hold.

use trilog_jepsen::history::{Event, Function, Key, Mop, Note, Op, Stage, What};

use super::{A, acks, any, op, op_mut, plant};

pub(super) fn group_regress(events: &mut Vec<Event>) -> Option<()> {
    let mut planted = Vec::new();
    for (f, offset) in [
        (Function::Commit, 10),
        (Function::Commit, 20),
        (Function::Committed, 10),
    ] {
        for stage in [Stage::Invoke, Stage::Ok] {
            let known = f == Function::Commit || stage == Stage::Ok;
            planted.push(What::Op(Op {
                group: Some("others".to_owned()),
                offsets: if known { vec![(A, offset)] } else { Vec::new() },
                ..Op::new(stage, 900, f)
            }));
        }
    }
    plant(events, planted)
}

/// What an operation did to a group's offset of a key, or was told of it.
struct Place {
    began: usize,
    ended: usize,
    key: Key,
    offset: u64,
    stage: Stage,
    is_told: bool,
}

/// By the events in which their operations ended.
fn places(events: &[Event]) -> Vec<Place> {
    let mut began = std::collections::BTreeMap::new();
    let mut places = Vec::new();
    for (ended, event) in events.iter().enumerate() {
        let Some(op) = op(event) else { continue };
        if op.stage == Stage::Invoke {
            began.insert(op.process, ended);
            continue;
        }
        for (key, offset) in &op.offsets {
            places.push(Place {
                began: began[&op.process],
                ended,
                key: *key,
                offset: *offset,
                stage: op.stage,
                is_told: op.f == Function::Committed,
            });
        }
    }
    places
}

/// The group is found at the start of a key where it had committed something else, and nobody can
/// have set it back there.
pub(super) fn offset_gone(events: &mut Vec<Event>, seed: u64, in_the_end: bool) -> Option<()> {
    let all = places(events);
    let (looks, mut changes): (Vec<&Place>, Vec<&Place>) =
        all.iter().partition(|place| place.is_told);
    changes.retain(|change| change.stage != Stage::Fail);
    let is_gone = |look: &&&Place| {
        let of_key = changes.iter().filter(|change| change.key == look.key);
        let set_back = of_key.clone().filter(|change| change.offset == 0);
        let until = set_back.map(|change| match change.stage {
            Stage::Ok => change.ended,
            _ => usize::MAX,
        });
        let until = until.max().map_or(0, |ended| ended.saturating_add(1));
        let mut acknowledged = of_key.filter(|change| change.stage == Stage::Ok);
        acknowledged
            .any(|change| change.offset > 0 && change.began >= until && change.ended < look.began)
    };
    let last = looks.iter().map(|look| look.ended).max();
    let gone = looks.iter().filter(is_gone);
    let gone = gone.filter(|look| !in_the_end || Some(look.ended) == last);
    let gone: Vec<(usize, Key)> = gone.map(|look| (look.ended, look.key)).collect();
    let (event, key) = any(&gone, seed)?;
    let offsets = &mut op_mut(&mut events[event]).offsets;
    for (_, offset) in offsets.iter_mut().filter(|(of, _)| *of == key) {
        *offset = 0;
    }
    Some(())
}

fn high_watermark(events: &[Event], key: Key, high_watermark: u64, linearizable: bool) -> What {
    let last = events.last().map_or(0, |event| event.time);
    What::Note(Note::HighWatermark {
        key,
        node: 3,
        boot: 0,
        high_watermark,
        began: last,
        linearizable,
    })
}

pub(super) fn hw_below_ack(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let ack = any(&acks(events), seed)?;
    let what = high_watermark(events, ack.key, ack.offset, true);
    let time = events.last()?.time;
    events.push(Event {
        index: 0,
        time,
        what,
    });
    Some(())
}

pub(super) fn hw_below_itself(events: &mut Vec<Event>) -> Option<()> {
    for (nth, value) in [(0, 10), (1, 9)] {
        let time = events.last()?.time + nth * 1_000;
        let mut what = high_watermark(events, A, value, false);
        if let What::Note(Note::HighWatermark { began, .. }) = &mut what {
            *began = time;
        }
        events.push(Event {
            index: 0,
            time: time + 10,
            what,
        });
    }
    Some(())
}

pub(super) fn stale_ack(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let all = acks(events);
    let mut early = all.clone();
    early.retain(|ack| {
        all.iter()
            .any(|o| o.key == ack.key && o.offset > ack.offset)
    });
    let ack = any(&early, seed)?;
    if let Mop::Send { term, .. } = &mut op_mut(&mut events[ack.event]).mops[ack.mop] {
        *term = Some(1_000);
    }
    Some(())
}

pub(super) fn diverge(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    spoil_note(events, seed, |note| match note {
        Note::Replica { checksum, .. } => {
            checksum.push('x');
            true
        }
        _ => false,
    })
}

pub(super) fn gap(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    spoil_note(events, seed, |note| match note {
        Note::Boundary {
            tiered_end: Some(_),
            local_start,
            ..
        } => {
            *local_start += 1;
            true
        }
        _ => false,
    })
}

/// Spoils one of the notes that `spoil` can spoil.
fn spoil_note(events: &mut [Event], seed: u64, spoil: fn(&mut Note) -> bool) -> Option<()> {
    let spoilt = |event: &Event| match event.what.clone() {
        What::Note(mut note) => spoil(&mut note).then_some(note),
        What::Op(_) => None,
    };
    let places: Vec<usize> = (0..events.len())
        .filter(|n| spoilt(&events[*n]).is_some())
        .collect();
    let place = any(&places, seed)?;
    events[place].what = What::Note(spoilt(&events[place])?);
    Some(())
}
