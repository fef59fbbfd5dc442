//! Issue 3, line 3: attached and released thousands of times, with a daemon that is killed again and
//! again, and everything is as before.
//!
//! `V6POD_TEST_CYCLES=10000` says how many; 1,000 unless told.
#![allow(clippy::expect_used, reason = "a test")]

use std::env;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use v6pod_proto::{Activate, ContainerId};
use v6pod_tests::{
    BareNs, Body, Config, Daemon, HostNs, Invariants, eventually, random_container_id, require,
};

/// A daemon's life, in cycles.
const LIFE: usize = 97;

/// How many are attached at once.
const WINDOW: usize = 24;

/// How far the daemon's memory may grow, in KiB.
const SLACK: u64 = 2 * 1024;

/// Taking away the last may take this long.
const LIMIT: Duration = Duration::from_secs(60);

struct One {
    namespace: BareNs,
    id: ContainerId,
    lease: Option<UnixStream>,
}

impl One {
    fn attach(daemon: &Daemon, lease: bool) -> Self {
        let (namespace, id) = (BareNs::new(), random_container_id());
        let request = Activate { lease, ..Activate::new(id.clone()) };
        let (answer, stream) = daemon.root().activate(&request, namespace.as_fd());
        answer.unwrap_or_else(|refused| panic!("{refused}"));
        Self { namespace, id, lease: lease.then_some(stream) }
    }

    /// Ends it in one of the three ways. What ends by its lease keeps its namespace for a while, or it
    /// would end by that.
    fn end(mut self, daemon: &Daemon, way: usize, kept: &mut Vec<BareNs>) {
        match way {
            0 => {
                let form = format!("user=0&id={}", self.id);
                let response = daemon.root().post("/api/deactivate", Body::Form(&form));
                assert_eq!(response.status, 200, "{response}");
                kept.push(self.namespace);
            }
            1 => {
                self.lease = None;
                kept.push(self.namespace);
            }
            _ => drop(self.namespace),
        }
    }
}

#[test]
fn thousands_of_attachments_and_a_daemon_that_keeps_dying_leave_nothing() {
    let _machine = require!(Root);
    let cycles = env::var("V6POD_TEST_CYCLES").map_or(1_000, |n| n.parse().expect("a number"));
    let host = HostNs::new();
    let limits = "[limits]\nper_owner = 1000\n".to_owned();
    let mut daemon = Daemon::configured(&host, &Config { tables: limits, ..Config::default() });
    let before = (daemon.footprint(), daemon.descriptors());
    let began = Instant::now();
    let (mut living, mut kept) = (Vec::new(), Vec::new());
    let (mut early, mut late) = (0, 0);
    for cycle in 1..=cycles {
        // The lease's holder is this very process, which lives on: a lease that a crash cut off ends by
        // its namespace.
        living.push(One::attach(&daemon, cycle % 3 == 1));
        if living.len() > WINDOW {
            let one: One = living.remove(0);
            let way = if one.lease.is_some() { 1 } else { cycle % 2 * 2 };
            one.end(&daemon, way, &mut kept);
        }
        if cycle % LIFE == 0 {
            let resident = daemon.resident();
            if cycle <= cycles / 10 + LIFE {
                early = resident.max(early);
            } else {
                late = resident.max(late);
            }
            daemon.kill9();
            kept.clear();
            daemon.restart();
        }
        if kept.len() > 4 * WINDOW {
            kept.drain(..WINDOW);
        }
    }
    let took = began.elapsed();
    drop((living, kept));
    eventually(LIMIT, "all are gone", || daemon.attachments().is_empty().then_some(()));
    Invariants::hold(&daemon, &[]);
    before.0.comes_back(&daemon);
    // The connection of the question before may have been among those.
    eventually(LIMIT, "no more descriptors than before", || {
        (daemon.descriptors() <= before.1).then_some(())
    });
    let resting = daemon.status().counts.resting;
    eprintln!(
        "    {cycles} cycles in {:.1} s, {resting} addresses rest, {early} KiB in the first tenth, \
         {late} KiB at most after it",
        took.as_secs_f64(),
    );
    assert!(late <= early + SLACK, "memory: {early} KiB in the first tenth, {late} KiB after");
}
