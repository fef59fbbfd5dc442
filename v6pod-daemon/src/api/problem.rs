//! Answers that say no (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use v6pod_proto::{Code, Problem};

/// How long a caller waits before he asks again, in seconds.
const RETRY_AFTER: &str = "1";

/// A refusal on its way out. The request's id is added where the answer leaves.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
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
