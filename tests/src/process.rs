//! Processes that are not children of the test: found in /proc, held by pidfd.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process, pinned: a signal goes to this one or to nobody, never to a later one of the same id.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    cmdline: String,
}

impl Process {
    /// The process of this id, if it still runs. Zombies do not.
    pub fn open(pid: i32) -> Option<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        (!is_zombie(pid)).then_some(Self { pid, pidfd, cmdline })
    }

    /// Its id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its command line, words separated by blanks.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// Sends SIGKILL. That it has ended already is no error.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends a signal. That it has ended already is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Whether it runs. A pidfd becomes readable when its process ends, reaped or not.
    pub fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())).expect("polling a pidfd") == 0
    }
}

/// The running processes whose real uid is one of those that `whose` accepts and whose name
/// (`/proc/PID/comm`) is `comm`, or any if that is `None`.
pub fn processes(comm: Option<&str>, whose: impl Fn(u32) -> bool) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let fits = |pid: &i32| {
        let named = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.is_none_or(|comm| named.trim_end() == comm) && real_uid(*pid).is_some_and(&whose)
    };
    // Looked at again once it is pinned: the id may have gone to another process in between.
    pids.filter(&fits).filter_map(Process::open).filter(|p| fits(&p.pid)).collect()
}

fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.split_whitespace().next().map(str::to_owned)
}

fn real_uid(pid: i32) -> Option<u32> {
    status_field(pid, "Uid:")?.parse().ok()
}

fn is_zombie(pid: i32) -> bool {
    status_field(pid, "State:").is_none_or(|state| state == "Z" || state == "X")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_by_name_and_killed() {
        let mut child = crate::Background::start(Command::new("sleep").arg("987654"));
        let me = rustix::process::getuid().as_raw();
        let found = crate::eventually(crate::PATIENCE, "sleep", || {
            processes(Some("sleep"), |uid| uid == me)
                .into_iter()
                .find(|p| p.cmdline().contains("987654"))
        });
        assert_eq!(u32::try_from(found.pid()), Ok(child.pid()));
        assert!(found.is_alive());
        found.kill();
        child.wait_within(crate::PATIENCE);
        assert!(!found.is_alive());
        assert!(processes(Some("sleep"), |uid| uid == u32::MAX).is_empty());
    }
}
