//! Issue 6: `GET /api/events` and `v6podctl watch`.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use v6pod_proto::{Activate, Event, Happening};
use v6pod_tests::{
    Attached, Caller, Config, Consul, Daemon, HostNs, OwnedNs, PATIENCE, User, built, eventually,
    random_container_id, require, run,
};

/// What somebody is told of, from when he has begun to listen.
struct Watcher {
    events: Receiver<Event>,
    stream: UnixStream,
}

impl Watcher {
    fn new(caller: &Caller) -> Self {
        let stream = ask(caller);
        let (send, events) = channel();
        let mut lines =
            BufReader::new(stream.try_clone().expect("duplicating a descriptor")).lines();
        let first = lines.next().expect("an answer").expect("an answer");
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
        // The first thing that is sent: from then on nothing is missed.
        let begun = lines.by_ref().map_while(Result::ok).any(|line| line == ": v6podd");
        assert!(begun, "it does not begin");
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some(data) = line.strip_prefix("data: ") else { continue };
                let event = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e} in {data}"));
                if send.send(event).is_err() {
                    return;
                }
            }
        });
        Self { events, stream }
    }

    /// Waits for this to happen to this name. What else happens before is passed over.
    #[track_caller]
    fn sees(&self, what: Happening, name: &str) -> Event {
        loop {
            let event = self.events.recv_timeout(PATIENCE);
            let event = event.unwrap_or_else(|e| panic!("{what:?} {name}: {e}"));
            if event.event == what && event.name.as_deref() == Some(name) {
                return event;
            }
        }
    }

    fn all(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }
}

fn ask(caller: &Caller) -> UnixStream {
    let mut stream = caller.connect().expect("the daemon listens");
    stream
        .write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("the daemon reads");
    stream
}

fn named(name: &str) -> [(&'static str, &str); 1] {
    [("v6pod.name", name)]
}

#[test]
fn everything_that_happens_is_told_to_whose_it_is() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let mut consul = Consul::start(&host);
    let mut daemon = Daemon::configured(&host, &Config { consul: true, ..Config::default() });
    let [alice, bob] = [1, 2].map(|number| User::account(number, &host));
    let [root, hers, his] =
        [0, alice.uid(), bob.uid()].map(|uid| Watcher::new(&daemon.as_user(uid)));

    // A name is told under the container's, which is not known here; then under its own.
    let first = Attached::asking(&daemon, &alice, &named("web"));
    for watcher in [&root, &hers] {
        let registered = watcher.sees(Happening::Registered, "web");
        assert_eq!(registered.address, Some(first.address()));
        assert_eq!(registered.owner.map(|owner| owner.as_raw()), Some(alice.uid()));
    }
    let second = Attached::asking(&daemon, &bob, &named("web"));
    let conflict = his.sees(Happening::Conflict, "web");
    assert!(conflict.note.expect("why").contains("another owner's container"));
    let suffixed = format!("web-u{}", bob.uid());
    assert_eq!(his.sees(Happening::Registered, &suffixed).address, Some(second.address()));
    let shown = daemon.as_user(bob.uid()).get("/api/attachments/web").status;
    assert_eq!(shown, 404, "another's name is not his");

    // Consul forgets, and is told again.
    consul.kill9();
    consul.start_up();
    hers.sees(Happening::Lost, "web");
    hers.sees(Happening::Repaired, "web");
    his.sees(Happening::Repaired, &suffixed);

    // Its end; and whom the name goes to.
    let gone = first.attachment.id.clone();
    drop(first);
    let promoted = his.sees(Happening::Registered, "web");
    assert_eq!(promoted.attachment, Some(second.attachment.id.clone()));
    let released = eventually(PATIENCE, "its end is told", || {
        let all = hers.all();
        all.into_iter().find(|e| e.event == Happening::Released)
    });
    assert_eq!(released.attachment, Some(gone));

    // The firewall is nobody's.
    run(host.command("nft").args(["delete", "table", "inet", &daemon.table()])).ok();
    eventually(PATIENCE, "a repair is told", || {
        root.all().into_iter().find(|e| e.event == Happening::Repaired && e.owner.is_none())
    });
    let mine = |watcher: &Watcher, uid: u32| {
        let whose = |e: &Event| e.owner.map(|owner| owner.as_raw());
        assert!(watcher.all().iter().all(|e| whose(e) == Some(uid)));
    };
    mine(&hers, alice.uid());
    mine(&his, bob.uid());

    // A daemon that stops ends it, and does not wait.
    daemon.stop();
    for watcher in [root, hers, his] {
        eventually(PATIENCE, "the connection is closed", || {
            let read = watcher.stream.try_clone().expect("duplicating a descriptor");
            let _ = read.set_nonblocking(true);
            let mut buffer = [0; 1024];
            matches!(std::io::Read::read(&mut &read, &mut buffer), Ok(0)).then_some(())
        });
    }
}

#[test]
fn attack_26_who_watches_too_often_or_never_reads_keeps_nobody() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let [alice, bob] = [1, 2].map(|number| User::account(number, &host));
    let caller = daemon.as_user(alice.uid());
    // These never read what they are told.
    let deaf: Vec<UnixStream> = (0..8).map(|_| ask(&caller)).collect();
    eventually(PATIENCE, "she has all that she may have", || {
        (caller.get("/api/attachments").status == 200).then_some(())?;
        let mut answer = String::new();
        let _ = BufReader::new(ask(&caller)).read_line(&mut answer);
        answer.starts_with("HTTP/1.1 429").then_some(())
    });
    let before = daemon.descriptors();
    let his = Watcher::new(&daemon.as_user(bob.uid()));
    for n in 0..200 {
        let namespace = OwnedNs::new(&alice);
        let annotations = BTreeMap::from([("v6pod.name".to_owned(), format!("n{n}"))]);
        let request = Activate { annotations, lease: true, ..Activate::new(random_container_id()) };
        let (made, lease) = caller.activate(&request, namespace.network().as_fd());
        assert!(made.is_ok());
        drop(lease);
    }
    let attached = Attached::asking(&daemon, &bob, &named("his"));
    his.sees(Happening::Registered, "his");
    drop((attached, deaf));
    // Who hangs up has his place again.
    eventually(PATIENCE, "there is a place again", || {
        let mut answer = String::new();
        let _ = BufReader::new(ask(&caller)).read_line(&mut answer);
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
    drop(his);
    eventually(PATIENCE, "nothing stays open", || (daemon.descriptors() < before).then_some(()));
}

#[test]
fn v6podctl_watch_prints_a_line_for_each_event() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let user = User::account(1, &host);
    let mut command = Command::new(built("v6podctl"));
    command.arg("--socket").arg(daemon.socket()).arg("watch").stdout(Stdio::piped());
    let mut child = command.spawn().expect("starting v6podctl");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // It says nothing when it begins, so something is done until it has heard of it.
    let (send, told) = channel();
    thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| send.send(line)));
    let attached = eventually(PATIENCE, "it tells", || {
        let attached = Attached::asking(&daemon, &user, &named("web"));
        let line = told.recv_timeout(std::time::Duration::from_millis(500)).ok()?;
        assert!(line.starts_with("attached    "), "{line}");
        Some(attached)
    });
    let registered = format!("registered  web  {}  uid {}", attached.address(), user.uid());
    eventually(PATIENCE, "the name is told", || {
        told.try_iter().any(|line| line == registered).then_some(())
    });
    // The pipe's other end goes, and so does it when it has more to say.
    drop(told);
    drop(attached);
    let ended = eventually(PATIENCE, "it ends", || {
        drop(Attached::new(&daemon, &user));
        child.try_wait().ok().flatten()
    });
    assert!(ended.success(), "who has seen enough is no failure: {ended}");
}
