//! Errors on the wire: RFC 9457 problem details.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as a program may branch on it. Never renamed once released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// 400: the request is not what the API takes.
    Malformed,
    /// 403: the descriptor is not the caller's namespace.
    NotYours,
    /// 403: the caller may not do this here.
    Forbidden,
    /// 404: no such thing, or it is another's.
    NotFound,
    /// 405: the resource knows no such method.
    MethodNotAllowed,
    /// 409: something stands in the way that the caller has to resolve.
    Conflict,
    /// 409: the container asks for no address (`v6pod=false`).
    Declined,
    /// 409: a prefix of an id, or a name, that means more than one.
    Ambiguous,
    /// 413: the request is too large.
    TooLarge,
    /// 415: the body is neither JSON nor a form.
    UnsupportedMediaType,
    /// 422: the request is understood and cannot be done: a namespace of the wrong kind.
    Impossible,
    /// 429: the owner has as many attachments as he may.
    Quota,
    /// 503: not ready, or not in time; try again.
    NotReady,
    /// 507: no address or no port is left.
    Full,
    /// 500: the daemon or the kernel failed.
    Internal,
}

impl Code {
    /// The HTTP status that goes with the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::NotYours | Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict | Self::Declined | Self::Ambiguous => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Impossible => 422,
            Self::Quota => 429,
            Self::Internal => 500,
            Self::NotReady => 503,
            Self::Full => 507,
        }
    }

    /// A few words for people, the same at every occurrence (RFC 9457, section 3.1.3).
    pub const fn title(self) -> &'static str {
        match self {
            Self::Malformed => "Malformed request",
            Self::NotYours => "Not your namespace",
            Self::Forbidden => "Not allowed",
            Self::NotFound => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::Conflict => "Conflict",
            Self::Declined => "Not wanted",
            Self::Ambiguous => "Ambiguous",
            Self::TooLarge => "Request too large",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::Impossible => "Cannot be done",
            Self::Quota => "Quota used up",
            Self::NotReady => "Not ready",
            Self::Full => "No room left",
            Self::Internal => "Internal error",
        }
    }
}

/// The body of every error answer (`application/problem+json`). It never bears a path or anything
/// of another owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A URI that names the kind of problem; `urn:v6pod:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// [`Code::title`].
    pub title: String,
    /// [`Code::status`], repeated for readers of the body alone.
    pub status: u16,
    /// What a program branches on.
    pub code: Code,
    /// One sentence: what happened, to what, and what to do.
    pub detail: String,
    /// The same id stands in the daemon's log. Empty in a 404, whose bytes are always the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

impl Problem {
    /// A problem with its sentence and the request's id.
    pub fn new(code: Code, detail: impl Into<String>, request_id: impl Into<String>) -> Self {
        let word = serde_json::to_value(code).ok();
        let word = word.as_ref().and_then(|w| w.as_str()).unwrap_or("internal");
        Self {
            kind: format!("urn:v6pod:problem:{word}"),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            request_id: request_id.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_code_in_its_type() {
        let problem = Problem::new(Code::NotYours, "no", "r1");
        assert_eq!(problem.kind, "urn:v6pod:problem:not-yours");
        let json = serde_json::to_string(&problem).unwrap();
        assert_eq!(serde_json::from_str::<Problem>(&json).unwrap(), problem);
    }
}
