//! Who is at the other end of a TCP connection of this machine.
//!
//! Guarantee: an answer is the uid of an existing socket that some process holds and that has exactly
//! this connection's addresses and ports. A socket that nobody holds any more (its process closed it,
//! TIME_WAIT) would be reported as root's: it has no owner here.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

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

/// Who holds which sockets of IPv6, TCP's and UDP's, when each of the two was first asked for.
///
/// All of them are listed once. To ask anew for each of many connections would not do: a dump walks all
/// sockets of UDP, and their number, and how many share a port, is any user's to choose.
#[derive(Debug, Default)]
pub struct Holders {
    tcp: Option<HashMap<(SocketAddr, SocketAddr), Uid>>,
    udp: Option<HashMap<SocketAddr, HashSet<Uid>>>,
}

impl Holders {
    /// Who holds the TCP socket that spoke from here to there.
    pub fn of_tcp(&mut self, from: SocketAddr, to: SocketAddr) -> Result<Option<Uid>, Error> {
        let tcp = match &mut self.tcp {
            Some(tcp) => tcp,
            none => {
                let all = every(libc::IPPROTO_TCP, "list the sockets of TCP")?;
                let ends = |id: &SocketId| {
                    let from = (id.source_address, id.source_port);
                    (SocketAddr::from(from), (id.destination_address, id.destination_port).into())
                };
                let each = all.iter().filter_map(|s| Some((ends(&s.socket_id), Uid::new(s.uid)?)));
                none.insert(each.collect())
            }
        };
        Ok(tcp.get(&(from, to)).copied())
    }

    /// Who holds the UDP sockets that send from this address and port, connected or not: several may
    /// share them.
    pub fn of_udp(&mut self, from: SocketAddr) -> Result<HashSet<Uid>, Error> {
        let udp = match &mut self.udp {
            Some(udp) => udp,
            none => {
                let mut udp: HashMap<_, HashSet<_>> = HashMap::new();
                for socket in every(libc::IPPROTO_UDP, "list the sockets of UDP")? {
                    let SocketId { source_address, source_port, .. } = socket.socket_id;
                    let its = udp.entry((source_address, source_port).into()).or_default();
                    its.extend(Uid::new(socket.uid));
                }
                none.insert(udp)
            }
        };
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, from.port()));
        let both = [from, any].into_iter().filter_map(|address| udp.get(&address));
        Ok(both.flatten().copied().collect())
    }
}

/// Every socket of IPv6 of this protocol that some process holds.
fn every(protocol: i32, doing: &'static str) -> Result<Vec<InetResponseHeader>, Error> {
    let mut socket = Socket::<SockDiagMessage>::open(libc::NETLINK_SOCK_DIAG as isize)?;
    // A dump is limited by ports alone; 0 is any.
    let nobody = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let question = SockDiagMessage::InetRequest(question(protocol, nobody, nobody));
    socket.dump(doing, &question, |_, payload| {
        InetResponseHeader::parse(payload).ok().filter(|found| found.inode != 0)
    })
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
    use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

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
            let mut holders = Holders::default();
            let mut of = |from: &str| holders.of_udp(from.parse().unwrap()).unwrap();
            assert_eq!(
                (of("[::1]:4001"), of("[::1]:4002")),
                ([Uid::ROOT].into(), [Uid::ROOT].into())
            );
            assert_eq!((of("[::1]:4003"), of("[::2]:4002")), ([].into(), [].into()));
            drop(bound);
        });
    }

    #[test]
    fn the_holder_of_a_connection_is_found_among_all() {
        in_netns(|| {
            let [_, listener] = listeners();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let mut holders = Holders::default();
            assert_eq!(holders.of_tcp(from, to).unwrap(), Some(Uid::ROOT));
            assert_eq!(holders.of_tcp(from, from).unwrap(), None);
            // By a process that holds it no more, it is nobody's.
            drop((client, listener));
            assert_eq!(Holders::default().of_tcp(from, to).unwrap(), None);
        });
    }

    #[test]
    fn attack_26_sockets_that_share_a_port_are_listed_once_however_many_flows_are_asked_about() {
        in_netns(|| {
            use nix::sys::socket::{
                AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt,
            };
            use nix::sys::socket::{socket, sockopt};
            let one = || {
                let kind = (AddressFamily::Inet6, SockType::Datagram);
                let one = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None).unwrap();
                setsockopt(&one, sockopt::ReusePort, &true).unwrap();
                let any: SockaddrIn6 =
                    "[::]:4001".parse::<std::net::SocketAddrV6>().unwrap().into();
                bind(std::os::fd::AsRawFd::as_raw_fd(&one), &any).unwrap();
                one
            };
            let all: Vec<_> = (0..500).map(|_| one()).collect();
            let mut holders = Holders::default();
            let from: SocketAddr = "[::1]:4001".parse().unwrap();
            assert_eq!(holders.of_udp(from).unwrap(), [Uid::ROOT].into());
            // Nobody looks again: those that have gone since are still known.
            drop(all);
            for _ in 0..100_000 {
                assert_eq!(holders.of_udp(from).unwrap(), [Uid::ROOT].into());
            }
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
