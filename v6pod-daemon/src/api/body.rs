//! Request bodies: JSON, or a form as `curl -d` sends it.

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use v6pod_proto::Code;

use super::problem::Failure;

/// More than any request of the API needs, in bytes.
pub(crate) const LIMIT: usize = 16 * 1024;

/// Reads a request by its content type.
pub(crate) fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.map(|text| text.split(';').next().unwrap_or("").trim().to_ascii_lowercase());
    match kind.as_deref() {
        Some("application/json") => json(body),
        Some("application/x-www-form-urlencoded") => form(body),
        None if body.first() == Some(&b'{') => json(body),
        None => form(body),
        Some(_) => Err(Failure::new(
            Code::UnsupportedMediaType,
            "send application/json or application/x-www-form-urlencoded",
        )),
    }
}

fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(Code::Malformed, format!("not what the API takes: {error}")))
}

fn form<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_urlencoded::from_bytes(body)
        .map_err(|error| Failure::new(Code::Malformed, format!("not what the API takes: {error}")))
}

#[cfg(test)]
mod tests {
    use v6pod_proto::{Activate, Uid};

    use super::*;

    fn read(kind: Option<&str>, body: &str) -> Result<Activate, Code> {
        let mut headers = HeaderMap::new();
        if let Some(kind) = kind {
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        }
        parse(&headers, &Bytes::copy_from_slice(body.as_bytes())).map_err(|failure| failure.code)
    }

    #[test]
    fn the_form_of_2019_and_json_say_the_same() {
        let id = "ab".repeat(32);
        let form =
            read(Some("application/x-www-form-urlencoded"), &format!("user=1000&id={id}")).unwrap();
        let json = read(
            Some("application/json; charset=utf-8"),
            &format!(r#"{{"user":1000,"id":"{id}"}}"#),
        )
        .unwrap();
        assert_eq!(form, json);
        assert_eq!(form.user, Uid::new(1000));
        assert_eq!(read(None, &format!("user=1000&id={id}")).unwrap(), form);
        let lease = read(None, &format!("id={id}&lease=true&plug=false")).unwrap();
        assert!(lease.lease && !lease.plug);
    }

    #[test]
    fn what_is_neither_is_refused() {
        assert_eq!(read(Some("text/xml"), "<x/>"), Err(Code::UnsupportedMediaType));
        assert_eq!(read(Some("application/json"), "user=1"), Err(Code::Malformed));
        assert_eq!(read(None, &format!("{{\"id\":\"{}\"}}", "a".repeat(63))), Err(Code::Malformed));
        assert_eq!(read(None, &format!("id={}&user=-1", "a".repeat(64))), Err(Code::Malformed));
        assert_eq!(read(None, &format!("id={}&x=1", "a".repeat(64))), Err(Code::Malformed));
    }
}
