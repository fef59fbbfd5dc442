//! Issue 8, line 1: ways to break a host, each made for real on a whole one. The doctor names each by its code, and
//! what he prints, run as printed by who is to run it, mends it.
//!
//! ```text
//!   outside ── up0 ┌ Debian 12, or 13 with pasta ───────────────────────────┐
//!   (sends router  │ v6podd (root's) ── v6pod0 ── port ── eth0 ┌ container  │
//!    advertise-    │ v6podctl doctor, as root and as anna      │ of anna    │
//!    ments)        └────────────────────────────────────────────────────────┘
//! ```
//!
//! A host is broken again and again: behind each mending both doctors find nothing at all.
#![allow(clippy::expect_used, reason = "a test")]

mod breaks;
mod surroundings;
mod ward;

use std::sync::atomic::{AtomicUsize, Ordering};

use v6pod_tests::{Suite, WholeHost, require, side_by_side};

use breaks::{DAEMON, NETWORK, OWN, PASTA, PASTA_VARIABLES, SYSTEM, VARIABLES};
use surroundings::{
    advertisements_are_heard_again, names_go_to_consul_again, the_prefix_is_answered_for,
};
use ward::Ward;

/// What one host goes through: broken again and again.
type Course = (Suite, fn(&mut Ward<'_>));

/// Each on a host of its own.
const COURSES: [Course; 4] = [
    (Suite::Bookworm, system_is_mended),
    (Suite::Bookworm, daemon_and_network_are_mended),
    (Suite::Bookworm, what_is_annas_is_mended),
    (Suite::Trixie, pasta_is_mended),
];

#[test]
fn each_way_to_break_a_host_is_named_and_mended_by_the_command_that_is_printed() {
    let _machine = require!(WholeHost, Consul);
    let broken = AtomicUsize::new(0);
    side_by_side(COURSES, |(suite, course)| {
        let host = WholeHost::serving(suite);
        let mut ward = Ward::new(&host);
        assert!(ward.serves(""));
        course(&mut ward);
        eprintln!("{suite:?}\n{}", ward.table);
        broken.fetch_add(ward.broken, Ordering::Relaxed);
    });
    let (broken, least) = (broken.into_inner(), 25 + PASTA.len() + PASTA_VARIABLES.len());
    assert!(broken >= least, "{broken} ways are not {least}");
}

fn system_is_mended(ward: &mut Ward<'_>) {
    SYSTEM.into_iter().for_each(|of_host| ward.host_is_mended(of_host));
}

fn daemon_and_network_are_mended(ward: &mut Ward<'_>) {
    DAEMON.into_iter().chain(NETWORK).for_each(|of_host| ward.host_is_mended(of_host));
}

fn what_is_annas_is_mended(ward: &mut Ward<'_>) {
    OWN.into_iter().for_each(|of_anna| ward.anna_is_mended(of_anna));
    VARIABLES.into_iter().for_each(|variable| ward.shell_is_mended(variable));
    advertisements_are_heard_again(ward);
    the_prefix_is_answered_for(ward);
    names_go_to_consul_again(ward);
}

fn pasta_is_mended(ward: &mut Ward<'_>) {
    PASTA.into_iter().for_each(|of_host| ward.host_is_mended(of_host));
    let defaults = "[engine]\nhelper_binaries_dir = [\"/usr/bin\"]\n";
    ward.host.write("/home/anna/override.conf", defaults);
    PASTA_VARIABLES.into_iter().for_each(|variable| ward.shell_is_mended(variable));
}
