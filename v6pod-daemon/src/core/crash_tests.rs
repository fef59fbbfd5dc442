//! Crashes after any step, against a kernel and a disk that are made of sets.
//!
//! The steps and their order, the rules of the undo and [`reconcile`] are the real ones. What is checked
//! after every restart: records and kernel say the same, nothing is shared, nothing is a stray, and
//! whoever was answered is still there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv6Addr;

use proptest::prelude::*;
use v6pod_proto::wishes::OpeningList;
use v6pod_proto::{AttachmentId, Change, LinkName, Mac, Mode, OpenedBy, Uid};

use super::attachment::{Attachment, Generation, NamespaceId, Phase, port_name};
use super::hole::Holes;
use super::open::{OpenPorts, Rights};
use super::reconcile::{PortSeen, Recorded, Seen, reconcile};
use super::ruleset::Elements;
use super::step::{Port, Step, attach, detach};

/// The bridge's index: none of the ports'.
const BRIDGE: u32 = u32::MAX;

#[derive(Debug, Clone, Default)]
struct FakeKernel {
    ports: BTreeMap<LinkName, FakePort>,
    neighbours: BTreeMap<(Ipv6Addr, u32), Mac>,
    routes: BTreeSet<(Ipv6Addr, u32)>,
    elements: BTreeSet<Elements>,
    proxies: BTreeSet<Ipv6Addr>,
    last_ifindex: u32,
}

#[derive(Debug, Clone)]
struct FakePort {
    ifindex: u32,
    isolated: bool,
    up: bool,
    forwarding: Option<Mac>,
}

impl FakeKernel {
    /// Where the port's entries are, as long as that is there.
    fn at(&self, port: &Port) -> Option<(Ipv6Addr, u32)> {
        match port.mode {
            Mode::Bridge => Some((port.address, BRIDGE)),
            Mode::Routed => Some((port.address, self.ports.get(&port.name)?.ifindex)),
        }
    }

    /// With a link go the entries by it.
    fn delete(&mut self, port: &LinkName) {
        if let Some(FakePort { ifindex, .. }) = self.ports.remove(port) {
            self.flush(ifindex);
        }
    }

    fn flush(&mut self, link: u32) {
        self.routes.retain(|(_, at)| *at != link);
        self.neighbours.retain(|(_, at), _| *at != link);
    }

    fn run(&mut self, port: &Port, step: &Step) {
        let at = self.at(port);
        let link = self.ports.get_mut(&port.name);
        match (step, link) {
            (Step::Rules, _) => drop(self.elements.insert(Elements::of(port))),
            (Step::Pair, _) => {
                self.last_ifindex += 1;
                let ifindex = self.last_ifindex;
                let new = FakePort { ifindex, isolated: false, up: false, forwarding: None };
                assert!(self.ports.insert(port.name.clone(), new).is_none(), "made twice");
            }
            (Step::Guard, Some(link)) => link.isolated = true,
            (Step::Forwarding, Some(link)) if port.mode == Mode::Bridge => {
                link.forwarding = Some(port.mac);
            }
            (Step::Neighbour, _) => drop(at.map(|at| self.neighbours.insert(at, port.mac))),
            (Step::Route, link) => {
                let up = port.mode == Mode::Bridge || link.is_some_and(|link| link.up);
                assert!(up, "a route by a link that is down");
                assert!(at.is_none_or(|at| self.routes.insert(at)), "somebody else's route");
            }
            (Step::Proxy, _) => drop(self.proxies.insert(port.address)),
            (Step::Up, Some(link)) => {
                assert!(link.isolated, "up before it is isolated");
                assert!(self.elements.contains(&Elements::of(port)), "up without rules");
                link.up = true;
            }
            // What happens inside, and what is done to a port that is gone.
            _ => {}
        }
    }

    fn undo(&mut self, port: &Port, step: &Step) {
        match step {
            Step::Rules => drop(self.elements.remove(&Elements::of(port))),
            Step::Pair => self.delete(&port.name),
            Step::Up => {
                let Some(link) = self.ports.get_mut(&port.name) else { return };
                link.up = false;
                let ifindex = link.ifindex;
                self.flush(ifindex);
            }
            Step::Neighbour => drop(self.at(port).map(|at| self.neighbours.remove(&at))),
            Step::Route => drop(self.at(port).map(|at| self.routes.remove(&at))),
            Step::Proxy => drop(self.proxies.remove(&port.address)),
            _ => {}
        }
    }

    fn seen(&self) -> Seen {
        let port = |(name, port): (&LinkName, &FakePort)| PortSeen {
            ifindex: port.ifindex,
            name: name.clone(),
            up: port.up,
        };
        let entry = |port: &FakePort| Some((port.ifindex, port.forwarding?));
        Seen {
            bridge: Some(BRIDGE),
            ports: self.ports.iter().map(port).collect(),
            routes: self.routes.iter().copied().collect(),
            subnets: HashSet::new(),
            neighbours: self.neighbours.iter().map(|(a, m)| (*a, *m)).collect(),
            forwarding: self.ports.values().filter_map(entry).collect(),
        }
    }
}

/// The world: what is on disk and in the kernel, and whom somebody was told about.
#[derive(Debug, Default)]
struct World {
    kernel: FakeKernel,
    disk: BTreeMap<AttachmentId, (Attachment, bool)>,
    answered: BTreeMap<AttachmentId, Attachment>,
    made: u16,
}

/// The daemon dies when this has counted down.
struct Fuse(usize);

struct Died;

impl Fuse {
    fn burn(&mut self) -> Result<(), Died> {
        self.0 = self.0.checked_sub(1).ok_or(Died)?;
        Ok(())
    }
}

impl World {
    fn attach(&mut self, mode: Mode, fuse: &mut Fuse) -> Result<(), Died> {
        self.made += 1;
        let a = attachment(self.made, mode);
        fuse.burn()?;
        self.disk.insert(a.id.clone(), (a.clone(), false));
        for step in attach(mode) {
            fuse.burn()?;
            self.kernel.run(&a.port, step);
        }
        fuse.burn()?;
        self.answered.insert(a.id.clone(), a);
        Ok(())
    }

    /// What is open of one changes: on disk, in memory, in the kernel, in one transaction.
    fn change(&mut self, which: usize, port: u16, fuse: &mut Fuse) -> Result<(), Died> {
        let Some(a) = nth(&self.answered, which).and_then(|id| self.answered.get_mut(&id)) else {
            return Ok(());
        };
        let before = Elements::of(&a.port);
        a.open = opened(port);
        a.port.open = a.open.holes();
        fuse.burn()?;
        self.disk.insert(a.id.clone(), (a.clone(), false));
        fuse.burn()?;
        self.kernel.elements.remove(&before);
        self.kernel.elements.insert(Elements::of(&a.port));
        Ok(())
    }

    /// The record says that it has ended, and then it is taken away.
    fn end(&mut self, which: usize, fuse: &mut Fuse) -> Result<(), Died> {
        let Some(id) = nth(&self.answered, which) else { return Ok(()) };
        fuse.burn()?;
        self.disk.entry(id.clone()).and_modify(|(_, ended)| *ended = true);
        let Some(a) = self.answered.remove(&id) else { return Ok(()) };
        self.take_away(&a, fuse)
    }

    /// The namespace goes, and the port with it; the daemon hears of it.
    fn namespace_dies(&mut self, which: usize, fuse: &mut Fuse) -> Result<(), Died> {
        let Some(id) = nth(&self.answered, which) else { return Ok(()) };
        let Some(a) = self.answered.remove(&id) else { return Ok(()) };
        self.kernel.delete(&a.port.name);
        fuse.burn()?;
        self.disk.entry(id).and_modify(|(_, ended)| *ended = true);
        self.take_away(&a, fuse)
    }

    fn take_away(&mut self, a: &Attachment, fuse: &mut Fuse) -> Result<(), Died> {
        for step in detach(a.port.mode) {
            fuse.burn()?;
            self.kernel.undo(&a.port, step);
        }
        fuse.burn()?;
        self.disk.remove(&a.id);
        Ok(())
    }

    /// What the daemon does when it comes back, and dies of again.
    fn restart(&mut self, fuse: &mut Fuse) -> Result<(), Died> {
        let records = |ended: bool| {
            let those = self.disk.values().filter(move |(_, e)| *e == ended);
            those.map(|(a, _)| a.clone()).collect()
        };
        let recorded = Recorded { living: records(false), ended: records(true) };
        let plan = reconcile(recorded, &self.kernel.seen(), |_| true);
        // One transaction, as the daemon's: those that go on, and nobody else's.
        fuse.burn()?;
        self.kernel.elements = plan.adopt.iter().map(|(a, _)| Elements::of(&a.port)).collect();
        for a in &plan.undo {
            self.take_away(a, fuse)?;
        }
        for a in &plan.lies {
            fuse.burn()?;
            self.disk.remove(&a.id);
        }
        for (a, _) in &plan.mend {
            for step in [Step::Forwarding, Step::Neighbour] {
                fuse.burn()?;
                self.kernel.run(&a.port, &step);
            }
            fuse.burn()?;
            self.kernel.routes.extend(self.kernel.at(&a.port));
        }
        for name in &plan.stray_ports {
            fuse.burn()?;
            self.kernel.delete(name);
        }
        for at in &plan.stray_addresses {
            fuse.burn()?;
            self.kernel.routes.remove(at);
            self.kernel.neighbours.remove(at);
        }
        // Adopted: answered for, whether or not the answer ever arrived.
        self.answered = plan.adopt.into_iter().map(|(a, _)| (a.id.clone(), a)).collect();
        self.settle_proxies(fuse)
    }

    /// As `attachments/proxying.rs` does.
    fn settle_proxies(&mut self, fuse: &mut Fuse) -> Result<(), Died> {
        let kept: BTreeSet<_> = self.answered.values().map(|a| a.port.address).collect();
        let seen = self.kernel.proxies.clone();
        for stray in seen.difference(&kept) {
            fuse.burn()?;
            self.kernel.proxies.remove(stray);
        }
        for missing in kept.difference(&seen) {
            fuse.burn()?;
            self.kernel.proxies.insert(*missing);
        }
        Ok(())
    }

    fn is_in_order(&self) {
        let kernel = &self.kernel;
        let ids: Vec<_> = self.disk.keys().collect();
        assert_eq!(ids, self.answered.keys().collect::<Vec<_>>(), "records and what lives");
        let ports: HashSet<_> = self.disk.values().map(|(a, _)| &a.port.name).collect();
        assert_eq!(ports, kernel.ports.keys().collect(), "records and ports");
        let addresses: BTreeSet<_> = self.disk.values().map(|(a, _)| a.port.address).collect();
        let at = |a: &Attachment| kernel.at(&a.port).expect("its port is there");
        let routes: BTreeSet<_> = self.disk.values().map(|(a, _)| at(a)).collect();
        assert_eq!(routes, kernel.routes, "records and routes");
        assert_eq!(addresses, kernel.proxies, "records and answers on the uplink");
        let neighbours: BTreeMap<_, _> =
            self.disk.values().map(|(a, _)| (at(a), a.port.mac)).collect();
        assert_eq!(neighbours, kernel.neighbours, "records and neighbours");
        let elements: BTreeSet<_> =
            self.disk.values().map(|(a, _)| Elements::of(&a.port)).collect();
        assert_eq!(elements, kernel.elements, "records and the firewall");
        assert_eq!(addresses.len(), ids.len(), "an address twice");
        for (a, _) in self.disk.values() {
            let port = &kernel.ports[&a.port.name];
            let forwarding = (a.port.mode == Mode::Bridge).then_some(a.port.mac);
            assert!(port.up && port.isolated && port.forwarding == forwarding, "{port:?}");
        }
    }
}

/// Two ports, or nothing.
fn opened(port: u16) -> OpenPorts {
    let texts = [format!("tcp/{port}"), format!("udp/{port}@2001:db8::/32")];
    let list = texts.iter().filter(|_| port > 3).map(|text| text.parse().unwrap()).collect();
    let change = Change { openings: Some(OpeningList(list)), ..Change::default() };
    OpenPorts::default().change(&change, OpenedBy::Owner, &Rights::All, Holes::MOST).unwrap()
}

fn nth(all: &BTreeMap<AttachmentId, Attachment>, which: usize) -> Option<AttachmentId> {
    all.keys().nth(which.checked_rem(all.len())?).cloned()
}

fn attachment(n: u16, mode: Mode) -> Attachment {
    let id = AttachmentId::from_bits(u128::from(n) << 112);
    let [high, low] = n.to_be_bytes();
    Attachment {
        owner: Uid::ROOT,
        container: format!("{n:064x}").parse().unwrap(),
        name: None,
        label: None,
        further: Vec::new(),
        wishes: Default::default(),
        found: Default::default(),
        open: Default::default(),
        namespace: NamespaceId { inode: n.into(), cookie: None },
        port: Port {
            name: port_name(&id),
            interface: "eth0".parse().unwrap(),
            mac: Mac::local([2, 0, 0, 0, high, low]),
            address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n),
            gateway: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
            mtu: 1500,
            owner: Uid::ROOT,
            open: Default::default(),
            subnet: None,
            also: Vec::new(),
            alias: String::new(),
            mode,
        },
        holder: None,
        lease: true,
        since: n.into(),
        network: None,
        attempt: None,
        generation: Generation::default(),
        phase: Phase::Reserved,
        ifindex: None,
        id,
    }
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Attach(Mode),
    End(usize),
    NamespaceDies(usize),
    Change(usize, u16),
    /// While no daemon looks.
    NamespaceDiesUnseen(usize),
    /// Somebody flushes a table.
    Flush(u8),
    /// Somebody writes a record that claims the address of another's.
    Lie(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => Just(Action::Attach(Mode::Bridge)),
        2 => Just(Action::Attach(Mode::Routed)),
        2 => any::<usize>().prop_map(Action::End),
        2 => any::<usize>().prop_map(Action::NamespaceDies),
        3 => (any::<usize>(), 1_u16..9).prop_map(|(which, port)| Action::Change(which, port)),
        1 => any::<usize>().prop_map(Action::NamespaceDiesUnseen),
        1 => any::<u8>().prop_map(Action::Flush),
        1 => any::<usize>().prop_map(Action::Lie),
    ]
}

/// How much the daemon does until it dies; and how much at its next tries to come back.
fn crash() -> impl Strategy<Value = (usize, Vec<usize>)> {
    (0usize..40, prop::collection::vec(0usize..12, 0..3))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn after_any_crash_and_restart_all_is_whole_or_nothing(
        lives in prop::collection::vec((prop::collection::vec(action(), 1..8), crash()), 1..6),
    ) {
        let mut world = World::default();
        for (actions, (fuse, failed_restarts)) in lives {
            let mut fuse = Fuse(fuse);
            // Harm is done to what serves, so it comes before the crash that hides it.
            let mut dead: HashMap<AttachmentId, ()> = HashMap::new();
            for action in actions {
                let done = match action {
                    Action::Attach(mode) => world.attach(mode, &mut fuse),
                    Action::End(which) => world.end(which, &mut fuse),
                    Action::Change(which, port) => world.change(which, port, &mut fuse),
                    Action::NamespaceDies(which) => world.namespace_dies(which, &mut fuse),
                    _ => Ok(()),
                };
                if done.is_err() {
                    break;
                }
                match action {
                    Action::NamespaceDiesUnseen(which) => {
                        if let Some(id) = nth(&world.answered, which) {
                            let port = world.answered[&id].port.name.clone();
                            world.kernel.delete(&port);
                            dead.insert(id, ());
                        }
                    }
                    Action::Flush(0..=60) => world.kernel.routes.clear(),
                    Action::Flush(61..=120) => world.kernel.proxies.clear(),
                    Action::Flush(121..=180) => world.kernel.neighbours.clear(),
                    Action::Flush(_) => {
                        world.kernel.ports.values_mut().for_each(|port| port.forwarding = None);
                    }
                    Action::Lie(which) => {
                        if let Some(id) = nth(&world.answered, which) {
                            world.made += 1;
                            let mode = if which % 2 == 0 { Mode::Bridge } else { Mode::Routed };
                            let mut liar = attachment(world.made, mode);
                            liar.port.address = world.answered[&id].port.address;
                            world.disk.insert(liar.id.clone(), (liar, false));
                        }
                    }
                    _ => {}
                }
            }
            let living: BTreeSet<_> =
                world.answered.keys().filter(|id| !dead.contains_key(*id)).cloned().collect();
            for fuse in failed_restarts {
                let _ = world.restart(&mut Fuse(fuse));
            }
            let done = world.restart(&mut Fuse(usize::MAX));
            prop_assert!(done.is_ok());
            world.is_in_order();
            for id in living {
                prop_assert!(world.answered.contains_key(&id), "{id} was answered and is gone");
            }
        }
    }
}
