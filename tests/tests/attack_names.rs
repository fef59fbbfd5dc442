//! Attacks 20 and 21: a registry that is made to run or to fetch something, and names that are another's.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use v6pod_proto::wishes::{Findings, Source};
use v6pod_proto::{Activate, Attachment, Deactivated, Member, Mode, NameState};
use v6pod_tests::{
    Attached, Body, Caller, Config, Consul, Daemon, HostNs, OwnedNs, PATIENCE, User, eventually,
    random_container_id, require, run, within,
};

/// Where the one listens to whom Consul is sent.
const CANARY: u16 = 9999;

/// Serves redirects to the canary, until the test ends; what is given counts the requests.
fn redirect(namespace: &File, port: u16) -> Arc<AtomicUsize> {
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://[::1]:{CANARY}/x\r\nContent-Length: 0\r\n\r\n"
    );
    serve(namespace, port, answer)
}

fn serve(namespace: &File, port: u16, answer: String) -> Arc<AtomicUsize> {
    let any = (Ipv6Addr::UNSPECIFIED, port);
    let listener = within(namespace, || TcpListener::bind(any).expect("binding a port"));
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            // Who connects and says nothing is no request.
            if stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(answer.as_bytes());
            }
        }
    });
    count
}

/// A container of whom all this was found in its environment.
fn with_environment(
    daemon: &Daemon,
    user: &User,
    all: &[(&str, &str)],
) -> (OwnedNs, Attachment, UnixStream) {
    let namespace = OwnedNs::new(user);
    let mut found = Findings::default();
    for (name, value) in all {
        found.add(Source::Environment, name, (*value).to_owned());
    }
    let request = Activate { lease: true, found, ..Activate::new(random_container_id()) };
    let (made, lease) = daemon.as_user(user.uid()).activate(&request, namespace.network().as_fd());
    (namespace, made.unwrap_or_else(|refused| panic!("{refused}")), lease)
}

fn consul_config() -> Config {
    Config { consul: true, ..Config::default() }
}

#[test]
fn attack_20_no_check_runs_a_program_or_asks_anybody_but_the_container() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let daemon = Daemon::configured(&host, &consul_config());
    let user = User::account(1, &host);
    let of_host = File::open(host.path()).expect("opening a namespace");
    let canary = serve(&of_host, CANARY, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned());
    let container = Attached::asking(
        &daemon,
        &user,
        &[("v6pod.name", "web"), ("v6pod.check", "http:80//x?@[::1]:9999/")],
    );
    let asked = redirect(&container.namespace.network(), 80);

    // The case bites: a check as registrator would write it takes Consul to the canary.
    let url = format!("http://[{}]:80/", container.address());
    consul.register_as(&format!(
        r#"{{"Name":"foreign","ID":"foreign","Check":{{"HTTP":"{url}","Interval":"1s"}}}}"#
    ));
    eventually(PATIENCE, "Consul follows a redirect", || {
        (canary.load(Ordering::Relaxed) > 0).then_some(())
    });
    consul.deregister("foreign");
    thread::sleep(Duration::from_secs(2));
    let before = (canary.load(Ordering::Relaxed), asked.load(Ordering::Relaxed));

    // Ours asks the container, and only whether its port answers: this Consul cannot leave a redirect alone.
    let passing = eventually(PATIENCE, "the check passes", || {
        consul.checks("web").into_iter().find(|check| check["Status"] == "passing")
    });
    assert_eq!(passing["Type"], "tcp", "{passing}");
    eventually(PATIENCE, "it is found", || {
        (consul.aaaa("web") == [container.address()]).then_some(())
    });
    assert_eq!((canary.load(Ordering::Relaxed), asked.load(Ordering::Relaxed)), before);

    // Of what is said in the environment nothing becomes a program, or another's address.
    let (_namespace, made, _lease) = with_environment(
        &daemon,
        &user,
        &[
            ("SERVICE_NAME", "env"),
            ("SERVICE_CHECK_SCRIPT", "touch /tmp/v6t-attack-20"),
            ("SERVICE_80_CHECK_CMD", "touch /tmp/v6t-attack-20"),
            ("SERVICE_80_NAME", "env-80"),
            ("SERVICE_80_CHECK_HTTP", "http://[::1]:9999/"),
            ("SERVICE_81_CHECK_HTTP", "/health"),
            ("SERVICE_82_CHECK_TTL", "30s"),
        ],
    );
    let ours = eventually(PATIENCE, "all are there", || {
        let all = consul.services();
        let of = |name: &str| all.values().filter(|s| s["Service"] == name).count();
        (of("env") == 2 && of("env-80") == 1).then_some(all)
    });
    assert!(
        ours.values()
            .filter(|s| s["Service"] != "web")
            .all(|s| s["Address"] == made.address.to_string())
    );
    assert_eq!(consul.checks("env-80"), [] as [serde_json::Value; 0], "a URL is no path");
    let mut kinds: Vec<_> = consul.checks("env").iter().map(|c| c["Type"].to_string()).collect();
    kinds.sort();
    assert_eq!(kinds, ["\"tcp\"", "\"ttl\""]);
    assert_eq!(canary.load(Ordering::Relaxed), before.0);
    let shown = daemon.as_user(user.uid()).get("/api/attachments/env").ok::<Attachment>();
    let told = shown.found.ignored.join("\n");
    assert!(told.contains("SERVICE_80_CHECK_HTTP: write a path"), "{told}");
}

#[test]
fn attack_21_a_name_is_its_first_owners_and_nobody_passes_for_another() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let mut daemon = Daemon::configured(&host, &consul_config());
    let [alice, bob] = [1, 2].map(|number| User::account(number, &host));
    let named = |user: &User, name: &str, tags: &str| {
        let tags = [("v6pod.name", name), ("v6pod.tags", tags)];
        Attached::asking(&daemon, user, if tags[1].1.is_empty() { &tags[..1] } else { &tags })
    };
    let is = |name: &str, wanted: &[&Attached]| {
        let wanted: Vec<_> = wanted.iter().map(|a| a.address()).collect();
        let awaited = format!("{name} is {wanted:?}");
        eventually(PATIENCE, &awaited, || (consul.aaaa(name) == wanted).then_some(()));
    };
    let postgres = named(&alice, "postgres", "");
    is("postgres", &[&postgres]);
    // Second, by her suffix, by her name as a tag, by a reserved one.
    let (v6t1, v6t2) = (alice.name().to_owned(), bob.name().to_owned());
    let squatter = named(&bob, "postgres", &format!("{v6t1},{},v1", v6t1.to_uppercase()));
    let hers = format!("postgres-u{}", alice.uid());
    let pretender = named(&bob, &hers, "");
    let reserved = named(&bob, "consul", "");
    let his = format!("postgres-u{}", bob.uid());
    is(&his, &[&squatter]);
    is(&format!("{v6t2}.{his}"), &[&squatter]);
    is(&format!("v1.{his}"), &[&squatter]);
    is(&format!("{v6t1}.{his}"), &[]);
    is(&format!("{hers}-u{}", bob.uid()), &[&pretender]);
    is(&hers, &[]);
    is("postgres", &[&postgres]);
    let shown = daemon.as_user(bob.uid()).get(&format!("/api/attachments/{}", reserved.address()));
    let names = shown.ok::<Attachment>().names;
    assert!(names[0].note.as_deref().is_some_and(|note| note.contains("reserved")), "{names:?}");
    let metrics = String::from_utf8(daemon.root().get("/metrics").body).expect("text");
    for reason in ["held", "bound", "reserved"] {
        let line = format!("v6pod_name_conflicts_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.lines().any(|l| l == line), "no {line}");
    }
    // Also when the daemon takes everything up again, the younger one first by its address.
    daemon.kill9();
    daemon.restart();
    drop(reserved);
    is("postgres", &[&postgres]);
    is(&his, &[&squatter]);
    // Her end is his chance.
    daemon.as_user(alice.uid()).post(
        "/api/deactivate",
        Body::Form(&format!("user={}&id={}", alice.uid(), postgres.attachment.container)),
    );
    is("postgres", &[&squatter]);
    is(&format!("{v6t1}.postgres"), &[]);
}

/// Says of a container that it is in this namespace, by this process.
fn joins(by: &Caller, namespace: &OwnedNs, name: &str, process: u32) -> (Member, bool) {
    let (name, container) = (Some(name.to_owned()), random_container_id());
    let word = Activate { plug: false, pid: Some(process), name, ..Activate::new(container) };
    let (answer, _) = by.activate(&word, namespace.network().as_fd());
    let member = Member { container: word.id.expect("an id"), name: word.name };
    let joined = answer.is_ok_and(|a| a.members.contains(&member));
    (member, joined)
}

#[test]
fn attack_21_a_pods_member_gets_no_more_by_its_name_than_the_pod_would() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let mut daemon = Daemon::configured(&host, &Config::default());
    let [alice, bob] = [1, 2].map(|number| User::account(number, &host));
    let named = |user, name| Attached::asking(&daemon, user, &[("v6pod.name", name)]);
    let postgres = named(&alice, "postgres");
    let bears = |daemon: &Daemon, pod: &Attached, wanted: &[&str]| {
        eventually(PATIENCE, &format!("it bears {wanted:?}"), || {
            let all = daemon.attachments().into_iter().find(|a| a.address == pod.address())?.names;
            let borne = all.iter().filter(|name| name.state == NameState::Registered);
            let borne: Vec<_> = borne.map(|name| name.name.as_str()).collect();
            (borne == wanted).then_some(all)
        })
    };
    bears(&daemon, &postgres, &["postgres"]);
    let bobs = named(&bob, "bobs");
    let (his, its) = (daemon.as_user(bob.uid()), bobs.namespace.pid());

    // Second, and by a reserved name.
    let suffixed = format!("postgres-u{}", bob.uid());
    let (squatter, joined) = joins(&his, &bobs.namespace, "postgres", its);
    assert!(joined && joins(&his, &bobs.namespace, "consul", its).1);
    bears(&daemon, &bobs, &["bobs", &suffixed]);
    // In another's namespace; by another's process; by root, who can do all, but not be a member of his.
    assert!(!joins(&his, &postgres.namespace, "x", postgres.namespace.pid()).1);
    assert!(!joins(&his, &bobs.namespace, "x", postgres.namespace.pid()).1);
    assert!(!joins(&his, &bobs.namespace, "x", 1).1);
    assert!(!joins(&daemon.root(), &bobs.namespace, "x", its).1);
    let told = bears(&daemon, &bobs, &["bobs", &suffixed]);
    let reserved =
        told.iter().find(|name| name.name == "consul").and_then(|name| name.note.as_deref());
    assert!(reserved.is_some_and(|note| note.contains("reserved")), "{told:?}");
    bears(&daemon, &postgres, &["postgres"]);

    // One too many; and each of them under the same name, which it is borne by once.
    let joined = (0..40).filter(|_| joins(&his, &bobs.namespace, "crowd", its).1).count();
    assert_eq!(joined, 30);
    bears(&daemon, &bobs, &["bobs", "crowd", &suffixed]);
    let metrics = String::from_utf8(daemon.root().get("/metrics").body).expect("text");
    for (reason, count) in [("held", 1), ("reserved", 1), ("members", 10)] {
        let line = format!("v6pod_name_conflicts_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.lines().any(|l| l == line), "no {line}");
    }
    // What somebody else says of it ends nobody.
    let over = |by: &Caller| {
        let form = format!("user={}&id={}", bob.uid(), squatter.container);
        by.post("/api/deactivate", Body::Form(&form)).ok::<Deactivated>().removed
    };
    assert!(!over(&daemon.as_user(alice.uid())));
    // Nor does a restart change whose a name is; her end does.
    daemon.kill9();
    daemon.restart();
    bears(&daemon, &postgres, &["postgres"]);
    bears(&daemon, &bobs, &["bobs", "crowd", &suffixed]);
    drop(postgres);
    bears(&daemon, &bobs, &["bobs", "crowd", "postgres"]);
    let his = daemon.as_user(bob.uid());
    assert!(over(&his) && !over(&his));
    bears(&daemon, &bobs, &["bobs", "crowd"]);
}

#[test]
fn attack_21_a_template_is_for_everybody_whoever_chose_the_name() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let tables = "name = \"{name}-{owner}\"\n".to_owned();
    let daemon = Daemon::configured(&host, &Config { consul: true, tables, ..Config::default() });
    let user = User::account(1, &host);
    let container = Attached::asking(&daemon, &user, &[("v6pod.name", "postgres")]);
    eventually(PATIENCE, "it is found", || {
        (consul.aaaa("postgres-v6t1") == [container.address()]).then_some(())
    });
    assert!(consul.aaaa("postgres").is_empty());
}

#[test]
fn a_check_reaches_a_port_that_is_open_to_this_host_and_no_other() {
    let _machine = require!(Podman);
    for mode in [Mode::Bridge, Mode::Routed] {
        let host = HostNs::new();
        let daemon = Daemon::configured(&host, &Config::default().with_mode(mode));
        let user = User::account(1, &host);
        reaches_what_is_open_to_this_host(&host, &daemon, &user);
    }
}

fn reaches_what_is_open_to_this_host(host: &HostNs, daemon: &Daemon, user: &User) {
    // The prefix's first address, by which the host speaks to containers in both modes.
    let opening = "tcp/80@2001:db8:1:2:3::1";
    // As an agent that is neither root nor the owner.
    let asks = |container: &Attached| {
        let url = format!("http://[{}]/", container.address());
        let mut command = host.command("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", "--", "curl", "-sS", "--globoff"]);
        run(command.args(["--max-time", "2", "-o", "/dev/null", "-w", "%{http_code}", &url]))
    };
    let answer = || "HTTP/1.1 204 No Content\r\n\r\n".to_owned();
    let closed = Attached::new(daemon, user);
    serve(&closed.namespace.network(), 80, answer());
    assert_eq!(asks(&closed).stdout, "000");
    let open = Attached::asking(daemon, user, &[("v6pod.ingress", opening)]);
    serve(&open.namespace.network(), 80, answer());
    assert_eq!(asks(&open).stdout, "204");
}
