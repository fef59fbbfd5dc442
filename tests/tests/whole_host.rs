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
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use v6pod_tests::{
    Background, Consul, IMAGE, Login, PATIENCE, PREFIX, Place as _, Suite, WholeHost, eventually,
    require, run,
};

/// How often the daemon is started again while containers come and go.
const RESTARTS: usize = 50;

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

#[test]
fn the_daemon_is_nobody_with_four_capabilities() {
    let _machine = require!(WholeHost);
    let host = installed();
    let pid = host.property("v6podd.service", "MainPID");
    let status = host.sh(&format!("cat /proc/{pid}/status"));
    let uid = host.sh("id -u v6pod").ok().to_owned();
    assert_ne!(uid, "0");
    // Bits 2, 12, 19 and 21: DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN.
    let four = "0000000000281004";
    for (field, value) in [
        ("Uid", format!("{uid}\t{uid}\t{uid}\t{uid}")),
        ("CapPrm", four.to_owned()),
        ("CapEff", four.to_owned()),
        ("CapBnd", four.to_owned()),
        ("CapAmb", "0000000000000000".to_owned()),
        ("NoNewPrivs", "1".to_owned()),
        ("Seccomp", "2".to_owned()),
    ] {
        let line = format!("{field}:\t{value}\n");
        assert!(status.ok().contains(&line), "{line} is not in {status}");
    }
    host.sh(
        "systemd-analyze verify v6podd.service v6podd.socket v6podd-dns.socket 2>&1 | grep v6pod >&2 && exit 1 || :",
    )
    .ok();
    // The floor of these capabilities, with systemd 247, 252 and 257. The first knows no threshold.
    let exposure = match suite() {
        Suite::Bullseye => "systemd-analyze security v6podd.service | grep 'v6podd.service: 2.4 '",
        _ => "systemd-analyze security --offline=yes --threshold=24 v6podd.service",
    };
    host.sh(exposure).ok();
    // The machine may allow less than the unit asks for.
    let limit = host.sh(&format!("awk '/open files/ {{ print $4, $5 }}' /proc/{pid}/limits"));
    let (soft, hard) = limit.ok().split_once(' ').expect("two numbers");
    assert_eq!(soft, hard);
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
fn all_that_needs_a_right_works_without_root() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    let before = host.footprint();
    // By id, in files that are his alone; the namespace is entered, its sysctls are written.
    let id = user.sleeper("late", &["--network", "none"]);
    let (uid, at) = (user.uid(), "http://localhost:6781/api");
    let form = format!("curl -sS --fail -d 'user={uid}&id={id}' {at}");
    user.run("sh", &["-c", &format!("{form}/activate")]).ok();
    let attachment = user.attachment(&id);
    pings_from_outside(&host, attachment.address);
    let pid = user.pid("late");
    let accept_ra = format!("nsenter --net=/proc/{pid}/ns/net cat /proc/sys/net/ipv6/conf/eth0");
    assert_eq!(host.sh(&format!("{accept_ra}/accept_ra")).ok(), "0");
    user.run("sh", &["-c", &format!("{form}/deactivate")]).ok();
    eventually(PATIENCE, "the end", || host.attachments().is_empty().then_some(()));
    user.remove(&["late"]);
    // With a map of its own, after `crun create`.
    let id = user.sleeper("mapped", &["--userns=keep-id"]);
    pings_from_outside(&host, user.attachment(&id).address);
    user.remove(&["mapped"]);
    before.comes_back(&host);
    let journal = host.journal("v6podd.service");
    assert!(!journal.contains("ERROR") && !journal.contains("ermission denied"), "{journal}");
}

/// As docs/known-issues.md has it for hosts with thousands of containers.
#[test]
fn with_three_more_system_calls_the_daemon_has_a_procfs_of_its_own() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    // What is mounted nowhere is a root to whoever asks for its path.
    let own = || {
        let pid = host.property("v6podd.service", "MainPID");
        host.sh(&format!("find /proc/{pid}/fd -lname / | wc -l")).ok().to_owned()
    };
    comes_and_goes(&user);
    assert_eq!(own(), "0");
    host.sh("mkdir -p /etc/systemd/system/v6podd.service.d").ok();
    let more = "[Service]\nSystemCallFilter=fsopen fsconfig fsmount\n";
    host.write("/etc/systemd/system/v6podd.service.d/procfs.conf", more);
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.service").ok();
    comes_and_goes(&user);
    assert_ne!(own(), "0");
    let journal = host.journal("v6podd.service");
    assert!(!journal.contains("ERROR") && !journal.contains("ermission denied"), "{journal}");
}

/// How many descriptors the daemon has open.
#[track_caller]
fn descriptors(host: &WholeHost) -> usize {
    let pid = host.property("v6podd.service", "MainPID");
    host.sh(&format!("ls /proc/{pid}/fd | wc -l")).ok().parse().expect("a number")
}

/// Rounds of pings between two containers, until a file is there.
struct Pings {
    process: Background,
    log: String,
}

impl Pings {
    fn start(host: &WholeHost, from: u32, to: Ipv6Addr) -> Self {
        let log = host.file("/run/pings").display().to_string();
        let script = format!(
            "while [ ! -e /run/enough ]; do \
             ping -q -c 50 -i 0.02 -W 10 {to} >>/run/pings; done"
        );
        let mut command = host.command("nsenter");
        command.args([&format!("--net=/proc/{from}/ns/net"), "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { process: Background::start(&mut command), log }
    }

    #[track_caller]
    fn lost_nothing(mut self, host: &WholeHost) {
        host.sh("touch /run/enough").ok();
        self.process.wait_within(Duration::from_secs(60));
        let log = std::fs::read_to_string(&self.log).expect("reading a file");
        let rounds = log.matches("packets transmitted").count();
        assert!(rounds > 0 && log.matches(" 0% packet loss").count() == rounds, "{log}");
    }
}

#[test]
fn fifty_restarts_refuse_nobody_lose_nothing_and_leak_nothing() {
    let _machine = require!(WholeHost);
    let host = installed();
    let (anna, bert) = (host.log_in("anna"), host.log_in("bert"));
    let (before, descriptors) = (host.footprint(), descriptors(&host));
    let (one, two) = (anna.sleeper("one", &[]), bert.sleeper("two", &[]));
    let pings = Pings::start(&host, anna.pid("one"), bert.attachment(&two).address);
    let addresses = [anna.attachment(&one).address, bert.attachment(&two).address];

    let over = AtomicBool::new(false);
    let started = thread::scope(|scope| {
        let come_and_go = |user: &Login<'_>| {
            let mut started = 0;
            while !over.load(Ordering::Relaxed) {
                comes_and_goes(user);
                started += 1;
            }
            started
        };
        let threads = [&anna, &bert].map(|user| scope.spawn(move || come_and_go(user)));
        let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..RESTARTS {
                if threads.iter().any(ScopedJoinHandle::is_finished) {
                    // One of them has panicked: what the journal said last is about that.
                    break;
                }
                host.systemctl("restart v6podd.service").ok();
            }
        }));
        over.store(true, Ordering::Relaxed);
        let started = threads.map(|thread| thread.join().expect("a container without its address"));
        restarted.expect("restarting");
        started.iter().sum::<usize>()
    });
    assert!(started > 1, "no container came during the restarts");
    pings.lost_nothing(&host);
    let now = [anna.attachment(&one).address, bert.attachment(&two).address];
    assert_eq!(now, addresses);
    anna.remove(&["one"]);
    bert.remove(&["two"]);
    before.comes_back(&host);
    eventually(PATIENCE, "as many descriptors as at first", || {
        (descriptors == self::descriptors(&host)).then_some(())
    });
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
fn a_bad_configuration_is_not_tried_for_ever() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    configure(&host, "[limits]\nper_owner = \"many\"\n");
    host.systemctl("restart v6podd.service").fails();
    assert_eq!(host.property("v6podd.service", "ExecMainStatus"), "78");
    let rests = || {
        eventually(PATIENCE, "the service rests", || {
            (host.property("v6podd.service", "ActiveState") == "failed").then_some(())
        });
    };
    // Who calls is turned away, and a container starts without an address.
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
    for to in ["--unix-socket /run/v6pod/v6pod.sock http://localhost", "http://[::1]:6781"] {
        rests();
        let ask = format!("curl -sS -w ' %{{http_code}} %{{content_type}}' {to}/api/status");
        let said = user.run("sh", &["-c", &ask]);
        assert!(said.ok().ends_with(" 503 application/problem+json"), "{said}");
        assert!(said.ok().contains("does not start"), "{said}");
    }
    rests();
    assert_eq!(host.property("v6podd.service", "NRestarts"), "0");
    let journal = host.journal("v6podd.service");
    // Once by the administrator, for the container once by what stands in for slirp4netns and once by the hook
    // when it starts, and once for each other client.
    let starts = journal.matches("per_owner").count();
    assert_eq!(starts, 5, "{journal}");

    // What cannot be had on this host is no better than what cannot be read.
    host.sh("ip -6 route add 2001:db8:5::/64 dev lo").ok();
    host.write("/etc/v6pod/v6pod.toml", "prefix = \"2001:db8:5::/80\"\n");
    host.systemctl("restart v6podd.service").fails();
    assert_eq!(host.property("v6podd.service", "ExecMainStatus"), "78");
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
    rests();
    assert_eq!(host.property("v6podd.service", "NRestarts"), "0");

    configure(&host, "");
    host.systemctl("restart v6podd.service").ok();
    comes_and_goes(&user);
}

#[test]
fn sockets_that_do_not_match_the_configuration_are_named() {
    let _machine = require!(WholeHost);
    let host = installed();
    configure(&host, "[api]\ntcp = [\"127.0.0.1:6781\", \"[::1]:6782\"]\n");
    host.systemctl("restart v6podd.service").ok();
    let journal = host.journal("v6podd.service");
    let line = |what: &str| journal.lines().find(|line| line.contains(what)).unwrap_or_default();
    for line in [line("listens at [::1]:6781,"), line("does not listen at [::1]:6782,")] {
        assert!(line.contains("systemctl edit v6podd.socket"), "{journal}");
    }
    // It serves there all the same.
    host.sh("curl -sS --fail http://[::1]:6782/healthz").ok();
    // As the log says.
    let listens = ["", "/run/v6pod/v6pod.sock", "127.0.0.1:6781", "[::1]:6782"];
    let text = listens.map(|address| format!("ListenStream={address}\n")).concat();
    host.write("/etc/systemd/system/v6podd.socket.d/override.conf", &format!("[Socket]\n{text}"));
    host.sh("journalctl --rotate && journalctl --vacuum-time=1s").ok();
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.socket").ok();
    host.sh("curl -sS --fail http://[::1]:6782/healthz").ok();
    let journal = host.journal("v6podd.service");
    assert!(journal.contains("serves at") && !journal.contains("v6podd.socket"), "{journal}");
}

#[test]
fn a_daemon_that_hangs_or_is_killed_is_started_again() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    let container = user.sleeper("c", &[]);
    let address = user.attachment(&container).address;
    let drop_in = "/etc/systemd/system/v6podd.service.d/watchdog.conf";
    host.write(drop_in, "[Service]\nWatchdogSec=2\n");
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.service").ok();
    for signal in ["STOP", "KILL"] {
        let before = host.property("v6podd.service", "MainPID");
        host.sh(&format!("kill -{signal} {before}")).ok();
        eventually(PATIENCE, "another daemon", || {
            let now = host.property("v6podd.service", "MainPID");
            (now != before && now != "0").then_some(())
        });
        comes_and_goes(&user);
        assert_eq!(user.attachment(&container).address, address);
    }
}

#[test]
fn the_token_of_consul_is_a_credential() {
    let _machine = require!(WholeHost);
    let host = installed();
    let tables =
        "[registry]\nkind = \"consul\"\n[registry.consul]\ntoken_file = \"consul-token\"\n";
    configure(&host, tables);
    let registry = |awaited: &str| {
        host.systemctl("restart v6podd.service").ok();
        eventually(PATIENCE, awaited, || {
            let status = host.sh("v6podctl --json status");
            status.ok().contains(awaited).then_some(())
        });
    };
    registry("token cannot be read");
    host.write("/etc/v6pod/consul-token", "b1gs33cr3t");
    host.sh("chmod 600 /etc/v6pod/consul-token").ok();
    // There is no Consul; the token it would be sent is there.
    registry("registry cannot be reached");

    // Nor is there one to take names back: what is left is said, and nothing waits for ever.
    let user = host.log_in("anna");
    user.sleeper("web", &[]);
    host.systemctl("stop v6podd.socket v6podd.service").ok();
    let purge = host.sh("v6podctl purge");
    assert!(purge.fails().contains("may still hold web;"), "{purge}");
    let links = host.sh("ip -br link; nft list tables");
    assert!(!links.ok().contains("v6p"), "{links}");
    user.sleeper("db", &[]);
    host.systemctl("start v6podd.service").ok();
    user.sleeper("mail", &[]);
    let said = host.sh("apt-get purge --yes v6pod 2>&1").ok().to_owned();
    assert!(said.contains("may still hold mail;"), "{said}");
}

/// An agent that wants to be shown a certificate, and the files for both of its ends.
const TLS_AGENT: &str = r#"
mkdir /var/lib/consul && cd /var/lib/consul
"$1" tls ca create && "$1" tls cert create -server -additional-ipaddress ::1 && "$1" tls cert create -client
install -m 644 consul-agent-ca.pem /etc/v6pod/ca.pem
install -m 644 dc1-client-consul-0.pem /etc/v6pod/cert.pem
install -m 600 -o root dc1-client-consul-0-key.pem /etc/v6pod/consul-key
cat >agent.hcl <<'END'
bind_addr = "::1"
client_addr = "::1"
node_name = "whole"
disable_update_check = true
ports { https = 8501 }
ca_file = "consul-agent-ca.pem"
cert_file = "dc1-server-consul-0.pem"
key_file = "dc1-server-consul-0-key.pem"
verify_incoming_https = true
END
systemd-run --quiet --unit=consul --working-directory=/var/lib/consul "$1" agent -dev -config-file agent.hcl
"#;

#[test]
fn the_key_that_consul_is_shown_is_a_credential() {
    let _machine = require!(WholeHost, Consul);
    let host = installed();
    let consul = host.take_in(&Consul::program().expect("Consul was asked for"));
    host.sh(&format!("set -- {consul}\n{TLS_AGENT}")).ok();
    let tables = "[registry]\nkind = \"consul\"\n[registry.consul]\naddress = \"https://[::1]:8501\"\n\
                  datacenter = \"dc1\"\nca_file = \"/etc/v6pod/ca.pem\"\n\
                  cert_file = \"/etc/v6pod/cert.pem\"\nkey_file = \"consul-key\"\n";
    configure(&host, tables);
    let status = |awaited: &str| {
        eventually(PATIENCE, awaited, || {
            host.sh("v6podctl status").ok().contains(awaited).then_some(())
        });
    };
    host.systemctl("restart v6podd.service").ok();
    // A credential that the unit does not have.
    status("consul, not healthy: the registry cannot be reached");
    host.write(
        "/etc/systemd/system/v6podd.service.d/consul.conf",
        "[Service]\nLoadCredential=consul-key:/etc/v6pod/consul-key\n",
    );
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.service").ok();
    let user = host.log_in("anna");
    let container = user.sleeper("web", &[]);
    let address = user.attachment(&container).address.to_string();
    eventually(PATIENCE, "it is in Consul", || {
        let services = host.sh("curl -sS --globoff http://[::1]:8500/v1/agent/services");
        services.ok().contains(&address).then_some(())
    });
    assert!(!host.journal("v6podd.service").contains("PRIVATE KEY"));
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
    for program in [
        "v6podd",
        "v6podctl",
        "v6pod-shim",
        "v6pod-hook",
        "v6pod-wishes",
        "v6pod-cni",
        "v6pod-netavark",
    ] {
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
