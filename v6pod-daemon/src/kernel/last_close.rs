//! The last close of files that may not want to be closed, by a thread that ends.
//!
//! The last close(2) of a file lasts as long as whoever made the file likes: a TCP socket lingers for
//! hours (`SO_LINGER`), and a unix socket that nobody has read closes whatever is in flight in it. But
//! a task that is ending does not linger: Linux asks for that (`PF_EXITING`) wherever a socket would,
//! inet_release() first of all. So a thread takes the files into a table of descriptors of its own,
//! everybody else lets go of them, which is no last close, and the thread ends.
//!
//! Guarantee: [`LastClose::close`] does not wait for the files. What a FUSE file does when its
//! descriptor is closed (`flush`) it does here too: that is no business of the last close, and
//! not for this.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::io::{DupFlags, dup3, fcntl_dupfd_cloexec};

use super::sys;

/// How many files one thread takes along.
pub(crate) const BATCH: usize = 64;

/// Linux copies tables of descriptors by words of this many, and closes what the last of them has too
/// many: that would be anybody's files, and a last close of another kind.
const WORD: RawFd = 64;

/// How long a thread may take to have its table. It has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(5);

/// Numbers of descriptors that are kept for files on their way.
#[derive(Debug)]
pub(crate) struct LastClose {
    slots: Vec<OwnedFd>,
    /// What stands in them otherwise.
    null: File,
    /// The first number above all of them.
    above: RawFd,
}

impl LastClose {
    /// Takes the lowest numbers that are free. Whatever stands below them is in the ending threads'
    /// tables too, for an instant: to be called before anything is opened that some time is closed.
    pub(crate) fn reserve() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let (mut slots, mut above) = (Vec::new(), 0);
        while slots.len() < BATCH || above % WORD != 0 {
            let slot = fcntl_dupfd_cloexec(&null, 0)?;
            above = above.max(slot.as_raw_fd() + 1);
            slots.push(slot);
        }
        Ok(Self { slots, null, above })
    }

    /// Closes up to [`BATCH`] files.
    ///
    /// # Errors
    /// The kernel cannot (before Linux 5.9), or has no thread left. The files are given back.
    pub(crate) fn close(&mut self, files: Vec<OwnedFd>) -> Result<(), (io::Error, Vec<OwnedFd>)> {
        debug_assert!(files.len() <= BATCH);
        let (taken, is_taken) = sync_channel(1);
        let (let_go, may_go) = sync_channel::<()>(1);
        let work = move |table: io::Result<()>| {
            let _ = taken.send(table);
            // Until the other end is dropped.
            let _ = may_go.recv();
        };
        let outcome = self
            .place(&files)
            .and_then(|()| sys::spawn_with_table_below(self.above, work))
            .and_then(|()| {
                is_taken.recv_timeout(PATIENCE).unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            });
        for slot in &mut self.slots[..files.len()] {
            // As long as `files` are there it is not their last close. It cannot fail: both are open.
            let _ = dup3(&self.null, slot, DupFlags::CLOEXEC);
        }
        match outcome {
            Ok(()) => {
                drop(files);
                drop(let_go);
                Ok(())
            }
            Err(error) => Err((error, files)),
        }
    }

    fn place(&mut self, files: &[OwnedFd]) -> io::Result<()> {
        let pairs = self.slots.iter_mut().zip(files);
        Ok(pairs
            .into_iter()
            .try_for_each(|(slot, file)| dup3(file.as_fd(), slot, DupFlags::CLOEXEC))?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Instant;

    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    /// A socket whose last close waits for as long as the other end, which comes along, does not read.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        set_socket_linger(&client, Some(Duration::from_secs(600))).unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[0; 1 << 16]).is_ok() {}
        (client.into(), other)
    }

    fn one_is_ending() -> bool {
        let all = fs::read_dir("/proc/self/task").unwrap().flatten();
        let mut names = all.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.any(|name| name.trim() == sys::ENDING)
    }

    #[test]
    fn attack_33_an_ending_thread_waits_for_no_socket_that_lingers() {
        // The case bites: any other thread waits.
        let (file, other) = lingering();
        let naive = thread::spawn(move || drop(file));
        thread::sleep(Duration::from_millis(300));
        assert!(!naive.is_finished());
        drop(other);
        naive.join().unwrap();

        let mut last = LastClose::reserve().unwrap();
        for count in [1, BATCH] {
            let (files, others): (Vec<_>, Vec<_>) = (0..count).map(|_| lingering()).unzip();
            last.close(files).unwrap();
            let began = Instant::now();
            while one_is_ending() {
                assert!(began.elapsed() < Duration::from_secs(20), "{count}");
                thread::sleep(Duration::from_millis(5));
            }
            drop(others);
        }
    }

    #[test]
    fn attack_33_no_file_of_anybody_elses_is_in_the_ending_threads_table() {
        // FUSE files above the slots, in the same word of the table, were closed by the thread, and held it.
        for _ in 0..3 {
            let last = LastClose::reserve().unwrap();
            assert!(last.above % WORD == 0 && last.slots.len() >= BATCH, "{}", last.above);
            let top = last.slots.iter().map(|slot| slot.as_raw_fd()).max().unwrap();
            assert_eq!(top + 1, last.above);
            let _one_more = File::open("/dev/null").unwrap();
        }
    }

    #[test]
    fn what_is_in_flight_in_a_socket_goes_with_it_and_nothing_else_does() {
        let mut last = LastClose::reserve().unwrap();
        let (kept, mut hears) = UnixStream::pair().unwrap();
        let (file, mut other) = UnixStream::pair().unwrap();
        last.close(vec![file.into()]).unwrap();
        other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "it was closed");
        hears.set_nonblocking(true).unwrap();
        assert!(hears.read(&mut [0]).is_err(), "and this was not");
        drop(kept);
        assert_eq!(hears.read(&mut [0]).unwrap(), 0);
    }
}
