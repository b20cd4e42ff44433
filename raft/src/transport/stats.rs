//! Counters of a transport: cheap to keep, read as a whole.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a transport has done since it started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct TransportStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> TransportStats {
                TransportStats {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }

        impl TransportStats {
            /// Every counter by name, for an exporter.
            #[must_use]
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Connections this node established.
    connects,
    /// Attempts to connect that failed.
    connect_failures,
    /// Connections accepted, handshake done.
    accepts,
    /// Handshakes refused, or given up, on either side.
    handshake_failures,
    /// Links that broke.
    breaks,
    /// Links closed because the peer broke the protocol.
    protocol_errors,
    frames_out,
    bytes_out,
    /// Write system calls (or their simulated likes).
    writes,
    frames_in,
    bytes_in,
    reads,
    calls,
    call_timeouts,
    /// Calls and streams of peers refused because too many were in progress.
    busy_refusals,
    streams_opened,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
