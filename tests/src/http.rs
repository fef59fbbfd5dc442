//! A small blocking HTTP/1.1 client for the daemon's unix socket: as any user, with a descriptor on
//! the request's first byte, and keeping the connection, which may be a lease.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use v6pod_proto::{Activate, Attachment, Problem};

/// Past this an answer will not come.
const LIMIT: Duration = Duration::from_secs(20);

/// What a request bears.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// Nothing.
    None,
    /// JSON, well-formed or not.
    Json(&'a str),
    /// A form.
    Form(&'a str),
    /// Anything, called this.
    Raw(&'a str, &'a [u8]),
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The header fields, names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as a value, if the answer is a 200; a panic otherwise.
    #[track_caller]
    pub fn ok<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{self}");
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self}"))
    }

    /// The problem that the answer bears: RFC 9457's media type, and the answer's own status in it.
    #[track_caller]
    pub fn problem(&self) -> Problem {
        let media_type = self.headers.get("content-type").map(String::as_str);
        assert_eq!(media_type, Some("application/problem+json"), "{self}");
        let problem: Problem =
            serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self}"));
        assert_eq!((problem.status, problem.code.status()), (self.status, self.status), "{self}");
        problem
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

/// Somebody who talks to the daemon: a uid and a socket.
#[derive(Debug, Clone)]
pub struct Caller {
    socket: PathBuf,
    uid: u32,
}

impl Caller {
    /// This user, at this socket.
    pub fn new(socket: &Path, uid: u32) -> Self {
        Self { socket: socket.to_owned(), uid }
    }

    /// GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.call("GET", path, Body::None, None).0
    }

    /// POST.
    #[track_caller]
    pub fn post(&self, path: &str, body: Body<'_>) -> Response {
        self.call("POST", path, body, None).0
    }

    /// POST with a descriptor on the first byte.
    #[track_caller]
    pub fn post_with(&self, path: &str, body: Body<'_>, descriptor: BorrowedFd<'_>) -> Response {
        self.call("POST", path, body, Some(descriptor)).0
    }

    /// Activates by descriptor. The connection is the lease, if the request asks for one.
    #[track_caller]
    pub fn activate(
        &self,
        request: &Activate,
        netns: BorrowedFd<'_>,
    ) -> (Result<Attachment, Response>, UnixStream) {
        let body = json(request);
        let (response, stream) = self.call("POST", "/api/activate", Body::Json(&body), Some(netns));
        let outcome = if response.status == 200 { Ok(response.ok()) } else { Err(response) };
        (outcome, stream)
    }

    /// Any request; a panic if there is no answer.
    #[track_caller]
    pub fn call(
        &self,
        method: &str,
        path: &str,
        body: Body<'_>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> (Response, UnixStream) {
        self.try_call(method, path, body, descriptor)
            .unwrap_or_else(|e| panic!("{method} {path} as uid {}: {e}", self.uid))
    }

    /// Any request.
    ///
    /// # Errors
    /// The socket is not there, or nobody answers, or what he answers is not HTTP.
    pub fn try_call(
        &self,
        method: &str,
        path: &str,
        body: Body<'_>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Response, UnixStream)> {
        let stream = self.connect()?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        send(&stream, &request(method, path, body), descriptor)?;
        let response = receive(&stream)?;
        Ok((response, stream))
    }

    /// Asks to attach a namespace, and leaves it to the caller to hear the answer or to go.
    #[track_caller]
    pub fn ask_only(&self, wish: &Activate, netns: BorrowedFd<'_>) -> UnixStream {
        let stream = self.connect().expect("the daemon listens");
        let body = json(wish);
        let bytes = request("POST", "/api/activate", Body::Json(&body));
        send(&stream, &bytes, Some(netns)).expect("the daemon reads");
        stream
    }

    /// Connects as the user. The kernel notes the credentials of the thread that connects
    /// (SO_PEERCRED), so a thread of its own takes the user's and ends with them.
    ///
    /// # Errors
    /// The socket is not there, or nobody listens.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (socket, uid) = (self.socket.clone(), self.uid);
        let connect = move || {
            if uid != 0 {
                let gid = Gid::from_raw(uid);
                set_thread_groups(&[])?;
                set_thread_res_gid(gid, gid, gid)?;
                let uid = Uid::from_raw(uid);
                set_thread_res_uid(uid, uid, uid)?;
            }
            UnixStream::connect(socket)
        };
        thread::spawn(connect).join().map_err(|_| io::Error::other("the connecting thread died"))?
    }
}

/// The value as JSON text.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("the API's types are JSON")
}

fn request(method: &str, path: &str, body: Body<'_>) -> Vec<u8> {
    let (media_type, body): (&str, &[u8]) = match body {
        Body::None => ("", &[]),
        Body::Json(text) => ("application/json", text.as_bytes()),
        Body::Form(text) => ("application/x-www-form-urlencoded", text.as_bytes()),
        Body::Raw(media_type, bytes) => (media_type, bytes),
    };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if matches!(method, "POST" | "PATCH" | "PUT") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    if !media_type.is_empty() {
        head.push_str(&format!("Content-Type: {media_type}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

fn send(stream: &UnixStream, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let raw = descriptor.map(|fd| [fd.as_raw_fd()]);
    let mut control = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    let mut rest = bytes;
    while !rest.is_empty() {
        let sent = sendmsg::<UnixAddr>(
            stream.as_fd().as_raw_fd(),
            &[IoSlice::new(rest)],
            control.as_slice(),
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        // The descriptor goes with the first byte.
        control = None;
        rest = &rest[sent..];
    }
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<Response> {
    let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| broken(&format!("no status line: {line:?}")))?;
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let field = line.trim_end();
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').ok_or_else(|| broken("a header without ':'"))?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length").and_then(|length| length.parse().ok()) {
        reader.take(length).read_to_end(&mut body)?;
    } else {
        let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
        if chunked {
            decode_chunked(&mut reader, &mut body)?;
        } else {
            reader.read_to_end(&mut body)?;
        }
    }
    Ok(Response { status, headers, body })
}

/// Undoes the chunked coding (RFC 9112, section 7.1), without trailers.
///
/// # Errors
/// What arrives is not chunked, or ends too early.
pub fn decode_chunked(reader: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no size of a chunk"))?;
        reader.take(size).read_to_end(body)?;
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    #[test]
    fn chunks_are_put_together() {
        let mut body = Vec::new();
        decode_chunked(&mut &b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"[..], &mut body).unwrap();
        assert_eq!(body, b"abcde");
        assert!(decode_chunked(&mut &b"zz\r\n"[..], &mut body).is_err());
    }

    #[test]
    fn an_answer_is_read_and_the_connection_stays() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            let received = stream.read(&mut buffer).unwrap();
            stream.write_all(b"HTTP/1.1 418 no\r\nContent-Length: 2\r\n\r\nhi").unwrap();
            // The connection is still the caller's: its end comes only when he drops it.
            assert_eq!(stream.read(&mut buffer[received..]).unwrap(), 0);
            String::from_utf8_lossy(&buffer[..received]).into_owned()
        });
        let caller = Caller::new(&socket, rustix::process::geteuid().as_raw());
        let (response, stream) = caller.call("POST", "/x", Body::Json("{}"), None);
        assert_eq!((response.status, response.body.as_slice()), (418, b"hi".as_slice()));
        drop(stream);
        let request = server.join().unwrap();
        assert!(request.starts_with("POST /x HTTP/1.1\r\n") && request.ends_with("\r\n\r\n{}"));
    }
}
