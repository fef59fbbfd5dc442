//! Attacks 1 to 5: somebody wants what is another's.
//!
//! ```text
//!   host ── v6podd ── v6t0 ── ports
//!     ├── namespaces of v6t1, the attacker     ├── root's     ├── the machine's own
//!     ├── namespaces of v6t2, the victim       └── a subordinate uid's of v6t1
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{chown, symlink};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use v6pod_proto::{Activate, Attachment, AttachmentList, Code, ContainerId, Deactivated};
use v6pod_tests::{
    Background, Body, Config, Ends, HostNs, OwnedNs, Response, Scene, random_container_id, require,
    run,
};

#[track_caller]
fn refused(outcome: &Result<Attachment, Response>, codes: &[Code], what: &str) {
    match outcome {
        Ok(attachment) => panic!("{what} was attached: {attachment:?}"),
        Err(response) => assert!(codes.contains(&response.problem().code), "{what}: {response}"),
    }
}

/// A pair whose far end root puts where he is told, as a daemon does that trusts what it is told.
fn naively_attach(host: &HostNs, pid: u32) {
    host.ip(&format!("link add v6tnaive type veth peer name naive netns {pid}")).ok();
}

#[test]
fn attack_01_nobodys_namespace_but_ones_own_is_attached() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let uid = scene.attacker().uid();
    let subordinate = scene.attacker().subordinate_ids().start;
    let fresh = OwnedNs::new(scene.victim());
    let roots = OwnedNs::of_uid(0, false);
    let roots_own = OwnedNs::of_uid(0, true);
    let subordinates = OwnedNs::of_uid(subordinate, true);

    // The case bites: who only takes what he is given puts an interface there.
    naively_attach(&scene.stage.host, fresh.pid());
    assert!(fresh.run("ip", &["link", "show", "naive"]).status.success());
    scene.stage.host.ip("link del v6tnaive").ok();

    let not_yours = &[Code::NotYours];
    for (what, namespace) in [
        ("the victim's, attached", &scene.victims),
        ("the victim's, not attached", &fresh),
        ("root's", &roots),
        ("root's, of a user namespace", &roots_own),
        ("a subordinate uid's", &subordinates),
    ] {
        refused(&scene.send(uid, namespace.network().as_fd()), not_yours, what);
    }
    let machines = File::open("/proc/self/ns/net").expect("a namespace");
    refused(&scene.send(uid, machines.as_fd()), not_yours, "the machine's");
    let hosts = File::open(scene.stage.host.path()).expect("a namespace");
    let own = &[Code::Impossible, Code::NotYours];
    refused(&scene.send(uid, hosts.as_fd()), own, "the daemon's own");
    refused(&scene.send(0, hosts.as_fd()), &[Code::Impossible], "the daemon's own, by root");
    scene.is_unchanged();
}

#[test]
fn attack_01_a_subordinate_uid_is_no_user() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    // A user has 65,536 of them: each would be a quota of its own.
    let subordinate = scene.attacker().subordinate_ids().start + 7;
    let theirs = OwnedNs::of_uid(subordinate, true);
    refused(&scene.send(subordinate, theirs.network().as_fd()), &[Code::Forbidden], "its own");
    let attackers = OwnedNs::new(scene.attacker());
    refused(
        &scene.send(subordinate, attackers.network().as_fd()),
        &[Code::Forbidden],
        "its user's",
    );
    scene.is_unchanged();
}

#[test]
fn attack_01_what_is_ones_own_in_a_roundabout_way_is_still_ones_own() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let uid = scene.attacker().uid();
    let nested = OwnedNs::nested(scene.attacker());
    let made = scene.send(uid, nested.network().as_fd());
    assert_eq!(made.unwrap_or_else(|refused| panic!("{refused}")).owner.as_raw(), uid);
    drop(nested);
    scene.footprint.comes_back(&scene.stage.daemon);

    // The process that made both is gone; the user namespace lives on in the network's.
    let orphan = OwnedNs::new(scene.attacker());
    let network = orphan.network();
    drop(orphan);
    let made = scene.send(uid, network.as_fd()).unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(made.owner.as_raw(), uid);
    drop(network);
    scene.is_unchanged();
}

#[test]
fn attack_01_root_is_not_led_to_anothers_namespace_by_a_users_files() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let fresh = OwnedNs::new(scene.victim());
    let roots = OwnedNs::of_uid(0, false);
    // root helps the attacker with one of his containers, whose file names another's process.
    for (what, namespace) in [("the victim's", &fresh), ("root's", &roots)] {
        let id = random_container_id();
        scene.attacker().claim(&id, namespace.pid(), namespace.start_time());
        let response = scene.by_id(0, scene.attacker().uid(), &id);
        assert_eq!(response.problem().code, Code::NotFound, "{what}: {response}");
    }
    scene.is_unchanged();
}

#[test]
fn attack_02_no_path_of_a_callers_is_opened() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let attacker = scene.attacker();
    let own = OwnedNs::new(attacker);
    let path = format!("/proc/{}/ns/net", own.pid());
    for field in ["netns", "path", "state", "bundle", "root"] {
        let body = format!(r#"{{"id":"{}","{field}":"{path}"}}"#, random_container_id());
        let caller = scene.stage.daemon.as_user(attacker.uid());
        let response = caller.post("/api/activate", Body::Json(&body));
        assert_eq!(response.problem().code, Code::Malformed, "{field}: {response}");
    }

    // A state file that would do in every respect, but is reached by way of a link.
    let id = random_container_id();
    attacker.claim(&id, own.pid(), own.start_time());
    let folder = attacker.container_folder(&id);
    let aside = attacker.runtime_dir().join("aside");
    let linked = |what: &str, link: &std::path::Path| {
        fs::rename(link, &aside).expect("moving aside");
        symlink(&aside, link).expect("linking");
        // The case bites: root, who only opens, reads it.
        let naive = fs::read_to_string(folder.join("state.json")).expect("reading");
        assert!(naive.contains(id.as_str()));
        let response = scene.attacker_by_id(&id);
        assert_eq!(response.problem().code, Code::NotFound, "{what}: {response}");
        fs::remove_file(link).expect("unlinking");
        fs::rename(&aside, link).expect("moving back");
    };
    linked("the file", &folder.join("state.json"));
    linked("its folder", &folder);
    linked("the runtime's folder", &attacker.runtime_dir().join("runc"));

    // A pipe would hold up who opens it, a file of root's would be read for him.
    let file = folder.join("state.json");
    let text = fs::read_to_string(&file).expect("reading");
    fs::remove_file(&file).expect("removing");
    run(Command::new("mkfifo").arg(&file)).ok();
    chown(&file, Some(attacker.uid()), None).expect("chown");
    assert_eq!(scene.attacker_by_id(&id).problem().code, Code::NotFound, "a pipe");
    fs::remove_file(&file).expect("removing");
    fs::write(&file, &text).expect("writing");
    assert_eq!(scene.attacker_by_id(&id).problem().code, Code::NotFound, "root's file");
    scene.is_unchanged();

    // It was the way, not the content: the same file as it should be is good.
    chown(&file, Some(attacker.uid()), None).expect("chown");
    let attachment: Attachment = scene.attacker_by_id(&id).ok();
    assert_eq!(attachment.owner.as_raw(), attacker.uid());
}

#[test]
fn attack_03_what_is_anothers_is_answered_like_what_is_not_there() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let attacker = scene.attacker();
    let victims_process = {
        let mut command = scene.victim().command("sleep");
        Background::start(command.arg("1000").stdin(Stdio::null()))
    };
    let dead = 4_194_000;
    let roots = OwnedNs::of_uid(0, false);
    let mut cases = vec![("an unknown one", random_container_id())];
    for (what, pid) in [
        ("a container of the victim's", scene.victims.pid()),
        ("a process of the victim's on the host's network", victims_process.pid()),
        ("a process of root's with a network of its own", roots.pid()),
        ("the daemon", scene.stage.daemon.pid()),
        ("a process that is not there", dead),
        ("init", 1),
        ("no process", 0),
    ] {
        let id = random_container_id();
        attacker.claim(&id, pid, 0);
        cases.push((what, id));
    }
    let mut naive = Vec::new();
    for (what, target) in [
        ("a link to a file of root's", "/etc/shadow"),
        ("a link to a file of the victim's", "/run/user/0/x"),
        ("a link to nothing", "/nothing"),
        ("a link to a directory", "/etc"),
    ] {
        let id = random_container_id();
        attacker.claim(&id, 1, 0);
        let file = attacker.container_folder(&id).join("state.json");
        fs::remove_file(&file).expect("removing");
        symlink(target, &file).expect("linking");
        naive
            .push(fs::read(&file).map_or_else(|error| error.kind().to_string(), |_| "read".into()));
        cases.push((what, id));
    }
    // The case bites: who opens them as root and says how it went tells what is there.
    assert_eq!(naive[1], naive[2]);
    assert!(naive[0] != naive[1] && naive[1] != naive[3], "{naive:?}");
    cases.push(("the victim's own", scene.attachment.container.clone()));

    let first = scene.attacker_by_id(&cases[0].1);
    let headers = |response: &Response| {
        let mut all: Vec<_> = response.headers.clone().into_iter().collect();
        all.retain(|(name, _)| name != "date");
        all.sort();
        all
    };
    for (what, id) in &cases {
        let response = scene.attacker_by_id(id);
        let same = (404, &first.body, headers(&first));
        assert_eq!((response.status, &response.body, headers(&response)), same, "{what}");
    }
    let victim = scene.victim().uid();
    for id in [&cases[0].1, &scene.attachment.container] {
        assert_eq!(scene.by_id(attacker.uid(), victim, id).body, first.body);
    }
    scene.is_unchanged();
    report_times(&scene);
}

/// How long the answers about the victim's container take to those about none. Reported; a test
/// must not fail by it.
fn report_times(scene: &Scene) {
    let (uid, victim) = (scene.attacker().uid(), scene.victim().uid());
    let unknown = random_container_id();
    let caller = scene.stage.daemon.as_user(uid);
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..50 {
        let by_id = |id: &ContainerId| drop(scene.by_id(uid, victim, id));
        let show = |reference: &str| drop(caller.get(&format!("/api/attachments/{reference}")));
        let asks: [&dyn Fn(); 4] = [
            &|| by_id(&unknown),
            &|| by_id(&scene.attachment.container),
            &|| show(unknown.as_str()),
            &|| show(scene.attachment.id.as_str()),
        ];
        for (ask, times) in asks.iter().zip(&mut times) {
            let began = Instant::now();
            ask();
            times.push(began.elapsed());
        }
    }
    let [by_no_id, by_id, show_none, show] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    });
    eprintln!(
        "another's to none's, by id: {:.2}; to show: {:.2}",
        by_id / by_no_id,
        show / show_none
    );
}

/// Has the system give this process id to whoever is made next.
fn recycle(pid: u32) {
    fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("ns_last_pid");
}

#[test]
fn attack_04_a_recycled_process_id_leads_nowhere() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let attacker = scene.attacker();
    // A container ends, and another process gets its number: the victim's, or one's own other one.
    for (what, heir) in [("the victim", scene.victim()), ("the attacker himself", attacker)] {
        let id = random_container_id();
        let (ended, heirs) = (0..100)
            .find_map(|_| {
                let ended = OwnedNs::new(attacker);
                let (pid, start_time) = (ended.pid(), ended.start_time());
                drop(ended);
                recycle(pid);
                let heirs = OwnedNs::new(heir);
                // Others make processes too.
                (heirs.pid() == pid && heirs.start_time() != start_time)
                    .then_some((start_time, heirs))
            })
            .expect("a process id came round");
        attacker.claim(&id, heirs.pid(), ended);
        // The case bites: who only trusts the number attaches the heir.
        naively_attach(&scene.stage.host, heirs.pid());
        assert!(heirs.run("ip", &["link", "show", "naive"]).status.success());
        scene.stage.host.ip("link del v6tnaive").ok();
        let response = scene.attacker_by_id(&id);
        assert_eq!(response.problem().code, Code::NotFound, "{what}: {response}");
        assert!(heirs.addresses().is_empty());
    }
    scene.is_unchanged();
}

#[test]
fn attack_04_a_file_that_changes_under_the_reader_leads_nowhere_else() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let attacker = scene.attacker();
    let own = OwnedNs::new(attacker);
    let fresh = OwnedNs::new(scene.victim());
    let id = random_container_id();
    attacker.claim(&id, own.pid(), own.start_time());
    let done = AtomicBool::new(false);
    let mut made = 0;
    thread::scope(|scope| {
        let _over = Ends(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                attacker.claim(&id, fresh.pid(), fresh.start_time());
                attacker.claim(&id, own.pid(), fresh.start_time());
                attacker.claim(&id, 1, 0);
                attacker.claim(&id, own.pid(), own.start_time());
            }
        });
        for _ in 0..200 {
            let response = scene.attacker_by_id(&id);
            if response.status == 200 {
                let attachment: Attachment = response.ok();
                assert_eq!(attachment.owner.as_raw(), attacker.uid());
                made += 1;
                let form = format!("id={id}");
                let caller = scene.stage.daemon.as_user(attacker.uid());
                caller.post("/api/deactivate", Body::Form(&form));
            } else {
                assert!([404, 503].contains(&response.status), "{response}");
            }
        }
    });
    assert!(made > 0, "the right file was never met");
    assert!(fresh.addresses().is_empty());
    scene.is_unchanged();
}

#[test]
fn attack_05_nobody_ends_or_sees_what_is_anothers() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let (attacker, victim) = (scene.attacker().uid(), scene.victim().uid());
    let a = &scene.attachment;
    let caller = scene.stage.daemon.as_user(attacker);
    for form in [
        format!("id={}", a.container),
        format!("user={victim}&id={}", a.container),
        format!("user={attacker}&id={}", a.container),
        format!("user=0&id={}", a.container),
    ] {
        let answer: Deactivated = caller.post("/api/deactivate", Body::Form(&form)).ok();
        assert!(!answer.removed, "{form}");
    }
    let unknown = caller.get("/api/attachments/nothing");
    for reference in
        [a.id.as_str(), &a.id.as_str()[..4], a.container.as_str(), "db", &a.address.to_string()]
    {
        let response = caller.get(&format!("/api/attachments/{reference}"));
        assert_eq!((response.status, &response.body), (404, &unknown.body), "{reference}");
    }
    for query in ["", "?owner=0", &format!("?owner={victim}"), "?name=db"] {
        let list: AttachmentList = caller.get(&format!("/api/attachments{query}")).ok();
        assert!(list.attachments.is_empty(), "{query}");
    }
    // Nor by an attachment of one's own that says it is the same container.
    let own = OwnedNs::new(scene.attacker());
    let request = Activate { name: Some("db".into()), ..Activate::new(a.container.clone()) };
    let (made, _) = caller.activate(&request, own.network().as_fd());
    let made = made.unwrap_or_else(|refused| panic!("{refused}"));
    assert_ne!((&made.id, made.address), (&a.id, a.address));
    let form = format!("id={}", a.container);
    assert!(caller.post("/api/deactivate", Body::Form(&form)).ok::<Deactivated>().removed);
    drop(own);
    scene.is_unchanged();
    // The case bites: it is the caller, not the words. The victim's same ones end it.
    let caller = scene.stage.daemon.as_user(victim);
    assert!(caller.post("/api/deactivate", Body::Form(&form)).ok::<Deactivated>().removed);
}

#[test]
fn attack_05_an_operator_is_named_and_works_on_the_unix_socket_alone() {
    let _machine = require!(Podman);
    let tables = "[limits]\nusers = [\"v6t2\"]\noperators = [\"@v6t1\"]".to_owned();
    let scene = Scene::configured(&Config { tables, ..Config::default() });
    let operator = scene.attacker();
    let caller = scene.stage.daemon.as_user(operator.uid());
    let all: AttachmentList = caller.get("/api/attachments").ok();
    assert_eq!(all.attachments, std::slice::from_ref(&scene.attachment));
    let tcp = run(operator.command("curl").args(["-sS", "http://localhost:6781/api/attachments"]));
    assert_eq!(tcp.ok(), r#"{"attachments":[]}"#);
    // Not listed, and so without attachments of his own.
    let own = OwnedNs::new(operator);
    refused(&scene.send(operator.uid(), own.network().as_fd()), &[Code::Forbidden], "not listed");
    scene.is_unchanged();
    let form = format!("user={}&id={}", scene.victim().uid(), scene.attachment.container);
    assert!(caller.post("/api/deactivate", Body::Form(&form)).ok::<Deactivated>().removed);
}
