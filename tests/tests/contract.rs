//! Issue 8, line 4: a client that knows nothing but the contract, and makes up requests by it, is answered
//! as the contract says, and never finds the daemon at a loss.
//!
//! ```text
//!   schemathesis ─────────────── 127.0.0.1:6781 ┐
//!   schemathesis ── forwarder ── the unix socket ┴ v6podd ── v6t0 ── port ── eth0 ┌ a namespace of v6t1 ┐
//! ```
//!
//! By TCP it is somebody who may ask for his own; by the unix socket it is root. What it is told of statuses,
//! media types and bodies is held against the contract that the daemon itself gives out. Left out is
//! `/api/events` alone, whose answer does not end.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use v6pod_proto::Activate;
use v6pod_tests::{
    Finished, OwnedNs, Stage, random_container_id, require, run_within, schemathesis,
};

/// How long one of its runs may take: ten seconds where nothing else runs.
const LIMIT: Duration = Duration::from_secs(180);

/// What it is to look for.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

/// The client, which takes `reference` for an attachment's if it is given one.
fn client(mut command: Command, to: SocketAddr, dir: &Path, reference: Option<&str>) -> Finished {
    let parameters =
        reference.map(|name| format!("[parameters]\n\"path.reference\" = \"{name}\"\n"));
    let config = dir.join("schemathesis.toml");
    fs::write(&config, parameters.unwrap_or_default()).expect("writing a file");
    command.arg("--config-file").arg(config);
    command.args(["run", &format!("http://{to}/api/openapi.json")]);
    command.args(["--exclude-path", "/api/events", "--checks", CHECKS]);
    command.args(["--max-examples", "50", "--generation-deterministic", "--no-color"]);
    // It keeps what it found in the folder that it runs in.
    command.current_dir(dir).env("HOME", dir);
    run_within(LIMIT, &mut command)
}

/// Nothing was found, of what it made up to find something.
#[track_caller]
fn finds_nothing(finished: &Finished) {
    let cases = |line: &str| line.trim().split(' ').next()?.parse::<usize>().ok();
    let generated = finished.stdout.lines().find(|line| line.contains(" generated, "));
    let generated = generated.and_then(cases).unwrap_or_default();
    assert!(finished.status.success() && generated > 100, "{finished}");
    eprintln!("{generated} requests");
}

/// A port of the loopback's that leads to a unix socket, for a client that knows no such.
fn forwarded(socket: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(daemon) = UnixStream::connect(&socket) else { continue };
            let ends = (client.try_clone().expect("a copy"), daemon.try_clone().expect("a copy"));
            thread::spawn(move || there(ends.0, ends.1));
            thread::spawn(move || back(daemon, client));
        }
    });
    address
}

fn there(mut client: TcpStream, mut daemon: UnixStream) {
    let _ = io::copy(&mut client, &mut daemon);
    let _ = daemon.shutdown(Shutdown::Write);
}

fn back(mut daemon: UnixStream, mut client: TcpStream) {
    let _ = io::copy(&mut daemon, &mut client);
    let _ = client.shutdown(Shutdown::Both);
}

#[test]
fn whatever_the_contract_allows_is_answered_as_it_says() {
    let _machine = require!(Podman, Schemathesis);
    let stage = Stage::with_users(1);
    let namespace = OwnedNs::new(stage.user());
    let caller = stage.daemon.as_user(namespace.uid());
    let request = Activate { name: Some("web".to_owned()), ..Activate::new(random_container_id()) };
    let (outcome, _stream) = caller.activate(&request, namespace.network().as_fd());
    let attachment = outcome.unwrap_or_else(|refused| panic!("{refused}"));
    let dir = tempfile::tempdir().expect("a folder");
    let program = schemathesis().expect("it is there, as was required");

    let by_tcp = SocketAddr::from((Ipv4Addr::LOCALHOST, 6781));
    finds_nothing(&client(stage.host.command(&program), by_tcp, dir.path(), None));
    let as_root = forwarded(stage.daemon.socket());
    finds_nothing(&client(Command::new(&program), as_root, dir.path(), None));
    // The id is what no request changes.
    let id = attachment.id.as_str();
    finds_nothing(&client(Command::new(&program), as_root, dir.path(), Some(id)));
    assert!(stage.daemon.log().lines().all(|line| !line.contains("panicked")));
}
