//! Consul: one service of the agent for each attachment, over the agent's HTTP API.
//!
//! No client library is used: of the two on crates.io that could be built upon, one has the wrong
//! type for TaggedAddresses and so cannot read a service's answer, the other knows no agent API.
//!
//! A service is there as long as its attachment is, and counts as passing, unless its container asks for a
//! check. Such a check asks the container's own address and follows no redirect; there is none that runs a
//! program. No answer is read beyond [`BODY_MAX`]. The token stands in no log, no error and no `Debug`.

mod checks;
mod connect;
mod guard;
mod http;
#[cfg(feature = "consul-tls")]
mod tls;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use v6pod_proto::wishes::Check;

use super::{Backend, BackendError, Listed, Mark, Service, ServiceId};
use crate::config::{self, Config};
use checks::{CheckDefinition, knows_no_redirects};
use connect::Endpoint;
use guard::Guard;
use http::{Agent, Answer};

pub use http::BODY_MAX;

/// An agent of Consul.
#[derive(Debug)]
pub struct Consul {
    agent: Agent,
    mark: Mark,
    guard: Guard,
}

impl Consul {
    /// The agent that listens there, asked with the token in the file, if one is given. Files are read
    /// at each request, so that a token or a certificate can be replaced.
    pub fn new(mark: Mark, consul: &config::Consul) -> Self {
        let token_file = consul.token_file.as_deref().map(Config::secret);
        let guard = Guard::new(consul.datacenter.clone());
        Self { agent: Agent::new(Endpoint::new(consul), token_file), mark, guard }
    }
}

impl Consul {
    /// One request, if the agent is one that may be told and asked.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answer, BackendError> {
        self.guard.pass(&self.agent).await?;
        let answer = self.agent.call(method, path, body).await;
        self.guard.note(&answer);
        answer
    }

    async fn put(&self, definition: &Definition<'_>) -> Result<Answer, BackendError> {
        let body =
            serde_json::to_vec(definition).map_err(|error| BackendError::Garbled(error.into()))?;
        let path = "/v1/agent/service/register?replace-existing-checks=true";
        self.call(Method::PUT, path, body).await
    }
}

impl Backend for Consul {
    fn kind(&self) -> &'static str {
        "consul"
    }

    async fn register(&self, service: &Arc<Service>) -> Result<(), BackendError> {
        let answer = self.put(&Definition::of(service)).await?;
        let safer = Definition::without_redirects(service).filter(|_| knows_no_redirects(&answer));
        match safer {
            Some(safer) => self.put(&safer).await?.success().map(drop),
            None => answer.success().map(drop),
        }
    }

    async fn deregister(&self, id: &ServiceId) -> Result<(), BackendError> {
        let path = format!("/v1/agent/service/deregister/{}", percent_encode(id.as_str()));
        let answer = self.call(Method::PUT, &path, Vec::new()).await?;
        // Since Consul 1.10 that is the answer where there is no such service; before, it was 200.
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        answer.success().map(drop)
    }

    async fn list(&self) -> Result<Vec<Listed>, BackendError> {
        let terms = self.mark.meta().map(|(key, value)| format!(r#"Meta["{key}"] == "{value}""#));
        let path = format!("/v1/agent/services?filter={}", percent_encode(&terms.join(" and ")));
        let answer: Answer = self.call(Method::GET, &path, Vec::new()).await?;
        let mut listed = parse(&answer.success()?, &self.mark)?;
        checks::compare(&self.agent, &self.mark, &mut listed).await?;
        Ok(listed)
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
            Listed { service: service.read(id.clone()).map(Arc::new), id }
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
    port: u16,
    tags: &'a [String],
    meta: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<CheckDefinition>,
    /// Nobody else changes a service's tags.
    enable_tag_override: bool,
}

impl<'a> Definition<'a> {
    fn of(service: &'a Service) -> Self {
        Self {
            id: service.id.as_str(),
            name: service.label.as_str(),
            address: service.address,
            port: service.port,
            tags: &service.tags,
            meta: &service.meta,
            check: service.check.as_ref().map(|check| CheckDefinition::of(check, service.address)),
            enable_tag_override: false,
        }
    }

    /// The same, if it has a check by HTTP, with one that only connects to the port.
    fn without_redirects(service: &'a Service) -> Option<Self> {
        let Some(Check::Http { port, .. }) = service.check else { return None };
        let check = CheckDefinition::of(&Check::Tcp { port }, service.address);
        Some(Self { check: Some(check), ..Self::of(service) })
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
    port: u16,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
}

impl AgentService {
    /// What it says, if this daemon can have written it.
    fn read(self, id: ServiceId) -> Option<Service> {
        let meta = self.meta.unwrap_or_default();
        Some(Service {
            id,
            label: self.service.parse().ok()?,
            address: self.address.parse().ok()?,
            port: self.port,
            tags: self.tags.unwrap_or_default(),
            check: Service::check_in(&meta),
            meta,
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
    use crate::core::offer::Part;
    use crate::registry::Registration;
    use crate::registry::testing::registration;

    fn mark() -> Mark {
        Mark::new("host", Instance::default())
    }

    #[test]
    fn what_is_registered_is_read_back_as_it_was() {
        let registration = Registration {
            part: Part::Port(8080),
            port: Some(8080),
            tags: vec!["v1".to_owned(), "alice".to_owned(), "bob=ü".to_owned()],
            check: Some("http:8080/x?y".parse().unwrap()),
            ..registration(1, "web")
        };
        let service = Service::new(&mark(), &registration);
        assert_eq!(service.tags, ["alice", "v1", "bob=ü"], "the owner's once, and first");
        let sent = serde_json::to_value(Definition::of(&service)).unwrap();
        assert_eq!(sent["Address"], service.address.to_string());
        // The agent says "Service" where it was told "Name".
        let mut there = sent.clone();
        there["Service"] = sent["Name"].clone();
        let list = serde_json::json!({ service.id.as_str(): there });
        let listed = parse(list.to_string().as_bytes(), &mark()).unwrap();
        assert_eq!(listed, [Listed { id: service.id.clone(), service: Some(Arc::new(service)) }]);
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
