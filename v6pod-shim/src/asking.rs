//! Asking v6pod-wishes what a container's user asked for by other means than annotations.
//!
//! Guarantees: it takes no longer than [`LIMIT`], whatever the program does that is asked, and nothing
//! of it is left that anybody waits for; an answer that is not whole is none; and no answer is not taken
//! for the answer that there is nothing.

use std::env;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use v6pod_proto::wishes::Findings;

use crate::daemon::{self, Deadline};
use crate::wishes::TOO_MUCH;

/// The longest that it may take. Where podman's files can be read at all it is a few milliseconds.
const LIMIT: Duration = Duration::from_millis(200);
/// Of an answer, this much is read at most; none is as long.
const ANSWER_LIMIT: usize = 64 << 10;

/// What is found of the container with this bundle; none if anything is in the way.
pub(crate) fn about(bundle: &Path) -> Option<Answer> {
    let end = Deadline::within(LIMIT);
    program().and_then(|program| ask(&program, bundle, end))
}

/// What v6pod-wishes answers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This, and nothing else.
    Found(Findings),
    /// Podman keeps so much of it that an image can have meant it to be in the way.
    TooMuch,
}

/// It is installed beside this one.
fn program() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.with_file_name("v6pod-wishes"))
}

fn ask(program: &Path, bundle: &Path, end: Deadline) -> Option<Answer> {
    let mut command = Command::new(program);
    // The runtime waits for the end of the hook's own stdout and stderr, whoever holds them.
    command.arg(bundle).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A folder on a file system that does not answer would be held, and this is it.
    command.current_dir("/");
    let mut child = command.spawn().ok()?;
    let answer = read(&mut child, end);
    let status = end_of(&mut child, end).and_then(|status| status.code());
    if status == Some(TOO_MUCH.into()) {
        return Some(Answer::TooMuch);
    }
    serde_json::from_slice(&answer?).ok().map(Answer::Found)
}

fn read(child: &mut Child, end: Deadline) -> Option<Vec<u8>> {
    let pipe = child.stdout.take()?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        daemon::wait(pipe.as_fd(), PollFlags::IN, end).ok()?;
        match retry_on_intr(|| rustix::io::read(&pipe, &mut chunk)).ok()? {
            0 => return Some(answer),
            got => answer.extend_from_slice(&chunk[..got]),
        }
        (answer.len() <= ANSWER_LIMIT).then_some(())?;
    }
}

/// Sees it off. One that cannot even be killed, because a file system holds it, is left behind: its end
/// is awaited by whoever adopts it.
fn end_of(child: &mut Child, end: Deadline) -> Option<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let ended = pidfd.is_some_and(|pidfd| daemon::wait(pidfd.as_fd(), PollFlags::IN, end).is_ok());
    if !ended {
        // It may have ended by itself.
        let _ = child.kill();
    }
    child.try_wait().ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use v6pod_proto::wishes::Source;

    use super::*;

    /// So long a machine may take that does much else.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// The shell is what is asked, and reads the script in the bundle's place: one that was just written cannot be
    /// executed as long as another test's child has it open.
    fn asked(script: &str, limit: Duration) -> (Option<Answer>, Duration) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("script");
        fs::write(&file, script).unwrap();
        let start = Instant::now();
        let findings = ask(Path::new("/bin/sh"), &file, Deadline::within(limit));
        (findings, start.elapsed())
    }

    #[test]
    fn an_answer_is_whole_or_none() {
        let (findings, _) = asked(r#"echo '{"labels:v6pod.name":"web"}'"#, PATIENCE);
        let Some(Answer::Found(findings)) = findings else { panic!("{findings:?}") };
        let labels: Vec<_> = findings.of(Source::Label).collect();
        assert_eq!(labels, [("v6pod.name", "web")]);
        assert_eq!(asked("exit 3", PATIENCE).0, Some(Answer::TooMuch));
        for wrong in ["", "exit 1", "echo '{'", "echo '{\"more\":{}}'", "kill -9 $$"] {
            assert_eq!(asked(wrong, PATIENCE).0, None, "{wrong}");
        }
        assert_eq!(ask(Path::new("/no/program"), Path::new("/"), Deadline::within(PATIENCE)), None);
    }

    #[test]
    fn nobody_waits_for_one_who_does_not_answer_nor_for_one_who_does_not_end() {
        // Each would take a minute.
        for script in ["exec sleep 60", "yes", "echo '{'; exec sleep 60", "trap '' TERM; sleep 60"]
        {
            let (findings, took) = asked(script, LIMIT);
            assert_eq!(findings, None, "{script}");
            assert!(took < PATIENCE, "{script}: {took:?}");
        }
        let (findings, took) = asked("echo '{}'; exec >&-; exec sleep 60", 10 * LIMIT);
        assert_eq!(findings, Some(Answer::Found(Findings::default())));
        assert!(took < PATIENCE, "{took:?}");
    }
}
