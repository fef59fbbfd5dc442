//! Issue 6, lines 2 and 3: Consul loses everything, and everything happens in any order.
//!
//! ```text
//!   host ── v6podd ── v6t0 ── many ports ── eth0 ┌ namespaces of v6t1 ┐
//!     └── consul agent, its own server, in memory
//! ```
//!
//! `V6POD_TEST_STEPS` says how many things happen; 500 unless told. The seed is printed, and `V6POD_TEST_SEED`
//! runs it again.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use v6pod_proto::{Activate, ContainerId};
use v6pod_tests::{
    Body, Config, Consul, Daemon, Dice, HostNs, OwnedNs, PATIENCE, User, eventually,
    random_container_id, require,
};

/// The contract: names are right this long after Consul is back.
const RIGHT_AGAIN: Duration = Duration::from_secs(10);

/// How many names there are in line 2.
const MANY: usize = 200;

/// How many containers come and go in line 3, and how many of them may bear one name.
const CONTAINERS: usize = 12;
const NAMES: usize = 8;

fn config() -> Config {
    Config { consul: true, ..Config::default() }
}

/// A container without an engine, its name, and what holds its address.
struct Running {
    namespace: OwnedNs,
    id: ContainerId,
    name: String,
    address: Option<Ipv6Addr>,
    lease: Option<UnixStream>,
}

impl Running {
    fn new(user: &User, name: String) -> Self {
        let (namespace, id) = (OwnedNs::new(user), random_container_id());
        Self { namespace, id, name, address: None, lease: None }
    }

    fn start(&mut self, daemon: &Daemon, lease: bool) {
        let annotations = BTreeMap::from([("v6pod.name".to_owned(), self.name.clone())]);
        let request = Activate { lease, annotations, ..Activate::new(self.id.clone()) };
        let network: File = self.namespace.network();
        let caller = daemon.as_user(self.namespace.uid());
        let (answer, stream) = caller.activate(&request, network.as_fd());
        self.address = Some(answer.unwrap_or_else(|refused| panic!("{refused}")).address);
        self.lease = lease.then_some(stream);
    }

    fn stop(&mut self, daemon: &Daemon) {
        let form = format!("user={}&id={}", self.namespace.uid(), self.id);
        let caller = daemon.as_user(self.namespace.uid());
        assert_eq!(caller.post("/api/deactivate", Body::Form(&form)).status, 200);
        (self.address, self.lease) = (None, None);
    }
}

/// Name and address of each service, sorted: twice the same is seen.
fn there(services: &Map<String, Value>) -> Vec<(String, Ipv6Addr)> {
    let text = |service: &Value, key: &str| service[key].as_str().unwrap_or_default().to_owned();
    let ours = services.values().filter(|s| s["Service"] != "foreign");
    let one =
        |s: &Value| (text(s, "Service"), text(s, "Address").parse().expect("an IPv6 address"));
    let mut all: Vec<_> = ours.map(one).collect();
    all.sort();
    all
}

fn wanted(all: &[Running]) -> Vec<(String, Ipv6Addr)> {
    let mut wanted: Vec<_> =
        all.iter().filter_map(|r| Some((r.name.clone(), r.address?))).collect();
    wanted.sort();
    wanted
}

#[track_caller]
fn holds(consul: &Consul, all: &[Running], limit: Duration) {
    let wanted = wanted(all);
    eventually(limit, "Consul holds exactly the living", || {
        (there(&consul.services()) == wanted).then_some(())
    });
}

#[test]
fn two_hundred_names_come_back_to_a_consul_that_has_lost_all() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let mut consul = Consul::start(&host);
    let daemon = Daemon::configured(&host, &config());
    let user = User::account(1, &host);
    let mut all: Vec<_> = (0..MANY).map(|n| Running::new(&user, format!("n{n}"))).collect();
    all.iter_mut().for_each(|running| running.start(&daemon, true));
    holds(&consul, &all, PATIENCE);

    consul.kill9();
    consul.start_up();
    let back = Instant::now();
    holds(&consul, &all, RIGHT_AGAIN);
    eprintln!("    {MANY} names were back {:?} after Consul had a leader", back.elapsed());
    // And in the catalogue that others ask, not at the agent alone.
    eventually(RIGHT_AGAIN, "the last is found", || {
        (consul.aaaa(&all[MANY - 1].name) == [all[MANY - 1].address?]).then_some(())
    });
    let one = &all[0];
    let text = format!("v6pod_registry_repairs_total {MANY}");
    let metrics = String::from_utf8(daemon.root().get("/metrics").body).expect("text");
    assert!(metrics.lines().any(|line| line == text), "no line {text:?}");
    assert_eq!(consul.aaaa(&one.name), [one.address.expect("it runs")]);
}

#[test]
fn whatever_happens_consul_holds_exactly_the_living() {
    let _machine = require!(Podman, Consul);
    let steps = env::var("V6POD_TEST_STEPS").map_or(500, |n| n.parse().expect("a number"));
    let host = HostNs::new();
    let mut consul = Consul::start(&host);
    let mut daemon = Daemon::configured(&host, &config());
    let user = User::account(1, &host);
    let mut dice = Dice::new();
    let new = |dice: &mut Dice| Running::new(&user, format!("n{}", dice.below(NAMES)));
    let mut all: Vec<_> = (0..CONTAINERS).map(|_| new(&mut dice)).collect();
    let (mut runs, mut counts) = (true, BTreeMap::<&str, usize>::new());
    for step in 0..steps {
        let which = dice.below(CONTAINERS);
        let what = match dice.below(40) {
            0..=17 => {
                let lease = dice.below(2) == 0;
                if all[which].address.is_none() {
                    all[which].start(&daemon, lease);
                }
                "start"
            }
            18..=26 => {
                all[which].stop(&daemon);
                "stop"
            }
            27..=34 => {
                // All at once: the namespace, its process, the lease.
                all[which] = new(&mut dice);
                "kill"
            }
            35 | 36 => {
                // Leases end with their daemon; who held them, this test, lives on.
                daemon.kill9();
                daemon.restart();
                all.iter_mut().for_each(|running| running.lease = None);
                "kill of the daemon"
            }
            37 | 38 => {
                if runs {
                    consul.kill9();
                } else {
                    consul.start_up();
                }
                runs = !runs;
                "end or start of Consul"
            }
            _ => {
                if runs {
                    consul.register("foreign");
                }
                "foreign service"
            }
        };
        *counts.entry(what).or_default() += 1;
        // Now and then it is quiet.
        if step % 50 == 49 {
            if !runs {
                consul.start_up();
                runs = true;
            }
            holds(&consul, &all, PATIENCE);
        }
    }
    if !runs {
        consul.start_up();
    }
    holds(&consul, &all, PATIENCE);
    eprintln!("    {counts:?}");
}
