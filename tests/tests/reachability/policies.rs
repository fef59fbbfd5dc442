//! The matrix once more, where the operator or an owner has said otherwise.

use std::thread;

use v6pod_proto::Mode;
use v6pod_proto::explain::Verdict;
use v6pod_tests::{require, side_by_side};

use crate::probe::Who;
use crate::scene::{Asks, BACK, Row, Scene, network};
use crate::{explained, head, print, word};

struct Policy {
    tables: &'static str,
    asks: Asks,
    /// Cell by cell, as [`crate::EXPECTED`].
    expected: [&'static str; 7],
}

/// What is asked of the container, and what it asks itself.
const COLUMNS: [&str; 5] = ["open port", "closed port", "echo", "begins", "begins echo"];

const POLICIES: [Policy; 4] = [
    Policy {
        tables: "host = \"deny\"",
        asks: Asks { victim: None, same: None },
        expected: [
            "outside host yes opening no closed yes echo yes leaves yes leaves",
            "host's root yes root yes root yes host-icmp no host yes host",
            "owner's host process yes owner yes owner yes host-icmp no host yes host",
            "another user's host process yes opening no closed yes host-icmp no host yes host",
            "same owner's container yes opening no closed yes echo yes opening yes echo",
            "other owner's container yes opening no closed yes echo yes opening yes echo",
            "container on another host yes opening no closed yes echo yes leaves yes leaves",
        ],
    },
    Policy {
        tables: "east_west = \"deny\"",
        asks: Asks { victim: None, same: None },
        expected: [
            "outside host yes opening no closed yes echo yes leaves yes leaves",
            "host's root yes root yes root yes host-icmp yes host yes host",
            "owner's host process yes owner yes owner yes host-icmp yes host yes host",
            "another user's host process yes opening no closed yes host-icmp yes host yes host",
            "same owner's container no east-west no east-west no east-west no east-west no east-west",
            "other owner's container no east-west no east-west no east-west no east-west no east-west",
            "container on another host yes opening no closed yes echo yes leaves yes leaves",
        ],
    },
    Policy {
        tables: "east_west = \"owner\"",
        asks: Asks { victim: None, same: None },
        expected: [
            "outside host yes opening no closed yes echo yes leaves yes leaves",
            "host's root yes root yes root yes host-icmp yes host yes host",
            "owner's host process yes owner yes owner yes host-icmp yes host yes host",
            "another user's host process yes opening no closed yes host-icmp yes host yes host",
            "same owner's container yes same-owner yes same-owner yes same-owner yes same-owner yes same-owner",
            "other owner's container yes opening no closed yes echo yes opening yes echo",
            "container on another host yes opening no closed yes echo yes leaves yes leaves",
        ],
    },
    // The one that is asked reaches the outside's one port, its owner's other one nothing at all.
    Policy {
        tables: "",
        asks: Asks {
            victim: Some((
                "v6pod.egress",
                "deny tcp/7000@2001:db8:ffff::/64 udp/7000@2001:db8:ffff::/64",
            )),
            same: Some(("v6pod.egress", "deny")),
        },
        expected: [
            "outside host yes opening no closed yes echo yes leaves no confined",
            "host's root yes root yes root yes host-icmp no confined no confined",
            "owner's host process yes owner yes owner yes host-icmp no confined no confined",
            "another user's host process yes opening no closed yes host-icmp no confined no confined",
            "same owner's container no confined no confined no confined no confined no confined",
            "other owner's container yes opening no closed yes echo no confined no confined",
            "container on another host yes opening no closed yes echo no confined no confined",
        ],
    },
];

#[test]
fn who_reaches_what_under_other_policies_and_explain_says_so() {
    let _machine = require!(Root);
    let modes = [Mode::Bridge, Mode::Routed];
    let cases = modes.into_iter().flat_map(|mode| POLICIES.iter().map(move |p| (mode, p)));
    side_by_side(cases, |(mode, policy)| {
        let scene = Scene::with(mode, &format!("[firewall]\n{}\n", policy.tables), &policy.asks);
        let rows = scene.rows();
        // All at once: what is dropped says nothing for a while.
        let lines: Vec<_> = thread::scope(|scope| {
            let all = rows.iter().zip(0..).map(|(row, number)| {
                let scene = &scene;
                scope.spawn(move || line(scene, row, number))
            });
            let all: Vec<_> = all.collect();
            all.into_iter().map(|line| line.join().expect("a line")).collect()
        });
        print(&[&[head(mode, &COLUMNS)], &lines[..]].concat());
        let lines: Vec<_> = lines.iter().map(|line| line.join(" ")).collect();
        assert_eq!(lines, policy.expected, "{} {:?}", policy.tables, policy.asks);
    });
}

#[track_caller]
fn line(scene: &Scene, row: &Row, number: u16) -> Vec<String> {
    let _server = row.who.serves(BACK + number);
    let back = (BACK + number).to_string();
    vec![
        row.name.to_owned(),
        both(|protocol| asked(scene, row, protocol, "80")),
        both(|protocol| asked(scene, row, protocol, "81")),
        asked(scene, row, "echo", ""),
        both(|protocol| begun(scene, row, protocol, &back)),
        begun(scene, row, "echo", ""),
    ]
}

/// The cell of TCP, which is that of UDP.
#[track_caller]
fn both(cell: impl Fn(&str) -> String) -> String {
    let [tcp, udp] = ["tcp", "udp"].map(cell);
    assert_eq!(tcp, udp);
    tcp
}

/// What the row asks of the container.
#[track_caller]
fn asked(scene: &Scene, row: &Row, protocol: &str, port: &str) -> String {
    let to = scene.victim.address().to_string();
    let real = sent(&row.who, protocol, &to, port);
    let cell = |uid| {
        let caller = scene.daemon.as_user(uid);
        let said = explained(&caller, [&row.source, &to, &flow(protocol, port)], row.uid);
        told(real, said.verdict, &word(said.rule))
    };
    let [root, owner] = [0, scene.users[1].uid()].map(cell);
    assert_eq!(root, owner, "{}", row.name);
    root
}

/// What the container begins with the row. Its owner is not told what becomes of it at another's.
#[track_caller]
fn begun(scene: &Scene, row: &Row, protocol: &str, port: &str) -> String {
    let (me, to) = (scene.victim.address().to_string(), row.address.to_string());
    let container = Who { network: network(&scene.victim), uid: 0 };
    let real = sent(&container, protocol, &to, port);
    let said = explained(&scene.daemon.root(), [&me, &to, &flow(protocol, port)], None);
    told(real, said.verdict, &word(said.rule))
}

fn flow(protocol: &str, port: &str) -> String {
    if port.is_empty() { protocol.to_owned() } else { format!("{protocol}/{port}") }
}

#[track_caller]
fn sent(who: &Who, protocol: &str, to: &str, port: &str) -> bool {
    let words = [protocol, to, port];
    who.asks(if port.is_empty() { &words[..2] } else { &words })
}

#[track_caller]
fn told(real: bool, said: Verdict, rule: &str) -> String {
    assert_eq!(real, matches!(said, Verdict::Passes | Verdict::Leaves), "{rule}");
    format!("{} {rule}", if real { "yes" } else { "no" })
}

#[test]
fn of_a_host_that_keeps_to_itself_containers_reach_the_resolver() {
    let _machine = require!(Root);
    side_by_side([Mode::Bridge, Mode::Routed], |mode| {
        // That of the host itself, which has the port where the daemon answers nothing.
        let tables = "[dns]\nenabled = false\n[firewall]\nhost = \"deny\"\n";
        let scene = Scene::with(mode, tables, &Asks::default());
        let host = &scene.rows()[1];
        let _server = host.who.serves(53);
        assert_eq!(both(|protocol| begun(&scene, host, protocol, "53")), "yes host");
    });
}
