//! What a doctor looks at, as who has called him. Nothing is changed.
//!
//! Guarantees: a file is read only if it is a regular one, and no more of it than [`LARGEST`]; a program that is
//! asked ends within [`PATIENCE`] or is ended, and no more of what it says is kept than [`LARGEST`]. Which programs are
//! asked, `search` says.

pub(crate) mod daemon;
pub(crate) mod host;
pub(crate) mod podman;
pub(crate) mod programs;
mod search;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};
use rustix::fs::OFlags;

use super::conf::Unread;
use super::finding::By;

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most that is read of a file or of what a program says, in bytes.
const LARGEST: u64 = 1 << 20;

/// Who asks.
pub(crate) fn caller() -> By {
    let uid = Uid::effective();
    if uid.is_root() { By::Root } else { By::User(name_of(uid)) }
}

/// A user's name; his number where he has none.
fn name_of(uid: Uid) -> String {
    let user = User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Where v6pod's programs are: beside the folder that this one is in, wherever it was installed.
pub(crate) fn libexec() -> String {
    let beside = std::env::current_exe().ok().and_then(|exe| {
        let libexec = exe.parent()?.parent()?.join("libexec/v6pod");
        libexec.is_dir().then(|| libexec.display().to_string())
    });
    beside.unwrap_or_else(|| "/usr/libexec/v6pod".to_owned())
}

/// The text of a file; none if there is no such file.
fn text(path: &Path) -> Option<Result<String, Unread>> {
    let failed = |why: &dyn ToString| Some(Err(Unread::Failed(why.to_string())));
    // A pipe would have the doctor wait for somebody to write.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Some(Err(Unread::Denied));
        }
        Err(error) => return failed(&error),
    };
    if !file.metadata().is_ok_and(|file| file.is_file()) && path != Path::new("/dev/null") {
        return failed(&"it is no file");
    }
    match bounded(file) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Some(Ok(text)),
            Err(_) => failed(&"it is no text"),
        },
        Err(error) => failed(&error),
    }
}

fn bounded(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A setting of the kernel's, or any other file with one number in it.
fn number<T: std::str::FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The names of a folder's files that end so, in order; none if it cannot be looked into.
fn names(folder: &Path, end: &str) -> Result<Vec<String>, io::Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(end)).collect();
    names.sort();
    Ok(names)
}

/// What a program says, if it ends well.
fn say(program: &Path, words: &[&str]) -> Result<String, String> {
    say_within(PATIENCE, program, words)
}

fn say_within(limit: Duration, program: &Path, words: &[&str]) -> Result<String, String> {
    let named =
        || program.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run {}: {error}", named()))?;
    let (sender, said) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        // Not waited for: who inherits the pipe may hold it for longer than this program is to run.
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = output.take(LARGEST).read_to_end(&mut bytes);
            sender.send(read.map(|_| bytes))
        });
    }
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() >= end => {
                // Both fail only where it has ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{} has not answered for {} s", named(), limit.as_secs()));
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let said = said.recv_timeout(left).map_err(|_| format!("{} does not end", named()))?;
    let said = said.map_err(|error| format!("{}: {error}", named()))?;
    if !status.success() {
        return Err(format!("{}: {status}", named()));
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_and_what_it_says_is_bounded() {
        const LIMIT: Duration = Duration::from_millis(500);

        let sh = |script: &str| say_within(LIMIT, Path::new("/bin/sh"), &["-c", script]);
        assert_eq!(sh("echo yes").as_deref(), Ok("yes\n"));
        assert!(sh("exit 3").is_err());
        let begun = Instant::now();
        assert!(sh("exec sleep 60").is_err());
        assert!(begun.elapsed() < LIMIT * 20);
        // Who goes on in its place is not waited for.
        assert!(sh("sleep 20 & exit 0").is_err());
        assert!(say(Path::new("/nowhere"), &[]).is_err());
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(text(&pipe), Some(Err(Unread::Failed(_)))));
        assert_eq!(text(&dir.path().join("nothing")), None);
        assert_eq!(text(Path::new("/dev/null")), Some(Ok(String::new())));
    }
}
