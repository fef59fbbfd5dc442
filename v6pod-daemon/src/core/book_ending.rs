//! How attachments end, and how their ends are told from those of earlier starts.
//!
//! Guarantees: the news of an older generation ends nothing; one is taken away by one caller; what it had is somebody
//! else's only after [`Book::forget`].

use std::collections::HashSet;
use std::time::Instant;

use v6pod_proto::{AttachmentId, Mode};

use super::{Book, remove_from};
use crate::core::attachment::{Attachment, Generation, Holder, Phase};

/// What [`Book::begin_release`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// No such attachment.
    Nothing,
    /// Somebody is at it.
    Already,
    /// It is still being made; its maker will see the mark and undo it.
    ByItsMaker,
    /// The caller takes it away now.
    Yours(Box<Attachment>),
}

impl Book {
    /// A new start of its container takes an attachment over, address and all (podman 3.2 to 4.9
    /// restart a container in its old namespace). The old lease's end means nothing from here on.
    pub fn take_over(
        &mut self,
        id: &AttachmentId,
        holder: Option<Holder>,
        lease: bool,
    ) -> Option<&Attachment> {
        let generation = self.next_generation();
        let a = self.attachments.get_mut(id)?;
        a.generation = generation;
        a.holder = holder;
        a.lease = lease;
        a.phase = Phase::Serving;
        Some(a)
    }

    /// The lease or the process of this generation has ended. True if that matters: the caller lets
    /// the grace pass and then asks [`Book::grace_over`].
    pub fn ended(&mut self, id: &AttachmentId, generation: Generation) -> bool {
        match self.attachments.get_mut(id) {
            Some(a)
                if a.generation == generation
                    && matches!(a.phase, Phase::Wired | Phase::Serving) =>
            {
                a.phase = Phase::Ending;
                true
            }
            _ => false,
        }
    }

    /// Whether this generation, whose end was seen, still is the latest.
    pub fn grace_over(&self, id: &AttachmentId, generation: Generation) -> bool {
        self.attachments
            .get(id)
            .is_some_and(|a| a.generation == generation && a.phase == Phase::Ending)
    }

    /// Begins to take an attachment away. `Some` at the first call only, and only for one that is
    /// whole: what is still being made is marked, and taken away by those who make it.
    pub fn begin_release(&mut self, id: &AttachmentId) -> Released {
        // Whatever of it the kernel has is to be taken away.
        if let Some(still) = self.behind.remove(id)
            && let Some(a) = self.attachments.get(id)
        {
            let both = a.port.open.and(&still);
            self.set_holes(id, both);
        }
        let Some(a) = self.attachments.get_mut(id) else { return Released::Nothing };
        match std::mem::replace(&mut a.phase, Phase::Releasing) {
            Phase::Releasing => Released::Already,
            Phase::Reserved => Released::ByItsMaker,
            Phase::Wired | Phase::Serving | Phase::Ending => Released::Yours(a.clone()),
        }
    }

    /// The kernel says that the port is gone: its index may be another's soon.
    pub fn port_gone(&mut self, ifindex: u32) -> Option<AttachmentId> {
        self.by_ifindex.remove(&ifindex)
    }

    /// The ports that the book knows. Of these, what a look at the kernel that begins *after* this does
    /// not find has ended; of those that the book comes to know meanwhile it says nothing.
    pub fn ports(&self) -> HashSet<u32> {
        self.by_ifindex.keys().copied().collect()
    }

    /// Ends the attachment: nothing of it is left.
    pub fn forget(&mut self, id: &AttachmentId, now: Instant) {
        let Some(a) = self.attachments.remove(id) else { return };
        self.released += 1;
        self.behind.remove(id);
        self.count_holes(a.owner, 0, a.port.open.each().len());
        self.bridged -= usize::from(a.port.mode == Mode::Bridge);
        self.replacing.remove(id);
        self.giving.remove(id);
        for net in a.port.nets() {
            self.release_net(net, a.owner, now);
            self.by_net.remove(&net);
        }
        self.macs.remove(&a.port.mac);
        if let Some(ifindex) = a.ifindex
            && self.by_ifindex.get(&ifindex) == Some(id)
        {
            self.by_ifindex.remove(&ifindex);
        }
        remove_from(&mut self.by_inode, &a.namespace.inode, id);
        remove_from(&mut self.by_container, &(a.owner, a.container), id);
        if let Some(count) = self.per_owner.get_mut(&a.owner) {
            *count -= 1;
            if *count == 0 {
                self.per_owner.remove(&a.owner);
            }
        }
    }
}
