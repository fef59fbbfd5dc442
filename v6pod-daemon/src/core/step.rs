//! The steps that make an attachment, as values: each can be printed, run and undone by itself.
//!
//! The order of [`attach`] is a promise. Nothing before [`Step::Up`] lets a packet pass between the
//! port and the host, and everything that keeps a port from doing harm stands before it. So a port
//! that is up is a whole attachment, and one that is not up is none: after a crash the kernel itself
//! tells which of the two is the case.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use v6pod_proto::{LinkName, Mac, Uid};

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
    /// What the default route inside points to.
    pub gateway: Ipv6Addr,
    /// In bytes, for both ends.
    pub mtu: u32,
    /// Whose the attachment is: his processes on the host reach it. Not in the record's port, the
    /// record itself says it; until it has, it is nobody's.
    #[serde(skip, default = "nobody")]
    pub owner: Uid,
    /// The port's alias: says to a person and to a restarted daemon whose port this is.
    pub alias: String,
}

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The firewall's elements: who may send by the port, and whose processes reach the address.
    /// Undone by removing them, and with them what conntrack remembers of the address.
    Rules,
    /// Both ends of the veth pair, in place at once: the host's as port of the bridge and member of
    /// the ports' link group, the other in the container. Both down. Undone by deleting the port.
    Pair,
    /// The bridge port isolated, not learning, not flooded; locked where the kernel can.
    /// Goes with the port.
    Guard,
    /// The static forwarding entry of the container's Ethernet address. Goes with the port.
    Forwarding,
    /// The permanent neighbour entry of the address on the bridge.
    Neighbour,
    /// The /128 route by the bridge.
    Route,
    /// Where the host answers for containers on its uplink: the proxy neighbour entry there.
    Proxy,
    /// The container's end: sysctls, loopback and interface up, address, default route. Goes with
    /// the pair.
    Inside,
    /// The port's alias set and the port up, in one message: the commit.
    Up,
}

/// All steps that attach a container to the bridge, in their order.
pub const fn attach() -> [Step; 9] {
    [
        Step::Rules,
        Step::Pair,
        Step::Guard,
        Step::Forwarding,
        Step::Neighbour,
        Step::Route,
        Step::Proxy,
        Step::Inside,
        Step::Up,
    ]
}

/// A uid with which nothing runs: a namespace of this owner could not be asked for.
const fn nobody() -> Uid {
    match Uid::new(u32::MAX - 1) {
        Some(uid) => uid,
        None => Uid::ROOT,
    }
}
