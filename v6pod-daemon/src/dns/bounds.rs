//! How much of one kind there may be at once, for each asker and for all.
//!
//! Guarantee: never more than these, so that no owner can take all that there is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use v6pod_proto::Uid;

/// Places of one kind. Clones are the same places.
#[derive(Debug, Clone)]
pub(super) struct Places {
    each: usize,
    all: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By owner; this host's own are nobody's.
    each: HashMap<Option<Uid>, usize>,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    owner: Option<Uid>,
    places: Places,
}

impl Places {
    /// So many for each owner, and so many for all of them.
    pub(super) fn new(each: usize, all: usize) -> Self {
        Self { each, all, taken: Arc::default() }
    }

    /// A place, if there is one left for this owner.
    pub(super) fn enter(&self, owner: Option<Uid>) -> Option<Place> {
        let mut taken = self.taken();
        let has = taken.each.get(&owner).copied().unwrap_or_default();
        if taken.all >= self.all || has >= self.each {
            return None;
        }
        taken.all += 1;
        taken.each.insert(owner, has + 1);
        Some(Place { owner, places: self.clone() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        match taken.each.get_mut(&self.owner) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.each.remove(&self.owner)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_18_who_has_all_his_places_takes_nobody_elses() {
        let (one, two) = (Uid::new(1), Uid::new(2));
        let places = Places::new(2, 3);
        let held = [places.enter(one).unwrap(), places.enter(one).unwrap()];
        assert!(places.enter(one).is_none());
        let last = places.enter(two).unwrap();
        assert!(places.enter(two).is_none() && places.enter(None).is_none(), "all are taken");
        drop(last);
        assert!(places.enter(None).is_some());
        drop(held);
        assert!(places.taken().each.is_empty() && places.taken().all == 0, "nobody is remembered");
    }
}
