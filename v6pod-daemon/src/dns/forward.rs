//! Asking the host's own resolvers what is not ours to answer.
//!
//! Guarantees: each question goes out under a number of its own from a port of its own (RFC 5452), and
//! what is not an answer to it is not taken for one; nobody waits longer than [`PATIENCE`]; and we are
//! never asked ourselves, nor is a container about what it asks.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nix::net::if_::if_nametoindex;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout_at};

use super::message::{AnyName, LARGEST, Question, Transport};

/// How long a question is asked on. The C libraries' resolvers give up after five seconds.
const PATIENCE: Duration = Duration::from_millis(4500);

/// How long one resolver has before the next is asked.
const TURN: Duration = Duration::from_millis(1500);

/// How long one is left alone that refuses.
const PAUSE: Duration = Duration::from_millis(250);

/// Of a file, so many are asked, as the C libraries do (MAXNS of resolv.conf(5)).
const RESOLVERS: usize = 3;

/// Such a file is a few lines.
const FILE: u64 = 64 << 10;

/// How long the file is not looked at again.
const FRESH: Duration = Duration::from_secs(1);

/// The resolvers of the host.
#[derive(Debug)]
pub(super) struct Upstream {
    file: PathBuf,
    own: Ipv6Addr,
    consul: Option<(AnyName, SocketAddr)>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    resolvers: Vec<SocketAddr>,
    /// When the file was changed, as it says.
    changed: Option<SystemTime>,
    looked: Option<Instant>,
}

impl Upstream {
    /// Those that this file names, but for ourselves at this address; and for names under `consul` this one.
    pub(super) fn new(file: &Path, own: Ipv6Addr, consul: Option<SocketAddr>) -> Self {
        let consul = consul.and_then(|agent| Some(("consul".parse().ok()?, agent)));
        Self { file: file.to_owned(), own, consul, known: Mutex::default() }
    }

    /// Asks for who is at this address. None if nobody answers.
    pub(super) async fn ask(
        &self,
        question: &Question,
        asker: Ipv6Addr,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let end = Instant::now() + PATIENCE;
        let mut resolvers = self.resolvers(&question.name);
        // One that runs in a container and asks us what we would ask it.
        resolvers.retain(|resolver| resolver.ip() != IpAddr::V6(asker));
        while Instant::now() < end && !resolvers.is_empty() {
            for resolver in &resolvers {
                let id = u16::try_from(SysRng.try_next_u32().ok()? & 0xffff).ok()?;
                let turn = end.min(Instant::now() + TURN);
                let asked = async {
                    match transport {
                        Transport::Udp => by_udp(question, id, *resolver).await,
                        Transport::Tcp => by_tcp(question, id, *resolver).await,
                    }
                };
                match timeout_at(turn, asked).await {
                    Ok(Ok(answer)) => return Some(answer),
                    // Refused at once: not to be asked in a loop.
                    Ok(Err(_)) => sleep(PAUSE).await,
                    Err(_) => {}
                }
            }
        }
        None
    }

    fn resolvers(&self, name: &AnyName) -> Vec<SocketAddr> {
        if let Some((zone, agent)) = &self.consul
            && name.ends_with(zone)
        {
            return vec![*agent];
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.is_none_or(|looked| looked.elapsed() > FRESH) {
            known.looked = Some(Instant::now());
            let changed = fs::metadata(&self.file).and_then(|file| file.modified()).ok();
            if changed.is_none() || changed != known.changed {
                known.changed = changed;
                known.resolvers = read(&self.file, self.own);
            }
        }
        known.resolvers.clone()
    }
}

/// The resolvers that a file names; none if it cannot be read.
fn read(file: &Path, own: Ipv6Addr) -> Vec<SocketAddr> {
    let small = fs::metadata(file).is_ok_and(|file| file.len() <= FILE);
    match fs::read_to_string(file) {
        Ok(text) if small => nameservers(&text, own),
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "cannot read {}: public names are not found", file.display());
            Vec::new()
        }
    }
}

/// The resolvers that a resolv.conf(5) names.
fn nameservers(text: &str, own: Ipv6Addr) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(resolver) = words.next().and_then(address) else { continue };
        if resolver.ip() != IpAddr::V6(own) && !found.contains(&resolver) {
            found.push(resolver);
        }
    }
    found.truncate(RESOLVERS);
    found
}

/// An address, with the interface of a link-local one behind `%`.
fn address(word: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = word.split_once('%') else {
        return Some((word.parse::<IpAddr>().ok()?, 53).into());
    };
    let scope = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
}

async fn by_udp(question: &Question, id: u16, resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From here on the kernel takes nobody else's datagrams.
    socket.connect(resolver).await?;
    socket.send(&question.onward(id)).await?;
    let mut answer = vec![0; usize::from(LARGEST).max(4096)];
    loop {
        let length = socket.recv(&mut answer).await?;
        if let Some(answer) = question.passed_on(id, answer[..length].to_vec()) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(question: &Question, id: u16, resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    stream.write_all(&framed(&question.onward(id))).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    question.passed_on(id, answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A message with its length before it (RFC 1035, section 4.2.2).
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], &message[..length.into()]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolvers_of_a_file_are_asked_but_never_oneself() {
        let own: Ipv6Addr = "fd3a:9ca3:76d6::53".parse().unwrap();
        let text = "# nameserver 192.0.2.9\nnameserver fd3a:9ca3:76d6:0::53\nnameserver 192.0.2.1\n\
                    nameserver\n  nameserver ::1 # local\nnameserver 192.0.2.1\nnameserver x\n\
                    options ndots:1\nnameserver fe80::1%1\nnameserver 192.0.2.4\n";
        let found = nameservers(text, own);
        let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.1:53", "[::1]:53", "[fe80::1%1]:53"]);
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_has_changed_and_nobody_is_no_hang() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let upstream =
            Upstream::new(&file, Ipv6Addr::LOCALHOST, Some(([127, 0, 0, 1], 8600).into()));
        let name = "example.org".parse().unwrap();
        assert!(upstream.resolvers(&name).is_empty());
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        upstream.known.lock().unwrap().looked = None;
        assert_eq!(upstream.resolvers(&name), [([192, 0, 2, 1], 53).into()]);
        let consul = "web.service.consul".parse().unwrap();
        assert_eq!(upstream.resolvers(&consul), [([127, 0, 0, 1], 8600).into()]);
    }
}
