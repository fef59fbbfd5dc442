//! How many connections one caller has open.
//!
//! Guarantee: never more than [`EACH`], so that nobody can take all that there are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use v6pod_proto::Uid;

/// How many connections, leases aside, one caller may have. A request takes a millisecond.
pub(crate) const EACH: usize = 128;

/// All shares.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shares(Arc<Mutex<HashMap<Uid, usize>>>);

/// One connection's place in its caller's share, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    caller: Uid,
    shares: Shares,
}

impl Shares {
    /// A place for one more connection of this caller, if his share has one.
    pub(crate) fn enter(&self, caller: Uid) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(caller).or_default();
        if *count >= EACH {
            return None;
        }
        *count += 1;
        Some(Place { caller, shares: self.clone() })
    }
}

impl Shares {
    /// Whether this caller has all that he may have.
    pub(crate) fn is_full(&self, caller: Uid) -> bool {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&caller).is_some_and(|count| *count >= EACH)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(shares.0.lock().unwrap().is_empty(), "nobody is remembered");
    }
}
