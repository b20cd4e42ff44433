//! What bounds a link, per direction: each side states its own limits in the handshake.

use std::time::Duration;

use super::stream::link_cost;

/// What one side of a link is ready to hold for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload of one frame.
    pub max_payload: u32,
    /// Bytes of one stream that may wait unconsumed.
    pub stream_window: u32,
    /// Bytes of all streams and calls of a link that may wait unconsumed.
    pub link_window: u32,
    /// Streams open at once on a link.
    pub max_streams: u32,
    /// Calls in progress at once on a link.
    pub max_calls: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: 8 << 20,
            stream_window: 4 << 20,
            link_window: 32 << 20,
            max_streams: 65_536,
            max_calls: 1_024,
        }
    }
}

impl Limits {
    /// Whether a link can make progress under these limits.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let most = 1 << 30;
        self.max_payload >= 1024
            && self.max_payload <= most
            && self.stream_window >= 4096
            && self.stream_window <= most
            && self.link_window <= most
            // Credit returns in quarters, and one message must still fit in the rest.
            && self.link_window / 4 * 3 >= link_cost(self.max_payload as usize)
            && self.max_streams >= 1
            && self.max_calls >= 1
    }
}

/// When a link is tried, kept and given up.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// How long establishing a connection may take.
    pub connect: Duration,
    /// How long the handshake may take, on either side.
    pub handshake: Duration,
    /// A side that has written nothing for this long writes a sign of life.
    pub keep_alive: Duration,
    /// A link on which nothing arrives for this long is dead.
    pub silence: Duration,
    /// The first and the longest pause between attempts to connect; each is cut by up to half.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// How long a closing link may take to write what is queued.
    pub linger: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            handshake: Duration::from_secs(3),
            keep_alive: Duration::from_millis(500),
            silence: Duration::from_secs(2),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(500),
            linger: Duration::from_secs(1),
        }
    }
}
