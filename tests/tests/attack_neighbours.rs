//! Attack 25: the machine has one table of neighbours for all its networks (`gc_thresh3`, 1,024 entries),
//! and nobody fills it, from inside or from outside.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6t0 ── port ── eth0 ┌ attacker ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::net::Ipv6Addr;
use std::thread;
use std::time::Duration;

use v6pod_tests::packet::{IPV6, Route, address_option, frame};
use v6pod_tests::{LAWS, Law, Neighbours, OUTSIDE_V6, require};

/// How many neighbours are made up. Fewer than the table holds: the machine's others need it too.
const MANY: u16 = 300;
/// What comes and goes by itself.
const FEW: usize = 8;

const LAST: &[u8] = b"v6t-honest";

/// How long frames may still be on their way after a later one has arrived: each processor has a queue
/// of its own for them, and one that is taken from the machine for a while keeps its queue.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// The host's neighbours by the bridge.
fn neighbours(scene: &Neighbours) -> usize {
    let words = format!("-6 neigh show dev {} nud all", scene.daemon.bridge());
    scene.host.ip(&words).ok().lines().count()
}

fn nobody(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 0xbad, 0, number)
}

/// Has the attacker ask where the gateway is, as many hosts that there are not: RFC 4861, section 7.2.3, has
/// the host remember who asks. All at once: the kernel takes entries back that are some seconds old, from 128 on
/// (`gc_thresh1`).
fn ask_as_nobody(scene: &Neighbours) {
    let (gateway, gateway_mac) = (scene.gateway(), scene.gateway_mac());
    for number in 0..MANY {
        let [high, low] = number.to_be_bytes();
        let mac = [2, 0xba, 0xd, 0, high, low];
        let route = Route::on_link(nobody(number), gateway);
        let body = [&[0; 4][..], &gateway.octets(), &address_option(1, mac)].concat();
        for from in [mac, scene.attacker.mac()] {
            let packet = route.carry(&route.icmp(135, 0, &body));
            scene.attacker.tap.send(&frame(gateway_mac, from, IPV6, &packet));
        }
    }
    let tap = scene.outside_tap();
    scene.honest(gateway_mac, OUTSIDE_V6.parse().expect("an address"), LAST);
    tap.frames_until(LAST);
    thread::sleep(STRAGGLERS);
}

#[test]
fn attack_25_questions_of_made_up_neighbours_leave_no_entries() {
    let _machine = require!(Root);
    for law in LAWS {
        let scene = Neighbours::under(law);
        let before = neighbours(&scene);
        ask_as_nobody(&scene);
        let more = neighbours(&scene).saturating_sub(before);
        if law == Law::None {
            assert!(more >= usize::from(MANY) / 2, "{more}");
        } else {
            assert!(more <= FEW, "{law:?}: {more}");
        }
    }
}

#[test]
fn attack_25_a_scan_from_outside_leaves_no_entries() {
    let _machine = require!(Root);
    let scene = Neighbours::under(Law::Allow);
    let (tap, uplink) = (scene.outside_tap(), scene.host_tap("up0"));
    let scan = || {
        let before = neighbours(&scene);
        let outside = OUTSIDE_V6.parse().expect("an address");
        for number in 0..MANY {
            let route = Route::new(outside, nobody(number));
            let packet = route.carry(&route.echo(b"anybody there?"));
            tap.send(&frame(uplink.mac(), tap.mac(), IPV6, &packet));
        }
        let route = Route::new(outside, scene.victim.address());
        scene.victim.tap.drain();
        tap.send(&frame(uplink.mac(), tap.mac(), IPV6, &route.carry(&route.echo(LAST))));
        scene.victim.tap.frames_until(LAST);
        thread::sleep(STRAGGLERS);
        neighbours(&scene).saturating_sub(before)
    };
    let more = scan();
    assert!(more <= FEW, "{more}");
    // On a bridge whose whole prefix is on the link, as bridges are made elsewhere.
    scene.host.ip("-6 route del unreachable 2001:db8:1:2:3::/80").ok();
    scene.host.ip("-6 route add 2001:db8:1:2:3::/80 dev v6t0").ok();
    scene.host.ip("-6 addr add fe80::1/64 dev v6t0 nodad").ok();
    let more = scan();
    assert!(more >= usize::from(MANY) / 2, "{more}");
}
