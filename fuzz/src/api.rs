//! Bodies of requests.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use v6pod_daemon::fuzz::body;
use v6pod_proto::{Activate, Code, Deactivate};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// The first byte chooses the content type. A request that was understood means the same when it is
/// written again, as JSON and as a form; one that was not is the caller's mistake and never ours.
pub fn bodies(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    let kind = [None, Some(JSON), Some(FORM), Some("text/plain")][usize::from(choice % 4)];
    both_ways::<Activate>(kind, body);
    both_ways::<Deactivate>(kind, body);
}

fn both_ways<T: DeserializeOwned + Serialize + PartialEq + Debug>(
    kind: Option<&'static str>,
    bytes: &[u8],
) {
    match body::<T>(kind, bytes) {
        Ok(request) => {
            let json = serde_json::to_vec(&request).expect("a request can be written");
            assert_eq!(body::<T>(Some(JSON), &json).as_ref(), Ok(&request));
            // But for annotations, which no form can say, a request is flat.
            let Ok(form) = serde_urlencoded::to_string(&request) else {
                return assert_eq!(kind.unwrap_or(JSON), JSON);
            };
            assert_eq!(body::<T>(Some(FORM), form.as_bytes()), Ok(request));
        }
        Err(code) => assert!(matches!(code, Code::Malformed | Code::UnsupportedMediaType)),
    }
}
