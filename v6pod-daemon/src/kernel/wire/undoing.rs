//! The steps of an attachment, undone.
//!
//! Guarantee: undoing needs neither the namespace nor the memory of having done: names and addresses are
//! enough, what is gone is fine, and a link that is not in our group is never deleted.

use std::net::Ipv6Addr;

use netlink_packet_route::RouteNetlinkMessage as Message;
use v6pod_proto::Mode;

use super::find_port;
use super::subnets::remove_routes;
use crate::core::ruleset::Elements;
use crate::core::step::{Port, Step, detach};
use crate::failpoint;
use crate::kernel::error::{Error, gone_is_fine};
use crate::kernel::host::Host;
use crate::kernel::message::{self, find_link};
use crate::kernel::netlink::RouteSocket;
use crate::kernel::proxy;
use crate::kernel::workers::Worker;

/// Undoes one step, whether or not it was ever run. [`Step::Pair`] takes some 20 ms of the kernel's
/// time (RCU), [`Step::Up`] some of it: not on a request's path.
pub fn undo(worker: &mut Worker, host: &Host, port: &Port, step: &Step) -> Result<(), Error> {
    let socket = &mut worker.socket;
    match step {
        // Last of all undone: nothing of the port is there any more. What conntrack remembers goes
        // after the elements: a flow that still is one would outlive its permission by days.
        Step::Rules => {
            let removed = remove_elements(worker, host, port);
            let forgotten = worker.rules.forget_flows(&port.nets().collect());
            removed.and(forgotten)
        }
        Step::Pair => {
            let Some(index) = find_even_doomed(socket, host, port)? else { return Ok(()) };
            let doing = format!("delete {}", port.name);
            gone_is_fine(socket.ack(doing, &Message::DelLink(message::link(index)), 0))
        }
        // First of all undone: a port that is up is a whole attachment, at every moment.
        Step::Up => {
            let Some(link) = find_port(socket, host, port)? else { return Ok(()) };
            let link = message::set_up(message::link(link), false);
            let doing = format!("switch {} off", port.name);
            gone_is_fine(socket.ack(doing, &Message::SetLink(link), 0))
        }
        // On an uplink of before, the next look at all entries removes it.
        Step::Proxy => match host.answers {
            Some(link) => each(port, |address| proxy::remove(socket, (address, link))),
            None => Ok(()),
        },
        Step::Neighbour if port.mode == Mode::Bridge => {
            each(port, |address| remove_neighbour(socket, host.bridge, address))
        }
        Step::Route if port.mode == Mode::Bridge => remove_routes(socket, host.bridge, port),
        // Where many go together the port is up for a while yet.
        Step::Route => match find_even_doomed(socket, host, port)? {
            Some(index) => remove_routes(socket, index, port),
            None => Ok(()),
        },
        Step::Neighbour | Step::Guard | Step::Forwarding | Step::Inside => Ok(()),
    }
}

/// Does it for each of the port's addresses, whatever fails on the way: the first error.
pub(in crate::kernel) fn each(
    port: &Port,
    mut undo: impl FnMut(Ipv6Addr) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut done = Ok(());
    for address in port.addresses() {
        done = done.and(undo(address));
    }
    done
}

/// Removes the firewall's elements of all of the port's addresses.
pub(in crate::kernel) fn remove_elements(
    worker: &mut Worker,
    host: &Host,
    port: &Port,
) -> Result<(), Error> {
    let mut done = Ok(());
    for elements in Elements::of_all(port) {
        done = done.and(worker.rules.remove(&host.links, &elements));
    }
    done
}

/// Undoes all steps, in reverse, whatever fails on the way: what failed is the answer.
pub fn undo_all(worker: &mut Worker, host: &Host, port: &Port) -> Vec<Error> {
    let mut errors = Vec::new();
    for step in detach(port.mode) {
        errors.extend(undo(worker, host, port, step).err());
        failpoint::reach_step("undo", step);
    }
    errors
}

pub(in crate::kernel) fn remove_route(
    socket: &mut RouteSocket,
    link: u32,
    address: Ipv6Addr,
) -> Result<(), Error> {
    let route = message::container_route(link, address);
    let doing = format!("remove the route to {address}");
    gone_is_fine(socket.ack(doing, &Message::DelRoute(route), 0))
}

pub(in crate::kernel) fn remove_neighbour(
    socket: &mut RouteSocket,
    link: u32,
    address: Ipv6Addr,
) -> Result<(), Error> {
    let entry = message::neighbour(link, address, None);
    let doing = format!("remove the neighbour {address}");
    gone_is_fine(socket.ack(doing, &Message::DelNeighbour(entry), 0))
}

/// The port's number, also if a sweep has doomed it, which may have failed.
fn find_even_doomed(
    socket: &mut RouteSocket,
    host: &Host,
    port: &Port,
) -> Result<Option<u32>, Error> {
    let groups = [host.links.ports, host.links.doomed()];
    let link = find_link(socket, &port.name)?.filter(|link| groups.contains(&link.group));
    Ok(link.map(|link| link.index))
}
