//! Where it happens: a network namespace that plays the host, and those that play containers.

use std::fs::{self, File, OpenOptions, Permissions};
use std::hint;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tempfile::TempDir;

use crate::Result;
use crate::program::run;

/// Whoever holds this has the machine's users and podman to himself: the tests do too.
const TURN: &str = "/run/v6pod-tests.lock";

/// This process's own network namespace in the host's part. Everything started from here is in it,
/// and it ends with the last of them.
pub(crate) struct Scene {
    host: NetNs,
    signals: SignalFd,
    /// Files and programs that every user may look at.
    dir: TempDir,
    /// Files that are to be in memory, as they are in a daemon's /run.
    run: TempDir,
    _turn: Flock<File>,
}

impl Scene {
    /// Moves the calling thread, and with it all that it starts, into a new network namespace.
    pub(crate) fn set() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root: it makes network namespaces and a user".into());
        }
        let signals = hold_signals_back()?;
        let turn = turn()?;
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|e| format!("cannot make a network namespace: {e}"))?;
        let host = NetNs::of_this_thread()?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?.ok()?;
        let mut dir = tempfile::Builder::new();
        dir.prefix("v6b-").permissions(Permissions::from_mode(0o755));
        let (run, dir) = (dir.tempdir_in("/run")?, dir.tempdir()?);
        Ok(Self { host, signals, dir, run, _turn: turn })
    }

    /// A path for files of this run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A directory below /run.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.run.path().to_owned()
    }

    /// Copies a program to where every user can run it.
    pub(crate) fn copy(&self, program: &Path, name: &str) -> Result<PathBuf> {
        let copy = self.file(name);
        fs::copy(program, &copy).map_err(|e| format!("cannot copy {}: {e}", program.display()))?;
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        Ok(copy)
    }

    /// Runs `job` inside the namespace, in which this thread's new sockets, sysctls and children
    /// are meanwhile.
    pub(crate) fn inside<T>(&self, netns: &NetNs, job: impl FnOnce() -> Result<T>) -> Result<T> {
        netns.enter()?;
        let result = job();
        self.host.enter()?;
        result
    }

    /// Whether `eth0` in the namespace has a global address and the default route.
    pub(crate) fn check_attached(&self, netns: &NetNs) -> Result<()> {
        self.inside(netns, || {
            let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6")?;
            let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
            if !has_global_address(&addresses) {
                return Err("eth0 got no address".into());
            }
            if !has_default_route(&routes) {
                return Err("eth0 got no default route".into());
            }
            Ok(())
        })
    }

    /// An error if somebody wants this program to end.
    pub(crate) fn uninterrupted(&self) -> Result<()> {
        match self.signals.read_signal()? {
            None => Ok(()),
            Some(_) => Err("interrupted".into()),
        }
    }
}

/// Lines of `/proc/net/if_inet6`: address, index, prefix length, scope, flags, name. Scope 0 is
/// global.
fn has_global_address(if_inet6: &str) -> bool {
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if_inet6.lines().map(fields).any(|f| f.len() == 6 && f[3] == "00" && f[5] == "eth0")
}

/// Lines of `/proc/net/ipv6_route`: destination, its length, …, name.
fn has_default_route(ipv6_route: &str) -> bool {
    let to_all = format!("{} 00 ", "0".repeat(32));
    ipv6_route.lines().any(|line| line.starts_with(&to_all) && line.trim_end().ends_with(" eth0"))
}

/// Signals that ask for an end come by a descriptor, so that what was made can be taken away first.
/// Programs that this one starts get them as usual: std clears the mask.
fn hold_signals_back() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|s| set.add(s));
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

fn turn() -> Result<Flock<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(TURN)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(turn) => return Ok(turn),
        Err((file, _)) => file,
    };
    crate::say("waiting for the tests that are running");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Called right before whatever is timed, so that all begin alike: what was done before has settled
/// in the kernel's own threads (namespaces that end, RCU grace periods, link events), and the
/// processor is awake.
pub(crate) fn calm() {
    const REST: Duration = Duration::from_millis(60);
    const WAKE: Duration = Duration::from_millis(1);
    thread::sleep(REST);
    let began = Instant::now();
    while began.elapsed() < WAKE {
        hint::spin_loop();
    }
}

/// A network namespace, as long as this value lives.
#[derive(Debug)]
pub(crate) struct NetNs(OwnedFd);

impl NetNs {
    /// A new one, empty.
    pub(crate) fn new() -> Result<Self> {
        let make = || -> std::result::Result<Self, String> {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
            Self::of_this_thread().map_err(|e| e.to_string())
        };
        let made = thread::spawn(make).join().map_err(|_| "a thread died")?;
        made.map_err(|e| format!("cannot make a network namespace: {e}").into())
    }

    /// That of the calling thread.
    pub(crate) fn of_this_thread() -> Result<Self> {
        Self::at(Path::new("/proc/thread-self/ns/net"))
    }

    /// That behind this file.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
        Ok(Self(file.into()))
    }

    /// A path to it for programs that this one starts.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.0.as_raw_fd())
    }

    /// Moves the calling thread there.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
            .map_err(|e| format!("cannot enter a network namespace: {e}").into())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_no_attachment() {
        let local = "fe800000000000001474 02 40 20 80     eth0\n";
        assert!(!has_global_address(local));
        assert!(!has_global_address("20010db8000100020003000000000005 02 80 00 80       lo\n"));
        assert!(has_global_address("20010db8000100020003000000000005 02 80 00 80     eth0\n"));
    }

    #[test]
    fn the_route_that_every_namespace_has_is_no_default_route() {
        let zero = "0".repeat(32);
        let route =
            |name| format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 0 00200200 {name}\n");
        assert!(!has_default_route(&route("      lo")));
        assert!(has_default_route(&route("    eth0")));
    }
}
