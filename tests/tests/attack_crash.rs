//! Attack 28: the daemon dies at any instant of a storm, and comes back to a world that adds up. (What a
//! peer leaves that is killed half way is shown in `cni`.)
//!
//! ```text
//!   host ── v6podd (SIGKILL, again and again) ── v6t0
//!     └── 24 namespaces of v6t1, attached, released and killed in every order
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use v6pod_proto::Activate;
use v6pod_tests::{
    Attacker, OwnedNs, PATIENCE, Stage, eventually, random_container_id, require, run,
};

/// How often the daemon is killed.
const KILLS: u64 = 25;

#[test]
fn attack_28_killed_at_any_instant_it_leaves_nothing_half_done() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(2);
    let before = stage.daemon.footprint();
    let links_before = links(&stage);
    let steady = stage.users[1].sleeper("steady");
    let attachment = stage.daemon.the_attachment();
    let storm = Attacker::start(&stage.users[0], &stage.daemon, &["storm", "24"]);
    for kill in 0..KILLS {
        // Spread over the storm, and not in step with it.
        thread::sleep(Duration::from_millis(20 + (kill * 37) % 170));
        stage.daemon.kill9();
        stage.daemon.restart();
        let all = stage.daemon.attachments();
        assert!(all.iter().any(|a| a.id == attachment.id), "the steady one is gone");
    }
    drop(storm);
    // Now and for good: one port, one route, one record for each attachment, and none besides.
    eventually(PATIENCE, "books, kernel and records agree", || {
        let ids: BTreeSet<String> =
            stage.daemon.attachments().iter().map(|a| format!("{}.json", a.id)).collect();
        let ports: BTreeSet<String> =
            stage.daemon.attachments().iter().map(|a| a.port.to_string()).collect();
        let records: BTreeSet<String> = fs::read_dir(stage.daemon.run_dir().join("attachments"))
            .expect("reading the records")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let in_kernel: BTreeSet<String> =
            links(&stage).difference(&links_before).cloned().collect();
        (ids == records && ports == in_kernel && ports.len() == 1).then_some(())
    });
    assert_eq!(fs::read_dir(stage.daemon.run_dir().join("rejected")).expect("a folder").count(), 0);
    assert!(steady.init().is_alive());
    let ping = ["-c", "1", "-W", "10", &attachment.address.to_string()];
    run(stage.host.outside("ping").args(ping)).ok();
    steady.remove();
    before.comes_back(&stage.daemon);
}

/// A user in a user namespace of his can make the kernel tell more than anybody hears in time. Then
/// ports whose end was not heard of are found missing: the daemon stopped for good at the first.
#[test]
fn attack_28_ends_that_were_not_heard_of_are_found_out() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let attach = |_| {
        let namespace = OwnedNs::new(stage.user());
        let caller = stage.daemon.as_user(namespace.uid());
        let request = Activate::new(random_container_id());
        let (made, _) = caller.activate(&request, namespace.network().as_fd());
        made.unwrap_or_else(|refused| panic!("{refused}"));
        namespace
    };
    let namespaces: Vec<_> = (0..3).map(attach).collect();
    stage.host.ip("link add noise0 type veth peer name noise1").ok();
    let toggle = |n| format!("link set noise0 mtu {}\n", 1400 + n % 2);
    let noise: String = (0..40_000).map(toggle).collect();
    let file = stage.user().home().join("noise");
    fs::write(&file, noise).expect("writing a file");
    stage.daemon.pause();
    run(stage.host.command("ip").arg("-batch").arg(&file)).ok();
    drop(namespaces);
    eventually(PATIENCE, "the ports are gone", || {
        links(&stage).iter().all(|name| !name.starts_with("v6p")).then_some(())
    });
    stage.daemon.resume();
    stage.host.ip("link del noise0").ok();
    before.comes_back(&stage.daemon);
}

fn links(stage: &Stage) -> BTreeSet<String> {
    let listed = run(stage.host.command("ip").args(["-o", "link"]));
    let name = |line: &str| {
        let name = line.split(": ").nth(1)?;
        Some(name.split('@').next().unwrap_or(name).to_owned())
    };
    listed.ok().lines().filter_map(name).collect()
}
