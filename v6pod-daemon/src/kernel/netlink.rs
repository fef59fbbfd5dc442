//! A blocking netlink socket: one request, one answer.
//!
//! Why not rtnetlink's asynchronous handle (observed with 0.24): a connection task that dies makes
//! every pending request a *success*; a request without acknowledgement can stall; a message that
//! the typed decoder does not understand is dropped from a dump without a word. Here every request
//! asks for an acknowledgement and is over only when the kernel has given it, an answer is matched by
//! its sequence number, nothing waits longer than [`PATIENCE`], and a dump that the kernel calls
//! inconsistent is read again.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::error::{Cause, Error};
use super::view::{Attributes, u16_at, u32_at};

/// How long an answer may take. The kernel works while we send, under a lock that others hold for
/// tenths of a second at worst (a thousand ports deleted at once).
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The kernel fills at most 32 KiB per datagram of a dump (`netlink_dump`).
const RECEIVE: usize = 64 * 1024;

/// How often an inconsistent dump is tried again.
const DUMPS: usize = 16;

/// A socket for messages of type `M`, in the namespace in which the thread was that opened it.
#[derive(Debug)]
pub struct Socket<M> {
    inner: netlink_sys::Socket,
    sequence: u32,
    sending: Vec<u8>,
    receiving: Box<[u8]>,
    messages: PhantomData<fn(M)>,
}

/// For links, addresses, routes and neighbours.
pub type RouteSocket = Socket<RouteNetlinkMessage>;

impl RouteSocket {
    /// Opens a socket for links, addresses, routes and neighbours.
    pub fn route() -> Result<Self, Error> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE)
    }
}

impl<M: NetlinkSerializable> Socket<M> {
    /// Opens a socket of a netlink family that speaks `M`.
    pub(super) fn open(protocol: isize) -> Result<Self, Error> {
        let open = || {
            let inner = netlink_sys::Socket::new(protocol)?;
            // Connected to the kernel, so that no process can send to us.
            inner.connect(&netlink_sys::SocketAddr::new(0, 0))?;
            // An error then carries a text, and not the whole request.
            inner.set_ext_ack(true)?;
            inner.set_cap_ack(true)?;
            // Without it the kernel ignores what a dump asks to be limited to.
            inner.set_netlink_get_strict_chk(true)?;
            let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
            setsockopt(&inner, sockopt::ReceiveTimeout, &patience)?;
            Ok(inner)
        };
        let inner = open().map_err(|e: std::io::Error| Error::io("open a netlink socket", e))?;
        Ok(Self {
            inner,
            sequence: 0,
            sending: Vec::with_capacity(1024),
            receiving: vec![0; RECEIVE].into(),
            messages: PhantomData,
        })
    }

    /// Has the kernel do something. `flags` are those of the request (`NLM_F_CREATE`, …); a success
    /// is the kernel's own word.
    pub fn ack(
        &mut self,
        doing: impl Into<Cow<'static, str>>,
        message: &M,
        flags: u16,
    ) -> Result<(), Error> {
        let result = self.exchange(message, NLM_F_ACK | flags, |_, _| {});
        result.map(drop).map_err(|cause| Error::new(doing, cause))
    }

    /// Asks for one thing. `read` gets type and payload of the answer; what it makes of it is the
    /// result, none if there was no answer or none that `read` understood.
    pub fn get<T>(
        &mut self,
        doing: impl Into<Cow<'static, str>>,
        message: &M,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut found = None;
        let result = self.exchange(message, NLM_F_ACK, |kind, payload| {
            found = found.take().or_else(|| read(kind, payload));
        });
        result.map(|_| found).map_err(|cause| Error::new(doing, cause))
    }

    /// Asks for all there is, and gathers what `read` makes of it.
    pub fn dump<T>(
        &mut self,
        doing: impl Into<Cow<'static, str>>,
        message: &M,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for _ in 0..DUMPS {
            found.clear();
            let result = self.exchange(message, NLM_F_DUMP, |kind, payload| {
                found.extend(read(kind, payload));
            });
            match result {
                Ok(Consistency::Whole) => return Ok(found),
                Ok(Consistency::Interrupted) => {}
                // The answer did not fit: what was lost is unknown.
                Err(Cause::Io(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(cause) => return Err(Error::new(doing, cause)),
            }
        }
        Err(Error::new(doing, Cause::Unsettled))
    }

    /// Sends `begin`, the messages with their flags, and `end` as one, and waits until each of the
    /// messages is acknowledged. The first refusal is the result; nfnetlink then does none of them.
    pub(super) fn transaction(
        &mut self,
        doing: impl Into<Cow<'static, str>>,
        begin: &M,
        messages: &[(M, u16)],
        end: &M,
    ) -> Result<(), Error> {
        self.batch(begin, messages, end).map_err(|cause| Error::new(doing, cause))
    }

    fn batch(&mut self, begin: &M, messages: &[(M, u16)], end: &M) -> Result<(), Cause> {
        self.sending.clear();
        // Kernels before 6.10 acknowledge neither of these two, whatever is asked.
        let first = self.put(begin, NLM_F_REQUEST);
        for (message, flags) in messages {
            self.put(message, NLM_F_REQUEST | NLM_F_ACK | flags);
        }
        self.put(end, NLM_F_REQUEST);
        self.transmit()?;
        let mut left = messages.len();
        while left > 0 {
            let received = self.receive()?;
            let mut rest = &self.receiving[..received];
            while let Some((header, payload)) = next_message(&mut rest) {
                let number = header.sequence.wrapping_sub(first) as usize;
                if number <= messages.len() && i32::from(header.kind) == libc::NLMSG_ERROR {
                    verdict(header.flags, payload)?;
                    left = left.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        message: &M,
        flags: u16,
        mut read: impl FnMut(u16, &[u8]),
    ) -> Result<Consistency, Cause> {
        let sequence = self.send(message, NLM_F_REQUEST | flags)?;
        let mut consistency = Consistency::Whole;
        loop {
            let received = self.receive()?;
            let mut rest = &self.receiving[..received];
            while let Some((header, payload)) = next_message(&mut rest) {
                // An answer that came after we had given up on it.
                if header.sequence != sequence {
                    continue;
                }
                if header.flags & NLM_F_DUMP_INTR != 0 {
                    consistency = Consistency::Interrupted;
                }
                match i32::from(header.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        return verdict(header.flags, payload).map(|()| consistency);
                    }
                    libc::NLMSG_NOOP => {}
                    _ => read(header.kind, payload),
                }
            }
        }
    }

    fn send(&mut self, message: &M, flags: u16) -> Result<u32, Cause> {
        self.sending.clear();
        let sequence = self.put(message, flags);
        self.transmit().map(|()| sequence)
    }

    /// Appends a message to what is sent next. Gives its sequence number.
    fn put(&mut self, message: &M, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let length = HEADER + message.buffer_len();
        let buffer = &mut self.sending;
        let start = buffer.len();
        buffer.resize(start + length.next_multiple_of(4), 0);
        let bytes = &mut buffer[start..start + length];
        bytes[0..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        bytes[4..6].copy_from_slice(&message.message_type().to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        message.serialize(&mut bytes[HEADER..]);
        self.sequence
    }

    fn transmit(&self) -> Result<(), Cause> {
        loop {
            match send(self.inner.as_raw_fd(), &self.sending, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Cause::Io(errno.into())),
            }
        }
    }

    fn receive(&mut self) -> Result<usize, Cause> {
        let buffer = &mut self.receiving;
        loop {
            match recv(self.inner.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
                Ok(0) => return Err(Cause::Garbled("nothing in it")),
                Ok(length) if length <= buffer.len() => return Ok(length),
                Ok(_) => return Err(Cause::Garbled("longer than any answer")),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Cause::Silent),
                Err(errno) => return Err(Cause::Io(errno.into())),
            }
        }
    }
}

impl<M> AsFd for Socket<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

enum Consistency {
    Whole,
    Interrupted,
}

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// The parts of `struct nlmsghdr` that matter in an answer.
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
}

/// Takes the next message off a datagram.
pub(super) fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(Header, &'a [u8])> {
    let length = u32_at(rest, 0)? as usize;
    let header =
        Header { kind: u16_at(rest, 4)?, flags: u16_at(rest, 6)?, sequence: u32_at(rest, 8)? };
    let payload = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, payload))
}

/// What an NLMSG_ERROR or NLMSG_DONE says: an error number, negative, or zero for success.
pub(super) fn verdict(flags: u16, payload: &[u8]) -> Result<(), Cause> {
    const ACK_TLVS: u16 = libc::NLM_F_ACK_TLVS as u16;
    const MESSAGE: u16 = 1; // NLMSGERR_ATTR_MSG

    // An NLMSG_DONE may be empty.
    let code = u32_at(payload, 0).unwrap_or(0).cast_signed();
    if code == 0 {
        return Ok(());
    }
    // Behind the number: the header of our request, without its body (NETLINK_CAP_ACK).
    let tlvs = payload.get(4 + HEADER..).filter(|_| flags & ACK_TLVS != 0).unwrap_or_default();
    let text = Attributes(tlvs).find(|(kind, _)| *kind == MESSAGE).map(|(_, text)| {
        String::from_utf8_lossy(text).trim_end_matches('\0').to_owned().into_boxed_str()
    });
    Err(Cause::Kernel { errno: Errno::from_raw(code.saturating_neg()), text })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkAttribute;

    use super::*;
    use crate::kernel::testing::{in_netns, sh};
    use crate::kernel::{dump, message};

    #[test]
    fn a_refusal_bears_the_number_and_the_words_of_the_kernel() {
        in_netns(|| {
            let mut socket = RouteSocket::route().unwrap();
            let nobody = message::set_up(message::link(4_000_000), true);
            let error = socket.ack("x", &RouteNetlinkMessage::SetLink(nobody), 0).unwrap_err();
            assert!(error.is_gone(), "{error}");
            let mut bad = message::link(1);
            bad.attributes.push(LinkAttribute::Mtu(u32::MAX));
            let error = socket.ack("x", &RouteNetlinkMessage::SetLink(bad), 0).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EINVAL));
            assert!(error.to_string().contains("mtu"), "the kernel's text: {error}");
            // The socket is none the worse for it.
            assert_eq!(dump::links(&mut socket, |link| Some(link.index)).unwrap(), [1]);
        });
    }

    #[test]
    fn a_dump_of_many_datagrams_is_whole() {
        in_netns(|| {
            let mut socket = RouteSocket::route().unwrap();
            let mut links = String::new();
            for n in 0..150 {
                links += &format!("link add v6k{n} type veth peer name v6kp{n}\n");
            }
            sh(&format!("printf '{links}' | ip -batch -"));
            let names = dump::links(&mut socket, |link| Some(link.name.to_owned())).unwrap();
            assert_eq!(names.len(), 301);
            assert!(names.contains(&"v6kp149".to_owned()));
        });
    }

    #[test]
    fn an_answer_to_an_older_question_is_skipped() {
        in_netns(|| {
            let mut socket = RouteSocket::route().unwrap();
            let question = RouteNetlinkMessage::GetLink(message::link(1));
            // Asked and not read: its answer lies before that of the next.
            socket.send(&question, NLM_F_REQUEST | NLM_F_ACK).unwrap();
            let nobody = RouteNetlinkMessage::GetLink(message::link(4_000_000));
            let error = socket.get("x", &nobody, |_, _| Some(())).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::ENODEV));
        });
    }
}
