//! Ports for the nodes of one cluster, which nobody else on the machine takes meanwhile: below
//! those that the kernel gives to outgoing connections, in blocks that are held by their first
//! port.

use std::net::TcpListener;

/// Where the blocks lie.
const FIRST: u16 = 12_000;
const BLOCK: u16 = 32;
const BLOCKS: u16 = 500;

/// A block of ports. Another cluster that wants it finds its first port taken, and goes on.
#[derive(Debug)]
pub struct Ports {
    _held: TcpListener,
    first: u16,
}

impl Ports {
    /// The first block that nobody holds or listens in, if there is one.
    pub fn claim() -> Option<Self> {
        // Those of one machine begin at different places, so that few of them meet.
        let own = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        let mut blocks = (0..BLOCKS).map(|nth| FIRST + (own + nth) % BLOCKS * BLOCK);
        blocks.find_map(Self::hold)
    }

    fn hold(block: u16) -> Option<Self> {
        let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
        let held = bind(block).ok()?;
        let free = (block + 1..block + BLOCK).all(|port| bind(port).is_ok());
        free.then_some(Self {
            _held: held,
            first: block + 1,
        })
    }

    /// The first of them; the others follow it.
    pub fn first(&self) -> u16 {
        self.first
    }
}
