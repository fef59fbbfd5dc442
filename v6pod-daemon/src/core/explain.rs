//! Which rule decides about a flow: the ruleset's own order, told in words.
//!
//! Guarantees:
//! - The rules are asked in the order in which a packet meets them (`ruleset/*.nft`), hook by hook; the first
//!   that decides is the answer, and no rule is told of that the packet does not get to.
//! - Each answer names the elements of the kernel's sets on which it depends: that they are there, or,
//!   where nothing opens a port, that none of those is which would.
//! - Nothing is told of a container that is not an [`End::Container`] of the query: who may see which
//!   is the caller's to say.
//!
//! A rule is a function of the query. A new one is added to the list of its hook.

use std::net::Ipv6Addr;

use v6pod_proto::explain::{Kind, Rule, Verdict};
use v6pod_proto::wishes::{Peers, Protocol};
use v6pod_proto::{Mode, Opened, Uid};

use super::attachment::Attachment;
use super::hole::Hole;
use super::open::NotOpened;
use super::ruleset::{EastWest, HostAccess, Ingress, Policy};
use super::step::Also;

#[path = "explain_parts.rs"]
mod parts;

pub use parts::{Element, Hook, Probe};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Who sends.
    pub from: End<'a>,
    /// With which address, if he is a container; none: his own.
    pub sends_as: Option<Ipv6Addr>,
    /// To whom.
    pub to: End<'a>,
    /// At which of its addresses, if he is a container; none: the one that it is known by.
    pub sent_to: Option<Ipv6Addr>,
    /// What.
    pub kind: Kind,
}

/// One end of a flow.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// A container of whose openings may be told.
    Container(&'a Attachment),
    /// This host.
    Host {
        /// Whose process.
        uid: Uid,
        /// The address that it sends with, or is asked by.
        address: Option<Ipv6Addr>,
    },
    /// Whoever has this address; also a container that is not to be told of.
    Address(Ipv6Addr),
    /// An address of the range that no container has.
    Vacant(Ipv6Addr),
    /// Anybody outside, whatever his address.
    Outside,
}

/// What one rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub rule: Rule,
    /// In one sentence.
    pub why: String,
    /// What becomes of the packet; none if the next rule is asked.
    pub verdict: Option<Verdict>,
    /// On what that depends.
    pub probes: Vec<Probe>,
    /// What opened it.
    pub opened: Option<Opened>,
    /// What would have.
    pub unopened: Vec<NotOpened>,
}

impl Step {
    fn decides(rule: Rule, verdict: Verdict, why: impl Into<String>) -> Self {
        Self { verdict: Some(verdict), ..Self::goes_on(rule, why) }
    }

    fn goes_on(rule: Rule, why: impl Into<String>) -> Self {
        let (why, probes, unopened) = (why.into(), Vec::new(), Vec::new());
        Self { rule, why, verdict: None, probes, opened: None, unopened }
    }

    fn depending(self, wanted: bool, elements: impl IntoIterator<Item = Element>) -> Self {
        let probes = elements.into_iter().map(|element| Probe { element, wanted }).collect();
        Self { probes, ..self }
    }
}

/// What the rules do with what is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// What becomes of it.
    pub verdict: Verdict,
    /// What had something to say, in its order; the last decides.
    pub chain: Vec<(Hook, Step)>,
}

/// A rule's word on a query, if it has one.
type Ask = fn(&Policy, &Query<'_>) -> Option<Step>;

/// The chains from_port, from_bridge, from_routed and plain.
const PREROUTING: &[Ask] = &[sender, scope];
/// The route of the range: unreachable, but for those of containers.
const ROUTING: &[Ask] = &[vacant];
/// The chain forward.
const FORWARD: &[Ask] = &[
    stray,
    established,
    related,
    apart,
    confined,
    same_owner,
    leaves,
    ingress_allow,
    echo,
    opening,
    closed,
];
/// The chain output.
const OUTPUT: &[Ask] = &[host_icmp, established, root, owner, ingress_allow, opening, closed];
/// The chain input.
const INPUT: &[Ask] = &[resolver, confined, host];

/// Asks the rules.
pub fn explain(policy: &Policy, query: &Query<'_>) -> Explained {
    let mut chain = Vec::new();
    for (hook, rules) in path(query) {
        for step in rules.iter().filter_map(|ask| ask(policy, query)) {
            let verdict = step.verdict;
            chain.push((*hook, step));
            if let Some(verdict) = verdict {
                return Explained { verdict, chain };
            }
        }
    }
    let nobodys = "neither end is a container's: no rule of v6pod's is about it";
    chain.push((Hook::Nowhere, Step::decides(Rule::NotOurs, Verdict::NotOurs, nobodys)));
    Explained { verdict: Verdict::NotOurs, chain }
}

/// The hooks that the packet comes by, with their rules.
fn path(query: &Query<'_>) -> &'static [(Hook, &'static [Ask])] {
    match (query.from, query.to) {
        (End::Container(a), End::Container(b)) if a.id == b.id => &[(Hook::Nowhere, &[loopback])],
        (End::Container(_), End::Host { .. }) => {
            &[(Hook::Prerouting, PREROUTING), (Hook::Input, INPUT)]
        }
        (End::Container(_), _) => {
            &[(Hook::Prerouting, PREROUTING), (Hook::Routing, ROUTING), (Hook::Forward, FORWARD)]
        }
        (End::Host { .. }, End::Container(_)) => &[(Hook::Output, OUTPUT)],
        (_, End::Container(_)) => &[(Hook::Forward, FORWARD)],
        (_, End::Vacant(_)) => &[(Hook::Routing, ROUTING)],
        _ => &[],
    }
}

fn loopback(_: &Policy, _: &Query<'_>) -> Option<Step> {
    let why = "a container's packets to itself do not leave it";
    Some(Step::decides(Rule::Loopback, Verdict::Passes, why))
}

fn sender(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Container(a) = query.from else { return None };
    let own = a.port.address;
    let sent = query.sends_as.unwrap_or(own);
    let mut elements = senders(a, stands_for(a, sent));
    elements.extend(subnet_around(a, sent));
    let subnet = a.port.subnets().map(Also::net).find(|net| net.contains(&sent));
    Some(if let Some(net) = subnet {
        let why = format!("{} sends by its own port with an address of its own {net}", called(a));
        Step::goes_on(Rule::Sender, why).depending(true, elements)
    } else if a.port.has(sent) {
        let why = format!("{} sends by its own port with its own address", called(a));
        Step::goes_on(Rule::Sender, why).depending(true, elements)
    } else {
        let subnets: String = a.port.subnets().map(|also| format!(" and {}", also.net())).collect();
        let why = format!("{} has {own}{subnets}, and sends with no other address", called(a));
        Step::decides(Rule::Spoofed, Verdict::Dropped, why).depending(false, elements)
    })
}

/// The address of this container's whose elements decide about that one: itself, or the first one of the subnet
/// that it is in.
fn stands_for(a: &Attachment, address: Ipv6Addr) -> Ipv6Addr {
    let net = a.port.subnets().map(Also::net).find(|net| net.contains(&address));
    net.map_or(address, |net| net.network())
}

/// That there is the subnet in which this address is, if it is in one of this container's.
fn subnet_around(a: &Attachment, address: Ipv6Addr) -> Option<Element> {
    let also = a.port.subnets().find(|also| also.net().contains(&address))?;
    Some(Element::Subnet(also.subnet?, also.address))
}

/// The address to which it is sent, as its elements have it.
fn target(query: &Query<'_>, to: &Attachment) -> Ipv6Addr {
    stands_for(to, query.sent_to.unwrap_or(to.port.address))
}

/// The elements by which a container sends with this address.
fn senders(a: &Attachment, address: Ipv6Addr) -> Vec<Element> {
    let (port, mac) = (&a.port.name, a.port.mac);
    match a.port.mode {
        Mode::Bridge => {
            vec![Element::Sender(port.clone(), mac, address), Element::Known(mac, address)]
        }
        Mode::Routed => vec![Element::Routed(port.clone(), address)],
    }
}

/// `ip6 daddr { ff00::/8, fe80::/10, ::1, :: } drop`.
fn scope(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let (End::Address(to) | End::Host { address: Some(to), .. }) = query.to else { return None };
    let none =
        to.is_multicast() || to.is_unicast_link_local() || to.is_loopback() || to.is_unspecified();
    let why = "what a container sends to multicast, link-local or loopback goes nowhere";
    none.then(|| Step::decides(Rule::Scope, Verdict::Dropped, why))
}

fn vacant(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Vacant(to) = query.to else { return None };
    let why = format!("no container has {to}; its sender is told so");
    Some(Step::decides(Rule::Vacant, Verdict::Unreachable, why))
}

/// `ip6 saddr` of the range `drop`, of what comes from no container's port.
fn stray(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Vacant(from) = query.from else { return None };
    let why =
        format!("no container has {from}, and nobody else sends with an address of the range");
    Some(Step::decides(Rule::Spoofed, Verdict::Dropped, why))
}

/// `ct state established accept`, which is not there where all is accepted.
fn established(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let why = "it belongs to a flow that the other side began";
    let meant = policy.ingress == Ingress::Deny && query.kind == Kind::Reply;
    meant.then(|| Step::decides(Rule::Established, Verdict::Passes, why))
}

/// `ct state related accept`, `ct state invalid drop`.
fn related(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let Kind::Error(_) = query.kind else { return None };
    let why = "an error about a flow that there is gets through; about any other it is dropped";
    let denies = policy.ingress == Ingress::Deny;
    denies.then(|| Step::decides(Rule::Related, Verdict::Passes, why))
}

/// `firewall.east_west = "deny"`. Of every address of the range, as who asks may not be told which of them
/// a container has.
fn apart(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let is_in =
        |range: super::Prefix, address| range.contains(address) && address != range.gateway();
    let is_within = |end| match end {
        End::Container(_) => true,
        End::Address(address) | End::Vacant(address) => {
            policy.prefixes().any(|range| is_in(range, address))
        }
        End::Host { .. } | End::Outside => false,
    };
    let why =
        "containers of this host begin nothing with each other (firewall.east_west = \"deny\")";
    (policy.east_west == EastWest::Deny && is_within(query.from) && is_within(query.to))
        .then(|| Step::decides(Rule::EastWest, Verdict::Dropped, why))
}

/// The chain from_confined.
fn confined(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Container(from) = query.from else { return None };
    if !from.open.reach().is_confined() {
        return None;
    }
    let by = from.open.reach().view().by;
    let address = stands_for(from, query.sends_as.unwrap_or(from.port.address));
    let is_confined = Element::Open(address, Hole::Confined);
    let (protocol, port) = match query.kind {
        Kind::Port(protocol, port) => (protocol, port),
        Kind::Reply | Kind::Error(_) => {
            let why = "a confined container sends answers, and errors about what reached it";
            return Some(Step::decides(Rule::Established, Verdict::Passes, why));
        }
        Kind::Echo => {
            let why = format!("{} reaches what is listed alone ({by})", called(from));
            let step = Step::decides(Rule::Confined, Verdict::Dropped, why);
            return Some(step.depending(true, [is_confined]));
        }
    };
    let to = match query.to {
        End::Container(to) => Some(query.sent_to.unwrap_or(to.port.address)),
        End::Host { address, .. } => address,
        End::Address(address) | End::Vacant(address) => Some(address),
        End::Outside => None,
    };
    let ways: Vec<_> = Hole::of_flow(protocol, port, to).into_iter().map(Hole::outwards).collect();
    let listed = ways.iter().find(|hole| from.port.open.each().binary_search(hole).is_ok());
    if let Some(hole) = listed {
        let why = format!("{} may reach {} there ({by})", called(from), query.kind);
        let step = Step::goes_on(Rule::Reach, why);
        return Some(step.depending(true, [Element::Open(address, *hole)]));
    }
    let why = format!("{} reaches what is listed alone ({by}), and that is not", called(from));
    let step = Step::decides(Rule::Confined, Verdict::Dropped, why);
    let none = ways.into_iter().map(|hole| Element::Open(address, hole));
    let mut step = step.depending(false, none);
    step.probes.push(Probe { element: is_confined, wanted: true });
    Some(step)
}

/// The chain kin: `firewall.east_west = "owner"`.
fn same_owner(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let (End::Container(from), End::Container(to)) = (query.from, query.to) else { return None };
    if policy.east_west != EastWest::Owner || from.owner != to.owner {
        return None;
    }
    // Of a subnet's addresses it is not known whose they are.
    let in_subnet = |a: &Attachment, at: Option<Ipv6Addr>| {
        at.is_some_and(|at| a.port.subnets().any(|also| also.net().contains(&at)))
    };
    if in_subnet(from, query.sends_as) || in_subnet(to, query.sent_to) {
        return None;
    }
    let uid = from.owner.as_raw();
    let bits = |a: &Attachment| {
        let address = a.port.address;
        let bits = (0..32).filter(move |bit| uid >> bit & 1 == 1);
        bits.map(move |bit| Element::Open(address, Hole::Kin(bit)))
    };
    let why = "containers of one owner reach each other (firewall.east_west = \"owner\")";
    let step = Step::decides(Rule::SameOwner, Verdict::Passes, why);
    Some(step.depending(true, bits(from).chain(bits(to)).collect::<Vec<_>>()))
}

fn leaves(_: &Policy, query: &Query<'_>) -> Option<Step> {
    if matches!(query.to, End::Container(_)) {
        return None;
    }
    let why = "nothing of v6pod's holds it back on its way out; whoever is there decides";
    Some(Step::decides(Rule::Leaves, Verdict::Leaves, why))
}

fn ingress_allow(policy: &Policy, _: &Query<'_>) -> Option<Step> {
    let why = "the operator has every port of every container open (firewall.ingress = \"allow\")";
    (policy.ingress == Ingress::Allow)
        .then(|| Step::decides(Rule::IngressAllow, Verdict::Passes, why))
}

fn echo(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let why = "echo requests are let in to everybody (RFC 4890)";
    (query.kind == Kind::Echo).then(|| Step::decides(Rule::Echo, Verdict::Passes, why))
}

/// `meta l4proto icmpv6 accept`, but for redirects and router advertisements.
fn host_icmp(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let why = "this host's own ICMPv6 is let in";
    matches!(query.kind, Kind::Echo | Kind::Error(_))
        .then(|| Step::decides(Rule::HostIcmp, Verdict::Passes, why))
}

fn root(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Host { uid, .. } = query.from else { return None };
    let why = "root's processes on this host reach every container";
    (policy.ingress == Ingress::Deny && uid.is_root())
        .then(|| Step::decides(Rule::Root, Verdict::Passes, why))
}

fn owner(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let (End::Host { uid, .. }, End::Container(to)) = (query.from, query.to) else { return None };
    if policy.ingress == Ingress::Allow {
        return None;
    }
    let element = Element::Owner(target(query, to), uid);
    Some(if uid == to.owner {
        let why = format!("{} is of uid {uid}, whose processes on this host reach it", called(to));
        let around = query.sent_to.and_then(|at| subnet_around(to, at));
        let elements = [element].into_iter().chain(around);
        Step::decides(Rule::Owner, Verdict::Passes, why).depending(true, elements)
    } else {
        let why = format!("uid {uid} is not the owner of {}: like anybody outside", called(to));
        Step::goes_on(Rule::Owner, why).depending(false, [element])
    })
}

fn opening(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let (End::Container(to), Kind::Port(protocol, port)) = (query.to, query.kind) else {
        return None;
    };
    let doors = Hole::of_flow(protocol, port, source(query));
    let hole = doors.into_iter().find(|hole| to.port.open.each().binary_search(hole).is_ok())?;
    let opened = to.open.opener(&hole);
    let what = opened.map_or_else(|| query.kind.to_string(), |o| o.opening.to_string());
    let by = opened.map_or_else(String::new, |o| format!(" ({})", o.by));
    let whom =
        if opened.is_none_or(|o| o.opening.peers == Peers::ALL) { " to everybody" } else { "" };
    let why = format!("{what} of {} is open{whom}{by}", called(to));
    let step = Step::decides(Rule::Opening, Verdict::Passes, why);
    let around = query.sent_to.and_then(|at| subnet_around(to, at));
    let elements = [Element::Open(target(query, to), hole)].into_iter().chain(around);
    Some(Step { opened, ..step.depending(true, elements) })
}

/// The last word on what is for a container.
fn closed(_: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Container(to) = query.to else { return None };
    let Kind::Port(protocol, port) = query.kind else {
        let why = format!("nothing lets it in to {}", called(to));
        return Some(Step::decides(Rule::Closed, Verdict::Dropped, why));
    };
    let doors = Hole::of_flow(protocol, port, source(query));
    let unopened = to.open.not_opened(protocol, port);
    let mut why = format!("nothing opens {} of {}", query.kind, called(to));
    let some: Vec<_> = others(to, protocol, port).collect();
    if !some.is_empty() {
        why =
            format!("{} of {} is open to others alone: {}", query.kind, called(to), some.join(" "));
    }
    if let Some(NotOpened { by, why: reason, .. }) = unopened.first() {
        why = format!("{why}; it was asked for ({by}): {reason}");
    }
    let address = target(query, to);
    let elements = doors.into_iter().map(|hole| Element::Open(address, hole));
    let step = Step::decides(Rule::Closed, Verdict::Dropped, why).depending(false, elements);
    Some(Step { unopened, ..step })
}

/// The chain to_resolver.
fn resolver(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Host { address: Some(to), .. } = query.to else { return None };
    if policy.resolver != Some(to) {
        return None;
    }
    let by_subnet = match (query.from, query.sends_as) {
        (End::Container(a), Some(address)) => {
            a.port.subnets().any(|also| also.net().contains(&address))
        }
        _ => false,
    };
    Some(match query.kind {
        Kind::Port(..) if by_subnet => {
            let why = "v6podd's resolver is asked with an address that stands alone";
            Step::decides(Rule::Resolver, Verdict::Dropped, why)
        }
        Kind::Port(_, 53) => {
            let why =
                "every container reaches v6podd's resolver, a thousand times in a second at most";
            Step::decides(Rule::Resolver, Verdict::Passes, why)
        }
        Kind::Reply | Kind::Error(_) => {
            let why = "it belongs to what the resolver sent";
            Step::decides(Rule::Resolver, Verdict::Passes, why)
        }
        Kind::Port(..) | Kind::Echo => {
            let why = "of v6podd's resolver containers reach port 53 alone";
            Step::decides(Rule::Resolver, Verdict::Dropped, why)
        }
    })
}

fn host(policy: &Policy, query: &Query<'_>) -> Option<Step> {
    let End::Host { address, .. } = query.to else { return None };
    let offered = match query.kind {
        Kind::Port(_, port) => {
            port == 53 && address.is_none_or(|to| policy.gateways().any(|gateway| gateway == to))
        }
        Kind::Echo | Kind::Error(_) | Kind::Reply => true,
    };
    if policy.host == HostAccess::Deny && !offered {
        let why = "of this host containers reach its resolver and echo (firewall.host = \"deny\")";
        return Some(Step::decides(Rule::Host, Verdict::Dropped, why));
    }
    let why = "it is for this host itself, whose own firewall decides; v6pod's lets it by";
    Some(Step::decides(Rule::Host, Verdict::Passes, why))
}

/// What of this port is open, to whomever.
fn others(to: &Attachment, protocol: Protocol, port: u16) -> impl Iterator<Item = String> + '_ {
    let of_port = move |opened: &&Opened| {
        let ports = opened.opening.ports;
        opened.opening.protocol == protocol && ports.first() <= port && port <= ports.last()
    };
    let open = to.open.open().iter().filter(of_port);
    open.map(|opened| opened.opening.to_string())
}

/// The address that the packet bears, if it is said.
fn source(query: &Query<'_>) -> Option<Ipv6Addr> {
    match query.from {
        End::Container(a) => Some(query.sends_as.unwrap_or(a.port.address)),
        End::Host { address, .. } => address,
        End::Address(address) | End::Vacant(address) => Some(address),
        End::Outside => None,
    }
}

/// How a person calls it.
fn called(a: &Attachment) -> String {
    a.name.clone().unwrap_or_else(|| a.port.address.to_string())
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
