//! Issue 5: what a container may reach, what of its host, and how much of the machine's memory of flows it
//! can hold; attacks 10, 11, 22, 25 and 29.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd                     servers in the outside, on the host,
//!                          ├── port ── eth0 ┌ confined ┐      and in the other containers
//!                          └── port ── eth0 ┌ others ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

mod flows;
mod place;

use std::fs::File;
use std::net::{Ipv6Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::thread;

use v6pod_proto::{Activate, Attachment, EgressBy, Mode};
use v6pod_tests::packet::{Extension, IPV6, Load, Route, frame};
use v6pod_tests::{
    Attached, Body, Config, Flow, HostNs, Invariants, OUTSIDE_V6, PATIENCE, Server, Stage, built,
    eventually, reach_in_kernel, reach_of, require, run, side_by_side, within,
};

use place::{MODES, Place, outside, pings, reached, tcp, udp};

const MARK: &[u8] = b"v6t-out";
const LAST: &[u8] = b"v6t-honest";

#[test]
fn a_confined_container_reaches_what_it_lists_and_answers_what_reached_it() {
    let _machine = require!(Root);
    side_by_side(MODES, |mode| {
        let place = Place::with(mode, "");
        let neighbour = place.container(&[("v6pod.ingress", "tcp/80-81,udp/80-81")]);
        let (service, near) = (place.service(), neighbour.address());
        let rule = format!(
            "deny,tcp/7000@2001:db8:ffff::/48,udp/7001,tcp/7002@2001:db8:fffe::/48,tcp/80@{near},\
             udp/7003@{service}"
        );
        let _servers = [
            Server::start(&place.outside(), &[7000, 7001, 7002]),
            Server::start(&place.host(), &[7003, 7004]),
            Server::start(&neighbour.namespace.network(), &[80, 81]),
        ];
        let all = [
            (outside(), 7000),
            (outside(), 7001),
            (outside(), 7002),
            (service, 7003),
            (service, 7004),
            (near, 80),
            (near, 81),
        ];
        let free = place.container(&[]);
        assert_eq!(reached(&free.namespace.network(), &all).len(), 2 * all.len());
        assert!(pings(&free, outside()) && pings(&free, service) && pings(&free, near));

        let confined =
            place.container(&[("v6pod.egress", &rule), ("v6pod.ingress", "tcp/90,udp/90")]);
        let network = confined.namespace.network();
        let expected = [
            format!("tcp/7000 {OUTSIDE_V6}"),
            format!("udp/7001 {OUTSIDE_V6}"),
            format!("udp/7003 {service}"),
            format!("tcp/80 {near}"),
        ];
        assert_eq!(reached(&network, &all), expected);
        assert!(![outside(), service, near].into_iter().any(|to| pings(&confined, to)));
        // What reaches it is answered: an open port, echo, root on this host.
        let _server = Server::start(&network, &[90, 91]);
        let address = confined.address();
        for from in [&place.outside(), &free.namespace.network()] {
            let seen = reached(from, &[(address, 90), (address, 91)]);
            assert_eq!(seen, [format!("tcp/90 {address}"), format!("udp/90 {address}")]);
        }
        assert_eq!(reached(&place.host(), &[(address, 91)]).len(), 2);
        let echo = ["-c", "1", "-W", "10", &address.to_string()];
        run(place.host.outside("ping").args(echo)).ok();

        let view = &confined.attachment.egress;
        assert_eq!(view.by, EgressBy::Annotation);
        assert_eq!(reach_in_kernel(&place.daemon), reach_of(address, &view.rule));
        let living = [&neighbour, &free, &confined].map(|a| (&a.namespace, a.address()));
        Invariants::hold(&place.daemon, &living);
        drop(confined);
        eventually(PATIENCE, "nothing is left of it", || {
            reach_in_kernel(&place.daemon).is_empty().then_some(())
        });
    });
}

/// What a confined container may try: whole and in pieces, with and without ports.
fn attempts(route: &Route) -> Vec<Load> {
    let mut all: Vec<_> = [53, 443, 7001]
        .into_iter()
        .flat_map(|port| [route.syn(4000, port, MARK), route.udp(4000, port, MARK)])
        .collect();
    for extension in
        [Extension::Destination, Extension::Atomic, Extension::HopByHop, Extension::Routing]
    {
        all.push(route.udp(4000, 53, MARK).behind(extension));
    }
    all.extend(route.udp(4000, 53, &[&[0; 32], MARK].concat()).cut(16));
    let about = Route::new(route.destination, route.source);
    let quoted = about.carry(&about.udp(9, 9, MARK));
    for kind in [1, 2, 3, 4] {
        all.push(route.icmp(kind, 0, &[&[0; 4], &quoted[..]].concat()));
    }
    for kind in [128, 129, 139, 140, 144, 200] {
        all.push(route.icmp(kind, 0, &[&[0; 20], MARK].concat()));
    }
    all.extend([41, 47, 50, 132, 136, 253].map(|next| Load::raw(next, &[&[0; 16], MARK].concat())));
    all
}

#[test]
fn attack_10_no_packet_of_a_confined_container_gets_out_by_its_form() {
    let _machine = require!(Root);
    side_by_side(
        MODES.into_iter().flat_map(|mode| ["deny", "allow"].map(|i| (mode, i))),
        |(mode, ingress)| {
            let place = Place::with(mode, &format!("[firewall]\ningress = \"{ingress}\"\n"));
            let tap = place.outside_tap();
            let gateway = place.gateway_mac();
            let sends = |from: &Attached| {
                let route = Route::new(from.address(), outside());
                tap.drain();
                let send = |load: &Load| {
                    from.tap.send(&frame(gateway, from.mac(), IPV6, &route.carry(load)));
                };
                let all = attempts(&route);
                all.iter().for_each(send);
                // What was sent before it has arrived, or never will.
                send(&route.udp(4001, 7000, LAST));
                (tap.frames_until(LAST).with(MARK), all.len())
            };
            let free = place.container(&[]);
            free.namespace.run("ping", &["-c", "1", "-W", "10", OUTSIDE_V6]).ok();
            let (seen, sent) = sends(&free);
            // Two headers that nobody may send, and the piece without the mark; where flows are asked about, what
            // belongs to none and can begin none: errors about what never was, an answer nobody asked for.
            let least = if ingress == "allow" { sent - 4 } else { sent - 13 };
            assert!(seen >= least, "{seen} of {sent}");
            let confined = place.container(&[("v6pod.egress", "deny,udp/7000")]);
            assert_eq!(sends(&confined).0, 0);
        },
    );
}

#[test]
fn attack_29_a_confined_container_stays_so_whatever_it_does_to_its_interface() {
    let _machine = require!(Root);
    side_by_side(MODES, |mode| {
        let place = Place::with(mode, "");
        let _server = Server::start(&place.outside(), &[7000, 7001]);
        let all = [(outside(), 7000), (outside(), 7001)];
        let change = |attached: &Attached| {
            let address = attached.address();
            let script = format!(
                "set -e; gw=$(ip -6 route show default | cut -d' ' -f3)\n\
                 lladdr=$(ip -6 neigh show nud permanent | sed -n 's/.*lladdr \\([^ ]*\\).*/\\1/p')\n\
                 ip link set eth0 down; ip link set eth0 name own0; ip link set own0 up promisc on\n\
                 ip -6 addr replace {address}/128 dev own0 nodad\n\
                 ip -6 addr add 2001:db8:1:2:3::5:5/128 dev own0 nodad\n\
                 ip -6 route replace $gw dev own0; ip -6 route replace default via $gw dev own0 src {address}\n\
                 ip -6 neigh replace $gw lladdr $lladdr dev own0 nud permanent\n\
                 echo 1 >/proc/sys/net/ipv6/conf/all/forwarding\n"
            );
            attached.namespace.run("sh", &["-c", &script]).ok();
        };
        let free = place.container(&[]);
        change(&free);
        assert_eq!(reached(&free.namespace.network(), &all).len(), 4);
        let confined = place.container(&[("v6pod.egress", "deny,tcp/7000")]);
        change(&confined);
        let seen = reached(&confined.namespace.network(), &all);
        assert_eq!(seen, [format!("tcp/7000 {OUTSIDE_V6}")]);
    });
}

/// What the hook says of a container that the network program has plugged.
#[track_caller]
fn describe(place: &Place, attached: &Attached, annotations: &[(&str, &str)]) -> Attachment {
    let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let annotations = annotations.iter().map(text).collect();
    let container = attached.attachment.container.clone();
    let request = Activate { plug: false, annotations, ..Activate::new(container) };
    let caller = place.daemon.as_user(attached.namespace.uid());
    let (outcome, _) = caller.activate(&request, attached.namespace.network().as_fd());
    outcome.unwrap_or_else(|refused| panic!("{refused}"))
}

#[test]
fn what_the_hook_adds_late_confines_and_ends_what_is_out_of_reach_and_nothing_else() {
    let _machine = require!(Root);
    side_by_side(MODES, |mode| {
        let place = Place::with(mode, "");
        let outside_ns = place.outside();
        let _server = Server::start(&outside_ns, &[7000, 7001]);
        let late = place.container(&[("v6pod.ingress", "tcp/90,udp/90")]);
        let (network, address) = (late.namespace.network(), late.address());
        let _own = Server::start(&network, &[90]);
        let begin = || {
            let ends = [tcp(&network, (outside(), 7001)), udp(&network, (outside(), 7001))];
            let goes_on = [
                tcp(&network, (outside(), 7000)),
                udp(&network, (outside(), 7000)),
                tcp(&outside_ns, (address, 90)),
                udp(&outside_ns, (address, 90)),
            ];
            (ends, goes_on)
        };
        // By its elements alone, no flow ends.
        let (mut ends, mut goes_on) = begin();
        let table = place.daemon.table();
        let bare = format!(
            "nft add element inet {table} confined '{{ {address} }}'; \
             nft add element inet {table} reach '{{ {address} . tcp . 7000, {address} . udp . 7000 }}'"
        );
        run(place.host.command("sh").args(["-c", &bare])).ok();
        assert_eq!(reached(&network, &[(outside(), 7001)]), [""; 0]);
        assert_eq!(
            (Flow::answered(&mut ends), Flow::answered(&mut goes_on)),
            (vec![true; 2], vec![true; 4])
        );
        let bare = format!(
            "nft delete element inet {table} confined '{{ {address} }}'; nft flush set inet {table} reach"
        );
        run(place.host.command("sh").args(["-c", &bare])).ok();
        assert!(pings(&late, outside()));

        let rule = "deny,tcp/7000,udp/7000@2001:db8:ffff::/64";
        let described = describe(&place, &late, &[("v6pod.egress", rule)]);
        assert_eq!(described.egress.rule.to_string(), rule);
        assert_eq!(
            (Flow::answered(&mut ends), Flow::answered(&mut goes_on)),
            (vec![false; 2], vec![true; 4])
        );
        assert_eq!(reached(&network, &[(outside(), 7000), (outside(), 7001)]).len(), 2);
        assert!(!pings(&late, outside()));
        // Nobody takes it back: what is known stays as it is.
        let again = describe(&place, &late, &[("v6pod.egress", "allow")]);
        assert_eq!(again.egress.rule.to_string(), rule);
        Invariants::hold(&place.daemon, &[(&late.namespace, address)]);
    });
}

#[test]
fn a_hosts_default_confines_who_says_nothing_after_a_restart_too() {
    let _machine = require!(Root);
    side_by_side(MODES, |mode| {
        let mut place = Place::with(mode, "");
        let _server = Server::start(&place.outside(), &[7000]);
        let [silent, says] =
            [&[][..], &[("v6pod.egress", "allow")]].map(|asks| place.container(asks));
        let networks = [&silent, &says].map(|a| a.namespace.network());
        let mut flows = networks.each_ref().map(|network| tcp(network, (outside(), 7000)));
        place.again(mode, "[firewall]\negress = \"deny\"\n");
        flows[0].ends();
        assert!(flows[1].is_answered());
        let to = [(outside(), 7000)];
        let seen = networks.each_ref().map(|network| reached(network, &to).len());
        assert_eq!(seen, [0, 2]);
        let next = place.container(&[]);
        assert_eq!(next.attachment.egress.to_owned().by, EgressBy::Host);
        assert!(!pings(&next, outside()) && pings(&says, outside()));
        let living = [&silent, &says, &next].map(|a| (&a.namespace, a.address()));
        Invariants::hold(&place.daemon, &living);
    });
}

#[test]
fn attack_11_nothing_that_began_while_there_were_no_rules_goes_on() {
    let _machine = require!(Root);
    side_by_side(MODES, |mode| {
        let place = Place::with(mode, "");
        let _server = Server::start(&place.outside(), &[7000, 7001]);
        let confined = place.container(&[("v6pod.egress", "deny,tcp/7000")]);
        let network = confined.namespace.network();
        let mut goes_on = tcp(&network, (outside(), 7000));
        let before = reach_in_kernel(&place.daemon);
        let stop =
            format!("nft delete table inet {0}; nft delete table bridge {0}", place.daemon.table());
        run(place.host.command("sh").args(["-c", &stop])).ok();
        // It may be back before this is sent: then it does not come about.
        let escaped = Flow::tcp(&network, (outside(), 7001));
        eventually(PATIENCE, "the repair", || place.daemon.status().last_repair);
        eventually(PATIENCE, "its elements are back", || {
            (reach_in_kernel(&place.daemon) == before).then_some(())
        });
        if let Some(mut escaped) = escaped {
            escaped.ends();
        }
        assert!(Flow::tcp(&network, (outside(), 7001)).is_none() && goes_on.is_answered());
    });
}

/// One that answers one connection, and says nothing by itself.
#[track_caller]
fn quiet_server(namespace: &File, port: u16) {
    let any = (Ipv6Addr::UNSPECIFIED, port);
    let listener = within(namespace, || TcpListener::bind(any).expect("listening"));
    thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        std::io::copy(&mut stream.try_clone()?, &mut stream)
    });
}

#[test]
fn of_the_host_containers_reach_what_the_operator_says() {
    let _machine = require!(Root);
    side_by_side(
        MODES.into_iter().flat_map(|mode| ["deny", "allow"].map(|i| (mode, i))),
        |(mode, ingress)| {
            // The host has a resolver at port 53 of all its addresses: there is room for no other.
            let firewall = format!("[dns]\nenabled = false\n[firewall]\ningress = \"{ingress}\"\n");
            let mut place = Place::with(mode, &firewall);
            let uplink: Ipv6Addr = "2001:db8:ffff::2".parse().expect("an address");
            let service = place.service();
            let _host = Server::start(&place.host(), &[53, 8080]);
            let _outside = Server::start(&place.outside(), &[53]);
            let container = place.container(&[]);
            let network = container.namespace.network();
            let _own = Server::start(&network, &[90]);
            let all = [(service, 53), (service, 8080), (uplink, 53), (outside(), 53)];
            // An answer of UDP's comes from the address that is next to the container, and is none.
            assert_eq!(reached(&network, &all).len(), 7);
            // Root's own processes reach every container: one that goes on sending would begin it anew.
            quiet_server(&place.host(), 8081);
            let mut ends = tcp(&network, (uplink, 8081));
            assert!(ends.is_answered());
            let mut goes_on = [tcp(&network, (service, 53)), tcp(&network, (outside(), 53))];

            place.again(mode, &(firewall + "host = \"deny\"\n"));
            let expected = [
                format!("tcp/53 {service}"),
                format!("udp/53 {service}"),
                format!("tcp/53 {OUTSIDE_V6}"),
                format!("udp/53 {OUTSIDE_V6}"),
            ];
            assert_eq!(reached(&network, &all), expected);
            assert!(pings(&container, service) && pings(&container, uplink));
            // What root begins is answered.
            assert_eq!(reached(&place.host(), &[(container.address(), 90)]).len(), 2);
            ends.ends();
            assert_eq!(Flow::answered(&mut goes_on), [true; 2]);
        },
    );
}

#[test]
fn containers_that_are_kept_apart_reach_no_open_port_of_each_others() {
    let _machine = require!(Root);
    side_by_side(
        MODES.into_iter().flat_map(|mode| ["deny", "allow"].map(|i| (mode, i))),
        |(mode, ingress)| {
            let firewall = format!("[firewall]\ningress = \"{ingress}\"\n");
            let mut place = Place::with(mode, &firewall);
            let open = [("v6pod.ingress", "tcp/90,udp/90")];
            let server = place.container(&open);
            let _server = Server::start(&server.namespace.network(), &[90]);
            let own = place.container(&[]);
            let others = Attached::new(&place.daemon, &place.users[1]);
            let networks = [&own, &others].map(|a| a.namespace.network());
            let to = [(server.address(), 90)];
            let seen = |place: &Place| {
                let [own, others] = networks.each_ref().map(|network| reached(network, &to).len());
                [own, others, reached(&place.outside(), &to).len()]
            };
            assert_eq!(seen(&place), [2, 2, 2]);
            let mut ends = tcp(&networks[0], to[0]);
            place.again(mode, &(firewall + "east_west = \"deny\"\n"));
            assert_eq!(seen(&place), [0, 0, 2]);
            assert!(!pings(&own, server.address()) && pings(&own, outside()));
            ends.ends();
        },
    );
}

#[test]
fn an_owners_containers_reach_each_other_and_nobody_elses() {
    let _machine = require!(Root);
    side_by_side(MODES, |mode| {
        let mut place = Place::with(mode, "");
        let server = place.container(&[]);
        let network = server.namespace.network();
        let _server = Server::start(&network, &[90]);
        let own = place.container(&[]);
        let confined = place.container(&[("v6pod.egress", "deny")]);
        let others = Attached::new(&place.daemon, &place.users[1]);
        let to = [(server.address(), 90)];
        let seen = |place: &Place| {
            let of = |attached: &Attached| reached(&attached.namespace.network(), &to).len();
            [of(&own), of(&confined), of(&others), reached(&place.outside(), &to).len()]
        };
        assert_eq!(seen(&place), [0, 0, 0, 0]);
        place.again(mode, "[firewall]\neast_west = \"owner\"\n");
        assert_eq!(seen(&place), [2, 0, 0, 0]);
        let later = place.container(&[]);
        assert_eq!(reached(&later.namespace.network(), &to).len(), 2);
        // What is opened and closed again is nothing between these.
        let mut goes_on = tcp(&own.namespace.network(), to[0]);
        let path = format!("/api/attachments/{}", server.attachment.id);
        for change in [r#"{"open": ["tcp/90"]}"#, r#"{"close": ["tcp/90"]}"#] {
            let caller = place.daemon.as_user(server.namespace.uid());
            assert_eq!(caller.call("PATCH", &path, Body::Json(change), None).0.status, 200);
        }
        assert!(goes_on.is_answered());
        let living =
            [&server, &own, &confined, &others, &later].map(|a| (&a.namespace, a.address()));
        Invariants::hold(&place.daemon, &living);
        // With the daemon's word it is over.
        place.again(mode, "");
        goes_on.ends();
        assert_eq!(seen(&place), [0, 0, 0, 0]);
    });
}

#[test]
fn podman_says_what_a_container_may_reach_and_an_image_only_confines() {
    const BUILD: &str = "printf 'FROM localhost/v6test\\nLABEL v6pod.egress=deny,tcp/7000\\n' | \
         podman build --quiet --format oci --tag localhost/bearing -f - .";
    let _machine = require!(Podman);
    let stage = Stage::on(HostNs::new(), &Config::default(), 1);
    let user = stage.user();
    user.use_hook(&stage.daemon.socket());
    let outside_ns = File::open(stage.host.outside_path()).expect("the outside");
    let _server = Server::start(&outside_ns, &[7000, 7001]);
    let seen = |name: &str| {
        let pid = user.podman(&["inspect", "--format", "{{.State.Pid}}", name]).ok().to_owned();
        let network = File::open(format!("/proc/{pid}/ns/net")).expect("its network");
        reached(&network, &[(outside(), 7000), (outside(), 7001)])
    };
    let only = [format!("tcp/7000 {OUTSIDE_V6}")];

    let words = ["--annotation=v6pod.egress=deny tcp/7000"];
    let container = user.start("c", &words, &["sleep", "1000"]);
    assert_eq!(seen("c"), only);
    let mut show = user.command(built("v6podctl"));
    let shown = run(show.arg("--socket").arg(stage.daemon.socket()).args(["show", "c"]));
    assert!(shown.ok().contains("deny,tcp/7000 (annotation)"), "{shown}");
    container.remove();

    let wide = ["--annotation=v6pod.egress=deny tcp/443@2000::/3"];
    let refused = user.run(&wide, &["true"]);
    assert!(refused.fails().contains("elements of the firewall"), "{refused}");

    run(user.command("sh").args(["-c", BUILD])).ok();
    for (options, expected) in [
        (&[][..], &only[..]),
        (&["--annotation=v6pod.egress=deny udp/7001"], &[format!("udp/7001 {OUTSIDE_V6}")]),
    ] {
        let words =
            [&["run", "--detach", "--name=i"], options, &["localhost/bearing", "sleep", "1000"]];
        user.podman(&words.concat()).ok();
        assert_eq!(seen("i"), expected, "{options:?}");
        user.podman(&["rm", "-f", "-t", "0", "i"]).ok();
    }
}

#[test]
fn who_asks_over_tcp_confines_nobody_and_frees_nobody() {
    let _machine = require!(Root);
    let place = Place::with(Mode::Bridge, "");
    let confined = place.container(&[("v6pod.egress", "deny")]);
    let id = &confined.attachment.container;
    let body = format!(
        r#"{{"user":{},"id":"{id}","annotations":{{"v6pod.egress":"allow"}}}}"#,
        confined.namespace.uid()
    );
    let mut curl = place.users[0].command("curl");
    curl.args(["-sS", "-X", "POST", "-H", "Content-Type: application/json", "-d", &body]);
    let answer = run(curl.arg("http://localhost:6781/api/activate"));
    assert!(answer.ok().contains("over the unix socket alone"), "{answer}");
    let answer = place.daemon.root().post("/api/activate", Body::Json(&body));
    assert_ne!(answer.status, 200, "{answer}");
    assert!(!pings(&confined, outside()));
}
