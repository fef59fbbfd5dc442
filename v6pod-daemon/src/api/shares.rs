//! How many connections one caller has open.
//!
//! Guarantee: never more than [`EACH`], so that nobody can take all that there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use v6pod_proto::Uid;

/// How many connections, leases aside, one caller may have. A request takes a millisecond.
pub(crate) const EACH: usize = 128;

/// All shares.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shares(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: Mutex<HashMap<Uid, usize>>,
    /// Somebody has left.
    left: Notify,
}

/// One connection's place in its caller's share, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    caller: Uid,
    shares: Shares,
}

impl Shares {
    /// A place for one more connection of this caller, if his share has one.
    pub(crate) fn enter(&self, caller: Uid) -> Option<Place> {
        let mut open = self.open();
        let count = open.entry(caller).or_default();
        if *count >= EACH {
            return None;
        }
        *count += 1;
        Some(Place { caller, shares: self.clone() })
    }

    /// Whether this caller has all that he may have.
    pub(crate) fn is_full(&self, caller: Uid) -> bool {
        self.open().get(&caller).is_some_and(|count| *count >= EACH)
    }

    /// A place for one more connection of this caller, once his share has one.
    pub(crate) async fn place(&self, caller: Uid) -> Place {
        loop {
            // Before the look: who leaves from here on is heard of.
            let left = self.0.left.notified();
            if let Some(place) = self.enter(caller) {
                return place;
            }
            left.await;
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Uid, usize>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shares.open();
        if let Some(count) = open.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.caller);
            }
        }
        drop(open);
        self.shares.0.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_room_is_woken_by_whoever_leaves() {
        let (one, shares) = (Uid::new(1).unwrap(), Shares::default());
        let mut places = vec![shares.place(one).await];
        places.extend((1..EACH).map(|_| shares.enter(one).unwrap()));
        let waiting = tokio::spawn({
            let shares = shares.clone();
            async move { shares.place(one).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        places.pop();
        places.push(waiting.await.unwrap());
        assert!(shares.enter(one).is_none(), "what he waited for is his");
    }

    #[test]
    fn attack_26_a_full_share_is_nobody_elses_and_frees_itself() {
        let (one, two) = (Uid::new(1).unwrap(), Uid::new(2).unwrap());
        let shares = Shares::default();
        let mut places: Vec<_> = (0..EACH).map(|_| shares.enter(one).unwrap()).collect();
        assert!(shares.enter(one).is_none());
        assert!(shares.enter(two).is_some());
        places.pop();
        assert!(shares.enter(one).is_some());
        drop(places);
        assert!(shares.open().is_empty(), "nobody is remembered");
    }
}
