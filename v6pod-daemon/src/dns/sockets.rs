//! Where questions come in: port 53 of the resolver's address, by UDP and TCP.
//!
//! Guarantee: both are had, or neither.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::{
    set_ipv6_freebind, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
    set_socket_reuseaddr,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

/// The port of DNS.
pub const PORT: u16 = 53;

/// How many connections may wait to be accepted.
const WAITING: i32 = 128;

/// How many bytes of questions may wait to be read; Linux takes it twice. A container may ask 2,000 times at once
/// (`ruleset/resolver.nft`), each of which Linux counts as 768 bytes: those of two leave room for everybody else's.
const ROOM: usize = 2 << 20;

/// Both sockets, not blocking.
#[derive(Debug)]
pub struct Sockets {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

impl Sockets {
    /// Those that somebody else has opened.
    ///
    /// # Errors
    /// They are none.
    pub fn given(udp: UdpSocket, tcp: TcpListener) -> io::Result<Self> {
        // Beyond what programs are allowed (`net.core.rmem_max`), or at least that.
        if set_socket_recv_buffer_size_force(&udp, ROOM).is_err() {
            set_socket_recv_buffer_size(&udp, ROOM)?;
        }
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }

    /// Opens them at this address, which need not be there yet. Ports below 1024 are given to root, and to
    /// who has CAP_NET_BIND_SERVICE.
    ///
    /// # Errors
    /// Somebody else has the port, at this address or at all; or it is not for us to have.
    pub fn open(address: Ipv6Addr) -> io::Result<Self> {
        let tcp = bound(SocketType::STREAM, address)?;
        listen(&tcp, WAITING)?;
        Self::given(bound(SocketType::DGRAM, address)?.into(), tcp.into())
    }
}

fn bound(kind: SocketType, address: Ipv6Addr) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, None)?;
    set_ipv6_freebind(&socket, true)?;
    if kind == SocketType::STREAM {
        // Connections of an earlier daemon's, long closed.
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddrV6::new(address, PORT, 0, 0))?;
    Ok(socket)
}
