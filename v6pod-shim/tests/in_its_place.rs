//! The shim as slirp4netns, run as podman runs it. Needs user namespaces, not root.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, that is how to fail")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use support::*;
use v6pod_proto::{Code, Problem};

fn problem(code: Code, detail: &str) -> Reply {
    let body = serde_json::to_string(&Problem::new(code, detail, "r1")).unwrap();
    Reply::Say(http(code.status(), "application/problem+json", &body))
}

#[test]
fn a_container_is_served_with_its_namespace_its_id_and_its_name() {
    if !possible() {
        return;
    }
    let call = Call::new();
    let daemon = Daemon::start(&call.socket(), vec![yes()]);
    let outcome = call.run();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "");
    let request = daemon.request();
    assert_eq!(request.line, "POST /api/activate HTTP/1.1");
    let body = serde_json::json!({"id": ID, "name": "web", "lease": true, "plug": true});
    assert_eq!(request.body, body);
    assert_eq!(request.netns, Some(call.netns()));
    assert_eq!(call.got().unwrap(), flat(CALL_WITHOUT_IPV6));
    call.assert_same_surroundings();
    let extra = call.extra_descriptors();
    assert!(extra.len() == 1 && call.sockets() == 1, "the lease and no more: {extra:?}");
    daemon.ended();
}

#[test]
fn a_container_without_a_name_is_served_too() {
    if !possible() {
        return;
    }
    let call = Call::new().env("XDG_DATA_HOME", "/nowhere");
    let daemon = Daemon::start(&call.socket(), vec![yes()]);
    assert!(call.run().status.success());
    assert_eq!(daemon.request().body, serde_json::json!({"id": ID, "lease": true, "plug": true}));
}

#[test]
fn a_process_started_by_conmon_is_a_container_of_podman_before_1_6_3() {
    if !possible() {
        return;
    }
    let mut call = Call::new();
    call.log = "/dev/null".into();
    let conmon = call.dir.path().join("conmon");
    // A script's name is what the kernel calls its process.
    fs::write(&conmon, "#!/bin/sh\nsleep 60 &\necho $! > \"$DUMP/pid\"\nwait\n").unwrap();
    fs::set_permissions(&conmon, Permissions::from_mode(0o755)).unwrap();
    call.before = format!(
        "{} -s -c {ID} -u {ID} -r /usr/bin/runc &\n\
         until [ -s \"$DUMP/pid\" ]; do sleep 0.01; done; TARGET=$(cat \"$DUMP/pid\")",
        conmon.display()
    );
    let call = call
        .arguments("--mtu 65520 -6 -c -e 3 -r 4 \"$TARGET\" tap0")
        .then("kill $(cat \"$DUMP/pid\")");
    let daemon = Daemon::start(&call.socket(), vec![yes()]);
    let outcome = call.run();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let request = daemon.request();
    assert_eq!(request.body["id"], ID);
    assert_eq!(request.netns, Some(call.netns()));
    let pid = call.dump("pid");
    assert_eq!(call.got().unwrap(), format!("--mtu 65520 -c -e 3 -r 4 {} tap0", pid.trim()));
}

#[test]
fn the_lease_lasts_as_long_as_the_real_program_and_not_longer() {
    if !possible() {
        return;
    }
    let call = Call::new().then("exec sleep 1000");
    let daemon = Daemon::start(&call.socket(), vec![yes()]);
    let mut child = call.spawn();
    daemon.request();
    eventually("the real program runs", || call.has_run());
    daemon.assert_quiet(Duration::from_millis(300));
    child.kill().unwrap();
    daemon.ended();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn exit_code_and_signals_are_the_real_programs_own() {
    if !possible() {
        return;
    }
    let call = Call::new().then("exit 7");
    let _daemon = Daemon::start(&call.socket(), vec![yes()]);
    assert_eq!(call.run().status.code(), Some(7));
    let call = Call::new().then("kill -TERM $$");
    let _daemon = Daemon::start(&call.socket(), vec![yes()]);
    assert_eq!(call.run().status.signal(), Some(15));
}

#[test]
fn whoever_is_refused_starts_without_and_is_told_why() {
    if !possible() {
        return;
    }
    for code in [Code::NotFound, Code::NotYours, Code::Quota, Code::NotReady, Code::Full] {
        let call = Call::new();
        let daemon = Daemon::start(&call.socket(), vec![problem(code, "Not\n\u{1b}[2Jthis time.")]);
        call.run().assert_continued(&call, "Not  [2Jthis time; it starts without");
        daemon.request();
        daemon.ended();

        let call = Call::new().env("V6POD_ON_ERROR", "fail");
        let _daemon = Daemon::start(&call.socket(), vec![problem(code, "Not this time.")]);
        call.run().assert_refused(&call, "Not this time; it does not start");
    }
}

#[test]
fn what_cannot_be_done_fails_the_start_in_any_case() {
    if !possible() {
        return;
    }
    for on_error in ["continue", "fail"] {
        let call = Call::new().config(&format!("on_error = '{on_error}'"));
        let _daemon =
            Daemon::start(&call.socket(), vec![problem(Code::Impossible, "No such net.")]);
        call.run().assert_refused(&call, "No such net; it does not start");
    }
}

#[test]
fn nobody_there_is_not_waited_for() {
    if !possible() {
        return;
    }
    let call = Call::new();
    let outcome = call.run();
    outcome.assert_continued(&call, "v6podd is not running");
    let dead = Call::new();
    drop(UnixListener::bind(dead.socket()).unwrap());
    assert!(dead.socket().exists());
    let outcome_of_dead = dead.run();
    outcome_of_dead.assert_continued(&dead, "v6podd is not running");
    for took in [outcome.took, outcome_of_dead.took] {
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    let strict = Call::new().config("on_error = 'fail'");
    strict.run().assert_refused(&strict, "v6podd is not running");
}

#[test]
fn a_daemon_that_never_answers_is_waited_for_five_seconds() {
    if !possible() {
        return;
    }
    let call = Call::new();
    let daemon = Daemon::start(&call.socket(), vec![Reply::Mute]);
    let outcome = call.run();
    outcome.assert_continued(&call, "did not answer for 5 s");
    assert!(outcome.took >= Duration::from_secs(5) && outcome.took < PATIENCE);
    daemon.request();
    daemon.ended();
}

#[test]
fn a_daemon_whose_queue_is_full_is_waited_for_one_second() {
    if !possible() {
        return;
    }
    let call = Call::new();
    let address = SocketAddrUnix::new(call.socket()).unwrap();
    let new = |flags| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let listener = new(SocketFlags::CLOEXEC);
    bind(&listener, &address).unwrap();
    listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = new(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        if connect(&socket, &address).is_err() {
            break;
        }
        waiting.push(socket);
        assert!(waiting.len() < 100, "the queue has no end");
    }
    let outcome = call.run();
    outcome.assert_continued(&call, "took no connection for 1 s");
    assert!(outcome.took >= Duration::from_secs(1) && outcome.took < PATIENCE);
}

#[test]
fn a_daemon_that_restarts_is_asked_again() {
    if !possible() {
        return;
    }
    for first in [Reply::Close, Reply::Slam] {
        let call = Call::new();
        let daemon = Daemon::start(&call.socket(), vec![first.clone(), first, yes()]);
        let outcome = call.run();
        assert!(outcome.status.success(), "{}", outcome.stderr);
        assert_eq!(outcome.stderr, "");
        assert_eq!(call.got().unwrap(), flat(CALL_WITHOUT_IPV6));
        assert_eq!(call.sockets(), 1, "no connection but the last is left");
        assert_eq!(daemon.request().netns, Some(call.netns()));
    }
}

#[test]
fn a_daemon_that_always_hangs_up_is_given_five_seconds() {
    if !possible() {
        return;
    }
    let call = Call::new();
    let _daemon = Daemon::start(&call.socket(), vec![Reply::Close]);
    let outcome = call.run();
    outcome.assert_continued(&call, "closed the connection without an answer");
    assert!(outcome.took >= Duration::from_secs(5) && outcome.took < PATIENCE);
}

#[test]
fn what_is_no_answer_of_ours_is_no_address() {
    if !possible() {
        return;
    }
    let whole = http(200, "application/json", "{}");
    let half = whole[..whole.len() - 1].to_vec();
    let endless = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'x'; 80_000]].concat();
    for (reply, why) in [
        (Reply::SayAndClose(half), "half an answer"),
        (Reply::SayAndClose(b"HTTP/1.1 200".to_vec()), "half an answer"),
        (Reply::Say(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), "no content-length"),
        (Reply::Say(b"HTTP/1.1 200 OK\r\ncontent-length: 65537\r\n\r\n".to_vec()), "too long"),
        (Reply::Say(endless), "too long"),
        (Reply::Say(b"220 mail.example.org ESMTP\r\n".to_vec()), "not HTTP"),
        (Reply::Say(http(302, "text/html", "elsewhere")), "status 302"),
        (Reply::Say(http(403, "application/problem+json", "{")), "status 403"),
    ] {
        let call = Call::new();
        let _daemon = Daemon::start(&call.socket(), vec![reply]);
        call.run().assert_continued(&call, why);
    }
}

#[test]
fn a_namespace_that_is_not_there_is_nobodys_fault() {
    if !possible() {
        return;
    }
    let call = Call::new().arguments("-6 -e 3 --netns-type=path /nowhere/netns tap0");
    let daemon = Daemon::start(&call.socket(), vec![yes()]);
    call.run().assert_continued(&call, "network namespace");
    daemon.assert_quiet(Duration::from_millis(100));
}

#[test]
fn a_wrong_setting_is_named_once_and_the_rest_goes_on() {
    if !possible() {
        return;
    }
    for (text, why) in [
        ("sokcet = '/x'", "sokcet"),
        ("on_error = 1", "on_error"),
        ("on_error", "line 1"),
        ("slirp4netns = '/nowhere/slirp4netns'", "/nowhere/slirp4netns"),
    ] {
        let call = Call::new().config(text);
        let _daemon = Daemon::start(&call.socket(), vec![yes()]);
        let outcome = call.run();
        assert!(outcome.status.success(), "{}", outcome.stderr);
        outcome.assert_one_line(why);
        assert_eq!(call.got().unwrap(), flat(CALL_WITHOUT_IPV6));

        let probe = Call::new().config(text).arguments("--help");
        let outcome = probe.run();
        assert_eq!((outcome.status.code(), outcome.stderr.as_str()), (Some(0), ""));
        probe.assert_untouched();
    }
}

#[test]
fn the_shim_is_never_taken_for_the_real_one() {
    if !possible() {
        return;
    }
    // It is first on PATH in every test; here it is also what the settings name.
    let call = Call::new();
    let oneself = call.dir.path().join("another-name");
    symlink(env!("CARGO_BIN_EXE_v6pod-shim"), &oneself).unwrap();
    let call = call.env("V6POD_SLIRP4NETNS", &oneself);
    let _daemon = Daemon::start(&call.socket(), vec![yes()]);
    let outcome = call.run();
    assert!(outcome.status.success(), "{}", outcome.stderr);
    outcome.assert_one_line("v6pod-shim itself");
    assert_eq!(call.got().unwrap(), flat(CALL_WITHOUT_IPV6));
}

#[test]
fn the_lease_never_has_the_number_of_a_descriptor_that_means_something() {
    if !possible() {
        return;
    }
    // 5 is not open: the shim's own would be the next to get it.
    for arguments in ["-e 5 -r 6", "-e 6 -r 5", "-e 7 -r 5", "-e 5 -r 5"] {
        let line = format!("{arguments} --netns-type=path /proc/self/ns/net tap0");
        let call = Call::new().arguments(&line);
        let daemon = Daemon::start(&call.socket(), vec![yes()]);
        assert!(call.run().status.success());
        daemon.request();
        let lease = call.extra_descriptors();
        assert_eq!(call.sockets(), 1, "{lease:?}");
        let number = lease[0].split(' ').next().unwrap();
        assert!(!line.split(' ').any(|word| word == number), "{arguments}: {lease:?}");
    }
}

#[test]
fn what_is_no_containers_start_is_handed_on_as_it_is_and_nobody_is_asked() {
    if !possible() {
        return;
    }
    let without_exit_fd = CALL.replace("-e 3", "");
    let mut calls: Vec<Call> = [
        "--help",
        "--version",
        "-h",
        "",
        &without_exit_fd,
        "--mtu=65520 -6 -c -r 3 --netns-type=path /proc/self/ns/net tap0",
        "-e 3 -6 --no-such-option --netns-type=path /proc/self/ns/net tap0",
        "-e 3 -6 --netns-type=path /proc/self/ns/net",
        "-e 3 -6 --target-type=bess /proc/self/ns/net tap0",
    ]
    .map(|arguments| Call::new().arguments(arguments))
    .into();
    for log in ["slirp4netns-rootless-netns.log", "slirp4netns-buildah-buildah271.log", "other.log"]
    {
        let mut call = Call::new();
        call.log = call.dir.path().join(log);
        calls.push(call);
    }
    // By hand: a process, no log, and the parent is no conmon.
    let mut by_hand = Call::new().arguments("-6 -c -e 3 -r 4 1 tap0");
    by_hand.log = "/dev/null".into();
    calls.push(by_hand);
    calls.push(
        Call::new()
            .with_name("overlay-containers/x", "web")
            .with_name("vfs-containers/containers.json", "rootless-cni-infra"),
    );
    for call in calls {
        let daemon = Daemon::start(&call.socket(), vec![yes()]);
        let outcome = call.run();
        assert!(outcome.status.success() && outcome.stderr.is_empty(), "{}", outcome.stderr);
        call.assert_untouched();
        daemon.assert_quiet(Duration::from_millis(20));
    }
}

#[test]
fn root_of_the_machine_is_handed_on() {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    if flat(&map) != "0 0 4294967295" {
        // Inside a user namespace nobody is root of the machine.
        assert_ne!(std::env::var("V6POD_TEST_REQUIRE").as_deref(), Ok("all"), "in a userns");
        eprintln!("skipped: runs in a user namespace");
        return;
    }
    let mut call = Call::new();
    call.in_userns = false;
    let daemon = Daemon::start(&call.socket(), vec![yes()]);
    assert!(call.run().status.success());
    call.assert_untouched();
    daemon.assert_quiet(Duration::from_millis(20));
}

/// A start whose parent process is called podman and has this stderr.
fn by_podman(call: &Call, redirection: &str) -> Command {
    let podman = call.dir.path().join("podman");
    fs::copy(fs::canonicalize("/bin/sh").unwrap(), &podman).unwrap();
    let mut command = call.command(&podman);
    command.env("AS_CHILD", "1").env("BEFORE", format!("exec {redirection}"));
    command
}

#[test]
fn the_line_reaches_podmans_own_stderr_and_writes_over_nothing() {
    if !possible() {
        return;
    }
    let call = Call::new();
    // Not for appending: the offset is podman's, and a file opened anew would be written from 0.
    let command = "2>\"$DUMP/told\"; echo before >&2";
    assert!(by_podman(&call, command).status().unwrap().success());
    let log = call.dump("stderr");
    assert!(log.contains("v6podd is not running") && log.matches('\n').count() == 1, "{log}");
    assert_eq!(call.dump("told"), format!("before\n{log}"));
    assert_eq!(call.got().unwrap(), flat(CALL));

    let call = Call::new();
    let output = by_podman(&call, "2>&2").output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), call.dump("stderr"), "by a pipe");

    let call = Call::new();
    assert!(by_podman(&call, "2>>\"$DUMP/stderr\"").status().unwrap().success());
    assert_eq!(call.dump("stderr").matches('\n').count(), 1, "the same file twice");
}

#[test]
fn a_parent_that_is_not_podman_is_told_nothing() {
    if !possible() {
        return;
    }
    let call = Call::new();
    let output = call.command("/bin/sh").env("AS_CHILD", "1").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(call.dump("stderr").matches('\n').count(), 1);
}

#[test]
fn a_podman_whose_stderr_nobody_reads_is_not_waited_for() {
    if !possible() {
        return;
    }
    let call = Call::new();
    let (_reader, writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    let mut podman = by_podman(&call, "2>&2").stderr(writer).spawn().unwrap();
    eventually("the start is over", || podman.try_wait().unwrap().is_some());
    assert!(podman.wait().unwrap().success());
    call.assert_untouched();
}

#[test]
fn a_start_that_fails_is_told_in_the_log_that_podman_shows() {
    if !possible() {
        return;
    }
    let call = Call::new().env("V6POD_ON_ERROR", "fail");
    let output = by_podman(&call, "2>&2").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty(), "podman prints the log, and would print it again");
    assert!(call.dump("stderr").contains("it does not start"));
}
