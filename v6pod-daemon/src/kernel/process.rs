//! One certain process, and not another that got its number later.
//!
//! Guarantee (threat 4): a [`Process`] is held by pidfd. What is read of it under /proc is believed only
//! if the process was still alive afterwards: until then nobody else could have had its number.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use v6pod_proto::Uid;

use super::error::{Cause, Error};
use super::sys;

/// A process that was alive when it was pinned.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    start_time: u64,
    pidfd: OwnedFd,
}

impl Process {
    /// Pins the process that has this number now. [`Error::is_gone`] if there is none.
    pub fn pin(pid: u32) -> Result<Self, Error> {
        let doing = || format!("pin process {pid}");
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| Error::io(doing(), io::Error::from_raw_os_error(libc::ESRCH)))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| Error::io(doing(), e))?;
        Self::of(pid, pidfd).map_err(|error| error.while_doing(doing()))
    }

    /// The process behind a pidfd, such as one of SO_PEERPIDFD.
    pub fn from_pidfd(pidfd: OwnedFd) -> Result<Self, Error> {
        let doing = "tell the process of a pidfd";
        let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
        let info = fs::read_to_string(path).map_err(|error| Error::io(doing, error))?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        let pid = pid
            .and_then(|pid| pid.trim().parse().ok())
            .ok_or_else(|| Error::io(doing, io::Error::from(io::ErrorKind::InvalidInput)))?;
        // -1 once it is gone, 0 in another process namespace.
        let gone = || Error::io(doing, io::Error::from_raw_os_error(libc::ESRCH));
        let pid =
            Some(pid).filter(|&pid: &i32| pid > 0).and_then(Pid::from_raw).ok_or_else(gone)?;
        Self::of(pid, pidfd).map_err(|error| error.while_doing(doing))
    }

    fn of(pid: Pid, pidfd: OwnedFd) -> Result<Self, Error> {
        let mut process = Self { pid, start_time: 0, pidfd };
        process.start_time = process.read_start_time()?;
        process.check_alive()?;
        Ok(process)
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// When it began, in clock ticks since boot (proc_pid_stat(5), field 22). With the number it tells a
    /// process from any other of this boot, also to a daemon that comes later.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(&self) -> Result<bool, Error> {
        // A pidfd is readable once its process has ended.
        let mut poll_fd = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut poll_fd, PollTimeout::ZERO)
            .map_err(|errno| Error::io("look after a process", errno))?;
        Ok(ready == 0)
    }

    /// Its network namespace. To be verified like any other.
    pub fn net_ns(&self) -> Result<OwnedFd, Error> {
        let path = format!("/proc/{}/ns/net", self.pid());
        let namespace = File::open(&path)
            .map_err(|error| Error::io("open the network namespace of a process", error))?;
        self.check_alive()?;
        Ok(namespace.into())
    }

    /// Whether the process is this user's: in a user namespace that he made, as a rootless container's
    /// are. Not by its uid: in a container that is a subordinate one.
    pub fn is_of(&self, user: Uid) -> bool {
        let owner = File::open(format!("/proc/{}/ns/user", self.pid()))
            .and_then(sys::user_ns_owner)
            .is_ok_and(|uid| Uid::new(uid) == Some(user));
        owner && self.check_alive().is_ok()
    }

    /// Waits until it ends. One waiter at a time; belongs into a tokio runtime.
    pub async fn exited(&self) -> Result<(), Error> {
        let wait = async {
            let pidfd = sys::watch_borrowed(self.pidfd.as_fd())?;
            pidfd.readable().await.map(drop)
        };
        wait.await.map_err(|error| Error::io("wait for the end of a process", error))
    }

    fn check_alive(&self) -> Result<(), Error> {
        if self.is_alive()? {
            return Ok(());
        }
        let gone = io::Error::from_raw_os_error(libc::ESRCH);
        Err(Error::io(format!("follow process {}", self.pid()), gone))
    }

    fn read_start_time(&self) -> Result<u64, Error> {
        let doing = "read the start time of a process";
        let mut stat = Vec::new();
        File::open(format!("/proc/{}/stat", self.pid()))
            .and_then(|file| file.take(4096).read_to_end(&mut stat))
            .map_err(|error| Error::io(doing, error))?;
        parse_start_time(&stat)
            .ok_or_else(|| Error::new(doing, Cause::Garbled("no start time in it")))
    }
}

/// Field 22. Field 2 is the process's own idea of its name: any bytes, in parentheses, which may
/// contain spaces, parentheses and line ends; no later field contains a parenthesis.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_name_of_spaces_and_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        for name in ["sleep", "a b", ") 1 2 3 (", "))", "\n", "\u{fffd}"] {
            let stat = format!("42 ({name}) {}\n", fields.join(" "));
            assert_eq!(parse_start_time(stat.as_bytes()), Some(22), "{name:?}");
        }
        for wrong in ["", ")", "1 (a) S 1 2", "1 a S", "1 (a) S -"] {
            assert_eq!(parse_start_time(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_process_is_the_same_by_its_number_and_by_its_pidfd() {
        let child = sleeper();
        let process = Process::pin(child.id()).unwrap();
        assert_eq!(process.pid(), child.id());
        assert!(process.start_time() > 0);
        let again = Process::from_pidfd(process.pidfd.try_clone().unwrap()).unwrap();
        assert_eq!((again.pid(), again.start_time()), (process.pid(), process.start_time()));
        end(child);
        assert!(!process.is_alive().unwrap());
    }

    #[test]
    fn attack_04_a_process_that_has_ended_has_no_namespace_and_cannot_be_pinned() {
        let mut child = sleeper();
        let process = Process::pin(child.id()).unwrap();
        assert!(process.net_ns().is_ok());
        child.kill().unwrap();
        // Dead and not waited for: a zombie, whose number is not free yet.
        let mut poll_fd = [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut poll_fd, PollTimeout::try_from(20_000).unwrap()).unwrap();
        assert!(process.net_ns().is_err());
        assert!(Process::pin(child.id()).unwrap_err().is_gone());
        child.wait().unwrap();
        assert!(Process::pin(child.id()).unwrap_err().is_gone());
        assert!(Process::from_pidfd(process.pidfd).unwrap_err().is_gone());
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for none in [0, u32::MAX, i32::MAX as u32] {
            assert!(Process::pin(none).is_err(), "{none}");
        }
        assert!(Process::from_pidfd(File::open("/").unwrap().into()).is_err());
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told() {
        let child = sleeper();
        let process = Process::pin(child.id()).unwrap();
        let killer = tokio::task::spawn_blocking(move || end(child));
        process.exited().await.unwrap();
        assert!(!process.is_alive().unwrap());
        killer.await.unwrap();
    }
}
