//! Where a read may hang without harm.
//!
//! Guarantees: at most [`Limits::in_all`] reads are at work, and at most [`Limits::per_owner`] for
//! one user's files; nobody waits longer than [`Limits::deadline`]. Each read has a thread of its
//! own and keeps its slot until it ends, however long that takes. The threads are not the async
//! runtime's, whose shutdown would wait for them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use v6pod_proto::Uid;

/// How much may be read at once, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Reads at work.
    pub in_all: usize,
    /// Reads at work among the files of one user.
    pub per_owner: usize,
    /// How long one read may take, waiting for its slot included.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_all: 32, per_owner: 4, deadline: Duration::from_secs(1) }
    }
}

/// Why a read has no result.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// No slot came free in time.
    #[error("too many reads of this user's files, or of everybody's, are under way")]
    Busy,
    /// The read did not end in time. It goes on, and keeps its slot.
    #[error("the read did not end in time")]
    TimedOut,
    /// There is no thread for it, or the thread died.
    #[error("no thread for a read")]
    Thread(#[source] io::Error),
}

/// Runs reads.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    all: Arc<Semaphore>,
    /// Kept alive by the permits that are out.
    owners: Mutex<HashMap<Uid, Weak<Semaphore>>>,
}

impl Reader {
    /// A reader with nothing at work.
    pub fn new(limits: Limits) -> Self {
        let all = Arc::new(Semaphore::new(limits.in_all));
        Self { limits, all, owners: Mutex::default() }
    }

    /// Runs a read among the files of `owner` and waits for its result.
    pub async fn run<T: Send + 'static>(
        &self,
        owner: Uid,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unread> {
        let end = Instant::now() + self.limits.deadline;
        // The owner's slot first: who waits for his own must not hold one of everybody's.
        let slots = async {
            let own = self.owner(owner).acquire_owned().await;
            let all = Arc::clone(&self.all).acquire_owned().await;
            own.and_then(|own| Ok((own, all?)))
        };
        let slots = timeout_at(end, slots).await.map_err(|_| Unread::Busy)?;
        let slots = slots.map_err(|_| Unread::Busy)?;
        let (done, result) = oneshot::channel();
        let work = move || {
            let result = read();
            // Whoever has the answer finds the slot free.
            drop(slots);
            // An answer that nobody waits for any more is dropped here.
            let _ = done.send(result);
        };
        thread::Builder::new().name("read".into()).spawn(work).map_err(Unread::Thread)?;
        match timeout_at(end, result).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Unread::Thread(io::Error::other("the thread panicked"))),
            Err(_) => Err(Unread::TimedOut),
        }
    }

    fn owner(&self, owner: Uid) -> Arc<Semaphore> {
        // A map of weak references is right whatever happened to whoever held the lock.
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = owners.get(&owner).and_then(Weak::upgrade) {
            return slots;
        }
        owners.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(self.limits.per_owner));
        owners.insert(owner, Arc::downgrade(&slots));
        slots
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const ONE: Uid = Uid::new(1).unwrap();
    const TWO: Uid = Uid::new(2).unwrap();

    fn reader(deadline: Duration) -> Reader {
        Reader::new(Limits { in_all: 2, per_owner: 1, deadline })
    }

    #[tokio::test]
    async fn attack_33_a_read_that_hangs_costs_its_slot_and_nobody_elses() {
        let reader = reader(Duration::from_millis(200));
        let (release, hang) = mpsc::channel::<()>();
        let stuck = reader.run(ONE, move || hang.recv()).await;
        assert!(matches!(stuck, Err(Unread::TimedOut)), "{stuck:?}");
        assert!(matches!(reader.run(ONE, || 1).await, Err(Unread::Busy)));
        assert_eq!(reader.run(TWO, || 2).await.unwrap(), 2);
        drop(release);
        // The slot comes back when the read ends, whenever the scheduler lets it.
        for _ in 0..100 {
            if matches!(reader.run(ONE, || 3).await, Ok(3)) {
                return;
            }
        }
        panic!("the slot never came back");
    }

    #[test]
    fn attack_33_a_read_that_hangs_does_not_hold_up_the_runtimes_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (_release, hang) = mpsc::channel::<()>();
        let reader = reader(Duration::from_millis(50));
        let stuck = runtime.block_on(reader.run(ONE, move || hang.recv()));
        assert!(matches!(stuck, Err(Unread::TimedOut)));
        // Would never return if the thread were the runtime's: `_release` lives longer.
        drop(runtime);
    }

    #[tokio::test]
    async fn many_reads_of_one_user_wait_for_each_other() {
        let reader = Arc::new(reader(Duration::from_secs(60)));
        let reads: Vec<_> = (0..64)
            .map(|n| {
                let reader = Arc::clone(&reader);
                tokio::spawn(async move { reader.run(ONE, move || n).await })
            })
            .collect();
        for (n, read) in reads.into_iter().enumerate() {
            assert_eq!(read.await.unwrap().unwrap(), n);
        }
        assert_eq!(reader.all.available_permits(), 2);
    }

    #[tokio::test]
    async fn users_that_read_nothing_take_no_memory() {
        let reader = reader(Duration::from_secs(60));
        for raw in 0..50 {
            reader.run(Uid::new(raw).unwrap(), || ()).await.unwrap();
        }
        assert!(reader.owners.lock().unwrap().len() <= 3);
    }

    #[tokio::test]
    async fn a_read_that_panics_gives_its_slot_back() {
        let reader = reader(Duration::from_secs(60));
        let died = reader.run(ONE, || panic!("on purpose")).await;
        assert!(matches!(died, Err::<(), _>(Unread::Thread(_))));
        assert_eq!(reader.run(ONE, || 1).await.unwrap(), 1);
    }
}
