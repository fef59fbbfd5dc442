//! The loops: who asks, whether he may, and what he is told.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use domain::base::Rtype;
use domain::base::iana::Rcode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};
use v6pod_proto::Uid;

use super::bounds::{Place, Places};
use super::counts::{Counts, Outcome};
use super::forward::{Upstream, framed};
use super::message::{Found, Incoming, Question, Transport};
use super::zone::{Subject, Zone};
use super::{Bearer, Directory};
use crate::config::Scope;

/// How many questions of one owner's containers, and of all, are asked on at once. Each has a socket.
const ONWARD: (usize, usize) = (128, 512);

/// How many connections there may be, of one owner's containers and of all.
const CONNECTIONS: (usize, usize) = (32, 256);

/// How long a connection may take for its next question, and we for ours to be taken.
const IDLE: Duration = Duration::from_secs(5);

/// How many questions one connection is good for.
const QUESTIONS: usize = 1000;

/// The longest question, in bytes: a name and what EDNS says fit many times over.
const QUESTION: u16 = 4096;

/// How long a loop pauses when the system has nothing left for it.
const PAUSE: Duration = Duration::from_millis(50);

/// What answers.
pub(super) struct Server<D> {
    pub(super) directory: D,
    pub(super) zone: Zone,
    pub(super) scope: Scope,
    pub(super) upstream: Upstream,
    pub(super) counts: Counts,
    onward: Places,
    connections: Places,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// A process of this host.
    Host,
    /// A container of this owner's.
    Container {
        owner: Uid,
        /// Whether it reaches nothing but what is listed.
        confined: bool,
    },
}

impl Who {
    const fn owner(self) -> Option<Uid> {
        match self {
            Self::Host => None,
            Self::Container { owner, .. } => Some(owner),
        }
    }
}

/// What is due on a question.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Answer(Vec<u8>),
    AskOn(Question),
}

impl<D: Directory> Server<D> {
    pub(super) fn new(
        directory: D,
        zone: Zone,
        scope: Scope,
        upstream: Upstream,
        counts: Counts,
    ) -> Arc<Self> {
        let onward = Places::new(ONWARD.0, ONWARD.1);
        let connections = Places::new(CONNECTIONS.0, CONNECTIONS.1);
        Arc::new(Self { directory, zone, scope, upstream, counts, onward, connections })
    }

    /// Answers datagrams, for ever.
    pub(super) async fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut bytes = vec![0; QUESTION.into()];
        loop {
            let (length, source) = match socket.recv_from(&mut bytes).await {
                Ok((length, SocketAddr::V6(source))) => (length, source),
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!(%error, "no question could be received");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(from) = self.who(*source.ip()) else { continue };
            match self.due(&bytes[..length], from, Transport::Udp) {
                Due::Nothing => {}
                // Without room for it in the socket it is lost, and asked for again.
                Due::Answer(answer) => drop(socket.try_send_to(&answer, source.into())),
                Due::AskOn(question) => {
                    // Who has too many on the way asks again.
                    let Some(place) = self.onward.enter(from.owner()) else {
                        self.counts.question(Outcome::TooMany);
                        continue;
                    };
                    let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                    tokio::spawn(async move {
                        let answer =
                            server.ask_on(&question, *source.ip(), Transport::Udp, place).await;
                        let _ = socket.try_send_to(&answer, source.into());
                    });
                }
            }
        }
    }

    /// Answers by connections, for ever.
    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, source) = match listener.accept().await {
                Ok((stream, source)) => (stream, source),
                Err(error) => {
                    tracing::debug!(%error, "no connection could be accepted");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let IpAddr::V6(source) = source.ip() else { continue };
            let Some(from) = self.who(source) else { continue };
            // Who has too many is told so by the end of this one.
            let Some(place) = self.connections.enter(from.owner()) else {
                self.counts.connection_refused();
                continue;
            };
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                // Whoever breaks off, or says nothing, has what he wants.
                let _ = server.converse(stream, source, from).await;
                drop(place);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, source: Ipv6Addr, from: Who) -> io::Result<()> {
        for _ in 0..QUESTIONS {
            let Some(bytes) = timeout(IDLE, read(&mut stream)).await?? else { break };
            let answer = match self.due(&bytes, from, Transport::Tcp) {
                Due::Nothing => break,
                Due::Answer(answer) => answer,
                Due::AskOn(question) => match self.onward.enter(from.owner()) {
                    Some(place) => self.ask_on(&question, source, Transport::Tcp, place).await,
                    None => {
                        self.counts.question(Outcome::TooMany);
                        question.refuse(Rcode::SERVFAIL)
                    }
                },
            };
            timeout(IDLE, stream.write_all(&framed(&answer))).await??;
        }
        Ok(())
    }

    async fn ask_on(
        &self,
        question: &Question,
        source: Ipv6Addr,
        transport: Transport,
        _place: Place,
    ) -> Vec<u8> {
        let answer = self.upstream.ask(question, source, transport).await;
        let outcome = if answer.is_some() { Outcome::PassedOn } else { Outcome::Unanswered };
        self.counts.question(outcome);
        answer.unwrap_or_else(|| question.refuse(Rcode::SERVFAIL))
    }

    /// Who has this address; none if it is nobody's who may ask.
    fn who(&self, source: Ipv6Addr) -> Option<Who> {
        if let Some(asker) = self.directory.asker(source) {
            return Some(Who::Container { owner: asker.owner, confined: asker.confined });
        }
        // The firewall lets in nobody but containers and this host. Of the range none is left but the host
        // itself: another of its addresses was a container's until just now.
        (!self.zone.is_containers(source)).then_some(Who::Host)
    }

    fn due(&self, bytes: &[u8], from: Who, transport: Transport) -> Due {
        let question = match Incoming::read(bytes, transport) {
            Incoming::Noise => return Due::Nothing,
            Incoming::Settled(answer) => {
                self.counts.question(Outcome::Refused);
                return Due::Answer(answer);
            }
            Incoming::Asked(question) => question,
        };
        let refuse = |question: &Question| {
            self.counts.question(Outcome::Refused);
            Due::Answer(question.refuse(Rcode::REFUSED))
        };
        // The whole of a zone is nobody's to have.
        if [Rtype::AXFR, Rtype::IXFR].contains(&question.rtype) {
            return refuse(&question);
        }
        if let Some(found) = self.find(&question, from) {
            self.counts.question(Outcome::Ours);
            let zone = self.zone.authority(&question.name);
            return Due::Answer(question.answer(&found, &zone));
        }
        match from {
            // A container that is to reach nothing else reaches nobody by questions either (CVE-2024-29018).
            // And this host has resolvers: were we one of theirs, each question would go round for ever.
            Who::Host | Who::Container { confined: true, .. } => refuse(&question),
            Who::Container { .. } if !question.recursion => refuse(&question),
            Who::Container { .. } => Due::AskOn(question),
        }
    }

    /// What a name of ours has, as this asker is told; none for a name that is not ours.
    fn find(&self, question: &Question, from: Who) -> Option<Found> {
        let sees = |bearer: &Bearer| match (self.scope, from) {
            (Scope::Host, _) => true,
            (Scope::Owner, Who::Container { owner, .. }) => owner == bearer.owner,
            // By whom the host's resolver is asked nobody knows.
            (Scope::Owner, Who::Host) => false,
        };
        Some(match self.zone.subject(&question.name) {
            Subject::Elsewhere => return None,
            Subject::Apex if question.rtype == Rtype::SOA => Found::Zone,
            Subject::Apex | Subject::Range => Found::NoData,
            Subject::Nothing => Found::NoName,
            Subject::Label(label) => {
                let mut bearers = self.directory.bearers(&label);
                bearers.retain(sees);
                match bearers.is_empty() {
                    true => Found::NoName,
                    false if [Rtype::AAAA, Rtype::ANY].contains(&question.rtype) => {
                        Found::Addresses(bearers.into_iter().map(|b| b.address).collect())
                    }
                    false => Found::NoData,
                }
            }
            Subject::Address(address) => {
                let (labels, bearers): (Vec<_>, Vec<_>) =
                    self.directory.borne(address).into_iter().unzip();
                let names = labels.iter().filter_map(|label| self.zone.name_of(label)).collect();
                match bearers.iter().any(sees) {
                    false => Found::NoName,
                    true if [Rtype::PTR, Rtype::ANY].contains(&question.rtype) => {
                        Found::Names(names)
                    }
                    true => Found::NoData,
                }
            }
        })
    }
}

/// The next message; none if there is none to come.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        length => length?,
    };
    if length > QUESTION {
        return Ok(None);
    }
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
