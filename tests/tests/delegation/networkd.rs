//! systemd-networkd on a Debian that is booted, with the file that v6pod ships and nothing that tells v6podd.

use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use v6pod_proto::Status;
use v6pod_tests::{
    Flow, PATIENCE, Sampler, Server, Suite, WholeHost, eventually, require, run, side_by_side,
};

use super::booted::{SLIRP, network, prefix, serving};
use super::provider::{LEASE, Provider};
use super::{FIRST, GRACE, NAMED, SECOND, is_reached, moved};

/// Hands the uplink to networkd, as docs/prefixes.md says.
#[track_caller]
fn manage_by_networkd(host: &WholeHost) {
    let file = "../systemd/10-v6pod.network";
    let example = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
    let example = example.expect("the example");
    let here = example.replace("Name=eth0", "Name=up0");
    assert_ne!(here, example, "it names the uplink");
    host.write("/etc/systemd/network/10-v6pod.network", &here);
    host.systemctl("enable --now systemd-networkd.service").ok();
}

fn resolved(host: &WholeHost, name: &str) -> String {
    let status = run(host.command("v6podctl").args(["--json", "status"]));
    let status: Status = serde_json::from_str(status.ok()).expect("v6podctl's JSON");
    host.net().resolved(status.resolver.expect("it answers").address, name)
}

/// Whether what no container has of this prefix is unreachable by v6podd's own word.
fn is_held(host: &WholeHost, prefix: &str) -> bool {
    !host.net().ip(&format!("-6 route show {prefix} proto 118")).stdout.is_empty()
}

/// A lease comes and changes, and containers follow.
fn follows(suite: Suite) {
    let host = serving(suite);
    let user = host.log_in("anna");
    let before = user.sleeper("before", SLIRP);
    let outside = File::open(host.net().outside_path()).expect("the outside");
    let inside = network(&host, &user, &before);
    let _server = Server::start(&inside, &[8080]);
    let sampler = Sampler::start(inside);
    let now = |container: &str| -> Ipv6Addr { user.attachment(container).address };

    let mut provider = Provider::new();
    provider.delegate(host.net(), "2001:db8:a::");
    provider.advertise(host.net());
    manage_by_networkd(&host);
    let old = moved(0xa, || now(&before));
    let view = prefix(&host);
    assert_eq!((view.prefix.as_str(), view.source.as_str()), (FIRST, "delegated"));
    let after = user.sleeper("after", SLIRP);
    let _other = Server::start(&network(&host, &user, &after), &[8080]);
    assert!(is_reached(&outside, old) && is_reached(&outside, now(&after)));

    let mut flow = Flow::tcp(&outside, (old, 8080)).expect("a connection");
    provider.delegate(host.net(), "2001:db8:b::");
    // Containers that start while it changes.
    let mut meanwhile = Vec::new();
    let deadline = Instant::now() + LEASE;
    while prefix(&host).prefix != SECOND {
        assert!(Instant::now() < deadline, "it has not changed");
        meanwhile.push(user.sleeper(&format!("m{}", meanwhile.len()), SLIRP));
        assert!(flow.is_answered(), "the connection has ended too early");
    }
    let changed = Instant::now();
    let new = moved(0xb, || now(&before));
    eventually(NAMED, "the name points to the new address", || {
        (resolved(&host, "before") == new.to_string()).then_some(())
    });
    for one in meanwhile.iter().chain([&after]) {
        moved(0xb, || now(one));
    }
    assert!(is_reached(&outside, new));
    while changed.elapsed() < GRACE - Duration::from_secs(2) {
        assert!(flow.is_answered(), "it ended before the grace did");
        thread::sleep(Duration::from_millis(100));
    }
    flow.ends();
    eventually(PATIENCE, "the old prefix is out of use", || {
        prefix(&host).former.is_empty().then_some(())
    });
    assert!(is_held(&host, SECOND) && !is_held(&host, FIRST));
    let (samples, started) = (sampler.saw_an_address_each_time(), meanwhile.len());
    eprintln!(
        "    {suite:?}: {samples} samples, an address in each; {started} containers started meanwhile"
    );
}

/// networkd comes and goes, its lease stays; what is said by hand since counts.
fn comes_and_goes() {
    let host = serving(Suite::Trixie);
    let mut provider = Provider::new();
    provider.delegate(host.net(), "2001:db8:a::");
    provider.advertise(host.net());
    manage_by_networkd(&host);
    let is_in_force = |this: &str| (prefix(&host).prefix == this).then_some(());
    eventually(LEASE, "it is delegated", || is_in_force(FIRST));
    let user = host.log_in("anna");
    let id = user.sleeper("web", SLIRP);
    let _server = Server::start(&network(&host, &user, &id), &[8080]);
    let outside = File::open(host.net().outside_path()).expect("the outside");
    let address = user.attachment(&id).address;
    let delegated = || {
        let routes = host.net().ip("-6 route show 2001:db8:a::/56 proto dhcp").stdout;
        routes.starts_with("unreachable").then_some(())
    };
    for way in ["restart", "stop", "start"] {
        host.systemctl(&format!("{way} systemd-networkd")).ok();
        if way != "stop" {
            eventually(LEASE, way, delegated);
        }
        eventually(PATIENCE, way, || is_held(&host, FIRST).then_some(()));
        eventually(LEASE, way, || is_reached(&outside, address).then_some(()));
        assert_eq!(prefix(&host).prefix, FIRST, "{way}");
    }
    let put_back = || host.journal("v6podd").matches("unreachable route away; put back").count();
    let by_networkd = put_back();
    eprintln!("    networkd has taken the route of the rest away {by_networkd} times");
    host.sh(&format!("ip -6 route del unreachable {FIRST}")).ok();
    eventually(PATIENCE, "it is put back", || {
        (is_held(&host, FIRST) && put_back() > by_networkd).then_some(())
    });
    // The lease is renewed each three seconds, and says nothing new.
    host.sh("v6podctl prefix set 2001:db8:c::/80").ok();
    for _ in 0..2 {
        eventually(PATIENCE, "what is said by hand", || is_in_force("2001:db8:c::/80"));
        thread::sleep(Duration::from_secs(7));
        is_in_force("2001:db8:c::/80").expect("it stays");
        host.systemctl("restart v6podd").ok();
    }
}

#[test]
fn containers_follow_what_networkd_has_delegated_whether_it_stays_changes_or_is_overruled_by_hand()
{
    let _machine = require!(Dhcp, WholeHost);
    let courses: [fn(); 3] =
        [|| follows(Suite::Bookworm), || follows(Suite::Trixie), comes_and_goes];
    side_by_side(courses, |course| course());
}
