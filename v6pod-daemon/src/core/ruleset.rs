//! The firewall's rules, as text for `nft -f`: a function of the configuration, and of nothing that
//! changes while the daemon runs.
//!
//! What the rules guarantee, for every port of the instance:
//! - A container sends with its own address alone, on the bridge with its own Ethernet address too, and
//!   only IPv6. On the bridge it asks who the gateway is; it takes no other part in neighbour
//!   discovery: no advertisement, no redirect, no DHCPv6 answer, no multicast of its leaves the port
//!   (threats 6, 7, 8 and 32).
//! - This is decided in base chains of their own, before anything is accepted (threat 9).
//! - Nobody else sends to a container with an address of the range: its answer would make a flow with the one
//!   whose address that is.
//! - Nothing hides its ports in extension headers or tiny fragments (threat 10).
//! - With [`Ingress::Deny`] a container is reached by answers to what it began, by the errors and echo
//!   requests that IPv6 cannot live without (RFC 4890), and by processes of root and of its owner on
//!   this host; by nothing else, wherever it comes from.
//!
//! - And by whoever something was opened to: a container's address, a protocol, a port, and perhaps where
//!   from; never a port alone (threat 17). That is asked when a flow begins.
//! - A flow that was ended stays ended, though its container sends on.
//! - A confined container begins nothing but what is listed as within its reach, to this host neither;
//!   it answers what reached it.
//! - Of the resolver's address nobody but containers and this host itself reaches anything, and of it
//!   containers reach port 53 alone, confined ones too: what it tells whom is the resolver's to say. None asks
//!   so often that another's questions are lost for it (threat 18).
//!
//! - An address of a subnet that is a container's is treated as that container's own; what it begins and is
//!   offered is counted for all of the subnet together. It asks the resolver nothing, and is nobody's kin: those
//!   are told apart by addresses that stand alone.
//!
//! A container is never a rule of its own: it is elements of sets, [`Elements`]. Those of a subnet are those of
//! its first address, which is asked for in the place of any other of it; but only after the set for the
//! subnet's length has said that there is one, or an address that ends in zeros would speak for all that begin
//! like it. To whom no subnet belongs that costs nothing for each packet, and a few look-ups in empty sets for
//! each flow that begins.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv6Addr;
use std::num::NonZeroU32;

use v6pod_proto::{LinkName, Mac, Mode, Uid};

use super::hole::{Hole, Holes};
use super::step::Also;
use super::subnet::Length;
use super::{Links, Port, Prefix};

#[path = "ruleset_subnets.rs"]
mod subnets;

/// The set of the bridge table: `ifname . ether_addr . ipv6_addr`. Not a word of nft's own, such as
/// `port` or `gateway`: as a set's name nft 0.9.8 does not read it.
pub const PORT_SET: &str = "sender";
/// The set of the inet table with who may send by the bridge: `ether_addr . ipv6_addr`.
pub const KNOWN_SET: &str = "known";
/// The set of the inet table with who may send by a routed port: `ifname . ipv6_addr`.
pub const ROUTED_SET: &str = "routed";
/// The set of the inet table with whose processes reach it: `ipv6_addr . uid`.
pub const OWNER_SET: &str = "owner";

/// The set of the inet table with what is open to all: `ipv6_addr . inet_proto . inet_service`.
pub const OPEN_SET: &str = "open";
/// And of which every port is: `ipv6_addr . inet_proto`.
pub const OPEN_ALL_SET: &str = "openall";
/// The set with the UDP flows that were ended, for [`ENDED`]: who was spoken to (address, protocol, port) and
/// who spoke (address, port).
pub const ENDED_SET: &str = "ended";

/// How long the container's end of an ended UDP flow is not heard at the other: a little longer than
/// conntrack remembers one (`nf_conntrack_udp_timeout_stream`, 120 s). What is sent later is a new one.
pub const ENDED: &str = "3m";

/// The sets of the inet table with what is open to the addresses of a prefix, by the prefix's length:
/// `ipv6_addr . inet_proto . inet_service . ipv6_addr`. Hash sets, each for one length, because an
/// interval set is copied at every commit: milliseconds, at some thousand elements.
pub const FROM_SETS: [(u8, &str); 6] = [
    (32, "from32"),
    (40, "from40"),
    (48, "from48"),
    (56, "from56"),
    (64, "from64"),
    (128, "from128"),
];

/// The set of the inet table with who reaches only what the following say: `ipv6_addr`.
pub const CONFINED_SET: &str = "confined";
/// What such a container reaches at all addresses: its own, and
/// `inet_proto . inet_service`.
pub const REACH_SET: &str = "reach";
/// And of which every port: `ipv6_addr . inet_proto`.
pub const REACH_ALL_SET: &str = "reachall";
/// The set with the bits of owners' uids: `ipv6_addr`, whose first 16 bits are not the address's but
/// the number of a bit that is one, from 1. Equal owners are so told by a fixed number of look-ups, however
/// many owners and containers there are: nft compares no two fields of a packet, nor what it looked up of
/// them, and keeps nothing from one rule to the next but marks, which are the host's.
pub const KIN_SET: &str = "kin";
/// The set with who was refused a flow that it began, in the last second: `ipv6_addr`.
pub const FULL_BY_SET: &str = "full_by";
/// And with whom others were.
pub const FULL_TO_SET: &str = "full_to";
/// What it reaches at the addresses of a prefix, by the prefix's length, as [`FROM_SETS`].
pub const REACH_SETS: [(u8, &str); 6] = [
    (32, "reach32"),
    (40, "reach40"),
    (48, "reach48"),
    (56, "reach56"),
    (64, "reach64"),
    (128, "reach128"),
];

impl Hole {
    /// The set of the inet table that it stands in.
    pub fn set(&self) -> &'static str {
        match self {
            Self::Port(..) => OPEN_SET,
            Self::Every(_) => OPEN_ALL_SET,
            Self::From(length, ..) => of_length(FROM_SETS, *length),
            Self::Confined => CONFINED_SET,
            Self::Reach(..) => REACH_SET,
            Self::ReachEvery(_) => REACH_ALL_SET,
            Self::Kin(_) => KIN_SET,
            Self::ReachIn(length, ..) => of_length(REACH_SETS, *length),
        }
    }

    /// The element of this address's, as nft writes it.
    pub fn text(&self, address: Ipv6Addr) -> String {
        match self {
            Self::Confined => address.to_string(),
            Self::Kin(bit) => with_bit(address, *bit).to_string(),
            Self::Port(protocol, port) | Self::Reach(protocol, port) => {
                format!("{address} . {} . {port}", protocol.as_str())
            }
            Self::Every(protocol) | Self::ReachEvery(protocol) => {
                format!("{address} . {}", protocol.as_str())
            }
            Self::From(_, protocol, port, peers) | Self::ReachIn(_, protocol, port, peers) => {
                format!("{address} . {} . {port} . {peers}", protocol.as_str())
            }
        }
    }
}

/// How the bit of a uid stands in [`KIN_SET`].
pub fn with_bit(address: Ipv6Addr, bit: u8) -> Ipv6Addr {
    let [_, rest @ ..] = address.segments();
    let [b, c, d, e, f, g, h] = rest;
    Ipv6Addr::new(u16::from(bit) + 1, b, c, d, e, f, g, h)
}

/// The set for prefixes of this length.
fn of_length(sets: [(u8, &'static str); 6], length: u8) -> &'static str {
    let [.., last] = sets;
    sets.into_iter().find(|(of, _)| *of == length).unwrap_or(last).1
}

/// What happens to a packet for a container that no rule lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// It is dropped.
    Deny,
    /// It passes: every port of every container is open. Who may send what stays as it is.
    Allow,
}

/// What containers of one host may begin with each other (`firewall.east_west`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EastWest {
    /// What anybody may.
    Policy,
    /// Those of one owner everything, others what anybody may.
    Owner,
    /// Nothing.
    Deny,
}

/// What containers may begin with their host (`firewall.host`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAccess {
    /// What the host's own firewall lets in.
    AsOutside,
    /// Echo, and questions to its resolver.
    Deny,
}

/// What the rules follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The instance's links and tables.
    pub links: Links,
    /// The range of the containers' addresses; its gateway is asked for by neighbour discovery.
    pub prefix: Prefix,
    /// Those that it took the place of, whose gateways are asked for by those who have addresses in them.
    pub former: Vec<Prefix>,
    /// What happens to what nothing lets in.
    pub ingress: Ingress,
    /// What containers may begin with each other.
    pub east_west: EastWest,
    /// What they may begin with this host.
    pub host: HostAccess,
    /// How many flows one container may have begun, and as many others with it; none: any number. Stands in
    /// the names of the sets that count: an element keeps the limit that it was made with.
    pub flows: Option<NonZeroU32>,
    /// Where containers are answered what they ask for by name; none: nowhere.
    pub resolver: Option<Ipv6Addr>,
    /// The interface by which what has a unique local address leaves with the host's own; none: it keeps its
    /// address wherever it goes.
    pub nat66: Option<LinkName>,
}

impl Policy {
    /// The prefix, and those before it.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        [self.prefix].into_iter().chain(self.former.iter().copied())
    }

    /// Their gateways.
    pub fn gateways(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.prefixes().map(Prefix::gateway)
    }
}

/// What one attachment has in the sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elements {
    /// The port that it sends by.
    pub port: LinkName,
    /// Whether that is on the bridge: which of the sets it is in.
    pub mode: Mode,
    /// The Ethernet address that it sends with.
    pub mac: Mac,
    /// The address that it sends with.
    pub address: Ipv6Addr,
    /// How long the subnet is that begins with it; none: it stands alone.
    pub subnet: Option<Length>,
    /// Whose processes on the host reach it.
    pub owner: Uid,
    /// What else does.
    pub open: Holes,
}

impl Elements {
    /// Those of the address that the attachment at this port is known by.
    pub fn of(port: &Port) -> Self {
        let Port { name, mac, address, subnet, owner, open, mode, .. } = port;
        let (port, open, subnet) = (name.clone(), open.clone(), *subnet);
        Self { port, mode: *mode, mac: *mac, address: *address, subnet, owner: *owner, open }
    }

    /// Those of each of its addresses and subnets.
    pub fn of_all(port: &Port) -> impl Iterator<Item = Self> {
        let one = Self::of(port);
        let each =
            move |also: &Also| Self { address: also.address, subnet: also.subnet, ..one.clone() };
        [Self::of(port)].into_iter().chain(port.also.iter().map(each))
    }
}

/// The rules.
#[derive(Debug, Clone, Copy)]
pub struct Ruleset;

impl Ruleset {
    /// The whole text: one transaction that puts these rules in the place of what was there, with
    /// these attachments' elements already in them. It is refused where there are tables of these
    /// names with other sets or hooks: [`Ruleset::afresh`].
    ///
    /// No packet is lost or let through meanwhile. Linux looks a rule up in the old generation and
    /// then an element, an instant later, in the new one: a set that is made anew, one without a name
    /// above all, has nothing for such a packet. So named sets stay, and where a miss would decide
    /// about a packet that is established or not ours, there is no set.
    ///
    /// Elements whose port bears a name that is not
    /// plain are left out: this daemon gives plain ones only.
    pub fn of(policy: &Policy, attachments: &[Elements]) -> String {
        let Links { ports, bridges, .. } = policy.links;
        debug_assert_eq!((ports & 1, bridges), (0, ports | 1));
        let known: Vec<_> = attachments.iter().filter(|e| is_plain(&e.port)).collect();
        let template = [
            include_str!("ruleset/arp.nft"),
            include_str!("ruleset/bridge.nft"),
            include_str!("ruleset/inet.nft"),
            &policy.nat66(),
        ];
        // What others stand in comes before them.
        let words = policy.parts().into_iter();
        let words = words.chain(subnets::words(&known, policy.flows.is_some()));
        let words = words.chain(policy.values()).chain(of_ports(&known)).chain(of_holes(&known));
        words.fold(template.concat(), |text, (word, value)| text.replace(word, &value))
    }
}

/// A word of the template, and what stands there.
type Word = (&'static str, String);

impl Policy {
    /// What some policies have and others have not: rules, with words in them.
    fn parts(&self) -> [Word; 17] {
        let Self { ingress, east_west, host, flows, resolver, .. } = self;
        let (forward, output, input, to_container) = ingress.rules();
        [
            ("{STRAYS}", self.strays()),
            ("{DENY_FORWARD}", forward.to_owned()),
            ("{DENY_OUTPUT}", output.to_owned()),
            ("{DENY_INPUT}", input.to_owned()),
            ("{TO_CONTAINER}", to_container.to_owned()),
            ("{EAST_WEST}", east_west.rules().0.to_owned()),
            ("{SAME_OWNER}", east_west.rules().1.to_owned()),
            ("{KIN}", east_west.chain()),
            ("{HOST}", host.rules().to_owned()),
            ("{RESOLVER_SET}", when(*resolver, include_str!("ruleset/asking.nft"))),
            ("{TO_RESOLVER}", when(*resolver, include_str!("ruleset/to_resolver.nft"))),
            ("{RESOLVER}", when(*resolver, include_str!("ruleset/resolver.nft"))),
            ("{RESOLVER_ADDRESS}", resolver.map_or_else(String::new, |r| r.to_string())),
            ("{FLOW_SETS}", when(*flows, include_str!("ruleset/flow_sets.nft"))),
            ("{BEGUN}", when(*flows, include_str!("ruleset/begun.nft"))),
            ("{OFFERED}", when(*flows, include_str!("ruleset/offered.nft"))),
            ("{TOO_MANY}", when(*flows, include_str!("ruleset/too_many.nft"))),
        ]
    }

    /// The lines of the chain forward about who is no container and sends as one, one for each prefix.
    fn strays(&self) -> String {
        let rule = |prefix| {
            format!("\t\tmeta iifgroup & 0xfefffffe != {{PORTS}} ip6 saddr {prefix} drop\n")
        };
        self.prefixes().map(rule).collect()
    }

    /// Numbers, names and addresses.
    fn values(&self) -> [Word; 9] {
        let Self { links, flows, .. } = self;
        let gateways: Vec<_> = self.gateways().collect();
        [
            ("{FLOWS}", flows.map_or(0, NonZeroU32::get).to_string()),
            ("{GATEWAY_ADDRESS}", any_of(gateways.iter().map(ToString::to_string))),
            ("{TABLE}", links.table.to_string()),
            ("{PORTS}", links.ports.to_string()),
            ("{BRIDGES}", links.bridges.to_string()),
            ("{BRIDGE_MAC}", links.bridge_mac.to_string()),
            ("{SOLICITED_MAC}", any_of(gateways.iter().map(|gateway| solicited_mac(*gateway)))),
            ("{GATEWAY}", join(gateways.iter().map(|g| format!("{:#034x}", g.to_bits())))),
            ("{ENDED}", ENDED.to_owned()),
        ]
    }

    /// The table of who shares the host's address, if anybody does.
    fn nat66(&self) -> String {
        let local = self.prefixes().filter(|prefix| prefix.is_ula()).map(|p| p.to_string());
        let local = any_of(local);
        match self.nat66.as_ref().filter(|uplink| is_plain(uplink) && !local.is_empty()) {
            Some(uplink) => include_str!("ruleset/nat66.nft")
                .replace("{UPLINK}", uplink.as_str())
                .replace("{LOCAL}", &local),
            None => include_str!("ruleset/no_nat66.nft").to_owned(),
        }
    }
}

/// Who is at which port.
fn of_ports(known: &[&Elements]) -> [Word; 4] {
    let only = |mode, text: fn(&Elements) -> String| {
        elements(known.iter().filter(|e| e.mode == mode).map(|e| text(e)))
    };
    [
        (
            "{PORTS_ELEMENTS}",
            only(Mode::Bridge, |e| format!("\"{}\" . {} . {}", e.port, e.mac, e.address)),
        ),
        ("{KNOWN_ELEMENTS}", only(Mode::Bridge, |e| format!("{} . {}", e.mac, e.address))),
        ("{ROUTED_ELEMENTS}", only(Mode::Routed, |e| format!("\"{}\" . {}", e.port, e.address))),
        (
            "{OWNER_ELEMENTS}",
            elements(known.iter().map(|e| format!("{} . {}", e.address, e.owner))),
        ),
    ]
}

/// What is open to whom, and who may reach what.
fn of_holes(known: &[&Elements]) -> impl Iterator<Item = Word> {
    let sets = [
        ("{OPEN_ELEMENTS}", OPEN_SET),
        ("{OPEN_ALL_ELEMENTS}", OPEN_ALL_SET),
        ("{FROM32_ELEMENTS}", "from32"),
        ("{FROM40_ELEMENTS}", "from40"),
        ("{FROM48_ELEMENTS}", "from48"),
        ("{FROM56_ELEMENTS}", "from56"),
        ("{FROM64_ELEMENTS}", "from64"),
        ("{FROM128_ELEMENTS}", "from128"),
        ("{CONFINED_ELEMENTS}", CONFINED_SET),
        ("{REACH_ELEMENTS}", REACH_SET),
        ("{REACH_ALL_ELEMENTS}", REACH_ALL_SET),
        ("{KIN_ELEMENTS}", KIN_SET),
        ("{REACH32_ELEMENTS}", "reach32"),
        ("{REACH40_ELEMENTS}", "reach40"),
        ("{REACH48_ELEMENTS}", "reach48"),
        ("{REACH56_ELEMENTS}", "reach56"),
        ("{REACH64_ELEMENTS}", "reach64"),
        ("{REACH128_ELEMENTS}", "reach128"),
    ];
    sets.into_iter().map(|(word, set)| {
        let each = known.iter().flat_map(|e| e.open.each().iter().map(|h| (e.address, *h)));
        let texts = each.filter(|(_, hole)| hole.set() == set).map(|(a, hole)| hole.text(a));
        (word, elements(texts))
    })
}

impl Ruleset {
    /// What to write before the text of [`Ruleset::of`] to have the tables made anew.
    pub fn afresh(links: &Links) -> String {
        let table = &links.table;
        let all = ["arp", "bridge", "inet", "ip6"]
            .map(|family| format!("add table {family} {table}\ndelete table {family} {table}\n"));
        all.concat()
    }
}

impl Ingress {
    /// The lines of the chains forward, output, input and to_container that differ.
    const fn rules(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Deny => (
                concat!(
                    "\t\tct state established,related accept\n\t\tct state invalid drop\n",
                    include_str!("ruleset/ended.nft"),
                ),
                "\t\tct state established,related accept\n\
                 \t\tmeta skuid 0 accept\n\
                 \t\tip6 daddr . meta skuid @owner accept\n{SUBNET_OWNERS}",
                concat!(
                    "\t\tct state established,related accept\n",
                    include_str!("ruleset/ended.nft"),
                ),
                include_str!("ruleset/to_container.nft"),
            ),
            Self::Allow => ("", "", "", "\t\tgoto offered\n"),
        }
    }
}

impl EastWest {
    /// The lines of the chain forward, before and after that about confined containers.
    const fn rules(self) -> (&'static str, &'static str) {
        match self {
            Self::Policy => ("", ""),
            Self::Owner => ("", include_str!("ruleset/same_owner.nft")),
            Self::Deny => (include_str!("ruleset/apart.nft"), ""),
        }
    }

    /// The chain that compares owners, bit by bit.
    fn chain(self) -> String {
        if self != Self::Owner {
            return String::new();
        }
        let mut text = "\n\t# Lets containers of one owner begin anything with each other: of no bit of his uid is \
                        one in the set\n\t# and the other not. Addresses of subnets have no bits there, as root's have \
                        none.\n\tchain kin {\n{SUBNET_KIN}"
            .to_owned();
        for bit in 0..32 {
            let coded = with_bit(Ipv6Addr::UNSPECIFIED, bit);
            let end = |end| format!("ip6 {end} & 0:ffff:ffff:ffff:ffff:ffff:ffff:ffff | {coded}");
            let (from, to) = (end("saddr"), end("daddr"));
            let _infallible = write!(
                text,
                "\t\t{from} @kin {to} != @kin return\n\t\t{from} != @kin {to} @kin return\n"
            );
        }
        text + "\t\tgoto offered\n\t}\n"
    }
}

impl HostAccess {
    /// The last lines of the chain input.
    const fn rules(self) -> &'static str {
        match self {
            Self::AsOutside => "\t\tct state new goto begun\n",
            Self::Deny => include_str!("ruleset/host.nft"),
        }
    }
}

/// The text, if there is what it is about.
fn when<T>(there: Option<T>, text: &str) -> String {
    there.map_or_else(String::new, |_| text.to_owned())
}

/// All of them, sorted, each once.
fn join(texts: impl Iterator<Item = String>) -> String {
    let all: BTreeSet<_> = texts.collect();
    all.into_iter().collect::<Vec<_>>().join(", ")
}

/// What is equal to any of them.
fn any_of(texts: impl Iterator<Item = String>) -> String {
    let all = join(texts);
    if all.contains(", ") { format!("{{ {all} }}") } else { all }
}

/// The Ethernet address to which an address is solicited (RFC 4291, section 2.7.1; RFC 2464,
/// section 7).
fn solicited_mac(address: Ipv6Addr) -> String {
    let [.., a, b, c] = address.octets();
    format!("33:33:ff:{a:02x}:{b:02x}:{c:02x}")
}

/// What nft reads as a name between quotes, and as no pattern.
fn is_plain(name: &LinkName) -> bool {
    name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The line of a set that lists its elements; no line if there are none.
fn elements(texts: impl Iterator<Item = String>) -> String {
    let mut line = String::new();
    for text in texts {
        let before = if line.is_empty() { "\n\t\telements = {\n\t\t\t" } else { ",\n\t\t\t" };
        let _infallible = write!(line, "{before}{text}");
    }
    if !line.is_empty() {
        line.push_str("\n\t\t}");
    }
    line
}

#[cfg(test)]
#[path = "ruleset_tests.rs"]
mod tests;
