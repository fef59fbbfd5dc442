//! All links, addresses, routes, neighbours: what a dump brings, reduced to what `read` keeps.

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::libc;

use super::PROTOCOL;
use super::error::Error;
use super::netlink::RouteSocket;
use super::view::{Address, Link, Neighbour, Route};

pub(super) fn links<T>(
    socket: &mut RouteSocket,
    mut read: impl FnMut(Link<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let message = Message::GetLink(message);
    socket.dump("list the links", &message, |kind, payload| match kind {
        libc::RTM_NEWLINK => read(Link::parse(payload)?),
        _ => None,
    })
}

/// All IPv6 addresses.
pub(super) fn addresses(socket: &mut RouteSocket) -> Result<Vec<Address>, Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    let message = Message::GetAddress(message);
    socket.dump("list the addresses", &message, |kind, payload| match kind {
        libc::RTM_NEWADDR => Address::parse(payload),
        _ => None,
    })
}

/// The IPv6 routes of all tables.
pub(super) fn routes(socket: &mut RouteSocket) -> Result<Vec<Route>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    dump_routes(socket, message)
}

/// The routes that bear our number. The kernel does the choosing.
pub(super) fn our_routes(socket: &mut RouteSocket) -> Result<Vec<Route>, Error> {
    routes_of(socket, PROTOCOL)
}

/// The routes of the main table that bear this number.
pub(super) fn routes_of(socket: &mut RouteSocket, protocol: u8) -> Result<Vec<Route>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(protocol);
    let mut routes = dump_routes(socket, message)?;
    routes.retain(|r| r.protocol == protocol);
    Ok(routes)
}

/// The IPv6 neighbours on all interfaces.
pub(super) fn neighbours<T>(
    socket: &mut RouteSocket,
    read: impl FnMut(Neighbour<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    dump_neighbours(socket, AddressFamily::Inet6, None, read)
}

/// The forwarding entries of one bridge's ports.
pub(super) fn forwarding<T>(
    socket: &mut RouteSocket,
    bridge: u32,
    read: impl FnMut(Neighbour<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let limit = Some(NeighbourAttribute::Controller(bridge));
    dump_neighbours(socket, AddressFamily::Bridge, limit, read)
}

fn dump_routes(socket: &mut RouteSocket, message: RouteMessage) -> Result<Vec<Route>, Error> {
    let message = Message::GetRoute(message);
    socket.dump("list the routes", &message, |kind, payload| match kind {
        libc::RTM_NEWROUTE => Route::parse(payload),
        _ => None,
    })
}

fn dump_neighbours<T>(
    socket: &mut RouteSocket,
    family: AddressFamily,
    limit: Option<NeighbourAttribute>,
    mut read: impl FnMut(Neighbour<'_>) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes.extend(limit);
    let message = Message::GetNeighbour(message);
    socket.dump("list the neighbours", &message, |kind, payload| match kind {
        libc::RTM_NEWNEIGH => read(Neighbour::parse(payload)?),
        _ => None,
    })
}
