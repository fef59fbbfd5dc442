//! Issue 3, crash safety: what lies in the run directory is not trusted, and a machine that runs out of
//! something gets no half attachments.
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use v6pod_proto::{Activate, Attachment, Mode};
use v6pod_tests::{
    Body, Config, Daemon, Footprint, HostNs, Invariants, OwnedNs, PATIENCE, Response, eventually,
    random_container_id, require, run,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;

fn attach(daemon: &Daemon, namespace: &OwnedNs) -> Result<Attachment, Response> {
    let request = Activate::new(random_container_id());
    let network: File = namespace.network();
    daemon.as_user(UID).activate(&request, network.as_fd()).0
}

#[track_caller]
fn attached(daemon: &Daemon) -> (OwnedNs, Attachment) {
    let namespace = OwnedNs::of_uid(UID, true);
    let made = attach(daemon, &namespace);
    (namespace, made.unwrap_or_else(|refused| panic!("{refused}")))
}

/// A daemon, and containers that it serves.
struct Serving {
    living: Vec<(OwnedNs, Attachment)>,
    before: Footprint,
    daemon: Daemon,
    host: HostNs,
}

impl Serving {
    #[track_caller]
    fn some(count: usize) -> Self {
        Self::on(Mode::Bridge, count)
    }

    #[track_caller]
    fn on(mode: Mode, count: usize) -> Self {
        let host = HostNs::new();
        let daemon = Daemon::configured(&host, &Config::default().with_mode(mode));
        let before = daemon.footprint();
        let living = (0..count).map(|_| attached(&daemon)).collect();
        Self { living, before, daemon, host }
    }

    /// Every container has its address, and there is no other.
    #[track_caller]
    fn all_is_well(&self) {
        let living = self.living.iter().map(|(namespace, a)| (namespace, a.address));
        Invariants::hold(&self.daemon, &living.collect::<Vec<_>>());
    }

    /// They end, and nothing is left of them.
    #[track_caller]
    fn end(self) {
        drop(self.living);
        self.before.comes_back(&self.daemon);
    }
}

fn deactivate(daemon: &Daemon, attachment: &Attachment) {
    let form = format!("user={UID}&id={}", attachment.container);
    let response = daemon.as_user(UID).post("/api/deactivate", Body::Form(&form));
    assert_eq!(response.status, 200, "{response}");
}

fn record(daemon: &Daemon, attachment: &Attachment) -> PathBuf {
    daemon.run_dir().join(format!("attachments/{}.json", attachment.id))
}

/// A record like that one, of another id and port, with some of it changed.
fn forge(daemon: &Daemon, like: &Attachment, id: &str, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(record(daemon, like)).expect("reading a record");
    let mut value: Value = serde_json::from_str(&text).expect("a record is JSON");
    value["id"] = id.into();
    value["port"]["name"] = format!("v6p{}", &id[..12]).into();
    change(&mut value);
    let path = daemon.run_dir().join(format!("attachments/{id}.json"));
    fs::write(path, value.to_string()).expect("writing a file");
}

#[test]
fn records_that_are_none_are_put_aside_and_reported_and_harm_nobody() {
    let _machine = require!(Root);
    let mut serving = Serving::some(2);
    let Serving { daemon, living, .. } = &mut serving;
    let (first, second) = (&living[0].1, &living[1].1);
    daemon.kill9();

    let folder = daemon.run_dir().join("attachments");
    let whole = fs::read(record(daemon, first)).expect("reading a record");
    let file = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("writing");
    file("garbage.json", b"\0\xff{");
    file("empty.json", b"");
    file("cut.json", &whole[..whole.len() / 2]);
    file("large.json", &vec![b' '; 1 << 20]);
    let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(|digit| digit.repeat(32));
    forge(daemon, first, &a, |record| record["version"] = 99.into());
    // Each of them claims something of the first one's; the last a link of the host's own.
    forge(daemon, first, &b, |record| record["port"]["mac"] = "02:00:00:00:00:99".into());
    let elsewhere = "2001:db8:1:2:3::99";
    forge(daemon, first, &c, |record| record["port"]["address"] = elsewhere.into());
    forge(daemon, first, &d, |record| {
        record["port"]["address"] = elsewhere.into();
        record["port"]["mac"] = "02:00:00:00:00:99".into();
        record["port"]["name"] = "up0".into();
    });
    fs::create_dir_all(folder.join("dir.json/within")).expect("making a folder");
    std::os::unix::fs::symlink(record(daemon, second), folder.join(format!("{e}.json")))
        .expect("making a link");
    run(Command::new("mkfifo").arg(folder.join("pipe.json"))).ok();

    daemon.restart();
    serving.all_is_well();
    let Serving { daemon, host, .. } = &serving;
    assert!(host.ip("link show up0").status.success(), "the uplink was taken for a port");
    let rejected = fs::read_dir(daemon.run_dir().join("rejected")).expect("reading").count();
    assert_eq!(rejected, 11, "{}", daemon.log());
    assert_eq!(daemon.log().matches("put aside a file that is no record").count(), 11);
    serving.end();
}

#[test]
fn what_was_removed_stays_removed_though_the_daemon_dies_at_once() {
    let _machine = require!(Root);
    let mut serving = Serving::some(1);
    let Serving { daemon, living, before, .. } = &mut serving;
    deactivate(daemon, &living[0].1);
    daemon.kill9();
    daemon.restart();
    assert_eq!(daemon.attachments(), []);
    before.comes_back(daemon);
}

#[test]
fn a_released_address_rests_over_restarts() {
    let _machine = require!(Root);
    let host = HostNs::new();
    // Room for fourteen.
    let prefix = "2001:db8:1:2:3::/124".to_owned();
    let mut daemon = Daemon::configured(&host, &Config { prefix, ..Config::default() });
    let mut seen: Vec<Ipv6Addr> = Vec::new();
    for round in 0..12 {
        let (namespace, attachment) = attached(&daemon);
        assert!(!seen.contains(&attachment.address), "{} was used before", attachment.address);
        seen.push(attachment.address);
        match round % 3 {
            // Gone while the daemon runs, is dead, or has only just been told.
            0 => {
                drop(namespace);
                eventually(PATIENCE, "it is gone", || {
                    daemon.attachments().is_empty().then_some(())
                });
                daemon.kill9();
            }
            1 => {
                daemon.kill9();
                drop(namespace);
            }
            _ => {
                deactivate(&daemon, &attachment);
                daemon.kill9();
            }
        }
        daemon.restart();
        eventually(PATIENCE, "all of them rest", || {
            (daemon.status().counts.resting == seen.len() as u64).then_some(())
        });
    }
    // No other is left after two more: the longest-rested yields.
    let last: Vec<_> = (0..3).map(|_| attached(&daemon)).collect();
    assert_eq!(last[2].1.address, seen[0]);
}

/// A file system of this size in place of a directory, until it is dropped.
struct Small(PathBuf);

impl Small {
    fn at(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).expect("making a folder");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=128k", "v6x"]).arg(&dir)).ok();
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn a_full_disk_refuses_and_leaves_nothing_and_hinders_no_end() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let mut daemon = Daemon::prepared(&host, &Config::default());
    let disk = Small::at(daemon.run_dir());
    daemon.restart();
    let before = daemon.footprint();
    let (namespace, attachment) = attached(&daemon);
    let ballast = daemon.run_dir().join("ballast");
    let mut file = File::create(&ballast).expect("making a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    for _ in 0..3 {
        let refused = attach(&daemon, &OwnedNs::of_uid(UID, true)).expect_err("there is no room");
        let problem = refused.problem();
        assert!([500, 507].contains(&problem.status), "{refused}");
        assert!(!refused.to_string().contains('/'), "a path: {refused}");
    }
    Invariants::hold(&daemon, &[(&namespace, attachment.address)]);
    // Dead and back on a full disk.
    daemon.kill9();
    daemon.restart();
    Invariants::hold(&daemon, &[(&namespace, attachment.address)]);
    deactivate(&daemon, &attachment);
    before.comes_back(&daemon);
    fs::remove_file(&ballast).expect("making room");
    let (_namespace, attachment) = attached(&daemon);
    Invariants::hold(&daemon, &[(&_namespace, attachment.address)]);
    drop(_namespace);
    before.comes_back(&daemon);
    daemon.stop();
    drop(disk);
}

#[test]
fn without_descriptors_it_refuses_and_works_again_once_there_are_some() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let before = daemon.footprint();
    let (namespace, attachment) = attached(&daemon);
    let limit = |count: usize| {
        let limit = format!("--nofile={count}:");
        run(Command::new("prlimit").arg(format!("--pid={}", daemon.pid())).arg(limit)).ok();
    };
    limit(daemon.descriptors() + 2);
    let others: Vec<_> = (0..4).map(|_| OwnedNs::of_uid(UID, true)).collect();
    let idle: Vec<_> = (0..8).filter_map(|_| UnixStream::connect(daemon.socket()).ok()).collect();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            others.iter().map(|other| scope.spawn(|| attach(&daemon, other))).collect();
        // Whoever is not refused is kept waiting.
        let complains = |log: String| log.contains("Too many open files") || log.contains("EMFILE");
        eventually(PATIENCE, "it is out of descriptors", || complains(daemon.log()).then_some(()));
        drop(idle);
        limit(4096);
        asked.into_iter().map(|asked| asked.join().expect("an answer")).collect()
    });
    let mut living = vec![(&namespace, attachment.address)];
    for (other, answer) in others.iter().zip(answers) {
        match answer {
            Ok(made) => living.push((other, made.address)),
            Err(refused) => assert!([500, 503].contains(&refused.problem().status), "{refused}"),
        }
    }
    Invariants::hold(&daemon, &living);
    let another = OwnedNs::of_uid(UID, true);
    let made = attach(&daemon, &another).unwrap_or_else(|refused| panic!("{refused}"));
    Invariants::hold(&daemon, &[&living[..], &[(&another, made.address)]].concat());
    drop(another);
    drop((namespace, others));
    before.comes_back(&daemon);
}

#[test]
fn an_end_that_the_kernel_could_not_tell_is_seen_all_the_same() {
    let _machine = require!(Root);
    let mut serving = Serving::some(2);
    let Serving { daemon, host, living, .. } = &mut serving;
    daemon.pause();
    // More events than the daemon's socket has room for, and among them the one that counts.
    let mut flood = Command::new("nsenter")
        .arg(format!("--net={}", host.path().display()))
        .args(["--", "ip", "-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("starting ip");
    let mut lines = String::new();
    for n in 0..30_000 {
        lines.push_str(&format!("link set up0 alias x{n}\n"));
    }
    flood.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("writing to ip");
    assert!(flood.wait().expect("waiting for ip").success());
    living.truncate(1);
    eventually(PATIENCE, "its port is gone", || {
        (host.ip("-o link show").ok().matches(": v6p").count() == 1).then_some(())
    });
    // Inode, drops: the last two columns but one.
    let table = run(host.command("cat").arg("/proc/net/netlink"));
    let lost = table
        .ok()
        .lines()
        .skip(1)
        .any(|line| line.split_whitespace().nth(8).is_some_and(|drops| drops != "0"));
    assert!(lost, "nothing was lost:\n{table}");
    daemon.resume();
    serving.all_is_well();
    serving.end();
}

#[test]
fn what_somebody_flushes_or_deletes_under_running_containers_comes_back() {
    let _machine = require!(Root);
    let mut serving = Serving::some(2);
    // At once, by its event.
    serving.host.ip("link del v6t0").ok();
    serving.all_is_well();
    // At the next look, which a restart is.
    for harm in ["-6 route flush dev v6t0 proto 118", "-6 neigh flush dev v6t0 nud permanent"] {
        serving.daemon.kill9();
        serving.host.ip(harm).ok();
        serving.daemon.restart();
        serving.all_is_well();
    }
    serving.daemon.kill9();
    serving.host.ip("link del v6t0").ok();
    serving.daemon.restart();
    serving.all_is_well();
    serving.end();
}

#[test]
fn what_somebody_takes_from_running_containers_on_routed_ports_comes_back() {
    let _machine = require!(Root);
    let mut serving = Serving::on(Mode::Routed, 2);
    let port = serving.living[0].1.port.to_string();
    // At once, by its event, though nobody is on the bridge.
    serving.host.ip("link del v6t0").ok();
    serving.all_is_well();
    serving.host.ip("link add v6tother type bridge").ok();
    for harm in [
        format!("-6 route flush dev {port} proto 118"),
        format!("-6 neigh flush dev {port} nud permanent"),
        format!("link set {port} master v6tother"),
        format!("link set {port} master v6t0"),
    ] {
        serving.daemon.kill9();
        serving.host.ip(&harm).ok();
        serving.daemon.restart();
        serving.all_is_well();
    }
    serving.host.ip("link del v6tother").ok();
    // Whose port somebody deletes has no attachment any more.
    serving.host.ip(&format!("link del {port}")).ok();
    serving.living.remove(0);
    serving.all_is_well();
    serving.end();
}

/// Who is there when the mode is changed stays as he is; who comes has what is wanted now.
#[test]
fn a_change_of_mode_leaves_those_who_are_there_as_they_are() {
    let _machine = require!(Root);
    let mut serving = Serving::on(Mode::Bridge, 1);
    for mode in [Mode::Routed, Mode::Bridge, Mode::Routed] {
        serving.daemon.kill9();
        serving.daemon.reconfigure(&Config::default().with_mode(mode));
        serving.daemon.restart();
        serving.all_is_well();
        let made = attached(&serving.daemon);
        assert_eq!((made.1.mode, serving.daemon.status().mode), (mode, mode));
        serving.living.push(made);
        serving.all_is_well();
    }
    let routed = serving.living.iter().filter(|(_, a)| a.mode == Mode::Routed).count();
    assert_eq!((routed, serving.daemon.status().counts.routed), (2, 2));
    // Everybody reaches everybody, and is reached.
    for (from, _) in &serving.living {
        for (_, to) in &serving.living {
            from.run("ping", &["-c", "1", "-W", "10", &to.address.to_string()]).ok();
        }
    }
    for (_, to) in &serving.living {
        let ping = ["-c", "1", "-W", "10", &to.address.to_string()];
        run(serving.host.outside("ping").args(ping)).ok();
    }
    serving.end();
}
