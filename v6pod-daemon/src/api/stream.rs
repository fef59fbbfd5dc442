//! A unix connection that takes descriptors along with its first byte.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::{AsyncWrite as _, Interest};
use tokio::net::UnixStream;

use crate::closer::Closer;

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
    One(OwnedFd),
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
    closer: Closer,
}

impl Stream {
    pub(crate) fn new(stream: UnixStream, closer: Closer) -> (Self, Inbox) {
        let inbox = Inbox::default();
        let this = Self { stream: Some(stream), inbox: Arc::clone(&inbox), first: true, closer };
        (this, inbox)
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
        self.keep(fds, whole);
        self.first = false;
        Ok(message.bytes)
    }

    /// Keeps the one descriptor that came with the first byte; everything else is closed.
    fn keep(&self, mut fds: Vec<OwnedFd>, whole: bool) {
        if fds.is_empty() && whole {
            return;
        }
        let one = if self.first && whole && fds.len() == 1 { fds.pop() } else { None };
        let news = one.map_or(Received::Wrong, Received::One);
        fds.into_iter().for_each(|fd| self.closer.close(fd));
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Received::One(fd) = std::mem::replace(&mut *inbox, news) {
            self.closer.close(fd);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Received::One(fd) = take(&self.inbox) {
            self.closer.close(fd);
        }
        if let Some(Ok(stream)) = self.stream.take().map(UnixStream::into_std) {
            self.closer.close(stream.into());
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
