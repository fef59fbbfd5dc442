//! What of this instance is in the kernel, for adoption after a restart and for finding leaks.
//!
//! Guarantee: only what is certainly ours is seen: links of our groups, and on our bridge and ports what
//! bears our protocol number. So only that can be removed as a stray.

use std::collections::HashSet;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::libc;

use super::dump;
use super::error::{Error, gone_is_fine};
use super::host::find_bridge;
use super::message;
use super::netlink::RouteSocket;
use super::wire;
use crate::core::links::Links;
use crate::core::subnet::Length;

/// All of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The bridge's interface number; none if it is gone. Its routes, neighbours and forwarding entries
    /// went with it then.
    pub bridge: Option<u32>,
    /// The links of the ports' group.
    pub ports: Vec<ObservedPort>,
    /// The addresses with a /128 route by the bridge or a port, and that link's number.
    pub routes: Vec<(Ipv6Addr, u32)>,
    /// The subnets with a route by the bridge or a port and a gateway there, and that link's number.
    pub subnets: Vec<(Ipv6Net, u32)>,
    /// The addresses with a permanent neighbour entry on the bridge or a port, that link's number, and
    /// their Ethernet addresses.
    pub neighbours: Vec<(Ipv6Addr, u32, [u8; 6])>,
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
    /// Whether it is up: an attachment.
    pub up: bool,
    /// The bridge that it is a port of: ours, or one that somebody has put it in.
    pub master: Option<u32>,
}

/// One thing that should not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// A port, by its interface number.
    Port(u32),
    /// A container's route, by the link of this number.
    Route(Ipv6Addr, u32),
    /// A neighbour entry, on the link of this number.
    Neighbour(Ipv6Addr, u32),
    /// A subnet's route, by the link of this number.
    Subnet(Ipv6Net, u32),
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
            master: link.master,
        })
    })?;
    let numbers: HashSet<u32> = ports.iter().map(|port| port.ifindex).collect();
    let is_ours = |link: u32| Some(link) == bridge || numbers.contains(&link);
    let all = dump::our_routes(socket)?;
    let routes = all.iter().filter(|route| route.length == 128);
    let subnets = all.iter().filter(|route| route.gateway).filter_map(|route| {
        let net = Length::new(route.length)?.around(route.destination);
        Some((net, route.interface.filter(|link| is_ours(*link))?))
    });
    Ok(Observed {
        bridge,
        routes: routes
            .filter_map(|r| Some((r.destination, r.interface.filter(|link| is_ours(*link))?)))
            .collect(),
        subnets: subnets.collect(),
        neighbours: dump::neighbours(socket, |entry| {
            let ours = entry.state == libc::NUD_PERMANENT && is_ours(entry.interface);
            let mac = entry.mac.try_into().ok().filter(|_| ours)?;
            Some((entry.address?, entry.interface, mac))
        })?,
        forwarding: match bridge {
            None => Vec::new(),
            Some(bridge) => dump::forwarding(socket, bridge, |entry| {
                let ours = entry.state == libc::NUD_NOARP && numbers.contains(&entry.interface);
                if ours { Some((entry.interface, entry.mac.try_into().ok()?)) } else { None }
            })?,
        },
        ports,
    })
}

/// Removes one thing that was observed. A port costs the kernel some 20 ms; many at once are cheaper
/// by [`remove_all_ports`](super::host::remove_all_ports).
pub fn remove_stray(socket: &mut RouteSocket, stray: Stray) -> Result<(), Error> {
    match stray {
        Stray::Port(index) => {
            let link = Message::DelLink(message::link(index));
            gone_is_fine(socket.ack(format!("delete the port {index}"), &link, 0))
        }
        Stray::Route(address, link) => wire::remove_route(socket, link, address),
        Stray::Neighbour(address, link) => wire::remove_neighbour(socket, link, address),
        Stray::Subnet(net, link) => wire::remove_subnet(socket, link, net),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host::{purge, remove_all_ports};
    use crate::kernel::testing::{Bench, Container, in_netns, port, routed, sh};

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
                master: Some(bench.host.bridge),
            };
            assert_eq!(seen.ports, [expected]);
            assert_eq!(seen.routes, [(port(1).address, bench.host.bridge)]);
            let mac = port(1).mac.octets();
            assert_eq!(seen.neighbours, [(port(1).address, bench.host.bridge, mac)]);
            assert_eq!(seen.forwarding, [(ifindex, mac)]);
            assert_eq!(seen.bridge, Some(bench.host.bridge));
        });
    }

    #[test]
    fn of_a_routed_port_its_own_entries_are_seen_with_and_without_a_bridge() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let ifindex = bench.attach(&container, &routed(1));
            let links = bench.host.links.clone();
            let mut seen = observe(&mut bench.worker.socket, &links).unwrap();
            assert_eq!(seen.ports[0].master, None);
            assert_eq!(seen.routes, [(routed(1).address, ifindex)]);
            let mac = routed(1).mac.octets();
            assert_eq!(seen.neighbours, [(routed(1).address, ifindex, mac)]);
            assert_eq!(seen.forwarding, []);
            sh("ip link del v6k0");
            seen.bridge = None;
            assert_eq!(observe(&mut bench.worker.socket, &links).unwrap(), seen);
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
            let bridge = bench.host.bridge;
            // By somebody who bears our number, by whichever address.
            let stray = "2001:db8:1:2:3:8::/96 via 2001:db8:1:2:3::1001 dev v6k0 proto 118";
            sh(&format!("ip -6 route add {stray}"));
            assert_eq!(observe(socket, &links).unwrap().subnets.len(), 1);
            let strays = [
                Stray::Port(ifindex),
                Stray::Route(port(1).address, bridge),
                Stray::Neighbour(port(1).address, bridge),
                Stray::Subnet("2001:db8:1:2:3:8::/96".parse().unwrap(), bridge),
                // By a link that is no more.
                Stray::Route(port(1).address, ifindex),
                Stray::Neighbour(port(1).address, ifindex),
            ];
            for stray in strays.into_iter().chain(strays) {
                remove_stray(socket, stray).unwrap();
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
                bench.attach(container, &if n == 2 { routed(n) } else { port(n) });
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
