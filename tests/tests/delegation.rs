//! Issue 7, line 1: the provider delegates prefixes by DHCPv6, and its lease changes to another one.
//!
//! ```text
//!   outside (the provider): dhcpd -6 on out0, routes what it delegates to the host
//!      │
//!   host: dhclient -6 -P on up0 ── exit hook ── v6podctl prefix set ── v6podd ── containers
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use v6pod_proto::{Activate, Attachment};
use v6pod_tests::{
    Background, Config, Daemon, Flow, HostNs, OwnedNs, PATIENCE, Server, built, eventually,
    random_container_id, require, run, within,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;

/// How long an old address stays valid.
const GRACE: Duration = Duration::from_secs(8);

/// Within this the names point to the new address.
const NAMED: Duration = Duration::from_secs(5);

/// How long a lease may take: with these times a client asks anew each three seconds.
const LEASE: Duration = Duration::from_secs(60);

/// The last /80 of what is delegated first, and then.
const FIRST: &str = "2001:db8:a:ff:ffff::/80";
const SECOND: &str = "2001:db8:b:ff:ffff::/80";

/// The provider: a real DHCPv6 server, which delegates one prefix.
struct Provider {
    dir: tempfile::TempDir,
    server: Option<Background>,
}

impl Provider {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), server: None }
    }

    /// From now on it delegates this /56, and remembers nothing of another one.
    #[track_caller]
    fn delegate(&mut self, host: &HostNs, range: &str) {
        drop(self.server.take());
        let file = |name: &str| self.dir.path().join(name);
        let text = format!(
            "authoritative;\ndefault-lease-time 20;\npreferred-lifetime 12;\n\
             option dhcp-renewal-time 3;\noption dhcp-rebinding-time 6;\n\
             subnet6 2001:db8:ffff::/64 {{ prefix6 {range} {range} /56; }}\n"
        );
        fs::write(file("dhcpd.conf"), text).expect("writing a file");
        fs::write(file("leases"), "").expect("writing a file");
        let mut dhcpd = host.outside("dhcpd");
        dhcpd.args(["-6", "-f", "-q", "-cf"]).arg(file("dhcpd.conf")).arg("-lf");
        dhcpd.arg(file("leases")).arg("-pf").arg(file("pid")).arg("out0");
        let log = File::create(file("log")).expect("a log");
        dhcpd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.server = Some(Background::start(&mut dhcpd));
        let route = format!("{range}/56");
        run(host.outside("ip").args(["-6", "route", "replace", &route, "via", "2001:db8:ffff::2"]))
            .ok();
    }
}

/// A real DHCPv6 client on the host, with the exit hook that v6pod ships and nothing else.
fn client(host: &HostNs, daemon: &Daemon, dir: &Path) -> Background {
    let hook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/v6pod.dhclient");
    let file = |name: &str| dir.join(name);
    // What Debian's dhclient-script does at its end, and what the test wants to see.
    let told = file("told");
    let script = format!(
        "#!/bin/sh\necho \"$reason new=$new_ip6_prefix old=$old_ip6_prefix\" >> {}\n. {}\n",
        told.display(),
        hook.display()
    );
    executable(&file("script"), &script);
    fs::write(file("leases"), "").expect("writing a file");
    let mut dhclient = host.command("dhclient");
    dhclient.args(["-6", "-P", "-d", "-q", "-e"]);
    dhclient.arg(format!("V6PODCTL={}", built("v6podctl").display())).arg("-e");
    dhclient.arg(format!("V6POD_SOCKET={}", daemon.socket().display()));
    dhclient.arg("-sf").arg(file("script")).arg("-lf").arg(file("leases"));
    dhclient.arg("-pf").arg(file("pid")).arg("up0");
    let log = File::create(file("log")).expect("a log");
    dhclient.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Background::start(&mut dhclient)
}

fn executable(path: &PathBuf, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;

    fs::write(path, text).expect("writing a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
}

#[track_caller]
fn attached(daemon: &Daemon, name: &str) -> (OwnedNs, Attachment) {
    let namespace = OwnedNs::of_uid(UID, true);
    let request = Activate { name: Some(name.into()), ..Activate::new(random_container_id()) };
    let made = daemon.as_user(UID).activate(&request, namespace.network().as_fd()).0;
    (namespace, made.unwrap_or_else(|refused| panic!("{refused}")))
}

/// Waits until the container is known by an address that begins with these, and gives that.
#[track_caller]
fn moved(daemon: &Daemon, of: &Attachment, third: u16) -> Ipv6Addr {
    eventually(LEASE, "it has an address of the prefix", || {
        let all = daemon.attachments();
        let now = all.iter().find(|a| a.id == of.id).expect("it is listed").address;
        (now.segments()[..3] == [0x2001, 0xdb8, third]).then_some(now)
    })
}

fn is_reached(outside: &File, address: Ipv6Addr) -> bool {
    Flow::tcp(outside, (address, 8080)).is_some_and(|mut flow| flow.is_answered())
}

/// Counts looks at a container, in each of which it had a valid address, until the flag is set.
fn sample(network: &File, over: &AtomicBool) -> usize {
    let mut samples = 0;
    within(network, || {
        while !over.load(Ordering::Relaxed) {
            let table = fs::read_to_string("/proc/thread-self/net/if_inet6").expect("a table");
            // Scope 00 is global; tentative and failed ones (flags 40 and 08) are not valid.
            let valid = table.lines().any(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                let [_, _, _, "00", flags, "eth0"] = fields[..] else { return false };
                u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x48 == 0)
            });
            assert!(valid, "no valid address:\n{table}");
            samples += 1;
            thread::sleep(Duration::from_millis(1));
        }
    });
    samples
}

fn resolved(host: &HostNs, daemon: &Daemon, name: &str) -> String {
    let resolver = daemon.status().resolver.expect("it answers").address;
    let mut dig = host.command("dig");
    dig.arg(format!("@{resolver}")).args(["+short", "+tries=1", "+time=2", "AAAA"]);
    run(dig.arg(format!("{name}.v6pod.internal"))).stdout.trim().to_owned()
}

#[test]
fn a_delegated_prefix_comes_and_changes_and_containers_follow_by_dhclients_hook() {
    let _machine = require!(Root, Dhcp);
    let host = HostNs::new();
    let keys = format!("renumber.settle = \"1s\"\nrenumber.grace = \"{}s\"\n", GRACE.as_secs());
    // No prefix at the start: the host makes one up, by which nobody outside reaches anything.
    let config = Config { prefix: "auto".into(), keys, tables: Config::OPEN.into(), consul: false };
    let daemon = Daemon::configured(&host, &config);
    assert!(daemon.status().prefix.ula);
    let (before, first) = attached(&daemon, "before");
    let outside = File::open(host.outside_path()).expect("the outside");
    let _server = Server::start(&before.network(), &[8080]);
    let over = Arc::new(AtomicBool::new(false));
    let sampling = {
        let (network, over) = (before.network(), Arc::clone(&over));
        thread::spawn(move || sample(&network, &over))
    };

    let mut provider = Provider::new();
    provider.delegate(&host, "2001:db8:a::");
    let dir = tempfile::tempdir().expect("a folder");
    let _client = client(&host, &daemon, dir.path());
    let old = moved(&daemon, &first, 0xa);
    assert_eq!(daemon.status().prefix.prefix, FIRST);
    let (after, second) = attached(&daemon, "after");
    let _other = Server::start(&after.network(), &[8080]);
    assert_eq!(second.address.segments()[..3], [0x2001, 0xdb8, 0xa]);
    assert!(is_reached(&outside, old) && is_reached(&outside, second.address));

    let mut flow = Flow::tcp(&outside, (old, 8080)).expect("a connection");
    provider.delegate(&host, "2001:db8:b::");
    // Containers that start while it changes.
    let mut meanwhile = Vec::new();
    let deadline = Instant::now() + LEASE;
    while daemon.status().prefix.prefix != SECOND {
        assert!(Instant::now() < deadline, "it has not changed\n{}", daemon.log());
        meanwhile.push(attached(&daemon, &format!("m{}", meanwhile.len())));
        assert!(flow.is_answered(), "the connection has ended too early");
        thread::sleep(Duration::from_millis(300));
    }
    let changed = Instant::now();
    let new = moved(&daemon, &first, 0xb);
    eventually(NAMED, "the name points to the new address", || {
        (resolved(&host, &daemon, "before") == new.to_string()).then_some(())
    });
    for (_, one) in meanwhile.iter().chain([&(after, second)]) {
        moved(&daemon, one, 0xb);
    }
    assert!(is_reached(&outside, new));
    while changed.elapsed() < GRACE - Duration::from_secs(2) {
        assert!(flow.is_answered(), "it ended before the grace did\n{}", daemon.log());
    }
    flow.ends();
    eventually(PATIENCE, "the new address alone is left", || {
        (before.addresses() == [new]).then_some(())
    });
    over.store(true, Ordering::Relaxed);
    let samples = sampling.join().expect("a valid address at each sampled moment");
    let told = fs::read_to_string(dir.path().join("told")).expect("what dhclient told");
    let expiry = told.lines().position(|line| line.starts_with("EXPIRE6"));
    let arrival = told.lines().position(|line| line.contains("new=2001:db8:b::/56"));
    assert!(arrival.is_some() && arrival < expiry, "the old one's expiry comes last:\n{told}");
    assert_eq!(daemon.status().prefix.prefix, SECOND, "and has not cleared the new one");
    eprintln!(
        "    {samples} samples, a valid address in each; {} containers started meanwhile",
        meanwhile.len()
    );
}
