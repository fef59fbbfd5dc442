//! Issue 3: more leases than a bridge has ports, outside the HTTP server and its limits.
//!
//! ```text
//!   host ── v6podd ── v6t0 ── 1023 ports ── eth0 ┌ namespace ┐, each with a lease that is held
//!                          └── the 1024th, routed ── eth0 ┌ namespace ┐
//! ```
//! 1023 is how many ports a Linux bridge has (`BR_MAX_PORTS`, less the one it never gives).
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use v6pod_proto::{Activate, Attachment, Mode, State};
use v6pod_tests::{
    BareNs, Config, Daemon, HostNs, Invariants, eventually, random_container_id, require,
};

const PORTS: usize = 1_023;

/// All ends at once may take this long.
const LIMIT: Duration = Duration::from_secs(60);

/// DESIGN.md, section 11, in KiB.
const MEMORY: u64 = 64 * 1024;

#[track_caller]
fn attach(daemon: &Daemon, namespace: &BareNs) -> Result<UnixStream, u16> {
    let request = Activate { lease: true, ..Activate::new(random_container_id()) };
    let (answer, lease) = daemon.root().activate(&request, namespace.as_fd());
    answer.map(|_| lease).map_err(|refused| refused.status)
}

/// As the shim does that has waited for five seconds: the container starts without an address then, and
/// is not to have one later that nobody holds.
#[test]
fn a_lease_whose_caller_has_left_before_the_answer_is_over() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let before = daemon.footprint();
    let namespaces: Vec<_> = (0..150).map(|_| BareNs::new()).collect();
    let made = || daemon.status().counts.made;
    let at_first = made();
    for (n, namespace) in (0..).zip(&namespaces) {
        let request = Activate { lease: true, ..Activate::new(random_container_id()) };
        let asked = daemon.root().ask_only(&request, namespace.as_fd());
        // From before it is begun to after it is done.
        std::thread::sleep(Duration::from_micros(n * 40));
        drop(asked);
    }
    eventually(LIMIT, "none of them is left", || daemon.attachments().is_empty().then_some(()));
    assert!(made() - at_first > 10, "hardly any was begun: {}", made() - at_first);
    Invariants::hold(&daemon, &[]);
    before.comes_back(&daemon);
    drop(namespaces);
}

/// Without a lease the attachment is there for good, and so is all that belongs to one.
#[test]
fn what_a_caller_began_and_left_is_made_to_its_end() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let namespaces: Vec<_> = (0..150).map(|_| BareNs::new()).collect();
    for (n, namespace) in (0..).zip(&namespaces) {
        let request = Activate::new(random_container_id());
        let asked = daemon.root().ask_only(&request, namespace.as_fd());
        std::thread::sleep(Duration::from_micros(n * 40));
        drop(asked);
    }
    let all = eventually(LIMIT, "each is whole", || {
        let all = daemon.attachments();
        let whole = |a: &Attachment| a.state == State::Serving;
        all.iter().all(whole).then_some(all)
    });
    assert!(all.len() > 10, "hardly any was begun: {}", all.len());
}

#[test]
fn a_full_bridge_of_leases_leaves_the_api_as_it_was() {
    let _machine = require!(Root);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("asking for a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raising a limit");
    let host = HostNs::new();
    let limits = "[limits]\nper_owner = 2000\n".to_owned();
    let daemon = Daemon::configured(&host, &Config { tables: limits, ..Config::default() });
    let (before, descriptors) = (daemon.footprint(), daemon.descriptors());

    let namespaces: Vec<_> = (0..=PORTS).map(|_| BareNs::new()).collect();
    let (last, others) = namespaces.split_last().expect("there are many");
    let routed = || {
        let all = daemon.attachments();
        (all.len(), all.iter().filter(|a| a.mode == Mode::Routed).count())
    };
    let mut leases: Vec<_> =
        others.iter().map(|namespace| attach(&daemon, namespace).expect("there is room")).collect();
    assert_eq!(routed(), (PORTS, 0));
    leases.push(attach(&daemon, last).expect("past a full bridge there is room too"));
    assert_eq!(routed(), (PORTS + 1, 1));
    Invariants::hold(&daemon, &[]);
    eprintln!("    {} descriptors, {} KiB resident", daemon.descriptors(), daemon.resident());
    assert!(daemon.resident() < MEMORY, "{} KiB", daemon.resident());

    // The end of one is heard among all the others, and makes room for another on the bridge.
    leases.swap_remove(PORTS / 2);
    eventually(LIMIT, "one has ended", || (routed() == (PORTS, 1)).then_some(()));
    let next = BareNs::new();
    leases.push(attach(&daemon, &next).expect("there is room again"));
    assert_eq!(routed(), (PORTS + 1, 1));

    drop(leases);
    eventually(LIMIT, "all have ended", || daemon.attachments().is_empty().then_some(()));
    Invariants::hold(&daemon, &[]);
    before.comes_back(&daemon);
    eventually(LIMIT, "no more descriptors than before", || {
        (daemon.descriptors() <= descriptors).then_some(())
    });
}
