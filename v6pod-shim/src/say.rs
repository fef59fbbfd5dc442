//! One line to a person.
//!
//! Podman sends its child's stderr to a log that it shows only when the start fails, and no line of
//! a start that goes well would ever be seen there. So a line goes to podman's own stderr too, by
//! taking that descriptor over (pidfd_getfd(2), Linux 5.6): never by opening it anew through /proc,
//! which would write from the start of a file, nor where the parent is not podman.
//!
//! Guarantees: a line is one line, without control characters, whoever had a say in its text; and
//! saying it neither waits for a reader nor stops the program.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{fstat, makedev};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getppid, pidfd_getfd, pidfd_open};
use rustix::termios::{LocalModes, isatty, tcgetattr};

/// The most that is written, in bytes: less than `PIPE_BUF`, so that a pipe with room for anything
/// has room for the line.
const LIMIT: usize = 1000;

/// Says it on this program's own stderr.
pub(crate) fn on_stderr(text: &str) {
    write(io::stderr().as_fd(), &line(text));
}

/// Says it on this program's own stderr and on that of the podman which started it.
pub(crate) fn to_user(text: &str) {
    on_stderr(text);
    if let Some(stderr) = stderr_of_podman().filter(|podmans| !is_same(podmans.as_fd())) {
        write(stderr.as_fd(), &line(text));
    }
}

/// Says why a container does not start: on this program's own stderr, or, where an OCI runtime has run it
/// and thrown that away, as crun does, on the stderr of the podman which waits for the runtime.
pub(crate) fn through_runtime(text: &str) {
    match is_null(io::stderr().as_fd()) {
        true => past_runtime(text),
        false => on_stderr(text),
    }
}

/// Says it on the stderr of the podman which waits for the OCI runtime that has run this program: a
/// runtime shows what stands on a hook's own stderr only where that fails.
pub(crate) fn past_runtime(text: &str) {
    match stderr_of_waiting_podman() {
        Some(stderr) => write(stderr.as_fd(), &line(text)),
        // Another engine's, or by hand.
        None => on_stderr(text),
    }
}

fn line(text: &str) -> String {
    let mut line = String::from("v6pod: ");
    for c in text.chars() {
        if line.len() > LIMIT - 8 {
            line.push_str("...");
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line.push('\n');
    line
}

/// Writes if that is possible at once. A reader who left or who reads nothing has no claim on it.
fn write(stderr: BorrowedFd<'_>, line: &str) {
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let polled = poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    let writable = ready[0].revents().contains(PollFlags::OUT);
    if polled.is_ok() && writable && !would_stop(stderr) {
        // Nobody is left to be told that it failed.
        let _ = rustix::io::write(stderr, line.as_bytes());
    }
}

/// Whether writing may stop this process: podman starts it in a process group of its own, and a
/// terminal with `stty tostop` stops background groups that write to it.
fn would_stop(stderr: BorrowedFd<'_>) -> bool {
    isatty(stderr)
        && tcgetattr(stderr).map_or(true, |modes| modes.local_modes.contains(LocalModes::TOSTOP))
}

/// The descriptor 2 of the parent, if the parent is podman.
fn stderr_of_podman() -> Option<OwnedFd> {
    let parent = getppid()?;
    let pidfd = pidfd_open(parent, PidfdFlags::empty()).ok()?;
    // Still the parent: so the pidfd is the parent's and no later process's of the same number.
    (is_podman(parent) && getppid() == Some(parent)).then_some(())?;
    pidfd_getfd(pidfd, 2, PidfdGetfdFlags::empty()).ok()
}

/// The descriptor 2 of the podman that waits for the grandparent, a conmon that runs a runtime that
/// runs this. Podman has given conmon one end of a socket pair, whose number conmon's environment tells,
/// and a socket pair knows who made it.
fn stderr_of_waiting_podman() -> Option<OwnedFd> {
    let conmon = parent_of(getppid()?)?;
    let pidfd = pidfd_open(conmon, PidfdFlags::empty()).ok()?;
    let environment = fs::read(format!("/proc/{}/environ", conmon.as_raw_nonzero())).ok()?;
    let mut variables = environment.split(|&b| b == 0);
    let end = variables.find_map(|variable| variable.strip_prefix(b"_OCI_SYNCPIPE="))?;
    let end = str::from_utf8(end).ok()?.parse().ok()?;
    let end = pidfd_getfd(pidfd, end, PidfdGetfdFlags::empty()).ok()?;
    let podman = socket_peercred(end).ok()?.pid;
    let pidfd = pidfd_open(podman, PidfdFlags::empty()).ok()?;
    is_podman(podman).then(|| pidfd_getfd(pidfd, 2, PidfdGetfdFlags::empty()).ok())?
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(parent.trim().parse().ok()?)
}

/// Whether this is /dev/null.
fn is_null(stderr: BorrowedFd<'_>) -> bool {
    fstat(stderr).is_ok_and(|stat| stat.st_rdev == makedev(1, 3))
}

/// By the name of its program. `comm` alone is not enough: rootless podman runs itself anew as
/// /proc/self/exe, and is called "exe" after that.
fn is_podman(pid: Pid) -> bool {
    let pid = pid.as_raw_nonzero();
    let named = |path: &Path| path.file_name().is_some_and(|n| n.as_bytes().starts_with(b"podman"));
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| named(&exe))
        || fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == b"podman\n")
}

/// Whether this is the same file as our own stderr.
fn is_same(other: BorrowedFd<'_>) -> bool {
    match (fstat(io::stderr()), fstat(other)) {
        (Ok(own), Ok(other)) => (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    #[test]
    fn a_line_is_one_line_of_harmless_characters() {
        assert_eq!(line("a\nb\x1b[31mc\r\u{9b}d"), "v6pod: a b [31mc  d\n");
        let long = line(&"é".repeat(2000));
        assert!(long.len() <= LIMIT && long.ends_with("é...\n"), "{}", long.len());
    }

    #[test]
    fn what_is_thrown_away_is_told_from_what_is_not() {
        let null = fs::File::options().write(true).open("/dev/null").unwrap();
        let zero = fs::File::options().write(true).open("/dev/zero").unwrap();
        assert!(is_null(null.as_fd()) && !is_null(zero.as_fd()));
        assert!(!is_null(io::pipe().unwrap().1.as_fd()));
    }

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (_reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
        fcntl_setfl(&writer, OFlags::empty()).unwrap();
        write(writer.as_fd(), "lost\n");
    }

    #[test]
    fn a_pipe_without_a_reader_is_survived() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        write(writer.as_fd(), "lost\n");
    }

    #[test]
    fn a_pipe_with_room_gets_the_line() {
        let (mut reader, writer) = io::pipe().unwrap();
        write(writer.as_fd(), "told\n");
        drop(writer);
        let mut told = String::new();
        reader.read_to_string(&mut told).unwrap();
        assert_eq!(told, "told\n");
    }
}
