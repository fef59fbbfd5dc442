//! Whole subnets out of a pool.
//!
//! Guarantees: a subnet that is given lies in the prefix, is shorter than that, holds neither `P::` nor the
//! gateway, no address and no subnet of anybody's, and none that rests; unless it is one that rests since it was
//! the same owner's, and the range has no other one left. What rests is bounded, as addresses are.

use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::Ipv6Net;
use v6pod_proto::Uid;

use super::{Pool, Rest, TRIES};
use crate::core::Prefix;
use crate::core::subnet::{Length, overlap};

/// How many subnets rest at most; with one more the longest-rested is free again.
const MOST_RESTING: usize = 1 << 12;

impl Pool {
    /// Takes a random free subnet of this range, which is the prefix or a part of it; `None` if there is none.
    ///
    /// # Errors
    /// The random bits cannot be had.
    pub fn draw_subnet<E>(
        &mut self,
        (range, length): (Prefix, Length),
        owner: Uid,
        now: Instant,
        mut random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Option<Ipv6Net>, E> {
        self.wake(now);
        if length.bits() <= range.length() {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let candidate = length.around(range.address(random()?));
            if self.is_free_net(&candidate) {
                self.subnets.insert(candidate, ());
                return Ok(Some(candidate));
            }
        }
        let found = self.next_subnet(range, length, random()?);
        let found = found.or_else(|| self.own_rested(range, length, owner));
        if let Some(net) = found {
            self.rested_subnets.remove(&net);
            self.subnets.insert(net, ());
        }
        Ok(found)
    }

    /// Takes this very subnet for its owner, if he may be given it.
    pub fn take_subnet_for(&mut self, net: Ipv6Net, owner: Uid, now: Instant) -> bool {
        self.wake(now);
        let own = self.rested_subnets.get(&net).is_some_and(|rest| rest.owner == Some(owner));
        let free = (own && self.is_usable_net(&net)) || self.is_free_net(&net);
        if free {
            self.rested_subnets.remove(&net);
            self.subnets.insert(net, ());
        }
        free
    }

    /// Takes over a subnet that a record says is somebody's, of this prefix or of one before it. False if any of
    /// it is another's already, or none of the prefix's to give.
    pub fn adopt_subnet(&mut self, net: Ipv6Net) -> bool {
        self.rested_subnets.remove(&net);
        let ours = self.prefix.contains(net.network());
        let free = !self.is_taken_from(&net) && (!ours || self.is_usable_net(&net));
        if free {
            self.subnets.insert(net, ());
        }
        free
    }

    /// Undoes what took a subnet: nobody has had it.
    pub fn give_subnet_back(&mut self, net: &Ipv6Net) {
        self.subnets.remove(net);
    }

    /// Ends this owner's use of a subnet; it rests from now on.
    pub fn release_subnet(&mut self, net: Ipv6Net, owner: Uid, now: Instant) {
        if self.subnets.remove(&net).is_some() && !self.quarantine.is_zero() {
            self.lay_subnet_to_rest(net, Rest { since: now, owner: Some(owner) });
        }
    }

    /// Lets a subnet rest that was released before this pool was, unless any of it is somebody's.
    pub fn rest_subnet(&mut self, net: Ipv6Net, rest: Rest) {
        let usable = self.is_usable_net(&net) && !self.is_taken_from(&net);
        if usable && !self.quarantine.is_zero() {
            self.lay_subnet_to_rest(net, rest);
        }
    }

    /// Which subnets rest, since when, and whose they were.
    pub fn resting_subnets(&self) -> impl Iterator<Item = (Ipv6Net, Rest)> {
        self.rested_subnets.iter().map(|(net, rest)| (*net, *rest))
    }

    /// Whether the address is in a subnet that is somebody's, or rests.
    pub(super) fn is_covered(&self, address: Ipv6Addr) -> bool {
        self.cover(address).is_some()
    }

    /// The same at this time, though nobody may have drawn since a rest was over.
    pub(super) fn is_covered_at(&self, address: Ipv6Addr, now: Instant) -> bool {
        let rests = self.rested_subnets.find(address);
        self.subnets.contain(address) || rests.is_some_and(|rest| !self.is_over(rest.since, now))
    }

    /// The subnet that the address is in that is somebody's, or rests.
    pub(super) fn cover(&self, address: Ipv6Addr) -> Option<Ipv6Net> {
        self.subnets.around(address).or_else(|| self.rested_subnets.around(address))
    }

    /// How many addresses of this range are in somebody's subnets.
    pub(super) fn covered(&self, range: Prefix) -> u128 {
        let inside = self.subnets.iter().filter(|(net, ())| range.contains(net.network()));
        inside.map(|(net, ())| 1_u128 << (128 - u32::from(net.prefix_len()))).sum()
    }

    /// Ends the rest of all that have rested long enough.
    pub(super) fn wake_subnets(&mut self, now: Instant) {
        let rested = |rest: &Rest| self.is_over(rest.since, now);
        let all = self.rested_subnets.iter().filter(|(_, rest)| rested(rest));
        let over: Vec<_> = all.map(|(net, _)| *net).collect();
        for net in over {
            self.rested_subnets.remove(&net);
        }
    }

    /// Wakes the subnet of this range that has rested longest. False if none does.
    pub(super) fn wake_longest_rested(&mut self, range: Prefix) -> bool {
        let inside = self.rested_subnets.iter().filter(|(net, _)| range.contains(net.network()));
        let longest = inside.min_by_key(|(_, rest)| rest.since).map(|(net, _)| *net);
        longest.is_some_and(|net| self.rested_subnets.remove(&net).is_some())
    }

    fn lay_subnet_to_rest(&mut self, net: Ipv6Net, rest: Rest) {
        self.rested_subnets.insert(net, rest);
        if self.rested_subnets.len() > MOST_RESTING {
            let all = self.rested_subnets.iter();
            let longest = all.min_by_key(|(_, rest)| rest.since).map(|(net, _)| *net);
            if let Some(longest) = longest {
                self.rested_subnets.remove(&longest);
            }
        }
    }

    /// Whether a container can have this subnet at all.
    fn is_usable_net(&self, net: &Ipv6Net) -> bool {
        let prefix = self.prefix;
        prefix.contains(net.network())
            && net.prefix_len() > prefix.length()
            && !net.contains(&prefix.net().network())
            && !net.contains(&prefix.gateway())
    }

    /// Whether any of it is somebody's.
    fn is_taken_from(&self, net: &Ipv6Net) -> bool {
        self.subnets.iter().any(|(other, ())| overlap(net, other))
            || self.taken.range(net.network()..=net.broadcast()).next().is_some()
    }

    fn is_free_net(&self, net: &Ipv6Net) -> bool {
        self.is_usable_net(net)
            && !self.is_taken_from(net)
            && !self.rested_subnets.iter().any(|(other, _)| overlap(net, other))
            && self.resting.range(net.network()..=net.broadcast()).next().is_none()
    }

    /// The first free subnet of the range at or behind a random place.
    fn next_subnet(&self, range: Prefix, length: Length, start: u128) -> Option<Ipv6Net> {
        let shift = 128 - u32::from(length.bits());
        let last = range.host_mask() >> shift;
        // What stands in the way, as numbers of subnets of this length.
        let number = |address: Ipv6Addr| (address.to_bits() & range.host_mask()) >> shift;
        let alone = |address: &Ipv6Addr| (number(*address), number(*address));
        let whole = |net: &Ipv6Net| match range.contains(net.network()) {
            true => (number(net.network()), number(net.broadcast())),
            // Around all of the range.
            false => (0, last),
        };
        let ends = [self.prefix.net().network(), self.prefix.gateway()];
        let addresses = self.taken.iter().chain(self.resting.keys()).chain(&ends);
        let addresses = addresses.filter(|address| range.contains(**address)).map(alone);
        let nets = self.subnets.iter().map(|(net, ())| net);
        let nets = nets.chain(self.rested_subnets.iter().map(|(net, _)| net));
        let nets = nets.filter(|net| overlap(net, &range.net())).map(whole);
        let mut blocked: Vec<_> = addresses.chain(nets).collect();
        blocked.sort_unstable();
        let from = |start: u128| {
            let step = |at: u128, &(first, last): &(u128, u128)| match first <= at && at <= last {
                true => last + 1,
                false => at,
            };
            let at = blocked.iter().fold(start, step);
            (at <= last).then(|| length.around(range.address(at << shift)))
        };
        from(start & last).or_else(|| from(0))
    }

    /// One that rests since it was this owner's, the longest-rested.
    fn own_rested(&self, range: Prefix, length: Length, owner: Uid) -> Option<Ipv6Net> {
        let all = self.rested_subnets.iter().filter(|(net, rest)| {
            rest.owner == Some(owner)
                && net.prefix_len() == length.bits()
                && range.contains(net.network())
        });
        let usable = all.filter(|(net, _)| self.is_usable_net(net) && !self.is_taken_from(net));
        usable.min_by_key(|(_, rest)| rest.since).map(|(net, _)| *net)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn pool(prefix: &str) -> Pool {
        Pool::new(prefix.parse().unwrap(), Duration::from_secs(300))
    }

    /// Bits that a test can predict.
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

    fn length(bits: u8) -> Length {
        Length::new(bits).unwrap()
    }

    #[test]
    fn all_subnets_are_found_but_the_gateways_and_none_twice() {
        let mut pool = pool("2001:db8::/112");
        let (mut random, now) = (walk(1), Instant::now());
        let place = (pool.prefix(), length(120));
        let all: Vec<_> =
            std::iter::from_fn(|| pool.draw_subnet(place, uid(1), now, &mut random).unwrap())
                .collect();
        let different: HashSet<_> = all.iter().collect();
        assert_eq!((all.len(), different.len()), (255, 255));
        assert!(all.iter().all(|net| !net.contains(&pool.prefix().gateway())));
        // And what is left for addresses is what is around the gateway.
        let left: Vec<_> = std::iter::from_fn(|| pool.draw(now, &mut random).unwrap()).collect();
        assert_eq!((left.len() as u128, pool.room(pool.prefix())), (254, 254));
        assert!(left.iter().all(|address| address.segments()[7] >> 8 == 0));
    }

    #[test]
    fn one_that_was_somebodys_rests_for_all_but_him_and_he_gets_it_only_if_there_is_no_other() {
        let mut pool = pool("2001:db8::/112");
        let (mut random, now) = (walk(2), Instant::now());
        let place = (pool.prefix(), length(120));
        let all: Vec<_> =
            std::iter::from_fn(|| pool.draw_subnet(place, uid(1), now, &mut random).unwrap())
                .collect();
        pool.release_subnet(all[7], uid(1), now);
        assert_eq!(pool.draw_subnet(place, uid(2), now, &mut random).unwrap(), None);
        for who in [uid(1), uid(2)] {
            assert!(!pool.take_for(all[7].network(), who, now));
        }
        assert_eq!(pool.draw_subnet(place, uid(1), now, &mut random).unwrap(), Some(all[7]));
        pool.release_subnet(all[7], uid(1), now);
        let later = now + Duration::from_secs(300);
        assert_eq!(pool.draw_subnet(place, uid(2), later, &mut random).unwrap(), Some(all[7]));
        // By time alone, though nobody draws.
        pool.release_subnet(all[7], uid(2), later);
        let last = later + Duration::from_secs(300);
        assert!(!pool.take_subnet_for(all[7], uid(1), last - Duration::from_secs(1)));
        assert!(pool.is_free_for(all[7].network(), uid(1), last));
        assert!(pool.take_subnet_for(all[7], uid(1), last));
    }

    #[test]
    fn what_is_recorded_is_taken_over_unless_any_of_it_is_anothers() {
        let mut pool = pool("2001:db8::/80");
        let net: Ipv6Net = "2001:db8::5:0:0/96".parse().unwrap();
        assert!(pool.adopt_subnet(net));
        for no in ["2001:db8::5:0:0/96", "2001:db8::5:700:0/104", "2001:db8::/96"] {
            assert!(!pool.adopt_subnet(no.parse().unwrap()), "{no}");
        }
        assert!(!pool.adopt("2001:db8::5:0:9".parse().unwrap()));
        assert!(pool.adopt("2001:db8::6:0:9".parse().unwrap()));
        assert!(!pool.adopt_subnet("2001:db8::6:0:0/96".parse().unwrap()));
        // Of a prefix that is in force no more.
        assert!(pool.adopt_subnet("2001:db8:9::/96".parse().unwrap()));
        pool.rest_subnet(net, Rest { since: Instant::now(), owner: None });
        assert_eq!(pool.resting_subnets().count(), 0);
    }

    proptest! {
        #[test]
        fn no_two_share_an_address_and_none_holds_the_gateway(
            prefix_length in 96u8..=116,
            seed: u64,
            actions in proptest::collection::vec((0u8..4, 0usize..4, any::<prop::sample::Index>(), 0u64..200), 1..120),
        ) {
            let mut pool = pool(&format!("2001:db8::/{prefix_length}"));
            let mut random = walk(seed);
            let mut now = Instant::now();
            let mut held: Vec<Ipv6Net> = Vec::new();
            for (action, which, index, wait) in actions {
                now += Duration::from_secs(wait);
                if action == 0 && !held.is_empty() {
                    let gone = held.swap_remove(index.index(held.len()));
                    match Length::new(gone.prefix_len()) {
                        Some(_) => pool.release_subnet(gone, uid(1), now),
                        None => pool.release(gone.addr(), uid(1), now),
                    }
                    continue;
                }
                let drawn = if action == 1 {
                    pool.draw(now, &mut random).unwrap().map(Ipv6Net::from)
                } else {
                    let place = (pool.prefix(), Length::ALL[which]);
                    pool.draw_subnet(place, uid(1), now, &mut random).unwrap()
                };
                let Some(net) = drawn else { continue };
                prop_assert!(pool.prefix().net().contains(&net) && net.trunc() == net);
                prop_assert!(!net.contains(&pool.prefix().gateway()));
                prop_assert!(!net.contains(&pool.prefix().net().network()));
                prop_assert!(held.iter().all(|other| !overlap(other, &net)), "{net} {held:?}");
                held.push(net);
            }
        }
    }
}
