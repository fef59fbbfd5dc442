//! There is one daemon of an instance.
//!
//! Guarantee: who holds the lock is the only one who runs. A daemon that has been killed and cannot
//! end counts as gone: a thread of it may be waiting in a close(2) that a tenant's FUSE server never
//! answers, which not even SIGKILL ends, and its descriptors stay open as long. No code of it runs
//! any more. Else a tenant could keep every later daemon from starting (threat 33).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The lock, or none if another daemon has it.
pub(super) fn take(path: &Path) -> io::Result<Option<File>> {
    let lock = open(path)?;
    if try_lock(&lock)? {
        return Ok(Some(lock));
    }
    let inode = lock.metadata()?.ino();
    if !holder(inode).is_some_and(is_dead) {
        return Ok(None);
    }
    tracing::warn!("a daemon that has been killed cannot end: a tenant's file does not let it");
    // Whoever else has found the same has put a file of his own there by now, or will see ours.
    if fs::metadata(path).is_ok_and(|now| now.ino() == inode) {
        fs::remove_file(path)?;
    }
    let lock = open(path)?;
    Ok(try_lock(&lock)?.then_some(lock))
}

/// Nobody else may open it, or anybody could hold the lock. For reading alone: `v6podctl purge`
/// makes it as root, and a daemon that is not root may read what it may not write.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nix::libc::O_CREAT).mode(0o600).open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The process that locked the file of this inode, as proc_locks(5) tells.
fn holder(inode: u64) -> Option<u32> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holder_in(line, inode))
}

/// `1: FLOCK  ADVISORY  WRITE 708 08:01:1310732 0 EOF`
fn holder_in(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    let (kind, pid, file) = (words.next()?, words.nth(2)?, words.next()?);
    let number = file.rsplit(':').next()?.parse::<u64>();
    if kind == "FLOCK" && number == Ok(inode) { pid.parse().ok() } else { None }
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
        let inode = lock.metadata().unwrap().ino();
        assert_eq!(holder(inode), Some(std::process::id()));
        assert!(!is_dead(std::process::id()));
        assert!(take(&path).unwrap().is_none(), "its holder runs");
        assert_eq!(lock.metadata().unwrap().ino(), fs::metadata(&path).unwrap().ino());
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
        let line = "7: FLOCK  ADVISORY  WRITE 12 00:3c:6 0 EOF";
        assert_eq!((holder_in(line, 6), holder_in(line, 60)), (Some(12), None));
        for line in ["", "4: OFDLCK ADVISORY  WRITE -1 fe:00:6 0 EOF", "4: -> FLOCK ADVISORY"] {
            assert_eq!(holder_in(line, 6), None, "{line}");
        }
    }
}
