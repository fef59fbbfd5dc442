//! Issue 3, line 6, and attacks 11, 12 and 14: what is not opened is closed, at every moment, on the bridge
//! and on routed ports.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0       root's, v6t1's and v6t2's processes
//!                          ├── port ── eth0 ┌ attacker, of v6t1 ┐
//!                          └── port ── eth0 ┌ victim, of v6t2 ┐ httpd :80
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::mem;
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use v6pod_tests::packet::{IPV6, Load, Route, frame};
use v6pod_tests::{
    Attached, Background, Ends, Law, Neighbours, OUTSIDE_V6, PATIENCE, Ports, eventually,
    everywhere, require, run, side_by_side,
};

const MARK: &[u8] = b"v6t-knock";
const LAST: &[u8] = b"v6t-honest";

const PLACES: [Ports; 3] = [Ports::Bridge, Ports::Routed, Ports::Mixed];

fn outside() -> Ipv6Addr {
    OUTSIDE_V6.parse().expect("an address")
}

/// A web server, and a folder that it serves.
#[track_caller]
fn serve(mut httpd: Command, port: u16, folder: &std::path::Path) -> Background {
    let port = port.to_string();
    httpd.args(["httpd", "-f", "-p", &format!("[::]:{port}"), "-h"]).arg(folder);
    Background::start(httpd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

#[track_caller]
fn page() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("index.html"), "inside\n").expect("writing a page");
    folder
}

/// Whether the page at this address is reached.
#[track_caller]
fn fetches(mut curl: Command, address: Ipv6Addr) -> bool {
    let finished = run(curl.args(["-sS", "-g", "-m", "2", &format!("http://[{address}]/")]));
    // Anything but a page or silence is a mistake of the test's.
    assert!(matches!(finished.status.code(), Some(0 | 28)), "{finished}");
    finished.status.success()
}

/// Who fetches the victim's page: root and the victim's owner on the host, the other user on the
/// host, the other user's container, and the outside.
#[track_caller]
fn who_fetches(scene: &Neighbours) -> [bool; 5] {
    let [other, owner] = &scene.users;
    [
        scene.host.command("curl"),
        owner.command("curl"),
        other.command("curl"),
        scene.attacker.namespace.command("curl"),
        scene.host.outside("curl"),
    ]
    .map(|curl| fetches(curl, scene.victim.address()))
}

/// What may knock at a container: each with the mark.
fn knocks(route: &Route) -> Vec<Load> {
    let mut all: Vec<_> = [22, 53, 80, 443, 8080, 65_535]
        .iter()
        .flat_map(|port| [route.syn(4000, *port, MARK), route.udp(4000, *port, MARK)])
        .collect();
    // Errors about flows that are not there, queries and reports of multicast, all of neighbour
    // discovery, node information, mobile prefixes, an echo that nobody asked for.
    let about = Route::new(route.destination, route.source);
    let quoted = about.carry(&about.udp(9, 9, MARK));
    for kind in [1, 2, 3, 4] {
        all.push(route.icmp(kind, 0, &[&[0; 4], &quoted[..]].concat()));
    }
    for kind in [129, 130, 131, 133, 134, 135, 136, 137, 139, 140, 144, 146, 200] {
        all.push(route.icmp(kind, 0, &[&[0; 20], MARK].concat()));
    }
    // IPv6 in IPv6, GRE, ESP, SCTP, UDP-Lite, and one for experiments.
    all.extend([41, 47, 50, 132, 136, 253].map(|next| Load::raw(next, &[&[0; 16], MARK].concat())));
    all
}

/// Knocks from the outside, and how often that is seen by the victim.
#[track_caller]
fn knock(scene: &Neighbours) -> usize {
    let tap = scene.outside_tap();
    let uplink = scene.host_tap("up0").mac();
    let route = Route::new(outside(), scene.victim.address());
    scene.victim.tap.drain();
    let send = |load: &Load| tap.send(&frame(uplink, tap.mac(), IPV6, &route.carry(load)));
    knocks(&route).iter().for_each(send);
    send(&route.echo(LAST));
    scene.victim.tap.frames_until(LAST).with(MARK)
}

#[test]
fn from_outside_it_answers_echo_and_nothing_else() {
    let _machine = require!(Root);
    side_by_side(everywhere([Law::None, Law::Deny]), |(ports, law)| {
        let scene = Neighbours::on(ports, law);
        let seen = knock(&scene);
        if law == Law::None {
            // Of these, Linux itself forwards no redirect and no multicast query, if that.
            let all = knocks(&Route::new(outside(), scene.victim.address())).len();
            assert!(seen >= all - 4, "{seen} of {all}");
        } else {
            assert_eq!(seen, 0);
            let address = scene.victim.address().to_string();
            run(scene.host.outside("ping").args(["-c", "1", "-W", "10", &address])).ok();
        }
    });
}

#[test]
fn the_owner_and_root_reach_it_from_the_host_and_nobody_else_does() {
    let _machine = require!(Podman);
    let folder = page();
    side_by_side(everywhere([Law::Allow, Law::Deny]), |(ports, law)| {
        let scene = Neighbours::on(ports, law);
        let _server = serve(scene.victim.namespace.command("busybox"), 80, folder.path());
        eventually(PATIENCE, "the web server answers", || {
            let url = format!("http://[{}]/", scene.victim.address());
            let mut curl = scene.host.command("curl");
            run(curl.args(["-sS", "-g", "-m", "2", &url])).status.success().then_some(())
        });
        let others = law == Law::Allow;
        assert_eq!(who_fetches(&scene), [true, true, others, others, others], "{law:?}");
    });
}

#[test]
fn what_it_began_is_answered_errors_included() {
    let _machine = require!(Podman);
    side_by_side(PLACES, |ports| is_answered(&Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn is_answered(scene: &Neighbours) {
    let folder = page();
    let _server = serve(scene.host.outside("busybox"), 80, folder.path());
    eventually(PATIENCE, "the container gets a page from the outside", || {
        let reached = scene
            .victim
            .namespace
            .run("curl", &["-sS", "-g", "-m", "2", &format!("http://[{OUTSIDE_V6}]/")]);
        reached.status.success().then_some(())
    });
    // A datagram to a port at which nobody listens; the outside says so, and quotes it.
    let route = Route::new(scene.victim.address(), outside());
    let packet = route.carry(&route.udp(9, 9, MARK));
    scene.victim.tap.drain();
    scene.victim.tap.send(&frame(scene.gateway_mac(), scene.victim.mac(), IPV6, &packet));
    assert_eq!(scene.victim.tap.frames_until(MARK).with(MARK), 1);
}

#[test]
fn attack_11_a_flushed_ruleset_is_back_by_itself() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| comes_back_after_a_flush(&Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn comes_back_after_a_flush(scene: &Neighbours) {
    assert_eq!(scene.daemon.status().last_repair, None);
    let before = scene.daemon.footprint();
    assert!(before.mentions("element"));
    run(scene.host.command("nft").args(["flush", "ruleset"])).ok();
    eventually(PATIENCE, "the repair", || scene.daemon.status().last_repair);
    assert_eq!(knock(scene), 0);
    // With the elements of those that were there, and the way out is open.
    before.comes_back(&scene.daemon);
    let third = Attached::new(&scene.daemon, &scene.users[0]);
    for attached in [&scene.attacker, &scene.victim, &third] {
        attached.namespace.run("ping", &["-c", "1", "-W", "10", OUTSIDE_V6]).ok();
    }
}

/// What conntrack remembers of an address.
#[track_caller]
fn flows(scene: &Neighbours, address: Ipv6Addr) -> usize {
    let digits: Vec<_> = address.segments().iter().map(|s| format!("{s:04x}")).collect();
    let table = run(scene.host.command("cat").arg("/proc/net/nf_conntrack"));
    table.ok().lines().filter(|line| line.contains(&digits.join(":"))).count()
}

#[test]
fn attack_12_the_flows_of_a_container_end_with_it() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| flows_end(Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn flows_end(mut scene: Neighbours) {
    let (address, others) = (scene.victim.address(), scene.attacker.address());
    let port = scene.victim.attachment.port.to_string();
    // Another container in its place: the victim's namespace ends while nobody looks.
    let third = Attached::new(&scene.daemon, &scene.users[1]);
    scene.daemon.kill9();
    drop(mem::replace(&mut scene.victim, third));
    eventually(PATIENCE, "the kernel takes the port away", || {
        let mut ip = scene.host.command("ip");
        (!run(ip.args(["link", "show", &port])).status.success()).then_some(())
    });
    // What the kernel does by itself: nothing.
    assert!(flows(&scene, address) > 0 && flows(&scene, others) > 0);
    scene.daemon.restart();
    assert_eq!(flows(&scene, address), 0);
    assert!(flows(&scene, others) > 0);

    // And where the daemon runs.
    let address = scene.attacker.address();
    let fourth = Attached::new(&scene.daemon, &scene.users[0]);
    let before = scene.daemon.footprint();
    drop(mem::replace(&mut scene.attacker, fourth));
    eventually(PATIENCE, "the flows of the attacker are forgotten", || {
        (flows(&scene, address) == 0).then_some(())
    });
    assert!(before.mentions(&address.to_string()));
    eventually(PATIENCE, "nothing of the attacker is left", || {
        (!scene.daemon.footprint().mentions(&address.to_string())).then_some(())
    });
}

#[test]
fn attack_14_a_packet_for_nobody_does_not_go_round() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| goes_nowhere(&Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn goes_nowhere(scene: &Neighbours) {
    let tap = scene.outside_tap();
    let uplink = scene.host_tap("up0");
    let sent = |mark: &[u8]| {
        let nobody: Ipv6Addr = "2001:db8:1:2:3::dead".parse().expect("an address");
        let (lost, known) =
            (Route::new(outside(), nobody), Route::new(outside(), scene.victim.address()));
        uplink.drain();
        let packets = [lost.carry(&lost.udp(9, 9, mark)), known.carry(&known.echo(LAST))];
        packets.iter().for_each(|packet| tap.send(&frame(uplink.mac(), tap.mac(), IPV6, packet)));
        scene.victim.tap.frames_until(LAST);
        // One turn of a loop takes microseconds.
        uplink.frames_within(Duration::from_millis(300)).with(mark)
    };
    assert_eq!(sent(b"v6t-lost"), 1);
    // Without the route that catches it, which the daemon would put back.
    scene.daemon.pause();
    scene.host.ip("-6 route del unreachable 2001:db8:1:2:3::/80").ok();
    // The outside routes it back.
    run(scene.host.outside("sh").args(["-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"]))
        .ok();
    assert!(sent(b"v6t-loop") > 5);
    scene.daemon.resume();
}

#[test]
fn a_restart_swaps_the_rules_without_a_gap() {
    let _machine = require!(Root);
    side_by_side(PLACES, |ports| has_no_gap(Neighbours::on(ports, Law::Deny)));
}

#[track_caller]
fn has_no_gap(mut scene: Neighbours) {
    let (outside_tap, uplink) = (scene.outside_tap(), scene.host_tap("up0").mac());
    // The victim's own flow, which the rules know as established.
    let there = Route::new(scene.victim.address(), outside());
    let back = Route::new(outside(), scene.victim.address());
    let spoofed = Route::new(scene.victim.address(), outside());
    let gateway = scene.gateway_mac();
    let (attacker, victim) = (&scene.attacker.tap, &scene.victim.tap);
    let question =
        frame(gateway, victim.mac(), IPV6, &there.carry(&there.udp(4, 5, b"v6t-question")));
    victim.send(&question);
    outside_tap.frames_until(b"v6t-question");
    let answer =
        |data: &[u8]| frame(uplink, outside_tap.mac(), IPV6, &back.carry(&back.udp(5, 4, data)));
    let closed = frame(uplink, outside_tap.mac(), IPV6, &back.carry(&back.udp(6, 7, MARK)));
    let lie = spoofed.carry(&spoofed.udp(4, 5, MARK));
    let lie = frame(gateway, attacker.mac(), IPV6, &lie);
    let (answer, last) = (answer(b"v6t-answer"), answer(LAST));
    let done = AtomicBool::new(false);
    let daemon = &mut scene.daemon;
    let sent = thread::scope(|scope| {
        let over = Ends(&done);
        let traffic = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                outside_tap.send(&answer);
                outside_tap.send(&closed);
                attacker.send(&lie);
                rounds += 1;
                thread::sleep(Duration::from_micros(200));
            }
            rounds
        });
        for _ in 0..5 {
            daemon.kill9();
            daemon.restart();
        }
        drop(over);
        traffic.join().expect("sending")
    });
    outside_tap.send(&last);
    let seen = victim.frames_until(LAST);
    assert_eq!(seen.with(b"v6t-answer"), sent, "answers were lost");
    assert_eq!(seen.with(MARK), 0, "it was open for a moment");
    attacker.send(&frame(gateway, attacker.mac(), IPV6, &{
        let honest = Route::new(scene.attacker.address(), outside());
        honest.carry(&honest.echo(LAST))
    }));
    assert_eq!(
        outside_tap.frames_until(LAST).with(MARK),
        0,
        "a foreign source passed for a moment"
    );
}
