//! What a packet's headers say, and what they hide.

use std::net::Ipv6Addr;

use v6pod_tests::packet::{Extension, IPV6, Load, Route, frame, multicast_mac};
use v6pod_tests::{LAWS, Law, Neighbours, everywhere, require, side_by_side};

use super::{ALL_NODES, LAST, LINK_LOCAL, MARK, attack, outside, scene};

#[test]
fn attack_10_no_header_hides_a_closed_port() {
    let _machine = require!(Podman);
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        let route = Route::new(scene.attacker.address(), scene.victim.address());
        let send = |loads: &[Load]| -> usize {
            let frames: Vec<_> = loads
                .iter()
                .map(|load| route.carry(load))
                .map(|packet| frame(scene.gateway_mac(), scene.attacker.mac(), IPV6, &packet))
                .collect();
            attack(&scene, &frames).0
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
    });
}

/// The frame with a tag (IEEE 802.1Q).
fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    let (ends, rest) = frame.split_at(12);
    [ends, &0x8100_u16.to_be_bytes(), &tag.to_be_bytes(), rest].concat()
}

/// A frame that no rule may let in.
struct Wrong {
    /// What is wrong with it.
    what: &'static str,
    frame: Vec<u8>,
    /// Whether Linux itself refuses it at a routed port.
    refused: bool,
}

/// A segment that asks for a connection with the victim, and such with one thing wrong.
fn segments(scene: &Neighbours) -> (Vec<u8>, Vec<Wrong>) {
    let (own, victim) = (scene.attacker.address(), scene.victim.address());
    let (mac, router) = (scene.attacker.mac(), scene.gateway_mac());
    let packet = |source: Ipv6Addr, destination: Ipv6Addr| {
        let route = Route::new(source, destination);
        route.carry(&route.syn(9, 9, MARK))
    };
    let framed = |to, from, packet: &[u8]| frame(to, from, IPV6, packet);
    let right = framed(router, mac, &packet(own, victim));
    let mut wrong: Vec<_> = [
        ("as the outside", outside(), victim, false),
        ("as the victim", victim, outside(), false),
        ("to link-local", own, LINK_LOCAL, false),
        ("to multicast", own, ALL_NODES, false),
        ("to loopback", own, Ipv6Addr::LOCALHOST, true),
        ("to nobody", own, Ipv6Addr::UNSPECIFIED, false),
    ]
    .map(|(what, from, to, refused)| Wrong {
        what,
        frame: framed(router, mac, &packet(from, to)),
        refused,
    })
    .into();
    // By a routed port it says nothing to whom or by whom a frame is; a tag is ignored if it names no network.
    let what = "in a network of its own";
    wrong.push(Wrong { what, frame: tagged(&right, 5), refused: true });
    if !scene.is_routed() {
        let (packet, others) = (packet(own, victim), scene.victim.mac());
        let more = [
            ("with a priority", tagged(&right, 0)),
            ("with the victim's Ethernet address", framed(router, others, &packet)),
            ("straight to the victim", framed(others, mac, &packet)),
            ("to a group", framed(multicast_mac(ALL_NODES), mac, &packet)),
        ];
        wrong.extend(more.map(|(what, frame)| Wrong { what, frame, refused: false }));
    }
    (right, wrong)
}

/// Most packets pass by one rule, which has to ask all that the others ask.
#[test]
fn attack_08_a_segment_with_one_thing_wrong_is_let_in_by_no_rule() {
    let _machine = require!(Podman);
    side_by_side(everywhere(LAWS), |(ports, law)| {
        let scene = scene(ports, law);
        let (right, wrong) = segments(&scene);
        for Wrong { what, frame, refused } in wrong {
            let seen = attack(&scene, &[frame]);
            if law == Law::None {
                let refused = refused && scene.is_routed();
                assert_eq!(seen == (0, 0), refused, "{what}: {seen:?}");
            } else {
                assert_eq!(seen, (0, 0), "{what} {law:?}");
            }
        }
        let (victim, host) = attack(&scene, &[right]);
        assert_eq!((victim, host > 0), (usize::from(law != Law::Deny), true), "{law:?}");
    });
}

/// Who answers what seems to be a neighbour's question is let through to that neighbour, as in a flow of its own.
#[test]
fn attack_08_nobody_outside_sends_as_a_container() {
    let _machine = require!(Podman);
    let unused: Ipv6Addr = "2001:db8:1:2:3::dead".parse().expect("an address");
    side_by_side(everywhere([Law::None, Law::Allow]), |(ports, law)| {
        let scene = scene(ports, law);
        let (tap, router) = (scene.outside_tap(), scene.host_tap("up0").mac());
        let (to, inside) = (scene.attacker.address(), &scene.attacker.tap);
        inside.drain();
        let said = |source: Ipv6Addr, load: &dyn Fn(&Route) -> Load| {
            let route = Route::new(source, to);
            tap.send(&frame(router, tap.mac(), IPV6, &route.carry(&load(&route))));
        };
        let seen = |sources: &[Ipv6Addr]| {
            for source in sources {
                said(*source, &|route| route.udp(9, 9, MARK));
                said(*source, &|route| route.syn(9, 9, MARK));
            }
            said(outside(), &|route| route.echo(LAST));
            inside.frames_until(LAST).with(MARK)
        };
        assert_eq!(seen(&[outside()]), 2, "{law:?}");
        let expected = if law == Law::None { 4 } else { 0 };
        assert_eq!(seen(&[scene.victim.address(), unused]), expected, "{law:?}");
    });
}
