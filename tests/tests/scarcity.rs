//! Issue 3: a tenant takes the daemon's last descriptor; it goes on when there are some again.
//!
//! ```text
//!   v6t1: leases, quiet connections ──▶ v6podd, with 40 descriptors to spare
//!   v6t2: one attachment before, others after ──▶ ┆
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use v6pod_proto::{Activate, Attachment};
use v6pod_tests::{
    Attacker, Body, HostNs, OwnedNs, PATIENCE, Response, Stage, built, eventually,
    random_container_id, require, run,
};

#[track_caller]
fn activate(stage: &Stage, namespace: &OwnedNs) -> Result<Attachment, Response> {
    let caller = stage.daemon.as_user(namespace.uid());
    caller.activate(&Activate::new(random_container_id()), namespace.network().as_fd()).0
}

/// Leaves the daemon so many descriptors more than it has.
#[track_caller]
fn leave_descriptors(stage: &Stage, more: usize) {
    limit_descriptors(stage, stage.daemon.descriptors() + more);
}

/// Leaves it one: the lowest number that none has, once it opens and closes none any more.
#[track_caller]
fn leave_one_descriptor(stage: &Stage) {
    let folder = format!("/proc/{}/fd", stage.daemon.pid());
    let numbers = || -> BTreeSet<usize> {
        let entries = fs::read_dir(&folder).expect("its descriptors");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names.map(|name| name.to_string_lossy().parse().expect("a number")).collect()
    };
    let had = eventually(PATIENCE, "it rests", || {
        let before = numbers();
        thread::sleep(Duration::from_millis(200));
        (numbers() == before).then_some(before)
    });
    let lowest = (0..).find(|n| !had.contains(n)).expect("one");
    limit_descriptors(stage, lowest + 1);
}

#[track_caller]
fn limit_descriptors(stage: &Stage, most: usize) {
    let pid = stage.daemon.pid().to_string();
    run(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={most}:")])).ok();
}

#[test]
fn a_tenant_who_takes_the_last_descriptor_gives_it_back() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(2);
    let empty = stage.daemon.footprint();
    let steady = OwnedNs::new(&stage.users[1]);
    let kept = activate(&stage, &steady).unwrap_or_else(|refused| panic!("{refused}"));
    let before = stage.daemon.footprint();
    leave_descriptors(&stage, 40);
    // Each takes two: the connection, and its holder's pidfd.
    let tenant = Attacker::start(&stage.users[0], &stage.daemon, &["leases", "100"]);
    let held: usize = tenant.said[0].trim_start_matches("held ").parse().expect("a number");
    assert!((5..30).contains(&held), "{held} leases");
    // The one that failed half-way has gone again, and then there is not even one for a connection.
    assert!(stage.daemon.log().contains("Too many open files"), "it was not short of any");
    let more = Attacker::start(&stage.users[0], &stage.daemon, &["idle", "100"]);
    eventually(PATIENCE, "it can accept no more", || {
        stage.daemon.log().contains("cannot accept a connection").then_some(())
    });
    assert_eq!(steady.addresses(), [kept.address]);
    drop((tenant, more));
    // With no more than it had: what was taken has come back.
    before.comes_back(&stage.daemon);
    let fresh = OwnedNs::new(&stage.users[1]);
    for _ in 0..20 {
        let made = activate(&stage, &fresh).unwrap_or_else(|refused| panic!("{refused}"));
        assert_eq!(fresh.addresses(), [made.address]);
        let caller = stage.daemon.as_user(fresh.uid());
        let answer = caller.post("/api/deactivate", Body::Form(&format!("id={}", made.container)));
        assert_eq!(answer.status, 200, "{answer}");
        eventually(PATIENCE, "it has gone", || fresh.addresses().is_empty().then_some(()));
    }
    drop((steady, fresh));
    empty.comes_back(&stage.daemon);
}

/// The kernel drops a descriptor that it cannot give a number, and says so (`MSG_CTRUNC`). That was told as if
/// the caller had sent none.
#[test]
fn a_descriptor_for_which_there_is_no_room_is_not_the_callers_mistake() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let namespace = OwnedNs::new(&stage.users[0]);
    let empty = stage.daemon.footprint();
    // The daemon knows the user by then, and opens no file to learn who he is.
    let caller = stage.daemon.as_user(namespace.uid());
    caller.get("/api/attachments");
    // For the connection.
    leave_one_descriptor(&stage);
    let refused = activate(&stage, &namespace).expect_err("there is no room for a second one");
    assert_eq!(refused.status, 503, "{refused}");
    assert!(refused.problem().detail.contains("Too many open files"), "{refused}");
    leave_descriptors(&stage, 100);
    let made = activate(&stage, &namespace).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(namespace.addresses(), [made.address]);
    drop(namespace);
    empty.comes_back(&stage.daemon);
}

#[test]
fn with_too_few_descriptors_it_does_not_start_and_says_what_to_set() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("v6pod.toml");
    fs::write(&config, "instance = \"v6t\"\nprefix = \"2001:db8:1:2:3::/80\"\n").expect("a file");
    let mut command = host.command("prlimit");
    command.arg("--nofile=1000:1000").arg(built("v6podd")).arg("--config").arg(&config);
    for dir in ["run", "state"] {
        command.arg(format!("--{dir}-dir")).arg(folder.path().join(dir));
    }
    let finished = run(&mut command);
    assert_ne!(finished.status.code(), Some(0), "{finished}");
    let said = finished.fails();
    assert!(said.contains("1000 descriptors are too few; set LimitNOFILE="), "{said}");
    assert!(!host.ip("link").ok().contains("v6t0"), "it touched the host");
}
