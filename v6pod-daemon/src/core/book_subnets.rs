//! Subnets that are a container's besides its address.
//!
//! Guarantees: a subnet is recorded as coming before the kernel is touched, and stays once the container has it;
//! one that is coming and that nobody is at, after a crash say, goes. Where the prefix changes, the container gets
//! one of the same length in the new prefix, with the same bits if they are free, and the one before goes with
//! its time.

use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::Ipv6Net;
use v6pod_proto::{AttachmentId, Uid};

use super::{Book, NoSpot};
use crate::core::Prefix;
use crate::core::attachment::{Attachment, Phase};
use crate::core::hole::Holes;
use crate::core::step::{Also, Role};
use crate::core::subnet::Length;

impl Book {
    /// The attachment that has this address, also in a subnet, on its way out or not.
    pub fn has(&self, address: Ipv6Addr) -> Option<&Attachment> {
        self.find(self.by_net.find(address)?)
    }

    /// Whether this owner can have subnets of this length.
    ///
    /// # Errors
    /// [`NoSpot::Short`]: what his addresses come from is no longer. [`NoSpot::Slices`]: he has none.
    /// [`NoSpot::Share`]: he would leave others too little.
    pub fn allows_subnet(&mut self, owner: Uid, length: Length) -> Result<(), NoSpot> {
        let prefix = self.terms.prefix;
        let range = self.slices.of(owner, prefix).ok_or(NoSpot::Slices(prefix))?;
        if length.bits() <= range.length() {
            return Err(NoSpot::Short { length, range });
        }
        let size = |bits: u8| 1_u128 << (128 - u32::from(bits));
        // A slice is his alone.
        if range == prefix
            && self.in_subnets(owner) + size(length.bits()) > size(range.length()) / 2
        {
            return Err(NoSpot::Share { length, range });
        }
        Ok(())
    }

    /// What is open of an attachment that has this address or subnet, or is about to; none if it has not, or is on
    /// its way out.
    pub fn open_of(&self, id: &AttachmentId, net: Ipv6Net) -> Option<Holes> {
        let there = self.find(id).filter(|a| a.phase.shown().is_some());
        there.filter(|a| a.port.nets().any(|its| its == net)).map(|a| a.port.open.clone())
    }

    /// How many addresses of the prefix that is in force are in this owner's subnets.
    fn in_subnets(&self, owner: Uid) -> u128 {
        let prefix = self.terms.prefix;
        let his = self.all().filter(|a| a.owner == owner).flat_map(|a| a.port.subnets());
        let bits = his.filter(|also| prefix.contains(also.address)).filter_map(|also| also.subnet);
        bits.map(|length| 1_u128 << (128 - u32::from(length.bits()))).sum()
    }

    /// Has the attachment be given a subnet of this length. `None` if it has one, is still being made or on its
    /// way out, or follows the prefix at the moment.
    ///
    /// # Errors
    /// There is none, as the first layer says; or the random bits cannot be had.
    pub fn give<E>(
        &mut self,
        id: &AttachmentId,
        length: Length,
        now: Instant,
        random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Result<Option<(Attachment, Also)>, NoSpot>, E> {
        let Some(a) = self.find(id) else { return Ok(Ok(None)) };
        let whole = matches!(a.phase, Phase::Wired | Phase::Serving | Phase::Ending);
        let in_force = self.terms.prefix.contains(a.port.address);
        if !whole || !in_force || a.port.subnets().next().is_some() {
            return Ok(Ok(None));
        }
        let (owner, gateway) = (a.owner, a.port.gateway);
        let net = match self.draw_subnet(owner, length, now, random)? {
            Ok(net) => net,
            Err(no) => return Ok(Err(no)),
        };
        self.giving.insert(id.clone());
        Ok(Ok(self.coming(id, net, length, gateway)))
    }

    /// The container has the subnet, which stays. Gives the attachment.
    pub fn given(&mut self, id: &AttachmentId, net: Ipv6Net) -> Option<&Attachment> {
        self.giving.remove(id);
        let also = &mut self.attachments.get_mut(id)?.port.also;
        also.iter_mut().find(|also| also.net() == net)?.role = Role::Staying;
        self.find(id)
    }

    /// It cannot have it. What is still coming then goes.
    pub fn not_given(&mut self, id: &AttachmentId) {
        self.giving.remove(id);
    }

    /// Whether the attachment is being given a subnet, or one that it could not be given is still to go.
    pub fn is_giving(&self, id: &AttachmentId) -> bool {
        let coming = |a: &Attachment| a.port.subnets().any(|also| also.role == Role::Coming);
        self.find(id).is_some_and(|a| coming(a) && !follows(a, self.terms.prefix))
    }

    /// Those that have a subnet of another prefix than is in force, and are known by an address of that one.
    pub fn with_subnets_outside(&self) -> impl Iterator<Item = &Attachment> {
        let prefix = self.terms.prefix;
        self.all().filter(|a| a.phase.shown().is_some()).filter(move |a| follows(a, prefix))
    }

    /// Has the attachment have a subnet in the prefix that is in force in the place of one of another. `None` if it
    /// needs none, or there is none left.
    ///
    /// # Errors
    /// The random bits cannot be had.
    pub fn bring_subnet<E>(
        &mut self,
        id: &AttachmentId,
        now: Instant,
        random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Option<(Attachment, Also)>, E> {
        let prefix = self.terms.prefix;
        let moves = |a: &&Attachment| a.phase.shown().is_some() && follows(a, prefix);
        let Some(a) = self.find(id).filter(moves) else { return Ok(None) };
        let (owner, gateway) = (a.owner, a.port.gateway);
        let before = a.port.subnets().find(|also| !prefix.contains(also.address));
        let Some((old, length)) = before.and_then(|also| Some((also.address, also.subnet?))) else {
            return Ok(None);
        };
        let there = a.port.subnets().find(|also| prefix.contains(also.address)).copied();
        if let Some(there) = there {
            // The prefix has come back, or this was begun before.
            let also = Also { role: Role::Coming, ..there };
            let Some(a) = self.attachments.get_mut(id) else { return Ok(None) };
            a.port.also.retain(|other| other.net() != also.net());
            a.port.also.push(also);
            return Ok(Some(((**a).clone(), also)));
        }
        let same = length.around(prefix.address(old.to_bits()));
        let range = self.slices.of(owner, prefix);
        let fits = range.is_some_and(|range| range.net().contains(&same));
        let net = if fits && self.pool.take_subnet_for(same, owner, now) {
            same
        } else {
            match self.draw_subnet(owner, length, now, random)? {
                Ok(net) => net,
                Err(_) => return Ok(None),
            }
        };
        Ok(self.coming(id, net, length, gateway))
    }

    /// The container has the subnet that was coming, which stays; those of other prefixes go at that time, in
    /// seconds since the epoch.
    pub fn subnet_arrived(
        &mut self,
        id: &AttachmentId,
        net: Ipv6Net,
        until: u64,
    ) -> Option<&Attachment> {
        let prefix = self.terms.prefix;
        let also = &mut self.attachments.get_mut(id)?.port.also;
        also.iter().find(|also| also.net() == net)?;
        for also in also.iter_mut().filter(|also| also.subnet.is_some()) {
            if also.net() == net {
                also.role = Role::Staying;
            } else if also.role == Role::Staying && !prefix.contains(also.address) {
                also.role = Role::Going(until);
            }
        }
        self.find(id)
    }

    /// Whether the prefix that is in force, or the owner's part of it, is too small for a subnet that is to follow
    /// into it, or for one more of this owner's. Then it goes at that time, in seconds since the epoch, without
    /// another in its place. Gives the attachment.
    pub fn lose_subnet(&mut self, id: &AttachmentId, until: u64) -> Option<&Attachment> {
        let prefix = self.terms.prefix;
        let a = self.find(id).filter(|a| follows(a, prefix))?;
        let owner = a.owner;
        let old = a.port.subnets().find(|also| !prefix.contains(also.address))?;
        let (net, length) = (old.net(), old.subnet?);
        // One that is there already is counted.
        if a.port.subnets().any(|also| prefix.contains(also.address)) {
            return None;
        }
        let Err(NoSpot::Short { .. } | NoSpot::Share { .. }) = self.allows_subnet(owner, length)
        else {
            return None;
        };
        let also = &mut self.attachments.get_mut(id)?.port.also;
        also.iter_mut().find(|also| also.net() == net)?.role = Role::Going(until);
        self.find(id)
    }

    /// A subnet for an attachment in the making.
    pub(super) fn draw_subnet<E>(
        &mut self,
        owner: Uid,
        length: Length,
        now: Instant,
        random: impl FnMut() -> Result<u128, E>,
    ) -> Result<Result<Ipv6Net, NoSpot>, E> {
        if let Err(no) = self.allows_subnet(owner, length) {
            return Ok(Err(no));
        }
        let prefix = self.terms.prefix;
        let range = self.slices.of(owner, prefix).unwrap_or(prefix);
        let drawn = self.pool.draw_subnet((range, length), owner, now, random)?;
        Ok(drawn.ok_or(NoSpot::Subnets { length, range }))
    }

    fn coming(
        &mut self,
        id: &AttachmentId,
        net: Ipv6Net,
        length: Length,
        gateway: Ipv6Addr,
    ) -> Option<(Attachment, Also)> {
        let also =
            Also { address: net.network(), subnet: Some(length), gateway, role: Role::Coming };
        let a = self.attachments.get_mut(id)?;
        a.port.also.push(also);
        self.by_net.insert(net, id.clone());
        Some(((**a).clone(), also))
    }

    /// Takes over an address or a subnet that a record says is somebody's.
    pub(super) fn adopt_net(&mut self, net: Ipv6Net) -> bool {
        let address = net.network();
        match Length::new(net.prefix_len()) {
            Some(_) => self.pool.adopt_subnet(net),
            // Of a prefix that is not in force any more there may be some.
            None if self.terms.prefix.contains(address) => self.pool.adopt(address),
            None => self.pool.keep(address),
        }
    }

    /// Undoes it: nobody has had it.
    pub(super) fn give_net_back(&mut self, net: Ipv6Net) {
        match Length::new(net.prefix_len()) {
            Some(_) => self.pool.give_subnet_back(&net),
            None => self.pool.give_back(net.addr()),
        }
    }

    /// Ends its use; it rests from now on.
    pub(super) fn release_net(&mut self, net: Ipv6Net, owner: Uid, now: Instant) {
        match Length::new(net.prefix_len()) {
            Some(_) => self.pool.release_subnet(net, owner, now),
            None => self.pool.release(net.addr(), owner, now),
        }
    }
}

/// Whether its subnet is still of another prefix than its address, which is of this one.
pub(super) fn follows(a: &Attachment, prefix: Prefix) -> bool {
    let stays = |also: &&Also| matches!(also.role, Role::Staying);
    prefix.contains(a.port.address)
        && a.port.subnets().filter(stays).any(|also| !prefix.contains(also.address))
}

#[cfg(test)]
#[path = "book_subnets_tests.rs"]
mod tests;
