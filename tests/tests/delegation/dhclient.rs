//! dhclient, with the exit hook that v6pod ships.

use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use v6pod_proto::{Activate, Attachment};
use v6pod_tests::{
    Background, Config, Daemon, Flow, HostNs, OwnedNs, PATIENCE, Sampler, Server, built,
    eventually, random_container_id, require,
};

use super::provider::{LEASE, Provider};
use super::{FIRST, GRACE, NAMED, SECOND, is_of, is_reached, moved};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;

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

/// The address that the container is known by.
#[track_caller]
fn now(daemon: &Daemon, of: &Attachment) -> Ipv6Addr {
    let all = daemon.attachments();
    all.iter().find(|a| a.id == of.id).expect("it is listed").address
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
    let sampler = Sampler::start(before.network());

    let mut provider = Provider::new();
    provider.delegate(&host, "2001:db8:a::");
    let dir = tempfile::tempdir().expect("a folder");
    let _client = client(&host, &daemon, dir.path());
    let old = moved(0xa, || now(&daemon, &first));
    assert_eq!(daemon.status().prefix.prefix, FIRST);
    let (after, second) = attached(&daemon, "after");
    let _other = Server::start(&after.network(), &[8080]);
    assert!(is_of(second.address, 0xa));
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
    let new = moved(0xb, || now(&daemon, &first));
    eventually(NAMED, "the name points to the new address", || {
        (daemon.resolved(&host, "before") == new.to_string()).then_some(())
    });
    for (_, one) in meanwhile.iter().chain([&(after, second)]) {
        moved(0xb, || now(&daemon, one));
    }
    assert!(is_reached(&outside, new));
    while changed.elapsed() < GRACE - Duration::from_secs(2) {
        assert!(flow.is_answered(), "it ended before the grace did\n{}", daemon.log());
    }
    flow.ends();
    eventually(PATIENCE, "the new address alone is left", || {
        (before.addresses() == [new]).then_some(())
    });
    let samples = sampler.saw_an_address_each_time();
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
