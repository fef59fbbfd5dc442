//! Real sockets of the test's own, in the namespaces that it made: servers that answer, and clients that
//! go on talking in one flow.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::{PATIENCE, eventually};

/// How long something that is dropped is waited for in vain.
const SILENCE: Duration = Duration::from_millis(1500);

/// What a server says while nobody has asked it.
const UNASKED: &[u8] = b"u";

/// Does something in that network namespace. A socket stays in the one that it was made in.
#[track_caller]
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        work()
    };
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Answers on some ports of a namespace, TCP and UDP, whatever it is told by the same: an HTTP request by
/// a page. It also goes on sending unasked in every flow that it has, as a busy server does.
#[derive(Debug)]
pub struct Server {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// On these ports.
    #[track_caller]
    pub fn start(namespace: &File, ports: &[u16]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for &port in ports {
            let any = (Ipv6Addr::UNSPECIFIED, port);
            let (listener, socket) = within(namespace, || {
                (TcpListener::bind(any).expect("listening"), UdpSocket::bind(any).expect("binding"))
            });
            let [tcp, udp] = [Arc::clone(&over), Arc::clone(&over)];
            threads.push(thread::spawn(move || accept(&listener, &tcp)));
            threads.push(thread::spawn(move || answer_datagrams(&socket, &udp)));
        }
        Self { over, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Then its ports are another's to take.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn accept(listener: &TcpListener, over: &Arc<AtomicBool>) {
    listener.set_nonblocking(true).expect("a socket that does not block");
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let over = Arc::clone(over);
                thread::spawn(move || answer(stream, &over));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn answer(mut stream: TcpStream, over: &AtomicBool) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
    let mut buffer = [0; 4096];
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) if buffer.starts_with(b"GET ") => {
                let _ = (count, stream.write_all(b"HTTP/1.0 200 OK\r\n\r\ninside\n"));
                return;
            }
            Ok(count) => drop(stream.write_all(&buffer[..count])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                drop(stream.write_all(UNASKED));
            }
            Err(_) => return,
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, over: &AtomicBool) {
    let _ = socket.set_read_timeout(Some(Duration::from_millis(100)));
    let (mut buffer, mut known) = ([0; 4096], Vec::<SocketAddr>::new());
    while !over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((count, from)) => {
                let _ = socket.send_to(&buffer[..count], from);
                known.retain(|known| *known != from);
                known.push(from);
            }
            Err(_) => known.iter().for_each(|known| drop(socket.send_to(UNASKED, known))),
        }
    }
}

/// One flow, which goes on as long as both ends reach each other.
#[derive(Debug)]
pub enum Flow {
    /// A connection.
    Tcp(TcpStream),
    /// Datagrams.
    Udp(UdpSocket),
}

impl Flow {
    /// A connection from that namespace, if it comes about.
    #[track_caller]
    pub fn tcp(namespace: &File, to: (Ipv6Addr, u16)) -> Option<Self> {
        let stream = within(namespace, || TcpStream::connect_timeout(&to.into(), SILENCE));
        stream.ok().map(Self::Tcp)
    }

    /// Datagrams from that namespace, if they are answered.
    #[track_caller]
    pub fn udp(namespace: &File, to: (Ipv6Addr, u16)) -> Option<Self> {
        let socket = within(namespace, || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("binding a socket");
            socket.connect(to).expect("connecting a socket");
            socket
        });
        let mut flow = Self::Udp(socket);
        flow.is_answered().then_some(flow)
    }

    /// Says something new, and whether that comes back.
    pub fn is_answered(&mut self) -> bool {
        let token = rand_token();
        let deadline = std::time::Instant::now() + SILENCE;
        let mut seen = Vec::new();
        let mut asked = None;
        while std::time::Instant::now() < deadline {
            // Datagrams are said again: one may be lost where the first packet of all was on its way.
            let due = asked.is_none_or(|at: std::time::Instant| at.elapsed() > SILENCE / 4);
            let again = due && (asked.is_none() || matches!(self, Self::Udp(_)));
            if again && self.send(token.as_bytes()).is_ok() {
                asked = Some(std::time::Instant::now());
            }
            match self.receive() {
                Ok(bytes) => seen.extend(bytes),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return false,
            }
            if seen.windows(token.len()).any(|window| window == token.as_bytes()) {
                return true;
            }
        }
        false
    }

    /// The same of several at once: each that is not answered is waited for in vain.
    pub fn answered(flows: &mut [Self]) -> Vec<bool> {
        thread::scope(|scope| {
            let asked: Vec<_> =
                flows.iter_mut().map(|flow| scope.spawn(move || flow.is_answered())).collect();
            asked.into_iter().map(|flow| flow.join().expect("a flow")).collect()
        })
    }

    /// Waits until it is not answered any more.
    #[track_caller]
    pub fn ends(&mut self) {
        eventually(PATIENCE, "the flow ends", || (!self.is_answered()).then_some(()));
    }

    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Udp(socket) => socket.send(bytes).map(drop),
        }
    }

    fn receive(&mut self) -> std::io::Result<Vec<u8>> {
        let mut buffer = vec![0; 4096];
        let pause = Some(Duration::from_millis(50));
        let count = match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(pause)?;
                stream.read(&mut buffer)?
            }
            Self::Udp(socket) => {
                socket.set_read_timeout(pause)?;
                socket.recv(&mut buffer)?
            }
        };
        buffer.truncate(count);
        Ok(buffer)
    }
}

/// Words that nobody has said before.
fn rand_token() -> String {
    use std::sync::atomic::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("<{}-{}>", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
