//! Issue 3, line 2: a Debian with systemd, booted, on which v6pod is installed and used as an
//! administrator and an ordinary user do it.
//!
//! ```text
//!   outside ── up0 ┌ Debian 12 ─────────────────────────────────────────────┐
//!                  │ v6podd.socket ── v6podd.service (user v6pod)            │
//!                  │ v6pod0 ── port ── eth0 ┌ container of anna, logged in ┐ │
//!                  └────────────────────────────────────────────────────────┘
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::net::Ipv6Addr;
use std::time::Duration;

use v6pod_tests::{
    IMAGE, Login, PATIENCE, PREFIX, PROGRAMS, Place as _, Suite, WholeHost, eventually, require,
    run,
};

mod credentials;
mod rights;
mod starts;

/// A host with the package, a prefix that is routed to it, and both units enabled.
#[track_caller]
fn installed() -> WholeHost {
    let host = WholeHost::boot(suite());
    host.install_and_enable("0.1.0");
    host
}

/// Debian 12; or 11, where `make test-matrix` says so.
#[track_caller]
fn suite() -> Suite {
    match std::env::var("V6POD_TEST_SUITE").as_deref() {
        Err(_) => Suite::Bookworm,
        Ok("bullseye") => Suite::Bullseye,
        Ok(other) => panic!("V6POD_TEST_SUITE is {other}"),
    }
}

#[track_caller]
fn configure(host: &WholeHost, tables: &str) {
    host.write("/etc/v6pod/v6pod.toml", &format!("prefix = \"{PREFIX}\"\n{tables}"));
}

/// A container that ends well if it has exactly one address; panics unless it does. Its exit code is
/// asked, because podman at times loses the output of a container that ends at once.
#[track_caller]
fn comes_and_goes(user: &Login<'_>) {
    let ask = "ip -o addr; test $(ip -6 -o addr show scope global | wc -l) = 1";
    user.podman(&["run", "--rm", IMAGE, "sh", "-c", ask]).ok();
}

#[track_caller]
fn pings_from_outside(host: &WholeHost, address: Ipv6Addr) {
    run(host.net().outside("ping").args(["-c", "1", "-W", "10", &address.to_string()])).ok();
}

#[test]
fn the_hosts_own_resolver_finds_containers_by_name() {
    let _machine = require!(WholeHost);
    let packages = std::fs::read_dir("/var/cache/v6pod-tests").into_iter().flatten().flatten();
    let is_it = |name: &str| name.starts_with("systemd-resolved_252") && name.ends_with(".deb");
    let mut packages = packages.map(|entry| entry.path());
    let package =
        packages.find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_it));
    let Some(package) = package else {
        eprintln!("skipped: needs systemd-resolved of Debian 12 (make deps)");
        return;
    };
    let host = WholeHost::boot(Suite::Bookworm);
    let file = host.take_in(&package);
    // The bus reads of its user before the package has made him.
    let script = "dpkg --force-depends -i FILE && systemctl reload dbus && \
                  systemctl restart systemd-resolved";
    host.sh(&script.replace("FILE", &file)).ok();
    host.install_and_enable("0.1.0");
    let user = host.log_in("anna");
    let container = user.sleeper("web", &[]);
    let address = user.attachment(&container).address;
    let query = |what: &str| host.sh(&format!("resolvectl query {what}")).stdout;
    let found = eventually(PATIENCE, "the name is found", || {
        Some(query("web.v6pod.internal")).filter(|found| found.contains(&address.to_string()))
    });
    assert!(!found.contains("Global"), "{found}");
    let name = query(&address.to_string());
    assert!(name.contains("web.v6pod.internal"), "{name}");
    let links = host.sh("resolvectl status v6pod0").ok().to_owned();
    assert!(links.contains("~v6pod.internal") && links.contains("-DefaultRoute"), "{links}");
    // Nothing else is asked here.
    let failed = host.sh("resolvectl query www.example.org");
    assert!(!failed.status.success(), "{failed}");
}

#[test]
fn what_is_installed_is_off_and_what_is_enabled_serves() {
    let _machine = require!(WholeHost);
    let host = WholeHost::boot(suite());
    host.install("0.1.0").ok();
    for unit in ["v6podd.socket", "v6podd-dns.socket", "v6podd.service"] {
        assert_eq!(host.property(unit, "ActiveState"), "inactive");
        assert_eq!(host.property(unit, "UnitFileState"), "disabled");
    }
    let user = host.log_in("anna");
    // As if v6pod were not installed, but for a line that podman shows when a start fails.
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();

    configure(&host, "");
    host.systemctl("enable --now v6podd.socket").ok();
    assert_eq!(host.property("v6podd.service", "ActiveState"), "inactive");
    let container = user.sleeper("web", &[]);
    assert_eq!(host.property("v6podd.service", "ActiveState"), "active");
    let attachment = user.attachment(&container);
    pings_from_outside(&host, attachment.address);
    let ls = user.run("v6podctl", &["ls"]);
    assert!(ls.ok().contains(&attachment.address.to_string()), "{ls}");
    let by_tcp = "curl -sS --fail http://localhost:6781/api/attachments/web";
    assert!(user.run("sh", &["-c", by_tcp]).ok().contains(&container));
    user.remove(&["web"]);
    eventually(PATIENCE, "the end", || host.attachments().is_empty().then_some(()));
}

/// Waits until both tables are in force, with as many rules as `before`, and gives that number.
#[track_caller]
fn rules_in_force(host: &WholeHost, before: Option<usize>) -> usize {
    eventually(PATIENCE, "the firewall's rules", || {
        let listed = host.sh("nft -a list table bridge v6pod; nft -a list table inet v6pod");
        let rules = listed.stdout.matches(" # handle ").count();
        (listed.status.success() && before.is_none_or(|before| before == rules)).then_some(rules)
    })
}

#[test]
fn rules_that_are_taken_away_come_back_without_root() {
    let _machine = require!(WholeHost);
    // The daemon looks by itself once a minute; who finds the rules back here was not told by that.
    assert!(PATIENCE < Duration::from_secs(60));
    let host = installed();
    let user = host.log_in("anna");
    let id = user.sleeper("c", &[]);
    let address = user.attachment(&id).address;
    let before = rules_in_force(&host, None);
    let repairs = "curl -sS --fail http://localhost:6781/metrics | grep ^v6pod_.*repair";
    let mut counted = host.sh(repairs).ok().to_owned();
    for way in ["flush ruleset", "flush table inet v6pod", "delete table bridge v6pod"] {
        host.sh(&format!("nft {way}")).ok();
        rules_in_force(&host, Some(before));
        eventually(PATIENCE, "the repair is counted", || {
            let now = host.sh(repairs).ok().to_owned();
            (now != counted).then(|| counted = now)
        });
        pings_from_outside(&host, address);
    }
    let elements = host.sh("nft list table inet v6pod");
    assert!(elements.ok().contains(&address.to_string()), "{elements}");
    comes_and_goes(&user);
}

#[test]
fn an_upgrade_and_a_removal_leave_what_runs() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    let container = user.sleeper("c", &[]);
    let address = user.attachment(&container).address;
    let first = host.property("v6podd.service", "MainPID");

    host.install("0.1.1").ok();
    assert_ne!(host.property("v6podd.service", "MainPID"), first);
    assert_eq!(user.attachment(&container).address, address);
    pings_from_outside(&host, address);

    // As Debian's initramfs mounts it; systemd alone does not.
    host.sh("mount -o remount,noexec /run").ok();
    let said = host.sh("apt-get remove --yes v6pod 2>&1").ok().to_owned();
    assert!(said.contains("keep their IPv6 addresses") && said.contains("--purge"), "{said}");
    pings_from_outside(&host, address);
    user.ping("c", v6pod_tests::OUTSIDE_V6.parse().expect("an address")).ok();
    for unit in ["v6podd.socket", "v6podd-dns.socket", "v6podd.service"] {
        assert_eq!(host.property(unit, "LoadState"), "not-found");
    }
    assert_eq!(host.sh("find /etc/systemd -name 'v6pod*'").ok(), "");
    // Without the package a container starts as if it had never been there.
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();

    // Back again, with all the settings, it takes up what still runs.
    host.install("0.1.1").ok();
    host.systemctl("enable --now v6podd.service").ok();
    assert_eq!(user.attachment(&container).address, address);
    comes_and_goes(&user);

    host.sh("apt-get purge --yes v6pod 2>&1").ok();
    let places =
        "/run/v6pod* /var/lib/v6pod /var/lib/v6pod-removed /etc/v6pod* /etc/containers/*.d/*v6pod*";
    let left = host
        .sh(&format!("ip -br link; ip -6 route; nft list tables; ls -d {places} 2>/dev/null || :"));
    assert!(!left.ok().contains("v6p"), "{left}");
    user.podman(&["exec", "c", "true"]).ok();
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
}

#[test]
fn make_install_is_enough_as_the_readme_says() {
    let _machine = require!(WholeHost);
    make_install_is_enough(Suite::Bookworm);
}

#[test]
#[ignore = "make test-matrix"]
fn make_install_is_enough_for_podman_5_8() {
    let _machine = require!(WholeHost);
    make_install_is_enough(Suite::Forky);
}

#[track_caller]
fn make_install_is_enough(suite: Suite) {
    let host = WholeHost::boot(suite);
    let readme = host.sh("cat /mnt/v6pod/README.md");
    for line in ["sudo make install", "sudo systemctl enable --now v6podd\n"] {
        assert!(readme.ok().contains(line), "{line}");
    }
    for program in PROGRAMS {
        host.take_in(&v6pod_tests::built(program));
    }
    host.sh("make -C /mnt/v6pod install RELEASE=/var/tmp SHIM=/var/tmp/v6pod-shim").ok();
    configure(&host, "");
    host.systemctl("enable --now v6podd").ok();
    assert_eq!(host.property("v6podd.socket", "UnitFileState"), "enabled");
    let user = host.log_in("anna");
    comes_and_goes(&user);
    let said = user.run("grep", &["-r", "network_cmd_path", "/etc/containers/containers.conf.d"]);
    assert!(said.ok().contains("/usr/local/libexec/v6pod/slirp4netns"), "{said}");
    let info = user.podman(&["info", "--format", "{{.Host.Slirp4NetNS.Executable}}"]);
    assert_eq!(info.ok(), "/usr/local/libexec/v6pod/slirp4netns");
    // As docs/administrators.md says it goes.
    host.systemctl("stop v6podd.socket v6podd-dns.socket v6podd.service").ok();
    host.sh("v6podctl purge").ok();
    host.sh("make -C /mnt/v6pod uninstall").ok();
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
}
