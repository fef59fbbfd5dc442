//! Issue 5: what each attachment has carried, counted by the kernel, and shown to whoever may see it.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0
//!                          ├── port ── eth0 ┌ attacker, of v6t1 ┐
//!                          └── port ── eth0 ┌ victim, of v6t2 ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::mem;
use std::net::Ipv6Addr;

use v6pod_proto::{Attachment, Traffic};
use v6pod_tests::packet::{IPV6, Route, frame};
use v6pod_tests::{
    Attached, Caller, Law, Neighbours, OUTSIDE_V6, PATIENCE, eventually, require, run,
};

/// How many packets a test sends.
const SENT: u64 = 200;
/// The data of an echo request, and the whole frame: Ethernet, IPv6, ICMPv6.
const DATA: &str = "1000";
const FRAME: u64 = 1000 + 14 + 40 + 8;
/// More packets than neighbour discovery and multicast reports add meanwhile, and their longest.
const NOISE: u64 = 60;
const LONGEST: u64 = 150;

#[track_caller]
fn traffic(scene: &Neighbours, of: &Attached) -> Traffic {
    let path = format!("/api/attachments/{}", of.attachment.id);
    scene.daemon.root().get(&path).ok::<Attachment>().traffic.expect("the kernel says")
}

/// How much more was received and sent: packets and bytes.
fn more(now: Traffic, before: Traffic) -> [(u64, u64); 2] {
    let less = |now: v6pod_proto::Passed, before: v6pod_proto::Passed| {
        (now.packets - before.packets, now.bytes - before.bytes)
    };
    [less(now.received, before.received), less(now.sent, before.sent)]
}

#[track_caller]
fn is_what_was_sent((packets, bytes): (u64, u64)) {
    assert!((SENT..SENT + NOISE).contains(&packets), "{packets} packets");
    let most = SENT * FRAME + NOISE * LONGEST;
    assert!((SENT * FRAME..most).contains(&bytes), "{bytes} bytes");
}

#[track_caller]
fn is_noise((packets, bytes): (u64, u64)) {
    assert!(packets < NOISE && bytes < NOISE * LONGEST, "{packets} packets, {bytes} bytes");
}

fn echo<'a>(count: &'a str, to: &'a str) -> [&'a str; 9] {
    ["-c", count, "-i", "0.002", "-s", DATA, "-W", "10", to]
}

/// The series of this reader's `/metrics` that are about single attachments.
#[track_caller]
fn series(reader: &Caller) -> Vec<String> {
    let response = reader.get("/metrics");
    assert_eq!(response.status, 200, "{response}");
    of_attachments(&String::from_utf8(response.body).expect("text"))
}

#[track_caller]
fn of_attachments(text: &str) -> Vec<String> {
    assert!(text.contains("\nv6pod_leases ") && text.trim_end().ends_with("\n# EOF"), "{text}");
    let lines = text.lines().filter(|line| line.contains("{attachment=\""));
    lines.map(ToOwned::to_owned).collect()
}

/// The value of one of an attachment's series.
fn value(series: &[String], name: &str, of: &Attached) -> Option<u64> {
    let (id, owner) = (&of.attachment.id, of.attachment.owner);
    let start = format!("{name}{{attachment=\"{id}\",owner=\"{owner}\"}} ");
    series.iter().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

#[test]
fn packets_are_counted_to_and_from_the_container_that_they_are_of() {
    let _machine = require!(Root);
    let mut scene = Neighbours::under(Law::Deny);
    let count = SENT.to_string();
    let read = |scene: &Neighbours| [&scene.victim, &scene.attacker].map(|a| traffic(scene, a));
    let before = read(&scene);
    // Each is answered: as many go the other way, whoever begins.
    scene.victim.namespace.run("ping", &echo(&count, OUTSIDE_V6)).ok();
    let out = read(&scene);
    let address = scene.victim.address().to_string();
    run(scene.host.outside("ping").args(echo(&count, &address))).ok();
    let inward = read(&scene);
    for (now, before) in [(out, before), (inward, out)] {
        more(now[0], before[0]).into_iter().for_each(is_what_was_sent);
        more(now[1], before[1]).into_iter().for_each(is_noise);
    }
    // They are the kernel's: a daemon that comes back goes on where the last was.
    scene.daemon.kill9();
    scene.daemon.restart();
    let after = eventually(PATIENCE, "both are taken over", || {
        (scene.daemon.attachments().len() == 2).then(|| read(&scene))
    });
    more(after[0], inward[0]).into_iter().for_each(is_noise);
    // People are shown the same.
    let shown = scene.daemon.ctl(&["show", &address]);
    let shown = shown.ok();
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).map(str::len);
    assert!(line("received ").is_some() && line("sent ").is_some(), "{shown}");
    assert!(shown.contains(" KiB in "), "{shown}");
    let json = scene.daemon.ctl(&["--json", "show", &address]);
    let parsed: Attachment = serde_json::from_str(json.ok()).expect("JSON");
    is_noise(more(parsed.traffic.expect("the kernel says"), after[0])[0]);
}

#[test]
fn what_the_firewall_drops_was_sent_and_not_received() {
    let _machine = require!(Root);
    let scene = Neighbours::under(Law::Deny);
    let gateway = scene.gateway_mac();
    let outside: Ipv6Addr = OUTSIDE_V6.parse().expect("an address");
    let before = [&scene.victim, &scene.attacker].map(|a| traffic(&scene, a));
    // To a closed port, and with an address that is not its own.
    let closed = Route::new(scene.attacker.address(), scene.victim.address());
    let spoofed = Route::new(scene.victim.address(), outside);
    for route in [closed, spoofed] {
        let packet = route.carry(&route.udp(9, 9, &[0; 1000]));
        for _ in 0..SENT / 2 {
            scene.attacker.tap.send(&frame(gateway, scene.attacker.mac(), IPV6, &packet));
        }
    }
    let sent = eventually(PATIENCE, "all are counted", || {
        let sent = more(traffic(&scene, &scene.attacker), before[1])[1];
        (sent.0 >= SENT).then_some(sent)
    });
    is_what_was_sent(sent);
    scene.honest(gateway, scene.victim.address(), b"v6t-last");
    scene.victim.tap.frames_until(b"v6t-last");
    let victim = traffic(&scene, &scene.victim);
    more(victim, before[0]).into_iter().for_each(is_noise);
    assert_eq!(victim.received.dropped, before[0].received.dropped);
}

#[test]
fn attack_03_nobody_sees_what_anothers_container_carries() {
    let _machine = require!(Root);
    let mut scene = Neighbours::under(Law::Deny);
    let [attacker, victim] = [&scene.users[0], &scene.users[1]].map(v6pod_tests::User::uid);
    let of = |series: &[String], of: &Attached| {
        let id = of.attachment.id.as_str();
        series.iter().filter(|line| line.contains(id)).count()
    };
    // Root sees all, an owner his own, who has nothing nothing: six counters and what each is.
    let seen = |uid| {
        let all = series(&scene.daemon.as_user(uid));
        (of(&all, &scene.attacker), of(&all, &scene.victim), all.len())
    };
    assert_eq!(seen(0), (7, 7, 14));
    assert_eq!(seen(attacker), (7, 0, 7));
    assert_eq!(seen(victim), (0, 7, 7));
    assert_eq!(seen(65_534), (0, 0, 0));
    // By TCP root, who may be a service that fetches for others, sees what is root's: nothing.
    let url = ["-sS", "--fail", "-m", "20", "http://localhost:6781/metrics"];
    let by_tcp = run(scene.host.command("curl").args(url));
    assert_eq!(of_attachments(by_tcp.ok()), [""; 0]);
    let by_tcp = of_attachments(run(scene.users[0].command("curl").args(url)).ok());
    assert_eq!((of(&by_tcp, &scene.attacker), by_tcp.len()), (7, 7));
    // Another's is not there at all.
    let path = format!("/api/attachments/{}", scene.victim.attachment.id);
    assert_eq!(scene.daemon.as_user(attacker).get(&path).status, 404);

    // The same numbers as elsewhere, at most a second late.
    let count = SENT.to_string();
    scene.victim.namespace.run("ping", &echo(&count, OUTSIDE_V6)).ok();
    let shown = traffic(&scene, &scene.victim);
    for (name, least) in [
        ("v6pod_attachment_receive_packets_total", shown.received.packets),
        ("v6pod_attachment_receive_bytes_total", shown.received.bytes),
        ("v6pod_attachment_transmit_packets_total", shown.sent.packets),
        ("v6pod_attachment_transmit_bytes_total", shown.sent.bytes),
    ] {
        let now = eventually(PATIENCE, name, || {
            let now = value(&series(&scene.daemon.root()), name, &scene.victim);
            now.filter(|now| *now >= least)
        });
        assert!(now < least + NOISE * LONGEST, "{name}: {now}, {least}");
    }

    // What has gone is absent, at once.
    let third = Attached::new(&scene.daemon, &scene.users[1]);
    let gone = mem::replace(&mut scene.victim, third).attachment.id;
    eventually(PATIENCE, "the victim goes", || {
        let path = format!("/api/attachments/{gone}");
        (scene.daemon.root().get(&path).status == 404).then_some(())
    });
    let left = series(&scene.daemon.root());
    assert!(!left.iter().any(|line| line.contains(gone.as_str())), "{left:?}");
    assert_eq!(of(&left, &scene.attacker), 7);
}
