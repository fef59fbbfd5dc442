//! The steps of an attachment, run and undone.
//!
//! Guarantees:
//! - A port is isolated, has no address of its own and learns nothing before it is up; it is up only
//!   after everything else of the attachment stands.
//! - Nothing that a container's owner does in his namespace between two steps reaches further than his
//!   namespace: from the host's side only the host's end is touched, by its number, and inside only
//!   his own interface.
//! - Undoing needs neither the namespace nor the memory of having done: names and addresses are
//!   enough, what is gone is fine, and a link that is not in our group is never deleted.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    BridgeMulticastRouterType, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::errno::Errno;

use super::error::{Cause, Error, gone_is_fine};
use super::host::Host;
use super::message::{self, find_link, find_ours};
use super::namespace::NetNs;
use super::netlink::RouteSocket;
use super::sysctl::Conf;
use super::workers::{Inside, Worker};
use crate::core::ruleset::Elements;
use crate::core::step::{Port, Step, attach};

/// The metric of the default route inside: before netavark's 100. Where a container has a network of
/// podman's with a way out besides, answers must leave by the address that they were asked at.
const DEFAULT_ROUTE_METRIC: u32 = 64;

/// Every network namespace's loopback interface has this number (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// One port in the making.
#[derive(Debug)]
pub struct Wire<'a> {
    worker: &'a mut Worker,
    host: &'a Host,
    port: &'a Port,
    namespace: &'a NetNs,
    ends: Option<Ends>,
}

/// The numbers of a veth pair's ends, each in its own namespace.
#[derive(Debug, Clone, Copy)]
struct Ends {
    port: u32,
    peer: u32,
}

impl<'a> Wire<'a> {
    /// Prepares to run steps for one port and the namespace that it leads to.
    pub fn new(
        worker: &'a mut Worker,
        host: &'a Host,
        port: &'a Port,
        namespace: &'a NetNs,
    ) -> Self {
        Self { worker, host, port, namespace, ends: None }
    }

    /// The interface number of the port; none before [`Step::Pair`].
    pub fn ifindex(&self) -> Option<u32> {
        self.ends.map(|ends| ends.port)
    }

    /// Runs one step. After an error, this step must be undone as well: it may be half done.
    ///
    /// [`Step::Pair`]: [`Error::name_taken`] if the container has an interface of that name,
    /// [`Error::is_full`] if the bridge has no port left. Any step: [`Error::is_gone`] if the
    /// container's owner took the interface away meanwhile.
    pub fn run(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Rules => {
                let elements = Elements::of(self.port);
                self.worker.rules.add(&self.host.links, &elements)
            }
            Step::Pair => self.pair(),
            Step::Guard => self.guard(),
            Step::Forwarding => self.forwarding(),
            Step::Neighbour => {
                let entry =
                    message::neighbour(self.host.bridge, self.port.address, Some(self.port.mac));
                let flags = NLM_F_CREATE | NLM_F_REPLACE;
                let doing = format!("add the neighbour {}", self.port.address);
                self.worker.socket.ack(doing, &Message::NewNeighbour(entry), flags)
            }
            Step::Route => {
                let route = message::container_route(self.host.bridge, self.port.address);
                let doing = format!("add the route to {}", self.port.address);
                // Exclusive: a route of somebody else's is an error, not something to replace.
                self.worker.socket.ack(doing, &Message::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
            }
            Step::Inside => {
                let (port, peer) = (self.port, self.ends()?.peer);
                self.worker.inside(self.namespace, |inside| configure(inside, port, peer))
            }
            Step::Up => {
                let mut link = message::set_up(message::link(self.ends()?.port), true);
                link.attributes.push(LinkAttribute::IfAlias(self.port.alias.clone()));
                let doing = format!("switch {} on", self.port.name);
                self.worker.socket.ack(doing, &Message::SetLink(link), 0)
            }
        }
    }

    /// Makes both ends in one message: there is no moment in which the host's end is without master
    /// and group, or the container's end in the wrong namespace. (Alias, address generation mode and
    /// port flags are refused or ignored in that message.)
    fn pair(&mut self) -> Result<(), Error> {
        let port = self.port;
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(port.interface.to_string()),
            LinkAttribute::Address(port.mac.octets().to_vec()),
            LinkAttribute::Mtu(port.mtu),
            LinkAttribute::NetNsFd(self.namespace.as_fd().as_raw_fd()),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(port.name.to_string()),
            LinkAttribute::Mtu(port.mtu),
            LinkAttribute::Controller(self.host.bridge),
            LinkAttribute::Group(self.host.links.ports),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let doing = format!("make the pair {} and {}", port.name, port.interface);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.worker.socket.ack(doing.clone(), &Message::NewLink(link), flags) {
            Err(error) if error.already_exists() => Err(self.which_exists(doing, error)),
            Err(error) => Err(error),
            Ok(()) => self.ends().map(drop),
        }
    }

    /// EEXIST is said of either end's name.
    fn which_exists(&mut self, doing: String, error: Error) -> Error {
        match find_link(&mut self.worker.socket, &self.port.name) {
            Ok(None) => Error::new(doing, Cause::NameTaken(self.port.interface.clone())),
            _ => error,
        }
    }

    /// The ends' numbers, by the port's name, which only root could have taken over since.
    fn ends(&mut self) -> Result<Ends, Error> {
        if let Some(ends) = self.ends {
            return Ok(ends);
        }
        let name = &self.port.name;
        let found = find_ours(&mut self.worker.socket, name, self.host.links.ports)?;
        let ends = found.and_then(|link| Some(Ends { port: link.index, peer: link.peer? }));
        // Whoever owns the other end may delete the pair at any time.
        let gone = || Cause::Kernel { errno: Errno::ENODEV, text: None };
        let ends = ends.ok_or_else(|| Error::new(format!("find {name}"), gone()))?;
        self.ends = Some(ends);
        Ok(ends)
    }

    fn guard(&mut self) -> Result<(), Error> {
        // The port's own IPv6 is switched off: it never has an address, sends no solicitations and
        // hears no advertisements, not even if somebody takes it out of the bridge (threats 6, 16).
        // The bridge does not mind.
        Conf::Link(&self.port.name).write("disable_ipv6", 1)?;
        let index = self.ends()?.port;
        match self.set_port_flags(index, true) {
            // Linux before 5.18 has no locked ports. The rest is what must be.
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {
                self.set_port_flags(index, false)
            }
            other => other,
        }
    }

    fn set_port_flags(&mut self, index: u32, locked: bool) -> Result<(), Error> {
        let mut flags = vec![
            InfoBridgePort::Isolated(true),
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(false),
            InfoBridgePort::BroadcastFlood(false),
            // Frames for the port's own neighbours never turn round in it.
            InfoBridgePort::HairpinMode(false),
            // With it, the bridge itself would answer for siblings' addresses, out of the permanent
            // neighbours: nobody has business knowing their Ethernet addresses.
            InfoBridgePort::NeighSupress(false),
            // MLD queries or PIM hellos do not make a container a router.
            InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::Disabled),
        ];
        if locked {
            flags.push(InfoBridgePort::Locked(true));
        }
        let mut link = message::link(index);
        link.attributes = vec![
            message::no_link_local(),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(flags)),
            ]),
        ];
        // RTM_SETLINK ignores port data; RTM_NEWLINK without NLM_F_CREATE changes what is there.
        let doing = format!("isolate {}", self.port.name);
        self.worker.socket.ack(doing, &Message::NewLink(link), 0)
    }

    fn forwarding(&mut self) -> Result<(), Error> {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Bridge;
        entry.header.ifindex = self.ends()?.port;
        // Static, and sticky: no other port can draw it over by sending with that address.
        entry.header.state = NeighbourState::Noarp;
        entry.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
        let mac = self.port.mac.octets().to_vec();
        entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac));
        let doing = format!("add the forwarding entry of {}", self.port.mac);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.worker.socket.ack(doing, &Message::NewNeighbour(entry), flags)
    }
}

/// Undoes one step, whether or not it was ever run. [`Step::Pair`] takes some 20 ms of the kernel's
/// time (RCU), [`Step::Up`] some of it: not on a request's path.
pub fn undo(worker: &mut Worker, host: &Host, port: &Port, step: &Step) -> Result<(), Error> {
    let socket = &mut worker.socket;
    match step {
        // Last of all undone: nothing of the port is there any more. What conntrack remembers goes
        // after the elements: a flow that still is one would outlive its permission by days.
        Step::Rules => {
            let removed = worker.rules.remove(&host.links, &Elements::of(port));
            let forgotten = worker.rules.forget_flows(port.address);
            removed.and(forgotten)
        }
        Step::Pair => {
            let Some(link) = find_port(socket, host, port)? else { return Ok(()) };
            let doing = format!("delete {}", port.name);
            gone_is_fine(socket.ack(doing, &Message::DelLink(message::link(link)), 0))
        }
        // First of all undone: a port that is up is a whole attachment, at every moment.
        Step::Up => {
            let Some(link) = find_port(socket, host, port)? else { return Ok(()) };
            let link = message::set_up(message::link(link), false);
            let doing = format!("switch {} off", port.name);
            gone_is_fine(socket.ack(doing, &Message::SetLink(link), 0))
        }
        Step::Neighbour => remove_neighbour(socket, host.bridge, port.address),
        Step::Route => remove_route(socket, host.bridge, port.address),
        Step::Guard | Step::Forwarding | Step::Inside => Ok(()),
    }
}

/// Undoes all steps, in reverse, whatever fails on the way: what failed is the answer.
pub fn undo_all(worker: &mut Worker, host: &Host, port: &Port) -> Vec<Error> {
    let steps = attach();
    steps.iter().rev().filter_map(|step| undo(worker, host, port, step).err()).collect()
}

/// Whether the port's other end is in that namespace, as far as can be seen: there is an interface with
/// the number and Ethernet address that the port's other end has, whose own other end is the port. Its
/// owner could build one like it in another namespace of his. For kernels without cookies.
pub fn leads_to(
    worker: &mut Worker,
    host: &Host,
    port: &Port,
    namespace: &NetNs,
) -> Result<bool, Error> {
    let found = find_ours(&mut worker.socket, &port.name, host.links.ports)?;
    let Some(ends) = found.and_then(|link| Some(Ends { port: link.index, peer: link.peer? }))
    else {
        return Ok(false);
    };
    worker.inside(namespace, |inside| {
        let peer = message::find_by_index(&mut inside.socket, ends.peer)?;
        Ok(peer.is_some_and(|peer| peer.mac == port.mac.octets() && peer.peer == Some(ends.port)))
    })
}

pub(super) fn remove_route(
    socket: &mut RouteSocket,
    bridge: u32,
    address: std::net::Ipv6Addr,
) -> Result<(), Error> {
    let route = message::container_route(bridge, address);
    let doing = format!("remove the route to {address}");
    gone_is_fine(socket.ack(doing, &Message::DelRoute(route), 0))
}

pub(super) fn remove_neighbour(
    socket: &mut RouteSocket,
    bridge: u32,
    address: std::net::Ipv6Addr,
) -> Result<(), Error> {
    let entry = message::neighbour(bridge, address, None);
    let doing = format!("remove the neighbour {address}");
    gone_is_fine(socket.ack(doing, &Message::DelNeighbour(entry), 0))
}

/// The port's number, if there is a link of that name in our group.
fn find_port(socket: &mut RouteSocket, host: &Host, port: &Port) -> Result<Option<u32>, Error> {
    match find_ours(socket, &port.name, host.links.ports) {
        Ok(link) => Ok(link.map(|link| link.index)),
        Err(error) if error.is_not_ours() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The container's end. There is no carrier yet, as the other end is down: an address without
/// duplicate detection is complete all the same, and routes are accepted on an interface that is
/// switched on.
fn configure(inside: &mut Inside, port: &Port, peer: u32) -> Result<(), Error> {
    let conf = Conf::Link(&port.interface);
    for (key, value) in [
        // Set inside as well as filtered outside (CVE-2020-10749 and its kin, threat 6). The owner can
        // change them, and then has himself to thank.
        ("accept_ra", 0),
        ("autoconf", 0),
        ("accept_redirects", 0),
        // Nobody answers them.
        ("router_solicitations", 0),
    ] {
        conf.write(key, value)?;
    }
    let socket = &mut inside.socket;
    let lo = message::set_up(message::link(LOOPBACK), true);
    socket.ack("switch the loopback on", &Message::SetLink(lo), 0)?;
    let mut link = message::set_up(message::link(peer), true);
    link.attributes.push(message::no_link_local());
    let name = &port.interface;
    socket.ack(format!("switch {name} on inside"), &Message::SetLink(link), 0)?;

    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let address = message::address(peer, port.address);
    socket.ack(format!("give {name} its address"), &Message::NewAddress(address), flags)?;
    let by_link = [RouteAttribute::Oif(peer)];
    let gateway = message::route(RouteType::Unicast, Some((port.gateway, 128)), by_link);
    socket.ack("add the route to the gateway", &Message::NewRoute(gateway), flags)?;
    let by_gateway = [
        RouteAttribute::Gateway(port.gateway.into()),
        RouteAttribute::Oif(peer),
        RouteAttribute::Priority(DEFAULT_ROUTE_METRIC),
    ];
    let default = message::route(RouteType::Unicast, None, by_gateway);
    socket.ack("add the default route", &Message::NewRoute(default), flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::observe::{Observed, observe};
    use crate::kernel::testing::{Bench, Container, eventually, in_netns, port, sh, try_sh};

    fn left(bench: &mut Bench) -> Observed {
        observe(&mut bench.worker.socket, &bench.host.links).unwrap()
    }

    fn empty(bench: &Bench) -> Observed {
        Observed { bridge: Some(bench.host.bridge), ..Observed::default() }
    }

    #[test]
    fn a_port_is_known_to_lead_to_its_own_container_only() {
        in_netns(|| {
            let mut bench = Bench::new();
            let (a, b) = (Container::new(), Container::new());
            bench.attach(&a, &port(1));
            bench.attach(&b, &port(2));
            for (container, n, leads) in [(&a, 1, true), (&b, 1, false), (&a, 2, false)] {
                let ns = container.verified(bench.worker.home());
                let found = leads_to(&mut bench.worker, &bench.host, &port(n), &ns).unwrap();
                assert_eq!(found, leads);
            }
        });
    }

    fn pings(container: &Container, address: &str) -> bool {
        container.enter(|| try_sh(&format!("ping -6 -n -c 1 -W 2 {address}")).0)
    }

    #[test]
    fn two_containers_reach_the_gateway_and_each_other_and_leave_nothing() {
        in_netns(|| {
            let mut bench = Bench::new();
            let (a, b) = (Container::new(), Container::new());
            let (first, second) = (bench.attach(&a, &port(1)), bench.attach(&b, &port(2)));
            assert_ne!(first, second);
            eventually("the gateway answers", || pings(&a, "2001:db8:1:2:3::1"));
            eventually("the neighbour answers", || pings(&a, "2001:db8:1:2:3::1002"));
            assert!(pings(&b, "2001:db8:1:2:3::1001"));
            let seen = left(&mut bench);
            assert_eq!(
                (seen.ports.len(), seen.routes.len(), seen.neighbours.len()),
                (2, 2, 2),
                "{seen:?}"
            );
            assert_eq!(seen.forwarding.len(), 2);
            for n in [1, 2] {
                assert!(undo_all(&mut bench.worker, &bench.host, &port(n)).is_empty());
            }
            assert_eq!(left(&mut bench), empty(&bench));
            assert!(!a.sh("ip -o link").contains("eth0"));
        });
    }

    #[test]
    fn the_interface_inside_has_one_address_and_is_complete_at_once() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            bench.attach(&container, &port(1));
            let addresses = container.sh("ip -6 -o addr show dev eth0");
            assert_eq!(addresses.lines().count(), 1, "{addresses}");
            assert!(addresses.contains("2001:db8:1:2:3::1001/128 scope global"), "{addresses}");
            assert!(!addresses.contains("tentative"), "{addresses}");
            let routes = container.sh("ip -6 route");
            assert!(routes.contains("default via 2001:db8:1:2:3::1 dev eth0"), "{routes}");
            for key in ["accept_ra", "autoconf", "accept_redirects"] {
                let value = container.sh(&format!("cat /proc/sys/net/ipv6/conf/eth0/{key}"));
                assert_eq!(value, "0\n", "{key}");
            }
            let link = container.sh("ip -o link show eth0");
            assert!(link.contains("02:00:00:00:00:01") && link.contains("mtu 1500"), "{link}");
            assert!(container.sh("ip -o link show lo").contains(",UP"));
        });
    }

    #[test]
    fn attack_06_07_32_a_port_is_isolated_quiet_and_without_address_before_it_is_up() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let (port, ns) = (port(1), container.verified(bench.worker.home()));
            let mut wire = Wire::new(&mut bench.worker, &bench.host, &port, &ns);
            for step in &attach()[..7] {
                assert!(!sh("ip -o link show v6k-1 2>/dev/null || :").contains(",UP"));
                wire.run(step).unwrap();
            }
            let flags = sh("bridge -d link show dev v6k-1");
            for flag in [
                "isolated on",
                "learning off",
                "flood off",
                "mcast_flood off",
                "bcast_flood off",
                "hairpin off",
                "neigh_suppress off",
                "locked on",
                "mcast_router 0",
            ] {
                assert!(flags.contains(flag), "{flag}: {flags}");
            }
            wire.run(&Step::Up).unwrap();
            eventually("both ends have a carrier", || {
                sh("ip -o link show v6k-1").contains("LOWER_UP")
            });
            assert_eq!(sh("ip -6 addr show dev v6k-1"), "");
            let fdb = sh("bridge fdb show dev v6k-1");
            assert!(fdb.contains("02:00:00:00:00:01") && fdb.contains("static"), "{fdb}");
            let link = sh("ip -o link show v6k-1");
            assert!(link.contains("alias v6pod test 1"), "{link}");
        });
    }

    #[test]
    fn any_beginning_of_the_steps_is_undone_and_undoing_twice_is_fine() {
        in_netns(|| {
            let mut bench = Bench::new();
            let port = port(1);
            for count in 0..=attach().len() {
                let container = Container::new();
                let ns = container.verified(bench.worker.home());
                let mut wire = Wire::new(&mut bench.worker, &bench.host, &port, &ns);
                for step in &attach()[..count] {
                    wire.run(step).unwrap();
                }
                for _ in 0..2 {
                    let errors = undo_all(&mut bench.worker, &bench.host, &port);
                    assert!(errors.is_empty(), "{count}: {errors:?}");
                    assert_eq!(left(&mut bench), empty(&bench), "after {count} steps");
                }
            }
        });
    }

    #[test]
    fn attack_29_an_interface_taken_away_between_steps_is_an_error_about_itself() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let (port, ns) = (port(1), container.verified(bench.worker.home()));
            for sabotage in ["ip link del eth0", "ip link set eth0 name eth9"] {
                let mut wire = Wire::new(&mut bench.worker, &bench.host, &port, &ns);
                for step in &attach()[..6] {
                    wire.run(step).unwrap();
                }
                container.sh(sabotage);
                let error = wire.run(&Step::Inside).unwrap_err();
                assert!(error.is_gone(), "{sabotage}: {error}");
                assert!(undo_all(&mut bench.worker, &bench.host, &port).is_empty());
                assert_eq!(left(&mut bench), empty(&bench), "{sabotage}");
            }
        });
    }

    #[test]
    fn a_name_taken_inside_is_told_from_a_name_taken_on_the_host() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            container.sh("ip link add eth0 type veth peer name eth0-peer");
            let (port, ns) = (port(1), container.verified(bench.worker.home()));
            let error =
                Wire::new(&mut bench.worker, &bench.host, &port, &ns).run(&Step::Pair).unwrap_err();
            assert_eq!(error.name_taken(), Some(&port.interface), "{error}");
            assert_eq!(left(&mut bench), empty(&bench));

            sh("ip link add v6k-1 type veth peer name v6k-other");
            let error =
                Wire::new(&mut bench.worker, &bench.host, &port, &ns).run(&Step::Pair).unwrap_err();
            assert!(error.already_exists() && error.name_taken().is_none(), "{error}");
            // And what is not ours stays when the step is undone.
            assert!(undo_all(&mut bench.worker, &bench.host, &port).is_empty());
            assert!(sh("ip -o link").contains("v6k-1"));
        });
    }
}
