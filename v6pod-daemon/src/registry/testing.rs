//! What the tests of this room share: registrations, and a registry that can be made to fail.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::*;
use crate::core::Instance;

/// The `n`th attachment, under this name.
pub(super) fn registration(n: u16, name: &str) -> Registration {
    Registration {
        id: AttachmentId::from_bits(u128::from(n)),
        part: Part::Whole,
        label: Label::from_name(name).unwrap(),
        address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, n),
        owner: "1000".parse().unwrap(),
        user: Some("alice".to_owned()),
        container: format!("{n:064x}").parse().unwrap(),
        name: name.to_owned(),
        image: Some("docker.io/library/nginx:1".to_owned()),
        port: None,
        tags: Vec::new(),
        check: None,
    }
}

pub(super) fn mark() -> Mark {
    Mark::new("host", Instance::default())
}

pub(super) fn service(n: u16, name: &str) -> Arc<Service> {
    Arc::new(Service::new(&mark(), &registration(n, name)))
}

/// What a [`Fake`] does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Refuses connections.
    Away,
    /// Takes connections and never answers, lists neither.
    Stuck,
    /// Writes are carried out and not answered; lists are answered. An agent without its servers.
    Mute,
    /// Writes are carried out after so many seconds, answered or not. Lists are answered.
    Late(u64),
    /// 500 to writes.
    Busy,
    /// 403 to writes.
    Refusing,
    /// A bug: writes panic.
    Panicking,
}

/// A registry of which everything can be asked. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Fake(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) services: BTreeMap<ServiceId, Arc<Service>>,
    pub(super) mood: Mood,
    /// Another mood for the writes of this service.
    pub(super) exception: Option<(ServiceId, Mood)>,
    /// A token that may write and not list.
    pub(super) blind: bool,
    pub(super) writes: usize,
    pub(super) lists: usize,
    pub(super) at_once: usize,
    pub(super) most_at_once: usize,
}

impl Fake {
    pub(super) fn new(mood: Mood) -> Self {
        Self(Arc::new(Mutex::new(State {
            services: BTreeMap::new(),
            mood,
            exception: None,
            blind: false,
            writes: 0,
            lists: 0,
            at_once: 0,
            most_at_once: 0,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The services that are there.
    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        self.state().services.values().cloned().collect()
    }

    async fn write(
        &self,
        id: &ServiceId,
        change: impl FnOnce(&mut State) + Send + 'static,
    ) -> Result<(), BackendError> {
        let mood = {
            let mut state = self.state();
            state.writes += 1;
            state.at_once += 1;
            state.most_at_once = state.most_at_once.max(state.at_once);
            let exception = state.exception.as_ref().filter(|(other, _)| other == id);
            exception.map_or(state.mood, |(_, mood)| *mood)
        };
        let _at_once = AtOnce(self);
        let fault = |status| {
            let message = "as told".to_owned();
            if status == 403 {
                BackendError::Rejected { status, message }
            } else {
                BackendError::Busy { status, message }
            }
        };
        // A request takes time, so that others can come between.
        tokio::time::sleep(Duration::from_millis(1)).await;
        match mood {
            Mood::Well => change(&mut self.state()),
            Mood::Away => return Err(BackendError::Unreachable("away".into())),
            Mood::Stuck => std::future::pending().await,
            Mood::Mute => {
                change(&mut self.state());
                std::future::pending::<()>().await;
            }
            Mood::Late(seconds) => {
                let fake = self.clone();
                let late = tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    change(&mut fake.state());
                });
                late.await.unwrap();
            }
            Mood::Busy => return Err(fault(500)),
            Mood::Refusing => return Err(fault(403)),
            Mood::Panicking => panic!("as told"),
        }
        Ok(())
    }
}

/// Counts down, also when the request is dropped.
struct AtOnce<'a>(&'a Fake);

impl Drop for AtOnce<'_> {
    fn drop(&mut self) {
        self.0.state().at_once -= 1;
    }
}

impl Backend for Fake {
    fn kind(&self) -> &'static str {
        "fake"
    }

    async fn register(&self, service: &Arc<Service>) -> Result<(), BackendError> {
        let service = Arc::clone(service);
        self.write(&service.id.clone(), |state| {
            state.services.insert(service.id.clone(), service);
        })
        .await
    }

    async fn deregister(&self, id: &ServiceId) -> Result<(), BackendError> {
        let gone = id.clone();
        self.write(id, move |state| {
            state.services.remove(&gone);
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Listed>, BackendError> {
        self.state().lists += 1;
        // What a list tells is true at its beginning, not at its end.
        let (mood, services) = {
            let state = self.state();
            (
                state.mood,
                if state.blind { Vec::new() } else { state.services.values().cloned().collect() },
            )
        };
        tokio::time::sleep(Duration::from_millis(3)).await;
        match mood {
            Mood::Away => Err(BackendError::Unreachable("away".into())),
            Mood::Stuck => std::future::pending().await,
            _ => Ok(services
                .into_iter()
                .map(|s| Listed { id: s.id.clone(), service: Some(s) })
                .collect()),
        }
    }
}
