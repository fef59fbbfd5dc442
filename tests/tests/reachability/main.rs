//! Issue 5, line 2: who reaches a container with what, each cell by a real packet, and what `explain` says of
//! it. And what `explain` does not say.
//!
//! ```text
//!   far:  v6podd ── v6t0 ── port ── eth0 ┌ container ┐
//!    │
//!   outside  out0 ── up0  host ── v6podd ── v6t0       root's, v6t1's and v6t2's processes
//!                          ├── port ── eth0 ┌ container of v6t1 ┐
//!                          ├── port ── eth0 ┌ container of v6t2 ┐
//!                          └── port ── eth0 ┌ the one that is asked, of v6t2 ┐ tcp/80, udp/80 opened
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

mod far;
mod policies;
mod probe;
mod scene;

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use v6pod_proto::explain::{End, Explanation, Rule, Verdict};
use v6pod_proto::{Mode, OpenedBy};
use v6pod_tests::packet::{IPV6, Route, frame};
use v6pod_tests::{
    Attached, Body, Caller, Config, Daemon, Ends, Finished, HostNs, Law, Neighbours, OUTSIDE_V6,
    PATIENCE, Ports, Response, Stage, User, built, eventually, require, run, side_by_side,
};

use probe::Who;
use scene::{Asks, BACK, Row, Scene, network};

/// What is opened of the one that is asked.
const OPEN: (&str, &str) = ("v6pod.ingress", "tcp/80 udp/80");

/// What is sent, and by which words `explain` is asked.
const COLUMNS: [(&str, &[&str]); 5] = [
    ("open port", &["tcp/80", "udp/80"]),
    ("closed port", &["tcp/81", "udp/81"]),
    ("echo", &["echo"]),
    ("too big", &["packet-too-big"]),
    ("reply", &["reply"]),
];

fn path(source: &str, destination: &str, flow: &str, uid: Option<u32>) -> String {
    let uid = uid.map(|uid| format!("&uid={uid}")).unwrap_or_default();
    format!("/api/explain?source={source}&destination={destination}&flow={flow}{uid}")
}

#[track_caller]
fn explained(caller: &Caller, words: [&str; 3], uid: Option<u32>) -> Explanation {
    let explanation: Explanation = caller.get(&path(words[0], words[1], words[2], uid)).ok();
    assert!(explanation.kernel.agrees, "{explanation:?}");
    let last = explanation.chain.last().expect("a rule");
    assert_eq!((last.rule, &last.why), (explanation.rule, &explanation.why));
    explanation
}

/// A rule as the API writes it.
fn word(rule: Rule) -> String {
    serde_json::to_value(rule).expect("JSON").as_str().expect("a word").to_owned()
}

#[test]
fn who_reaches_a_container_with_what_and_explain_says_so() {
    let _machine = require!(Podman);
    side_by_side([Mode::Bridge, Mode::Routed], |mode| {
        let scene = Scene::with(mode, "", &Asks::default());
        let Scene { daemon, victim, users: [_, owner], .. } = &scene;
        let mut table = vec![head(mode, &COLUMNS.map(|(name, _)| name))];
        for (number, row) in scene.rows().iter().enumerate() {
            let cells = COLUMNS.map(|(column, flows)| {
                let cell = |flow: &&str| cell(daemon, victim, owner, row, number as u16, flow);
                let cells: Vec<_> = flows.iter().map(cell).collect();
                assert!(cells.windows(2).all(|two| two[0] == two[1]), "{column}: {cells:?}");
                cells[0].clone()
            });
            table.push([&[row.name.to_owned()][..], &cells].concat());
        }
        print(&table);
        assert_eq!(table[1..].iter().map(|row| row.join(" ")).collect::<Vec<_>>(), EXPECTED);
    });
}

/// The whole of it, so that a mistake that the rules and `explain` share is seen too.
const EXPECTED: [&str; 7] = [
    "outside host yes opening no closed yes echo yes related yes established",
    "host's root yes root yes root yes host-icmp yes host-icmp yes established",
    "owner's host process yes owner yes owner yes host-icmp yes host-icmp yes established",
    "another user's host process yes opening no closed yes host-icmp yes host-icmp yes established",
    "same owner's container yes opening no closed yes echo yes related yes established",
    "other owner's container yes opening no closed yes echo yes related yes established",
    "container on another host yes opening no closed yes echo yes related yes established",
];

/// Whether it gets there, and by which rule: as a packet shows, and as `explain` says to root and to the
/// owner.
#[track_caller]
fn cell(
    daemon: &Daemon,
    victim: &Attached,
    owner: &User,
    row: &Row,
    number: u16,
    flow: &str,
) -> String {
    let to = victim.address().to_string();
    let real = match flow.split_once('/') {
        Some((protocol, port)) => row.who.asks(&[protocol, &to, port]),
        None if flow == "echo" => row.who.asks(&["echo", &to]),
        None if flow == "packet-too-big" => tells_too_big(victim, row, number),
        None => is_answered(daemon, victim, row, number),
    };
    let all = [0, owner.uid()]
        .map(|uid| explained(&daemon.as_user(uid), [&row.source, &to, flow], row.uid));
    let [said, to_owner] = all.each_ref().map(|e| (e.verdict, e.rule));
    assert_eq!(said, to_owner, "{}, {flow}", row.name);
    let verdict = if real { Verdict::Passes } else { Verdict::Dropped };
    assert_eq!(verdict, said.0, "{}, {flow}: {:?}", row.name, all[0]);
    format!("{} {}", if real { "yes" } else { "no" }, word(said.1))
}

/// The row says of an answer of the container's that it was too big, and the container sends smaller ones.
#[track_caller]
fn tells_too_big(victim: &Attached, row: &Row, number: u16) -> bool {
    // A path gets no larger by such an error: several are at one address.
    let mtu = (1400 - 10 * number).to_string();
    let learned = || {
        let way = victim.namespace.run("ip", &["-6", "route", "get", &row.address.to_string()]);
        way.ok().contains(&format!(" mtu {mtu}"))
    };
    assert!(!learned());
    let to = victim.address().to_string();
    assert!(row.who.asks(&["too-big", &to, "80", &mtu]), "no flow to tell of");
    // It is told once: a later answer shows that it has had the time.
    row.who.asks(&["udp", &to, "80"]);
    learned()
}

/// The container begins a flow to the row, at a port that is open there, and is answered.
#[track_caller]
fn is_answered(daemon: &Daemon, victim: &Attached, row: &Row, number: u16) -> bool {
    let (me, it) = (victim.address().to_string(), row.address.to_string());
    let port = (BACK + number).to_string();
    let _server = row.who.serves(BACK + number);
    let container = Who { network: network(victim), uid: 0 };
    let answered = ["tcp", "udp"].map(|protocol| {
        // That it may begin it is said too.
        let flow = format!("{protocol}/{port}");
        let begun = explained(&daemon.root(), [&me, &it, &flow], None);
        assert!(matches!(begun.verdict, Verdict::Passes | Verdict::Leaves), "{begun:?}");
        container.asks(&[protocol, &it, &port])
    });
    assert_eq!(answered[0], answered[1]);
    answered[0]
}

fn head(mode: Mode, columns: &[&str]) -> Vec<String> {
    let mode = if mode == Mode::Bridge { "bridge" } else { "routed" };
    [mode].iter().chain(columns).map(|&word| word.to_owned()).collect()
}

#[allow(clippy::print_stdout, reason = "the matrix is to be printed")]
fn print(table: &[Vec<String>]) {
    let width = |column: usize| table.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(n, cell)| format!("{cell:0$}", width(n)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    // In one go: another is printed beside it.
    println!("{}", table.iter().map(line).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_foreign_source_and_an_address_that_nobody_has_get_nowhere_and_it_is_said_why() {
    let _machine = require!(Root);
    const MARK: &[u8] = b"v6t-foreign";
    const LAST: &[u8] = b"v6t-honest";
    side_by_side([Ports::Bridge, Ports::Routed], |ports| {
        let scene = Neighbours::on(ports, Law::Deny);
        let (attacker, victim) = (scene.attacker.address(), scene.victim.address());
        let outside: Ipv6Addr = OUTSIDE_V6.parse().expect("an address");
        scene.victim.tap.drain();
        let foreign = Route::new(outside, victim);
        let packet = foreign.carry(&foreign.echo(MARK));
        let by = scene.gateway_mac();
        scene.attacker.tap.send(&frame(by, scene.attacker.mac(), IPV6, &packet));
        scene.honest(by, victim, LAST);
        assert_eq!(scene.victim.tap.frames_until(LAST).with(MARK), 0);
        let ends = path(&attacker.to_string(), &victim.to_string(), "echo", None);
        let asks = |uid, more: &str| -> Explanation {
            scene.daemon.as_user(uid).get(&(ends.clone() + more)).ok()
        };
        for uid in [0, scene.users[0].uid()] {
            let said = asks(uid, &format!("&sends_as={outside}"));
            assert_eq!((said.verdict, said.rule), (Verdict::Dropped, Rule::Spoofed), "{said:?}");
            assert!(said.kernel.agrees && !said.kernel.elements.is_empty(), "{said:?}");
        }
        assert_eq!(asks(0, "").rule, Rule::Echo);
        // What is to a neighbour of another's is his to be told of.
        assert_eq!(asks(scene.users[0].uid(), "").rule, Rule::Leaves);

        let nobody = "2001:db8:1:2:3::dead";
        let mut ping = scene.host.outside("ping");
        let pinged = run(ping.args(["-c", "1", "-W", "10", nobody]));
        assert!(pinged.stdout.contains("nreachable"), "{pinged}");
        let said = explained(&scene.daemon.root(), ["outside", nobody, "echo"], None);
        assert_eq!((said.verdict, said.rule), (Verdict::Unreachable, Rule::Vacant));
    });
}

/// What a user is told, as text, with this address of another's or of nobody's left out.
fn told(response: &Response, address: &str) -> (u16, String) {
    (response.status, String::from_utf8_lossy(&response.body).replace(address, "ADDRESS"))
}

#[test]
fn nobody_is_told_of_anothers_openings() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let users = [1, 2].map(|number| User::account(number, &host));
    let victim = Attached::asking(&daemon, &users[1], &[OPEN]);
    let mine = Attached::asking(&daemon, &users[0], &[OPEN]);
    let own = mine.address().to_string();
    let asker = daemon.as_user(users[0].uid());
    let nobody = "2001:db8:1:2:3::dead".to_owned();
    // As it is asked of another's address, and of one that nobody has.
    let same = |ends: &dyn Fn(&str) -> String| {
        let [others, nobodys] = [victim.address().to_string(), nobody.clone()]
            .map(|address| told(&asker.get(&ends(&address)), &address));
        assert_eq!(others, nobodys);
        others
    };
    for flow in ["tcp/80", "tcp/81", "udp/80", "echo", "reply", "packet-too-big"] {
        let (status, body) = same(&|address| path(&own, address, flow, None));
        assert_eq!(status, 200);
        let leaves = r#""verdict":"leaves""#;
        assert!(body.contains(leaves) || ["reply", "packet-too-big"].contains(&flow), "{body}");
        assert_eq!(same(&|address| path(address, &own, flow, None)).0, 200);
        for source in ["outside", "host", OUTSIDE_V6, &nobody] {
            assert_eq!(same(&|address| path(source, address, flow, None)).0, 404);
            assert_eq!(same(&|address| path(address, source, flow, None)).0, 404);
        }
        // Nor by its id.
        let id = victim.attachment.id.to_string();
        let [others, nobodys] =
            [&id, &"0".repeat(32)].map(|id| asker.get(&path(&own, id, flow, None)));
        assert_eq!((others.status, &others.body), (404, &nobodys.body));
        assert_eq!(others.status, nobodys.status);
    }
    // The same rule is told of his own container.
    let said = explained(&asker, ["outside", &own, "tcp/80"], None);
    let by = said.opened.map(|opened| opened.by);
    assert_eq!((said.rule, by), (Rule::Opening, Some(OpenedBy::Annotation)));
    assert!(matches!(said.destination, End::Container { .. }), "{said:?}");
    // What is no question is said to be none.
    for wrong in [
        path(&own, "outside", "tcp/0", None),
        path(&own, "192.0.2.1", "tcp/80", None),
        path(&own, "outside", "tcp/80", Some(1)),
        path("host", &own, "tcp/80", None) + "&sends_as=::1",
        "/api/explain?source=host".to_owned(),
        path(&own, "host", "echo", None) + "&more=1",
    ] {
        assert_eq!(asker.get(&wrong).problem().status, 400, "{wrong}");
    }
}

/// v6podctl, run by this user.
#[track_caller]
fn ctl(user: &User, daemon: &Daemon, words: &[&str]) -> Finished {
    let mut command = user.command(built("v6podctl"));
    run(command.arg("--socket").arg(daemon.socket()).args(words))
}

#[test]
fn a_kernel_that_does_otherwise_is_told_loudly() {
    let _machine = require!(Root);
    side_by_side([Mode::Bridge, Mode::Routed], |mode| {
        let host = HostNs::new();
        let daemon = Daemon::configured(&host, &Config::default().with_mode(mode));
        let user = User::account(1, &host);
        let web = Attached::asking(&daemon, &user, &[OPEN]);
        let address = web.address().to_string();
        let nft = |words: &str| {
            let words = words.replace("TABLE", &daemon.table()).replace("WEB", &address);
            run(host.command("nft").arg(words)).ok();
        };
        let explain = |flow| ctl(&user, &daemon, &["explain", "outside", &address, flow]);
        for (flow, rule, doing, undoing) in [
            ("tcp/80", "opening", "delete element inet TABLE open { WEB . tcp . 80 }", "add"),
            ("tcp/81", "closed", "add element inet TABLE open { WEB . tcp . 81 }", "delete"),
            ("udp/81", "closed", "add element inet TABLE openall { WEB . udp }", "delete"),
        ] {
            let said = explain(flow);
            assert!(said.ok().contains("agrees") && said.stdout.contains(rule), "{said}");
            nft(doing);
            let loud = explain(flow);
            show(&["outside", &address, flow], &loud);
            assert!(loud.fails().contains("the kernel does not do what is said here"), "{loud}");
            assert!(loud.stdout.contains("DISAGREES") && loud.stdout.contains(rule), "{loud}");
            assert!(daemon.log().contains("the kernel does not do what the rules say"));
            let verb = doing.split(' ').next().expect("a verb");
            nft(&doing.replacen(verb, undoing, 1));
            explain(flow).ok();
        }
        // A rule of the daemon's that is gone comes back by itself, sooner than anybody asks twice.
        nft("flush chain inet TABLE to_container");
        eventually(PATIENCE, "the repair", || daemon.status().last_repair);
        explain("tcp/80").ok();
    });
}

#[test]
fn what_is_being_changed_is_no_difference() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let user = User::account(1, &host);
    let web = Attached::new(&daemon, &user);
    let address = web.address().to_string();
    let over = AtomicBool::new(false);
    let changes = |port: u16| {
        let (asker, path) = (daemon.as_user(user.uid()), format!("/api/attachments/{address}"));
        while !over.load(Ordering::Relaxed) {
            for verb in ["open", "close"] {
                let body = format!(r#"{{"{verb}": ["tcp/{port}"]}}"#);
                let (response, _) = asker.call("PATCH", &path, Body::Json(&body), None);
                assert_eq!(response.status, 200, "{response}");
            }
        }
    };
    let rules = thread::scope(|scope| {
        let _over = Ends(&over);
        for port in [80, 81] {
            let changes = &changes;
            scope.spawn(move || changes(port));
        }
        let asks = || {
            let asked = daemon.root().get(&path("outside", &address, "tcp/80", None));
            // Where it is changed all the time there may be no moment to look.
            (asked.status != 503).then(|| asked.ok::<Explanation>())
        };
        let said: Vec<_> = (0..500).filter_map(|_| asks()).collect();
        said.into_iter()
            .map(|said| {
                assert!(said.kernel.agrees, "{said:?}");
                word(said.rule)
            })
            .collect::<BTreeSet<_>>()
    });
    assert_eq!(rules, ["closed", "opening"].map(str::to_owned).into());
}

#[test]
fn a_user_asks_by_the_names_of_his_containers() {
    let _machine = require!(Podman);
    let stage = Stage::on(HostNs::new(), &Config::default(), 2);
    stage.users.iter().for_each(|user| user.use_hook(&stage.daemon.socket()));
    let [owner, other] = &stage.users[..] else { panic!("two users") };
    let said = "--annotation=v6pod.ingress=tcp/5432@2001:db8:1::/48";
    let _web = owner.start("web", &["--publish=18080:80"], &["sleep", "1000"]);
    let _db = owner.start("db", &["--publish=18081:5432", said], &["sleep", "1000"]);
    let asks = |user: &User, words: &[&str]| {
        let finished = ctl(user, &stage.daemon, &[&["explain"], words].concat());
        show(words, &finished);
        finished
    };
    let stranger = other.uid().to_string();
    for (words, verdict, why) in [
        (&["outside", "web", "tcp/80"][..], "passes", "open to everybody (published port)"),
        (&["outside", "web", "tcp/443"], "is dropped", "nothing opens tcp/443 of web"),
        (&["web", "db", "tcp/5432"], "passes", "(annotation)"),
        (&["2001:db8:2::5", "db", "tcp/5432"], "is dropped", "open to others alone"),
        (&["host", "web", "tcp/443"], "passes", "whose processes on this host reach it"),
        (&["host", "web", "tcp/443", "--uid", &stranger], "is dropped", "is not the owner of web"),
        (&["web", "outside", "tcp/443"], "leaves this host", "nothing of v6pod's holds it back"),
        (&["web", "db", "tcp/5432", "--as", "2001:db8:1::5"], "is dropped", "no other address"),
        (&["web", "host", "udp/53"], "passes", "whose own firewall decides"),
    ] {
        let finished = asks(owner, words);
        let text = finished.ok();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.ends_with(verdict) && text.contains(why), "{finished}");
    }
    let none = asks(other, &["outside", "web", "tcp/80"]);
    assert!(none.fails().contains("is a container of yours"), "{none}");
    let json = ctl(owner, &stage.daemon, &["--json", "explain", "outside", "web", "tcp/80"]);
    let said: Explanation = serde_json::from_str(json.ok()).expect("JSON");
    assert_eq!(said.opened.map(|opened| opened.by), Some(OpenedBy::Published));
}

#[allow(clippy::print_stdout, reason = "it is what a person sees")]
fn show(words: &[&str], finished: &Finished) {
    println!("$ v6podctl explain {}\n{}{}", words.join(" "), finished.stdout, finished.stderr);
}
