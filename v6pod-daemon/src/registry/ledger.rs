//! What should be in a registry, what is known to be there, and what to ask of it next.
//!
//! A machine without clock, randomness or I/O: the time comes in, [`Job`]s go out, their results
//! come in. What it guarantees:
//! - Of each service only the latest wish counts, and there is at most one request for it at a time.
//! - There are at most [`WRITES_MAX`] writes at a time and one list, the longest due first.
//! - While the registry cannot be reached there are no writes: lists alone probe for it, with
//!   exponential backoff. The first list that succeeds tells what there is to do, so an outage
//!   costs as many writes as there were changes.
//! - A request whose outcome nobody knows is settled by a list begun later.
//! - Nothing is taken away that was not withdrawn, until [`Ledger::reconcile`] has said who lives.
//! - No service is written in a tight loop: refusals, failures, and services that vanish again and
//!   again are each put off for longer and longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{BackendError, Listed, Service, ServiceId};
use crate::report::chain;

/// How many writes run at a time. One stuck for good costs the others an eighth.
pub(super) const WRITES_MAX: usize = 8;

/// How long after a list the next one is begun while all is well.
pub(super) const LIST_EVERY: Duration = Duration::from_secs(5);

/// The least time between the end of a list and the next.
const LIST_GAP: Duration = Duration::from_millis(100);

/// When the registry is away or not able to answer.
const TRANSIENT: Backoff =
    Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) };

/// When it refuses: what is wrong is wrong until a person does something.
const REFUSED: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// When it takes a service and does not have it a moment later (a token that may not list looks
/// like that), from the second time on.
const VANISHED: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(300) };

/// One request to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    Register(Arc<Service>),
    Deregister(ServiceId),
    List,
}

/// Something that became known of a service that is wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// What.
    pub happened: Happened,
    /// The service.
    pub service: Arc<Service>,
}

/// What became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The registry has it.
    Registered,
    /// The registry had it, and has it no more, or has it otherwise.
    Lost,
    /// The registry has it again.
    Repaired,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    entries: BTreeMap<ServiceId, Entry>,
    /// The entries that are [`Standing::Wrong`] and have no request under way.
    due: BTreeSet<(Instant, ServiceId)>,
    writing: usize,
    list: List,
    outage: Option<Outage>,
    /// Counts what happens: wishes, requests and results. Tells what was first.
    stamp: u64,
    /// When it was said who lives.
    reconciled: Option<u64>,
    /// What nobody has been told yet.
    news: Vec<News>,
}

#[derive(Debug)]
struct List {
    due: Instant,
    /// When the one under way was begun.
    running: Option<u64>,
    /// When the last one that succeeded was begun.
    succeeded: Option<u64>,
    /// When the last one ended, however it ended.
    ended: Option<Instant>,
}

#[derive(Debug)]
struct Outage {
    failures: u32,
    error: String,
}

#[derive(Debug)]
struct Entry {
    wish: Wish,
    standing: Standing,
    /// When the wish was last changed.
    wished: u64,
    /// When the last request for it was begun or ended.
    asked: u64,
    /// When the request under way was begun.
    running: Option<u64>,
    /// Requests that failed since one succeeded.
    failures: u32,
    /// How often it vanished since it was last seen.
    losses: u32,
    /// The last failure, until a request succeeds.
    error: Option<Failure>,
    /// The last thing that was told of it.
    told: Option<Happened>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    Present(Arc<Service>),
    Absent,
}

impl Wish {
    /// Whether who looks for the name finds the same by both.
    fn is_found_as(&self, other: &Self) -> bool {
        let found = |wish: &Self| match wish {
            Self::Present(service) => Some((service.label.clone(), service.address)),
            Self::Absent => None,
        };
        found(self).is_some_and(|this| Some(this) == found(other))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The registry has what is wished, by its own word.
    Right,
    /// It has not, and is to be told at this time.
    Wrong(Instant),
    /// The next list tells.
    Unknown,
}

#[derive(Debug)]
struct Failure {
    text: String,
    refused: bool,
}

/// How a service stands, for those who ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View<'a> {
    Registered,
    Pending(Option<&'a str>),
    Refused(&'a str),
}

impl Ledger {
    /// An empty one. A list is due at once: it shows whether the registry is there.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            writing: 0,
            list: List { due: now, running: None, succeeded: None, ended: None },
            outage: None,
            stamp: 0,
            reconciled: None,
            news: Vec::new(),
        }
    }

    /// This service should be there as it is given.
    pub(super) fn wish(&mut self, now: Instant, service: Service) {
        let id = service.id.clone();
        self.set(now, &id, Wish::Present(Arc::new(service)), Standing::Wrong(now));
    }

    /// This service should not be there. One that nobody wished for is left to the lists.
    pub(super) fn withdraw(&mut self, now: Instant, id: &ServiceId) {
        if self.entries.contains_key(id) {
            self.set(now, id, Wish::Absent, Standing::Wrong(now));
        }
    }

    /// Of all services whose id begins so, these and no others should be there.
    pub(super) fn wish_all(&mut self, now: Instant, stem: &ServiceId, services: Vec<Service>) {
        let wished: BTreeSet<_> = services.iter().map(|service| service.id.clone()).collect();
        let gone: Vec<_> = self.under(stem).map(|(id, _)| id.clone()).collect();
        for id in gone.iter().filter(|id| !wished.contains(id)) {
            self.withdraw(now, id);
        }
        for service in services {
            self.wish(now, service);
        }
    }

    /// These services, and no others under our mark, should be there. The next list tells which of
    /// them are.
    pub(super) fn reconcile(&mut self, now: Instant, living: Vec<Service>) {
        let living: BTreeMap<_, _> = living.into_iter().map(|s| (s.id.clone(), s)).collect();
        let gone: Vec<_> =
            self.entries.keys().filter(|id| !living.contains_key(id)).cloned().collect();
        for id in gone {
            self.set(now, &id, Wish::Absent, Standing::Unknown);
        }
        for (id, service) in living {
            self.set(now, &id, Wish::Present(Arc::new(service)), Standing::Unknown);
        }
        self.reconciled = Some(self.tick());
        self.list_soon(now);
    }

    /// What to do now, if there is anything to do. Each job's end is to be told.
    pub(super) fn next(&mut self, now: Instant) -> Option<Job> {
        if self.list.running.is_none() && self.list.due <= now {
            self.list.running = Some(self.tick());
            return Some(Job::List);
        }
        if self.outage.is_some() || self.writing >= WRITES_MAX {
            return None;
        }
        if self.due.first().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, id) = self.due.pop_first()?;
        let stamp = self.tick();
        let entry = self.entries.get_mut(&id)?;
        entry.running = Some(stamp);
        entry.asked = stamp;
        self.writing += 1;
        Some(match &entry.wish {
            Wish::Present(service) => Job::Register(Arc::clone(service)),
            Wish::Absent => Job::Deregister(id),
        })
    }

    /// When there will be something to do, unless something happens before.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let list = self.list.running.is_none().then_some(self.list.due);
        let writes = self.outage.is_none() && self.writing < WRITES_MAX;
        let write = self.due.first().map(|(due, _)| *due).filter(|_| writes);
        list.into_iter().chain(write).min()
    }

    /// The write for this service has ended. `jitter` is from 0 to 1.
    pub(super) fn written(
        &mut self,
        now: Instant,
        id: &ServiceId,
        result: Result<(), BackendError>,
        jitter: f64,
    ) {
        let stamp = self.tick();
        let Some(entry) = self.entries.get_mut(id) else { return };
        let Some(begun) = entry.running.take() else { return };
        entry.asked = stamp;
        self.writing = self.writing.saturating_sub(1);
        // Another wish came meanwhile: whatever this result is, it is not about that.
        let superseded = entry.wished > begun;
        if superseded {
            entry.standing = Standing::Wrong(now);
        }
        match result {
            Ok(()) if superseded => {}
            Ok(()) if entry.wish == Wish::Absent => {
                self.entries.remove(id);
                return;
            }
            Ok(()) => {
                entry.standing = Standing::Right;
                (entry.failures, entry.error) = (0, None);
                self.news.extend(entry.news());
            }
            Err(error @ (BackendError::Busy { .. } | BackendError::Rejected { .. })) => {
                if !superseded {
                    let due = now + entry.fail(&error, jitter);
                    entry.standing = Standing::Wrong(due);
                }
            }
            Err(error @ BackendError::TimedOut) => {
                if !superseded {
                    entry.fail(&error, jitter);
                    entry.standing = Standing::Unknown;
                }
                self.list_soon(now);
            }
            Err(
                error @ (BackendError::Unreachable(_)
                | BackendError::Garbled(_)
                | BackendError::Elsewhere { .. }
                | BackendError::Token(_)),
            ) => {
                entry.fail(&error, jitter);
                entry.standing = Standing::Unknown;
                if self.outage.is_none() {
                    self.out(now, &error, jitter);
                }
            }
        }
        self.schedule(id);
    }

    /// The list has ended. `jitter` is from 0 to 1.
    pub(super) fn listed(
        &mut self,
        now: Instant,
        result: Result<Vec<Listed>, BackendError>,
        jitter: f64,
    ) {
        let Some(begun) = self.list.running.take() else { return };
        self.list.ended = Some(now);
        let listed = match result {
            Ok(listed) => listed,
            Err(error) => return self.out(now, &error, jitter),
        };
        if self.outage.take().is_some() {
            // A registry that was away may well have forgotten: that is not held against it.
            self.entries.values_mut().for_each(|entry| entry.losses = 0);
        }
        self.list.succeeded = Some(begun);
        self.list.due = now + LIST_EVERY.mul_f64(0.75 + jitter / 4.0);
        let listed: BTreeMap<_, _> = listed.into_iter().map(|l| (l.id, l.service)).collect();
        self.judge(now, begun, &listed, jitter);
        if self.reconciled.is_some_and(|reconciled| reconciled < begun) {
            self.find_stale(now, &listed);
        }
        // The list was begun before they were asked for.
        if self.entries.values().any(|e| e.standing == Standing::Unknown && e.running.is_none()) {
            self.list_soon(now);
        }
    }

    /// How the services stand that are wished for, and whose id begins so.
    pub(super) fn views(&self, stem: &ServiceId) -> impl Iterator<Item = (&Service, View<'_>)> {
        let outage = self.outage();
        self.under(stem).filter_map(move |(_, entry)| {
            let Wish::Present(service) = &entry.wish else { return None };
            let view = match (&entry.standing, &entry.error) {
                (Standing::Right, _) => View::Registered,
                (_, Some(failure)) if failure.refused => View::Refused(&failure.text),
                (_, failure) => View::Pending(failure.as_ref().map(|f| f.text.as_str()).or(outage)),
            };
            Some((service.as_ref(), view))
        })
    }

    /// What became known since this was last asked.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn under(&self, stem: &ServiceId) -> impl Iterator<Item = (&ServiceId, &Entry)> {
        let from = self.entries.range(stem.clone()..);
        from.take_while(|(id, _)| id.as_str().starts_with(stem.as_str()))
    }

    /// The number of services that are not known to be as they should.
    pub(super) fn pending(&self) -> usize {
        self.entries.values().filter(|entry| !entry.is_settled()).count()
    }

    /// What is wrong, if anything is.
    pub(super) fn error(&self) -> Option<&str> {
        self.outage()
            .or_else(|| self.entries.values().find_map(|e| Some(e.error.as_ref()?.text.as_str())))
    }

    /// Why the registry cannot be had, if it cannot.
    pub(super) fn outage(&self) -> Option<&str> {
        self.outage.as_ref().map(|outage| outage.error.as_str())
    }

    /// Whether the registry is known to hold what it should, and nothing else of ours.
    pub(super) fn is_settled(&self) -> bool {
        let stale_known = self
            .reconciled
            .is_none_or(|said| self.list.succeeded.is_some_and(|begun| begun > said));
        stale_known && self.entries.values().all(Entry::is_settled)
    }

    fn tick(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Changes a wish, unless it is what it was.
    fn set(&mut self, now: Instant, id: &ServiceId, wish: Wish, standing: Standing) {
        let stamp = self.tick();
        match self.entries.get_mut(id) {
            Some(entry) if entry.wish == wish => return,
            Some(entry) => {
                if let Standing::Wrong(due) = entry.standing {
                    self.due.remove(&(due, id.clone()));
                }
                // Of the same name at the same address nobody is told twice that it is registered.
                let told = entry.told.filter(|_| wish.is_found_as(&entry.wish));
                let running = entry.running;
                *entry = Entry { running, told, ..Entry::new(wish, standing, stamp) };
            }
            None => {
                self.entries.insert(id.clone(), Entry::new(wish, standing, stamp));
            }
        }
        self.schedule(id);
        if self.outage.is_some() {
            self.list_soon(now);
        }
    }

    /// Puts an entry among the due ones if it belongs there.
    fn schedule(&mut self, id: &ServiceId) {
        if let Some(Entry { standing: Standing::Wrong(due), running: None, .. }) =
            self.entries.get(id)
        {
            self.due.insert((*due, id.clone()));
        }
    }

    fn list_soon(&mut self, now: Instant) {
        let earliest = self.list.ended.map_or(now, |ended| (ended + LIST_GAP).max(now));
        self.list.due = self.list.due.min(earliest);
    }

    /// The registry cannot be had: no writes until a list succeeds.
    fn out(&mut self, now: Instant, error: &BackendError, jitter: f64) {
        let failures = self.outage.as_ref().map_or(0, |outage| outage.failures).saturating_add(1);
        self.outage = Some(Outage { failures, error: chain(error) });
        self.list.due = now + TRANSIENT.delay(failures, jitter);
    }

    /// What the list says of the entries that nothing has happened to since it was begun.
    fn judge(
        &mut self,
        now: Instant,
        begun: u64,
        listed: &BTreeMap<ServiceId, Option<Arc<Service>>>,
        jitter: f64,
    ) {
        let mut gone = Vec::new();
        let mut changed = Vec::new();
        let mut news = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.running.is_some() || entry.wished.max(entry.asked) > begun {
                continue;
            }
            let before = entry.standing;
            let right = match (&entry.wish, listed.get(id)) {
                (Wish::Absent, None) => {
                    gone.push((before, id.clone()));
                    continue;
                }
                (Wish::Absent, Some(_)) => false,
                (Wish::Present(wish), listed) => {
                    listed.and_then(Option::as_ref).is_some_and(|there| there == wish)
                }
            };
            if right {
                (entry.failures, entry.losses, entry.error) = (0, 0, None);
                entry.standing = Standing::Right;
                news.extend(entry.news());
            } else if before == Standing::Right {
                let delay = VANISHED.delay(entry.losses, jitter);
                entry.losses = entry.losses.saturating_add(1);
                entry.standing = Standing::Wrong(now + delay);
                news.extend(entry.news());
            } else if before == Standing::Unknown {
                entry.standing = Standing::Wrong(now + TRANSIENT.delay(entry.failures, jitter));
            }
            if entry.standing != before {
                changed.push((before, id.clone()));
            }
        }
        self.news.append(&mut news);
        for (before, id) in changed.iter().chain(&gone) {
            if let Standing::Wrong(due) = before {
                self.due.remove(&(*due, id.clone()));
            }
        }
        for (_, id) in gone {
            self.entries.remove(&id);
        }
        for (_, id) in changed {
            self.schedule(&id);
        }
    }

    /// What bears our mark and was wished for by nobody is to go.
    fn find_stale(&mut self, now: Instant, listed: &BTreeMap<ServiceId, Option<Arc<Service>>>) {
        let stale: Vec<_> =
            listed.keys().filter(|id| !self.entries.contains_key(id)).cloned().collect();
        for id in stale {
            self.set(now, &id, Wish::Absent, Standing::Wrong(now));
        }
    }
}

impl Entry {
    const fn new(wish: Wish, standing: Standing, stamp: u64) -> Self {
        Self {
            wish,
            standing,
            wished: stamp,
            asked: 0,
            running: None,
            failures: 0,
            losses: 0,
            error: None,
            told: None,
        }
    }

    /// What there is to tell of it, now that its standing has changed.
    fn news(&mut self) -> Option<News> {
        let Wish::Present(service) = &self.wish else { return None };
        let happened = match (self.standing, self.told) {
            (Standing::Right, None) => Happened::Registered,
            (Standing::Right, Some(Happened::Lost)) => Happened::Repaired,
            (Standing::Wrong(_), Some(Happened::Registered | Happened::Repaired)) => Happened::Lost,
            _ => return None,
        };
        self.told = Some(happened);
        Some(News { happened, service: Arc::clone(service) })
    }

    /// Notes a failure; how long to wait after it.
    fn fail(&mut self, error: &BackendError, jitter: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let refused = matches!(error, BackendError::Rejected { .. });
        self.error = Some(Failure { text: chain(error), refused });
        if refused { REFUSED } else { TRANSIENT }.delay(self.failures, jitter)
    }

    fn is_settled(&self) -> bool {
        self.standing == Standing::Right && self.running.is_none()
    }
}

#[derive(Debug, Clone, Copy)]
struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    /// The delay after so many failures in a row: none after none, then twice the one before, each
    /// between half and whole as `jitter` (0 to 1) says, so that many who fail together do not
    /// come back together.
    fn delay(self, failures: u32, jitter: f64) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let whole = self.first.saturating_mul(1 << doublings.min(20)).min(self.max);
        whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}
