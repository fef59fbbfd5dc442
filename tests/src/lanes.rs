//! Cases of one test side by side.
//!
//! Most of a case is waiting for what must not come. Each has a host of its own, and its users are others than those
//! of the cases beside it; what cases share is the machine: its table of neighbours, its processors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::thread;

/// How many are under way at once.
const LANES: u8 = 3;

thread_local! {
    static LANE: Cell<u8> = const { Cell::new(0) };
}

/// Which lane the calling thread is; 0 without any.
pub(crate) fn lane() -> u8 {
    LANE.get()
}

/// Does this with each of the cases, some at a time. Once one has failed none is begun any more, and the
/// caller fails as it did.
pub fn side_by_side<C: Send>(cases: impl IntoIterator<Item = C>, work: impl Fn(C) + Sync) {
    let mut all: Vec<C> = cases.into_iter().collect();
    all.reverse();
    let left = Mutex::new(all);
    let in_lane = |lane: u8| {
        LANE.set(lane);
        loop {
            let next = left.lock().expect("nobody panics holding it").pop();
            let Some(case) = next else { return Ok(()) };
            catch_unwind(AssertUnwindSafe(|| work(case))).inspect_err(|_| {
                left.lock().expect("nobody panics holding it").clear();
            })?;
        }
    };
    let ended: Vec<thread::Result<()>> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|lane| scope.spawn(move || in_lane(lane))).collect();
        lanes.into_iter().map(|lane| lane.join().and_then(|ended| ended)).collect()
    });
    if let Some(panic) = ended.into_iter().find_map(Result::err) {
        resume_unwind(panic);
    }
}
