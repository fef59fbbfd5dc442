//! Issue 4: root's podman has networks of the driver v6pod, by netavark's plugin interface, whole.
//!
//! ```text
//!   outside ── up0 ┌ Debian 13, podman 5.4, netavark 1.14 ───────────────────────────────┐
//!                  │ podman ── netavark ── v6pod-netavark ── v6podd ── port ── eth0      │
//!                  │                    └─ bridge plugin ── podman0 ───────── eth1 (IPv4) │
//!                  └─────────────────────────────────────────────────────────────────────┘
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use serde_json::Value;
use v6pod_proto::Attachment;
use v6pod_tests::{
    Finished, IMAGE, PATIENCE, Place as _, Suite, WholeHost, eventually, require, run,
};

/// Root's units: a network, and a container on it.
const NETWORK: &str = "[Network]\nNetworkName=quadlet\nDriver=v6pod\n";
const CONTAINER: &str = "\
[Container]
Image=localhost/v6test
ContainerName=unit
Network=quadlet.network
Exec=sleep 1000

[Install]
WantedBy=multi-user.target
";

/// What podman shows of a container on a network.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    address: String,
    gateway: String,
    mac: String,
}

#[track_caller]
fn shown(host: &WholeHost, container: &str, network: &str) -> Shown {
    let format = "{{json .NetworkSettings.Networks}}";
    let all = host.podman(&["inspect", "--format", format, container]);
    let all: Value = serde_json::from_str(all.ok()).expect("podman's JSON");
    let text = |key: &str| all[network][key].as_str().unwrap_or_default().to_owned();
    let (gateway, mac) = (text("IPv6Gateway"), text("MacAddress"));
    Shown { address: text("GlobalIPv6Address"), gateway, mac }
}

/// The only attachment there is.
#[track_caller]
fn the_attachment(host: &WholeHost) -> Attachment {
    match host.attachments().as_slice() {
        [attachment] => attachment.clone(),
        other => panic!("not one attachment: {other:#?}"),
    }
}

#[track_caller]
fn is_reached(host: &WholeHost, address: Ipv6Addr) {
    let address = address.to_string();
    run(host.net().outside("ping").args(["-n", "-c", "1", "-W", "10", &address])).ok();
}

/// One attachment, which podman shows, the container has, and the outside reaches.
#[track_caller]
fn is_attached(host: &WholeHost, container: &str, network: &str) -> Attachment {
    let attachment = the_attachment(host);
    let Attachment { address, gateway, mac, .. } = &attachment;
    let expected =
        Shown { address: address.to_string(), gateway: gateway.to_string(), mac: mac.to_string() };
    assert_eq!(shown(host, container, network), expected);
    let inside = host.podman(&["exec", container, "ip", "-6", "addr"]);
    assert_eq!(inside.ok().matches("scope global").count(), 1, "{inside}");
    assert!(inside.ok().contains(&format!("{address}/128")), "{inside}");
    is_reached(host, *address);
    attachment
}

#[track_caller]
fn starts(host: &WholeHost, name: &str, options: &[&str]) -> Finished {
    let words = [&["run", "--detach", "--name", name], options, &[IMAGE, "sleep", "1000"]];
    host.podman(&words.concat())
}

#[track_caller]
fn ends(host: &WholeHost, name: &str) {
    host.podman(&["rm", "--force", "--time", "0", name]).ok();
    assert_eq!(host.attachments(), [], "{name} has ended");
}

#[track_caller]
fn create(host: &WholeHost, network: &str, options: &[&str]) -> Finished {
    let words = [&["network", "create", "--driver", "v6pod"], options, &[network]];
    host.podman(&words.concat())
}

#[track_caller]
fn what_there_is_not_is_refused_at_once(host: &WholeHost) {
    for (options, named) in [
        (&["--subnet", "10.1.0.0/16"][..], "--subnet"),
        (&["--internal"], "--internal"),
        (&["--ipam-driver", "host-local"], "--ipam-driver"),
        (&["--opt", "mtu=1400"], "--opt"),
        (&["--route", "10.1.0.0/16,10.1.0.1"], "--route"),
    ] {
        let refused = create(host, "bad", options);
        assert!(refused.fails().contains(named), "{refused}");
    }
    let list = host.podman(&["network", "ls", "--format", "{{.Name}}"]);
    assert_eq!(list.ok(), "podman");
}

#[track_caller]
fn a_container_comes_restarts_moves_and_goes(host: &WholeHost) {
    starts(host, "web", &["--network", "six"]).ok();
    let first = is_attached(host, "web", "six");
    assert_eq!(first.name.as_deref(), Some("web"));
    assert_eq!((first.interface.as_str(), first.owner.as_raw()), ("eth0", 0));
    let inspected = host.podman(&["network", "inspect", "six"]);
    let inspected: Value = serde_json::from_str(inspected.ok()).expect("podman's JSON");
    assert_eq!(inspected[0]["ipv6_enabled"], true, "{inspected}");
    let on_it = &inspected[0]["containers"][first.container.as_str()]["interfaces"]["eth0"];
    assert_eq!(on_it["subnets"][0]["ipnet"], format!("{}/128", first.address), "{inspected}");

    for again in [
        &[&["restart", "--time", "0", "web"][..]][..],
        &[&["stop", "--time", "0", "web"], &["start", "web"]],
        &[&["network", "disconnect", "six", "web"], &["network", "connect", "six", "web"]],
        &[&["network", "reload", "web"]],
    ] {
        let before = the_attachment(host);
        again.iter().for_each(|words| drop(host.podman(words).ok().to_owned()));
        let after = is_attached(host, "web", "six");
        assert_ne!(before.address, after.address, "{again:?}");
    }
    host.podman(&["network", "disconnect", "six", "web"]).ok();
    assert_eq!(host.attachments(), []);
    let inside = host.podman(&["exec", "web", "ip", "-6", "addr"]);
    assert!(!inside.ok().contains("scope global"), "{inside}");
    ends(host, "web");
}

/// IPv4 and published ports by the bridge, IPv6 by v6pod.
#[track_caller]
fn a_bridge_may_stand_beside_it(host: &WholeHost) {
    let both = ["--network", "podman", "--network", "six", "--publish", "8080:80"];
    starts(host, "web", &both).ok();
    let attachment = is_attached(host, "web", "six");
    let inside = host.podman(&["exec", "web", "ip", "addr"]);
    assert!(inside.ok().contains("inet 10.88."), "{inside}");
    let route = host.podman(&["exec", "web", "ip", "-6", "route", "show", "default"]);
    assert!(route.ok().contains(attachment.interface.as_str()), "{route}");
    ends(host, "web");
}

#[track_caller]
fn a_container_has_one_address_and_wishes_none(host: &WholeHost) {
    let two = starts(host, "web", &["--network", "six", "--network", "seven"]);
    assert!(two.fails().contains("one address of v6pod's"), "{two}");
    ends(host, "web");
    for option in ["--ip6=2001:db8::5", "--mac-address=02:00:00:00:00:01"] {
        let fixed = starts(host, "web", &["--network", "six", option]);
        assert!(fixed.fails().contains("v6podd gives addresses itself"), "{fixed}");
        ends(host, "web");
    }

    starts(host, "web", &["--network", "six"]).ok();
    let before = is_attached(host, "web", "six");
    let second = host.podman(&["network", "connect", "seven", "web"]);
    assert!(second.fails().contains("has that of six"), "{second}");
    // Podman 5.4 takes it for connected all the same, and has the plugin end what it did not begin.
    host.podman(&["network", "disconnect", "seven", "web"]);
    assert_eq!(is_attached(host, "web", "six").address, before.address);
    ends(host, "web");
}

/// Which comes second, before a user namespace of podman's and after one of the container's own.
#[track_caller]
fn the_hook_attaches_nothing_twice(host: &WholeHost) {
    let wishes = ["--annotation=v6pod=true", "--annotation=v6pod.name=other"];
    let on_it = [&wishes[..], &["--network", "six"]].concat();
    starts(host, "web", &on_it).ok();
    let attachment = is_attached(host, "web", "six");
    assert_eq!(attachment.names[0].name, "other");
    host.podman(&["restart", "--time", "0", "web"]).ok();
    assert_ne!(is_attached(host, "web", "six").address, attachment.address);
    ends(host, "web");

    starts(host, "web", &["--network", "six", "--uidmap=0:200000:65536"]).ok();
    assert_eq!(is_attached(host, "web", "six").interface.as_str(), "eth0");
    ends(host, "web");
    starts(host, "web", &[&on_it[..], &["--uidmap=0:200000:65536"]].concat()).ok();
    let attachment = is_attached(host, "web", "six");
    assert_eq!((attachment.interface.as_str(), &attachment.network), ("v6eth0", &None));
    host.podman(&["network", "disconnect", "six", "web"]).ok();
    assert_eq!(host.attachments(), []);
    ends(host, "web");
}

#[track_caller]
fn a_pod_has_one_for_all(host: &WholeHost) {
    host.podman(&["pod", "create", "--name", "pod", "--network", "six"]).ok();
    starts(host, "one", &["--pod", "pod"]).ok();
    starts(host, "two", &["--pod", "pod", "--annotation=v6pod=true"]).ok();
    let attachment = the_attachment(host);
    assert_eq!(attachment.name.as_deref(), Some("pod"));
    is_reached(host, attachment.address);
    host.podman(&["pod", "rm", "--force", "--time", "0", "pod"]).ok();
    assert_eq!(host.attachments(), []);
}

/// Where podman hides /run, and where containers have their address anyway.
#[track_caller]
fn an_ordinary_users_networks_are_refused(host: &WholeHost) {
    let user = host.log_in("anna");
    let refused = user.podman(&["network", "create", "--driver", "v6pod", "own"]);
    assert!(refused.fails().contains("are root's"), "{refused}");
    let hidden = user.podman(&["unshare", "--rootless-netns", "ls", "/run/v6pod"]);
    assert!(hidden.fails().contains("No such file"), "{hidden}");
}

#[track_caller]
fn networks(suite: Suite) {
    let host = WholeHost::serving(suite);
    host.root();
    // Podman takes away what is mounted there for a container with a user namespace, and cannot take
    // what nspawn has put there.
    host.sh("umount --recursive /sys/kernel").ok();
    let before = host.footprint();
    what_there_is_not_is_refused_at_once(&host);
    for network in ["six", "seven"] {
        assert_eq!(create(&host, network, &[]).ok(), network);
    }
    a_container_comes_restarts_moves_and_goes(&host);
    a_bridge_may_stand_beside_it(&host);
    a_container_has_one_address_and_wishes_none(&host);
    the_hook_attaches_nothing_twice(&host);
    a_pod_has_one_for_all(&host);
    host.podman(&["network", "rm", "six", "seven"]).ok();
    before.comes_back(&host);
    an_ordinary_users_networks_are_refused(&host);
}

#[test]
fn roots_podman_of_debian_13_has_networks_of_this_driver() {
    let _machine = require!(WholeHost);
    networks(Suite::Trixie);
}

#[test]
#[ignore = "make test-matrix"]
fn roots_podman_of_debian_14_has_networks_of_this_driver() {
    let _machine = require!(WholeHost);
    networks(Suite::Forky);
}

#[test]
#[ignore = "make test-matrix"]
fn roots_podman_of_debians_experimental_has_networks_of_this_driver() {
    let _machine = require!(WholeHost);
    networks(Suite::Experimental);
}

#[test]
fn it_is_there_again_after_a_kill_and_after_a_reboot() {
    let _machine = require!(WholeHost);
    let host = WholeHost::serving(Suite::Trixie);
    host.root();
    create(&host, "six", &[]).ok();
    starts(&host, "always", &["--network", "six", "--restart=always"]).ok();
    host.systemctl("enable podman-restart.service").ok();
    host.write("/etc/containers/systemd/quadlet.network", NETWORK);
    host.write("/etc/containers/systemd/unit.container", CONTAINER);
    host.systemctl("daemon-reload").ok();
    host.systemctl("start unit.service").ok();
    let have_their_addresses = |host: &WholeHost| {
        let all = eventually(PATIENCE * 3, "both have an address", || {
            let mut all = host.attachments();
            all.sort_by(|a, b| a.name.cmp(&b.name));
            let names: Vec<_> = all.iter().filter_map(|a| a.name.as_deref()).collect();
            (names == ["always", "unit"]).then_some(all)
        });
        all.iter().for_each(|attachment| is_reached(host, attachment.address));
        all
    };
    let first = have_their_addresses(&host);
    host.systemctl("kill --signal=KILL v6podd.service").ok();
    let second = have_their_addresses(&host);
    let addresses = |all: &[Attachment]| all.iter().map(|a| a.address).collect::<Vec<_>>();
    assert_eq!(addresses(&first), addresses(&second), "the daemon was away and nothing else");
    // Podman starts what has ended, and not the daemon.
    let pid = host.podman(&["inspect", "--format", "{{.State.Pid}}", "always"]).ok().to_owned();
    host.sh(&format!("kill -9 {pid}")).ok();
    eventually(PATIENCE, "it runs again", || {
        let now = host.podman(&["inspect", "--format", "{{.State.Pid}}", "always"]);
        (now.ok() != pid && now.ok() != "0").then_some(())
    });
    have_their_addresses(&host);
    let host = host.reboot();
    have_their_addresses(&host);
}

#[test]
fn without_a_daemon_nothing_starts_and_what_runs_can_end() {
    let _machine = require!(WholeHost);
    let host = WholeHost::serving(Suite::Trixie);
    host.root();
    create(&host, "six", &[]).ok();
    let before = host.footprint();
    starts(&host, "web", &["--network", "six"]).ok();
    is_attached(&host, "web", "six");
    host.systemctl("stop v6podd.socket v6podd.service").ok();
    let refused = starts(&host, "late", &["--network", "six"]);
    assert!(refused.fails().contains("v6podd is not running"), "{refused}");
    // Podman says that it could tell nobody, and removes it.
    let told = host.podman(&["rm", "--force", "--time", "0", "web"]);
    assert!(told.fails().contains("v6podd is not running"), "{told}");
    host.podman(&["rm", "late"]).ok();
    assert_eq!(host.podman(&["ps", "--all", "--quiet"]).ok(), "");
    host.systemctl("start v6podd.socket v6podd.service").ok();
    before.comes_back(&host);
}
