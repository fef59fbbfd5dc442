//! The one who sees to it that a registry holds what it should.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::{Notify, broadcast};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use v6pod_proto::{AttachmentId, NameState, RegistryView};

use super::ledger::{Job, Ledger, News, View};
use super::{Backend, BackendError, Listed, Mark, Registration, Service, ServiceId};
use crate::core::Label;
use crate::report::chain;

/// How long a register or deregister call may take. An agent that has lost its servers blocks them
/// for as long as that lasts, but has taken them in by then: a list finds that out.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a list may take: longer, for it can be megabytes.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// How much news may be ahead of who listens to it.
const NEWS: usize = 1024;

/// Numbers from 0 to 1 that spread retries over time.
pub type Jitter = Box<dyn FnMut() -> f64 + Send>;

/// Jitter from the system's generator.
pub fn system_jitter() -> Jitter {
    // Without entropy retries come in step, which is not worth an error.
    Box::new(|| SysRng.try_next_u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX)))
}

/// Takes wishes and sees to them in the background. Clones are the same registrar; when the last
/// one is dropped the background ends, and the registry stays as it is: a container outlives a
/// restart of the daemon, and so does its name.
#[derive(Clone)]
pub struct Registrar(Option<Arc<Desk>>);

/// The part that all clones share.
struct Desk {
    shared: Arc<Shared>,
    mark: Mark,
    kind: &'static str,
    task: JoinHandle<()>,
}

/// The part that the background shares.
struct Shared {
    ledger: Mutex<Ledger>,
    /// Something is to be done.
    wake: Notify,
    /// Something has been done.
    changed: Notify,
    /// What became of what was wished for.
    news: broadcast::Sender<News>,
}

impl Registrar {
    /// A registrar for no registry at all: takes every wish and does nothing.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Starts the background task on the current runtime.
    pub fn start(mark: Mark, backend: impl Backend, jitter: Jitter) -> Self {
        let shared = Arc::new(Shared {
            ledger: Mutex::new(Ledger::new(Instant::now())),
            wake: Notify::new(),
            changed: Notify::new(),
            news: broadcast::Sender::new(NEWS),
        });
        let kind = backend.kind();
        let task = tokio::spawn(run(Arc::new(backend), Arc::clone(&shared), jitter));
        Self(Some(Arc::new(Desk { shared, mark, kind, task })))
    }

    /// This service should be registered so, whatever was wished for it before.
    pub fn wish(&self, registration: &Registration) {
        self.tell(|ledger, mark| ledger.wish(Instant::now(), Service::new(mark, registration)));
    }

    /// Of this attachment these services, and no others, should be registered.
    pub fn wish_all(&self, attachment: &AttachmentId, all: &[Registration]) {
        self.tell(|ledger, mark| {
            let services = all.iter().map(|r| Service::new(mark, r)).collect();
            ledger.wish_all(Instant::now(), &mark.service_id(attachment), services);
        });
    }

    /// This attachment should not be registered any more.
    pub fn withdraw(&self, attachment: &AttachmentId) {
        self.wish_all(attachment, &[]);
    }

    /// These services, and no others of this daemon, should be registered: said once at start,
    /// when the records have been read. Until then nothing that a former daemon left is taken away.
    pub fn reconcile(&self, living: &[Registration]) {
        self.tell(|ledger, mark| {
            let services = living.iter().map(|r| Service::new(mark, r)).collect();
            ledger.reconcile(Instant::now(), services);
        });
    }

    /// What became of the attachment's services, the worst of them; `None` if nobody wishes any to be
    /// registered.
    pub fn state(&self, attachment: &AttachmentId) -> Option<NameState> {
        self.worst(attachment, |_| true)
    }

    /// The same of those of this name.
    pub fn state_as(&self, attachment: &AttachmentId, label: &Label) -> Option<NameState> {
        self.worst(attachment, |service| service.label == *label)
    }

    fn worst(
        &self,
        attachment: &AttachmentId,
        counts: impl Fn(&Service) -> bool,
    ) -> Option<NameState> {
        let desk = self.0.as_ref()?;
        let ledger = desk.shared.ledger();
        let stem = desk.mark.service_id(attachment);
        let views =
            ledger.views(&stem).filter(|(service, _)| counts(service)).map(|(_, view)| view);
        let badness = |state: &NameState| match state {
            NameState::Registered => 0,
            NameState::Pending => 1,
            NameState::Refused => 2,
        };
        let states = views.map(|view| match view {
            View::Registered => NameState::Registered,
            View::Pending(_) => NameState::Pending,
            View::Refused(_) => NameState::Refused,
        });
        states.max_by_key(badness)
    }

    /// Why something of the attachment is not registered, if it should be and something went wrong.
    pub fn error(&self, attachment: &AttachmentId) -> Option<String> {
        let desk = self.0.as_ref()?;
        let ledger = desk.shared.ledger();
        let stem = desk.mark.service_id(attachment);
        let mut errors = ledger.views(&stem).filter_map(|(_, view)| match view {
            View::Registered => None,
            View::Pending(error) => error.map(str::to_owned),
            View::Refused(error) => Some(error.to_owned()),
        });
        errors.next()
    }

    /// What becomes of services from now on; none of a registrar for no registry.
    pub fn news(&self) -> Option<broadcast::Receiver<News>> {
        self.0.as_ref().map(|desk| desk.shared.news.subscribe())
    }

    /// How the registry does.
    pub fn health(&self) -> RegistryView {
        let Some(desk) = &self.0 else {
            return RegistryView {
                kind: "none".to_owned(),
                healthy: true,
                pending: 0,
                error: None,
            };
        };
        let ledger = desk.shared.ledger();
        let error = ledger.error().map(str::to_owned);
        let pending = u64::try_from(ledger.pending()).unwrap_or(u64::MAX);
        RegistryView { kind: desk.kind.to_owned(), healthy: error.is_none(), pending, error }
    }

    /// Waits until the registry is known to hold what it should: for ever, if it never answers or
    /// refuses a name. For a shutdown and for tests, with a time-out around it.
    pub async fn settled(&self) {
        let Some(desk) = &self.0 else { return };
        loop {
            let changed = desk.shared.changed.notified();
            tokio::pin!(changed);
            // Before the look, so that no change falls between the look and the wait.
            changed.as_mut().enable();
            if desk.shared.ledger().is_settled() {
                return;
            }
            changed.await;
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Ledger, &Mark)) {
        if let Some(desk) = &self.0 {
            change(&mut desk.shared.ledger(), &desk.mark);
            desk.shared.wake.notify_one();
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // The lock is held for nothing that can panic half-way through a change.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request was about.
enum Subject {
    Write(ServiceId),
    List,
}

/// How a request ended.
enum Outcome {
    Written(Result<(), BackendError>),
    Listed(Result<Vec<Listed>, BackendError>),
}

/// Does what the ledger says, for ever.
async fn run<B: Backend>(backend: Arc<B>, shared: Arc<Shared>, mut jitter: Jitter) {
    let mut requests = JoinSet::new();
    let mut subjects = HashMap::new();
    loop {
        let wake_at = loop {
            let mut ledger = shared.ledger();
            let Some(job) = ledger.next(Instant::now()) else { break ledger.wake_at() };
            drop(ledger);
            let subject = match &job {
                Job::Register(service) => Subject::Write(service.id.clone()),
                Job::Deregister(id) => Subject::Write(id.clone()),
                Job::List => Subject::List,
            };
            let id = requests.spawn(perform(Arc::clone(&backend), job)).id();
            subjects.insert(id, subject);
        };
        tokio::select! {
            () = shared.wake.notified() => {}
            () = sleep_to(wake_at) => {}
            Some(ended) = requests.join_next_with_id() => {
                let news = {
                    let mut ledger = shared.ledger();
                    conclude(&mut ledger, &mut subjects, ended, &mut jitter);
                    ledger.take_news()
                };
                for news in news {
                    // Nobody may be listening.
                    let _ = shared.news.send(news);
                }
                shared.changed.notify_waiters();
            }
        }
    }
}

async fn sleep_to(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Makes one request, within its time.
async fn perform<B: Backend>(backend: Arc<B>, job: Job) -> Outcome {
    match job {
        Job::Register(service) => {
            let write = timeout(WRITE_TIMEOUT, backend.register(&service)).await;
            Outcome::Written(write.unwrap_or(Err(BackendError::TimedOut)))
        }
        Job::Deregister(id) => {
            let write = timeout(WRITE_TIMEOUT, backend.deregister(&id)).await;
            Outcome::Written(write.unwrap_or(Err(BackendError::TimedOut)))
        }
        Job::List => {
            let list = timeout(LIST_TIMEOUT, backend.list()).await;
            Outcome::Listed(list.unwrap_or(Err(BackendError::TimedOut)))
        }
    }
}

/// Tells the ledger how a request ended. One that panicked ended too, as if it had broken off.
fn conclude(
    ledger: &mut Ledger,
    subjects: &mut HashMap<Id, Subject>,
    ended: Result<(Id, Outcome), JoinError>,
    jitter: &mut Jitter,
) {
    let now = Instant::now();
    let (id, outcome) = match ended {
        Ok((id, outcome)) => (id, Ok(outcome)),
        Err(panic) => (panic.id(), Err(BackendError::Unreachable(Box::new(panic)))),
    };
    let was_out = ledger.outage().is_some();
    match (subjects.remove(&id), outcome) {
        (Some(Subject::Write(id)), Ok(Outcome::Written(result))) => {
            report(&id, &result);
            ledger.written(now, &id, result, jitter());
        }
        (Some(Subject::List), Ok(Outcome::Listed(result))) => {
            ledger.listed(now, result, jitter());
        }
        (Some(Subject::Write(id)), Err(error)) => ledger.written(now, &id, Err(error), jitter()),
        (Some(Subject::List), Err(error)) => ledger.listed(now, Err(error), jitter()),
        // Each kind of request has its kind of outcome.
        (Some(_), Ok(_)) | (None, _) => {}
    }
    match ledger.outage() {
        Some(error) if !was_out => tracing::warn!(error, "the registry is away; names wait"),
        None if was_out => tracing::info!("the registry is back"),
        Some(_) | None => {}
    }
}

fn report(id: &ServiceId, result: &Result<(), BackendError>) {
    match result {
        Ok(()) => tracing::debug!(service = %id, "told the registry"),
        Err(error @ BackendError::Rejected { .. }) => {
            tracing::warn!(service = %id, error = chain(error), "the registry refuses a name");
        }
        Err(error) => {
            tracing::debug!(service = %id, error = chain(error), "the registry was not told");
        }
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
