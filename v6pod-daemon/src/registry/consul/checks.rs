//! Checks, as an agent is told of them and as it has them.
//!
//! Guarantees: a check asks nobody but the container, and runs nothing. A service whose check somebody has
//! taken away by itself counts as one that is not as it should be.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddrV6};

use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::IgnoredAny;
use v6pod_proto::wishes::Check;

use super::http::{Agent, Answer};
use super::percent_encode;
use crate::registry::{BackendError, Listed, Mark, ServiceId};

/// Has nothing stand for each of these services that wants a check and has none: it will be written again, and
/// its check with it. The list of services says nothing of checks, so this is a second question, which is
/// asked only if one of them wants a check.
pub(super) async fn compare(
    agent: &Agent,
    mark: &Mark,
    listed: &mut [Listed],
) -> Result<(), BackendError> {
    let wants = |listed: &Listed| listed.service.as_ref().is_some_and(|s| s.check.is_some());
    if !listed.iter().any(wants) {
        return Ok(());
    }
    let filter = format!(r#"ServiceID matches "^{}""#, mark.stem().replace('.', "[.]"));
    let path = format!("/v1/agent/checks?filter={}", percent_encode(&filter));
    let answer = match agent.call(Method::GET, &path, Vec::new()).await?.success() {
        // One that does not tell of checks, for whatever reason, is believed to have them.
        Err(BackendError::Rejected { .. }) => return Ok(()),
        other => other?,
    };
    let there: BTreeMap<String, IgnoredAny> =
        serde_json::from_slice(&answer).map_err(|error| BackendError::Garbled(error.into()))?;
    for listed in listed.iter_mut().filter(|listed| wants(listed)) {
        if !there.contains_key(&check_id(&listed.id)) {
            listed.service = None;
        }
    }
    Ok(())
}

/// What an agent calls a service's only check.
fn check_id(service: &ServiceId) -> String {
    format!("service:{service}")
}

/// Whether an agent refuses a check because it is too old to leave redirects alone (CVE-2022-29153; all from
/// 1.7 to 1.9.16, 1.10.9 and 1.11.4): it says that it does not know the field.
pub(super) fn knows_no_redirects(answer: &Answer) -> bool {
    let says = |what: &str| answer.body.windows(what.len()).any(|part| part == what.as_bytes());
    answer.status == StatusCode::BAD_REQUEST && says(DISABLE_REDIRECTS)
}

const DISABLE_REDIRECTS: &str = "DisableRedirects";

/// How often a container is asked, and how long it may take for its answer, as Consul writes times.
const INTERVAL: &str = "10s";
const TIMEOUT: &str = "5s";

/// The check of a registration. It asks nobody but the container.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum CheckDefinition {
    #[serde(rename_all = "PascalCase")]
    Http {
        #[serde(rename = "HTTP")]
        http: String,
        interval: &'static str,
        timeout: &'static str,
        /// A container would else have the agent ask whomever it names.
        disable_redirects: bool,
    },
    #[serde(rename_all = "PascalCase")]
    Tcp {
        #[serde(rename = "TCP")]
        tcp: SocketAddrV6,
        interval: &'static str,
        timeout: &'static str,
    },
    Ttl {
        #[serde(rename = "TTL")]
        ttl: String,
    },
}

impl CheckDefinition {
    pub(super) fn of(check: &Check, address: Ipv6Addr) -> Self {
        let at = |port| SocketAddrV6::new(address, port, 0, 0);
        let (interval, timeout) = (INTERVAL, TIMEOUT);
        match check {
            Check::Http { port, path } => {
                let http = format!("http://{}{path}", at(*port));
                Self::Http { http, interval, timeout, disable_redirects: true }
            }
            Check::Tcp { port } => Self::Tcp { tcp: at(*port), interval, timeout },
            Check::Ttl(ttl) => Self::Ttl { ttl: ttl.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::consul::live::{LiveAgent, consul, eventually, settled};
    use crate::registry::testing::{mark, registration};
    use crate::registry::{Backend as _, Registration};

    #[test]
    fn attack_20_a_check_asks_the_container_and_nobody_else() {
        let address = "2001:db8::7".parse().unwrap();
        let sent = |check: &str| {
            let check = CheckDefinition::of(&check.parse().unwrap(), address);
            serde_json::to_value(check).unwrap()
        };
        let (interval, timeout) = ("10s", "5s");
        let url = "http://[2001:db8::7]:80//192.0.2.1/@x";
        let http = serde_json::json!({
            "HTTP": url, "Interval": interval, "Timeout": timeout, "DisableRedirects": true,
        });
        assert_eq!(sent("http:80//192.0.2.1/@x"), http);
        let tcp = "[2001:db8::7]:5432";
        let tcp = serde_json::json!({ "TCP": tcp, "Interval": interval, "Timeout": timeout });
        assert_eq!(sent("tcp:5432"), tcp);
        assert_eq!(sent("ttl:2m"), serde_json::json!({ "TTL": "120s" }));
    }

    #[tokio::test]
    async fn a_check_that_somebody_takes_away_comes_back() {
        let Some(consul) = consul() else { return };
        let mut agent = LiveAgent::new(consul, "");
        agent.start().await;
        let registrar = agent.registrar();
        let check = Some("tcp:80".parse().unwrap());
        let checked = Registration { check, ..registration(1, "web") };
        registrar.reconcile(&[checked.clone(), registration(2, "db")]);
        settled(&registrar).await;
        let ours = format!("service:{}", mark().service_id(&checked.id));
        let checks = async || {
            let answer = agent.http().call(Method::GET, "/v1/agent/checks", Vec::new()).await;
            let all: BTreeMap<String, serde_json::Value> =
                serde_json::from_slice(&answer.unwrap().success().unwrap()).unwrap();
            all
        };
        let there = checks().await;
        assert_eq!(there.keys().collect::<Vec<_>>(), [&ours]);
        assert_eq!(agent.backend().list().await.unwrap().len(), 2);
        assert!(agent.backend().list().await.unwrap().iter().all(|l| l.service.is_some()));

        let path = format!("/v1/agent/check/deregister/{ours}");
        agent.http().call(Method::PUT, &path, Vec::new()).await.unwrap().success().unwrap();
        let listed = agent.backend().list().await.unwrap();
        let without: Vec<_> = listed.iter().filter(|l| l.service.is_none()).collect();
        assert_eq!(without.len(), 1, "its service stands, and not as it should");
        assert_eq!(without[0].id, mark().service_id(&checked.id));
        eventually("it is back", async || checks().await.contains_key(&ours)).await;
    }
}
