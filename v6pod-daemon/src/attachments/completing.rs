//! What becomes of a request where an attachment already is, or where one is only spoken of.
//!
//! The network program says that a container wants a network, and holds the lease; the OCI hook says
//! which container it is, and what it asks for. They come in either order. Guarantees: together they
//! are one attachment, with the hook's words and the program's lease; a word is never lost to the
//! order; and what is another container's (a pod's members share a namespace) is left as it is, but for the
//! name that a member adds. A pod's attachment is the pod's, whichever of its containers asks for it.

use std::sync::Arc;
use std::time::Instant;

use v6pod_proto::AttachmentId;

use super::holding::{Hold, Unheard, holder};
use super::opening::{self, Pending};
use super::{Ask, Ledger, Refused, Shared, joining};
use crate::core::attachment::{Holder, Phase};
use crate::core::description::{Description, Place};
use crate::core::open::OpenPorts;
use crate::failpoint;
use crate::kernel::Process;

/// What a request comes to where an attachment is.
pub(super) enum Existing {
    /// It stays.
    Attached {
        /// What the asker's hold on it is.
        hold: Hold,
        /// Whether it is to be named anew.
        renamed: bool,
        /// What is open of it by now, if that is not in force yet.
        pending: Option<Pending>,
    },
    /// It ends: its container wants none.
    Declined,
}

const UNCHANGED: Existing =
    Existing::Attached { hold: Hold::Others, renamed: false, pending: None };

const ENDED: Refused = Refused::NotReady("the attachment has just ended");

/// Keeps what was said of a container in a namespace that nobody has plugged yet.
pub(super) fn keep(
    shared: &Shared,
    ledger: &mut Ledger,
    ask: &Ask,
    place: Place,
    process: Option<&Process>,
) {
    let Some(container) = ask.container.clone() else { return };
    let description = Description {
        container,
        name: ask.name.clone(),
        wishes: ask.wishes.clone(),
        found: ask.found.clone(),
        process: process.map(holder),
    };
    if let Err(error) = shared.spoken.write(place, &description) {
        tracing::warn!(%error, "cannot write what was said of a container; a restart forgets it");
    }
    shared.spoken.forget(ledger.descriptions.keep(place, description, Instant::now()));
}

/// The request with what was said of its container before.
///
/// # Errors
/// [`Refused::Declined`]: the container wants no attachment.
pub(super) fn completed(ledger: &Ledger, ask: &Ask, place: Place) -> Result<Ask, Refused> {
    let mut ask = ask.clone();
    let now = Instant::now();
    let said = ledger.descriptions.of(place, ask.container.as_ref(), now);
    if let Some(Description { container, name, wishes, found, .. }) = said {
        ask.container.get_or_insert_with(|| container.clone());
        if ask.name.is_none() {
            ask.name.clone_from(name);
        }
        ask.wishes.complete(wishes);
        ask.found.complete(found);
    }
    if ask.declines() { Err(Refused::Declined) } else { Ok(ask) }
}

/// The same for the container that brought this network, where it is another of the same pod that asks for an
/// address: of kube YAML podman annotates the members alone. Whoever brought the network is called as the pod, and
/// runs as long as that does; which member comes first is chance, and it may be the first to end.
pub(super) fn for_pod(
    ledger: &Ledger,
    ask: &Ask,
    place: Place,
    runs: impl FnOnce(Holder) -> Option<Process>,
) -> Option<(Ask, Process)> {
    let asks = ask.container.as_ref().filter(|_| !ask.lease && !ask.exclusive)?;
    let first = ledger.descriptions.of(place, None, Instant::now())?;
    if first.container == *asks {
        return None;
    }
    let Description { container, name, mut wishes, found, process } = first.clone();
    wishes.complete(&ask.wishes);
    let pod = Ask { container: Some(container), name, wishes, found, ..ask.clone() };
    // By whichever name a stable address went that has not been read, it would be another one.
    if pod.declines() || pod.needs_name() {
        return None;
    }
    Some((pod, runs(process?)?))
}

/// What a request comes to where an attachment already is.
pub(super) fn existing(
    shared: &Arc<Shared>,
    ledger: &mut Ledger,
    ask: &Ask,
    id: &AttachmentId,
    process: Option<Process>,
) -> Result<Existing, Refused> {
    let there = ledger.book.find(id).ok_or(ENDED)?;
    if ask.exclusive {
        // Made by a daemon that ended before it could say so.
        let its_own = ask.attempt.is_some()
            && there.attempt == ask.attempt
            && ask.container.as_ref() == Some(&there.container);
        return match its_own {
            true => Ok(UNCHANGED),
            false => Err(Refused::Taken("this network namespace is attached already")),
        };
    }
    // Who does not know which container it is knows the namespace: he plugs it once more.
    let own = match &ask.container {
        Some(container) => there.container == *container || !there.is_identified(),
        None => true,
    };
    if !own {
        joining::join(shared, ledger, ask, id, process);
        return Ok(UNCHANGED);
    }
    if ask.declines() {
        shared.release_under(ledger, id, "its container asks for none");
        return Ok(Existing::Declined);
    }
    let (renamed, pending) = describe(shared, ledger, ask, id);
    let there = ledger.book.find(id).ok_or(ENDED)?;
    let ending = there.phase == Phase::Ending;
    // A lease is taken over by a lease alone, or by anybody once it has ended.
    let again = !there.lease && (process.is_some() || ask.container.is_none());
    if !ask.plug || !(ask.lease || ending || again) {
        return Ok(Existing::Attached { hold: Hold::Others, renamed, pending });
    }
    let held_by = process.as_ref().map(holder);
    let taken = ledger.book.take_over(id, held_by, ask.lease).ok_or(ENDED)?;
    failpoint::reach("takeover:booked");
    shared.metrics.taken_over();
    if let Err(error) = shared.records.write(taken) {
        // The old record names the old holder: after a restart the lease's end is not seen by it,
        // but by the port's.
        tracing::warn!(attachment = %id, %error, "cannot renew the record");
    }
    failpoint::reach("takeover:recorded");
    let unheard = Unheard::of(shared, id, taken.generation, ask.lease);
    Ok(Existing::Attached {
        hold: Hold::Mine(taken.generation, process, unheard),
        renamed,
        pending,
    })
}

/// Adds what was said of the container to its attachment. Whether the registry is to be told for that, the
/// name that it bore being taken away if it is to have another; and what of it has to come into force.
fn describe(
    shared: &Arc<Shared>,
    ledger: &mut Ledger,
    ask: &Ask,
    id: &AttachmentId,
) -> (bool, Option<Pending>) {
    let (Some(container), Some(there)) = (&ask.container, ledger.book.find(id)) else {
        return (false, None);
    };
    let (owner, identified) = (there.owner, there.is_identified());
    let (before, image) = (shared.offers(there), there.found.image.clone());
    let mut earlier = ledger.book.starts_of(owner, container);
    earlier.retain(|start| start != id);
    let Some(described) = ledger.book.describe(id, container, &ask.wishes, &ask.found) else {
        return (false, None);
    };
    let mut described = described.clone();
    let offers = shared.offers(&described);
    // Who asks for the same names keeps them, whatever else he asks for.
    let same = identified && offers.labels().eq(before.labels());
    let renamed = !same || offers != before || described.found.image != image;
    if let Some(rights) = &ask.rights
        && ask.opens()
    {
        let room = ledger.book.room(owner, Some(id));
        let terms = shared.open_terms(owner, rights.clone(), room);
        let (wishes, found) = (&described.wishes, &described.found);
        described.open = match described.open.is_changed() {
            true => described.open.clone().reaching(wishes, found, &terms),
            false => OpenPorts::asked(wishes, found, &terms),
        };
    }
    if let Err(error) = shared.records.write(&described) {
        // After a restart it is without what was said.
        tracing::warn!(attachment = %id, %error, "cannot add what was said to the record");
    }
    failpoint::reach("opening:described");
    let open = std::mem::take(&mut described.open);
    opening::tell_unopened(id, &open);
    let pending = shared.open(ledger, id, open);
    tracing::info!(attachment = %id, container = container.short(), "described");
    for line in &ask.found.ignored {
        tracing::info!(attachment = %id, container = container.short(), "ignored: {line}");
    }
    // A container has one namespace at a time: only now is it known that this is its next.
    for start in earlier {
        shared.release_under(ledger, &start, "its container has been started again");
    }
    if !same {
        shared.unname(ledger, id);
    }
    (renamed, pending)
}
