//! The harness under v6pod's black-box tests: real namespaces, real users, real podman, the daemon
//! and the shim as they were built.
//!
//! ```text
//!   ┌─ outside (network namespace) ──────────┐
//!   │  out0  2001:db8:ffff::1  198.51.100.1  │
//!   └───┬────────────────────────────────────┘
//!   ┌───┴─ host (network namespace) ─────────────────────────┐
//!   │  up0   2001:db8:ffff::2  198.51.100.2                  │
//!   │  v6podd ── unix socket ── shim ← podman, as user v6tN  │
//!   │  v6t0 (bridge) ── port ─┐   slirp4netns ─┐             │
//!   └─────────────────────────┼────────────────┼─────────────┘
//!                   ┌─ container ──────────────┴──┐
//!                   │  eth0 (IPv6)   tap0 (IPv4)  │
//!                   └─────────────────────────────┘
//! ```
//!
//! What this crate guarantees:
//! - Whatever a test makes has an owner that takes it away when it is dropped, also when the test
//!   panics: [`HostNs`], [`Daemon`], [`User`], [`Consul`], [`OwnedNs`], [`Background`],
//!   [`Attacker`], [`Browser`], [`Sampler`], [`WholeHost`].
//! - No packet leaves the namespaces that a test made, except over the unix socket.
//! - A test that cannot run here says so (`SKIPPED name: reason`), and fails instead when
//!   `V6POD_TEST_REQUIRE=all` is set.
//! - No test passes or fails by how long something took, but everything has a deadline: a command
//!   that hangs is killed and the test fails.
//!
//! A failure in here is the failure of the test that called: functions panic with what they were
//! about to do and what happened instead.
#![allow(clippy::expect_used, reason = "a harness fails its test, there is no one to return to")]
#![forbid(unsafe_code)]

/// The points at which a daemon with failpoints can be made to die.
#[path = "../../v6pod-daemon/src/failpoint/names.rs"]
pub mod failpoints;

mod attacker;
mod browser;
mod command;
mod consul;
mod daemon;
mod dice;
mod footprint;
mod holes;
mod host;
mod http;
mod image;
mod invariants;
mod lan;
mod lanes;
mod machine;
mod medians;
mod namespace;
mod neighbours;
pub mod packet;
mod process;
mod processors;
mod public_dns;
mod sampler;
mod scene;
mod shown;
mod stage;
mod talk;
mod tap;
mod user;
mod whole_host;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use attacker::Attacker;
pub use browser::{Asked, Browser};
pub use command::{Background, Finished, run, run_within};
pub use consul::Consul;
pub use daemon::{Config, Daemon, built};
pub use dice::Dice;
pub use footprint::{Footprint, Place};
pub use holes::{elements_of, open_in_kernel, reach_in_kernel, reach_of};
pub use host::{HostNs, IN_LAN, OUTSIDE_V4, OUTSIDE_V6, PREFIX};
pub use http::{Body, Caller, Response, decode_chunked};
pub use image::IMAGE;
pub use invariants::Invariants;
pub use lan::{Lan, Member};
pub use lanes::side_by_side;
pub use machine::{Machine, Need, schemathesis};
pub use medians::Medians;
pub use namespace::{BareNs, OwnedNs, random_container_id};
pub use neighbours::{Attached, LAWS, Law, Neighbours, Ports, everywhere};
pub use process::{Process, processes};
pub use processors::Halves;
pub use public_dns::PublicDns;
pub use sampler::Sampler;
pub use scene::Scene;
pub use shown::{lasting, shown_address, shown_to_users};
pub use stage::{Stage, Watch};
pub use talk::{Flow, Server, within};
pub use tap::{Frames, Tap};
pub use user::{Container, Runtime, User};
pub use whole_host::{Login, PROGRAMS, Suite, WholeHost};

/// How long a state may take to come about before a test gives up on it. Generous: it is no
/// measurement, only the end of waiting.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer, or panics after `limit` with what was awaited.
#[track_caller]
pub fn eventually<T>(limit: Duration, awaited: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {awaited}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Says that it is over when it goes, also by a panic: a scope waits for all of its threads, and for one that
/// goes on until it is told for ever.
#[derive(Debug)]
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Leaves the test, with a visible reason, unless the machine has what the test needs; otherwise
/// gives the [`Machine`], which the test keeps as long as it runs.
///
/// `let _machine = require!(Podman, Consul);`
#[macro_export]
macro_rules! require {
    ($($need:ident),+ $(,)?) => {{
        fn here() {}
        let name = ::std::any::type_name_of_val(&here).trim_end_matches("::here");
        match $crate::Machine::ready(name, &[$($crate::Need::$need),+]) {
            Some(machine) => machine,
            None => return,
        }
    }};
}
