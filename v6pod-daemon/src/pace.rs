//! How fast the daemon works for one caller, and how fast it refuses.
//!
//! Guarantees: over time, what the daemon does for one caller is at most a [`SHARE`]th of one
//! processor's time. Less than a [`BURST`] of it is done at once. Who has had more waits until time has
//! made up for it, and nobody else does. Root is not held up. All that is refused on one listener takes
//! together no more than a [`REFUSING`]th of one.
//!
//! Without this a tenant in a loop has the daemon take as much of the machine as the daemon can use,
//! and has it in the daemon's name: whatever limits the tenant's own processes have is no limit to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use v6pod_proto::Uid;

/// Which part of one processor's time is one caller's.
const SHARE: u32 = 10;

/// Which part of one processor's time goes into refusing. Between two evils: what it takes slows others'
/// programs, and the less it is, the longer others stand behind a crowd that waits in connect(2).
const REFUSING: u32 = 4;

/// How much of it he may have at once: to make and end some 60 attachments, at the 3.8 ms that each
/// took under a flood of 113 a second.
const BURST: Duration = Duration::from_millis(250);

/// How much refusing is done at once. Whoever stands behind those who are refused waits for as long as it
/// takes to make up for this.
const REFUSED_AT_ONCE: Duration = Duration::from_micros(500);

/// With how many callers those who owe nothing any more are forgotten.
const MANY: usize = 256;

/// When a part of one processor, from now on, will have made up for all that was taken of it.
#[derive(Debug, Clone, Copy)]
struct Pace(Instant);

impl Pace {
    fn charge(&mut self, time: Duration, share: u32, now: Instant) {
        self.0 = self.0.max(now) + time * share;
    }

    /// How long until all is made up for.
    fn owed(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }
}

/// What every caller has had. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Paces(Arc<Mutex<HashMap<Uid, Pace>>>);

impl Paces {
    /// This much of a processor's time has gone into this caller's work.
    pub fn charge(&self, caller: Uid, time: Duration, now: Instant) {
        if caller == Uid::ROOT {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MANY {
            all.retain(|_, pace| !pace.owed(now).is_zero());
        }
        all.entry(caller).or_insert(Pace(now)).charge(time, SHARE, now);
    }

    /// How long this caller has to wait before anything more is done for him.
    pub fn wait(&self, caller: Uid, now: Instant) -> Option<Duration> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = all.get(&caller)?.owed(now);
        owed.checked_sub(BURST * SHARE).filter(|wait| !wait.is_zero())
    }
}

/// What refusing has taken on one listener. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<Option<Pace>>>);

impl Refusals {
    /// This much of a processor's time has gone into refusing.
    pub fn charge(&self, time: Duration, now: Instant) {
        let mut pace = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pace.get_or_insert(Pace(now)).charge(time, REFUSING, now);
    }

    /// How long to rest before anything more is accepted, if it was enough for a rest.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        let owed = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.owed(now);
        Some(owed).filter(|owed| *owed >= REFUSED_AT_ONCE * REFUSING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Uid = Uid::new(1).unwrap();
    const TWO: Uid = Uid::new(2).unwrap();

    #[test]
    fn attack_26_over_time_nobody_has_more_than_his_share() {
        let (paces, began) = (Paces::default(), Instant::now());
        let (work, mut now, mut had) = (Duration::from_millis(2), began, Duration::ZERO);
        for _ in 0..10_000 {
            now += paces.wait(ONE, now).unwrap_or_default();
            paces.charge(ONE, work, now);
            had += work;
        }
        let share = (now - began) / SHARE;
        assert!(had <= BURST + share + work, "{had:?} in {:?}", now - began);
        assert!(had >= share, "he has what is his: {had:?}");
        assert_eq!(paces.wait(TWO, now), None);
    }

    #[test]
    fn a_burst_is_done_at_once_and_forgotten_with_time() {
        let (paces, now) = (Paces::default(), Instant::now());
        paces.charge(ONE, BURST, now);
        assert_eq!(paces.wait(ONE, now), None);
        paces.charge(ONE, Duration::from_millis(1), now);
        assert_eq!(paces.wait(ONE, now), Some(Duration::from_millis(1) * SHARE));
        assert_eq!(paces.wait(ONE, now + Duration::from_millis(1) * SHARE), None);
        // Who was idle for long has no more than a burst in hand.
        let later = now + Duration::from_secs(3600);
        paces.charge(ONE, BURST * 2, later);
        assert_eq!(paces.wait(ONE, later), Some(BURST * SHARE));
    }

    #[test]
    fn attack_26_all_refusing_together_takes_no_more_than_a_share() {
        let (refusals, began) = (Refusals::default(), Instant::now());
        let (each, mut now, mut took) = (Duration::from_micros(10), began, Duration::ZERO);
        assert_eq!(refusals.rest(now), None);
        for _ in 0..100_000 {
            now += refusals.rest(now).unwrap_or_default();
            refusals.charge(each, now);
            (now, took) = (now + each, took + each);
        }
        assert!(
            took <= (now - began) / REFUSING + REFUSED_AT_ONCE,
            "{took:?} in {:?}",
            now - began
        );
        // One now and then holds nothing up.
        for _ in 0..1000 {
            now += each * (REFUSING + 1);
            refusals.charge(each, now);
            assert!(refusals.rest(now).is_none_or(|rest| rest <= REFUSED_AT_ONCE * REFUSING));
        }
        assert_eq!(refusals.rest(now), None);
    }

    #[test]
    fn root_is_not_held_up_and_nobody_is_remembered_for_long() {
        let (paces, now) = (Paces::default(), Instant::now());
        paces.charge(Uid::ROOT, BURST * 100, now);
        assert_eq!(paces.wait(Uid::ROOT, now), None);
        for uid in 1..10_000 {
            paces.charge(Uid::new(uid).unwrap(), Duration::from_micros(1), now + BURST * uid);
        }
        assert!(paces.0.lock().unwrap().len() <= MANY);
    }
}
