//! Issue 7, line 4: a whole subnet for one container (AnyIP), so that a server in it answers on every address of
//! that, and nobody else takes part in it.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0
//!                          │  SUBNET via its first address
//!                          ├── port ── eth0 ┌ web, of v6t1: `local SUBNET dev lo` ┐ [::]:80
//!                          └── port ── eth0 ┌ attacker, of v6t2 ┐ raw frames, by root of the namespace
//! ```
//!
//! The addresses are drawn anew each time; `V6POD_TEST_SEED` has them drawn again.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use v6pod_proto::{Activate, Attachment, Mode};
use v6pod_tests::packet::{IPV6, Route, address_option, frame, marked};
use v6pod_tests::{
    Attached, Body, Config, Daemon, Dice, Flow, HostNs, Invariants, OUTSIDE_V6, OwnedNs, PATIENCE,
    Response, Server, Stage, Tap, User, eventually, random_container_id, require, run,
    side_by_side, within,
};

const MARK: &[u8] = b"v6t-attack";
const LAST: &[u8] = b"v6t-honest";

/// How many of a subnet's addresses are asked.
const ASKED: usize = 1000;

const OPEN: (&str, &str) = ("v6pod.ingress", "tcp/80");
const SUBNET: (&str, &str) = ("v6pod.subnet", "/96");

const BOTH: [Mode; 2] = [Mode::Bridge, Mode::Routed];

/// The first address of an attachment's one subnet, and how long that is.
#[track_caller]
fn subnet(a: &Attachment) -> (Ipv6Addr, u32) {
    let [net] = &a.subnets[..] else { panic!("{:?}", a.subnets) };
    let (first, length) = net.split_once('/').expect("a length");
    (first.parse().expect("an address"), length.parse().expect("a number"))
}

/// Some address of it.
fn any((first, length): (Ipv6Addr, u32), dice: &mut Dice) -> Ipv6Addr {
    let random = (0..5).fold(0_u128, |bits, _| bits << 31 | dice.below(1 << 31) as u128);
    let behind = u128::MAX.checked_shr(length).unwrap_or(0);
    Ipv6Addr::from_bits(first.to_bits() | (random & behind))
}

/// The address just outside of it that shares all bits but the last one that tells subnets apart.
fn beside((first, length): (Ipv6Addr, u32)) -> Ipv6Addr {
    Ipv6Addr::from_bits(first.to_bits() ^ (1 << (128 - length)))
}

fn config(mode: Mode) -> Config {
    let tables = "[addresses]\nwished = [\"*\"]\nquarantine = \"1s\"\n".to_owned();
    Config { tables, ..Config::default() }.with_mode(mode)
}

/// Asks for a container in this namespace, by its owner, with these annotations.
fn ask(
    daemon: &Daemon,
    namespace: &OwnedNs,
    annotations: &[(&str, &str)],
) -> Result<Attachment, Response> {
    let pairs = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let request = Activate { annotations: pairs.collect(), ..Activate::new(random_container_id()) };
    daemon.as_user(namespace.uid()).activate(&request, namespace.network().as_fd()).0
}

#[track_caller]
fn refused(asked: Result<Attachment, Response>, status: u16, why: &str) {
    let refused = asked.expect_err("it was granted");
    assert_eq!(refused.status, status, "{refused}");
    let said = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(said.contains(why), "{said}");
}

/// What a page of these addresses says, asked for in this namespace, one after the other; `None` if nobody
/// answers.
#[track_caller]
fn pages(from: &File, all: &[Ipv6Addr]) -> Vec<Option<String>> {
    within(from, || {
        let page = |address: &Ipv6Addr| {
            let patience = Duration::from_secs(3);
            let mut stream = TcpStream::connect_timeout(&(*address, 80).into(), patience).ok()?;
            stream.set_read_timeout(Some(patience)).ok()?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
            let mut page = String::new();
            stream.read_to_string(&mut page).ok()?;
            Some(page)
        };
        all.iter().map(page).collect()
    })
}

/// A host, its daemon, and a container of `v6t1` with a subnet. Dropped in this order.
struct Scene {
    web: Attached,
    /// Its subnet.
    net: (Ipv6Addr, u32),
    _user: User,
    daemon: Daemon,
    host: HostNs,
}

impl Scene {
    /// With these annotations besides the subnet's.
    #[track_caller]
    fn new(config: &Config, annotations: &[(&str, &str)]) -> Self {
        let host = HostNs::new();
        let daemon = Daemon::configured(&host, config);
        let user = User::account(1, &host);
        let web = Attached::asking(&daemon, &user, &[&[SUBNET], annotations].concat());
        Self { net: subnet(&web.attachment), web, _user: user, daemon, host }
    }

    fn outside(&self) -> File {
        File::open(self.host.outside_path()).expect("the outside")
    }

    fn outside_tap(&self) -> Tap {
        Tap::open(&self.outside(), "out0")
    }

    /// The bridge's Ethernet address, which is the gateway's in both modes.
    #[track_caller]
    fn gateway_mac(&self) -> [u8; 6] {
        Tap::open(&File::open(self.host.path()).expect("the host"), &self.daemon.bridge()).mac()
    }

    #[track_caller]
    fn hold(&self) {
        Invariants::hold(&self.daemon, &[(&self.web.namespace, self.web.address())]);
    }
}

#[test]
fn a_thousand_addresses_of_a_subnet_answer_http_from_outside_and_one_beside_it_does_not() {
    let _machine = require!(Root);
    side_by_side(BOTH, |mode| {
        let mut dice = Dice::new();
        let scene = Scene::new(&config(mode), &[OPEN]);
        let (web, net) = (&scene.web, scene.net);
        assert_eq!((net.1, web.attachment.mode), (96, mode));
        let _server = Server::start(&web.namespace.network(), &[80, 81]);
        let mut all: BTreeSet<_> = [web.address(), net.0].into_iter().collect();
        all.insert(Ipv6Addr::from_bits(net.0.to_bits() | 0xffff_ffff));
        while all.len() < ASKED + 3 {
            all.insert(any(net, &mut dice));
        }
        let all: Vec<_> = all.into_iter().collect();
        let from = scene.outside();
        let answers = pages(&from, &all);
        let silent: Vec<_> = all.iter().zip(&answers).filter(|(_, a)| a.is_none()).collect();
        assert!(silent.is_empty(), "{mode:?}: {} do not answer: {:?}", silent.len(), silent[0]);
        assert!(answers.iter().flatten().all(|page| page.contains("200 OK")));
        // Its neighbours on both sides, and a port of it that nothing opens.
        let last = Ipv6Addr::from_bits((net.0.to_bits() | 0xffff_ffff) + 1);
        let before = Ipv6Addr::from_bits(net.0.to_bits() - 1);
        let not = pages(&from, &[beside(net), last, before]);
        assert!(not.iter().all(Option::is_none), "{mode:?}: {not:?}");
        assert!(Flow::tcp(&from, (any(net, &mut dice), 81)).is_none(), "nothing opens 81");
        // Its owner's processes on the host get in anyway, another's do not.
        let ping = format!("ping -6 -n -c 1 -W 5 {}", any(net, &mut dice));
        run(scene.host.outside("sh").args(["-c", &ping])).ok();
        eprintln!("    {mode:?}: {} addresses of {:?} answered", answers.len(), net);
        scene.hold();
    });
}

#[test]
fn attack_08_nobody_else_sends_from_a_subnet_whatever_his_own_address_looks_like() {
    let _machine = require!(Root);
    side_by_side(BOTH, |mode| {
        let mut dice = Dice::new();
        let scene = Scene::new(&config(mode), &[]);
        let (web, net) = (&scene.web, scene.net);
        let bob = User::account(2, &scene.host);
        // Its host bits end in zeros, as the first address of a subnet does.
        let zeros = [("v6pod.address", "::7:0:0"), ("v6pod.egress", "allow")];
        let attacker = Attached::asking(&scene.daemon, &bob, &zeros);
        assert_eq!(attacker.address().segments()[6..], [0, 0]);
        let own = (attacker.address(), 96);
        let outside: Ipv6Addr = OUTSIDE_V6.parse().expect("an address");
        let (tap, gateway) = (scene.outside_tap(), scene.gateway_mac());
        let echo = |from: &Attached, source: Ipv6Addr, mark: &[u8]| {
            let route = Route::new(source, outside);
            let packet = route.carry(&route.echo(&marked(mark)));
            from.tap.send(&frame(gateway, from.mac(), IPV6, &packet));
        };
        // By who has it this arrives.
        let mut sent = 0;
        for source in [net.0, any(net, &mut dice), any(net, &mut dice)] {
            echo(web, source, MARK);
            sent += 1;
        }
        echo(web, web.address(), LAST);
        assert_eq!(tap.frames_until(LAST).with(MARK), sent, "{mode:?}: its owner");
        // By the attacker not; nor with addresses that begin as his own does, of any length.
        let mut forged = vec![net.0, beside(net), beside(own), web.address()];
        for length in [96, 104, 112, 120] {
            forged.extend((0..8).map(|_| any((own.0, length), &mut dice)));
            forged.push(Ipv6Addr::from_bits(own.0.to_bits() | 1));
        }
        forged.extend((0..32).map(|_| any(net, &mut dice)));
        forged.retain(|source| *source != attacker.address());
        forged.iter().for_each(|source| echo(&attacker, *source, MARK));
        echo(&attacker, attacker.address(), LAST);
        assert_eq!(tap.frames_until(LAST).with(MARK), 0, "{mode:?}: of {}", forged.len());
        // And who has one does not send from beside it.
        for source in [beside(net), any(own, &mut dice), attacker.address()] {
            echo(web, source, MARK);
        }
        echo(web, web.address(), LAST);
        assert_eq!(tap.frames_until(LAST).with(MARK), 0, "{mode:?}: beside its own");
    });
}

/// Linux remembers who asks where the gateway is, in the machine's one table of neighbours: not with 2^32 addresses
/// that one container may send with.
#[test]
fn attack_25_questions_asked_with_addresses_of_a_subnet_leave_no_entries() {
    let _machine = require!(Root);
    let mut dice = Dice::new();
    let scene = Scene::new(&config(Mode::Bridge), &[]);
    let (web, net) = (&scene.web, scene.net);
    let (gateway, mac) = (web.attachment.gateway, scene.gateway_mac());
    let neighbours = || {
        let words = format!("-6 neigh show dev {} nud all", scene.daemon.bridge());
        scene.host.ip(&words).ok().lines().count()
    };
    let before = neighbours();
    let last = gateway.octets();
    let solicited = [0x33, 0x33, 0xff, last[13], last[14], last[15]];
    let ask = |source: Ipv6Addr, to: [u8; 6]| {
        let route = Route::on_link(source, gateway);
        let body = [&[0; 4][..], &gateway.octets(), &address_option(1, web.mac())].concat();
        web.tap.send(&frame(to, web.mac(), IPV6, &route.carry(&route.icmp(135, 0, &body))));
    };
    for _ in 0..200 {
        [mac, solicited].into_iter().for_each(|to| ask(any(net, &mut dice), to));
    }
    let tap = scene.outside_tap();
    let route = Route::new(any(net, &mut dice), OUTSIDE_V6.parse().expect("an address"));
    web.tap.send(&frame(mac, web.mac(), IPV6, &route.carry(&route.echo(&marked(LAST)))));
    tap.frames_until(LAST);
    let more = neighbours().saturating_sub(before);
    assert!(more <= 8, "{more}");
}

#[test]
fn who_may_not_ask_and_what_cannot_be_had_is_refused() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let tables = "[addresses]\nwished = [\"v6t1\"]\n".to_owned();
    let mut daemon = Daemon::configured(&host, &Config { tables, ..Config::default() });
    let [alice, bob] = [1, 2].map(|number| User::account(number, &host));
    let namespace = OwnedNs::new(&alice);
    let wish = |text| [("v6pod.subnet", text)];
    refused(ask(&daemon, &OwnedNs::new(&bob), &wish("/96")), 422, "addresses.wished");
    refused(ask(&daemon, &namespace, &wish("/97")), 422, "/96, /104, /112, /120");
    refused(ask(&daemon, &namespace, &wish("/64")), 422, "/96, /104, /112, /120");
    assert!(daemon.attachments().is_empty() && namespace.addresses().is_empty());
    let a = ask(&daemon, &namespace, &wish("/120")).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(subnet(&a).1, 120);
    // Over TCP, where a container may speak with its user's uid, nobody at all.
    let body = format!(
        r#"{{"user": {}, "id": "{}", "annotations": {{"v6pod.subnet": "/120"}}}}"#,
        alice.uid(),
        random_container_id()
    );
    let mut curl = alice.command("curl");
    curl.args(["-sS", "-m", "20", "-H", "Content-Type: application/json", "-d", &body]);
    let answer = run(curl.arg("http://localhost:6781/api/activate"));
    assert!(answer.ok().contains("over the unix socket alone"), "{answer}");

    let keys = "ndp_proxy = true\n".to_owned();
    let tables = "[addresses]\nwished = [\"v6t1\"]\n".to_owned();
    daemon.stop();
    daemon.reconfigure(&Config { keys, tables, ..Config::default() });
    daemon.restart();
    refused(ask(&daemon, &OwnedNs::new(&alice), &wish("/96")), 422, "ndp_proxy");
}

#[test]
fn a_subnet_is_taken_away_with_its_container_and_with_its_flows_also_after_a_crash() {
    let _machine = require!(Root);
    side_by_side(BOTH, |mode| {
        let mut dice = Dice::new();
        let host = HostNs::new();
        let mut daemon = Daemon::configured(&host, &config(mode));
        let before = daemon.footprint();
        let user = User::account(1, &host);
        let web = Attached::asking(&daemon, &user, &[SUBNET, OPEN]);
        let net = subnet(&web.attachment);
        let server = Server::start(&web.namespace.network(), &[80]);
        let from = File::open(host.outside_path()).expect("the outside");
        let some = any(net, &mut dice);
        let mut flow = Flow::tcp(&from, (some, 80)).expect("it is open");
        assert!(flow.is_answered());
        // A restart keeps it, and the flow in it.
        daemon.kill9();
        daemon.restart();
        assert_eq!(subnet(&daemon.the_attachment()), net);
        assert!(flow.is_answered(), "{mode:?}: a restart cuts nobody off");
        assert!(pages(&from, &[any(net, &mut dice)])[0].is_some());
        Invariants::hold(&daemon, &[(&web.namespace, web.address())]);
        // What somebody takes away comes back, and what a record does not speak of goes.
        let link =
            if mode == Mode::Bridge { daemon.bridge() } else { web.attachment.port.to_string() };
        host.ip(&format!("-6 route del {}/96", net.0)).ok();
        host.ip(&format!("-6 route add {}/96 via {} dev {link} proto 118", beside(net), net.0))
            .ok();
        daemon.kill9();
        daemon.restart();
        Invariants::hold(&daemon, &[(&web.namespace, web.address())]);
        assert!(pages(&from, &[any(net, &mut dice)])[0].is_some());

        let tracked = || {
            let listed = run(host.command("cat").arg("/proc/net/nf_conntrack"));
            listed.stdout.lines().filter(|line| line.contains(&long(some))).count()
        };
        let before_it_ended = tracked();
        assert!(before_it_ended > 0, "conntrack knows the flow");
        let caller = daemon.as_user(user.uid());
        let id = format!("id={}", web.attachment.container);
        assert_eq!(caller.post("/api/deactivate", Body::Form(&id)).status, 200);
        flow.ends();
        eventually(PATIENCE, "its flows are forgotten", || (tracked() == 0).then_some(()));
        eprintln!("    {mode:?}: {before_it_ended} flows of that address before, none after");
        drop(server);
        drop(web);
        eventually(PATIENCE, "its end", || daemon.attachments().is_empty().then_some(()));
        Invariants::hold(&daemon, &[]);
        before.comes_back(&daemon);
    });
}

/// As /proc/net/nf_conntrack writes it.
fn long(address: Ipv6Addr) -> String {
    address.segments().map(|segment| format!("{segment:04x}")).join(":")
}

#[test]
fn a_subnet_that_is_known_of_late_is_there_at_the_first_instruction() {
    let _machine = require!(Podman);
    let tables = "[addresses]\nwished = [\"v6t1\"]\n".to_owned();
    let stage = Stage::on(HostNs::new(), &Config { tables, ..Config::default() }, 1);
    stage.user().use_hook(&stage.daemon.socket());
    let before = stage.daemon.footprint();
    for order in [&[][..], &["--userns=keep-id"]] {
        let annotations = ["--annotation=v6pod.subnet=/104", "--annotation=v6pod.address=::42"];
        let options = [&annotations[..], order].concat();
        let container = stage.user().start("web", &options, &["sleep", "1000"]);
        let a = stage.daemon.the_attachment();
        let net = subnet(&a);
        assert_eq!((net.1, a.address.segments()[7]), (104, 0x42));
        let inside = OwnedNs::of_container(&container, stage.user());
        let local = inside.run("ip", &["-6", "route", "show", "table", "local", "type", "local"]);
        assert!(local.ok().contains(&format!("{}/104 dev lo", net.0)), "{local}");
        assert_eq!(inside.addresses(), [a.address]);
        Invariants::hold(&stage.daemon, &[(&inside, a.address)]);
        container.remove();
    }
    // A label that cannot be fulfilled is no reason not to start.
    let said = stage.user().run(&["--rm", "--label=v6pod.subnet=/64"], &["true"]);
    said.ok();
    before.comes_back(&stage.daemon);
}

#[test]
fn confined_and_counted_as_one_whatever_address_it_sends_with() {
    let _machine = require!(Root);
    side_by_side(BOTH, |mode| {
        let mut dice = Dice::new();
        let scene = Scene::new(&config(mode), &[("v6pod.egress", "deny,tcp/80")]);
        let (web, net) = (&scene.web, scene.net);
        let outside: Ipv6Addr = OUTSIDE_V6.parse().expect("an address");
        let (tap, gateway) = (scene.outside_tap(), scene.gateway_mac());
        let syn = |source: Ipv6Addr, port: u16, mark: &[u8]| {
            let route = Route::new(source, outside);
            let packet = route.carry(&route.syn(4000, port, &marked(mark)));
            web.tap.send(&frame(gateway, web.mac(), IPV6, &packet));
        };
        let mut seen = BTreeMap::new();
        for (port, expected) in [(81, 0), (80, 9)] {
            for source in [net.0].into_iter().chain((0..8).map(|_| any(net, &mut dice))) {
                syn(source, port, MARK);
            }
            syn(web.address(), 80, LAST);
            seen.insert(port, tap.frames_until(LAST).with(MARK));
            assert_eq!(seen[&port], expected, "{mode:?}: port {port}");
        }
        let words = ["list", "table", "inet", &scene.daemon.table()];
        let sets = run(scene.host.command("nft").args(words));
        // One element counts for the subnet, by its first address, and none for any other of it.
        let counted = sets.ok().split("set begun_by_").nth(1).and_then(|s| s.split('}').next());
        let counted = counted.expect("flows are counted").to_owned();
        assert!(counted.contains(&format!("{} ", net.0)), "{counted}");
    });
}

#[test]
fn a_subnet_follows_the_prefix() {
    let _machine = require!(Root);
    side_by_side(BOTH, |mode| {
        let mut dice = Dice::new();
        let tables = "[addresses]\nwished = [\"*\"]\n[renumber]\nsettle = \"0s\"\ngrace = \"0s\"\n";
        let config = Config { tables: tables.to_owned(), ..Config::default() }.with_mode(mode);
        let scene = Scene::new(&config, &[OPEN]);
        let (daemon, (first, _)) = (&scene.daemon, scene.net);
        let _server = Server::start(&scene.web.namespace.network(), &[80]);
        let route = "-6 route add 2001:db8:1:2:4::/80 via 2001:db8:ffff::2";
        run(scene.host.outside("ip").args(route.split(' '))).ok();
        daemon.ctl(&["prefix", "set", "2001:db8:1:2:4::/80"]).ok();
        let now = eventually(PATIENCE, "it has moved", || {
            let a = daemon.the_attachment();
            let moved = a.subnets.len() == 1 && subnet(&a).0 != first;
            (moved && a.address.segments()[4] == 4).then(|| subnet(&a))
        });
        assert_eq!((now.0.segments()[4], now.0.segments()[5]), (4, first.segments()[5]));
        let from = scene.outside();
        assert!(pages(&from, &[any(now, &mut dice)])[0].is_some(), "{mode:?}");
        assert!(pages(&from, &[any((first, 96), &mut dice)])[0].is_none(), "{mode:?}");
        let local = ["-6", "route", "show", "table", "local", "type", "local"];
        let local = scene.web.namespace.run("ip", &local);
        assert!(!local.ok().contains(&format!("{first}/96")), "{local}");
        Invariants::hold(daemon, &[(&scene.web.namespace, daemon.the_attachment().address)]);
    });
}
