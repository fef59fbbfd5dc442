//! As OCI hook: tells v6podd which container is about to run in a network namespace, and what it asks
//! for by its annotations; and, behind its end, that it is over.
//!
//! Run by the runtime at `createRuntime` and by podman at `poststop`, for every container of the
//! machine, whatever its network. So, guaranteed: a container that asks v6pod for nothing starts and
//! ends as if this hook were not there, whatever else happens. One that asks for something that cannot
//! be is kept from starting, with the reason on stderr, which podman shows, v6podd or no v6podd; one whose
//! wishes cannot be told to v6podd, or that is on the host's network, starts with a line to its user unless
//! `on_error` is "fail".

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use rustix::event::PollFlags;
use rustix::io::retry_on_intr;
use v6pod_proto::oci::State;
use v6pod_proto::{Activate, ContainerId, Deactivate, Wishes};

use crate::config::{Config, OnError};
use crate::daemon::{self, Deadline, Failure};
use crate::pasta;
use crate::say;

/// Of a state, this much is read at most. Annotations can be long; the rest has a kilobyte.
const STATE_LIMIT: usize = 4 << 20;

/// Reads the state of a container from stdin and does what is due at that point of its life.
pub(crate) fn run() -> ExitCode {
    let end = Deadline::start();
    let (config, complaint) = Config::load();
    let state = match read_state(end) {
        Ok(state) => state,
        Err(failure) => {
            say::on_stderr(&format!("oci-hook: {failure}"));
            return ExitCode::SUCCESS;
        }
    };
    // Another engine's name for it is worth nothing to v6podd.
    let Ok(id) = state.id.parse::<ContainerId>() else { return ExitCode::SUCCESS };
    if state.has_ended() {
        // Any other has been attached by its network program, whose end tells it, or not at all.
        if asks_for_one(&state) {
            let hint = Deactivate { id, user: None, hint: true };
            // Whatever comes of it: a poststop is never the only news of an end.
            let _ = daemon::deactivate(&config.socket, &hint, end);
        }
        return ExitCode::SUCCESS;
    }
    let asks = !state.annotations.is_empty();
    let whose = id.short().to_owned();
    // A daemon that is there would say the same; but whether a wish is one is not to depend on it.
    let wishes = state.annotations.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    if let Err(wrong) = Wishes::read(wishes) {
        say::through_runtime(&format!("{whose} does not start: {wrong}"));
        return ExitCode::FAILURE;
    }
    match describe(&config, state, id, end) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_unknown() || failure.is_declined() => ExitCode::SUCCESS,
        Err(_) if !asks => ExitCode::SUCCESS,
        Err(failure) if failure.is_final() || config.on_error == OnError::Fail => {
            say::through_runtime(&format!("{whose} does not start: {failure}"));
            ExitCode::FAILURE
        }
        Err(failure) => {
            if let Some(complaint) = complaint {
                say::past_runtime(&complaint.to_string());
            }
            say::past_runtime(&format!("{whose} starts without what it asks for: {failure}"));
            ExitCode::SUCCESS
        }
    }
}

/// Tells v6podd about the container in the namespace of its first process, and has it attached where
/// it asks for that.
fn describe(config: &Config, state: State, id: ContainerId, end: Deadline) -> Result<(), Failure> {
    let Some(pid) = state.pid.filter(|pid| *pid != 0) else {
        return Err(Failure::Namespace(io::ErrorKind::NotFound.into()));
    };
    let netns = File::open(format!("/proc/{pid}/ns/net")).map_err(Failure::Namespace)?;
    let mut request = Activate::new(id);
    request.plug = asks_for_one(&state);
    if is_own(&netns).map_err(Failure::Namespace)? {
        // By --network=host: there is nothing to attach to.
        return if request.plug { Err(Failure::HostNetwork) } else { Ok(()) };
    }
    request.annotations = state.annotations;
    if request.plug {
        request.pid = Some(pid);
        request.interface = pasta::INTERFACE.parse().ok();
    }
    daemon::activate(&config.socket, &request, netns.as_fd(), end).map(drop)
}

/// Whether the container asks for an attachment where it is not the default.
fn asks_for_one(state: &State) -> bool {
    state.annotations.get("v6pod").is_some_and(|wish| wish == "true")
}

/// Whether this is the namespace that this program itself is in: podman's, which is the host's.
fn is_own(netns: &File) -> io::Result<bool> {
    let (own, netns) = (fs::metadata("/proc/self/ns/net")?, netns.metadata()?);
    Ok((own.dev(), own.ino()) == (netns.dev(), netns.ino()))
}

/// Reads stdin to its end, which the deadline may be before.
fn read_state(end: Deadline) -> Result<State, Failure> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let stdin = io::stdin();
    loop {
        daemon::wait(stdin.as_fd(), PollFlags::IN, end)?;
        // Not by `Stdin`, in whose buffer something may be left that poll(2) does not know of.
        let got = retry_on_intr(|| rustix::io::read(&stdin, &mut chunk))?;
        if got == 0 {
            return State::read(&bytes).ok_or(Failure::Garbled("not a container's state"));
        }
        bytes.extend_from_slice(&chunk[..got]);
        if bytes.len() > STATE_LIMIT {
            return Err(Failure::Garbled("too long a state"));
        }
    }
}
