//! Issue 3, line 5: v6podd dies at every single failpoint, and after a restart all is in order, whether the
//! bystander's port and the subject's are on the bridge or routed.
//!
//! ```text
//!   host ── v6podd (with failpoints) ✝ at NAME ── v6podd again ── checker
//!     ├── port ── eth0 ┌ bystander ┐   answered before: keeps its address throughout
//!     └── port ── eth0 ┌ subject ┐     what the daemon was at when it died
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::os::fd::AsFd as _;

use v6pod_proto::{Activate, Mode};
use v6pod_tests::failpoints::NAMES;
use v6pod_tests::{
    Body, Config, Daemon, HostNs, Invariants, PATIENCE, eventually, random_container_id, require,
    side_by_side,
};

mod scene;

use scene::{Scene, Subject, UID};

/// How many end at once, so that the daemon takes several away together.
const CROWD: usize = 12;

/// How an attachment ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Deactivated,
    LeaseOver,
    NamespaceGone,
}

fn making(point: &str, mut scene: Scene) {
    let mut subject = scene.subject();
    if point == "making:overflowed" {
        scene.host.fill_the_bridge(&scene.daemon.bridge());
    }
    assert!(scene.dies_at(point));
    match point {
        "making:renamed" => {
            let words = ["link", "add", "eth0", "type", "veth", "peer", "name", "other"];
            subject.namespace.run("ip", &words).ok();
            subject.attach(&scene.daemon);
        }
        "making:failed" => {
            let interface = Some("lo".parse().expect("a link's name"));
            let request = Activate { interface, ..subject.request() };
            subject.ask(&scene.daemon, &request);
        }
        _ => subject.attach(&scene.daemon),
    }
    assert!(subject.answered.is_none(), "it was to die before the answer");
    if point == "making:overflowed" {
        scene.daemon.has_died();
        scene.host.empty_the_bridge();
    }
    scene.recovers(vec![subject], false);
}

fn taking_over(point: &str, mode: Mode) {
    let mut scene = Scene::new(mode);
    let mut subject = Subject::new();
    assert!(scene.dies_at(point));
    subject.attach(&scene.daemon);
    let first = subject.answered.as_ref().expect("the first lease is answered").0;
    subject.attach(&scene.daemon);
    assert_eq!(subject.answered.as_ref().map(|(address, _)| *address), Some(first));
    scene.recovers(vec![subject], false);
}

fn naming(point: &str, mode: Mode) {
    let mut scene = Scene::new(mode);
    let mut subject = Subject::new();
    // The bystander's name is claimed anew by the restart.
    let second = if point == "naming:wished" { point.to_owned() } else { format!("{point}:2") };
    assert!(scene.dies_at(&second));
    let request = Activate { name: Some("web".into()), ..subject.request() };
    subject.ask(&scene.daemon, &request);
    // The name comes behind the answer: it may or may not have arrived.
    scene.recovers(vec![subject], false);
}

/// A member of a pod comes, or goes by its owner's word.
fn membership(point: &str, mode: Mode) {
    let mut scene = Scene::new(mode);
    let mut subject = Subject::new();
    assert!(scene.dies_at(point));
    subject.ask(&scene.daemon, &Activate { name: Some("pod".into()), ..subject.request() });
    assert!(subject.answered.is_some(), "{}", scene.daemon.log());
    let container = random_container_id();
    let (name, pid) = (Some("member".to_owned()), Some(subject.namespace.pid()));
    let word = Activate { name, pid, plug: false, ..Activate::new(container.clone()) };
    let comes = point.starts_with("joining:");
    let body = serde_json::to_string(&word).expect("a request is JSON");
    let network = subject.namespace.network();
    let caller = scene.daemon.as_user(UID);
    let told = caller.try_call("POST", "/api/activate", Body::Json(&body), Some(network.as_fd()));
    // Kept, it would keep the namespace.
    drop(network);
    if !comes {
        assert_eq!(told.expect("an answer").0.status, 200);
        let form = format!("user={UID}&id={container}");
        let _ = caller.try_call("POST", "/api/deactivate", Body::Form(&form), None);
    }
    scene.daemon.has_died();
    // On disk first: who is there is a member once more, and whoever was told to be gone is not.
    scene.daemon.restart();
    let wanted: &[&str] = if comes { &["pod", "member"] } else { &["pod"] };
    eventually(PATIENCE, &format!("it bears {wanted:?}"), || {
        let all = scene.daemon.attachments();
        let it = all.iter().find(|a| a.name.as_deref() == Some("pod"))?;
        let names: Vec<_> = it.names.iter().map(|name| name.name.as_str()).collect();
        (names == wanted && it.members.len() == usize::from(comes)).then_some(())
    });
    scene.daemon.kill9();
    scene.recovers(vec![subject], false);
}

/// What is open changes: by the hook's word, or by the owner's.
fn opening(point: &str, mode: Mode) {
    let mut scene = Scene::new(mode);
    let mut subject = Subject::new();
    subject.attach(&scene.daemon);
    let address = subject.answered.as_ref().expect("an answer").0;
    let open = |daemon: &Daemon| {
        let all = daemon.attachments();
        let it = all.iter().find(|a| a.address == address).expect("it is listed");
        it.openings.iter().map(|open| open.opening.to_string()).collect::<Vec<_>>()
    };
    let change = |daemon: &Daemon, change: &str| {
        let path = format!("/api/attachments/{address}");
        daemon.as_user(UID).try_call("PATCH", &path, Body::Json(change), None)
    };
    let before = r#"{"openings": ["tcp/80", "udp/53@2001:db8::/32"]}"#;
    let after = if point == "opening:described" { vec!["tcp/443"] } else { vec!["udp/53"] };
    if point != "opening:described" {
        let changed = change(&scene.daemon, before);
        assert_eq!(changed.expect("an answer").0.status, 200);
    }
    scene.dies_at(point);
    if point == "opening:described" {
        let annotations = [("v6pod.ingress".to_owned(), "tcp/443".to_owned())].into();
        let word = Activate { annotations, plug: false, lease: false, ..subject.request() };
        let kept = subject.answered.take();
        subject.ask(&scene.daemon, &word);
        assert!(subject.answered.is_none(), "it was to die before the answer");
        subject.answered = kept;
    } else {
        let unanswered = change(&scene.daemon, r#"{"openings": ["udp/53"]}"#);
        assert!(unanswered.is_err(), "it was to die before the answer");
    }
    scene.daemon.has_died();
    // On disk first: what was asked for is what comes back.
    scene.daemon.restart();
    assert_eq!(open(&scene.daemon), after);
    scene.daemon.kill9();
    scene.recovers(vec![subject], false);
}

/// The hook's word brings another address than the first.
fn replacing(point: &str, mode: Mode) {
    let mut scene = Scene::new(mode);
    let mut subject = Subject::new();
    subject.attach(&scene.daemon);
    let (first, lease) = subject.answered.take().expect("an answer");
    scene.dies_at(point);
    let annotations = [("v6pod.address".to_owned(), "stable".to_owned())].into();
    let word = Activate { annotations, plug: false, lease: false, ..subject.request() };
    subject.ask(&scene.daemon, &word);
    assert!(subject.answered.is_none(), "it was to die before the answer");
    scene.daemon.has_died();
    assert!(!subject.namespace.addresses().is_empty(), "{point} took the last address");
    scene.daemon.restart();
    let recorded = matches!(point, "replacing:moved" | "replacing:left");
    let now = eventually(PATIENCE, "it has one address", || {
        let inside = subject.namespace.addresses();
        (inside.len() == 1).then(|| inside[0])
    });
    assert_eq!(now != first, recorded, "{point}: first {first}, now {now}");
    let all = scene.daemon.attachments();
    assert!(all.iter().any(|a| a.address == now), "{point}: {now} is nobody's");
    scene.daemon.kill9();
    subject.answered = Some((now, lease));
    scene.recovers(vec![subject], false);
}

/// The hook's word brings a subnet.
fn giving(point: &str, mode: Mode) {
    let host = HostNs::new();
    let tables = "[addresses]\nwished = [\"*\"]\n".to_owned();
    let config = Config { tables, ..Config::default() }.with_mode(mode);
    let mut daemon = Daemon::configured(&host, &config);
    let mut subject = Subject::new();
    subject.ask(&daemon, &Activate { lease: false, ..subject.request() });
    let (address, _) = *subject.answered.as_ref().expect("an answer");
    daemon.kill9();
    assert!(daemon.restart_to_die_at(point), "{}", daemon.log());
    let annotations = [("v6pod.subnet".to_owned(), "/112".to_owned())].into();
    let word = Activate { annotations, plug: false, lease: false, ..subject.request() };
    subject.ask(&daemon, &word);
    daemon.has_died();
    daemon.restart();
    // What is not recorded as there goes.
    let stays = usize::from(point == "giving:given");
    eventually(PATIENCE, "it has all of it or nothing", || {
        (daemon.the_attachment().subnets.len() == stays).then_some(())
    });
    Invariants::hold(&daemon, &[(&subject.namespace, address)]);
    let local =
        subject.namespace.run("ip", &["-6", "route", "show", "table", "local", "proto", "118"]);
    eventually(PATIENCE, "inside too", || (local.stdout.lines().count() == stays).then_some(()));
    drop(subject);
    eventually(PATIENCE, "its end", || daemon.attachments().is_empty().then_some(()));
    Invariants::hold(&daemon, &[]);
}

fn ending(point: &str, end: End, mut scene: Scene) {
    let mut subject = scene.subject();
    assert!(scene.dies_at(point));
    subject.attach(&scene.daemon);
    assert!(subject.answered.is_some(), "{}", scene.daemon.log());
    // Before the mark is on disk nobody has been told of any end, and the attachment may go on.
    let marked = point != "ending:booked";
    match end {
        End::Deactivated => subject.deactivate(&scene.daemon),
        End::LeaseOver => drop(subject.answered.as_mut().map(|(_, stream)| {
            stream.shutdown(std::net::Shutdown::Both).expect("hanging up");
        })),
        End::NamespaceGone => {
            let Subject { namespace, .. } = subject;
            drop(namespace);
            return scene.recovers(vec![], true);
        }
    }
    scene.recovers(vec![subject], marked);
}

fn ending_together(point: &str, mut scene: Scene) {
    let mut subjects: Vec<_> = (0..CROWD).map(|_| scene.subject()).collect();
    assert!(scene.dies_at(point));
    subjects.iter_mut().for_each(|subject| subject.attach(&scene.daemon));
    assert!(subjects.iter().all(|subject| subject.answered.is_some()));
    std::thread::scope(|scope| {
        subjects.iter().for_each(|subject| {
            scope.spawn(|| subject.deactivate(&scene.daemon));
        });
    });
    // Which of them were still asked for before the death is the daemon's luck.
    subjects.iter_mut().for_each(|subject| subject.answered = None);
    scene.recovers(subjects, false);
}

fn restoring(point: &str, mode: Mode) {
    let mut scene = Scene::new(mode);
    let mut subject = Subject::new();
    subject.attach(&scene.daemon);
    assert!(subject.answered.is_some(), "{}", scene.daemon.log());
    scene.daemon.kill9();
    // One ended while the daemon was away, and something has come that nobody recorded.
    let Subject { namespace, .. } = subject;
    drop(namespace);
    eventually(PATIENCE, "its port is gone", || {
        let links = scene.host.ip("-o link show");
        (links.ok().matches(": v6p").count() == 1).then_some(())
    });
    scene.host.ip("-6 route add 2001:db8:1:2:3::dead dev v6t0 proto 118").ok();
    scene.host.ip("-6 neigh add proxy 2001:db8:1:2:3::dead dev up0 protocol 118").ok();
    assert!(!scene.daemon.restart_to_die_at(point), "{point} was not reached");
    scene.recovers(vec![], true);
}

/// The prefix changes, and nobody has an address of the old one any more.
fn renumbering(point: &str, mode: Mode) {
    const NEW: &str = "2001:db8:1:2:4::/80";

    let host = HostNs::new();
    let keys = "ndp_proxy = true\nrenumber.settle = \"0s\"\nrenumber.grace = \"0s\"\n".to_owned();
    let config = Config { keys, ..Config::default() }.with_mode(mode);
    let mut daemon = Daemon::configured(&host, &config);
    let mut subject = Subject::new();
    subject.ask(&daemon, &Activate { lease: false, ..subject.request() });
    let before = subject.answered.as_ref().expect("an answer").0;
    daemon.kill9();
    assert!(daemon.restart_to_die_at(point), "{}", daemon.log());
    // It may die before it has answered.
    let body = Body::Json(r#"{"prefix": "2001:db8:1:2:4::/80"}"#);
    let _ = daemon.root().try_call("PUT", "/api/prefix", body, None);
    daemon.has_died();
    assert!(!subject.namespace.addresses().is_empty(), "{point} took the last address");
    daemon.restart();
    let now = eventually(PATIENCE, "it has moved", || {
        let all = daemon.attachments();
        all.first().map(|a| a.address).filter(|address| *address != before)
    });
    Invariants::hold(&daemon, &[(&subject.namespace, now)]);
    assert_eq!(daemon.status().prefix.prefix, NEW);
    drop(subject);
    eventually(PATIENCE, "its end", || daemon.attachments().is_empty().then_some(()));
    Invariants::hold(&daemon, &[]);
}

/// Its subnet follows the prefix.
fn following(point: &str, mode: Mode) {
    let host = HostNs::new();
    let keys = "renumber.settle = \"0s\"\nrenumber.grace = \"0s\"\n".to_owned();
    let tables = "[addresses]\nwished = [\"*\"]\n".to_owned();
    let config = Config { keys, tables, ..Config::default() }.with_mode(mode);
    let mut daemon = Daemon::configured(&host, &config);
    let mut subject = Subject { subnet: true, ..Subject::new() };
    subject.ask(&daemon, &Activate { lease: false, ..subject.request() });
    assert!(subject.answered.is_some(), "{}", daemon.log());
    daemon.kill9();
    assert!(daemon.restart_to_die_at(point), "{}", daemon.log());
    let body = Body::Json(r#"{"prefix": "2001:db8:1:2:4::/80"}"#);
    let _ = daemon.root().try_call("PUT", "/api/prefix", body, None);
    daemon.has_died();
    daemon.restart();
    let now = eventually(PATIENCE, "it has moved, and has left nothing behind", || {
        let a = daemon.the_attachment();
        let inside = subject.namespace.addresses() == [a.address];
        let moved = a.subnets.len() == 1 && a.subnets[0].starts_with("2001:db8:1:2:4:");
        (inside && moved).then_some(a)
    });
    Invariants::hold(&daemon, &[(&subject.namespace, now.address)]);
    let local =
        subject.namespace.run("ip", &["-6", "route", "show", "table", "local", "proto", "118"]);
    let local: Vec<_> = local.stdout.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(local, [now.subnets[0].as_str()], "{point}");
    drop(subject);
    eventually(PATIENCE, "its end", || daemon.attachments().is_empty().then_some(()));
    Invariants::hold(&daemon, &[]);
}

/// Whether there is such a point in this mode: the one has no bridge, the other is what becomes of a port for which
/// that has no room.
fn is_of(point: &str, mode: Mode) -> bool {
    let bridges = ["forwarding", "overflowed"].iter().any(|step| point.ends_with(step));
    mode == Mode::Bridge || !bridges
}

/// Each of these points in each mode that has it.
fn points_of(phases: &[&str]) -> impl Iterator<Item = (&'static str, Mode)> {
    let in_phase = |point: &&str| {
        let (phase, _) = point.split_once(':').unwrap_or_default();
        phases.contains(&phase)
    };
    let points = NAMES.iter().copied().filter(in_phase);
    let points: Vec<_> =
        points.flat_map(|p| [Mode::Bridge, Mode::Routed].map(|m| (p, m))).collect();
    points.into_iter().filter(|(point, mode)| is_of(point, *mode))
}

/// Drives the operation that the point is in.
fn drive(point: &str, mode: Mode) {
    let (phase, _) = point.split_once(':').unwrap_or_default();
    eprintln!("    {point}, {mode:?}");
    match phase {
        "making" | "record" => making(point, Scene::new(mode)),
        "takeover" => taking_over(point, mode),
        "naming" => naming(point, mode),
        "joining" | "leaving" => membership(point, mode),
        "opening" => opening(point, mode),
        "ending" => {
            for end in [End::Deactivated, End::LeaseOver, End::NamespaceGone] {
                ending(point, end, Scene::new(mode));
            }
        }
        "undo" => ending(point, End::Deactivated, Scene::new(mode)),
        "sweep" => ending_together(point, Scene::new(mode)),
        "restoring" => restoring(point, mode),
        "renumbering" => renumbering(point, mode),
        "replacing" => replacing(point, mode),
        "giving" => giving(point, mode),
        "following" => following(point, mode),
        _ => panic!("no test drives {point}"),
    }
}

/// Every point of these phases; that each is reached is shown by the daemon's death there.
fn every(phases: &[&str]) {
    side_by_side(points_of(phases), |(point, mode)| drive(point, mode));
}

#[test]
fn every_point_is_in_a_phase_that_is_driven() {
    let known = [
        "making",
        "record",
        "takeover",
        "naming",
        "joining",
        "leaving",
        "opening",
        "ending",
        "undo",
        "sweep",
        "restoring",
        "renumbering",
        "replacing",
        "giving",
        "following",
    ];
    for name in NAMES {
        assert!(known.contains(&name.split(':').next().unwrap_or_default()), "{name}");
    }
}

#[test]
fn dead_while_it_makes_one() {
    let _machine = require!(Root);
    every(&["making", "record"]);
}

#[test]
fn dead_while_another_start_takes_over_or_a_name_is_claimed() {
    let _machine = require!(Root);
    every(&["takeover", "naming"]);
}

#[test]
fn dead_while_a_member_of_a_pod_comes_or_goes() {
    let _machine = require!(Root);
    every(&["joining", "leaving"]);
}

#[test]
fn dead_while_what_is_open_changes() {
    let _machine = require!(Root);
    every(&["opening"]);
}

#[test]
fn dead_while_it_takes_one_away() {
    let _machine = require!(Root);
    every(&["ending", "undo"]);
}

#[test]
fn dead_while_it_takes_many_away() {
    let _machine = require!(Root);
    every(&["sweep"]);
}

#[test]
fn dead_while_the_prefix_changes() {
    let _machine = require!(Root);
    every(&["renumbering"]);
}

#[test]
fn dead_while_an_address_takes_the_place_of_another() {
    let _machine = require!(Root);
    every(&["replacing"]);
}

#[test]
fn dead_while_a_subnet_is_given() {
    let _machine = require!(Root);
    every(&["giving"]);
}

#[test]
fn dead_while_a_subnet_follows_the_prefix() {
    let _machine = require!(Root);
    every(&["following"]);
}

#[test]
fn dead_while_one_with_a_subnet_comes_and_goes() {
    let _machine = require!(Root);
    let phases = ["making", "record", "ending", "undo", "sweep"];
    side_by_side(points_of(&phases), |(point, mode)| {
        eprintln!("    {point}, {mode:?}, with a subnet");
        let scene = Scene::of_subnets(mode);
        match point.split_once(':') {
            Some(("making" | "record", _)) => making(point, scene),
            Some(("ending" | "undo", _)) => ending(point, End::Deactivated, scene),
            _ => ending_together(point, scene),
        }
    });
}

#[test]
fn dead_while_it_comes_back() {
    let _machine = require!(Root);
    every(&["restoring"]);
}
