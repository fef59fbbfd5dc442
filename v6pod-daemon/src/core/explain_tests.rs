use std::convert::Infallible;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use v6pod_proto::wishes::{Egress, Findings, OtherWishes, Source};
use v6pod_proto::{OpenedBy, Wishes};

use super::super::attachment::NamespaceId;
use super::super::book::{Book, Terms, Wanted};
use super::super::open::{OpenPorts, OpenTerms, Rights, Ways};
use super::super::ruleset::Elements;
use super::super::{Instance, Links};
use super::*;

const OWNER: Uid = Uid::new(1000).unwrap();
const OTHER: Uid = Uid::new(1001).unwrap();

fn policy(ingress: Ingress) -> Policy {
    let links = Links::of(&Instance::default());
    let prefix = "2001:db8:1::/80".parse().unwrap();
    let (east_west, host) = (EastWest::Policy, HostAccess::AsOutside);
    let former = Vec::new();
    Policy {
        links,
        prefix,
        former,
        ingress,
        east_west,
        host,
        flows: None,
        resolver: None,
        nat66: None,
    }
}

/// A container of [`OWNER`]'s with these openings.
fn container(number: u64, mode: Mode, ingress: &str, published: &str) -> Attachment {
    that_asks(number, mode, &[("v6pod.ingress", ingress)], published)
}

/// The same by whatever it asks for.
fn that_asks(number: u64, mode: Mode, asked: &[(&str, &str)], published: &str) -> Attachment {
    let terms = Terms {
        prefix: "2001:db8:1::/80".parse().unwrap(),
        mtu: 1500,
        mode,
        quarantine: Duration::ZERO,
        per_owner: 1,
        slice: None,
        secret: crate::core::secret::Secret::new(1),
    };
    let mut findings = Findings::default();
    if !published.is_empty() {
        findings.add(Source::Published, "v6pod.ingress", published.to_owned());
    }
    let found = OtherWishes::read(&findings).unwrap();
    let annotations = asked.iter().copied().filter(|(_, v)| !v.is_empty());
    let wishes = Wishes::read(annotations).unwrap();
    let ways = Ways { annotations: true, published: true, labels: false };
    // As `firewall.east_west = "owner"` has it.
    let (egress, kin) = (Egress::Allow, Some(OWNER));
    let terms_of_it = OpenTerms { ways, rights: Rights::All, egress, kin, room: 1024 };
    let open = OpenPorts::asked(&wishes, &found, &terms_of_it);
    let wanted = Wanted {
        owner: OWNER,
        container: Some(format!("{number:064x}").parse().unwrap()),
        name: Some("web".to_owned()),
        wishes,
        found,
        choice: crate::core::choice::Choice::Any,
        subnet: None,
        open,
        namespace: NamespaceId { inode: number, cookie: Some(number) },
        interface: "eth0".parse().unwrap(),
        holder: None,
        lease: true,
        since: 0,
        network: None,
        attempt: None,
    };
    let draw = || Ok::<_, Infallible>(u128::from(number) << 64 | u128::from(number));
    Book::new(terms).reserve(wanted, Instant::now(), draw).unwrap().clone()
}

fn host(uid: Uid) -> End<'static> {
    End::Host { uid, address: Some("2001:db8:1::1".parse().unwrap()) }
}

fn at(address: &str) -> End<'static> {
    End::Address(address.parse().unwrap())
}

/// Verdict and rule.
fn ask(ingress: Ingress, from: End<'_>, to: End<'_>, kind: &str) -> (Verdict, Rule) {
    let query = Query { from, sends_as: None, sent_to: None, to, kind: kind.parse().unwrap() };
    let explained = explain(&policy(ingress), &query);
    let (_, last) = explained.chain.last().unwrap();
    assert_eq!(last.verdict, Some(explained.verdict));
    (explained.verdict, last.rule)
}

fn last(from: End<'_>, to: End<'_>, kind: &str) -> Step {
    let query = Query { from, sends_as: None, sent_to: None, to, kind: kind.parse().unwrap() };
    explain(&policy(Deny), &query).chain.pop().unwrap().1
}

use Ingress::{Allow, Deny};
use Verdict::{Dropped, Leaves, NotOurs, Passes, Unreachable};

#[test]
fn what_is_not_opened_is_closed_to_all_but_root_and_the_owner_on_this_host() {
    let web = container(7, Mode::Bridge, "tcp/80", "");
    let neighbour = container(8, Mode::Bridge, "", "");
    let to = End::Container(&web);
    let like_outside = [End::Outside, at("2001:db8::9"), End::Container(&neighbour), host(OTHER)];
    for from in like_outside {
        assert_eq!(ask(Deny, from, to, "tcp/80"), (Passes, Rule::Opening));
        for closed in ["tcp/81", "udp/80"] {
            assert_eq!(ask(Deny, from, to, closed), (Dropped, Rule::Closed));
        }
        assert_eq!(ask(Deny, from, to, "reply"), (Passes, Rule::Established));
        assert_eq!(ask(Allow, from, to, "tcp/81"), (Passes, Rule::IngressAllow));
    }
    assert_eq!(ask(Deny, host(OWNER), to, "tcp/81"), (Passes, Rule::Owner));
    assert_eq!(ask(Deny, host(Uid::ROOT), to, "tcp/81"), (Passes, Rule::Root));
    for (from, echo, error) in
        [(End::Outside, Rule::Echo, Rule::Related), (host(OTHER), Rule::HostIcmp, Rule::HostIcmp)]
    {
        assert_eq!(ask(Deny, from, to, "echo"), (Passes, echo));
        assert_eq!(ask(Deny, from, to, "packet-too-big"), (Passes, error));
    }
}

#[test]
fn an_address_of_a_subnet_is_answered_for_by_the_first_one_of_that() {
    use crate::core::step::{Also, Role};
    use crate::core::subnet::Length;

    for mode in [Mode::Bridge, Mode::Routed] {
        let (mut web, other) = (container(7, mode, "tcp/80", ""), container(8, mode, "", ""));
        let (address, length) = ("2001:db8:1:0:0:5::".parse().unwrap(), Length::new(96).unwrap());
        let gateway = web.port.gateway;
        web.port.also = vec![Also { address, subnet: Some(length), gateway, role: Role::Staying }];
        let some: Ipv6Addr = "2001:db8:1::5:aaaa:9".parse().unwrap();
        assert!(web.port.has(some));
        let to = End::Container(&web);
        let asked = |from, sends_as, sent_to, to, kind: &str| {
            let query = Query { from, sends_as, sent_to, to, kind: kind.parse().unwrap() };
            explain(&Policy { east_west: EastWest::Owner, ..policy(Deny) }, &query)
        };
        let open = asked(End::Outside, None, Some(some), to, "tcp/80");
        let (_, step) = open.chain.last().unwrap();
        assert_eq!((open.verdict, step.rule), (Passes, Rule::Opening));
        let on: Vec<_> = step.probes.iter().map(|probe| (probe.wanted, &probe.element)).collect();
        assert!(
            matches!(on[..], [(true, Element::Open(at, _)), (true, Element::Subnet(..))] if *at == address),
            "{on:?}"
        );
        // Of one owner, which is not known of a subnet's addresses.
        let closed = asked(End::Container(&other), None, Some(some), to, "tcp/81");
        assert_eq!(closed.chain.last().unwrap().1.rule, Rule::Closed);
        let kin = asked(End::Container(&other), None, None, to, "tcp/81");
        assert_eq!(kin.chain.last().unwrap().1.rule, Rule::SameOwner);
        // It sends with each of them, and with none beside.
        let sent = asked(to, Some(some), None, End::Outside, "udp/53");
        assert_eq!(sent.verdict, Leaves);
        let probes = &sent.chain[0].1.probes;
        assert!(probes.iter().all(|probe| probe.wanted));
        assert!(probes.iter().any(|probe| probe.element == Element::Subnet(length, address)));
        let beside =
            asked(to, Some("2001:db8:1::4:0:9".parse().unwrap()), None, End::Outside, "udp/53");
        assert_eq!(beside.chain.last().unwrap().1.rule, Rule::Spoofed);
    }
}

#[test]
fn a_container_sends_with_its_own_address_and_to_no_place_of_the_link() {
    for mode in [Mode::Bridge, Mode::Routed] {
        let (web, other) = (container(7, mode, "tcp/80", ""), container(8, mode, "", ""));
        let (from, to) = (End::Container(&other), End::Container(&web));
        let spoofed = Query {
            from,
            sends_as: Some(web.port.address),
            sent_to: None,
            to,
            kind: "tcp/80".parse().unwrap(),
        };
        let explained = explain(&policy(Deny), &spoofed);
        assert_eq!(explained.verdict, Dropped);
        let [(Hook::Prerouting, step)] = &explained.chain[..] else { panic!("{explained:?}") };
        assert!(step.rule == Rule::Spoofed && step.probes.iter().all(|probe| !probe.wanted));
        for link in ["fe80::1", "ff02::1", "::1"] {
            assert_eq!(ask(Deny, from, at(link), "udp/53"), (Dropped, Rule::Scope));
        }
        assert_eq!(ask(Deny, from, at("2001:db8::1"), "udp/53"), (Leaves, Rule::Leaves));
        assert_eq!(ask(Deny, from, End::Outside, "udp/53"), (Leaves, Rule::Leaves));
        assert_eq!(ask(Deny, from, host(OTHER), "udp/53"), (Passes, Rule::Host));
        assert_eq!(ask(Deny, from, from, "tcp/81"), (Passes, Rule::Loopback));
    }
}

#[test]
fn who_is_confined_reaches_what_is_listed_and_answers_whoever_reaches_him() {
    let confined = [("v6pod.egress", "deny,tcp/443@2001:db8:9::/48,udp/53")];
    let confined = that_asks(7, Mode::Bridge, &confined, "");
    let web = container(8, Mode::Bridge, "udp/53 tcp/443", "");
    let (from, to) = (End::Container(&confined), End::Container(&web));
    for (to, kind, expected) in [
        (at("2001:db8:9::1"), "tcp/443", (Leaves, Rule::Leaves)),
        (at("2001:db8:8::1"), "tcp/443", (Dropped, Rule::Confined)),
        (at("2001:db8:8::1"), "udp/53", (Leaves, Rule::Leaves)),
        (at("2001:db8:8::1"), "echo", (Dropped, Rule::Confined)),
        (to, "tcp/443", (Dropped, Rule::Confined)),
        (to, "udp/53", (Passes, Rule::Opening)),
        (to, "reply", (Passes, Rule::Established)),
        (host(OTHER), "udp/53", (Passes, Rule::Host)),
        (host(OTHER), "tcp/22", (Dropped, Rule::Confined)),
        (host(OTHER), "reply", (Passes, Rule::Established)),
    ] {
        assert_eq!(ask(Deny, from, to, kind), expected, "{kind} to {to:?}");
    }
    let dropped = last(from, at("2001:db8:8::1"), "tcp/443");
    let wanted: Vec<_> = dropped.probes.iter().filter(|probe| probe.wanted).collect();
    assert_eq!((wanted.len(), wanted[0].element.set()), (1, "confined"));
    assert!(dropped.probes.iter().any(|probe| probe.element.set() == "reach48"));
}

#[test]
fn neighbours_and_the_host_are_as_the_operator_has_them() {
    let (from, to) = (container(7, Mode::Routed, "", ""), container(8, Mode::Bridge, "", ""));
    let mut others = to.clone();
    others.owner = OTHER;
    let ask = |policy: Policy, to, kind: &str| {
        let query = Query {
            from: End::Container(&from),
            sends_as: None,
            sent_to: None,
            to,
            kind: kind.parse().unwrap(),
        };
        let explained = explain(&policy, &query);
        (explained.verdict, explained.chain.last().unwrap().1.rule)
    };
    let east_west = |east_west| Policy { east_west, ..policy(Deny) };
    let (own, anothers) = (End::Container(&to), End::Container(&others));
    for (rule, to, kind, expected) in [
        (EastWest::Policy, own, "tcp/81", (Dropped, Rule::Closed)),
        (EastWest::Owner, own, "tcp/81", (Passes, Rule::SameOwner)),
        (EastWest::Owner, anothers, "tcp/81", (Dropped, Rule::Closed)),
        (EastWest::Deny, own, "echo", (Dropped, Rule::EastWest)),
        (EastWest::Deny, own, "reply", (Passes, Rule::Established)),
    ] {
        assert_eq!(ask(east_west(rule), to, kind), expected, "{rule:?} {kind}");
    }
    // Of another's container as of an address that nobody has, which is no container's to anybody else.
    for (address, expected) in [
        ("2001:db8:1::9", (Dropped, Rule::EastWest)),
        ("2001:db8:1::1", (Dropped, Rule::Closed)),
        ("2001:db8:2::9", (Dropped, Rule::Closed)),
    ] {
        let query = Query {
            from: at(address),
            sends_as: None,
            sent_to: None,
            to: own,
            kind: "tcp/81".parse().unwrap(),
        };
        let explained = explain(&east_west(EastWest::Deny), &query);
        let told = (explained.verdict, explained.chain.last().unwrap().1.rule);
        assert_eq!(told, expected, "{address}");
    }
    let closed = Policy { host: HostAccess::Deny, ..policy(Deny) };
    for (to, kind, verdict) in [
        (host(OTHER), "udp/53", Passes),
        (
            End::Host { uid: OTHER, address: Some("2001:db8::5".parse().unwrap()) },
            "udp/53",
            Dropped,
        ),
        (host(OTHER), "tcp/22", Dropped),
        (host(OTHER), "echo", Passes),
        (host(OTHER), "reply", Passes),
    ] {
        assert_eq!(ask(closed.clone(), to, kind), (verdict, Rule::Host), "{kind} to {to:?}");
    }
}

#[test]
fn every_container_reaches_the_resolver_and_of_it_port_53_alone() {
    let confined = container(7, Mode::Bridge, "", "deny");
    let address = policy(Deny).links.resolver;
    let to = End::Host { uid: OTHER, address: Some(address) };
    for host in [HostAccess::AsOutside, HostAccess::Deny] {
        let policy = Policy { host, resolver: Some(address), ..policy(Deny) };
        for (kind, verdict) in
            [("udp/53", Passes), ("tcp/53", Passes), ("tcp/22", Dropped), ("echo", Dropped)]
        {
            let (from, kind) = (End::Container(&confined), kind.parse().unwrap());
            let explained =
                explain(&policy, &Query { from, sends_as: None, sent_to: None, to, kind });
            let rule = explained.chain.last().unwrap().1.rule;
            assert_eq!((explained.verdict, rule), (verdict, Rule::Resolver), "{kind}");
        }
    }
}

#[test]
fn where_nobody_is_the_host_says_so_and_what_is_nobodys_is_not_ours() {
    let web = container(7, Mode::Bridge, "", "");
    let vacant = End::Vacant("2001:db8:1::dead".parse().unwrap());
    for from in [End::Outside, End::Container(&web)] {
        assert_eq!(ask(Deny, from, vacant, "tcp/80"), (Unreachable, Rule::Vacant));
    }
    for ingress in [Deny, Allow] {
        let said = ask(ingress, vacant, End::Container(&web), "reply");
        assert_eq!(said, (Dropped, Rule::Spoofed));
    }
    assert_eq!(ask(Deny, End::Outside, host(OTHER), "tcp/22"), (NotOurs, Rule::NotOurs));
}

#[test]
fn it_is_said_who_opened_it_and_why_what_was_asked_for_is_not_open() {
    let web = container(7, Mode::Routed, "tcp/5432@2001:db8:f::/48", "tcp/80,tcp/5432");
    let to = End::Container(&web);
    let by = |step: &Step| step.opened.map(|o| (o.opening.to_string(), o.by));
    let step = last(End::Outside, to, "tcp/80");
    assert_eq!(by(&step), Some(("tcp/80".to_owned(), OpenedBy::Published)));
    assert_eq!(step.why, "tcp/80 of web is open to everybody (published port)");
    let step = last(at("2001:db8:f:1::9"), to, "tcp/5432");
    assert_eq!(by(&step).unwrap().1, OpenedBy::Annotation);
    assert_eq!(step.why, "tcp/5432@2001:db8:f::/48 of web is open (annotation)");
    for from in [at("2001:db8:e:1::9"), End::Outside] {
        let step = last(from, to, "tcp/5432");
        assert_eq!(step.verdict, Some(Dropped));
        assert!(
            step.why.contains("open to others alone: tcp/5432@2001:db8:f::/48"),
            "{}",
            step.why
        );
        assert!(step.why.contains("it was asked for (published port)"), "{}", step.why);
    }
}

/// Openings that overlap, and their neighbourhood.
fn openings() -> impl Strategy<Value = String> {
    let peers =
        prop::sample::select(vec!["", "@2001:db8::/32", "@2001:db8:8::/45", "@2001:db8::9"]);
    let ports = prop::sample::select(vec!["79", "80", "80-81", "1-65535"]);
    let one = (prop::sample::select(vec!["tcp", "udp"]), ports, peers);
    let text = one.prop_map(|(protocol, ports, peers)| format!("{protocol}/{ports}{peers}"));
    prop::collection::vec(text, 1..4).prop_map(|all| all.join(","))
}

proptest! {
    #[test]
    fn a_port_is_open_if_an_element_of_the_kernels_says_so(
        openings in openings(),
        peer in prop::sample::select(vec!["2001:db8::9", "2001:db8:b::9", "2001:db9::9"]),
        protocol in prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]),
        port in 78_u16..83,
    ) {
        let web = container(7, Mode::Bridge, &openings, "");
        let peer: Ipv6Addr = peer.parse().unwrap();
        let query = Query {
            from: End::Address(peer),
            sends_as: None,
            sent_to: None,
            to: End::Container(&web),
            kind: Kind::Port(protocol, port),
        };
        let Explained { verdict, chain } = explain(&policy(Deny), &query);
        let let_in = web.open.let_in(peer, protocol, port);
        prop_assert_eq!(verdict, if let_in { Passes } else { Dropped });
        let holes = Elements::of(&web.port).open;
        let (_, step) = chain.last().unwrap();
        prop_assert!(!step.probes.is_empty());
        for Probe { element, wanted } in &step.probes {
            let Element::Open(_, hole) = element else { panic!("{element:?}") };
            prop_assert_eq!(holes.each().contains(hole), *wanted);
        }
        let opened = step.opened.map(|o| {
            o.opening.peers.has(peer) && o.opening.ports.first() <= port && port <= o.opening.ports.last()
        });
        prop_assert_eq!(opened, let_in.then_some(true));
    }
}
