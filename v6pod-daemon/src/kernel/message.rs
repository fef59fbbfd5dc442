//! The messages that more than one module sends.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::libc;
use v6pod_proto::{LinkName, Mac};

use super::PROTOCOL;
use super::error::{Cause, Error};
use super::netlink::RouteSocket;
use super::view;

/// `IF_OPER_UP`.
const OPERATIONAL: u8 = 6;

/// One link as a lookup by name finds it.
#[derive(Debug, Clone)]
pub(super) struct FoundLink {
    pub(super) index: u32,
    pub(super) group: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) is_bridge: bool,
    /// Whether it carries packets: it is up, and so is its other end.
    pub(super) running: bool,
    pub(super) peer: Option<u32>,
    pub(super) mac: Vec<u8>,
}

/// The link of that name; none if there is none.
pub(super) fn find_link(
    socket: &mut RouteSocket,
    name: &LinkName,
) -> Result<Option<FoundLink>, Error> {
    look_up(socket, format!("look up {name}"), &find_by_name(name.as_str()))
}

/// The link of that number; none if there is none.
pub(super) fn find_by_index(
    socket: &mut RouteSocket,
    index: u32,
) -> Result<Option<FoundLink>, Error> {
    look_up(socket, format!("look up link {index}"), &RouteNetlinkMessage::GetLink(link(index)))
}

fn look_up(
    socket: &mut RouteSocket,
    doing: String,
    question: &RouteNetlinkMessage,
) -> Result<Option<FoundLink>, Error> {
    let read = |_, payload: &[u8]| {
        let link = view::Link::parse(payload)?;
        Some(FoundLink {
            index: link.index,
            group: link.group,
            mtu: link.mtu,
            up: link.is_up(),
            running: link.state == OPERATIONAL,
            is_bridge: link.kind == "bridge",
            peer: link.peer,
            mac: link.mac.to_vec(),
        })
    };
    match socket.get(doing, question, read) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        other => other,
    }
}

/// The question for the link of that name.
pub(super) fn find_by_name(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// The link of that name if it is in that group: one of ours. A link of the name and of another group
/// is an error.
pub(super) fn find_ours(
    socket: &mut RouteSocket,
    name: &LinkName,
    group: u32,
) -> Result<Option<FoundLink>, Error> {
    match find_link(socket, name)? {
        Some(link) if link.group != group => {
            Err(Error::new(format!("take {name}"), Cause::NotOurs(name.clone())))
        }
        other => Ok(other),
    }
}

/// Whether packets to that address are for this namespace itself.
pub fn is_local(socket: &mut RouteSocket, address: Ipv6Addr) -> Result<bool, Error> {
    Ok(kind_of_route(socket, address, None)? == Some(libc::RTN_LOCAL))
}

/// The kind (`RTN_*`) of the route by which this namespace sends to that address, if it is to leave by that
/// link. Of a link that has no such route, an error.
pub(super) fn kind_of_route(
    socket: &mut RouteSocket,
    address: Ipv6Addr,
    link: Option<u32>,
) -> Result<Option<u8>, Error> {
    let mut question = route_to(address);
    question.attributes.extend(link.map(RouteAttribute::Oif));
    let question = RouteNetlinkMessage::GetRoute(question);
    socket.get(looking_up(address), &question, |_, payload| Some(view::Route::parse(payload)?.kind))
}

/// The address that this namespace sends with to that one unless its sender says another; none if it
/// knows no way there.
pub fn source_for(socket: &mut RouteSocket, address: Ipv6Addr) -> Result<Option<Ipv6Addr>, Error> {
    let read = |_, payload: &[u8]| view::preferred_source(payload);
    let question = RouteNetlinkMessage::GetRoute(route_to(address));
    match socket.get(looking_up(address), &question, read) {
        Err(error) if error.errno().is_some() => Ok(None),
        other => other,
    }
}

fn looking_up(address: Ipv6Addr) -> String {
    format!("look up the route to {address}")
}

fn route_to(address: Ipv6Addr) -> RouteMessage {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet6;
    question.header.destination_prefix_length = 128;
    question.attributes.push(RouteAttribute::Destination(address.into()));
    question
}

/// The beginning of a message about an existing link.
pub(super) fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Has the message switch the link on or off as well.
pub(super) fn set_up(mut message: LinkMessage, up: bool) -> LinkMessage {
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message
}

/// No link-local address, now or later. In a message that also switches the link on, the kernel would
/// read this second (`do_setlink`), when the address may be there already.
pub(super) fn no_link_local() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

/// A /128 of an interface, usable at once: without duplicate address detection (addresses are drawn by
/// one daemon, and nothing else can answer on a port), and without a route to itself by the link.
pub(super) fn address(interface: u32, address: Ipv6Addr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = interface;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    message
}

/// How long an address is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// Until it is taken away.
    Forever,
    /// Nothing new begins with it (RFC 4862, section 5.5.4), and it is valid for so many seconds at most.
    Deprecated(u32),
}

/// [`address`], for so long. Without lifetimes Linux leaves one that is there as it is.
pub(super) fn lasting_address(interface: u32, of: Ipv6Addr, lifetime: Lifetime) -> AddressMessage {
    let mut times = CacheInfo::default();
    (times.ifa_preferred, times.ifa_valid) = match lifetime {
        Lifetime::Forever => (u32::MAX, u32::MAX),
        Lifetime::Deprecated(valid) => (0, valid.max(1)),
    };
    let mut message = address(interface, of);
    message.attributes.push(AddressAttribute::CacheInfo(times));
    message
}

/// A route of our protocol number in the main table.
pub(super) fn route(
    kind: RouteType,
    destination: Option<(Ipv6Addr, u8)>,
    attributes: impl IntoIterator<Item = RouteAttribute>,
) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = kind;
    if let Some((address, length)) = destination {
        message.header.destination_prefix_length = length;
        message.attributes.push(RouteAttribute::Destination(address.into()));
    }
    message.attributes.extend(attributes);
    message
}

/// The /128 route of a container by the bridge or its port.
pub(super) fn container_route(link: u32, address: Ipv6Addr) -> RouteMessage {
    route(RouteType::Unicast, Some((address, 128)), [RouteAttribute::Oif(link)])
}

/// The route of a container's subnet by the bridge or its port: to whom the first address is.
pub(super) fn subnet_route(link: u32, net: Ipv6Net) -> RouteMessage {
    let by = [RouteAttribute::Gateway(net.network().into()), RouteAttribute::Oif(link)];
    route(RouteType::Unicast, Some((net.network(), net.prefix_len())), by)
}

/// The route that has a namespace take a subnet for its own.
pub(super) fn local_route(loopback: u32, net: Ipv6Net) -> RouteMessage {
    let by = [RouteAttribute::Oif(loopback)];
    let mut message = route(RouteType::Local, Some((net.network(), net.prefix_len())), by);
    message.header.table = libc::RT_TABLE_LOCAL;
    message
}

/// A neighbour entry that nothing on the link can change.
pub(super) fn neighbour(link: u32, address: Ipv6Addr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)));
    if let Some(mac) = mac {
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    }
    message
}
