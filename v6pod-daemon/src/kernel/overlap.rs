//! What on this machine stands in the way of a prefix.
//!
//! What is normal: that a shorter route covers the prefix, by the uplink (its on-link /64) or by a
//! gateway. What is not: anything of somebody else's inside the prefix, and a subnet around it that is
//! on another link than the uplink.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use nix::libc;

use super::PROTOCOL;
use super::dump;
use super::error::Error;
use super::host::{Topology, find_bridge};
use super::netlink::RouteSocket;
use super::view::Route;
use crate::core::prefix::Prefix;

/// What slirp4netns gives every container with `enable_ipv6` (`slirp4netns.c`, fixed).
const SLIRP4NETNS: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64);

/// Subnets on a link are this long or longer (RFC 4291, section 2.5.4). What is shorter and has no
/// gateway is a tunnel's idea of "everything".
const SUBNET: u8 = 64;

/// One thing that is in the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Overlap {
    /// An address of an interface that is not ours.
    #[error("{address} is an address of {interface}")]
    Address {
        /// The address.
        address: Ipv6Addr,
        /// The interface that has it.
        interface: String,
    },
    /// A route of somebody else's.
    #[error("there is a route to {net}{}", interface.as_deref().map(|i| format!(" by {i}")).unwrap_or_default())]
    Route {
        /// Where to.
        net: Ipv6Net,
        /// By which interface, if it has one.
        interface: Option<String>,
    },
    /// Another instance of v6podd has it or a part of it.
    #[error("another v6podd on this machine has {net}")]
    Instance {
        /// Its prefix.
        net: Ipv6Net,
    },
    /// The range that slirp4netns uses in every container.
    #[error("slirp4netns uses {SLIRP4NETNS} inside containers")]
    Slirp4netns,
}

/// All that is in the way of one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlaps {
    /// The prefix.
    pub prefix: Prefix,
    /// What is in its way; nothing: it can be used.
    pub found: Vec<Overlap>,
}

impl fmt::Display for Overlaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the prefix {} cannot be used: ", self.prefix)?;
        for (i, overlap) in self.found.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{overlap}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Overlaps {}

/// Looks for what is in the way of `prefix`, were it this instance's.
pub fn overlaps(
    socket: &mut RouteSocket,
    topology: &Topology,
    prefix: Prefix,
) -> Result<Overlaps, Error> {
    let bridge = find_bridge(socket, &topology.links)?.map(|bridge| bridge.index);
    let groups = [topology.links.ports, topology.links.doomed()];
    let ports: HashSet<u32> =
        dump::links(socket, |link| groups.contains(&link.group).then_some(link.index))?
            .into_iter()
            .collect();
    let links = dump::links(socket, |link| Some((link.index, link.name.to_owned())))?;
    let routes = dump::routes(socket)?;
    let uplink = topology.uplink_among(&links, &routes);
    let name = |index| {
        let found = links.iter().find(|(i, _)| *i == index);
        found.map_or_else(|| format!("interface {index}"), |(_, name)| name.clone())
    };
    let mut found = Vec::new();
    if SLIRP4NETNS.contains(&prefix.net()) || prefix.net().contains(&SLIRP4NETNS) {
        found.push(Overlap::Slirp4netns);
    }
    for address in dump::addresses(socket)? {
        if prefix.contains(address.address) && Some(address.interface) != bridge {
            let interface = name(address.interface);
            found.push(Overlap::Address { address: address.address, interface });
        }
    }
    let of_ours = |route: &Route| {
        let by_bridge = bridge.is_some() && route.interface == bridge;
        let by_port = route.interface.is_some_and(|link| ports.contains(&link));
        by_bridge || by_port || (route.protocol == PROTOCOL && route.metric == topology.links.ports)
    };
    // The local table repeats the addresses.
    let others =
        routes.iter().filter(|r| r.table != u32::from(libc::RT_TABLE_LOCAL) && !of_ours(r));
    for route in others {
        let Ok(net) = Ipv6Net::new(route.destination, route.length) else { continue };
        let overlap = judge(prefix.net(), net, route, uplink, name);
        found.extend(overlap.filter(|overlap| !found.contains(overlap)));
    }
    Ok(Overlaps { prefix, found })
}

fn judge(
    prefix: Ipv6Net,
    net: Ipv6Net,
    route: &Route,
    uplink: Option<u32>,
    name: impl Fn(u32) -> String,
) -> Option<Overlap> {
    let (inside, around) = (prefix.contains(&net), net.contains(&prefix));
    let is_instance = route.protocol == PROTOCOL && route.kind == libc::RTN_UNREACHABLE;
    if is_instance && (inside || around) {
        return Some(Overlap::Instance { net });
    }
    let on_link = route.kind == libc::RTN_UNICAST && !route.gateway;
    let elsewhere = uplink.is_some() && route.interface != uplink;
    if inside || (around && on_link && elsewhere && route.length >= SUBNET) {
        let interface = route.interface.map(name);
        return Some(Overlap::Route { net, interface });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::host::{PrepareError, prepare};
    use crate::kernel::testing::{Bench, in_netns, sh, topology, worker};

    /// A host with an uplink that has an on-link /64 around the prefix, and a default route: normal.
    fn uplink() {
        sh("ip link add v6kup type veth peer name v6kisp && ip link set v6kup up");
        sh("ip link set v6kisp up && ip -6 addr add 2001:db8:1:2::42/64 dev v6kup nodad");
        sh("ip -6 route add default via 2001:db8:1:2::1 dev v6kup");
    }

    fn found(prefix: &str) -> Vec<String> {
        let mut worker = worker();
        let prefix = prefix.parse().unwrap();
        let overlaps = overlaps(&mut worker.socket, &topology(), prefix).unwrap();
        overlaps.found.iter().map(ToString::to_string).collect()
    }

    const P: &str = "2001:db8:1:2:3::/80";

    #[test]
    fn a_prefix_on_the_uplinks_subnet_is_free() {
        in_netns(|| {
            assert_eq!(found(P), [""; 0]);
            uplink();
            assert_eq!(found(P), [""; 0]);
        });
    }

    #[test]
    fn what_lies_inside_the_prefix_is_in_its_way() {
        in_netns(|| {
            uplink();
            sh("ip -6 addr add 2001:db8:1:2:3::99/128 dev v6kup nodad noprefixroute");
            assert_eq!(found(P), ["2001:db8:1:2:3::99 is an address of v6kup"]);
            sh("ip -6 addr del 2001:db8:1:2:3::99/128 dev v6kup");
            for (route, says) in [
                (
                    "2001:db8:1:2:3:4::/96 via 2001:db8:1:2::7",
                    "there is a route to 2001:db8:1:2:3:4::/96 by v6kup",
                ),
                ("2001:db8:1:2:3::/80 dev lo", "there is a route to 2001:db8:1:2:3::/80 by lo"),
                ("blackhole 2001:db8:1:2:3::/80", "there is a route to 2001:db8:1:2:3::/80 by lo"),
                (
                    "2001:db8:1:2:3::5 dev v6kup table 77",
                    "there is a route to 2001:db8:1:2:3::5/128 by v6kup",
                ),
            ] {
                sh(&format!("ip -6 route add {route}"));
                assert_eq!(found(P), [says], "{route}");
                sh(&format!("ip -6 route del {route}"));
            }
            // The whole of the uplink's subnet, its own address included.
            assert_eq!(found("2001:db8:1:2::/64").len(), 2);
        });
    }

    #[test]
    fn a_subnet_around_the_prefix_on_another_link_is_in_its_way() {
        in_netns(|| {
            uplink();
            sh("ip link add v6klan type veth peer name v6kl && ip link set v6klan up");
            sh("ip -6 route add 2001:db8:1:2:3::/72 dev v6klan");
            assert_eq!(found(P), ["there is a route to 2001:db8:1:2::/72 by v6klan"]);
            sh("ip -6 route del 2001:db8:1:2::/72");
            // What a tunnel takes for everything is none.
            sh("ip -6 route add 2000::/3 dev v6klan");
            assert_eq!(found(P), [""; 0]);
        });
    }

    #[test]
    fn another_daemons_prefix_and_slirp4netnss_are_in_the_way() {
        in_netns(|| {
            sh("ip -6 route add unreachable 2001:db8:1:2::/64 proto 0x76 metric 7");
            assert_eq!(found(P), ["another v6podd on this machine has 2001:db8:1:2::/64"]);
            let slirp = "slirp4netns uses fd00::/64 inside containers";
            for prefix in ["fd00::/64", "fd00:0:0:0:1::/80", "fd00::/48"] {
                assert_eq!(found(prefix), [slirp], "{prefix}");
            }
            assert_eq!(found("fd00:0:0:1::/64"), [""; 0]);
        });
    }

    #[test]
    fn what_is_ours_is_not_in_our_way_and_what_is_not_stops_the_start() {
        in_netns(|| {
            let mut bench = Bench::new();
            assert_eq!(found(P), [""; 0]);
            sh(
                "ip -6 route add 2001:db8:1:2:3::5 dev lo && ip -6 addr add 2001:db8:1:2:3::6 dev lo",
            );
            let error = prepare(&mut bench.worker.socket, &bench.topology).unwrap_err();
            assert!(matches!(error, PrepareError::Overlap(_)));
            assert_eq!(
                error.to_string(),
                "the prefix 2001:db8:1:2:3::/80 cannot be used: \
                 2001:db8:1:2:3::6 is an address of lo; \
                 there is a route to 2001:db8:1:2:3::5/128 by lo; \
                 there is a route to 2001:db8:1:2:3::6/128 by lo"
            );
        });
    }
}
