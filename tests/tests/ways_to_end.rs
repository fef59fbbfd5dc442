//! Issue 2, line 3: every way in which a container ends or begins again, and every way to have a
//! container without an address of its own. Afterwards nothing is left.
//!
//! ```text
//!   host ── v6podd ── v6t0 ── port ── eth0 ┌ container(s) of v6t1 ┐ tap0 ── slirp4netns
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs;

use v6pod_tests::{IMAGE, Stage, require};

/// Prints the global IPv6 addresses of eth0, one a line; nothing if there is no eth0.
const MINE: &str = "ip -6 -o addr show dev eth0 scope global 2>/dev/null | awk '{print $4}'";

#[test]
fn a_container_that_is_ended_by_podman_leaves_nothing() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    for end in [
        &["stop", "-t", "0", "c"][..],
        &["kill", "c"],
        &["rm", "-f", "-t", "0", "c"],
        &["exec", "c", "kill", "-KILL", "-1"],
    ] {
        let container = stage.user().start("c", &["--init"], &["sleep", "1000"]);
        let attachment = stage.daemon.the_attachment();
        assert_eq!(attachment.container.as_str(), container.id);
        assert!(stage.daemon.footprint().mentions(&attachment.address.to_string()));
        // The last of them kills its own shell: how that ends is not the question.
        stage.user().podman(end);
        before.comes_back(&stage.daemon);
        stage.user().podman(&["rm", "-f", "-i", "c"]).ok();
    }
}

#[test]
fn a_container_that_ends_by_itself_leaves_nothing() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let seen = stage.user().run(&[], &["sh", "-c", MINE]);
    assert!(seen.ok().starts_with("2001:db8:1:2:3:"), "{seen}");
    let failed = stage.user().run(&[], &["sh", "-c", "exit 42"]);
    assert_eq!(failed.status.code(), Some(42), "{failed}");
    before.comes_back(&stage.daemon);
}

#[test]
fn conmon_killed_takes_the_attachment_along() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let container = stage.user().sleeper("c");
    let init = container.init();
    stage.daemon.the_attachment();
    container.conmon().kill();
    // slirp4netns ends with conmon; the container's process lives on without a network, as ever.
    before.comes_back(&stage.daemon);
    assert!(init.is_alive());
    // Podman 4.3.1 cannot remove such a container, with v6pod or without.
    init.kill();
    before.comes_back(&stage.daemon);
}

#[test]
fn slirp4netns_killed_takes_the_attachment_along() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let container = stage.user().sleeper("c");
    stage.daemon.the_attachment();
    container.slirp4netns().kill();
    before.comes_back(&stage.daemon);
    assert!(container.init().is_alive());
    // The port is gone on the inside too, not only from the books.
    assert_eq!(container.exec(&["sh", "-c", MINE]).ok(), "");
    container.remove();
    before.comes_back(&stage.daemon);
}

#[test]
fn restart_and_stop_with_start_give_one_attachment_each() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let container = stage.user().sleeper("c");
    let watch = stage.watch();
    for again in ["restart -t 0 c", "restart -t 0 c", "stop -t 0 c", "start c"] {
        stage.user().podman(&again.split(' ').collect::<Vec<_>>()).ok();
        if again.starts_with("stop") {
            before.comes_back(&stage.daemon);
            continue;
        }
        let attachment = stage.daemon.the_attachment();
        assert_eq!(attachment.container.as_str(), container.id);
        let inside = container.exec(&["sh", "-c", MINE]);
        assert_eq!(inside.ok(), format!("{}/128", attachment.address), "after {again}");
    }
    // Podman makes the new namespace before the old slirp4netns has quite ended.
    assert_eq!(watch.most(), 1);
    container.remove();
    before.comes_back(&stage.daemon);
}

#[test]
fn restart_on_failure_keeps_its_address_in_the_same_namespace() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let watch = stage.watch();
    // Long enough for the old lease's grace to run out under the new one.
    let script = format!("readlink /proc/self/ns/net; {MINE}; sleep 1; {MINE}; exit 1");
    let options = ["--restart=on-failure:2"];
    let container = stage.user().start("c", &options, &["sh", "-c", &script]);
    container.comes_to("three runs", "{{.RestartCount}} {{.State.Status}}", "2 exited");
    let logs = stage.user().podman(&["logs", "c"]);
    let lines: Vec<_> = logs.ok().lines().collect();
    assert_eq!(lines.len(), 9, "three runs of three lines each: {logs}");
    for run in lines.chunks(3) {
        assert!(run[1].starts_with("2001:db8:1:2:3:"), "{logs}");
        assert_eq!(run[1], run[2], "the address went while the container ran: {logs}");
        if run[0] == lines[0] {
            assert_eq!(run[1], lines[1], "same namespace, another address: {logs}");
        }
    }
    assert_eq!(watch.most(), 1);
    container.remove();
    before.comes_back(&stage.daemon);
}

#[test]
fn the_members_of_a_pod_share_one_attachment() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let watch = stage.watch();
    stage.user().podman(&["pod", "create", "--name", "p"]).ok();
    let one = stage.user().start("one", &["--pod", "p"], &["sleep", "1000"]);
    let two = stage.user().start("two", &["--pod", "p"], &["sleep", "1000"]);
    let attachment = stage.daemon.the_attachment();
    for member in [&one, &two] {
        assert_eq!(member.exec(&["sh", "-c", MINE]).ok(), format!("{}/128", attachment.address));
    }
    // It is the infra container's, and that is not a name to be found by.
    assert!(attachment.names.is_empty(), "{attachment:?}");
    one.remove();
    assert_eq!(stage.daemon.the_attachment().id, attachment.id);
    stage.user().podman(&["pod", "restart", "p"]).ok();
    stage.daemon.the_attachment();
    assert_eq!(watch.most(), 1);
    stage.user().podman(&["pod", "rm", "-f", "-t", "0", "p"]).ok();
    before.comes_back(&stage.daemon);
}

#[test]
fn a_user_namespace_of_its_own_changes_nothing() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    for mapping in ["--userns=keep-id", "--uidmap=0:1:1000"] {
        // Here slirp4netns comes after the runtime, and by process id instead of path.
        let container = stage.user().start("c", &[mapping], &["sleep", "1000"]);
        let attachment = stage.daemon.the_attachment();
        assert_eq!(attachment.owner.as_raw(), stage.user().uid());
        let inside = container.exec(&["sh", "-c", MINE]);
        assert_eq!(inside.ok(), format!("{}/128", attachment.address), "with {mapping}");
        container.remove();
        before.comes_back(&stage.daemon);
    }
}

#[test]
fn other_networks_are_left_alone() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = stage.user();
    let watch = stage.watch();
    for network in ["host", "none", "bridge"] {
        let seen = user.run(&["--network", network], &["sh", "-c", MINE]);
        assert!(!seen.ok().contains("2001:db8:1:2:3:"), "{network}: {seen}");
    }
    assert_eq!(watch.most(), 0);

    let first = user.sleeper("first");
    let attachment = stage.daemon.the_attachment();
    let second = user.run(&["--network", "container:first"], &["sh", "-c", MINE]);
    assert_eq!(second.ok(), format!("{}/128", attachment.address));
    assert_eq!(stage.daemon.the_attachment(), attachment);
    first.remove();
    before.comes_back(&stage.daemon);
}

#[test]
fn an_image_is_built_without_an_attachment() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = stage.user();
    let context = user.home().join("context");
    fs::create_dir(&context).expect("making a directory");
    fs::write(context.join("Containerfile"), format!("FROM {IMAGE}\nRUN ip -6 addr\n"))
        .expect("writing a Containerfile");
    let watch = stage.watch();
    // podman up to 4.5 finds slirp4netns for builds on $PATH: once as ever, once with the shim there.
    let shims = user.shim_as_slirp4netns();
    let shims = shims.parent().expect("it lies in a directory").display();
    for path in ["/usr/bin:/bin:/usr/sbin:/sbin".to_owned(), format!("{shims}:/usr/bin:/usr/sbin")]
    {
        user.set_env("PATH", &path);
        let context = context.display().to_string();
        let built = user.podman(&["build", "--no-cache", "--tag", "built", &context]);
        assert!(built.ok().contains("tap0"), "{built}");
    }
    assert_eq!(watch.most(), 0);
    before.comes_back(&stage.daemon);
}
