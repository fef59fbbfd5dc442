//! What was open and is closed ends: by a word of its owner's, with its container, and with the rules that somebody
//! flushed and that are back.

use std::fs::File;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use v6pod_tests::{
    Body, Daemon, Flow, Law, Neighbours, OUTSIDE_V6, PATIENCE, Ports, Server, eventually,
    open_in_kernel, require, run, side_by_side, within,
};

use super::{PLACES, host, outside, patch, reached, tcp, udp};

#[test]
fn attack_12_what_is_closed_ends_and_nothing_else_on_every_kind_of_port() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| flows_end(&mut Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn flows_end(scene: &mut Neighbours) {
    let (outside, host) = (outside(&scene.host), host(&scene.host));
    let (address, owner) = (scene.victim.address(), scene.users[1].uid());
    let network = scene.victim.namespace.network();
    let attacker = scene.attacker.namespace.network();
    let _server = Server::start(&network, &[80, 81]);
    let _elsewhere = Server::start(&outside, &[7000]);
    let _neighbour = Server::start(&attacker, &[7001]);
    let id = scene.victim.attachment.id.to_string();
    let change = |daemon: &Daemon, change: &str| {
        assert_eq!(patch(daemon, owner, &id, change).status, 200, "{change}");
    };
    change(&scene.daemon, r#"{"open": ["tcp/80-81", "udp/80-81"]}"#);
    let away = OUTSIDE_V6.parse().expect("an address");
    let mut ends =
        [&outside, &attacker].map(|from| [tcp(from, (address, 80)), udp(from, (address, 80))]);
    let mut goes_on = [
        tcp(&outside, (address, 81)),
        udp(&outside, (address, 81)),
        tcp(&attacker, (address, 81)),
        udp(&attacker, (address, 81)),
        // Who is let in anyway: root, on this host.
        tcp(&host, (address, 80)),
        udp(&host, (address, 80)),
        // And what the container began.
        tcp(&network, (away, 7000)),
        udp(&network, (away, 7000)),
    ];

    // By taking its elements away alone, no flow ends.
    scene.daemon.kill9();
    let table = scene.daemon.table();
    let bare = format!(
        "nft delete element inet {table} open '{{ {address} . tcp . 80, {address} . udp . 80 }}'"
    );
    run(scene.host.command("sh").args(["-c", &bare])).ok();
    assert!(
        Flow::tcp(&outside, (address, 80)).is_none()
            && Flow::udp(&outside, (address, 80)).is_none()
    );
    assert_eq!(Flow::answered(ends.as_flattened_mut()), [true; 4]);
    scene.daemon.restart();

    change(&scene.daemon, r#"{"close": ["tcp/80", "udp/80"]}"#);
    // The server goes on sending in each of them.
    assert_eq!(Flow::answered(ends.as_flattened_mut()), [false; 4]);
    assert_eq!(Flow::answered(&mut goes_on), [true; 8]);
    assert_eq!(reached(&outside, address, &[80, 81]), ["tcp/81", "udp/81"]);
    // Open again, the very same datagrams' flow is heard again, and a connection can be made anew.
    change(&scene.daemon, r#"{"open": ["tcp/80", "udp/80"]}"#);
    assert!(ends[0][1].is_answered(), "UDP has no state at its ends");
    assert_eq!(reached(&outside, address, &[80]), ["tcp/80", "udp/80"]);

    // With its end everything ends, and nothing of it is left.
    let mut last = [tcp(&outside, (address, 81)), udp(&outside, (address, 81))];
    let form = format!("user={owner}&id={}", scene.victim.attachment.container);
    let ended = scene.daemon.as_user(owner).post("/api/deactivate", Body::Form(&form));
    assert_eq!(ended.status, 200);
    last.iter_mut().for_each(Flow::ends);
    eventually(PATIENCE, "nothing is open", || {
        open_in_kernel(&scene.daemon).is_empty().then_some(())
    });
    let digits: Vec<_> = address.segments().iter().map(|s| format!("{s:04x}")).collect();
    eventually(PATIENCE, "conntrack has forgotten it", || {
        let table = run(scene.host.command("cat").arg("/proc/net/nf_conntrack"));
        (!table.ok().contains(&digits.join(":"))).then_some(())
    });
}

/// Has rules of others' follow connections, whatever becomes of the daemon's.
#[track_caller]
fn others_track(scene: &Neighbours) {
    let rules = "nft add table inet v6t-other; \
                 nft 'add chain inet v6t-other c { type filter hook forward priority 5; }'; \
                 nft add rule inet v6t-other c ct state established accept";
    run(scene.host.command("sh").args(["-c", rules])).ok();
}

#[test]
fn attack_11_no_opening_outlives_a_flush_and_none_is_lost_by_it() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| survives_a_flush(&Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn survives_a_flush(scene: &Neighbours) {
    let outside = outside(&scene.host);
    let (daemon, address) = (&scene.daemon, scene.victim.address());
    let _server = Server::start(&scene.victim.namespace.network(), &[80, 81]);
    let id = scene.victim.attachment.id.to_string();
    let change = r#"{"open": ["tcp/80", "udp/80", "tcp/22@2001:db8:fffe::/47"]}"#;
    assert_eq!(patch(daemon, scene.users[1].uid(), &id, change).status, 200);
    let elements = open_in_kernel(daemon);
    let mut goes_on = [tcp(&outside, (address, 80)), udp(&outside, (address, 80))];
    let tables = format!("nft delete table inet {0}; nft delete table bridge {0}", daemon.table());
    others_track(scene);
    // Without the others' rules nothing follows connections meanwhile: then TCP tells by itself.
    for (flush, flows) in [(tables.as_str(), 2), ("nft flush ruleset", 1)] {
        daemon.pause();
        run(scene.host.command("sh").args(["-c", flush])).ok();
        let mut closed = vec![tcp(&outside, (address, 81)), udp(&outside, (address, 81))];
        closed.truncate(flows);
        assert!(closed.iter_mut().all(Flow::is_answered), "without rules all is open");
        daemon.resume();
        eventually(PATIENCE, "the repair", || (open_in_kernel(daemon) == elements).then_some(()));
        closed.iter_mut().for_each(Flow::ends);
        assert_eq!(Flow::answered(&mut goes_on), [true, true], "{flush}");
        assert_eq!(reached(&outside, address, &[80, 81]), ["tcp/80", "udp/80"]);
    }
    // And what somebody adds is nobody's, and goes when something is put back.
    let add = format!(
        "nft add element inet {0} open '{{ {address} . tcp . 81 }}'; nft delete table bridge {0}",
        daemon.table()
    );
    run(scene.host.command("sh").args(["-c", &add])).ok();
    eventually(PATIENCE, "the sets are as they were", || {
        (open_in_kernel(daemon) == elements).then_some(())
    });
}

#[test]
fn what_could_not_be_ended_ends_when_the_rules_are_looked_at_again() {
    let _machine = require!(Root);
    let mut scene = Neighbours::on(Ports::Bridge, Law::Deny);
    let (outside, address) = (outside(&scene.host), scene.victim.address());
    let _server = Server::start(&scene.victim.namespace.network(), &[81]);
    others_track(&scene);
    scene.daemon.kill9();
    let table = scene.daemon.table();
    let flush = format!("nft delete table inet {table}; nft delete table bridge {table}");
    run(scene.host.command("sh").args(["-c", &flush])).ok();
    let mut begun = [tcp(&outside, (address, 81)), udp(&outside, (address, 81))];
    assert_eq!(Flow::answered(&mut begun), [true; 2], "without rules all is open");

    scene.daemon.restart_to_fail_at("flows");
    eventually(PATIENCE, "they cannot be ended", || {
        scene.daemon.log().contains("cannot end flows").then_some(())
    });
    // Something is taken away, and nothing is missing.
    let look = format!("add chain inet {table} other; delete chain inet {table} other");
    run(scene.host.command("nft").arg(look)).ok();
    begun.iter_mut().for_each(Flow::ends);
    assert_eq!(reached(&outside, address, &[81]), [""; 0]);
}

/// Who sends datagrams and is never answered: for conntrack it is a new flow with each of them.
struct Sender<'a> {
    sends: UdpSocket,
    receives: &'a UdpSocket,
}

impl<'a> Sender<'a> {
    /// From that namespace.
    fn to(receives: &'a UdpSocket, from: &File, to: (Ipv6Addr, u16)) -> Self {
        let sends = within(from, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("binding"));
        sends.connect(to).expect("connecting");
        Self { sends, receives }
    }

    /// Whether one of some datagrams, which are sent until one has arrived, arrives.
    fn is_heard(&self) -> bool {
        const SILENCE: Duration = Duration::from_millis(1000);
        let mine = self.sends.local_addr().expect("an address").port();
        self.receives.set_read_timeout(Some(SILENCE / 20)).expect("a limit");
        // What was under way before is read first.
        while self.receives.recv(&mut [0; 8]).is_ok() {}
        let began = Instant::now();
        while began.elapsed() < SILENCE {
            let _refused = self.sends.send(b"one way");
            while let Ok((_, from)) = self.receives.recv_from(&mut [0; 8]) {
                if from.port() == mine {
                    return true;
                }
            }
        }
        false
    }
}

#[test]
fn attack_12_datagrams_that_nobody_answers_end_as_well() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| one_way_ends(&mut Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn one_way_ends(scene: &mut Neighbours) {
    let (outside, address) = (outside(&scene.host), scene.victim.address());
    let (network, owner) = (scene.victim.namespace.network(), scene.users[1].uid());
    let [open, closed] = [80, 81].map(|port| {
        within(&network, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("binding"))
    });
    let attacker = scene.attacker.namespace.network();
    let id = scene.victim.attachment.id.to_string();
    let change = |daemon: &Daemon, change: &str| {
        assert_eq!(patch(daemon, owner, &id, change).status, 200, "{change}");
    };
    let heard = |senders: &[Sender<'_>]| senders.iter().map(Sender::is_heard).collect::<Vec<_>>();
    change(&scene.daemon, r#"{"open": ["udp/80"]}"#);
    let one_way = [&outside, &attacker].map(|from| Sender::to(&open, from, (address, 80)));
    assert_eq!(heard(&one_way), [true; 2]);
    assert!(!Sender::to(&closed, &outside, (address, 81)).is_heard());

    // Each is asked about, as long as nobody answers: they end with the element, whether or not conntrack forgets.
    scene.daemon.kill9();
    let table = scene.daemon.table();
    let bare = format!("nft delete element inet {table} open '{{ {address} . udp . 80 }}'");
    run(scene.host.command("sh").args(["-c", &bare])).ok();
    assert_eq!(heard(&one_way), [false; 2]);
    scene.daemon.restart();
    assert_eq!(heard(&one_way), [true; 2]);

    change(&scene.daemon, r#"{"close": ["udp/80"]}"#);
    assert_eq!(heard(&one_way), [false; 2]);
    change(&scene.daemon, r#"{"open": ["udp/80"]}"#);
    assert_eq!(heard(&one_way), [true; 2]);

    // What began while there were no rules, but others' that follow connections, ends with the repair.
    let daemon = &scene.daemon;
    others_track(scene);
    daemon.pause();
    let flush = format!("nft delete table inet {table}; nft delete table bridge {table}");
    run(scene.host.command("sh").args(["-c", &flush])).ok();
    let meanwhile = Sender::to(&closed, &outside, (address, 81));
    assert!(meanwhile.is_heard(), "without rules all is open");
    daemon.resume();
    eventually(PATIENCE, "it ends", || (!meanwhile.is_heard()).then_some(()));
    assert_eq!(heard(&one_way), [true; 2]);
}
