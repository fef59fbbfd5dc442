//! Issue 5, line 6: open, close, attach, release and restart in any order, against a model of sets; what the
//! kernel has at the end of each sequence is what the model has, element by element.
//!
//! ```text
//!   host ── v6podd ✝ ── v6podd again, told to route or not to
//!     └── ports ── eth0 ┌ up to 6 bare namespaces of root's ┐
//! ```
//!
//! The model knows single ports and single prefixes, and nothing of ranges, records or transactions.
//! `V6POD_TEST_STORMS` says how many sequences; 200 unless told. The seed is printed, and `V6POD_TEST_SEED`
//! runs it again.
#![allow(clippy::expect_used, reason = "a test")]

use std::collections::BTreeSet;
use std::env;
use std::net::Ipv6Addr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use v6pod_proto::wishes::Opening;
use v6pod_proto::{Activate, ContainerId, Mode};
use v6pod_tests::{
    BareNs, Body, Config, Daemon, Dice, HostNs, Invariants, PATIENCE, Response, elements_of,
    eventually, open_in_kernel, random_container_id, require,
};

const STEPS: usize = 16;
const CONTAINERS: usize = 6;

const PREFIXES: [&str; 9] = [
    "",
    "",
    "",
    "@2001:db8::/32",
    "@2001:db8:2::/47",
    "@2001:db8:2::/48",
    "@2001:db8:2:2::/63",
    "@2001:db8:2:2::/64",
    "@2001:db8:2:2::5",
];

/// One port of one protocol, open to the addresses of one prefix. Port 0 is every port.
type Hole = (&'static str, u16, &'static str);

/// What a request says.
struct Said {
    text: String,
    protocol: &'static str,
    ports: std::ops::RangeInclusive<u16>,
    prefix: &'static str,
}

impl Said {
    fn any(dice: &mut Dice) -> Self {
        let protocol = *dice.one_of(&["tcp", "udp"]);
        let first = 1 + dice.below(20) as u16;
        let ports = match dice.below(12) {
            0 => 1..=u16::MAX,
            1..=4 => first..=first + dice.below(8) as u16,
            _ => first..=first,
        };
        // Every port of a prefix is more than anybody may open.
        let prefix = if *ports.end() == u16::MAX { "" } else { *dice.one_of(&PREFIXES) };
        let text = format!("{protocol}/{}-{}{prefix}", ports.start(), ports.end());
        Self { text, protocol, ports, prefix }
    }

    fn is_every(&self) -> bool {
        *self.ports.end() == u16::MAX
    }

    fn holes(&self) -> BTreeSet<Hole> {
        if self.is_every() {
            return [(self.protocol, 0, "")].into();
        }
        self.ports.clone().map(|port| (self.protocol, port, self.prefix)).collect()
    }

    fn has(&self, hole: &Hole) -> bool {
        let same = hole.0 == self.protocol;
        same && (self.is_every() || hole.1 == 0 || self.ports.contains(&hole.1))
    }
}

/// Whether each address of `inner` is one of `outer`: the only ones of [`PREFIXES`] that are disjoint are
/// none.
fn within(inner: &str, outer: &str) -> bool {
    let peers =
        |prefix: &str| format!("tcp/1{prefix}").parse::<Opening>().expect("an opening").peers;
    peers(outer).include(peers(inner))
}

/// What is left, or that it cannot be closed.
fn closed(holes: &BTreeSet<Hole>, said: &Said) -> Option<BTreeSet<Hole>> {
    let mut left = BTreeSet::new();
    for hole in holes {
        if !said.has(hole) {
            left.insert(*hole);
        } else if !within(hole.2, said.prefix) {
            // To more addresses than are to be shut out.
            return None;
        } else if hole.1 == 0 && !said.is_every() {
            // 65,534 ports have no room.
            return None;
        }
    }
    Some(left)
}

/// One container, and what the model says of it.
struct Slot {
    namespace: BareNs,
    id: ContainerId,
    has: Option<(Ipv6Addr, BTreeSet<Hole>)>,
    /// Whether its wishes have been said, and whether they count no more.
    said: bool,
    changed: bool,
    lease: Option<UnixStream>,
}

impl Slot {
    fn new() -> Self {
        let (namespace, id) = (BareNs::new(), random_container_id());
        Self { namespace, id, has: None, said: false, changed: false, lease: None }
    }

    fn attach(&mut self, daemon: &Daemon, dice: &mut Dice) {
        let said: Vec<_> = (0..dice.below(3)).map(|_| Said::any(dice)).collect();
        let mut request = Activate { lease: dice.below(2) == 0, ..Activate::new(self.id.clone()) };
        if !said.is_empty() {
            let texts: Vec<_> = said.iter().map(|said| said.text.as_str()).collect();
            request.annotations.insert("v6pod.ingress".to_owned(), texts.join(","));
        }
        let (answer, stream) = daemon.root().activate(&request, self.namespace.as_fd());
        let made = answer.unwrap_or_else(|refused| panic!("{refused}"));
        match &self.has {
            // What was said first counts.
            Some((address, _)) => assert_eq!(*address, made.address),
            None => (self.said, self.changed) = (false, false),
        }
        let has = self.has.get_or_insert((made.address, BTreeSet::new()));
        if !self.said && !self.changed {
            has.1 = said.iter().flat_map(Said::holes).collect();
        }
        self.said |= !said.is_empty();
        if request.lease {
            self.lease = Some(stream);
        }
    }

    fn release(&mut self, daemon: &Daemon) {
        let form = format!("user=0&id={}", self.id);
        let response = daemon.root().post("/api/deactivate", Body::Form(&form));
        assert_eq!(response.status, 200, "{response}");
        (self.has, self.lease) = (None, None);
    }

    /// The answer, if it is attached.
    fn change(&self, daemon: &Daemon, change: &serde_json::Value) -> Option<Response> {
        let (address, _) = self.has.as_ref()?;
        let path = format!("/api/attachments/{address}");
        Some(daemon.root().call("PATCH", &path, Body::Json(&change.to_string()), None).0)
    }

    fn open(&mut self, daemon: &Daemon, said: &Said) {
        let Some(answer) = self.change(daemon, &serde_json::json!({ "open": [said.text] })) else {
            return;
        };
        assert_eq!(answer.status, 200, "{answer}");
        self.changed = true;
        self.has.as_mut().expect("it is attached").1.extend(said.holes());
    }

    fn close(&mut self, daemon: &Daemon, said: &Said) {
        let Some(answer) = self.change(daemon, &serde_json::json!({ "close": [said.text] })) else {
            return;
        };
        let holes = &mut self.has.as_mut().expect("it is attached").1;
        match closed(holes, said) {
            Some(left) => {
                assert_eq!(answer.status, 200, "close {} of {holes:?}: {answer}", said.text);
                *holes = left;
                self.changed = true;
            }
            None => assert!(matches!(answer.status, 409 | 422), "{}: {answer}", said.text),
        }
    }

    fn replace(&mut self, daemon: &Daemon, all: &[Said]) {
        let texts: Vec<_> = all.iter().map(|said| &said.text).collect();
        let Some(answer) = self.change(daemon, &serde_json::json!({ "openings": texts })) else {
            return;
        };
        assert_eq!(answer.status, 200, "{answer}");
        self.changed = true;
        self.has.as_mut().expect("it is attached").1 = all.iter().flat_map(Said::holes).collect();
    }
}

/// Several changes of one container at once, each of ports of its own: their order is nobody's business.
fn open_at_once(daemon: &Daemon, slot: &mut Slot) {
    let texts = ["tcp/101", "udp/102-104", "tcp/105@2001:db8:2::/47", "udp/106"];
    let opened = std::thread::scope(|scope| {
        let slot = &*slot;
        let each = texts.map(|text| {
            scope.spawn(move || slot.change(daemon, &serde_json::json!({ "open": [text] })))
        });
        each.map(|change| change.join().expect("an answer")).into_iter().flatten().count()
    });
    let Some((_, holes)) = &mut slot.has else { return };
    assert_eq!(opened, texts.len());
    slot.changed = true;
    let more = [("udp", 102, ""), ("udp", 103, ""), ("udp", 104, ""), ("udp", 106, "")];
    holes.extend(more);
    holes.extend([("tcp", 101, ""), ("tcp", 105, "@2001:db8:2::/47")]);
}

fn restart(daemon: &mut Daemon, dice: &mut Dice, slots: &mut [Slot]) {
    if dice.below(2) == 0 {
        daemon.kill9();
    } else {
        daemon.stop();
    }
    let mode = *dice.one_of(&[Mode::Bridge, Mode::Routed]);
    daemon.reconfigure(&Config::default().with_mode(mode));
    // While nobody looks, one may end.
    if dice.below(4) == 0 {
        let which = dice.below(slots.len());
        slots[which] = Slot::new();
    }
    daemon.restart();
    slots.iter_mut().for_each(|slot| slot.lease = None);
}

fn sequence(daemon: &mut Daemon, dice: &mut Dice, slots: &mut [Slot]) {
    for _ in 0..STEPS {
        let which = dice.below(slots.len());
        let slot = &mut slots[which];
        match dice.below(20) {
            0..=4 => slot.attach(daemon, dice),
            5 | 6 => slot.release(daemon),
            7..=11 => slot.open(daemon, &Said::any(dice)),
            12..=15 => slot.close(daemon, &Said::any(dice)),
            16 => {
                let all: Vec<_> = (0..dice.below(4)).map(|_| Said::any(dice)).collect();
                slot.replace(daemon, &all);
            }
            17 => open_at_once(daemon, slot),
            18 => *slot = Slot::new(),
            _ => restart(daemon, dice, slots),
        }
    }
}

/// The elements that the kernel is to have.
fn expected(slots: &[Slot]) -> BTreeSet<String> {
    let of = |(address, holes): &(Ipv6Addr, BTreeSet<Hole>)| {
        let openings: Vec<Opening> = holes
            .iter()
            .map(|(protocol, port, prefix)| {
                let ports = if *port == 0 { "1-65535".to_owned() } else { port.to_string() };
                format!("{protocol}/{ports}{prefix}").parse().expect("an opening")
            })
            .collect();
        elements_of(*address, &openings)
    };
    slots.iter().filter_map(|slot| slot.has.as_ref()).flat_map(of).collect()
}

#[test]
fn whatever_is_opened_and_closed_the_kernel_has_what_the_model_has() {
    let _machine = require!(Root);
    let count = env::var("V6POD_TEST_STORMS").map_or(200, |n| n.parse().expect("a number"));
    let mut dice = Dice::new();
    let host = HostNs::new();
    let mut daemon = Daemon::start(&host);
    let mut slots: Vec<_> = (0..CONTAINERS).map(|_| Slot::new()).collect();
    let mut most = 0;
    for number in 0..count {
        eprintln!("sequence {number}");
        sequence(&mut daemon, &mut dice, &mut slots);
        let expected = expected(&slots);
        most = most.max(expected.len());
        eventually(PATIENCE, "the kernel has what the model has", || {
            (open_in_kernel(&daemon) == expected).then_some(())
        });
    }
    assert!(most > 10, "next to nothing was open: {most}");
    Invariants::hold(&daemon, &[]);
    drop(slots);
    eventually(PATIENCE, "nothing is open", || open_in_kernel(&daemon).is_empty().then_some(()));
}
