//! Attack 23: the TCP port of the loopback interface is no way in.
//!
//! ```text
//!   host ── v6podd ── 127.0.0.1:6781, [::1]:6781
//!     ├── v6t1, the attacker: curl, a container on the host's network, a connection that is left
//!     ├── root, who fetches what he is told
//!     └── a namespace of v6t2, the victim
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::os::fd::AsFd;

use v6pod_proto::{Activate, Deactivated};
use v6pod_tests::{Body, OwnedNs, Scene, User, random_container_id, require, run};

/// A request over TCP as this user; the status code and the body.
fn over_tcp(user: &User, host: &str, path: &str, form: &str) -> (u16, String) {
    let mut curl = user.command("curl");
    curl.args(["-sS", "--globoff", "-m", "20", "-w", "\n%{http_code}", "-H", "Host: localhost"]);
    curl.args(["-d", form]).arg(format!("http://{host}:6781{path}"));
    let finished = run(&mut curl);
    let (body, status) = finished.ok().rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or_default(), body.to_owned())
}

#[test]
fn attack_23_over_tcp_everybody_is_only_himself() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let attacker = scene.attacker();
    let form = format!("user={}&id={}", scene.victim().uid(), scene.attachment.container);
    for host in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"] {
        let (status, body) = over_tcp(attacker, host, "/api/activate", &form);
        assert_eq!(status, 404, "{host}: {body}");
        let (status, body) = over_tcp(attacker, host, "/api/deactivate", &form);
        assert_eq!((status, body.as_str()), (200, r#"{"removed":false}"#), "{host}");
    }
    // root himself: a service of his that fetches what it is told must not be a way in.
    let curl = |args: &[&str]| {
        let mut curl = scene.stage.host.command("curl");
        run(curl.args(["-sS", "-m", "20"]).args(args)).ok().to_owned()
    };
    assert_eq!(curl(&["http://localhost:6781/api/attachments"]), r#"{"attachments":[]}"#);
    let answer = curl(&["-d", &form, "http://localhost:6781/api/deactivate"]);
    assert_eq!(answer, r#"{"removed":false}"#);
    scene.is_unchanged();
    // The case bites: it is the way, not the words. root's same ones end it on the unix socket.
    let answer = scene.stage.daemon.root().post("/api/deactivate", Body::Form(&form));
    assert!(answer.ok::<Deactivated>().removed);
}

#[test]
fn attack_23_a_container_on_the_hosts_network_is_its_user_or_nobody() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let form = format!("user={}&id={}", scene.victim().uid(), scene.attachment.container);
    // busybox's wget tells no status; the daemon's log does, and whose the connection was.
    for user in ["0", "1000"] {
        let post = format!("--post-data={form}");
        for call in ["activate", "deactivate"] {
            let url = format!("http://127.0.0.1:6781/api/{call}");
            let options = ["--network", "host", "--user", user];
            let command = ["wget", "-q", "-O", "-", &post, &url];
            let finished = scene.attacker().run(&options, &command);
            let kept = call == "activate" || finished.stdout.contains("false");
            assert!(kept, "{user} {call}: {finished}");
        }
    }
    let log = scene.stage.daemon.log();
    let subordinate = scene.attacker().subordinate_ids().start + 999;
    for uid in [scene.attacker().uid(), subordinate] {
        let line = log
            .lines()
            .find(|line| line.contains(&format!("uid={uid} ")) && line.contains("/api/activate"));
        let line = line.unwrap_or_else(|| panic!("no request of {uid}:\n{log}"));
        assert!(line.contains("refused"), "{line}");
    }
    scene.is_unchanged();
}

#[test]
fn attack_23_a_connection_that_its_owner_has_left_is_nobodys_and_not_roots() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    // An abandoned socket is reported as uid 0 by the kernel. root's own is what would be hit.
    let roots = OwnedNs::of_uid(0, false);
    let container = random_container_id();
    let request = Activate::new(container.clone());
    let (made, _) = scene.stage.daemon.root().activate(&request, roots.network().as_fd());
    made.unwrap_or_else(|refused| panic!("{refused}"));
    let before = scene.stage.daemon.attachments();
    let script = format!(
        "import socket\n\
         body = b'id={}'\n\
         head = b'POST /api/deactivate HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: %d\\r\\n'\n\
         for n in range(600):\n\
        \x20   s = socket.create_connection(('127.0.0.1', 6781))\n\
        \x20   s.sendall(head % len(body) + b'\\r\\n' + body)\n\
        \x20   s.shutdown(n % 3) if n % 4 else None\n\
        \x20   s.close()\n",
        container
    );
    run(scene.attacker().command("/usr/bin/python3").args(["-c", &script])).ok();
    assert_eq!(scene.stage.daemon.attachments(), before);
    // It could have been: root, who stays, ends it.
    let form = format!("id={container}");
    let mut curl = scene.stage.host.command("curl");
    let ended = run(curl.args(["-sS", "-d", &form, "http://localhost:6781/api/deactivate"]));
    assert_eq!(ended.ok(), r#"{"removed":true}"#);
    scene.is_unchanged();
}

#[test]
fn attack_23_many_requests_in_one_are_one() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    // What comes behind the first request of a connection is never looked at, whoever wrote it.
    let form = format!("id={}", scene.attachment.container);
    let length = form.len();
    let inner = format!(
        "POST /api/deactivate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{form}"
    );
    let outer = [
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n{inner}"),
        format!(
            "POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n{inner}"),
    ];
    let victim = scene.victim();
    for text in &outer {
        let mut command = victim.command("/usr/bin/python3");
        command.args(["-c", SENDER]).arg(scene.stage.daemon.socket()).arg(text);
        let answers = run(&mut command).ok().to_owned();
        assert!(!answers.contains("removed"), "{answers}");
        assert!(answers.matches("HTTP/1.1").count() <= 1, "{answers}");
    }
    scene.is_unchanged();
}

/// Sends its second word to the unix socket that is its first, and prints all that comes back.
const SENDER: &str = "import socket, sys\n\
    s = socket.socket(socket.AF_UNIX)\n\
    s.settimeout(20)\n\
    s.connect(sys.argv[1])\n\
    s.sendall(sys.argv[2].encode())\n\
    data = b' '\n\
    while data:\n\
    \x20   try:\n\
    \x20       data = s.recv(65536)\n\
    \x20   except OSError:\n\
    \x20       break\n\
    \x20   print(data.decode(errors='replace'), end='')\n";
