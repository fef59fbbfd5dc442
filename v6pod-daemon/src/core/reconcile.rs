//! After a restart: what the records say should be, against what the kernel says is.
//!
//! [`Step::Up`](super::Step::Up) is the last step that attaches a container, so a port that is up is
//! a whole attachment. Everything else is half of one, and is undone.
//!
//! Records are files, and files can lie: no two of what goes on share a port, an address or an Ethernet
//! address, and what is undone shares none with what goes on. Where two records claim the same, the
//! kernel's forwarding and neighbour entries say whose it is.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;

use v6pod_proto::{LinkName, Mac};

use super::attachment::Attachment;

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
    /// Ports.
    pub ports: Vec<PortSeen>,
    /// The addresses that have a route by the bridge.
    pub routes: HashSet<Ipv6Addr>,
    /// The permanent neighbour entries on the bridge.
    pub neighbours: HashMap<Ipv6Addr, Mac>,
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
    /// Addresses whose routes and neighbour entries nobody recorded.
    pub stray_addresses: Vec<Ipv6Addr>,
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
        let (address, mac) = (record.port.address, record.port.mac);
        let neighbour = seen.neighbours.get(&address) == Some(&mac);
        (seen.forwarding.contains(&(ifindex, mac)), neighbour, seen.routes.contains(&address))
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
    for (record, _) in &plan.adopt {
        ports.remove(&record.port.name);
    }
    let spoken_for: HashSet<_> = plan.undo.iter().map(|record| record.port.address).collect();
    for record in &plan.undo {
        ports.remove(&record.port.name);
    }
    plan.stray_ports = ports.into_keys().collect();
    plan.stray_ports.sort_unstable();
    let addresses: HashSet<_> = seen.routes.iter().chain(seen.neighbours.keys()).copied().collect();
    let is_stray = |a: &Ipv6Addr| !spoken_for.contains(a) && !taken.addresses.contains(a);
    plan.stray_addresses = addresses.into_iter().filter(is_stray).collect();
    plan.stray_addresses.sort_unstable();
    plan
}

/// What goes on has these.
#[derive(Default)]
struct Taken {
    ports: HashSet<LinkName>,
    addresses: HashSet<Ipv6Addr>,
    macs: HashSet<Mac>,
}

impl Taken {
    fn has_any_of(&self, record: &Attachment) -> bool {
        self.ports.contains(&record.port.name)
            || self.addresses.contains(&record.port.address)
            || self.macs.contains(&record.port.mac)
    }

    /// False if any of it is taken: then nothing has been.
    fn take(&mut self, record: &Attachment) -> bool {
        if self.has_any_of(record) {
            return false;
        }
        self.ports.insert(record.port.name.clone());
        self.addresses.insert(record.port.address);
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
            wishes: Default::default(),
            found: Default::default(),
            namespace: NamespaceId { inode: n.into(), cookie: None },
            port: Port {
                name: format!("p{n}").parse().unwrap(),
                interface: "eth0".parse().unwrap(),
                mac: mac(n),
                address: address(n),
                gateway: address(1),
                mtu: 1500,
                owner: Uid::ROOT,
                alias: String::new(),
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

    /// All that is made for these.
    fn whole(numbers: &[u16]) -> Seen {
        Seen {
            ports: numbers.iter().map(|&n| port(n, true)).collect(),
            routes: numbers.iter().map(|&n| address(n)).collect(),
            neighbours: numbers.iter().map(|&n| (address(n), mac(n))).collect(),
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
        seen.routes.extend([address(3), address(4), address(8)]);
        seen.neighbours.insert(address(8), mac(8));
        let plan = reconcile(living([record(2), record(3), record(4)]), &seen, |_| true);
        assert_eq!(plan.adopt, [(record(2), 2)]);
        assert_eq!(plan.undo, [record(3), record(4)]);
        assert_eq!(plan.stray_ports, ["p9".parse().unwrap()]);
        assert_eq!(plan.stray_addresses, [address(8)]);
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
            assert!(plan.undo.is_empty() && !plan.stray_addresses.contains(&address(2)));
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
    fn a_ports_number_that_is_anothers_now_means_nothing() {
        // The record's port is gone; a link of another name has its number.
        let seen =
            Seen { ports: vec![PortSeen { ifindex: 2, ..port(9, true) }], ..Seen::default() };
        let plan = reconcile(living([record(2)]), &seen, |_| true);
        assert_eq!((plan.adopt, plan.undo), (vec![], vec![record(2)]));
    }
}
