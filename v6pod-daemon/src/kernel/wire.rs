//! The steps of an attachment: run here, undone in [`undoing`].
//!
//! Guarantees:
//! - A port is isolated or on no bridge, has no address of its own and learns nothing before it is up;
//!   it is up only after everything else of the attachment stands, but for the route of a routed port.
//! - Nothing that a container's owner does in his namespace between two steps reaches further than his
//!   namespace: from the host's side only the host's end is touched, by its number, and inside only
//!   his own interface.

use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{
    BridgeMulticastRouterType, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::errno::Errno;
use nix::libc;
use v6pod_proto::{Mac, Mode};

use super::error::{Cause, Error};
use super::host::{Host, forward_from};
use super::message::{self, find_by_index, find_link, find_ours, is_local};
use super::namespace::NetNs;
use super::netlink::RouteSocket;
use super::proxy;
use super::sysctl::Conf;
use super::workers::{Inside, Worker};
use crate::core::ruleset::Elements;
use crate::core::step::{Port, Step};

mod subnets;
mod undoing;

use subnets::with_subnets;
pub(super) use subnets::{add_subnet, make_local, remove_routes, remove_subnet, unmake_local};
pub(super) use undoing::{each, remove_elements, remove_neighbour, remove_route};
pub use undoing::{undo, undo_all};

/// The metric of the default route inside: before netavark's 100. Where a container has a network of
/// podman's with a way out besides, answers must leave by the address that they were asked at.
const DEFAULT_ROUTE_METRIC: u32 = 64;

/// All of IPv6's groups (RFC 4291, section 2.7), with a length of 8.
const MULTICAST: Ipv6Addr = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);

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
    /// A socket stays in the namespace that it was opened in, whichever thread uses it.
    inside: Option<RouteSocket>,
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
        Self { worker, host, port, namespace, ends: None, inside: None }
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
                let (rules, links) = (&mut self.worker.rules, &self.host.links);
                Elements::of_all(self.port).try_for_each(|elements| rules.add(links, &elements))
            }
            Step::Pair => self.pair(),
            Step::Guard => self.guard(),
            Step::Forwarding => self.forwarding(),
            Step::Neighbour => {
                let (link, socket) = (self.link()?, &mut self.worker.socket);
                with_subnets(self.port, |port| add_neighbour(socket, link, port))
            }
            Step::Route => {
                let (link, socket) = (self.link()?, &mut self.worker.socket);
                with_subnets(self.port, |port| {
                    add_route(socket, link, port)?;
                    add_subnet(socket, link, port)
                })
            }
            Step::Proxy => match self.host.answers {
                Some(link) => proxy::add(&mut self.worker.socket, (self.port.address, link)),
                None => Ok(()),
            },
            Step::Inside => {
                let (port, peer) = (self.port, self.ends()?.peer);
                let router = self.host.links.bridge_mac;
                let socket = self.worker.inside(self.namespace, |mut inside| {
                    configure(&mut inside, port, peer, router)?;
                    Ok::<_, Error>(inside.socket)
                })?;
                self.inside = Some(socket);
                Ok(())
            }
            Step::Up => {
                let link = message::set_up(message::link(self.ends()?.port), true);
                let doing = format!("switch {} on", self.port.name);
                self.worker.socket.ack(doing, &Message::SetLink(link), 0)
            }
        }
    }

    /// Waits, after [`Step::Up`], until packets can pass: some 0.1 ms. Two things come only a moment after
    /// they have been said to be done, and a first packet lost costs its sender a second:
    ///
    /// - An interface that has just got its carrier drops what it is to send until the kernel's link
    ///   watch has run. The bridge too has had none, if this is its first port.
    /// - An address hears nothing before a work queue has made its local route.
    ///
    /// Never longer than some 40 ms: if the owner has switched his end off, packets will never pass.
    /// By the clock, as the owner can make every look at his namespace slow (by a hundred thousand
    /// routing rules, say). So a first packet can be lost where the kernel's work queues are that late.
    /// Whether packets can pass.
    pub fn settle(&mut self) -> bool {
        const PAUSE: Duration = Duration::from_micros(50);
        const LONGEST: Duration = Duration::from_millis(40);

        let Some(ends) = self.ends else { return false };
        let began = Instant::now();
        while began.elapsed() < LONGEST {
            if self.passes(ends) {
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    /// Of a routed port nobody is asked who would have to wait for the link watch to end: to tell IPv6 of a
    /// carrier it looks at all routes of the host, 1 ms of five thousand, under the lock of all interfaces,
    /// and packets pass before. Each end's own route for multicast is made in between.
    fn passes(&mut self, ends: Ends) -> bool {
        let (host, address) = (&mut self.worker.socket, self.port.address);
        let outside = match self.port.mode {
            Mode::Routed => reaches_groups(host, ends.port),
            // To ask makes the link watch run at once (Linux 6.8).
            Mode::Bridge => is_running(host, ends.port) && is_running(host, self.host.bridge),
        };
        outside
            && self.inside.as_mut().is_none_or(|socket| {
                let carries = match self.port.mode {
                    Mode::Routed => reaches_groups(socket, ends.peer),
                    Mode::Bridge => is_running(socket, ends.peer),
                };
                carries && is_local(socket, address).unwrap_or(true)
            })
    }

    /// Takes a routed port's route for all multicast away, which Linux makes when it has its carrier: after
    /// [`Wire::settle`]. The routes `ff00::/8` of all ports would be one list, which is walked from end to
    /// end to add another, and whenever any interface comes or goes. Nothing on such a port sends to a
    /// group by it, and what a container sends to one ends at the rules.
    pub fn trim(&mut self) {
        if self.port.mode == Mode::Bridge {
            return;
        }
        let Some(ends) = self.ends else { return };
        let mut groups = message::route(
            RouteType::Multicast,
            Some((MULTICAST, 8)),
            [RouteAttribute::Oif(ends.port)],
        );
        groups.header.table = libc::RT_TABLE_LOCAL;
        groups.header.protocol = RouteProtocol::Kernel;
        let doing = format!("remove the route for multicast by {}", self.port.name);
        if let Err(error) = self.worker.socket.ack(doing, &Message::DelRoute(groups), 0) {
            tracing::debug!(%error, "a port keeps a route that it does not need");
        }
    }

    /// Makes both ends in one message: there is no moment in which the host's end is without master
    /// and group, or the container's end in the wrong namespace. (Alias, address generation mode and
    /// port flags are refused or ignored in that message.)
    fn pair(&mut self) -> Result<(), Error> {
        let (port, links) = (self.port, &self.host.links);
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
            match port.mode {
                Mode::Bridge => LinkAttribute::Controller(self.host.bridge),
                Mode::Routed => LinkAttribute::Address(links.bridge_mac.octets().to_vec()),
            },
            LinkAttribute::Group(links.ports),
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
    ///
    /// To ask makes the link watch see that a new port has no carrier (Linux 6.8). The kernel itself could
    /// tell the numbers with what it has made (`NLM_F_ECHO`), but then the port, once up, passes for one with
    /// a carrier before the link watch says so, and IPv6 looks at all routes twice.
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

    /// What the address's route and neighbour entry are by.
    fn link(&mut self) -> Result<u32, Error> {
        let port = self.ends()?.port;
        Ok(self.port.link(Some(self.host.bridge), port).unwrap_or(port))
    }

    fn guard(&mut self) -> Result<(), Error> {
        let index = self.ends()?.port;
        guard_port(self.worker, self.host, self.port, index)
    }

    fn forwarding(&mut self) -> Result<(), Error> {
        let index = self.ends()?.port;
        add_forwarding(&mut self.worker.socket, index, self.port.mac)
    }
}

/// Whether the kernel knows that this link has its carrier; also if there is no such link any more.
fn is_running(socket: &mut RouteSocket, link: u32) -> bool {
    find_by_index(socket, link).ok().flatten().is_none_or(|link| link.running)
}

/// Whether this namespace sends to all nodes on this link by a route that is for groups.
fn reaches_groups(socket: &mut RouteSocket, link: u32) -> bool {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    matches!(message::kind_of_route(socket, ALL_NODES, Some(link)), Ok(Some(libc::RTN_MULTICAST)))
}

/// [`Step::Guard`] of the port with this number.
pub(super) fn guard_port(
    worker: &mut Worker,
    host: &Host,
    port: &Port,
    index: u32,
) -> Result<(), Error> {
    if port.mode == Mode::Routed {
        return guard_routed(worker, host, port, index);
    }
    // The port's own IPv6 is switched off: it never has an address, sends no solicitations and
    // hears no advertisements, not even if somebody takes it out of the bridge (threats 6, 16).
    // The bridge does not mind.
    worker.conf(Conf::Link(&port.name))?.write("disable_ipv6", 1)?;
    match set_port_flags(&mut worker.socket, port, index, true) {
        // Linux before 5.18 has no locked ports. The rest is what must be.
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {
            set_port_flags(&mut worker.socket, port, index, false)
        }
        other => other,
    }
}

/// Without a link-local address Linux can send no redirects, and nobody can reach what listens on it.
/// Whatever the host gives new interfaces by default, this one has IPv6 and hears no advertisements
/// (threat 6).
fn guard_routed(worker: &mut Worker, host: &Host, port: &Port, index: u32) -> Result<(), Error> {
    let mut link = message::link(index);
    link.attributes = vec![message::no_link_local(), LinkAttribute::IfAlias(port.alias.clone())];
    let doing = format!("keep {} without addresses", port.name);
    worker.socket.ack(doing, &Message::SetLink(link), 0)?;
    let conf = worker.conf(Conf::Link(&port.name))?;
    for key in ["accept_ra", "autoconf", "accept_redirects"] {
        conf.write(key, 0)?;
    }
    conf.ensure("disable_ipv6", 0)?;
    forward_from(host, &conf)
}

fn set_port_flags(
    socket: &mut RouteSocket,
    port: &Port,
    index: u32,
    locked: bool,
) -> Result<(), Error> {
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
        LinkAttribute::IfAlias(port.alias.clone()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(flags)),
        ]),
    ];
    // RTM_SETLINK ignores port data; RTM_NEWLINK without NLM_F_CREATE changes what is there.
    socket.ack(format!("isolate {}", port.name), &Message::NewLink(link), 0)
}

pub(super) fn add_forwarding(socket: &mut RouteSocket, index: u32, mac: Mac) -> Result<(), Error> {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = index;
    // Static, and sticky: no other port can draw it over by sending with that address.
    entry.header.state = NeighbourState::Noarp;
    entry.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    let doing = format!("add the forwarding entry of {mac}");
    socket.ack(doing, &Message::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(super) fn add_neighbour(socket: &mut RouteSocket, link: u32, port: &Port) -> Result<(), Error> {
    let entry = message::neighbour(link, port.address, Some(port.mac));
    let doing = format!("add the neighbour {}", port.address);
    socket.ack(doing, &Message::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Exclusive: a route of somebody else's is an error, not something to replace.
pub(super) fn add_route(socket: &mut RouteSocket, link: u32, port: &Port) -> Result<(), Error> {
    let route = message::container_route(link, port.address);
    let doing = format!("add the route to {}", port.address);
    socket.ack(doing, &Message::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
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
    worker.inside(namespace, |mut inside| {
        let peer = find_by_index(&mut inside.socket, ends.peer)?;
        Ok(peer.is_some_and(|peer| peer.mac == port.mac.octets() && peer.peer == Some(ends.port)))
    })
}

/// The port's number, if there is a link of that name in our group.
pub(super) fn find_port(
    socket: &mut RouteSocket,
    host: &Host,
    port: &Port,
) -> Result<Option<u32>, Error> {
    match find_ours(socket, &port.name, host.links.ports) {
        Ok(link) => Ok(link.map(|link| link.index)),
        Err(error) if error.is_not_ours() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The container's end. There is no carrier yet, as the other end is down: nothing can come in before
/// all is set, an address without duplicate detection is complete all the same, and routes are
/// accepted on an interface that is switched on.
///
/// The gateway's Ethernet address is given here, for good. On a routed port nobody answers for it. On the
/// bridge somebody does; but an entry that a container asked for would be one of the `gc_thresh3`, 1024,
/// that Linux has room for, of all namespaces together.
fn configure(inside: &mut Inside<'_>, port: &Port, peer: u32, router: Mac) -> Result<(), Error> {
    let name = &port.interface;
    let socket = &mut inside.socket;
    // The interface and its address first: the kernel finishes the address in a work queue meanwhile.
    let mut link = message::set_up(message::link(peer), true);
    link.attributes.push(message::no_link_local());
    socket.ack(format!("switch {name} on inside"), &Message::SetLink(link), 0)?;
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let address = message::address(peer, port.address);
    let doing = format!("give {name} its address");
    // What the owner has switched off is not switched on for him.
    socket.ack(doing.clone(), &Message::NewAddress(address), flags).map_err(|error| {
        let off = error.errno() == Some(Errno::EACCES);
        if off { Error::new(doing, Cause::NoIpv6) } else { error }
    })?;

    let lo = message::set_up(message::link(LOOPBACK), true);
    socket.ack("switch the loopback on", &Message::SetLink(lo), 0)?;
    add_way_out(socket, port, peer, router)?;
    port.subnets().try_for_each(|also| make_local(socket, also.net()))?;
    let conf = inside.sysctls()?.open(Conf::Link(name))?;
    // Set inside as well as filtered outside (CVE-2020-10749 and its kin, threat 6). The owner can change
    // them, and then has himself to thank. Solicitations: nobody answers them.
    for key in ["accept_ra", "autoconf", "accept_redirects", "router_solicitations"] {
        conf.write(key, 0)?;
    }
    Ok(())
}

/// The container's gateway and its default route by this interface of its own. A default route that is there is
/// replaced: there is no moment without.
pub(super) fn add_way_out(
    socket: &mut RouteSocket,
    port: &Port,
    peer: u32,
    router: Mac,
) -> Result<(), Error> {
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let entry = message::neighbour(peer, port.gateway, Some(router));
    socket.ack("add the gateway's neighbour entry", &Message::NewNeighbour(entry), flags)?;
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
mod tests;
