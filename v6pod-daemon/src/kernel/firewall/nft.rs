//! Executing nft, at the daemon's start.
//!
//! Guarantees: the program is one of root's directories', whatever `PATH` says; it gets CAP_NET_ADMIN
//! and nothing else, an empty environment, and the text as a file without a name; if it does not end in
//! time it is killed. No thread but the one that waits is held up.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::kernel::privileges::lending_net_admin;

/// Where nft is looked for, in this order.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// How long it may take. 5,000 containers' elements take a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much of its complaints is kept, in bytes.
const COMPLAINT: u64 = 4096;

/// Why the rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no nft.
    #[error(
        "the program nft is not in any of {}; install nftables (apt install nftables, dnf install \
         nftables): without it no container's traffic can be filtered",
        DIRECTORIES.join(", ")
    )]
    Missing,
    /// It cannot be run.
    #[error("cannot run {}: {source}", .program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ran and refused.
    #[error("nft refused the firewall's rules (does this kernel have nf_tables?): {0}")]
    Refused(String),
    /// It ran and did not come to an end.
    #[error("nft did not end within {PATIENCE:?}")]
    Hung,
}

/// Puts the rules in force, all or none of them.
pub fn load(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text)
}

/// Asks nft and the kernel whether they would take the rules. Nothing is changed.
pub fn check(text: &str) -> Result<(), NftError> {
    run(&["-c", "-f", "-"], text)
}

fn run(arguments: &[&str], text: &str) -> Result<(), NftError> {
    let program = find(&DIRECTORIES).ok_or(NftError::Missing)?;
    let (status, complaint) = execute(&program, arguments, text)
        .map_err(|source| NftError::Run { program, source })?
        .ok_or(NftError::Hung)?;
    if status.success() { Ok(()) } else { Err(NftError::Refused(complaint)) }
}

fn find(directories: &[&str]) -> Option<PathBuf> {
    let files = directories.iter().map(|directory| Path::new(directory).join("nft"));
    files.into_iter().find(|file| file.is_file())
}

/// How it ended and what it said; none if it did not.
fn execute(
    program: &Path,
    arguments: &[&str],
    text: &str,
) -> io::Result<Option<(ExitStatus, String)>> {
    // Files, not pipes: nothing can be blocked by the other end's not reading.
    let mut input = nameless()?;
    input.write_all(text.as_bytes())?;
    input.rewind()?;
    let mut output = nameless()?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    command.stdin(input).stdout(Stdio::null()).stderr(output.try_clone()?);
    // On a thread of its own, as capabilities are a thread's.
    let mut spawn = || {
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, || {
                lending_net_admin(|| command.spawn()).map_err(io::Error::other)?
            })?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })
    };
    let Some(status) = wait(spawn()?)? else { return Ok(None) };
    output.rewind()?;
    let mut complaint = Vec::new();
    output.take(COMPLAINT).read_to_end(&mut complaint)?;
    Ok(Some((status, String::from_utf8_lossy(&complaint).trim().to_owned())))
}

fn nameless() -> io::Result<File> {
    Ok(memfd_create(c"v6pod-nft", MFdFlags::MFD_CLOEXEC)?.into())
}

fn wait(mut child: Child) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    let polled = rustix::io::retry_on_intr(|| poll(&mut ended, Some(&patience)));
    if !matches!(polled, Ok(1)) {
        // It has not ended: it is ours to kill, and to wait for.
        child.kill()?;
        child.wait()?;
        polled?;
        return Ok(None);
    }
    child.wait().map(Some)
}
