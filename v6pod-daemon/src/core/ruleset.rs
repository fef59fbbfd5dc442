//! The firewall's rules, as text for `nft -f`: a function of the configuration, and of nothing that
//! changes while the daemon runs.
//!
//! What the rules guarantee, for every port of the instance:
//! - A container sends with its own address alone, on the bridge with its own Ethernet address too, and
//!   only IPv6. On the bridge it asks who the gateway is; it takes no other part in neighbour
//!   discovery: no advertisement, no redirect, no DHCPv6 answer, no multicast of its leaves the port
//!   (threats 6, 7, 8 and 32).
//! - This is decided in base chains of their own, before anything is accepted (threat 9).
//! - Nothing hides its ports in extension headers or tiny fragments (threat 10).
//! - With [`Ingress::Deny`] a container is reached by answers to what it began, by the errors and echo
//!   requests that IPv6 cannot live without (RFC 4890), and by processes of root and of its owner on
//!   this host; by nothing else, wherever it comes from.
//!
//! A container is never a rule of its own: it is elements of two or three sets, [`Elements`].

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use v6pod_proto::{LinkName, Mac, Mode, Uid};

use super::{Links, Port, Prefix};

/// The set of the bridge table: `ifname . ether_addr . ipv6_addr`. Not a word of nft's own, such as
/// `port` or `gateway`: as a set's name nft 0.9.8 does not read it.
pub const PORT_SET: &str = "sender";
/// The set of the inet table with who may send by the bridge: `ether_addr . ipv6_addr`.
pub const KNOWN_SET: &str = "known";
/// The set of the inet table with who may send by a routed port: `ifname . ipv6_addr`.
pub const ROUTED_SET: &str = "routed";
/// The set of the inet table with whose processes reach it: `ipv6_addr . uid`.
pub const OWNER_SET: &str = "owner";

/// What happens to a packet for a container that no rule lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// It is dropped.
    Deny,
    /// It passes: every port of every container is open. Who may send what stays as it is.
    Allow,
}

/// What the rules follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The instance's links and tables.
    pub links: Links,
    /// The range of the containers' addresses; its gateway is asked for by neighbour discovery.
    pub prefix: Prefix,
    /// What happens to what nothing lets in.
    pub ingress: Ingress,
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
    /// Whose processes on the host reach it.
    pub owner: Uid,
}

impl Elements {
    /// Those of the attachment at this port.
    pub fn of(port: &Port) -> Self {
        let Port { name, mac, address, owner, mode, .. } = port;
        Self { port: name.clone(), mode: *mode, mac: *mac, address: *address, owner: *owner }
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
        let Policy { links, prefix, ingress } = policy;
        let gateway = prefix.gateway();
        let known: Vec<_> = attachments.iter().filter(|e| is_plain(&e.port)).collect();
        let each = |text: fn(&Elements) -> String| elements(known.iter().map(|e| text(e)));
        let only = |mode, text: fn(&Elements) -> String| {
            elements(known.iter().filter(|e| e.mode == mode).map(|e| text(e)))
        };
        let (forward, output, to_container) = ingress.rules();
        let words = [
            ("{DENY_FORWARD}", forward.to_owned()),
            ("{DENY_OUTPUT}", output.to_owned()),
            ("{TO_CONTAINER}", to_container.to_owned()),
            ("{TABLE}", links.table.to_string()),
            ("{PORTS}", links.ports.to_string()),
            ("{BRIDGES}", links.bridges.to_string()),
            ("{BRIDGE_MAC}", links.bridge_mac.to_string()),
            ("{SOLICITED_MAC}", solicited_mac(gateway)),
            ("{GATEWAY}", format!("{:#034x}", gateway.to_bits())),
            (
                "{PORTS_ELEMENTS}",
                only(Mode::Bridge, |e| format!("\"{}\" . {} . {}", e.port, e.mac, e.address)),
            ),
            ("{KNOWN_ELEMENTS}", only(Mode::Bridge, |e| format!("{} . {}", e.mac, e.address))),
            (
                "{ROUTED_ELEMENTS}",
                only(Mode::Routed, |e| format!("\"{}\" . {}", e.port, e.address)),
            ),
            ("{OWNER_ELEMENTS}", each(|e| format!("{} . {}", e.address, e.owner))),
        ];
        debug_assert_eq!((links.ports & 1, links.bridges), (0, links.ports | 1));
        let template = [
            include_str!("ruleset/arp.nft"),
            include_str!("ruleset/bridge.nft"),
            include_str!("ruleset/inet.nft"),
        ];
        words.iter().fold(template.concat(), |text, (word, value)| text.replace(word, value))
    }
}

impl Ruleset {
    /// What to write before the text of [`Ruleset::of`] to have the tables made anew.
    pub fn afresh(links: &Links) -> String {
        let table = &links.table;
        let all = ["arp", "bridge", "inet"]
            .map(|family| format!("add table {family} {table}\ndelete table {family} {table}\n"));
        all.concat()
    }
}

impl Ingress {
    /// The lines of the chains forward, output and to_container that differ.
    const fn rules(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Deny => (
                "\t\tct state established,related accept\n\t\tct state invalid drop\n",
                "\t\tct state established,related accept\n\
                 \t\tmeta skuid 0 accept\n\
                 \t\tip6 daddr . meta skuid @owner accept\n",
                "\t\t# RFC 4890, sections 4.3.1 and 4.4.1. Errors about flows that are not there are\n\
                 \t\t# invalid to conntrack and do not get here.\n\
                 \t\ticmpv6 type echo-request accept\n\
                 \t\ticmpv6 type { destination-unreachable, packet-too-big, time-exceeded, \
                 parameter-problem } limit rate 1000/second accept\n\
                 \t\tdrop\n",
            ),
            // No connection is tracked for rules that would not heed it.
            Self::Allow => ("", "", "\t\taccept\n"),
        }
    }
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
