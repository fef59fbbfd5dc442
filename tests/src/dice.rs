//! Chance that can be had again.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// xorshift64: all that is asked of it is to be repeatable.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// With the seed that `V6POD_TEST_SEED` names, or a new one, which is printed: it is shown if the
    /// test fails.
    #[track_caller]
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
        let seed = env::var("V6POD_TEST_SEED");
        let seed = seed.map_or(now as u64 | 1, |seed| seed.parse().expect("a number"));
        eprintln!("V6POD_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number from 0 on, below this one.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % limit
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}
