//! Issue 4, line 2: v6pod-cni does what the CNI specification asks of a plugin. Each case is tried on the
//! CNI project's own bridge plugin first, so that it is known to be one.
//!
//! ```text
//!   root ── v6pod-cni ── v6podd ── v6t0 ── port ── eth0 ┌ a namespace of root's ┐
//!        └─ bridge + host-local ── v6tc0 ── veth ─ eth0 ┌ another               ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};
use v6pod_tests::{
    Config, Daemon, HostNs, OwnedNs, PATIENCE, Suite, built, eventually, require, run,
};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

/// Debian's containernetworking-plugins. Up to Debian 13 they speak no version with STATUS and GC.
const PLUGINS: &str = "/usr/lib/cni";

/// A plugin with its configuration.
struct Plugin<'a> {
    host: &'a HostNs,
    program: PathBuf,
    config: Value,
    files: tempfile::TempDir,
}

/// What a call came to.
#[derive(Debug)]
struct Outcome {
    /// The error's code, or none if it went well.
    code: Option<u64>,
    answer: Value,
}

impl Outcome {
    #[track_caller]
    fn ok(self) -> Value {
        assert_eq!(self.code, None, "{}", self.answer);
        self.answer
    }
}

impl<'a> Plugin<'a> {
    fn ours(host: &'a HostNs, daemon: &Daemon) -> Self {
        let socket = daemon.socket();
        let config = json!({
            "cniVersion": "1.0.0", "name": "six", "type": "v6pod", "socket": socket,
        });
        Self::new(host, built("v6pod-cni"), config)
    }

    fn bridge(host: &'a HostNs) -> Self {
        let mut this = Self::new(host, Path::new(PLUGINS).join("bridge"), Value::Null);
        this.config = json!({
            "cniVersion": "1.0.0", "name": "peer", "type": "bridge", "bridge": "v6tc0",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "2001:db8:99::/64" }]],
                "dataDir": this.files.path(),
            },
        });
        this
    }

    fn new(host: &'a HostNs, program: PathBuf, config: Value) -> Self {
        Self { host, program, config, files: tempfile::tempdir().expect("a folder") }
    }

    fn with(&self, key: &str, value: impl Into<Value>) -> Value {
        let mut config = self.config.clone();
        config[key] = value.into();
        config
    }

    /// Runs it with this environment and configuration.
    #[track_caller]
    fn call(&self, command: &str, pairs: &[(&str, &str)], config: &str) -> Outcome {
        let file = self.files.path().join("config.json");
        fs::write(&file, config).expect("writing a file");
        let mut shell = self.host.command("sh");
        shell.args(["-c", "exec \"$0\" < \"$1\""]).arg(&self.program).arg(&file);
        shell.env("CNI_COMMAND", command).env("CNI_PATH", PLUGINS).envs(pairs.iter().copied());
        let finished = run(&mut shell);
        let text = finished.stdout.trim();
        let answer: Value = match text {
            "" => Value::Null,
            text => {
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {finished}"))
            }
        };
        let code = match finished.status.success() {
            true => None,
            false => Some(answer["code"].as_u64().unwrap_or_else(|| panic!("no code: {finished}"))),
        };
        Outcome { code, answer }
    }

    /// For the container of this id in this namespace.
    #[track_caller]
    fn of(&self, command: &str, id: &str, netns: &str, config: &Value) -> Outcome {
        let pairs = [("CNI_CONTAINERID", id), ("CNI_NETNS", netns), ("CNI_IFNAME", "eth0")];
        self.call(command, &pairs, &config.to_string())
    }
}

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
    for plugin in [Plugin::bridge(&host), Plugin::ours(&host, &daemon)] {
        let config = plugin.config.to_string();
        let which = plugin.program.display();
        let version = plugin.with("cniVersion", "99.0.0");
        assert_eq!(plugin.of("ADD", ID, &path, &version).code, Some(1), "{which}");
        assert_eq!(plugin.of("ADD", "", &path, &plugin.config).code, Some(4), "{which}");
        assert_eq!(plugin.of("ADD", ID, "", &plugin.config).code, Some(4), "{which}");
        let ifname = [("CNI_CONTAINERID", ID), ("CNI_NETNS", &path), ("CNI_IFNAME", "a/b")];
        assert_eq!(plugin.call("ADD", &ifname, &config).code, Some(4), "{which}");
        assert_eq!(plugin.call("PLUG", &ifname, &config).code, Some(4), "{which}");
        let ifname = [("CNI_CONTAINERID", ID), ("CNI_NETNS", &path), ("CNI_IFNAME", "eth0")];
        assert_eq!(plugin.call("ADD", &ifname, "{").code, Some(6), "{which}");
        assert!(plugin.of("ADD", ID, "/nowhere", &plugin.config).code.is_some(), "{which}");
    }
    let ours = Plugin::ours(&host, &daemon);
    assert_eq!(ours.of("ADD", ID, "/nowhere", &ours.config).code, Some(3));
    assert_eq!(ours.of("ADD", ID, "/etc/passwd", &ours.config).code, Some(100));
    let ipam = ours.with("ipam", json!({ "type": "host-local" }));
    assert_eq!(ours.of("ADD", ID, &path, &ipam).code, Some(2));
    let away = ours.with("socket", "/nowhere.sock");
    assert_eq!(ours.of("ADD", ID, &path, &away).code, Some(11));
    assert_eq!(inside.addresses(), [Ipv6Addr::UNSPECIFIED; 0]);
    // The bridge plugin makes its bridge before it looks for the namespace.
    host.ip("link del v6tc0").ok();
    before.comes_back(&daemon);
}

#[test]
fn versions_are_told_and_each_is_spoken() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let ours = Plugin::ours(&host, &daemon);
    for plugin in [&Plugin::bridge(&host), &ours] {
        let told = plugin.call("VERSION", &[], r#"{"cniVersion":"1.0.0"}"#).ok();
        let versions = told["supportedVersions"].as_array().expect("a list").clone();
        assert!(versions.contains(&"0.4.0".into()) && versions.contains(&"1.0.0".into()), "{told}");
    }
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let inside = namespace();
        let config = ours.with("cniVersion", version);
        let result = ours.of("ADD", ID, &netns(&inside), &config).ok();
        assert_eq!(result["cniVersion"], version);
        let numbered = result["ips"][0]["version"] == "6";
        assert_eq!(numbered, version == "0.4.0", "only the old ones number the family: {result}");
        assert_eq!(inside.addresses(), [address_in(&result)]);
        ours.of("DEL", ID, &netns(&inside), &config).ok();
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

/// The project's own has STATUS and, with nothing to do in it, GC.
#[test]
#[ignore = "make test-matrix"]
fn status_and_gc_are_answered_as_by_the_bridge_plugin_of_debian_14() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let mut bridge = Plugin::bridge(&host);
    // With the host-local of its own: STATUS asks that one too.
    let folder = Suite::Forky.root().join("usr/lib/cni");
    bridge.program = folder.join("bridge");
    let path = [("CNI_PATH", folder.to_str().expect("UTF-8"))];
    for plugin in [bridge, Plugin::ours(&host, &daemon)] {
        let which = plugin.program.display();
        let told = plugin.call("VERSION", &[], r#"{"cniVersion":"1.1.0"}"#).ok();
        let versions = told["supportedVersions"].as_array().expect("a list");
        assert!(versions.contains(&"1.1.0".into()), "{which}: {told}");
        for (version, code) in [("1.1.0", None), ("1.0.0", Some(1))] {
            let mut config = plugin.with("cniVersion", version);
            config["cni.dev/valid-attachments"] = json!([]);
            for command in ["STATUS", "GC", "GC"] {
                let seen = plugin.call(command, &path, &config.to_string());
                assert_eq!(seen.code, code, "{which}, {version}, {command}: {}", seen.answer);
            }
        }
    }
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

#[test]
fn an_add_that_a_crash_left_without_its_answer_gets_it_and_no_other_does() {
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
