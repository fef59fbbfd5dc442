//! Issue 7: the provider delegates prefixes by DHCPv6, and its lease changes to another one.
//!
//! ```text
//!   outside (the provider): dhcpd -6 and radvd on out0, routes what it delegates to the host
//!      │
//!   host: up0 ── one of ── containers
//!           dhclient -6 -P ── exit hook ── v6podctl prefix set ── v6podd
//!           systemd-networkd, on a Debian that is booted ── unreachable route ── v6podd
//!           NetworkManager, on one that is booted ── dispatcher script ── v6podctl prefix set ── v6podd
//! ```
#![allow(clippy::expect_used, reason = "a test")]

mod booted;
mod dhclient;
mod networkd;
mod networkmanager;
mod provider;

use std::fs::File;
use std::net::Ipv6Addr;
use std::time::Duration;

use v6pod_tests::{Flow, eventually};

use provider::LEASE;

/// How long an old address stays valid.
const GRACE: Duration = Duration::from_secs(8);

/// Within this the names point to the new address.
const NAMED: Duration = Duration::from_secs(5);

/// The last /80 of what is delegated first, and then.
const FIRST: &str = "2001:db8:a:ff:ffff::/80";
const SECOND: &str = "2001:db8:b:ff:ffff::/80";

/// Whether it is in one of those, whose third word is this.
fn is_of(address: Ipv6Addr, third: u16) -> bool {
    address.segments()[..3] == [0x2001, 0xdb8, third]
}

/// Waits until this gives an address that begins with these words.
#[track_caller]
fn moved(third: u16, mut now: impl FnMut() -> Ipv6Addr) -> Ipv6Addr {
    let ask = || Some(now()).filter(|address| is_of(*address, third));
    eventually(LEASE, "it has an address of the prefix", ask)
}

fn is_reached(outside: &File, address: Ipv6Addr) -> bool {
    Flow::tcp(outside, (address, 8080)).is_some_and(|mut flow| flow.is_answered())
}
