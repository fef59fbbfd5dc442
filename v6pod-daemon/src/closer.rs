//! Closing what callers sent, off the runtime.
//!
//! Closing a descriptor runs its file's own code: a FUSE file asks its server, a socket may linger.
//! A caller chooses the file, so a caller chooses how long. (A socket's queue can hold descriptors
//! too: closing the connection closes them.)

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::{io, thread};

/// Takes descriptors and closes them in the background.
#[derive(Debug, Clone)]
pub struct Closer(Sender<OwnedFd>);

impl Closer {
    /// Starts the thread that closes. It ends with the last clone of the closer.
    pub fn start() -> io::Result<Self> {
        let (sender, receiver): (_, Receiver<OwnedFd>) = channel();
        let close = move || receiver.into_iter().for_each(drop);
        thread::Builder::new().name("closer".into()).spawn(close)?;
        Ok(Self(sender))
    }

    /// Closes the descriptor, some time.
    pub fn close(&self, fd: OwnedFd) {
        // The thread ends only with this sender, so it is there.
        let _ = self.0.send(fd);
    }
}
