//! Which address an attachment gets that is not to have just any, and how one that has another gets it.
//!
//! Guarantees: what a container asks for is looked for in its owner's range alone. An address that is an
//! earlier start's of the same container, or of the same owner's and on its way out, is waited for, or a stable
//! address would be another one whenever somebody is quick. Where the network program comes before the hook
//! that knows of the wish, the attachment is given its address in the place of the first one: both are its own
//! until the first is let go of, and a crash in between leaves it what it had.

use std::net::Ipv6Addr;
use std::time::Instant;

use v6pod_proto::{AttachmentId, ContainerId, Uid};

use super::{Book, NoSpot, Spot};
use crate::core::Prefix;
use crate::core::attachment::{Attachment, Phase};
use crate::core::choice::{Choice, Slice};
use crate::core::step::{Also, Role};

/// Who asks: the owner, the container if it is known, and the attachment that it has already; and when.
type Who<'a> = (Uid, Option<&'a ContainerId>, Option<&'a AttachmentId>, Instant);

/// Whether an address can be had.
enum Standing {
    Free,
    Soon(AttachmentId),
    Not,
}

impl Book {
    /// Remembers an owner's slice that was chosen before the book was opened.
    pub fn recall_slice(&mut self, slice: Slice) {
        self.slices.recall(slice);
    }

    /// All slices, if one was chosen since this was asked last.
    pub fn new_slices(&mut self) -> Option<Vec<Slice>> {
        self.slices.news()
    }

    /// What this owner's addresses come from, if that has been chosen.
    pub fn range(&self, owner: Uid) -> Option<Prefix> {
        self.slices.known(owner, self.terms.prefix)
    }

    /// Where an attachment of this owner's is to be that asks for this now: `own`, if it is there already.
    ///
    /// # Errors
    /// It cannot be there, or not yet.
    pub fn spot(
        &mut self,
        owner: Uid,
        container: Option<&ContainerId>,
        choice: &Choice,
        own: Option<&AttachmentId>,
        now: Instant,
    ) -> Result<Spot, NoSpot> {
        let who = (owner, container, own, now);
        let prefix = self.terms.prefix;
        let range = self.slices.of(owner, prefix).ok_or(NoSpot::Slices(prefix))?;
        match choice {
            Choice::Any => Ok(Spot::Anywhere),
            Choice::Host(host) => self.at_host(range, *host, who),
            Choice::Preferably(host) => match self.at_host(range, *host, who) {
                Err(NoSpot::Taken(_) | NoSpot::Outside { .. }) => Ok(Spot::Anywhere),
                other => other,
            },
            Choice::Stable(name) => {
                for host in Choice::stable_hosts(&self.terms.secret, owner, name) {
                    let address = range.address(host);
                    match self.standing(address, who) {
                        Standing::Free => return Ok(Spot::At(address)),
                        Standing::Soon(id) => return Err(NoSpot::Soon(id)),
                        Standing::Not => {}
                    }
                }
                // A prefix so full that all of them are taken.
                Ok(Spot::Anywhere)
            }
        }
    }

    /// Whether the attachment is being given another address in the place of its first one.
    pub fn is_replacing(&self, id: &AttachmentId) -> bool {
        self.replacing.contains(id)
    }

    /// Has the attachment be given this address in the place of the one that it is known by. `None` if it has
    /// that, is still being made or on its way out, or if the address cannot be had.
    pub fn replace(
        &mut self,
        id: &AttachmentId,
        address: Ipv6Addr,
        now: Instant,
    ) -> Option<(Attachment, Also)> {
        let a = self.attachments.get_mut(id)?;
        let whole = matches!(a.phase, Phase::Wired | Phase::Serving | Phase::Ending);
        // One that follows the prefix is at two addresses already; it has what it asks for at its next start.
        let in_force = self.terms.prefix.contains(a.port.address)
            && a.port.also.iter().all(|also| also.subnet.is_some());
        if !whole || !in_force || !self.pool.take_for(address, a.owner, now) {
            return None;
        }
        let (subnet, gateway) = (None, a.port.gateway);
        let also = Also { address, subnet, gateway, role: Role::Coming };
        a.port.also.push(also);
        self.by_net.insert(address.into(), id.clone());
        self.replacing.insert(id.clone());
        Some(((**a).clone(), also))
    }

    /// It has been.
    pub fn replaced(&mut self, id: &AttachmentId) {
        self.replacing.remove(id);
    }

    /// It cannot be: what is still coming goes, and who asks for it again is not taken for served.
    pub fn not_replaced(&mut self, id: &AttachmentId) -> Option<&Attachment> {
        self.replacing.remove(id);
        let a = self.attachments.get_mut(id)?;
        a.forget_place();
        Some(a)
    }

    fn at_host(&self, range: Prefix, host: u64, who: Who<'_>) -> Result<Spot, NoSpot> {
        let address = range.address(host.into());
        if u128::from(host) > range.host_mask() || !self.pool.is_usable(address) {
            return Err(NoSpot::Outside { host, range });
        }
        match self.standing(address, who) {
            Standing::Free => Ok(Spot::At(address)),
            Standing::Soon(id) => Err(NoSpot::Soon(id)),
            Standing::Not => Err(NoSpot::Taken(address)),
        }
    }

    fn standing(&self, address: Ipv6Addr, (owner, container, own, now): Who<'_>) -> Standing {
        let Some(there) = self.by_address(address) else {
            return match self.pool.is_free_for(address, owner, now) {
                true => Standing::Free,
                false => Standing::Not,
            };
        };
        if own == Some(&there.id) {
            return Standing::Free;
        }
        let again = container == Some(&there.container);
        let leaves = matches!(there.phase, Phase::Ending | Phase::Releasing);
        match there.owner == owner && (again || leaves) {
            true => Standing::Soon(there.id.clone()),
            false => Standing::Not,
        }
    }
}

#[cfg(test)]
#[path = "book_placing_tests.rs"]
mod tests;
