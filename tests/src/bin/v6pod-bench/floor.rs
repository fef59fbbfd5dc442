//! The floor: the kernel's own part of an attachment.
//!
//! The messages and sysctls that v6podd sends for one attachment, in its order, each with its
//! acknowledgement, out of one thread that does nothing else: no request, no record, no check, no
//! second thread. What is above this figure is v6podd's own.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::Instant;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeMulticastRouterType, In6AddrGenMode, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use nix::libc;

use crate::program::run;
use crate::samples::Series;
use crate::scene::{NetNs, Scene, calm};
use crate::{Contender, Result, Round};

pub(crate) const SERIES: &[Series] = &[Series::Floor];

const BRIDGE: &str = "v6bfloor0";
const PORT: &str = "v6bfloor1";
const INTERFACE: &str = "eth0";
const MTU: u32 = 1500;
const GROUP: u32 = 6777;
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0xf, 0, 0, 1);
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0xf, 0x1234, 0x5678, 0x9abc);
const MAC: [u8; 6] = [0x02, 0xb6, 0, 0, 0, 1];
const ALIAS: &str = "v6b 0123456789abcdef0123456789abcdef";
const LOOPBACK: u32 = 1;
const OURS: RouteProtocol = RouteProtocol::Other(116);

/// Raw netlink, with a bridge of its own.
pub(crate) struct Floor {
    socket: Socket,
    bridge: u32,
    locked: bool,
}

impl Floor {
    /// Makes the bridge as v6podd makes its own.
    pub(crate) fn new(scene: &Scene) -> Result<Self> {
        let bridge = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
        for line in [
            format!("link add {BRIDGE} mtu {MTU} {bridge}"),
            format!("link set {BRIDGE} addrgenmode none"),
            format!("link set {BRIDGE} up"),
            format!("addr add {GATEWAY}/128 dev {BRIDGE} nodad"),
            format!("-6 route add unreachable {GATEWAY}/80"),
        ] {
            run(Command::new("ip").args(line.split(' ')))?.ok()?;
        }
        let mut socket = Socket::open()?;
        let bridge = socket.find(BRIDGE)?.index;
        let mut floor = Self { socket, bridge, locked: true };
        floor.locked = floor.can_lock(scene)?;
        Ok(floor)
    }

    /// Whether this kernel has locked ports. v6podd asks at each port, and so does this floor where
    /// the answer is yes.
    fn can_lock(&mut self, scene: &Scene) -> Result<bool> {
        let netns = NetNs::new()?;
        let attached = self.attach(scene, &netns);
        self.detach()?;
        Ok(attached.is_ok())
    }

    fn attach(&mut self, scene: &Scene, netns: &NetNs) -> Result<()> {
        let create = NLM_F_CREATE | NLM_F_EXCL;
        let replace = NLM_F_CREATE | NLM_F_REPLACE;
        self.socket.ack(pair(netns, self.bridge), create)?;
        let ends = self.socket.find(PORT)?;
        sysctl(PORT, "disable_ipv6", 1)?;
        self.socket.ack(guard(ends.index, self.locked), 0)?;
        self.socket.ack(forwarding(ends.index), replace)?;
        self.socket.ack(neighbour(self.bridge), replace)?;
        let to_port = route(Some(ADDRESS), [RouteAttribute::Oif(self.bridge)]);
        self.socket.ack(to_port, create)?;
        scene.inside(netns, || configure(ends.peer))?;
        let mut up = up(ends.index);
        up.attributes.push(LinkAttribute::IfAlias(ALIAS.to_owned()));
        self.socket.ack(Message::SetLink(up), 0)
    }

    fn detach(&mut self) -> Result<()> {
        let port = self.socket.find(PORT)?.index;
        let to_port = route(Some(ADDRESS), [RouteAttribute::Oif(self.bridge)]);
        if let Message::NewRoute(route) = to_port {
            self.socket.ack(Message::DelRoute(route), 0)?;
        }
        self.socket.ack(Message::DelLink(link(port)), 0)
    }
}

impl Contender for Floor {
    fn series(&self) -> &'static [Series] {
        SERIES
    }

    fn round(&mut self, scene: &Scene) -> Result<Round> {
        let netns = NetNs::new()?;
        calm();
        let began = Instant::now();
        self.attach(scene, &netns)?;
        let took = began.elapsed();
        scene.check_attached(&netns)?;
        self.detach()?;
        Ok(Round { took: vec![(Series::Floor, took)], used: Some(netns) })
    }
}

/// The end inside, with a socket of its own, as v6podd needs one.
fn configure(peer: u32) -> Result<()> {
    let mut socket = Socket::open()?;
    for (key, value) in
        [("accept_ra", 0), ("autoconf", 0), ("accept_redirects", 0), ("router_solicitations", 0)]
    {
        sysctl(INTERFACE, key, value)?;
    }
    socket.ack(Message::SetLink(up(LOOPBACK)), 0)?;
    let mut eth0 = up(peer);
    eth0.attributes.push(no_link_local());
    socket.ack(Message::SetLink(eth0), 0)?;
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    socket.ack(address(peer), replace)?;
    socket.ack(route(Some(GATEWAY), [RouteAttribute::Oif(peer)]), replace)?;
    let by_gateway = [
        RouteAttribute::Gateway(GATEWAY.into()),
        RouteAttribute::Oif(peer),
        RouteAttribute::Priority(64),
    ];
    socket.ack(route(None, by_gateway), replace)
}

fn sysctl(interface: &str, key: &str, value: u32) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/{key}");
    fs::write(&path, value.to_string()).map_err(|e| format!("cannot set {path}: {e}").into())
}

fn pair(netns: &NetNs, bridge: u32) -> Message {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(INTERFACE.to_owned()),
        LinkAttribute::Address(MAC.to_vec()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(PORT.to_owned()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::Controller(bridge),
        LinkAttribute::Group(GROUP),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    Message::NewLink(link)
}

fn guard(port: u32, locked: bool) -> Message {
    let mut flags = vec![
        InfoBridgePort::Isolated(true),
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
        InfoBridgePort::HairpinMode(false),
        InfoBridgePort::NeighSupress(false),
        InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::Disabled),
    ];
    if locked {
        flags.push(InfoBridgePort::Locked(true));
    }
    let mut link = link(port);
    link.attributes = vec![
        no_link_local(),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(flags)),
        ]),
    ];
    Message::NewLink(link)
}

fn forwarding(port: u32) -> Message {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = port;
    entry.header.state = NeighbourState::Noarp;
    entry.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    entry.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
    Message::NewNeighbour(entry)
}

fn neighbour(bridge: u32) -> Message {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Inet6;
    entry.header.ifindex = bridge;
    entry.header.state = NeighbourState::Permanent;
    entry.header.kind = RouteType::Unicast;
    entry.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ADDRESS)),
        NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
        NeighbourAttribute::Protocol(OURS),
    ];
    Message::NewNeighbour(entry)
}

fn address(interface: u32) -> Message {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    message.header.index = interface;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(ADDRESS.into()),
        AddressAttribute::Address(ADDRESS.into()),
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    Message::NewAddress(message)
}

fn route<const N: usize>(to: Option<Ipv6Addr>, attributes: [RouteAttribute; N]) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = OURS;
    message.header.kind = RouteType::Unicast;
    if let Some(address) = to {
        message.header.destination_prefix_length = 128;
        message.attributes.push(RouteAttribute::Destination(address.into()));
    }
    message.attributes.extend(attributes);
    Message::NewRoute(message)
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn up(index: u32) -> LinkMessage {
    let mut message = link(index);
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = LinkFlags::Up;
    message
}

fn no_link_local() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

/// A blocking socket: one message, one acknowledgement.
struct Socket {
    inner: netlink_sys::Socket,
    buffer: Vec<u8>,
}

impl Socket {
    fn open() -> Result<Self> {
        let inner = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        inner.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        inner.set_cap_ack(true)?;
        Ok(Self { inner, buffer: vec![0; 8192] })
    }

    fn ack(&mut self, message: Message, flags: u16) -> Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        self.answer(NLMSG_ERROR).map(drop)
    }

    /// Looks a link up by its name.
    fn find(&mut self, name: &str) -> Result<Ends> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        self.send(Message::GetLink(message), 0)?;
        Ends::read(self.answer(libc::RTM_NEWLINK)?).ok_or_else(|| format!("no {name}").into())
    }

    fn send(&mut self, message: Message, flags: u16) -> Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let length = message.buffer_len();
        let buffer = self.buffer.get_mut(..length).ok_or("too long a message")?;
        message.serialize(buffer);
        self.inner.send(buffer, 0)?;
        Ok(())
    }

    /// What follows the header in an answer of this type.
    fn answer(&mut self, kind: u16) -> Result<&[u8]> {
        let length = self.inner.recv(&mut &mut self.buffer[..], 0)?;
        let answer = self.buffer.get(..length).ok_or("a cut answer")?;
        let is = answer.get(4..6).ok_or("half an answer")?;
        let payload = answer.get(HEADER..).ok_or("half an answer")?;
        if is == NLMSG_ERROR.to_ne_bytes() {
            // Negative, or zero for "done".
            match u32_at(payload, 0).map(u32::cast_signed) {
                Some(0) if kind == NLMSG_ERROR => return Ok(payload),
                Some(code) => {
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()).into());
                }
                None => {}
            }
        }
        if is == kind.to_ne_bytes() { Ok(payload) } else { Err("an answer that is none".into()) }
    }
}

/// The lengths of `struct nlmsghdr` and `struct ifinfomsg`.
const HEADER: usize = 16;
const IFINFOMSG: usize = 16;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;

/// The number of a link and of its other end.
struct Ends {
    index: u32,
    peer: u32,
}

impl Ends {
    /// Reads just these: the typed decoder takes a tenth of the whole attachment's time for all the
    /// rest that the kernel tells of a link.
    fn read(link: &[u8]) -> Option<Self> {
        let index = u32_at(link, 4)?;
        let mut peer = 0;
        let mut rest = link.get(IFINFOMSG..)?;
        while let (Some(length), Some(kind)) = (rest.get(..2), rest.get(2..4)) {
            if kind == libc::IFLA_LINK.to_ne_bytes() {
                peer = u32_at(rest, 4)?;
            }
            let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
            rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
        }
        Some(Self { index, peer })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}
