//! Issue 2, line 8: whatever is wrong with a request, the answer says so and nothing has changed.
//!
//! ```text
//!   host ── v6podd ── v6t0 ── port ── eth0 ┌ a namespace of v6t1, attached ┐
//!                                          ┌ one of v6t2, never attached  ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use v6pod_proto::{Activate, Attachment, Code};
use v6pod_tests::{
    Body, Footprint, OwnedNs, PATIENCE, Response, Stage, eventually, random_container_id, require,
    run,
};

/// One attached namespace, and what must not change.
struct Scene {
    stage: Stage,
    attached: OwnedNs,
    attachment: Attachment,
    footprint: Footprint,
    descriptors: usize,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::with_users(2);
        let attached = OwnedNs::new(&stage.users[0]);
        let caller = stage.daemon.as_user(attached.uid());
        let request = Activate::new(random_container_id());
        let (outcome, stream) = caller.activate(&request, attached.network().as_fd());
        drop(stream);
        let attachment = outcome.unwrap_or_else(|refused| panic!("{refused}"));
        let footprint = stage.daemon.footprint();
        let descriptors = settled_descriptors(&stage);
        Self { stage, attached, attachment, footprint, descriptors }
    }

    fn owner(&self) -> u32 {
        self.attached.uid()
    }

    fn stranger(&self) -> u32 {
        self.stage.users[1].uid()
    }

    /// A request as this uid.
    #[track_caller]
    fn post(&self, uid: u32, path: &str, body: Body<'_>, fd: Option<BorrowedFd<'_>>) -> Response {
        self.stage.daemon.as_user(uid).call("POST", path, body, fd).0
    }

    /// The answer bears one of these codes.
    #[track_caller]
    fn is_refused(&self, response: &Response, codes: &[Code], what: &str) {
        let problem = response.problem();
        assert!(codes.contains(&problem.code), "{what}: {response}");
        let paths = ["/run", "/home", "/proc", "/tmp", "/var"];
        let told = paths.iter().find(|path| problem.detail.contains(*path));
        assert_eq!(told, None, "{what}: a path in {response}");
    }

    /// Nothing has changed: the kernel, the books, the attachment, the daemon's descriptors.
    #[track_caller]
    fn is_unchanged(&self) {
        self.footprint.comes_back(&self.stage.daemon);
        assert_eq!(self.stage.daemon.attachments(), std::slice::from_ref(&self.attachment));
        assert_eq!(self.attached.addresses(), [self.attachment.address]);
        eventually(PATIENCE, "the daemon's descriptors are as many as before", || {
            (self.stage.daemon.descriptors() <= self.descriptors).then_some(())
        });
    }
}

/// The count once it has been the same for a while: connections are closed behind the answer.
fn settled_descriptors(stage: &Stage) -> usize {
    let mut last = stage.daemon.descriptors();
    let mut same = 0;
    eventually(PATIENCE, "the count of descriptors settles", || {
        let now = stage.daemon.descriptors();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        (same > 10).then_some(now)
    })
}

#[test]
fn bodies_that_are_not_what_the_api_takes() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let id = random_container_id();
    let bodies = [
        String::new(),
        "{".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        "\"id\"".to_owned(),
        "{}".to_owned(),
        r#"{"id":42}"#.to_owned(),
        format!(r#"{{"id":"{}"}}"#, "a".repeat(63)),
        format!(r#"{{"id":"{}"}}"#, "a".repeat(65)),
        format!(r#"{{"id":"{}"}}"#, "A".repeat(64)),
        format!(r#"{{"id":"../{}"}}"#, "a".repeat(61)),
        format!(r#"{{"id":"{id}","user":"one"}}"#),
        format!(r#"{{"id":"{id}","user":-1}}"#),
        format!(r#"{{"id":"{id}","user":4294967295}}"#),
        format!(r#"{{"id":"{id}","lease":"yes"}}"#),
        format!(r#"{{"id":"{id}","name":{{}}}}"#),
        format!(r#"{{"id":"{id}","unknown":1}}"#),
        format!(r#"{{"id":"{id}","id":"{id}"}}"#),
        format!(r#"{{"id":"{id}","interface":"a/b"}}"#),
        format!(r#"{{"id":"{id}"}} more"#),
    ];
    for path in ["/api/activate", "/activate", "/api/deactivate", "/deactivate"] {
        for body in &bodies {
            // These are activate's fields; to deactivate they are unknown, which is as malformed.
            let response = scene.post(scene.owner(), path, Body::Json(body), None);
            scene.is_refused(&response, &[Code::Malformed], &format!("{path} {body}"));
        }
        for form in ["", "user=1&id=2", "id", "user=&id=", "%zz=1", "user=1&user=2"] {
            let response = scene.post(scene.owner(), path, Body::Form(form), None);
            scene.is_refused(&response, &[Code::Malformed], &format!("{path} {form}"));
        }
    }
    scene.is_unchanged();
}

#[test]
fn an_unknown_field_is_named() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let body = format!(r#"{{"id":"{}","pulg":true}}"#, random_container_id());
    let response = scene.post(scene.owner(), "/api/activate", Body::Json(&body), None);
    assert!(response.problem().detail.contains("pulg"), "{response}");
    scene.is_unchanged();
}

#[test]
fn media_types_methods_paths_and_sizes() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let owner = scene.owner();
    let id = random_container_id();
    let json = format!(r#"{{"id":"{id}"}}"#);
    let raw = Body::Raw("text/plain", json.as_bytes());
    let response = scene.post(owner, "/api/activate", raw, None);
    scene.is_refused(&response, &[Code::UnsupportedMediaType], "text/plain");

    let large = format!(r#"{{"id":"{id}","name":"{}"}}"#, "x".repeat(4 << 20));
    // It may answer, or close on him who does not stop sending.
    let caller = scene.stage.daemon.as_user(owner);
    if let Ok((response, _)) = caller.try_call("POST", "/api/activate", Body::Json(&large), None) {
        scene.is_refused(&response, &[Code::TooLarge], "four mebibytes");
    }

    let (response, _) = caller.call("GET", "/api/activate", Body::None, None);
    scene.is_refused(&response, &[Code::MethodNotAllowed], "GET activate");
    for path in ["/api", "/api/nothing", "/api/attachments/none", "/api/attachments/%2e%2e"] {
        let response = caller.get(path);
        assert_eq!(response.status, 404, "{path}: {response}");
    }
    scene.is_unchanged();
}

#[test]
fn what_is_not_http_is_not_an_answer() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    for bytes in [&b"\0\0\0\0\r\n\r\n"[..], b"GET\r\n\r\n", b"POST /api/activate HTTP/9.9\r\n\r\n"]
    {
        let mut stream = UnixStream::connect(scene.stage.daemon.socket()).expect("connecting");
        stream.write_all(bytes).expect("sending");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let mut answer = String::new();
        // What comes is a 400 or nothing; what matters is that it comes to an end.
        let _ = std::io::Read::read_to_string(&mut stream, &mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    scene.is_unchanged();
}

#[test]
fn descriptors_that_are_no_network_namespace_of_the_callers() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let json = format!(r#"{{"id":"{}","lease":true}}"#, random_container_id());
    let refused = |uid: u32, fd: BorrowedFd<'_>, codes: &[Code], what: &str| {
        let response = scene.post(uid, "/api/activate", Body::Json(&json), Some(fd));
        scene.is_refused(&response, codes, what);
    };
    let owner = scene.owner();
    let file = tempfile::tempfile().expect("a file");
    refused(owner, file.as_fd(), &[Code::Impossible], "a file");
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    refused(owner, pipe.as_fd(), &[Code::Impossible], "a pipe");
    let dir = File::open("/proc/self/ns").expect("a directory");
    refused(owner, dir.as_fd(), &[Code::Impossible], "a directory of procfs");
    let user_namespace = scene.attached.user_namespace();
    refused(owner, user_namespace.as_fd(), &[Code::Impossible], "a user namespace");

    // The daemon's own network is of the wrong kind for anybody, and not this caller's either.
    let hosts = [Code::Impossible, Code::NotYours];
    let host = File::open(scene.stage.host.path()).expect("the host's namespace");
    refused(owner, host.as_fd(), &hosts, "the daemon's own network");
    refused(0, host.as_fd(), &[Code::Impossible], "the daemon's own network, by root");
    let machine = File::open("/proc/self/ns/net").expect("the machine's namespace");
    refused(owner, machine.as_fd(), &[Code::NotYours], "the machine's network");

    let network = scene.attached.network();
    refused(scene.stranger(), network.as_fd(), &[Code::NotYours], "another user's network");
    scene.is_unchanged();
}

#[test]
fn more_descriptors_than_one_are_not_kept() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    // Sent beside requests that have no use for one.
    let file = tempfile::tempfile().expect("a file");
    for path in ["/api/deactivate", "/api/nothing"] {
        let body = Body::Json("{}");
        scene.post(scene.owner(), path, body, Some(file.as_fd()));
    }
    scene.is_unchanged();
}

#[test]
fn unknown_users_and_containers_and_other_peoples_look_the_same() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let theirs = scene.stage.users[1].sleeper("theirs");
    let owner = scene.owner();
    let by_id = |uid: u32, id: &str| {
        let form = format!("user={uid}&id={id}");
        scene.post(owner, "/api/activate", Body::Form(&form), None)
    };
    let unknown = random_container_id();
    let answers = [
        ("a uid that does not exist", by_id(4_000_000_000, unknown.as_str())),
        ("an unknown container of one's own", by_id(owner, unknown.as_str())),
        ("someone else's container", by_id(scene.stranger(), &theirs.id)),
        ("someone else's container, claimed as one's own", by_id(owner, &theirs.id)),
        ("an unknown container of someone else", by_id(scene.stranger(), unknown.as_str())),
        ("root's", by_id(0, unknown.as_str())),
    ];
    for (what, response) in &answers {
        scene.is_refused(response, &[Code::NotFound], what);
        assert_eq!(response.body, answers[0].1.body, "{what} differs from {}", answers[0].0);
    }

    // To look up and to take away are no different.
    let theirs_by_name = scene.stage.daemon.as_user(owner).get("/api/attachments/theirs");
    let nobodys = scene.stage.daemon.as_user(owner).get("/api/attachments/nobodys");
    assert_eq!((theirs_by_name.status, &theirs_by_name.body), (404, &nobodys.body));
    let form = format!("user={}&id={}", scene.stranger(), theirs.id);
    let response = scene.post(owner, "/api/deactivate", Body::Form(&form), None);
    let form = format!("user={}&id={unknown}", scene.stranger());
    let other = scene.post(owner, "/api/deactivate", Body::Form(&form), None);
    assert_eq!((response.status, &response.body), (other.status, &other.body), "{response}");
    let seen: v6pod_proto::AttachmentList =
        scene.stage.daemon.as_user(owner).get("/api/attachments").ok();
    assert_eq!(seen.attachments, std::slice::from_ref(&scene.attachment));
    assert_eq!(scene.stage.daemon.attachments().len(), 2);
    theirs.remove();
    scene.is_unchanged();
}

#[test]
fn attack_23_a_browser_is_no_way_in() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let url = "http://localhost:6781/api/attachments";
    let curl = |header: &str| {
        let mut curl = scene.stage.users[0].command("curl");
        curl.args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "-H", header, url]);
        run(&mut curl).ok().to_owned()
    };
    assert_eq!(curl("X-Nothing: special"), "200");
    for header in [
        "Host: example.org",
        "Host: localhost.example.org:6781",
        "Origin: http://localhost:6781",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ] {
        assert_eq!(curl(header), "403", "{header}");
    }
    scene.is_unchanged();
}
