//! After a restart: what the records say should be, against what the kernel says is.
//!
//! [`Step::Up`](super::Step::Up) comes after all that keeps a port from doing harm, so a port that is
//! up is an attachment; what is missing of it is put there. Everything else is half of one, and is
//! undone.
//!
//! Records are files, and files can lie: no two of what goes on share a port, an address or an Ethernet
//! address, and what is undone shares none with what goes on. Where two records claim the same, the
//! kernel's forwarding and neighbour entries say whose it is.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use v6pod_proto::{LinkName, Mac, Mode};

use super::attachment::Attachment;
use super::step::Also;
use super::subnet::Nets;

/// What the records say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Attachments that were made or begun.
    pub living: Vec<Attachment>,
    /// Attachments whose end was asked for.
    pub ended: Vec<Attachment>,
}

/// A port that the kernel has in this instance's link group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSeen {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: LinkName,
    /// Whether it is up.
    pub up: bool,
}

/// What the kernel has of this instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The bridge's index, if there is one.
    pub bridge: Option<u32>,
    /// Ports.
    pub ports: Vec<PortSeen>,
    /// The addresses that have a route by the bridge or a port, and the index of that link.
    pub routes: HashSet<(Ipv6Addr, u32)>,
    /// The same of subnets.
    pub subnets: HashSet<(Ipv6Net, u32)>,
    /// The permanent neighbour entries on the bridge and the ports, by address and link.
    pub neighbours: HashMap<(Ipv6Addr, u32), Mac>,
    /// The static forwarding entries: the port's index and the Ethernet address.
    pub forwarding: HashSet<(u32, Mac)>,
}

/// What to do about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Both recorded and real: these go on, at the ports with these indexes.
    pub adopt: Vec<(Attachment, u32)>,
    /// Of these, the ones that somebody has taken an entry or the route of: they get it back.
    pub mend: Vec<(Attachment, u32)>,
    /// Recorded and not whole, or ended: undone step by step, then the record goes.
    pub undo: Vec<Attachment>,
    /// Records that claim what is another's. Nothing is undone by their word; they are put aside, and
    /// their ports are among the strays.
    pub lies: Vec<Attachment>,
    /// Ports that nobody recorded.
    pub stray_ports: Vec<LinkName>,
    /// Addresses whose routes and neighbour entries by these links nobody recorded. Those by ports that
    /// go are not among them: they go with the port.
    pub stray_addresses: Vec<(Ipv6Addr, u32)>,
    /// The same of subnets.
    pub stray_subnets: Vec<(Ipv6Net, u32)>,
}

/// Compares the records with the kernel. `usable` says whether an address can still be used: a
/// prefix may have been changed while the daemon was down.
pub fn reconcile(recorded: Recorded, seen: &Seen, usable: impl Fn(Ipv6Addr) -> bool) -> Plan {
    let mut ports: HashMap<LinkName, PortSeen> =
        seen.ports.iter().map(|port| (port.name.clone(), port.clone())).collect();
    let is_up = |record: &Attachment| {
        ports.get(&record.port.name).filter(|port| port.up).map(|port| port.ifindex)
    };
    let fits = |record: &Attachment, ifindex: u32| {
        let mac = record.port.mac;
        let link = record.port.link(seen.bridge, ifindex);
        let everywhere = |there: &dyn Fn(&(Ipv6Addr, u32)) -> bool| {
            link.is_some_and(|link| record.port.addresses().all(|address| there(&(address, link))))
        };
        let neighbour = everywhere(&|at| seen.neighbours.get(at) == Some(&mac));
        let forwarding =
            record.port.mode == Mode::Routed || seen.forwarding.contains(&(ifindex, mac));
        let mut subnets = record.port.subnets().map(Also::net);
        let routes = everywhere(&|at| seen.routes.contains(at))
            && subnets.all(|net| link.is_some_and(|link| seen.subnets.contains(&(net, link))));
        (forwarding, neighbour, routes)
    };
    let (mut whole, half): (Vec<_>, Vec<_>) = recorded
        .living
        .into_iter()
        .partition(|record| is_up(record).is_some() && usable(record.port.address));
    // Whom the kernel bears out comes first, so of two who claim the same he has it.
    whole.sort_by_cached_key(|record| {
        let (forwarding, neighbour, _) =
            is_up(record).map_or_else(Default::default, |i| fits(record, i));
        (!(forwarding && neighbour), record.since, record.id.clone())
    });
    let mut plan = Plan::default();
    let mut taken = Taken::default();
    for record in whole {
        let Some(ifindex) = is_up(&record) else { continue };
        if !taken.take(&record) {
            plan.lies.push(record);
            continue;
        }
        if fits(&record, ifindex) != (true, true, true) {
            plan.mend.push((record.clone(), ifindex));
        }
        plan.adopt.push((record, ifindex));
    }
    for record in half.into_iter().chain(recorded.ended) {
        if taken.has_any_of(&record) { plan.lies.push(record) } else { plan.undo.push(record) }
    }
    for record in plan.adopt.iter().map(|(record, _)| record).chain(&plan.undo) {
        ports.remove(&record.port.name);
    }
    plan.stray_ports = ports.into_keys().collect();
    plan.stray_ports.sort_unstable();
    let each = |record: &Attachment| record.port.addresses().collect();
    let entries = seen.routes.iter().chain(seen.neighbours.keys()).copied();
    plan.stray_addresses = strays(&plan, seen, entries.collect(), each);
    let each = |record: &Attachment| record.port.subnets().map(Also::net).collect();
    plan.stray_subnets = strays(&plan, seen, seen.subnets.clone(), each);
    plan
}

/// The entries by links that stay which belong to nothing that goes on or is undone.
fn strays<T: Ord + Hash + Copy>(
    plan: &Plan,
    seen: &Seen,
    entries: HashSet<(T, u32)>,
    each: impl Fn(&Attachment) -> Vec<T>,
) -> Vec<(T, u32)> {
    let all = |record: &Attachment, link: Option<u32>| -> Vec<_> {
        each(record).into_iter().filter_map(|which| Some((which, link?))).collect()
    };
    let going_on =
        |(record, port): &(Attachment, u32)| all(record, record.port.link(seen.bridge, *port));
    let undone = plan.undo.iter().filter(|record| record.port.mode == Mode::Bridge);
    let undone = undone.flat_map(|record| all(record, seen.bridge));
    let spoken_for: HashSet<_> = plan.adopt.iter().flat_map(going_on).chain(undone).collect();
    let staying: HashSet<_> = plan.adopt.iter().map(|(_, port)| *port).chain(seen.bridge).collect();
    let is_stray = |at: &(T, u32)| staying.contains(&at.1) && !spoken_for.contains(at);
    let mut strays: Vec<_> = entries.into_iter().filter(is_stray).collect();
    strays.sort_unstable();
    strays
}

/// What goes on has these.
#[derive(Default)]
struct Taken {
    ports: HashSet<LinkName>,
    nets: Nets,
    macs: HashSet<Mac>,
}

impl Taken {
    fn has_any_of(&self, record: &Attachment) -> bool {
        self.ports.contains(&record.port.name)
            || record.port.nets().any(|net| self.nets.overlaps(&net))
            || self.macs.contains(&record.port.mac)
    }

    /// False if any of it is taken: then nothing has been.
    fn take(&mut self, record: &Attachment) -> bool {
        if self.has_any_of(record) {
            return false;
        }
        self.ports.insert(record.port.name.clone());
        record.port.nets().for_each(|net| self.nets.insert(net, ()));
        self.macs.insert(record.port.mac);
        true
    }
}

#[cfg(test)]
mod tests {
    use v6pod_proto::{AttachmentId, Uid};

    use super::*;
    use crate::core::Port;
    use crate::core::attachment::{Generation, NamespaceId, Phase};

    fn record(n: u16) -> Attachment {
        Attachment {
            id: AttachmentId::from_bits(n.into()),
            owner: Uid::ROOT,
            container: "ab".repeat(32).parse().unwrap(),
            name: None,
            label: None,
            further: Vec::new(),
            wishes: Default::default(),
            found: Default::default(),
            open: Default::default(),
            namespace: NamespaceId { inode: n.into(), cookie: None },
            port: Port {
                name: format!("p{n}").parse().unwrap(),
                interface: "eth0".parse().unwrap(),
                mac: mac(n),
                address: address(n),
                gateway: address(1),
                mtu: 1500,
                owner: Uid::ROOT,
                open: Default::default(),
                subnet: None,
                also: Vec::new(),
                alias: String::new(),
                mode: Mode::Bridge,
            },
            holder: None,
            lease: true,
            since: 0,
            network: None,
            attempt: None,
            generation: Generation::default(),
            phase: Phase::Reserved,
            ifindex: None,
        }
    }

    fn address(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n)
    }

    fn mac(n: u16) -> Mac {
        let [high, low] = n.to_be_bytes();
        Mac::local([2, 0, 0, 0, high, low])
    }

    fn living(records: impl Into<Vec<Attachment>>) -> Recorded {
        Recorded { living: records.into(), ended: vec![] }
    }

    const BRIDGE: u32 = 999;

    /// The same on a routed port.
    fn routed(n: u16) -> Attachment {
        Attachment { port: Port { mode: Mode::Routed, ..record(n).port }, ..record(n) }
    }

    /// All that is made for these on the bridge.
    fn whole(numbers: &[u16]) -> Seen {
        Seen {
            bridge: Some(BRIDGE),
            ports: numbers.iter().map(|&n| port(n, true)).collect(),
            routes: numbers.iter().map(|&n| (address(n), BRIDGE)).collect(),
            subnets: HashSet::new(),
            neighbours: numbers.iter().map(|&n| ((address(n), BRIDGE), mac(n))).collect(),
            forwarding: numbers.iter().map(|&n| (n.into(), mac(n))).collect(),
        }
    }

    fn port(n: u16, up: bool) -> PortSeen {
        PortSeen { ifindex: n.into(), name: format!("p{n}").parse().unwrap(), up }
    }

    #[test]
    fn whole_ones_go_on_and_halves_and_strays_go() {
        let mut seen = whole(&[2]);
        seen.ports.extend([port(3, false), port(9, true)]);
        seen.routes.extend([3, 4, 8].map(|n| (address(n), BRIDGE)));
        seen.neighbours.insert((address(8), BRIDGE), mac(8));
        let plan = reconcile(living([record(2), record(3), record(4)]), &seen, |_| true);
        assert_eq!(plan.adopt, [(record(2), 2)]);
        assert_eq!(plan.undo, [record(3), record(4)]);
        assert_eq!(plan.stray_ports, ["p9".parse().unwrap()]);
        assert_eq!(plan.stray_addresses, [(address(8), BRIDGE)]);
        assert!(plan.mend.is_empty() && plan.lies.is_empty());
    }

    #[test]
    fn an_attachment_of_a_prefix_that_is_no_more_goes() {
        let plan = reconcile(living([record(2)]), &whole(&[2]), |_| false);
        assert_eq!(plan.undo, [record(2)]);
        assert!(plan.stray_ports.is_empty() && plan.stray_addresses.is_empty());
    }

    #[test]
    fn what_was_to_end_goes_however_whole_it_is() {
        let recorded = Recorded { living: vec![record(2)], ended: vec![record(3)] };
        let plan = reconcile(recorded, &whole(&[2, 3]), |_| true);
        assert_eq!((plan.adopt, plan.undo), (vec![(record(2), 2)], vec![record(3)]));
        assert!(plan.stray_ports.is_empty() && plan.stray_addresses.is_empty());
    }

    #[test]
    fn of_two_who_claim_the_same_the_kernel_says_whose_it_is() {
        let liars = [
            Port { address: address(2), ..record(3).port },
            Port { mac: mac(2), ..record(3).port },
        ];
        for port in liars {
            // Older than the honest one, first in the folder, and with a port that is there and up.
            let liar = Attachment { port, ..record(3) };
            let honest = Attachment { since: 5, ..record(2) };
            let plan = reconcile(living([liar.clone(), honest.clone()]), &whole(&[2, 3]), |_| true);
            assert_eq!(plan.adopt, [(honest, 2)]);
            assert_eq!(plan.lies, std::slice::from_ref(&liar));
            assert_eq!(plan.stray_ports, ["p3".parse().unwrap()]);
            assert!(plan.undo.is_empty() && !plan.stray_addresses.contains(&(address(2), BRIDGE)));
        }
    }

    #[test]
    fn nothing_is_undone_by_the_word_of_a_record_that_claims_what_is_anothers() {
        let liar = Attachment { port: Port { address: address(2), ..record(3).port }, ..record(3) };
        for recorded in [
            Recorded { living: vec![record(2), liar.clone()], ended: vec![] },
            Recorded { living: vec![record(2)], ended: vec![liar.clone()] },
        ] {
            let plan = reconcile(recorded, &whole(&[2]), |_| true);
            assert_eq!(plan.adopt, [(record(2), 2)]);
            assert_eq!((plan.lies, plan.undo), (vec![liar.clone()], vec![]));
        }
    }

    #[test]
    fn whoever_lost_an_entry_or_the_route_gets_it_back() {
        let mut without = [whole(&[2]), whole(&[2]), whole(&[2])];
        without[0].routes.clear();
        without[1].neighbours.clear();
        without[2].forwarding.clear();
        for seen in &without {
            let plan = reconcile(living([record(2)]), seen, |_| true);
            assert_eq!(plan.adopt, [(record(2), 2)]);
            assert_eq!(plan.mend, plan.adopt);
        }
    }

    #[test]
    fn a_routed_ports_entries_are_by_itself_and_others_are_strays() {
        let mut seen = Seen {
            bridge: Some(BRIDGE),
            ports: vec![port(2, true), port(3, true)],
            routes: [(address(2), 2), (address(3), 3)].into(),
            neighbours: [((address(2), 2), mac(2)), ((address(3), 3), mac(3))].into(),
            ..Seen::default()
        };
        let both = || living([routed(2), routed(3)]);
        let plan = reconcile(both(), &seen, |_| true);
        assert_eq!(plan.adopt, [(routed(2), 2), (routed(3), 3)]);
        assert!(plan.mend.is_empty() && plan.stray_addresses.is_empty(), "{plan:?}");
        // By the bridge, or by a sibling's port, they are not its own.
        for elsewhere in [BRIDGE, 3] {
            seen.routes = [(address(2), elsewhere), (address(3), 3)].into();
            let plan = reconcile(both(), &seen, |_| true);
            assert_eq!(plan.mend, [(routed(2), 2)]);
            assert_eq!(plan.stray_addresses, [(address(2), elsewhere)]);
        }
        // With a port that goes go its entries.
        let plan = reconcile(living([routed(3)]), &seen, |_| true);
        assert_eq!((plan.stray_ports.len(), plan.stray_addresses), (1, vec![(address(2), 3)]));
        seen.ports.remove(0);
        let plan = reconcile(both(), &seen, |_| true);
        assert_eq!(plan.undo, [routed(2)]);
    }

    #[test]
    fn a_routed_port_that_came_up_before_its_route_gets_it() {
        let seen = Seen {
            ports: vec![port(2, true)],
            neighbours: [((address(2), 2), mac(2))].into(),
            ..Seen::default()
        };
        let plan = reconcile(living([routed(2)]), &seen, |_| true);
        assert_eq!(plan.mend, [(routed(2), 2)]);
        assert_eq!(plan.mend, plan.adopt);
    }

    #[test]
    fn a_ports_number_that_is_anothers_now_means_nothing() {
        // The record's port is gone; a link of another name has its number.
        let seen =
            Seen { ports: vec![PortSeen { ifindex: 2, ..port(9, true) }], ..Seen::default() };
        let plan = reconcile(living([record(2)]), &seen, |_| true);
        assert_eq!((plan.adopt, plan.undo), (vec![], vec![record(2)]));
    }
}
