//! Installing a log-start descriptor on a replica that is behind the leader's log start.
//!
//! The order makes every crash in between harmless: what the log holds becomes durable first, so
//! that the view never outruns it unnoticed; then the view's state; then, last, the log start.
//! A crash before the last step leaves a replica whose view is ahead of its log, which opens like
//! any other and is sent the descriptor again.
//!
//! The data below X follows by itself: a log that begins above its data start says what it lacks
//! (`GroupLog::gaps`), before and after any restart, and the node fetches it from a peer.

use std::io;
use std::sync::Arc;

use openraft::type_config::alias::SnapshotMetaOf;
use trilog_storage::kv::WriteBatch;

use super::checkpoint::put_memberships;
use super::descriptor::{Descriptor, ViewState};
use super::state_machine::{StateMachine, Tail, last_of};
use crate::types::TypeConfig;
use crate::view::Home;

pub(super) async fn install(
    machine: &mut StateMachine,
    meta: &SnapshotMetaOf<TypeConfig>,
    descriptor: Descriptor,
) -> io::Result<()> {
    let Descriptor { base, view } = descriptor;
    let base = base.filter(|base| last_of(meta) == Some(base.start.purged));
    let base =
        base.ok_or_else(|| io::Error::other("a descriptor of another entry than its meta names"))?;
    if let Some(vote) = machine.log.state().vote {
        machine
            .log
            .save_vote(vote)
            .await
            .map_err(io::Error::other)?;
    }
    // A view that is ahead already keeps what it has: it folded the same entries.
    if let Some(view) = view.filter(|view| machine.folded.is_none_or(|own| own < view.at)) {
        replace_view(machine, view)?;
    }
    machine.kv.flush().await.map_err(io::Error::other)?;

    // The data start is the group's, whatever of it this replica holds: what it lacks is copied
    // from another, beginning as soon as this is durable.
    let start = base.start.clone();
    machine.applied = Tail::at(&start);
    let applied = (start.purged, start.next_offset);
    machine
        .log
        .set_log_start(start)
        .await
        .map_err(io::Error::other)?;
    *machine.base.lock() = Some(base);
    machine.status.applied(applied.0, applied.1);
    Ok(())
}

fn replace_view(machine: &mut StateMachine, state: ViewState) -> io::Result<()> {
    let mut batch = WriteBatch::new();
    batch.clear();
    let view = Arc::clone(&machine.view);
    view.lock()
        .restore(&state.state, &mut batch)
        .map_err(io::Error::other)?;
    machine.memberships = state.memberships;
    machine.folded = Some(state.at);
    put_memberships(&mut batch, &machine.memberships);
    if machine.home == Home::Checkpoint {
        machine.checkpoints.put_state(&mut batch, &state.state);
    }
    machine
        .kv
        .write(machine.status.group, state.at, batch)
        .map_err(io::Error::other)
}
