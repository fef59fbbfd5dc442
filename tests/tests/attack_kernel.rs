//! Attacks 16, 27 and 30: what an attachment must not do to the kernel around it.
//!
//! ```text
//!   host: up0, other0 ── v6podd ── v6t0 ── port ── eth0 ┌ a namespace of v6t1: v4only0 … ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

use v6pod_proto::{Activate, Attachment, Code, LinkName};
use v6pod_tests::{
    Attacker, OwnedNs, PATIENCE, Response, Stage, eventually, random_container_id, require, run,
};

#[track_caller]
fn activate(
    stage: &Stage,
    namespace: &OwnedNs,
    request: &Activate,
) -> Result<Attachment, Response> {
    let caller = stage.daemon.as_user(namespace.uid());
    caller.activate(request, namespace.network().as_fd()).0
}

/// Every IPv6 sysctl of every interface that is neither the bridge nor a port, by its path; and the
/// defaults for those to come. What counts things for itself is left out.
#[track_caller]
fn sysctls(read: impl Fn(&str) -> String) -> BTreeMap<String, String> {
    let text = read("cd /proc/sys/net/ipv6/conf && grep -r . . 2>/dev/null");
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let ours = |path: &str| path.starts_with("./v6t0/") || path.starts_with("./v6p");
    let kept = lines.filter(|(path, _)| !ours(path) && !path.ends_with("stable_secret"));
    kept.map(|(path, value)| (path.to_owned(), value.to_owned())).collect()
}

#[test]
fn attack_16_ipv6_is_switched_on_nowhere_but_on_the_containers_own_interface() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let host = |script: &str| run(stage.host.command("sh").args(["-c", script])).stdout;
    stage.host.ip("link add other0 type veth peer name other1").ok();
    host("echo 1 > /proc/sys/net/ipv6/conf/other0/disable_ipv6");
    stage.host.ip("link set other0 up").ok();
    let namespace = OwnedNs::new(stage.user());
    let inside = |script: &str| namespace.run("sh", &["-c", script]).stdout;
    inside(
        "ip link set lo up
         ip link add v4only0 type veth peer name v4only1
         for link in v4only0 default; do
             echo 1 > /proc/sys/net/ipv6/conf/$link/disable_ipv6
         done
         ip link set v4only0 up; ip link set v4only1 up",
    );
    // Until the kernel has given what addresses it gives by itself.
    let settled = |read: &dyn Fn(&str) -> String| {
        eventually(PATIENCE, "no address is tentative", || {
            read("ip -6 addr show tentative").is_empty().then_some(())
        });
    };
    settled(&host);
    settled(&inside);
    let before = (sysctls(host), sysctls(inside));
    let addresses = |read: &dyn Fn(&str) -> String, but: &str| {
        let all = read("ip -6 -o addr show");
        all.lines().filter(|line| !line.contains(but)).map(str::to_owned).collect::<Vec<_>>()
    };
    let before_addresses = (addresses(&host, "v6t0"), addresses(&inside, "eth0"));

    // `default` says no IPv6 for new interfaces: it is the owner's to say, and he is told.
    let refused = activate(&stage, &namespace, &Activate::new(random_container_id()));
    let problem = refused.expect_err("IPv6 is switched off").problem();
    assert_eq!(problem.code, Code::Conflict, "{}", problem.detail);
    assert!(problem.detail.contains("default.disable_ipv6=0"), "{}", problem.detail);
    assert!(!inside("ip link").contains("eth0"), "something was left inside");
    inside("echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    let made = activate(&stage, &namespace, &Activate::new(random_container_id()));
    let made = made.unwrap_or_else(|refused| panic!("{refused}"));
    settled(&host);

    // The case bites: a pair that is only made and switched on has addresses of its own.
    host("ip link add naive0 type veth peer name naive1; ip link set naive0 up");
    host("ip link set naive1 up");
    eventually(PATIENCE, "the kernel gives a naive port an address", || {
        host("ip -6 -o addr show dev naive0").contains("fe80::").then_some(())
    });
    host("ip link del naive0");

    let port = made.port.as_str();
    let port_has = host(&format!("ip -6 -o addr show dev {port}; ip -6 route show dev {port}"));
    assert_eq!(port_has, "", "the port has no IPv6 of its own");
    assert_eq!(host(&format!("cat /proc/sys/net/ipv6/conf/{port}/disable_ipv6")).trim(), "1");
    let bridge = host("ip -6 -o addr show dev v6t0 scope link");
    assert_eq!(bridge, "", "the bridge has no link-local address");
    assert_eq!(before_addresses.0, addresses(&host, "v6t0"));
    assert_eq!(before_addresses.1, addresses(&inside, "eth0"));
    let mut now = (sysctls(host), sysctls(inside));
    now.1.retain(|path, _| !path.starts_with("./eth0/"));
    now.1.insert("./default/disable_ipv6".to_owned(), "1".to_owned());
    assert_eq!(now.0, before.0, "the host's other interfaces");
    assert_eq!(now.1, before.1, "the container's other interfaces");
    // And no advertisement is listened to, inside either.
    let inside_eth0 =
        inside("cd /proc/sys/net/ipv6/conf/eth0; cat accept_ra autoconf accept_redirects");
    assert_eq!(inside_eth0.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0"]);
}

#[test]
fn attack_27_no_namespace_lives_by_the_daemon() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = stage.user();
    let holds = |inode: &str| stage.daemon.descriptor_links().iter().any(|link| link == inode);
    for lease in [false, true] {
        let namespace = OwnedNs::new(user);
        let request = Activate { lease, ..Activate::new(random_container_id()) };
        let network = namespace.network();
        // The case bites: a descriptor like the one that is sent keeps it alive.
        let inode = format!("/proc/{}/ns/net", namespace.pid());
        let inode = std::fs::read_link(inode).expect("a link").display().to_string();
        let caller = stage.daemon.as_user(namespace.uid());
        let (made, connection) = caller.activate(&request, network.as_fd());
        made.unwrap_or_else(|refused| panic!("{refused}"));
        eventually(PATIENCE, "the daemon holds no namespace", || (!holds(&inode)).then_some(()));
        drop(namespace);
        assert_eq!(stage.daemon.attachments().len(), 1, "our own descriptor keeps it");
        drop(network);
        // With the lease still held: it is the kernel's word that ends it.
        before.comes_back(&stage.daemon);
        drop(connection);
    }
    // Nor by requests that wait or are refused: dozens about namespaces that die under them.
    let links = || {
        let all = stage.daemon.descriptor_links();
        all.iter().filter(|link| link.starts_with("net:[")).count()
    };
    let at_rest = links();
    let attacker = Attacker::start(user, &stage.daemon, &["storm", "8"]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    drop(attacker);
    before.comes_back(&stage.daemon);
    eventually(PATIENCE, "all descriptors of namespaces are closed", || {
        (links() <= at_rest).then_some(())
    });
}

#[test]
fn attack_30_a_name_inside_is_a_name_inside() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let first = OwnedNs::new(stage.user());
    let made = activate(&stage, &first, &Activate::new(random_container_id()));
    let made = made.unwrap_or_else(|refused| panic!("{refused}"));
    let links = || run(stage.host.command("ip").args(["-o", "link"])).ok().to_owned();
    let named = |line: &str| line.split(": ").nth(1).map(str::to_owned);
    let names = || links().lines().filter_map(named).collect::<Vec<_>>();
    let before = names();
    // The case bites: whoever takes the caller's word for the host's end meets the host's links.
    let naive = stage.host.command("ip").args(["link", "add", "up0", "type", "veth"]).output();
    assert!(!naive.expect("running ip").status.success());

    for wanted in ["up0", "v6t0", made.port.as_str(), "eth0", "v6pffffffffffff"] {
        let namespace = OwnedNs::new(stage.user());
        let interface: LinkName = wanted.parse().expect("a name");
        let request =
            Activate { interface: Some(interface), ..Activate::new(random_container_id()) };
        let made = activate(&stage, &namespace, &request);
        let made = made.unwrap_or_else(|refused| panic!("{wanted}: {refused}"));
        assert_eq!(made.interface.as_str(), wanted);
        assert_ne!(made.port.as_str(), wanted);
        assert!(namespace.run("ip", &["link", "show", wanted]).status.success());
        // The owner gives his end, and others of his, every name that the host has.
        for name in [made.port.as_str(), "v6t0", "up0"] {
            let words = ["link", "property", "add", "dev", wanted, "altname", name];
            namespace.run("ip", &words);
        }
        namespace.run("ip", &["link", "set", wanted, "down", "name", "lo0"]);
        drop(namespace);
        eventually(PATIENCE, "the host's links are those of before", || {
            let mut now = names();
            now.retain(|name| !before.contains(name));
            now.is_empty().then_some(())
        });
        assert_eq!(names(), before, "{wanted}");
    }
    for wanted in ["lo", "all", "default"] {
        let namespace = OwnedNs::new(stage.user());
        let sysctls = |name: &str| {
            let script = format!("cd /proc/sys/net/ipv6/conf/{name}; cat accept_ra autoconf");
            namespace.run("sh", &["-c", &script]).stdout
        };
        let untouched = sysctls("all") + &sysctls("default");
        let interface: LinkName = wanted.parse().expect("a name");
        let request =
            Activate { interface: Some(interface), ..Activate::new(random_container_id()) };
        let refused = activate(&stage, &namespace, &request);
        let code = refused.err().map(|response| response.problem().code);
        let codes = [Code::Conflict, Code::Impossible, Code::Malformed, Code::Internal];
        assert!(code.is_some_and(|code| codes.contains(&code)), "{wanted}: {code:?}");
        assert_eq!(sysctls("all") + &sysctls("default"), untouched, "{wanted}");
    }
    eventually(PATIENCE, "nothing is left of what failed", || (names() == before).then_some(()));
}

#[test]
fn attack_30_what_happens_inside_meanwhile_stays_inside() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let namespace = OwnedNs::new(stage.user());
    let network: File = namespace.network();
    let caller = stage.daemon.as_user(namespace.uid());
    // While it is attached again and again, its owner renames, switches off, moves and deletes.
    let pid = namespace.pid();
    let mut owner = stage.user().command("nsenter");
    owner.args(["--preserve-credentials", &format!("--user=/proc/{pid}/ns/user")]);
    owner.args([&format!("--net=/proc/{pid}/ns/net"), "sh", "-c", OWNER]);
    owner.stdin(std::process::Stdio::null());
    owner.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut owner = v6pod_tests::Background::start(&mut owner);
    let mut made = 0;
    for _ in 0..150 {
        let container = random_container_id();
        let request = Activate { lease: true, ..Activate::new(container.clone()) };
        let (outcome, connection) = caller.activate(&request, network.as_fd());
        drop(connection);
        match outcome {
            Ok(_) => made += 1,
            Err(response) => {
                let code = response.problem().code;
                let mine = [Code::NotReady, Code::Conflict, Code::Internal, Code::Impossible];
                assert!(mine.contains(&code), "{response}");
            }
        }
        let form = format!("id={container}");
        caller.post("/api/deactivate", v6pod_tests::Body::Form(&form));
    }
    owner.kill();
    eprintln!("{made} of 150 were made all the same");
    drop((namespace, network));
    before.comes_back(&stage.daemon);
}

/// What the owner does to every interface that turns up, as fast as he can.
const OWNER: &str = "while :; do
    ip link set eth0 down
    ip link set eth0 name x$$
    ip link del x$$
    ip link del v6eth0
    ip link add eth0 type veth peer name other
    ip link del eth0
done";
