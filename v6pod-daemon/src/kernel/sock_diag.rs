//! Who is at the other end of a TCP connection of this machine.
//!
//! Guarantee: an answer is the uid of an existing socket that some process holds and that has exactly
//! this connection's addresses and ports. A socket that nobody holds any more (its process closed it,
//! TIME_WAIT) would be reported as root's: it has no owner here.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::Parseable;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use nix::errno::Errno;
use nix::libc;
use v6pod_proto::Uid;

use super::error::Error;
use super::netlink::{Buffers, Socket};

/// The owner of the peer's socket of an accepted connection: `local` and `peer` as the accepted socket
/// has them. None if nobody holds that socket.
pub fn owner_of_peer(local: SocketAddr, peer: SocketAddr) -> Result<Option<Uid>, Error> {
    // One socket has one family: a client that came by ::ffff:127.0.0.1 is found by 127.0.0.1.
    let (local, peer) = (canonical(local), canonical(peer));
    if local.is_ipv4() != peer.is_ipv4() {
        return Ok(None);
    }
    let mut socket =
        Socket::<SockDiagMessage>::open(libc::NETLINK_SOCK_DIAG as isize, Buffers::default())?;
    let read = |_, payload: &[u8]| InetResponseHeader::parse(payload).ok();
    let doing = "look up the owner of a connection";
    let found = match socket.get(doing, &request(local, peer), read) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => None,
        other => other?,
    };
    Ok(found.filter(|found| is_it(found, local, peer)).and_then(|found| Uid::new(found.uid)))
}

/// Asks for the client's socket: its own address is the peer's.
fn request(local: SocketAddr, peer: SocketAddr) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8,
        protocol: libc::IPPROTO_TCP as u8,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: peer.port(),
            destination_port: local.port(),
            source_address: peer.ip(),
            destination_address: local.ip(),
            interface_id: 0,
            cookie: [0xff; 8],
        },
    })
}

/// The kernel falls back to a listening socket where the connection's is gone.
fn is_it(found: &InetResponseHeader, local: SocketAddr, peer: SocketAddr) -> bool {
    let id = &found.socket_id;
    let same = |ip: IpAddr, port, other: SocketAddr| {
        ip.to_canonical() == other.ip() && port == other.port()
    };
    found.inode != 0
        && same(id.source_address, id.source_port, peer)
        && same(id.destination_address, id.destination_port, local)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
