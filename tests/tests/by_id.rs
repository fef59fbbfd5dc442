//! The contract of 2019: curl, a user and a container id, on a container that runs already.
//!
//! ```text
//!   host ── v6podd ── http://localhost:6781 ◀── curl, as v6t1
//!     └── v6t0 ── port ── eth0 ┌ container of v6t1, begun without the shim ┐ tap0 ── slirp4netns
//! ```
#![forbid(unsafe_code)]

use v6pod_proto::{Attachment, Deactivated, NameState, NameStatus};
use v6pod_tests::{PATIENCE, Stage, User, eventually, require, run};

/// The 2019 wrapper's call; the status code is the last line.
fn curl(user: &User, call: &str, uid: u32, id: &str) -> (u16, String) {
    let url = format!("http://localhost:6781{call}");
    let mut command = user.command("curl");
    command.args(["-sS", "-m", "20", "-w", "\n%{http_code}", "-X", "POST"]);
    command.args(["-d", &format!("user={uid}&id={id}"), &url]);
    let finished = run(&mut command);
    let (body, status) = finished.ok().rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or_default(), body.to_owned())
}

#[test]
fn a_running_container_is_attached_and_detached_by_curl() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = stage.user();
    user.use_plain();
    let container = user.sleeper("old");
    assert!(stage.daemon.attachments().is_empty());

    for prefix in ["", "/api"] {
        let (status, body) = curl(user, &format!("{prefix}/activate"), user.uid(), &container.id);
        assert_eq!(status, 200, "{body}");
        let answer: Attachment = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(answer.container.as_str(), container.id);
        assert_eq!(answer.name.as_deref(), Some("old"));
        let seen = container.exec(&["ip", "-6", "addr", "show", "dev", answer.interface.as_str()]);
        assert!(seen.ok().contains(&answer.address.to_string()), "{seen}");
        let ping = ["-c", "1", "-W", "10", &answer.address.to_string()];
        run(stage.host.outside("ping").args(ping)).ok();

        // Once more: the answer is the same, and so is everything else.
        let (status, again) = curl(user, "/api/activate", user.uid(), &container.id);
        let again: Attachment = serde_json::from_str(&again).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((status, again.id, again.address), (200, answer.id, answer.address));
        assert_eq!(stage.daemon.attachments().len(), 1);

        for removed in [true, false] {
            let call = format!("{prefix}/deactivate");
            let (status, body) = curl(user, &call, user.uid(), &container.id);
            assert_eq!(status, 200, "{body}");
            let answer: Deactivated = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(answer.removed, removed);
        }
        before.comes_back(&stage.daemon);
        let seen = container.exec(&["cat", "/proc/net/if_inet6"]);
        assert!(!seen.ok().contains("eth0"), "{seen}");
    }
    assert!(container.init().is_alive());
}

#[test]
fn a_container_that_ends_takes_its_attachment_along() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = stage.user();
    user.use_plain();
    for kill in [true, false] {
        let container = user.sleeper("old");
        let (status, body) = curl(user, "/api/activate", user.uid(), &container.id);
        assert_eq!(status, 200, "{body}");
        stage.daemon.the_attachment();
        if kill {
            container.init().kill();
        } else {
            container.remove();
        }
        before.comes_back(&stage.daemon);
        user.podman(&["rm", "-f", "-i", "old"]).ok();
    }
}

#[test]
fn without_a_hook_a_pods_member_has_its_name_by_its_id() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = stage.user();
    user.podman(&["pod", "create", "--name", "p"]).ok();
    let container = user.start("one", &["--pod", "p"], &["sleep", "1000"]);
    let pod = stage.daemon.the_attachment();
    assert!(pod.container.as_str() != container.id && pod.members.is_empty());
    let call = |call: &str| curl(user, call, user.uid(), &container.id);
    let is_found = |found: bool| {
        eventually(PATIENCE, &format!("one is found: {found}"), || {
            let names = stage.daemon.the_attachment().names;
            let registered = |n: &NameStatus| n.name == "one" && n.state == NameState::Registered;
            (names.iter().any(registered) == found).then_some(())
        });
    };
    for ended in [false, true] {
        let (status, body) = call("/api/activate");
        assert_eq!(status, 200, "{body}");
        let answer: Attachment = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((&answer.id, &answer.container), (&pod.id, &pod.container));
        is_found(true);
        if ended {
            container.init().kill();
        } else {
            // A name is all that it has.
            for removed in [true, false] {
                let (_, body) = call("/api/deactivate");
                let answer: Deactivated =
                    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(answer.removed, removed);
            }
        }
        is_found(false);
        assert_eq!(stage.daemon.the_attachment().address, pod.address);
    }
    user.podman(&["pod", "rm", "-f", "-t", "0", "p"]).ok();
    before.comes_back(&stage.daemon);
}

#[test]
fn nobody_else_can_do_it() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(2);
    let before = stage.daemon.footprint();
    let [owner, stranger] = &stage.users[..] else { unreachable!("two users") };
    owner.use_plain();
    let container = owner.sleeper("old");
    let (status, body) = curl(stranger, "/api/activate", owner.uid(), &container.id);
    assert_eq!(status, 404, "{body}");
    before.comes_back(&stage.daemon);

    let (status, _) = curl(owner, "/api/activate", owner.uid(), &container.id);
    assert_eq!(status, 200);
    let attachment = stage.daemon.the_attachment();
    let (status, _) = curl(stranger, "/api/deactivate", owner.uid(), &container.id);
    assert!(status == 200 || status == 404, "{status}");
    assert_eq!(stage.daemon.the_attachment(), attachment);
}

#[test]
fn a_container_without_a_network_namespace_of_its_own_is_refused() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = stage.user();
    let container = user.start("h", &["--network", "host"], &["sleep", "1000"]);
    let (status, body) = curl(user, "/api/activate", user.uid(), &container.id);
    assert!(status == 403 || status == 422, "{status} {body}");
    before.comes_back(&stage.daemon);
}
