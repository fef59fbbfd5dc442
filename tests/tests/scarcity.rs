//! Issue 3: what the daemon needs runs out, and it says so, changes nothing, and goes on when there
//! is some again.
//!
//! ```text
//!   a tmpfs of 64 KiB, full ┬─ /run/v6pod/attachments        prlimit ─▶ v6podd: no descriptor left
//!   v6t1, v6t2 ── activate ─┴▶ v6podd ── v6t0
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;

use v6pod_proto::{Activate, Attachment, Code};
use v6pod_tests::{
    Attacker, Body, Daemon, HostNs, OwnedNs, PATIENCE, Response, Stage, built, eventually,
    random_container_id, require, run,
};

#[track_caller]
fn activate(stage: &Stage, namespace: &OwnedNs) -> Result<Attachment, Response> {
    let caller = stage.daemon.as_user(namespace.uid());
    caller.activate(&Activate::new(random_container_id()), namespace.network().as_fd()).0
}

/// A file system of 64 KiB in place of the daemon's run directory.
struct Small(PathBuf);

impl Small {
    /// The daemon is stopped and started again on it.
    #[track_caller]
    fn under(daemon: &mut Daemon) -> Self {
        daemon.stop();
        let small = Self(daemon.run_dir());
        let options = ["-t", "tmpfs", "-o", "size=64k,mode=755", "v6t"];
        run(Command::new("mount").args(options).arg(&small.0)).ok();
        daemon.restart();
        small
    }

    #[track_caller]
    fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("making a file");
        while filler.write_all(&[0; 512]).is_ok() {}
    }

    #[track_caller]
    fn clear(&self) {
        fs::remove_file(self.filler()).expect("removing a file");
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0));
    }
}

#[test]
fn a_full_run_refuses_new_attachments_changes_nothing_and_passes() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(1);
    let small = Small::under(&mut stage.daemon);
    let empty = stage.daemon.footprint();
    let (first, second) = (OwnedNs::new(stage.user()), OwnedNs::new(stage.user()));
    let steady = activate(&stage, &first).unwrap_or_else(|refused| panic!("{refused}"));
    small.fill();
    let before = stage.daemon.footprint();
    for _ in 0..3 {
        let problem = activate(&stage, &second).expect_err("there is no room").problem();
        assert_eq!(problem.code, Code::Internal, "{}", problem.detail);
        assert!(problem.detail.contains("cannot write its record"), "{}", problem.detail);
        assert!(second.addresses().is_empty());
    }
    before.comes_back(&stage.daemon);
    // `podman run` itself goes on without, as `on_error = "continue"` says.
    let seen = stage.user().run(&[], &["cat", "/proc/net/if_inet6"]);
    assert!(!seen.ok().contains("eth0"), "{seen}");
    // The daemon lives, and so does one that starts now. What was attached has not been touched.
    stage.daemon.kill9();
    stage.daemon.restart();
    before.comes_back(&stage.daemon);
    assert_eq!(first.addresses(), [steady.address]);

    small.clear();
    let made = activate(&stage, &second).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(second.addresses(), [made.address]);
    // Full again: what ends goes all the same.
    small.fill();
    drop((first, second));
    eventually(PATIENCE, "both have ended", || stage.daemon.attachments().is_empty().then_some(()));
    small.clear();
    empty.comes_back(&stage.daemon);
}

/// Leaves the daemon so many descriptors more than it has.
#[track_caller]
fn leave_descriptors(stage: &Stage, more: usize) {
    let most = stage.daemon.descriptors() + more;
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
