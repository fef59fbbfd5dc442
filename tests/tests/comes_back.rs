//! Issue 4, lines 4 to 6: containers that somebody other than a person at a prompt starts, before and
//! after a reboot; containers that start while the daemon is stopped or hangs; a package that comes and goes
//! under containers that run.
//!
//! ```text
//!   outside ── up0 ┌ Debian 13, podman 5.4 ── v6podd ────────────────────────────────────┐
//!                  │ --restart=always │ Quadlet │ kube play │ podman's socket: anna's own │
//!                  └──────────────────────────── power off, power on ────────────────────┘
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use v6pod_tests::{
    Ends, IMAGE, Login, PATIENCE, PREFIX, Place as _, Suite, WholeHost, eventually, require, run,
    shown_to_users,
};

/// The unit that docs/users.md shows, of a container that sleeps.
#[track_caller]
fn quadlet() -> String {
    let shown = shown_to_users("ini\n[Container]\n").replace("Name=web", "Name=quadlet");
    format!("[Container]\nExec=sleep 1000\n{shown}")
}

/// Podman puts it on a bridge of its own, where an address has to be asked for.
const KUBE: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: kube
  annotations:
    v6pod: 'true'
spec:
  restartPolicy: Always
  containers:
    - name: c
      image: localhost/v6test
      command: [sleep, '1000']
";

/// Shows what a container sees of its network, without what differs from one time to the next.
const LOOK: &str = "{ ip -o addr; ip route; ip -6 route; } | tr -s ' ' | \
                    sed 's/valid_lft.*//; s/expires.*//; s/tentative //; \
                         s/::[0-9a-f:]*ff:fe[0-9a-f:]*/::EUI-64/'";

/// How many containers run while the package comes and goes.
const MANY: usize = 10;

#[track_caller]
fn is_reached(host: &WholeHost, address: Ipv6Addr) {
    let address = address.to_string();
    run(host.net().outside("ping").args(["-n", "-c", "1", "-W", "10", &address])).ok();
}

/// Waits until these have an address each, by the names that they are to be found by, and are reached.
#[track_caller]
fn have_their_addresses(host: &WholeHost, names: &[&str]) -> BTreeMap<String, Ipv6Addr> {
    let found = eventually(PATIENCE * 3, "every container has its address", || {
        let all = host.attachments();
        let by_name: BTreeMap<_, _> =
            all.iter().filter_map(|a| Some((a.names.first()?.name.clone(), a.address))).collect();
        let all_there = names.iter().all(|name| by_name.keys().any(|key| key.contains(name)));
        (all_there && all.len() == names.len()).then_some(by_name)
    });
    found.values().for_each(|address| is_reached(host, *address));
    found
}

#[track_caller]
fn starts_one_of_each(user: &Login<'_>) {
    let always = ["run", "-d", "--name", "always", "--restart=always", "-p", "8080:80"];
    user.podman(&[&always[..], &[IMAGE, "sleep", "1000"]].concat()).ok();
    user.run("systemctl", &["--user", "enable", "podman-restart.service"]).ok();

    let units = "$HOME/.config/containers/systemd";
    let script = format!("mkdir -p {units} && printf %s \"$1\" >{units}/quadlet.container");
    user.run("sh", &["-ec", &script, "sh", &quadlet()]).ok();
    user.run("systemctl", &["--user", "daemon-reload"]).ok();
    user.run("systemctl", &["--user", "start", "quadlet.service"]).ok();

    user.run("sh", &["-ec", "printf %s \"$1\" >kube.yaml", "sh", KUBE]).ok();
    user.podman(&["kube", "play", "kube.yaml"]).ok();

    user.run("systemctl", &["--user", "enable", "--now", "podman.socket"]).ok();
    let remote = ["--remote", "run", "-d", "--name", "remote", "--restart=always"];
    user.podman(&[&remote[..], &[IMAGE, "sleep", "1000"]].concat()).ok();
}

#[test]
fn whatever_starts_a_container_it_has_its_address_also_after_a_reboot() {
    let _machine = require!(WholeHost);
    let host = WholeHost::serving(Suite::Trixie);
    // A user's Quadlet waits for it.
    host.systemctl("add-wants multi-user.target network-online.target").ok();
    host.systemctl("start network-online.target").ok();
    let all = ["always", "shop", "kube", "remote"];
    {
        let user = host.log_in("anna");
        starts_one_of_each(&user);
        have_their_addresses(&host, &all);
        let shown = host.sh("v6podctl ls").ok().to_owned();
        let unit = shown.lines().find(|line| line.starts_with("shop "));
        assert!(unit.is_some_and(|line| line.contains("tcp/80")), "{shown}");
    }
    let host = host.reboot();
    let _user = host.log_in_again("anna");
    have_their_addresses(&host, &all);
}

#[test]
fn a_package_that_comes_and_goes_cuts_none_of_ten_off() {
    let _machine = require!(WholeHost);
    let host = WholeHost::boot(Suite::Trixie);
    let user = host.log_in("anna");
    let names = |prefix: &str| (0..MANY).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
    // What makes an interface of a container's goes with the program that it is in.
    let networks = |names: &[String]| {
        let seen = |name: &String| user.podman(&["exec", name, "sh", "-c", LOOK]).ok().to_owned();
        names.iter().map(seen).collect::<Vec<_>>()
    };
    let (before, after) = (names("before"), names("after"));
    before.iter().for_each(|name| drop(user.sleeper(name, &[])));
    let theirs = networks(&before);
    assert!(theirs.iter().all(|seen| seen.contains("default via")), "{theirs:?}");

    host.install("0.1.0").ok();
    host.write("/etc/v6pod/v6pod.toml", &format!("prefix = \"{PREFIX}\"\n"));
    host.systemctl("enable --now v6podd.socket v6podd.service").ok();
    assert_eq!(networks(&before), theirs, "with the package");
    after.iter().for_each(|name| drop(user.sleeper(name, &[])));
    let addresses: Vec<_> = host.attachments().iter().map(|a| a.address).collect();
    assert_eq!(addresses.len(), MANY, "those of before have what they had");
    addresses.iter().for_each(|address| is_reached(&host, *address));
    let ours = networks(&after);

    host.sh("apt-get remove --yes v6pod 2>&1").ok();
    addresses.iter().for_each(|address| is_reached(&host, *address));
    assert_eq!(networks(&before), theirs, "without it again");
    assert_eq!(networks(&after), ours, "without it");
    // They end as any container does, with nobody to be told.
    let all: Vec<_> = before.iter().chain(&after).map(String::as_str).collect();
    user.remove(&all);
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
}

#[test]
fn no_container_fails_to_start_while_the_package_goes() {
    let _machine = require!(WholeHost);
    let host = WholeHost::serving(Suite::Trixie);
    let user = host.log_in("anna");
    let gone = AtomicBool::new(false);
    let starts = thread::scope(|scope| {
        let over = Ends(&gone);
        let starter = |network: &'static str| {
            let (user, gone) = (&user, &gone);
            scope.spawn(move || {
                let mut starts = 0;
                while !gone.load(Ordering::Relaxed) {
                    user.podman(&["run", "--rm", network, IMAGE, "true"]).ok();
                    starts += 1;
                }
                starts
            })
        };
        let starters = ["--network=slirp4netns", "--network=pasta"].map(starter);
        let removed = host.sh("apt-get remove --yes v6pod 2>&1");
        // Some more, which find all of it gone.
        seen_inside(&user);
        drop(over);
        removed.ok();
        starters.map(|starter| starter.join().expect("every container starts"))
    });
    assert!(starts.iter().all(|starts| *starts > 2), "{starts:?}");
    let named = [
        "/etc/containers/containers.conf.d/10-v6pod.conf",
        "/usr/share/containers/oci/hooks.d/v6pod.json",
    ];
    let texts = || named.map(|path| fs::read_to_string(host.file(path)).ok());
    assert_eq!(texts(), [None, None], "they name what is gone");

    // As it was, also where something kept the package from being removed.
    host.install("0.1.0").ok();
    let there = texts();
    assert!(there.iter().all(Option::is_some), "{there:?}");
    let broken = "echo 'exit 1' >>/var/lib/dpkg/info/v6pod.prerm; apt-get remove --yes v6pod 2>&1";
    assert!(!host.sh(broken).status.success());
    assert_eq!(texts(), there, "they stay as the package does");
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
}

/// What a container sees of its network, on each of podman's own.
#[track_caller]
fn seen_inside(user: &Login<'_>) -> Vec<String> {
    let seen = |network: &&str| {
        let words = ["run", "--rm", network, IMAGE, "sh", "-c", LOOK];
        user.podman(&words).ok().to_owned()
    };
    ["--network=pasta", "--network=slirp4netns"].iter().map(seen).collect()
}

#[test]
fn with_the_daemon_stopped_or_hanging_containers_start_as_without_v6pod() {
    let _machine = require!(WholeHost);
    let host = WholeHost::boot(Suite::Trixie);
    let user = host.log_in("anna");
    let without = seen_inside(&user);
    assert!(without[0].contains("inet6 2001:db8:"), "pasta has the host's address: {without:?}");
    host.install("0.1.0").ok();
    host.write("/etc/v6pod/v6pod.toml", &format!("prefix = \"{PREFIX}\"\n"));
    assert_eq!(seen_inside(&user), without, "installed and off");

    host.systemctl("enable --now v6podd.socket v6podd.service").ok();
    let with = seen_inside(&user);
    assert!(with.iter().all(|seen| seen.contains(" 2001:db8:1:2:3:")), "{with:?}");
    // Whatever says what is wrong is said under both, and nothing is started.
    for network in ["--network=pasta", "--network=slirp4netns"] {
        let words = ["run", "--rm", network, "--annotation=v6pod.ingress=80", IMAGE, "true"];
        let refused = user.podman(&words);
        let reason = "the annotation v6pod.ingress: write openings such as tcp/80";
        assert!(refused.fails().contains(reason), "{network}: {refused}");
        eventually(PATIENCE, "nothing is left", || host.attachments().is_empty().then_some(()));
    }

    host.systemctl("kill --signal=STOP v6podd.service").ok();
    assert_eq!(seen_inside(&user), without, "it hangs");
    host.systemctl("kill --signal=KILL v6podd.service").ok();
    host.systemctl("stop v6podd.socket v6podd.service").ok();
    assert_eq!(seen_inside(&user), without, "it is stopped");
    // Upgraded in the middle: with an address or as without, and never anything between.
    host.systemctl("start v6podd.socket v6podd.service").ok();
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| host.install("0.1.1"));
        while !upgrade.is_finished() {
            for (seen, without) in seen_inside(&user).iter().zip(&without) {
                assert!(seen.contains(" 2001:db8:1:2:3:") || seen == without, "{seen}");
            }
        }
        upgrade.join().expect("it is upgraded").ok();
    });
    assert!(seen_inside(&user).iter().all(|seen| seen.contains(" 2001:db8:1:2:3:")));
}
