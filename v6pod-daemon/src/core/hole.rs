//! What openings and reaches are in the kernel: elements of sets.
//!
//! Guarantee: of an opening that would take more elements than an attachment may have, [`count`] says so and
//! [`holes`] makes none of them.
//!
//! Hash sets, one for each length of prefixes: an interval set is copied at every commit. So ranges and odd
//! lengths are several elements.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;

use v6pod_proto::wishes::{Opening, Peers, Ports, Protocol};

/// One element of the firewall that lets something in, or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hole {
    /// Everybody, to one port.
    Port(Protocol, u16),
    /// Everybody, to every port.
    Every(Protocol),
    /// The addresses of one prefix, to one port. The length is one of [`Hole::LENGTHS`].
    From(u8, Protocol, u16, Ipv6Addr),
    /// The container reaches nothing but what the following let it.
    Confined,
    /// One port of everybody's.
    Reach(Protocol, u16),
    /// Every port of everybody's.
    ReachEvery(Protocol),
    /// One port at the addresses of one prefix. The length is one of [`Hole::LENGTHS`].
    ReachIn(u8, Protocol, u16, Ipv6Addr),
    /// This bit of its owner's uid is one.
    Kin(u8),
}

impl Hole {
    /// The lengths of prefixes for which there are sets. Others are made of longer ones.
    pub const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 128];

    /// The elements each of which lets such a flow in, in the order in which they are looked for; from
    /// whoever it is, if no source is said.
    pub fn of_flow(protocol: Protocol, port: u16, source: Option<Ipv6Addr>) -> Vec<Self> {
        let mut all = vec![Self::Port(protocol, port), Self::Every(protocol)];
        for (length, source) in source.into_iter().flat_map(|s| Self::LENGTHS.map(|l| (l, s))) {
            let behind = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let prefix = Ipv6Addr::from(u128::from(source) & !behind);
            all.push(Self::From(length, protocol, port, prefix));
        }
        all
    }

    /// What lets the container out to where this one lets others in from.
    pub(super) const fn outwards(self) -> Self {
        match self {
            Self::Port(protocol, port) => Self::Reach(protocol, port),
            Self::Every(protocol) => Self::ReachEvery(protocol),
            Self::From(length, protocol, port, prefix) => {
                Self::ReachIn(length, protocol, port, prefix)
            }
            out => out,
        }
    }
}

/// The elements that one attachment has beyond the three of everybody, without doubles, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holes(Arc<[Hole]>);

impl Holes {
    /// The most that one attachment has.
    pub const MOST: usize = 1024;
    /// The most that all attachments of one owner have. They are memory of the kernel's that nothing
    /// else accounts for, and each start of the daemon loads them all.
    pub const MOST_OF_OWNER: usize = 16 * 1024;

    /// Each of them.
    pub fn each(&self) -> &[Hole] {
        &self.0
    }

    /// These and the others.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        self.0.iter().chain(others.each()).copied().collect()
    }

    /// Whether something was allowed by these that is not by those.
    pub fn allow_more_than(&self, those: &Self) -> bool {
        let confined = |holes: &Self| holes.0.contains(&Hole::Confined);
        let gone = self.without(those).0.iter().any(|hole| *hole != Hole::Confined);
        gone || (!confined(self) && confined(those))
    }

    /// Those that are not among the others.
    pub fn without(&self, others: &Self) -> Self {
        Self(self.0.iter().filter(|hole| others.0.binary_search(hole).is_err()).copied().collect())
    }
}

impl FromIterator<Hole> for Holes {
    fn from_iter<I: IntoIterator<Item = Hole>>(all: I) -> Self {
        let sorted: BTreeSet<_> = all.into_iter().collect();
        Self(sorted.into_iter().collect())
    }
}

/// The length of the sets that a prefix of this length is made of, and how many bits longer that is.
fn longer(length: u8) -> (u8, u8) {
    let next = Hole::LENGTHS.into_iter().find(|set| *set >= length).unwrap_or(128);
    (next, next - length)
}

/// How many elements one attachment may have where so many are left for it.
pub(super) fn most(room: usize) -> u128 {
    room.min(Holes::MOST) as u128
}

/// How many elements an opening takes: 2^79 at most.
pub(super) fn count(opening: Opening) -> u128 {
    let Opening { ports, peers, .. } = opening;
    let each = u128::from(ports.last() - ports.first()) + 1;
    match (peers == Peers::ALL, ports == Ports::ALL) {
        (true, true) => 1,
        (true, false) => each,
        (false, _) => each << longer(peers.length()).1,
    }
}

/// Those of an opening that has few.
pub(super) fn holes(opening: Opening) -> Vec<Hole> {
    let Opening { protocol, ports, peers } = opening;
    if count(opening) > Holes::MOST as u128 {
        return Vec::new();
    }
    if peers == Peers::ALL {
        return match ports == Ports::ALL {
            true => vec![Hole::Every(protocol)],
            false => (ports.first()..=ports.last()).map(|p| Hole::Port(protocol, p)).collect(),
        };
    }
    let (length, bits) = longer(peers.length());
    let step = |n: u128| n.checked_shl(128 - u32::from(length)).unwrap_or(0);
    let sources = (0..1_u128 << bits).map(|n| Ipv6Addr::from(u128::from(peers.prefix()) | step(n)));
    let of = |source| {
        (ports.first()..=ports.last()).map(move |p| Hole::From(length, protocol, p, source))
    };
    sources.flat_map(of).collect()
}
