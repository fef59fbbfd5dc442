use proptest::prelude::*;
use v6pod_proto::wishes::{Findings, Source};

use super::*;

const ROOM: usize = Holes::MOST_OF_OWNER;
const WAYS: Ways = Ways { annotations: true, published: true, labels: false };

fn terms(ways: Ways, rights: Rights) -> OpenTerms {
    OpenTerms { ways, rights, egress: Egress::Allow, kin: None, room: ROOM }
}

fn usual() -> OpenTerms {
    terms(WAYS, Rights::All)
}

fn only(texts: &[&str]) -> Rights {
    let allowed = texts.iter().map(|text| {
        let Opening { protocol, ports, .. } = opening(text);
        Allowed { protocol, ports }
    });
    Rights::Only(allowed.collect())
}

fn opening(text: &str) -> Opening {
    text.parse().unwrap()
}

fn asks(all: &[(Source, &str)], terms: &OpenTerms) -> OpenPorts {
    let mut findings = Findings::default();
    let mut wishes = Wishes::default();
    for (source, value) in all {
        if *source == Source::Annotation {
            wishes = Wishes::read([("v6pod.ingress", *value)]).unwrap();
        } else {
            findings.add(*source, "v6pod.ingress", (*value).to_owned());
        }
    }
    OpenPorts::asked(&wishes, &OtherWishes::read(&findings).unwrap(), terms)
}

fn open(ports: &OpenPorts) -> String {
    let each = ports.open().iter().map(|o| format!("{} {}", o.opening, o.by));
    each.collect::<Vec<_>>().join(", ")
}

fn unopened(ports: &OpenPorts) -> Vec<(String, Why)> {
    ports.unopened().iter().map(|o| (o.opening.to_string(), o.why)).collect()
}

fn change(kind: &str, texts: &[&str]) -> Change {
    let list = Some(OpeningList(texts.iter().map(|text| opening(text)).collect()));
    match kind {
        "open" => Change { open: list, ..Change::default() },
        "close" => Change { close: list, ..Change::default() },
        _ => Change { openings: list, ..Change::default() },
    }
}

fn changed(ports: &OpenPorts, kind: &str, texts: &[&str]) -> Result<OpenPorts, ChangeError> {
    ports.change(&change(kind, texts), OpenedBy::Owner, &Rights::All, ROOM)
}

#[test]
fn attack_22_labels_open_nothing_unless_the_operator_says_so_and_images_never_do() {
    let said = [
        (Source::Label, "tcp/1"),
        (Source::ImageLabel, "tcp/2"),
        (Source::ImageAnnotation, "tcp/3"),
    ];
    let ports = asks(&said, &usual());
    assert_eq!((open(&ports), ports.holes()), (String::new(), Holes::default()));
    let images = ["tcp/3", "tcp/2"].map(|text| (text.to_owned(), Why::Image));
    assert_eq!(unopened(&ports), [&[("tcp/1".to_owned(), Why::Off)], &images[..]].concat());
    assert_eq!(ports.forbidden(), None);
    let ports = asks(&said, &terms(Ways { labels: true, ..WAYS }, Rights::All));
    assert_eq!(open(&ports), "tcp/1 label");
}

#[test]
fn a_word_about_a_port_counts_before_its_publication() {
    let ports = asks(
        &[
            (Source::Annotation, "tcp/5432@2001:db8::/32,udp/53"),
            (Source::Published, "tcp/80,tcp/5430-5434,udp/53"),
        ],
        &usual(),
    );
    assert_eq!(
        open(&ports),
        "tcp/5432@2001:db8::/32 annotation, udp/53 annotation, tcp/80 published port, \
         tcp/5430-5431 published port, tcp/5433-5434 published port"
    );
    let named = ["tcp/5432", "udp/53"].map(|text| (text.to_owned(), Why::Named));
    assert_eq!(unopened(&ports), named);
    // Of annotation, pod's label and label the first counts, and no other.
    let labels = Ways { labels: true, ..WAYS };
    let all =
        [(Source::Annotation, "tcp/1"), (Source::PodLabel, "tcp/2"), (Source::Label, "tcp/3")];
    for (from, expected) in [(0, "tcp/1 annotation"), (1, "tcp/2 pod's label"), (2, "tcp/3 label")]
    {
        let ports = asks(&all[from..], &terms(labels, Rights::All));
        assert_eq!(open(&ports), expected);
        assert_eq!(ports.unopened().len(), 2 - from);
        assert_eq!(ports.forbidden(), None);
    }
    // A label that does not count says nothing of a port.
    let ports = asks(&[(Source::Label, "tcp/80@::1"), (Source::Published, "tcp/80")], &usual());
    assert_eq!(open(&ports), "tcp/80 published port");
}

#[test]
fn what_the_operator_does_not_allow_is_forbidden_by_name_and_told_otherwise() {
    let rights = only(&["tcp/80", "tcp/81-90", "udp/1-65535"]);
    let own = terms(WAYS, rights.clone());
    let ports = asks(&[(Source::Annotation, "tcp/79-91@2001:db8::/32,udp/53")], &own);
    assert_eq!(
        open(&ports),
        "tcp/80@2001:db8::/32 annotation, tcp/81-90@2001:db8::/32 annotation, udp/53 annotation"
    );
    let forbidden = ports.forbidden().unwrap();
    assert_eq!(
        (forbidden.opening, forbidden.why),
        (opening("tcp/79@2001:db8::/32"), Why::NotAllowed)
    );
    assert_eq!(asks(&[(Source::Annotation, "tcp/80-90")], &own).forbidden(), None);
    let published = asks(&[(Source::Published, "tcp/22,tcp/80")], &own);
    assert_eq!((open(&published), published.forbidden()), ("tcp/80 published port".into(), None));
    assert_eq!(unopened(&published), [("tcp/22".to_owned(), Why::NotAllowed)]);

    let off = terms(Ways { annotations: false, ..WAYS }, Rights::All);
    for source in [Source::Annotation, Source::PodLabel] {
        let ports = asks(&[(source, "tcp/80"), (Source::Published, "tcp/80")], &off);
        assert_eq!(open(&ports), "tcp/80 published port");
        assert_eq!(ports.forbidden().unwrap().why, Why::Off);
    }
    let none = terms(WAYS, Rights::none());
    assert_eq!(open(&asks(&[(Source::Published, "tcp/80")], &none)), "");
}

#[test]
fn ranges_and_prefixes_become_elements_and_too_many_of_them_do_not() {
    let holes = |text: &str| asks(&[(Source::Annotation, text)], &usual()).holes().each().to_vec();
    assert_eq!(holes("tcp/1-65535"), [Hole::Every(Protocol::Tcp)]);
    assert_eq!(holes("udp/5-6,udp/6"), [5, 6].map(|port| Hole::Port(Protocol::Udp, port)));
    let from =
        |length, address: &str| Hole::From(length, Protocol::Tcp, 80, address.parse().unwrap());
    for length in Hole::LENGTHS {
        assert_eq!(holes(&format!("tcp/80@2001:db8::/{length}")), [from(length, "2001:db8::")]);
    }
    assert_eq!(holes("tcp/80@2001:db8::/47"), [from(48, "2001:db8::"), from(48, "2001:db8:1::")]);
    assert_eq!(
        holes("tcp/80@2001:db8::8/127"),
        [from(128, "2001:db8::8"), from(128, "2001:db8::9")]
    );
    assert_eq!(holes("tcp/80@2001:db8::/31").len(), 2);
    assert_eq!(holes("tcp/80@2001:db8::/118").len(), 1024);
    for (most, more) in [
        ("tcp/1-1024", "tcp/1-1025"),
        ("tcp/1-1024@::1", "tcp/1-1025@::1"),
        ("tcp/1-512@2001:db8::/55", "tcp/1-513@2001:db8::/55"),
        ("tcp/1-65535,udp/1-1023", "tcp/1-65535,udp/1-1024"),
        ("tcp/1@8000::/22", "tcp/1@8000::/21"),
    ] {
        let (most, more) = (
            asks(&[(Source::Annotation, most)], &usual()),
            asks(&[(Source::Annotation, more)], &usual()),
        );
        assert!(most.forbidden().is_none() && most.holes().each().len() == 1024);
        assert_eq!(more.forbidden().unwrap().why, Why::NoRoom);
    }
    for huge in ["tcp/1-65535@8000::/1", "tcp/1-65535@2001:db8::/65"] {
        assert_eq!(holes(huge), []);
    }
}

#[test]
fn attack_25_what_its_owner_has_left_is_all_that_a_container_has() {
    let few = OpenTerms { room: 10, ..usual() };
    let ports =
        asks(&[(Source::Annotation, "tcp/1-8"), (Source::Published, "udp/1-4,udp/9-10")], &few);
    assert_eq!(open(&ports), "tcp/1-8 annotation, udp/9-10 published port");
    assert_eq!(unopened(&ports), [("udp/1-4".to_owned(), Why::NoRoom)]);
    assert_eq!(
        asks(&[(Source::Annotation, "tcp/1-11")], &few).forbidden().unwrap().why,
        Why::NoRoom
    );
    let more = |texts: &[&str], room| {
        ports.change(&change("open", texts), OpenedBy::Owner, &Rights::All, room).map(|p| open(&p))
    };
    assert_eq!(more(&["udp/53"], 10), Err(ChangeError::TooMany(TooMany)));
    assert!(more(&["udp/53"], 11).is_ok());
    // Who has too much by now can close some of it.
    let fewer =
        ports.change(&change("close", &["tcp/1"]), OpenedBy::Owner, &Rights::All, 5).unwrap();
    assert_eq!(fewer.holes().each().len(), 9);
}

#[test]
fn what_is_closed_is_closed_and_a_part_of_its_addresses_cannot_be() {
    let ports = asks(&[(Source::Annotation, "tcp/80-90,udp/53,tcp/85@2001:db8::/32")], &usual());
    let close = |texts: &[&str]| changed(&ports, "close", texts).map(|ports| open(&ports));
    assert_eq!(
        close(&["tcp/85"]).unwrap(),
        "tcp/80-84 annotation, tcp/86-90 annotation, udp/53 annotation"
    );
    assert_eq!(close(&["tcp/1-65535", "udp/53"]).unwrap(), "");
    assert_eq!(close(&["udp/80", "tcp/79"]).unwrap(), open(&ports));
    let wider = Err(ChangeError::Wider(opening("tcp/80-90")));
    assert_eq!(close(&["tcp/85@2001:db8::/32"]), wider);
    assert_eq!(close(&["tcp/91@2001:db8::/32"]).unwrap(), open(&ports));
    let one = changed(&ports, "close", &["tcp/80-84", "tcp/86-90"]).unwrap();
    let left = "tcp/85 annotation, udp/53 annotation, tcp/85@2001:db8::/32 annotation";
    assert_eq!(open(&one), left);
}

#[test]
fn attack_25_nothing_is_split_into_more_openings_than_a_restart_takes_up() {
    let [list, middle] = [(0..256, "1-4"), (0..256, "2")].map(|(sources, ports)| {
        sources.map(|n| format!("tcp/{ports}@2001:db8::{n:x}")).collect::<Vec<_>>()
    });
    let texts = |all: &[String]| all.iter().map(|text| opening(text)).collect::<Vec<_>>();
    let none = OpenPorts::default();
    let all = Change { openings: Some(OpeningList(texts(&list))), ..Change::default() };
    let open = none.change(&all, OpenedBy::Owner, &Rights::All, usize::MAX).unwrap();
    assert_eq!(open.open().len(), 256);
    let close = |texts: Vec<Opening>| {
        let change = Change { close: Some(OpeningList(texts)), ..Change::default() };
        open.change(&change, OpenedBy::Owner, &Rights::All, usize::MAX)
    };
    assert_eq!(close(texts(&middle)), Err(ChangeError::TooMany(TooMany)));
    // Whole ones are closed as ever, and what is left is taken up again, all of it.
    let half = close(texts(&list[..128])).unwrap();
    assert_eq!(OpenPorts::as_recorded(half.recorded()), half);
}

#[test]
fn a_port_cannot_be_taken_out_of_all_of_them() {
    let ports = asks(&[(Source::Annotation, "tcp/1-65535")], &usual());
    assert_eq!(changed(&ports, "close", &["tcp/22"]), Err(ChangeError::TooMany(TooMany)));
    let few = changed(&ports, "close", &["tcp/101-65535"]).unwrap();
    assert_eq!((open(&few), few.holes().each().len()), ("tcp/1-100 annotation".to_owned(), 100));
}

#[test]
fn a_change_is_whole_and_keeps_who_opened_what() {
    let ports = asks(&[(Source::Published, "tcp/80,udp/53")], &usual());
    let more = changed(&ports, "open", &["tcp/22@2001:db8::/32", "tcp/80"]).unwrap();
    assert_eq!(
        open(&more),
        "tcp/80 published port, udp/53 published port, tcp/22@2001:db8::/32 owner"
    );
    let replaced = changed(&more, "openings", &["tcp/80", "tcp/81"]).unwrap();
    assert_eq!(open(&replaced), "tcp/80 published port, tcp/81 owner");
    let none = changed(&more, "openings", &[]).unwrap();
    assert!(none.open().is_empty() && none.is_changed());
    // Narrower, in one.
    let both =
        Change { open: change("open", &["tcp/80@::1"]).open, ..change("close", &["tcp/80"]) };
    let narrow = ports.change(&both, OpenedBy::Operator, &Rights::none(), ROOM);
    assert_eq!(narrow, Err(ChangeError::Forbidden { opening: opening("tcp/80@::1") }));
    let narrow = ports.change(&both, OpenedBy::Operator, &Rights::All, ROOM).unwrap();
    assert_eq!(open(&narrow), "udp/53 published port, tcp/80@::1/128 operator");

    // What is there needs no right, what comes does.
    let own = only(&["tcp/81"]);
    let replace = |texts: &[&str]| {
        ports
            .change(&change("openings", texts), OpenedBy::Owner, &own, ROOM)
            .map(|ports| open(&ports))
    };
    assert_eq!(replace(&["tcp/80", "tcp/81"]).unwrap(), "tcp/80 published port, tcp/81 owner");
    assert_eq!(replace(&["tcp/82"]), Err(ChangeError::Forbidden { opening: opening("tcp/82") }));
    assert_eq!(changed(&ports, "open", &["tcp/1-2000"]), Err(ChangeError::TooMany(TooMany)));
    let unclear = [
        Change::default(),
        Change { openings: Some(OpeningList::default()), ..change("open", &["tcp/1"]) },
        Change { openings: Some(OpeningList::default()), ..change("close", &["tcp/1"]) },
    ];
    for unclear in unclear {
        let refused = ports.change(&unclear, OpenedBy::Operator, &Rights::All, ROOM);
        assert_eq!(refused, Err(ChangeError::Unclear));
    }
}

#[test]
fn after_a_restart_all_is_judged_anew_but_by_what_was_changed() {
    let wishes = Wishes::read([("v6pod.ingress", "tcp/80,tcp/81")]).unwrap();
    let found = OtherWishes::default();
    let again = |recorded, terms: &OpenTerms| {
        open(&OpenPorts::as_recorded(recorded).again(&wishes, &found, terms))
    };
    let first = OpenPorts::asked(&wishes, &found, &usual());
    let fewer = terms(WAYS, only(&["tcp/80"]));
    assert_eq!(again(first.recorded(), &usual()), "tcp/80 annotation, tcp/81 annotation");
    assert_eq!(again(first.recorded(), &fewer), "tcp/80 annotation");
    // A record of the time before there were openings.
    assert_eq!(again(None, &usual()), "tcp/80 annotation, tcp/81 annotation");
    assert_eq!(open(&OpenPorts::as_recorded(None)), "");

    let rights = Rights::All;
    let opened =
        first.change(&change("open", &["tcp/82"]), OpenedBy::Owner, &rights, ROOM).unwrap();
    let opened =
        opened.change(&change("open", &["tcp/83"]), OpenedBy::Operator, &rights, ROOM).unwrap();
    let opened = changed(&opened, "close", &["tcp/81"]).unwrap();
    let all = "tcp/80 annotation, tcp/82 owner, tcp/83 operator";
    assert_eq!(again(opened.recorded(), &usual()), all);
    assert_eq!(again(opened.recorded(), &fewer), "tcp/80 annotation, tcp/83 operator");
    assert_eq!(open(&OpenPorts::as_recorded(opened.recorded())), all);
    let shut = changed(&opened, "openings", &[]).unwrap();
    assert_eq!(again(shut.recorded(), &usual()), "");
    assert_eq!(OpenPorts::default().recorded(), None);
    let text = serde_json::to_string(&opened.recorded()).unwrap();
    assert_eq!(serde_json::from_str::<Option<RecordedPorts>>(&text).unwrap(), opened.recorded());
}

fn openings() -> impl Strategy<Value = Vec<Opening>> {
    let lengths = prop::sample::select(vec![0_u8, 30, 32, 33, 48, 63, 64, 120, 127, 128]);
    let one = (any::<bool>(), 1_u16..60, 0_u16..20, lengths, any::<bool>()).prop_map(
        |(tcp, first, more, length, far)| {
            let bits: u128 = if far { 0x2001_0db9 << 96 } else { (0x2001_0db8 << 96) | 5 };
            let prefix = bits & !u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let protocol = if tcp { "tcp" } else { "udp" };
            let prefix = Ipv6Addr::from(prefix);
            opening(&format!("{protocol}/{first}-{}@{prefix}/{length}", first + more))
        },
    );
    prop::collection::vec(one, 0..8)
}

/// What the sets say of a packet, as the rules ask them.
fn passes(holes: &Holes, peer: Ipv6Addr, protocol: Protocol, port: u16) -> bool {
    holes.each().iter().any(|hole| match *hole {
        Hole::Port(p, n) => p == protocol && n == port,
        Hole::Every(p) => p == protocol,
        Hole::Confined
        | Hole::Reach(..)
        | Hole::ReachEvery(_)
        | Hole::ReachIn(..)
        | Hole::Kin(_) => false,
        Hole::From(length, p, n, source) => {
            let behind = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            p == protocol && n == port && u128::from(peer) & !behind == u128::from(source)
        }
    })
}

proptest! {
    #[test]
    fn the_elements_let_in_what_is_open_and_nothing_else(
        list in openings(),
        close in openings(),
        tcp in any::<bool>(),
        port in 1_u16..90,
        low in 0_u128..600,
        far in any::<bool>(),
    ) {
        let replace = Change { openings: Some(OpeningList(list)), ..Change::default() };
        let ports = OpenPorts::default().change(&replace, OpenedBy::Owner, &Rights::All, ROOM);
        prop_assume!(ports.is_ok());
        let mut ports = ports.unwrap();
        for one in close {
            let shut = Change { close: Some(OpeningList(vec![one])), ..Change::default() };
            let before = ports.clone();
            ports = ports.change(&shut, OpenedBy::Owner, &Rights::none(), ROOM).unwrap_or(ports);
            let inside = u128::from(one.peers.prefix());
            let middle = Ipv6Addr::from(inside);
            if ports != before {
                prop_assert!(!ports.let_in(middle, one.protocol, one.ports.first()));
            }
        }
        let peer = Ipv6Addr::from((if far { 0x2001_0db9 } else { 0x2001_0db8_u128 }) << 96 | low);
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let holes = ports.holes();
        prop_assert_eq!(
            passes(&holes, peer, protocol, port),
            ports.let_in(peer, protocol, port)
        );
        prop_assert!(holes.each().len() <= Holes::MOST && holes.each().is_sorted());
        prop_assert_eq!(holes.without(&holes), Holes::default());
        prop_assert_eq!(&holes.without(&Holes::default()), &holes);
    }
}
