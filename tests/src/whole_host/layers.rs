//! What a whole host is made of on the machine: directories under the overlay, and a cgroup.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{PATIENCE, eventually};

use super::login::INFRA_IMAGE;

const CACHE: &str = "/var/cache/v6pod-tests";

/// How the names of all hosts of these tests begin.
const NAMES: &str = "v6t-";

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 11: podman 3.0.1, systemd 247, glibc 2.31.
    Bullseye,
    /// Debian 12: podman 4.3.1, systemd 252.
    Bookworm,
    /// Debian 13: podman 5.4.2, which prefers pasta, systemd 257.
    Trixie,
    /// Debian 13 with NetworkManager 1.52, which is off.
    NetworkManager,
    /// Debian 14, to be: podman 5.8.
    Forky,
    /// Debian's unstable with podman of its experimental: podman 6.
    Experimental,
}

impl Suite {
    /// The root that `tests/setup/root.sh` makes.
    pub fn root(self) -> PathBuf {
        let name = match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::NetworkManager => "networkmanager",
            Self::Forky => "forky",
            Self::Experimental => "experimental",
        };
        Path::new(CACHE).join(format!("root-{name}"))
    }
}

/// The places of one host. They go when the value is dropped, after the host.
#[derive(Debug)]
pub(super) struct Layers {
    name: String,
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Layers {
    /// Makes them; fails where the machine gives nobody a cgroup, or no room.
    pub(super) fn make(suite: Suite) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{NAMES}{}-{number}", std::process::id());
        let layers = Self {
            dir: Path::new(CACHE).join("hosts").join(&name),
            cgroup: cgroups().join(&name),
            name,
        };
        for (part, mode) in [
            ("upper/etc/containers/containers.conf.d", 0o755),
            ("upper/etc/systemd/system", 0o755),
            ("work", 0o755),
            ("root", 0o755),
            ("home", 0o755),
            ("containers", 0o755),
            ("tmp", 0o755),
        ] {
            let dir = layers.dir.join(part);
            DirBuilder::new().recursive(true).mode(mode).create(dir)?;
        }
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        fs::set_permissions(layers.dir.join("tmp"), all)?;
        let etc = layers.dir.join("upper/etc");
        fs::write(etc.join("hostname"), &layers.name)?;
        // Nobody answers anywhere, and every question would wait for its time-out.
        fs::write(etc.join("resolv.conf"), "")?;
        let hosts = format!("127.0.0.1 localhost {0}\n::1 localhost {0}\n", layers.name);
        fs::write(etc.join("hosts"), hosts)?;
        // Not every machine has the pids controller to hand on.
        let conf = "[containers]\npids_limit = 0\n";
        match suite {
            // Podman 3.0 reads no drop-ins, and would have its pods' own image from a registry.
            Suite::Bullseye => {
                let conf = format!("{conf}\n[engine]\ninfra_image = \"{INFRA_IMAGE}\"\n");
                fs::write(etc.join("containers/containers.conf"), conf)?;
            }
            _ => fs::write(etc.join("containers/containers.conf.d/00-machine.conf"), conf)?,
        }
        // Modules are the machine's; systemd 257 says so by failing.
        let modules = etc.join("systemd/system/systemd-modules-load.service");
        std::os::unix::fs::symlink("/dev/null", modules)?;
        fs::create_dir(&layers.cgroup)?;
        Ok(layers)
    }

    /// These for another boot, after which this value is none any more.
    pub(super) fn take_on(&mut self) -> Self {
        // The last one has left limits in it under which nobody can enter.
        let gone = eventually_gone(|| remove_cgroup(&self.cgroup));
        assert!(gone, "somebody is left in {}", self.cgroup.display());
        fs::create_dir(&self.cgroup).expect("making a cgroup");
        let empty = Self { name: String::new(), dir: PathBuf::new(), cgroup: PathBuf::new() };
        std::mem::replace(self, empty)
    }

    /// The host's name, and its cgroup's.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the host has written to its console.
    pub(super) fn console(&self) -> String {
        fs::read_to_string(self.dir.join("console")).unwrap_or_default()
    }

    /// Removes what hosts of killed runs left.
    pub(super) fn sweep() {
        for parent in [cgroups(), Path::new(CACHE).join("hosts")] {
            let entries = fs::read_dir(&parent).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            for name in names.filter(|name| name.starts_with(NAMES)) {
                let dir = Path::new(CACHE).join("hosts").join(&name);
                drop(Self { dir, cgroup: cgroups().join(&name), name });
            }
        }
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        // Whoever is left in it; there is no one when the host has powered off.
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let gone = eventually_gone(|| remove_cgroup(&self.cgroup));
        let _ = fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            assert!(gone && !self.dir.exists(), "something is left of {}", self.name);
        }
    }
}

fn eventually_gone(mut remove: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + PATIENCE;
    eventually(PATIENCE * 2, "unreachable: the closure gives up before", || {
        let gone = remove();
        (gone || std::time::Instant::now() >= deadline).then_some(gone)
    })
}

/// Removes a cgroup and those below it. False while there is somebody in one of them.
fn remove_cgroup(cgroup: &Path) -> bool {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    let _ = fs::remove_dir(cgroup);
    !cgroup.exists()
}

/// Where the machine has cgroup v2, beside the old ones or alone.
fn cgroups() -> PathBuf {
    let alone = Path::new("/sys/fs/cgroup");
    let beside = alone.join("unified");
    if beside.exists() { beside } else { alone.to_owned() }
}
