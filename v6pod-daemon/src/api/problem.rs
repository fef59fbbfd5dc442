//! Answers that say no (RFC 9457).

use std::sync::LazyLock;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use v6pod_proto::{Code, Problem};

/// How long a caller waits before he asks again, in seconds.
const RETRY_AFTER: &str = "1";

/// The most characters of a refusal's sentence.
const SENTENCE: usize = 300;

/// A refusal on its way out. The request's id is added where the answer leaves.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) detail: String,
    /// Whether it is what the caller expects, and nobody else has to hear of it.
    pub(crate) expected: bool,
}

impl Failure {
    /// The sentence may repeat words of the request, and it goes to the log: they are escaped, and
    /// there are not too many of them.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        let harmless = detail.chars().take(SENTENCE).flat_map(|c| {
            let escaped = c.is_control() || is_bidi_control(c);
            let (plain, escape) = ((!escaped).then_some(c), escaped.then(|| c.escape_unicode()));
            plain.into_iter().chain(escape.into_iter().flatten())
        });
        Self { code, detail: harmless.collect(), expected: false }
    }

    /// The same, as what the caller expects.
    pub(crate) fn expected(self) -> Self {
        Self { expected: true, ..self }
    }

    /// What is unknown and what is another's, the same to the byte.
    pub(crate) fn not_found() -> Self {
        Self::new(Code::NotFound, "no such thing here, or it is not yours")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = StatusCode::from_u16(self.code.status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            .into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Characters that turn the direction of a line round (Unicode Standard Annex 9): a log's reader
/// would see something else than it says.
const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// [`crowded`], put together once: of these there can be ten thousand a second.
pub(crate) static CROWDED: LazyLock<Vec<u8>> = LazyLock::new(crowded);

/// The whole answer to a connection of somebody who has too many, said before he has asked.
fn crowded() -> Vec<u8> {
    unready("too many of your connections are open; try again", RETRY_AFTER)
}

/// The whole answer that tells a client to come back later, for those whose request is not read.
pub(crate) fn unready(detail: &str, retry_after: &str) -> Vec<u8> {
    let body = serde_json::to_string(&Problem::new(Code::NotReady, detail, "")).unwrap_or_default();
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
         Retry-After: {retry_after}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Writes the body of a refusal, with the request's id.
pub(crate) fn spell_out(response: Response, request_id: &str) -> Response {
    let Some(failure) = response.extensions().get::<Failure>().cloned() else { return response };
    let id = if failure.code == Code::NotFound { "" } else { request_id };
    let problem = Problem::new(failure.code, failure.detail, id);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut answer = (response.status(), body).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if failure.code == Code::NotReady {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requests_words_forge_no_line_of_the_log() {
        let failure =
            Failure::new(Code::Malformed, "unknown `x\nv6podd: all is well\u{1b}[2J\u{202e}`");
        assert_eq!(failure.detail, "unknown `x\\u{a}v6podd: all is well\\u{1b}[2J\\u{202e}`");
        let long = Failure::new(Code::Malformed, "x".repeat(16_000));
        assert_eq!(long.detail.len(), SENTENCE);
    }

    #[test]
    fn what_a_crowd_is_told_is_an_answer() {
        let text = String::from_utf8(crowded()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!((problem.status, head.split(' ').nth(1)), (503, Some("503")));
    }
}
