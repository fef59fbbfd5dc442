//! What is delegated to this host, as the program that keeps its leases tells the kernel.
//!
//! Who is delegated a range has to keep what of it nobody has from going back to the provider, as RFC 7084 asks of
//! routers. systemd-networkd does so by an `unreachable` route of the whole range, of the protocol `dhcp`, for as
//! long as it has the lease. A tenant makes no such route: that takes CAP_NET_ADMIN in the host's own namespace.

use std::collections::BTreeSet;

use ipnet::Ipv6Net;
use nix::libc;

use super::dump;
use super::error::Error;
use super::netlink::RouteSocket;
use super::view::Route;

/// `RTPROT_DHCP` of Linux.
const DHCP: u8 = 16;

/// The ranges that are delegated to this host now.
pub fn delegations(socket: &mut RouteSocket) -> Result<BTreeSet<Ipv6Net>, Error> {
    let routes = dump::routes_of(socket, DHCP)?;
    let ranges = routes.iter().filter(|route| tells_of_one(route));
    Ok(ranges.filter_map(|route| Ipv6Net::new(route.destination, route.length).ok()).collect())
}

/// Whether this route says that its destination is delegated to this host.
pub(super) fn tells_of_one(route: &Route) -> bool {
    route.protocol == DHCP
        && route.kind == libc::RTN_UNREACHABLE
        && route.table == u32::from(libc::RT_TABLE_MAIN)
        && route.length > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{in_netns, sh, worker};

    #[test]
    fn what_is_unreachable_by_dhcp_is_delegated_and_nothing_else_is() {
        in_netns(|| {
            let mut worker = worker();
            for other in [
                "unreachable 2001:db8:1::/56",
                "unreachable 2001:db8:2::/56 proto static",
                "unreachable 2001:db8:3::/56 proto dhcp table 77",
                "blackhole 2001:db8:4::/56 proto dhcp",
                "unreachable default proto dhcp metric 5000",
                "2001:db8:5::/64 dev lo proto dhcp",
            ] {
                sh(&format!("ip -6 route add {other}"));
                assert_eq!(delegations(&mut worker.socket).unwrap(), BTreeSet::new(), "{other}");
            }
            let delegated = ["2001:db8:a::/56", "2001:db8:b::/48"];
            for range in delegated {
                sh(&format!("ip -6 route add unreachable {range} proto dhcp metric 1024"));
            }
            let expected = delegated.map(|range| range.parse().unwrap());
            assert_eq!(delegations(&mut worker.socket).unwrap(), BTreeSet::from(expected));
        });
    }
}
