//! A queue before few threads in which nobody stands behind another's crowd.
//!
//! Guarantees: the owners of waiting jobs take turns, one job each, so who brings one job waits for
//! at most one of everybody else's; of one owner no more jobs are at work at once than the queue
//! was opened with. An owner's own jobs keep their order.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The queue. Threads share it and take from it what is due next.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    state: Mutex<State<K, T>>,
    news: Condvar,
    at_once: usize,
}

#[derive(Debug)]
struct State<K, T> {
    owners: HashMap<K, Owner<T>>,
    /// Owners with a job that waits and room for it at work, in the order of their turns.
    turns: VecDeque<K>,
    open: bool,
}

#[derive(Debug)]
struct Owner<T> {
    waiting: VecDeque<T>,
    at_work: usize,
    in_turns: bool,
}

/// A job whose turn has come. Its owner counts as at work until this is dropped.
#[derive(Debug)]
pub struct Turn<'a, K: Eq + Hash + Copy, T> {
    queue: &'a FairQueue<K, T>,
    owner: K,
    job: Option<T>,
}

impl<K: Eq + Hash + Copy, T> FairQueue<K, T> {
    /// An empty queue of which one owner has at most `at_once` jobs at work.
    pub fn new(at_once: usize) -> Self {
        let state = State { owners: HashMap::new(), turns: VecDeque::new(), open: true };
        Self { state: Mutex::new(state), news: Condvar::new(), at_once: at_once.max(1) }
    }

    /// Puts a job behind its owner's others.
    pub fn push(&self, owner: K, job: T) {
        let mut state = self.lock();
        state.owners.entry(owner).or_default().waiting.push_back(job);
        state.enlist(owner, self.at_once);
        drop(state);
        self.news.notify_one();
    }

    /// How many jobs of this owner wait or are at work.
    pub fn of(&self, owner: K) -> usize {
        self.lock().owners.get(&owner).map_or(0, |owner| owner.waiting.len() + owner.at_work)
    }

    /// How many owners have a job whose turn could come now: as many threads could be busy.
    pub fn due(&self) -> usize {
        self.lock().turns.len()
    }

    /// Waits for the next job; none once the queue is closed and empty.
    pub fn next(&self) -> Option<Turn<'_, K, T>> {
        let mut state = self.lock();
        loop {
            if let Some((owner, job)) = state.take(self.at_once) {
                return Some(Turn { queue: self, owner, job: Some(job) });
            }
            if !state.open && state.owners.values().all(|owner| owner.waiting.is_empty()) {
                return None;
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the threads go once all that waits is done.
    pub fn close(&self) {
        self.lock().open = false;
        self.news.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        // No job runs while the lock is held: what it guards is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Copy, T> State<K, T> {
    /// Gives the owner a place in the order of turns, if he is due one and has none.
    fn enlist(&mut self, key: K, at_once: usize) {
        let Some(owner) = self.owners.get_mut(&key) else { return };
        if !owner.in_turns && !owner.waiting.is_empty() && owner.at_work < at_once {
            owner.in_turns = true;
            self.turns.push_back(key);
        }
    }

    fn take(&mut self, at_once: usize) -> Option<(K, T)> {
        let key = self.turns.pop_front()?;
        let owner = self.owners.get_mut(&key)?;
        owner.in_turns = false;
        let job = owner.waiting.pop_front()?;
        owner.at_work += 1;
        self.enlist(key, at_once);
        Some((key, job))
    }

    fn done(&mut self, key: K, at_once: usize) {
        let Some(owner) = self.owners.get_mut(&key) else { return };
        owner.at_work = owner.at_work.saturating_sub(1);
        if owner.at_work == 0 && owner.waiting.is_empty() {
            self.owners.remove(&key);
        } else {
            self.enlist(key, at_once);
        }
    }
}

impl<T> Default for Owner<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), at_work: 0, in_turns: false }
    }
}

impl<K: Eq + Hash + Copy, T> Turn<'_, K, T> {
    /// Whose job it is.
    pub fn owner(&self) -> K {
        self.owner
    }

    /// The job itself, at the first call.
    pub fn take(&mut self) -> Option<T> {
        self.job.take()
    }
}

impl<K: Eq + Hash + Copy, T> Drop for Turn<'_, K, T> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.done(self.owner, self.queue.at_once);
        let (due, over) = (!state.turns.is_empty(), !state.open);
        drop(state);
        if over {
            // It may be empty for good, which is for all threads to hear.
            self.queue.news.notify_all();
        } else if due {
            // Another job of the same owner, for one thread of those that wait.
            self.queue.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(queue: &FairQueue<u8, u8>, count: usize) -> Vec<u8> {
        (0..count).map(|_| queue.next().unwrap().take().unwrap()).collect()
    }

    #[test]
    fn attack_26_one_owners_crowd_is_overtaken_by_anothers_single_job() {
        let queue = FairQueue::new(1);
        (0..100).for_each(|job| queue.push(1, job));
        queue.push(2, 200);
        queue.push(3, 201);
        assert_eq!(order(&queue, 5), [0, 200, 201, 1, 2]);
        assert_eq!((queue.of(1), queue.of(2)), (97, 0));
    }

    #[test]
    fn an_owner_at_his_limit_waits_and_others_go_on() {
        let queue = FairQueue::new(2);
        (0..4).for_each(|job| queue.push(1, job));
        let (first, second) = (queue.next().unwrap(), queue.next().unwrap());
        assert_eq!((queue.due(), queue.of(1)), (0, 4));
        queue.push(2, 9);
        assert_eq!(queue.next().unwrap().take(), Some(9));
        drop(first);
        assert_eq!(queue.next().unwrap().take(), Some(2));
        drop(second);
        assert_eq!(queue.next().unwrap().take(), Some(3));
        assert_eq!(queue.of(1), 0);
        assert!(queue.lock().owners.is_empty(), "nobody is remembered");
    }

    #[test]
    fn a_closed_queue_is_emptied_and_then_ends() {
        let queue = FairQueue::new(1);
        queue.push(1, 1);
        queue.push(1, 2);
        queue.close();
        assert_eq!(order(&queue, 2), [1, 2]);
        assert!(queue.next().is_none());
    }
}
