//! What the book has of a namespace, and the place in it of an attachment that is to be made.
//!
//! Guarantee: from the question what is there until the answer nobody else changes the book, and nobody loads the
//! rules. Of two who ask for one namespace, one makes the attachment.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rand::TryRng as _;
use rand::rngs::{SysError, SysRng};
use v6pod_proto::LinkName;

use super::holding::holder;
use super::making::Attempt;
use super::meeting::{self, Under};
use super::{Ask, Ledger, Refused, Shared, completing, is_in, opening, placing};
use crate::core::attachment::{Attachment, Holder};
use crate::core::book::{Found, NoSpot, Refusal, Wanted};
use crate::core::description::Place;
use crate::core::open::OpenPorts;
use crate::failpoint;
use crate::kernel::{NetNs, Process, Worker};

/// The interface's name inside, unless the caller wants another or it is taken.
const INTERFACE: &str = "eth0";

/// What came of the question.
pub(super) enum Outcome {
    /// Nothing is to be made, or not yet.
    Settled((Attempt, Option<Process>)),
    /// This is.
    Reserved(Box<Reserved>),
}

/// An attachment that is to be made by who reserved it, and by nobody else.
pub(super) struct Reserved {
    pub attachment: Attachment,
    pub ns: NetNs,
    /// Whether its interface has the name that was asked for, or none at all.
    pub interface_is_a_wish: bool,
    /// With whom it ends.
    pub process: Option<Process>,
    /// The asker's own, where the attachment is the pod's that he is in.
    pub member: Option<Process>,
}

/// Asks the book about this namespace, which is at that place, and reserves an attachment if there is none.
pub(super) fn reserve(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    ask: &Ask,
    place: Place,
    ns: NetNs,
    process: Option<Process>,
) -> Result<Outcome, Refused> {
    let owner = place.owner;
    // What is said of a container may open something.
    let rules = shared.rules.hold();
    let mut ledger = shared.ledger();
    if placing::lacks_name(&ledger, ask, owner, &place.namespace) {
        return Ok(Outcome::Settled((Attempt::Unnamed(ns), process)));
    }
    match ledger.book.at(owner, &place.namespace) {
        Found::InMotion => return Ok(Outcome::Settled((Attempt::InMotion(ns), process))),
        Found::Attached(found) => {
            let under = Under { rules, ledger };
            return meeting::meet(shared, worker, ask, (ns, found), under, process)
                .map(Outcome::Settled);
        }
        Found::Nothing if !ask.plug => {
            ask.open_ports(shared, owner, ledger.book.room(owner, None))?;
            ask.choice()?;
            ask.subnet(shared, &mut ledger.book, owner)?;
            completing::keep(shared, &mut ledger, ask, place, process.as_ref());
            return Err(Refused::Unknown);
        }
        Found::Nothing => {}
    }
    let runs = |holder: Holder| {
        let process = Process::pin(holder.pid).ok()?;
        let same = process.start_time() == holder.start_time;
        (same && is_in(&process, &ns, worker)).then_some(process)
    };
    let (ask, first) = match completing::for_pod(&ledger, ask, place, runs) {
        Some((pod, first)) => (pod, Some(first)),
        None => (completing::completed(&ledger, ask, place)?, None),
    };
    let until = first.as_ref().or(process.as_ref());
    let Some(attachment) = take_a_place(shared, &mut ledger, &ask, place, until)? else {
        // The next attempt is the asker's as well.
        return Ok(Outcome::Settled((Attempt::InMotion(ns), process)));
    };
    let (process, member) = match first {
        Some(first) => (Some(first), process),
        None => (process, None),
    };
    let interface_is_a_wish = ask.interface.is_some();
    let reserved = Reserved { attachment, ns, interface_is_a_wish, process, member };
    Ok(Outcome::Reserved(Box::new(reserved)))
}

/// The attachment in the book; none if there will be room for it soon.
fn take_a_place(
    shared: &Arc<Shared>,
    ledger: &mut Ledger,
    ask: &Ask,
    place: Place,
    process: Option<&Process>,
) -> Result<Option<Attachment>, Refused> {
    let owner = place.owner;
    let container = ask.container.as_ref();
    let replaced = container.map_or_else(Vec::new, |c| ledger.book.starts_of(owner, c));
    let open = ask.open_ports(shared, owner, ledger.book.room(owner, None))?;
    let subnet = ask.subnet(shared, &mut ledger.book, owner)?;
    let wanted = Wanted { subnet, ..wanted(ask, place, process, open)? };
    let made = match ledger.book.reserve(wanted, Instant::now(), random) {
        Ok(made) => made.clone(),
        Err(Refusal::Spot(NoSpot::Soon(other))) => {
            placing::make_room(shared, ledger, ask, &other);
            return Ok(None);
        }
        Err(refusal) => return Err(refuse(refusal)),
    };
    shared.keep_slices(ledger);
    opening::tell_unopened(&made.id, &made.open);
    // A container has one namespace at a time. Podman 5 makes the next one before the old
    // slirp4netns has ended, and nobody is to be shown two addresses of one container.
    failpoint::reach("making:reserved");
    for id in replaced {
        shared.release_under(ledger, &id, "its container has been started again");
    }
    Ok(Some(made))
}

/// What is asked for, but for a subnet.
fn wanted(
    ask: &Ask,
    place: Place,
    process: Option<&Process>,
    open: OpenPorts,
) -> Result<Wanted, Refused> {
    let interface = match &ask.interface {
        Some(name) => name.clone(),
        None => link(INTERFACE)?,
    };
    Ok(Wanted {
        owner: place.owner,
        container: ask.container.clone(),
        name: ask.name.clone(),
        wishes: ask.wishes.clone(),
        found: ask.found.clone(),
        choice: ask.choice()?,
        subnet: None,
        open,
        namespace: place.namespace,
        interface,
        holder: process.map(holder),
        lease: ask.lease,
        network: ask.network.clone(),
        attempt: ask.attempt,
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
    })
}

fn refuse(refusal: Refusal<SysError>) -> Refused {
    match refusal {
        Refusal::Spot(no) => no.into(),
        Refusal::Quota { .. } => Refused::Quota(refusal.to_string()),
        Refusal::Addresses(_) => Refused::Full(refusal.to_string()),
        Refusal::Random(_) => Refused::Failed(refusal.to_string()),
    }
}

/// The name of a link, from one of this program's own.
pub(super) fn link(name: &str) -> Result<LinkName, Refused> {
    name.parse().map_err(|_| Refused::Failed("a link's name is not one".to_owned()))
}

/// 128 bits of the system's generator.
pub(super) fn random() -> Result<u128, SysError> {
    let mut bytes = [0; 16];
    SysRng.try_fill_bytes(&mut bytes)?;
    Ok(u128::from_ne_bytes(bytes))
}
