//! Giving an attachment back what somebody took from it: `ip route flush`, `ip neigh flush`, a bridge
//! that was deleted under its ports.
//!
//! Guarantees: a port that has lost its bridge is down until it is isolated again, so none is ever up
//! without; what is there already stays as it is.

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::LinkAttribute;

use super::error::Error;
use super::host::Host;
use super::message;
use super::observe::Observed;
use super::wire::{self, add_forwarding, add_neighbour, add_route};
use super::workers::Worker;
use crate::core::step::Port;

/// Whether all of the attachment is there, that of the port with this number.
pub fn is_whole(observed: &Observed, port: &Port, ifindex: u32) -> bool {
    let mac = port.mac.octets();
    observed.ports.iter().any(|seen| seen.ifindex == ifindex && seen.on_bridge)
        && observed.forwarding.contains(&(ifindex, mac))
        && observed.neighbours.contains(&(port.address, mac))
        && observed.routes.contains(&port.address)
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
    if observed.ports.iter().any(|seen| seen.ifindex == ifindex && !seen.on_bridge) {
        let down = message::set_up(message::link(ifindex), false);
        worker.socket.ack(format!("switch {} off", port.name), &Message::SetLink(down), 0)?;
        let mut link = message::link(ifindex);
        link.attributes.push(LinkAttribute::Controller(host.bridge));
        let doing = format!("put {} back on its bridge", port.name);
        worker.socket.ack(doing, &Message::SetLink(link), 0)?;
        wire::guard_port(worker, port, ifindex)?;
        add_forwarding(&mut worker.socket, ifindex, port.mac)?;
        let up = message::set_up(message::link(ifindex), true);
        worker.socket.ack(format!("switch {} on", port.name), &Message::SetLink(up), 0)?;
    }
    let socket = &mut worker.socket;
    add_forwarding(socket, ifindex, port.mac)?;
    add_neighbour(socket, host, port)?;
    match add_route(socket, host, port) {
        Err(error) if error.already_exists() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host::prepare;
    use crate::kernel::observe::observe;
    use crate::kernel::testing::{Bench, Container, in_netns, port, sh};

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
