//! Whether an agent is of the data centre that it should be of.
//!
//! An agent registers for its own data centre and no other: `registry.consul.datacenter` cannot send names
//! elsewhere. It keeps them from going where nobody expects them.
//!
//! Guarantee: where a data centre is asked for, nothing is told to an agent of another, and nothing of what
//! it says is believed. An agent is asked at first, and again whenever it could not be reached: whoever comes
//! back at its address may be another.

use std::sync::atomic::{AtomicBool, Ordering};

use hyper::Method;
use serde::Deserialize;

use super::http::{Agent, Answer};
use crate::registry::BackendError;

/// Lets requests pass to an agent of one data centre, or to any.
#[derive(Debug)]
pub(super) struct Guard {
    wanted: Option<String>,
    /// Whether it is known that the agent is of that one.
    known: AtomicBool,
}

/// What matters here of an agent's word about itself.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct About {
    config: Settings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    datacenter: String,
}

impl Guard {
    /// For agents of this data centre; for any where none is given.
    pub(super) const fn new(wanted: Option<String>) -> Self {
        Self { wanted, known: AtomicBool::new(false) }
    }

    /// Asks the agent whose it is, if that matters and is not known.
    pub(super) async fn pass(&self, agent: &Agent) -> Result<(), BackendError> {
        let Some(wanted) = self.wanted.as_ref().filter(|_| !self.known.load(Ordering::Acquire))
        else {
            return Ok(());
        };
        let answer = agent.call(Method::GET, "/v1/agent/self", Vec::new()).await?.success()?;
        let about: About =
            serde_json::from_slice(&answer).map_err(|error| BackendError::Garbled(error.into()))?;
        let is = about.config.datacenter;
        // Consul takes such names in lower case.
        if !is.eq_ignore_ascii_case(wanted) {
            let plain = |c: char| if c.is_control() { ' ' } else { c };
            let is = is.chars().take(63).map(plain).collect();
            return Err(BackendError::Elsewhere { wanted: wanted.clone(), is });
        }
        self.known.store(true, Ordering::Release);
        Ok(())
    }

    /// Notes how a request to the agent ended.
    pub(super) fn note(&self, answer: &Result<Answer, BackendError>) {
        if answer.is_err() {
            self.known.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config;
    use crate::registry::consul::Consul;
    use crate::registry::consul::live::{LiveAgent, consul, eventually, plain, settled};
    use crate::registry::testing::{mark, registration};
    use crate::registry::{Backend as _, BackendError, Registrar, system_jitter};

    #[tokio::test]
    async fn an_agent_of_another_data_centre_is_told_nothing() {
        let Some(consul) = consul() else { return };
        let mut agent = LiveAgent::new(consul, r#"datacenter = "east""#);
        let of = |datacenter: &str| {
            let datacenter = Some(datacenter.to_owned());
            let plain = plain(&agent.endpoint(), None);
            Consul::new(mark(), &config::Consul { datacenter, ..plain })
        };
        let (east, west) = (of("East"), of("west"));
        agent.start().await;
        let wrong = Registrar::start(mark(), west, system_jitter());
        wrong.wish(&registration(1, "web"));
        let said = "the agent is of the data centre east, and registry.consul.datacenter says west";
        eventually("it is said", async || wrong.health().error.as_deref() == Some(said)).await;
        assert_eq!(agent.ids().await, [""; 0]);

        let right = Registrar::start(mark(), east, system_jitter());
        right.wish(&registration(1, "web"));
        settled(&right).await;
        assert_eq!(agent.ids().await.len(), 1);
    }

    #[tokio::test]
    async fn who_comes_back_at_an_agents_address_is_asked_again() {
        let Some(consul) = consul() else { return };
        let mut agent = LiveAgent::new(consul, r#"datacenter = "east""#);
        let datacenter = Some("east".to_owned());
        let east = config::Consul { datacenter, ..plain(&agent.endpoint(), None) };
        let backend = Consul::new(mark(), &east);
        agent.start().await;
        assert!(backend.list().await.is_ok());
        agent.kill();
        assert!(matches!(backend.list().await, Err(BackendError::Unreachable(_))));
        agent.settings = r#"datacenter = "west""#.to_owned();
        agent.start().await;
        let error = backend.list().await.unwrap_err();
        assert!(matches!(error, BackendError::Elsewhere { .. }), "{error}");
    }
}
