//! Answering neighbour solicitations on the uplink for the containers, where their prefix is part of
//! the uplink's own subnet and no router has a route to it. The idea is RFC 4389's; the answers are the
//! kernel's, by proxy neighbour entries (`NTF_PROXY`).
//!
//! Guarantees:
//! - Only the uplink answers, and only for addresses that an attachment or the bridge has: `all.proxy_ndp`
//!   would have the containers' side answered too.
//! - An entry is ours if it bears our protocol number and lies in a prefix of this instance. One of an
//!   administrator's, for the same address even, stays as it is.
//! - The host's own routers are not lost (see [`switch_on`]).

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::errno::Errno;
use nix::libc;
use v6pod_proto::LinkName;

use super::PROTOCOL;
use super::error::{Error, gone_is_fine};
use super::host::{keep_advertisements, our_unreachables};
use super::netlink::RouteSocket;
use super::sysctl::Conf;
use super::view::Neighbour;
use crate::core::links::Links;

/// An address that is answered for, and the number of the link where.
pub type Entry = (Ipv6Addr, u32);

/// Has the uplink answer for what there are entries of.
///
/// The kernel does so only where `forwarding` is on; `force_forwarding` is not enough. Writing it has
/// Linux forget, on all interfaces, the default routers that were advertised to those with
/// `accept_ra` 1 (`addrconf_fixup_forwarding`), so they are first told to go on taking them (2).
pub(super) fn switch_on(
    socket: &mut RouteSocket,
    links: &Links,
    uplink: &LinkName,
) -> Result<(), Error> {
    let conf = Conf::Link(uplink);
    if conf.read("forwarding")? != Some(1) {
        keep_advertisements(socket, links)?;
        conf.write("forwarding", 1)?;
    }
    conf.ensure("proxy_ndp", 1)?;
    // Else the first answer is late by a random time up to 0.8 s (RFC 4861, section 7.2.8), which is
    // for several proxies of one address.
    Conf::Neighbours(uplink).ensure("proxy_delay", 0).map(drop)
}

/// Answers for the address on that link.
pub fn add(socket: &mut RouteSocket, (address, link): Entry) -> Result<(), Error> {
    if whose(socket, (address, link))?.is_some() {
        return Ok(());
    }
    let mut entry = entry((address, link));
    entry.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    let doing = format!("answer for {address} on the uplink");
    socket.ack(doing, &Message::NewNeighbour(entry), NLM_F_CREATE)
}

/// Answers no longer. An entry that is not ours stays.
pub fn remove(socket: &mut RouteSocket, (address, link): Entry) -> Result<(), Error> {
    if whose(socket, (address, link))? != Some(PROTOCOL) {
        return Ok(());
    }
    let doing = format!("answer no longer for {address}");
    gone_is_fine(socket.ack(doing, &Message::DelNeighbour(entry((address, link))), 0))
}

/// All entries of this instance, on whatever link, in its present prefix and in those that it has had.
pub fn observe(
    socket: &mut RouteSocket,
    links: &Links,
    prefix: Option<Ipv6Net>,
) -> Result<Vec<Entry>, Error> {
    let mut nets = our_unreachables(socket, links)?;
    nets.extend(prefix);
    entries_in(socket, &nets)
}

/// Removes all entries of this instance that lie in these prefixes. Goes on after an error; what failed
/// is the answer.
pub(super) fn forget(socket: &mut RouteSocket, nets: &[Ipv6Net]) -> Vec<Error> {
    match entries_in(socket, nets) {
        Ok(entries) => entries.into_iter().filter_map(|e| remove(socket, e).err()).collect(),
        Err(error) => vec![error],
    }
}

fn entries_in(socket: &mut RouteSocket, nets: &[Ipv6Net]) -> Result<Vec<Entry>, Error> {
    let mut question = NeighbourMessage::default();
    question.header.family = AddressFamily::Inet6;
    question.header.flags = NeighbourFlags::Proxy;
    let question = Message::GetNeighbour(question);
    socket.dump("list the proxy neighbours", &question, |kind, payload| {
        let entry = proxy(kind, payload)?;
        let address = entry.address?;
        let ours = entry.protocol == PROTOCOL && nets.iter().any(|net| net.contains(&address));
        ours.then_some((address, entry.interface))
    })
}

/// The protocol number of the entry that there is, zero if it has none.
fn whose(socket: &mut RouteSocket, of: Entry) -> Result<Option<u8>, Error> {
    let doing = format!("look up the proxy neighbour {}", of.0);
    let question = Message::GetNeighbour(entry(of));
    match socket.get(doing, &question, |kind, payload| Some(proxy(kind, payload)?.protocol)) {
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(None),
        other => other,
    }
}

fn proxy(kind: u16, payload: &[u8]) -> Option<Neighbour<'_>> {
    let is_entry = kind == libc::RTM_NEWNEIGH;
    Neighbour::parse(payload).filter(|entry| is_entry && entry.flags & libc::NTF_PROXY != 0)
}

fn entry((address, link): Entry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = link;
    message.header.flags = NeighbourFlags::Proxy;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)));
    message
}

#[cfg(test)]
mod tests;
