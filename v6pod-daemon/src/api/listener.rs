//! The sockets, and what one connection goes through.
//!
//! Guarantees: a connection that says nothing, or says it slowly, is closed after [`HEADERS`] and
//! [`REQUEST`]; there are at most [`CONNECTIONS`] at once, and no more of one caller than his share.
//! A connection that has become a lease counts against none of these.

use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tower::Service as _;
use v6pod_proto::Uid;

use super::caller::{Caller, Via, peer_of};
use super::handlers::Connection;
use super::problem;
use super::shares::Shares;
use super::stream::{Inbox, Stream, dismiss};
use crate::attachments::{Attachments, Lease};
use crate::closer::Closer;
use crate::config::Config;
use crate::kernel::handed;

/// How long a client may take for its request's head.
const HEADERS: Duration = Duration::from_secs(5);

/// How long a whole request may take. The shim gives up after five seconds.
const REQUEST: Duration = Duration::from_secs(10);

/// How many connections there may be that are not leases.
pub(crate) const CONNECTIONS: usize = 2048;

/// How long the accept loops pause when the system has no descriptor left.
const PAUSE: Duration = Duration::from_millis(50);

/// The most bytes of a request's head.
const HEAD: usize = 16 * 1024;

/// The most clients that can wait in a socket (`net.core.somaxconn`, and systemd's own limit).
const WAITING: usize = 4096;

/// Why a listener cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The unix socket.
    #[error("cannot listen on {path}")]
    Unix {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A TCP address.
    #[error("cannot listen on {address}, which [api] tcp names")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The sockets that a service manager listens on for this daemon (`v6podd.socket`): clients that
/// come while no daemon runs wait in them instead of being refused.
#[derive(Debug, Default)]
pub struct Inherited {
    unix: Vec<net::UnixListener>,
    tcp: Vec<std::net::TcpListener>,
}

impl Inherited {
    /// Takes them over. To be called once, before anything else is opened.
    pub fn take() -> io::Result<Self> {
        let handed = handed::listeners("v6podd")?;
        let inherited = Self {
            unix: handed.unix.into_iter().map(Into::into).collect(),
            tcp: handed.tcp.into_iter().map(Into::into).collect(),
        };
        inherited.unix.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        inherited.tcp.iter().try_for_each(|socket| socket.set_nonblocking(true))?;
        Ok(inherited)
    }

    /// Closes on whoever waits. For a daemon that will not start: its clients would wait in vain,
    /// and as long as one waits the service manager would start it again and again.
    pub fn turn_away(&self) {
        for socket in &self.unix {
            (0..WAITING).map_while(|_| socket.accept().ok()).for_each(drop);
        }
        for socket in &self.tcp {
            (0..WAITING).map_while(|_| socket.accept().ok()).for_each(drop);
        }
    }

    /// Says what is left: it stays open, and nobody will ever answer there.
    fn tell_of_the_rest(&self) {
        let unix = self.unix.iter().map(|socket| format!("{:?}", socket.local_addr()));
        let tcp = self.tcp.iter().map(|socket| format!("{:?}", socket.local_addr()));
        for address in unix.chain(tcp) {
            tracing::warn!(address, "v6podd.socket listens where the configuration does not");
        }
    }

    fn unix_at(&mut self, path: &Path) -> Option<net::UnixListener> {
        let at = |socket: &net::UnixListener| {
            socket.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
        };
        self.unix.iter().position(at).map(|index| self.unix.swap_remove(index))
    }

    fn tcp_at(&mut self, address: SocketAddr) -> Option<std::net::TcpListener> {
        let at = |socket: &std::net::TcpListener| socket.local_addr().is_ok_and(|a| a == address);
        self.tcp.iter().position(at).map(|index| self.tcp.swap_remove(index))
    }
}

/// Both listeners, bound.
#[derive(Debug)]
pub struct Listeners {
    unix: UnixListener,
    tcp: Vec<TcpListener>,
}

impl Listeners {
    /// Takes the unix socket and the TCP addresses of the configuration from what was inherited,
    /// and binds those that are not there. The caller holds the instance's lock, so a socket file
    /// that is there and was not inherited was left by a daemon that is not.
    pub async fn open(config: &Config, mut inherited: Inherited) -> Result<Self, ListenError> {
        let path = config.socket();
        let unix = match inherited.unix_at(&path) {
            Some(socket) => UnixListener::from_std(socket),
            None => bind_unix(&path),
        };
        let unix =
            unix.map_err(|source| ListenError::Unix { path: path.display().to_string(), source })?;
        let mut tcp = Vec::new();
        for &address in &config.tcp {
            let listener = match inherited.tcp_at(address) {
                Some(socket) => TcpListener::from_std(socket),
                None => TcpListener::bind(address).await,
            };
            tcp.push(listener.map_err(|source| ListenError::Tcp { address, source })?);
        }
        inherited.tell_of_the_rest();
        Ok(Self { unix, tcp })
    }

    /// Serves until `stop` says so. Requests at work are finished; leases are left alone.
    pub async fn serve(
        self,
        router: Router,
        attachments: Attachments,
        stop: watch::Receiver<bool>,
    ) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let server = Server {
            router,
            closer: attachments.closer(),
            attachments,
            room: Arc::clone(&room),
            shares: Shares::default(),
        };
        let mut loops = tokio::task::JoinSet::new();
        loops.spawn(until(stop.clone(), server.clone().accept_unix(self.unix)));
        for listener in self.tcp {
            loops.spawn(until(stop.clone(), server.clone().accept_tcp(listener)));
        }
        while loops.join_next().await.is_some() {}
        // All permits are back when the last request has been answered.
        let _ = timeout(REQUEST, room.acquire_many(CONNECTIONS as u32)).await;
    }
}

async fn until(mut stop: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Anybody may ask; the kernel tells who he is.
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[derive(Clone)]
struct Server {
    router: Router,
    attachments: Attachments,
    closer: Closer,
    room: Arc<Semaphore>,
    shares: Shares,
}

impl Server {
    async fn accept_unix(self, listener: UnixListener) {
        loop {
            let permit = self.permit().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    // In a crowd this is all that is done: who waits behind it waits the less.
                    if let Some(stream) = self.turn_away(stream) {
                        tokio::spawn(self.clone().serve_unix(stream, permit));
                    }
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Refuses the connection if its caller is known and has too many; else gives it back.
    fn turn_away(&self, stream: UnixStream) -> Option<UnixStream> {
        let (uid, via) = peer_of(&stream)?;
        let known = self.attachments.known_standing(uid);
        let peer = known.map(|standing| Caller { uid, via, standing }.counted_as());
        match peer.filter(|peer| self.shares.is_full(*peer) || self.closer.is_behind(*peer)) {
            Some(peer) => {
                self.refuse(stream, peer);
                None
            }
            None => Some(stream),
        }
    }

    fn refuse(&self, stream: UnixStream, peer: Uid) {
        // Not for every log, and he may not be reading: what does not fit at once is not said.
        tracing::trace!(uid = %peer, "refused a connection: too many are open");
        let _ = stream.try_write(&problem::CROWDED);
        dismiss(stream, peer, &self.closer);
    }

    async fn accept_tcp(self, listener: TcpListener) {
        loop {
            let permit = self.permit().await;
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().serve_tcp(stream, permit))),
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).acquire_owned().await.ok()
    }

    async fn pause(&self, error: &io::Error) {
        tracing::warn!(%error, "cannot accept a connection");
        sleep(PAUSE).await;
    }

    async fn serve_unix(self, stream: UnixStream, permit: Option<OwnedSemaphorePermit>) {
        let Some((uid, via)) = peer_of(&stream) else {
            return dismiss(stream, Uid::ROOT, &self.closer);
        };
        let caller = self.caller(uid, via).await;
        let peer = caller.counted_as();
        let place = self.shares.enter(peer).filter(|_| !self.closer.is_behind(peer));
        let Some(place) = place else { return self.refuse(stream, peer) };
        let (io, inbox) = Stream::new(stream, peer, self.closer.clone());
        let (connection, lease) = connection(caller, inbox);
        let Some(io) = self.one_request(io, connection).await else { return };
        drop((permit, place));
        let lease = lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut lease) = lease {
            tokio::select! {
                () = io.hung_up() => {}
                () = lease.over() => {}
            }
        }
    }

    async fn serve_tcp(self, stream: TcpStream, _permit: Option<OwnedSemaphorePermit>) {
        let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
        let Some(uid) = self.attachments.owner_of_peer(local, peer).await else {
            tracing::info!(%peer, "closed a connection whose other end has no owner");
            return;
        };
        let caller = self.caller(uid, Via::Tcp).await;
        let Some(_place) = self.shares.enter(caller.counted_as()) else {
            let _ = stream.try_write(&problem::CROWDED);
            return;
        };
        let (connection, _) = connection(caller, Inbox::default());
        let _ = self.one_request(TokioIo::new(stream), connection).await;
    }

    async fn caller(&self, uid: Uid, via: Via) -> Caller {
        Caller { uid, via, standing: self.attachments.standing(uid).await }
    }

    /// Serves the one request of a connection and gives the connection back; `None` if it broke.
    async fn one_request<I>(&self, io: I, connection: Connection) -> Option<I>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin,
    {
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(connection.clone());
            self.router.clone().call(request.map(Body::new))
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .max_buf_size(HEAD)
            .keep_alive(false)
            .serve_connection(io, service)
            .without_shutdown();
        match timeout(REQUEST, served).await {
            Ok(Ok(parts)) => Some(parts.io),
            Ok(Err(error)) => {
                tracing::debug!(uid = %connection.caller.uid, %error, "a connection broke");
                None
            }
            Err(_) => {
                tracing::info!(uid = %connection.caller.uid, "a request took too long");
                None
            }
        }
    }
}

type LeaseSlot = Arc<Mutex<Option<Lease>>>;

fn connection(caller: Caller, inbox: Inbox) -> (Connection, LeaseSlot) {
    let lease = LeaseSlot::default();
    (Connection { caller, inbox, lease: Arc::clone(&lease) }, lease)
}
