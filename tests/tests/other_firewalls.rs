//! Issue 5, line 5: other firewalls of the host that stop containers' packets are named, with how to live
//! together; and what is said to help helps.
//!
//! ```text
//!   outside ── up0  host: v6pod's tables, and another with `policy drop` ── port ── eth0 ┌ container ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::net::Ipv6Addr;
use std::os::fd::AsFd;

use v6pod_proto::{Activate, Obstacle};
use v6pod_tests::{
    Daemon, HostNs, OUTSIDE_V6, OwnedNs, PATIENCE, eventually, random_container_id, require, run,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;

/// What docker makes of FORWARD with IPv6 (`iptables-save` form), as far as it concerns others.
const DOCKER: &str = "*filter\n:FORWARD DROP\n:DOCKER-USER -\n\
    -A FORWARD -j DOCKER-USER\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
    -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n-A DOCKER-USER -j RETURN\nCOMMIT\n";

/// An administrator's, with a rule at the end in the place of a policy.
const ADMINISTRATOR: &str = "table inet host {\n\
    chain forward {\n type filter hook forward priority filter; policy accept;\n\
    ct state established,related accept\n iifname \"vpn0\" accept\n counter reject\n }\n\
    chain input {\n type filter hook input priority filter; policy drop;\n\
    ct state established accept\n meta l4proto ipv6-icmp accept\n tcp dport 22 accept\n }\n}\n";

struct Scene {
    container: OwnedNs,
    address: Ipv6Addr,
    daemon: Daemon,
    host: HostNs,
}

impl Scene {
    fn new() -> Self {
        let host = HostNs::new();
        let daemon = Daemon::start(&host);
        let container = OwnedNs::of_uid(UID, true);
        let request = Activate::new(random_container_id());
        let made = daemon.as_user(UID).activate(&request, container.network().as_fd()).0;
        let address = made.unwrap_or_else(|refused| panic!("{refused}")).address;
        Self { container, address, daemon, host }
    }

    /// Whether an echo request comes through: from the outside, to the outside.
    fn passes(&self) -> [bool; 2] {
        let words = |to: &str| ["-6", "-n", "-c", "1", "-W", "2", to].map(str::to_owned);
        let inwards = run(self.host.outside("ping").args(words(&self.address.to_string())));
        let outwards = run(self.container.command("ping").args(words(OUTSIDE_V6)));
        [inwards.status.success(), outwards.status.success()]
    }

    /// Puts somebody else's rules in force.
    #[track_caller]
    fn load(&self, program: &str, rules: &str) {
        let script = format!("{program} <<'END'\n{rules}END\n");
        run(self.host.command("sh").args(["-c", &script])).ok();
    }

    /// What is in the way, once it is as many.
    #[track_caller]
    fn obstacles(&self, count: usize) -> Vec<Obstacle> {
        eventually(PATIENCE, "the other firewalls are known", || {
            let found = self.daemon.status().obstacles;
            (found.len() == count).then_some(found)
        })
    }
}

/// Goes through it all with one firewall, of which chains at these hooks are in the way.
fn lives_with(scene: &mut Scene, program: &str, loader: &str, rules: &str, hooks: &[&str]) {
    assert_eq!(scene.passes(), [true, true]);
    assert_eq!(scene.obstacles(0), []);
    scene.load(loader, rules);
    assert_eq!(scene.passes(), [false, false], "it stops nothing");
    let found = scene.obstacles(hooks.len());
    assert!(found.iter().all(|obstacle| obstacle.program == program), "{found:?}");
    assert_eq!(found.iter().map(|obstacle| &*obstacle.hook).collect::<Vec<_>>(), hooks);
    // A daemon that starts later knows as much, and a person is told.
    scene.daemon.stop();
    scene.daemon.restart();
    assert_eq!(scene.obstacles(hooks.len()), found);
    let told = scene.daemon.ctl(&["status"]);
    let told = told.ok();
    assert!(told.contains(&format!("in the way: {program}: ")), "{told}");
    for command in found.iter().flat_map(|obstacle| &obstacle.advice) {
        assert!(told.contains(command), "{command}: {told}");
        run(scene.host.command("sh").args(["-c", command])).ok();
    }
    assert_eq!(scene.passes(), [true, true]);
    scene.obstacles(0);
}

#[test]
fn an_administrators_rule_at_the_end_is_named_and_two_rules_before_it_help() {
    let _machine = require!(Root);
    let mut scene = Scene::new();
    // By the input chain they cannot ask v6podd for names.
    lives_with(&mut scene, "nft", "nft -f -", ADMINISTRATOR, &["forward", "input"]);
    // It goes, and is there again without the two.
    run(scene.host.command("nft").args(["delete", "table", "inet", "host"])).ok();
    assert_eq!(scene.passes(), [true, true]);
    scene.load("nft -f -", ADMINISTRATOR);
    scene.obstacles(2);
}

#[test]
fn dockers_policy_drop_is_named_and_its_users_chain_helps() {
    let _machine = require!(Root);
    let mut scene = Scene::new();
    lives_with(&mut scene, "docker", "ip6tables-restore", DOCKER, &["forward"]);
}
