//! Issue 3, crash safety: anything, in any order, with the daemon killed in between and told to route or not
//! to, against a model that says who has an address.
//!
//! `V6POD_TEST_STORMS` says how many sequences; 40 unless told. The seed of a failure is printed, and
//! `V6POD_TEST_SEED` runs it again.
#![allow(clippy::expect_used, reason = "a test")]

use std::env;
use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use v6pod_proto::{Activate, ContainerId, Mode};
use v6pod_tests::{
    Body, Config, Daemon, Dice, HostNs, Invariants, OwnedNs, random_container_id, require,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;
const STEPS: usize = 30;
const CONTAINERS: usize = 5;

/// One container, and what the model says of it.
struct Slot {
    namespace: OwnedNs,
    id: ContainerId,
    has: Has,
    stream: Option<UnixStream>,
}

/// What the model says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    None,
    This(Ipv6Addr),
    /// Its lease has ended. It goes after the grace; a new start takes over what is still there.
    Fading,
}

impl Slot {
    fn new() -> Self {
        let (namespace, id) = (OwnedNs::of_uid(UID, true), random_container_id());
        Self { namespace, id, has: Has::None, stream: None }
    }

    fn activate(&mut self, daemon: &Daemon, lease: bool, plug: bool) {
        let request = Activate { lease, plug, ..Activate::new(self.id.clone()) };
        let network: File = self.namespace.network();
        let (answer, stream) = daemon.as_user(UID).activate(&request, network.as_fd());
        match (answer, self.has) {
            (Ok(made), Has::This(address)) => {
                assert_eq!(made.address, address, "the address changed under its container");
            }
            (Ok(made), Has::None | Has::Fading) => {
                assert!(plug || self.has == Has::Fading, "made by a request that only describes");
                if !plug {
                    return;
                }
                self.has = Has::This(made.address);
                self.stream = None;
            }
            (Err(refused), Has::None | Has::Fading) if !plug => {
                assert_eq!(refused.status, 404, "{refused}");
                return;
            }
            (Err(refused), _) => panic!("{refused}"),
        }
        if lease && plug {
            self.stream = Some(stream);
        }
    }

    fn deactivate(&mut self, daemon: &Daemon) {
        let form = format!("user={UID}&id={}", self.id);
        let response = daemon.as_user(UID).post("/api/deactivate", Body::Form(&form));
        assert_eq!(response.status, 200, "{response}");
        (self.has, self.stream) = (Has::None, None);
    }

    fn hang_up(&mut self) {
        if self.stream.take().is_some() {
            self.has = Has::Fading;
        }
    }
}

/// The daemon is gone: no lease is one any more, and who had an address keeps it.
fn forget_leases(slots: &mut [Slot]) {
    for slot in slots {
        slot.stream = None;
        if slot.has == Has::Fading {
            // Whether its end was on disk nobody can say, and its holder, this test, lives on: another
            // container takes its place.
            *slot = Slot::new();
        }
    }
}

fn at_rest(daemon: &Daemon, slots: &[Slot]) {
    let living: Vec<_> = slots
        .iter()
        .filter_map(|slot| match slot.has {
            Has::This(address) => Some((&slot.namespace, address)),
            Has::None | Has::Fading => None,
        })
        .collect();
    Invariants::hold(daemon, &living);
    let fading = slots.iter().filter(|slot| slot.has == Has::Fading).count();
    let listed = daemon.attachments().len();
    assert!((living.len()..=living.len() + fading).contains(&listed), "{listed} attachments");
}

fn storm(daemon: &mut Daemon, dice: &mut Dice) {
    let mut slots: Vec<_> = (0..CONTAINERS).map(|_| Slot::new()).collect();
    for _ in 0..STEPS {
        let which = dice.below(CONTAINERS);
        let slot = &mut slots[which];
        match dice.below(14) {
            0..=3 => slot.activate(daemon, true, true),
            4 => slot.activate(daemon, false, true),
            5 => slot.activate(daemon, false, false),
            6 | 7 => slot.deactivate(daemon),
            8 | 9 => slot.hang_up(),
            10 => *slot = Slot::new(),
            11 => {
                // The same request from several at once.
                let request = Activate::new(slot.id.clone());
                let addresses: Vec<_> = std::thread::scope(|scope| {
                    let ask = || {
                        let network = slot.namespace.network();
                        let (answer, _) = daemon.as_user(UID).activate(&request, network.as_fd());
                        answer.unwrap_or_else(|refused| panic!("{refused}")).address
                    };
                    let asked: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
                    asked.into_iter().map(|asked| asked.join().expect("an answer")).collect()
                });
                assert!(addresses.iter().all(|a| *a == addresses[0]), "{addresses:?}");
                slot.activate(daemon, true, true);
            }
            12 => {
                daemon.kill9();
                if dice.below(2) == 0 {
                    slots[which] = Slot::new();
                }
                daemon.restart();
                forget_leases(&mut slots);
            }
            _ => {
                daemon.stop();
                let mode = if dice.below(2) == 0 { Mode::Bridge } else { Mode::Routed };
                daemon.reconfigure(&Config::default().with_mode(mode));
                daemon.restart();
                forget_leases(&mut slots);
            }
        }
    }
    at_rest(daemon, &slots);
}

#[test]
fn whatever_happens_the_daemon_and_the_model_agree() {
    let _machine = require!(Root);
    let count = env::var("V6POD_TEST_STORMS").map_or(40, |n| n.parse().expect("a number"));
    let host = HostNs::new();
    let mut daemon = Daemon::start(&host);
    let before = daemon.footprint();
    let mut dice = Dice::new();
    for number in 0..count {
        println!("storm {number}");
        storm(&mut daemon, &mut dice);
    }
    before.comes_back(&daemon);
}
