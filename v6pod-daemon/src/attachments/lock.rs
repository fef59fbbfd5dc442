//! There is one daemon of an instance.
//!
//! Guarantee: who holds the lock is the only one who runs. A daemon that has been killed and cannot
//! end counts as gone: a thread of it may be waiting in a close(2) that a tenant's FUSE server never
//! answers, which not even SIGKILL ends, and its descriptors stay open as long. No code of it runs
//! any more. Else a tenant could keep every later daemon from starting (threat 33).

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::sys::stat::makedev;

/// The lock, or none if another daemon has it.
pub(super) fn take(path: &Path) -> io::Result<Option<File>> {
    let lock = open(path)?;
    if try_lock(&lock)? {
        return Ok(Some(lock));
    }
    let own = FileId::of(&lock.metadata()?);
    if !holder(own).is_some_and(is_dead) {
        return Ok(None);
    }
    tracing::warn!("a daemon that has been killed cannot end: a tenant's file does not let it");
    // Whoever else has found the same has put a file of his own there by now, or will see ours.
    if fs::symlink_metadata(path).is_ok_and(|now| FileId::of(&now) == own) {
        fs::remove_file(path)?;
    }
    let lock = open(path)?;
    Ok(try_lock(&lock)?.then_some(lock))
}

/// Nobody else may open it, or anybody could hold the lock. For reading alone: `v6podctl purge`
/// makes it as root, and a daemon that is not root may read what it may not write.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // The folder is the daemon's user's: root follows no link out of it.
    let flags = nix::libc::O_CREAT | nix::libc::O_NOFOLLOW;
    options.read(true).custom_flags(flags).mode(0o600).open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Which file it is, as proc_locks(5) names it. Its inode alone is not enough: anybody makes a file of
/// any inode on a file system of his own, and has a dead process hold a lock on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The process that locked this file, as proc_locks(5) tells.
fn holder(file: FileId) -> Option<u32> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holder_in(line, file))
}

/// `1: FLOCK  ADVISORY  WRITE 708 08:01:1310732 0 EOF`: the device's numbers in hex.
fn holder_in(line: &str, file: FileId) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    let (kind, pid, locked) = (words.next()?, words.nth(2)?, words.next()?);
    let mut numbers = locked.split(':');
    let (major, minor) = (numbers.next()?, numbers.next()?);
    let (major, minor) = (u64::from_str_radix(major, 16), u64::from_str_radix(minor, 16));
    let device = makedev(major.ok()?, minor.ok()?);
    let locked = FileId { device, inode: numbers.next()?.parse().ok()? };
    if kind == "FLOCK" && locked == file { pid.parse().ok() } else { None }
}

/// Whether all that is left of the process waits for its end (proc_pid_stat(5), field 3).
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_one_process_and_its_holder_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = take(&path).unwrap().unwrap();
        let own = FileId::of(&lock.metadata().unwrap());
        assert_eq!(holder(own), Some(std::process::id()));
        assert!(!is_dead(std::process::id()));
        assert!(take(&path).unwrap().is_none(), "its holder runs");
        assert_eq!(own, FileId::of(&fs::metadata(&path).unwrap()));
        drop(lock);
        assert!(take(&path).unwrap().is_some());
    }

    #[test]
    fn a_child_that_nobody_reaps_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        for _ in 0..2000 {
            if is_dead(pid) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(is_dead(pid));
        child.wait().unwrap();
        assert!(!is_dead(pid), "gone: nobody to hold anything");
    }

    #[test]
    fn lines_of_other_locks_name_nobody() {
        let file = |device, inode| FileId { device, inode };
        let line = "7: FLOCK  ADVISORY  WRITE 12 00:3c:6 0 EOF";
        let whose = |device, inode| holder_in(line, file(device, inode));
        assert_eq!((whose(0x3c, 6), whose(0x3c, 60)), (Some(12), None));
        assert_eq!(whose(0x3d, 6), None, "a tenant's file of the same inode elsewhere");
        for line in ["", "4: OFDLCK ADVISORY  WRITE -1 fe:00:6 0 EOF", "4: -> FLOCK ADVISORY"] {
            assert_eq!(holder_in(line, file(makedev(0xfe, 0), 6)), None, "{line}");
        }
    }

    #[test]
    fn no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(take(&path).is_err());
        assert!(!folder.path().join("elsewhere").exists());
    }
}
