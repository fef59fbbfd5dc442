//! Issue 2, line 6: without a daemon, containers start as if v6pod were not installed.
//!
//! ```text
//!   host   (no v6podd)   socket: missing │ nobody behind it │ accepted, never answered
//!     └── slirp4netns ── tap0 ┌ container of v6t1 ┐      no eth0
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use v6pod_tests::{Daemon, HostNs, User, eventually, require};

/// The shim's own limit (DESIGN 5.4).
const SHIM_LIMIT: Duration = Duration::from_secs(5);

/// What a container sees that v6pod would change, without what differs from run to run anyway.
const SEEN: &str = "ip -o link | awk '{print $2}'; ip -4 -o addr | awk '{print $2, $4}'; \
    ip -6 -o addr show dev tap0 scope global | awk '{print substr($4, 1, 6)}'; ip route; \
    cat /etc/resolv.conf; echo $((6 * 7)); exit 3";

/// A directory in which every user finds the socket.
fn socket_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
    dir
}

fn listen(socket: &Path) -> UnixListener {
    let listener = UnixListener::bind(socket).expect("binding a socket");
    fs::set_permissions(socket, Permissions::from_mode(0o666)).expect("chmod");
    listener
}

/// Runs a container with and without the shim: same output, same exit code, one line of complaint.
#[track_caller]
fn behaves_as_without(user: &User, socket: &Path) {
    user.use_plain();
    let without = user.run(&[], &["sh", "-c", SEEN]);
    user.use_shim(socket);
    let with = user.run(&[], &["sh", "-c", SEEN]);
    assert_eq!(with.status.code(), Some(3), "{with}");
    assert_eq!((&with.stdout, with.status), (&without.stdout, without.status));
    assert!(with.stdout.contains("tap0") && !with.stdout.contains("eth0"), "{with}");
    // slirp4netns has lines of its own.
    let stderr = user.shim_stderr();
    let ours: Vec<_> = stderr.lines().filter(|line| line.contains("v6pod")).collect();
    assert_eq!(ours.len(), 1, "one line, no more: {stderr}");
}

#[test]
fn no_socket() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let user = User::create(1, &host);
    behaves_as_without(&user, &socket_dir().path().join("nothing.sock"));
}

#[test]
fn a_socket_with_nobody_behind_it() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let user = User::create(1, &host);
    let dir = socket_dir();
    let socket = dir.path().join("dead.sock");
    drop(listen(&socket));
    assert!(socket.exists());
    behaves_as_without(&user, &socket);
}

#[test]
fn a_daemon_that_accepts_and_never_answers() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let user = User::create(1, &host);
    let dir = socket_dir();
    let socket = dir.path().join("mute.sock");
    let listener = listen(&socket);
    let accepted = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accepting the shim");
        // Held open, and read by nobody, until the shim gives up.
        let since = Instant::now();
        let mut buffer = [0; 4096];
        while std::io::Read::read(&mut &stream, &mut buffer).is_ok_and(|read| read > 0) {}
        since.elapsed()
    });
    behaves_as_without(&user, &socket);
    let held = accepted.join().expect("the thread that accepts");
    assert!(held < SHIM_LIMIT * 2, "the shim waited {held:?}");
}

#[test]
fn a_socket_whose_queue_is_full() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let user = User::create(1, &host);
    let dir = socket_dir();
    let socket = dir.path().join("full.sock");
    let listener = listen(&socket);
    // A queue of none, and one connection in it: the next connect() blocks.
    rustix::net::listen(&listener, 0).expect("shortening the queue");
    let _first = std::os::unix::net::UnixStream::connect(&socket).expect("the queue's only place");
    behaves_as_without(&user, &socket);
}

#[test]
fn a_daemon_that_is_stopped_in_the_middle() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let before = daemon.footprint();
    let user = User::create(1, &host);
    daemon.pause();
    behaves_as_without(&user, &daemon.socket());
    // It finds a request whose caller is long gone, and keeps nothing of it.
    daemon.resume();
    before.comes_back(&daemon);
    // And goes on as if nothing had been.
    let container = user.sleeper("c");
    daemon.the_attachment();
    container.remove();
    before.comes_back(&daemon);
}

#[test]
fn on_error_fail_stops_the_start() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let user = User::create(1, &host);
    let dir = socket_dir();
    user.use_shim(&dir.path().join("nothing.sock"));
    user.set_env("V6POD_ON_ERROR", "fail");
    let refused = user.run(&[], &["true"]);
    assert!(!refused.status.success(), "{refused}");
    assert!(user.shim_stderr().contains("v6pod"), "{}", user.shim_stderr());
    user.set_env("V6POD_ON_ERROR", "continue");
    eventually(v6pod_tests::PATIENCE, "podman recovers", || {
        user.run(&[], &["true"]).status.success().then_some(())
    });
}
