//! Which address a container gets.
//!
//! Guarantees: an address that [`Pool::draw`] gives lies in the prefix, is neither `P::` nor the
//! gateway, is nobody else's, and has rested for the quarantine since it was last somebody's,
//! unless the prefix has no other one left; then it is the one that has rested longest. No more than
//! [`MOST_RESTING`] rest, however many somebody releases.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::Prefix;

/// How often a fresh random address is tried before the pool is searched in order. Each try fails
/// with the share of the prefix that is taken, so in a /80 the first one does it.
const TRIES: usize = 16;

/// How many addresses rest at most. With one more the longest-rested is free again: in a prefix that has
/// so many, chance alone keeps it from being drawn soon. They are some 8 MiB; without a bound a tenant
/// who attaches and releases for the whole quarantine would say how many.
const MOST_RESTING: usize = 1 << 16;

/// The addresses of a prefix: taken, resting and free.
#[derive(Debug)]
pub struct Pool {
    prefix: Prefix,
    quarantine: Duration,
    taken: HashSet<Ipv6Addr>,
    resting: HashMap<Ipv6Addr, Instant>,
    /// The same as `resting`, the longest-rested first.
    by_rest: BTreeSet<(Instant, Ipv6Addr)>,
}

impl Pool {
    /// All addresses of the prefix, free.
    pub fn new(prefix: Prefix, quarantine: Duration) -> Self {
        Self {
            prefix,
            quarantine,
            taken: HashSet::new(),
            resting: HashMap::new(),
            by_rest: BTreeSet::new(),
        }
    }

    /// The prefix.
    pub const fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// How many addresses rest.
    pub fn resting(&self) -> usize {
        self.resting.len()
    }

    /// How many addresses of the prefix are taken.
    pub fn taken(&self) -> usize {
        self.taken.iter().filter(|address| self.prefix.contains(**address)).count()
    }

    /// Takes a random free address; `None` if every one is taken. `random` gives uniform bits.
    pub fn draw<E>(
        &mut self,
        now: Instant,
        mut random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Option<Ipv6Addr>, E> {
        self.wake(now);
        for _ in 0..TRIES {
            let candidate = self.nth(random()?);
            if self.is_free(candidate) {
                self.taken.insert(candidate);
                return Ok(Some(candidate));
            }
        }
        let found = self.next_free(random()?).or_else(|| self.longest_rested_here());
        if let Some(address) = found {
            self.forget_rest(address);
            self.taken.insert(address);
        }
        Ok(found)
    }

    /// Addresses are drawn from this prefix from now on. What is taken or rests in another stays so, as it may
    /// come back.
    pub fn move_to(&mut self, prefix: Prefix) {
        self.prefix = prefix;
    }

    /// Takes this very address, if it is one of the prefix's and free.
    pub fn take(&mut self, address: Ipv6Addr) -> bool {
        self.is_free(address) && self.taken.insert(address)
    }

    /// Takes over an address of another prefix, which was drawn while that one was in force. False if it is
    /// taken already.
    pub fn keep(&mut self, address: Ipv6Addr) -> bool {
        self.forget_rest(address);
        !self.prefix.contains(address) && self.taken.insert(address)
    }

    /// Takes this very address, which a record says is somebody's. False if it is taken already or
    /// none of the prefix's.
    pub fn adopt(&mut self, address: Ipv6Addr) -> bool {
        self.forget_rest(address);
        self.usable(address) && self.taken.insert(address)
    }

    /// Undoes [`Pool::take`], [`Pool::adopt`] or [`Pool::keep`]: nobody has had it.
    pub fn give_back(&mut self, address: Ipv6Addr) {
        self.taken.remove(&address);
    }

    /// Ends an address's use; it rests from now on.
    pub fn release(&mut self, address: Ipv6Addr, now: Instant) {
        if self.taken.remove(&address) && !self.quarantine.is_zero() {
            self.lay_to_rest(address, now);
        }
    }

    /// Lets an address rest that was released before this pool was. One that is somebody's, or none of
    /// the prefix's, does not.
    pub fn rest(&mut self, address: Ipv6Addr, since: Instant) {
        if !self.usable(address) || self.taken.contains(&address) || self.quarantine.is_zero() {
            return;
        }
        self.forget_rest(address);
        self.lay_to_rest(address, since);
    }

    /// What rests, and since when.
    pub fn all_resting(&self) -> impl Iterator<Item = (Ipv6Addr, Instant)> {
        self.resting.iter().map(|(address, since)| (*address, *since))
    }

    /// Ends the rest of all that have rested long enough.
    pub fn wake(&mut self, now: Instant) {
        while let Some(&(since, address)) = self.by_rest.first() {
            if now.saturating_duration_since(since) < self.quarantine {
                break;
            }
            self.forget_rest(address);
        }
    }

    fn usable(&self, address: Ipv6Addr) -> bool {
        let host = address.to_bits() & self.prefix.host_mask();
        self.prefix.contains(address) && host > 1
    }

    fn is_free(&self, address: Ipv6Addr) -> bool {
        self.usable(address)
            && !self.taken.contains(&address)
            && !self.resting.contains_key(&address)
    }

    /// The address whose host bits are the low bits of the number.
    fn nth(&self, bits: u128) -> Ipv6Addr {
        let network = self.prefix.net().network().to_bits();
        Ipv6Addr::from_bits(network | (bits & self.prefix.host_mask()))
    }

    /// The first free address at or behind a random place. Among one more than are taken, resting or
    /// reserved there is a free one if there is one at all, so the search is as short as that.
    fn next_free(&self, start: u128) -> Option<Ipv6Addr> {
        let unfree = (self.taken.len() + self.resting.len() + 2) as u128;
        let places = unfree.min(self.prefix.host_mask()) + 1;
        (0..places).map(|n| self.nth(start.wrapping_add(n))).find(|&a| self.is_free(a))
    }

    fn longest_rested(&self) -> Option<Ipv6Addr> {
        self.by_rest.first().map(|&(_, address)| address)
    }

    /// The same among those of the prefix.
    fn longest_rested_here(&self) -> Option<Ipv6Addr> {
        self.by_rest.iter().map(|&(_, address)| address).find(|address| self.usable(*address))
    }

    fn lay_to_rest(&mut self, address: Ipv6Addr, since: Instant) {
        self.resting.insert(address, since);
        self.by_rest.insert((since, address));
        if self.resting.len() > MOST_RESTING
            && let Some(longest) = self.longest_rested()
        {
            self.forget_rest(longest);
        }
    }

    fn forget_rest(&mut self, address: Ipv6Addr) {
        if let Some(since) = self.resting.remove(&address) {
            self.by_rest.remove(&(since, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Bits that a test can predict: a multiplicative walk through all residues.
    fn walk(seed: u64) -> impl FnMut() -> Result<u128, Infallible> {
        let mut state = u128::from(seed) | 1;
        move || {
            state = state.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).wrapping_add(1);
            Ok(state >> 64)
        }
    }

    fn pool(prefix: &str) -> Pool {
        Pool::new(prefix.parse().unwrap(), Duration::from_secs(300))
    }

    #[test]
    fn every_address_of_a_tiny_prefix_is_given_once_and_never_the_reserved_two() {
        let mut pool = pool("2001:db8::/124");
        let mut random = walk(7);
        let now = Instant::now();
        let mut all: Vec<_> = std::iter::from_fn(|| pool.draw(now, &mut random).unwrap())
            .map(|a| a.to_bits() & 0xf)
            .collect();
        all.sort_unstable();
        assert_eq!(all, (2..16).collect::<Vec<_>>());
    }

    #[test]
    fn a_released_address_rests_and_the_longest_rested_is_the_last_resort() {
        let mut pool = pool("2001:db8::/124");
        let mut random = walk(3);
        let start = Instant::now();
        let all: Vec<_> = std::iter::from_fn(|| pool.draw(start, &mut random).unwrap()).collect();
        pool.release(all[5], start);
        pool.release(all[9], start + Duration::from_secs(1));
        // No other is left, so the quarantine yields, the longest-rested first.
        let soon = start + Duration::from_secs(2);
        assert_eq!(pool.draw(soon, &mut random).unwrap(), Some(all[5]));
        assert_eq!(pool.draw(soon, &mut random).unwrap(), Some(all[9]));
        assert_eq!(pool.draw(soon, &mut random).unwrap(), None);
    }

    #[test]
    fn attack_26_no_crowd_of_releases_fills_the_memory() {
        let mut pool = pool("2001:db8::/80");
        let mut random = walk(3);
        let now = Instant::now();
        let mut first = None;
        for n in 0..=MOST_RESTING as u64 {
            let address = pool.draw(now, &mut random).unwrap().unwrap();
            first.get_or_insert(address);
            pool.release(address, now + Duration::from_millis(n));
        }
        assert_eq!((pool.resting(), pool.by_rest.len()), (MOST_RESTING, MOST_RESTING));
        assert!(pool.is_free(first.unwrap()), "the longest-rested made room");
    }

    #[test]
    fn rest_ends_with_the_quarantine() {
        let mut pool = pool("2001:db8::/80");
        let now = Instant::now();
        let address = pool.draw(now, walk(1)).unwrap().unwrap();
        pool.release(address, now);
        pool.wake(now + Duration::from_secs(299));
        assert_eq!(pool.resting(), 1);
        pool.wake(now + Duration::from_secs(300));
        assert_eq!(pool.resting(), 0);
    }

    #[test]
    fn what_an_earlier_daemon_released_rests_but_not_what_is_somebodys() {
        let mut pool = pool("2001:db8::/124");
        let now = Instant::now();
        let taken = pool.draw(now, walk(1)).unwrap().unwrap();
        let gone: Ipv6Addr =
            if taken.octets()[15] == 5 { "2001:db8::6" } else { "2001:db8::5" }.parse().unwrap();
        // Of two lines about one address the later counts; the gateway and others' never rest.
        for address in [gone, gone, taken, "2001:db8::1".parse().unwrap(), Ipv6Addr::LOCALHOST] {
            pool.rest(address, now);
        }
        assert_eq!(pool.all_resting().collect::<Vec<_>>(), [(gone, now)]);
        let mut random = walk(3);
        let others: Vec<_> =
            (0..12).map(|_| pool.draw(now, &mut random).unwrap().unwrap()).collect();
        assert!(!others.contains(&gone));
        assert_eq!(pool.draw(now, &mut random).unwrap(), Some(gone), "the last resort");
        // A record that turns out to be alive outweighs it.
        pool.release(gone, now);
        assert!(pool.adopt(gone) && pool.resting() == 0);
    }

    #[test]
    fn a_generator_that_only_says_zero_gives_no_reserved_address() {
        let mut pool = pool("2001:db8::/80");
        let zero = || Ok::<_, Infallible>(0);
        let first = pool.draw(Instant::now(), zero).unwrap().unwrap();
        assert_eq!(first.to_string(), "2001:db8::2");
    }

    proptest! {
        #[test]
        fn what_is_drawn_is_free_in_the_prefix_and_not_resting(
            length in 100u8..=124,
            seed: u64,
            actions in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 0u64..200), 1..200),
        ) {
            let mut pool = pool(&format!("2001:db8::/{length}"));
            let mut random = walk(seed);
            let mut now = Instant::now();
            let mut held: Vec<Ipv6Addr> = Vec::new();
            let mut rest: HashMap<Ipv6Addr, Instant> = HashMap::new();
            for (draw, which, wait) in actions {
                now += Duration::from_secs(wait);
                if draw || held.is_empty() {
                    let Some(address) = pool.draw(now, &mut random).unwrap() else {
                        prop_assert_eq!(held.len() as u128, pool.prefix().room());
                        continue;
                    };
                    prop_assert!(pool.prefix().contains(address));
                    prop_assert!(address.to_bits() & pool.prefix().host_mask() > 1);
                    prop_assert!(!held.contains(&address));
                    if let Some(since) = rest.remove(&address) {
                        let rested = now - since >= Duration::from_secs(300);
                        let resting = rest.values().filter(|&&s| now - s < Duration::from_secs(300)).count();
                        let full = (held.len() + resting + 1) as u128 == pool.prefix().room();
                        prop_assert!(rested || full);
                    }
                    held.push(address);
                } else {
                    let address = held.swap_remove(which.index(held.len()));
                    pool.release(address, now);
                    rest.insert(address, now);
                }
            }
        }
    }
}
