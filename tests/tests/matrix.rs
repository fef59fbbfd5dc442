//! Issue 4, line 1: every podman, every network, every runtime, on hosts that are booted.
//!
//! ```text
//!   outside ── up0 ┌ Debian 12, 13 ── v6podd ── v6pod0 ── port ┌ a container of anna's ┐ ┐
//!                  └───────────────────────────────────────────────────────────────────┘
//! ```
//! Two podmans in every run; the others by `make test-matrix`, which makes their hosts. Each cell is a container that runs, is asked for its address, is pinged from outside, and ends.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use v6pod_tests::{IMAGE, Login, PATIENCE, Place as _, Suite, WholeHost, eventually, require, run};

/// What a container asks of podman, and what is to come of it.
struct Column {
    name: &'static str,
    options: &'static [&'static str],
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// One address, at which it is reached.
    Address,
    /// None, for this reason.
    None(&'static str),
    /// This podman has no such network, by its own words.
    NoSuchNetwork,
}

const ASKED: &str = "--annotation=v6pod=true";
const UNASKED: Outcome = Outcome::None("not asked for (DESIGN 5.3)");

/// The networks of one podman.
fn columns(suite: Suite) -> Vec<Column> {
    // Podman 4.3 has no pasta yet, podman 6 no slirp4netns any more.
    let (slirp4netns, pasta) = match suite {
        Suite::Bookworm => (Outcome::Address, Outcome::NoSuchNetwork),
        Suite::Trixie | Suite::Forky => (Outcome::Address, Outcome::Address),
        Suite::Experimental => (Outcome::NoSuchNetwork, Outcome::Address),
    };
    let column = |name, options, outcome| Column { name, options, outcome };
    vec![
        column("default", &[], Outcome::Address),
        column("slirp4netns", &["--network=slirp4netns"], slirp4netns),
        column("pasta", &["--network=pasta"], pasta),
        column("bridge", &["--network=bridge"], UNASKED),
        column("bridge, asked", &["--network=bridge", ASKED], Outcome::Address),
        column("none", &["--network=none"], UNASKED),
        column("none, asked", &["--network=none", ASKED], Outcome::Address),
        column("host", &["--network=host"], Outcome::None("the host's network")),
        column("pod", &["--pod=new:p"], Outcome::Address),
        column("keep-id", &["--userns=keep-id"], Outcome::Address),
        column("v6pod=false", &["--annotation=v6pod=false"], Outcome::None("declined")),
    ]
}

/// Runs one cell; what came of it.
#[track_caller]
fn cell(host: &WholeHost, user: &Login<'_>, runtime: &str, column: &Column) -> Outcome {
    let words = [
        &["--runtime", runtime, "run", "--detach", "--name", "c"],
        column.options,
        &[IMAGE, "sleep", "1000"],
    ];
    let started = user.podman(&words.concat());
    let outcome = match (started.status.success(), column.outcome) {
        (false, Outcome::NoSuchNetwork) => Outcome::NoSuchNetwork,
        _ => {
            started.ok();
            addressed(host, column)
        }
    };
    user.podman(&["pod", "rm", "--all", "--force", "--time", "0"]);
    user.podman(&["rm", "--all", "--force", "--time", "0"]);
    eventually(PATIENCE, "the end", || host.attachments().is_empty().then_some(()));
    outcome
}

/// What the running container has.
#[track_caller]
fn addressed(host: &WholeHost, column: &Column) -> Outcome {
    let all = host.attachments();
    assert!(all.len() <= 1, "{} has {all:#?}", column.name);
    let Some(attachment) = all.first() else {
        let Outcome::None(reason) = column.outcome else { return Outcome::None("?") };
        return Outcome::None(reason);
    };
    let address = attachment.address.to_string();
    let ping = run(host.net().outside("ping").args(["-n", "-c", "1", "-W", "10", &address]));
    assert!(ping.status.success(), "{}: {ping}", column.name);
    Outcome::Address
}

fn shown(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Address => "one address, reached",
        Outcome::None(reason) => reason,
        Outcome::NoSuchNetwork => "no such network in this podman",
    }
}

/// All cells of a suite, printed.
#[track_caller]
fn matrix(suite: Suite) {
    let host = WholeHost::serving(suite);
    let user = host.log_in("anna");
    let podman = user.podman(&["--version"]).ok().to_owned();
    let before = host.footprint();
    let mut wrong = Vec::new();
    for runtime in ["runc", "crun"] {
        for column in columns(suite) {
            let outcome = cell(&host, &user, runtime, &column);
            eprintln!("    {podman:20} {runtime:5} {:14} {}", column.name, shown(outcome));
            if outcome != column.outcome {
                wrong.push(format!("{runtime}, {}: {outcome:?}", column.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{podman}: {wrong:#?}");
    before.comes_back(&host);
}

#[test]
fn podman_4_3_of_debian_12() {
    let _machine = require!(WholeHost);
    matrix(Suite::Bookworm);
}

#[test]
fn podman_5_4_of_debian_13() {
    let _machine = require!(WholeHost);
    matrix(Suite::Trixie);
}

#[test]
#[ignore = "make test-matrix"]
fn podman_5_8_of_debian_14() {
    let _machine = require!(WholeHost);
    matrix(Suite::Forky);
}

#[test]
#[ignore = "make test-matrix"]
fn podman_6_of_debians_experimental() {
    let _machine = require!(WholeHost);
    matrix(Suite::Experimental);
}
