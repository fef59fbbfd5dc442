//! What the machine has, and whose turn it is.
//!
//! Tests share the machine's users, its podman and its device nodes, so one runs at a time: the lock
//! is a file, because `cargo test` and a person may run tests in several processes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, io};

use nix::fcntl::{Flock, FlockArg};

use crate::browser;
use crate::{Consul, HostNs, Suite, WholeHost};

const LOCK: &str = "/run/v6pod-tests.lock";

/// Device nodes that a rootless container's programs open as their user. On ordinary machines they
/// are 0666; on some they are root's alone.
const DEVICES: [&str; 2] = ["/dev/net/tun", "/dev/fuse"];

/// The programs of each need; `make deps` installs them.
const FOR_NAMESPACES: &[&str] =
    &["ip", "bridge", "nsenter", "unshare", "setpriv", "ping", "curl", "nft"];
const FOR_WHOLE_HOSTS: &[&str] = &["systemd-nspawn", "dpkg-deb", "make", "readelf", "busybox"];
const FOR_PODMAN: &[&str] =
    &["podman", "slirp4netns", "runc", "crun", "conmon", "newuidmap", "busybox", "python3"];

/// What a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root, and the programs to make namespaces and users with.
    Root,
    /// Rootless podman with slirp4netns. Implies [`Need::Root`].
    Podman,
    /// podman-compose. Implies [`Need::Root`].
    Compose,
    /// A Consul binary. Implies [`Need::Root`].
    Consul,
    /// A compiler of programs that use musl. Implies [`Need::Root`].
    Musl,
    /// A router that advertises itself, a DHCPv6 server that delegates prefixes, and a client. Implies [`Need::Root`].
    Dhcp,
    /// A browser.
    Browser,
    /// The client that makes up requests by the API's contract.
    Schemathesis,
    /// Whole hosts to boot. Implies [`Need::Root`].
    WholeHost,
}

/// The machine, for one test's sole use until it is dropped.
#[derive(Debug)]
pub struct Machine {
    _turn: Flock<File>,
}

impl Machine {
    /// The machine, once it is this test's turn; `None` if it lacks something, which is then said
    /// on stderr and, for the end of the whole run, in the file that `V6POD_TEST_SKIPPED` names.
    /// With `V6POD_TEST_REQUIRE=all` a lack is a panic. [`require!`](crate::require) is how tests
    /// call it.
    pub fn ready(test: &str, needs: &[Need]) -> Option<Self> {
        if let Some(reason) = needs.iter().find_map(|need| lack(*need)) {
            skip(test, &reason);
            return None;
        }
        let turn = turn().expect("taking the lock of the tests");
        HostNs::sweep();
        WholeHost::sweep();
        if needs.iter().any(|need| matches!(need, Need::Podman | Need::WholeHost)) {
            for device in DEVICES {
                open_to_all(Path::new(device));
            }
        }
        if needs.contains(&Need::WholeHost)
            && let Some(reason) = WholeHost::lack()
        {
            skip(test, &reason);
            return None;
        }
        Some(Self { _turn: turn })
    }
}

/// The first program of this name on `$PATH`.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The client that makes up requests by the API's contract, where `make deps` puts it.
pub fn schemathesis() -> Option<PathBuf> {
    let cached = Path::new("/var/cache/v6pod-tests/schemathesis/bin/schemathesis");
    cached.is_file().then(|| cached.to_owned())
}

fn lack(need: Need) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let programs = match need {
        Need::Root | Need::Consul => FOR_NAMESPACES.to_vec(),
        Need::Podman => [FOR_NAMESPACES, FOR_PODMAN].concat(),
        Need::Musl => vec!["musl-gcc"],
        Need::Compose => vec!["podman-compose"],
        Need::Browser => vec![browser::PROGRAM],
        Need::Schemathesis => Vec::new(),
        Need::Dhcp => [FOR_NAMESPACES, &["dhcpd", "dhclient", "radvd", "dig"]].concat(),
        Need::WholeHost => [FOR_NAMESPACES, FOR_WHOLE_HOSTS].concat(),
    };
    if let Some(missing) = programs.iter().find(|program| on_path(program).is_none()) {
        return Some(format!("needs the program {missing} (make deps)"));
    }
    match need {
        Need::Root | Need::Musl | Need::Compose | Need::Dhcp | Need::Browser => None,
        Need::Podman => DEVICES[..1]
            .iter()
            .find(|device| !Path::new(device).exists())
            .map(|device| format!("needs {device}")),
        Need::Schemathesis => {
            schemathesis().is_none().then(|| "needs schemathesis (make deps)".to_owned())
        }
        Need::Consul => Consul::program()
            .is_none()
            .then(|| "needs Consul (make deps, or V6POD_CONSUL=path)".to_owned()),
        Need::WholeHost => {
            let roots = [Suite::Bookworm, Suite::Trixie].map(Suite::root);
            let missing = roots.iter().find(|root| !root.is_dir());
            missing.map(|root| format!("needs {} (make deps)", root.display()))
        }
    }
}

fn skip(test: &str, reason: &str) {
    assert!(
        env::var("V6POD_TEST_REQUIRE").as_deref() != Ok("all"),
        "{test} has to run here (V6POD_TEST_REQUIRE=all): {reason}"
    );
    let line = format!("SKIPPED {test}: {reason}\n");
    // Not eprint!, which the test runner keeps to itself when a test passes.
    let _ = io::stderr().write_all(line.as_bytes());
    if let Some(file) = env::var_os("V6POD_TEST_SKIPPED") {
        let file = OpenOptions::new().append(true).create(true).open(file);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("noting a skipped test");
    }
}

fn turn() -> io::Result<Flock<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(LOCK)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

fn open_to_all(device: &Path) {
    let Ok(metadata) = fs::metadata(device) else { return };
    if metadata.permissions().mode() & 0o666 != 0o666 {
        fs::set_permissions(device, Permissions::from_mode(0o666)).expect("opening a device");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_on_the_path() {
        assert!(on_path("sh").is_some());
        assert!(on_path("no-such-program-here").is_none());
    }
}
