//! How attachments are made.
//!
//! One job on a worker's thread does all that can block: it asks whose namespace this is, has an attachment
//! [reserved](super::reserving), and has it [wired](super::wiring). Two requests for one namespace meet in
//! the book: the second waits until the first has come to rest, and then finds its attachment.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;
use v6pod_proto as proto;
use v6pod_proto::{AttachmentId, Happening, Uid};

use super::holding::{Hold, Unheard};
use super::metrics::Part;
use super::reserving::{self, Outcome, Reserved};
use super::{AT_WORK, Ask, Lease, PATIENCE, Refused, Shared, joining, wiring};
use crate::closer::Foreign;
use crate::container::NotFound;
use crate::core::attachment::{NamespaceId, Phase};
use crate::core::book::Found;
use crate::core::description::Place;
use crate::failpoint;
use crate::kernel::{self, NetNs, NotANetNs, Process, Worker};
use crate::report::chain;

/// When podman's files are read again that could not be.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// Why nobody can say which address is a container's stable one.
const UNREAD: Refused = Refused::NotReady(
    "podman's files could not be read, so nobody knows by which name its address goes",
);

/// A namespace on its way through the questions.
enum Namespace {
    /// As it came from a caller.
    Sent(Foreign),
    /// As the daemon opened it.
    Opened(OwnedFd),
    /// Known to be a network namespace, and whose.
    Known(NetNs),
}

/// What one attempt came to.
pub(super) enum Attempt {
    /// The attachment, made or found.
    Attached {
        id: AttachmentId,
        /// What the asker's hold on it is.
        hold: Hold,
        /// Whether what was there is to bear another name now.
        renamed: bool,
    },
    /// Somebody is at work on this namespace.
    InMotion(NetNs),
    /// The name that its container's address goes by could not be read.
    Unnamed(NetNs),
}

/// [`super::Attachments::activate_descriptor`].
pub(super) async fn activate(
    shared: &Arc<Shared>,
    ask: Ask,
    fd: Foreign,
) -> Result<(proto::Attachment, Option<Lease>), Refused> {
    let process = ask.holder.map(|holder| holder.pid());
    let pin = move || process.and_then(|pid| Process::pin(pid).ok());
    run(shared, ask, Namespace::Sent(fd), pin).await
}

/// [`super::Attachments::activate_by_id`].
pub(super) async fn activate_by_id(
    shared: &Arc<Shared>,
    mut ask: Ask,
) -> Result<proto::Attachment, Refused> {
    let container = ask.container.clone().ok_or(Refused::Unknown)?;
    let found = shared.containers.find(ask.asker, &container).await.map_err(|why| {
        tracing::info!(
            owner = %ask.asker, container = container.short(), why = chain(&why), "not found"
        );
        match why {
            NotFound::User(..) | NotFound::Container(..) => Refused::Unknown,
            NotFound::Unread(_) => Refused::NotReady("the container's files could not be read yet"),
        }
    })?;
    let owner = ask.asker;
    let job = move |_: &mut Worker| -> Result<(OwnedFd, Process), Refused> {
        let pid = found.pid.unsigned_abs();
        let process = Process::pin(pid).map_err(|_| Refused::Unknown)?;
        // A process id may be another's by now; then its start time is another one too.
        if found.start_time.is_some_and(|time| time != process.start_time()) {
            return Err(Refused::Unknown);
        }
        let namespace = process.net_ns().map_err(|_| Refused::Unknown)?;
        // The host's own network is what most processes are in. Of another's process even that is not
        // told: it is asked here whose it is, and not by the network namespace alone.
        if !process.is_of(owner) {
            return Err(Refused::Unknown);
        }
        Ok((namespace, process))
    };
    let (namespace, process) = shared.work_for(ask.caller, job).await?;
    if ask.name.is_none() {
        ask.look_up_name(shared).await;
    }
    let asked = run(shared, ask, Namespace::Opened(namespace), move || Some(process)).await;
    match asked {
        // Here the descriptor is ours: whose namespace it is must not be told to one who guesses.
        Err(Refused::NotYours) => Err(Refused::Unknown),
        other => other.map(|(view, _)| view),
    }
}

async fn run(
    shared: &Arc<Shared>,
    mut ask: Ask,
    mut namespace: Namespace,
    pin: impl FnOnce() -> Option<Process> + Send + 'static,
) -> Result<(proto::Attachment, Option<Lease>), Refused> {
    let (began, lease, caller, plug) = (Instant::now(), ask.lease, ask.caller, ask.plug);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    if ask.needs_name() {
        ask.look_up_name(shared).await;
    }
    let mut pin: Option<Box<dyn FnOnce() -> Option<Process> + Send>> = Some(Box::new(pin));
    let mut process = None;
    loop {
        let rested = shared.rested.notified();
        let (state, asked, first) = (Arc::clone(shared), ask.clone(), pin.take());
        let job = move |worker: &mut Worker| {
            let process: Option<Process> = first.map_or(process, |pin| pin());
            attempt(&state, worker, &asked, namespace, process)
        };
        let worked = shared.work_for(caller, job).await;
        // To find nothing is what most who only describe expect.
        let count = |refused: &Refused| {
            if plug || *refused != Refused::Unknown {
                shared.metrics.refused(refused.word());
            }
        };
        match worked.inspect_err(count)? {
            (Attempt::Attached { id, hold, renamed }, _) => {
                if renamed && let Some(attachment) = shared.ledger().book.find(&id) {
                    shared.name_in_background(attachment);
                }
                return finish(shared, &id, hold, lease, began);
            }
            (Attempt::InMotion(known), kept) => {
                (namespace, process) = (Namespace::Known(known), kept);
                timeout_at(deadline, rested)
                    .await
                    .map_err(|_| Refused::NotReady("another request is at this namespace"))?;
            }
            (Attempt::Unnamed(known), kept) => {
                (namespace, process) = (Namespace::Known(known), kept);
                let again = async {
                    tokio::time::sleep(READ_AGAIN).await;
                    ask.look_up_name(shared).await;
                };
                timeout_at(deadline, again).await.map_err(|_| UNREAD)?;
            }
        }
    }
}

impl Shared {
    /// Has a worker do something for a caller, in his turn.
    pub(super) async fn work_for<T: Send + 'static>(
        &self,
        caller: Uid,
        job: impl FnOnce(&mut Worker) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        if self.workers.busy_for(caller) >= AT_WORK {
            return Err(Refused::NotReady("too many of your requests are at work"));
        }
        self.workers.run_for(caller, job).await
    }
}

/// Back on the runtime: the answer, and what goes on behind it.
fn finish(
    shared: &Arc<Shared>,
    id: &AttachmentId,
    hold: Hold,
    lease: bool,
    began: Instant,
) -> Result<(proto::Attachment, Option<Lease>), Refused> {
    const GONE: Refused = Refused::NotReady("the attachment ended while it was made");
    let mut ledger = shared.ledger();
    let fresh = ledger.book.find(id).is_some_and(|a| a.phase == Phase::Wired);
    ledger.book.serving(id);
    let attachment = ledger.book.find(id).cloned().ok_or(GONE)?;
    let view = shared.view(&ledger, &attachment).ok_or(GONE)?;
    let lease = match hold {
        Hold::Mine(generation, process, unheard) if generation == attachment.generation => {
            unheard.heard();
            shared.hold(id, generation, process, lease)
        }
        _ => None,
    };
    if !ledger.book.terms().prefix.contains(attachment.port.address) {
        // The prefix has changed since its address was drawn, or it had no process until now.
        shared.changing.woken.notify_one();
    }
    drop(ledger);
    failpoint::reach("making:answering");
    if fresh {
        shared.metrics.made();
        shared.metrics.took(Part::Total, began.elapsed());
        tracing::info!(
            attachment = %id, owner = %attachment.owner, container = attachment.container.short(),
            address = %attachment.port.address, "attached"
        );
        shared.tell(Happening::Attached, &attachment, None, None);
        shared.name_in_background(&attachment);
    }
    Ok((view, lease))
}

pub(super) type Attempted = Result<(Attempt, Option<Process>), Refused>;

/// On a worker's thread: all of an activation that asks the kernel.
fn attempt(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    ask: &Ask,
    namespace: Namespace,
    process: Option<Process>,
) -> Attempted {
    let began = Instant::now();
    let ns = verify(worker, namespace)?;
    let owner = whose(&ns, ask)?;
    let identity = worker.identify(&ns)?;
    let id = NamespaceId { inode: identity.inode, cookie: identity.cookie };
    if id.cookie.is_none() {
        release_mistaken(shared, worker, &id, &ns)?;
    }
    let process = process.filter(|process| ask.may_be_held_by(process, &ns, worker));
    shared.metrics.took(Part::Check, began.elapsed());

    let place = Place { owner, namespace: id };
    let reserved = match reserving::reserve(shared, worker, ask, place, ns, process)? {
        Outcome::Settled(settled) => return Ok(settled),
        Outcome::Reserved(reserved) => *reserved,
    };
    let Reserved { attachment, ns, interface_is_a_wish, process, member } = reserved;
    let (id, generation) = (attachment.id.clone(), attachment.generation);
    let made = wiring::make(shared, worker, attachment, &ns, interface_is_a_wish);
    shared.rested.notify_waiters();
    made?;
    if member.is_some() {
        joining::join(shared, &mut shared.ledger(), ask, &id, member);
    }
    let hold = Hold::Mine(generation, process, Unheard::of(shared, &id, generation, ask.lease));
    Ok((Attempt::Attached { id, hold, renamed: false }, None))
}

/// The network namespace that it is, if it is one.
fn verify(worker: &mut Worker, namespace: Namespace) -> Result<NetNs, Refused> {
    match namespace {
        Namespace::Sent(foreign) => {
            let verify =
                |fd| NetNs::verify(fd, worker.home()).map_err(|no| (no.why, no.descriptor));
            let verified = foreign.examine(verify).unwrap_or(Err(NotANetNs::NotANamespace));
            verified.map_err(not_a_netns)
        }
        Namespace::Opened(fd) => {
            NetNs::verify(fd, worker.home()).map_err(|refused| not_a_netns(refused.why))
        }
        Namespace::Known(ns) => Ok(ns),
    }
}

/// Before Linux 5.14 a namespace has no cookie, and its inode may have been another's a moment ago, of
/// whose end the news is still on its way. Then that one's port does not lead here, and it has ended.
fn release_mistaken(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    namespace: &NamespaceId,
    ns: &NetNs,
) -> Result<(), Refused> {
    let found = {
        let ledger = shared.ledger();
        match ledger.book.at(ns.owner(), namespace) {
            Found::Attached(id) => ledger.book.find(&id).cloned(),
            Found::Nothing | Found::InMotion => None,
        }
    };
    if let Some(found) = found
        && !kernel::wire::leads_to(worker, &shared.host(), &found.port, ns)?
    {
        shared.release(&found.id, "its namespace has ended, and another has its number");
    }
    Ok(())
}

/// The owner of the attachment that is asked for, if the asker may ask for it.
fn whose(ns: &NetNs, ask: &Ask) -> Result<Uid, Refused> {
    let owner = ns.owner();
    let own = owner == ask.asker && !ns.in_initial_userns();
    if own || ask.any_owner { Ok(owner) } else { Err(Refused::NotYours) }
}

fn not_a_netns(why: NotANetNs) -> Refused {
    match why {
        NotANetNs::Own => {
            Refused::WrongKind("this is the host's own network; a container on it needs no address")
        }
        NotANetNs::Foreign => Refused::NotYours,
        NotANetNs::NotANamespace | NotANetNs::PathOnly | NotANetNs::OtherKind => {
            Refused::WrongKind("the descriptor is not that of a network namespace")
        }
    }
}
