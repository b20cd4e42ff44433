//! How nodes reach one another: through ports of this program, or by wires between name spaces of
//! their own. What can be made bad of it is asked for in the same words.

use std::io;
use std::path::PathBuf;

use super::links::{Links, Way};
use super::node::Place;
use super::spaces::{self, Right, Spaces};

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
pub enum Network {
    Ports(Links),
    Spaces(Spaces),
}

impl Network {
    /// Lays it out for nodes that are yet to be started, and tells them where they are.
    pub(super) async fn lay(medium: &Medium, places: &mut [Place], seed: u64) -> io::Result<Self> {
        match medium {
            Medium::Ports(_) => {
                let mut doors = Vec::new();
                for place in places {
                    let outside = place.grpc + 4;
                    place.advertised_peer = Some(outside);
                    doors.push((place.number, outside, place.peer));
                }
                Ok(Self::Ports(Links::start(&doors, seed).await?))
            }
            Medium::Spaces(_) => {
                let numbers: Vec<u32> = places.iter().map(|place| place.number).collect();
                for place in places {
                    place.host = spaces::for_clients(place.number);
                    place.peer_host = spaces::among_nodes(place.number);
                }
                Ok(Self::Spaces(Spaces::start(&numbers)?))
            }
        }
    }

    /// The name space that a node is to be in.
    pub(super) fn space(&self, number: u32) -> Option<PathBuf> {
        match self {
            Self::Ports(_) => None,
            Self::Spaces(spaces) => spaces.path(number),
        }
    }

    /// Says which process a node is now.
    pub fn is_process(&self, node: u32, pid: u32) {
        if let Self::Ports(links) = self {
            links.is_process(node, pid);
        }
    }

    /// Says that a node's process has ended.
    pub fn is_gone(&self, node: u32) {
        if let Self::Ports(links) = self {
            links.is_gone(node);
        }
    }

    /// Changes how what the first of each pair says gets to the second.
    pub fn change(&mut self, pairs: &[(u32, u32)], change: impl Fn(&mut Way)) -> io::Result<()> {
        match self {
            Self::Ports(links) => {
                for (from, to) in pairs {
                    links.change(*from, *to, &change);
                }
                Ok(())
            }
            Self::Spaces(spaces) => spaces.change(pairs, change),
        }
    }

    /// Makes everything good again. With `reset` what was on its way is lost with its connection,
    /// where ports of this program are what it passes through.
    pub fn heal(&mut self, reset: bool) -> io::Result<()> {
        match self {
            Self::Ports(links) => {
                links.heal(reset);
                Ok(())
            }
            Self::Spaces(spaces) => spaces.heal(),
        }
    }
}
