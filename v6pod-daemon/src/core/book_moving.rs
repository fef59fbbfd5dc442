//! How attachments get addresses of another prefix.
//!
//! Guarantees: an attachment is known by an address that its container has, at every moment; the one that it
//! was known by before stays its own until it is let go of; nobody else is given any of them meanwhile. An
//! address keeps its host part where that is free in the new prefix, so that a prefix that comes back brings
//! the same addresses with it.

use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::Ipv6Net;
use v6pod_proto::{AttachmentId, Uid};

use super::Book;
use super::subnets::follows;
use crate::core::Prefix;
use crate::core::attachment::{Attachment, Phase};
use crate::core::step::{Also, Role};

impl Book {
    /// Addresses are drawn from this prefix from now on. Those who have others are [`Book::outside`].
    pub fn move_to(&mut self, prefix: Prefix) {
        self.terms.prefix = prefix;
        self.pool.move_to(prefix);
    }

    /// Those that are known by an address of another prefix and are not on their way out, in no order.
    pub fn outside(&self) -> impl Iterator<Item = &Attachment> {
        let prefix = self.terms.prefix;
        let outside = move |a: &&Attachment| !prefix.contains(a.port.address);
        self.all().filter(outside).filter(|a| a.phase.shown().is_some())
    }

    /// Whether anybody, on his way out or not, has an address in this prefix.
    pub fn is_in_use(&self, prefix: Prefix) -> bool {
        self.by_net.iter().any(|(net, _)| prefix.contains(net.network()))
    }

    /// Has the attachment have an address in the prefix that is in force, besides the one that it is known
    /// by. `None` if it needs none, is still being made or on its way out, or if there is none left.
    ///
    /// # Errors
    /// The random bits cannot be had.
    pub fn bring<E>(
        &mut self,
        id: &AttachmentId,
        now: Instant,
        random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Option<(&Attachment, Also)>, E> {
        let prefix = self.terms.prefix;
        let Some(a) = self.find(id) else { return Ok(None) };
        let moves = matches!(a.phase, Phase::Wired | Phase::Serving | Phase::Ending);
        if !moves || prefix.contains(a.port.address) {
            return Ok(None);
        }
        let (address, gateway) = (a.port.address, self.terms.gateway(a.port.mode));
        let owner = a.owner;
        let mut others = a.port.also.iter().filter(|also| also.subnet.is_none());
        let there = others.find(|also| prefix.contains(also.address));
        let also = match there {
            // The prefix has come back, or this was begun before.
            Some(also) => Also { role: Role::Coming, ..*also },
            None => match self.take_like(address, owner, now, random)? {
                Some(address) => Also { address, subnet: None, gateway, role: Role::Coming },
                None => return Ok(None),
            },
        };
        self.by_net.insert(also.net(), id.clone());
        let Some(a) = self.attachments.get_mut(id) else { return Ok(None) };
        a.port.also.retain(|other| other.net() != also.net());
        a.port.also.push(also);
        Ok(Some((a, also)))
    }

    /// The container has the address that was coming: the attachment is known by it from now on. The one before
    /// goes at that time, in seconds since the epoch.
    pub fn arrive(
        &mut self,
        id: &AttachmentId,
        address: Ipv6Addr,
        until: u64,
    ) -> Option<&Attachment> {
        let a = self.attachments.get_mut(id)?;
        a.port = a.port.arrived(address, until)?;
        self.find(id)
    }

    /// What is to be let go of by now: what has been going for long enough, and what was coming in a prefix
    /// that is in force no more, or in the place of an address that a daemon had no time to replace. Not from those
    /// that are on their way out, whose end takes all away.
    pub fn leaving(&self, now: u64) -> Vec<(AttachmentId, Also)> {
        let prefix = self.terms.prefix;
        let leaves = |a: &Attachment, also: &Also| match also.role {
            // Unless it is to be taken up again.
            Role::Going(until) => {
                let wanted = prefix.contains(also.address) && !prefix.contains(a.port.address);
                until <= now && !wanted
            }
            Role::Coming => {
                let replaces = prefix.contains(a.port.address);
                let by_now = match also.subnet {
                    None => self.replacing.contains(&a.id),
                    // Or it takes the place of one of another prefix.
                    Some(_) => self.giving.contains(&a.id) || follows(a, prefix),
                };
                !prefix.contains(also.address) || (replaces && !by_now)
            }
            Role::Staying => false,
        };
        let staying = self.all().filter(|a| a.phase.shown().is_some());
        let each = staying.flat_map(|a| {
            let those = a.port.also.iter().filter(move |also| leaves(a, also));
            those.map(|also| (a.id.clone(), *also))
        });
        each.collect()
    }

    /// When the next address goes, in seconds since the epoch.
    pub fn next_leaves(&self) -> Option<u64> {
        let all = self.all().flat_map(|a| &a.port.also);
        let times = all.filter_map(|also| match also.role {
            Role::Going(until) => Some(until),
            Role::Coming | Role::Staying => None,
        });
        times.min()
    }

    /// The attachment has this address, or this subnet, no more, which rests from now on.
    pub fn let_go(&mut self, id: &AttachmentId, net: Ipv6Net, now: Instant) -> Option<&Attachment> {
        let a = self.attachments.get_mut(id)?;
        let at = a.port.also.iter().position(|also| also.net() == net)?;
        a.port.also.remove(at);
        let owner = a.owner;
        self.by_net.remove(&net);
        self.release_net(net, owner, now);
        self.find(id)
    }

    /// Takes an address in the owner's range with the same host part, or if that cannot be had any.
    fn take_like<E>(
        &mut self,
        address: Ipv6Addr,
        owner: Uid,
        now: Instant,
        random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Option<Ipv6Addr>, E> {
        let Some(range) = self.slices.of(owner, self.terms.prefix) else { return Ok(None) };
        let same = self.terms.prefix.address(address.to_bits());
        if range.contains(same) && self.pool.take_for(same, owner, now) {
            return Ok(Some(same));
        }
        self.pool.draw_in(range, now, random)
    }
}

#[cfg(test)]
#[path = "book_moving_tests.rs"]
mod tests;
