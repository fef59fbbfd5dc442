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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host::{purge, remove_all_ports};
    use crate::kernel::testing::{Bench, Container, in_netns, port, sh};

    #[test]
    fn what_is_there_is_seen_and_what_is_others_is_not() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let ifindex = bench.attach(&container, &port(1));
            // Somebody else's: a port, a route and an entry on the same bridge.
            sh("ip link add v6kx type veth peer name v6ky && ip link set v6kx master v6k0 up");
            sh("ip -6 route add 2001:db8:9::9 dev v6k0");
            sh("bridge fdb add 02:00:00:00:00:99 dev v6kx master static");
            let seen = observe(&mut bench.worker.socket, &bench.host.links).unwrap();
            let expected = ObservedPort {
                ifindex,
                name: "v6k-1".into(),
                alias: "v6pod test 1".into(),
                up: true,
                on_bridge: true,
            };
            assert_eq!(seen.ports, [expected]);
            assert_eq!(seen.routes, [port(1).address]);
            assert_eq!(seen.neighbours, [(port(1).address, port(1).mac.octets())]);
            assert_eq!(seen.forwarding, [(ifindex, port(1).mac.octets())]);
            assert_eq!(seen.bridge, Some(bench.host.bridge));
        });
    }

    #[test]
    fn strays_are_removed_one_by_one_and_twice_is_fine() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let ifindex = bench.attach(&container, &port(1));
            let links = bench.host.links.clone();
            let socket = &mut bench.worker.socket;
            let seen = observe(socket, &links).unwrap();
            let strays = [
                Stray::Port(ifindex),
                Stray::Route(port(1).address),
                Stray::Neighbour(port(1).address),
            ];
            for stray in strays.into_iter().chain(strays) {
                remove_stray(socket, &seen, stray).unwrap();
            }
            let bridge = Some(bench.host.bridge);
            let nothing = Observed { bridge, ..Observed::default() };
            assert_eq!(observe(socket, &links).unwrap(), nothing);
        });
    }

    #[test]
    fn all_ports_go_at_once_and_the_bridge_stays_until_purged() {
        in_netns(|| {
            let before = sh("ip -o link; ip -6 route; ip -6 addr");
            let mut bench = Bench::new();
            let containers = [Container::new(), Container::new(), Container::new()];
            for (n, container) in (1..).zip(&containers) {
                bench.attach(container, &port(n));
            }
            let links = bench.host.links.clone();
            let socket = &mut bench.worker.socket;
            for _ in 0..2 {
                remove_all_ports(socket, &links).unwrap();
                assert_eq!(observe(socket, &links).unwrap().ports, []);
            }
            assert!(sh("ip -o link").contains("v6k0"));
            for _ in 0..2 {
                let errors = purge(socket, &links);
                assert!(errors.is_empty(), "{errors:?}");
                assert_eq!(observe(socket, &links).unwrap(), Observed::default());
            }
            assert_eq!(sh("ip -o link; ip -6 route; ip -6 addr"), before);
        });
    }
}
