//! Which address a container gets.
//!
//! Guarantees: an address that [`Pool::draw`] gives lies in the prefix, is neither `P::` nor the
//! gateway, is nobody else's, and has rested for the quarantine since it was last somebody's,
//! unless the range that is drawn from has no other one left; then it is the one that has rested longest.
//! A certain address is given only if it is free, or rests since it was the same owner's: nobody gets what is
//! still on its way to another. None is in a subnet that is somebody's or rests. No more than [`MOST_RESTING`]
//! rest, however many somebody releases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use v6pod_proto::Uid;

use super::Prefix;
use super::subnet::{ByNet, Nets};

#[path = "address_subnets.rs"]
mod subnets;

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
    taken: BTreeSet<Ipv6Addr>,
    resting: BTreeMap<Ipv6Addr, Rest>,
    /// The same as `resting`, the longest-rested first.
    by_rest: BTreeSet<(Instant, Ipv6Addr)>,
    /// Subnets that are somebody's as a whole.
    subnets: Nets,
    rested_subnets: ByNet<Rest>,
}

/// Since when an address rests, and whose it was, if that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    /// Since when.
    pub since: Instant,
    /// Who had it last.
    pub owner: Option<Uid>,
}

impl Pool {
    /// All addresses of the prefix, free.
    pub fn new(prefix: Prefix, quarantine: Duration) -> Self {
        Self {
            prefix,
            quarantine,
            taken: BTreeSet::new(),
            resting: BTreeMap::new(),
            by_rest: BTreeSet::new(),
            subnets: Nets::default(),
            rested_subnets: ByNet::default(),
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

    /// How many addresses of this range, which is the prefix or a part of it, are taken.
    pub fn taken_in(&self, range: Prefix) -> usize {
        self.taken.iter().filter(|address| range.contains(**address)).count()
    }

    /// How many addresses of this range, which is the prefix or a part of it, containers can have: none of
    /// those in somebody's subnet.
    pub fn room(&self, range: Prefix) -> u128 {
        let all = match range.contains(self.prefix.gateway()) {
            true => range.room(),
            false => range.host_mask() + 1,
        };
        all.saturating_sub(self.covered(range))
    }

    /// Takes a random free address; `None` if every one is taken. `random` gives uniform bits.
    pub fn draw<E>(
        &mut self,
        now: Instant,
        random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Option<Ipv6Addr>, E> {
        self.draw_in(self.prefix, now, random)
    }

    /// The same of this range alone, which is the prefix or a part of it.
    pub fn draw_in<E>(
        &mut self,
        range: Prefix,
        now: Instant,
        mut random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Option<Ipv6Addr>, E> {
        self.wake(now);
        for _ in 0..TRIES {
            let candidate = range.address(random()?);
            if self.is_free(candidate) {
                self.taken.insert(candidate);
                return Ok(Some(candidate));
            }
        }
        let start = random()?;
        let mut found = self.next_free(range, start).or_else(|| self.longest_rested_in(range));
        if found.is_none() && self.wake_longest_rested(range) {
            found = self.next_free(range, start);
        }
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

    /// Whether this owner may be given this very address now.
    pub fn is_free_for(&self, address: Ipv6Addr, owner: Uid, now: Instant) -> bool {
        // A rest is over by time alone: nobody may have drawn since, which is what forgets it.
        let rests = self.resting.get(&address).filter(|rest| !self.is_over(rest.since, now));
        self.is_usable(address)
            && !self.taken.contains(&address)
            && !self.is_covered_at(address, now)
            && rests.is_none_or(|rest| rest.owner == Some(owner))
    }

    /// Takes this very address for its owner, if he may be given it.
    pub fn take_for(&mut self, address: Ipv6Addr, owner: Uid, now: Instant) -> bool {
        let free = self.is_free_for(address, owner, now);
        if free {
            self.forget_rest(address);
            self.taken.insert(address);
        }
        free
    }

    /// Takes over an address of another prefix, which was drawn while that one was in force. False if it is
    /// taken already.
    pub fn keep(&mut self, address: Ipv6Addr) -> bool {
        self.forget_rest(address);
        let free = !self.prefix.contains(address) && !self.subnets.contain(address);
        free && self.taken.insert(address)
    }

    /// Takes this very address, which a record says is somebody's. False if it is taken already or
    /// none of the prefix's.
    pub fn adopt(&mut self, address: Ipv6Addr) -> bool {
        self.forget_rest(address);
        let free = self.is_usable(address) && !self.subnets.contain(address);
        free && self.taken.insert(address)
    }

    /// Undoes [`Pool::take`], [`Pool::take_for`], [`Pool::adopt`] or [`Pool::keep`]: nobody has had it.
    pub fn give_back(&mut self, address: Ipv6Addr) {
        self.taken.remove(&address);
    }

    /// Ends this owner's use of an address; it rests from now on.
    pub fn release(&mut self, address: Ipv6Addr, owner: Uid, now: Instant) {
        if self.taken.remove(&address) && !self.quarantine.is_zero() {
            self.lay_to_rest(address, Rest { since: now, owner: Some(owner) });
        }
    }

    /// Lets an address rest that was released before this pool was. One that is somebody's, or none of
    /// the prefix's, does not.
    pub fn rest(&mut self, address: Ipv6Addr, rest: Rest) {
        let taken = self.taken.contains(&address) || self.subnets.contain(address);
        if !self.is_usable(address) || taken || self.quarantine.is_zero() {
            return;
        }
        self.forget_rest(address);
        self.lay_to_rest(address, rest);
    }

    /// What rests, since when, and whose it was.
    pub fn all_resting(&self) -> impl Iterator<Item = (Ipv6Addr, Rest)> {
        self.resting.iter().map(|(address, rest)| (*address, *rest))
    }

    /// Ends the rest of all that have rested long enough.
    pub fn wake(&mut self, now: Instant) {
        while let Some(&(since, address)) = self.by_rest.first() {
            if !self.is_over(since, now) {
                break;
            }
            self.forget_rest(address);
        }
        self.wake_subnets(now);
    }

    /// Whether a container can have this address at all.
    pub fn is_usable(&self, address: Ipv6Addr) -> bool {
        let host = address.to_bits() & self.prefix.host_mask();
        self.prefix.contains(address) && host > 1
    }

    /// Whether a rest since then is over.
    fn is_over(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.quarantine
    }

    fn is_free(&self, address: Ipv6Addr) -> bool {
        self.is_usable(address)
            && !self.taken.contains(&address)
            && !self.resting.contains_key(&address)
            && !self.is_covered(address)
    }

    /// The first free address of the range at or behind a random place. Among one more than are taken,
    /// resting or reserved there is a free one if there is one at all, so the search is as short as that;
    /// a subnet is passed over as a whole, at most twice.
    fn next_free(&self, range: Prefix, start: u128) -> Option<Ipv6Addr> {
        let subnets = 2 * (self.subnets.len() + self.rested_subnets.len());
        let unfree = (self.taken.len() + self.resting.len() + subnets + 2) as u128;
        let mut place = start;
        for _ in 0..=unfree.min(range.host_mask()) {
            let address = range.address(place);
            if self.is_free(address) {
                return Some(address);
            }
            let end = self.cover(address).map_or(address, |net| net.broadcast());
            place = end.to_bits().wrapping_add(1);
        }
        None
    }

    fn longest_rested(&self) -> Option<Ipv6Addr> {
        self.by_rest.first().map(|&(_, address)| address)
    }

    /// The same among those of the range.
    fn longest_rested_in(&self, range: Prefix) -> Option<Ipv6Addr> {
        let all = self.by_rest.iter().map(|&(_, address)| address);
        let usable = |address: &Ipv6Addr| self.is_usable(*address) && !self.is_covered(*address);
        all.filter(|address| range.contains(*address)).find(usable)
    }

    fn lay_to_rest(&mut self, address: Ipv6Addr, rest: Rest) {
        self.resting.insert(address, rest);
        self.by_rest.insert((rest.since, address));
        if self.resting.len() > MOST_RESTING
            && let Some(longest) = self.longest_rested()
        {
            self.forget_rest(longest);
        }
    }

    fn forget_rest(&mut self, address: Ipv6Addr) {
        if let Some(rest) = self.resting.remove(&address) {
            self.by_rest.remove(&(rest.since, address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
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

    fn uid(n: u32) -> Uid {
        Uid::new(n).unwrap()
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
        pool.release(all[5], uid(1), start);
        pool.release(all[9], uid(1), start + Duration::from_secs(1));
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
            pool.release(address, uid(1), now + Duration::from_millis(n));
        }
        assert_eq!((pool.resting(), pool.by_rest.len()), (MOST_RESTING, MOST_RESTING));
        assert!(pool.is_free(first.unwrap()), "the longest-rested made room");
    }

    #[test]
    fn rest_ends_with_the_quarantine() {
        let mut pool = pool("2001:db8::/80");
        let now = Instant::now();
        let address = pool.draw(now, walk(1)).unwrap().unwrap();
        pool.release(address, uid(1), now);
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
        let rested = Rest { since: now, owner: None };
        // Of two lines about one address the later counts; the gateway and others' never rest.
        for address in [gone, gone, taken, "2001:db8::1".parse().unwrap(), Ipv6Addr::LOCALHOST] {
            pool.rest(address, rested);
        }
        assert_eq!(pool.all_resting().collect::<Vec<_>>(), [(gone, rested)]);
        let mut random = walk(3);
        let others: Vec<_> =
            (0..12).map(|_| pool.draw(now, &mut random).unwrap().unwrap()).collect();
        assert!(!others.contains(&gone));
        assert_eq!(pool.draw(now, &mut random).unwrap(), Some(gone), "the last resort");
        // A record that turns out to be alive outweighs it.
        pool.release(gone, uid(1), now);
        assert!(pool.adopt(gone) && pool.resting() == 0);
    }

    #[test]
    fn a_generator_that_only_says_zero_gives_no_reserved_address() {
        let mut pool = pool("2001:db8::/80");
        let zero = || Ok::<_, Infallible>(0);
        let first = pool.draw(Instant::now(), zero).unwrap().unwrap();
        assert_eq!(first.to_string(), "2001:db8::2");
    }

    #[test]
    fn attack_12_a_certain_address_rests_for_all_but_who_had_it() {
        let mut pool = pool("2001:db8::/80");
        let (address, now) = ("2001:db8::42".parse().unwrap(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(pool.take_for(address, uid(1), now) && !pool.take_for(address, uid(1), now));
        pool.release(address, uid(1), now);
        assert!(!pool.take_for(address, uid(2), at(299)) && !pool.take(address));
        assert!(pool.take_for(address, uid(1), now) && pool.resting() == 0);
        pool.release(address, uid(1), now);
        for not in ["2001:db8::", "2001:db8::1", "2001:db8:1::42"] {
            assert!(!pool.take_for(not.parse().unwrap(), uid(1), now), "{not}");
        }
    }

    #[test]
    fn the_rest_of_a_certain_address_ends_by_time_though_nobody_draws() {
        let mut pool = pool("2001:db8::/80");
        let (address, now) = ("2001:db8::42".parse().unwrap(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(pool.take_for(address, uid(1), now));
        pool.release(address, uid(1), now);
        assert!(!pool.take_for(address, uid(2), at(299)));
        assert!(pool.take_for(address, uid(2), at(300)));
        assert_eq!(pool.resting(), 0);
    }

    #[test]
    fn a_part_of_the_prefix_is_drawn_from_to_its_end_and_no_further() {
        let mut pool = pool("2001:db8::/120");
        for (range, room) in [("2001:db8::/124", 14), ("2001:db8::50/124", 16)] {
            let range: Prefix = range.parse().unwrap();
            let (mut random, now) = (walk(5), Instant::now());
            let all: Vec<_> =
                std::iter::from_fn(|| pool.draw_in(range, now, &mut random).unwrap()).collect();
            assert!(all.iter().all(|address| range.contains(*address)), "{all:?}");
            let taken = (all.len() as u128, pool.taken_in(range) as u128, pool.room(range));
            assert_eq!(taken, (room, room, room));
        }
    }

    /// The 0.999 quantile of chi square with 255 degrees of freedom.
    const CHI_SQUARE: f64 = 330.52;

    /// Of the right generator one run in two hundred would exceed it at one of six bytes; this one's bits
    /// are the same each time.
    #[test]
    fn a_hundred_thousand_are_uniform_in_each_byte_and_none_comes_twice() {
        const DRAWN: usize = 100_000;
        let mut pool = pool("2001:db8::/80");
        let (mut random, now) = (walk(42), Instant::now());
        let mut counts = [[0_u32; 256]; 6];
        let mut seen = HashSet::new();
        for _ in 0..DRAWN {
            let address = pool.draw(now, &mut random).unwrap().unwrap();
            assert!(seen.insert(address), "{address} twice");
            let bytes = address.octets();
            assert!(bytes[15] > 1 || bytes[10..15] != [0; 5], "{address} is reserved");
            for (count, byte) in counts.iter_mut().zip(&bytes[10..]) {
                count[usize::from(*byte)] += 1;
            }
        }
        let expected = DRAWN as f64 / 256.0;
        for (at, count) in counts.iter().enumerate() {
            let chi: f64 =
                count.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
            assert!(chi < CHI_SQUARE, "byte {at} of the host part: {chi}");
        }
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
                    pool.release(address, uid(1), now);
                    rest.insert(address, now);
                }
            }
        }
    }
}
