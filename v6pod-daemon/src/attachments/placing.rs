//! Which address a container asks for, whether it may, and how it gets that where it has another.
//!
//! The network program often comes before the hook that knows what is asked for: then the container has
//! had an address for some milliseconds when the wish becomes known. Guarantees: what may not be asked for, or
//! cannot be had, is refused before anything is changed; what is granted is in force when the hook is
//! answered, before the container's first instruction, and the first address is gone from inside by then.
//! The record says what is coming before the kernel is touched, and that it is there before the first one goes;
//! whatever a crash leaves is taken away as an address that had its time ([`super::renumbering`]). Who was
//! refused may ask again, and is never answered with the first one.

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use v6pod_proto::wishes::{AddressWish, OtherWishes, Source};
use v6pod_proto::{AttachmentId, ContainerId, Happening, Uid, Wishes};

use super::renumbering::let_go_at;
use super::{Ask, Ledger, Refused, Shared};
use crate::core::attachment::{Attachment, NamespaceId};
use crate::core::book::{Found, NoSpot, Spot};
use crate::core::choice::Choice;
use crate::core::step::{Also, Port};
use crate::failpoint;
use crate::kernel::{self, NetNs, Worker, renumber};

/// Why nobody can say whether an address may be asked for.
const UNKNOWN: Refused =
    Refused::NotReady("the system does not say what you may ask for (addresses.wished)");

/// Where an attachment that is there is to be.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Where it is.
    Here,
    /// At another address.
    At(Ipv6Addr),
    /// At one that is to become free: later.
    Later,
}

impl Ask {
    /// Which address its container is to have.
    ///
    /// # Errors
    /// [`Refused::Wish`]: it asks for one that it may not ask for. [`Refused::NotReady`]: whether it may
    /// cannot be told.
    pub(super) fn choice(&self) -> Result<Choice, Refused> {
        let Self { wishes, found, name, container, .. } = self;
        self.choose(wishes, found, name.as_deref(), container.as_ref())
    }

    fn choose(
        &self,
        wishes: &Wishes,
        found: &OtherWishes,
        name: Option<&str>,
        container: Option<&ContainerId>,
    ) -> Result<Choice, Refused> {
        match Choice::said(wishes, found) {
            None => Ok(Choice::Any),
            Some((AddressWish::Stable, _)) => Ok(Choice::stable(wishes, found, name, container)),
            Some((wish @ AddressWish::Host(host), source)) => match self.places {
                // Whatever a label says, its container starts.
                Some(true) if source == Source::Label => Ok(Choice::Preferably(host)),
                Some(true) => Ok(Choice::Host(host)),
                None => Err(UNKNOWN),
                Some(false) if source == Source::Label => {
                    tracing::info!(
                        owner = %self.asker, %wish, "a label's v6pod.address is not allowed (addresses.wished)"
                    );
                    Ok(Choice::Any)
                }
                Some(false) => Err(Refused::Wish(format!(
                    "the {source} v6pod.address: {wish} is not yours to ask for; the administrator says who may \
                     (addresses.wished)"
                ))),
            },
        }
    }

    /// Whether its container asks for an address that goes by the name that its engine calls it by.
    pub(super) fn needs_name(&self) -> bool {
        let Self { wishes, found, .. } = self;
        let stable = matches!(Choice::said(wishes, found), Some((AddressWish::Stable, _)));
        let named = self.name.is_some() || Choice::is_called(wishes, found);
        stable && !named && !self.declines()
    }

    /// Asks podman's files what its container is called.
    pub(super) async fn look_up_name(&mut self, shared: &Shared) {
        let Some(container) = &self.container else { return };
        let said = shared.containers.name(self.asker, container).await;
        self.name_unread = said.is_err();
        self.name = said.ok().flatten().map(|name| name.name);
    }
}

/// Whether it cannot be told which address is asked for: it goes by a name that was not read. By another, the
/// container's id for one, a stable address would be another one.
pub(super) fn lacks_name(ledger: &Ledger, ask: &Ask, owner: Uid, namespace: &NamespaceId) -> bool {
    if !ask.name_unread || !ask.needs_name() {
        return false;
    }
    match ledger.book.at(owner, namespace) {
        Found::InMotion => false,
        Found::Nothing => true,
        // Its network program may have known it. What was known before has been applied.
        Found::Attached(id) => ledger.book.find(&id).is_some_and(|there| {
            let others = there.is_identified() && ask.container.as_ref() != Some(&there.container);
            let applied = Choice::said(&there.wishes, &there.found).is_some();
            there.name.is_none() && !others && !applied
        }),
    }
}

/// What a request that finds this attachment asks for with regard to its address, if that is news.
///
/// # Errors
/// It may not have it, or cannot.
pub(super) fn place(
    shared: &Arc<Shared>,
    ledger: &mut Ledger,
    ask: &Ask,
    id: &AttachmentId,
) -> Result<Place, Refused> {
    if ledger.book.is_replacing(id) || ledger.book.is_giving(id) {
        return Ok(Place::Later);
    }
    let Some(there) = ledger.book.find(id) else { return Ok(Place::Here) };
    let own = |c: &ContainerId| *c == there.container || !there.is_identified();
    let own = ask.container.as_ref().is_some_and(own);
    // What was known before has been applied.
    if !own
        || ask.exclusive
        || ask.declines()
        || Choice::said(&there.wishes, &there.found).is_some()
    {
        return Ok(Place::Here);
    }
    let (mut wishes, mut found) = (there.wishes.clone(), there.found.clone());
    wishes.complete(&ask.wishes);
    found.complete(&ask.found);
    let name = there.name.as_deref().or(ask.name.as_deref());
    let choice = ask.choose(&wishes, &found, name, ask.container.as_ref())?;
    let (owner, address) = (there.owner, there.port.address);
    if choice == Choice::Any {
        return Ok(Place::Here);
    }
    let spot = ledger.book.spot(owner, ask.container.as_ref(), &choice, Some(id), Instant::now());
    match spot {
        Ok(Spot::Anywhere) => Ok(Place::Here),
        Ok(Spot::At(there)) if there == address => Ok(Place::Here),
        Ok(Spot::At(there)) => Ok(Place::At(there)),
        Err(NoSpot::Soon(other)) => {
            make_room(shared, ledger, ask, &other);
            Ok(Place::Later)
        }
        Err(no) => Err(no.into()),
    }
}

/// The address that is asked for is still another attachment's: one of the same container, which has been
/// started again and ends with that, or one that is on its way out.
pub(super) fn make_room(
    shared: &Arc<Shared>,
    ledger: &mut Ledger,
    ask: &Ask,
    other: &AttachmentId,
) {
    let again =
        ledger.book.find(other).is_some_and(|a| Some(&a.container) == ask.container.as_ref());
    if again {
        shared.release_under(ledger, other, "its container has been started again");
    }
}

/// Books another address for an attachment, and records it. `None` if it is to stay where it is.
///
/// # Errors
/// It cannot be booked now, or not recorded.
pub(super) fn book(
    shared: &Shared,
    ledger: &mut Ledger,
    id: &AttachmentId,
    place: Place,
) -> Result<Option<(Attachment, Also)>, Refused> {
    let Place::At(address) = place else { return Ok(None) };
    let booked = ledger.book.replace(id, address, Instant::now());
    let (a, also) = booked.ok_or(Refused::NotReady("its address is being changed"))?;
    if let Err(error) = shared.records.write(&a) {
        given_up(shared, ledger, id);
        return Err(unrecorded(id, &error));
    }
    Ok(Some((a, also)))
}

fn unrecorded(id: &AttachmentId, error: &io::Error) -> Refused {
    tracing::error!(attachment = %id, %error, "cannot write a record");
    Refused::Failed("the daemon cannot write its record; its log says why".to_owned())
}

/// What was asked for is not to be. What was booked of it goes as soon as somebody looks after it.
pub(super) fn given_up(shared: &Shared, ledger: &mut Ledger, id: &AttachmentId) {
    if let Some(a) = ledger.book.not_replaced(id)
        && a.phase.shown().is_some()
        && let Err(error) = shared.records.write(a)
    {
        // Of what the record says is coming the next daemon thinks the same.
        tracing::warn!(attachment = %id, %error, "cannot record that it stays at its address");
    }
    shared.changing.woken.notify_one();
    shared.rested.notify_waiters();
}

/// Gives the container in this namespace the address that was booked, in the place of its first one.
///
/// # Errors
/// It has ended meanwhile, or the kernel refuses something. What was begun is taken away.
pub(super) fn replace(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    namespace: &NetNs,
    (a, also): &(Attachment, Also),
) -> Result<(), Refused> {
    let id = a.id.clone();
    let moved = replace_now(shared, worker, namespace, a, also);
    match moved {
        Ok(moved) => {
            tracing::info!(
                attachment = %id, owner = %a.owner, address = %moved.port.address,
                before = %a.port.address, "has the address that it asks for"
            );
            shared.ledger().book.replaced(&id);
            shared.rested.notify_waiters();
            shared.tell(Happening::Renumbered, &moved, None, None);
            let_go_soon(shared, &moved, a.port.address);
            Ok(())
        }
        Err(refused) => {
            given_up(shared, &mut shared.ledger(), &id);
            Err(refused)
        }
    }
}

fn replace_now(
    shared: &Shared,
    worker: &mut Worker,
    namespace: &NetNs,
    a: &Attachment,
    also: &Also,
) -> Result<Attachment, Refused> {
    const ENDED: Refused = Refused::NotReady("the attachment has just ended");

    failpoint::reach("replacing:coming");
    let ifindex = a.ifindex.ok_or(ENDED)?;
    let (host, new) = (shared.host(), a.port.with(also));
    {
        let _rules = shared.rules.hold();
        let _alone = shared.rules.change_alone();
        let open = shared.ledger().book.open_of(&a.id, also.net()).ok_or(ENDED)?;
        let new = Port { open, ..new.clone() };
        let made = renumber::make_ready(worker, &host, &new, ifindex);
        // If it ended meanwhile, its undo may have come before this.
        let ended = shared.ledger().book.find(&a.id).is_none_or(|a| a.phase.shown().is_none());
        if ended {
            renumber::unmake(worker, &host, &new, ifindex)?;
            return Err(ENDED);
        }
        made?;
    }
    failpoint::reach("replacing:ready");
    // The first one stays as it is until the record says that it goes: after a crash it may be the one that
    // stays.
    if !renumber::arrive(worker, &host, namespace, &new, &[], 0)? {
        return Err(ENDED);
    }
    failpoint::reach("replacing:arrived");
    let moved = {
        let mut ledger = shared.ledger();
        let there = ledger.book.find(&a.id).filter(|a| a.phase.shown().is_some()).ok_or(ENDED)?;
        let port = there.port.arrived(new.address, 0).ok_or(ENDED)?;
        let moved = Attachment { port, ..there.clone() };
        // The record before says what is coming: after a restart that goes, and the first one stays. So the
        // first one is not touched until there is another record.
        shared.records.write(&moved).map_err(|error| unrecorded(&a.id, &error))?;
        ledger.book.arrive(&a.id, new.address, 0).ok_or(ENDED)?;
        moved
    };
    failpoint::reach("replacing:moved");
    let gone = renumber::leave(worker, &host, namespace, &a.port, a.port.gateway);
    failpoint::reach("replacing:left");
    gone.map(|_| moved).map_err(kernel::Error::into)
}

/// Takes the host's side of the first address away behind the answer: its flows are looked for among all.
fn let_go_soon(shared: &Arc<Shared>, moved: &Attachment, first: Ipv6Addr) {
    let Some(also) = moved.port.also.iter().find(|also| also.address == first).copied() else {
        return;
    };
    let (shared, id) = (Arc::clone(shared), moved.id.clone());
    shared.runtime.clone().spawn(async move {
        let (state, which) = (Arc::clone(&shared), id.clone());
        let let_go = move |worker: &mut Worker| let_go_at(&state, worker, &which, also, None);
        if let Err(error) = shared.sweeper.run(let_go).await {
            tracing::warn!(attachment = %id, %error, "cannot take the first address away yet");
            shared.changing.woken.notify_one();
        }
    });
}

impl From<NoSpot> for Refused {
    fn from(no: NoSpot) -> Self {
        match no {
            NoSpot::Taken(_) | NoSpot::Outside { .. } => Self::Wish(format!("v6pod.address: {no}")),
            NoSpot::Short { .. } => Self::Wish(format!("v6pod.subnet: {no}")),
            NoSpot::Share { .. } => Self::Quota(no.to_string()),
            NoSpot::Slices(_) | NoSpot::Subnets { .. } => Self::Full(no.to_string()),
            NoSpot::Soon(_) => Self::NotReady("the address is still an earlier start's"),
        }
    }
}
