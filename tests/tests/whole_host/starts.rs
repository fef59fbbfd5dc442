//! The service's starts: again and again, with what cannot be read, with sockets that do not match, and after a
//! daemon that hangs.

use std::net::Ipv6Addr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use v6pod_tests::{Background, IMAGE, Login, PATIENCE, WholeHost, eventually, require};

use super::{comes_and_goes, configure, installed};

/// How often the daemon is started again while containers come and go.
const RESTARTS: usize = 50;

/// How many descriptors the daemon has open.
#[track_caller]
fn descriptors(host: &WholeHost) -> usize {
    let pid = host.property("v6podd.service", "MainPID");
    host.sh(&format!("ls /proc/{pid}/fd | wc -l")).ok().parse().expect("a number")
}

/// Rounds of pings between two containers, until a file is there.
struct Pings {
    process: Background,
    log: String,
}

impl Pings {
    fn start(host: &WholeHost, from: u32, to: Ipv6Addr) -> Self {
        let log = host.file("/run/pings").display().to_string();
        let script = format!(
            "while [ ! -e /run/enough ]; do \
             ping -q -c 50 -i 0.02 -W 10 {to} >>/run/pings; done"
        );
        let mut command = host.command("nsenter");
        command.args([&format!("--net=/proc/{from}/ns/net"), "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { process: Background::start(&mut command), log }
    }

    #[track_caller]
    fn lost_nothing(mut self, host: &WholeHost) {
        host.sh("touch /run/enough").ok();
        self.process.wait_within(Duration::from_secs(60));
        let log = std::fs::read_to_string(&self.log).expect("reading a file");
        let rounds = log.matches("packets transmitted").count();
        assert!(rounds > 0 && log.matches(" 0% packet loss").count() == rounds, "{log}");
    }
}

#[test]
fn fifty_restarts_refuse_nobody_lose_nothing_and_leak_nothing() {
    let _machine = require!(WholeHost);
    let host = installed();
    let (anna, bert) = (host.log_in("anna"), host.log_in("bert"));
    let (before, descriptors) = (host.footprint(), descriptors(&host));
    let (one, two) = (anna.sleeper("one", &[]), bert.sleeper("two", &[]));
    let pings = Pings::start(&host, anna.pid("one"), bert.attachment(&two).address);
    let addresses = [anna.attachment(&one).address, bert.attachment(&two).address];

    let over = AtomicBool::new(false);
    let started = thread::scope(|scope| {
        let come_and_go = |user: &Login<'_>| {
            let mut started = 0;
            while !over.load(Ordering::Relaxed) {
                comes_and_goes(user);
                started += 1;
            }
            started
        };
        let threads = [&anna, &bert].map(|user| scope.spawn(move || come_and_go(user)));
        let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..RESTARTS {
                if threads.iter().any(ScopedJoinHandle::is_finished) {
                    // One of them has panicked: what the journal said last is about that.
                    break;
                }
                host.systemctl("restart v6podd.service").ok();
            }
        }));
        over.store(true, Ordering::Relaxed);
        let started = threads.map(|thread| thread.join().expect("a container without its address"));
        restarted.expect("restarting");
        started.iter().sum::<usize>()
    });
    assert!(started > 1, "no container came during the restarts");
    pings.lost_nothing(&host);
    let now = [anna.attachment(&one).address, bert.attachment(&two).address];
    assert_eq!(now, addresses);
    anna.remove(&["one"]);
    bert.remove(&["two"]);
    before.comes_back(&host);
    eventually(PATIENCE, "as many descriptors as at first", || {
        (descriptors == self::descriptors(&host)).then_some(())
    });
}

#[test]
fn a_bad_configuration_is_not_tried_for_ever() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    configure(&host, "[limits]\nper_owner = \"many\"\n");
    host.systemctl("restart v6podd.service").fails();
    assert_eq!(host.property("v6podd.service", "ExecMainStatus"), "78");
    let rests = || {
        eventually(PATIENCE, "the service rests", || {
            (host.property("v6podd.service", "ActiveState") == "failed").then_some(())
        });
    };
    // Who calls is turned away, and a container starts without an address.
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
    for to in ["--unix-socket /run/v6pod/v6pod.sock http://localhost", "http://[::1]:6781"] {
        rests();
        let ask = format!("curl -sS -w ' %{{http_code}} %{{content_type}}' {to}/api/status");
        let said = user.run("sh", &["-c", &ask]);
        assert!(said.ok().ends_with(" 503 application/problem+json"), "{said}");
        assert!(said.ok().contains("does not start"), "{said}");
    }
    rests();
    assert_eq!(host.property("v6podd.service", "NRestarts"), "0");
    let journal = host.journal("v6podd.service");
    // Once by the administrator, for the container once by what stands in for slirp4netns and once by the hook
    // when it starts, and once for each other client.
    let starts = journal.matches("per_owner").count();
    assert_eq!(starts, 5, "{journal}");

    // What cannot be had on this host is no better than what cannot be read.
    host.sh("ip -6 route add 2001:db8:5::/64 dev lo").ok();
    host.write("/etc/v6pod/v6pod.toml", "prefix = \"2001:db8:5::/80\"\n");
    host.systemctl("restart v6podd.service").fails();
    assert_eq!(host.property("v6podd.service", "ExecMainStatus"), "78");
    user.podman(&["run", "--rm", IMAGE, "true"]).ok();
    rests();
    assert_eq!(host.property("v6podd.service", "NRestarts"), "0");

    configure(&host, "");
    host.systemctl("restart v6podd.service").ok();
    comes_and_goes(&user);
}

#[test]
fn sockets_that_do_not_match_the_configuration_are_named() {
    let _machine = require!(WholeHost);
    let host = installed();
    configure(&host, "[api]\ntcp = [\"127.0.0.1:6781\", \"[::1]:6782\"]\n");
    host.systemctl("restart v6podd.service").ok();
    let journal = host.journal("v6podd.service");
    let line = |what: &str| journal.lines().find(|line| line.contains(what)).unwrap_or_default();
    for line in [line("listens at [::1]:6781,"), line("does not listen at [::1]:6782,")] {
        assert!(line.contains("systemctl edit v6podd.socket"), "{journal}");
    }
    // It serves there all the same.
    host.sh("curl -sS --fail http://[::1]:6782/healthz").ok();
    // As the log says.
    let listens = ["", "/run/v6pod/v6pod.sock", "127.0.0.1:6781", "[::1]:6782"];
    let text = listens.map(|address| format!("ListenStream={address}\n")).concat();
    host.write("/etc/systemd/system/v6podd.socket.d/override.conf", &format!("[Socket]\n{text}"));
    host.sh("journalctl --rotate && journalctl --vacuum-time=1s").ok();
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.socket").ok();
    host.sh("curl -sS --fail http://[::1]:6782/healthz").ok();
    let journal = host.journal("v6podd.service");
    assert!(journal.contains("serves at") && !journal.contains("v6podd.socket"), "{journal}");
}

#[test]
fn a_daemon_that_hangs_or_is_killed_is_started_again() {
    let _machine = require!(WholeHost);
    let host = installed();
    let user = host.log_in("anna");
    let container = user.sleeper("c", &[]);
    let address = user.attachment(&container).address;
    let drop_in = "/etc/systemd/system/v6podd.service.d/watchdog.conf";
    host.write(drop_in, "[Service]\nWatchdogSec=2\n");
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.service").ok();
    for signal in ["STOP", "KILL"] {
        let before = host.property("v6podd.service", "MainPID");
        host.sh(&format!("kill -{signal} {before}")).ok();
        eventually(PATIENCE, "another daemon", || {
            let now = host.property("v6podd.service", "MainPID");
            (now != before && now != "0").then_some(())
        });
        comes_and_goes(&user);
        assert_eq!(user.attachment(&container).address, address);
    }
}
