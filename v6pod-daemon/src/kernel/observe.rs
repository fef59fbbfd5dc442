//! What of this instance is in the kernel, for adoption after a restart and for finding leaks.
//!
//! Guarantee: only what is certainly ours is seen: links of our groups, and on our bridge what bears our
//! protocol number. So only that can be removed as a stray.

use std::net::Ipv6Addr;

use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::libc;

use super::dump;
use super::error::{Error, gone_is_fine};
use super::host::find_bridge;
use super::message;
use super::netlink::RouteSocket;
use super::wire;
use crate::core::links::Links;

/// All of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The bridge's interface number; none if it is gone. Routes, neighbours and forwarding entries
    /// went with it then.
    pub bridge: Option<u32>,
    /// The links of the ports' group.
    pub ports: Vec<ObservedPort>,
    /// The addresses with a /128 route by the bridge.
    pub routes: Vec<Ipv6Addr>,
    /// The addresses with a permanent neighbour entry on the bridge, and their Ethernet addresses.
    pub neighbours: Vec<(Ipv6Addr, [u8; 6])>,
    /// The static forwarding entries: port and Ethernet address.
    pub forwarding: Vec<(u32, [u8; 6])>,
}

/// A link of the ports' group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedPort {
    /// Its interface number.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its alias; empty before [`Step::Up`](crate::core::Step::Up).
    pub alias: String,
    /// Whether it is up: a whole attachment.
    pub up: bool,
    /// Whether it is a port of our bridge.
    pub on_bridge: bool,
}

/// One thing that should not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// A port, by its interface number.
    Port(u32),
    /// A container's route.
    Route(Ipv6Addr),
    /// A neighbour entry.
    Neighbour(Ipv6Addr),
}

/// Looks at all of this instance.
pub fn observe(socket: &mut RouteSocket, links: &Links) -> Result<Observed, Error> {
    let bridge = find_bridge(socket, links)?.map(|link| link.index);
    let ports = dump::links(socket, |link| {
        (link.group == links.ports).then(|| ObservedPort {
            ifindex: link.index,
            name: link.name.to_owned(),
            alias: link.alias.to_owned(),
            up: link.is_up(),
            on_bridge: bridge.is_some() && link.master == bridge,
        })
    })?;
    let Some(index) = bridge else { return Ok(Observed { ports, ..Observed::default() }) };
    let routes = dump::our_routes(socket, index)?;
    Ok(Observed {
        bridge,
        routes: routes.iter().filter(|r| r.length == 128).map(|r| r.destination).collect(),
        neighbours: dump::neighbours(socket, index, |entry| {
            let ours = entry.interface == index && entry.state == libc::NUD_PERMANENT;
            if ours { Some((entry.address?, entry.mac.try_into().ok()?)) } else { None }
        })?,
        forwarding: dump::forwarding(socket, index, |entry| {
            let ours = entry.state == libc::NUD_NOARP
                && ports.iter().any(|port| port.ifindex == entry.interface);
            if ours { Some((entry.interface, entry.mac.try_into().ok()?)) } else { None }
        })?,
        ports,
    })
}

/// Removes one thing that was observed. A port costs the kernel some 20 ms; many at once are cheaper
/// by [`remove_all_ports`](super::host::remove_all_ports).
pub fn remove_stray(
    socket: &mut RouteSocket,
    observed: &Observed,
    stray: Stray,
) -> Result<(), Error> {
    match (stray, observed.bridge) {
        (Stray::Port(index), _) => {
            let link = Message::DelLink(message::link(index));
            gone_is_fine(socket.ack(format!("delete the port {index}"), &link, 0))
        }
        (Stray::Route(address), Some(bridge)) => wire::remove_route(socket, bridge, address),
        (Stray::Neighbour(address), Some(bridge)) => {
            wire::remove_neighbour(socket, bridge, address)
        }
        // They went with the bridge.
        (Stray::Route(_) | Stray::Neighbour(_), None) => Ok(()),
    }
}
