//! Another host, somewhere behind the outside of the first.

use std::path::Path;
use std::process::Command;

use v6pod_proto::Mode;
use v6pod_tests::{Config, Daemon, HostNs, PREFIX, run};

/// Its containers' range.
const RANGE: &str = "2001:db8:1:2:4::/80";

/// A host with its own outside, which is a router on the way to the first one's.
///
/// ```text
///   host ── outside ── mid0 2001:db8:fffd::1 ─ 2001:db8:fffd::2 mid1 ── outside of this ── this host
/// ```
#[derive(Debug)]
pub(crate) struct Far {
    pub(crate) daemon: Daemon,
    _host: HostNs,
}

impl Far {
    /// With a daemon in this mode.
    #[track_caller]
    pub(crate) fn beside(near: &HostNs, mode: Mode) -> Self {
        let host = HostNs::new();
        let name = host.outside_path();
        let name = name.file_name().and_then(|name| name.to_str()).expect("a name");
        let shell = |mut command: Command, script: &str| {
            run(command.args(["-e", "-c", script])).ok();
        };
        shell(
            near.outside("sh"),
            &format!("ip link add mid0 type veth peer name mid1 netns {name}"),
        );
        let side = |interface: &str, own: &str, peer: &str, range: &str| {
            format!(
                "echo 0 >/proc/sys/net/ipv6/conf/{interface}/accept_dad\n\
                 echo 1 >/proc/sys/net/ipv6/conf/all/forwarding\n\
                 ip addr add {own}/64 dev {interface} nodad\n\
                 ip link set {interface} up\n\
                 ip -6 route replace {range} via {peer}\n"
            )
        };
        let [one, two] = ["2001:db8:fffd::1", "2001:db8:fffd::2"];
        shell(near.outside("sh"), &side("mid0", one, two, RANGE));
        let own = format!("ip -6 route add {RANGE} via 2001:db8:ffff::2\n");
        shell(host.outside(Path::new("sh")), &(side("mid1", two, one, PREFIX) + &own));
        let config = Config { prefix: RANGE.to_owned(), ..Config::default() }.with_mode(mode);
        Self { daemon: Daemon::configured(&host, &config), _host: host }
    }
}
