//! Closing what callers sent, where that harms nobody but them.
//!
//! Closing a descriptor runs its file's own code: a FUSE file asks its server, a socket may linger.
//! A caller chooses the file, so a caller chooses how long. (A socket's queue can hold descriptors
//! too: closing the connection closes them.)
//!
//! Guarantees: a [`Foreign`] descriptor is closed here, on whatever way its request ends. At most
//! [`PER_CALLER`] threads wait for one caller's files and [`THREADS`] for everybody's; callers take
//! turns. Who has [`MOST`] descriptors waiting is [behind](Closer::is_behind): nothing more is
//! received from him. What he goes on sending stays unread, and a connection from which nobody reads any more is
//! closed without waiting ([`LastClose`]): however many he makes, none is left open.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use std::{io, iter, thread};

use v6pod_proto::Uid;

use crate::fair::FairQueue;
use crate::kernel::last_close::{BATCH, LastClose};

/// How many threads there may be. One that hangs is worth a few kilobytes and nothing else.
const THREADS: usize = 64;

/// How many of them may be busy with one caller's descriptors.
const PER_CALLER: usize = 2;

/// With how many descriptors unclosed a caller is behind. One message can bring 253.
const MOST: usize = 512;

/// For how long connections that nobody has read are gathered before a thread is made to close them.
/// One for each would be most of what a refusal costs, and nobody waits: the answer is out.
const GATHER: Duration = Duration::from_millis(5);

/// Takes descriptors and closes them in the background.
#[derive(Debug, Clone)]
pub struct Closer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Arc<FairQueue<Uid, OwnedFd>>,
    threads: Arc<Threads>,
    unread: mpsc::Sender<(Uid, OwnedFd)>,
}

/// How many threads there are, and how many of them have nothing to do.
#[derive(Debug, Default)]
struct Threads {
    all: AtomicUsize,
    idle: AtomicUsize,
}

impl Closer {
    /// Starts the first threads, which end with the last clone of the closer. Takes the lowest numbers
    /// of descriptors for its own: the sooner, the better.
    pub fn start() -> io::Result<Self> {
        let (last_close, queue) = (LastClose::reserve()?, Arc::new(FairQueue::new(PER_CALLER)));
        let (unread, waiting) = mpsc::channel();
        let others = Arc::clone(&queue);
        let work = move || close_unread(last_close, &waiting, &others);
        thread::Builder::new().name("unread".into()).stack_size(64 << 10).spawn(work)?;
        let shared = Shared { queue, threads: Arc::default(), unread };
        shared.spawn()?;
        Ok(Self(Arc::new(shared)))
    }

    /// Closes a connection of this caller's that nobody has read, and what is in flight in it.
    pub fn close_unread(&self, sender: Uid, connection: OwnedFd) {
        // The thread ends with the last sender.
        let _ = self.0.unread.send((sender, connection));
    }

    /// Closes a descriptor that this caller sent, some time.
    pub fn close(&self, sender: Uid, fd: OwnedFd) {
        self.0.queue.push(sender, fd);
        let threads = &self.0.threads;
        let short = self.0.queue.due() > threads.idle.load(Ordering::Relaxed);
        if short && threads.all.load(Ordering::Relaxed) < THREADS {
            // Without another thread those that there are take a little longer.
            let _ = self.0.spawn();
        }
    }

    /// Whether so many of this caller's descriptors are still to be closed that nothing more should
    /// be received from him.
    pub fn is_behind(&self, sender: Uid) -> bool {
        self.0.queue.of(sender) >= MOST
    }
}

/// Closes what comes, as long as something may come.
fn close_unread(
    mut last_close: LastClose,
    waiting: &mpsc::Receiver<(Uid, OwnedFd)>,
    others: &FairQueue<Uid, OwnedFd>,
) {
    while let Ok(first) = waiting.recv() {
        let mut batch: Vec<_> = iter::once(first).chain(waiting.try_iter()).take(BATCH).collect();
        if batch.len() < BATCH {
            thread::sleep(GATHER);
            let room = BATCH - batch.len();
            batch.extend(waiting.try_iter().take(room));
        }
        let (senders, files): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        if let Err((error, files)) = last_close.close(files) {
            tracing::debug!(%error, "cannot close without waiting");
            senders.into_iter().zip(files).for_each(|(sender, file)| others.push(sender, file));
        }
    }
}

impl Shared {
    fn spawn(&self) -> io::Result<()> {
        let (queue, threads) = (Arc::clone(&self.queue), Arc::clone(&self.threads));
        threads.all.fetch_add(1, Ordering::Relaxed);
        // From now on: until it runs it will take what is due.
        threads.idle.fetch_add(1, Ordering::Relaxed);
        let work = move || {
            while let Some(mut turn) = queue.next() {
                threads.idle.fetch_sub(1, Ordering::Relaxed);
                drop(turn.take());
                drop(turn);
                threads.idle.fetch_add(1, Ordering::Relaxed);
            }
        };
        let spawned = thread::Builder::new().name("closer".into()).stack_size(64 << 10).spawn(work);
        spawned.map(drop).inspect_err(|_| {
            self.threads.all.fetch_sub(1, Ordering::Relaxed);
            self.threads.idle.fetch_sub(1, Ordering::Relaxed);
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// A descriptor that a caller sent: nothing is known of it, and it is closed by the [`Closer`]
/// wherever it is dropped.
#[derive(Debug)]
pub struct Foreign {
    // `None` only once it has been taken out.
    fd: Option<OwnedFd>,
    sender: Uid,
    closer: Closer,
}

impl Foreign {
    /// A descriptor that this caller has sent.
    pub fn new(fd: OwnedFd, sender: Uid, closer: Closer) -> Self {
        Self { fd: Some(fd), sender, closer }
    }

    /// Puts it to the proof: what `verify` keeps of it is the result; what it gives back is as
    /// foreign as before, and closed as such. Never `None`, which says that it was taken out before.
    pub fn examine<T, E>(
        mut self,
        verify: impl FnOnce(OwnedFd) -> Result<T, (E, OwnedFd)>,
    ) -> Option<Result<T, E>> {
        let fd = self.fd.take()?;
        Some(verify(fd).map_err(|(why, fd)| {
            self.fd = Some(fd);
            why
        }))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.closer.close(self.sender, fd);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::io::Write as _;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    /// A socket whose close hangs for as long as the other end, which comes along, does not read.
    pub(crate) fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        set_socket_linger(&client, Some(Duration::from_secs(60))).unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[0; 1 << 16]).is_ok() {}
        (client.into(), other)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::testing::lingering;
    use super::*;

    const ONE: Uid = Uid::new(1).unwrap();
    const TWO: Uid = Uid::new(2).unwrap();

    /// The one end, and the other, which hears of its close.
    fn quick() -> (OwnedFd, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (one.into(), other)
    }

    #[test]
    fn attack_33_what_hangs_in_a_close_holds_nobody_elses_up() {
        let closer = Closer::start().unwrap();
        let mut others = Vec::new();
        for _ in 0..MOST {
            let (fd, other) = lingering();
            closer.close(ONE, fd);
            others.push(other);
            if others.len() > 2 * PER_CALLER {
                break;
            }
        }
        let (mine, mut told) = quick();
        closer.close(TWO, mine);
        assert_eq!(told.read(&mut [0]).unwrap(), 0, "it was closed");
        let threads = closer.0.threads.all.load(Ordering::Relaxed);
        assert!(threads <= PER_CALLER + 1, "{threads}");
        assert!(!closer.is_behind(ONE) && !closer.is_behind(TWO));
        for _ in 0..MOST {
            closer.close(ONE, quick().0);
        }
        assert!(closer.is_behind(ONE) && !closer.is_behind(TWO));
    }

    #[test]
    fn a_foreign_descriptor_is_closed_as_such_wherever_it_is_dropped() {
        let closer = Closer::start().unwrap();
        let foreign = |fd| Foreign::new(fd, ONE, closer.clone());
        let (fd, mut told) = quick();
        drop(foreign(fd));
        assert_eq!(told.read(&mut [0]).unwrap(), 0);
        // Refused and given back.
        let (fd, mut told) = quick();
        let refused = foreign(fd).examine(|fd| Err::<(), _>(("no", fd)));
        assert_eq!(refused, Some(Err("no")));
        assert_eq!(told.read(&mut [0]).unwrap(), 0);
        // Kept.
        let kept = foreign(quick().0).examine(Ok::<_, ((), OwnedFd)>);
        assert!(kept.unwrap().is_ok());
    }
}
