//! As slirp4netns: podman's network program for rootless containers, up to podman 5.
//!
//! A container that gets an address of v6podd is served without slirp4netns's own IPv6, whose
//! default route would compete. IPv4 is slirp4netns's as before.

mod command_line;

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::Pid;
use v6pod_proto::{Activate, ContainerId};

use self::command_line::{CommandLine, Target};
use crate::config::Config;
use crate::daemon::{self, Deadline, Failure};
use crate::identity::{self, Stdout};
use crate::stand_in::{self, Call, Part};

/// Serves the container that this command line is about, if it is about one, and becomes the real
/// slirp4netns. Returns only if there is nothing to become, or nothing to start.
pub(crate) fn run(words: &[OsString]) -> ExitCode {
    let part = Part {
        name: "slirp4netns",
        program: |config| &config.slirp4netns,
        recognise: |arguments| {
            ContainerCall::recognise(arguments).map(|call| Box::new(call) as Box<dyn Call>)
        },
    };
    stand_in::run(&part, words)
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
}

impl Call for ContainerCall {
    /// Leaves the connection that holds the address open.
    fn serve(&self, config: &Config) -> Result<(), Failure> {
        let netns = self.line.target.open().map_err(Failure::Namespace)?;
        let mut request = Activate::new(self.id.clone());
        request.name.clone_from(&self.name);
        request.lease = true;
        let end = Deadline::start();
        let (lease, _) = daemon::activate(&config.socket, &request, netns.as_fd(), end)?;
        lease.hand_on(&[self.line.exit_fd, self.line.ready_fd]).map_err(Failure::Io)
    }

    fn without_ipv6(&self) -> &[OsString] {
        &self.line.without_ipv6
    }

    fn whose(&self) -> &str {
        self.name.as_deref().unwrap_or(self.id.short())
    }

    fn is_shown(&self) -> bool {
        self.is_logged
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
