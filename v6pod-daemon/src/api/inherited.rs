//! Listeners that outlive the daemon: a service manager holds them (`v6podd.socket`).
//!
//! Guarantees: clients that come while no daemon runs wait instead of being refused; a daemon that
//! will not start leaves nobody waiting.

use std::fmt::Display;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::problem::unready;
use crate::dns;
use crate::kernel::handed;

/// The most clients that wait in one socket: systemd's limit, and the kernel's (somaxconn).
const WAITING: usize = 4096;

/// How long is waited for one client's request, and for all of theirs.
const TURN: Duration = Duration::from_millis(10);
const ALL: Duration = Duration::from_secs(1);

/// What a client that is turned away is told: somebody has to change something first.
const NOT_STARTING: &str = "v6podd does not start; its log says why";
const RETRY_AFTER: &str = "60";

/// What is read of a request before its client is turned away. Of a socket that is closed with
/// something unread TCP takes back what was written to it.
const REQUEST: usize = 16 * 1024;

/// The sockets, not blocking.
#[derive(Debug, Default)]
pub struct Inherited {
    unix: Vec<UnixListener>,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Inherited {
    /// Takes them over. To be called once, before anything else is opened.
    pub fn take() -> io::Result<Self> {
        let handed = handed::listeners("v6podd")?;
        let inherited = Self {
            unix: handed.unix.into_iter().map(Into::into).collect(),
            tcp: handed.tcp.into_iter().map(Into::into).collect(),
            udp: handed.udp.into_iter().map(Into::into).collect(),
        };
        inherited.unix.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        inherited.tcp.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        inherited.udp.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        Ok(inherited)
    }

    /// Answers whoever waits that nobody will serve him. For a daemon that does not start: its
    /// clients would wait in vain, and as long as one waits the service manager starts it again.
    pub fn turn_away(&self) {
        let (answer, end) = (unready(NOT_STARTING, RETRY_AFTER), Instant::now() + ALL);
        for socket in &self.unix {
            let clients = (0..WAITING).map_while(|_| socket.accept().ok());
            clients.for_each(|(client, _)| say(&client.into(), &answer, end));
        }
        // Questions, and connections for more of them: who gets no answer asks somebody else.
        for socket in &self.udp {
            (0..WAITING).map_while(|_| socket.recv(&mut []).ok()).for_each(drop);
        }
        let (dns, http): (Vec<_>, Vec<_>) = self.tcp.iter().partition(|socket| is_dns(socket));
        for socket in dns {
            (0..WAITING).map_while(|_| socket.accept().ok()).for_each(drop);
        }
        for socket in http {
            let clients = (0..WAITING).map_while(|_| socket.accept().ok());
            clients.for_each(|(client, _)| say(&client.into(), &answer, end));
        }
    }

    /// The socket with this path, which is then no longer among these.
    pub(super) fn unix_at(&mut self, path: &Path) -> Option<UnixListener> {
        let at = |socket: &UnixListener| {
            socket.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
        };
        self.unix.iter().position(at).map(|index| self.unix.swap_remove(index))
    }

    /// The socket with this address, which is then no longer among these.
    pub(super) fn tcp_at(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = |socket: &TcpListener| socket.local_addr().is_ok_and(|a| a == address);
        self.tcp.iter().position(at).map(|index| self.tcp.swap_remove(index))
    }

    /// The sockets of DNS at this address, if both are there, which are then no longer among these.
    pub fn dns_at(&mut self, address: Ipv6Addr) -> Option<(UdpSocket, TcpListener)> {
        let address = SocketAddr::from((address, dns::PORT));
        let at = |socket: &UdpSocket| socket.local_addr().is_ok_and(|a| a == address);
        let udp = self.udp.iter().position(at)?;
        let tcp = self.tcp_at(address)?;
        Some((self.udp.swap_remove(udp), tcp))
    }

    /// Whether a service manager holds the daemon's sockets.
    pub(super) fn is_empty(&self) -> bool {
        self.unix.is_empty() && self.tcp.is_empty()
    }

    /// Says what is left: it stays open, and nobody will ever answer there.
    pub(super) fn tell_of_the_rest(&self) {
        let unix = self.unix.iter().filter_map(|socket| {
            Some(socket.local_addr().ok()?.as_pathname()?.display().to_string())
        });
        let tcp = self.tcp.iter().filter(|socket| !is_dns(socket));
        let tcp = tcp.filter_map(|socket| Some(socket.local_addr().ok()?.to_string()));
        let (udp, tcp_dns) = (&self.udp, self.tcp.iter().filter(|socket| is_dns(socket)));
        for address in udp
            .iter()
            .filter_map(|s| s.local_addr().ok())
            .chain(tcp_dns.filter_map(|s| s.local_addr().ok()))
        {
            tracing::warn!(
                "v6podd-dns.socket listens at {address}, where the configuration has nobody answer: \
                 `systemctl disable --now v6podd-dns.socket`"
            );
        }
        for address in unix.chain(tcp) {
            tracing::error!(
                "v6podd.socket listens at {address}, where the configuration has nobody answer: who \
                 calls there waits for ever. Either name it in [api] tcp, or take it out by \
                 `systemctl edit v6podd.socket` (an empty ListenStream= clears the list, then name \
                 each one) and `systemctl restart v6podd.socket`"
            );
        }
    }
}

fn is_dns(socket: &TcpListener) -> bool {
    socket.local_addr().is_ok_and(|address| address.port() == dns::PORT)
}

/// Says that a socket which the configuration names is not among those that were inherited.
pub(super) fn tell_of_the_missing(address: impl Display) {
    tracing::warn!(
        "v6podd.socket does not listen at {address}, which [api] tcp names: while the daemon is \
         restarted, who calls there is refused. Add ListenStream={address} by `systemctl edit \
         v6podd.socket`, then `systemctl restart v6podd.socket`"
    );
}

/// Tells one client, who has [`TURN`] to say what he wants, or what is left until `end`. One who cannot
/// be told at once loses nothing by it.
fn say(client: &OwnedFd, answer: &[u8], end: Instant) {
    let turn = end.saturating_duration_since(Instant::now()).min(TURN);
    if let Ok(turn) = Timespec::try_from(turn) {
        let _ = poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&turn));
    }
    let _ = recv(client, &mut [0; REQUEST], RecvFlags::DONTWAIT);
    let _ = send(client, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn whoever_waits_is_told_and_whoever_says_nothing_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let address = tcp.local_addr().unwrap();
        unix.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let silent = UnixStream::connect(&path).unwrap();
        let mut waiting = UnixStream::connect(&path).unwrap();
        waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut far = std::net::TcpStream::connect(address).unwrap();
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        Inherited { unix: vec![unix], tcp: vec![tcp], udp: vec![] }.turn_away();
        for mut client in [Box::new(silent) as Box<dyn Read>, Box::new(waiting), Box::new(far)] {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with('}'), "{answer}");
        }
    }

    #[test]
    fn a_socket_is_found_by_its_address_once() {
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let mut inherited = Inherited { unix: vec![], tcp: vec![tcp], udp: vec![] };
        assert!(inherited.tcp_at("[::1]:1".parse().unwrap()).is_none());
        assert!(inherited.tcp_at(address).is_some());
        assert!(inherited.tcp_at(address).is_none());
    }
}
