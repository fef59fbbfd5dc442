//! The messages of nfnetlink that the daemon sends and reads: elements of sets, tables, conntrack's
//! deletion. (`linux/netfilter/nfnetlink.h`, `nf_tables.h`, `nfnetlink_conntrack.h`.)

use std::net::Ipv6Addr;

use netlink_packet_core::NetlinkSerializable;
use nix::libc;
use v6pod_proto::wishes::Protocol;

use super::conntrack::Flow;
use crate::core::subnet::Nets;
use crate::kernel::view::Attributes;

/// NFPROTO_INET.
pub(super) const INET: u8 = 1;
/// NFPROTO_IPV6.
pub(super) const IP6: u8 = 10;
/// NFPROTO_ARP.
pub(super) const ARP: u8 = 3;
/// NFPROTO_BRIDGE.
pub(super) const BRIDGE: u8 = 7;

/// Subsystem (high byte) and kind of message.
const NFTABLES: u16 = 10 << 8; // NFNL_SUBSYS_NFTABLES
const CTNETLINK: u16 = 1 << 8; // NFNL_SUBSYS_CTNETLINK
const NEW_ELEMENT: u16 = NFTABLES | 12;
const GET_ELEMENT: u16 = NFTABLES | 13;
const DEL_ELEMENT: u16 = NFTABLES | 14;
const DEL_TABLE: u16 = NFTABLES | 2;
const NEW_CHAIN: u16 = NFTABLES | 3;
const DEL_CHAIN: u16 = NFTABLES | 5;
const NEW_RULE: u16 = NFTABLES | 6;
const GET_RULE: u16 = NFTABLES | 7;
const DEL_RULE: u16 = NFTABLES | 8;
const DEL_SET: u16 = NFTABLES | 11;
/// IPCTNL_MSG_CT_NEW, by which a flow is also described.
const FLOW: u16 = CTNETLINK;
const GET_FLOW: u16 = CTNETLINK | 1;
const DEL_FLOW: u16 = CTNETLINK | 2;

/// `enum nft_table_attributes`, `nft_rule_attributes`, `nft_set_elem_list_attributes`,
/// `nft_list_attributes`, `nft_set_elem_attributes`, `nft_data_attributes`. The table's name is the first
/// attribute of chains and sets too.
const TABLE_NAME: u16 = 1;
const RULE_HANDLE: u16 = 3;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;

/// `enum ctattr_type`, `ctattr_tuple`, `ctattr_ip`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const IP_SOURCE: u16 = 3;
const IP_DESTINATION: u16 = 4;
/// `enum ctattr_l4proto`.
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;

/// How many elements one message has at most: their list is an attribute, of at most 64 KiB, and each
/// message is acknowledged by itself.
pub(super) const TOGETHER: usize = 256;

/// NLA_F_NESTED.
const NESTED: u16 = 1 << 15;
/// The length of `struct nfgenmsg`.
const GENERIC: usize = 4;

/// One message: `struct nfgenmsg` and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    kind: u16,
    body: Vec<u8>,
}

/// A table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) family: u8,
    pub(super) name: &'a str,
}

impl Message {
    /// The beginning of a transaction: its resource is the subsystem that it is about.
    pub(super) fn begin() -> Self {
        Self::new(0x10, 0, NFTABLES >> 8)
    }

    /// The end of a transaction: all that was between takes effect at once.
    pub(super) fn end() -> Self {
        Self::new(0x11, 0, NFTABLES >> 8)
    }

    /// Elements of one set by their keys, at most [`TOGETHER`].
    pub(super) fn new_elements(table: Table<'_>, set: &str, keys: &[&[u8]]) -> Self {
        Self::elements(NEW_ELEMENT, table, set, keys)
    }

    pub(super) fn delete_elements(table: Table<'_>, set: &str, keys: &[&[u8]]) -> Self {
        Self::elements(DEL_ELEMENT, table, set, keys)
    }

    /// The question for all elements of a set.
    pub(super) fn list_elements(table: Table<'_>, set: &str) -> Self {
        Self::about_set(GET_ELEMENT, table, set)
    }

    /// The question for one element of a set.
    pub(super) fn get_element(table: Table<'_>, set: &str, key: &[u8]) -> Self {
        Self::elements(GET_ELEMENT, table, set, &[key])
    }

    /// The question for all rules of a table.
    pub(super) fn list_rules(table: Table<'_>) -> Self {
        let mut message = Self::new(GET_RULE, table.family, 0);
        message.text(TABLE_NAME, table.name);
        message
    }

    pub(super) fn delete_table(table: Table<'_>) -> Self {
        let mut message = Self::new(DEL_TABLE, table.family, 0);
        message.text(TABLE_NAME, table.name);
        message
    }

    /// The question for all flows of IPv6.
    pub(super) fn list_flows() -> Self {
        Self::new(GET_FLOW, libc::AF_INET6 as u8, 0)
    }

    /// Has one flow forgotten, by the attributes that name it in its description.
    pub(super) fn forget_flow(name: &[u8]) -> Self {
        let mut message = Self::new(DEL_FLOW, libc::AF_INET6 as u8, 0);
        message.body.extend_from_slice(name);
        message
    }

    pub(super) fn new(kind: u16, family: u8, resource: u16) -> Self {
        // Family, version 0 (NFNETLINK_V0), resource in the network's byte order.
        let [high, low] = resource.to_be_bytes();
        Self { kind, body: vec![family, 0, high, low] }
    }

    fn about_set(kind: u16, table: Table<'_>, set: &str) -> Self {
        let mut message = Self::new(kind, table.family, 0);
        message.text(LIST_TABLE, table.name);
        message.text(LIST_SET, set);
        message
    }

    fn elements(kind: u16, table: Table<'_>, set: &str, keys: &[&[u8]]) -> Self {
        let mut message = Self::about_set(kind, table, set);
        message.nest(LIST_ELEMENTS, |list| {
            for key in keys {
                list.nest(LIST_ELEM, |element| {
                    element.nest(ELEM_KEY, |data| data.bytes(DATA_VALUE, key));
                });
            }
        });
        message
    }

    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.nest_as(kind, |value| {
            value.body.extend_from_slice(text.as_bytes());
            value.body.push(0);
        });
    }

    fn bytes(&mut self, kind: u16, bytes: &[u8]) {
        self.nest_as(kind, |value| value.body.extend_from_slice(bytes));
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nest_as(kind | NESTED, fill);
    }

    /// An attribute whose value `fill` appends: length, kind, value, filled up to four bytes.
    fn nest_as(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.body.len();
        self.body.extend_from_slice(&[0; 2]);
        self.body.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        // Names, and at most TOGETHER keys: some ten thousand bytes.
        let length = u16::try_from(self.body.len() - start).unwrap_or(u16::MAX);
        self.body[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.body.resize(self.body.len().next_multiple_of(4), 0);
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

/// The keys of the elements that one message of a list describes.
pub(super) fn elements(kind: u16, payload: &[u8]) -> Option<Vec<Vec<u8>>> {
    if kind != NEW_ELEMENT {
        return None;
    }
    let list = value(payload.get(GENERIC..)?, LIST_ELEMENTS)?;
    let keys = Attributes(list).filter_map(|(_, element)| {
        value(value(element, ELEM_KEY)?, DATA_VALUE).map(<[u8]>::to_owned)
    });
    Some(keys.collect())
}

/// The number that the kernel gave to the rule that one message of a list describes, if it is one of
/// this table. Within a table no number is given twice.
pub(super) fn rule(kind: u16, payload: &[u8], table: &str) -> Option<u64> {
    let attributes = payload.get(GENERIC..).filter(|_| kind == NEW_RULE)?;
    if !is_text(value(attributes, TABLE_NAME)?, table) {
        return None;
    }
    Some(u64::from_be_bytes(value(attributes, RULE_HANDLE)?.try_into().ok()?))
}

/// Whether a message of the kernel's says that something of this table was taken away: itself, or a
/// chain, rule or set of it. Elements come and go with containers, and are not meant.
pub(super) fn is_loss(kind: u16, payload: &[u8], table: &str) -> bool {
    matches!(kind, DEL_TABLE | DEL_CHAIN | DEL_RULE | DEL_SET)
        && payload
            .get(GENERIC..)
            .and_then(|attributes| value(attributes, TABLE_NAME))
            .is_some_and(|name| is_text(name, table))
}

/// Whether a message says that chains or rules of other tables than this have come, gone or changed.
pub(super) fn is_others_change(kind: u16, payload: &[u8], table: &str) -> bool {
    matches!(kind, DEL_TABLE | NEW_CHAIN | DEL_CHAIN | NEW_RULE | DEL_RULE)
        && payload
            .get(GENERIC..)
            .and_then(|attributes| value(attributes, TABLE_NAME))
            .is_some_and(|name| !is_text(name, table))
}

/// Whether an attribute is this text, which ends with a zero byte.
fn is_text(value: &[u8], text: &str) -> bool {
    value.strip_suffix(b"\0").unwrap_or(value) == text.as_bytes()
}

/// The attributes that name a flow, if one of the addresses stands at any end of it, as either side sees
/// it.
pub(super) fn flow_name(kind: u16, payload: &[u8], addresses: &Nets) -> Option<Vec<u8>> {
    let attributes = payload.get(GENERIC..).filter(|_| kind == FLOW)?;
    let has_it = |tuple| {
        let ip = value(value(attributes, tuple)?, TUPLE_IP)?;
        let at = |end| {
            let octets: Option<[u8; 16]> = value(ip, end).and_then(|ip| ip.try_into().ok());
            octets.is_some_and(|octets| addresses.contain(octets.into()))
        };
        Some(at(IP_SOURCE) || at(IP_DESTINATION))
    };
    let meant = has_it(TUPLE_ORIG) == Some(true) || has_it(TUPLE_REPLY) == Some(true);
    meant.then(|| name(kind, attributes))
}

/// The attributes that name a flow, if it is neither TCP nor UDP and one of the addresses began it.
pub(super) fn portless_flow(kind: u16, payload: &[u8], began: &Nets) -> Option<Vec<u8>> {
    let attributes = payload.get(GENERIC..).filter(|_| kind == FLOW)?;
    let tuple = value(attributes, TUPLE_ORIG)?;
    let from: [u8; 16] = value(value(tuple, TUPLE_IP)?, IP_SOURCE)?.try_into().ok()?;
    let number = i32::from(*value(value(tuple, TUPLE_PROTO)?, PROTO_NUMBER)?.first()?);
    let has_ports = matches!(number, libc::IPPROTO_TCP | libc::IPPROTO_UDP);
    (!has_ports && began.contain(from.into())).then(|| name(kind, attributes))
}

/// A flow of TCP or UDP, and the attributes that name it. The answering side is as it is behind any
/// translation of its address, the asking one as it is before.
pub(super) fn flow(kind: u16, payload: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let attributes = payload.get(GENERIC..).filter(|_| kind == FLOW)?;
    let source = |tuple| {
        let tuple = value(attributes, tuple)?;
        let address: [u8; 16] = value(value(tuple, TUPLE_IP)?, IP_SOURCE)?.try_into().ok()?;
        let protocol = value(tuple, TUPLE_PROTO)?;
        let port = value(protocol, PROTO_SOURCE_PORT)?.try_into().ok()?;
        let number = *value(protocol, PROTO_NUMBER)?.first()?;
        Some((number, Ipv6Addr::from(address), u16::from_be_bytes(port)))
    };
    let (number, asks, from) = source(TUPLE_ORIG)?;
    let (_, answers, port) = source(TUPLE_REPLY)?;
    let protocol = match i32::from(number) {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        _ => return None,
    };
    Some((Flow { protocol, asks, from, answers, port }, name(kind, attributes)))
}

/// The attributes by which a flow is named: its original tuple, its zone, its id.
fn name(kind: u16, attributes: &[u8]) -> Vec<u8> {
    let mut name = Message { kind, body: Vec::new() };
    for (kind, value) in Attributes(attributes) {
        match kind {
            TUPLE_ORIG => name.bytes(TUPLE_ORIG | NESTED, value),
            ID | ZONE => name.bytes(kind, value),
            _ => {}
        }
    }
    name.body
}

pub(super) fn value(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}
