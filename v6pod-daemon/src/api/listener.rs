//! The sockets, and what one connection goes through.
//!
//! Guarantees: a connection that says nothing, or says it slowly, is closed after [`HEADERS`] and
//! [`REQUEST`]; there are at most [`CONNECTIONS`] at once, and no more of one caller than his share.
//! Who has had more of the daemon's time than is his is listened to [later](Paces::wait). When refusing takes more than
//! [its share](Refusals), nobody is accepted for some milliseconds.
//! A connection that has become a lease counts against none of these; one by which somebody watches events
//! is not closed for its age.

use std::fs::{self, Permissions};
use std::future::Future;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net as std_unix;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{RecvFlags, SocketFlags, accept_with, listen, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::Service as _;
use v6pod_proto::Uid;

use super::caller::{Caller, Via, peer_of};
use super::handlers::Connection;
use super::inherited::{Inherited, tell_of_the_missing};
use super::own_sockets::{OwnSockets, tell_of_logins};
use super::problem;
use super::shares::{Place, Shares};
use super::stream::{Inbox, Stream, dismiss, keep_urgent_bytes};
use crate::attachments::{Attachments, Lease};
use crate::closer::Closer;
use crate::config::Config;
use crate::kernel;
use crate::kernel::workers::processor_time;
use crate::pace::Refusals;

/// How long a client may take for its request's head.
const HEADERS: Duration = Duration::from_secs(5);

/// How long a whole request may take. The shim gives up after five seconds.
const REQUEST: Duration = Duration::from_secs(10);

/// What a request takes of a processor's time, beside what a worker does for it: 0.1 ms was measured,
/// from accepting its connection to closing it.
const SERVED: Duration = Duration::from_micros(100);

/// What it takes at least to refuse one on the unix socket: 11 µs were measured, with the threads that close what
/// was sent in it, from one client who made 51,000 a second. On another machine it was twice as much.
const REFUSED: Duration = Duration::from_micros(10);

/// What is charged for one at the most, whatever its caller has found to make it longer: everybody else waits for it.
const REFUSED_AT_MOST: Duration = Duration::from_micros(100);

/// How many connections may wait to be accepted; who comes later waits in connect(2). Few, because
/// whoever stands behind a crowd waits until all of it has been refused.
const WAITING: i32 = 64;

/// Of how many users who were served it is kept in mind that they need sockets of their own.
const SERVED_AT_ONCE: usize = 64;

/// How many connections there may be that are not leases.
pub(crate) const CONNECTIONS: usize = 2048;

/// How long the accept loops pause when the system has no descriptor left.
const PAUSE: Duration = Duration::from_millis(50);

/// How often that is said at the most: a tenant can see to it that it stays so.
const SAYING: Duration = Duration::from_secs(1);

/// How long connections are still accepted when the daemon is to stop.
const LAST: Duration = Duration::from_millis(20);

/// The most bytes of a request's head.
const HEAD: usize = 16 * 1024;

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

/// All listeners, bound, and where each user's own are to be.
#[derive(Debug)]
pub struct Listeners {
    unix: AsyncFd<OwnedFd>,
    own: Option<OwnSockets>,
    tcp: Vec<TcpListener>,
}

impl Listeners {
    /// Takes the unix socket and the TCP addresses of the configuration from what was inherited,
    /// and binds those that are not there. The caller holds the instance's lock, so a socket file
    /// that is there and was not inherited was left by a daemon that is not.
    pub async fn open(config: &Config, mut inherited: Inherited) -> Result<Self, ListenError> {
        let path = config.socket();
        let by_hand = inherited.is_empty();
        let unix = match inherited.unix_at(&path) {
            Some(socket) => Ok(socket),
            None => bind_unix(&path),
        };
        // Whatever systemd has said: the last word counts.
        let unix = unix.and_then(|socket| Ok(listen(&socket, WAITING).map(|()| socket)?));
        let unix = unix.and_then(|socket| kernel::watch(socket.into()));
        let unix =
            unix.map_err(|source| ListenError::Unix { path: path.display().to_string(), source })?;
        let mut tcp = Vec::new();
        for &address in &config.tcp {
            let listener = match inherited.tcp_at(address) {
                Some(socket) => TcpListener::from_std(socket),
                None => {
                    if !by_hand {
                        tell_of_the_missing(address);
                    }
                    TcpListener::bind(address).await
                }
            };
            tcp.push(listener.map_err(|source| ListenError::Tcp { address, source })?);
        }
        inherited.tell_of_the_rest();
        let own = OwnSockets::beside(&path).inspect_err(|error| {
            tracing::warn!(%error, "users get no sockets of their own: {}", path.display());
        });
        Ok(Self { unix, own: own.ok(), tcp })
    }

    /// Serves until `stop` says so. Requests at work are finished; leases are left alone.
    pub async fn serve(
        self,
        router: Router,
        attachments: Attachments,
        stop: watch::Receiver<bool>,
    ) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let (served, users) = mpsc::channel(SERVED_AT_ONCE);
        let server = Server {
            router,
            closer: attachments.closer(),
            attachments,
            room: Arc::clone(&room),
            shares: Shares::default(),
            refusals: Refusals::default(),
            served,
            said: Arc::default(),
        };
        let mut loops = JoinSet::new();
        if let Some(own) = self.own {
            loops.spawn(until(stop.clone(), server.clone().welcome(own, users)));
        }
        loops.spawn(until(stop.clone(), server.clone().accept_unix(self.unix)));
        for listener in self.tcp {
            let server = Server { refusals: Refusals::default(), ..server.clone() };
            loops.spawn(until(stop.clone(), server.accept_tcp(listener)));
        }
        let watched = server.attachments.clone();
        drop(server);
        while loops.join_next().await.is_some() {}
        watched.end_watching();
        // All permits are back when the last request has been answered.
        let _ = timeout(REQUEST, room.acquire_many(CONNECTIONS as u32)).await;
    }
}

/// Accepts until `stop` says so, and then whoever waits already: a daemon that is started again and
/// again would otherwise leave its clients to the next one until they give up.
async fn until(mut stop: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::pin!(work);
    tokio::select! {
        () = &mut work => return,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    let _ = timeout(LAST, work).await;
}

fn bind_unix(path: &Path) -> io::Result<std_unix::UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std_unix::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
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
    /// Those of one listener.
    refusals: Refusals,
    /// Is told of users who were served at the common socket.
    served: mpsc::Sender<Uid>,
    /// When it was last said that no connection can be accepted.
    said: Arc<Mutex<Option<Instant>>>,
}

/// Whether the other end has nothing to say and will have nothing, so that nothing is in flight whose closing could
/// block. Urgent bytes have to be [kept](keep_urgent_bytes) by then: they are passed over otherwise.
fn has_left(stream: &std_unix::UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(recv(stream, &mut [0], flags), Ok((_, 0)))
}

impl Server {
    /// Listens for each user who has come or comes.
    async fn welcome(self, mut own: OwnSockets, mut users: mpsc::Receiver<Uid>) {
        let (due, mut loops) = (own.due(), JoinSet::new());
        // What is refused here was accepted at its user's pace, and is nothing to the common one.
        let alone = || Self { refusals: Refusals::default(), ..self.clone() };
        let mut listen_for = |uid| match own.make(uid) {
            Ok(Some(listener)) => drop(loops.spawn(alone().accept_from(uid, listener))),
            Ok(None) => {}
            Err(error) => tracing::warn!(%uid, %error, "a user gets no socket of his own"),
        };
        due.for_each(&mut listen_for);
        let logins = tell_of_logins(self.served.clone());
        tokio::spawn(async {
            if let Err(error) = logins.await {
                tracing::warn!(%error, "cannot hear of logins: users get sockets of their own when they are served");
            }
        });
        while let Some(uid) = users.recv().await {
            listen_for(uid);
        }
    }

    /// Accepts what comes in by this user's own socket, no faster than is his: what he makes more stays in
    /// the queue, which is his too.
    async fn accept_from(self, uid: Uid, listener: AsyncFd<OwnedFd>) {
        let nonblocking = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = |listener: &AsyncFd<OwnedFd>| Ok(accept_with(listener, nonblocking)?);
        let paces = self.attachments.paces();
        loop {
            let Ok(mut ready) = listener.readable().await else { return };
            let place = self.shares.place(uid).await;
            while let Some(wait) = paces.wait(uid, Instant::now()) {
                sleep(wait).await;
            }
            let permit = self.permit().await;
            match ready.try_io(accept) {
                Ok(Ok(stream)) => {
                    paces.charge(uid, REFUSED, Instant::now());
                    let stream = stream.into();
                    match keep_urgent_bytes(&stream) {
                        Ok(()) => {
                            tokio::spawn(self.clone().serve_unix(stream, permit, Some(place)));
                        }
                        Err(_) => dismiss(stream, uid, &self.closer),
                    }
                }
                Ok(Err(error)) => self.pause(&error).await,
                Err(_would_block) => {}
            }
        }
    }

    async fn accept_unix(self, listener: AsyncFd<OwnedFd>) {
        let nonblocking = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let permit = self.permit().await;
            self.rest().await;
            // In a crowd this is all that is done, and tokio hears of none of it: who waits behind it waits
            // the less.
            let mut began = Duration::ZERO;
            let accept = |listener: &OwnedFd| {
                began = processor_time();
                Ok(accept_with(listener, nonblocking)?)
            };
            match listener.async_io(Interest::READABLE, accept).await {
                Ok(stream) => match self.turn_away(stream.into()) {
                    Some(stream) => {
                        tokio::spawn(self.clone().serve_unix(stream, permit, None));
                    }
                    None => {
                        // By the clock of this thread, which did nearly all of it: nothing is awaited in between.
                        let took = processor_time().saturating_sub(began).min(REFUSED_AT_MOST);
                        self.refusals.charge(took.saturating_sub(REFUSED), Instant::now());
                    }
                },
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Refuses the connection if its caller is known and has too many, or has left already; else gives it back.
    fn turn_away(&self, stream: std_unix::UnixStream) -> Option<std_unix::UnixStream> {
        let (Ok(()), Some((uid, via))) = (keep_urgent_bytes(&stream), peer_of(&stream)) else {
            dismiss(stream, Uid::ROOT, &self.closer);
            return None;
        };
        // Who only connects and leaves would else be served, which takes several times as long.
        if has_left(&stream) {
            self.has_refused(REFUSED);
            return None;
        }
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

    fn has_refused(&self, took: Duration) {
        self.attachments.metrics().turned_away();
        self.refusals.charge(took, Instant::now());
    }

    /// For refusing too there is a share of a processor, and it is not all of it.
    async fn rest(&self) {
        if let Some(rest) = self.refusals.rest(Instant::now()) {
            sleep(rest).await;
        }
    }

    fn refuse(&self, mut stream: std_unix::UnixStream, peer: Uid) {
        // Not for every log, and he may not be reading: what does not fit at once is not said.
        tracing::trace!(uid = %peer, "refused a connection: too many are open");
        let _ = stream.write(&problem::CROWDED);
        dismiss(stream, peer, &self.closer);
        self.has_refused(REFUSED);
    }

    async fn accept_tcp(self, listener: TcpListener) {
        loop {
            let permit = self.permit().await;
            self.rest().await;
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
        let now = Instant::now();
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.is_none_or(|last| now.duration_since(last) >= SAYING) {
                *said = Some(now);
                tracing::warn!(%error, "cannot accept a connection");
            }
        }
        sleep(PAUSE).await;
    }

    /// Serves one connection, which has its place if it came by its user's own socket.
    async fn serve_unix(
        self,
        stream: std_unix::UnixStream,
        permit: Option<OwnedSemaphorePermit>,
        place: Option<Place>,
    ) {
        let Some((uid, via)) = peer_of(&stream) else {
            return dismiss(stream, Uid::ROOT, &self.closer);
        };
        let caller = self.caller(uid, via).await;
        if caller.standing.attaches {
            // Full: he is told of the next time.
            let _ = self.served.try_send(uid);
        }
        let peer = caller.counted_as();
        let place = place.or_else(|| self.shares.enter(peer));
        let place = place.filter(|_| !self.closer.is_behind(peer));
        let Some(place) = place else { return self.refuse(stream, peer) };
        if !self.in_his_turn(peer).await {
            return self.refuse(stream, peer);
        }
        let Ok(stream) = UnixStream::from_std(stream) else { return };
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
        let peer = caller.counted_as();
        let place = self.shares.enter(peer);
        if place.is_none() || !self.in_his_turn(peer).await {
            let _ = stream.try_write(&problem::CROWDED);
            self.has_refused(SERVED);
            return;
        }
        let (connection, _) = connection(caller, Inbox::default());
        let _ = self.one_request(TokioIo::new(stream), connection).await;
    }

    /// Waits until this caller may have another request served; false if that takes too long.
    async fn in_his_turn(&self, peer: Uid) -> bool {
        let paces = self.attachments.paces();
        let due = async {
            while let Some(wait) = paces.wait(peer, Instant::now()) {
                sleep(wait).await;
            }
            paces.charge(peer, SERVED, Instant::now());
        };
        timeout(HEADERS, due).await.is_ok()
    }

    async fn caller(&self, uid: Uid, via: Via) -> Caller {
        Caller { uid, via, standing: self.attachments.standing(uid).await }
    }

    /// Serves the one request of a connection and gives the connection back; `None` if it broke.
    async fn one_request<I>(&self, io: I, connection: Connection) -> Option<I>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin,
    {
        let watches = Arc::clone(&connection.watches);
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
        tokio::pin!(served);
        let in_time = match timeout(REQUEST, &mut served).await {
            // It goes on until one of both has enough.
            Err(_) if watches.load(Ordering::Relaxed) => Ok(served.await),
            in_time => in_time,
        };
        match in_time {
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
    let watches = Arc::default();
    (Connection { caller, inbox, lease: Arc::clone(&lease), watches }, lease)
}
