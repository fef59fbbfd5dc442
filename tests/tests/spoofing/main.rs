//! Issue 3, line 6, issue 5, line 1, and attacks 6 to 10 and 32: nobody can pretend to be another, on the
//! bridge, on routed ports, or from the one to the other.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0
//!                          ├── port ── eth0 ┌ attacker ┐ raw frames, by root of the namespace
//!                          └── port ── eth0 ┌ victim ┐ a tap that sees every frame
//! ```
//!
//! Each attack is first sent without protection, where it has to arrive, and then under both values of
//! `firewall.ingress`, of which neither switches the protection off. It has not arrived if an honest packet
//! that was sent after it has. Some of what a bridge carries never leaves a routed port, whatever the
//! rules are, for there is no other on its link; where that is so it is said.
#![allow(clippy::expect_used, reason = "a test")]

use std::net::Ipv6Addr;

use v6pod_tests::packet::{
    Extension, IPV6, Load, Route, address_option, frame, marked, multicast_mac,
};
use v6pod_tests::{
    Frames, IN_LAN, LAWS, Law, Neighbours, OUTSIDE_V6, PATIENCE, Ports, Tap, eventually,
    everywhere, require, run, side_by_side,
};

mod headers;

const MARK: &[u8] = b"v6t-attack";
const LAST: &[u8] = b"v6t-honest";

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xbad);
const BROADCAST: [u8; 6] = [0xff; 6];

/// Under the law as it comes, attacker and victim are podman's containers. A port of each kind needs a daemon that
/// is told otherwise in between, and the jungle none at all: there they are namespaces as a container has.
#[track_caller]
fn scene(ports: Ports, law: Law) -> Neighbours {
    let contained = law == Law::Deny && ports != Ports::Mixed;
    if contained { Neighbours::contained(ports, law) } else { Neighbours::on(ports, law) }
}

fn outside() -> Ipv6Addr {
    OUTSIDE_V6.parse().expect("an address")
}

/// Sends the frames from the attacker's interface, and how many of them have been seen by the victim and
/// by the host.
#[track_caller]
fn attack(scene: &Neighbours, frames: &[Vec<u8>]) -> (usize, usize) {
    let bridge = scene.bridge_tap();
    if scene.is_routed() {
        scene.witness();
    }
    scene.victim.tap.drain();
    frames.iter().for_each(|frame| scene.attacker.tap.send(frame));
    // Where it works, an attack may have cut all other ways off.
    let unprotected = scene.law == Law::None && !scene.is_routed();
    let by = if unprotected { BROADCAST } else { scene.gateway_mac() };
    scene.honest(by, scene.victim.address(), LAST);
    let victim: Frames = scene.victim.tap.frames_until(LAST);
    let host = match scene.is_routed() {
        true => scene.witnessed() - 1,
        false => bridge.frames_until(LAST).with(MARK),
    };
    (victim.with(MARK), host)
}

/// Sends the frames, and how many of them have left the host.
#[track_caller]
fn escape(scene: &Neighbours, frames: &[Vec<u8>]) -> usize {
    let tap: Tap = scene.outside_tap();
    frames.iter().for_each(|frame| scene.attacker.tap.send(frame));
    scene.honest(scene.gateway_mac(), outside(), LAST);
    tap.frames_until(LAST).with(MARK)
}

/// To the victim, to the host, and to all.
fn to_all(scene: &Neighbours, from: [u8; 6], packet: &[u8]) -> Vec<Vec<u8>> {
    let to = [scene.victim.mac(), scene.gateway_mac(), multicast_mac(ALL_NODES)];
    to.iter().map(|to| frame(*to, from, IPV6, packet)).collect()
}

/// A router advertisement that makes the sender everybody's router, with a prefix (RFC 4861,
/// sections 4.2 and 4.6.2).
fn router_advertisement(route: &Route, mac: [u8; 6]) -> Load {
    let head = [64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let prefix = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets();
    let lifetimes = [0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0];
    let information = [&[3, 4, 64, 0xc0][..], &lifetimes, &prefix].concat();
    let body = [&head[..], &address_option(1, mac), &information, &marked(MARK)].concat();
    route.icmp(134, 0, &body)
}

#[test]
fn attack_06_router_advertisements_and_redirects_reach_nobody() {
    let _machine = require!(Podman);
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        let (mac, own) = (scene.attacker.mac(), scene.attacker.address());
        let mut frames = Vec::new();
        for source in [LINK_LOCAL, own, scene.gateway()] {
            for destination in [ALL_NODES, scene.victim.address(), scene.gateway()] {
                let route = Route::on_link(source, destination);
                let advertisement = router_advertisement(&route, mac);
                frames.extend(to_all(&scene, mac, &route.carry(&advertisement)));
                // "For the outside, ask me" (RFC 4861, section 4.5).
                let ends = [own.octets(), outside().octets()].concat();
                let body = [&[0; 4][..], &ends, &marked(MARK)].concat();
                let redirect = route.carry(&route.icmp(137, 0, &body));
                frames.extend(to_all(&scene, mac, &redirect));
                // Behind headers that a filter may not look behind (RFC 7113).
                for extension in [Extension::HopByHop, Extension::Destination, Extension::Atomic] {
                    let hidden = router_advertisement(&route, mac).behind(extension);
                    frames.extend(to_all(&scene, mac, &route.carry(&hidden)));
                }
            }
        }
        let (victim, host) = attack(&scene, &frames);
        let routes = scene.host.ip("-6 route show default");
        let taken = routes.ok().contains(scene.attacker.attachment.port.as_str());
        if law == Law::None {
            // From a routed port only the host takes advertisements; what it forwards nobody believes.
            let least = if scene.is_routed() { 1 } else { frames.len() / 3 };
            assert!(victim >= least && host >= frames.len() / 3, "{victim} {host}");
            assert_eq!(taken, scene.is_routed(), "{routes}");
        } else {
            assert_eq!((victim, host, taken), (0, 0, false), "{law:?}");
        }
    });
}

#[test]
fn attack_07_nobody_takes_the_gateways_or_a_neighbours_place() {
    let _machine = require!(Podman);
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        let (mac, own) = (scene.attacker.mac(), scene.attacker.address());
        let (gateway, victim) = (scene.gateway(), scene.victim.address());
        let mut frames = Vec::new();
        for (target, to) in [(gateway, victim), (victim, gateway)] {
            for source in [own, target, LINK_LOCAL] {
                for destination in [to, ALL_NODES] {
                    let route = Route::on_link(source, destination);
                    // Override, and solicited where it is sent to one alone.
                    let flags = if destination == to { 0x60 } else { 0x20 };
                    let about =
                        [&[flags, 0, 0, 0][..], &target.octets(), &address_option(2, mac)].concat();
                    let advertisement = route.icmp(136, 0, &[&about[..], &marked(MARK)].concat());
                    frames.extend(to_all(&scene, mac, &route.carry(&advertisement)));
                    // "Where is … ? And I, the target, am here."
                    let question = [&[0; 4][..], &to.octets(), &address_option(1, mac)].concat();
                    let solicitation = route.icmp(135, 0, &[&question[..], &marked(MARK)].concat());
                    frames.extend(to_all(&scene, mac, &route.carry(&solicitation)));
                }
            }
        }
        // With the victim's Ethernet address, and with that and the victim's address.
        for source in [own, victim] {
            let route = Route::new(source, outside());
            let packet = route.carry(&route.udp(9, 9, MARK));
            frames.push(frame(scene.gateway_mac(), scene.victim.mac(), IPV6, &packet));
        }
        let as_victim = frames.last().expect("it was pushed").clone();
        let (victims, hosts) = attack(&scene, &frames);
        if scene.is_routed() {
            takes_no_place_by_a_routed_port(&scene, (victims, hosts));
            return;
        }
        let (thief, bridge) = (scene.attacker.attachment.mac.to_string(), scene.daemon.bridge());
        let inside = scene.victim.namespace.run("ip", &["-6", "neigh", "show"]);
        let on_host = scene.host.ip(&format!("-6 neigh show {victim} dev {bridge}"));
        let stolen = [inside, on_host].map(|entries| entries.ok().contains(&thief));
        // Where the bridge would send what is for the victim.
        let moved = || {
            let entries = run(scene.host.command("bridge").args(["fdb", "show", "br", &bridge]));
            let at =
                format!("{} dev {}", scene.victim.attachment.mac, scene.attacker.attachment.port);
            entries.ok().contains(&at)
        };
        if law == Law::None {
            assert!(
                victims > 0 && hosts > 0 && stolen == [true; 2],
                "{victims} {hosts} {stolen:?}"
            );
            // An answer of the victim's has moved it back.
            scene.attacker.tap.send(&as_victim);
            eventually(PATIENCE, "the victim's Ethernet address moves", || moved().then_some(()));
        } else {
            // One kind of solicitation is honest: from its own address, for the gateway. It goes to
            // the host, and to the host alone.
            assert!(victims == 0 && hosts <= 4, "{law:?}: {victims} {hosts}");
            assert!(stolen == [false; 2] && !moved(), "{law:?}: {stolen:?}");
            scene.victim.namespace.run("ping", &["-c", "1", "-W", "10", OUTSIDE_V6]).ok();
        }
    });
}

/// What the attacker says of neighbours by a routed port concerns that port alone, even without any
/// protection: there his lies fill the host's table of neighbours, and the victim's entry stays.
#[track_caller]
fn takes_no_place_by_a_routed_port(scene: &Neighbours, seen: (usize, usize)) {
    let port = scene.attacker.attachment.port.as_str();
    let (victim, thief) = (scene.victim.address(), scene.attacker.attachment.mac.to_string());
    let inside = scene.victim.namespace.run("ip", &["-6", "neigh", "show"]);
    assert!(!inside.ok().contains(&thief), "{inside}");
    let on_host = scene.host.ip("-6 neigh show");
    let is_its = |line: &&str| line.starts_with(&format!("{victim} ")) && !line.contains(port);
    let mac = scene.victim.attachment.mac.to_string();
    let its: Vec<_> = on_host.ok().lines().filter(is_its).collect();
    assert!(!its.is_empty() && its.iter().all(|line| line.contains(&mac)), "{on_host}");
    // Everybody who asks for the router is a neighbour, if there is one who answers.
    let own = scene.attacker.address();
    let strangers = (1..100).map(|n| Ipv6Addr::from_bits(own.to_bits() ^ (n << 8)));
    let frames: Vec<_> = strangers
        .map(|stranger| {
            let gateway = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
            let route = Route::on_link(stranger, gateway);
            let option = address_option(1, scene.attacker.mac());
            let question = [&[0; 4][..], &gateway.octets(), &option].concat();
            let packet = route.carry(&route.icmp(135, 0, &[&question[..], &marked(MARK)].concat()));
            frame(scene.gateway_mac(), scene.attacker.mac(), IPV6, &packet)
        })
        .collect();
    let (_, asked) = attack(scene, &frames);
    let entries = scene.host.ip(&format!("-6 neigh show dev {port}")).ok().lines().count();
    if scene.law == Law::None {
        assert!(seen.1 > 0 && asked >= frames.len() && entries >= frames.len(), "{entries}");
    } else {
        // With whose Ethernet address a packet comes from a routed port says nothing, so one of those
        // that went before was honest.
        assert_eq!((seen, asked, entries), ((0, 1), 0, 1), "{:?}", scene.law);
    }
    scene.victim.namespace.run("ping", &["-c", "1", "-W", "10", OUTSIDE_V6]).ok();
}

/// Datagrams with addresses that are not the sender's.
fn spoofed(scene: &Neighbours, sources: &[Ipv6Addr], to: Ipv6Addr) -> Vec<Vec<u8>> {
    let datagram = |source: &Ipv6Addr| {
        let route = Route::new(*source, to);
        let packet = route.carry(&route.udp(9, 9, MARK));
        frame(scene.gateway_mac(), scene.attacker.mac(), IPV6, &packet)
    };
    sources.iter().map(datagram).collect()
}

#[test]
fn attack_08_a_source_that_is_not_the_senders_goes_nowhere() {
    let _machine = require!(Podman);
    let stranger: Ipv6Addr = "2001:db8:bad::1".parse().expect("an address");
    let unused: Ipv6Addr = "2001:db8:1:2:3::dead".parse().expect("an address");
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        let routable = [scene.victim.address(), stranger, unused];
        let others = [scene.service(), LINK_LOCAL, Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST];
        let out = escape(&scene, &spoofed(&scene, &routable, outside()));
        let sources = [&routable[..], &others].concat();
        let mut frames = spoofed(&scene, &sources, scene.victim.address());
        frames.extend(spoofed(&scene, &sources, scene.service()));
        // And past the host, straight to the sibling.
        for source in [scene.attacker.address(), stranger] {
            let route = Route::new(source, scene.victim.address());
            let packet = route.carry(&route.udp(9, 9, MARK));
            frames.push(frame(scene.victim.mac(), scene.attacker.mac(), IPV6, &packet));
        }
        let (victim, host) = attack(&scene, &frames);
        if law == Law::None {
            assert_eq!(out, routable.len());
            // Past the host nothing goes from a routed port, and there is no tap that would show what
            // the host itself refuses.
            let least = if scene.is_routed() {
                (routable.len(), 2 * routable.len())
            } else {
                (4, 2 * sources.len())
            };
            assert!(victim >= least.0 && host >= least.1, "{victim} {host}");
        } else {
            assert_eq!((out, victim, host), (0, 0, 0), "{law:?}");
        }
    });
}

#[test]
fn attack_08_without_the_bridge_table_a_foreign_source_still_goes_nowhere() {
    let _machine = require!(Root);
    let mut scene = Neighbours::under(Law::Allow);
    // Nobody puts it back.
    scene.daemon.kill9();
    scene.without_rules(&["bridge"]);
    let victim = scene.victim.address();
    let mut frames = spoofed(&scene, &[victim, LINK_LOCAL], outside());
    let route = Route::new(victim, outside());
    let packet = route.carry(&route.udp(9, 9, MARK));
    let as_victim = frame(scene.gateway_mac(), scene.victim.mac(), IPV6, &packet);
    let port = scene.attacker.attachment.port.as_str();
    let flags = run(scene.host.command("bridge").args(["-d", "link", "show", "dev", port]));
    let locked = flags.ok().contains("locked on");
    if locked {
        frames.push(as_victim.clone());
    }
    assert_eq!(escape(&scene, &frames), 0);
    scene.without_rules(&["inet"]);
    assert_eq!(escape(&scene, &spoofed(&scene, &[victim], outside())), 1);
    // What a locked port stops (Linux 5.18), it stops without any rules.
    assert_eq!(escape(&scene, &[as_victim]), usize::from(!locked));
}

#[test]
fn attack_09_an_established_flow_lets_no_other_sender_in() {
    let _machine = require!(Podman);
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        let victim = scene.victim.address();
        let outside_tap = scene.outside_tap();
        // The victim speaks, the outside answers: conntrack knows the flow.
        let route = Route::new(victim, outside());
        let asked = route.carry(&route.udp(4000, 5000, b"v6t-question"));
        scene.victim.tap.send(&frame(scene.gateway_mac(), scene.victim.mac(), IPV6, &asked));
        outside_tap.frames_until(b"v6t-question");
        let back = Route::new(outside(), victim);
        let answer = back.carry(&back.udp(5000, 4000, b"v6t-answer"));
        let uplink = scene.host_tap("up0").mac();
        scene.victim.tap.drain();
        outside_tap.send(&frame(uplink, outside_tap.mac(), IPV6, &answer));
        scene.victim.tap.frames_until(b"v6t-answer");
        // The attacker speaks as the victim, within that flow.
        let packet = route.carry(&route.udp(4000, 5000, MARK));
        let frames = [frame(scene.gateway_mac(), scene.attacker.mac(), IPV6, &packet)];
        let expected = usize::from(law == Law::None);
        assert_eq!(escape(&scene, &frames), expected, "{law:?}");
    });
}

#[test]
fn attack_32_multicast_and_broadcast_reach_no_sibling() {
    const EACH: usize = 100;
    let _machine = require!(Podman);
    let kinds = [IPV6, 0x0800, 0x0806, 0x8100, 0x88cc, 0x1234];
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        let (mac, own) = (scene.attacker.mac(), scene.attacker.address());
        let route = Route::new(own, ALL_NODES);
        let mut frames = Vec::new();
        for kind in kinds {
            let packet = route.carry(&route.udp(9, 9, MARK));
            for to in [BROADCAST, multicast_mac(ALL_NODES), [0x01, 0, 0x5e, 0, 0, 1]] {
                frames.extend((0..EACH).map(|_| frame(to, mac, kind, &packet)));
            }
        }
        let (victim, host) = attack(&scene, &frames);
        if law == Law::None {
            // From a routed port it all ends at the host, which has the multicast forwarded nowhere.
            let least = if scene.is_routed() { 0 } else { EACH * kinds.len() };
            assert!(victim >= least && host >= EACH, "{victim} {host}");
        } else {
            assert_eq!((victim, host), (0, 0), "{law:?}");
        }
    });
}

/// A question of ARP's: who has this address? Asked by one who has none yet (RFC 5227).
fn arp_question(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    frame(BROADCAST, mac, 0x0806, &[&head[..], &mac, &[0; 4], &[0; 6], &address].concat())
}

/// Ethernet's type, and what every answer of ARP's begins with.
const ARP_ANSWER: &[u8] = &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2];

#[test]
fn attack_16_nobody_answers_arp_or_takes_ipv4_by_a_port() {
    let _machine = require!(Podman);
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        if scene.is_routed() {
            scene.witness();
        }
        let (tap, mac) = (&scene.attacker.tap, scene.attacker.mac());
        let bridge = scene.bridge_tap();
        tap.drain();
        // The host has this one on its uplink.
        tap.send(&arp_question(mac, [198, 51, 100, 2]));
        // An echo request over IPv4 to it, without a checksum: whoever looks at it has got it.
        let head = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
        let ends = [192, 0, 2, 9, 198, 51, 100, 2];
        let mark: &[u8] = b"v6t-ipv4";
        let packet = [&head[..], &ends, mark].concat();
        (0..10).for_each(|_| tap.send(&frame(scene.gateway_mac(), mac, 0x0800, &packet)));
        scene.honest(scene.gateway_mac(), scene.victim.address(), LAST);
        // The victim's answer comes after the host's.
        let answered = tap.frames_until(LAST).with(ARP_ANSWER);
        let taken = match scene.is_routed() {
            // With the honest one.
            true => scene.witnessed() - 1,
            false => bridge.frames_until(LAST).with(mark),
        };
        match law {
            // What has no checksum the host's stack looks at no further.
            Law::None => assert_eq!(answered, 1),
            Law::Deny | Law::Allow => assert_eq!((answered, taken), (0, 0), "{law:?}"),
        }
    });
}

#[test]
fn attack_06_the_host_sends_no_redirects() {
    let _machine = require!(Podman);
    side_by_side(everywhere([Law::None, Law::Deny]), |(ports, law)| {
        let scene = scene(ports, law);
        let own = scene.attacker.address();
        // By the way it came: to itself, or on the bridge to the neighbour.
        let to = if scene.is_routed() { own } else { scene.victim.address() };
        // Linux needs an address of the link to send one from. Should there be one, the rules stand.
        let link = if scene.is_routed() { "PORT" } else { "v6t0" };
        let link = link.replace("PORT", scene.attacker.attachment.port.as_str());
        scene.host.ip(&format!("-6 addr replace fe80::1/64 dev {link} nodad")).ok();
        let tap = &scene.attacker.tap;
        tap.drain();
        let route = Route::new(own, to);
        let packet = route.carry(&route.udp(9, 9, MARK));
        tap.send(&frame(scene.gateway_mac(), scene.attacker.mac(), IPV6, &packet));
        scene.honest(scene.gateway_mac(), scene.service(), LAST);
        let frames = tap.frames_until(LAST);
        // Reserved, where to, what for (RFC 4861, section 4.5): on the link they are the same.
        let redirects = frames.with(&[&[0; 4][..], &to.octets(), &to.octets()].concat());
        assert_eq!(redirects > 0, law == Law::None, "{ports:?} {law:?}");
    });
}

#[test]
fn attack_29_what_an_owner_changes_inside_changes_nothing_outside() {
    let _machine = require!(Podman);
    side_by_side(everywhere([Law::None, Law::Deny]), |(ports, law)| {
        let scene = scene(ports, law);
        let victim = scene.victim.address();
        let inside = format!(
            "set -e
             ip -6 addr add {victim}/128 dev eth0 nodad
             ip -6 addr add fe80::1:2/64 dev eth0 nodad
             ip link set eth0 promisc on allmulticast on
             cd /proc/sys/net/ipv6/conf
             echo 1 >all/forwarding; echo 2 >eth0/accept_ra; echo 1 >eth0/proxy_ndp
             ip -6 neigh add proxy {victim} dev eth0
             ip link set eth0 down; ip link set eth0 name stolen; ip link set stolen up
             ip -6 addr add {victim}/128 dev stolen nodad
             ip -6 neigh replace fe80::1 lladdr {gateway} dev stolen nud permanent
             ip -6 neigh replace {gateway6} lladdr {gateway} dev stolen nud permanent
             ip -6 route add {gateway6} dev stolen
             ip -6 route add default via {gateway6} dev stolen",
            gateway = mac_text(scene.gateway_mac()),
            gateway6 = scene.attacker.attachment.gateway,
        );
        scene.attacker.namespace.run("sh", &["-c", &inside]).ok();
        let tap = scene.outside_tap();
        let (as_victim, pattern) = (victim.to_string(), "7636742d6c6965");
        let ping =
            ["-c", "3", "-i", "0.05", "-W", "1", "-p", pattern, "-I", &as_victim, OUTSIDE_V6];
        scene.attacker.namespace.run("ping", &ping);
        // The attacker's own tap has heard that its interface went down.
        let route = Route::new(victim, outside());
        let last = route.carry(&route.echo(LAST));
        scene.victim.tap.send(&frame(scene.gateway_mac(), scene.victim.mac(), IPV6, &last));
        let lies = tap.frames_until(LAST).with(b"v6t-liev6t-lie");
        assert_eq!(lies > 0, law == Law::None, "{ports:?} {law:?}: {lies}");
        if law == Law::Deny {
            // Who it lies about has what it had.
            scene.victim.namespace.run("ping", &["-c", "1", "-W", "10", OUTSIDE_V6]).ok();
            run(scene.host.outside("ping").args(["-c", "1", "-W", "10", &victim.to_string()])).ok();
        }
    });
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Threat 15: what the daemon has forward, it has forward for containers alone.
#[test]
fn attack_15_no_other_interface_of_the_host_forwards() {
    let _machine = require!(Root);
    side_by_side([Ports::Bridge, Ports::Routed], |ports| {
        let scene = Neighbours::on(ports, Law::Allow);
        let read = |what: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{what}");
            run(scene.host.command("cat").arg(path)).stdout.trim().to_owned()
        };
        if read("up0/force_forwarding").is_empty() {
            // Linux before 6.17 has one switch for all: docs/known-issues.md says so.
            assert_eq!(read("all/forwarding"), "1");
            return;
        }
        let lan = scene.host.has_a_lan();
        let victim = scene.victim.address().to_string();
        let reaches = |to: &str| lan.run("ping", &["-c", "1", "-W", "1", to]).status.success();
        eventually(PATIENCE, "the lan reaches the host", || reaches(IN_LAN[1]).then_some(()));
        assert_eq!([reaches(OUTSIDE_V6), reaches(&victim)], [false; 2], "{ports:?}");
        // The case bites.
        run(scene
            .host
            .command("sh")
            .args(["-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"]))
        .ok();
        assert_eq!([reaches(OUTSIDE_V6), reaches(&victim)], [true; 2], "{ports:?}");
    });
}

#[test]
fn attack_16_no_port_and_no_bridge_has_an_address_of_its_own_making() {
    let _machine = require!(Root);
    let scene = Neighbours::on(Ports::Mixed, Law::Deny);
    let on = |link: &str| {
        let shown = scene.host.ip(&format!("-6 -o addr show dev {link}"));
        shown.ok().lines().map(|line| line.split_whitespace().nth(3).map(str::to_owned)).collect()
    };
    let addresses = |link: &str| -> Vec<Option<String>> { on(link) };
    // What a bridge does by itself.
    scene.host.ip("link add v6tplain type bridge").ok();
    scene.host.ip("link add v6tp0 type veth peer name v6tp1").ok();
    scene.host.ip("link set v6tp0 master v6tplain").ok();
    for link in ["v6tplain", "v6tp0", "v6tp1"] {
        scene.host.ip(&format!("link set {link} up")).ok();
    }
    eventually(PATIENCE, "a plain bridge gives itself an address", || {
        (!addresses("v6tplain").is_empty()).then_some(())
    });
    for attached in [&scene.victim, &scene.attacker] {
        assert_eq!(addresses(attached.attachment.port.as_str()), []);
    }
    // The gateway's and the resolver's, and nothing that Linux or anybody else has put there.
    let resolver = scene.daemon.status().resolver.expect("names are answered for").address;
    let mut given = [scene.service(), resolver].map(|address| Some(format!("{address}/128")));
    let mut there = addresses(&scene.daemon.bridge());
    given.sort();
    there.sort();
    assert_eq!(there, given);
}
