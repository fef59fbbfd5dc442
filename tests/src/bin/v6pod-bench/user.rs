//! An ordinary user with subordinate ids, as rootless podman needs one.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Result;
use crate::program::run;

const NAME: &str = "v6b1";

/// What programs of a rootless container open as their user. On ordinary machines they are 0666; on
/// some they are root's alone.
const DEVICES: [&str; 2] = ["/dev/net/tun", "/dev/fuse"];

/// The account goes when the value is dropped, with all that it runs and has.
pub(crate) struct User {
    uid: u32,
    gid: u32,
    subordinate: Range<u32>,
}

impl User {
    /// Makes the account. One that a killed run left behind goes first.
    pub(crate) fn create() -> Result<Rc<Self>> {
        drop(Self::find()?);
        run(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", NAME]))?.ok()?;
        let user = Self::find()?.ok_or("useradd made no account")?;
        let runtime = user.runtime_dir();
        fs::create_dir_all(&runtime)?;
        fs::set_permissions(&runtime, Permissions::from_mode(0o700))?;
        chown(&runtime, Some(user.uid), Some(user.gid))?;
        DEVICES.map(Path::new).into_iter().try_for_each(open_to_all)?;
        Ok(Rc::new(user))
    }

    fn find() -> Result<Option<Self>> {
        let account = nix::unistd::User::from_name(NAME)?;
        let subordinate = subordinate_ids(&fs::read_to_string("/etc/subuid").unwrap_or_default());
        Ok(account.map(|it| Self { uid: it.uid.as_raw(), gid: it.gid.as_raw(), subordinate }))
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Where his programs have their sockets.
    pub(crate) fn runtime_dir(&self) -> PathBuf {
        Path::new("/run/user").join(self.uid.to_string())
    }

    /// A command as this user, from his home, with a login's environment.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let home = Path::new("/home").join(NAME);
        let mut command = Command::new(program);
        command.uid(self.uid).gid(self.gid).current_dir(&home).env_clear();
        command.env("HOME", &home).env("USER", NAME).env("LOGNAME", NAME);
        command.env("XDG_RUNTIME_DIR", self.runtime_dir());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn owns(&self, uid: u32) -> bool {
        uid == self.uid || self.subordinate.contains(&uid)
    }

    /// Kills what this user runs. Whether there was anything.
    fn kill_all(&self) -> bool {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut any = false;
        for pid in pids.filter_map(Pid::from_raw) {
            // Held first and looked at then: the number cannot become another's in between.
            let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let proc = format!("/proc/{}", pid.as_raw_nonzero());
            let is_his = fs::metadata(&proc).is_ok_and(|dir| self.owns(dir.uid()));
            if is_his && runs(&proc) {
                any = true;
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        }
        any
    }
}

impl Drop for User {
    fn drop(&mut self) {
        for _ in 0..200 {
            if !self.kill_all() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_dir_all(self.runtime_dir());
        let removed = run(Command::new("userdel").args(["--remove", "--force", NAME]));
        if let Err(error) = removed.and_then(crate::program::Finished::ok) {
            eprintln!("v6pod-bench: the user {NAME} is still there: {error}");
        }
    }
}

/// Whether it is more than a zombie.
fn runs(proc: &str) -> bool {
    let stat = fs::read_to_string(format!("{proc}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// The user's line of /etc/subuid: name, first, how many.
fn subordinate_ids(list: &str) -> Range<u32> {
    let range = list.lines().find_map(|line| {
        let (start, count) = line.strip_prefix(NAME)?.strip_prefix(':')?.split_once(':')?;
        let start: u32 = start.parse().ok()?;
        Some(start..start.checked_add(count.parse().ok()?)?)
    });
    range.unwrap_or(0..0)
}

fn open_to_all(device: &Path) -> Result<()> {
    let Ok(metadata) = fs::metadata(device) else { return Ok(()) };
    if metadata.permissions().mode() & 0o666 != 0o666 {
        fs::set_permissions(device, Permissions::from_mode(0o666))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_those_of_this_very_name() {
        assert_eq!(subordinate_ids("v6b:1:2\nv6b12:3:4\nv6b1:100000:65536\n"), 100_000..165_536);
        assert!(subordinate_ids("v6b1:4294967295:2\n").is_empty());
    }
}
