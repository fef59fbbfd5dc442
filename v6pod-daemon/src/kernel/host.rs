//! The host's side: the bridge, what is unreachable behind it, and that packets are forwarded.
//!
//! Guarantees:
//! - Doing it twice changes nothing; a bridge that an earlier daemon left is taken over with its ports,
//!   one of that name that is not ours is not touched.
//! - The bridge has the gateway's address, the resolver's and no other, above all no link-local one: without it
//!   Linux cannot send ICMPv6 redirects, which would lead containers around the host.
//! - It takes no router advertisement, redirect or address from a container, not even between its
//!   making and its start.
//! - Nothing of the host's that was on is switched off, and it loses none of its own routers.
//! - The uplink answers for containers (`proxy`) only where that is asked for.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use nix::libc;
use v6pod_proto::LinkName;

use super::PROTOCOL;
use super::dump;
use super::error::{Cause, Error, gone_is_fine};
use super::message::{self, FoundLink, find_ours};
use super::netlink::RouteSocket;
use super::overlap::{Overlaps, overlaps};
use super::proxy;
use super::sysctl::{Conf, Folder, Folders};
use super::view::Route;
use crate::core::links::Links;
use crate::core::prefix::Prefix;

/// The smallest MTU of IPv6 (RFC 8200, section 5): below it Linux switches IPv6 off.
const MIN_MTU: u32 = 1280;
/// The largest that a bridge takes.
const MAX_MTU: u32 = 65_535;
/// Without an uplink to go by.
const DEFAULT_MTU: u32 = 1500;

/// What the host's side should be.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The range of the containers' addresses.
    pub prefix: Prefix,
    /// Those that it took the place of, in which containers may still have addresses.
    pub former: Vec<Prefix>,
    /// Names and groups of the links.
    pub links: Links,
    /// In bytes; none: that of the uplink.
    pub mtu: Option<u32>,
    /// The interface towards the rest of the world; none: that of the default route.
    pub uplink: Option<LinkName>,
    /// How forwarding is switched on.
    pub forwarding: Forwarding,
    /// Whether the uplink answers neighbour solicitations for the containers.
    pub proxy: bool,
    /// Where containers are answered what they ask for by name; none: nowhere.
    pub resolver: Option<Ipv6Addr>,
}

/// How packets are allowed from one interface to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// `force_forwarding` of the bridge and the uplink alone (Linux 6.17): the host stays a host to its
    /// own routers, and no other interface forwards.
    PerInterface,
    /// `all.forwarding`. Interfaces that took router advertisements (`accept_ra` 1) are first told to
    /// go on taking them (2): switching forwarding on first deletes the default route at once.
    WholeHost,
}

impl Forwarding {
    /// The better of the two that this kernel has.
    pub fn probe() -> Result<Self, Error> {
        let per_interface = Conf::All.read("force_forwarding")?.is_some();
        Ok(if per_interface { Self::PerInterface } else { Self::WholeHost })
    }
}

/// The host's side as it is.
#[derive(Debug, Clone)]
pub struct Host {
    /// The bridge's interface number.
    pub bridge: u32,
    /// Names and groups of the links.
    pub links: Links,
    /// The bridge's MTU, that of new ports too, in bytes.
    pub mtu: u32,
    /// The interface towards the rest of the world, if there is one now.
    pub uplink: Option<LinkName>,
    /// The number of the link on which containers are answered for, if they are.
    pub answers: Option<u32>,
    /// How forwarding is switched on, on a routed port too.
    pub forwarding: Forwarding,
}

/// Why the host could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Something else has the prefix.
    #[error(transparent)]
    Overlap(#[from] Overlaps),
}

/// Makes the host's side what it should be, from whatever it is.
pub fn prepare(socket: &mut RouteSocket, topology: &Topology) -> Result<Host, PrepareError> {
    let overlaps = overlaps(socket, topology, topology.prefix)?;
    if !overlaps.found.is_empty() {
        return Err(overlaps.into());
    }
    let links = &topology.links;
    let found = match find_bridge(socket, links)? {
        Some(bridge) => bridge,
        None => make_bridge(socket, links)?,
    };
    let bridge = found.index;
    assert_bridge(socket, links, &found)?;
    let uplink = uplink(socket, topology)?;
    let mtu = settle_mtu(socket, topology, &found, uplink.mtu)?;

    // Before anything can be forwarded.
    hold_ranges(socket, links, topology.prefixes().map(Prefix::net))?;
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let gateways = topology.prefixes().map(Prefix::gateway);
    for address in gateways.chain(topology.resolver) {
        let address = Message::NewAddress(message::address(bridge, address));
        exists_is_fine(socket.ack("give the bridge its address", &address, flags))?;
    }
    let link = message::set_up(message::link(bridge), true);
    socket.ack(format!("switch {} on", links.bridge), &Message::SetLink(link), 0)?;
    let answers = uplink.index.filter(|_| topology.proxy);
    let (links, uplink, forwarding) = (links.clone(), uplink.name, topology.forwarding);
    let host = Host { bridge, links, mtu, uplink, answers, forwarding };
    forget_old_prefixes(socket, topology, &host)?;
    forward(socket, topology, &host)?;
    Ok(host)
}

/// Looks again which interface leads to the rest of the world, and has it forward too. To be called
/// when the default route changes. Idempotent.
pub fn follow_uplink(
    socket: &mut RouteSocket,
    topology: &Topology,
    host: &Host,
) -> Result<Host, Error> {
    let uplink = uplink(socket, topology)?;
    let answers = uplink.index.filter(|_| topology.proxy);
    let mut host = Host { uplink: uplink.name, answers, ..host.clone() };
    if let Some(found) = find_bridge(socket, &topology.links)? {
        host.mtu = settle_mtu(socket, topology, &found, uplink.mtu)?;
    }
    forward(socket, topology, &host)?;
    Ok(host)
}

/// Has what no container has be unreachable, of these ranges. Otherwise it would go back to the upstream, which
/// sends it here again (threat 14), or cost a neighbour entry each. Gives those that were not yet.
pub fn hold_ranges(
    socket: &mut RouteSocket,
    links: &Links,
    ranges: impl IntoIterator<Item = Ipv6Net>,
) -> Result<Vec<Ipv6Net>, Error> {
    let mut held = Vec::new();
    for net in ranges {
        let route = Message::NewRoute(unreachable(links, net));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match socket.ack("make the rest of the prefix unreachable", &route, flags) {
            Ok(()) => held.push(net),
            Err(error) if error.already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(held)
}

/// Takes away all of this instance: ports, bridge, routes, answers on the uplink. Forwarding, and what
/// the uplink needs to answer, stays as it is, since somebody else may count on it by now. Goes on after
/// an error; what failed is the answer.
pub fn purge(socket: &mut RouteSocket, links: &Links) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut note = |result: Result<(), Error>| errors.extend(result.err());
    note(remove_all_ports(socket, links));
    match find_bridge(socket, links) {
        Ok(None) => {}
        Ok(Some(bridge)) => {
            let link = Message::DelLink(message::link(bridge.index));
            note(gone_is_fine(socket.ack(format!("delete {}", links.bridge), &link, 0)));
        }
        Err(error) if error.is_not_ours() => {}
        Err(error) => note(Err(error)),
    }
    match our_unreachables(socket, links) {
        Ok(nets) => {
            proxy::forget(socket, &nets).into_iter().for_each(|error| note(Err(error)));
            nets.into_iter().for_each(|net| note(reach_again(socket, links, net)));
        }
        Err(error) => note(Err(error)),
    }
    errors
}

/// Deletes every port of this instance, in one go: 1,023 of them take 0.3 s, one by one 20 s.
pub fn remove_all_ports(socket: &mut RouteSocket, links: &Links) -> Result<(), Error> {
    super::sweep::remove_doomed(socket, links)?;
    let mut group = LinkMessage::default();
    group.attributes.push(LinkAttribute::Group(links.ports));
    gone_is_fine(socket.ack("delete all ports", &Message::DelLink(group), 0))
}

/// The bridge, if it is there; an error if something else has its name.
pub(super) fn find_bridge(
    socket: &mut RouteSocket,
    links: &Links,
) -> Result<Option<FoundLink>, Error> {
    match find_ours(socket, &links.bridge, links.bridges)? {
        Some(link) if !link.is_bridge => {
            let cause = Cause::NotOurs(links.bridge.clone());
            Err(Error::new(format!("take {}", links.bridge), cause))
        }
        other => Ok(other),
    }
}

impl Topology {
    /// The prefix, and those before it.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        [self.prefix].into_iter().chain(self.former.iter().copied())
    }

    /// The interface towards the rest of the world, of these links, by these routes.
    pub(super) fn uplink_among(&self, links: &[(u32, String)], routes: &[Route]) -> Option<u32> {
        if let Some(name) = &self.uplink {
            return links.iter().find(|(_, n)| n == name.as_str()).map(|(index, _)| *index);
        }
        let defaults = routes.iter().filter(|route| route.is_default());
        defaults.min_by_key(|route| route.metric)?.interface
    }
}

/// The way to the rest of the world, if there is one.
#[derive(Default)]
struct FoundUplink {
    index: Option<u32>,
    name: Option<LinkName>,
    mtu: Option<u32>,
}

fn uplink(socket: &mut RouteSocket, topology: &Topology) -> Result<FoundUplink, Error> {
    let links = dump::links(socket, |link| Some((link.index, link.name.to_owned(), link.mtu)))?;
    let routes = dump::routes(socket)?;
    let names: Vec<_> = links.iter().map(|(index, name, _)| (*index, name.clone())).collect();
    let index = topology.uplink_among(&names, &routes);
    let found = links.into_iter().find(|(i, _, _)| Some(*i) == index);
    Ok(found.map_or_else(FoundUplink::default, |(index, name, mtu)| FoundUplink {
        index: Some(index),
        name: name.parse().ok(),
        mtu: Some(mtu),
    }))
}

/// Makes the bridge, down. Its Ethernet address is given, and so never changes with its ports.
fn make_bridge(socket: &mut RouteSocket, links: &Links) -> Result<FoundLink, Error> {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(links.bridge.to_string()),
        LinkAttribute::Address(links.bridge_mac.octets().to_vec()),
        LinkAttribute::Group(links.bridges),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let doing = format!("make the bridge {}", links.bridge);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    socket.ack(doing.clone(), &Message::NewLink(link), flags)?;
    find_bridge(socket, links)?.ok_or_else(|| Error::new(doing, Cause::Garbled("it is not there")))
}

/// Settings that hold whether the bridge is new or was left by an earlier daemon.
fn assert_bridge(socket: &mut RouteSocket, links: &Links, found: &FoundLink) -> Result<(), Error> {
    let conf = Conf::Link(&links.bridge);
    let quiet = [("accept_ra", 0), ("autoconf", 0), ("accept_redirects", 0)];
    // Where IPv6 is off by default, it is on here.
    for (key, value) in quiet.into_iter().chain([("disable_ipv6", 0)]) {
        conf.ensure(key, value)?;
    }
    let settings = [
        InfoBridge::StpState(BridgeStpState::Disabled),
        // A new port forwards at once. Zero is a delay only without STP: not in the same message.
        InfoBridge::ForwardDelay(0),
        // A container's MLD reports then leave nothing behind.
        InfoBridge::MulticastSnooping(false),
    ];
    for setting in settings {
        let data = InfoData::Bridge(vec![setting]);
        let mut link = message::link(found.index);
        link.attributes = vec![
            message::no_link_local(),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)]),
        ];
        if found.mac != links.bridge_mac.octets() {
            link.attributes.push(LinkAttribute::Address(links.bridge_mac.octets().to_vec()));
        }
        socket.ack(format!("set {} up", links.bridge), &Message::NewLink(link), 0)?;
    }
    Ok(())
}

/// Sets the bridge's MTU, which otherwise follows the smallest port's. A bridge that has ports keeps
/// its own: a port whose MTU is smaller than the bridge's loses packets without a word. That of a routed
/// port is no other link's concern: Linux tells senders of it.
fn settle_mtu(
    socket: &mut RouteSocket,
    topology: &Topology,
    bridge: &FoundLink,
    uplink: Option<u32>,
) -> Result<u32, Error> {
    let wanted = topology.mtu.or(uplink).unwrap_or(DEFAULT_MTU).clamp(MIN_MTU, MAX_MTU);
    // A bridge that is up has had its MTU set by us: that comes first.
    if bridge.up && (bridge.mtu == wanted || has_ports(socket, &topology.links)?) {
        return Ok(bridge.mtu);
    }
    // Setting the value that it has does not count as setting (`dev_set_mtu` returns early).
    let other = if wanted == MIN_MTU { wanted + 1 } else { wanted - 1 };
    for mtu in [other, wanted] {
        let mut link = message::link(bridge.index);
        link.attributes.push(LinkAttribute::Mtu(mtu));
        let doing = format!("set the MTU of {} to {mtu}", topology.links.bridge);
        socket.ack(doing, &Message::SetLink(link), 0)?;
    }
    Ok(wanted)
}

fn has_ports(socket: &mut RouteSocket, links: &Links) -> Result<bool, Error> {
    let ports = dump::links(socket, |link| {
        (link.group == links.ports && link.master.is_some()).then_some(())
    })?;
    Ok(!ports.is_empty())
}

/// The route that catches what no container has. Its metric says whose it is: such a route has no
/// interface of ours.
fn unreachable(links: &Links, net: Ipv6Net) -> RouteMessage {
    let whose = RouteAttribute::Priority(links.ports);
    message::route(RouteType::Unreachable, Some((net.addr(), net.prefix_len())), [whose])
}

/// Undoes [`hold_ranges`] of one.
pub fn reach_again(socket: &mut RouteSocket, links: &Links, net: Ipv6Net) -> Result<(), Error> {
    let route = Message::DelRoute(unreachable(links, net));
    gone_is_fine(socket.ack(format!("remove the unreachable route of {net}"), &route, 0))
}

pub(super) fn our_unreachables(
    socket: &mut RouteSocket,
    links: &Links,
) -> Result<Vec<Ipv6Net>, Error> {
    let mut routes = dump::routes(socket)?;
    routes.retain(|route| keeps_a_range(route, links));
    Ok(routes.iter().filter_map(|r| Ipv6Net::new(r.destination, r.length).ok()).collect())
}

/// Whether it is one of [`hold_ranges`], of this instance.
pub(super) fn keeps_a_range(route: &Route, links: &Links) -> bool {
    let kind = route.kind == libc::RTN_UNREACHABLE;
    kind && route.protocol == PROTOCOL && route.metric == links.ports
}

/// Takes away what an earlier prefix left, unless a container still has an address in it; and
/// whatever else has come to the bridge, link-local addresses above all.
fn forget_old_prefixes(
    socket: &mut RouteSocket,
    topology: &Topology,
    host: &Host,
) -> Result<(), Error> {
    let ports = dump::links(socket, |link| (link.group == host.links.ports).then_some(link.index))?;
    let mut containers = dump::our_routes(socket)?;
    containers.retain(|r| r.interface.is_some_and(|i| i == host.bridge || ports.contains(&i)));
    let in_use = |net: Ipv6Net| containers.iter().any(|route| net.contains(&route.destination));
    let mut own: Vec<_> =
        topology.prefixes().map(Prefix::gateway).chain(topology.resolver).collect();
    for net in our_unreachables(socket, &host.links)? {
        if !topology.prefixes().any(|prefix| prefix.net() == net) && !in_use(net) {
            proxy::forget(socket, &[net]).into_iter().try_for_each(Err)?;
            reach_again(socket, &host.links, net)?;
        } else {
            own.push(Ipv6Addr::from_bits(net.network().to_bits() | 1));
        }
    }
    for found in dump::addresses(socket)? {
        if found.interface != host.bridge || own.contains(&found.address) {
            continue;
        }
        let mut message = message::address(host.bridge, found.address);
        message.header.prefix_len = found.length;
        let doing = format!("remove {} from {}", found.address, host.links.bridge);
        gone_is_fine(socket.ack(doing, &Message::DelAddress(message), 0))?;
    }
    Ok(())
}

fn forward(socket: &mut RouteSocket, topology: &Topology, host: &Host) -> Result<(), Error> {
    match topology.forwarding {
        Forwarding::PerInterface => {
            if let Some(uplink) = &host.uplink {
                // It may have gone since, or have no IPv6.
                gone_is_fine(Conf::Link(uplink).ensure("force_forwarding", 1).map(drop))?;
            }
        }
        Forwarding::WholeHost => {
            if Conf::All.read("forwarding")? != Some(1) {
                keep_advertisements(socket, &host.links)?;
                Conf::All.write("forwarding", 1)?;
            }
        }
    }
    forward_from(host, &Folders::here()?.open(Conf::Link(&host.links.bridge))?)?;
    match &host.uplink {
        // It may have gone since, or have no IPv6.
        Some(uplink) if topology.proxy => {
            gone_is_fine(proxy::switch_on(socket, &host.links, uplink))
        }
        _ => Ok(()),
    }
}

/// Has what comes in by this link of ours, with these settings, forwarded.
pub(super) fn forward_from(host: &Host, link: &Folder) -> Result<(), Error> {
    let key = match host.forwarding {
        Forwarding::PerInterface => "force_forwarding",
        Forwarding::WholeHost => "forwarding",
    };
    link.ensure(key, 1).map(drop)
}

/// Has every interface that takes router advertisements as a host go on as a router: those that are
/// here, and those that come later, or a laptop would lose the network that it has not joined yet.
pub(super) fn keep_advertisements(socket: &mut RouteSocket, links: &Links) -> Result<(), Error> {
    let names = dump::links(socket, |link| {
        let ours = [links.ports, links.bridges].contains(&link.group);
        if ours { None } else { link.name.parse::<LinkName>().ok() }
    })?;
    let confs = names.iter().map(Conf::Link);
    for conf in confs.chain([Conf::Default]) {
        if conf.read("accept_ra")? == Some(1) {
            // It may have gone since.
            gone_is_fine(conf.write("accept_ra", 2))?;
        }
    }
    Ok(())
}

fn exists_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.already_exists() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
