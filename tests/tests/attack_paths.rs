//! Issue 5, line 1: attacks 13, 22 and 24, on the bridge and on routed ports.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0
//!                          ├── port ── eth0 ┌ attacker, of v6t1 ┐ comes and goes
//!                          └── port ── eth0 ┌ victim, of v6t2 ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use v6pod_proto::{Activate, Attachment, Mode};
use v6pod_tests::packet::{IPV6, Route, frame};
use v6pod_tests::{
    Body, Config, Daemon, Ends, Finished, HostNs, Law, Neighbours, OUTSIDE_V6, OwnedNs, PATIENCE,
    Ports, Stage, Tap, eventually, everywhere, random_container_id, require, run, side_by_side,
};

const LIE: &[u8] = b"v6t-spoofed";
const KNOCK: &[u8] = b"v6t-knock";
const LAST: &[u8] = b"v6t-honest";

/// How often the attacker's interface comes and goes.
const TIMES: usize = 30;

fn outside() -> Ipv6Addr {
    OUTSIDE_V6.parse().expect("an address")
}

/// Datagrams to the outside and to the victim that say they are somebody else's.
fn lies(scene: &Neighbours, mac: [u8; 6]) -> Vec<Vec<u8>> {
    let stranger: Ipv6Addr = "2001:db8:bad::1".parse().expect("an address");
    let victim = scene.victim.address();
    let ways = [(victim, outside()), (stranger, outside()), (stranger, victim)];
    let lie = |(from, to)| {
        let route = Route::new(from, to);
        frame(scene.gateway_mac(), mac, IPV6, &route.carry(&route.udp(9, 9, LIE)))
    };
    ways.map(lie).to_vec()
}

/// A closed port's datagram from the outside.
fn knock(uplink: [u8; 6], tap: &Tap, to: Ipv6Addr) -> Vec<u8> {
    let route = Route::new(outside(), to);
    frame(uplink, tap.mac(), IPV6, &route.carry(&route.udp(9, 9, KNOCK)))
}

#[track_caller]
fn attach(daemon: &Daemon, namespace: &OwnedNs) -> Attachment {
    let network = namespace.network();
    // Who asks for a namespace out of which an attachment is still being taken is told to try again after four
    // seconds, which a flood beside it can make of it.
    eventually(PATIENCE, "it is attached", || {
        let request = Activate::new(random_container_id());
        match daemon.as_user(namespace.uid()).activate(&request, network.as_fd()).0 {
            Ok(made) => Some(made),
            Err(refused) if refused.status == 503 => None,
            Err(refused) => panic!("{refused}"),
        }
    })
}

#[track_caller]
fn detach(daemon: &Daemon, namespace: &OwnedNs, made: &Attachment) {
    let form = format!("id={}", made.container);
    let answer = daemon.as_user(namespace.uid()).post("/api/deactivate", Body::Form(&form));
    assert_eq!(answer.status, 200, "{answer}");
    eventually(PATIENCE, "its interface is gone", || {
        (!namespace.run("ip", &["link", "show", "eth0"]).status.success()).then_some(())
    });
}

/// Sends whenever there is an interface that takes it, from the moment it is up to the moment it is gone; how
/// often that was begun, and how much was sent.
fn flood(network: &File, frames: &[Vec<u8>], done: &AtomicBool) -> (usize, usize) {
    let (mut begun, mut sent) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        let Some(tap) = Tap::try_open(network, "eth0") else { continue };
        let (before, mut failed) = (sent, 0);
        // It is made off, and is gone at the end: both look alike.
        while failed < 100 && !done.load(Ordering::Relaxed) {
            match frames.iter().all(|frame| tap.try_send(frame)) {
                true => sent += 1,
                false => failed += 1,
            }
        }
        begun += usize::from(sent > before);
    }
    (begun, sent)
}

#[test]
fn attack_13_nothing_slips_through_while_a_port_is_made_or_taken_away() {
    let _machine = require!(Root);
    // Not side by side: two floods leave two processors nothing, neither for the daemon nor for the kernel's own
    // threads. RCU's was seen to stand still for seconds, ready to run, and what waits for it holds the lock of all
    // interfaces.
    for ports in [Ports::Bridge, Ports::Routed] {
        arrives_without_rules(&Neighbours::on(ports, Law::None));
        slips_through_nowhere(&Neighbours::on(ports, Law::Deny));
    }
}

/// That the same frames arrive by a port that is there and has no rules.
#[track_caller]
fn arrives_without_rules(scene: &Neighbours) {
    let (tap, uplink) = (scene.outside_tap(), scene.host_tap("up0").mac());
    let lies = lies(scene, scene.attacker.mac());
    lies.iter().for_each(|lie| scene.attacker.tap.send(lie));
    tap.send(&knock(uplink, &tap, scene.attacker.address()));
    tap.frames_with_each(vec![LIE.to_vec()]);
    scene.victim.tap.frames_with_each(vec![LIE.to_vec()]);
    scene.attacker.tap.frames_with_each(vec![KNOCK.to_vec()]);
}

#[track_caller]
fn slips_through_nowhere(scene: &Neighbours) {
    let (tap, uplink) = (scene.outside_tap(), scene.host_tap("up0").mac());
    let namespace = OwnedNs::new(&scene.users[0]);
    let (network, done) = (namespace.network(), AtomicBool::new(false));
    let lies = lies(scene, scene.attacker.mac());
    let whose = Mutex::new(scene.attacker.address());
    let mut inside = 0;
    scene.victim.tap.drain();
    let ((begun, sent), knocked) = thread::scope(|scope| {
        let over = Ends(&done);
        let flooding = scope.spawn(|| flood(&network, &lies, &done));
        let knocking = scope.spawn(|| {
            let mut knocked = 0;
            while !done.load(Ordering::Relaxed) {
                let to = *whose.lock().expect("the lock");
                tap.send(&knock(uplink, &tap, to));
                knocked += 1;
                thread::sleep(Duration::from_micros(100));
            }
            knocked
        });
        for _ in 0..TIMES {
            let made = attach(&scene.daemon, &namespace);
            *whose.lock().expect("the lock") = made.address;
            let own = Tap::try_open(&network, "eth0").expect("its interface");
            detach(&scene.daemon, &namespace, &made);
            // The first look says that the interface is gone; what came before is there still.
            inside += (0..2).map(|_| own.frames_within(Duration::ZERO).with(KNOCK)).sum::<usize>();
        }
        drop(over);
        (flooding.join().expect("flooding"), knocking.join().expect("knocking"))
    });
    eprintln!("    {:?}: {begun} floods of {sent} rounds, {knocked} knocks", scene.ports);
    assert!(begun >= TIMES / 2 && sent >= TIMES && knocked >= TIMES, "{begun} {sent} {knocked}");
    assert_eq!(inside, 0, "somebody got in");
    scene.honest(scene.gateway_mac(), outside(), LAST);
    let seen = tap.frames_until(LAST);
    assert_eq!(seen.with(LIE), 0, "the outside was lied to");
    // The host says that there is nobody, and quotes it; it does not send it back (attack 14).
    assert_eq!(seen.with_from(KNOCK, outside()), 0, "it went round");
    scene.honest(scene.gateway_mac(), scene.victim.address(), LAST);
    assert_eq!(scene.victim.tap.frames_until(LAST).with(LIE), 0, "the victim was lied to");
}

#[test]
fn attack_24_whoever_is_spoken_to_sees_who_speaks() {
    let _machine = require!(Root);
    side_by_side(everywhere([Law::Allow]), |(ports, law)| {
        let scene = Neighbours::on(ports, law);
        assert_eq!(seen_as_themselves(&scene, 1000), [true; 3], "{ports:?}");
        // The case bites: with a host that puts its own address there nobody is himself.
        let nat = "table ip6 v6t-nat { chain out { type nat hook postrouting priority srcnat; \
                   snat to 2001:db8:1:2:3::1; }; }";
        run(scene.host.command("nft").arg(nat)).ok();
        assert_eq!(seen_as_themselves(&scene, 2000), [false; 3], "{ports:?}");
    });
}

/// Whether a datagram has its sender's address where it arrives: from the outside to the victim, from the
/// victim to the outside, from its neighbour to the victim.
#[track_caller]
fn seen_as_themselves(scene: &Neighbours, port: u16) -> [bool; 3] {
    let (tap, uplink) = (scene.outside_tap(), scene.host_tap("up0").mac());
    let (gateway, victim) = (scene.gateway_mac(), &scene.victim);
    let arrives = |from: (&Tap, [u8; 6], Ipv6Addr), to: (&Tap, Ipv6Addr)| {
        let (sender, by, source) = from;
        let (receiver, destination) = to;
        let route = Route::new(source, destination);
        receiver.drain();
        let packet = route.carry(&route.udp(port, 9, KNOCK));
        sender.send(&frame(by, sender.mac(), IPV6, &packet));
        let seen = receiver.frames_until(KNOCK);
        seen.with(&[source.octets(), destination.octets()].concat()) == 1
    };
    let inside = (&victim.tap, victim.address());
    [
        arrives((&tap, uplink, outside()), inside),
        arrives((&victim.tap, gateway, victim.address()), (&tap, outside())),
        arrives((&scene.attacker.tap, gateway, scene.attacker.address()), inside),
    ]
}

/// An image with labels of its own.
const BUILD: &str = "printf 'FROM localhost/v6test\\nLABEL v6pod.ingress=tcp/22,tcp/80\\n' | \
     podman build --quiet --tag localhost/bearing -f - .";

#[test]
fn attack_22_no_label_of_an_image_or_of_a_container_opens_anything() {
    let _machine = require!(Podman);
    side_by_side([Mode::Bridge, Mode::Routed], |mode| {
        for tables in ["", Config::OPEN] {
            let config = Config { tables: tables.to_owned(), ..Config::default() };
            let stage = Stage::on(HostNs::new(), &config.with_mode(mode), 1);
            run(stage.user().command("sh").args(["-c", BUILD])).ok();
            let script = "httpd -f -p '[::]:22' & exec httpd -f -p '[::]:80'";
            let label = "--label=v6pod.ingress=tcp/80";
            let words =
                ["run", "--detach", "--name=c", label, "localhost/bearing", "sh", "-c", script];
            stage.user().podman(&words).ok();
            let made = stage.daemon.the_attachment();
            assert_eq!(made.mode, mode);
            // Its owner reaches both, so both are there; a page it has none.
            let asks = |mut curl: std::process::Command, port: u16| -> Finished {
                let url = format!("http://[{}]:{port}/", made.address);
                run(curl.args(["-sS", "-g", "-m", "2", "-o", "/dev/null", &url]))
            };
            for port in [22, 80] {
                eventually(PATIENCE, "its owner is answered", || {
                    asks(stage.user().command("curl"), port).status.success().then_some(())
                });
                let stranger = asks(stage.host.outside("curl"), port);
                // Timed out, or, without the rules about it, answered.
                let expected = if tables.is_empty() { 28 } else { 0 };
                assert_eq!(stranger.status.code(), Some(expected), "{mode:?} {port}: {stranger}");
            }
            stage.user().podman(&["rm", "-f", "-t", "0", "c"]).ok();
        }
    });
}
