use proptest::prelude::*;

use v6pod_proto::Wishes;
use v6pod_proto::wishes::{Egress, OtherWishes};

use super::*;
use crate::core::Instance;
use crate::core::open::{OpenPorts, OpenTerms, Rights, Ways};

fn policy(instance: &str, prefix: &str, ingress: Ingress) -> Policy {
    let links = Links::of(&instance.parse::<Instance>().unwrap());
    let (east_west, host) = (EastWest::Policy, HostAccess::AsOutside);
    let (prefix, flows) = (prefix.parse().unwrap(), NonZeroU32::new(16_384));
    let former = Vec::new();
    Policy { links, prefix, former, ingress, east_west, host, flows, resolver: None, nat66: None }
}

/// The same where containers are answered what they ask for by name.
fn answering(policy: Policy) -> Policy {
    Policy { resolver: Some(policy.links.resolver), ..policy }
}

fn elements(n: u8) -> Elements {
    Elements {
        port: format!("v6p{n:012x}").parse().unwrap(),
        mode: if n.is_multiple_of(2) { Mode::Bridge } else { Mode::Routed },
        mac: Mac::local([2, 0, 0, 0, 0, n]),
        address: Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 0, 0, n.into()),
        subnet: None,
        owner: Uid::new(1000 + u32::from(n)).unwrap(),
        open: Holes::default(),
    }
}

/// The same, with these openings.
fn with(n: u8, openings: &str) -> Elements {
    let wishes = Wishes::read([("v6pod.ingress", openings)]).unwrap();
    let ways = Ways { annotations: true, published: true, labels: false };
    let terms =
        OpenTerms { ways, rights: Rights::All, egress: Egress::Allow, kin: None, room: 2000 };
    let open = OpenPorts::asked(&wishes, &OtherWishes::default(), &terms).holes();
    assert_ne!(open, Holes::default());
    Elements { open, ..elements(n) }
}

/// One that reaches nothing but this.
fn confined(n: u8, listed: &str) -> Elements {
    let wishes = Wishes::read([("v6pod.egress", listed)]).unwrap();
    let ways = Ways { annotations: true, published: true, labels: false };
    let terms =
        OpenTerms { ways, rights: Rights::All, egress: Egress::Allow, kin: None, room: 2000 };
    let open = OpenPorts::asked(&wishes, &OtherWishes::default(), &terms).holes();
    Elements { open, ..elements(n) }
}

/// The checked-in documents: they are to be read, and every change of the rules shows in them.
/// `V6POD_BLESS=1 cargo test -p v6pod-daemon golden` writes them anew.
#[test]
fn the_rules_are_the_golden_documents() {
    let prefix = "2001:db8:1:2:3::/80";
    let all = "tcp/1-65535,tcp/22@2001:db8::/32,tcp/22@2001:db8:ff00::/40,udp/22@2001:db8:2::/47,\
               tcp/22@2001:db8:1:ff00::/56,tcp/22@2001:db8:1:2::/64,tcp/22-23@2001:db8::22";
    let five = [
        elements(2),
        with(3, "tcp/80,udp/5000-5002"),
        with(4, all),
        confined(5, "deny"),
        confined(6, &format!("deny,udp/53,{all}")),
    ];
    let apart = Policy {
        east_west: EastWest::Deny,
        host: HostAccess::Deny,
        flows: None,
        nat66: Some("up0".parse().unwrap()),
        ..policy("meta", "fd76:706f:64:a::7af0/124", Ingress::Deny)
    };
    for (name, golden, policy, attachments) in [
        (
            "deny",
            include_str!("golden/deny.nft"),
            answering(policy("v6pod", prefix, Ingress::Deny)),
            &five[..0],
        ),
        (
            "allow",
            include_str!("golden/allow.nft"),
            Policy { east_west: EastWest::Owner, ..policy("v6pod", prefix, Ingress::Allow) },
            &five[..0],
        ),
        ("other", include_str!("golden/other.nft"), apart, &five[..]),
    ] {
        let text = Ruleset::of(&policy, attachments);
        if std::env::var_os("V6POD_BLESS").is_some() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/core/golden");
            std::fs::write(format!("{folder}/{name}.nft"), &text).unwrap();
            continue;
        }
        let differs = text.lines().zip(golden.lines()).find(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "golden/{name}.nft differs; the rules are now:\n{text}");
        assert_eq!(text, golden, "golden/{name}.nft");
    }
}

/// The rules of one chain, its type line first.
fn chain<'a>(text: &'a str, table: &str, name: &str) -> Vec<&'a str> {
    // The first such block says what stays.
    let table = text.split(&format!("\ntable {table}")).nth(2).unwrap();
    let body = table.split(&format!("\tchain {name} {{\n")).nth(1).unwrap();
    let lines = body.split("\n\t}").next().unwrap().lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn priority(type_line: &str) -> i32 {
    let word = type_line.split("priority ").nth(1).unwrap().split(';').next().unwrap();
    // NF_IP_PRI_FILTER.
    if word == "filter" { 0 } else { word.parse().unwrap() }
}

fn accepts(rule: &str) -> bool {
    ["accept", "goto", "jump"].iter().any(|word| rule.split(' ').any(|w| w == *word))
}

fn position(rules: &[&str], wanted: &str) -> usize {
    rules.iter().position(|rule| *rule == wanted).unwrap_or_else(|| panic!("{wanted}: {rules:?}"))
}

proptest! {
    /// CVE-2025-52889 and -52890: an accept before the check of the source lets everything through.
    #[test]
    fn attack_09_nothing_is_accepted_before_the_source_is_checked(
        instance in "[a-z][a-z0-9-]{0,7}",
        low in any::<u64>(),
        deny in any::<bool>(),
        count in 0..3u8,
    ) {
        let ingress = if deny { Ingress::Deny } else { Ingress::Allow };
        let prefix = Prefix::unique_local(low).to_string();
        let attachments: Vec<_> = (0..count).map(|n| elements(n + 2)).collect();
        let text = Ruleset::of(&policy(&instance, &prefix, ingress), &attachments);

        // On the bridge and on a routed port the first rule does the same at once, for the most of them: by the same
        // sets, no tagged frame, nothing for the addresses that nobody may send to.
        const USUAL: &str = "ip6 nexthdr tcp";
        const FAR: &str = "@nh,192,8 1-253";
        let on_port = chain(&text, "bridge", "from_port");
        let router = policy(&instance, &prefix, ingress).links.bridge_mac;
        prop_assert_eq!(
            on_port[0],
            format!("ether type ip6 {USUAL} ether daddr {router} {FAR} iifname . ether saddr . ip6 saddr @sender accept")
        );
        let check = position(&on_port, "iifname . ether saddr . ip6 saddr != @sender jump from_subnet");
        prop_assert!(on_port[1..check].iter().all(|rule| !accepts(rule)), "{:?}", on_port);
        let on_bridge = chain(&text, "inet", "from_bridge");
        let check = position(&on_bridge, "ether saddr . ip6 saddr != @known jump known_subnet");
        prop_assert!(on_bridge[..check].iter().all(|rule| !accepts(rule)), "{:?}", on_bridge);
        let on_routed = chain(&text, "inet", "from_routed");
        let check = position(&on_routed, "iifname . ip6 saddr != @routed jump routed_subnet");
        prop_assert_eq!(
            on_routed[0],
            format!("{USUAL} {FAR} iifname . ip6 saddr @routed accept")
        );
        prop_assert!(on_routed[1..check].iter().all(|rule| !accepts(rule)), "{:?}", on_routed);

        // Behind it only who sends with an address of his own subnet comes back.
        let questions = &["icmpv6 type nd-neighbor-solicit drop"][..];
        for (table, name, first) in [
            ("bridge", "from_subnet", questions),
            ("inet", "known_subnet", questions),
            // Behind it no port is asked anything.
            ("inet", "routed_subnet", &[]),
        ] {
            let rules = chain(&text, table, name);
            prop_assert!(rules.starts_with(first), "{:?}", rules);
            let (last, others) = rules[first.len()..].split_last().unwrap();
            prop_assert_eq!((*last, others.len()), ("drop", Length::ALL.len()));
            for (rule, length) in others.iter().zip(Length::ALL) {
                let (mask, set) = (length.mask(), length.set());
                let begins = format!("ip6 saddr & {mask} @{set} ");
                prop_assert!(rule.starts_with(&begins) && rule.ends_with(" return"), "{}", rule);
                prop_assert!(rule.contains(&format!(". (ip6 saddr & {mask}) @")), "{}", rule);
            }
        }
        // All are reached first of all, and from a hook that comes before all that accept.
        let bridge = chain(&text, "bridge", "prerouting");
        let inet = chain(&text, "inet", "prerouting");
        prop_assert!(bridge[1].ends_with("jump from_port") && inet[1].ends_with("jump from_bridge"));
        prop_assert!(inet[2].ends_with("jump from_routed"));
        // Conntrack's defragmentation, conntrack itself.
        prop_assert!(priority(inet[0]) < -400 && priority(bridge[0]) < -200);
        for name in ["forward", "output", "input"] {
            let later = priority(chain(&text, "inet", name)[0]);
            prop_assert!(priority(inet[0]) < later && priority(bridge[0]) < later);
        }
        // A policy of drop would drop what passes between the making of the chain and its rules.
        prop_assert!(!text.contains("policy drop"));
        let all_filled_in = !text.contains("{TABLE") && !text.contains("ELEMENTS");
        prop_assert!(all_filled_in);
    }
}

#[test]
fn attack_17_no_port_is_opened_but_together_with_a_containers_address() {
    let text = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny), &[]);
    let rules = chain(&text, "inet", "to_container");
    let by_port: Vec<_> =
        rules.iter().filter(|rule| rule.contains("th ") || rule.contains("l4proto")).collect();
    assert_eq!(by_port.len(), 8, "{rules:?}");
    for rule in by_port {
        let whole = rule.starts_with("ip6 daddr . meta l4proto") && rule.ends_with(" goto offered");
        assert!(whole, "{rule}");
    }
    // And there is a rule for every set, and the set for every length.
    for (length, set) in FROM_SETS {
        let mask = Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0));
        let source =
            if length == 128 { "ip6 saddr".to_owned() } else { format!("(ip6 saddr & {mask})") };
        let rule = format!("ip6 daddr . meta l4proto . th dport . {source} @{set} goto offered");
        position(&rules, &rule);
    }
    assert_eq!(FROM_SETS.map(|(length, _)| length), Hole::LENGTHS);
    assert_eq!(rules.last(), Some(&"drop"));
}

#[test]
fn what_a_container_sends_on_in_a_flow_that_was_ended_begins_none() {
    let text = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny), &[]);
    for name in ["forward", "input"] {
        let rules = chain(&text, "inet", name);
        let established = position(&rules, "ct state established,related accept");
        let no_syn = rules.iter().position(|rule| rule.ends_with("!= syn drop")).unwrap();
        let ended = rules.iter().position(|rule| rule.ends_with("@ended drop")).unwrap();
        assert!(established < no_syn && no_syn < ended, "{rules:?}");
        // Before anything else is let in.
        assert!(rules[established + 1..ended].iter().all(|rule| !accepts(rule)), "{rules:?}");
    }
    let all = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Allow), &[]);
    assert!(!all.contains("!= syn drop") && !all.contains("@ended drop"));
}

/// Others' rules let flows through as well, which conntrack keeps like ours: each packet is asked about, until its flow
/// is answered.
#[test]
fn a_flow_that_conntrack_keeps_is_not_counted_again_and_its_packets_are_asked_about() {
    const KEPT: &str = "ct status confirmed accept";
    for ingress in [Ingress::Deny, Ingress::Allow] {
        let text = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", ingress), &[]);
        for name in ["begun", "offered"] {
            let rules = chain(&text, "inet", name);
            let counts = rules.iter().position(|rule| rule.contains("ct count over")).unwrap();
            assert!(position(&rules, KEPT) < counts, "{rules:?}");
        }
        assert_eq!(text.matches(KEPT).count(), 2);
    }
}

#[test]
fn attack_08_whoever_is_no_container_has_no_containers_address_before_anything_is_let_in() {
    for ingress in [Ingress::Deny, Ingress::Allow] {
        let text = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", ingress), &[]);
        let rules = chain(&text, "inet", "forward");
        let own =
            rules.iter().position(|rule| rule.ends_with("ip6 saddr 2001:db8:1:2:3::/80 drop"));
        let accepting: Vec<_> = rules[..own.unwrap()].iter().filter(|rule| accepts(rule)).collect();
        // What is for no container.
        let [others] = accepting[..] else { panic!("{accepting:?}") };
        assert!(others.contains("meta oifgroup & 0xfefffffe != "), "{others}");
    }
}

#[test]
fn attack_08_nor_has_he_an_address_of_the_prefix_before() {
    let policy = policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny);
    let policy = Policy { former: vec!["2001:db8:9::/80".parse().unwrap()], ..policy };
    let text = Ruleset::of(&policy, &[]);
    let rules = chain(&text, "inet", "forward");
    let asked: Vec<_> =
        rules.iter().filter_map(|rule| rule.split_once(" ip6 saddr 2001:")).collect();
    let [(one, "db8:1:2:3::/80 drop"), (other, "db8:9::/80 drop")] = asked[..] else {
        panic!("{rules:?}")
    };
    assert_eq!(one, other);
}

#[test]
fn a_confined_container_begins_nothing_but_what_a_set_lists_whatever_comes_in() {
    for ingress in [Ingress::Deny, Ingress::Allow] {
        let text = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", ingress), &[]);
        let rules = chain(&text, "inet", "from_confined");
        assert_eq!(rules[0], "ct state established,related accept");
        assert_eq!(rules.last(), Some(&"drop"));
        for (length, set) in REACH_SETS {
            let mask = Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0));
            let peers = if length == 128 {
                "ip6 daddr".to_owned()
            } else {
                format!("(ip6 daddr & {mask})")
            };
            let rule = format!("ip6 saddr . meta l4proto . th dport . {peers} @{set} return");
            position(&rules, &rule);
        }
        // Whatever else is let through is asked first, here and on the way to the host.
        for (name, next) in [("forward", "goto to_container"), ("input", "goto begun")] {
            let rules = chain(&text, "inet", name);
            let asked = position(&rules, "ip6 saddr @confined jump from_confined");
            let next = rules.iter().position(|rule| rule.ends_with(next)).unwrap();
            assert!(asked < next, "{rules:?}");
        }
    }
}

#[test]
fn attack_25_each_flow_that_is_let_through_is_counted_first() {
    for ingress in [Ingress::Deny, Ingress::Allow] {
        let policy = policy("v6pod", "2001:db8:1:2:3::/80", ingress);
        let text = Ruleset::of(&policy, &[]);
        for (chain_name, set, full) in [
            ("begun", "begun_by_16384 { ip6 saddr", "@full_by"),
            ("offered", "offered_to_16384 { ip6 daddr", "@full_to"),
        ] {
            let rules = chain(&text, "inet", chain_name);
            let counts = format!("add @{set} ct count over 16384 }}");
            let counted = rules.iter().position(|rule| rule.starts_with(&counts)).unwrap();
            // Who has too many is not looked at flow by flow for each packet that he sends.
            assert!(rules[counted - 1].contains(full) && rules[counted - 1].ends_with("drop"));
        }
        assert_eq!(chain(&text, "inet", "forward").last(), Some(&"ct state new goto begun"));
        assert_eq!(chain(&text, "inet", "input").last(), Some(&"ct state new goto begun"));
        let to_container = chain(&text, "inet", "to_container");
        let uncounted: Vec<_> =
            to_container.iter().filter(|rule| rule.ends_with("accept")).collect();
        // Errors alone: they are of flows that are there.
        assert!(uncounted.iter().all(|rule| rule.contains("destination-unreachable")));
        let any = Ruleset::of(&Policy { flows: None, ..policy }, &[]);
        assert!(!any.contains("ct count") && !any.contains("dynamic"));
    }
}

#[test]
fn where_containers_are_kept_apart_or_from_the_host_that_is_decided_before_anything_is_open() {
    let usual = policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Allow);
    let text = Ruleset::of(&Policy { east_west: EastWest::Deny, ..usual.clone() }, &[]);
    let rules = chain(&text, "inet", "forward");
    let apart = rules
        .iter()
        .position(|rule| rule.matches("ifgroup").count() == 2 && rule.ends_with("drop"));
    let open = rules.iter().position(|rule| rule.ends_with("goto to_container"));
    assert!(apart.unwrap() < open.unwrap(), "{rules:?}");
    let text = Ruleset::of(&Policy { host: HostAccess::Deny, ..usual.clone() }, &[]);
    let rules = chain(&text, "inet", "input");
    assert_eq!(rules.last(), Some(&"drop"));
    position(&rules, "ip6 daddr 2001:db8:1:2:3::1 udp dport 53 goto begun");
    let text = Ruleset::of(&usual, &[]);
    assert!(chain(&text, "inet", "input").iter().all(|rule| !rule.contains("dport 53")));
}

#[test]
fn attack_18_of_the_resolver_port_53_is_reached_by_containers_alone_and_not_too_often() {
    for ingress in [Ingress::Deny, Ingress::Allow] {
        let text = Ruleset::of(&answering(policy("v6pod", "2001:db8:1:2:3::/80", ingress)), &[]);
        // Before everything, what confines included: whom it tells what is the resolver's to say.
        let input = chain(&text, "inet", "input");
        assert_eq!(input[1], "ip6 daddr fd3a:9ca3:76d6::53 goto to_resolver", "{input:?}");
        let rules = chain(&text, "inet", "to_resolver");
        assert_eq!(rules[0], "iifname \"lo\" accept");
        assert!(rules[1].ends_with("drop") && rules.last() == Some(&"drop"), "{rules:?}");
        let at = |end: &str| rules.iter().position(|rule| rule.ends_with(end)).unwrap();
        let limited = at("burst 2000 packets } drop");
        assert!(limited < at("ct state established,related accept"));
        let begun: Vec<_> = rules.iter().filter(|rule| rule.ends_with("begun")).collect();
        assert!(begun.len() == 2 && begun.iter().all(|rule| rule.contains("dport 53")));
    }
    let text = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny), &[]);
    assert!(!text.contains("resolver") && !text.contains("asking"));
}

/// Whatever decides by a container's address decides the same by its subnet's.
#[test]
fn every_rule_about_a_containers_address_has_its_like_about_its_subnet() {
    let usual = answering(policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny));
    let text = Ruleset::of(&Policy { east_west: EastWest::Owner, ..usual }, &[]);
    for length in Length::ALL {
        let (mask, set) = (length.mask(), length.set());
        for (alone, whole, end) in [
            ("to_container", format!("to_{set}"), "daddr"),
            ("from_confined", format!("confined_{set}"), "saddr"),
        ] {
            let plain = format!("ip6 {end} . ");
            let masked = format!("(ip6 {end} & {mask}) . ");
            let rules = chain(&text, "inet", alone);
            let rules = rules.iter().filter(|rule| rule.starts_with(&plain));
            let expected: Vec<_> = rules.map(|rule| rule.replacen(&plain, &masked, 1)).collect();
            let (last, others) = {
                let all = chain(&text, "inet", &whole);
                (all[all.len() - 1].to_owned(), all[..all.len() - 1].join("\n"))
            };
            assert_eq!((last.as_str(), others), ("drop", expected.join("\n")));
        }
        let (from, to) =
            (format!("ip6 saddr & {mask} @{set}"), format!("ip6 daddr & {mask} @{set}"));
        for (name, rule) in [
            ("to_container", format!("{to} goto to_{set}")),
            ("begun", format!("{from} goto begun_{set}")),
            ("offered", format!("{to} goto offered_{set}")),
            ("to_resolver", format!("{from} drop")),
            ("kin", format!("{from} return")),
            ("kin", format!("{to} return")),
            ("output", format!("{to} (ip6 daddr & {mask}) . meta skuid @owner accept")),
            ("confined_subnet", format!("ip6 saddr & {mask} @confined {from} goto confined_{set}")),
        ] {
            position(&chain(&text, "inet", name), &rule);
        }
        // Together, or a subnet would be as many containers as it has addresses.
        for (name, counted) in [
            ("begun", format!("add @begun_by_16384 {{ ip6 saddr & {mask} ct count over 16384 }}")),
            (
                "offered",
                format!("add @offered_to_16384 {{ ip6 daddr & {mask} ct count over 16384 }}"),
            ),
        ] {
            let rules = chain(&text, "inet", &format!("{name}_{set}"));
            assert!(rules[1].starts_with(&counted) && rules[0].ends_with(" drop"), "{rules:?}");
        }
    }
    for name in ["forward", "input"] {
        let rules = chain(&text, "inet", name);
        let alone = position(&rules, "ip6 saddr @confined jump from_confined");
        assert!(rules[alone + 1].ends_with("jump confined_subnet"), "{rules:?}");
    }
}

#[test]
fn attack_08_a_subnet_is_asked_for_by_its_length_and_an_address_alone_is_none() {
    let subnet = |n: u8, length: u8| Elements {
        address: Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, n.into(), 0, 0),
        subnet: Length::new(length),
        ..elements(n)
    };
    let zeros = Elements { subnet: None, ..subnet(2, 96) };
    let policy = policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny);
    let text = Ruleset::of(&policy, &[zeros, subnet(4, 96), subnet(5, 104)]);
    let set = |table: &str, name: &str| {
        let table = text.split(&format!("\ntable {table}")).nth(2).unwrap();
        let body = table.split(&format!("\tset {name} {{\n")).nth(1).unwrap();
        body.split("\n\t}").next().unwrap().matches("2001:").count()
    };
    assert_eq!((set("bridge", "sender"), set("inet", "known"), set("inet", "routed")), (2, 2, 1));
    // The routed one's is none of the bridge's business.
    assert_eq!((set("bridge", "subnet96"), set("bridge", "subnet104")), (1, 0));
    assert_eq!((set("inet", "subnet96"), set("inet", "subnet104")), (1, 1));
    assert_eq!((set("inet", "subnet112"), set("inet", "subnet120")), (0, 0));
}

/// Those of one with this owner, where owners' containers reach each other.
fn owned(n: u8, uid: u32) -> Elements {
    let ways = Ways { annotations: true, published: true, labels: false };
    let kin = Uid::new(uid);
    let terms = OpenTerms { ways, rights: Rights::All, egress: Egress::Allow, kin, room: 2000 };
    let open = OpenPorts::asked(&Wishes::default(), &OtherWishes::default(), &terms).holes();
    Elements { open, ..elements(n) }
}

#[test]
fn owners_are_compared_bit_by_bit_behind_what_confines() {
    let usual = policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny);
    let text = Ruleset::of(&Policy { east_west: EastWest::Owner, ..usual.clone() }, &[owned(2, 5)]);
    for element in ["1:db8:1:2:3::2", "3:db8:1:2:3::2"] {
        assert_eq!(text.matches(&format!("\t{element}")).count(), 1, "{element}");
    }
    assert_eq!(text.matches(":db8:1:2:3::2").count(), 3 + 2);
    let rules = chain(&text, "inet", "kin");
    assert_eq!((rules.len(), rules.last()), (73, Some(&"goto offered")));
    for bit in 1..=32 {
        let end =
            |end: &str| format!("ip6 {end} & 0:ffff:ffff:ffff:ffff:ffff:ffff:ffff | {bit:x}::");
        let (from, to) = (end("saddr"), end("daddr"));
        position(&rules, &format!("{from} @kin {to} != @kin return"));
        position(&rules, &format!("{from} != @kin {to} @kin return"));
    }
    let forward = chain(&text, "inet", "forward");
    let confined = position(&forward, "ip6 saddr @confined jump from_confined");
    let kin = forward.iter().position(|rule| rule.ends_with("jump kin")).unwrap();
    // Between two ports alone: who is on neither has no bits, as root.
    assert!(confined < kin && forward[kin].matches("ifgroup").count() == 2, "{forward:?}");
    assert!(!Ruleset::of(&usual, &[]).contains("@kin"));
}

proptest! {
    #[test]
    fn owners_have_the_same_bits_only_if_they_are_the_same(
        one in 0..u32::MAX, bit in 0..33_u32, other in 0..u32::MAX, same in any::<bool>()
    ) {
        // One that differs in one bit, in none, or in any.
        let near = one ^ 1_u32.checked_shl(bit).unwrap_or(0);
        let other = if same { near.min(u32::MAX - 1) } else { other };
        let [a, b] = [one, other].map(|uid| owned(2, uid).open);
        prop_assert_eq!(a == b, one == other);
    }
}

#[test]
fn only_the_last_word_about_a_container_depends_on_ingress() {
    let [deny, allow] = [Ingress::Deny, Ingress::Allow]
        .map(|ingress| Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", ingress), &[]));
    let bridge = |text: &str| text.split("\ntable inet").next().unwrap().to_owned();
    assert_eq!(bridge(&deny), bridge(&allow));
    for name in ["prerouting", "from_bridge", "from_routed", "plain"] {
        assert_eq!(chain(&deny, "inet", name), chain(&allow, "inet", name));
    }
    assert_eq!(chain(&deny, "inet", "to_container").last(), Some(&"drop"));
    assert_eq!(chain(&allow, "inet", "to_container"), ["goto offered"]);
}

#[test]
fn a_port_whose_name_is_not_plain_gets_no_elements() {
    let wrong = |name: &str| Elements { port: name.parse().unwrap(), ..elements(3) };
    for name in ["v6p*", "a\"b", "a;b", "a}b", "a$b"] {
        let text = Ruleset::of(
            &policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny),
            &[elements(2), wrong(name)],
        );
        assert!(text.contains("\"v6p000000000002\"") && !text.contains(name), "{name}");
        assert!(!text.contains("::3"), "{name}");
    }
}

#[test]
fn each_port_is_in_the_sets_of_its_kind_alone() {
    let text = Ruleset::of(
        &policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny),
        &[elements(2), elements(3)],
    );
    let count = |wanted: &str| text.matches(wanted).count();
    // Sender, known, owner; routed, owner.
    assert_eq!((count("2001:db8:1:2:3::2"), count("2001:db8:1:2:3::3")), (3, 2), "{text}");
    assert_eq!(count("\"v6p000000000003\" . 2001:db8:1:2:3::3"), 1, "{text}");
    assert!(!text.contains("02:00:00:00:00:03"), "{text}");
}

/// A port that is being deleted is up until it is: what comes from it and what goes to it is under the
/// rules until then.
#[test]
fn a_doomed_port_is_under_all_rules() {
    let policy = policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny);
    let text = Ruleset::of(&policy, &[]);
    let Links { ports, bridges, .. } = policy.links;
    let mut masked = 0;
    for rule in text.lines().filter(|line| line.contains("ifgroup & ")) {
        for words in rule.split("ifgroup & ").skip(1) {
            let mask = u32::from_str_radix(&words[2..10], 16).unwrap();
            assert_eq!((policy.links.doomed() & mask, ports & mask), (ports, ports), "{rule}");
            assert!([ports, bridges].contains(&(bridges & mask)), "{rule}");
            masked += 1;
        }
    }
    assert_eq!(masked, 16, "{text}");
}

#[test]
fn nft_0_9_8_reads_the_names_of_the_sets() {
    let text = Ruleset::of(&policy("v6pod", "2001:db8:1:2:3::/80", Ingress::Deny), &[]);
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("set ")?.split(' ').next());
    let names: Vec<_> = names.collect();
    for set in [
        PORT_SET,
        KNOWN_SET,
        ROUTED_SET,
        OWNER_SET,
        OPEN_SET,
        OPEN_ALL_SET,
        ENDED_SET,
        CONFINED_SET,
        REACH_SET,
        REACH_ALL_SET,
        "begun_by_16384",
        "offered_to_16384",
        FULL_BY_SET,
        FULL_TO_SET,
    ] {
        assert!(names.contains(&set), "{set}: {names:?}");
    }
    // What stands in a rule as a word of the language is no name there (Debian 11).
    assert!(names.iter().all(|name| !["port", "gateway", "addr", "type"].contains(name)));
}
