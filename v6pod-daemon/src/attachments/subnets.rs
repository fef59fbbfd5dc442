//! Which subnet a container asks for (`v6pod.subnet`), whether it may, and how it gets that.
//!
//! Guarantees: what may not be asked for is refused before anything is changed. A subnet that is
//! granted is a part of the attachment from its record on; where the network program comes before the hook that
//! knows of the wish, the record says that it is coming before the kernel is touched, and it is there when the
//! hook is answered, before the container's first instruction. What a crash leaves of one that was coming is taken
//! away as an address that had its time ([`super::renumbering`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use v6pod_proto::wishes::{OtherWishes, Source, SubnetWish};
use v6pod_proto::{AttachmentId, Uid, Wishes};

use super::renumbering::{Moved, epoch, namespace_of};
use super::reserving::random;
use super::{Ask, Ledger, Refused, Shared};
use crate::core::attachment::{Attachment, Phase};
use crate::core::book::{Book, NoSpot};
use crate::core::step::{Also, Port};
use crate::core::subnet::Length;
use crate::failpoint;
use crate::kernel::{self, NetNs, Worker, renumber};

/// Why nobody can say whether a subnet may be asked for.
const UNKNOWN: Refused =
    Refused::NotReady("the system does not say what you may ask for (addresses.wished)");

const ENDED: Refused = Refused::NotReady("the attachment has just ended");

/// The wish that counts, and where it comes from: an annotation before a pod's label before a label. An image
/// asks for nothing here.
pub(super) fn said(wishes: &Wishes, found: &OtherWishes) -> Option<(SubnetWish, Source)> {
    let all = [
        (wishes, Source::Annotation),
        (&found.pod_labels, Source::PodLabel),
        (&found.labels, Source::Label),
    ];
    all.into_iter().find_map(|(wishes, source)| Some((wishes.subnet?, source)))
}

impl Ask {
    /// How long the subnet is that its container is to have; none: it is to have none.
    ///
    /// # Errors
    /// [`Refused::Wish`]: it asks for one that it may not ask for, or that nobody can have here.
    /// [`Refused::NotReady`]: whether it may cannot be told.
    pub(super) fn subnet(
        &self,
        shared: &Shared,
        book: &mut Book,
        owner: Uid,
    ) -> Result<Option<Length>, Refused> {
        self.subnet_of(shared, book, owner, (&self.wishes, &self.found))
    }

    fn subnet_of(
        &self,
        shared: &Shared,
        book: &mut Book,
        owner: Uid,
        (wishes, found): (&Wishes, &OtherWishes),
    ) -> Result<Option<Length>, Refused> {
        let Some((wish, source)) = said(wishes, found) else { return Ok(None) };
        let why = match (self.places, Length::new(wish.length())) {
            (None, _) => return Err(UNKNOWN),
            (Some(false), _) => {
                "is not yours to ask for; the administrator says who may (addresses.wished)"
            }
            // The uplink answers for single addresses, and a whole subnet is routed or it is nothing.
            (Some(true), _) if shared.topology.proxy => {
                "cannot be had where the uplink answers for containers (ndp_proxy)"
            }
            (Some(true), None) => "is none of the lengths that there are: /96, /104, /112, /120",
            (Some(true), Some(length)) => match book.allows_subnet(owner, length) {
                Ok(()) => return Ok(Some(length)),
                Err(NoSpot::Short { .. }) => {
                    "is more than the range has that your addresses come from"
                }
                // Whatever a label says, its container starts.
                Err(no) if source == Source::Label => {
                    tracing::info!(owner = %self.asker, %wish, %no, "a label's v6pod.subnet is not given");
                    return Ok(None);
                }
                Err(no) => return Err(no.into()),
            },
        };
        if source == Source::Label {
            tracing::info!(owner = %self.asker, %wish, "a label's v6pod.subnet {why}");
            return Ok(None);
        }
        Err(Refused::Wish(format!("the {source} v6pod.subnet: {wish} {why}")))
    }
}

/// How long the subnet is that a request asks for that finds this attachment, if that has none.
///
/// # Errors
/// It may not have it, or cannot.
pub(super) fn wanted(
    shared: &Shared,
    ledger: &mut Ledger,
    ask: &Ask,
    id: &AttachmentId,
) -> Result<Option<Length>, Refused> {
    let Some(there) = ledger.book.find(id) else { return Ok(None) };
    let own = ask.container.as_ref();
    let own = own.is_some_and(|c| *c == there.container || !there.is_identified());
    let has = there.port.subnets().next().is_some();
    if !own || has || ask.exclusive || ask.declines() {
        return Ok(None);
    }
    let (mut wishes, mut found) = (there.wishes.clone(), there.found.clone());
    wishes.complete(&ask.wishes);
    found.complete(&ask.found);
    let owner = there.owner;
    ask.subnet_of(shared, &mut ledger.book, owner, (&wishes, &found))
}

/// Books a subnet for an attachment, and records it. `None` if it cannot be given one at the moment.
pub(super) fn book(
    shared: &Shared,
    ledger: &mut Ledger,
    id: &AttachmentId,
    length: Option<Length>,
) -> Result<Option<(Attachment, Also)>, Refused> {
    let Some(length) = length else { return Ok(None) };
    let given = ledger.book.give(id, length, Instant::now(), random);
    let given = given.map_err(|_| Refused::Failed("no random numbers".to_owned()))??;
    shared.keep_slices(ledger);
    let Some((a, also)) = given else { return Ok(None) };
    if let Err(error) = shared.records.write(&a) {
        tracing::error!(attachment = %id, %error, "cannot write a record");
        given_up(shared, ledger, id);
        return Err(Refused::Failed("the daemon cannot write its record; its log says why".into()));
    }
    Ok(Some((a, also)))
}

/// What was booked is not to be: it goes as soon as somebody looks after it.
pub(super) fn given_up(shared: &Shared, ledger: &mut Ledger, id: &AttachmentId) {
    ledger.book.not_given(id);
    shared.changing.woken.notify_one();
    shared.rested.notify_waiters();
}

/// Gives the container in this namespace the subnet that was booked.
///
/// # Errors
/// It has ended meanwhile, or the kernel refuses something. What was begun is taken away.
pub(super) fn give(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    namespace: &NetNs,
    (a, also): &(Attachment, Also),
) -> Result<(), Refused> {
    failpoint::reach("giving:coming");
    let given = give_now(shared, worker, namespace, a, *also);
    let mut ledger = shared.ledger();
    if let Err(refused) = given {
        given_up(shared, &mut ledger, &a.id);
        return Err(refused);
    }
    let Some(a) = ledger.book.given(&a.id, also.net()) else { return Err(ENDED) };
    if a.phase.shown().is_some()
        && let Err(error) = shared.records.write(a)
    {
        // The one before says that it is coming: after a restart it goes.
        tracing::warn!(attachment = %a.id, %error, "cannot record the subnet");
    }
    tracing::info!(attachment = %a.id, owner = %a.owner, subnet = %also.net(), "has its subnet");
    drop(ledger);
    failpoint::reach("giving:given");
    shared.rested.notify_waiters();
    Ok(())
}

fn give_now(
    shared: &Shared,
    worker: &mut Worker,
    namespace: &NetNs,
    a: &Attachment,
    also: Also,
) -> Result<(), Refused> {
    if !make_ready(shared, worker, a, also)? {
        return Err(ENDED);
    }
    failpoint::reach("giving:ready");
    let there = renumber::arrive_subnet(worker, &shared.host(), namespace, &a.port, also.net())?;
    failpoint::reach("giving:arrived");
    if there { Ok(()) } else { Err(ENDED) }
}

/// The host's side of a subnet. False if its attachment has ended meanwhile.
fn make_ready(
    shared: &Shared,
    worker: &mut Worker,
    a: &Attachment,
    also: Also,
) -> Result<bool, kernel::Error> {
    let Some(ifindex) = a.ifindex else { return Ok(false) };
    let (host, new) = (shared.host(), a.port.with(&also));
    let _rules = shared.rules.hold();
    let _alone = shared.rules.change_alone();
    // What is open of it may be another thing by now, and the subnet may have been let go of with its prefix.
    let open = shared.ledger().book.open_of(&a.id, also.net());
    let Some(open) = open else { return Ok(false) };
    let new = Port { open, ..new };
    let made = renumber::make_ready(worker, &host, &new, ifindex);
    // If it ended meanwhile, its undo may have come before this.
    let ended = shared.ledger().book.find(&a.id).is_none_or(|a| a.phase.shown().is_none());
    if ended {
        renumber::unmake(worker, &host, &new, ifindex)?;
        return Ok(false);
    }
    made.map(|()| true)
}

/// Those whose subnet is still of a prefix that is in force no more.
pub(super) fn outside(shared: &Shared) -> Vec<Attachment> {
    shared.ledger().book.with_subnets_outside().cloned().collect()
}

/// When what is of another prefix by now goes, in seconds since the epoch.
fn leaves_at(shared: &Shared) -> u64 {
    epoch().saturating_add(shared.config.grace.as_secs())
}

/// Has a subnet follow the prefix.
pub(super) fn bring(
    shared: &Shared,
    worker: &mut Worker,
    id: &AttachmentId,
    found: &HashMap<u64, Vec<u32>>,
) -> Result<Moved, kernel::Error> {
    let (a, also) = {
        let mut ledger = shared.ledger();
        if ledger.book.find(id).is_none_or(|a| matches!(a.phase, Phase::Reserved)) {
            return Ok(Moved::Not);
        }
        if let Some(a) = ledger.book.lose_subnet(id, leaves_at(shared)) {
            tracing::warn!(
                attachment = %id, owner = %a.owner, "the prefix is too small for its subnet, which goes"
            );
            if let Err(error) = shared.records.write(a) {
                // Then the next daemon comes to the same.
                tracing::warn!(attachment = %id, %error, "cannot record that its subnet goes");
            }
            return Ok(Moved::Not);
        }
        let brought = match ledger.book.bring_subnet(id, Instant::now(), random) {
            Ok(Some(brought)) => brought,
            Ok(None) => return Ok(Moved::Later("the prefix has no free subnet")),
            Err(_) => return Ok(Moved::Later("no random numbers")),
        };
        shared.keep_slices(&mut ledger);
        if let Err(error) = shared.records.write(&brought.0) {
            tracing::error!(attachment = %id, %error, "cannot write a record");
            return Ok(Moved::Later("its record cannot be written"));
        }
        brought
    };
    failpoint::reach("following:coming");
    if !make_ready(shared, worker, &a, also)? {
        return Ok(Moved::Not);
    }
    failpoint::reach("following:ready");
    let Some(namespace) = namespace_of(worker, &a, found) else {
        return Ok(Moved::Later("no process of it is found"));
    };
    if !renumber::arrive_subnet(worker, &shared.host(), &namespace, &a.port, also.net())? {
        return Ok(Moved::Later("its interface is not there"));
    }
    drop(namespace);
    failpoint::reach("following:arrived");
    let mut ledger = shared.ledger();
    let arrived = ledger.book.subnet_arrived(id, also.net(), leaves_at(shared));
    let Some(a) = arrived.cloned() else {
        return Ok(Moved::Not);
    };
    if a.phase.shown().is_some()
        && let Err(error) = shared.records.write(&a)
    {
        // The one before says what is coming, which the next daemon does again.
        tracing::warn!(attachment = %id, %error, "cannot record the new subnet");
    }
    drop(ledger);
    failpoint::reach("following:moved");
    Ok(Moved::Now(Box::new(a)))
}
