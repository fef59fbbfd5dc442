//! A request that finds an attachment at its namespace, and what has to become of that before it is answered.
//!
//! Guarantees: what may not be asked for, or cannot be had, is refused before anything that was said is noted; what is
//! granted (openings, another address, a subnet) is in force when the request is answered. What was booked for a
//! request that fails goes again.

use std::sync::{Arc, MutexGuard, RwLockReadGuard};

use v6pod_proto::AttachmentId;

use super::completing::{self, Existing};
use super::making::{Attempt, Attempted};
use super::placing::{self, Place};
use super::{Ask, Ledger, Refused, Shared, subnets};
use crate::core::attachment::Attachment;
use crate::core::step::Also;
use crate::kernel::{NetNs, Process, Worker};

/// What is held while a request is looked at.
pub(super) struct Under<'a> {
    /// Nobody loads the rules meanwhile: what is said of a container may open something.
    pub rules: RwLockReadGuard<'a, ()>,
    /// Nobody else changes the book.
    pub ledger: MutexGuard<'a, Ledger>,
}

/// What is to come to an attachment, with its record.
struct Booked {
    /// Another address.
    place: Option<(Attachment, Also)>,
    /// A subnet.
    subnet: Option<(Attachment, Also)>,
}

/// Grants what the request asks for to the attachment that it finds.
pub(super) fn meet(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    ask: &Ask,
    (ns, found): (NetNs, AttachmentId),
    under: Under<'_>,
    process: Option<Process>,
) -> Attempted {
    let Under { rules, mut ledger } = under;
    let owner = ns.owner();
    ask.open_ports(shared, owner, ledger.book.room(owner, Some(&found)))?;
    let place = placing::place(shared, &mut ledger, ask, &found)?;
    let length = subnets::wanted(shared, &mut ledger, ask, &found)?;
    shared.keep_slices(&mut ledger);
    if matches!(place, Place::Later) {
        return Ok((Attempt::InMotion(ns), process));
    }
    // Before anything that was said is noted: who asks again is to find that he has not been served.
    let place = placing::book(shared, &mut ledger, &found, place)?;
    let subnet = subnets::book(shared, &mut ledger, &found, length);
    let (booked, refused) = match subnet {
        Ok(subnet) => (Booked { place, subnet }, None),
        Err(refused) => (Booked { place, subnet: None }, Some(refused)),
    };
    let existing = match refused {
        None => completing::existing(shared, &mut ledger, ask, &found, process),
        Some(refused) => Err(refused),
    };
    let existing = existing.inspect_err(|_| booked.given_up(shared, &mut ledger, &found))?;
    let Existing::Attached { hold, renamed, pending } = existing else {
        // Nobody is to see an address of it once this is answered.
        return Ok((Attempt::InMotion(ns), None));
    };
    drop(ledger);
    let renamed = renamed || booked.place.is_some();
    let enforced = shared.enforce(worker, rules, pending);
    enforced
        .and_then(|()| booked.give(shared, worker, &ns))
        .inspect_err(|_| booked.given_up(shared, &mut shared.ledger(), &found))?;
    Ok((Attempt::Attached { id: found, hold, renamed }, None))
}

impl Booked {
    /// Gives all of it to the container in this namespace.
    fn give(&self, shared: &Arc<Shared>, worker: &mut Worker, ns: &NetNs) -> Result<(), Refused> {
        if let Some(place) = &self.place {
            placing::replace(shared, worker, ns, place)?;
        }
        self.subnet.as_ref().map_or(Ok(()), |subnet| subnets::give(shared, worker, ns, subnet))
    }

    /// None of it is to be.
    fn given_up(&self, shared: &Shared, ledger: &mut Ledger, id: &AttachmentId) {
        if self.place.is_some() {
            placing::given_up(shared, ledger, id);
        }
        if self.subnet.is_some() {
            subnets::given_up(shared, ledger, id);
        }
    }
}
