//! Issue 6, lines 4 and 5, and attacks 18, 19 and 21 as far as they are by DNS: names without Consul.
//!
//! ```text
//!   host ── v6podd: fd3a:…:53 ── [2001:db8:ffff::1]:53, which knows every name   outside
//!     │        │
//!     └── v6t0 ┴ port ── eth0 ┌ container: dig, a program of musl's, one of glibc's ┐
//! ```
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use v6pod_proto::{Activate, Attachment, Mode};
use v6pod_tests::{
    Config, Consul, Container, Ends, HostNs, OUTSIDE_V6, OwnedNs, PATIENCE, PublicDns, Stage,
    eventually, random_container_id, require, run, within,
};

/// The machine's own glibc and its getent, as a container sees them.
const GETENT: [&str; 4] = [
    "/machine/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "--library-path",
    "/machine/lib/x86_64-linux-gnu",
    "/machine/bin/getent",
];

/// A program that finds a name by its C library and prints the addresses.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <netdb.h>
#include <arpa/inet.h>
int main(int argc, char **argv) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC }, *all;
    int error = getaddrinfo(argv[1], 0, &hints, &all);
    if (error) { fprintf(stderr, "%s\n", gai_strerror(error)); return 1; }
    for (; all; all = all->ai_next) {
        char text[64];
        getnameinfo(all->ai_addr, all->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
        puts(text);
    }
    return 0;
}
"#;

/// A host with users who have shim and hook, and the outside's resolver.
struct Names {
    stage: Stage,
    public: PublicDns,
}

impl Names {
    fn new(tables: &str, users: u8) -> Self {
        Self::on(HostNs::new(), tables, users)
    }

    fn on(host: HostNs, tables: &str, users: u8) -> Self {
        let config = Config { tables: tables.to_owned(), ..Config::default() };
        Self::configured(host, &config, users)
    }

    fn configured(host: HostNs, config: &Config, users: u8) -> Self {
        let outside = File::open(host.outside_path()).unwrap();
        let public = PublicDns::start(&outside, OUTSIDE_V6.parse().unwrap());
        let stage = Stage::on(host, config, users);
        stage.users.iter().for_each(|user| user.use_hook(&stage.daemon.socket()));
        Self { stage, public }
    }

    fn resolver(&self) -> Ipv6Addr {
        self.stage.daemon.status().resolver.expect("there is a resolver").address
    }

    fn attachment(&self, name: &str) -> Attachment {
        let all = self.stage.daemon.attachments();
        all.into_iter().find(|a| a.name.as_deref() == Some(name)).expect("it is attached")
    }

    /// What dig in the host's network prints.
    fn dig(&self, words: &[&str]) -> String {
        let server = format!("@{}", self.resolver());
        let mut dig = self.stage.host.command("dig");
        run(dig.arg(server).args(["+short", "+tries=1", "+time=5"]).args(words)).ok().to_owned()
    }
}

/// What dig in a namespace is told: the status, and the answers.
fn dig_in(namespace: &OwnedNs, resolver: Ipv6Addr, words: &[&str]) -> (String, Vec<String>) {
    let mut dig = namespace.command("dig");
    dig.arg(format!("@{resolver}")).args(["+tries=1", "+time=5", "+noall", "+comments", "+answer"]);
    let output = run(dig.args(words)).ok().to_owned();
    let status = output.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    let answers = output.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    let answers = answers.map(|line| line.split_whitespace().last().unwrap_or_default().to_owned());
    (status.unwrap_or_default().to_owned(), answers.collect())
}

/// A namespace of this user's, attached under this name.
fn attached(
    stage: &Stage,
    user: usize,
    name: &str,
    wishes: &[(&str, &str)],
) -> (OwnedNs, Attachment) {
    let namespace = OwnedNs::new(&stage.users[user]);
    let mut request = Activate { name: Some(name.into()), ..Activate::new(random_container_id()) };
    request.annotations =
        wishes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let caller = stage.daemon.as_user(namespace.uid());
    let (outcome, _) = caller.activate(&request, namespace.network().as_fd());
    let attachment = outcome.unwrap_or_else(|refused| panic!("{refused}"));
    (namespace, attachment)
}

/// The test's program, by musl's library: static, so that any image runs it.
fn musl_program() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("find.c"), folder.path().join("find"));
    fs::write(&source, PROGRAM).unwrap();
    run(Command::new("musl-gcc").arg("-static").arg("-o").arg(&program).arg(&source)).ok();
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path())).ok();
    folder
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> =
        text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

fn resolv_conf(container: &Container<'_>) -> String {
    container.exec(&["cat", "/etc/resolv.conf"]).ok().to_owned()
}

#[test]
fn dig_musl_and_glibc_find_ours_and_public_names() {
    let _machine = require!(Podman, Musl);
    let names = Names::new("", 1);
    let program = musl_program();
    let mounts = [format!("{}:/find:ro", program.path().display()), "/usr:/machine:ro".to_owned()];
    let options = ["-v", &mounts[0], "-v", &mounts[1]];
    let user = names.stage.user();
    let web = user.start("web", &options, &["sleep", "1000"]);
    let client = user.start("client", &options, &["sleep", "1000"]);
    let (resolver, address) = (names.resolver(), names.attachment("web").address);
    let text = resolv_conf(&client);
    let servers: Vec<_> = text.lines().filter(|line| line.starts_with("nameserver")).collect();
    assert_eq!(servers, [format!("nameserver {resolver}")]);

    let ours = address.to_string();
    eventually(PATIENCE, "the name is there", || {
        (names.dig(&["web.v6pod.internal", "AAAA"]) == ours).then_some(())
    });
    assert_eq!(names.dig(&["-x", &ours]), "web.v6pod.internal.");
    assert_eq!(names.dig(&["+tcp", "web.v6pod.internal", "AAAA"]), ours);
    let public = [PublicDns::V6.to_string(), PublicDns::V4.to_string()];
    for find in [&["/find/find"][..], &[&GETENT[..], &["ahosts"]].concat()] {
        let found = |name: &str| client.exec(&[find, &[name]].concat());
        assert_eq!(lines(found("web.v6pod.internal").ok()), [&ours], "{find:?}");
        // By the zone that is searched.
        assert_eq!(lines(found("web").ok()), [&ours], "{find:?}");
        let mut both = public.each_ref().map(String::as_str);
        both.sort_unstable();
        assert_eq!(lines(found("www.example.org").ok()), both, "{find:?}");
        for none in ["nobody.v6pod.internal", "nowhere.example.org"] {
            found(none).fails();
        }
    }
    // What takes TCP, which musl learned in 1.2.4.
    let big = client.exec(&[&GETENT[..], &["ahosts", "big.example.org"]].concat());
    assert_eq!(lines(big.ok()).len(), 2);
    assert!(!names.public.asked().iter().any(|name| name.ends_with("v6pod.internal")));

    // A name never lies.
    web.remove();
    eventually(Duration::from_secs(2), "the name is gone", || {
        names.dig(&["web.v6pod.internal", "AAAA"]).is_empty().then_some(())
    });
    client.exec(&["/find/find", "web.v6pod.internal"]).fails();
}

#[test]
fn a_pods_members_are_found_by_their_names_as_long_as_they_run() {
    let _machine = require!(Podman);
    let mut names = Names::new("", 1);
    let user = &names.stage.users[0];
    user.podman(&["pod", "create", "--name", "p"]).ok();
    let start = |name: &str, options: &[&str]| {
        user.start(name, &[&["--pod", "p"], options].concat(), &["sleep", "1000"])
    };
    let [one, two] = ["one", "two"].map(|name| start(name, &[]));
    let three = start("three", &["--label", "v6pod.name=third"]);
    let four = start("four", &["--env", "SERVICE_NAME=fourth"]);
    let address = names.stage.daemon.the_attachment().address.to_string();
    let resolver = format!("@{}", names.resolver());
    let dig = {
        let netns = File::open(names.stage.host.path()).unwrap();
        move |words: &[&str]| {
            let mut dig = Command::new("dig");
            dig.arg(&resolver).args(["+short", "+tries=1", "+time=5"]).args(words);
            within(&netns, || run(&mut dig)).ok().to_owned()
        }
    };
    let is_found = |name: &str, found: bool| {
        let wanted = if found { address.clone() } else { String::new() };
        eventually(PATIENCE, &format!("{name} is {wanted:?}"), || {
            (dig(&[&format!("{name}.v6pod.internal"), "AAAA"]) == wanted).then_some(())
        });
    };
    let all_are_found = |those: &[&str]| {
        for name in ["p", "one", "two", "third", "fourth"] {
            is_found(name, those.contains(&name));
        }
        // The address is the pod's, whatever else is found there.
        assert_eq!(dig(&["-x", &address]), "p.v6pod.internal.");
    };
    all_are_found(&["p", "one", "two", "third", "fourth"]);
    one.exec(&["nslookup", "third.v6pod.internal"]).ok();

    // One ends as it is told to, one by kill -9, one while the daemon is away, each with a restart between.
    user.podman(&["stop", "--time", "0", "one"]).ok();
    all_are_found(&["p", "two", "third", "fourth"]);
    names.stage.daemon.kill9();
    names.stage.daemon.restart();
    all_are_found(&["p", "two", "third", "fourth"]);
    two.init().kill();
    all_are_found(&["p", "third", "fourth"]);
    names.stage.daemon.kill9();
    three.init().kill();
    names.stage.daemon.restart();
    all_are_found(&["p", "fourth"]);
    user.podman(&["start", "one"]).ok();
    all_are_found(&["p", "one", "fourth"]);
    assert!(four.init().is_alive());
    user.podman(&["pod", "rm", "--force", "--time", "0", "p"]).ok();
    for name in ["p", "one", "fourth"] {
        is_found(name, false);
    }
    let folder = names.stage.daemon.run_dir().join("members");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    names.stage.daemon.stop();
    names.stage.daemon.purge().ok();
    assert!(!folder.exists());
}

#[test]
fn a_container_keeps_the_resolver_that_somebody_has_chosen_for_it() {
    let _machine = require!(Podman);
    let names = Names::new("", 1);
    let (user, ours) = (names.stage.user(), names.resolver().to_string());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    fs::write(&file, "nameserver 192.0.2.77\n").unwrap();
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path())).ok();
    let mount = format!("{}:/etc/resolv.conf", file.display());
    for (name, options) in [
        ("chosen", &["--dns", "192.0.2.77"][..]),
        ("mounted", &["-v", &mount]),
        ("hosts", &["--network", "host"]),
        ("none", &["--network", "none"]),
        ("confined", &["--annotation", "v6pod.egress=deny"]),
        // Podman writes it once more behind the hook.
        ("users", &["--userns", "keep-id"]),
    ] {
        let container = user.start(name, options, &["sleep", "1000"]);
        assert!(!container.exec(&["cat", "/etc/resolv.conf"]).stdout.contains(&ours), "{name}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.77\n");
    // Members of a pod share that of their pod, which has ours.
    user.podman(&["pod", "create", "--name", "pod"]).ok();
    let member = user.start("member", &["--pod", "pod"], &["sleep", "1000"]);
    assert!(resolv_conf(&member).contains(&ours));
    let shares = user.start("shares", &["--network", "container:chosen"], &["sleep", "1000"]);
    assert!(!resolv_conf(&shares).contains(&ours));
}

#[test]
fn where_another_firewall_drops_questions_containers_keep_their_resolver_until_it_lets_them() {
    let _machine = require!(Podman);
    let names = Names::new("", 1);
    let (user, ours) = (names.stage.user(), names.resolver().to_string());
    let nft = |text: &str| run(names.stage.host.command("nft").arg(text)).ok().to_owned();
    nft("table inet mine { chain input { type filter hook input priority 10; policy drop; \
         ct state established,related accept; meta l4proto icmpv6 accept; iif lo accept; }; }");
    let advice = eventually(PATIENCE, "it is seen", || {
        names.stage.daemon.status().obstacles.into_iter().next()
    });
    let kept = user.start("kept", &[], &["sleep", "1000"]);
    assert!(!resolv_conf(&kept).contains(&ours));
    let [command] = &advice.advice[..] else { panic!("{advice:?}") };
    nft(command.strip_prefix("nft ").unwrap());
    eventually(PATIENCE, "it is in nobody's way", || {
        names.stage.daemon.status().obstacles.is_empty().then_some(())
    });
    let pointed = user.start("pointed", &[], &["sleep", "1000"]);
    assert!(resolv_conf(&pointed).contains(&ours));
    pointed.exec(&["nslookup", "pointed.v6pod.internal"]).ok();
}

#[test]
fn without_the_daemon_a_new_container_resolves_as_it_would_without_v6pod() {
    let _machine = require!(Podman, Musl);
    let host = HostNs::new();
    // What slirp4netns asks is the machine's resolver: here that is the outside's.
    let text = fs::read_to_string("/etc/resolv.conf").unwrap();
    let machines = text.lines().find_map(|line| line.strip_prefix("nameserver "));
    let machines = machines.expect("the machine has a resolver").trim().to_owned();
    let add = format!("addr add {machines}/32 dev out0");
    run(host.outside("ip").args(add.split(' '))).ok();
    let outside = File::open(host.outside_path()).unwrap();
    let _machines = PublicDns::start(&outside, machines.parse().unwrap());
    let mut names = Names::on(host, "", 1);
    let program = musl_program();
    let mount = format!("{}:/find:ro", program.path().display());
    let options = ["-v", mount.as_str()];

    names.stage.users[0].use_plain();
    let user = names.stage.user();
    let plain = user.start("plain", &options, &["sleep", "1000"]);
    let without = resolv_conf(&plain);
    let public = lines(plain.exec(&["/find/find", "www.example.org"]).ok()).len();
    names.stage.daemon.stop();
    names.stage.users[0].use_shim(&names.stage.daemon.socket());
    let user = names.stage.user();
    let container = user.start("new", &options, &["sleep", "1000"]);
    assert_eq!(resolv_conf(&container), without);
    let found = container.exec(&["/find/find", "www.example.org"]);
    assert_eq!((lines(found.ok()).len(), public), (2, 2));

    // And with it again, a new start has ours.
    names.stage.daemon.restart();
    let user = names.stage.user();
    user.podman(&["restart", "--time", "0", "new"]).ok();
    let resolver = names.resolver().to_string();
    let text = user.podman(&["exec", "new", "cat", "/etc/resolv.conf"]);
    assert!(text.ok().contains(&resolver), "{text}");
}

#[test]
fn attack_19_another_owners_name_is_not_there_where_names_are_their_owners() {
    let _machine = require!(Root);
    let names = Names::new("[dns]\nscope = \"owner\"\n", 2);
    let resolver = names.resolver();
    let (one, web) = attached(&names.stage, 0, "web", &[]);
    let (two, _) = attached(&names.stage, 0, "db", &[]);
    let (other, _) = attached(&names.stage, 1, "bobs", &[]);
    let reverse = web.address.to_string();
    let own = ("NOERROR".to_owned(), vec![web.address.to_string()]);
    eventually(PATIENCE, "its owner sees it", || {
        (dig_in(&two, resolver, &["web.v6pod.internal", "AAAA"]) == own).then_some(())
    });
    let name = ("NOERROR".to_owned(), vec!["web.v6pod.internal.".to_owned()]);
    assert_eq!(dig_in(&one, resolver, &["-x", &reverse]), name);
    let nothing = ("NXDOMAIN".to_owned(), vec![]);
    for words in
        [&["web.v6pod.internal", "AAAA"][..], &["web.v6pod.internal", "ANY"], &["-x", &reverse]]
    {
        assert_eq!(dig_in(&other, resolver, words), nothing, "{words:?}");
    }
    // Nor through the host's resolver, whoever asks that.
    assert_eq!(names.dig(&["web.v6pod.internal", "AAAA"]), "");
    let own = dig_in(&other, resolver, &["bobs.v6pod.internal", "AAAA"]);
    assert_eq!(own.0, "NOERROR");
}

#[test]
fn a_container_is_answered_in_both_modes_whatever_else_it_may_reach_of_its_host() {
    let _machine = require!(Root);
    for mode in [Mode::Bridge, Mode::Routed] {
        let tables = "[firewall]\nhost = \"deny\"\n".to_owned();
        let config = Config { tables, ..Config::default() }.with_mode(mode);
        let names = Names::configured(HostNs::new(), &config, 1);
        let (first, a) = attached(&names.stage, 0, "first", &[]);
        let own = ("NOERROR".to_owned(), vec![a.address.to_string()]);
        eventually(PATIENCE, "the name is there", || {
            let told = dig_in(&first, names.resolver(), &["first.v6pod.internal", "AAAA"]);
            (told == own).then_some(())
        });
        assert_eq!(names.dig(&["first.v6pod.internal", "AAAA"]), a.address.to_string());
        // Of that address nothing but port 53.
        let resolver = names.resolver();
        let ping = |to: &str| first.run("ping", &["-c", "1", "-W", "1", to]).status.success();
        assert!(!ping(&resolver.to_string()) && ping("2001:db8:1:2:3::1"), "{mode:?}");
    }
}

#[test]
fn attack_19_nothing_is_asked_on_for_a_confined_container_nor_for_the_host() {
    let _machine = require!(Root);
    let names = Names::new("", 1);
    let resolver = names.resolver();
    let (free, web) = attached(&names.stage, 0, "web", &[]);
    let (confined, a) = attached(&names.stage, 0, "confined", &[("v6pod.egress", "deny")]);
    assert!(a.resolver.is_none() && web.resolver.is_some());
    let own = ("NOERROR".to_owned(), vec![web.address.to_string()]);
    eventually(PATIENCE, "names are there for everybody", || {
        (dig_in(&confined, resolver, &["web.v6pod.internal", "AAAA"]) == own).then_some(())
    });
    let public = ("NOERROR".to_owned(), vec![PublicDns::V6.to_string()]);
    assert_eq!(dig_in(&free, resolver, &["www.example.org", "AAAA"]), public);
    let before = names.public.asked();
    let (status, _) = dig_in(&confined, resolver, &["secret.example.org", "AAAA"]);
    assert_eq!(status, "REFUSED");
    // Were it one of the host's resolvers, and asked these, a question would go round for ever.
    assert_eq!(names.dig(&["loop.example.org", "AAAA"]), "");
    assert_eq!(names.public.asked(), before);
    // And from outside nobody is answered, though the route is there.
    let route = format!("-6 route add {resolver} via 2001:db8:ffff::2");
    run(names.stage.host.outside("ip").args(route.split(' '))).ok();
    let mut dig = names.stage.host.outside("dig");
    let asked =
        dig.arg(format!("@{resolver}")).args(["+tries=1", "+time=1", "web.v6pod.internal", "AAAA"]);
    assert!(!run(asked).status.success());
}

#[test]
fn attack_18_connections_that_say_nothing_and_floods_of_questions_harm_nobody_else() {
    let _machine = require!(Root);
    let names = Names::new("", 2);
    let resolver = names.resolver();
    let at = SocketAddr::from((resolver, 53));
    let (evil, _) = attached(&names.stage, 0, "evil", &[]);
    let (good, web) = attached(&names.stage, 1, "web", &[]);
    let own = ("NOERROR".to_owned(), vec![web.address.to_string()]);
    eventually(PATIENCE, "the name is there", || {
        (dig_in(&good, resolver, &["web.v6pod.internal", "AAAA"]) == own).then_some(())
    });
    let descriptors = names.stage.daemon.descriptors();
    let mut silent: Vec<TcpStream> = within(&evil.network(), || {
        let connect = || TcpStream::connect_timeout(&at, Duration::from_secs(5));
        (0..1000).filter_map(|_| connect().ok()).collect()
    });
    assert_eq!(silent.len(), 1000, "each is accepted, most to be closed at once");
    assert!(names.stage.daemon.descriptors() < descriptors + 64);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = Ends(&over);
        // As much as one socket of a container's can send: questions, and what is none.
        scope.spawn(|| {
            let socket = within(&evil.network(), || UdpSocket::bind("[::]:0").unwrap());
            socket.connect(at).unwrap();
            let mut question = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            question.extend_from_slice(b"\x03www\x07example\x00\x00\x1c\x00\x01");
            let mut n = 0_usize;
            while !over.load(Ordering::Relaxed) {
                let length = if n.is_multiple_of(3) { n % question.len() } else { question.len() };
                let _ = socket.send(&question[..length]);
                n += 1;
            }
        });
        for words in [&["web.v6pod.internal", "AAAA"][..], &["+tcp", "web.v6pod.internal", "AAAA"]]
        {
            for _ in 0..10 {
                assert_eq!(dig_in(&good, resolver, words), own, "{words:?}");
            }
        }
        let public = dig_in(&good, resolver, &["www.example.org", "AAAA"]);
        assert_eq!(public.0, "NOERROR");
    });
    // All of them end, without a word.
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        match stream.read(&mut [0; 8]) {
            Ok(length) => assert_eq!(length, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    eventually(PATIENCE, "nothing of them is left", || {
        (names.stage.daemon.descriptors() <= descriptors).then_some(())
    });
    assert!(dig_in(&evil, resolver, &["+tcp", "web.v6pod.internal", "AAAA"]) == own);
}

#[test]
fn attack_18_no_name_of_a_container_is_anything_but_a_label() {
    let _machine = require!(Root);
    let names = Names::new("", 1);
    let resolver = names.resolver();
    let (asker, _) = attached(&names.stage, 0, "asker", &[]);
    for hostile in
        ["a.v6pod.internal", "*", "www.example.org", "\u{1b}[2J", "-", "consul", "localhost\0x"]
    {
        attached(&names.stage, 0, hostile, &[]);
    }
    for name in
        ["a.v6pod.internal", "*.v6pod.internal", "www.v6pod.internal", "consul.v6pod.internal"]
    {
        let told = dig_in(&asker, resolver, &[name, "AAAA"]);
        assert_eq!(told, ("NXDOMAIN".to_owned(), vec![]), "{name}");
    }
    let public = dig_in(&asker, resolver, &["www.example.org", "AAAA"]);
    assert_eq!(public.1, [PublicDns::V6.to_string()], "nobody takes what is not in the zone");
}

#[test]
fn attack_21_of_two_who_want_a_name_the_first_has_it_for_everybody() {
    let _machine = require!(Root);
    let names = Names::new("", 2);
    let resolver = names.resolver();
    let (asker, _) = attached(&names.stage, 1, "asker", &[]);
    let (first, web) = attached(&names.stage, 0, "web", &[]);
    let told = |name: &str| dig_in(&asker, resolver, &[name, "AAAA"]).1;
    eventually(PATIENCE, "the first has it", || {
        (told("web.v6pod.internal") == [web.address.to_string()]).then_some(())
    });
    let (_second, squatter) = attached(&names.stage, 1, "web", &[]);
    let suffixed = format!("web-u{}.v6pod.internal", names.stage.users[1].uid());
    eventually(PATIENCE, "the second has another", || {
        (told(&suffixed) == [squatter.address.to_string()]).then_some(())
    });
    assert_eq!(told("web.v6pod.internal"), [web.address.to_string()]);
    drop(first);
    eventually(PATIENCE, "the second has what the first has left", || {
        (told("web.v6pod.internal") == [squatter.address.to_string()]).then_some(())
    });
}

#[test]
fn a_restart_loses_no_name_and_a_purge_leaves_no_address() {
    let _machine = require!(Root);
    let mut names = Names::new("", 1);
    let resolver = names.resolver();
    let (asker, a) = attached(&names.stage, 0, "web", &[]);
    let own = ("NOERROR".to_owned(), vec![a.address.to_string()]);
    let is_there = || dig_in(&asker, resolver, &["web.v6pod.internal", "AAAA"]) == own;
    eventually(PATIENCE, "the name is there", || is_there().then_some(()));
    names.stage.daemon.kill9();
    names.stage.daemon.restart();
    eventually(PATIENCE, "the name is there again", || is_there().then_some(()));
    names.stage.daemon.stop();
    names.stage.daemon.purge().ok();
    assert!(!names.stage.host.ip("-6 addr show").ok().contains(&resolver.to_string()));
}

#[test]
fn names_under_consul_are_asked_of_its_agent_and_all_others_of_the_hosts_resolvers() {
    let _machine = require!(Consul);
    let host = HostNs::new();
    let _consul = Consul::start(&host);
    let config = Config { consul: true, ..Config::default() };
    let names = Names::configured(host, &config, 2);
    let (web, a) = attached(&names.stage, 0, "web", &[]);
    let (client, _) = attached(&names.stage, 1, "client", &[]);
    let asks = |from: &OwnedNs, words: &[&str]| dig_in(from, names.resolver(), words);
    let ours = ("NOERROR".to_owned(), vec![a.address.to_string()]);
    for words in [&["web.service.consul", "AAAA"][..], &["+tcp", "v6t1.web.service.consul", "AAAA"]]
    {
        eventually(PATIENCE, "Consul's agent is asked", || {
            (asks(&client, words) == ours).then_some(())
        });
        assert_eq!(asks(&web, words), ours);
    }
    assert_eq!(asks(&client, &["nobody.service.consul", "AAAA"]).0, "NXDOMAIN");
    let public = ("NOERROR".to_owned(), vec![PublicDns::V6.to_string()]);
    assert_eq!(asks(&client, &["www.example.org", "AAAA"]), public);
    assert!(!names.public.asked().iter().any(|name| name.ends_with("consul")));
    let metrics = String::from_utf8(names.stage.daemon.root().get("/metrics").body).unwrap();
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("v6pod_dns_questions_total{outcome=\"passed-on\"} "));
    assert!(counted.is_some_and(|count| count.parse::<u32>().unwrap() >= 6), "{counted:?}");
}
