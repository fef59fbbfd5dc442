//! A unix connection that takes descriptors along with its first byte.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, Shutdown, recvmsg,
};
use tokio::io::{AsyncWrite as _, Interest};
use tokio::net::UnixStream;

use v6pod_proto::Uid;

use crate::closer::{Closer, Foreign};

/// SCM_MAX_FD: the most descriptors that one message can bear. With room for all of them the kernel
/// never has to drop, and so to close, one on this thread.
const MAX_DESCRIPTORS: usize = 253;

/// How much is read at once. A request is a few hundred bytes.
const CHUNK: usize = 4096;

/// The descriptors that came with a request's first byte.
#[derive(Debug, Default)]
pub(crate) enum Received {
    /// None came.
    #[default]
    Nothing,
    /// The one that the API knows a use for.
    One(Foreign),
    /// One came, and the kernel did not hand it over: the daemon has as many open as it may have, or a
    /// security module forbids it to have this one (`receive_fd()` fails in `scm_detach_fds()`).
    Lost,
    /// Several, or one that came later: there is no use for these, and they are on their way to be
    /// closed.
    Wrong,
}

/// What a connection has received, shared with the request that takes it.
pub(crate) type Inbox = Arc<Mutex<Received>>;

/// Takes what has been received out of the inbox.
pub(crate) fn take(inbox: &Inbox) -> Received {
    std::mem::take(&mut *inbox.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The connection.
pub(crate) struct Stream {
    // `None` only while it is being dropped or taken apart.
    stream: Option<UnixStream>,
    inbox: Inbox,
    first: bool,
    /// Who is at the other end.
    peer: Uid,
    closer: Closer,
}

impl Stream {
    pub(crate) fn new(stream: UnixStream, peer: Uid, closer: Closer) -> (Self, Inbox) {
        let inbox = Inbox::default();
        let shared = Arc::clone(&inbox);
        (Self { stream: Some(stream), inbox, first: true, peer, closer }, shared)
    }

    /// Waits until the other end has closed the connection or shut down its side of it. What it
    /// sends meanwhile is left unread: the socket's buffer bounds it.
    pub(crate) async fn hung_up(&self) {
        let Some(stream) = &self.stream else { return };
        loop {
            let ready = match stream.ready(Interest::READABLE).await {
                Ok(ready) => ready,
                Err(_) => return,
            };
            if ready.is_read_closed() {
                return;
            }
            // Something was sent. Say that it has been seen, so that only news wakes this task.
            let _ = stream.try_io(Interest::READABLE, || -> io::Result<()> {
                Err(io::ErrorKind::WouldBlock.into())
            });
        }
    }

    fn receive(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = &self.stream else { return Ok(0) };
        if self.closer.is_behind(self.peer) {
            return Err(io::Error::other("too many of the caller's descriptors are unclosed"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(chunk)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = stream.try_io(Interest::READABLE, || {
            Ok(recvmsg(stream.as_fd(), &mut parts, &mut control, flags)?)
        })?;
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        let whole = !message.flags.contains(ReturnFlags::CTRUNC);
        self.keep(fds, whole)?;
        self.first = false;
        Ok(message.bytes)
    }

    /// Keeps the one descriptor that came with the first byte; everything else is closed. Who goes on
    /// sending what there is no use for is not listened to.
    fn keep(&self, fds: Vec<OwnedFd>, whole: bool) -> io::Result<()> {
        if fds.is_empty() && whole {
            return Ok(());
        }
        let foreign = |fd| Foreign::new(fd, self.peer, self.closer.clone());
        let mut fds: Vec<Foreign> = fds.into_iter().map(foreign).collect();
        let news = match fds.len() {
            1 if self.first && whole => fds.pop().map_or(Received::Wrong, Received::One),
            0 if self.first => Received::Lost,
            _ => Received::Wrong,
        };
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *inbox, news) {
            Received::Wrong => Err(io::Error::other("descriptors again and again")),
            Received::One(_) | Received::Lost | Received::Nothing => Ok(()),
        }
    }
}

/// Keeps urgent bytes (`MSG_OOB`) in their place among the others. Linux would else throw one away
/// whenever a read gets as far as it, and close the descriptors that it bears there and then, on this
/// thread.
pub(crate) fn keep_urgent_bytes(stream: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_oobinline(stream, true)?)
}

/// Closes a connection from which nobody reads any more. What waits in it is thrown away here, unless
/// there are descriptors among it: then closing could block, and is the closer's.
pub(crate) fn dismiss(stream: impl Into<OwnedFd>, peer: Uid, closer: &Closer) {
    let stream = stream.into();
    // From here on nothing more can come in. Neither can it fail on a connected socket.
    let _ = rustix::net::shutdown(&stream, Shutdown::Both);
    if bears_descriptors(&stream) {
        closer.close_unread(peer, stream);
    }
}

/// Whether descriptors wait in a connection that is shut down. Drains it up to the first of them.
fn bears_descriptors(stream: impl AsFd) -> bool {
    let mut scratch = [0; CHUNK];
    loop {
        let mut parts = [IoSliceMut::new(&mut scratch)];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        // Without room for descriptors the kernel says that there were some, and gives none. They
        // stay in the queue.
        match recvmsg(&stream, &mut parts, &mut RecvAncillaryBuffer::default(), flags) {
            Ok(seen) if seen.flags.contains(ReturnFlags::CTRUNC) => return true,
            Ok(seen) if seen.bytes > 0 => {
                let room = &mut scratch[..seen.bytes];
                if rustix::net::recv(&stream, room, RecvFlags::DONTWAIT).is_err() {
                    return true;
                }
            }
            Ok(_) => return false,
            Err(_) => return true,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(take(&self.inbox));
        // Here, if nothing is in flight in it: a thousand leases that end at once are otherwise so much to close
        // that their owner is behind, and is refused.
        if let Some(Ok(stream)) = self.stream.take().map(UnixStream::into_std) {
            dismiss(stream, self.peer, &self.closer);
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut chunk = [0; CHUNK];
        let room = buffer.remaining().min(CHUNK);
        loop {
            let Some(stream) = &self.stream else { return Poll::Ready(Ok(())) };
            ready!(stream.poll_read_ready(cx))?;
            match self.receive(&mut chunk[..room]) {
                Ok(count) => {
                    buffer.put_slice(&chunk[..count]);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket holds nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::mem::MaybeUninit;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::closer::testing::lingering;

    fn pair() -> (UnixStream, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (UnixStream::from_std(ours).unwrap(), theirs)
    }

    fn send_descriptor(theirs: &std::os::unix::net::UnixStream, flags: SendFlags) {
        let fds = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = [io::IoSlice::new(b"x")];
        sendmsg(theirs, &bytes, &mut control, flags).unwrap();
    }

    #[tokio::test]
    async fn who_ends_a_thousand_connections_at_once_is_not_behind_with_them() {
        let (peer, closer) = (Uid::new(1).unwrap(), Closer::start().unwrap());
        // Nobody closes for him what is left to be closed.
        let hanging: Vec<_> = (0..4).map(|_| lingering()).collect();
        let (fds, _others): (Vec<_>, Vec<_>) = hanging.into_iter().unzip();
        fds.into_iter().for_each(|fd| closer.close(peer, fd));
        for _ in 0..1000 {
            let (ours, _theirs) = pair();
            drop(Stream::new(ours, peer, closer.clone()));
        }
        assert!(!closer.is_behind(peer));
    }

    #[tokio::test]
    async fn attack_33_descriptors_are_seen_in_a_queue_without_being_received() {
        let (ours, mut theirs) = pair();
        while theirs.write(&[0; 1000]).is_ok() {}
        rustix::net::shutdown(&ours, Shutdown::Both).unwrap();
        assert!(!bears_descriptors(&ours), "bytes alone");
        for (bytes, flags) in [0, 1, 3 * CHUNK]
            .into_iter()
            .flat_map(|bytes| [(bytes, SendFlags::empty()), (bytes, SendFlags::OOB)])
        {
            let (ours, mut theirs) = pair();
            theirs.write_all(&vec![0; bytes]).unwrap();
            send_descriptor(&theirs, flags);
            keep_urgent_bytes(&ours).unwrap();
            rustix::net::shutdown(&ours, Shutdown::Both).unwrap();
            assert!(bears_descriptors(&ours), "behind {bytes} bytes, {flags:?}");
        }
    }

    #[tokio::test]
    async fn attack_33_descriptors_of_an_urgent_byte_are_received_and_not_closed_by_the_read() {
        let received = |keep: bool| {
            let (ours, mut theirs) = pair();
            send_descriptor(&theirs, SendFlags::OOB);
            theirs.write_all(b"y").unwrap();
            if keep {
                keep_urgent_bytes(&ours).unwrap();
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut parts = [IoSliceMut::new(&mut byte)];
            recvmsg(&ours, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
            (control.drain().count(), byte)
        };
        // The case bites: the byte and what it bore are gone.
        assert_eq!(received(false), (0, *b"y"));
        assert_eq!(received(true), (1, *b"x"));
    }
}
