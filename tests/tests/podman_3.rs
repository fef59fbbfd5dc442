//! Issue 4: what podman 3.0.1 of Debian 11 does otherwise than all that followed.
//!
//! ```text
//!   outside ── up0 ┌ Debian 11 ── v6podd ──────────────────────────────────────────────────┐
//!                  │ /etc/containers/containers.conf: the one file that podman 3.0.1 reads  │
//!                  │ v6pod-hook ◀── poststop, poststop: twice for a container that is gone   │
//!                  └───────────────────────────────────────────────────────────────────────┘
//! ```
//! By `make test-matrix`, which makes the host.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::time::Duration;

use v6pod_tests::{IMAGE, Login, PATIENCE, Suite, WholeHost, eventually, require, run};

const ASKED: &[&str] = &["--network=none", "--annotation=v6pod=true"];

/// Keeps what each poststop is told, and counts them.
const SPY: &str = "#!/bin/sh
PATH=/bin:/usr/bin
state=$(cat)
id=$(printf %s \"$state\" | grep -o '[0-9a-f]\\{64\\}' | head -n 1)
printf %s \"$state\" >\"/var/tmp/said-$id\"
echo \"$id\" >>/var/tmp/ends
";

const SPYS_HOOK: &str = r#"{"version": "1.0.0", "hook": {"path": "/usr/local/bin/spy"},
    "when": {"always": true}, "stages": ["poststop"]}"#;

#[track_caller]
fn is_reached(host: &WholeHost, user: &Login<'_>, id: &str) {
    let address = user.attachment(id).address.to_string();
    run(host.net().outside("ping").args(["-n", "-c", "1", "-W", "10", &address])).ok();
}

#[test]
#[ignore = "make test-matrix"]
fn a_poststop_that_comes_twice_is_taken_as_one_and_one_too_late_as_none() {
    let _machine = require!(WholeHost);
    let host = WholeHost::boot(Suite::Bullseye);
    host.install_and_enable("0.1.0");
    host.write("/usr/local/bin/spy", SPY);
    host.sh("chmod 0755 /usr/local/bin/spy").ok();
    host.write("/usr/share/containers/oci/hooks.d/spy.json", SPYS_HOOK);
    let user = host.log_in("anna");
    let before = host.footprint();
    let other = user.sleeper("other", &[]);
    let others = user.attachment(&other);
    for runtime in ["runc", "crun"] {
        for network in [&[], ASKED] {
            let options = [&["--runtime", runtime, "run", "--detach", "--name", "c"], network];
            let start = |more: &[&str]| {
                let words = [&options.concat()[..], more, &[IMAGE, "sleep", "1000"]].concat();
                user.podman(&words).ok().to_owned()
            };
            // The trap is there: two for one end.
            let first = start(&["--rm"]);
            user.podman(&["kill", "c"]).ok();
            eventually(PATIENCE, "two poststops", || {
                let ends = host.sh("cat /var/tmp/ends 2>/dev/null || :");
                (ends.ok().matches(&first).count() == 2).then_some(())
            });
            assert_eq!(user.attachment(&other), others);

            // What podman said of this container's first run comes once more, twice, in its second.
            let second = start(&[]);
            user.podman(&["restart", "--time", "0", "c"]).ok();
            let attachment = user.attachment(&second);
            for _ in 0..2 {
                let hook = format!("/usr/libexec/v6pod/v6pod-hook </var/tmp/said-{second}");
                user.run("sh", &["-c", &hook]).ok();
            }
            // One that was heeded would have its grace of half a second.
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!(user.attachment(&second), attachment, "{runtime} {network:?}");
            is_reached(&host, &user, &second);
            user.remove(&["c"]);
        }
    }
    is_reached(&host, &user, &other);
    user.remove(&["other"]);
    before.comes_back(&host);
}

#[test]
#[ignore = "make test-matrix"]
fn the_line_that_the_package_asks_for_stops_no_container_when_the_package_goes() {
    let _machine = require!(WholeHost);
    let host = WholeHost::boot(Suite::Bullseye);
    let conf = || host.sh("cat /etc/containers/containers.conf").ok().to_owned();
    let without = conf();
    let file = "/etc/containers/containers.conf";
    let said = host.install("0.1.0").ok().to_owned();
    // The harness has done so; the package edits nobody's file.
    let line = "network_cmd_path = \"/usr/libexec/v6pod/slirp4netns\"";
    assert!(said.contains(file) && said.contains(line), "{said}");
    assert_eq!(conf(), format!("{without}\n{line}"));
    host.write("/etc/v6pod/v6pod.toml", &format!("prefix = \"{}\"\n", v6pod_tests::PREFIX));
    host.systemctl("enable --now v6podd.socket v6podd.service").ok();
    let user = host.log_in("anna");
    let container = user.sleeper("c", &[]);
    is_reached(&host, &user, &container);

    let said = host.sh("apt-get remove --yes v6pod 2>&1").ok().to_owned();
    assert!(said.contains("take the line") && said.contains(file), "{said}");
    user.podman(&["run", "--rm", IMAGE, "ip", "-o", "addr", "show", "tap0"]).ok();
    // Where it stands already nobody is told to write it.
    let said = host.install("0.1.1").ok().to_owned();
    assert!(!said.contains("network_cmd_path"), "{said}");
    host.systemctl("enable --now v6podd.socket v6podd.service").ok();
    let again = user.sleeper("again", &[]);
    is_reached(&host, &user, &again);

    let said = host.sh("apt-get remove --yes v6pod && dpkg --purge v6pod 2>&1").ok().to_owned();
    assert!(said.contains("stays, as a link"), "{said}");
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
    // Who heeds what is said is left with nothing.
    host.install("0.1.1").ok();
    host.sh(&format!("apt-get remove --yes v6pod && sed -i '/network_cmd_path/d' {file}")).ok();
    host.sh("dpkg --purge v6pod; ! ls -d /usr/libexec/v6pod").ok();
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
}
