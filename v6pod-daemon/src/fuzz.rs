//! What the fuzz targets see of the daemon beyond its public interface (docs/fuzzing.md).
//!
//! Behind a feature, so that nothing else is built upon it and no installed program contains it.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, header};
use serde::de::DeserializeOwned;
use v6pod_proto::Code;

use crate::api::body;
use crate::attachments::records::{self, Record};

pub use crate::dns::fuzz::{answer as dns_answer, question as dns_question};
pub use crate::kernel::fuzz::{link_round_trip, netlink, sock_diag};

/// A request's body as the API reads it.
pub fn body<T: DeserializeOwned>(kind: Option<&'static str>, bytes: &[u8]) -> Result<T, Code> {
    let mut headers = HeaderMap::new();
    headers.extend(kind.map(|kind| (header::CONTENT_TYPE, HeaderValue::from_static(kind))));
    body::parse(&headers, &Bytes::copy_from_slice(bytes)).map_err(|failure| failure.code)
}

/// A record of that file name, read as after a restart and written again; none if it is refused.
pub fn record(file: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let (attachment, _) = records::parse(file, bytes).ok()?;
    serde_json::to_vec(&Record::of(&attachment)).ok()
}
