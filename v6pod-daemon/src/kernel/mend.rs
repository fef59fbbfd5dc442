//! Giving an attachment back what somebody took from it: `ip route flush`, `ip neigh flush`, a bridge
//! that was deleted under its ports.
//!
//! Guarantees: a port that has lost its bridge is down until it is isolated again, so none is ever up
//! without; a routed port leaves whatever bridge it was put in; what is there already stays as it is.

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::LinkAttribute;
use v6pod_proto::Mode;

use super::error::Error;
use super::host::Host;
use super::message;
use super::netlink::RouteSocket;
use super::observe::{Observed, ObservedPort};
use super::wire::{self, add_forwarding, add_neighbour, add_route, add_subnet};
use super::workers::Worker;
use crate::core::step::Port;

/// Whether all of the attachment is there, that of the port with this number.
pub fn is_whole(observed: &Observed, port: &Port, ifindex: u32) -> bool {
    let mac = port.mac.octets();
    let Some(link) = port.link(observed.bridge, ifindex) else { return false };
    let forwarding = port.mode == Mode::Routed || observed.forwarding.contains(&(ifindex, mac));
    forwarding
        && observed.ports.iter().any(|seen| seen.ifindex == ifindex && in_place(seen, port, link))
        && port.addresses().all(|address| {
            observed.neighbours.contains(&(address, link, mac))
                && observed.routes.contains(&(address, link))
        })
        && port.subnets().all(|also| observed.subnets.contains(&(also.net(), link)))
}

/// Whether it is where it should be: a port of our bridge, or of none.
fn in_place(seen: &ObservedPort, port: &Port, link: u32) -> bool {
    match port.mode {
        Mode::Bridge => seen.master == Some(link),
        Mode::Routed => seen.master.is_none(),
    }
}

/// Puts back what is missing. Errors that the port is gone are the caller's to expect: its end is
/// told by other ways.
pub fn mend(
    worker: &mut Worker,
    host: &Host,
    observed: &Observed,
    port: &Port,
    ifindex: u32,
) -> Result<(), Error> {
    if port.mode == Mode::Routed {
        return mend_routed(worker, host, port, ifindex);
    }
    let is_astray = |seen: &&ObservedPort| !in_place(seen, port, host.bridge);
    if observed.ports.iter().filter(is_astray).any(|seen| seen.ifindex == ifindex) {
        let down = message::set_up(message::link(ifindex), false);
        worker.socket.ack(format!("switch {} off", port.name), &Message::SetLink(down), 0)?;
        let mut link = message::link(ifindex);
        link.attributes.push(LinkAttribute::Controller(host.bridge));
        let doing = format!("put {} back on its bridge", port.name);
        worker.socket.ack(doing, &Message::SetLink(link), 0)?;
        wire::guard_port(worker, host, port, ifindex)?;
        add_forwarding(&mut worker.socket, ifindex, port.mac)?;
        let up = message::set_up(message::link(ifindex), true);
        worker.socket.ack(format!("switch {} on", port.name), &Message::SetLink(up), 0)?;
    }
    add_forwarding(&mut worker.socket, ifindex, port.mac)?;
    mend_entries(worker, port, host.bridge)
}

fn mend_routed(worker: &mut Worker, host: &Host, port: &Port, ifindex: u32) -> Result<(), Error> {
    let mut link = message::link(ifindex);
    link.attributes.push(LinkAttribute::Controller(0));
    let doing = format!("take {} off all bridges", port.name);
    worker.socket.ack(doing, &Message::SetLink(link), 0)?;
    wire::guard_port(worker, host, port, ifindex)?;
    mend_entries(worker, port, ifindex)
}

fn mend_entries(worker: &mut Worker, port: &Port, link: u32) -> Result<(), Error> {
    add_entries(&mut worker.socket, link, port)?;
    let mut also = port.also.iter().map(|also| port.with(also));
    also.try_for_each(|other| add_entries(&mut worker.socket, link, &other))
}

/// The neighbour entry and the route of the address that the port is known by, and of a subnet that it is about
/// the route, unless they are there.
pub(super) fn add_entries(socket: &mut RouteSocket, link: u32, port: &Port) -> Result<(), Error> {
    let there_is_fine = |added: Result<(), Error>| match added {
        Err(error) if error.already_exists() => Ok(()),
        other => other,
    };
    add_neighbour(socket, link, port)?;
    there_is_fine(add_route(socket, link, port))?;
    there_is_fine(add_subnet(socket, link, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host::prepare;
    use crate::kernel::observe::observe;
    use crate::kernel::testing::{Bench, Container, in_netns, port, routed, sh};

    #[test]
    fn what_was_taken_comes_back_and_twice_is_fine() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let ifindex = bench.attach(&container, &port(1));
            let links = bench.host.links.clone();
            let whole = observe(&mut bench.worker.socket, &links).unwrap();
            assert!(is_whole(&whole, &port(1), ifindex));
            for harm in [
                "ip -6 route flush dev v6k0 proto 118",
                "ip -6 neigh flush dev v6k0 nud permanent",
                "bridge fdb del 02:00:00:00:00:01 dev v6k-1 master",
                "true",
            ] {
                sh(harm);
                for _ in 0..2 {
                    let seen = observe(&mut bench.worker.socket, &links).unwrap();
                    mend(&mut bench.worker, &bench.host, &seen, &port(1), ifindex).unwrap();
                }
                assert_eq!(observe(&mut bench.worker.socket, &links).unwrap(), whole, "{harm}");
            }
        });
    }

    #[test]
    fn what_was_taken_from_a_routed_port_comes_back_and_twice_is_fine() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let ifindex = bench.attach(&container, &routed(1));
            let links = bench.host.links.clone();
            let whole = observe(&mut bench.worker.socket, &links).unwrap();
            assert!(is_whole(&whole, &routed(1), ifindex));
            sh("ip link add v6kbr type bridge");
            for harm in [
                "ip -6 route flush dev v6k-1 proto 118",
                "ip -6 neigh flush dev v6k-1 nud permanent",
                "ip link set v6k-1 master v6kbr",
                "ip link set v6k-1 master v6k0",
                // Takes the entries with it.
                "ip link set v6k-1 down && ip link set v6k-1 up",
            ] {
                sh(harm);
                let seen = observe(&mut bench.worker.socket, &links).unwrap();
                assert!(!is_whole(&seen, &routed(1), ifindex), "{harm}");
                for _ in 0..2 {
                    let seen = observe(&mut bench.worker.socket, &links).unwrap();
                    mend(&mut bench.worker, &bench.host, &seen, &routed(1), ifindex).unwrap();
                }
                assert_eq!(observe(&mut bench.worker.socket, &links).unwrap(), whole, "{harm}");
            }
        });
    }

    #[test]
    fn a_port_whose_bridge_was_deleted_is_back_on_the_next_isolated() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let ifindex = bench.attach(&container, &port(1));
            sh("ip link del v6k0");
            bench.host = prepare(&mut bench.worker.socket, &bench.topology).unwrap();
            let links = bench.host.links.clone();
            let seen = observe(&mut bench.worker.socket, &links).unwrap();
            assert!(!is_whole(&seen, &port(1), ifindex));
            mend(&mut bench.worker, &bench.host, &seen, &port(1), ifindex).unwrap();
            let seen = observe(&mut bench.worker.socket, &links).unwrap();
            assert!(is_whole(&seen, &port(1), ifindex) && seen.ports[0].up, "{seen:?}");
            assert!(sh("bridge -d link show dev v6k-1").contains("isolated on"));
        });
    }
}
