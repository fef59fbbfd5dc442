//! As OCI hook: tells v6podd which container is about to run in a network namespace, and what it asks
//! for by its annotations, its labels and the ports that it publishes; has the container ask v6podd for
//! names, if that says so; and tells, behind its end, that it is over.
//!
//! Run by the runtime at `createRuntime` and by podman at `poststop`, for every container of the
//! machine, whatever its network. So, guaranteed: a container that asks v6pod for nothing starts and
//! ends as if this hook were not there, whatever else happens; only whom it asks for names may be another. One that asks for something that cannot
//! be is kept from starting, with the reason on stderr, which podman shows, v6podd or no v6podd; one whose
//! wishes cannot be told to v6podd, or that is on the host's network, starts with a line to its user unless
//! `on_error` is "fail".

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::event::PollFlags;
use rustix::io::retry_on_intr;
use serde::Deserialize;
use v6pod_proto::oci::State;
use v6pod_proto::wishes::{Findings, Source, USERS_ALONE, WishError, Wishes};
use v6pod_proto::{Activate, ContainerId, Deactivate, Resolver};

use crate::asking::{self, Answer};
use crate::config::{Config, OnError};
use crate::daemon::{self, Deadline, Failure};
use crate::pasta;
use crate::resolv_conf;
use crate::say;

/// Of a state, this much is read at most. Annotations can be long; the rest has a kilobyte.
const STATE_LIMIT: usize = 4 << 20;
/// How long annotations can be, in bytes, so that a request with them and with findings has room in the
/// 16 KiB that v6podd takes.
const ANNOTATIONS_LIMIT: usize = 6 << 10;

/// Why a container does not start whose image may have been made for this.
const TOO_MUCH: &str =
    "podman keeps so much of it that nobody can tell its annotations v6pod from its image's";

/// What its user is told whose annotation may be the image's.
const DOUBT: &str = "podman's files could not be read in time, so nobody can tell its annotations v6pod.ingress, \
                     v6pod.address and v6pod.subnet from its image's: they open nothing and choose no \
                     address; v6podctl open opens";

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
    let netns = namespace(state.pid);
    // The host's, by --network=host: there is nothing to attach to, whatever is found.
    let on_host = netns.as_ref().is_ok_and(is_own);
    let whose = id.short().to_owned();
    let (bundle, own) = (PathBuf::from(&state.bundle), id.clone());
    let Some(asked) = Asked::of(state, netns.is_ok() && !on_host) else {
        say::through_runtime(&format!("{whose} does not start: {TOO_MUCH}"));
        return ExitCode::FAILURE;
    };
    let doubt = asked.doubt;
    let asks = doubt || asked.is_particular();
    // A daemon that is there would say the same; but whether a wish is one is not to depend on it.
    if let Err(wrong) = asked.check() {
        say::through_runtime(&format!("{whose} does not start: {wrong}"));
        return ExitCode::FAILURE;
    }
    let told = match netns {
        Ok(_) if on_host && asked.wants_attachment() => Err(Failure::HostNetwork),
        Ok(_) if on_host => Ok(None),
        netns => netns.and_then(|netns| asked.tell(&config, id, &netns, end)),
    };
    // Its attachment stands, so whoever answers for it does too.
    if let Ok(Some(resolver)) = &told
        && let Err(error) = resolv_conf::point(&bundle, &own, resolver)
    {
        say::past_runtime(&format!("{whose} keeps its own resolver: its resolv.conf: {error}"));
    }
    match told {
        Ok(_) if doubt && config.on_error == OnError::Fail => {
            say::through_runtime(&format!("{whose} does not start: {DOUBT}"));
            ExitCode::FAILURE
        }
        Ok(_) => {
            if doubt {
                say::past_runtime(&format!("{whose}: {DOUBT}"));
            }
            ExitCode::SUCCESS
        }
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

/// What counts of the answer.
#[derive(Deserialize)]
struct Attached {
    #[serde(default)]
    resolver: Option<Resolver>,
}

/// What a container asks for.
struct Asked {
    pid: Option<u32>,
    /// Those that are not its image's, as far as that is known.
    annotations: BTreeMap<String, String>,
    /// By other means.
    found: Findings,
    /// Whether an annotation that is to be its user's alone is taken for the image's because nothing is known.
    doubt: bool,
}

impl Asked {
    /// By its state and, if they are worth looking at, podman's files. None if it has annotations, and
    /// whose they are cannot be known.
    fn of(state: State, look: bool) -> Option<Self> {
        let answer = look.then(|| asking::about(state.bundle.as_ref()));
        Self::told(state, answer)
    }

    /// The same by this answer, if any was asked for.
    fn told(state: State, answer: Option<Option<Answer>>) -> Option<Self> {
        let (mut found, known) = match answer {
            None => (Findings::default(), true),
            Some(Some(Answer::Found(findings))) => (findings, true),
            Some(Some(Answer::TooMuch)) if !state.annotations.is_empty() => return None,
            Some(Some(Answer::TooMuch) | None) => (Findings::default(), false),
        };
        let mut annotations = state.annotations;
        // Podman 4 makes an image's annotations the container's. What opens nothing can wait for its user's
        // word; what is open cannot be taken back from who came in, nor an address that was another's.
        let mut doubt = false;
        for name in USERS_ALONE.iter().filter(|_| !known) {
            if let Some(value) = annotations.remove(*name) {
                found.add(Source::ImageAnnotation, name, value);
                doubt = true;
            }
        }
        // Now, and not by who reads both: what is found may not fit into the request.
        for (name, _) in found.of(Source::ImageAnnotation) {
            annotations.remove(name);
        }
        Some(Self { pid: state.pid, annotations, found, doubt })
    }

    /// What its user says in so many words, what counts most first.
    fn by_user(&self) -> impl Iterator<Item = (&str, &str)> {
        let annotations = self.annotations.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        annotations.chain(self.found.of(Source::PodLabel)).chain(self.found.of(Source::Label))
    }

    /// Whether its user asks for anything but a network and its ports.
    fn is_particular(&self) -> bool {
        self.by_user().next().is_some()
    }

    /// Whether it is to be attached where that is not the default: never because its image says so.
    fn wants_attachment(&self) -> bool {
        let said = self.by_user().find(|(name, _)| *name == "v6pod");
        said.is_some_and(|(_, wish)| wish == "true")
    }

    /// Whether what its user says is understood. The daemon says the rest.
    fn check(&self) -> Result<(), WishError> {
        let annotations = self.annotations.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        Wishes::read(annotations)?;
        let (_, wrong) = Wishes::read_each(Source::PodLabel, self.found.of(Source::PodLabel));
        wrong.into_iter().next().map_or(Ok(()), Err)
    }

    /// Tells v6podd about the container in this namespace, and has it attached where it asks for that. The
    /// answer is whom it is to ask for names.
    fn tell(
        self,
        config: &Config,
        id: ContainerId,
        netns: &File,
        end: Deadline,
    ) -> Result<Option<Resolver>, Failure> {
        let mut request = Activate::new(id);
        request.plug = self.wants_attachment();
        // A member of a pod has its name as long as this runs.
        request.pid = self.pid;
        if request.plug {
            request.interface = pasta::INTERFACE.parse().ok();
        }
        // A request that is too long fails the start; what is only found must not.
        let length: usize =
            self.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
        if length <= ANNOTATIONS_LIMIT {
            request.found = self.found;
        }
        request.annotations = self.annotations;
        let (_, answer) = daemon::activate(&config.socket, &request, netns.as_fd(), end)?;
        // What cannot be understood is no reason to keep a container from starting.
        Ok(serde_json::from_slice::<Attached>(&answer).ok().and_then(|attached| attached.resolver))
    }
}

/// The network namespace of a container's first process.
fn namespace(pid: Option<u32>) -> Result<File, Failure> {
    let pid = pid.filter(|pid| *pid != 0).ok_or(io::ErrorKind::NotFound);
    pid.map_err(io::Error::from)
        .and_then(|pid| File::open(format!("/proc/{pid}/ns/net")))
        .map_err(Failure::Namespace)
}

/// Whether the container asks for an attachment where it is not the default.
fn asks_for_one(state: &State) -> bool {
    state.annotations.get("v6pod").is_some_and(|wish| wish == "true")
}

/// Whether this is the namespace that this program itself is in: podman's, which is the host's.
fn is_own(netns: &File) -> bool {
    let both = fs::metadata("/proc/self/ns/net").and_then(|own| Ok((own, netns.metadata()?)));
    both.is_ok_and(|(own, netns)| (own.dev(), own.ino()) == (netns.dev(), netns.ino()))
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

#[cfg(test)]
mod tests {
    use super::*;

    const ANNOTATED: &[u8] =
        br#"{"id":"x","annotations":{"v6pod.ingress":"tcp/22","v6pod.address":"::42",
        "v6pod.subnet":"/96","v6pod.name":"web"}}"#;

    #[test]
    fn attack_22_what_nobody_can_tell_from_the_images_opens_nothing_and_chooses_no_address() {
        let told = |answer| Asked::told(State::read(ANNOTATED).unwrap(), answer).unwrap();
        let doubtful = told(Some(None));
        assert!(doubtful.doubt);
        let own: Vec<_> = doubtful.annotations.keys().map(String::as_str).collect();
        assert_eq!(own, ["v6pod.name"]);
        let images: Vec<_> = doubtful.found.of(Source::ImageAnnotation).collect();
        let all = [("v6pod.address", "::42"), ("v6pod.ingress", "tcp/22"), ("v6pod.subnet", "/96")];
        assert_eq!(images, all);

        // What v6pod-wishes has seen is no annotation of the image's is the user's.
        let known = told(Some(Some(Answer::Found(Findings::default()))));
        assert!(!known.doubt && known.found.is_empty());
        assert_eq!(known.annotations.len(), 4);
        assert!(
            Asked::told(State::read(ANNOTATED).unwrap(), Some(Some(Answer::TooMuch))).is_none()
        );
    }
}
