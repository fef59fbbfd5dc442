//! Issue 5: past the 1,023 ports of a bridge, and thousands that are routed.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0 ── 1,023 ports ── eth0 ┌ namespace ┐ …
//!                          └── routed ports ── eth0 ┌ namespace ┐ …
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::File;
use std::io::{Read, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use v6pod_proto::{Activate, Attachment, Capacity, Mode};
use v6pod_tests::packet::{IPV6, Route, frame};
use v6pod_tests::{
    BareNs, Body, Config, Daemon, Finished, HostNs, Invariants, OUTSIDE_V6, PATIENCE, Tap,
    eventually, random_container_id, require, run,
};

/// How many more than a bridge takes.
const MORE: usize = 7;
const BRIDGE: usize = 1023;

/// Many: more than the machine's table of neighbours takes of others (`gc_thresh3`, 1024).
const MANY: usize = 5000;

/// So many when the daemon is started again under traffic.
const RESTARTED: usize = 1000;

/// The most memory for that many, in KiB.
const MEMORY: u64 = 32 << 10;

/// How long one TCP stream is measured, and how often: the best counts, as nothing makes one too fast.
const STREAM: Duration = Duration::from_millis(300);
const STREAMS: usize = 10;

/// How many activations a median is taken of.
const TIMED: usize = 40;

/// A host, its daemon, and containers of root's.
struct Crowd {
    living: Vec<(BareNs, Attachment)>,
    daemon: Daemon,
    host: HostNs,
}

impl Crowd {
    #[track_caller]
    fn new(mode: Mode) -> Self {
        // A descriptor for each namespace, as many as the daemon has.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("asking for a limit");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raising a limit");
        let tables = "[limits]\nper_owner = 10000\n".to_owned();
        let config = Config { tables, ..Config::default() }.with_mode(mode);
        let host = HostNs::new();
        Self { living: Vec::new(), daemon: Daemon::configured(&host, &config), host }
    }

    /// One more; how long its activation took.
    #[track_caller]
    fn grow(&mut self) -> Duration {
        let (namespace, request) = (BareNs::new(), Activate::new(random_container_id()));
        let (root, began) = (self.daemon.root(), Instant::now());
        let (made, _) = root.activate(&request, namespace.as_fd());
        let took = began.elapsed();
        self.living.push((namespace, made.unwrap_or_else(|refused| panic!("{refused}"))));
        took
    }

    #[track_caller]
    fn grow_to(&mut self, count: usize) {
        while self.living.len() < count {
            self.grow();
        }
    }

    /// The median of some activations, of which none is left.
    #[track_caller]
    fn median(&mut self) -> Duration {
        let mut all: Vec<_> = (0..TIMED).map(|_| self.grow()).collect();
        for (_, made) in self.living.split_off(self.living.len() - TIMED) {
            let form = format!("id={}", made.container);
            let answer = self.daemon.root().post("/api/deactivate", Body::Form(&form));
            assert_eq!(answer.status, 200, "{answer}");
        }
        let left = self.living.len();
        eventually(PATIENCE, "they have left", || {
            (self.daemon.attachments().len() == left).then_some(())
        });
        all.sort_unstable();
        all[TIMED / 2]
    }

    fn modes(&self) -> (usize, usize) {
        let all = self.daemon.attachments();
        let routed = all.iter().filter(|a| a.mode == Mode::Routed).count();
        (all.len() - routed, routed)
    }

    /// Every one of them answers an echo request from the outside.
    #[track_caller]
    fn all_are_reached(&self) {
        let tap = Tap::open(&open(&self.host.outside_path()), "out0");
        let uplink = Tap::open(&open(&self.host.path()), "up0").mac();
        let outside: Ipv6Addr = OUTSIDE_V6.parse().expect("an address");
        let mark = |to: Ipv6Addr| [b"v6t-", &to.octets()[..]].concat();
        let send = |to: Ipv6Addr, data: &[u8]| {
            let route = Route::new(outside, to);
            tap.send(&frame(uplink, tap.mac(), IPV6, &route.carry(&route.echo(data))));
        };
        for some in self.living.chunks(100) {
            for (_, made) in some {
                send(made.address, &mark(made.address));
            }
            // Not in this order: who is on the bridge has to ask for the gateway first.
            tap.frames_with_each(some.iter().map(|(_, made)| mark(made.address)).collect());
        }
    }

    fn inside(&self, which: usize, program: &str, words: &[&str]) -> Finished {
        let (me, fd) = (std::process::id(), self.living[which].0.as_fd().as_raw_fd());
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net=/proc/{me}/fd/{fd}")).arg("--").arg(program).args(words);
        run(&mut command)
    }

    #[track_caller]
    fn reaches(&self, from: usize, to: usize) {
        let to = self.living[to].1.address.to_string();
        self.inside(from, "ping", &["-c", "1", "-W", "10", &to]).ok();
    }

    /// Bytes a second that the first of them sends to the outside by TCP.
    #[track_caller]
    fn stream(&self) -> f64 {
        let outside = open(&self.host.outside_path());
        let listener = entered(&outside, || TcpListener::bind((OUTSIDE_V6, 0)));
        let listener = listener.expect("a listener");
        let to = listener.local_addr().expect("its address");
        let one = || {
            let client = entered(&self.living[0].0, || TcpStream::connect(to));
            let (mut client, (mut server, _)) =
                (client.expect("a connection"), listener.accept().expect("a connection"));
            thread::scope(|scope| {
                let sink = scope.spawn(move || {
                    let mut buffer = vec![0; 1 << 17];
                    let mut all = 0;
                    while let Ok(length @ 1..) = server.read(&mut buffer) {
                        all += length;
                    }
                    all
                });
                let (began, chunk) = (Instant::now(), vec![0; 1 << 17]);
                while began.elapsed() < STREAM {
                    client.write_all(&chunk).expect("sending");
                }
                drop(client);
                sink.join().expect("the other end") as f64 / began.elapsed().as_secs_f64()
            })
        };
        (0..STREAMS).map(|_| one()).fold(0.0, f64::max)
    }

    /// The daemon ends and is started again while the outside pings the first of them; until it serves
    /// again. No packet may be lost.
    #[track_caller]
    fn restart_unnoticed(&mut self) -> Duration {
        let address = self.living[0].1.address.to_string();
        let mut ping = self.host.outside("ping");
        ping.args(["-q", "-i", "0.01", "-W", "5", "-c", "300", &address]);
        thread::scope(|scope| {
            let pinged = scope.spawn(move || run(&mut ping));
            thread::sleep(Duration::from_millis(300));
            self.daemon.kill9();
            let began = Instant::now();
            self.daemon.restart_release();
            let took = began.elapsed();
            let said = pinged.join().expect("pinging");
            assert!(said.ok().contains(" 0% packet loss"), "{said}");
            took
        })
    }

    fn metric(&self, series: &str) -> Option<String> {
        let text = String::from_utf8(self.daemon.root().get("/metrics").body).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(str::to_owned)
    }
}

#[test]
fn the_1024th_port_is_routed_and_nobody_notices() {
    let _machine = require!(Root);
    let mut crowd = Crowd::new(Mode::Bridge);
    let before = crowd.daemon.footprint();
    crowd.grow_to(BRIDGE + MORE);
    assert_eq!(crowd.modes(), (BRIDGE, MORE));
    let (first, last) = (0, BRIDGE + MORE - 1);
    let modes = [first, last].map(|which| crowd.living[which].1.mode);
    assert_eq!(modes, [Mode::Bridge, Mode::Routed]);
    Invariants::hold(&crowd.daemon, &[]);
    crowd.all_are_reached();
    for (from, to) in [(first, last), (last, first), (last, last - 1), (first, first + 1)] {
        crowd.reaches(from, to);
    }
    // What is said of it.
    let capacity: Capacity = crowd.daemon.root().get("/api/capacity").ok();
    assert!(capacity.more > 1000, "{capacity:?}");
    assert!(capacity.limits.iter().all(|limit| limit.name != "bridge-ports"), "{capacity:?}");
    let status = crowd.daemon.status();
    assert_eq!((status.mode, status.counts.routed), (Mode::Bridge, MORE as u64));
    for (mode, count) in [("bridge", BRIDGE), ("routed", MORE)] {
        let series = format!("v6pod_attachments{{mode=\"{mode}\"}}");
        assert_eq!(crowd.metric(&series), Some(count.to_string()), "{series}");
    }
    // After a restart too.
    crowd.daemon.kill9();
    crowd.daemon.restart();
    assert_eq!(crowd.modes(), (BRIDGE, MORE));
    Invariants::hold(&crowd.daemon, &[]);
    crowd.all_are_reached();
    crowd.living.clear();
    before.comes_back(&crowd.daemon);
}

#[test]
fn a_bridge_that_others_have_filled_is_no_hindrance() {
    let _machine = require!(Root);
    let mut crowd = Crowd::new(Mode::Bridge);
    let before = crowd.daemon.footprint();
    crowd.host.fill_the_bridge(&crowd.daemon.bridge());
    crowd.grow_to(3);
    assert_eq!(crowd.modes(), (0, 3));
    Invariants::hold(&crowd.daemon, &[]);
    crowd.all_are_reached();
    // With room again, the next is on the bridge.
    crowd.host.empty_the_bridge();
    crowd.grow();
    assert_eq!(crowd.modes(), (1, 3));
    crowd.all_are_reached();
    crowd.reaches(3, 0);
    crowd.daemon.kill9();
    crowd.daemon.restart();
    Invariants::hold(&crowd.daemon, &[]);
    crowd.living.clear();
    before.comes_back(&crowd.daemon);
}

/// All that the budgets say of many. Of times it only prints what they were.
#[track_caller]
fn thousands(mode: Mode) {
    let mut crowd = Crowd::new(mode);
    crowd.daemon.replace_by_release();
    let before = crowd.daemon.footprint();
    crowd.grow_to(10);
    let (few, few_stream) = (crowd.median(), crowd.stream());
    crowd.grow_to(RESTARTED);
    let restart = crowd.restart_unnoticed();
    crowd.grow_to(MANY);
    let memory = crowd.daemon.resident();
    let (many, many_stream) = (crowd.median(), crowd.stream());
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    eprintln!("{mode:?}: activate, p50: {few:?} at 10, {many:?} at {MANY}: {ratio:.2} times");
    let ratio = many_stream / few_stream;
    eprintln!("TCP to the outside: {few_stream:.3e} B/s at 10, {ratio:.2} times that at {MANY}");
    eprintln!("resident memory: {memory} KiB; restart with {RESTARTED}: {restart:?}");
    assert!(memory <= MEMORY, "{memory} KiB");
    let bridged = if mode == Mode::Bridge { BRIDGE } else { 0 };
    assert_eq!(crowd.modes(), (bridged, MANY - bridged));
    Invariants::hold(&crowd.daemon, &[]);
    crowd.all_are_reached();
    crowd.reaches(0, MANY - 1);
    // Entries that are permanent are not among those that the machine has room for.
    let table = run(crowd.host.command("ip").args(["-6", "neigh", "show", "nud", "permanent"]));
    assert_eq!(table.ok().lines().count(), MANY);
    crowd.daemon.kill9();
    crowd.daemon.restart_release();
    assert_eq!(crowd.modes(), (bridged, MANY - bridged));
    crowd.all_are_reached();
    crowd.living.clear();
    before.comes_back_within(6 * PATIENCE, &crowd.daemon);
}

#[test]
fn five_thousand_on_the_bridge_and_then_routed_ports_are_all_reached() {
    let _machine = require!(Root);
    thousands(Mode::Bridge);
}

#[test]
fn five_thousand_on_routed_ports_are_all_reached() {
    let _machine = require!(Root);
    thousands(Mode::Routed);
}

#[test]
fn a_routed_port_has_the_mtu_that_is_told_to_senders() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let config = Config { keys: "mtu = 1400\n".to_owned(), ..Config::default() };
    let daemon = Daemon::configured(&host, &config.with_mode(Mode::Routed));
    let mut crowd = Crowd { living: Vec::new(), daemon, host };
    crowd.grow();
    let links = crowd.inside(0, "ip", &["-o", "link", "show", "eth0"]);
    assert!(links.ok().contains("mtu 1400 "), "{links}");
    let port = crowd.living[0].1.port.as_str();
    assert!(crowd.host.ip(&format!("-o link show {port}")).ok().contains("mtu 1400 "));
    let address = crowd.living[0].1.address.to_string();
    let large = ["-c", "1", "-W", "10", "-M", "do", "-s", "1440", &address];
    let refused = run(crowd.host.outside("ping").args(large));
    assert!(!refused.status.success(), "{refused}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("1400"), "{said}");
    // Whoever may cut it in pieces is heard.
    run(crowd.host.outside("ping").args(["-c", "1", "-W", "10", "-s", "4000", &address])).ok();
}

#[track_caller]
fn open(path: &std::path::Path) -> File {
    File::open(path).expect("a namespace")
}

/// What the body gives in that network namespace: a socket stays there.
fn entered<T: Send>(namespace: &(impl AsFd + Sync), body: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        body()
    };
    thread::scope(|scope| scope.spawn(inside).join()).expect("a thread in a namespace")
}
