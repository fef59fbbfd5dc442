use proptest::prelude::*;
use v6pod_proto::wishes::{Findings, Source};

use super::*;
use crate::core::hole::Holes;
use crate::core::open::{OpenPorts, OpenTerms, Rights, Ways};

fn rule(text: &str) -> Egress {
    text.parse().unwrap()
}

/// What a container reaches of which so much is said, by whom.
fn reach(all: &[(Source, &str)], default: &str, labels: bool) -> Reach {
    let mut findings = Findings::default();
    let mut wishes = Wishes::default();
    for (source, value) in all {
        if *source == Source::Annotation {
            wishes = Wishes::read([("v6pod.egress", *value)]).unwrap();
        } else {
            findings.add(*source, "v6pod.egress", (*value).to_owned());
        }
    }
    let found = OtherWishes::read(&findings).unwrap();
    Reach::asked(&wishes, &found, &rule(default), labels, Holes::MOST)
}

fn text(reach: &Reach) -> String {
    format!("{} by {}", reach.view().rule, reach.view().by)
}

#[test]
fn the_users_first_word_counts_before_the_hosts_default() {
    use Source::{Annotation, Label, PodLabel};
    for (said, default, labels, expected) in [
        (&[][..], "allow", false, "allow by this host's default"),
        (&[], "deny", false, "deny by this host's default"),
        (&[(Annotation, "deny,tcp/443")], "allow", false, "deny,tcp/443 by annotation"),
        (&[(Annotation, "allow")], "deny", false, "allow by annotation"),
        (&[(PodLabel, "deny,tcp/1")], "deny", false, "deny,tcp/1 by pod's label"),
        (&[(Annotation, "deny"), (PodLabel, "allow")], "deny", true, "deny by annotation"),
        (&[(Label, "allow")], "deny", true, "allow by label"),
        (
            &[(PodLabel, "deny,udp/53"), (Label, "allow")],
            "deny",
            true,
            "deny,udp/53 by pod's label",
        ),
    ] {
        assert_eq!(text(&reach(said, default, labels)), expected, "{said:?}");
    }
}

#[test]
fn attack_22_who_is_not_trusted_can_only_confine() {
    use Source::{Annotation, ImageAnnotation, ImageLabel, Label};
    for source in [Label, ImageAnnotation, ImageLabel] {
        for wider in ["allow", "deny,tcp/443", "deny,tcp/1-65535,udp/1-65535"] {
            let reach = reach(&[(source, wider)], "deny", false);
            assert_eq!(text(&reach), "deny by this host's default", "{source} {wider}");
        }
        let said = [(source, "deny,tcp/443")];
        let confined = reach(&said, "allow", false);
        assert_eq!(confined.view().rule, rule("deny,tcp/443"), "{source}");
        // Where a user says something, nobody else is heard.
        let said = [(source, "deny"), (Annotation, "allow")];
        assert_eq!(text(&reach(&said, "allow", false)), "allow by annotation");
    }
}

#[test]
fn what_has_no_room_is_out_of_reach_and_whoever_is_to_be_confined_is() {
    let wide = "deny,tcp/443@2000::/3,tcp/80,udp/1-1024,udp/2000";
    let cut = reach(&[(Source::Annotation, wide)], "allow", false);
    assert_eq!(text(&cut), "deny,tcp/80,udp/2000 by annotation");
    assert_eq!(cut.cut().len(), 2);
    assert_eq!(cut.forbidden(), Some("tcp/443@2000::/3".parse().unwrap()));
    assert!(cut.is_confined() && !cut.lets_out("2001:db8::1".parse().unwrap(), Protocol::Tcp, 443));
    let labels = reach(&[(Source::Label, wide)], "allow", true);
    assert_eq!((labels.forbidden(), labels.cut().len()), (None, 2));
    let view = EgressView { rule: rule("deny,tcp/80"), by: EgressBy::Annotation };
    let none = Reach::of(view, 0);
    assert_eq!(none.each().collect::<Vec<_>>(), [Hole::Confined]);
}

#[test]
fn openings_and_reach_share_one_limit() {
    let wishes = [("v6pod.egress", "deny,udp/1-1000"), ("v6pod.ingress", "tcp/1-20,tcp/30-60")];
    let wishes = Wishes::read(wishes).unwrap();
    let ways = Ways { annotations: true, published: true, labels: false };
    let terms =
        OpenTerms { ways, rights: Rights::All, egress: Egress::Allow, kin: None, room: 5000 };
    let ports = OpenPorts::asked(&wishes, &OtherWishes::default(), &terms);
    assert_eq!(ports.holes().each().len(), 1021);
    assert_eq!(ports.unopened().len(), 1);
}

#[test]
fn a_record_keeps_what_is_out_of_reach_and_one_of_before_says_nothing() {
    let wishes = Wishes::read([("v6pod.egress", "deny,tcp/443@2001:db8::/32")]).unwrap();
    let ways = Ways { annotations: true, published: true, labels: false };
    let terms =
        OpenTerms { ways, rights: Rights::All, egress: Egress::Allow, kin: None, room: 5000 };
    let ports = OpenPorts::asked(&wishes, &OtherWishes::default(), &terms);
    let json = serde_json::to_string(&ports.recorded()).unwrap();
    assert!(json.contains(r#""rule":"deny,tcp/443@2001:db8::/32""#), "{json}");
    let again = OpenPorts::as_recorded(serde_json::from_str(&json).unwrap());
    assert_eq!(again, ports);
    let old = OpenPorts::as_recorded(serde_json::from_str(r#"{"open": ["tcp/80"]}"#).ok());
    assert!(!old.reach().is_confined());
    assert_eq!(OpenPorts::default().recorded(), None);
}

#[test]
fn what_allows_less_is_told_from_what_allows_as_much() {
    let holes = |text: &str| {
        let wishes = Wishes::read([("v6pod.egress", text)]).unwrap();
        let ways = Ways { annotations: true, published: true, labels: false };
        let terms =
            OpenTerms { ways, rights: Rights::All, egress: Egress::Allow, kin: None, room: 5000 };
        OpenPorts::asked(&wishes, &OtherWishes::default(), &terms).holes()
    };
    let less = |before: &str, now: &str| holes(before).allow_more_than(&holes(now));
    assert!(less("allow", "deny") && less("allow", "deny,tcp/80"));
    assert!(less("deny,tcp/80", "deny") && less("deny,tcp/80", "deny,tcp/81"));
    assert!(!less("deny", "allow") && !less("deny", "deny,tcp/80") && !less("deny", "deny"));
}

/// What the rules of the chain from_confined do with these elements.
fn passes(holes: &Holes, peer: Ipv6Addr, protocol: Protocol, port: u16) -> bool {
    let within = |length: u8, prefix: Ipv6Addr| {
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        u128::from(peer) & mask == u128::from(prefix)
    };
    !holes.each().contains(&Hole::Confined)
        || holes.each().iter().any(|hole| match *hole {
            Hole::Reach(p, n) => p == protocol && n == port,
            Hole::ReachEvery(p) => p == protocol,
            Hole::ReachIn(length, p, n, prefix) => {
                p == protocol && n == port && within(length, prefix)
            }
            _ => false,
        })
}

prop_compose! {
    fn listed()(
        tcp in any::<bool>(), first in 1..20_u16, more in 0..4_u16,
        bits in prop_oneof![Just(0_u32), 30..34_u32, 46..50_u32, 60..65_u32, 125..129_u32],
        low in any::<u128>(),
    ) -> String {
        let protocol = if tcp { "tcp" } else { "udp" };
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        // Few enough for some to be met.
        let prefix = Ipv6Addr::from((0x2001_0db8 << 96 | low & 0x3) & mask);
        format!("{protocol}/{first}-{}@{prefix}/{bits}", first + more)
    }
}

proptest! {
    #[test]
    fn the_elements_let_out_what_the_rule_says(
        list in prop::collection::vec(listed(), 0..6),
        tcp in any::<bool>(), port in 1..24_u16, low in 0..8_u128, high in any::<bool>(),
    ) {
        let list = list.join(",");
        let wish = if list.is_empty() { "deny".to_owned() } else { format!("deny,{list}") };
        let wishes = Wishes::read([("v6pod.egress", wish.as_str())]).unwrap();
        let ways = Ways { annotations: true, published: true, labels: false };
        let terms = OpenTerms { ways, rights: Rights::All, egress: Egress::Allow, kin: None, room: 5000 };
        let ports = OpenPorts::asked(&wishes, &OtherWishes::default(), &terms);
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let peer = Ipv6Addr::from(if high { 0x2001_0db9 << 96 } else { 0x2001_0db8 << 96 } | low);
        let holes = ports.holes();
        prop_assert!(holes.each().contains(&Hole::Confined));
        prop_assert_eq!(
            passes(&holes, peer, protocol, port),
            ports.reach().lets_out(peer, protocol, port)
        );
    }
}
