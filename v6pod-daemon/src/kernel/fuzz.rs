//! Netlink answers of any bytes. The checks are here because the views are the kernel module's own.

use std::net::{Ipv4Addr, SocketAddr};

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_sock_diag::inet::InetResponseHeader;
use nix::libc;

use super::error::Cause;
use super::netlink::{next_message, verdict};
use super::sock_diag::is_it;
use super::view::{Address, Attributes, Link, Neighbour, Route, Stats, u32_at};

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Reads a datagram as an answer is read, each message by every view. Asserts that reading ends,
/// that no message and no attribute is longer than what it stands in, that texts end at their zero,
/// and that an error is never taken for success.
pub fn netlink(datagram: &[u8]) {
    let mut rest = datagram;
    while !rest.is_empty() {
        let before = rest.len();
        let Some((header, payload)) = next_message(&mut rest) else { break };
        assert!(HEADER + payload.len() <= before, "a message is longer than its datagram");
        assert!(rest.len() + HEADER + payload.len() <= before, "a message is read twice");
        views(payload);
        let code = u32_at(payload, 0).unwrap_or(0);
        match verdict(header.flags, payload) {
            Ok(()) => assert_eq!(code, 0, "an error was taken for success"),
            Err(Cause::Kernel { .. }) => assert_ne!(code, 0),
            Err(other) => panic!("a verdict is the kernel's: {other:?}"),
        }
    }
}

fn views(payload: &[u8]) {
    for skipped in [0, 8, 12, 16] {
        let Some(bytes) = payload.get(skipped..) else { continue };
        let lengths: usize = Attributes(bytes).map(|(_, value)| 4 + value.len()).sum();
        assert!(lengths <= bytes.len(), "attributes overlap");
    }
    if let Some(link) = Link::parse(payload) {
        for text in [link.name, link.alias, link.kind] {
            assert!(!text.contains('\0'), "a text goes on behind its end");
        }
        assert_eq!(link.is_up(), link.flags & 1 == 1);
    }
    if let Some(route) = Route::parse(payload) {
        assert_eq!(payload.first().copied().map(i32::from), Some(libc::AF_INET6));
        assert_eq!(payload.get(1), Some(&route.length));
        assert!(!route.is_default() || route.length == 0);
    }
    if let Some(address) = Address::parse(payload) {
        assert_eq!(u32_at(payload, 4), Some(address.interface));
    }
    if let Some(stats) = Stats::parse(payload) {
        assert_eq!(u32_at(payload, 4), Some(stats.link));
    }
    if let Some(neighbour) = Neighbour::parse(payload) {
        assert_eq!(u32_at(payload, 4), Some(neighbour.interface));
    }
}

/// A link of these properties, written as rust-netlink writes it, is read by our view as it was.
pub fn link_round_trip(numbers: [u32; 4], name: &str) {
    let [index, flags, mtu, master] = numbers;
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::from_bits_retain(flags);
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(master),
        LinkAttribute::IfAlias(name.to_owned()),
        LinkAttribute::Group(index),
    ];
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    let Some(link) = Link::parse(&bytes) else { panic!("a link is not understood") };
    assert_eq!([link.index, link.flags, link.mtu, link.group], [index, flags, mtu, index]);
    assert_eq!((link.name, link.alias, link.master), (name, name, Some(master)));
    for end in 0..bytes.len() {
        views(bytes.get(..end).unwrap_or_default());
    }
}

/// Reads an answer of sock_diag about the connection from 127.0.0.1, port 40000, to port 6781.
/// Asserts that the answer is taken only if it is, byte for byte, about that connection, and about
/// a socket that somebody holds.
pub fn sock_diag(payload: &[u8]) {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (local, peer) = (at(6781), at(40_000));
    let Ok(found) = InetResponseHeader::parse(payload) else { return };
    if !is_it(&found, local, peer) {
        return;
    }
    // struct inet_diag_msg: the ports, in network order, are its bytes 4 to 7; the inode its last.
    assert_eq!(payload.get(4..6), Some(&40_000_u16.to_be_bytes()[..]));
    assert_eq!(payload.get(6..8), Some(&6781_u16.to_be_bytes()[..]));
    assert!(u32_at(payload, 68).is_some_and(|inode| inode != 0), "nobody holds it");
}
