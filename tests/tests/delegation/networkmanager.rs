//! The dispatcher script that v6pod ships, called as NetworkManager calls it: the interface and the action as
//! arguments, the lease in variables.

use std::path::Path;

use v6pod_tests::{Config, Daemon, Finished, HostNs, PATIENCE, built, eventually, require, run};

use super::{FIRST, SECOND};

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
