//! As CNI plugin: what containerd, CRI-O, nerdctl and others run for a container's network.
//!
//! It speaks versions 1.1.0, 1.0.0 and 0.4.0 of the specification (containernetworking/cni, SPEC.md).
//! An attachment is made for the container's namespace as for any other, without a lease: it ends by DEL,
//! or with the namespace, whichever comes first.
//!
//! Guarantees: DEL of what is not there succeeds, DEL and GC touch nothing but what ADD made for the
//! same caller, network, container and interface; whatever the daemon does or fails to do, there is an answer
//! in bounded time, a JSON object on stdout.

mod answer;
mod call;
mod inside;

use std::env;
use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;
use v6pod_proto::{Activate, Attachment, Capacity, Deactivate};

use self::answer::{Broken, Code, added};
use self::call::{Call, Command, Container, Network, SUPPORTED};
use crate::config::Config;
use crate::daemon::{self, Deadline, Failure};
use crate::identity;
use crate::say;

/// The most that is read of the configuration on stdin, in bytes.
const CONFIG_LIMIT: u64 = 4 << 20;
/// The largest list of attachments, in bytes: some 20,000 of them.
const LIST_LIMIT: usize = 16 << 20;

/// Does what the environment and stdin say.
pub(crate) fn run() -> ExitCode {
    if env::var_os("CNI_COMMAND").is_none() {
        let versions = SUPPORTED.map(call::Version::as_str).join(", ");
        say::on_stderr(&format!(
            "v6pod-cni {} is a CNI plugin, for versions {versions}; container engines run it",
            env!("CARGO_PKG_VERSION")
        ));
        return ExitCode::SUCCESS;
    }
    let outcome = perform();
    let (text, status) = match &outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => (answer.to_string(), ExitCode::SUCCESS),
        Err(broken) => (broken.to_json().to_string(), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}

fn perform() -> Result<Option<Value>, Broken> {
    let variable = |name: &str| env::var_os(name);
    let command = Command::of(variable)?;
    let mut text = Vec::new();
    let read = io::stdin().take(CONFIG_LIMIT + 1).read_to_end(&mut text);
    read.map_err(|error| Broken::new(Code::Io, format!("reading the configuration: {error}")))?;
    if text.len() as u64 > CONFIG_LIMIT {
        return Err(Broken::new(Code::Decode, "the configuration has more than 4 MiB"));
    }
    let (config, _) = Config::load();
    match Call::read(command, &text, variable)? {
        Call::Version => Ok(Some(answer::versions())),
        Call::Add(network, container) => add(&config, &network, &container).map(Some),
        Call::Check(network, container) => check(&config, &network, &container).map(|()| None),
        Call::Del(network, container) => del(&config, &network, &container).map(|()| None),
        Call::Gc(network, valid) => gc(&config, &network, &valid).map(|()| None),
        Call::Status(network) => status(&config, &network).map(|()| None),
    }
}

fn add(config: &Config, network: &Network, container: &Container) -> Result<Value, Broken> {
    let netns = open(container)?;
    let request = Activate {
        name: container.name.clone(),
        network: Some(network.name.clone()),
        exclusive: true,
        // Where the daemon ends before it has answered, it is asked again, and this tells it from another.
        attempt: Some(random()),
        interface: Some(container.interface.clone()),
        ..Activate::new(container.id.clone())
    };
    let socket = network.socket(config);
    let (_connection, body) = daemon::activate(socket, &request, netns.as_fd(), Deadline::start())?;
    added(network, container, &read(&body)?)
}

/// Whether what ADD answered is still so: in the daemon's books, and inside.
fn check(config: &Config, network: &Network, container: &Container) -> Result<(), Broken> {
    let broken = |what: &str| Broken::new(Code::Changed, what);
    let netns = open(container)?;
    let request = Activate { plug: false, ..Activate::new(container.id.clone()) };
    let attachment: Attachment = match daemon::activate(
        network.socket(config),
        &request,
        netns.as_fd(),
        Deadline::start(),
    ) {
        Ok((_connection, body)) => read(&body)?,
        Err(Failure::Refused { status: 404, .. }) => {
            return Err(broken("v6podd knows no attachment of this namespace"));
        }
        Err(failure) => return Err(failure.into()),
    };
    if !network.made(&attachment, container) {
        return Err(broken("the namespace's attachment is not of this network and container"));
    }
    if !answer::has_address(network.previous.as_ref(), attachment.address) {
        return Err(broken("prevResult does not have the attachment's address"));
    }
    inside::check(&netns, &attachment).map_err(|what| broken(&what))
}

/// With the namespace gone there is nothing left to be done, daemon or no daemon: the kernel has
/// taken the port with it, and tells the daemon or shows it at its next start.
fn del(config: &Config, network: &Network, container: &Container) -> Result<(), Broken> {
    let socket = network.socket(config);
    let gone = container.netns.as_deref().is_none_or(|path| !path.exists());
    let listed = match list(socket) {
        Err(Failure::Absent | Failure::Busy | Failure::Late | Failure::Ended) if gone => {
            return Ok(());
        }
        listed => listed?,
    };
    match listed.iter().any(|attachment| network.made(attachment, container)) {
        true => deactivate(socket, container),
        false => Ok(()),
    }
}

/// Takes away what this network has and the engine does not know any more. What cannot be taken away
/// does not keep the rest.
fn gc(config: &Config, network: &Network, valid: &[Container]) -> Result<(), Broken> {
    let socket = network.socket(config);
    let stale = |a: &&Attachment| {
        a.network.as_ref() == Some(&network.name) && !valid.iter().any(|c| network.made(a, c))
    };
    let mut outcome = Ok(());
    for attachment in list(socket)?.iter().filter(stale) {
        let container = Container::of(attachment);
        if let Err(broken) = deactivate(socket, &container) {
            outcome = Err(broken);
        }
    }
    outcome
}

/// Whether an ADD would find a daemon, and room.
fn status(config: &Config, network: &Network) -> Result<(), Broken> {
    let unable = |why: String| Broken::new(Code::Unavailable, why);
    let asked = daemon::ask(
        network.socket(config),
        "GET /api/capacity",
        None,
        None,
        daemon::ANSWER_LIMIT,
        Deadline::start(),
    );
    let (_connection, body) = asked.map_err(|failure| unable(failure.to_string()))?;
    let capacity: Capacity = read(&body)?;
    match capacity.more {
        0 => Err(unable(format!("no room for another container: {}", capacity.first_limit))),
        _ => Ok(()),
    }
}

/// A number that nobody else has: what the standard library keys its hashes with.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn open(container: &Container) -> Result<File, Broken> {
    let path = container.netns.as_deref().unwrap_or(Path::new(""));
    File::open(path).map_err(|error| {
        let code = match error.kind() {
            ErrorKind::NotFound => Code::UnknownContainer,
            _ => Code::Io,
        };
        Broken::new(code, format!("the network namespace {}: {error}", path.display()))
    })
}

#[derive(Deserialize)]
struct List {
    attachments: Vec<Attachment>,
}

/// What the caller has. An operator sees more than that, which is none of an engine's business.
fn list(socket: &Path) -> Result<Vec<Attachment>, Failure> {
    let what = format!("GET /api/attachments?owner={}", identity::outer_uid());
    let (_connection, body) =
        daemon::ask(socket, &what, None, None, LIST_LIMIT, Deadline::start())?;
    let list: Result<List, _> = serde_json::from_slice(&body);
    list.map(|list| list.attachments).map_err(|_| Failure::Garbled("no list of attachments"))
}

fn deactivate(socket: &Path, container: &Container) -> Result<(), Broken> {
    let request = Deactivate { id: container.id.clone(), user: None, hint: false };
    Ok(daemon::deactivate(socket, &request, Deadline::start())?)
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Broken> {
    serde_json::from_slice(body)
        .map_err(|error| Broken::new(Code::Io, format!("v6podd's answer: {error}")))
}
