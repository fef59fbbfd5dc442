//! How attachments end.
//!
//! Guarantees: what has ended is withdrawn from the registry and let go of at once, and taken out of
//! the kernel behind the caller's back. Until the kernel is clean the record stays and the address
//! is nobody else's. A failed undo is tried again; a restart tries once more. Before anything is
//! undone the record says that the attachment has ended, so a daemon that dies in between does not
//! take up what somebody was told is removed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv6Net;
use tokio::sync::mpsc;
use tokio::time::sleep;
use v6pod_proto::{AttachmentId, Happening, Uid};

use super::resting::Rested;
use super::{Ended, Ledger, Shared};
use crate::core::attachment::Attachment;
use crate::core::book::Released;
use crate::failpoint;
use crate::kernel::{self, Worker};

/// How long the end of a lease is not yet the end: podman up to 4.9 starts the next slirp4netns in
/// the same namespace when the old one has gone.
const GRACE: Duration = Duration::from_millis(500);

/// How often taking away is tried, and how long between.
const TRIES: u32 = 5;
pub(super) const BETWEEN: Duration = Duration::from_secs(1);

/// Acts on the ends of leases and holders, for as long as the daemon runs.
pub(super) async fn heed(shared: Arc<Shared>, mut news: mpsc::UnboundedReceiver<Ended>) {
    while let Some(Ended { id, generation }) = news.recv().await {
        if !shared.ledger().book.ended(&id, generation) {
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            sleep(GRACE).await;
            let mut ledger = shared.ledger();
            if ledger.book.grace_over(&id, generation) {
                shared.release_under(&mut ledger, &id, "its lease or its process has ended");
            }
        });
    }
}

impl Shared {
    /// Ends an attachment now, whatever it is doing.
    pub(super) fn release(self: &Arc<Self>, id: &AttachmentId, why: &str) -> Released {
        self.release_under(&mut self.ledger(), id, why)
    }

    /// The same, for those who have looked something up first.
    pub(super) fn release_under(
        self: &Arc<Self>,
        ledger: &mut Ledger,
        id: &AttachmentId,
        why: &str,
    ) -> Released {
        let released = ledger.book.begin_release(id);
        failpoint::reach("ending:booked");
        if matches!(released, Released::Yours(_) | Released::ByItsMaker)
            && let Err(error) = self.records.end(id)
        {
            // It is taken away all the same; only a crash before that would bring it back.
            tracing::warn!(attachment = %id, %error, "cannot record the end");
        }
        failpoint::reach("ending:marked");
        if let Released::Yours(attachment) = &released {
            tracing::info!(
                attachment = %id, owner = %attachment.owner, address = %attachment.port.address,
                "released: {why}"
            );
            self.tell(Happening::Released, attachment, None, Some(why.to_owned()));
            self.holds.end(id);
            self.dismiss(ledger, id);
            self.unname(ledger, id);
            failpoint::reach("ending:withdrawn");
            self.sweep_soon((**attachment).clone());
        }
        released
    }

    /// The kernel says that a port is gone, and with it the namespace at its other end.
    pub(super) fn port_gone(self: &Arc<Self>, ifindex: u32) {
        let mut ledger = self.ledger();
        if let Some(id) = ledger.book.port_gone(ifindex) {
            self.release_under(&mut ledger, &id, "its namespace or its interface is gone");
        }
    }

    /// Undoes what was made for the attachment, until nothing is left, and forgets it.
    pub(super) async fn take_away(self: &Arc<Self>, attachment: Attachment) {
        for attempt in 1..=TRIES {
            let (shared, a) = (Arc::clone(self), attachment.clone());
            let undo = move |worker: &mut Worker| undo(&shared, worker, &a);
            match self.sweeper.run_for(attachment.owner, undo).await {
                Ok(()) => return self.forget(&attachment),
                Err(Undone(errors)) => tracing::warn!(
                    attachment = %attachment.id, attempt, errors = %join(&errors),
                    "could not take everything away"
                ),
            }
            sleep(BETWEEN).await;
        }
        tracing::error!(
            attachment = %attachment.id, port = %attachment.port.name,
            address = %attachment.port.address,
            "gave up taking it away; its record stays, and the next start tries again"
        );
    }

    /// Nothing is left in the kernel: the record goes, and then all memory of it but that its address
    /// rests.
    pub(super) fn forget(&self, attachment: &Attachment) {
        // Under one lock, so that nobody writes the resting addresses anew in between.
        let mut ledger = self.ledger();
        self.note_rest(attachment);
        failpoint::reach("ending:rested");
        if let Err(error) = self.records.remove(&attachment.id) {
            // After a restart it is undone once more, which finds nothing to do.
            tracing::warn!(attachment = %attachment.id, %error, "cannot remove the record");
        }
        failpoint::reach("ending:forgotten");
        let now = Instant::now();
        ledger.book.forget(&attachment.id, now);
        if self.resting.is_stale(ledger.book.pool().resting()) {
            let pool = ledger.book.pool();
            let addresses = pool.all_resting().map(|(address, rest)| (address.into(), rest));
            let ages = addresses.chain(pool.resting_subnets()).map(|(net, rest)| Rested {
                net,
                age: now.duration_since(rest.since),
                owner: rest.owner,
            });
            if let Err(error) = self.resting.rewrite(ages) {
                tracing::warn!(%error, "cannot write anew which addresses rest");
            }
        }
        drop(ledger);
        self.metrics.released();
        self.rested.notify_waiters();
    }

    /// Has its addresses rest over a restart too.
    pub(super) fn note_rest(&self, attachment: &Attachment) {
        let each = attachment.port.nets();
        each.for_each(|net| self.note_rest_of(net, attachment.owner));
    }

    /// The same for one address or subnet alone.
    pub(super) fn note_rest_of(&self, net: Ipv6Net, owner: Uid) {
        if self.config.quarantine.is_zero() {
            return;
        }
        if let Err(error) = self.resting.note(net, owner) {
            tracing::warn!(
                %net, %error, "cannot note that an address rests; a restart would forget it"
            );
        }
    }
}

/// What failed of an undo. Everything else was undone.
#[derive(Debug)]
pub(super) struct Undone(pub(super) Vec<kernel::Error>);

impl From<kernel::Error> for Undone {
    fn from(error: kernel::Error) -> Self {
        Self(vec![error])
    }
}

/// Undoes all steps in reverse. Every one is tried, whatever became of those before.
pub(super) fn undo(
    shared: &Shared,
    worker: &mut Worker,
    attachment: &Attachment,
) -> Result<(), Undone> {
    shared.rules.let_changes_end();
    let _rules = shared.rules.hold();
    let errors = kernel::wire::undo_all(worker, &shared.host(), &attachment.port);
    if errors.is_empty() { Ok(()) } else { Err(Undone(errors)) }
}

pub(super) fn join(errors: &[kernel::Error]) -> String {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
