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
use std::io::{self, ErrorKind, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use v6pod_proto::{Activate, Capacity};

use self::answer::{Broken, Code, added};
use self::call::{Call, Command, Container, Network, SUPPORTED};
use crate::config::Config;
use crate::daemon::{self, Deadline, Failure};
use crate::network::{self, Plug};
use crate::say;

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
    let text = network::input()
        .map_err(|error| Broken::new(Code::Io, format!("reading the configuration: {error}")))?
        .ok_or_else(|| Broken::new(Code::Decode, "the configuration has more than 4 MiB"))?;
    let (config, _) = Config::load();
    match Call::read(command, &text, variable)? {
        Call::Version => Ok(Some(answer::versions())),
        Call::Add(network, container) => add(&config, &network, &container).map(Some),
        Call::Check(network, container) => check(&config, &network, &container).map(|()| None),
        Call::Del(network, container) => {
            let Container { plug, netns, .. } = container;
            plug.end(network.socket(&config), netns.as_deref(), |a| plug.is_of(a))?;
            Ok(None)
        }
        Call::Gc(network, valid) => gc(&config, &network, &valid).map(|()| None),
        Call::Status(network) => status(&config, &network).map(|()| None),
    }
}

fn add(config: &Config, network: &Network, container: &Container) -> Result<Value, Broken> {
    let netns = open(container)?;
    let request = Activate {
        name: container.name.clone(),
        exclusive: true,
        // Where the daemon ends before it has answered, it is asked again, and this tells it from another.
        attempt: Some(random()),
        ..container.plug.request()
    };
    added(network, container, &network::activate(network.socket(config), &request, &netns)?)
}

/// Whether what ADD answered is still so: in the daemon's books, and inside.
fn check(config: &Config, network: &Network, container: &Container) -> Result<(), Broken> {
    let broken = |what: &str| Broken::new(Code::Changed, what);
    let netns = open(container)?;
    let request = Activate { plug: false, ..Activate::new(container.plug.container.clone()) };
    let attachment = match network::activate(network.socket(config), &request, &netns) {
        Err(Failure::Refused { status: 404, .. }) => {
            return Err(broken("v6podd knows no attachment of this namespace"));
        }
        attachment => attachment?,
    };
    if !container.plug.is_of(&attachment) {
        return Err(broken("the namespace's attachment is not of this network and container"));
    }
    if !answer::has_address(network.previous.as_ref(), attachment.address) {
        return Err(broken("prevResult does not have the attachment's address"));
    }
    inside::check(&netns, &attachment).map_err(|what| broken(&what))
}

/// Takes away what this network has and the engine does not know any more. What cannot be taken away
/// does not keep the rest.
fn gc(config: &Config, network: &Network, valid: &[Plug]) -> Result<(), Broken> {
    let socket = network.socket(config);
    let all = network::list(socket)?;
    let ours = all.iter().filter_map(Plug::of).filter(|plug| plug.network == network.name);
    let mut outcome = Ok(());
    for stale in ours.filter(|plug| !valid.contains(plug)) {
        if let Err(failure) = stale.deactivate(socket) {
            outcome = Err(failure.into());
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
    let capacity: Capacity = serde_json::from_slice(&body)
        .map_err(|error| Broken::new(Code::Io, format!("v6podd's answer: {error}")))?;
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
