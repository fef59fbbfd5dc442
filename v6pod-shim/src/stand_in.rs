//! Standing in for a program that gives containers a network: asking, then becoming that program.
//!
//! Guarantee: there is one order of things, whichever program it is. Only a container's start is
//! spoken about with the daemon; only if the daemon has said yes is the real program's command line
//! touched; and what the container itself declines is no failure.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use crate::config::{Complaint, Config, OnError, Program};
use crate::daemon::Failure;
use crate::real::{NotFound, Real};
use crate::say;

/// The exit status of a shell for a program that is there and cannot be run.
const CANNOT_RUN: u8 = 126;
/// The exit status of a shell for a program that is not there.
const NOT_THERE: u8 = 127;

/// A program that is stood in for.
pub(crate) struct Part {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Where the settings say that it is.
    pub(crate) program: fn(&Config) -> &Program,
    /// The container's start that these arguments and this process's surroundings amount to, if they
    /// do.
    pub(crate) recognise: fn(&[OsString]) -> Option<Box<dyn Call>>,
}

/// A call that starts the network of a rootless container.
pub(crate) trait Call {
    /// Gets the container its address.
    fn serve(&self, config: &Config) -> Result<(), Failure>;

    /// The arguments for a container that is served: without the program's own IPv6.
    fn without_ipv6(&self) -> &[OsString];

    /// The container as its user knows it.
    fn whose(&self) -> &str;

    /// Whether podman shows the user what stands on this program's stderr, if the start fails.
    fn is_shown(&self) -> bool;
}

/// Serves the container that this command line is about, if it is about one, and becomes the real
/// program. Returns only if there is nothing to become, or nothing to start.
pub(crate) fn run(part: &Part, words: &[OsString]) -> ExitCode {
    let Some((name, arguments)) = words.split_first() else { return ExitCode::FAILURE };
    let (config, complaint) = Config::load();
    let call = (part.recognise)(arguments);
    let real = match find(part, &config) {
        Ok((real, misplaced)) => {
            if call.is_some() {
                grumble(part, complaint.as_ref(), misplaced.as_ref());
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
        Ok(()) => become_real(&real, name, call.without_ipv6()),
        Err(failure) if failure.is_declined() => become_real(&real, name, arguments),
        Err(failure) if failure.is_final() || config.on_error == OnError::Fail => {
            refuse_to_start(&*call, &failure);
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
fn find(part: &Part, config: &Config) -> Result<(Real, Option<NotFound>), NotFound> {
    match Real::find(part.name, (part.program)(config)) {
        Ok(real) => Ok((real, None)),
        Err(misplaced @ NotFound::Configured(_)) => {
            Real::find(part.name, &Program::Auto).map(|real| (real, Some(misplaced)))
        }
        Err(error) => Err(error),
    }
}

/// Tells what is wrong with the settings. Only where a container starts: podman also runs
/// `--help` before each, and once is enough.
fn grumble(part: &Part, complaint: Option<&Complaint>, misplaced: Option<&NotFound>) {
    if let Some(complaint) = complaint {
        say::to_user(&complaint.to_string());
    }
    if let Some(misplaced) = misplaced {
        say::to_user(&format!("{}: {misplaced}", part.name));
    }
}

fn refuse_to_start(call: &dyn Call, failure: &Failure) {
    let text = format!("no IPv6 address for {}: {failure}; it does not start", call.whose());
    // Where podman shows it, the line would be there twice.
    if call.is_shown() {
        say::on_stderr(&text);
    } else {
        say::to_user(&text);
    }
}

fn become_real(real: &Real, name: &OsStr, arguments: &[OsString]) -> ExitCode {
    let error = real.exec(name, arguments);
    say::on_stderr(&format!("{}: {error}", real.path().display()));
    ExitCode::from(CANNOT_RUN)
}
