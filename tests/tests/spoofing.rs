//! Issue 3, line 6, and attacks 6 to 10 and 32: nobody can pretend to be another.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0
//!                          ├── port ── eth0 ┌ attacker ┐ raw frames, by root of the namespace
//!                          └── port ── eth0 ┌ victim ┐ a tap that sees every frame
//! ```
//!
//! Each attack is first sent on a bridge without protection, where it has to arrive, and then under
//! both values of `firewall.ingress`, of which neither switches the protection off. It has not
//! arrived if an honest packet that was sent after it has.
#![allow(clippy::expect_used, reason = "a test")]

use std::net::Ipv6Addr;

use v6pod_tests::packet::{
    Extension, IPV6, Load, Route, address_option, frame, marked, multicast_mac,
};
use v6pod_tests::{
    Frames, LAWS, Law, Neighbours, OUTSIDE_V6, PATIENCE, Tap, eventually, require, run,
};

const MARK: &[u8] = b"v6t-attack";
const LAST: &[u8] = b"v6t-honest";

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xbad);
const BROADCAST: [u8; 6] = [0xff; 6];

fn outside() -> Ipv6Addr {
    OUTSIDE_V6.parse().expect("an address")
}

/// What the victim and the host have seen of the frames.
struct Seen {
    victim: Frames,
    host: Frames,
}

impl Seen {
    /// How often the mark was seen by the victim and by the host.
    fn marks(&self) -> (usize, usize) {
        (self.victim.with(MARK), self.host.with(MARK))
    }
}

/// Sends the frames from the attacker's interface, and what came of them.
#[track_caller]
fn attack(scene: &Neighbours, frames: &[Vec<u8>]) -> Seen {
    let bridge = scene.bridge_tap();
    scene.victim.tap.drain();
    frames.iter().for_each(|frame| scene.attacker.tap.send(frame));
    // Where it works, an attack may have cut all other ways off.
    let by = if scene.law == Law::None { BROADCAST } else { scene.gateway_mac() };
    scene.honest(by, scene.victim.address(), LAST);
    Seen { victim: scene.victim.tap.frames_until(LAST), host: bridge.frames_until(LAST) }
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
fn everywhere(scene: &Neighbours, from: [u8; 6], packet: &[u8]) -> Vec<Vec<u8>> {
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
    let _machine = require!(Root);
    for law in LAWS {
        let scene = Neighbours::under(law);
        let (mac, own) = (scene.attacker.mac(), scene.attacker.address());
        let mut frames = Vec::new();
        for source in [LINK_LOCAL, own, scene.gateway()] {
            for destination in [ALL_NODES, scene.victim.address(), scene.gateway()] {
                let route = Route::on_link(source, destination);
                let advertisement = router_advertisement(&route, mac);
                frames.extend(everywhere(&scene, mac, &route.carry(&advertisement)));
                // "For the outside, ask me" (RFC 4861, section 4.5).
                let ends = [own.octets(), outside().octets()].concat();
                let body = [&[0; 4][..], &ends, &marked(MARK)].concat();
                let redirect = route.carry(&route.icmp(137, 0, &body));
                frames.extend(everywhere(&scene, mac, &redirect));
                // Behind headers that a filter may not look behind (RFC 7113).
                for extension in [Extension::HopByHop, Extension::Destination, Extension::Atomic] {
                    let hidden = router_advertisement(&route, mac).behind(extension);
                    frames.extend(everywhere(&scene, mac, &route.carry(&hidden)));
                }
            }
        }
        let (victim, host) = attack(&scene, &frames).marks();
        if law == Law::None {
            assert!(victim >= frames.len() / 3 && host >= frames.len() / 3, "{victim} {host}");
        } else {
            assert_eq!((victim, host), (0, 0), "{law:?}");
        }
    }
}

#[test]
fn attack_07_nobody_takes_the_gateways_or_a_neighbours_place() {
    let _machine = require!(Root);
    for law in LAWS {
        let scene = Neighbours::under(law);
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
                    frames.extend(everywhere(&scene, mac, &route.carry(&advertisement)));
                    // "Where is … ? And I, the target, am here."
                    let question = [&[0; 4][..], &to.octets(), &address_option(1, mac)].concat();
                    let solicitation = route.icmp(135, 0, &[&question[..], &marked(MARK)].concat());
                    frames.extend(everywhere(&scene, mac, &route.carry(&solicitation)));
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
        let seen = attack(&scene, &frames);
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
            let (victims, hosts) = seen.marks();
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
            let (victims, hosts) = seen.marks();
            assert!(victims == 0 && hosts <= 4, "{law:?}: {victims} {hosts}");
            assert!(stolen == [false; 2] && !moved(), "{law:?}: {stolen:?}");
            scene.victim.namespace.run("ping", &["-c", "1", "-W", "10", OUTSIDE_V6]).ok();
        }
    }
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
    let _machine = require!(Root);
    let stranger: Ipv6Addr = "2001:db8:bad::1".parse().expect("an address");
    let unused: Ipv6Addr = "2001:db8:1:2:3::dead".parse().expect("an address");
    for law in LAWS {
        let scene = Neighbours::under(law);
        let routable = [scene.victim.address(), stranger, unused];
        let others = [scene.gateway(), LINK_LOCAL, Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST];
        let out = escape(&scene, &spoofed(&scene, &routable, outside()));
        let sources = [&routable[..], &others].concat();
        let mut frames = spoofed(&scene, &sources, scene.victim.address());
        frames.extend(spoofed(&scene, &sources, scene.gateway()));
        // And past the host, straight to the sibling.
        for source in [scene.attacker.address(), stranger] {
            let route = Route::new(source, scene.victim.address());
            let packet = route.carry(&route.udp(9, 9, MARK));
            frames.push(frame(scene.victim.mac(), scene.attacker.mac(), IPV6, &packet));
        }
        let (victim, host) = attack(&scene, &frames).marks();
        if law == Law::None {
            assert_eq!(out, routable.len());
            assert!(victim >= 4 && host >= 2 * sources.len(), "{victim} {host}");
        } else {
            assert_eq!((out, victim, host), (0, 0, 0), "{law:?}");
        }
    }
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
    let _machine = require!(Root);
    for law in LAWS {
        let scene = Neighbours::under(law);
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
    }
}

#[test]
fn attack_10_no_header_hides_a_closed_port() {
    let _machine = require!(Root);
    for law in LAWS {
        let scene = Neighbours::under(law);
        let route = Route::new(scene.attacker.address(), scene.victim.address());
        let send = |loads: &[Load]| -> usize {
            let frames: Vec<_> = loads
                .iter()
                .map(|load| route.carry(load))
                .map(|packet| frame(scene.gateway_mac(), scene.attacker.mac(), IPV6, &packet))
                .collect();
            attack(&scene, &frames).marks().0
        };
        let udp = || route.udp(9, 9, &[&[0; 30], MARK].concat());
        let syn = || route.syn(9, 9, MARK);
        let plain = send(&[udp(), syn()]);
        let optioned = send(&[udp().behind(Extension::Destination)]);
        let atomic = send(&[udp().behind(Extension::Atomic)]);
        // The first part ends before the ports: in the options, in TCP's header.
        let tiny = send(&udp().behind(Extension::Destination).cut(8));
        let tiny_tcp = send(&syn().behind(Extension::Destination).cut(8));
        let split = send(&udp().cut(16));
        let hop_by_hop = send(&[udp().behind(Extension::HopByHop)]);
        let routing = send(&[udp().behind(Extension::Routing)]);
        // A second part without a first.
        let [_, orphan] = udp().cut(8);
        let orphan = send(&[orphan]);
        let seen = [plain, optioned, atomic, split, tiny, tiny_tcp, hop_by_hop, routing, orphan];
        match law {
            // What the kernel itself refuses where anybody defragments is not asked.
            Law::None => assert!(seen[..8].iter().all(|count| *count > 0), "{seen:?}"),
            Law::Deny => assert_eq!(seen, [0; 9]),
            // Open ports are open; what hides them is refused all the same, but for the parts that
            // hide nothing and find no other to be one packet with.
            Law::Allow => {
                assert_eq!(seen[..3], [2, 1, 1], "{seen:?}");
                assert_eq!((hop_by_hop, routing), (0, 0), "{seen:?}");
            }
        }
        // An honest large packet in parts arrives.
        let large = ["-c", "1", "-W", "10", "-s", "4000", &scene.victim.address().to_string()];
        scene.attacker.namespace.run("ping", &large).ok();
    }
}

#[test]
fn attack_32_multicast_and_broadcast_reach_no_sibling() {
    const EACH: usize = 100;
    let _machine = require!(Root);
    let kinds = [IPV6, 0x0800, 0x0806, 0x8100, 0x88cc, 0x1234];
    for law in LAWS {
        let scene = Neighbours::under(law);
        let (mac, own) = (scene.attacker.mac(), scene.attacker.address());
        let route = Route::new(own, ALL_NODES);
        let mut frames = Vec::new();
        for kind in kinds {
            let packet = route.carry(&route.udp(9, 9, MARK));
            for to in [BROADCAST, multicast_mac(ALL_NODES), [0x01, 0, 0x5e, 0, 0, 1]] {
                frames.extend((0..EACH).map(|_| frame(to, mac, kind, &packet)));
            }
        }
        let (victim, host) = attack(&scene, &frames).marks();
        if law == Law::None {
            assert!(victim >= EACH * kinds.len() && host >= EACH, "{victim} {host}");
        } else {
            assert_eq!((victim, host), (0, 0), "{law:?}");
        }
    }
}

#[test]
fn attack_16_no_port_and_no_bridge_has_an_address_of_its_own_making() {
    let _machine = require!(Root);
    let scene = Neighbours::under(Law::Deny);
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
    assert_eq!(addresses(scene.victim.attachment.port.as_str()), []);
    let gateway = Some(format!("{}/128", scene.gateway()));
    assert_eq!(addresses(&scene.daemon.bridge()), [gateway]);
}
