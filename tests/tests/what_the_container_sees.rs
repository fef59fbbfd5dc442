//! Issue 2, line 2: inside the container there is exactly one global IPv6 address, and it works.
//!
//! ```text
//!   outside  2001:db8:ffff::1, 198.51.100.1 ── httpd :8000
//!      │
//!   host     2001:db8:ffff::2 ── v6podd ── v6t0
//!      ├── port ── eth0 ┌ web (v6t1) ┐ tap0 ── slirp4netns
//!      └── port ── eth0 ┌ other (v6t2) ┐ tap0 ── slirp4netns
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::process::Stdio;

use v6pod_tests::{
    Background, Config, HostNs, OUTSIDE_V4, OUTSIDE_V6, PATIENCE, Stage, eventually, require, run,
};

/// A line of `/proc/net/if_inet6`.
struct Address {
    address: Ipv6Addr,
    prefix_length: u8,
    scope: u8,
    flags: u8,
    interface: String,
}

/// `RT_SCOPE_UNIVERSE` as that file shows it.
const GLOBAL: u8 = 0;
/// `IFA_F_TENTATIVE`, linux/if_addr.h.
const TENTATIVE: u8 = 0x40;

fn hex_address(digits: &str) -> Ipv6Addr {
    u128::from_str_radix(digits, 16).expect("32 hex digits").into()
}

fn addresses(if_inet6: &str) -> Vec<Address> {
    let byte = |digits| u8::from_str_radix(digits, 16).expect("two hex digits");
    let lines = if_inet6.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter_map(|words| match words[..] {
            [address, _, prefix_length, scope, flags, interface] => Some(Address {
                address: hex_address(address),
                prefix_length: byte(prefix_length),
                scope: byte(scope),
                flags: byte(flags),
                interface: interface.to_owned(),
            }),
            _ => None,
        })
        .collect()
}

/// The gateways of the IPv6 default routes, with their interface, from `/proc/net/ipv6_route`.
fn default_gateways(ipv6_route: &str) -> Vec<(Ipv6Addr, String)> {
    let lines = ipv6_route.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|words| words.len() == 10 && words[9] != "lo")
        .filter(|words| hex_address(words[0]).is_unspecified() && words[1] == "00")
        .map(|words| (hex_address(words[4]), words[9].to_owned()))
        .collect()
}

/// A web server in the outside, and what it logs.
fn outside_web_server(host: &HostNs, root: &std::path::Path) -> Background {
    fs::write(root.join("index.html"), "outside\n").expect("writing a page");
    let log = File::create(root.join("log")).expect("making a log");
    let mut httpd = host.outside("busybox");
    httpd.args(["httpd", "-f", "-v", "-p", "8000", "-h"]).arg(root);
    httpd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let server = Background::start(&mut httpd);
    eventually(PATIENCE, "the outside's web server listens", || {
        let url = format!("http://{OUTSIDE_V4}:8000/");
        run(host.command("curl").args(["-sS", "-m", "5", &url])).status.success().then_some(())
    });
    server
}

#[test]
fn one_global_address_and_a_default_route_at_the_first_instruction() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let status = stage.daemon.status();
    let seen = stage.user().run(&[], &["cat", "/proc/net/if_inet6", "/proc/net/ipv6_route"]);
    let seen = seen.ok();

    let all = addresses(seen);
    let global: Vec<_> = all.iter().filter(|a| a.scope == GLOBAL).collect();
    assert_eq!(global.len(), 1, "{seen}");
    let one = global[0];
    assert_eq!((one.interface.as_str(), one.prefix_length), ("eth0", 128), "{seen}");
    assert_eq!(one.address.segments()[..5], [0x2001, 0xdb8, 1, 2, 3], "{seen}");
    assert_ne!(one.address, status.gateway, "the gateway's own address was given away");
    assert_eq!(one.flags & TENTATIVE, 0, "it still waits for duplicate address detection: {seen}");

    assert_eq!(default_gateways(seen), [(status.gateway, "eth0".to_owned())], "{seen}");
}

#[test]
fn a_router_advertisement_or_redirect_changes_nothing_inside() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let read = "cd /proc/sys/net/ipv6/conf/eth0 && cat accept_ra autoconf accept_redirects";
    assert_eq!(stage.user().run(&[], &["sh", "-c", read]).ok(), "0\n0\n0");
}

#[test]
fn ipv4_is_what_it_was() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let root = tempfile::tempdir().expect("a directory");
    let _server = outside_web_server(&stage.host, root.path());
    // Addresses, routes, name servers and a page.
    let script = format!(
        "ip -4 -o addr show dev tap0 | cut -d: -f2; ip -4 route; cat /etc/resolv.conf; \
         wget -qO- http://{OUTSIDE_V4}:8000/"
    );
    let with = stage.user().run(&[], &["sh", "-c", &script]).ok().to_owned();
    stage.user().use_plain();
    let without = stage.user().run(&[], &["sh", "-c", &script]).ok().to_owned();
    assert!(with.ends_with("outside"), "{with}");
    assert_eq!(with, without);
}

#[test]
fn it_goes_out_with_its_own_address() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let root = tempfile::tempdir().expect("a directory");
    let _server = outside_web_server(&stage.host, root.path());
    let container = stage.user().sleeper("client");
    let address = stage.daemon.the_attachment().address;
    let url = format!("http://[{OUTSIDE_V6}]:8000/");
    assert_eq!(container.exec(&["wget", "-qO-", &url]).ok(), "outside");
    let log = fs::read_to_string(root.path().join("log")).expect("reading the log");
    assert!(log.contains(&format!("[{address}]")), "{log}");
}

#[test]
fn the_host_the_outside_and_another_users_container_reach_it() {
    let _machine = require!(Podman);
    // Between users, and from the outside, only what is opened passes, and nothing opens ports yet.
    let open = Config { tables: Config::OPEN.to_owned(), ..Config::default() };
    let stage = Stage::on(HostNs::new(), &open, 2);
    let serve = "mkdir /www && echo inside >/www/index.html && exec httpd -f -p 80 -h /www";
    stage.users[0].start("web", &[], &["sh", "-c", serve]);
    let address = stage.daemon.the_attachment().address;
    let url = format!("http://[{address}]/");
    let curl = ["-sS", "--globoff", "-m", "10", "--retry", "5", "--retry-connrefused", &url];
    assert_eq!(run(stage.host.command("curl").args(curl)).ok(), "inside");
    assert_eq!(run(stage.host.outside("curl").args(curl)).ok(), "inside");
    let other = stage.users[1].run(&[], &["wget", "-qO-", &url]);
    assert_eq!(other.ok(), "inside");
}

#[test]
fn an_address_that_nobody_has_is_unreachable_at_once() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    // No route back to the outside, no neighbour entry waiting: the host itself answers.
    let ping = ["-c", "1", "-W", "10", "2001:db8:1:2:3::dead"];
    let refused = run(stage.host.outside("ping").args(ping));
    assert!(refused.stdout.contains("unreachable"), "{refused}");
    let neighbours = stage.host.ip("-6 neigh show");
    assert!(!neighbours.ok().contains("::dead"), "{neighbours}");
}
