//! What the machine gives a rootless container.

use std::env;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::Uid;
use rustix::fs::{Access, access, statvfs};

use super::super::finding::By;
use super::super::host::{Facts, Room, Tun};
use super::super::programs::Version;
use super::{caller, name_of, number, text};

const DAY: Duration = Duration::from_secs(86_400);

/// What the machine gives.
pub(crate) fn host() -> Facts {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let misc = fs::read_to_string("/proc/misc").unwrap_or_default();
    let apparmor: Option<u64> = number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    Facts {
        users: users(),
        subordinate: subordinate(),
        tun: tun(),
        tun_driver: misc.lines().any(|line| line.split_whitespace().eq(["200", "tun"])),
        kernel: Version::find(&release),
        max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
        userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor_restricts: apparmor == Some(1) && !Path::new("/etc/apparmor.d/podman").exists(),
        selinux_enforces: number::<u64>("/sys/fs/selinux/enforce") == Some(1),
        run: room("/run"),
        clock_behind: clock_behind(),
        without_ipv6: !Path::new("/proc/net/if_inet6").exists()
            || number::<u64>("/sys/module/ipv6/parameters/disable") == Some(1),
    }
}

/// The caller; for root whoever is logged in.
fn users() -> Vec<(u32, String)> {
    let caller = Uid::effective();
    if !caller.is_root() {
        return vec![(caller.as_raw(), name_of(caller))];
    }
    let entries = fs::read_dir("/run/user").into_iter().flatten().flatten();
    let uids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut uids: Vec<u32> = uids.filter(|uid| *uid != 0).collect();
    uids.sort_unstable();
    uids.into_iter().map(|uid| (uid, name_of(Uid::from_raw(uid)))).collect()
}

/// None where a directory service says them, which has tools of its own.
fn subordinate() -> Option<(String, String)> {
    let read = |path: &str| match text(Path::new(path)) {
        None => Some(String::new()),
        Some(text) => text.ok(),
    };
    let nss = read("/etc/nsswitch.conf")?;
    let by_nss = nss.lines().any(|line| {
        line.trim_start().strip_prefix("subid:").is_some_and(|by| by.trim() != "files")
    });
    if by_nss { None } else { Some((read("/etc/subuid")?, read("/etc/subgid")?)) }
}

fn tun() -> Tun {
    let path = Path::new("/dev/net/tun");
    let Ok(file) = fs::metadata(path) else { return Tun::Missing };
    // c 10 200 (devices.txt).
    if !file.file_type().is_char_device() || file.rdev() != nix::sys::stat::makedev(10, 200) {
        return Tun::Missing;
    }
    let open = match caller() {
        By::Root => file.permissions().mode() & 0o006 == 0o006,
        By::User(_) => access(path, Access::READ_OK | Access::WRITE_OK).is_ok(),
    };
    if open { Tun::Fine } else { Tun::Closed }
}

fn room(path: &str) -> Option<Room> {
    let found = statvfs(path).ok()?;
    let kib = |blocks: u64| blocks.saturating_mul(found.f_frsize) / 1024;
    // A file system that counts no files says that there can be none.
    let free_files = if found.f_files == 0 { u64::MAX } else { found.f_favail };
    Some(Room { size_kib: kib(found.f_blocks), free_kib: kib(found.f_bavail), free_files })
}

/// In whole days; nothing that was installed can be of the future.
fn clock_behind() -> u64 {
    let installed = env::current_exe().and_then(fs::metadata).and_then(|exe| exe.modified());
    let now = SystemTime::now();
    let behind = installed.ok().and_then(|installed| installed.duration_since(now).ok());
    behind.unwrap_or_default().as_secs() / DAY.as_secs()
}
