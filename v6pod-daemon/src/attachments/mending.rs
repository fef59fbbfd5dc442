//! Attachments that serve are whole, or made whole again, and so is what surrounds them: the rest of each prefix
//! is unreachable.

use std::sync::Arc;

use v6pod_proto::AttachmentId;

use super::Shared;
use crate::core::Prefix;
use crate::core::attachment::{Attachment, Phase};
use crate::core::step::Step;
use crate::kernel::mend::{is_whole, mend};
use crate::kernel::{self, Observed, Worker};

/// Looks at every attachment that serves, and gives back what somebody took from it.
pub(super) async fn mend_all(shared: &Arc<Shared>, observed: Observed) {
    let state = Arc::clone(shared);
    let job = move |worker: &mut Worker| {
        for id in torn(&state, &observed) {
            mend_one(&state, worker, &observed, &id);
        }
        Ok::<_, kernel::Error>(())
    };
    if let Err(error) = shared.workers.run(job).await {
        tracing::error!(%error, "cannot look after attachments");
    }
}

/// Has the rest of each prefix be unreachable again, if somebody took that route away. Whoever manages a host's
/// network may do so with what is not his own: systemd-networkd 257 does when it starts and when it stops.
pub(super) async fn hold_ranges(shared: &Arc<Shared>) {
    let state = Arc::clone(shared);
    let job = move |worker: &mut Worker| {
        let ranges = || state.topology().prefixes().map(Prefix::net).collect::<Vec<_>>();
        let held = kernel::host::hold_ranges(&mut worker.socket, &state.links, ranges())?;
        // If one went out of use meanwhile, its undo may have come before this.
        let still = ranges();
        for net in held.iter().filter(|net| !still.contains(net)) {
            kernel::host::reach_again(&mut worker.socket, &state.links, *net)?;
        }
        Ok::<_, kernel::Error>(held)
    };
    match shared.workers.run(job).await {
        Ok(held) => {
            for range in held {
                tracing::warn!(%range, "somebody took its unreachable route away; put back");
                shared.tell_repair("the route of what no container has");
            }
        }
        Err(error) => tracing::error!(%error, "cannot have the rest of a prefix be unreachable"),
    }
}

/// Those of which something is missing.
fn torn(shared: &Shared, observed: &Observed) -> Vec<AttachmentId> {
    let ledger = shared.ledger();
    ledger.book.shown().filter(|a| is_torn(a, observed).is_some()).map(|a| a.id.clone()).collect()
}

/// The number of its port, if something of it is missing. What came after the look is not torn: without a port
/// that was seen there is nothing to be said.
fn is_torn(a: &Attachment, observed: &Observed) -> Option<u32> {
    let serves = matches!(a.phase, Phase::Serving | Phase::Ending);
    let there = |i: &u32| observed.ports.iter().any(|port| port.ifindex == *i && port.up);
    a.ifindex.filter(|_| serves).filter(there).filter(|i| !is_whole(observed, &a.port, *i))
}

/// The same for one that is yet to be taken up. A failure waits for the next look.
pub(super) fn mend_at_start(
    shared: &Shared,
    worker: &mut Worker,
    observed: &Observed,
    attachment: &Attachment,
    ifindex: u32,
) {
    let mended = mend(worker, &shared.host(), observed, &attachment.port, ifindex);
    tell(attachment, mended);
}

fn mend_one(shared: &Shared, worker: &mut Worker, observed: &Observed, id: &AttachmentId) {
    // Nobody takes one of its addresses away meanwhile: kernel and book agree on which it has.
    let _rules = shared.rules.hold();
    let _alone = shared.rules.change_alone();
    let Some(a) = shared.ledger().book.find(id).cloned() else { return };
    let Some(ifindex) = is_torn(&a, observed) else { return };
    let host = shared.host();
    tell(&a, mend(worker, &host, observed, &a.port, ifindex));
    // If all of it ended meanwhile, its undo may have come before this.
    if shared.ledger().book.find(id).is_some_and(|a| a.phase != Phase::Releasing) {
        return;
    }
    for step in [Step::Route, Step::Neighbour] {
        if let Err(error) = kernel::wire::undo(worker, &host, &a.port, &step) {
            tracing::error!(attachment = %id, %error, "cannot take it away again");
        }
    }
}

fn tell(attachment: &Attachment, mended: Result<(), kernel::Error>) {
    match mended {
        Ok(()) => tracing::warn!(
            attachment = %attachment.id, address = %attachment.port.address,
            "somebody took a part of it away; put back"
        ),
        Err(error) => tracing::error!(attachment = %attachment.id, %error, "cannot put it back"),
    }
}
