//! What is open of attachments, and how much of that there is.
//!
//! Guarantees: what the kernel is still to be told is known until it is; of each owner, and of all, the elements that
//! the kernel has or is to have are counted.

use v6pod_proto::{AttachmentId, Uid};

use super::Book;
use crate::core::attachment::Phase;
use crate::core::hole::Holes;
use crate::core::open::OpenPorts;

impl Book {
    /// What is open of an attachment changes. Gives the elements that it had; nothing if it is not there,
    /// or not at rest. The caller has the kernel follow ([`Book::follow`]).
    pub fn open(&mut self, id: &AttachmentId, open: OpenPorts) -> Option<Holes> {
        let a = self.attachments.get_mut(id)?;
        if matches!(a.phase, Phase::Reserved | Phase::Releasing) {
            return None;
        }
        let now = open.holes();
        a.open = open;
        let before = self.set_holes(id, now)?;
        self.behind.entry(id.clone()).or_insert_with(|| before.clone());
        Some(before)
    }

    /// Whether the kernel is still to be told what is open of this attachment.
    pub fn is_behind(&self, id: &AttachmentId) -> bool {
        self.behind.contains_key(id)
    }

    /// What the kernel has open of an attachment, and what it is to have; nothing if that is the same, or
    /// if it ends. Afterwards the kernel is taken to have it.
    pub fn follow(&mut self, id: &AttachmentId) -> Option<(Holes, Holes)> {
        let before = self.behind.remove(id)?;
        Some((before, self.find(id)?.port.open.clone()))
    }

    /// How many elements of openings this owner may have beyond those of his other attachments than this
    /// one.
    pub fn room(&self, owner: Uid, but: Option<&AttachmentId>) -> usize {
        let its = but.and_then(|id| self.find(id)).map_or(0, |a| a.port.open.each().len());
        let all = self.holes.get(&owner).copied().unwrap_or(0);
        (Holes::MOST_OF_OWNER + its).saturating_sub(all)
    }

    /// How many elements of openings there are of all owners.
    pub fn all_holes(&self) -> usize {
        self.holes.values().sum()
    }

    /// Gives those that it had.
    pub(super) fn set_holes(&mut self, id: &AttachmentId, now: Holes) -> Option<Holes> {
        let a = self.attachments.get_mut(id)?;
        let (more, owner) = (now.each().len(), a.owner);
        let before = std::mem::replace(&mut a.port.open, now);
        self.count_holes(owner, more, before.each().len());
        Some(before)
    }

    pub(super) fn count_holes(&mut self, owner: Uid, more: usize, less: usize) {
        let count = self.holes.entry(owner).or_default();
        *count = *count + more - less;
        if *count == 0 {
            self.holes.remove(&owner);
        }
    }
}
