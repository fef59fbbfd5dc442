//! As slirp4netns: podman's network program for rootless containers, up to podman 5.
//!
//! A container that gets an address of v6podd is served without slirp4netns's own IPv6, whose
//! default route would compete. IPv4 is slirp4netns's as before.

mod command_line;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::Pid;
use v6pod_proto::{Activate, ContainerId};

use self::command_line::{CommandLine, Target};
use crate::config::{Complaint, Config, OnError, Program};
use crate::daemon::{self, Failure, Lease};
use crate::identity::{self, Stdout};
use crate::real::{NotFound, Real};
use crate::say;

const NAME: &str = "slirp4netns";

/// The exit status of a shell for a program that is there and cannot be run.
const CANNOT_RUN: u8 = 126;
/// The exit status of a shell for a program that is not there.
const NOT_THERE: u8 = 127;

/// Serves the container that this command line is about, if it is about one, and becomes the real
/// slirp4netns. Returns only if there is nothing to become, or nothing to start.
pub(crate) fn run(words: &[OsString]) -> ExitCode {
    let Some((name, arguments)) = words.split_first() else { return ExitCode::FAILURE };
    let (config, complaint) = Config::load();
    let call = ContainerCall::recognise(arguments);
    let real = match find(&config) {
        Ok((real, misplaced)) => {
            if call.is_some() {
                grumble(complaint.as_ref(), misplaced.as_ref());
            }
            real
        }
        Err(error) => {
            say::on_stderr(&error.to_string());
            return ExitCode::from(NOT_THERE);
        }
    };
    let Some(call) = call else { return become_real(&real, name, arguments) };
    match call.serve(&config) {
        Ok(()) => become_real(&real, name, &call.line.without_ipv6),
        Err(failure) if failure.is_final() || config.on_error == OnError::Fail => {
            call.refuse_to_start(&failure);
            ExitCode::FAILURE
        }
        Err(failure) => {
            let whose = call.whose();
            say::to_user(&format!("no IPv6 address for {whose}: {failure}; it starts without"));
            become_real(&real, name, arguments)
        }
    }
}

/// The real program by the settings; where these name none, by its name, with what is wrong.
fn find(config: &Config) -> Result<(Real, Option<NotFound>), NotFound> {
    match Real::find(NAME, &config.slirp4netns) {
        Ok(real) => Ok((real, None)),
        Err(misplaced @ NotFound::Configured(_)) => {
            Real::find(NAME, &Program::Auto).map(|real| (real, Some(misplaced)))
        }
        Err(error) => Err(error),
    }
}

/// Tells what is wrong with the settings. Only where a container starts: podman also runs
/// `--help` before each, and once is enough.
fn grumble(complaint: Option<&Complaint>, misplaced: Option<&NotFound>) {
    if let Some(complaint) = complaint {
        say::to_user(&complaint.to_string());
    }
    if let Some(misplaced) = misplaced {
        say::to_user(&format!("{NAME}: {misplaced}"));
    }
}

fn become_real(real: &Real, name: &OsStr, arguments: &[OsString]) -> ExitCode {
    let error = real.exec(name, arguments);
    say::on_stderr(&format!("{}: {error}", real.path().display()));
    ExitCode::from(CANNOT_RUN)
}

/// A call that starts the network of a rootless container.
struct ContainerCall {
    line: CommandLine,
    id: ContainerId,
    name: Option<String>,
    /// Descriptor 1 and 2 are the log that podman shows if the start fails.
    is_logged: bool,
}

impl ContainerCall {
    /// The call that these arguments and this process's surroundings amount to; `None` for every
    /// other use of slirp4netns: rootless bridge networks, builds, root's containers, by hand. What
    /// costs least is asked first, and most of these are told by their arguments.
    fn recognise(arguments: &[OsString]) -> Option<Self> {
        let posixly_correct = env::var_os("POSIXLY_CORRECT").is_some();
        let line = CommandLine::parse(arguments, posixly_correct)?;
        line.exit_fd?;
        let stdout = Stdout::of_self();
        let claim = Claim::of(&stdout, &line.target)?;
        if !identity::is_rootless() {
            return None;
        }
        let id = match claim {
            Claim::Logged(id) => id.clone(),
            Claim::StartedByConmon(pid) => identity::by_conmon_of(pid)?,
        };
        let is_logged = matches!(stdout, Stdout::Container(_));
        let name = identity::name_of(&id);
        if name.as_deref() == Some(identity::ROOTLESS_CNI_INFRA) {
            return None;
        }
        Some(Self { line, id, name, is_logged })
    }

    /// Gets the container its address, and leaves the connection that holds it open.
    fn serve(&self, config: &Config) -> Result<(), Failure> {
        let netns = self.line.target.open().map_err(Failure::Namespace)?;
        let mut request = Activate::new(self.id.clone());
        request.name.clone_from(&self.name);
        request.lease = true;
        let (lease, _): (Lease, _) = daemon::activate(&config.socket, &request, netns.as_fd())?;
        lease.hand_on(&[self.line.exit_fd, self.line.ready_fd]).map_err(Failure::Io)
    }

    /// The container as its user knows it.
    fn whose(&self) -> &str {
        self.name.as_deref().unwrap_or(self.id.short())
    }

    fn refuse_to_start(&self, failure: &Failure) {
        let text = format!("no IPv6 address for {}: {failure}; it does not start", self.whose());
        // Podman shows the log of a start that failed: the line would be there twice.
        if self.is_logged {
            say::on_stderr(&text);
        } else {
            say::to_user(&text);
        }
    }
}

/// How a call says which container it is for.
#[derive(Debug, PartialEq, Eq)]
enum Claim<'a> {
    /// By its log.
    Logged(&'a ContainerId),
    /// By the process that it is to serve, a child of conmon: podman before 1.6.3.
    StartedByConmon(Pid),
}

impl<'a> Claim<'a> {
    const fn of(stdout: &'a Stdout, target: &Target) -> Option<Self> {
        match (stdout, target) {
            (Stdout::Container(id), _) => Some(Self::Logged(id)),
            (Stdout::NoLog, Target::Process(pid)) => Some(Self::StartedByConmon(*pid)),
            // Podman 1.6.0 to 1.6.2 with a path tell nobody; a log of no container says it is none.
            (Stdout::NoLog, Target::Mounted(_)) | (Stdout::NoContainer, _) => None,
        }
    }
}

impl Target {
    /// Opens the namespace. Only this process can: it is mounted in podman's mount namespace alone.
    fn open(&self) -> io::Result<OwnedFd> {
        let path = match self {
            Self::Process(pid) => PathBuf::from(format!("/proc/{}/ns/net", pid.as_raw_nonzero())),
            Self::Mounted(path) => path.clone(),
        };
        Ok(File::open(path)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_names_the_container_and_without_one_conmon_does() {
        let id: ContainerId = "ab".repeat(32).parse().unwrap();
        let logged = Stdout::Container(id.clone());
        let process = Target::Process(Pid::INIT);
        let mounted = Target::Mounted("/run/user/1000/netns/netns-x".into());

        // podman 1.6.3 and later, in both forms.
        assert_eq!(Claim::of(&logged, &mounted), Some(Claim::Logged(&id)));
        assert_eq!(Claim::of(&logged, &process), Some(Claim::Logged(&id)));
        // podman 1.0 to 1.6.2.
        assert_eq!(Claim::of(&Stdout::NoLog, &process), Some(Claim::StartedByConmon(Pid::INIT)));
        // Nobody's.
        assert_eq!(Claim::of(&Stdout::NoLog, &mounted), None);
        assert_eq!(Claim::of(&Stdout::NoContainer, &mounted), None);
        assert_eq!(Claim::of(&Stdout::NoContainer, &process), None);
    }
}
