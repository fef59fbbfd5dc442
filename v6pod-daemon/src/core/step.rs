//! The steps that make an attachment, as values: each can be printed, run and undone by itself.
//!
//! The order of [`attach`] is a promise. Nothing before [`Step::Up`] lets a packet pass between the
//! port and the host, and everything that keeps a port from doing harm stands before it. So a port
//! that is up is an attachment, and one that is not up is none: after a crash the kernel itself tells
//! which of the two is the case. Linux takes no route by a link that is down, so the route of a routed
//! port comes after: if a crash parts the two, the next start puts it there.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use v6pod_proto::{LinkName, Mac, Mode, Uid};

/// What the default route of a container on a routed port points to.
///
/// The port does not have this address, and needs none: the container has a permanent neighbour entry
/// of it. On each of thousands of ports the same address would be an entry of one list that Linux walks
/// from end to end (`inet6_addr_lst`, and the leaf of the local table) to add another, and for every
/// solicitation: 0.05 ms with a thousand ports, 0.7 ms with five thousand, for whoever cares to ask.
pub const ROUTED_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

use super::hole::Holes;
use super::subnet::{self, Length};

/// One attachment's kernel objects, by name and address: enough to make them and to take them away
/// again without having seen them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The host's end of the veth pair.
    pub name: LinkName,
    /// The end in the container.
    pub interface: LinkName,
    /// The Ethernet address of the end in the container.
    pub mac: Mac,
    /// The address, a /128 inside.
    pub address: Ipv6Addr,
    /// How long the subnet is that the address begins, of a port that is about a subnet alone
    /// ([`Port::with`]): then it is no address of the container's interface.
    #[serde(skip)]
    pub subnet: Option<Length>,
    /// What the default route inside points to.
    pub gateway: Ipv6Addr,
    /// What it has besides while the prefix changes, and its subnets, in no order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Also>,
    /// In bytes, for both ends.
    pub mtu: u32,
    /// Whose the attachment is: his processes on the host reach it. Not in the record's port, the
    /// record itself says it; until it has, it is nobody's.
    #[serde(skip, default = "nobody")]
    pub owner: Uid,
    /// What lets others in. Not in the record's port either: it follows from what the record says is
    /// open.
    #[serde(skip)]
    pub open: Holes,
    /// The port's alias: says to a person and to a restarted daemon whose port this is.
    pub alias: String,
    /// How packets reach it. Left out of what was written when there was the bridge alone.
    #[serde(default = "by_bridge")]
    pub mode: Mode,
}

/// An address that is not, or not any more, the one that an attachment is known by; or a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Also {
    /// The address; of a subnet the first one.
    pub address: Ipv6Addr,
    /// How long the subnet is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Length>,
    /// The gateway that goes with it.
    pub gateway: Ipv6Addr,
    /// What becomes of it.
    pub role: Role,
}

impl Also {
    /// The address, or the subnet.
    pub fn net(&self) -> Ipv6Net {
        subnet::net(self.address, self.subnet)
    }
}

/// What becomes of an address when the prefix changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The host is ready for it; the container may not have it yet.
    Coming,
    /// It is there for as long as the prefix and the container are: a subnet.
    Staying,
    /// The container has it, and begins nothing with it any more. It goes at this time, in seconds since
    /// the epoch.
    Going(u64),
}

impl Port {
    /// All addresses that it has or is about to have, the one that it is known by first; of its subnets the
    /// first ones, which stand for all the others in the kernel.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        [self.address].into_iter().chain(self.also.iter().map(|also| also.address))
    }

    /// The same, with subnets as such.
    pub fn nets(&self) -> impl Iterator<Item = Ipv6Net> {
        let first = subnet::net(self.address, self.subnet);
        [first].into_iter().chain(self.also.iter().map(Also::net))
    }

    /// Its subnets, whatever becomes of them.
    pub fn subnets(&self) -> impl Iterator<Item = &Also> {
        self.also.iter().filter(|also| also.subnet.is_some())
    }

    /// Whether the address is one of its own, or in a subnet of its own.
    pub fn has(&self, address: Ipv6Addr) -> bool {
        self.nets().any(|net| net.contains(&address))
    }

    /// The same port with one of its other addresses, or a subnet, alone.
    #[must_use]
    pub fn with(&self, also: &Also) -> Self {
        let Also { address, subnet, gateway, .. } = *also;
        Self { address, subnet, gateway, also: Vec::new(), ..self.clone() }
    }

    /// The same port once for each of its addresses and subnets, with that alone.
    pub fn each(&self) -> impl Iterator<Item = Self> + '_ {
        let first = Self { also: Vec::new(), ..self.clone() };
        [first].into_iter().chain(self.also.iter().map(|also| self.with(also)))
    }

    /// The same port once the container has this address, which was coming: it is known by that, and the one
    /// before goes at that time, in seconds since the epoch. `None` if it was not coming.
    pub fn arrived(&self, address: Ipv6Addr, until: u64) -> Option<Self> {
        let at = self.also.iter().position(|also| also.net() == address.into())?;
        let mut port = self.clone();
        let Also { address, gateway, .. } = port.also.remove(at);
        let before = Also {
            address: port.address,
            subnet: None,
            gateway: port.gateway,
            role: Role::Going(until),
        };
        port.also.push(before);
        (port.address, port.gateway) = (address, gateway);
        Some(port)
    }

    /// The link that the address's route and neighbour entry are by, of a host with this bridge, if
    /// the port has this number. None: they are by a bridge that is not there.
    pub fn link(&self, bridge: Option<u32>, port: u32) -> Option<u32> {
        match self.mode {
            Mode::Bridge => bridge,
            Mode::Routed => Some(port),
        }
    }
}

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The firewall's elements: who may send by the port, whose processes reach the address, and what
    /// is open to whom.
    /// Undone by removing them, and with them what conntrack remembers of the address.
    Rules,
    /// Both ends of the veth pair, in place at once: the host's as member of the ports' link group
    /// and port of the bridge, if it is to be one, the other in the container. Both down. Undone by
    /// deleting the port.
    Pair,
    /// The port's alias set. A bridge port isolated, not learning, not flooded; locked where the kernel
    /// can. A routed port without addresses of its own making, deaf to router advertisements, forwarding.
    /// Goes with the port.
    Guard,
    /// The static forwarding entry of the container's Ethernet address. Goes with the port.
    Forwarding,
    /// The permanent neighbour entry of the address on the bridge or the routed port.
    Neighbour,
    /// The /128 route by the bridge or the routed port.
    Route,
    /// Where the host answers for containers on its uplink: the proxy neighbour entry there.
    Proxy,
    /// The container's end: sysctls, loopback and interface up, address, default route; on a routed
    /// port the gateway's neighbour entry. Goes with the pair.
    Inside,
    /// The port up: the commit. Nothing else in that message: whatever else changes with it, Linux would
    /// walk all routes of the host once more.
    Up,
}

/// All steps that attach a container, in their order.
pub const fn attach(mode: Mode) -> &'static [Step] {
    const BRIDGE: &[Step] = &[
        Step::Rules,
        Step::Pair,
        Step::Guard,
        Step::Forwarding,
        Step::Neighbour,
        Step::Route,
        Step::Proxy,
        Step::Inside,
        Step::Up,
    ];
    const ROUTED: &[Step] = &[
        Step::Rules,
        Step::Pair,
        Step::Guard,
        Step::Neighbour,
        Step::Proxy,
        Step::Inside,
        Step::Up,
        Step::Route,
    ];
    match mode {
        Mode::Bridge => BRIDGE,
        Mode::Routed => ROUTED,
    }
}

/// The same steps in the order in which they are undone: the commit first, then in reverse.
pub fn detach(mode: Mode) -> impl Iterator<Item = &'static Step> {
    let others = attach(mode).iter().rev().filter(|step| **step != Step::Up);
    [&Step::Up].into_iter().chain(others)
}

const fn by_bridge() -> Mode {
    Mode::Bridge
}

/// A uid with which nothing runs: a namespace of this owner could not be asked for.
const fn nobody() -> Uid {
    match Uid::new(u32::MAX - 1) {
        Some(uid) => uid,
        None => Uid::ROOT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_keeps_a_port_from_harm_stands_before_it_is_up_and_after_it_is_down() {
        for mode in [Mode::Bridge, Mode::Routed] {
            let up = attach(mode).iter().position(|step| *step == Step::Up).unwrap();
            for guard in [Step::Rules, Step::Pair, Step::Guard, Step::Inside] {
                assert!(attach(mode)[..up].contains(&guard), "{mode:?}: {guard:?}");
            }
            let undone: Vec<_> = detach(mode).collect();
            assert_eq!(undone.len(), attach(mode).len());
            assert_eq!((undone[0], undone.last()), (&Step::Up, Some(&&Step::Rules)));
        }
    }
}
