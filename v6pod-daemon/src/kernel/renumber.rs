//! Another address for a container that runs.
//!
//! Guarantees:
//! - The new address is there, and so are its gateway and the way out, before the old one is deprecated; the old
//!   one goes only after that. So there is always one that is valid.
//! - Only the interface at the other end of the attachment's own port is touched, whatever its owner calls it.
//! - All of it can be done twice, and none of it needs to be remembered: a crash in between is mended by
//!   doing it again.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{RouteAttribute, RouteType};

use super::error::{Error, gone_is_fine};
use super::host::Host;
use super::mend::add_entries;
use super::message::{self, Lifetime, find_by_index, find_ours};
use super::namespace::NetNs;
use super::netlink::RouteSocket;
use super::proxy;
use super::wire::{
    add_way_out, each, make_local, remove_elements, remove_neighbour, remove_routes, unmake_local,
};
use super::workers::Worker;
use crate::core::ruleset::Elements;
use crate::core::step::Port;

/// How many processes of one network namespace are remembered: one may have ended by the time that it is
/// asked.
const WITNESSES: usize = 4;

/// The processes that are in these network namespaces, by inode: one walk of /proc for all. A number may be
/// another process's by the time it is used, and an inode another namespace's: what is opened by it is to be
/// verified.
///
/// # Errors
/// /proc cannot be listed. A process that ends meanwhile is no error.
pub fn processes_in(wanted: &HashSet<u64>) -> Result<HashMap<u64, Vec<u32>>, Error> {
    use std::os::unix::fs::MetadataExt as _;

    let mut found: HashMap<u64, Vec<u32>> = HashMap::new();
    let all = fs::read_dir("/proc").map_err(|error| Error::io("list all processes", error))?;
    for entry in all {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Asked for and not opened: an open one would keep the namespace alive.
        let Ok(namespace) = fs::metadata(entry.path().join("ns/net")) else { continue };
        if wanted.contains(&namespace.ino()) {
            let witnesses = found.entry(namespace.ino()).or_default();
            if witnesses.len() < WITNESSES {
                witnesses.push(pid);
            }
        }
    }
    Ok(found)
}

/// The host's side of the address that this port is about, that of the port with this number: the firewall's
/// elements, then neighbour entry, route, and the answer on the uplink, if it gives any.
///
/// # Errors
/// [`Error::has_no_rules`]: the firewall's tables are gone.
pub fn make_ready(
    worker: &mut Worker,
    host: &Host,
    port: &Port,
    ifindex: u32,
) -> Result<(), Error> {
    worker.rules.add(&host.links, &Elements::of(port))?;
    let link = port.link(Some(host.bridge), ifindex).unwrap_or(ifindex);
    add_entries(&mut worker.socket, link, port)?;
    match host.answers {
        Some(uplink) => proxy::add(&mut worker.socket, (port.address, uplink)),
        None => Ok(()),
    }
}

/// Takes the host's side of the address away that this port is about, and ends its flows.
///
/// # Errors
/// The first one; all of it is tried.
pub fn unmake(worker: &mut Worker, host: &Host, port: &Port, ifindex: u32) -> Result<(), Error> {
    let elements = remove_elements(worker, host, port);
    let socket = &mut worker.socket;
    let link = port.link(Some(host.bridge), ifindex).unwrap_or(ifindex);
    let answer = match host.answers {
        Some(uplink) => each(port, |address| proxy::remove(socket, (address, uplink))),
        None => Ok(()),
    };
    let route = remove_routes(socket, link, port);
    let neighbour = remove_neighbour(socket, link, port.address);
    let flows = worker.rules.forget_flows(&port.nets().collect());
    elements.and(answer).and(route).and(neighbour).and(flows)
}

/// Has the container have the address and the gateway that this port is about, and begin nothing any more with
/// the others, which stay valid for at most so many seconds. False if the port does not lead there.
///
/// # Errors
/// [`Error::is_gone`]: the container or its interface is.
pub fn arrive(
    worker: &mut Worker,
    host: &Host,
    namespace: &NetNs,
    port: &Port,
    others: &[Ipv6Addr],
    valid: u32,
) -> Result<bool, Error> {
    let router = host.links.bridge_mac;
    inside(worker, host, namespace, port, |socket, peer| {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let address = message::lasting_address(peer, port.address, Lifetime::Forever);
        socket.ack("give the new address", &Message::NewAddress(address), flags)?;
        add_way_out(socket, port, peer, router)?;
        for other in others {
            let old = message::lasting_address(peer, *other, Lifetime::Deprecated(valid));
            socket.ack("deprecate the old address", &Message::NewAddress(old), NLM_F_REPLACE)?;
        }
        Ok(())
    })
}

/// Has the container take the subnet that this port is about for its own. False if the port does not lead there.
///
/// # Errors
/// [`Error::is_gone`]: the container or its interface is.
pub fn arrive_subnet(
    worker: &mut Worker,
    host: &Host,
    namespace: &NetNs,
    port: &Port,
    net: Ipv6Net,
) -> Result<bool, Error> {
    inside(worker, host, namespace, port, |socket, _| make_local(socket, net))
}

/// The reverse.
///
/// # Errors
/// [`Error::is_gone`]: the container or its interface is.
pub fn leave_subnet(
    worker: &mut Worker,
    host: &Host,
    namespace: &NetNs,
    port: &Port,
    net: Ipv6Net,
) -> Result<bool, Error> {
    inside(worker, host, namespace, port, |socket, _| unmake_local(socket, net))
}

/// Takes the address that this port is about from the container, and its gateway unless `keep` is that. False
/// if the port does not lead there.
///
/// # Errors
/// [`Error::is_gone`]: the container or its interface is.
pub fn leave(
    worker: &mut Worker,
    host: &Host,
    namespace: &NetNs,
    port: &Port,
    keep: Ipv6Addr,
) -> Result<bool, Error> {
    inside(worker, host, namespace, port, |socket, peer| {
        let address = message::address(peer, port.address);
        let doing = format!("take {} away", port.address);
        gone_is_fine(socket.ack(doing, &Message::DelAddress(address), 0))?;
        if port.gateway == keep {
            return Ok(());
        }
        let by_link = [RouteAttribute::Oif(peer)];
        let gateway = message::route(RouteType::Unicast, Some((port.gateway, 128)), by_link);
        gone_is_fine(socket.ack("remove the old gateway", &Message::DelRoute(gateway), 0))?;
        let entry = message::neighbour(peer, port.gateway, None);
        let doing = "remove the old gateway's neighbour entry";
        gone_is_fine(socket.ack(doing, &Message::DelNeighbour(entry), 0))
    })
}

/// Does something in the namespace with the number of the interface that the port leads to, if it leads there.
fn inside(
    worker: &mut Worker,
    host: &Host,
    namespace: &NetNs,
    port: &Port,
    job: impl FnOnce(&mut RouteSocket, u32) -> Result<(), Error>,
) -> Result<bool, Error> {
    let found = find_ours(&mut worker.socket, &port.name, host.links.ports)?;
    let Some((near, peer)) = found.and_then(|link| Some((link.index, link.peer?))) else {
        return Ok(false);
    };
    worker.inside(namespace, |mut inside| {
        let there = find_by_index(&mut inside.socket, peer)?;
        let leads_here =
            there.is_some_and(|link| link.mac == port.mac.octets() && link.peer == Some(near));
        if leads_here {
            job(&mut inside.socket, peer)?;
        }
        Ok(leads_here)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::step::{Also, Role};
    use crate::kernel::observe::observe;
    use crate::kernel::testing::{Bench, Container, in_netns, port, routed};

    /// The same with an address of another prefix on its way.
    fn coming(port: &Port) -> Port {
        let (address, gateway) = match port.mode {
            v6pod_proto::Mode::Bridge => ("2001:db8:9::5", "2001:db8:9::1"),
            v6pod_proto::Mode::Routed => ("2001:db8:9::5", "fe80::1"),
        };
        let (address, gateway) = (address.parse().unwrap(), gateway.parse().unwrap());
        let also = Also { address, subnet: None, gateway, role: Role::Coming };
        Port { also: vec![also], ..port.clone() }
    }

    #[test]
    fn a_container_gets_another_address_and_loses_the_old_one_and_twice_is_fine() {
        for before in [port(1), routed(1)] {
            in_netns(move || {
                let mut bench = Bench::new();
                let container = Container::new();
                let ifindex = bench.attach(&container, &before);
                let links = bench.host.links.clone();
                let both = coming(&before);
                let new = both.with(&both.also[0]);
                let (worker, host) = (&mut bench.worker, &bench.host);
                let old = [before.address];
                for _ in 0..2 {
                    make_ready(worker, host, &new, ifindex).unwrap();
                    assert!(
                        arrive(worker, host, &container.verified(worker.home()), &new, &old, 600)
                            .unwrap()
                    );
                }
                let addresses = container.sh("ip -6 -o addr show dev eth0");
                let lines: Vec<_> = addresses.lines().collect();
                assert_eq!(lines.len(), 2, "{addresses}");
                let line = |of: Ipv6Addr| {
                    let text = format!("{of}/128");
                    *lines.iter().find(|line| line.contains(&text)).unwrap()
                };
                assert!(line(before.address).contains("deprecated"), "{addresses}");
                assert!(line(new.address).contains("valid_lft forever preferred_lft forever"));
                let default = container.sh("ip -6 route show default");
                assert_eq!(default.lines().count(), 1, "{default}");
                assert!(default.contains(&format!("via {}", new.gateway)), "{default}");
                let source = container.sh("ip -6 route get 2001:db8:ffff::1");
                assert!(source.contains(&format!("src {}", new.address)), "{source}");
                for _ in 0..2 {
                    let gone = leave(
                        worker,
                        host,
                        &container.verified(worker.home()),
                        &before,
                        new.gateway,
                    );
                    assert!(gone.unwrap());
                    unmake(worker, host, &before, ifindex).unwrap();
                }
                let addresses = container.sh("ip -6 -o addr show dev eth0");
                assert_eq!(addresses.lines().count(), 1, "{addresses}");
                let seen = observe(&mut worker.socket, &links).unwrap();
                assert_eq!(seen.routes.len(), 1);
                assert_eq!(seen.routes[0].0, new.address);
                assert_eq!(seen.neighbours.len(), 1);
                if before.gateway != new.gateway {
                    let routes = container.sh("ip -6 route; ip -6 neigh");
                    assert!(!routes.contains(&before.gateway.to_string()), "{routes}");
                }
            });
        }
    }

    #[test]
    fn another_namespace_than_the_ports_is_left_alone() {
        in_netns(|| {
            let mut bench = Bench::new();
            let (container, other) = (Container::new(), Container::new());
            bench.attach(&container, &port(1));
            bench.attach(&other, &port(2));
            let both = coming(&port(1));
            let new = both.with(&both.also[0]);
            let before = other.sh("ip -6 addr; ip -6 route");
            let (worker, host) = (&mut bench.worker, &bench.host);
            assert!(!arrive(worker, host, &other.verified(worker.home()), &new, &[], 600).unwrap());
            assert_eq!(other.sh("ip -6 addr; ip -6 route"), before);
        });
    }

    #[test]
    fn a_namespace_is_found_by_a_process_in_it() {
        use std::os::unix::fs::MetadataExt as _;

        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let found = processes_in(&[own, 1].into()).unwrap();
        assert!(!found.contains_key(&1));
        assert!((1..=WITNESSES).contains(&found[&own].len()));
    }
}
