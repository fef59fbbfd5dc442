//! What happens, told to whoever watches.
//!
//! Guarantees: telling waits for nobody. Who is too slow misses events, and is told how many. A watcher is told
//! of what is his own, or of everything if he may see that. There are at most [`ALL`] watchers, and of one
//! caller at most [`EACH`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{broadcast, watch};
use v6pod_proto::{Event, Happening, Uid};

use super::{Attachments, Refused, Shared, Viewer};
use crate::core::Prefix;
use crate::core::attachment::Attachment;
use crate::registry::{Happened, News};

/// How many events a watcher can be behind.
const BEHIND: usize = 1024;

/// How many watchers there are at most.
const ALL: usize = 256;

/// How many one caller may have.
const EACH: usize = 8;

/// Where events come from.
#[derive(Debug)]
pub(super) struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    watchers: Arc<Mutex<HashMap<Uid, usize>>>,
    closed: watch::Sender<bool>,
}

/// One watcher's sight of events.
#[derive(Debug)]
pub struct Watching {
    receiver: broadcast::Receiver<Arc<Event>>,
    closed: watch::Receiver<bool>,
    viewer: Viewer,
    _place: Place,
}

/// What a watcher sees next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Something happened.
    Event(Arc<Event>),
    /// So many events, of whomever, were missed.
    Missed(u64),
}

/// A watcher's place among the caller's, until it is dropped.
#[derive(Debug)]
struct Place {
    caller: Uid,
    watchers: Arc<Mutex<HashMap<Uid, usize>>>,
}

impl Default for Events {
    fn default() -> Self {
        let (sender, closed) = (broadcast::Sender::new(BEHIND), watch::Sender::new(false));
        Self { sender, watchers: Arc::default(), closed }
    }
}

impl Events {
    /// Tells of something.
    fn tell(&self, event: Event) {
        // Nobody may be watching.
        let _ = self.sender.send(Arc::new(event));
    }

    fn watch(&self, viewer: Viewer, caller: Uid) -> Option<Watching> {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = watchers.values().sum();
        let his = watchers.entry(caller).or_default();
        if *his >= EACH || all >= ALL {
            if *his == 0 {
                watchers.remove(&caller);
            }
            return None;
        }
        *his += 1;
        drop(watchers);
        Some(Watching {
            receiver: self.sender.subscribe(),
            closed: self.closed.subscribe(),
            viewer,
            _place: Place { caller, watchers: Arc::clone(&self.watchers) },
        })
    }
}

impl Watching {
    /// Waits for the next thing that the watcher may see; `None` when the daemon stops.
    pub async fn next(&mut self) -> Option<Seen> {
        loop {
            let received = tokio::select! {
                received = self.receiver.recv() => received,
                _ = self.closed.wait_for(|closed| *closed) => return None,
            };
            match received {
                Ok(event) if self.viewer.sees_of(event.owner) => return Some(Seen::Event(event)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    return Some(Seen::Missed(missed));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(his) = watchers.get_mut(&self.caller) {
            *his -= 1;
            if *his == 0 {
                watchers.remove(&self.caller);
            }
        }
    }
}

impl Viewer {
    /// Whether he is told of what is this owner's, or, without one, the host's.
    fn sees_of(self, owner: Option<Uid>) -> bool {
        match self {
            Self::All => true,
            Self::Owner(uid) => owner == Some(uid),
        }
    }
}

impl Attachments {
    /// Watches what happens from now on.
    ///
    /// # Errors
    /// [`Refused::Quota`]: the caller watches often enough, or too many do.
    pub fn watch(&self, viewer: Viewer, caller: Uid) -> Result<Watching, Refused> {
        let watching = self.0.events.watch(viewer, caller);
        watching.ok_or_else(|| {
            Refused::Quota(format!("you watch {EACH} times already, or too many do"))
        })
    }

    /// Ends all watching: the daemon is to stop.
    pub fn end_watching(&self) {
        self.0.events.closed.send_replace(true);
    }
}

impl Shared {
    /// Tells that something happened to an attachment.
    pub(super) fn tell(
        &self,
        happening: Happening,
        a: &Attachment,
        name: Option<String>,
        note: Option<String>,
    ) {
        self.events.tell(Event {
            event: happening,
            at: now(),
            owner: Some(a.owner),
            attachment: Some(a.id.clone()),
            container: Some(a.container.clone()),
            name: name.or_else(|| a.name.clone()),
            address: Some(a.port.address),
            note,
        });
    }

    /// Tells that another prefix is in force.
    pub(super) fn tell_prefix(&self, prefix: Prefix) {
        let note = format!("the prefix is {prefix} from now on");
        self.tell_of_host(Happening::Renumbered, note);
    }

    /// Tells that something of the host's own was put back.
    pub(super) fn tell_repair(&self, note: &str) {
        self.tell_of_host(Happening::Repaired, note.to_owned());
    }

    fn tell_of_host(&self, event: Happening, note: String) {
        self.events.tell(Event {
            event,
            at: now(),
            owner: None,
            attachment: None,
            container: None,
            name: None,
            address: None,
            note: Some(note),
        });
    }
}

/// Passes on what becomes of names, for as long as the daemon runs.
pub(super) async fn pass_on(shared: Arc<Shared>, mut news: broadcast::Receiver<News>) {
    loop {
        let News { happened, service } = match news.recv().await {
            Ok(news) => news,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let happening = match happened {
            Happened::Registered => Happening::Registered,
            Happened::Lost => Happening::Lost,
            Happened::Repaired => Happening::Repaired,
        };
        if happened == Happened::Repaired {
            shared.metrics.reregistered();
        }
        let id = service.attachment();
        let a = id.and_then(|id| shared.ledger().book.find(&id).cloned());
        if let Some(a) = a {
            shared.tell(happening, &a, Some(service.label.to_string()), None);
        }
    }
}

/// Milliseconds since the epoch.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Uid = Uid::new(1000).unwrap();
    const BOB: Uid = Uid::new(1001).unwrap();

    fn of(owner: Option<Uid>) -> Event {
        Event {
            event: Happening::Attached,
            at: 0,
            owner,
            attachment: None,
            container: None,
            name: None,
            address: None,
            note: None,
        }
    }

    #[tokio::test]
    async fn who_watches_sees_his_own_and_an_operator_all() {
        let events = Events::default();
        let mut alice = events.watch(Viewer::Owner(ALICE), ALICE).unwrap();
        let mut root = events.watch(Viewer::All, Uid::ROOT).unwrap();
        for owner in [Some(BOB), None, Some(ALICE)] {
            events.tell(of(owner));
        }
        assert_eq!(alice.next().await, Some(Seen::Event(Arc::new(of(Some(ALICE))))));
        for owner in [Some(BOB), None, Some(ALICE)] {
            assert_eq!(root.next().await, Some(Seen::Event(Arc::new(of(owner)))));
        }
        events.closed.send_replace(true);
        assert_eq!(alice.next().await, None);
    }

    #[tokio::test]
    async fn attack_26_who_does_not_read_misses_and_keeps_nobody() {
        let events = Events::default();
        let mut slow = events.watch(Viewer::Owner(ALICE), ALICE).unwrap();
        for _ in 0..BEHIND + 5 {
            events.tell(of(Some(ALICE)));
        }
        assert_eq!(slow.next().await, Some(Seen::Missed(5)));
        assert!(matches!(slow.next().await, Some(Seen::Event(_))));
    }

    #[test]
    fn attack_26_one_caller_watches_a_few_times_and_all_together_not_without_end() {
        let events = Events::default();
        let mut his: Vec<_> =
            (0..EACH).map(|_| events.watch(Viewer::All, ALICE).unwrap()).collect();
        assert!(events.watch(Viewer::All, ALICE).is_none());
        his.pop();
        assert!(events.watch(Viewer::All, ALICE).is_some());
        drop(his);
        let mut all = Vec::new();
        for uid in 2000.. {
            let Some(watching) = events.watch(Viewer::All, Uid::new(uid).unwrap()) else { break };
            all.push(watching);
        }
        assert_eq!(all.len(), ALL);
        drop(all);
        assert!(events.watchers.lock().unwrap().is_empty(), "nobody is remembered");
    }
}
