//! What conntrack remembers of addresses.
//!
//! Linux has filters for the flows to list (5.8) and to delete (6.11), but those of IPv6 addresses
//! mean the opposite: `ctnetlink_filter_match_tuple` takes `!ipv6_addr_cmp()`, which is "equal", for
//! "different". Observed with 6.18: a deletion with such a filter deletes the flows of everybody else.
//! So all IPv6 flows are listed, the choice is made here, and each one that is meant is named.

use std::collections::HashSet;
use std::net::Ipv6Addr;

use super::message::{self, Message};
use crate::kernel::error::{Error, gone_is_fine};
use crate::kernel::netlink::Socket;

/// Has every flow from or to these addresses forgotten.
pub(super) fn forget(
    socket: &mut Socket<Message>,
    addresses: &HashSet<Ipv6Addr>,
) -> Result<(), Error> {
    for name in flows(socket, addresses)? {
        gone_is_fine(socket.ack("forget a flow", &Message::forget_flow(&name), 0))?;
    }
    Ok(())
}

/// The names of the flows from or to these addresses.
pub(super) fn flows(
    socket: &mut Socket<Message>,
    addresses: &HashSet<Ipv6Addr>,
) -> Result<Vec<Vec<u8>>, Error> {
    socket.dump("list the flows", &Message::list_flows(), |kind, payload| {
        message::flow_name(kind, payload, addresses)
    })
}
