//! Network namespaces to throw away. Nothing of a test touches the machine's own.

use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;
use v6pod_proto::Mode;

use super::firewall::nft;
use super::host::{Forwarding, Host, Topology, prepare};
use super::namespace::{Home, NetNs};
use super::workers::Worker;
use crate::core::links::Links;
use crate::core::ruleset::{EastWest, HostAccess, Ingress, Policy, Ruleset};
use crate::core::step::{Port, ROUTED_GATEWAY, attach};

/// Runs the body on a thread in a network namespace of its own, the "host" of the test.
pub(crate) fn in_netns(body: impl FnOnce() + Send + 'static) {
    if !geteuid().is_root() {
        return skipped("needs root");
    }
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link set lo up");
        body();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// Says that a test is not run, unless all must be.
pub(crate) fn skipped(why: &str) {
    let required = std::env::var("V6POD_TEST_REQUIRE").is_ok_and(|value| value == "all");
    assert!(!required, "{why}");
    eprintln!("skipped: {why}");
}

/// Runs a shell command in the calling thread's namespace; it must succeed. Its output.
#[track_caller]
pub(crate) fn sh(command: &str) -> String {
    let (success, text) = try_sh(command);
    assert!(success, "{command}: {text}");
    text
}

/// The same; whether it succeeded.
pub(crate) fn try_sh(command: &str) -> (bool, String) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Another network namespace: what a container is made of, as far as the kernel layer cares.
pub(crate) struct Container(OwnedFd);

impl Container {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap().into()
        };
        Self(thread::spawn(make).join().unwrap())
    }

    pub(crate) fn fd(&self) -> OwnedFd {
        self.0.try_clone().unwrap()
    }

    pub(crate) fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub(crate) fn verified(&self, home: &Home) -> NetNs {
        NetNs::verify(self.fd(), home).unwrap()
    }

    /// Runs the body inside.
    #[track_caller]
    pub(crate) fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
    }

    #[track_caller]
    pub(crate) fn sh(&self, command: &str) -> String {
        self.enter(|| sh(command))
    }
}

/// `unshare -Urn sleep` as an ordinary user: a user namespace with a network namespace. Killed when
/// dropped.
pub(crate) struct Rootless(Child);

impl Rootless {
    pub(crate) const UID: u32 = 64_321;

    pub(crate) fn start() -> Self {
        let user = format!("--reuid={0} --regid={0} --clear-groups", Self::UID);
        let command = format!("exec setpriv {user} unshare -Urn sleep 60");
        let child = Command::new("sh").args(["-c", &command]).stdin(Stdio::null()).spawn().unwrap();
        let rootless = Self(child);
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", rootless.pid());
        let comm = format!("/proc/{}/comm", rootless.pid());
        eventually("a rootless namespace", || {
            std::fs::read_link(&path).is_ok_and(|ns| ns != here)
                && std::fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n")
        });
        rootless
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn ns(&self, kind: &str) -> OwnedFd {
        File::open(format!("/proc/{}/ns/{kind}", self.pid())).unwrap().into()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A prepared host with a worker.
pub(crate) struct Bench {
    pub(crate) worker: Worker,
    pub(crate) topology: Topology,
    pub(crate) host: Host,
}

impl Bench {
    /// On the calling thread, in its namespace.
    pub(crate) fn new() -> Self {
        let mut worker = worker();
        let topology = topology();
        let host = prepare(&mut worker.socket, &topology).unwrap();
        load_rules();
        Self { worker, topology, host }
    }

    /// Runs all steps. The port's number.
    pub(crate) fn attach(&mut self, container: &Container, port: &Port) -> u32 {
        let ns = container.verified(self.worker.home());
        self.attach_to(&ns, port)
    }

    pub(crate) fn attach_to(&mut self, ns: &NetNs, port: &Port) -> u32 {
        let mut wire = super::Wire::new(&mut self.worker, &self.host, port, ns);
        for step in attach(port.mode) {
            wire.run(step).unwrap();
        }
        // On a busy machine the kernel may need longer than anybody waits in earnest.
        eventually("packets can pass", || wire.settle());
        wire.trim();
        wire.ifindex().unwrap()
    }
}

pub(crate) fn worker() -> Worker {
    Worker::open(Arc::new(Home::here().unwrap())).unwrap()
}

pub(crate) fn topology() -> Topology {
    Topology {
        prefix: "2001:db8:1:2:3::/80".parse().unwrap(),
        former: Vec::new(),
        links: Links::of(&"v6k".parse().unwrap()),
        mtu: None,
        uplink: None,
        forwarding: Forwarding::probe().unwrap(),
        proxy: false,
        resolver: None,
    }
}

/// The rules that fit [`topology`].
pub(crate) fn policy(ingress: Ingress) -> Policy {
    let Topology { links, prefix, .. } = topology();
    let (east_west, host) = (EastWest::Policy, HostAccess::AsOutside);
    let flows = NonZeroU32::new(100);
    let former = Vec::new();
    Policy { links, prefix, former, ingress, east_west, host, flows, resolver: None, nat66: None }
}

/// Puts them in force in the calling thread's namespace, closed.
pub(crate) fn load_rules() {
    nft::load(&Ruleset::of(&policy(Ingress::Deny), &[])).unwrap();
}

/// The `n`th container's port.
pub(crate) fn port(n: u8) -> Port {
    Port {
        name: format!("v6k-{n}").parse().unwrap(),
        interface: "eth0".parse().unwrap(),
        mac: v6pod_proto::Mac::local([0x02, 0, 0, 0, 0, n]),
        address: format!("2001:db8:1:2:3::{:x}", 0x1000 + u16::from(n)).parse().unwrap(),
        gateway: "2001:db8:1:2:3::1".parse().unwrap(),
        mtu: 1500,
        owner: v6pod_proto::Uid::new(Rootless::UID).unwrap(),
        open: Default::default(),
        subnet: None,
        also: Vec::new(),
        alias: format!("v6pod test {n}"),
        mode: Mode::Bridge,
    }
}

/// The same, on no bridge.
pub(crate) fn routed(n: u8) -> Port {
    Port { gateway: ROUTED_GATEWAY, mode: Mode::Routed, ..port(n) }
}
