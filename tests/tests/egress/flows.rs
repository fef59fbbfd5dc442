//! How much of the machine's memory of flows one container holds: attack 25.

use std::net::Ipv6Addr;
use std::ops::Range;
use std::time::Duration;

use v6pod_proto::Mode;
use v6pod_tests::packet::{ACK, IPV6, Load, Route, SYN, frame};
use v6pod_tests::{Attached, Flow, PATIENCE, Server, Tap, eventually, require, run};

use crate::MARK;
use crate::place::{MODES, Place, outside, reached, tcp, udp};

/// Sends this many datagrams, each a flow of its own, and one of a flow that is known behind them.
fn flood(tap: &Tap, by: [u8; 6], from: [u8; 6], route: &Route, to: u16, count: u16) {
    for port in 0..count {
        tap.send(&frame(by, from, IPV6, &route.carry(&route.udp(10_000 + port, to, MARK))));
    }
}

#[test]
fn attack_25_a_container_holds_so_many_flows_and_others_go_on() {
    const LIMIT: usize = 300;
    const FLOOD: u16 = 3000;
    let _machine = require!(Root);
    for (mode, limit) in MODES.into_iter().flat_map(|mode| [0, LIMIT].map(|limit| (mode, limit))) {
        let place = Place::with(mode, &format!("[limits]\nflows = {limit}\n"));
        let outside_ns = place.outside();
        let _server = Server::start(&outside_ns, &[7000]);
        let attacker = place.container(&[("v6pod.ingress", "udp/90,tcp/91")]);
        let victim = place.container(&[("v6pod.ingress", "tcp/90,udp/90")]);
        let networks = [&attacker, &victim].map(|a| a.namespace.network());
        let _own = Server::start(&networks[1], &[90]);
        let _its = Server::start(&networks[0], &[91]);
        let mut goes_on = [
            tcp(&networks[0], (outside(), 7000)),
            udp(&networks[0], (outside(), 7000)),
            tcp(&outside_ns, (attacker.address(), 91)),
            tcp(&networks[1], (outside(), 7000)),
        ];
        let (gateway, out) = (place.gateway_mac(), place.outside_tap());
        let uplink = place.host_tap("up0").mac();
        let of = |to| Route::new(attacker.address(), to);

        // To the outside, to the host, to a neighbour.
        for to in [outside(), place.service(), victim.address()] {
            flood(&attacker.tap, gateway, attacker.mac(), &of(to), 90, FLOOD / 3);
        }
        let begun = eventually(PATIENCE, "the flood is over", || {
            let before = place.flows(attacker.address());
            let frames = out.frames_within(Duration::from_millis(300)).with(MARK);
            (frames == 0).then_some(before)
        });
        if limit == 0 {
            assert!(begun >= usize::from(FLOOD), "{begun}");
            continue;
        }
        // Its own and those that others began with it are counted apart.
        assert!((LIMIT..LIMIT + 20).contains(&begun), "{begun}");
        // Towards an open port of it, from outside.
        let inwards = Route::new(outside(), attacker.address());
        flood(&out, uplink, out.mac(), &inwards, 90, FLOOD);
        let all = eventually(PATIENCE, "the flood is over", || {
            let before = place.flows(attacker.address());
            attacker.tap.drain();
            let frames = attacker.tap.frames_within(Duration::from_millis(300));
            (frames.with(MARK) == 0).then_some(before)
        });
        assert!((2 * LIMIT..2 * LIMIT + 20).contains(&all), "{all}");
        assert!(Flow::tcp(&networks[0], (outside(), 7000)).is_none(), "it has as many as it may");
        eventually(PATIENCE, "the metrics have one container, for either reason", || {
            flood(&attacker.tap, gateway, attacker.mac(), &of(outside()), 90, FLOOD);
            flood(&out, uplink, out.mac(), &inwards, 90, FLOOD);
            (["begun", "offered"].map(|which| place.at_limit(which)) == [1, 1]).then_some(())
        });
        // What it had goes on, and others have their own.
        assert_eq!(Flow::answered(&mut goes_on), [true; 4]);
        let seen = reached(&networks[1], &[(outside(), 7000)]);
        assert_eq!(seen.len(), 2);
        assert_eq!(reached(&outside_ns, &[(victim.address(), 90)]).len(), 2);
    }
}

#[test]
fn a_flood_at_an_open_port_leaves_the_containers_own_way_out() {
    let _machine = require!(Root);
    for mode in MODES {
        let place = Place::with(mode, "[limits]\nflows = 100\n");
        let _server = Server::start(&place.outside(), &[7000]);
        let victim = place.container(&[("v6pod.ingress", "udp/90")]);
        let (out, uplink) = (place.outside_tap(), place.host_tap("up0").mac());
        let inwards = Route::new(outside(), victim.address());
        flood(&out, uplink, out.mac(), &inwards, 90, 1000);
        eventually(PATIENCE, "it is full", || (place.flows(victim.address()) >= 100).then_some(()));
        assert_eq!(reached(&victim.namespace.network(), &[(outside(), 7000)]).len(), 2);
    }
}

/// Both ends of connections that conntrack believes in, and no stack knows of.
struct Accomplices<'a> {
    attacker: &'a Attached,
    out: Tap,
    gateway: [u8; 6],
    uplink: [u8; 6],
}

impl<'a> Accomplices<'a> {
    #[track_caller]
    fn of(place: &Place, attacker: &'a Attached) -> Self {
        // Neither end's stack answers what it does not know.
        attacker.namespace.run("ip", &["-6", "address", "flush", "dev", "eth0"]).ok();
        let unknown = ["-6", "route", "add", "blackhole", "2001:db8:fffe::/64"];
        run(place.host.outside("ip").args(unknown)).ok();
        let (out, gateway) = (place.outside_tap(), place.gateway_mac());
        Self { attacker, out, gateway, uplink: place.host_tap("up0").mac() }
    }

    /// Has these connections come about, as far as the host lets them.
    fn connect(&self, all: Range<u32>) {
        // No more on the way than a processor's queue holds.
        for first in all.clone().step_by(200) {
            let some = first..all.end.min(first + 200);
            some.clone()
                .for_each(|number| self.send(number, |way, from, to| way.syn(from, to, &[])));
            for number in some.clone() {
                let (way, from) = self.way(number);
                let way = Route::new(way.destination, way.source);
                let answer = way.segment(443, from, SYN | ACK, [1000, 2]);
                let packet = way.carry(&answer);
                self.out.send(&frame(self.uplink, self.out.mac(), IPV6, &packet));
            }
            some.for_each(|number| {
                self.send(number, |way, from, to| way.segment(from, to, ACK, [2, 1001]));
            });
        }
    }

    fn send(&self, number: u32, segment: impl Fn(&Route, u16, u16) -> Load) {
        let (way, from) = self.way(number);
        let packet = way.carry(&segment(&way, from, 443));
        self.attacker.tap.send(&frame(self.gateway, self.attacker.mac(), IPV6, &packet));
    }

    /// Between whom, and from which port.
    fn way(&self, number: u32) -> (Route, u16) {
        const PORTS: u32 = 60_000;

        let last = u16::try_from(1 + number / PORTS).expect("not so many");
        let peer = Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, last);
        let from = u16::try_from(1024 + number % PORTS).expect("a port");
        (Route::new(self.attacker.address(), peer), from)
    }
}

/// Without a limit one container takes all of it, and nobody begins anything any more, not the host either.
#[test]
fn attack_25_one_containers_connections_are_not_the_end_of_everybody_elses() {
    let _machine = require!(Root);
    for (limit, tables) in [(None, "[limits]\nflows = 0\n"), (Some(16_384), "")] {
        let place = Place::with(Mode::Bridge, tables);
        let (outside_ns, host) = (place.outside(), place.host());
        let _server = Server::start(&outside_ns, &[7000]);
        let open = [("v6pod.ingress", "tcp/90,udp/90")];
        let victim = Attached::asking(&place.daemon, &place.users[1], &open);
        let network = victim.namespace.network();
        let _own = Server::start(&network, &[90]);
        let mut goes_on =
            [tcp(&network, (outside(), 7000)), tcp(&outside_ns, (victim.address(), 90))];
        let begin = || {
            let ways = [
                (&network, (outside(), 7000)),
                (&outside_ns, (victim.address(), 90)),
                (&host, (outside(), 7000)),
            ];
            ways.map(|(from, to)| reached(from, &[to]).len())
        };
        assert_eq!(begin(), [2; 3]);
        let attacker = place.container(&[]);
        let accomplices = Accomplices::of(&place, &attacker);
        let room = place.number("nf_conntrack_max");
        accomplices.connect(0..room + room / 20);
        let held = place.number("nf_conntrack_count");
        match limit {
            None => {
                assert!(held > room - room / 100, "{held} of {room}");
                assert!(begin().iter().sum::<usize>() < 6);
            }
            Some(limit) => {
                assert!((limit..limit + 100).contains(&held), "{held}");
                assert_eq!(begin(), [2; 3]);
            }
        }
        // What others had goes on, and who comes is attached, in either case.
        assert_eq!(Flow::answered(&mut goes_on), [true; 2]);
        drop(Attached::new(&place.daemon, &place.users[1]));
    }
}

#[test]
fn connections_that_are_over_do_not_count() {
    const LIMIT: usize = 50;
    let _machine = require!(Root);
    for mode in MODES {
        let place = Place::with(mode, &format!("[limits]\nflows = {LIMIT}\n"));
        let outside_ns = place.outside();
        let _server = Server::start(&outside_ns, &[7000]);
        let container = place.container(&[("v6pod.ingress", "tcp/90")]);
        let network = container.namespace.network();
        let _own = Server::start(&network, &[90]);
        for (from, to) in [(&network, (outside(), 7000)), (&outside_ns, (container.address(), 90))]
        {
            let before = place.flows(container.address());
            for _ in 0..3 * LIMIT {
                assert!(tcp(from, to).is_answered());
            }
            let remembered = place.flows(container.address()) - before;
            assert!(remembered >= 2 * LIMIT, "{remembered}");
            // Those that are not, do.
            let open: Vec<_> = (0..2 * LIMIT).map_while(|_| Flow::tcp(from, to)).collect();
            assert!((LIMIT - 5..=LIMIT).contains(&open.len()), "{}", open.len());
        }
    }
}

#[test]
fn a_limit_that_is_changed_is_in_force_for_what_begins_from_then_on() {
    let _machine = require!(Root);
    for mode in MODES {
        let limit = |flows: usize| format!("[limits]\nflows = {flows}\n");
        let mut place = Place::with(mode, &limit(300));
        // They last as long as the test.
        let longer = "echo 3600 >/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
        run(place.host.command("sh").args(["-c", longer])).ok();
        let container = place.container(&[]);
        let gateway = place.gateway_mac();
        let route = Route::new(container.address(), outside());
        // What it holds when it begins no more.
        let held = |place: &Place, to: u16, least: usize| {
            eventually(PATIENCE, "it has as many as it may", || {
                flood(&container.tap, gateway, container.mac(), &route, to, 1000);
                (place.flows(container.address()) >= least).then_some(())
            });
            flood(&container.tap, gateway, container.mac(), &route, to, 1000);
            place.flows(container.address())
        };
        let about = |flows: usize| flows..flows + 20;
        assert!(about(300).contains(&held(&place, 91, 300)));
        // A restart forgets none of them.
        place.again(mode, &limit(300));
        let more = eventually(PATIENCE, "it is counted again", || {
            flood(&container.tap, gateway, container.mac(), &route, 92, 1000);
            (place.at_limit("begun") == 1).then(|| place.flows(container.address()))
        });
        assert!(about(300).contains(&more), "{more}");
        for (flows, to, all) in [(100, 93, 400), (500, 94, 900)] {
            place.again(mode, &limit(flows));
            let more = held(&place, to, all);
            assert!(about(all).contains(&more), "{more}, {all}");
        }
        place.again(mode, &limit(0));
        assert!(held(&place, 95, 1900) >= 1900);
    }
}
