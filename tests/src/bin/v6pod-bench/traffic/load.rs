//! One stream, a flood of small packets, one connection after the other: between two namespaces.

use std::io::{Read as _, Write as _};
use std::iter;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::unistd::Pid;

use super::Load;
use crate::Result;
use crate::scene::NetNs;

/// How long each is measured, but for streams.
const PERIOD: Duration = Duration::from_millis(300);

/// How long a stream is, of which there are more.
const STREAM: Duration = Duration::from_millis(100);

/// Past this, nobody is there.
const LIMIT: Duration = Duration::from_secs(LIMIT_S as u64);
const LIMIT_S: i64 = 3;

/// As iperf3 writes.
const CHUNK: usize = 128 << 10;

/// What a small packet carries.
const SMALL: [u8; 64] = [0x56; 64];

/// From where to where.
#[derive(Clone, Copy)]
pub(crate) struct Course<'a> {
    pub(crate) from: &'a NetNs,
    pub(crate) to: &'a NetNs,
    /// Of the far end, as the near end knows it.
    pub(crate) address: IpAddr,
    /// What the far end listens on: what is open, or forwarded.
    pub(crate) port: u16,
}

/// Who sends by a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Near,
    Far,
}

impl Course<'_> {
    /// How much of this passes.
    pub(crate) fn measure(self, load: Load) -> Result<f64> {
        match load {
            Load::Between | Load::Out => self.stream(Sender::Near),
            Load::Back => self.stream(Sender::Far),
            Load::Packets | Load::PacketsOut => self.packets(),
            Load::Flows | Load::FlowsOut => self.flows(),
        }
    }

    /// One TCP stream, opened by the near end: bits a second.
    fn stream(self, sender: Sender) -> Result<f64> {
        let (listener, to) = self.listen()?;
        let near = inside(self.from, || TcpStream::connect_timeout(&to, LIMIT))??;
        let (far, _) = listener.accept()?;
        let (mut source, mut sink) = if sender == Sender::Near { (near, far) } else { (far, near) };
        sink.set_read_timeout(Some(LIMIT))?;
        source.set_write_timeout(Some(LIMIT))?;
        let began = Instant::now();
        let bytes = thread::scope(|scope| {
            let arrived = scope.spawn(move || -> std::io::Result<usize> {
                stay_on(Processor::Last)?;
                let (mut buffer, mut all) = (vec![0; CHUNK], 0);
                loop {
                    match sink.read(&mut buffer)? {
                        0 => return Ok(all),
                        length => all += length,
                    }
                }
            });
            let sent = scope.spawn(move || {
                stay_on(Processor::First)?;
                let chunk = vec![0x56; CHUNK];
                while began.elapsed() < STREAM {
                    source.write_all(&chunk)?;
                }
                Ok::<_, std::io::Error>(())
            });
            sent.join().map_err(|_| "a thread died")??;
            Ok::<_, Box<dyn std::error::Error>>(arrived.join().map_err(|_| "a thread died")??)
        })?;
        Ok(bytes as f64 * 8.0 / began.elapsed().as_secs_f64())
    }

    /// Datagrams as fast as one thread sends them: how many arrive a second.
    fn packets(self) -> Result<f64> {
        let far = inside(self.to, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, self.port)))??;
        let to = SocketAddr::new(self.address, self.port);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let near = inside(self.from, || UdpSocket::bind(any))??;
        near.connect(to)?;
        // The first opens the way, where one has to be opened.
        far.set_read_timeout(Some(LIMIT))?;
        near.send(&SMALL)?;
        far.recv(&mut [0; 128])?;
        far.set_read_timeout(Some(Duration::from_millis(100)))?;
        let arrived = thread::scope(|scope| {
            let arrived = scope.spawn(|| {
                stay_on(Processor::Last)?;
                Ok::<_, std::io::Error>(iter::from_fn(|| far.recv(&mut [0; 128]).ok()).count())
            });
            let sent = scope.spawn(|| {
                stay_on(Processor::First)?;
                let began = Instant::now();
                while began.elapsed() < PERIOD {
                    match near.send(&SMALL) {
                        Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                Ok(())
            });
            sent.join().map_err(|_| "a thread died")??;
            Ok::<_, Box<dyn std::error::Error>>(arrived.join().map_err(|_| "a thread died")??)
        })?;
        if arrived == 0 {
            return Err("no datagram arrived".into());
        }
        Ok(arrived as f64 / PERIOD.as_secs_f64())
    }

    /// Connections that one thread opens, accepts and resets, one after the other: how many a second.
    fn flows(self) -> Result<f64> {
        let (listener, to) = self.listen()?;
        let each = inside(self.from, || {
            stay_on(Processor::First)?;
            let (mut count, began) = (0_u32, Instant::now());
            while began.elapsed() < PERIOD {
                let near = TcpStream::connect_timeout(&to, LIMIT)?;
                let far = listener.accept()?;
                reset_at_end(&near)?;
                drop((near, far));
                count += 1;
            }
            Ok::<_, std::io::Error>(f64::from(count) / began.elapsed().as_secs_f64())
        })?;
        Ok(each?)
    }

    fn listen(&self) -> Result<(TcpListener, SocketAddr)> {
        let any = (Ipv6Addr::UNSPECIFIED, self.port);
        let listener = inside(self.to, || TcpListener::bind(any))??;
        // For accept(2) as well: who forwards has accepted by himself before.
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(LIMIT_S))?;
        Ok((listener, SocketAddr::new(self.address, self.port)))
    }
}

/// Where an end runs, so that it is no matter of luck whether both share a processor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Processor {
    First,
    Last,
}

/// Keeps the calling thread there.
fn stay_on(which: Processor) -> std::io::Result<()> {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me)?;
    let mut all = (0..CpuSet::count()).filter(|n| allowed.is_set(*n).unwrap_or(false));
    let one = if which == Processor::First { all.next() } else { all.next_back() };
    let mut only = CpuSet::new();
    only.set(one.unwrap_or(0))?;
    Ok(sched_setaffinity(me, &only)?)
}

/// Its end is a reset, so that no port is left waiting (TIME_WAIT): there are only 28,000.
fn reset_at_end(connection: &TcpStream) -> std::io::Result<()> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(connection, sockopt::Linger, &at_once).map_err(std::io::Error::other)
}

/// What the job gives on a thread inside: its sockets stay there.
pub(crate) fn inside<T: Send>(netns: &NetNs, job: impl FnOnce() -> T + Send) -> Result<T> {
    let enter = || netns.enter().map(|()| job()).map_err(|error| error.to_string());
    let done = thread::scope(|scope| scope.spawn(enter).join());
    Ok(done.map_err(|_| "a thread died")??)
}
