//! The life of one link from handshake to end: owns its reader and writer tasks and watches that
//! both sides are alive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::frame::Op;
use super::limits::Timings;
use super::link::Link;
use super::net::BoxConn;
use super::outbox::OutFrame;
use super::peer::PeerError;
use super::reader::read_frames;
use super::service::Service;
use super::stats::{Counters, count};
use super::writer::write_frames;

/// Runs a link over a connection until it ends. Dropping the future breaks the link.
pub(super) async fn drive(
    link: Arc<Link>,
    conn: BoxConn,
    service: Option<Arc<Service>>,
    timings: Timings,
    counters: Arc<Counters>,
) {
    let _fail = FailOnDrop(Arc::clone(&link));
    let introduction = service
        .as_ref()
        .is_some_and(|service| service.is_introduction());
    let (read, write) = conn.split();
    let reader = tokio::spawn(read_frames(
        Arc::clone(&link),
        read,
        service,
        Arc::clone(&counters),
    ));
    let writer = tokio::spawn(write_frames(
        Arc::clone(&link),
        write,
        Arc::clone(&counters),
    ));
    let mut reader = AbortOnDropHandle::new(reader);
    let mut writer = AbortOnDropHandle::new(writer);
    let why = tokio::select! {
        biased;
        () = link.stop().cancelled() => link.why(),
        ended = &mut writer => match ended {
            Ok(Ok(())) => PeerError::Closed,
            Ok(Err(error)) => link.broken(&error.to_string()),
            Err(error) => link.broken(&error.to_string()),
        },
        ended = &mut reader => ended.unwrap_or_else(|error| link.broken(&error.to_string())),
        () = watch_life(&link, timings) => link.broken("the peer fell silent"),
    };
    if matches!(why, PeerError::Broken { .. }) {
        count(&counters.breaks, 1);
        // An introduction is one call over a connection of its own, which then ends like this.
        if introduction {
            tracing::debug!(node = %link.peer(), error = %why, "introduction ended");
        } else {
            tracing::info!(node = %link.peer(), error = %why, "peer link broke");
        }
    }
    link.fail(why);
}

/// Gives signs of life, and returns when the peer gives none.
async fn watch_life(link: &Link, timings: Timings) {
    let period = (timings.keep_alive / 2).max(Duration::from_millis(1));
    let patience = timings
        .silence
        .as_micros()
        .div_ceil(period.as_micros())
        .max(2);
    let mut ticks = tokio::time::interval(period);
    // Ticks count, not time: a process that was stopped must get to read before it judges.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent = 0;
    let mut idle = false;
    loop {
        ticks.tick().await;
        silent = if link.heard.swap(false, Ordering::Relaxed) {
            0
        } else {
            silent + 1
        };
        if silent > patience {
            return;
        }
        let wrote = link.wrote.swap(false, Ordering::Relaxed);
        if !wrote && idle {
            link.push(OutFrame::bare(Op::Ping, 0));
        }
        idle = !wrote && !idle;
    }
}

/// However a link's task ends, whoever waits on the link learns it.
struct FailOnDrop(Arc<Link>);

impl Drop for FailOnDrop {
    fn drop(&mut self) {
        self.0.fail(PeerError::Closed);
    }
}
