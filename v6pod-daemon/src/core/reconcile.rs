//! After a restart: what the records say should be, against what the kernel says is.
//!
//! [`Step::Up`](super::Step::Up) is the last step that attaches a container, so a port that is up is
//! a whole attachment. Everything else is half of one, and is undone.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;

use v6pod_proto::LinkName;

use super::attachment::Attachment;

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
    /// The addresses that have a route or a permanent neighbour entry on the bridge.
    pub addresses: Vec<Ipv6Addr>,
}

/// What to do about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Both recorded and real: these go on, at the ports with these indexes.
    pub adopt: Vec<(Attachment, u32)>,
    /// Recorded and not whole: undone step by step, then the record goes.
    pub undo: Vec<Attachment>,
    /// Ports that nobody recorded.
    pub stray_ports: Vec<LinkName>,
    /// Addresses whose routes and neighbour entries nobody recorded.
    pub stray_addresses: Vec<Ipv6Addr>,
}

/// Compares the records with the kernel. `usable` says whether an address can still be used: a
/// prefix may have been changed while the daemon was down.
pub fn reconcile(records: Vec<Attachment>, seen: Seen, usable: impl Fn(Ipv6Addr) -> bool) -> Plan {
    let mut ports: HashMap<LinkName, PortSeen> =
        seen.ports.into_iter().map(|port| (port.name.clone(), port)).collect();
    let mut plan = Plan::default();
    let mut spoken_for = HashSet::new();
    for record in records {
        spoken_for.insert(record.port.address);
        match ports.remove(&record.port.name) {
            Some(port) if port.up && usable(record.port.address) => {
                plan.adopt.push((record, port.ifindex));
            }
            _ => plan.undo.push(record),
        }
    }
    plan.stray_ports = ports.into_keys().collect();
    plan.stray_ports.sort_unstable();
    let strays: HashSet<_> =
        seen.addresses.into_iter().filter(|a| !spoken_for.contains(a)).collect();
    plan.stray_addresses = strays.into_iter().collect();
    plan.stray_addresses.sort_unstable();
    plan
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
            namespace: NamespaceId { inode: n.into(), cookie: None },
            port: Port {
                name: format!("p{n}").parse().unwrap(),
                interface: "eth0".parse().unwrap(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                address: address(n),
                gateway: address(1),
                mtu: 1500,
                owner: Uid::ROOT,
                alias: String::new(),
            },
            holder: None,
            lease: true,
            since: 0,
            generation: Generation::default(),
            phase: Phase::Reserved,
            ifindex: None,
        }
    }

    fn address(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n)
    }

    fn port(n: u16, up: bool) -> PortSeen {
        PortSeen { ifindex: n.into(), name: format!("p{n}").parse().unwrap(), up }
    }

    #[test]
    fn whole_ones_go_on_and_halves_and_strays_go() {
        let seen = Seen {
            ports: vec![port(2, true), port(3, false), port(9, true)],
            addresses: vec![address(2), address(3), address(4), address(8), address(8)],
        };
        let plan = reconcile(vec![record(2), record(3), record(4)], seen, |_| true);
        assert_eq!(plan.adopt, [(record(2), 2)]);
        assert_eq!(plan.undo, [record(3), record(4)]);
        assert_eq!(plan.stray_ports, ["p9".parse().unwrap()]);
        assert_eq!(plan.stray_addresses, [address(8)]);
    }

    #[test]
    fn an_attachment_of_a_prefix_that_is_no_more_goes() {
        let seen = Seen { ports: vec![port(2, true)], addresses: vec![] };
        let plan = reconcile(vec![record(2)], seen, |_| false);
        assert_eq!(plan.undo, [record(2)]);
        assert!(plan.stray_ports.is_empty());
    }
}
