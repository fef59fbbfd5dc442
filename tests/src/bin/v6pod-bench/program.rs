//! Running other programs, timed and with a deadline.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::Result;

/// Past this a program hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A program that has ended.
pub(crate) struct Finished {
    /// From before its fork until its end was known.
    pub(crate) took: Duration,
    pub(crate) stdout: String,
    what: String,
    status: ExitStatus,
    stderr: String,
}

impl Finished {
    /// Itself, if the program says that it did its job.
    pub(crate) fn ok(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(format!("{} ended with {}: {said}", self.what, self.status).into())
    }
}

/// Runs a program without input to its end.
pub(crate) fn run(command: &mut Command) -> Result<Finished> {
    run_with(command, Stdio::null())
}

/// Runs a program with this input to its end. Its output goes through files: what it may leave in
/// the background holds nothing up.
pub(crate) fn run_with(command: &mut Command, input: impl Into<Stdio>) -> Result<Finished> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(input).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let what = command.get_program().display().to_string();
    let began = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("cannot start {what}: {e}"))?;
    let status = wait(&mut child, LIMIT).map_err(|e| format!("{what}: {e}"))?;
    let took = began.elapsed();
    Ok(Finished {
        took,
        stdout: content(&mut stdout)?,
        what,
        status,
        stderr: content(&mut stderr)?,
    })
}

/// Waits for a child's end, without asking again and again. Past the limit it is killed.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("no process id")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit)?;
    if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))? == 0 {
        child.kill()?;
        child.wait()?;
        return Err("killed, as it had not ended for too long".into());
    }
    Ok(child.wait()?)
}

fn content(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_of_its_failure_is_in_the_error() {
        let finished = run(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).unwrap();
        let error = finished.ok().err().unwrap().to_string();
        assert!(error.contains("no luck") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(wait(&mut child, Duration::from_millis(10)).is_err());
        assert!(child.try_wait().unwrap().is_some());
    }
}
