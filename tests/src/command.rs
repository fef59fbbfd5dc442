//! Running programs: with a deadline, with their whole output, and never left behind.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The deadline of a command that has none of its own.
const LIMIT: Duration = Duration::from_secs(60);

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// What it wrote, without white space around, if it went well; a panic otherwise.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert!(self.status.success(), "{self}");
        self.stdout.trim()
    }

    /// What it complained about, if it went wrong; a panic otherwise.
    #[track_caller]
    pub fn fails(&self) -> &str {
        assert!(!self.status.success(), "should have failed: {self}");
        self.stderr.trim()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, status, stdout, stderr } = self;
        write!(f, "{what}\n  ended with {status}\n  stdout: {stdout}\n  stderr: {stderr}")
    }
}

/// Runs a command to its end, within a minute.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    run_within(LIMIT, command)
}

/// Runs a command to its end; past the limit it is killed and the test fails.
///
/// The output goes through files: a pipe would be held open by whatever the command leaves running
/// in the background, as `podman run -d` does on purpose.
#[track_caller]
pub fn run_within(limit: Duration, command: &mut Command) -> Finished {
    let what = format!("{command:?}");
    let (mut stdout, mut stderr) = (scratch(), scratch());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().expect("duplicating a descriptor"))
        .stderr(stderr.try_clone().expect("duplicating a descriptor"))
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            break status;
        }
        if Instant::now() >= deadline {
            drop(Background::of(child));
            panic!("not done within {limit:?}: {what}\n  stderr: {}", content(&mut stderr));
        }
        thread::sleep(Duration::from_millis(2));
    };
    Finished { what, status, stdout: content(&mut stdout), stderr: content(&mut stderr) }
}

/// A program that runs beside the test and is killed when the test is done with it.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts it. Its output is where the command says.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        Self(command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}")))
    }

    fn of(child: Child) -> Self {
        Self(child)
    }

    /// Its process id. It cannot be another's while this value lives: nobody else reaps it.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("waiting for a child").is_some()
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Waits for its end, or panics.
    #[track_caller]
    pub fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        crate::eventually(limit, "the end of a background process", || {
            self.0.try_wait().expect("waiting for a child")
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
    }
}

fn scratch() -> File {
    tempfile::tempfile().expect("a temporary file")
}

fn content(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("reading a temporary file");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_are_told_apart() {
        let finished = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]));
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!((finished.stdout.trim(), finished.fails()), ("out", "err"));
    }

    #[test]
    fn what_stays_in_the_background_does_not_hold_the_command_up() {
        let finished = run(Command::new("sh").args(["-c", "sleep 3 & echo $!"]));
        let pid: i32 = finished.ok().parse().unwrap();
        crate::Process::open(pid).unwrap().kill();
    }

    #[test]
    #[should_panic(expected = "not done within")]
    fn a_command_that_hangs_fails_the_test() {
        run_within(Duration::from_millis(50), Command::new("sleep").arg("60"));
    }
}
