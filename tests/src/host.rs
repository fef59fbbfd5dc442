//! A network namespace that plays a host.

use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Finished, OwnedNs, PATIENCE, Process, eventually, run};

/// The range that containers get addresses of, routed to the host by the outside.
pub const PREFIX: &str = "2001:db8:1:2:3::/80";
/// The outside's IPv6 address.
pub const OUTSIDE_V6: &str = "2001:db8:ffff::1";
/// The outside's IPv4 address.
pub const OUTSIDE_V4: &str = "198.51.100.1";

/// Of whom [`HostNs::has_a_lan`] tells, and the host in that network.
pub const IN_LAN: [&str; 2] = ["2001:db8:aaaa::2", "2001:db8:aaaa::1"];

/// How many ports a bridge takes (BR_MAX_PORTS of Linux, less port 0).
const BRIDGE_PORTS: usize = 1023;
/// The link group of what only fills it.
const FILLING: u32 = 4242;

/// How the names of all namespaces of these tests begin.
const NAMES: &str = "v6t-";

/// A network namespace in place of a host, and another one in place of the rest of the world.
///
/// ```text
///   outside: out0 2001:db8:ffff::1/64, 198.51.100.1/24
///      │     route 2001:db8:1:2:3::/80 via 2001:db8:ffff::2
///   host:    up0  2001:db8:ffff::2/64, 198.51.100.2/24, default routes by the outside
/// ```
#[derive(Debug)]
pub struct HostNs {
    host: NetNs,
    outside: NetNs,
}

impl HostNs {
    /// A host with its uplink up.
    pub fn new() -> Self {
        let (host, outside) = (NetNs::new("host"), NetNs::new("out"));
        let veth = ["link", "add", "up0", "netns", &host.0, "type", "veth", "peer", "name", "out0"];
        ip(&[&veth[..], &["netns", &outside.0]].concat()).ok();
        // Until duplicate address detection is done with its link-local address, an interface cannot
        // resolve neighbours for what it forwards: a test's first packets would be lost.
        host.without_dad("up0");
        outside.without_dad("out0");
        for line in [
            "addr add 2001:db8:ffff::2/64 dev up0 nodad",
            "addr add 198.51.100.2/24 dev up0",
            "link set up0 up",
            "-6 route add default via 2001:db8:ffff::1",
            "route add default via 198.51.100.1",
        ] {
            host.ip(line).ok();
        }
        for line in [
            "addr add 2001:db8:ffff::1/64 dev out0 nodad",
            "addr add 198.51.100.1/24 dev out0",
            "link set out0 up",
            "-6 route add 2001:db8:1:2:3::/80 via 2001:db8:ffff::2",
        ] {
            outside.ip(line).ok();
        }
        // The kernel tells of the carrier when it has time; what comes with it is there before any test looks.
        for (namespace, interface) in [(&host, "up0"), (&outside, "out0")] {
            let shown = || namespace.ip(&format!("-6 addr show dev {interface} scope link"));
            let awaited = format!("{interface}'s link-local address");
            eventually(PATIENCE, &awaited, || shown().ok().contains("fe80").then_some(()));
        }
        Self { host, outside }
    }

    /// Removes what a killed run of the tests left behind: its namespaces and all that runs in
    /// them. Only for whose turn it is.
    pub(crate) fn sweep() {
        let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        for left in names.filter(|name| name.starts_with(NAMES)).map(NetNs) {
            let pids = ip(&["netns", "pids", &left.0]);
            let pids = pids.stdout.lines().filter_map(|pid| pid.parse().ok());
            pids.filter_map(Process::open).for_each(|process| process.kill());
        }
    }

    /// A command that runs in the host's network, and in every other respect as the test does.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.host.command(program.as_ref())
    }

    /// A command that runs in the outside's network.
    pub fn outside(&self, program: impl AsRef<Path>) -> Command {
        self.outside.command(program.as_ref())
    }

    /// What the resolver at that address, asked in the host's network, says of a container's name; empty if it
    /// knows none.
    #[track_caller]
    pub fn resolved(&self, resolver: Ipv6Addr, name: &str) -> String {
        let mut dig = self.command("dig");
        dig.arg(format!("@{resolver}")).args(["+short", "+tries=1", "+time=2", "AAAA"]);
        run(dig.arg(format!("{name}.v6pod.internal"))).stdout.trim().to_owned()
    }

    /// Runs `ip` with these words in the host's network.
    #[track_caller]
    pub fn ip(&self, words: &str) -> Finished {
        self.host.ip(words)
    }

    /// A machine of a network of the host's that is no container's: the first [`IN_LAN`]. The outside knows the way
    /// to it by the host, which forwards or not as it is told.
    #[track_caller]
    pub fn has_a_lan(&self) -> OwnedNs {
        let [address, router] = IN_LAN;
        let machine = OwnedNs::of_uid(0, false);
        self.ip(&format!("link add other0 type veth peer name lan0 netns {}", machine.pid())).ok();
        self.ip(&format!("addr add {router}/64 dev other0 nodad")).ok();
        self.ip("link set other0 up").ok();
        for line in [
            format!("addr add {address}/64 dev lan0 nodad"),
            "link set lan0 up".to_owned(),
            format!("-6 route add default via {router}"),
        ] {
            machine.run("ip", &line.split(' ').collect::<Vec<_>>()).ok();
        }
        self.outside.ip("-6 route add 2001:db8:aaaa::/64 via 2001:db8:ffff::2").ok();
        machine
    }

    /// Puts so many ports on a bridge of the host that it takes no more. Those that it has are enough
    /// for some of these to be too many.
    #[track_caller]
    pub fn fill_the_bridge(&self, bridge: &str) {
        let add = |n| {
            format!(
                "link add v6tf{n} group {FILLING} master {bridge} type veth peer name v6tg{n}\n"
            )
        };
        let lines: String = (0..BRIDGE_PORTS).map(add).collect();
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), lines).expect("writing a file");
        run(self.command("ip").args(["-force", "-batch"]).arg(file.path()));
        let links = self.ip(&format!("-o link show master {bridge}"));
        assert_eq!(links.ok().lines().count(), BRIDGE_PORTS, "it is not full");
    }

    /// Undoes [`HostNs::fill_the_bridge`].
    #[track_caller]
    pub fn empty_the_bridge(&self) {
        self.ip(&format!("link del group {FILLING}")).ok();
    }

    pub(crate) fn namespace(&self) -> &NetNs {
        &self.host
    }

    /// The file that is the host's network namespace.
    pub fn path(&self) -> PathBuf {
        self.host.path()
    }

    /// The file that is the outside's network namespace.
    pub fn outside_path(&self) -> PathBuf {
        self.outside.path()
    }
}

impl Default for HostNs {
    fn default() -> Self {
        Self::new()
    }
}

/// A named network namespace with its loopback up. The name goes on drop; the namespace itself
/// with its last process.
#[derive(Debug)]
pub(crate) struct NetNs(pub(crate) String);

impl NetNs {
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{NAMES}{}-{number}-{role}", std::process::id());
        ip(&["netns", "add", &name]).ok();
        let namespace = Self(name);
        namespace.ip("link set lo up").ok();
        namespace
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    #[track_caller]
    pub(crate) fn without_dad(&self, interface: &str) {
        let script = format!("echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad");
        run(self.command(Path::new("sh")).args(["-c", &script])).ok();
    }

    #[track_caller]
    pub(crate) fn ip(&self, words: &str) -> Finished {
        ip(&[&["-n", self.0.as_str()][..], &words.split(' ').collect::<Vec<_>>()].concat())
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

#[track_caller]
pub(crate) fn ip(words: &[&str]) -> Finished {
    run(Command::new("ip").args(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;

    #[test]
    fn host_and_outside_reach_each_other_and_leave_no_name_behind() {
        let _machine = require!(Root);
        let host = HostNs::new();
        let path = host.path();
        run(host.command("ping").args(["-c", "1", "-W", "10", OUTSIDE_V6])).ok();
        run(host.outside("ping").args(["-c", "1", "-W", "10", "198.51.100.2"])).ok();
        assert!(path.exists());
        drop(host);
        assert!(!path.exists());
    }
}
