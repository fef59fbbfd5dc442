//! Issue 4, line 2: v6pod-cni does what the CNI specification asks of a plugin. Each case is tried on the
//! CNI project's own bridge plugin first, so that it is known to be one.
//!
//! ```text
//!   root ── v6pod-cni ── v6podd ── v6t0 ── port ── eth0 ┌ a namespace of root's ┐
//!        └─ bridge + host-local ── v6tc0 ── veth ─ eth0 ┌ another               ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

mod plugin;

use std::fs;
use std::net::Ipv6Addr;
use std::thread;

use plugin::Plugin;
use serde_json::{Value, json};
use v6pod_tests::{Config, Daemon, HostNs, OwnedNs, PATIENCE, Suite, eventually, require, run};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

fn netns(namespace: &OwnedNs) -> String {
    format!("/proc/{}/ns/net", namespace.pid())
}

/// A namespace as a root's engine makes them.
fn namespace() -> OwnedNs {
    OwnedNs::of_uid(0, false)
}

#[track_caller]
fn address_in(result: &Value) -> Ipv6Addr {
    let text = result["ips"][0]["address"].as_str().expect("an address").to_owned();
    text.split('/').next().and_then(|address| address.parse().ok()).expect("an IPv6 address")
}

#[track_caller]
fn is_empty(daemon: &Daemon) {
    eventually(PATIENCE, "nothing is left", || daemon.attachments().is_empty().then_some(()));
}

#[test]
fn added_checked_and_deleted_and_deleted_again() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let before = daemon.footprint();
    for plugin in [Plugin::bridge(&host), Plugin::ours(&host, &daemon)] {
        let inside = namespace();
        let netns = netns(&inside);
        let result = plugin.of("ADD", ID, &netns, &plugin.config).ok();
        assert_eq!(result["cniVersion"], "1.0.0", "{result}");
        let address = address_in(&result);
        assert!(inside.addresses().contains(&address), "{address} is not inside: {result}");
        let interface = result["ips"][0]["interface"].as_u64().expect("an interface");
        let interface = &result["interfaces"][usize::try_from(interface).expect("a small number")];
        assert_eq!((&interface["name"], &interface["sandbox"]), (&"eth0".into(), &json!(netns)));

        let checked = plugin.with("prevResult", result.clone());
        plugin.of("CHECK", ID, &netns, &checked).ok();
        inside.run("ip", &["-6", "addr", "del", &format!("{address}/128"), "dev", "eth0"]);
        inside.run("ip", &["-6", "addr", "del", &format!("{address}/64"), "dev", "eth0"]);
        let broken = plugin.of("CHECK", ID, &netns, &checked);
        assert!(broken.code.is_some(), "{}: the address is gone", plugin.program.display());

        plugin.of("DEL", ID, &netns, &checked).ok();
        plugin.of("DEL", ID, &netns, &checked).ok();
        assert_eq!(inside.addresses(), [Ipv6Addr::UNSPECIFIED; 0]);
    }
    is_empty(&daemon);
    host.ip("link del v6tc0").ok();
    before.comes_back(&daemon);
}

#[test]
fn a_second_add_is_refused_and_the_first_left_intact() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    for plugin in [Plugin::bridge(&host), Plugin::ours(&host, &daemon)] {
        let inside = namespace();
        let netns = netns(&inside);
        let first = address_in(&plugin.of("ADD", ID, &netns, &plugin.config).ok());
        assert!(plugin.of("ADD", ID, &netns, &plugin.config).code.is_some());
        assert_eq!(inside.addresses(), [first], "{}", plugin.program.display());
    }
    // What an engine does after a failed ADD of another interface or network: DEL of just that.
    let ours = Plugin::ours(&host, &daemon);
    let inside = namespace();
    let path = netns(&inside);
    let first = address_in(&ours.of("ADD", OTHER, &path, &ours.config).ok());
    let second = [("CNI_CONTAINERID", OTHER), ("CNI_NETNS", &path), ("CNI_IFNAME", "eth1")];
    let config = ours.config.to_string();
    assert_eq!(ours.call("ADD", &second, &config).code, Some(101));
    assert_eq!(ours.call("DEL", &second, &config).code, None);
    ours.of("DEL", OTHER, &path, &ours.with("name", "seven")).ok();
    assert_eq!(inside.addresses(), [first]);
    assert!(daemon.attachments().iter().any(|a| a.address == first));
}

#[test]
fn what_is_gone_is_deleted_without_a_word() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let mut daemon = Daemon::start(&host);
    for plugin in [Plugin::bridge(&host), Plugin::ours(&host, &daemon)] {
        let inside = namespace();
        let path = netns(&inside);
        // Never heard of; without a namespace; with one that has gone since.
        plugin.of("DEL", OTHER, &path, &plugin.config).ok();
        plugin.of("DEL", OTHER, "", &plugin.config).ok();
        plugin.of("ADD", ID, &path, &plugin.config).ok();
        drop(inside);
        plugin.of("DEL", ID, &path, &plugin.config).ok();
        let inside = namespace();
        plugin.of("ADD", ID, &netns(&inside), &plugin.config).ok();
        plugin.of("DEL", ID, "", &plugin.config).ok();
    }
    is_empty(&daemon);
    // And with nobody there to be told: the kernel tells it to the daemon that comes.
    let ours = Plugin::ours(&host, &daemon);
    let inside = namespace();
    let path = netns(&inside);
    ours.of("ADD", ID, &path, &ours.config).ok();
    daemon.kill9();
    assert_eq!(ours.of("DEL", ID, &path, &ours.config).code, Some(11), "it is to be tried again");
    drop(inside);
    ours.of("DEL", ID, &path, &ours.config).ok();
    daemon.restart();
    is_empty(&daemon);
}

#[test]
fn errors_have_the_specifications_codes() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let before = daemon.footprint();
    let inside = namespace();
    let path = netns(&inside);
    let add = |id: &str, netns: &str, ifname: &str, plugin: &Plugin<'_>, config: &Value| {
        let pairs = [("CNI_CONTAINERID", id), ("CNI_NETNS", netns), ("CNI_IFNAME", ifname)];
        plugin.call("ADD", &pairs, &config.to_string()).code
    };
    // What the library that most plugins are made with answers, and all have in common.
    for plugin in [Plugin::bridge(&host), Plugin::ours(&host, &daemon)] {
        let config = &plugin.config;
        let which = plugin.program.display();
        let version = plugin.with("cniVersion", "99.0.0");
        assert_eq!(add(ID, &path, "eth0", &plugin, &version), Some(1), "{which}");
        assert_eq!(add("", &path, "eth0", &plugin, config), Some(4), "{which}");
        assert_eq!(add(ID, "", "eth0", &plugin, config), Some(4), "{which}");
        assert_eq!(add(ID, &path, "a/b", &plugin, config), Some(4), "{which}");
        assert_eq!(plugin.of("PLUG", ID, &path, config).code, Some(4), "{which}");
        assert_eq!(plugin.unread("ADD", ID, &path).code, Some(5), "{which}");
        let all = [("CNI_CONTAINERID", ID), ("CNI_NETNS", &path), ("CNI_IFNAME", "eth0")];
        assert_eq!(plugin.call("ADD", &all, "{").code, Some(6), "{which}");
        for name in [Value::Null, "".into(), "a/b".into()] {
            let named = plugin.with("name", name.clone());
            assert_eq!(add(ID, &path, "eth0", &plugin, &named), Some(7), "{which}, {name}");
        }
    }
    // The bridge plugin fails for the same reasons as ours, and has one code for all of them.
    let refused = |plugin: &Plugin<'_>, netns: &str, config: &Value, code: u64| {
        let which = plugin.program.display();
        let seen = add(ID, netns, "eth0", plugin, config);
        assert_eq!(seen, Some(code), "{which}, {netns}: {config}");
    };
    let (bridge, ours) = (Plugin::bridge(&host), Plugin::ours(&host, &daemon));
    let mut at_odds = bridge.with("hairpinMode", true);
    at_odds["promiscMode"] = true.into();
    refused(&bridge, &path, &at_odds, 999);
    refused(&ours, &path, &ours.with("ipam", json!({ "type": "host-local" })), 2);
    refused(&bridge, "/nowhere", &bridge.config, 999);
    refused(&ours, "/nowhere", &ours.config, 3);
    refused(&bridge, "/etc/passwd", &bridge.config, 999);
    refused(&ours, "/etc/passwd", &ours.config, 100);
    // Whom each of them asks is away.
    refused(&bridge, &path, &bridge.with("ipam", json!({ "type": "away" })), 999);
    refused(&ours, &path, &ours.with("socket", "/nowhere.sock"), 11);
    assert_eq!(inside.addresses(), [Ipv6Addr::UNSPECIFIED; 0]);
    // What the bridge plugin makes before it asks, it leaves.
    inside.run("ip", &["link", "del", "eth0"]);
    host.ip("link del v6tc0").ok();
    before.comes_back(&daemon);
}

#[test]
fn versions_are_told_and_each_is_spoken() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    speaks(&Plugin::bridge(&host), &["0.4.0", "1.0.0"]);
    speaks(&Plugin::ours(&host, &daemon), &["0.4.0", "1.0.0", "1.1.0"]);
}

/// Tells of these versions, and gives ADD's result in the one it is asked in.
#[track_caller]
fn speaks(plugin: &Plugin<'_>, versions: &[&str]) {
    let which = plugin.program.display();
    let told = plugin.call("VERSION", &[], r#"{"cniVersion":"1.0.0"}"#).ok();
    let supported = told["supportedVersions"].as_array().expect("a list");
    for version in versions.iter().copied() {
        assert!(supported.contains(&version.into()), "{which}: {told}");
        let inside = namespace();
        let config = plugin.with("cniVersion", version);
        let result = plugin.of("ADD", ID, &netns(&inside), &config).ok();
        assert_eq!(result["cniVersion"], version, "{which}");
        let numbered = result["ips"][0]["version"] == "6";
        assert_eq!(numbered, version == "0.4.0", "only the old ones number the family: {result}");
        assert_eq!(inside.addresses(), [address_in(&result)], "{which}");
        plugin.of("DEL", ID, &netns(&inside), &config).ok();
    }
}

/// As containerd's default network is: a bridge for IPv4, and this one after it.
#[test]
fn after_another_plugin_it_adds_an_interface_and_keeps_what_came_before() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let (bridge, ours) = (Plugin::bridge(&host), Plugin::ours(&host, &daemon));
    let inside = namespace();
    let path = netns(&inside);
    let first = bridge.of("ADD", ID, &path, &bridge.config).ok();
    // Both want CNI_IFNAME unless told otherwise.
    let clash = ours.with("prevResult", first.clone());
    assert_eq!(ours.of("ADD", ID, &path, &clash).code, Some(101));
    let mut chained = ours.with("interface", "v6eth0");
    chained["prevResult"] = first.clone();
    let result = ours.of("ADD", ID, &path, &chained).ok();
    let (before, after) = (first["interfaces"].as_array(), result["interfaces"].as_array());
    let (before, after) = (before.expect("a list"), after.expect("a list"));
    assert_eq!(&after[..before.len()], &before[..]);
    assert_eq!(after.last().map(|interface| &interface["name"]), Some(&"v6eth0".into()));
    assert_eq!(result["ips"][0], first["ips"][0]);
    assert_eq!(result["ips"][1]["interface"], json!(after.len() - 1));
    chained["prevResult"] = result;
    ours.of("CHECK", ID, &path, &chained).ok();
    ours.of("DEL", ID, &path, &chained).ok();
    is_empty(&daemon);
    assert_eq!(inside.addresses().len(), 1, "the bridge's is still there");
}

#[test]
fn gc_takes_what_the_engine_does_not_know_and_nothing_else() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let mut ours = Plugin::ours(&host, &daemon);
    ours.config = ours.with("cniVersion", "1.1.0");
    let spaces: Vec<_> = (0..4).map(|_| namespace()).collect();
    let ids: Vec<_> = (0..4).map(|n| format!("{n:064x}")).collect();
    let add = |n: usize, config: &Value| {
        address_in(&ours.of("ADD", &ids[n], &netns(&spaces[n]), config).ok())
    };
    let kept = add(0, &ours.config);
    let stale = add(1, &ours.config);
    let others = add(2, &ours.with("name", "seven"));
    // One that no CNI made.
    let request = v6pod_proto::Activate::new(ids[3].parse().expect("an id"));
    let file = fs::File::open(netns(&spaces[3])).expect("opening a namespace");
    let (answer, _) = daemon.root().activate(&request, std::os::fd::AsFd::as_fd(&file));
    let podmans = answer.unwrap_or_else(|refused| panic!("{refused}")).address;

    assert_eq!(ours.call("GC", &[], &ours.config.to_string()).code, Some(7), "without a list");
    let valid = json!([{ "containerID": ids[0], "ifname": "eth0" }]);
    let config = ours.with("cni.dev/valid-attachments", valid).to_string();
    ours.call("GC", &[], &config).ok();
    ours.call("GC", &[], &config).ok();
    let left: Vec<_> = daemon.attachments().iter().map(|a| a.address).collect();
    assert!([kept, others, podmans].iter().all(|address| left.contains(address)), "{left:?}");
    assert!(!left.contains(&stale), "{left:?}");
}

#[test]
fn status_tells_whether_an_add_could_succeed() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let mut daemon = Daemon::start(&host);
    let ours = Plugin::ours(&host, &daemon);
    let config = ours.with("cniVersion", "1.1.0").to_string();
    assert_eq!(ours.call("STATUS", &[], &config).code, None);
    assert_eq!(ours.call("STATUS", &[], &ours.config.to_string()).code, Some(1), "not in 1.0.0");
    daemon.kill9();
    assert_eq!(ours.call("STATUS", &[], &config).code, Some(50));
}

/// The bridge plugin of Debian 14 speaks 1.1.0. Its GC collects nothing: what its engine does not
/// know keeps its address for good, which is what ours has to take away.
#[test]
#[ignore = "make test-matrix"]
fn status_and_gc_are_answered_as_by_the_bridge_plugin_of_debian_14() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let mut daemon = Daemon::start(&host);
    let bridge = Plugin::bridge_in(&host, &Suite::Forky.root().join("usr/lib/cni"));
    let ours = Plugin::ours(&host, &daemon);
    for plugin in [&bridge, &ours] {
        let which = plugin.program.display();
        speaks(plugin, &["0.4.0", "1.0.0", "1.1.0"]);
        for (version, code) in [("1.1.0", None), ("1.0.0", Some(1))] {
            let mut config = plugin.with("cniVersion", version);
            config["cni.dev/valid-attachments"] = json!([]);
            for command in ["STATUS", "GC", "GC"] {
                let seen = plugin.call(command, &[], &config.to_string());
                assert_eq!(seen.code, code, "{which}, {version}, {command}: {}", seen.answer);
            }
        }
    }

    // What is gone: its engine knows it no more, and its namespace is no more.
    let left = |plugin: &Plugin<'_>, count: &dyn Fn() -> usize| {
        let config = plugin.with("cniVersion", "1.1.0");
        let inside = namespace();
        plugin.of("ADD", ID, &netns(&inside), &config).ok();
        assert_eq!(count(), 1);
        let mut valid = config;
        valid["cni.dev/valid-attachments"] = json!([]);
        plugin.call("GC", &[], &valid.to_string()).ok();
        count()
    };
    let reserved = || {
        let folder = fs::read_dir(bridge.files.path().join("peer")).expect("host-local's folder");
        folder.flatten().filter(|file| file.file_name().as_encoded_bytes().contains(&b':')).count()
    };
    assert_eq!(left(&bridge, &reserved), 1, "the case bites");
    assert_eq!(left(&ours, &|| daemon.attachments().len()), 0);

    // Whom each of them needs for an ADD is away.
    let mut alone = bridge.with("cniVersion", "1.1.0");
    alone["ipam"]["type"] = "away".into();
    assert_eq!(bridge.call("STATUS", &[], &alone.to_string()).code, Some(999));
    daemon.kill9();
    let config = ours.with("cniVersion", "1.1.0");
    assert_eq!(ours.call("STATUS", &[], &config.to_string()).code, Some(50));
}

/// As nerdctl without root runs it: as root of a user namespace of its own.
#[test]
fn a_user_without_root_has_his_own() {
    let _machine = require!(Podman);
    let stage = v6pod_tests::Stage::with_users(1);
    let (host, daemon) = (&stage.host, &stage.daemon);
    let ours = Plugin::ours(host, daemon);
    let inside = OwnedNs::new(&stage.users[0]);
    let file = ours.files.path().join("config.json");
    fs::write(&file, ours.config.to_string()).expect("writing a file");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(ours.files.path(), open).expect("opening a folder");
    let as_user = |command: &str| {
        let mut shell = stage.users[0].command("nsenter");
        let target = inside.pid().to_string();
        shell.args(["--user", "--preserve-credentials", "--target", &target, "env"]);
        shell.arg(format!("CNI_COMMAND={command}")).arg(format!("CNI_CONTAINERID={ID}"));
        shell.arg(format!("CNI_NETNS={}", netns(&inside))).arg("CNI_IFNAME=eth0");
        shell.args(["sh", "-c", "exec \"$0\" < \"$1\""]).arg(&ours.program).arg(&file);
        run(&mut shell)
    };
    let result: Value = serde_json::from_str(as_user("ADD").ok()).expect("JSON");
    assert_eq!(inside.addresses(), [address_in(&result)]);
    // Root's engine with a network of the same name does not take it for its own.
    ours.of("DEL", ID, &netns(&inside), &ours.config).ok();
    assert_eq!(daemon.attachments().len(), 1);
    as_user("DEL").ok();
    is_empty(daemon);
}

/// Attack 28, on its peer: an ADD that is killed half way leaves an interface that no later ADD gets over,
/// and a port that nobody takes away.
#[test]
fn attack_28_a_peer_that_is_killed_half_way_leaves_its_port() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let bridge = Plugin::bridge(&host);
    let inside = namespace();
    let path = netns(&inside);
    bridge.is_killed_half_way(ID, &path);
    let ports = || host.ip("-o link show master v6tc0").ok().lines().count();
    assert_eq!(ports(), 1);
    assert_eq!(bridge.of("ADD", ID, &path, &bridge.config).code, Some(999));
    assert_eq!(inside.addresses(), [Ipv6Addr::UNSPECIFIED; 0]);
    assert_eq!(ports(), 1, "it is still there");
}

#[test]
fn attack_28_an_add_that_a_crash_left_without_its_answer_gets_it_and_no_other_does() {
    let _machine = require!(Root);
    for point in ["making:recorded", "making:wired", "making:answering"] {
        let host = HostNs::new();
        let mut daemon = Daemon::prepared(&host, &Config::default());
        assert!(daemon.restart_to_die_at(point), "{}", daemon.log());
        let plugin = Plugin::ours(&host, &daemon);
        let inside = namespace();
        let netns = netns(&inside);
        let result = thread::scope(|scope| {
            let added = scope.spawn(|| plugin.of("ADD", ID, &netns, &plugin.config));
            daemon.has_died();
            daemon.restart();
            added.join().expect("the plugin runs")
        });
        let attachment = daemon.the_attachment();
        assert_eq!(address_in(&result.ok()), attachment.address, "{point}");
        assert_eq!(inside.addresses(), [attachment.address], "{point}");
        for id in [ID, OTHER] {
            assert_eq!(plugin.of("ADD", id, &netns, &plugin.config).code, Some(101), "{point}");
        }
        assert_eq!(daemon.the_attachment(), attachment, "{point}");
        plugin.of("DEL", ID, &netns, &plugin.config).ok();
        is_empty(&daemon);
    }
}
