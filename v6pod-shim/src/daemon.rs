//! Asking v6podd, and holding on to it.
//!
//! One request on one connection: HTTP/1.1 by hand, for it is a single POST, with the network
//! namespace's descriptor on its first byte. The connection then stays open as the container's
//! lease: its end, when the program that holds it ends in whatever way, is the attachment's end.
//!
//! Guarantees: whatever the daemon does or fails to do, [`activate`] returns within [`TOTAL`]; and
//! what the other side sends is read up to [`ANSWER_LIMIT`] bytes and no further.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use v6pod_proto::{Activate, Code, Deactivate, Problem, Uid, sockets};

use crate::identity::outer_uid;

/// The longest that a connection may take to be accepted into the daemon's queue.
pub(crate) const CONNECT: Duration = Duration::from_secs(1);
/// The longest that all of it may take. Podman waits without end, and holds the container's lock.
pub(crate) const TOTAL: Duration = Duration::from_secs(5);
/// The largest answer, in bytes with its head. A usual one has half a kilobyte.
pub(crate) const ANSWER_LIMIT: usize = 64 << 10;
/// Between the end of one connection and the next attempt: a daemon restarts in about this time.
const PAUSE: Duration = Duration::from_millis(50);
/// More header lines than any HTTP server of ours sends.
const HEADERS: usize = 32;

/// When something has to be done, all of it [`TOTAL`] after the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn start() -> Self {
        Self::within(TOTAL)
    }

    /// So long after now.
    pub(crate) fn within(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// The time that is left, never none: none would mean "without end" to a socket.
    fn left(self) -> Result<Duration, Failure> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Failure::Late) } else { Ok(left) }
    }
}

/// The connection of a container that has its address.
#[derive(Debug)]
pub(crate) struct Lease(OwnedFd);

impl Lease {
    /// Leaves the connection open across exec and beyond this program's own end. Its number will be
    /// none of `taken`: those mean something to the program that comes.
    pub(crate) fn hand_on(self, taken: &[Option<RawFd>]) -> io::Result<()> {
        let is_taken = |fd: &OwnedFd| taken.contains(&Some(fd.as_raw_fd()));
        let mut fd = self.0;
        while is_taken(&fd) {
            // Only in a call that names descriptors which are not open; podman's are.
            fd = fcntl_dupfd_cloexec(&fd, fd.as_raw_fd() + 1)?;
        }
        fcntl_setfd(&fd, FdFlags::empty())?;
        // From here on it is the next program's.
        let _ = fd.into_raw_fd();
        Ok(())
    }
}

/// Why there is no address.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody is there.
    Absent,
    /// Its queue was full for as long as [`CONNECT`].
    Busy,
    /// It did not answer within [`TOTAL`].
    Late,
    /// It closed the connection without a word, and did so again or was not there again.
    Ended,
    /// What came is not an answer of v6podd.
    Garbled(&'static str),
    /// It said no.
    Refused {
        /// The HTTP status.
        status: u16,
        /// What a program branches on.
        code: Option<Code>,
        /// Its reason, in one sentence.
        reason: Option<String>,
    },
    /// The network namespace cannot be opened, and nobody was asked.
    Namespace(io::Error),
    /// It is the host's own, and nobody was asked.
    HostNetwork,
    /// The daemon's socket cannot be used.
    Io(io::Error),
}

impl Failure {
    /// Whether the container must not start, whatever the settings say: v6podd has understood the
    /// request and it cannot be fulfilled, or it is longer than wishes can be. Such a container asked for something particular, to be
    /// shielded for instance, and would run without it. Any other failure is about v6podd, on
    /// which a machine must not depend.
    pub(crate) fn is_final(&self) -> bool {
        let final_ones = [Code::Impossible.status(), Code::TooLarge.status()];
        matches!(self, Self::Refused { status, .. } if final_ones.contains(status))
    }

    /// Whether the container itself asks for no address.
    pub(crate) fn is_declined(&self) -> bool {
        matches!(self, Self::Refused { code: Some(Code::Declined), .. })
    }

    /// Whether v6podd knows of nothing like that.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { code: Some(Code::NotFound), .. })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("v6podd is not running"),
            Self::Busy => write!(f, "v6podd took no connection for {} s", CONNECT.as_secs()),
            Self::Late => write!(f, "v6podd did not answer for {} s", TOTAL.as_secs()),
            Self::Ended => f.write_str("v6podd closed the connection without an answer"),
            Self::Garbled(what) => write!(f, "what answers is not v6podd: {what}"),
            Self::Refused { reason: Some(reason), .. } => f.write_str(reason),
            Self::Refused { status, reason: None, .. } => {
                write!(f, "v6podd refused: status {status}")
            }
            Self::Namespace(error) => write!(f, "its network namespace: {error}"),
            Self::HostNetwork => {
                f.write_str("it is on the host's network, and has the host's addresses")
            }
            Self::Io(error) => write!(f, "v6podd cannot be reached: {error}"),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Asks for an address for the container in this network namespace, and waits for it.
///
/// The request makes what is missing and finds what is there, so it may be made twice.
pub(crate) fn activate(
    socket: &Path,
    request: &Activate,
    netns: BorrowedFd<'_>,
    end: Deadline,
) -> Result<(Lease, Vec<u8>), Failure> {
    let body = serde_json::to_vec(request).map_err(|error| Failure::Io(error.into()))?;
    ask(socket, "POST /api/activate", Some(&body), Some(netns), ANSWER_LIMIT, end)
}

/// Says that a container has ended, or may have.
pub(crate) fn deactivate(
    socket: &Path,
    request: &Deactivate,
    end: Deadline,
) -> Result<(), Failure> {
    let body = serde_json::to_vec(request).map_err(|error| Failure::Io(error.into()))?;
    ask(socket, "POST /api/deactivate", Some(&body), None, ANSWER_LIMIT, end).map(drop)
}

/// Makes one request, a method and a path, and waits for the answer: the connection and the body.
///
/// A connection that ends without an answer is a daemon that restarts, and it is asked again: only
/// for requests that may be made twice. Nobody at the first attempt is nobody.
pub(crate) fn ask(
    socket: &Path,
    what: &str,
    body: Option<&[u8]>,
    netns: Option<BorrowedFd<'_>>,
    limit: usize,
    end: Deadline,
) -> Result<(Lease, Vec<u8>), Failure> {
    let common = SocketAddrUnix::new(socket)?;
    let own = own_socket(socket).and_then(|own| SocketAddrUnix::new(own).ok());
    let request = http_request(what, body);
    let mut was_there = false;
    loop {
        match attempt(own.as_ref(), &common, &request, netns, limit, end) {
            Err(Failure::Ended) => was_there = true,
            Err(Failure::Absent) if was_there => {}
            Err(Failure::Late) if was_there => return Err(Failure::Ended),
            outcome => return outcome,
        }
        thread::sleep(PAUSE.min(end.left().unwrap_or_default()));
    }
}

/// Where this process's user may have a socket of his own. Only in a folder that is nobody else's to write in
/// than theirs who made the common one: in /tmp anybody could have made it.
fn own_socket(common: &Path) -> Option<PathBuf> {
    let folder = sockets::folder(common)?;
    let mode = rustix::fs::stat(folder.parent()?).ok()?.st_mode;
    let uid = Uid::new(outer_uid())?;
    (mode & 0o022 == 0).then(|| folder.join(sockets::name(uid)))
}

fn attempt(
    own: Option<&SocketAddrUnix>,
    common: &SocketAddrUnix,
    request: &[u8],
    netns: Option<BorrowedFd<'_>>,
    limit: usize,
    end: Deadline,
) -> Result<(Lease, Vec<u8>), Failure> {
    let socket = match own.map(|own| open(own, end)) {
        // Nobody listens there yet, or it is somebody else's: he is not who he takes himself for.
        None | Some(Err(Failure::Absent | Failure::Io(_))) => open(common, end)?,
        Some(opened) => opened?,
    };
    send(socket.as_fd(), request, netns, end)?;
    let answer = receive(socket.as_fd(), limit, end)?;
    match answer.status {
        200 => Ok((Lease(socket), answer.body)),
        status => {
            let (code, reason) = answer.problem().unzip();
            Err(Failure::Refused { status, code, reason })
        }
    }
}

fn http_request(what: &str, body: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = [what, " HTTP/1.1\r\nHost: localhost\r\n"].concat().into_bytes();
    if let Some(body) = body {
        let length = body.len();
        let head = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        bytes.extend_from_slice(head.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

/// Connects. A listener's full queue makes a unix socket wait in connect(2) as long as
/// `SO_SNDTIMEO` says, without end by default, and then say `EAGAIN` (unix(7)).
fn open(address: &SocketAddrUnix, end: Deadline) -> Result<OwnedFd, Failure> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        set_socket_timeout(&socket, Timeout::Send, Some(end.left()?.min(CONNECT)))?;
        match connect(&socket, address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Err(Failure::Absent),
            Err(Errno::AGAIN) => return Err(Failure::Busy),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends the request, the descriptor, if there is one, on its first byte.
fn send(
    socket: BorrowedFd<'_>,
    request: &[u8],
    netns: Option<BorrowedFd<'_>>,
    end: Deadline,
) -> Result<(), Failure> {
    let descriptors = netns.as_slice();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Failure::Garbled("no room for a descriptor"));
    }
    let mut rest = request;
    while !rest.is_empty() {
        wait(socket, PollFlags::OUT, end)?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, &[IoSlice::new(rest)], &mut control, flags) {
            Ok(sent) => {
                rest = &rest[sent..];
                control.clear();
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(Failure::Ended),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A whole answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    is_problem: bool,
    body: Vec<u8>,
}

impl Answer {
    /// Code and sentence of an RFC 9457 problem, the latter without its full stop: it becomes part of
    /// another.
    fn problem(&self) -> Option<(Code, String)> {
        let problem: Problem =
            serde_json::from_slice(&self.body).ok().filter(|_| self.is_problem)?;
        Some((problem.code, problem.detail.trim_end_matches('.').to_owned()))
    }
}

fn receive(socket: BorrowedFd<'_>, limit: usize, end: Deadline) -> Result<Answer, Failure> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        wait(socket, PollFlags::IN, end)?;
        let got = match retry_on_intr(|| rustix::io::read(socket, &mut chunk)) {
            Ok(got) => got,
            Err(Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        if got == 0 {
            return Err(match bytes.len() {
                0 => Failure::Ended,
                _ => Failure::Garbled("half an answer"),
            });
        }
        bytes.extend_from_slice(&chunk[..got]);
        if let Some(head) = Head::read(&bytes)? {
            let size = head.size.saturating_add(head.body);
            if size > limit {
                return Err(Failure::Garbled("too long an answer"));
            }
            if let Some(body) = bytes.get(head.size..size) {
                let body = body.to_vec();
                return Ok(Answer { status: head.status, is_problem: head.is_problem, body });
            }
        } else if bytes.len() > limit {
            return Err(Failure::Garbled("too long an answer"));
        }
    }
}

/// What stands before an answer's body.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    is_problem: bool,
    /// Bytes up to the body.
    size: usize,
    /// Bytes of the body.
    body: usize,
}

impl Head {
    /// The head, once it is there as a whole.
    fn read(bytes: &[u8]) -> Result<Option<Self>, Failure> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let size = match response.parse(bytes) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Failure::Garbled("not HTTP")),
        };
        let status = response.code.ok_or(Failure::Garbled("not HTTP"))?;
        let mut body = None;
        let mut is_problem = false;
        for header in response.headers {
            if header.name.eq_ignore_ascii_case("content-length") && body.is_none() {
                body = Some(length(header.value)?);
            } else if header.name.eq_ignore_ascii_case("content-length")
                || header.name.eq_ignore_ascii_case("transfer-encoding")
            {
                return Err(Failure::Garbled("no single content-length"));
            } else if header.name.eq_ignore_ascii_case("content-type") {
                let kind = header.value.split(|&b| b == b';').next().unwrap_or_default();
                is_problem = kind.trim_ascii().eq_ignore_ascii_case(b"application/problem+json");
            }
        }
        let body = body.ok_or(Failure::Garbled("no content-length"))?;
        Ok(Some(Self { status, is_problem, size, body }))
    }
}

/// Digits alone: RFC 9110, section 8.6.
fn length(value: &[u8]) -> Result<usize, Failure> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let number = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|_| digits).ok_or(Failure::Garbled("no usable content-length"))
}

/// Waits until the descriptor is ready, has failed, or the time is over.
pub(crate) fn wait(fd: BorrowedFd<'_>, for_what: PollFlags, end: Deadline) -> Result<(), Failure> {
    loop {
        let timeout = Timespec::try_from(end.left()?).map_err(|_| Failure::Late)?;
        match poll(&mut [PollFd::new(&fd, for_what)], Some(&timeout)) {
            // Not ready: `left` tells whether that was all the time there is.
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<Head>, Failure> {
        Head::read(text.as_bytes())
    }

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let text = "HTTP/1.1 507 x\r\nContent-Type: Application/Problem+JSON; charset=utf-8\r\n\
                    content-length: 12\r\n\r\n";
        let whole = Head { status: 507, is_problem: true, size: text.len(), body: 12 };
        assert_eq!(head(text).unwrap(), Some(whole));
        for part in 0..text.len() {
            assert_eq!(head(&text[..part]).unwrap(), None, "{part}");
        }
    }

    #[test]
    fn a_length_that_is_not_one_number_is_refused() {
        for headers in [
            "",
            "Content-Length: \r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 1 1\r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let answer = head(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n"));
            assert!(matches!(answer, Err(Failure::Garbled(_))), "{headers:?}");
        }
        assert!(matches!(head("SSH-2.0-x\r\n"), Err(Failure::Garbled("not HTTP"))));
    }

    #[test]
    fn only_a_problem_gives_a_reason() {
        let problem = Problem::new(Code::Quota, "You have 256 already.", "r1");
        let body = serde_json::to_vec(&problem).unwrap();
        let mut answer = Answer { status: 429, is_problem: true, body };
        let told = (Code::Quota, "You have 256 already".to_owned());
        assert_eq!(answer.problem(), Some(told));
        answer.is_problem = false;
        assert_eq!(answer.problem(), None);
        answer = Answer { status: 429, is_problem: true, body: b"{".to_vec() };
        assert_eq!(answer.problem(), None);
    }

    #[test]
    fn only_the_impossible_is_final() {
        let refused = |status| Failure::Refused { status, code: None, reason: None };
        assert!(refused(422).is_final());
        for other in [refused(403), refused(429), refused(503), Failure::Late, Failure::Absent] {
            assert!(!other.is_final(), "{other}");
        }
    }

    #[test]
    fn no_time_left_is_late_and_not_endless() {
        assert!(matches!(Deadline(Instant::now()).left(), Err(Failure::Late)));
    }
}
