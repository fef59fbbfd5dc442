//! What conntrack remembers of flows.
//!
//! Linux has filters for the flows to list (5.8) and to delete (6.11), but those of IPv6 addresses
//! mean the opposite: `ctnetlink_filter_match_tuple` takes `!ipv6_addr_cmp()`, which is "equal", for
//! "different". Observed with 6.18: a deletion with such a filter deletes the flows of everybody else.
//! So all IPv6 flows are listed, the choice is made here, and each one that is meant is named.

use std::net::Ipv6Addr;

use v6pod_proto::wishes::Protocol;

use super::message::{self, Message};
use crate::core::subnet::Nets;
use crate::kernel::error::{Error, gone_is_fine};
use crate::kernel::netlink::Socket;

/// Has flows of these names forgotten.
pub(super) fn forget(socket: &mut Socket<Message>, names: &[Vec<u8>]) -> Result<(), Error> {
    names.iter().try_for_each(|name| {
        gone_is_fine(socket.ack("forget a flow", &Message::forget_flow(name), 0))
    })
}

/// The names of the flows from or to these addresses.
pub(super) fn flows(socket: &mut Socket<Message>, addresses: &Nets) -> Result<Vec<Vec<u8>>, Error> {
    socket.dump("list the flows", &Message::list_flows(), |kind, payload| {
        message::flow_name(kind, payload, addresses)
    })
}

/// Has every flow that these addresses began forgotten that is neither TCP nor UDP. How many there were.
pub(super) fn forget_portless(socket: &mut Socket<Message>, began: &Nets) -> Result<usize, Error> {
    let names = socket.dump("list the flows", &Message::list_flows(), |kind, payload| {
        message::portless_flow(kind, payload, began)
    })?;
    forget(socket, &names)?;
    Ok(names.len())
}

/// A flow of TCP or UDP that somebody began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Of which protocol.
    pub protocol: Protocol,
    /// Who began it.
    pub asks: Ipv6Addr,
    /// By which port.
    pub from: u16,
    /// Whom he reached.
    pub answers: Ipv6Addr,
    /// At which port.
    pub port: u16,
}

/// A flow and how conntrack calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The flow.
    pub flow: Flow,
    name: Vec<u8>,
}

/// The flows of TCP and UDP that are chosen. All others wait for the choice: it must not ask anybody.
pub(super) fn choose(
    socket: &mut Socket<Message>,
    mut chosen: impl FnMut(&Flow) -> bool,
) -> Result<Vec<Begun>, Error> {
    socket.dump("list the flows", &Message::list_flows(), |kind, payload| {
        let (flow, name) = message::flow(kind, payload)?;
        chosen(&flow).then_some(Begun { flow, name })
    })
}

/// Has one flow forgotten.
pub(super) fn forget_one(
    socket: &mut Socket<Message>,
    Begun { flow, name }: &Begun,
) -> Result<(), Error> {
    let doing = format!("forget the flow from {} to {}", flow.asks, flow.answers);
    gone_is_fine(socket.ack(doing, &Message::forget_flow(name), 0))
}
