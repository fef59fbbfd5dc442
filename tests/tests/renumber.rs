//! Issue 7: the prefix changes, and running containers follow it.
//!
//! ```text
//!   outside: routes to both prefixes
//!      │
//!   host:    v6podd ── port ── eth0 ┌ container: an address of the old prefix, one of the new, and
//!                                   └            from the end of the grace the new one alone
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use v6pod_proto::{Activate, Attachment, Mode, NameState, PrefixView};
use v6pod_tests::{
    Body, Config, Daemon, Flow, HostNs, Invariants, OwnedNs, PATIENCE, PREFIX, Sampler, Server,
    eventually, random_container_id, require, run, side_by_side,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;

/// The prefix that takes the old one's place.
const NEW: &str = "2001:db8:1:2:4::/80";

/// Within this the names point to the new address.
const NAMED: Duration = Duration::from_secs(5);

/// A host to which both prefixes are routed, and a daemon with these times.
fn scene(mode: Mode, settle: &str, grace: &str) -> (HostNs, Daemon) {
    let host = HostNs::new();
    run(host.outside("ip").args(["-6", "route", "add", NEW, "via", "2001:db8:ffff::2"])).ok();
    let keys = format!("renumber.settle = \"{settle}\"\nrenumber.grace = \"{grace}\"\n");
    let tables = Config::OPEN.to_owned();
    let config = Config { keys, tables, ..Config::default() }.with_mode(mode);
    let daemon = Daemon::configured(&host, &config);
    (host, daemon)
}

#[track_caller]
fn attached(daemon: &Daemon, name: &str) -> (OwnedNs, Attachment) {
    let namespace = OwnedNs::of_uid(UID, true);
    let request = Activate { name: Some(name.into()), ..Activate::new(random_container_id()) };
    let made = daemon.as_user(UID).activate(&request, namespace.network().as_fd()).0;
    (namespace, made.unwrap_or_else(|refused| panic!("{refused}")))
}

fn is_new(address: Ipv6Addr) -> bool {
    address.segments()[..5] == [0x2001, 0xdb8, 1, 2, 4]
}

fn now(daemon: &Daemon, of: &Attachment) -> Attachment {
    let all = daemon.attachments();
    all.into_iter().find(|a| a.id == of.id).expect("it is listed")
}

#[test]
fn running_containers_follow_the_prefix_and_a_connection_lives_through_the_grace() {
    let _machine = require!(Root);
    side_by_side([Mode::Bridge, Mode::Routed], |mode| {
        let (host, daemon) = scene(mode, "1s", "6s");
        let (container, before) = attached(&daemon, "web");
        let (neighbour, _) = attached(&daemon, "db");
        eventually(PATIENCE, "the name is there", || {
            (daemon.resolved(&host, "web") == before.address.to_string()).then_some(())
        });
        let _server = Server::start(&container.network(), &[8080]);
        let outside = File::open(host.outside_path()).expect("the outside");
        let mut flow = Flow::tcp(&outside, (before.address, 8080)).expect("a connection");
        let sampler = Sampler::start(container.network());

        let said = daemon.ctl(&["prefix", "set", NEW]);
        assert!(said.ok().contains("settling"), "{said}");
        // One that starts meanwhile, of whichever prefix, is no exception.
        let (late, _) = attached(&daemon, "late");
        let after = eventually(PATIENCE, "it has moved", || {
            Some(now(&daemon, &before)).filter(|a| is_new(a.address))
        });
        let moved = Instant::now();
        assert_eq!(after.address.segments()[5..], before.address.segments()[5..]);
        eventually(NAMED, "the name points to the new address", || {
            (daemon.resolved(&host, "web") == after.address.to_string()).then_some(())
        });
        let registered = |a: &Attachment| a.names.iter().all(|n| n.state == NameState::Registered);
        eventually(NAMED, "it is registered", || registered(&now(&daemon, &before)).then_some(()));
        // Both are valid, what is begun is begun with the new one, and the old connection goes on.
        assert!(Flow::tcp(&outside, (after.address, 8080)).is_some_and(|mut f| f.is_answered()));
        let source = container.run("ip", &["-6", "route", "get", "2001:db8:ffff::1"]);
        assert!(source.ok().contains(&format!("src {}", after.address)), "{source}");
        while moved.elapsed() < Duration::from_secs(4) {
            assert!(flow.is_answered(), "it ended before the grace did\n{}", daemon.log());
        }
        assert_eq!(container.addresses().len(), 2);
        assert_eq!(daemon.status().prefix.former, [PREFIX]);
        // A neighbour finds it, on this host too.
        let to = after.address.to_string();
        neighbour.run("ping", &["-6", "-n", "-c", "2", "-W", "2", &to]).ok();

        flow.ends();
        eventually(PATIENCE, "the old prefix is out of use", || {
            daemon.status().prefix.former.is_empty().then_some(())
        });
        let all: Vec<_> = daemon.attachments();
        assert!(all.len() == 3 && all.iter().all(|a| is_new(a.address)), "{all:?}");
        assert_eq!(container.addresses(), [after.address]);
        assert_eq!(late.addresses().len(), 1);
        Invariants::hold(&daemon, &[(&container, after.address)]);
        let samples = sampler.saw_an_address_each_time();
        eprintln!("    {mode:?}: {samples} samples, an address in each");
        assert!(host.ip(&format!("-6 route show {PREFIX}")).stdout.is_empty());
    });
}

#[test]
fn a_prefix_that_flaps_or_is_taken_back_changes_nothing_and_one_that_returns_brings_the_address_back()
 {
    let _machine = require!(Root);
    let (_host, daemon) = scene(Mode::Bridge, "2s", "600s");
    let (container, before) = attached(&daemon, "web");
    let set = |prefix: &str, more: &[&str]| {
        daemon.ctl(&[&["prefix", "set", prefix], more].concat()).ok();
    };
    for _ in 0..3 {
        set(NEW, &["--valid", "3600"]);
        set(NEW, &["--valid", "0"]);
        set(PREFIX, &["--valid", "0"]);
        set("2001:db8:1:2:5::/80", &[]);
        set(PREFIX, &[]);
    }
    thread::sleep(Duration::from_secs(3));
    assert_eq!(daemon.status().prefix.prefix, PREFIX);
    assert_eq!(container.addresses(), [before.address]);
    // The new lease, and then the end of the old one, as dhclient tells it.
    set(NEW, &[]);
    set(PREFIX, &["--valid", "0"]);
    eventually(PATIENCE, "it has moved", || is_new(now(&daemon, &before).address).then_some(()));
    set(PREFIX, &[]);
    eventually(PATIENCE, "it is back", || {
        (now(&daemon, &before).address == before.address).then_some(())
    });
    assert_eq!(container.addresses().len(), 2);
}

#[test]
fn what_overlaps_is_refused_and_only_root_and_operators_change_the_prefix() {
    let _machine = require!(Root);
    let (host, mut daemon) = scene(Mode::Bridge, "0s", "600s");
    host.ip("link add docker0 type bridge").ok();
    host.ip("link set docker0 up").ok();
    host.ip("-6 addr add 2001:db8:7::1/64 dev docker0 nodad").ok();
    for (prefix, says) in [
        ("2001:db8:ffff::/80", "is an address of up0"),
        ("2001:db8:7::/80", "docker0"),
        ("2001:db8:7:0:5::/80", "there is a route to 2001:db8:7::/64 by docker0"),
        ("fd00:0:0:0:1::/80", "slirp4netns"),
        ("2001:db8:1:2::/64", "ffff"),
        ("2001:db8::/125", "too long"),
        ("fe80::/64", "not a range of global"),
    ] {
        let refused = daemon.ctl(&["prefix", "set", prefix]);
        if says == "ffff" {
            // Its last /80 is apart from what is in use.
            assert!(refused.ok().contains("2001:db8:1:2:ffff::/80"), "{refused}");
            daemon.ctl(&["prefix", "set", prefix, "--valid", "0"]).ok();
            continue;
        }
        assert!(!refused.status.success() && refused.stderr.contains(says), "{prefix}: {refused}");
    }
    let body = Body::Json(r#"{"prefix": "2001:db8:1:2:4::/80"}"#);
    let (answer, _) =
        daemon.as_user(UID).try_call("PUT", "/api/prefix", body, None).expect("an answer");
    assert_eq!(answer.status, 403);
    // What was said stays said until the next boot.
    daemon.ctl(&["prefix", "set", NEW, "--source", "dhclient"]).ok();
    let there = || daemon.root().get("/api/prefix").ok::<PrefixView>();
    let view = eventually(PATIENCE, "it is in force", || Some(there()).filter(|v| v.prefix == NEW));
    assert_eq!(view.source, "dhclient");
    daemon.kill9();
    daemon.restart();
    let view: PrefixView = daemon.root().get("/api/prefix").ok();
    assert_eq!((view.prefix.as_str(), view.source.as_str()), (NEW, "dhclient"));
}

#[test]
fn a_file_says_the_prefix_and_what_is_none_in_it_changes_nothing() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("prefix");
    let prefix = format!("file:{}", file.display());
    let keys = "subnet = 7\nrenumber.settle = \"0s\"\n".to_owned();
    let mut daemon = Daemon::configured(&host, &Config { prefix, keys, ..Config::default() });
    let first = daemon.status().prefix;
    assert!(first.ula && first.source == "auto", "{first:?}");
    let (container, before) = attached(&daemon, "web");
    let becomes = |daemon: &Daemon, prefix: &str| {
        eventually(PATIENCE, prefix, || (daemon.status().prefix.prefix == prefix).then_some(()));
    };
    std::fs::write(&file, "# delegated\n2001:db8:2::/56 3600\n").expect("writing a file");
    becomes(&daemon, "2001:db8:2:0:7::/80");
    let after = eventually(PATIENCE, "it follows", || {
        let a = now(&daemon, &before);
        (a.address != before.address).then_some(a.address)
    });
    for nothing in ["", "2001:db8:3::/56 0\n", "rubbish\n", "2001:db8:3::/125\n"] {
        std::fs::write(&file, nothing).expect("writing a file");
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(daemon.status().prefix.prefix, "2001:db8:2:0:7::/80");
    }
    std::fs::remove_file(&file).expect("removing a file");
    daemon.kill9();
    daemon.restart();
    let kept = daemon.status().prefix;
    assert_eq!((kept.prefix.as_str(), kept.source.as_str()), ("2001:db8:2:0:7::/80", "file"));
    assert!(container.addresses().contains(&after));
}

/// The change was given up for good, or the ports stayed without a bridge, as two made the host's side at once.
#[test]
fn a_bridge_that_is_deleted_while_the_prefix_changes_stops_neither() {
    let _machine = require!(Root);
    let (host, daemon) = scene(Mode::Bridge, "0s", "0s");
    let crowd: Vec<_> = (0..16).map(|i| attached(&daemon, &format!("c{i}"))).collect();
    for prefix in [NEW, PREFIX, NEW, PREFIX, NEW] {
        let body = format!(r#"{{"prefix": "{prefix}"}}"#);
        daemon.root().call("PUT", "/api/prefix", Body::Json(&body), None);
        // Wherever the change is by then.
        run(host.command("ip").args(["link", "del", daemon.bridge().as_str()])).ok();
        eventually(PATIENCE, "all have moved", || {
            daemon.attachments().iter().all(|a| is_new(a.address) == (prefix == NEW)).then_some(())
        });
        let now: Vec<_> = crowd.iter().map(|(_, a)| now(&daemon, a).address).collect();
        let living: Vec<_> = crowd.iter().map(|(namespace, _)| namespace).zip(now).collect();
        Invariants::hold(&daemon, &living);
    }
}
