//! Shares of the processors, of equal weight: what systemd gives each user's slice and the system's
//! where it accounts for processor time (`CPUAccounting=`, systemd.resource-control(5)).

use std::fs;
use std::path::{Path, PathBuf};

/// A control group of its own for whoever enters it and what he starts from then on.
#[derive(Debug)]
pub struct Share {
    group: PathBuf,
}

impl Share {
    /// Makes one. With the kernel's default weight, which is every other's too.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let group = hierarchy().join(format!("v6t-{}-{name}", std::process::id()));
        fs::create_dir(&group).expect("making a control group");
        Self { group }
    }

    /// Moves this process, and so what it will start.
    #[track_caller]
    pub fn enter(&self) {
        enter(&self.group, std::process::id()).expect("entering a control group");
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let members = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            // Who has ended meanwhile has left.
            let _ = enter(&hierarchy(), pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}

fn enter(group: &Path, pid: u32) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

/// Where the groups lie by which the kernel divides processor time.
#[track_caller]
fn hierarchy() -> PathBuf {
    let (first, second) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
    if first.join("cpu.shares").exists() || first.join("cgroup.procs").exists() {
        return first.to_owned();
    }
    // The root may have members and controllers at once.
    fs::write(second.join("cgroup.subtree_control"), "+cpu").expect("having processor time divided");
    second.to_owned()
}
