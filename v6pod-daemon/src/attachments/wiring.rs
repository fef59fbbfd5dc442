//! What is reserved is recorded, and its steps are run.
//!
//! Guarantees: the record is written before the first step. If anything fails, nothing is left: neither of the
//! steps, nor the record, nor the attachment in the book.

use std::sync::Arc;
use std::time::Instant;

use super::metrics::Part;
use super::reserving::link;
use super::{Refused, Shared, ending};
use crate::core::attachment::{Attachment, Phase};
use crate::core::step;
use crate::failpoint;
use crate::kernel::wire::Wire;
use crate::kernel::{self, NetNs, Worker};

/// The name of the interface inside if the first is taken: pasta and netavark bring an eth0 of their own.
const SECOND_INTERFACE: &str = "v6eth0";

const ENDED: Refused = Refused::NotReady("the attachment was ended while it was made");

/// Records the attachment and runs its steps. If any of it fails, nothing is left.
pub(super) fn make(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    mut attachment: Attachment,
    ns: &NetNs,
    interface_is_a_wish: bool,
) -> Result<(), Refused> {
    let made = record(shared, &attachment).and_then(|()| {
        // An end before there was a record could not be marked in it, and is not to be lost with a crash.
        let ended = |a: &Attachment| a.phase != Phase::Reserved;
        if shared.ledger().book.find(&attachment.id).is_none_or(ended) {
            return Err(ENDED);
        }
        let began = Instant::now();
        let mut wired = wire(shared, worker, &attachment, ns);
        if wired.as_ref().is_err_and(kernel::Error::has_no_rules) {
            match shared.look_after_rules(worker) {
                Ok(()) => wired = wire(shared, worker, &attachment, ns),
                Err(error) => tracing::error!(%error, "cannot put the firewall's rules back"),
            }
        }
        if wired.as_ref().is_err_and(|error| error.name_taken().is_some()) && !interface_is_a_wish {
            attachment.port.interface = link(SECOND_INTERFACE)?;
            shared.ledger().book.rename_interface(&attachment.id, &attachment.port.interface);
            record(shared, &attachment)?;
            failpoint::reach("making:renamed");
            wired = wire(shared, worker, &attachment, ns);
        }
        // The kernel looks at names first.
        if wired.as_ref().is_err_and(kernel::Error::is_full) {
            overflow(shared, worker, &mut attachment)?;
            wired = wire(shared, worker, &attachment, ns);
        }
        shared.metrics.took(Part::Wire, began.elapsed());
        wired.map_err(|error| {
            tracing::warn!(attachment = %attachment.id, %error, "could not attach");
            error.into()
        })
    });
    let abandoned = match made {
        Ok(ifindex) if shared.ledger().book.wired(&attachment.id, ifindex) => {
            failpoint::reach("making:wired");
            return Ok(());
        }
        Ok(_) => ENDED,
        Err(refused) => refused,
    };
    // Marks it as on its way out, if nobody has yet.
    let _ = shared.ledger().book.begin_release(&attachment.id);
    let undone = ending::undo(shared, worker, &attachment);
    failpoint::reach("making:failed");
    match undone {
        Ok(()) => shared.forget(&attachment),
        Err(ending::Undone(errors)) => {
            tracing::warn!(
                attachment = %attachment.id, errors = %ending::join(&errors),
                "could not undo an attachment that failed; trying again"
            );
            let shared = Arc::clone(shared);
            shared.runtime.clone().spawn(async move { shared.take_away(attachment).await });
        }
    }
    Err(abandoned)
}

/// The bridge has no room: others have put ports of theirs on it. The attachment gets a routed port, and
/// nobody notices. What it has by now is of a bridge port, and goes before the record says otherwise.
fn overflow(
    shared: &Shared,
    worker: &mut Worker,
    attachment: &mut Attachment,
) -> Result<(), Refused> {
    let (id, host) = (attachment.id.clone(), shared.host());
    tracing::debug!(attachment = %id, bridge = %host.links.bridge, "the bridge is full; routing");
    {
        // Whoever loads the rules meanwhile would load those of the bridge port again.
        let _rules = shared.rules.hold();
        kernel::wire::undo(worker, &host, &attachment.port, &step::Step::Rules)?;
        attachment.port = shared.ledger().book.reroute(&id).ok_or(ENDED)?.port.clone();
    }
    record(shared, attachment)?;
    failpoint::reach("making:overflowed");
    Ok(())
}

fn record(shared: &Shared, attachment: &Attachment) -> Result<(), Refused> {
    let began = Instant::now();
    let written = shared.records.write(attachment);
    failpoint::reach("making:recorded");
    shared.metrics.took(Part::Record, began.elapsed());
    written.map_err(|error| {
        tracing::error!(attachment = %attachment.id, %error, "cannot write a record");
        Refused::Failed("the daemon cannot write its record; its log says why".to_owned())
    })
}

/// Runs all steps; at the first that fails, the error. Gives the port's index.
fn wire(
    shared: &Shared,
    worker: &mut Worker,
    attachment: &Attachment,
    ns: &NetNs,
) -> Result<u32, kernel::Error> {
    let host = shared.host();
    let _rules = shared.rules.hold();
    let mut wire = Wire::new(worker, &host, &attachment.port, ns);
    for step in step::attach(attachment.port.mode) {
        wire.run(step)?;
        failpoint::reach_step("making", step);
    }
    wire.settle();
    wire.trim();
    Ok(wire.ifindex().unwrap_or_default())
}

impl From<kernel::Error> for Refused {
    fn from(error: kernel::Error) -> Self {
        if error.is_full() {
            Self::Full("the bridge takes no more ports".to_owned())
        } else if error.name_taken().is_some() {
            Self::Taken("the namespace has an interface of that name already")
        } else if error.has_no_ipv6() {
            // Not 422, which would keep the container from starting at all.
            Self::Taken(
                "IPv6 is switched off in this network namespace; set \
                 net.ipv6.conf.default.disable_ipv6=0 in it before it is attached",
            )
        } else if error.is_gone() {
            Self::NotReady("the network namespace went away meanwhile")
        } else {
            Self::Failed("the kernel refused a step; the daemon's log says which".to_owned())
        }
    }
}
