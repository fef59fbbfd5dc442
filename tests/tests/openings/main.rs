//! Issue 5: what is opened is open, to whom it is opened and as long as it is; attacks 12, 15, 17, 22 and 29.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0      root's, v6t1's and v6t2's processes
//!                          ├── port ── eth0 ┌ container of v6t1 ┐
//!                          ├── port ── eth0 ┌ container of v6t2 ┐ server, TCP and UDP
//!                          └── other0 ── lan0 ┌ not v6pod's ┐
//! ```
//!
//! Who talks and who serves are sockets of the test's own, made in these namespaces: each flow is a real one,
//! and goes on as long as both ends reach each other. How what is closed ends is told in `ending.rs`.
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use v6pod_proto::{Activate, Attachment, OpenedBy};
use v6pod_tests::{
    Attached, Body, Config, Container, Daemon, Finished, Flow, HostNs, IN_LAN, Invariants, Law,
    Neighbours, OUTSIDE_V6, OwnedNs, PATIENCE, Ports, Response, Server, Stage, User, built,
    elements_of, eventually, open_in_kernel, random_container_id, require, run, side_by_side,
};

mod ending;

const PLACES: [Ports; 3] = [Ports::Bridge, Ports::Routed, Ports::Mixed];

fn outside(host: &HostNs) -> File {
    File::open(host.outside_path()).expect("the outside")
}

fn host(host: &HostNs) -> File {
    File::open(host.path()).expect("the host")
}

/// Which of these ports are reached from that namespace, TCP and UDP, as `v6pod.ingress` names them. All are
/// tried at once: a closed one says nothing.
#[track_caller]
fn reached(from: &File, address: Ipv6Addr, ports: &[u16]) -> Vec<String> {
    let attempt =
        |name: &str, port: u16, flow: Option<Flow>| flow.map(|_| format!("{name}/{port}"));
    thread::scope(|scope| {
        let to = |port| (address, port);
        let tcp = ports
            .iter()
            .map(|&port| scope.spawn(move || attempt("tcp", port, Flow::tcp(from, to(port)))));
        let tcp: Vec<_> = tcp.collect();
        let udp = ports
            .iter()
            .map(|&port| scope.spawn(move || attempt("udp", port, Flow::udp(from, to(port)))));
        let all = tcp.into_iter().chain(udp.collect::<Vec<_>>());
        all.filter_map(|attempt| attempt.join().expect("an attempt")).collect()
    })
}

/// The flow comes about once the daemon has done what it has said that it did.
#[track_caller]
fn tcp(from: &File, to: (Ipv6Addr, u16)) -> Flow {
    Flow::tcp(from, to).expect("a connection")
}

#[track_caller]
fn udp(from: &File, to: (Ipv6Addr, u16)) -> Flow {
    Flow::udp(from, to).expect("an answer")
}

/// v6podctl, run by this user.
#[track_caller]
fn ctl(user: &User, daemon: &Daemon, words: &[&str]) -> Finished {
    let mut command = user.command(built("v6podctl"));
    run(command.arg("--socket").arg(daemon.socket()).args(words))
}

/// Changes what is open, as this uid.
#[track_caller]
fn patch(daemon: &Daemon, uid: u32, reference: &str, change: &str) -> Response {
    let path = format!("/api/attachments/{reference}");
    daemon.as_user(uid).call("PATCH", &path, Body::Json(change), None).0
}

/// What is open, and by what.
fn open(attachment: &Attachment) -> Vec<String> {
    attachment.openings.iter().map(|open| format!("{} {}", open.opening, open.by)).collect()
}

fn shown(daemon: &Daemon, address: Ipv6Addr) -> Attachment {
    daemon.root().get(&format!("/api/attachments/{address}")).ok()
}

/// Podman with shim and hook.
#[track_caller]
fn podman(config: &Config) -> Stage {
    let stage = Stage::on(HostNs::new(), config, 2);
    stage.users.iter().for_each(|user| user.use_hook(&stage.daemon.socket()));
    stage
}

#[track_caller]
fn network(container: &Container<'_>) -> File {
    let pid = container.inspect("{{.State.Pid}}");
    File::open(format!("/proc/{pid}/ns/net")).expect("the container's network")
}

/// Each of podman's words that may open something, and what that opens to the outside.
const ASKED: &[(&[&str], &[&str])] = &[
    (&[], &[]),
    (&["--annotation=v6pod.ingress=tcp/80 udp/81"], &["tcp/80", "udp/81"]),
    (&["--annotation=v6pod.ingress=tcp/81-90"], &["tcp/81", "tcp/90"]),
    (&["--annotation=v6pod.ingress=udp/1-65535"], &["udp/80", "udp/81", "udp/90", "udp/91"]),
    (&["--annotation=v6pod.ingress=tcp/80@2001:db8:ffff::/48"], &["tcp/80"]),
    (&["--annotation=v6pod.ingress=tcp/80@2001:db8:fffe::/47"], &["tcp/80"]),
    (&["--annotation=v6pod.ingress=tcp/80@2001:db8:ffff::1 udp/80@2001:db8:ffff::2"], &["tcp/80"]),
    (&["--annotation=v6pod.ingress=tcp/80@2001:db8:fffe::/48"], &[]),
    (&["--publish=18080:80", "--publish=[::]:18081:81/udp"], &["tcp/80", "udp/81"]),
    (&["--publish=127.0.0.1:18080:80", "--publish=[::1]:18081:81"], &[]),
    (
        // What is said of a port counts, and not its publication for IPv4's sake.
        &["--annotation=v6pod.ingress=tcp/80@2001:db8:fffe::/48", "--publish=18080-18081:80-81"],
        &["tcp/81"],
    ),
    (&["--label=v6pod.ingress=tcp/80"], &[]),
];

#[test]
fn what_a_container_asks_for_is_open_and_nothing_else_is() {
    let _machine = require!(Podman);
    let stage = podman(&Config::default());
    let (user, outside) = (&stage.users[0], outside(&stage.host));
    for (words, expected) in ASKED {
        let container = user.start("c", words, &["sleep", "1000"]);
        let _server = Server::start(&network(&container), &[80, 81, 90, 91]);
        let attachment = stage.daemon.the_attachment();
        let seen = reached(&outside, attachment.address, &[80, 81, 90, 91]);
        assert_eq!(seen, *expected, "{words:?}: {attachment:?}");
        let openings: Vec<_> = attachment.openings.iter().map(|open| open.opening).collect();
        assert_eq!(open_in_kernel(&stage.daemon), elements_of(attachment.address, &openings));
        container.remove();
        eventually(PATIENCE, "nothing is open", || {
            open_in_kernel(&stage.daemon).is_empty().then_some(())
        });
    }
}

#[test]
fn labels_open_where_the_operator_lets_them_and_he_switches_off_the_rest() {
    let _machine = require!(Podman);
    let tables = "[firewall]\nopenings = [\"labels\"]\n".to_owned();
    let stage = podman(&Config { tables, ..Config::default() });
    let (user, outside) = (&stage.users[0], outside(&stage.host));
    let words = ["--label=v6pod.ingress=tcp/80", "--publish=18081:81"];
    let container = user.start("c", &words, &["sleep", "1000"]);
    let _server = Server::start(&network(&container), &[80, 81]);
    let attachment = stage.daemon.the_attachment();
    assert_eq!(reached(&outside, attachment.address, &[80, 81]), ["tcp/80"]);
    assert_eq!(open(&attachment), ["tcp/80 label"]);
    let why = &attachment.unopened[0];
    assert_eq!((why.opening.to_string(), why.by), ("tcp/81".to_owned(), OpenedBy::Published));
    container.remove();
    let refused = user.run(&["--annotation=v6pod.ingress=tcp/80"], &["true"]);
    assert!(refused.fails().contains("opens nothing on this host"), "{refused}");
}

/// Builds [`v6pod_tests::IMAGE`] with a label and an annotation of its own, as `localhost/bearing`.
const BUILD: &str = "printf 'FROM localhost/v6test\\nLABEL v6pod.ingress=tcp/80\\n' | \
     podman build --quiet --format oci --annotation v6pod.ingress=tcp/81 --tag localhost/bearing -f - .";

#[test]
fn attack_22_an_image_opens_nothing_also_if_nobody_can_tell_it_from_its_user() {
    let _machine = require!(Podman);
    let tables = "[firewall]\nopenings = [\"annotations\", \"published\", \"labels\"]\n".to_owned();
    let stage = podman(&Config { tables, ..Config::default() });
    let (user, outside) = (&stage.users[0], outside(&stage.host));
    run(user.command("sh").args(["-c", BUILD])).ok();
    let start = |options: &[&str]| {
        let words =
            [&["run", "--detach", "--name=c"], options, &["localhost/bearing", "sleep", "1000"]];
        user.podman(&words.concat()).ok().to_owned()
    };
    let pid = || user.podman(&["inspect", "--format", "{{.State.Pid}}", "c"]).ok().to_owned();
    let reached = || {
        let network = File::open(format!("/proc/{}/ns/net", pid())).expect("its network");
        let _server = Server::start(&network, &[80, 81, 82]);
        let attachment = stage.daemon.the_attachment();
        (reached(&outside, attachment.address, &[80, 81, 82]), attachment)
    };
    let remove = || user.podman(&["rm", "-f", "-t", "0", "c"]);

    start(&["--annotation=v6pod.ingress=udp/82"]);
    let (seen, attachment) = reached();
    assert_eq!(seen, ["udp/82"]);
    let told: Vec<_> = attachment.unopened.iter().map(|u| (u.opening.to_string(), u.by)).collect();
    // Podman 4 has let the user's annotation take the place of the image's.
    assert_eq!(told, [("tcp/80".to_owned(), OpenedBy::Image)]);
    assert!(stage.daemon.log().contains("an image opens nothing"), "{}", stage.daemon.log());
    remove().ok();

    start(&[]);
    let (seen, attachment) = reached();
    assert_eq!((seen, attachment.openings), (vec![], vec![]));
    remove().ok();

    // Whoever reads podman's files is too late: all that is known is the annotation, whosever it is.
    fs::write(user.wishes(), "#!/bin/sh\nexec sleep 1000\n").expect("writing a file");
    fs::set_permissions(user.wishes(), fs::Permissions::from_mode(0o755)).expect("chmod");
    for options in [&[][..], &["--annotation=v6pod.ingress=udp/82"]] {
        start(options);
        let (seen, attachment) = reached();
        assert_eq!((seen, attachment.openings), (vec![], vec![]), "{options:?}");
        assert_eq!(attachment.unopened[0].by, OpenedBy::Image);
        let address = attachment.address.to_string();
        let opened = ctl(user, &stage.daemon, &["open", &address, "udp/82"]);
        assert!(opened.ok().contains("udp/82 (owner)"), "{opened}");
        assert_eq!(reached().0, ["udp/82"]);
        remove().ok();
    }
}

#[test]
fn a_running_containers_owner_opens_and_closes_and_nobody_else_does() {
    let _machine = require!(Podman);
    let stage = podman(&Config::default());
    let [owner, other] = &stage.users[..] else { panic!("two users") };
    let (daemon, outside) = (&stage.daemon, outside(&stage.host));
    let container = owner.start("web", &["--publish=18080:80"], &["sleep", "1000"]);
    let network = network(&container);
    let _server = Server::start(&network, &[80, 81]);
    let attachment = daemon.the_attachment();
    let (address, id) = (attachment.address, attachment.id.to_string());

    let opened = ctl(owner, daemon, &["open", "web", "tcp/81", "udp/80-81@2001:db8:ffff::/48"]);
    for line in
        ["tcp/80 (published port)", "tcp/81 (owner)", "udp/80-81@2001:db8:ffff::/48 (owner)"]
    {
        assert!(opened.ok().contains(line), "{line} is not in {opened}");
        let shown = ctl(owner, daemon, &["show", "web"]);
        assert!(shown.ok().contains(line), "{line} is not in {shown}");
    }
    let listed = ctl(owner, daemon, &["ls"]);
    assert!(listed.ok().contains("tcp/80 tcp/81 udp/80-81@2001:db8:ffff::/48"), "{listed}");
    assert_eq!(reached(&outside, address, &[80, 81]), ["tcp/80", "tcp/81", "udp/80", "udp/81"]);

    // It has been heard by the outside, and keeps on being while the others end.
    let mut goes_on = [tcp(&outside, (address, 81)), udp(&outside, (address, 81))];
    let mut ends = [tcp(&outside, (address, 80)), udp(&outside, (address, 80))];
    // Also that of an exec in the container, over slirp4netns's IPv4 and by its own IPv6.
    let _elsewhere = Server::start(&outside, &[7000]);
    let mut own = tcp(&network, (OUTSIDE_V6.parse().expect("an address"), 7000));
    let refused = ctl(owner, daemon, &["close", "web", "udp/80@2001:db8:ffff::/64"]);
    assert!(refused.fails().contains("open to more than that"), "{refused}");
    ctl(owner, daemon, &["close", "web", "tcp/80", "udp/80"]).ok();
    assert_eq!(Flow::answered(&mut ends), [false, false]);
    assert_eq!(Flow::answered(&mut goes_on), [true, true]);
    assert!(own.is_answered());
    assert_eq!(reached(&outside, address, &[80, 81]), ["tcp/81", "udp/81"]);
    let metrics = daemon.root().get("/metrics");
    let metrics = String::from_utf8_lossy(&metrics.body);
    assert!(metrics.contains("v6pod_open_elements 2\n"), "{metrics}");
    let ended = metrics.lines().find_map(|line| line.strip_prefix("v6pod_flows_ended_total "));
    assert!(
        ended.is_some_and(|count| count.parse().is_ok_and(|count: u32| count >= 2)),
        "{metrics}"
    );

    // What anybody else asks for is answered as what nobody has is.
    let nobodys = "0".repeat(32);
    let change = r#"{"open": ["tcp/80"]}"#;
    let same = |change: &str| {
        let answers = [&id, &nobodys].map(|id| patch(daemon, other.uid(), id, change));
        let bodies = answers.each_ref().map(|answer| {
            let mut problem = answer.problem();
            problem.request_id = String::new();
            (answer.status, serde_json::to_string(&problem).expect("JSON"))
        });
        assert_eq!(bodies[0], bodies[1]);
        answers[0].status
    };
    assert_eq!([change, r#"{"openings": []}"#].map(same), [404, 404]);
    let refused = ctl(other, daemon, &["open", &id, "tcp/80"]);
    assert!(refused.fails().contains("no attachment of yours is"), "{refused}");
    // Over TCP, where a container may speak with its user's uid, nobody at all.
    for uid in [0, owner.uid(), other.uid()] {
        let mut curl = run_as(&stage, uid, "curl");
        let url = format!("http://localhost:6781/api/attachments/{id}");
        curl.args(["-sS", "-X", "PATCH", "-H", "Content-Type: application/json", "-d", change]);
        let answer = run(curl.arg(url));
        assert!(answer.ok().contains("over the unix socket alone"), "{answer}");
    }
    assert_eq!(open(&shown(daemon, address)), ["tcp/81 owner", "udp/81@2001:db8:ffff::/48 owner"]);

    // Malformed and impossible ones are said to be, and change nothing.
    for (status, change) in [
        (400, r#"{"open": ["80"]}"#),
        (400, r#"{"open": ["tcp/80"], "more": 1}"#),
        (400, r#"{}"#),
        (400, r#"{"openings": [], "open": ["tcp/80"]}"#),
        (422, r#"{"open": ["tcp/1-2000"]}"#),
        (409, r#"{"close": ["udp/81@2001:db8:ffff::1"]}"#),
    ] {
        let answer = patch(daemon, owner.uid(), &id, change);
        assert_eq!(answer.problem().status, status, "{change}: {answer}");
    }
    let malformed = ctl(owner, daemon, &["open", "web", "80"]);
    assert!(malformed.fails().contains("write openings such as tcp/80"), "{malformed}");
    assert_eq!(reached(&outside, address, &[80, 81]), ["tcp/81", "udp/81"]);
    // root is let do it, and it is said whose doing that is.
    assert_eq!(patch(daemon, 0, &id, change).status, 200);
    assert!(open(&shown(daemon, address)).contains(&"tcp/80 operator".to_owned()));
    drop(container);
}

/// A program in the host's network, run by this uid.
fn run_as(stage: &Stage, uid: u32, program: &str) -> std::process::Command {
    let user = stage.users.iter().find(|user| user.uid() == uid);
    user.map_or_else(|| stage.host.command(program), |user| user.command(program))
}

#[test]
fn who_may_open_what_is_the_operators_word() {
    let _machine = require!(Root);
    let tables = "[[firewall.allow]]\nusers = [\"v6t1\"]\nports = [\"tcp/8000-8999\", \"udp/53\"]\n\
                  [[firewall.allow]]\nusers = [\"@v6t1\"]\nports = [\"tcp/443\"]\n";
    let host = HostNs::new();
    let config = |tables: &str| Config { tables: tables.to_owned(), ..Config::default() };
    let mut daemon = Daemon::configured(&host, &config(tables));
    let [one, two] = [1, 2].map(|number| User::account(number, &host));
    let ask = |daemon: &Daemon, user: &User, ingress: &str| {
        let namespace = OwnedNs::new(user);
        let annotations = [("v6pod.ingress".to_owned(), ingress.to_owned())].into();
        let request = Activate { annotations, ..Activate::new(random_container_id()) };
        let asked = daemon.as_user(user.uid()).activate(&request, namespace.network().as_fd());
        (asked.0, namespace)
    };
    let allowed = "tcp/8000-8999,udp/53@2001:db8::/32,tcp/443";
    let (mine, _namespace) = ask(&daemon, &one, allowed);
    let mine = mine.unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(open(&mine).len(), 3);
    for (user, forbidden) in
        [(&one, "tcp/80"), (&one, "tcp/443-444"), (&one, "udp/8000"), (&two, "udp/53")]
    {
        let refused = ask(&daemon, user, forbidden).0.expect_err("it is not his to open");
        assert_eq!(refused.status, 422, "{refused}");
        let detail = refused.problem().detail;
        assert!(detail.contains("lets you open other ports (firewall.allow)"), "{detail}");
    }
    let elements = open_in_kernel(&daemon);
    assert_eq!(elements.len(), 1000 + 1 + 1);
    let id = mine.id.to_string();
    assert_eq!(patch(&daemon, one.uid(), &id, r#"{"open": ["tcp/80"]}"#).problem().status, 403);
    assert_eq!(patch(&daemon, one.uid(), &id, r#"{"close": ["tcp/8000-8997"]}"#).status, 200);
    assert_eq!(patch(&daemon, 0, &id, r#"{"open": ["tcp/22"]}"#).status, 200);
    let now = [
        "tcp/8998-8999 annotation",
        "udp/53@2001:db8::/32 annotation",
        "tcp/443 annotation",
        "tcp/22 operator",
    ];
    assert_eq!(open(&shown(&daemon, mine.address)), now);

    // Who may open less from now on has less open, but for what an operator has opened.
    daemon.stop();
    daemon.reconfigure(&config("[[firewall.allow]]\nusers = [\"v6t1\"]\nports = [\"tcp/8999\"]\n"));
    daemon.restart();
    let less = ["tcp/8999 annotation", "tcp/22 operator"];
    assert_eq!(open(&shown(&daemon, mine.address)), less);
    Invariants::hold(&daemon, &[]);
}

#[test]
fn a_forbidden_annotation_keeps_its_container_from_starting_and_says_why() {
    let _machine = require!(Podman);
    let tables = "[[firewall.allow]]\nusers = [\"v6t1\"]\nports = [\"tcp/80\"]\n".to_owned();
    let stage = podman(&Config { tables, ..Config::default() });
    let user = &stage.users[0];
    let failed = user.run(&["--annotation=v6pod.ingress=tcp/22"], &["true"]);
    let reason = "the annotation v6pod.ingress: tcp/22 is not open: this host's operator lets you open other ports";
    assert!(failed.fails().contains(reason), "{failed}");
    // An image's wish and a publication are none that a container would have to go without.
    let container =
        user.start("c", &["--publish=18022:22", "--publish=18080:80"], &["sleep", "1000"]);
    let attachment = stage.daemon.the_attachment();
    assert_eq!(open(&attachment), ["tcp/80 published port"]);
    let shown = ctl(user, &stage.daemon, &["show", "c"]);
    assert!(shown.ok().contains("tcp/22 (published port): this host's operator"), "{shown}");
    container.remove();
}

/// Attacks 15, 17 and 29: an opening is for one address, whatever else has that port or passes by.
#[test]
fn attack_17_an_opening_is_of_an_address_and_not_of_a_port() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| nothing_else_opens(&Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn nothing_else_opens(scene: &Neighbours) {
    let (outside, own) = (outside(&scene.host), host(&scene.host));
    let (daemon, victim, other) = (&scene.daemon, scene.victim.address(), scene.attacker.address());
    let away: Ipv6Addr = OUTSIDE_V6.parse().expect("an address");
    let uplink: Ipv6Addr = "2001:db8:ffff::2".parse().expect("an address");
    let network = scene.victim.namespace.network();
    let attacker = scene.attacker.namespace.network();
    let _servers = [&network, &attacker, &outside, &own].map(|at| Server::start(at, &[80]));
    let id = scene.attacker.attachment.id.to_string();
    let open = r#"{"open": ["tcp/1-65535", "udp/1-65535"]}"#;
    assert_eq!(patch(daemon, scene.users[0].uid(), &id, open).status, 200);
    let both = ["tcp/80", "udp/80"];
    // The attacker's own is reached, the host's and the outside's are as ever, the victim's is closed.
    assert_eq!(reached(&outside, other, &[80]), both);
    assert_eq!(reached(&outside, uplink, &[80]), both);
    assert_eq!(reached(&network, away, &[80]), both);
    for from in [&outside, &attacker] {
        assert_eq!(reached(from, victim, &[80]), [""; 0]);
    }

    // Attack 29: inside, its owner may do as he pleases. It gets what is for its own address, as ever.
    let inside = |words: &str| {
        scene.attacker.namespace.run("sh", &["-c", &format!("set -e\n{words}")]).ok();
    };
    let spare: Ipv6Addr = "2001:db8:1:2:3::dead".parse().expect("an address");
    inside(&format!(
        "ip addr add {victim}/128 dev eth0 nodad; ip addr add {spare}/128 dev eth0 nodad\n\
         echo 1 >/proc/sys/net/ipv6/conf/all/forwarding\nip link set eth0 promisc on\n"
    ));
    for address in [victim, spare] {
        assert_eq!(reached(&outside, address, &[80]), [""; 0], "{address}");
    }
    let bound = v6pod_tests::within(&attacker, || {
        let socket = std::net::UdpSocket::bind((victim, 81)).expect("binding");
        socket.send_to(b"x", (away, 80)).expect("sending");
        socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).expect("a limit");
        socket.recv(&mut [0; 8]).is_err()
    });
    assert!(bound, "it was answered at an address that is not its own");
    inside(&format!("ip addr del {victim}/128 dev eth0; ip addr del {spare}/128 dev eth0"));
    assert_eq!(reached(&outside, other, &[80]), both);

    // Attack 15: what the host does with packets of others is not v6pod's business, open or not.
    let lan: Ipv6Addr = IN_LAN[0].parse().expect("an address");
    let far = scene.host.has_a_lan();
    let _lan = Server::start(&far.network(), &[80]);
    run(scene.host.command("sh").args(["-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"]))
        .ok();
    eventually(PATIENCE, "the host forwards for others as it is told", || {
        (reached(&outside, lan, &[80]) == both).then_some(())
    });
    let own_rules = "nft add table inet v6t-own; \
         nft 'add chain inet v6t-own c { type filter hook forward priority 10; }'; \
         nft add rule inet v6t-own c tcp dport 80 drop; nft add rule inet v6t-own c udp dport 80 drop";
    run(scene.host.command("sh").args(["-c", own_rules])).ok();
    // No accept of v6pod's is stronger than a drop of the host's own.
    assert_eq!(reached(&outside, lan, &[80]), [""; 0]);
    assert_eq!(reached(&outside, other, &[80]), [""; 0]);
}

#[test]
fn who_asks_for_it_when_it_is_made_finds_it_open_at_once() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let user = User::account(1, &host);
    let ports = [("v6pod.ingress", "tcp/80,udp/1-65535")];
    let attached = Attached::asking(&daemon, &user, &ports);
    assert_eq!(open(&attached.attachment), ["tcp/80 annotation", "udp/1-65535 annotation"]);
    let openings: Vec<_> = attached.attachment.openings.iter().map(|o| o.opening).collect();
    assert_eq!(open_in_kernel(&daemon), elements_of(attached.address(), &openings));
    Invariants::hold(&daemon, &[(&attached.namespace, attached.address())]);
}
