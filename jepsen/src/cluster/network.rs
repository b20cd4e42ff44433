//! How nodes reach one another: through ports of this program, or by wires between name spaces of
//! their own. What can be made bad of it is asked for in the same words.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::links::Links;
use super::node::Place;
use super::spaces::{self, Right, Spaces};
use super::ways::{Pair, Way, Ways};

/// Which of them it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// Ports of this program; and why not the other, where that was asked for.
    Ports(Vec<String>),
    Spaces(Right),
}

impl Medium {
    /// Before ports can be claimed.
    pub(super) fn make_ready(&self) -> io::Result<()> {
        match self {
            Self::Ports(_) => Ok(()),
            Self::Spaces(_) => spaces::make_ready(),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Ports(_) => "ports",
            Self::Spaces(right) => right.name(),
        }
    }

    /// For people.
    pub fn about(&self) -> String {
        match self {
            Self::Ports(why) if why.is_empty() => "ports of the harness".to_owned(),
            Self::Ports(why) => {
                let why = why.join("; ");
                format!("ports of the harness, for name spaces cannot be had ({why})")
            }
            Self::Spaces(right) => format!("{right}, one for each node"),
        }
    }
}

/// What nodes reach one another by; dropping it ends it.
#[derive(Debug)]
pub struct Network {
    wires: Wires,
    ways: Ways,
}

#[derive(Debug)]
enum Wires {
    Ports(Links),
    Spaces(Spaces),
}

impl Network {
    /// Lays it out for nodes that are yet to be started, and tells them where they are.
    pub(super) async fn lay(medium: &Medium, places: &mut [Place], seed: u64) -> io::Result<Self> {
        let wires = match medium {
            Medium::Ports(_) => {
                let mut doors = Vec::new();
                for place in places {
                    let outside = place.grpc + 4;
                    place.advertised_peer = Some(outside);
                    doors.push((place.number, outside, place.peer));
                }
                Wires::Ports(Links::start(&doors, seed).await?)
            }
            Medium::Spaces(_) => {
                let numbers: Vec<u32> = places.iter().map(|place| place.number).collect();
                for place in places {
                    place.host = spaces::for_clients(place.number);
                    place.peer_host = spaces::among_nodes(place.number);
                }
                Wires::Spaces(Spaces::start(&numbers)?)
            }
        };
        let ways = Ways::default();
        Ok(Self { wires, ways })
    }

    /// The name space that a node is to be in.
    pub(super) fn space(&self, number: u32) -> Option<PathBuf> {
        match &self.wires {
            Wires::Ports(_) => None,
            Wires::Spaces(spaces) => spaces.path(number),
        }
    }

    /// Says which process a node is now.
    pub fn is_process(&self, node: u32, pid: u32) {
        if let Wires::Ports(links) = &self.wires {
            links.is_process(node, pid);
        }
    }

    /// Says that a node's process has ended.
    pub fn is_gone(&self, node: u32) {
        if let Wires::Ports(links) = &self.wires {
            links.is_gone(node);
        }
    }

    /// What the first of each pair says to the second gets there only this way until fault number
    /// `by` is mended, whatever else comes and goes.
    pub fn spoil(&mut self, by: usize, pairs: &[Pair], way: Way) -> io::Result<()> {
        self.ways.spoil(by, pairs, way);
        self.apply(&[])
    }

    /// Ends fault number `by`. With `reset` what was on its way is lost with its connection, where
    /// ports of this program are what it passes through, and nothing else is wrong there: through a
    /// cut nobody would learn of it.
    pub fn mend(&mut self, by: usize, reset: bool) -> io::Result<()> {
        let good = self.ways.mend(by);
        self.apply(if reset { &good } else { &[] })
    }

    /// Makes everything good again, with what was on its way lost.
    pub fn heal(&mut self) -> io::Result<()> {
        let good = self.ways.heal();
        self.apply(&good)
    }

    fn apply(&mut self, reset: &[Pair]) -> io::Result<()> {
        let now: BTreeMap<Pair, Way> = self.ways.now();
        match &mut self.wires {
            Wires::Ports(links) => {
                links.set(&now, reset);
                Ok(())
            }
            Wires::Spaces(spaces) => spaces.set(now),
        }
    }
}
