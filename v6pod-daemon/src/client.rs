//! A client of the daemon's API over its unix socket: what v6podctl speaks.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};
use v6pod_proto::{Problem, Uid, sockets};

/// How long a whole call may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// When to try again to connect to a daemon whose queue is full.
const AGAIN: Duration = Duration::from_millis(2);

/// The largest answer that is read, in bytes: several times what 65536 attachments are.
const LARGEST: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach v6podd at {}; is it running?", .path.display())]
    Away {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(Problem),
    /// The answer was none.
    #[error("v6podd at {}: {why}", .path.display())]
    Broken {
        /// Where.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

/// A daemon's socket.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// The daemon that listens at this path.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Asks for a resource.
    pub async fn get<T: DeserializeOwned>(&self, resource: &str) -> Result<T, ClientError> {
        self.call(Method::GET, resource, Bytes::new()).await
    }

    /// Changes a resource. The answer is what it is afterwards.
    pub async fn patch<C: Serialize, T: DeserializeOwned>(
        &self,
        resource: &str,
        change: &C,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(change).map_err(|error| self.broken(&error))?;
        self.call(Method::PATCH, resource, body.into()).await
    }

    /// Says what a resource is to be. The answer is what it is.
    pub async fn put<C: Serialize, T: DeserializeOwned>(
        &self,
        resource: &str,
        said: &C,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(said).map_err(|error| self.broken(&error))?;
        self.call(Method::PUT, resource, body.into()).await
    }

    /// Watches events, each of which is told as its name and its data, until the daemon ends it or `told`
    /// breaks it off.
    pub async fn watch(
        &self,
        mut told: impl FnMut(&str, &str) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ClientError> {
        let stream = match self.at_own().await {
            Some(stream) => stream,
            None => self.at_the_common().await?,
        };
        let begun =
            timeout(PATIENCE, begin(stream, Method::GET, "/api/events", Bytes::new())).await;
        let (response, _driver) = match begun {
            Ok(begun) => begun.map_err(|error| self.broken(&error))?,
            Err(_) => return Err(self.broken(&"it did not answer in time")),
        };
        let well = response.status().is_success();
        let mut body = response.into_body();
        if !well {
            let read = Limited::new(body, LARGEST).collect().await;
            let read = read.map_err(|error| self.broken(&error))?.to_bytes();
            return Err(ClientError::Refused(self.parse(&read)?));
        }
        let (mut text, mut name) = (Vec::new(), String::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                if let Some(event) = line.strip_prefix("event: ") {
                    name = event.to_owned();
                } else if let Some(data) = line.strip_prefix("data: ")
                    && told(&name, data).is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
            }
            if text.len() > LINE {
                return Err(self.broken(&"it sent a line without end"));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        resource: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let at_own = self.ask_at_own(method.clone(), resource, body.clone()).await;
        let answer = match at_own {
            Some(answer) => answer,
            None => ask(self.at_the_common().await?, method, resource, body).await,
        };
        match answer {
            Ok(Ok((true, body))) => self.parse(&body),
            Ok(Ok((false, body))) => Err(ClientError::Refused(self.parse(&body)?)),
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(self.broken(&"it did not answer in time")),
        }
    }

    /// Nothing if nobody is there. The daemon alone has its users' own sockets: what waits there when it ends is not
    /// answered, while at the common one the next daemon finds it. Whatever is asked for may be asked for twice.
    async fn ask_at_own(&self, method: Method, resource: &str, body: Bytes) -> Option<Answer> {
        let answer = ask(self.at_own().await?, method, resource, body).await;
        Some(answer).filter(|answer| !matches!(answer, Ok(Err(_))))
    }

    async fn at_own(&self) -> Option<UnixStream> {
        let own = own_socket(&self.path)?;
        timeout(PATIENCE, connect_to(&own)).await.ok()?.ok()
    }

    async fn at_the_common(&self) -> Result<UnixStream, ClientError> {
        let connected = timeout(PATIENCE, connect_to(&self.path)).await.map_err(io::Error::from);
        connected.flatten().map_err(|source| ClientError::Away { path: self.path.clone(), source })
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.broken(&error))
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Broken { path: self.path.clone(), why: why.to_string() }
    }
}

/// Where this process's user may have a socket of his own. Only in a folder that is nobody else's to write in
/// than theirs who made the common one: in /tmp anybody could have made it.
fn own_socket(common: &Path) -> Option<PathBuf> {
    let own = sockets::folder(common)?;
    let mode = fs::metadata(own.parent()?).ok()?.mode();
    let uid = Uid::new(rustix::process::geteuid().as_raw())?;
    (mode & 0o022 == 0).then(|| own.join(sockets::name(uid)))
}

/// A queue that is full, in a crowd, is one that does not block says (unix(7)).
async fn connect_to(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(AGAIN).await,
            result => return result,
        }
    }
}

/// The longest line of events, in bytes: several times what an event has.
const LINE: usize = 64 << 10;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What came of a request: whether it went well and the body, or how the connection broke, in time.
type Answer = Result<Result<(bool, Bytes), BoxError>, Elapsed>;

/// An exchange that comes to an end.
async fn ask(stream: UnixStream, method: Method, resource: &str, body: Bytes) -> Answer {
    timeout(PATIENCE, exchange(stream, method, resource, body)).await
}

/// One request on the connection; whether it went well, and the body.
async fn exchange(
    stream: UnixStream,
    method: Method,
    resource: &str,
    body: Bytes,
) -> Result<(bool, Bytes), BoxError> {
    let (response, _driver) = begin(stream, method, resource, body).await?;
    let well = response.status().is_success();
    let body = Limited::new(response.into_body(), LARGEST).collect().await?.to_bytes();
    Ok((well, body))
}

/// Sends one request; the answer, of which only the head has come, and what brings the rest of it.
async fn begin(
    stream: UnixStream,
    method: Method,
    resource: &str,
    body: Bytes,
) -> Result<(Response<Incoming>, Driver), BoxError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = Driver(tokio::spawn(connection));
    let request = Request::builder()
        .method(method)
        .uri(resource)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    Ok((sender.send_request(request).await?, driver))
}

/// The task that moves a connection on. It ends when this is dropped.
struct Driver(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}
