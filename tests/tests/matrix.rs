//! Issue 4, line 1: every podman, every network, every runtime, on hosts that are booted.
//!
//! ```text
//!   outside ── up0 ┌ Debian 11 to 14 ── v6podd ── v6pod0 ── port ┌ a container of anna's, or root's ┐ ┐
//!                  └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! Two podmans in every run; the others by `make test-matrix`, which makes their hosts and has the one
//! package for all of them. Each cell is a container that runs, is asked for its address, is pinged
//! from outside, and ends.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use v6pod_tests::{
    IMAGE, Login, PATIENCE, Place as _, Suite, WholeHost, eventually, require, run, side_by_side,
};

/// What a container asks of podman, and what is to come of it.
struct Row {
    name: &'static str,
    owner: Owner,
    options: &'static [&'static str],
    then: Then,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Anna,
    Root,
}

/// What becomes of the container before it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Runs,
    /// It dies, and podman starts it again by itself.
    Dies,
    /// `podman restart`.
    Restarts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// One address, at which it is reached.
    Address,
    /// That, and `v6podctl show` has its label and its published port.
    Told,
    /// None, for this reason.
    None(&'static str),
    /// This podman does not start it, for this reason.
    Refused(&'static str),
}

const ASKED: &str = "--annotation=v6pod=true";
/// What only podman's database tells of, and what `v6podctl show` is to say of it.
const SAID: &[&str] = &["--label=v6pod.name=web", "--publish=18080:80"];
const ROOTS_SAID: &[&str] = &[ASKED, SAID[0], SAID[1]];
const TOLD: [&str; 2] = ["v6pod.name=web (label)", "v6pod.ingress=tcp/80 (published port)"];
const UNASKED: Outcome = Outcome::None("not asked for");
const NO_SUCH: Outcome = Outcome::Refused("no such network");
/// Podman 3.0 starts it again in its namespace, from which slirp4netns has gone for good.
const NO_NETWORK: Outcome = Outcome::None("no network at all, by podman");
/// A container is to make it, of an image that podman has from a registry.
const NAMED: Outcome = Outcome::Refused("a network's name: wants an image");

/// The rows of one podman.
fn rows(suite: Suite) -> Vec<Row> {
    let (slirp4netns, pasta) = match suite {
        // Podman 3.0 takes it for a network's name.
        Suite::Bullseye => (Outcome::Address, NAMED),
        // Podman 4.3 has no pasta yet, podman 6 no slirp4netns any more.
        Suite::Bookworm => (Outcome::Address, NO_SUCH),
        Suite::Trixie | Suite::NetworkManager | Suite::Forky => {
            (Outcome::Address, Outcome::Address)
        }
        Suite::Experimental => (NO_SUCH, Outcome::Address),
    };
    let died = if suite == Suite::Bullseye { NO_NETWORK } else { Outcome::Address };
    let row = |name, options, outcome| Row {
        name,
        owner: Owner::Anna,
        options,
        then: Then::Runs,
        outcome,
    };
    let root = |name, options, outcome| Row { owner: Owner::Root, ..row(name, options, outcome) };
    vec![
        row("default", &[], Outcome::Address),
        row("slirp4netns", &["--network=slirp4netns"], slirp4netns),
        row("pasta", &["--network=pasta"], pasta),
        row("bridge", &["--network=bridge"], UNASKED),
        row("bridge, asked", &["--network=bridge", ASKED], Outcome::Address),
        row("none", &["--network=none"], UNASKED),
        row("none, asked", &["--network=none", ASKED], Outcome::Address),
        row("host", &["--network=host"], Outcome::None("the host's network")),
        row("pod", &["--pod=new:p"], Outcome::Address),
        row("keep-id", &["--userns=keep-id"], Outcome::Address),
        row("v6pod=false", &["--annotation=v6pod=false"], Outcome::None("declined")),
        row("label, port", SAID, Outcome::Told),
        Row { then: Then::Restarts, ..row("restarted", &[], Outcome::Address) },
        Row { then: Then::Dies, ..row("--restart", &["--restart=on-failure:3"], died) },
        Row {
            then: Then::Dies,
            ..row(
                "none, asked, --restart",
                &["--network=none", ASKED, "--restart=on-failure:3"],
                Outcome::Address,
            )
        },
        root("root's bridge", &[], UNASKED),
        root("root's bridge, asked", &[ASKED], Outcome::Address),
        root("root's, label, port", ROOTS_SAID, Outcome::Told),
        root("root's none", &["--network=none"], UNASKED),
        root("root's none, asked", &["--network=none", ASKED], Outcome::Address),
        root("root's host", &["--network=host", ASKED], Outcome::None("the host's network")),
    ]
}

/// What root's crun 1.8 wants where root may not raise every limit (CAP_SYS_RESOURCE): it loads a
/// program for its cgroup.
const SPARES_CRUN_A_LIMIT: &[&str] = &["--cgroups=disabled"];

/// Runs one cell; what came of it.
#[track_caller]
fn cell(host: &WholeHost, user: &Login<'_>, runtime: &str, row: &Row) -> Outcome {
    let with_runtime = |words: &[&str]| user.podman(&[&["--runtime", runtime], words].concat());
    let start = ["run", "--detach", "--name", "c"];
    let bookworms = host.suite() == Suite::Bookworm && runtime == "crun";
    let limits = if bookworms && row.owner == Owner::Root {
        SPARES_CRUN_A_LIMIT
    } else {
        Default::default()
    };
    let command = [IMAGE, "sleep", "1000"];
    let started = with_runtime(&[&start, limits, row.options, &command].concat());
    let outcome = match (started.status.success(), row.outcome) {
        (false, Outcome::Refused(reason)) => Outcome::Refused(reason),
        _ => {
            started.ok();
            assert!(!matches!(row.outcome, Outcome::Refused(_)), "{} starts", row.name);
            match row.then {
                Then::Runs => {}
                Then::Restarts => drop(with_runtime(&["restart", "--time", "0", "c"]).ok()),
                Then::Dies => dies(host, user),
            }
            outcome_of(host, user, row)
        }
    };
    user.remove_all();
    eventually(PATIENCE, "the end", || host.attachments().is_empty().then_some(()));
    outcome
}

/// Kills the container's first process, and waits until podman has started it again.
#[track_caller]
fn dies(host: &WholeHost, user: &Login<'_>) {
    let before = user.pid("c");
    host.sh(&format!("kill -KILL {before}")).ok();
    eventually(PATIENCE, "the next run", || {
        let pid = user.podman(&["inspect", "--format", "{{.State.Pid}}", "c"]);
        let pid = pid.stdout.trim().parse().unwrap_or(0);
        (pid != 0 && pid != before).then_some(())
    });
}

/// What the running container has.
#[track_caller]
fn outcome_of(host: &WholeHost, user: &Login<'_>, row: &Row) -> Outcome {
    let count = usize::from(matches!(row.outcome, Outcome::Address | Outcome::Told));
    let all = if row.then == Then::Dies {
        // That of the run before has its moment of grace.
        eventually(PATIENCE, "as many as there should be", || {
            let all = host.attachments();
            (all.len() == count).then_some(all)
        })
    } else {
        host.attachments()
    };
    assert_eq!(all.len(), count, "{} has {all:#?}", row.name);
    let Some(attachment) = all.first() else {
        if row.outcome == NO_NETWORK {
            let links = user.podman(&["exec", "c", "ip", "-o", "link"]);
            assert!(links.ok().lines().all(|line| line.contains(" lo: ")), "{links}");
        }
        return row.outcome;
    };
    let address = attachment.address.to_string();
    let inside = user.podman(&["exec", "c", "ip", "-6", "-o", "addr", "show", "scope", "global"]);
    assert!(inside.ok().contains(&format!(" {address}/128 ")), "{}: {inside}", row.name);
    let ping = run(host.net().outside("ping").args(["-n", "-c", "1", "-W", "10", &address]));
    assert!(ping.status.success(), "{}: {ping}", row.name);
    if row.outcome == Outcome::Told {
        let shown = run(host.command("v6podctl").args(["show", &address]));
        let missing = TOLD.iter().find(|line| !shown.ok().contains(*line));
        assert_eq!(missing, None, "{}: {shown}", row.name);
    }
    row.outcome
}

fn shown(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Address => "one address, reached",
        Outcome::Told => "one address, reached; label and port told",
        Outcome::None(reason) | Outcome::Refused(reason) => reason,
    }
}

/// All cells of a suite, printed.
#[track_caller]
fn matrix(suite: Suite) {
    let host = WholeHost::serving(suite);
    let (anna, root) = (host.log_in("anna"), host.root());
    let podman = anna.podman(&["--version"]).ok().to_owned();
    let before = host.footprint();
    for runtime in ["runc", "crun"] {
        for row in rows(suite) {
            let user = if row.owner == Owner::Anna { &anna } else { &root };
            let outcome = cell(&host, user, runtime, &row);
            eprintln!("    {podman:20} {runtime:5} {:22} {}", row.name, shown(outcome));
            assert_eq!(outcome, row.outcome, "{podman}, {runtime}: {}", row.name);
        }
    }
    before.comes_back(&host);
}

#[test]
#[ignore = "make test-matrix"]
fn podman_3_0_of_debian_11() {
    let _machine = require!(WholeHost);
    matrix(Suite::Bullseye);
}

#[test]
fn podman_4_3_of_debian_12_and_5_4_of_debian_13() {
    let _machine = require!(WholeHost);
    side_by_side([Suite::Bookworm, Suite::Trixie], matrix);
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
