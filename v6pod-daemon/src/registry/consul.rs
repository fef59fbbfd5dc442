//! Consul: one service of the agent for each attachment, over the agent's HTTP API.
//!
//! No client library is used: of the two on crates.io that could be built upon, one has the wrong
//! type for TaggedAddresses and so cannot read a service's answer, the other knows no agent API.
//!
//! A service has no check: it is there as long as the attachment is, and counts as passing. No
//! answer is read beyond [`BODY_MAX`]. The token stands in no log, no error and no `Debug`.

mod http;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Backend, BackendError, Listed, Mark, Service, ServiceId};
use crate::config::Authority;
use http::{Agent, Answer};

pub use http::BODY_MAX;

/// An agent of Consul.
#[derive(Debug)]
pub struct Consul {
    agent: Agent,
    mark: Mark,
}

impl Consul {
    /// The agent that listens there, asked with the token in the file, if one is given. The file is
    /// read at each request, so that a token can be replaced.
    pub fn new(mark: Mark, agent: &Authority, token_file: Option<PathBuf>) -> Self {
        Self { agent: Agent::new(agent, token_file), mark }
    }
}

impl Backend for Consul {
    fn kind(&self) -> &'static str {
        "consul"
    }

    async fn register(&self, service: &Service) -> Result<(), BackendError> {
        let body = serde_json::to_vec(&Definition::of(service))
            .map_err(|error| BackendError::Garbled(error.into()))?;
        let path = "/v1/agent/service/register?replace-existing-checks=true";
        self.agent.call(Method::PUT, path, body).await?.success().map(drop)
    }

    async fn deregister(&self, id: &ServiceId) -> Result<(), BackendError> {
        let path = format!("/v1/agent/service/deregister/{}", percent_encode(id.as_str()));
        let answer = self.agent.call(Method::PUT, &path, Vec::new()).await?;
        // Since Consul 1.10 that is the answer where there is no such service; before, it was 200.
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        answer.success().map(drop)
    }

    async fn list(&self) -> Result<Vec<Listed>, BackendError> {
        let terms = self.mark.meta().map(|(key, value)| format!(r#"Meta["{key}"] == "{value}""#));
        let path = format!("/v1/agent/services?filter={}", percent_encode(&terms.join(" and ")));
        let answer: Answer = self.agent.call(Method::GET, &path, Vec::new()).await?;
        parse(&answer.success()?, &self.mark)
    }
}

/// Those services of the agent's answer that bear the mark. The agent was asked for no others, but
/// it is not taken at its word: what is ours may be deleted.
fn parse(body: &[u8], mark: &Mark) -> Result<Vec<Listed>, BackendError> {
    let services: BTreeMap<String, AgentService> =
        serde_json::from_slice(body).map_err(|error| BackendError::Garbled(error.into()))?;
    let ours = services
        .into_iter()
        .filter(|(_, service)| service.meta.as_ref().is_some_and(|meta| mark.is_on(meta)));
    Ok(ours
        .map(|(id, service)| {
            let id = ServiceId::new(id);
            Listed { service: service.read(id.clone()), id }
        })
        .collect())
}

/// The body of a registration.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Definition<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    address: Ipv6Addr,
    tags: &'a [String],
    meta: &'a BTreeMap<String, String>,
    /// Nobody else changes a service's tags.
    enable_tag_override: bool,
}

impl<'a> Definition<'a> {
    fn of(service: &'a Service) -> Self {
        Self {
            id: service.id.as_str(),
            name: service.label.as_str(),
            address: service.address,
            tags: &service.tags,
            meta: &service.meta,
            enable_tag_override: false,
        }
    }
}

/// A service as the agent lists it. Go writes an empty list or map as `null` at times.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentService {
    #[serde(default)]
    service: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
}

impl AgentService {
    /// What it says, if this daemon can have written it.
    fn read(self, id: ServiceId) -> Option<Service> {
        Some(Service {
            id,
            label: self.service.parse().ok()?,
            address: self.address.parse().ok()?,
            tags: self.tags.unwrap_or_default(),
            meta: self.meta.unwrap_or_default(),
        })
    }
}

/// A text as a part of a path or a query: all but the unreserved characters of RFC 3986, section
/// 2.3, as `%XX`.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write;

    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod live;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Instance;
    use crate::registry::testing::registration;

    fn mark() -> Mark {
        Mark::new("host", Instance::default())
    }

    #[test]
    fn what_is_registered_is_read_back_as_it_was() {
        let service = Service::new(&mark(), &registration(1, "web"));
        let sent = serde_json::to_value(Definition::of(&service)).unwrap();
        assert_eq!(sent["Address"], service.address.to_string());
        // The agent says "Service" where it was told "Name".
        let mut there = sent.clone();
        there["Service"] = sent["Name"].clone();
        let list = serde_json::json!({ service.id.as_str(): there });
        let listed = parse(list.to_string().as_bytes(), &mark()).unwrap();
        assert_eq!(listed, [Listed { id: service.id.clone(), service: Some(service) }]);
    }

    #[test]
    fn what_does_not_bear_the_mark_is_not_ours() {
        let list = serde_json::json!({
            "v6pod-host-v6pod-00000000000000000000000000000001": { "Service": "a", "Meta": null },
            "b": { "Service": "b" },
            "c": { "Service": "c", "Meta": { "v6pod-host": "other", "v6pod-instance": "v6pod" } },
            "d": { "Service": "D!", "Meta": { "v6pod-host": "host", "v6pod-instance": "v6pod" } },
        });
        let listed = parse(list.to_string().as_bytes(), &mark()).unwrap();
        assert_eq!(listed, [Listed { id: ServiceId::new("d"), service: None }]);
        assert!(matches!(parse(b"[", &mark()), Err(BackendError::Garbled(_))));
    }

    #[test]
    fn nothing_of_a_text_can_leave_its_place_in_a_path() {
        assert_eq!(percent_encode("a-1.z~_"), "a-1.z~_");
        assert_eq!(percent_encode("a/../?b=\"é"), "a%2F..%2F%3Fb%3D%22%C3%A9");
    }
}
