//! Issue 5: a prefix that is a part of the uplink's own subnet, and that nobody routes to the host.
//!
//! ```text
//!   outside: out0 2001:db8:1:2::9/64         no route to 2001:db8:1:2:3::/80
//!      │
//!   host:    up0  2001:db8:1:2::2/64 ── v6podd ── port ── eth0 ┌ container 2001:db8:1:2:3::x ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::net::Ipv6Addr;
use std::os::fd::AsFd;

use v6pod_proto::{Activate, Attachment};
use v6pod_tests::{
    Body, Config, Daemon, Footprint, HostNs, Invariants, OwnedNs, PATIENCE, eventually,
    random_container_id, require, run,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;

/// The outside's address on the uplink's subnet.
const NEIGHBOUR: &str = "2001:db8:1:2::9";

const PROXIES: &str = "-6 neigh show proxy";

/// A host whose uplink's subnet has the prefix in it.
fn host() -> HostNs {
    let host = HostNs::new();
    host.ip("-6 addr add 2001:db8:1:2::2/64 dev up0 nodad").ok();
    outside(&host, "-6 route del 2001:db8:1:2:3::/80");
    outside(&host, &format!("-6 addr add {NEIGHBOUR}/64 dev out0 nodad"));
    host
}

fn daemon(host: &HostNs, answers: bool) -> Daemon {
    let keys = format!("ndp_proxy = {answers}\n");
    Daemon::configured(host, &Config { keys, ..Config::default() })
}

#[track_caller]
fn outside(host: &HostNs, words: &str) {
    run(host.outside("ip").args(words.split(' '))).ok();
}

#[track_caller]
fn attached(daemon: &Daemon) -> (OwnedNs, Attachment) {
    let namespace = OwnedNs::of_uid(UID, true);
    let request = Activate::new(random_container_id());
    let made = daemon.as_user(UID).activate(&request, namespace.network().as_fd()).0;
    (namespace, made.unwrap_or_else(|refused| panic!("{refused}")))
}

/// Whether the outside host gets an answer, whatever it has learnt before.
fn reached(host: &HostNs, address: Ipv6Addr) -> bool {
    outside(host, "-6 neigh flush dev out0");
    let to = address.to_string();
    run(host.outside("ping").args(["-6", "-n", "-c", "2", "-i", "0.2", "-W", "2", &to]))
        .status
        .success()
}

#[test]
fn a_container_is_reached_where_the_uplink_answers_for_it_and_only_there() {
    let _machine = require!(Root);
    for answers in [false, true] {
        let host = host();
        let daemon = daemon(&host, answers);
        let gateway = daemon.status().gateway;
        let (container, attachment) = attached(&daemon);
        let off = daemon.status().off.iter().any(|off| off.feature == "ndp-proxy");
        assert_eq!(off, !answers);
        assert_eq!(reached(&host, attachment.address), answers, "{}", host.ip(PROXIES));
        assert_eq!(reached(&host, gateway), answers);
        // What it sends arrives either way; the answer finds the way back only to who is answered for.
        let ping = container.run("ping", &["-6", "-n", "-c", "2", "-W", "2", NEIGHBOUR]);
        assert_eq!(ping.status.success(), answers, "{ping}");
        // Nobody is answered for whom there is not.
        assert!(!reached(&host, "2001:db8:1:2:3::dead".parse().expect("an address")));
        // Neither the machine nor the containers' side answers.
        for other in ["all", "v6t0"] {
            let file = format!("/proc/sys/net/ipv6/conf/{other}/proxy_ndp");
            assert_eq!(run(host.command("cat").arg(file)).ok().trim(), "0");
        }
    }
}

#[test]
fn answers_end_with_the_attachment_and_are_whole_after_a_crash_and_gone_after_a_purge() {
    let _machine = require!(Root);
    let host = host();
    // An administrator's own, one of them of an address that could be drawn.
    for own in ["2001:db8:1:2:7::7", "2001:db8:1:2:3::7"] {
        host.ip(&format!("-6 neigh add proxy {own} dev up0")).ok();
    }
    let before = host.ip(PROXIES).ok().to_owned();
    let mut daemon = daemon(&host, true);
    let footprint: Footprint = daemon.footprint();
    let (first, second) = (attached(&daemon), attached(&daemon));
    daemon.kill9();
    // While no daemon is there: one of them ends, and entries come and go.
    let (gone, address) = (first.0, first.1.address);
    drop(gone);
    host.ip("-6 neigh add proxy 2001:db8:1:2:3::dead dev up0 protocol 118").ok();
    host.ip(&format!("-6 neigh del proxy {} dev up0", second.1.address)).ok();
    daemon.restart();
    Invariants::hold(&daemon, &[(&second.0, second.1.address)]);
    assert!(reached(&host, second.1.address));
    assert!(!reached(&host, address));
    let form = format!("user={UID}&id={}", second.1.container);
    assert_eq!(daemon.as_user(UID).post("/api/deactivate", Body::Form(&form)).status, 200);
    footprint.comes_back(&daemon);
    let (kept, _) = attached(&daemon);
    daemon.stop();
    daemon.purge().ok();
    assert_eq!(host.ip(PROXIES).ok(), before);
    drop(kept);
}

#[test]
fn answers_follow_the_uplink_and_come_back_when_the_link_has_been_down() {
    let _machine = require!(Root);
    let host = host();
    let daemon = daemon(&host, true);
    let (container, attachment) = attached(&daemon);
    let well = || Invariants::hold(&daemon, &[(&container, attachment.address)]);
    // Linux forgets the entries of a link that goes down, and the routes by it.
    host.ip("link set up0 down").ok();
    assert_eq!(host.ip(PROXIES).ok(), "");
    host.ip("link set up0 up").ok();
    host.ip("-6 addr add 2001:db8:1:2::2/64 dev up0 nodad").ok();
    host.ip("-6 addr add 2001:db8:ffff::2/64 dev up0 nodad").ok();
    host.ip("-6 route add default via 2001:db8:ffff::1").ok();
    well();
    // Another uplink into the same outside.
    let path = host.outside_path();
    let path = path.to_str().expect("a path of ours");
    host.ip(&format!("link add up1 type veth peer name out1 netns {path}")).ok();
    host.ip("link set up1 up").ok();
    outside(&host, "link set out1 up");
    host.ip("-6 addr del 2001:db8:1:2::2/64 dev up0").ok();
    outside(&host, &format!("-6 addr del {NEIGHBOUR}/64 dev out0"));
    host.ip("-6 addr add 2001:db8:1:2::2/64 dev up1 nodad").ok();
    outside(&host, &format!("-6 addr add {NEIGHBOUR}/64 dev out1 nodad"));
    host.ip(&format!("-6 route replace default via {NEIGHBOUR} dev up1")).ok();
    eventually(PATIENCE, "the uplink is another", || {
        (daemon.status().uplink?.as_str() == "up1").then_some(())
    });
    well();
    let to = attachment.address.to_string();
    eventually(PATIENCE, "the container is reached by the new uplink", || {
        let ping = run(host.outside("ping").args(["-6", "-n", "-c", "1", "-W", "1", &to]));
        ping.status.success().then_some(())
    });
}
