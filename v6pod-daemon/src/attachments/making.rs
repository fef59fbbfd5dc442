//! How attachments are made.
//!
//! One job on a worker's thread does all that can block: it asks whose namespace this is, reserves,
//! records, runs the steps. Two requests for one namespace meet in the book: the second waits until
//! the first has come to rest, and then finds its attachment.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::TryRng as _;
use rand::rngs::{SysError, SysRng};
use tokio::time::timeout_at;
use v6pod_proto as proto;
use v6pod_proto::{AttachmentId, Happening, LinkName, Uid};

use super::completing;
use super::holding::{Hold, Unheard, holder};
use super::meeting::{self, Under};
use super::metrics::Part;
use super::{
    AT_WORK, Ask, Lease, PATIENCE, Refused, Shared, ending, is_in, joining, opening, placing,
};
use crate::closer::Foreign;
use crate::container::NotFound;
use crate::core::attachment::{Attachment, Holder, NamespaceId, Phase};
use crate::core::book::{Found, NoSpot, Refusal, Wanted};
use crate::core::description;
use crate::core::open::OpenPorts;
use crate::core::step;
use crate::failpoint;
use crate::kernel::wire::Wire;
use crate::kernel::{self, NetNs, NotANetNs, Process, Worker};
use crate::report::chain;

/// The interface's name inside, unless the caller wants another or it is taken.
const INTERFACE: &str = "eth0";

/// The name if that one is taken: pasta and netavark bring an eth0 of their own.
const SECOND_INTERFACE: &str = "v6eth0";

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
    let ns = match namespace {
        Namespace::Sent(foreign) => {
            let verify =
                |fd| NetNs::verify(fd, worker.home()).map_err(|no| (no.why, no.descriptor));
            let verified = foreign.examine(verify).unwrap_or(Err(NotANetNs::NotANamespace));
            verified.map_err(not_a_netns)?
        }
        Namespace::Opened(fd) => {
            NetNs::verify(fd, worker.home()).map_err(|refused| not_a_netns(refused.why))?
        }
        Namespace::Known(ns) => ns,
    };
    let owner = whose(&ns, ask)?;
    let identity = worker.identify(&ns)?;
    let id = NamespaceId { inode: identity.inode, cookie: identity.cookie };
    if id.cookie.is_none() {
        release_mistaken(shared, worker, owner, &id, &ns)?;
    }
    let process = process.filter(|process| ask.may_be_held_by(process, &ns, worker));
    shared.metrics.took(Part::Check, began.elapsed());

    let (attachment, interface_is_a_wish, process, member) = {
        // What is said of a container may open something.
        let rules = shared.rules.hold();
        let mut ledger = shared.ledger();
        if placing::lacks_name(&ledger, ask, owner, &id) {
            return Ok((Attempt::Unnamed(ns), process));
        }
        match ledger.book.at(owner, &id) {
            Found::InMotion => return Ok((Attempt::InMotion(ns), process)),
            Found::Attached(found) => {
                let under = Under { rules, ledger };
                return meeting::meet(shared, worker, ask, (ns, found), under, process);
            }
            Found::Nothing if !ask.plug => {
                ask.open_ports(shared, owner, ledger.book.room(owner, None))?;
                ask.choice()?;
                ask.subnet(shared, &mut ledger.book, owner)?;
                let place = description::Place { owner, namespace: id };
                completing::keep(shared, &mut ledger, ask, place, process.as_ref());
                return Err(Refused::Unknown);
            }
            Found::Nothing => {}
        }
        let place = description::Place { owner, namespace: id };
        let runs = |holder: Holder| {
            let process = Process::pin(holder.pid).ok()?;
            let same = process.start_time() == holder.start_time;
            (same && is_in(&process, &ns, worker)).then_some(process)
        };
        let (ask, process, member) = match completing::for_pod(&ledger, ask, place, runs) {
            Some((pod, first)) => (pod, Some(first), process),
            None => (completing::completed(&ledger, ask, place)?, process, None),
        };
        let container = ask.container.as_ref();
        let replaced = container.map_or_else(Vec::new, |c| ledger.book.starts_of(owner, c));
        let open = ask.open_ports(shared, owner, ledger.book.room(owner, None))?;
        let subnet = ask.subnet(shared, &mut ledger.book, owner)?;
        let wanted = Wanted { subnet, ..wanted(&ask, owner, id, process.as_ref(), open)? };
        let made = match ledger.book.reserve(wanted, Instant::now(), random) {
            Ok(made) => made.clone(),
            Err(Refusal::Spot(NoSpot::Soon(other))) => {
                placing::make_room(shared, &mut ledger, &ask, &other);
                return Ok((Attempt::InMotion(ns), process));
            }
            Err(refusal) => return Err(refuse(refusal)),
        };
        shared.keep_slices(&mut ledger);
        opening::tell_unopened(&made.id, &made.open);
        // A container has one namespace at a time. Podman 5 makes the next one before the old
        // slirp4netns has ended, and nobody is to be shown two addresses of one container.
        failpoint::reach("making:reserved");
        for id in replaced {
            shared.release_under(&mut ledger, &id, "its container has been started again");
        }
        (made, ask.interface.is_some(), process, member)
    };
    let (id, generation) = (attachment.id.clone(), attachment.generation);
    let made = make(shared, worker, attachment, &ns, interface_is_a_wish);
    shared.rested.notify_waiters();
    made?;
    if member.is_some() {
        joining::join(shared, &mut shared.ledger(), ask, &id, member);
    }
    let hold = Hold::Mine(generation, process, Unheard::of(shared, &id, generation, ask.lease));
    Ok((Attempt::Attached { id, hold, renamed: false }, None))
}

/// Before Linux 5.14 a namespace has no cookie, and its inode may have been another's a moment ago, of
/// whose end the news is still on its way. Then that one's port does not lead here, and it has ended.
fn release_mistaken(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    owner: Uid,
    namespace: &NamespaceId,
    ns: &NetNs,
) -> Result<(), Refused> {
    let found = {
        let ledger = shared.ledger();
        match ledger.book.at(owner, namespace) {
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

/// What is asked for, but for a subnet.
fn wanted(
    ask: &Ask,
    owner: Uid,
    namespace: NamespaceId,
    process: Option<&Process>,
    open: OpenPorts,
) -> Result<Wanted, Refused> {
    let interface = match &ask.interface {
        Some(name) => name.clone(),
        None => link(INTERFACE)?,
    };
    Ok(Wanted {
        owner,
        container: ask.container.clone(),
        name: ask.name.clone(),
        wishes: ask.wishes.clone(),
        found: ask.found.clone(),
        choice: ask.choice()?,
        subnet: None,
        open,
        namespace,
        interface,
        holder: process.map(holder),
        lease: ask.lease,
        network: ask.network.clone(),
        attempt: ask.attempt,
        since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
    })
}

const ENDED: Refused = Refused::NotReady("the attachment was ended while it was made");

/// Records the attachment and runs its steps. If any of it fails, nothing is left.
fn make(
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

fn link(name: &str) -> Result<LinkName, Refused> {
    name.parse().map_err(|_| Refused::Failed("a link's name is not one".to_owned()))
}

/// 128 bits of the system's generator.
pub(super) fn random() -> Result<u128, SysError> {
    let mut bytes = [0; 16];
    SysRng.try_fill_bytes(&mut bytes)?;
    Ok(u128::from_ne_bytes(bytes))
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

fn refuse(refusal: Refusal<SysError>) -> Refused {
    match refusal {
        Refusal::Spot(no) => no.into(),
        Refusal::Quota { .. } => Refused::Quota(refusal.to_string()),
        Refusal::Addresses(_) => Refused::Full(refusal.to_string()),
        Refusal::Random(_) => Refused::Failed(refusal.to_string()),
    }
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
