//! Which prefix is in force, given what delegating routers, files and operators say of prefixes.
//!
//! Guarantees:
//! - Another prefix takes the place of the one in force only after it has held for the whole settling
//!   time: nothing else was said in between, nobody took it back, and it did not run out.
//! - The one in force is never taken away without another. Who takes it back, or lets it run out, has said
//!   nothing of what containers are to have instead.
//! - One that could not be put in force for the kernel's reasons is tried again for as long as it is good.
//! - A range that is delegated becomes the same /80 each time ([`Cut`]), so a renewal changes nothing.

use std::time::{Duration, Instant};

use ipnet::Ipv6Net;

use super::prefix::{Prefix, PrefixError};

/// The shortest range that is believed, in bits: a provider's own whole allocation. Who delegates more is
/// mistaken, or no provider.
const SHORTEST: u8 = 32;

/// How long one waits that could not be put in force; twice as long each time, but no longer than so many times
/// twice.
const AGAIN: Duration = Duration::from_secs(5);
const MOST_DOUBLED: u32 = 6;

/// The rule by which a range that is shorter than ours is cut.
///
/// Without a number it is the last /80 of the range. Routers number the subnets of what they are
/// delegated from the first on, so the last one is free for the longest; and on a link of its /64 no address
/// of a host's own making lies in it by rule: one that is made of an Ethernet address (RFC 4291, appendix A)
/// would begin with `ffff` only if that were a group's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// `subnet` of the configuration.
    pub subnet: Option<u64>,
}

impl Cut {
    /// The containers' part of a range. What is 80 bits long or longer is that itself.
    ///
    /// # Errors
    /// The range is none that containers can be in, or has no such subnet.
    pub fn of(self, range: Ipv6Net) -> Result<Prefix, PrefixError> {
        let prefix = Prefix::new(range)?;
        if range.prefix_len() < SHORTEST {
            return Err(PrefixError::Delegated(range));
        }
        if prefix.net().prefix_len() >= 80 && self.subnet.is_none() {
            return Ok(prefix);
        }
        prefix.subnet(self.subnet.unwrap_or_else(|| prefix.last_subnet()))
    }
}

/// What somebody says of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The containers' part of it.
    pub prefix: Prefix,
    /// How long it is good for from now on; none: until something else is said. Zero takes it back.
    pub valid: Option<Duration>,
}

/// What becomes of an [`Offer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is in force, and stays.
    InForce,
    /// It counts after this time, if nothing is said meanwhile.
    Settles(Duration),
    /// It was taken back before it counted.
    TakenBack,
    /// One that neither is in force nor settles was taken back: that changes nothing.
    Nothing,
    /// The one in force was taken back. It stays, for there is no other.
    Kept,
}

/// The prefix in force, and the one that is to be.
#[derive(Debug, Clone)]
pub struct Prefixes {
    in_force: Prefix,
    settle: Duration,
    waiting: Option<Waiting>,
    /// The one in force, as long as the host is being brought to it.
    trying: Option<Waiting>,
}

/// One that settles.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    prefix: Prefix,
    since: Instant,
    until: Option<Instant>,
    /// When it is tried again that could not be put in force.
    again: Option<Instant>,
    /// How often it could not be.
    failed: u32,
}

impl Waiting {
    fn has_run_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl Prefixes {
    /// With this one in force.
    pub const fn new(in_force: Prefix, settle: Duration) -> Self {
        Self { in_force, settle, waiting: None, trying: None }
    }

    /// The one in force.
    pub const fn in_force(&self) -> Prefix {
        self.in_force
    }

    /// The one that is to be in force, if there is one.
    pub fn waiting(&self, now: Instant) -> Option<Prefix> {
        self.waiting.filter(|waiting| !waiting.has_run_out(now)).map(|waiting| waiting.prefix)
    }

    /// Hears what somebody says.
    pub fn hear(&mut self, offer: Offer, now: Instant) -> Heard {
        let Offer { prefix, valid } = offer;
        self.waiting.take_if(|waiting| waiting.has_run_out(now));
        let taken_back = valid.is_some_and(|valid| valid.is_zero());
        let waits = self.waiting.filter(|waiting| waiting.prefix == prefix);
        if taken_back {
            return if waits.is_some() {
                self.waiting = None;
                Heard::TakenBack
            } else if prefix == self.in_force {
                self.trying = None;
                Heard::Kept
            } else {
                Heard::Nothing
            };
        }
        // A lifetime without end, or one that the clock cannot hold.
        let until = valid.and_then(|valid| now.checked_add(valid));
        if prefix == self.in_force {
            // Whatever was to take its place has not held.
            self.waiting = None;
            if let Some(trying) = &mut self.trying {
                trying.until = until;
            }
            return Heard::InForce;
        }
        let fresh = Waiting { prefix, since: now, until, again: None, failed: 0 };
        let waiting = Waiting { until, ..waits.unwrap_or(fresh) };
        self.waiting = Some(waiting);
        let since = waiting.since;
        Heard::Settles(self.settle.saturating_sub(now.saturating_duration_since(since)))
    }

    /// The one that has held long enough to take the place of the one in force.
    pub fn settled(&self, now: Instant) -> Option<Prefix> {
        let held = |waiting: &Waiting| {
            now.saturating_duration_since(waiting.since) >= self.settle
                && waiting.again.is_none_or(|again| again <= now)
                && !waiting.has_run_out(now)
        };
        self.waiting.filter(held).map(|waiting| waiting.prefix)
    }

    /// When to ask [`Prefixes::settled`] next; none: when something has been said.
    pub fn settles_at(&self) -> Option<Instant> {
        let waiting = self.waiting?;
        let at = waiting.since.checked_add(self.settle)?;
        let at = waiting.again.map_or(at, |again| again.max(at));
        waiting.until.is_none_or(|until| at < until).then_some(at)
    }

    /// This one is in force from now on, unless the host cannot be brought to it: [`Prefixes::stands`] or
    /// [`Prefixes::put_back`] says so.
    pub fn put_in_force(&mut self, prefix: Prefix) {
        self.in_force = prefix;
        self.trying = self.waiting.take_if(|waiting| waiting.prefix == prefix);
    }

    /// The host has been brought to the one in force.
    pub fn stands(&mut self) {
        self.trying = None;
    }

    /// The one that was before is in force again, since the host could not be brought to the other one. If that is
    /// to be tried again it waits for it, unless it was taken back or something else said meanwhile: nobody may ever
    /// say it a second time.
    pub fn put_back(&mut self, before: Prefix, again: bool, now: Instant) {
        self.in_force = before;
        let tried = self.trying.take().filter(|_| again && self.waiting.is_none());
        if let Some(tried) = tried {
            let pause = AGAIN * (1 << tried.failed.min(MOST_DOUBLED));
            let failed = tried.failed.saturating_add(1);
            self.waiting = Some(Waiting { again: now.checked_add(pause), failed, ..tried });
        }
        self.waiting.take_if(|waiting| waiting.prefix == before);
    }

    /// This one cannot be: something of this host's is in its way. The one in force stays.
    pub fn refuse(&mut self, prefix: Prefix) {
        self.waiting.take_if(|waiting| waiting.prefix == prefix);
    }
}

#[cfg(test)]
#[path = "prefixes_tests.rs"]
mod tests;
