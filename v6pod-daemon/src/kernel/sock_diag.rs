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
use super::netlink::Socket;

/// The owner of the peer's socket of an accepted connection: `local` and `peer` as the accepted socket
/// has them. None if nobody holds that socket.
pub fn owner_of_peer(local: SocketAddr, peer: SocketAddr) -> Result<Option<Uid>, Error> {
    // One socket has one family: a client that came by ::ffff:127.0.0.1 is found by 127.0.0.1.
    let (local, peer) = (canonical(local), canonical(peer));
    if local.is_ipv4() != peer.is_ipv4() {
        return Ok(None);
    }
    let mut socket = Socket::<SockDiagMessage>::open(libc::NETLINK_SOCK_DIAG as isize)?;
    let read = |_, payload: &[u8]| InetResponseHeader::parse(payload).ok();
    let doing = "look up the owner of a connection";
    let found = match socket.get(doing, &request(local, peer), read) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => None,
        other => other?,
    };
    Ok(found.filter(|found| is_it(found, local, peer)).and_then(|found| Uid::new(found.uid)))
}

/// The owners of the UDP sockets that send from this address and port, connected or not.
pub fn owners_of_udp(from: SocketAddr) -> Result<Vec<Uid>, Error> {
    let mut socket = Socket::<SockDiagMessage>::open(libc::NETLINK_SOCK_DIAG as isize)?;
    let nobody = SocketAddr::from((IpAddr::from([0_u16; 8]), 0));
    let mut question = question(libc::IPPROTO_UDP, nobody, from);
    // A dump is limited by ports alone; 0 is any.
    question.socket_id.source_address = nobody.ip();
    let read = |_, payload: &[u8]| InetResponseHeader::parse(payload).ok();
    let all =
        socket.dump("list the sockets of UDP", &SockDiagMessage::InetRequest(question), read)?;
    let its = |found: &InetResponseHeader| {
        let SocketId { source_address, source_port, .. } = &found.socket_id;
        let bound = *source_address == from.ip() || source_address.is_unspecified();
        found.inode != 0 && *source_port == from.port() && bound
    };
    Ok(all.iter().filter(|found| its(found)).filter_map(|found| Uid::new(found.uid)).collect())
}

/// Asks for the client's socket: its own address is the peer's.
fn request(local: SocketAddr, peer: SocketAddr) -> SockDiagMessage {
    SockDiagMessage::InetRequest(question(libc::IPPROTO_TCP, local, peer))
}

fn question(protocol: i32, local: SocketAddr, peer: SocketAddr) -> InetRequest {
    InetRequest {
        family: if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8,
        protocol: protocol as u8,
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
    }
}

/// The kernel falls back to a listening socket where the connection's is gone.
pub(super) fn is_it(found: &InetResponseHeader, local: SocketAddr, peer: SocketAddr) -> bool {
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};

    use super::*;
    use crate::kernel::testing::{eventually, in_netns, sh};

    fn listeners() -> [TcpListener; 2] {
        [
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap(),
        ]
    }

    fn owner(accepted: &TcpStream) -> Option<Uid> {
        owner_of_peer(accepted.local_addr().unwrap(), accepted.peer_addr().unwrap()).unwrap()
    }

    #[test]
    fn the_owner_is_he_who_holds_the_other_end() {
        in_netns(|| {
            for listener in listeners() {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (accepted, _) = listener.accept().unwrap();
                assert_eq!(owner(&accepted), Some(Uid::ROOT));
                drop(client);
            }
        });
    }

    #[test]
    fn the_owners_of_udp_sockets_are_found_connected_or_not() {
        in_netns(|| {
            use std::net::UdpSocket;
            let bound = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 4001)).unwrap();
            let connected = UdpSocket::bind((Ipv6Addr::LOCALHOST, 4002)).unwrap();
            connected.connect((Ipv6Addr::LOCALHOST, 4001)).unwrap();
            let of = |port| owners_of_udp((Ipv6Addr::LOCALHOST, port).into()).unwrap();
            assert_eq!((of(4001), of(4002)), (vec![Uid::ROOT], vec![Uid::ROOT]));
            assert_eq!(
                (of(4003), owners_of_udp("[::2]:4002".parse().unwrap()).unwrap()),
                (vec![], vec![])
            );
            drop(bound);
        });
    }

    #[test]
    fn attack_23_another_users_client_is_that_users() {
        in_netns(|| {
            for listener in listeners() {
                let address = listener.local_addr().unwrap();
                let connect =
                    format!("exec 3<>/dev/tcp/{}/{}; read <&3", address.ip(), address.port());
                let mut client = std::process::Command::new("setpriv")
                    .args(["--reuid=64322", "--regid=64322", "--clear-groups"])
                    .args(["bash", "-c", &connect])
                    .spawn()
                    .unwrap();
                let (mut accepted, _) = listener.accept().unwrap();
                assert_eq!(owner(&accepted), Uid::new(64_322));
                accepted.write_all(b"\n").unwrap();
                client.wait().unwrap();
            }
        });
    }

    #[test]
    fn attack_23_a_socket_that_nobody_holds_is_nobodys_and_never_roots() {
        in_netns(|| {
            for listener in listeners() {
                let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (mut accepted, _) = listener.accept().unwrap();
                client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
                // Closed by its process, half open in the kernel.
                drop(client);
                let mut request = [0; 64];
                assert_ne!(accepted.read(&mut request).unwrap(), 0);
                // A program that another test starts has it too, between its fork and its exec.
                eventually("an orphan is nobody's", || owner(&accepted).is_none());
                let (local, peer) = (accepted.local_addr().unwrap(), accepted.peer_addr().unwrap());
                accepted.shutdown(Shutdown::Both).unwrap();
                drop(accepted);
                assert!(sh("ss -tan").contains("TIME-WAIT"));
                assert_eq!(owner_of_peer(local, peer).unwrap(), None, "TIME_WAIT");
            }
        });
    }

    #[test]
    fn a_listener_on_the_clients_port_is_not_the_client() {
        in_netns(|| {
            let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
            for (at, ip) in [(v4, v4), (v6, v6), (Ipv6Addr::UNSPECIFIED.into(), v4)] {
                let listener = TcpListener::bind(SocketAddr::new(at, 0)).unwrap();
                let peer = SocketAddr::new(ip, listener.local_addr().unwrap().port());
                let local = SocketAddr::new(ip, 6781);
                assert_eq!(owner_of_peer(local, peer).unwrap(), None, "{at}");
            }
        });
    }

    #[test]
    fn a_client_by_a_mapped_address_is_found() {
        in_netns(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(owner(&accepted), Some(Uid::ROOT));
            drop(client);
        });
    }
}
