//! The kernel's part in a subnet that is a container's as a whole (AnyIP): a route to it by its first
//! address, which has what every address has, and inside a local one.

use ipnet::Ipv6Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAttribute, RouteType};

use super::{LOOPBACK, each, remove_route};
use crate::core::step::Port;
use crate::kernel::error::{Error, gone_is_fine};
use crate::kernel::message;
use crate::kernel::netlink::RouteSocket;

/// Does it for the port, and for it with each of its subnets alone.
pub(super) fn with_subnets(
    port: &Port,
    mut job: impl FnMut(&Port) -> Result<(), Error>,
) -> Result<(), Error> {
    job(port)?;
    port.subnets().try_for_each(|also| job(&port.with(also)))
}

/// The route to the subnet that the port is about, if it is about one: by the subnet's first address, which has
/// its own route and neighbour entry. Exclusive, too.
pub(in crate::kernel) fn add_subnet(
    socket: &mut RouteSocket,
    link: u32,
    port: &Port,
) -> Result<(), Error> {
    let Some(length) = port.subnet else { return Ok(()) };
    let net = length.around(port.address);
    let route = message::subnet_route(link, net);
    let doing = format!("add the route to {net}");
    socket.ack(doing, &Message::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes the routes to all of the port's addresses and subnets, whatever fails on the way: the first error.
pub(in crate::kernel) fn remove_routes(
    socket: &mut RouteSocket,
    link: u32,
    port: &Port,
) -> Result<(), Error> {
    let mut done = Ok(());
    for net in port.nets().filter(|net| net.prefix_len() < 128) {
        done = done.and(remove_subnet(socket, link, net));
    }
    done.and(each(port, |address| remove_route(socket, link, address)))
}

pub(in crate::kernel) fn remove_subnet(
    socket: &mut RouteSocket,
    link: u32,
    net: Ipv6Net,
) -> Result<(), Error> {
    // Whatever its gateway is: one that somebody has made goes too.
    let by_link = [RouteAttribute::Oif(link)];
    let whole = Some((net.network(), net.prefix_len()));
    let route = message::route(RouteType::Unicast, whole, by_link);
    let doing = format!("remove the route to {net}");
    gone_is_fine(socket.ack(doing, &Message::DelRoute(route), 0))
}

/// Has the namespace take all addresses of the subnet for its own (AnyIP): whoever listens on any address listens
/// on all of them.
pub(in crate::kernel) fn make_local(socket: &mut RouteSocket, net: Ipv6Net) -> Result<(), Error> {
    let doing = format!("have {net} be local");
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    socket.ack(doing, &Message::NewRoute(message::local_route(LOOPBACK, net)), flags)
}

/// The reverse.
pub(in crate::kernel) fn unmake_local(socket: &mut RouteSocket, net: Ipv6Net) -> Result<(), Error> {
    let doing = format!("have {net} be local no more");
    gone_is_fine(socket.ack(doing, &Message::DelRoute(message::local_route(LOOPBACK, net)), 0))
}
