//! Issue 7, line 2: a laptop without any configuration, on one network and then on another.
//!
//! ```text
//!   outside: 2001:db8:9::80 (a host beyond) · out0 2001:db8:ffff::1/64 · out1 2001:db8:fffe::1/64
//!      │                                         no route to what the host has made up
//!   host:    up0 2001:db8:ffff::2/64, and then up1 2001:db8:fffe::2/64 ── v6podd ── containers fd…
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::time::Instant;

use v6pod_proto::{Activate, Attachment, Mode};
use v6pod_tests::{
    Config, Daemon, Flow, HostNs, OwnedNs, PATIENCE, Server, eventually, random_container_id,
    require, run,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;

/// A host beyond the uplink.
const BEYOND: &str = "2001:db8:9::80";

const PORT: u16 = 8080;

fn scene(mode: Mode, keys: &str) -> (HostNs, Daemon) {
    let host = HostNs::new();
    for words in [
        format!("-6 addr add {BEYOND}/128 dev lo nodad"),
        "-6 route del 2001:db8:1:2:3::/80".to_owned(),
    ] {
        run(host.outside("ip").args(words.split(' '))).ok();
    }
    let (prefix, keys) = ("auto".to_owned(), keys.to_owned());
    let config = Config { prefix, keys, ..Config::default() }.with_mode(mode);
    let daemon = Daemon::configured(&host, &config);
    (host, daemon)
}

#[track_caller]
fn attached(daemon: &Daemon) -> (OwnedNs, Attachment) {
    let namespace = OwnedNs::of_uid(UID, true);
    let request = Activate::new(random_container_id());
    let made = daemon.as_user(UID).activate(&request, namespace.network().as_fd()).0;
    (namespace, made.unwrap_or_else(|refused| panic!("{refused}")))
}

fn beyond() -> (Ipv6Addr, u16) {
    (BEYOND.parse().expect("an address"), PORT)
}

fn reaches(container: &OwnedNs) -> bool {
    Flow::tcp(&container.network(), beyond()).is_some_and(|mut flow| flow.is_answered())
}

/// The other network: another interface, another /64. The first one is gone.
fn roam(host: &HostNs) {
    host.ip("link del up0").ok();
    let outside = host.outside_path();
    let outside = outside.file_name().and_then(|name| name.to_str()).expect("a name");
    host.ip(&format!("link add up1 type veth peer name out1 netns {outside}")).ok();
    for words in ["addr add 2001:db8:fffe::1/64 dev out1 nodad", "link set out1 up"] {
        run(host.outside("ip").args(words.split(' '))).ok();
    }
    host.ip("addr add 2001:db8:fffe::2/64 dev up1 nodad").ok();
    host.ip("link set up1 up").ok();
    host.ip("-6 route add default via 2001:db8:fffe::1").ok();
}

#[test]
fn without_any_configuration_containers_reach_the_world_and_follow_the_uplink() {
    let _machine = require!(Root);
    for mode in [Mode::Bridge, Mode::Routed] {
        let (host, daemon) = scene(mode, "");
        let outside = File::open(host.outside_path()).expect("the outside");
        let _server = Server::start(&outside, &[PORT]);
        let (container, attachment) = attached(&daemon);
        let status = daemon.status();
        assert!(status.prefix.ula && status.off.iter().any(|off| off.feature == "own-prefix"));
        assert!(daemon.log().contains("that is for testing"));
        assert!(reaches(&container), "{}", daemon.log());
        // What the world sees is the host's own address, and it cannot begin anything with a container.
        assert!(Flow::tcp(&outside, (attachment.address, PORT)).is_none());

        let before = daemon.attachments();
        roam(&host);
        let came = Instant::now();
        // Small steps: a connection that begins too early asks again only a second later.
        let ping = ["-6", "-n", "-c", "1", "-W", "0.1", BEYOND];
        eventually(PATIENCE, "it reaches the world again", || {
            container.run("ping", &ping).status.success().then_some(())
        });
        eprintln!("    {mode:?}: again {:?} after the other uplink came", came.elapsed());
        assert!(reaches(&container));
        assert_eq!(daemon.attachments(), before, "nothing was restarted");
        assert_eq!(daemon.status().uplink.map(|uplink| uplink.to_string()).as_deref(), Some("up1"));
    }
}

#[test]
fn nothing_is_translated_where_that_is_not_wanted_or_the_prefix_is_the_worlds() {
    let _machine = require!(Root);
    let (host, daemon) = scene(Mode::Bridge, "nat66 = \"never\"\nrenumber.settle = \"0s\"\n");
    let outside = File::open(host.outside_path()).expect("the outside");
    let _server = Server::start(&outside, &[PORT]);
    let (container, _) = attached(&daemon);
    assert!(!reaches(&container));
    assert!(daemon.status().off.iter().any(|off| off.feature == "nat66"));
    drop((container, daemon));

    let (host, daemon) = scene(Mode::Bridge, "renumber.settle = \"0s\"\nrenumber.grace = \"0s\"\n");
    let outside = File::open(host.outside_path()).expect("the outside");
    let _server = Server::start(&outside, &[PORT]);
    let (container, attachment) = attached(&daemon);
    assert!(reaches(&container));
    let tables = || run(host.command("nft").args(["list", "tables"])).ok().to_owned();
    assert!(tables().contains("table ip6 v6pod-v6t"));
    // A prefix that is routed here comes: no translation any more.
    let words = "-6 route add 2001:db8:7:7:7::/80 via 2001:db8:ffff::2";
    run(host.outside("ip").args(words.split(' '))).ok();
    daemon.ctl(&["prefix", "set", "2001:db8:7:7:7::/80"]).ok();
    eventually(PATIENCE, "the old prefix is out of use", || {
        let prefix = daemon.status().prefix;
        (!prefix.ula && prefix.former.is_empty()).then_some(())
    });
    let now = daemon.the_attachment().address;
    assert!(now != attachment.address && container.addresses() == [now]);
    assert!(reaches(&container));
    assert!(!tables().contains("table ip6 v6pod-v6t"), "{}", tables());
    drop(daemon);
}
