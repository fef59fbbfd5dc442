//! Just enough of an HTTP client: one request on one connection, no redirects, no pool.
//!
//! An agent is on this host, where a connection costs less than the state to keep one. It has no
//! time-outs of its own: dropping the future ends all of it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::connect::Endpoint;
use crate::registry::BackendError;

/// The largest answer that is read, in bytes: a list of ten thousand services fits.
pub const BODY_MAX: usize = 8 << 20;

/// The largest token file, in bytes. A token is a UUID or a JWT.
const TOKEN_MAX: usize = 8 << 10;

/// How much of an agent's own words goes into an error, in characters.
const MESSAGE_MAX: usize = 200;

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// An agent to be asked.
#[derive(Debug)]
pub(super) struct Agent {
    endpoint: Endpoint,
    host: Box<str>,
    token_file: Option<PathBuf>,
}

/// An agent's answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Agent {
    pub(super) fn new(endpoint: Endpoint, token_file: Option<PathBuf>) -> Self {
        Self { host: endpoint.host().into(), endpoint, token_file }
    }

    /// Makes one request. An answer of whatever status is a success here.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answer, BackendError> {
        let request = self.request(method, path, body).await?;
        let stream = self.endpoint.connect().await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        let exchange = async move {
            let answer = sender.send_request(request).await.map_err(unreachable)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
            Ok(Answer { status, body: body.map_err(BackendError::Garbled)?.to_bytes() })
        };
        // Both in one future, so that dropping it closes the connection. The connection ends by
        // itself when the exchange is over; its errors reach the exchange.
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, BackendError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &*self.host)
            .header(CONNECTION, "close");
        if let Some(file) = &self.token_file {
            request = request.header(TOKEN, token(file.clone()).await?);
        }
        request.body(Full::from(body)).map_err(|error| BackendError::Garbled(error.into()))
    }
}

impl Answer {
    /// The body, if the request was carried out.
    pub(super) fn success(self) -> Result<Bytes, BackendError> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let status = self.status.as_u16();
        let text = String::from_utf8_lossy(&self.body);
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let message = text.trim().chars().take(MESSAGE_MAX).map(plain).collect();
        if self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS {
            Err(BackendError::Busy { status, message })
        } else {
            Err(BackendError::Rejected { status, message })
        }
    }
}

fn unreachable(error: impl Error + Send + Sync + 'static) -> BackendError {
    BackendError::Unreachable(Box::new(error))
}

/// The token in the file. Files can block, so it is read off the runtime's threads.
async fn token(file: PathBuf) -> Result<HeaderValue, BackendError> {
    let read = tokio::task::spawn_blocking(move || read_token(&file)).await;
    read.map_err(|error| BackendError::Token(error.into()))?
        .map_err(|error| BackendError::Token(error.into()))
}

fn read_token(file: &Path) -> io::Result<HeaderValue> {
    use std::io::Read;

    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut text = String::new();
    let limit = u64::try_from(TOKEN_MAX).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(file)?.take(limit).read_to_string(&mut text)?;
    let token = text.trim();
    if token.is_empty() || text.len() > TOKEN_MAX {
        return Err(wrong("the token file is empty or too large"));
    }
    // The value's own error would be silent about it, too; the token is in neither.
    let mut value = HeaderValue::from_str(token).map_err(|_| wrong("no token is in the file"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Authority;
    use crate::report::chain;

    fn agent(at: &Authority, token_file: Option<PathBuf>) -> Agent {
        Agent::new(Endpoint::Tcp(at.clone()), token_file)
    }

    /// Answers one request with these bytes; the request's bytes come back.
    async fn serve(answer: Vec<u8>) -> (Authority, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            // The client may hang up before it has all.
            let _ = stream.write_all(&answer).await;
            request.truncate(n);
            String::from_utf8(request).unwrap()
        });
        (endpoint, served)
    }

    #[tokio::test]
    async fn the_token_is_sent_and_never_shown() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "  s3cret ").unwrap();
        let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\nPerm\x1bed \n".to_vec();
        let (endpoint, served) = serve(answer).await;
        let agent = agent(&endpoint, Some(file.path().to_owned()));
        let request = agent.request(Method::GET, "/x", Vec::new()).await.unwrap();
        assert!(!format!("{agent:?} {request:?}").contains("s3cret"));

        let answer = agent.call(Method::GET, "/x?y", Vec::new()).await.unwrap();
        let error = answer.success().unwrap_err();
        let refused = "the registry refuses: 403 Perm ed";
        assert_eq!(chain(&error), refused);
        let request = served.await.unwrap();
        assert!(request.starts_with("GET /x?y HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("x-consul-token: s3cret\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_token_that_is_none_is_an_error_that_does_not_repeat_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for wrong in [&b""[..], b" \n", b"s3c\x01ret", &[b'a'; TOKEN_MAX + 1]] {
            file.as_file_mut().set_len(0).unwrap();
            std::fs::write(file.path(), wrong).unwrap();
            let error = token(file.path().to_owned()).await.unwrap_err();
            assert!(matches!(error, BackendError::Token(_)));
            assert!(!chain(&error).contains("s3c"));
        }
        let missing = token(PathBuf::from("/nonexistent/token")).await;
        assert!(matches!(missing, Err(BackendError::Token(_))));
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_to_its_end() {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.resize(answer.len() + BODY_MAX + 1, b'x');
        let (endpoint, _served) = serve(answer).await;
        let answer = agent(&endpoint, None).call(Method::GET, "/", Vec::new()).await;
        assert!(matches!(answer, Err(BackendError::Garbled(_))));
    }

    #[tokio::test]
    async fn nobody_there_and_nonsense_are_told_apart_from_answers() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let endpoint: Authority = listener.local_addr().unwrap().to_string().parse().unwrap();
        drop(listener);
        let call = agent(&endpoint, None).call(Method::GET, "/", Vec::new()).await;
        assert!(matches!(call, Err(BackendError::Unreachable(_))));

        let (endpoint, _served) = serve(b"220 mail.example ESMTP\r\n".to_vec()).await;
        let call = agent(&endpoint, None).call(Method::GET, "/", Vec::new()).await;
        assert!(matches!(call, Err(BackendError::Unreachable(_))));

        let (endpoint, _served) = serve(b"HTTP/1.1 500 no\r\n\r\nNo cluster leader".to_vec()).await;
        let call = agent(&endpoint, None).call(Method::GET, "/", Vec::new()).await.unwrap();
        assert!(matches!(call.success(), Err(BackendError::Busy { status: 500, .. })));
    }
}
