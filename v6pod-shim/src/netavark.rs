//! As netavark plugin: what podman and netavark run for root's networks of the driver `v6pod`.
//!
//! It speaks version 1.0.0 of the plugin interface (containers/netavark, plugin-API.md): `create`, `setup`,
//! `teardown`, `info`. An attachment is made for the container's namespace as for any other, without a
//! lease: it ends by `teardown`, or with the namespace, whichever comes first.
//!
//! Guarantees: what a network asks for and v6podd does not give is refused when the network is created;
//! `setup` again gives what is there, for netavark does not tear down what failed; `teardown` of what is
//! not there succeeds, and touches nothing but what `setup` gave; whatever the daemon does or fails to do,
//! there is an answer in bounded time, a JSON object on stdout.

mod call;

use std::env;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use v6pod_proto::{Activate, Attachment};

use self::call::{Call, Exec, Fixed};
use crate::config::Config;
use crate::identity;
use crate::network::{self, Plug};
use crate::say;

/// The version of the plugin interface.
const API_VERSION: &str = "1.0.0";

/// Does what the command line and stdin say.
pub(crate) fn run() -> ExitCode {
    let (text, status) = match perform() {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => (answer, ExitCode::SUCCESS),
        Err(message) => (json!({ "error": message }), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What goes to stdout. An error is only ever shown to a person.
fn perform() -> Result<Option<Value>, String> {
    let call = Call::read(env::args_os().skip(1), || {
        let text = network::input().map_err(|error| format!("reading stdin: {error}"))?;
        text.ok_or_else(|| "stdin has more than 4 MiB".to_owned())
    })?;
    let (config, _) = Config::load();
    match call {
        Call::Info => Ok(Some(info())),
        Call::Create(network) => rootful().map(|()| Some(network)),
        Call::Setup(netns, exec) => {
            rootful()?;
            setup(&config, &netns, &exec).map(Some)
        }
        Call::Teardown(netns, exec) => {
            let its = |attachment: &Attachment| is_its(attachment, &exec.plug);
            let ended = exec.plug.end(&config.socket, Some(&netns), its);
            ended.map(|()| None).map_err(|failure| failure.to_string())
        }
    }
}

fn info() -> Value {
    json!({ "version": env!("CARGO_PKG_VERSION"), "api_version": API_VERSION })
}

/// Podman runs netavark of an ordinary user where another /run hides the daemon's socket.
fn rootful() -> Result<(), String> {
    match identity::is_rootless() {
        false => Ok(()),
        true => {
            Err("networks of the driver v6pod are root's; a rootless container has its address on \
                     podman's default network, and with --annotation v6pod=true on any other"
                .to_owned())
        }
    }
}

fn setup(config: &Config, netns: &Path, exec: &Exec) -> Result<Value, String> {
    let file = File::open(netns)
        .map_err(|error| format!("the network namespace {}: {error}", netns.display()))?;
    let request = Activate { name: exec.name.clone(), ..exec.plug.request() };
    let attachment = network::activate(&config.socket, &request, &file)
        .map_err(|failure| failure.to_string())?;
    if !is_its(&attachment, &exec.plug) {
        let other = match &attachment.network {
            Some(network) if attachment.container == exec.plug.container => network.as_str(),
            _ => "another container",
        };
        return Err(format!(
            "a network namespace has one address of v6pod's, and this has that of {other}"
        ));
    }
    if let Fixed::AsBefore(before) = &exec.fixed
        && !before.contains(&attachment.address.into())
    {
        let whose = exec.name.as_deref().unwrap_or(attachment.container.short());
        say::on_stderr(&format!("{whose} has another address from now on: {}", attachment.address));
    }
    Ok(status(&attachment))
}

/// Whether an attachment is what `setup` gives for this. That of the OCI hook is as good, which comes
/// first where a container has a user namespace of its own.
fn is_its(attachment: &Attachment, plug: &Plug) -> bool {
    let network = attachment.network.as_ref().is_none_or(|network| *network == plug.network);
    network && attachment.container == plug.container
}

/// What `podman inspect` shows.
fn status(attachment: &Attachment) -> Value {
    let address = format!("{}/{}", attachment.address, attachment.prefix_length);
    json!({
        "dns_search_domains": [],
        "dns_server_ips": [],
        "interfaces": {
            attachment.interface.as_str(): {
                "mac_address": attachment.mac,
                "subnets": [{ "ipnet": address, "gateway": attachment.gateway }],
            },
        },
    })
}
