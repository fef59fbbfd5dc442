//! Sockets that a service manager has opened for this process (sd_listen_fds(3)).
//!
//! Guarantee: a socket is taken over once, and only if it is one that listens, or takes
//! datagrams. So a number in the
//! environment that means something else is never closed or used by mistake.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::sys;

/// What listens, by its kind.
#[derive(Debug, Default)]
pub struct Handed {
    /// Stream sockets with a path.
    pub unix: Vec<OwnedFd>,
    /// Stream sockets of IPv4 and IPv6.
    pub tcp: Vec<OwnedFd>,
    /// Datagram sockets of IPv6.
    pub udp: Vec<OwnedFd>,
}

/// Takes over what was handed to this process under this name (`FileDescriptorName=`); nothing if
/// nobody has handed it anything, or if it was taken before. To be called before the process opens
/// sockets of its own.
pub fn listeners(name: &str) -> io::Result<Handed> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut handed = Handed::default();
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(handed);
    }
    for (number, called) in sd_notify::listen_fds_with_names()? {
        if called != name {
            tracing::warn!(number, called, "left alone a descriptor of an unknown name");
            continue;
        }
        let socket = sys::take_over(number, |socket| {
            let domain = socket_domain(socket)?;
            Ok(match sockopt::socket_type(socket)? {
                SocketType::STREAM => socket_acceptconn(socket)?,
                kind => kind == SocketType::DGRAM && domain == AddressFamily::INET6,
            })
        })?;
        match (socket_domain(&socket)?, sockopt::socket_type(&socket)?) {
            (AddressFamily::UNIX, _) => handed.unix.push(socket),
            (_, SocketType::DGRAM) => handed.udp.push(socket),
            _ => handed.tcp.push(socket),
        }
    }
    Ok(handed)
}
