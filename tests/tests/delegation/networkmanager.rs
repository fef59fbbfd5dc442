//! The dispatcher script that v6pod ships, called by the test as NetworkManager calls it (the interface and the
//! action as arguments, the lease in variables), and by NetworkManager.

use std::fs::File;
use std::net::Ipv6Addr;
use std::path::Path;

use v6pod_tests::{
    Config, Daemon, Finished, HostNs, PATIENCE, Server, Suite, built, eventually, require, run,
};

use super::booted::{SLIRP, network, prefix, serving};
use super::provider::Provider;
use super::{FIRST, SECOND, is_reached, moved};

/// The uplink, and a link that is shared with others: without one NetworkManager asks for no prefix.
const CONNECTIONS: &str = "
ip link add lan1 type veth peer name lan2
ip link set lan1 up
ip link set lan2 up
nmcli connection add type ethernet ifname up0 con-name up ipv4.method disabled ipv6.method auto \
    ipv6.addr-gen-mode eui64 ipv6.dhcp-pd-hint ::/56
nmcli connection add type ethernet ifname lan1 con-name lan ipv4.method disabled ipv6.method shared
nmcli connection up up
nmcli connection up lan
";

/// What the script does when the lease says this of prefixes.
#[track_caller]
fn dispatched(host: &HostNs, daemon: &Daemon, action: &str, prefixes: Option<&str>) -> Finished {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/v6pod.networkmanager");
    let mut command = host.command("env");
    command.args(["-i", "PATH=/usr/bin:/bin", "DEVICE_IFACE=up0", "DHCP6_IAID=1"]);
    command.arg(format!("V6PODCTL={}", built("v6podctl").display()));
    command.arg(format!("V6POD_SOCKET={}", daemon.socket().display()));
    command.args(prefixes.map(|prefixes| format!("DHCP6_IP6_PREFIX={prefixes}")));
    run(command.arg(script).args(["up0", action]))
}

#[test]
fn networkmanagers_dispatcher_tells_of_the_prefix_that_its_lease_says() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let keys = "renumber.settle = \"0s\"\n".to_owned();
    let daemon =
        Daemon::configured(&host, &Config { prefix: "auto".into(), keys, ..Config::default() });
    let own = daemon.status().prefix.prefix;
    let (first, second) = ("2001:db8:a::/56", "2001:db8:b::/56");
    let both = format!("{second} 2001:db8:c::/56");
    for (action, prefixes, expected) in [
        ("up", None, own.as_str()),
        ("hostname", Some(first), &own),
        ("pre-up", Some(first), &own),
        ("up", Some(first), FIRST),
        ("dhcp6-change", Some(first), FIRST),
        // Of several the first.
        ("dhcp6-change", Some(&both), SECOND),
        // Without another one nothing is better.
        ("dhcp6-change", None, SECOND),
        ("down", Some(first), SECOND),
    ] {
        dispatched(&host, &daemon, action, prefixes).ok();
        let now = || (daemon.status().prefix.prefix == expected).then_some(());
        eventually(PATIENCE, &format!("{expected} after {action} {prefixes:?}"), now);
    }
    assert_eq!(daemon.status().prefix.source, "networkmanager");
    let heard = |daemon: &Daemon| daemon.log().matches("heard of a prefix").count();
    assert_eq!(heard(&daemon), 3, "the others were not told");
    // No word of the variable is taken for an option, a pattern or a command.
    for hostile in ["--help", "$(touch /tmp/v6t-was-here)", "*", "2001:db8:d::/129", "-v /etc/*"] {
        dispatched(&host, &daemon, "up", Some(hostile)).ok();
    }
    assert!(!Path::new("/tmp/v6t-was-here").exists());
    assert_eq!(heard(&daemon), 3);
}

#[test]
#[ignore = "make test-matrix"]
fn networkmanager_that_shares_a_link_is_delegated_a_prefix_that_changes_and_containers_follow() {
    let _machine = require!(Dhcp, WholeHost);
    let host = serving(Suite::NetworkManager);
    let user = host.log_in("anna");
    let id = user.sleeper("web", SLIRP);
    let _server = Server::start(&network(&host, &user, &id), &[8080]);
    let outside = File::open(host.net().outside_path()).expect("the outside");
    let now = || -> Ipv6Addr { user.attachment(&id).address };
    let mut provider = Provider::new();
    provider.delegate(host.net(), "2001:db8:a::");
    provider.advertise(host.net());
    host.write("/etc/NetworkManager/conf.d/tests.conf", "[main]\nno-auto-default=*\n");
    host.systemctl("enable --now NetworkManager.service").ok();
    host.sh(CONNECTIONS).ok();
    let first = moved(0xa, now);
    let view = prefix(&host);
    assert_eq!((view.prefix.as_str(), view.source.as_str()), (FIRST, "networkmanager"));
    eventually(PATIENCE, "it is reached", || is_reached(&outside, first).then_some(()));
    provider.delegate(host.net(), "2001:db8:b::");
    let second = moved(0xb, now);
    eventually(PATIENCE, "it is reached", || is_reached(&outside, second).then_some(()));
    assert_eq!(prefix(&host).prefix, SECOND);
}
