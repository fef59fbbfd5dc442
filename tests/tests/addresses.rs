//! Issue 7: which address a container gets that asks for one: the same at each start, or a certain one; and
//! owners that have a part of the prefix each.
//!
//! ```text
//!   podman → shim: plugs, a random address ──┐
//!          → hook: v6pod.address=stable ─────┴▶ v6podd ── /var/lib/v6pod/{secret,slices}
//!   container: one address, before its first instruction
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use v6pod_proto::{Activate, Attachment, ContainerId};
use v6pod_tests::{
    Body, Config, HostNs, OwnedNs, PATIENCE, Response, Stage, User, eventually,
    random_container_id, require, run,
};

const STABLE: &str = "--annotation=v6pod.address=stable";

/// Asks for a container of this name in this namespace, by its owner, with these annotations.
fn ask(
    stage: &Stage,
    namespace: &OwnedNs,
    name: &str,
    annotations: &[(&str, &str)],
) -> Result<Attachment, Response> {
    let pairs = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let request = Activate {
        name: Some(name.to_owned()),
        annotations: pairs.collect(),
        ..Activate::new(random_container_id())
    };
    let caller = stage.daemon.as_user(namespace.uid());
    caller.activate(&request, namespace.network().as_fd()).0
}

#[track_caller]
fn granted(asked: Result<Attachment, Response>) -> Ipv6Addr {
    asked.unwrap_or_else(|refused| panic!("{refused}")).address
}

#[track_caller]
fn refused(asked: Result<Attachment, Response>, status: u16, why: &str) {
    let refused = asked.expect_err("it was granted");
    assert_eq!(refused.status, status, "{refused}");
    let said = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(said.contains(why), "{said}");
}

fn stage(addresses: &str, users: u8) -> Stage {
    let tables = format!("[addresses]\n{addresses}\n");
    Stage::on(HostNs::new(), &Config { tables, ..Config::default() }, users)
}

/// What a container of this user's, started like this, has inside at its first instruction.
#[track_caller]
fn first_seen(user: &User, options: &[&str]) -> Vec<String> {
    let shown = user.run(options, &["cat", "/proc/net/if_inet6"]);
    let lines = shown.ok().lines().map(str::to_owned).collect::<Vec<_>>();
    // Neither the loopback's own nor what an interface makes for itself.
    lines.into_iter().filter(|line| line.starts_with("2001")).collect()
}

#[test]
fn a_stable_address_is_the_same_at_each_start_and_the_only_one_from_the_first_instruction_on() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(1);
    stage.user().use_hook(&stage.daemon.socket());
    let before = stage.daemon.footprint();
    let mut seen = HashSet::new();
    for order in [&[][..], &["--userns=keep-id"]] {
        let options = [&[STABLE][..], order].concat();
        let start = |stage: &Stage| {
            let container = stage.user().start("web", &options, &["sleep", "1000"]);
            let address = stage.daemon.the_attachment().address;
            let inside = OwnedNs::of_container(&container, stage.user()).addresses();
            assert_eq!(inside, [address]);
            (container.remove(), address).1
        };
        seen.insert(start(&stage));
        // Another container of that name, at once.
        seen.insert(start(&stage));
        // The same one, started again.
        let container = stage.users[0].start("web", &options, &["sleep", "1000"]);
        stage.user().podman(&["restart", "-t", "0", "web"]).ok();
        let again = eventually(PATIENCE, "it is back", || {
            let all = stage.daemon.attachments();
            (all.len() == 1).then(|| all[0].address)
        });
        assert_eq!(OwnedNs::of_container(&container, stage.user()).addresses(), [again]);
        seen.insert(again);
        stage.daemon.kill9();
        stage.daemon.restart();
        seen.insert(stage.daemon.the_attachment().address);
        container.remove();
        seen.insert(start(&stage));
        let named = [&["--rm", "--name=web"], &options[..]].concat();
        assert_eq!(first_seen(stage.user(), &named).len(), 1);
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    // One that asks for nothing is elsewhere.
    let other = stage.users[0].start("web", &[], &["sleep", "1000"]);
    assert!(!seen.contains(&stage.daemon.the_attachment().address));
    other.remove();
    before.comes_back(&stage.daemon);
}

#[test]
fn a_wished_address_is_given_to_whom_the_administrator_lets_ask_and_to_one_at_a_time() {
    let _machine = require!(Podman);
    let stage = stage("wished = [\"v6t1\"]", 2);
    let [alice, bob] = &stage.users[..] else { unreachable!("two users") };
    let wish = [("v6pod.address", "::42")];
    let [first, second] = [OwnedNs::new(alice), OwnedNs::new(alice)];
    let made = ask(&stage, &first, "web", &wish).unwrap_or_else(|refused| panic!("{refused}"));
    assert!(made.address.to_string().ends_with("::42"), "{}", made.address);
    assert_eq!(first.addresses(), [made.address]);
    refused(ask(&stage, &second, "web", &wish), 422, "is taken, or rests");
    assert!(second.addresses().is_empty());

    let bobs = OwnedNs::new(bob);
    refused(ask(&stage, &bobs, "web", &wish), 422, "addresses.wished");
    refused(ask(&stage, &bobs, "web", &[("v6pod.address", "::43")]), 422, "addresses.wished");
    // What everybody may.
    granted(ask(&stage, &bobs, "web", &[("v6pod.address", "stable")]));

    // Over TCP, where a container may speak with its user's uid, nobody at all.
    let body = format!(
        r#"{{"user": {}, "id": "{}", "annotations": {{"v6pod.address": "stable"}}}}"#,
        alice.uid(),
        random_container_id()
    );
    let mut curl = alice.command("curl");
    curl.args(["-sS", "-m", "20", "-H", "Content-Type: application/json", "-d", &body]);
    let answer = run(curl.arg("http://localhost:6781/api/activate"));
    assert!(answer.ok().contains("addresses chosen, over the unix socket alone"), "{answer}");

    // Whose it was gets it again at once.
    let caller = stage.daemon.as_user(alice.uid());
    let answer = caller.post("/api/deactivate", Body::Form(&format!("id={}", made.container)));
    assert_eq!(answer.status, 200, "{answer}");
    assert_eq!(granted(ask(&stage, &second, "web", &wish)), made.address);
}

#[test]
fn podman_says_why_a_container_does_not_start_that_asks_for_what_it_may_not() {
    let _machine = require!(Podman);
    let stage = stage("wished = []", 1);
    stage.user().use_hook(&stage.daemon.socket());
    let before = stage.daemon.footprint();
    for order in [&[][..], &["--userns=keep-id"]] {
        let options = [&["--rm", "--annotation=v6pod.address=::42"], order].concat();
        let said = stage.user().run(&options, &["true"]);
        assert!(said.fails().contains("addresses.wished"), "{said}");
        // A label is no reason not to start, and changes nothing here.
        let options = [&["--rm", "--label=v6pod.address=::42"], order].concat();
        let seen = first_seen(stage.user(), &options);
        assert!(seen.len() == 1 && !seen[0].contains("00000042 "), "{seen:?}");
    }
    before.comes_back(&stage.daemon);
}

/// Has podman's list of this user's containers be this, in one step.
fn list(user: &User, content: &str) {
    // Of a driver that nobody here has.
    let folder = ".local/share/containers/storage/btrfs-containers";
    let script = format!(
        "mkdir -p {folder} && cat >{folder}/new && mv {folder}/new {folder}/containers.json"
    );
    let mut command = user.command("sh");
    let mut shell = command
        .args(["-c", &format!("cd {} && {script}", user.home().display())])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut stdin = shell.stdin.take().expect("its stdin");
    stdin.write_all(content.as_bytes()).expect("writing a list");
    drop(stdin);
    assert!(shell.wait().expect("its end").success());
}

#[test]
fn a_stable_address_does_not_become_another_because_podmans_list_cannot_be_read() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let user = stage.user();
    let caller = stage.daemon.as_user(user.uid());
    // Without a word about its name: that stands in the list.
    let word = |plug: bool, id: &ContainerId| Activate {
        plug,
        annotations: [("v6pod.address".to_owned(), "stable".to_owned())].into(),
        ..Activate::new(id.clone())
    };
    let named = |id: &ContainerId| format!(r#"[{{"id":"{id}","names":["web"]}}]"#);
    let unread = |id: &ContainerId| format!("{}{}", named(id), " ".repeat(1 << 20));
    let over = || {
        eventually(PATIENCE, "it is over", || stage.daemon.attachments().is_empty().then_some(()));
    };
    let (first, id) = (OwnedNs::new(user), random_container_id());
    list(user, &named(&id));
    let there = granted(caller.activate(&word(true, &id), first.network().as_fd()).0);
    drop(first);
    over();

    for plugged in [false, true] {
        let (namespace, id) = (OwnedNs::new(user), random_container_id());
        let network = namespace.network();
        list(user, &unread(&id));
        if plugged {
            // By a network program that knows no more than the id.
            granted(caller.activate(&Activate::new(id.clone()), network.as_fd()).0);
        }
        let before = namespace.addresses();
        let asked = || caller.activate(&word(!plugged, &id), network.as_fd()).0;
        refused(asked(), 503, "podman's files could not be read");
        assert_eq!(namespace.addresses(), before);
        // The list becomes readable while it is waited for, or before it is looked at at all.
        let answer = std::thread::scope(|scope| {
            let waiting = scope.spawn(asked);
            std::thread::sleep(Duration::from_millis(500));
            list(user, &named(&id));
            waiting.join().expect("an answer")
        });
        assert_eq!(granted(answer), there);
        assert_eq!(namespace.addresses(), [there]);
        drop((network, namespace));
        over();
    }
}

/// A container that had any address, and the refusal that it got when it asked for a stable one: the daemon was
/// stopped when its record said what comes, and could not write the next one.
fn caught(stage: &Stage) -> Option<(OwnedNs, Attachment, Activate, Response)> {
    let namespace = OwnedNs::new(stage.user());
    let made = ask(stage, &namespace, "web", &[]).unwrap_or_else(|refused| panic!("{refused}"));
    let folder = stage.daemon.run_dir().join("attachments");
    let record = folder.join(format!("{}.json", made.id));
    let comes =
        || fs::read_to_string(&record).is_ok_and(|text| text.contains("\"role\":\"coming\""));
    let annotations = [("v6pod.address".to_owned(), "stable".to_owned())].into();
    let word = Activate { plug: false, annotations, ..Activate::new(made.container.clone()) };
    let caller = stage.daemon.as_user(namespace.uid());
    let (caught, answer) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| caller.activate(&word, namespace.network().as_fd()).0);
        while !comes() && !asked.is_finished() {}
        stage.daemon.pause();
        // Where the next record is written before it takes the place of this one.
        let beside = folder.join(format!(".{}", made.id));
        let caught = comes() && fs::create_dir(beside).is_ok();
        stage.daemon.resume();
        (caught, asked.join().expect("an answer"))
    });
    caught.then(|| (namespace, made, word, answer.expect_err("it was granted")))
}

#[test]
fn where_no_record_can_say_that_an_address_has_arrived_the_first_one_stays() {
    let _machine = require!(Root);
    let mut stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    for restarted in [true, false] {
        // Stopped in time: luck, so as often as it takes.
        let found = (0..50).find_map(|_| caught(&stage));
        let (namespace, first, word, refusal) = found.expect("it was never stopped in time");
        assert_eq!(refusal.status, 500, "{refusal}");
        assert!(namespace.addresses().contains(&first.address), "{:?}", namespace.addresses());
        if restarted {
            stage.daemon.kill9();
            stage.daemon.restart();
            eventually(PATIENCE, "it has its first address alone", || {
                (namespace.addresses() == [first.address]).then_some(())
            });
        } else {
            let beside = stage.daemon.run_dir().join(format!("attachments/.{}", first.id));
            fs::remove_dir(beside).expect("making room");
        }
        let own = |all: Vec<Attachment>| all.into_iter().find(|a| a.id == first.id);
        assert_eq!(own(stage.daemon.attachments()).map(|a| a.address), Some(first.address));
        // Who asks again is served, or told that he is not.
        let caller = stage.daemon.as_user(namespace.uid());
        let now = eventually(PATIENCE, "it has what it asks for", || {
            caller.activate(&word, namespace.network().as_fd()).0.ok()
        });
        assert_ne!(now.address, first.address, "{now:?}");
        assert_eq!(namespace.addresses(), [now.address]);
        drop(namespace);
        before.comes_back(&stage.daemon);
    }
}

/// An image that asks for an address by an annotation of its manifest.
const BUILD: &str = "printf 'FROM localhost/v6test\\n' | podman build --quiet --format oci \
     --annotation v6pod.address=::42 --tag localhost/bearing -f - .";

#[test]
fn attack_22_an_image_chooses_no_address_also_if_nobody_can_tell_it_from_its_user() {
    let _machine = require!(Podman);
    let stage = stage("wished = [\"*\"]", 1);
    let user = stage.user();
    user.use_hook(&stage.daemon.socket());
    let before = stage.daemon.footprint();
    run(user.command("sh").args(["-c", BUILD])).ok();
    let start = |options: &[&str]| {
        let words =
            [&["run", "--detach", "--name=c"], options, &["localhost/bearing", "sleep", "1000"]];
        user.podman(&words.concat()).ok();
        let attachment = stage.daemon.the_attachment();
        user.podman(&["rm", "-f", "-t", "0", "c"]).ok();
        attachment
    };
    let is_random = |attachment: &Attachment| {
        let host = attachment.address.to_bits() & ((1 << 48) - 1);
        attachment.wishes.address.is_none() && host != 0x42 && host != 0x43
    };
    let images = start(&[]);
    assert!(is_random(&images), "{images:?}");
    let users = start(&["--annotation=v6pod.address=::43"]);
    assert!(users.address.to_string().ends_with("::43"), "{users:?}");

    // Whoever reads podman's files is too late: all that is known is the annotation, whosever it is.
    fs::write(user.wishes(), "#!/bin/sh\nexec sleep 1000\n").expect("writing a file");
    fs::set_permissions(user.wishes(), fs::Permissions::from_mode(0o755)).expect("chmod");
    for options in [&[][..], &["--annotation=v6pod.address=::43"]] {
        for order in [&[][..], &["--userns=keep-id"]] {
            let doubtful = start(&[options, order].concat());
            assert!(is_random(&doubtful), "{options:?} {order:?}: {doubtful:?}");
            assert!(doubtful.found.image_annotations.address.is_some(), "{doubtful:?}");
        }
    }
    before.comes_back(&stage.daemon);
}

#[test]
fn every_owner_has_a_slice_of_his_own_also_after_a_restart() {
    let _machine = require!(Podman);
    let mut stage = stage("per_owner = \"/96\"\nwished = [\"*\"]", 3);
    let slice = |address: Ipv6Addr| address.to_bits() >> 32;
    let mut slices = Vec::new();
    let mut kept = Vec::new();
    for restarted in [false, true] {
        if restarted {
            stage.daemon.kill9();
            stage.daemon.restart();
        }
        for (n, user) in stage.users.iter().enumerate() {
            let wishes = [&[][..], &[("v6pod.address", "stable")], &[("v6pod.address", "::42")]];
            // The certain one is still the first's after the restart.
            for wish in wishes.iter().take(if restarted { 2 } else { 3 }) {
                let namespace = OwnedNs::new(user);
                let address = granted(ask(&stage, &namespace, "web", wish));
                if slices.len() == n {
                    slices.push(slice(address));
                }
                assert_eq!(slice(address), slices[n], "{address}");
                kept.push(namespace);
            }
        }
    }
    let different: HashSet<_> = slices.iter().collect();
    assert_eq!(different.len(), 3);
}

#[test]
fn what_was_asked_for_keeps_its_host_part_when_the_prefix_changes_and_has_it_at_the_next_start() {
    let _machine = require!(Podman);
    let tables = "[addresses]\nwished = [\"*\"]\n[renumber]\nsettle = \"0s\"\ngrace = \"0s\"\n";
    let config = Config { tables: tables.to_owned(), ..Config::default() };
    let stage = Stage::on(HostNs::new(), &config, 1);
    let host = |address: Ipv6Addr| address.to_bits() & ((1 << 48) - 1);
    let wishes = [[("v6pod.address", "stable")], [("v6pod.address", "::42")]];
    let before = wishes.map(|wish| {
        let namespace = OwnedNs::new(stage.user());
        (granted(ask(&stage, &namespace, "web", &wish)), namespace)
    });
    stage.daemon.ctl(&["prefix", "set", "2001:db8:1:2:4::/80"]).ok();
    for (first, namespace) in &before {
        let now = eventually(PATIENCE, "it has moved", || match namespace.addresses()[..] {
            [one] if one != *first => Some(one),
            _ => None,
        });
        assert_eq!(host(now), host(*first));
    }
    let hosts = before.map(|(first, _)| host(first));
    eventually(PATIENCE, "all have ended", || stage.daemon.attachments().is_empty().then_some(()));
    for (wish, expected) in wishes.iter().zip(hosts) {
        let namespace = OwnedNs::new(stage.user());
        let again = granted(ask(&stage, &namespace, "web", wish));
        assert_eq!((host(again), again.segments()[4]), (expected, 4), "{again}");
    }
}

#[test]
fn a_slash_124_has_fourteen_and_then_says_so() {
    let _machine = require!(Podman);
    let config = Config { prefix: "2001:db8:1:2:3::/124".to_owned(), ..Config::default() };
    let stage = Stage::on(HostNs::new(), &config, 1);
    let all: Vec<_> = (0..14).map(|_| OwnedNs::new(stage.user())).collect();
    let given: HashSet<_> = all.iter().map(|ns| granted(ask(&stage, ns, "web", &[]))).collect();
    assert_eq!(given.len(), 14);
    let one_more = OwnedNs::new(stage.user());
    refused(ask(&stage, &one_more, "web", &[]), 507, "2001:db8:1:2:3::/124 has no address left");
}
