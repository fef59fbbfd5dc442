//! The thin middle: turns requests into steps, runs them and undoes them.
//!
//! Guarantees:
//! - A record is on disk before the kernel is touched, and goes after the kernel is clean.
//! - Every step that was begun and failed is undone, with all before it, in reverse.
//! - No request waits for the registry, for a deletion in the kernel, or for ever.
//! - The first of these ends an attachment: `deactivate`, the end of its lease, the end of its
//!   holder, the kernel's word that its port is gone. What ends by an older generation does not.
//!
//! The life: [`making`] → serving → [`ending`]; after a restart [`restoring`].

mod answering;
mod checking;
mod completing;
mod delegated;
mod ending;
mod events;
mod explaining;
mod flows;
mod heeding;
mod holding;
mod joining;
mod lasting;
mod lock;
mod making;
mod meeting;
pub(crate) mod memberships;
mod mending;
mod metrics;
mod naming;
mod obstacles;
mod opening;
mod placing;
pub(crate) mod prefixes;
mod proxying;
pub mod records;
mod renumbering;
mod reserving;
mod resting;
mod restoring;
mod rules;
pub(crate) mod spoken;
mod subnets;
mod sweeping;
mod traffic;
mod view;
mod wiring;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use v6pod_proto::wishes::{OtherWishes, Source, WishError};
use v6pod_proto::{
    Activate, Attachment, AttachmentId, ContainerId, LinkName, NetworkName, Uid, Wishes,
};

use crate::access::{Access, Standing};
use crate::closer::{Closer, Foreign};
use crate::config::Config;
use crate::container::Containers;
use crate::core::Links;
use crate::core::attachment::Generation;
use crate::core::book::{Book, Released};
use crate::core::choice::Choice;
use crate::core::description::Descriptions;
use crate::core::member::Members;
use crate::core::name::Names;
use crate::core::open::{NotOpened, OpenPorts, Rights, TooMany};
use crate::dns::Ranges;
use crate::kernel::traffic::Counters;
use crate::kernel::{self, NetNs, Process, Worker, Workers};
use crate::pace::Paces;
use crate::registry::{Embedded, Registrar};

pub use events::{Seen, Watching};
pub use metrics::Metrics;
pub use opening::Changer;
pub use restoring::{StartError, start};
pub(crate) use restoring::{prepare_folders, registrar};
pub use traffic::Measured;
pub use view::Viewer;

use events::Events;
use holding::Holds;
use joining::Watches;
use memberships::Memberships;
use naming::{Accounts, Conflicts};
use obstacles::Obstacles;
use prefixes::Changing;
use records::Records;
use resting::Resting;
use rules::Rules;
use spoken::Spoken;
use sweeping::Waiting;
use traffic::Readings;

/// How many requests for one caller may wait for the kernel or be at work there. Those whose caller
/// has gone count until their turn comes, which is then over at once.
const AT_WORK: usize = 256;

/// How long a request waits for one that is at work on the same namespace.
const PATIENCE: Duration = Duration::from_secs(4);

/// All attachments of this host. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Attachments(Arc<Shared>);

struct Shared {
    config: Config,
    links: Links,
    /// But for the prefixes, which change: [`Shared::topology`].
    topology: kernel::Topology,
    changing: Changing,
    /// The ranges of names by address.
    ranges: Ranges,
    /// As the kernel last had it: the uplink moves, the bridge may have to be made again.
    host: Mutex<kernel::Host>,
    /// Held by who brings the host's side about.
    preparing: Mutex<()>,
    rules: Rules,
    obstacles: Obstacles,
    started: Instant,
    ledger: Mutex<Ledger>,
    /// Woken whenever an attachment has come to rest: made, or gone.
    rested: Notify,
    records: Records,
    resting: Resting,
    spoken: Spoken,
    memberships: Memberships,
    /// Where requests are worked on.
    workers: Workers,
    /// Where it is asked whose a TCP connection is.
    askers: Workers,
    /// Where ports are deleted: ~20 ms each, which no request is to wait for.
    sweeper: Workers,
    paces: Paces,
    waiting: Waiting,
    containers: Containers,
    access: Access,
    registrar: Registrar,
    /// The names that the embedded registry has.
    names: Embedded,
    ended: mpsc::UnboundedSender<Ended>,
    holds: Holds,
    watches: Watches,
    closer: Closer,
    /// For work that a worker's thread leaves to the runtime.
    runtime: Handle,
    metrics: Metrics,
    readings: Readings<HashMap<u32, Counters>>,
    full: Readings<[usize; 2]>,
    accounts: Mutex<Accounts>,
    host_name: String,
    events: Events,
    /// Held as long as the daemon is: there is one of its instance.
    _lock: File,
}

/// What changes together.
struct Ledger {
    book: Book,
    names: Names,
    members: Members,
    conflicts: Conflicts,
    descriptions: Descriptions,
}

/// The news that a lease or a holder of this generation has ended.
#[derive(Debug)]
struct Ended {
    id: AttachmentId,
    generation: Generation,
}

/// A connection's hold on an attachment. When it is dropped, the lease has ended.
#[derive(Debug)]
pub struct Lease {
    id: AttachmentId,
    generation: Generation,
    ended: mpsc::UnboundedSender<Ended>,
    over: oneshot::Receiver<()>,
}

impl Lease {
    /// Waits until the lease holds nothing any more: another has taken over, or the attachment has
    /// ended by other means. The connection can go.
    pub async fn over(&mut self) {
        let _ = (&mut self.over).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Without a receiver the daemon is stopping, and leaves what serves in place.
        let _ = self.ended.send(Ended { id: self.id.clone(), generation: self.generation });
    }
}

/// A wish for an attachment, checked by itself; what it says about namespaces is still a claim.
#[derive(Debug, Clone)]
pub struct Ask {
    /// None from one who knows the namespace alone.
    container: Option<ContainerId>,
    name: Option<String>,
    /// Whether there may be a name in podman's files, which could not be read.
    name_unread: bool,
    wishes: Wishes,
    found: OtherWishes,
    /// Whose namespace it has to be.
    asker: Uid,
    /// In whose turn the work is done: whoever called.
    caller: Uid,
    /// What the asker may open; `None` if that cannot be told just now.
    rights: Option<Rights>,
    /// Whether the asker may ask for a certain address; `None` if that cannot be told just now.
    places: Option<bool>,
    /// Whether it may be anybody's instead.
    any_owner: bool,
    /// The process that is to hold the attachment.
    holder: Option<Holding>,
    lease: bool,
    plug: bool,
    exclusive: bool,
    attempt: Option<u64>,
    interface: Option<LinkName>,
    network: Option<NetworkName>,
}

/// A process that is to hold an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holding {
    /// The one at the other end of the lease, as the kernel says.
    Peer(u32),
    /// The container's first one, as the caller says.
    Claimed(u32),
}

impl Holding {
    const fn pid(self) -> u32 {
        match self {
            Self::Peer(pid) | Self::Claimed(pid) => pid,
        }
    }
}

/// The longest name of a container that is taken from a caller, in bytes.
const NAME: usize = 255;

impl Ask {
    /// For the namespace whose descriptor came along.
    ///
    /// # Errors
    /// [`Refused::Wish`]: an annotation is malformed.
    pub fn by_descriptor(request: Activate, asker: Uid, pid: u32) -> Result<Self, Refused> {
        let holder = match request.lease {
            true => Some(Holding::Peer(pid)),
            false => request.pid.map(Holding::Claimed),
        };
        Ok(Self { any_owner: asker.is_root(), holder, ..Self::of(request, asker)? })
    }

    /// For a running container, which is looked up by its owner and id. What the owner's files say
    /// is good for namespaces of his own alone, also if it is root who asks: else they would make
    /// root attach whatever they name.
    ///
    /// # Errors
    /// [`Refused::Wish`]: an annotation is malformed.
    pub fn by_id(request: Activate, owner: Uid, caller: Uid) -> Result<Self, Refused> {
        Ok(Self { caller, lease: false, ..Self::of(request, owner)? })
    }

    fn of(request: Activate, asker: Uid) -> Result<Self, Refused> {
        let wrong = |wrong: WishError| Refused::Wish(wrong.to_string());
        let images: Vec<_> = request.found.of(Source::ImageAnnotation).collect();
        let annotations = request.annotations.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let users = annotations.filter(|annotation| !images.contains(annotation));
        Ok(Self {
            wishes: Wishes::read(users).map_err(wrong)?,
            found: OtherWishes::read(&request.found).map_err(wrong)?,
            container: request.id,
            name: request.name.filter(|name| !name.is_empty() && name.len() <= NAME),
            name_unread: false,
            asker,
            caller: asker,
            rights: None,
            places: None,
            any_owner: false,
            holder: None,
            lease: request.lease,
            plug: request.plug,
            exclusive: request.exclusive,
            attempt: request.attempt,
            interface: request.interface,
            network: request.network,
        })
    }

    /// The same from somebody with these rights, and who may ask for a certain address or not.
    #[must_use]
    pub fn with_rights(self, rights: Option<Rights>, places: Option<bool>) -> Self {
        Self { rights, places, ..self }
    }

    /// Whose rights count.
    pub const fn asker(&self) -> Uid {
        self.asker
    }

    /// Whether it asks for anything to be open or in reach, or its image does.
    pub fn opens(&self) -> bool {
        let Self { wishes, found, .. } = self;
        let all = [
            wishes,
            &found.pod_labels,
            &found.labels,
            &found.image_annotations,
            &found.image_labels,
        ];
        found.published.is_some()
            || all.iter().any(|wishes| wishes.ingress.is_some() || wishes.egress.is_some())
    }

    /// Whether it asks for a certain address, or for a subnet.
    pub fn chooses(&self) -> bool {
        Choice::said(&self.wishes, &self.found).is_some()
            || subnets::said(&self.wishes, &self.found).is_some()
    }

    /// What is to be open of its container, which has room for so many elements.
    ///
    /// # Errors
    /// [`Refused::Wish`]: it asks by name for what it may not have. [`Refused::NotReady`]: whether it may
    /// cannot be told.
    fn open_ports(&self, shared: &Shared, owner: Uid, room: usize) -> Result<OpenPorts, Refused> {
        // Who asks for nothing needs no rights.
        let none = (!self.opens()).then(Rights::none);
        let rights = self.rights.clone().or(none).ok_or(opening::UNKNOWN_RIGHTS)?;
        let open =
            OpenPorts::asked(&self.wishes, &self.found, &shared.open_terms(owner, rights, room));
        if self.declines() {
            return Ok(open);
        }
        if let Some(listed) = open.reach().forbidden() {
            return Err(Refused::Wish(format!("the v6pod.egress with {listed}: {TooMany}")));
        }
        let Some(forbidden) = open.forbidden() else { return Ok(open) };
        let NotOpened { opening, by, why } = forbidden;
        Err(Refused::Wish(format!("the {by} v6pod.ingress: {opening} is not open: {why}")))
    }

    /// Whether the container asks for no attachment.
    fn declines(&self) -> bool {
        self.wishes.attach.or(self.found.attach()) == Some(false)
    }

    /// Whether this process may hold an attachment of that namespace: one that was only named has to
    /// be in it, or somebody's end would be made another's.
    fn may_be_held_by(&self, process: &Process, ns: &NetNs, worker: &Worker) -> bool {
        if !matches!(self.holder, Some(Holding::Claimed(_))) {
            return true;
        }
        is_in(process, ns, worker)
    }
}

/// Whether a process is in this network namespace.
fn is_in(process: &Process, ns: &NetNs, worker: &Worker) -> bool {
    let its = process.net_ns().ok().and_then(|fd| NetNs::verify(fd, worker.home()).ok());
    its.is_some_and(|its| its.inode() == ns.inode())
}

/// Why a request is refused: one variant for each answer that a caller can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is none, or it is another's.
    #[error("no such container or attachment")]
    Unknown,
    /// The namespace belongs to somebody else.
    #[error("this network namespace is not yours")]
    NotYours,
    /// What was sent cannot be attached.
    #[error("{0}")]
    WrongKind(&'static str),
    /// What the container asks for is no wish.
    #[error("{0}")]
    Wish(String),
    /// The request says what is no change.
    #[error("{0}")]
    Unclear(String),
    /// The operator lets the caller not do it.
    #[error("{0}")]
    Forbidden(String),
    /// What is open is open to more than is to be closed.
    #[error("{0}")]
    Wider(String),
    /// The container asks for no address.
    #[error("the container asks for no address: v6pod=false")]
    Declined,
    /// Something stands in the way.
    #[error("{0}")]
    Taken(&'static str),
    /// The reference means several.
    #[error("{0} attachments match; say more of the id")]
    Ambiguous(usize),
    /// The owner has as many as he may.
    #[error("{0}")]
    Quota(String),
    /// No room.
    #[error("{0}")]
    Full(String),
    /// Try again.
    #[error("{0}; try again")]
    NotReady(&'static str),
    /// The kernel or the disk failed; the log says more.
    #[error("{0}")]
    Failed(String),
}

impl Refused {
    /// One word for the metrics.
    const fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotYours => "not-yours",
            Self::WrongKind(_) => "wrong-kind",
            Self::Wish(_) => "wish",
            Self::Unclear(_) => "unclear",
            Self::Forbidden(_) => "forbidden",
            Self::Wider(_) => "wider",
            Self::Declined => "declined",
            Self::Taken(_) => "taken",
            Self::Ambiguous(_) => "ambiguous",
            Self::Quota(_) => "quota",
            Self::Full(_) => "full",
            Self::NotReady(_) => "not-ready",
            Self::Failed(_) => "failed",
        }
    }
}

impl Attachments {
    /// Makes, completes or describes the attachment of the namespace behind the descriptor. The
    /// lease, if one was asked for and the attachment is the asker's own container's, is for the
    /// caller to keep as long as the connection stands.
    pub async fn activate_descriptor(
        &self,
        ask: Ask,
        namespace: Foreign,
    ) -> Result<(Attachment, Option<Lease>), Refused> {
        let shared = Arc::clone(&self.0);
        to_its_end(async move { making::activate(&shared, ask, namespace).await }).await
    }

    /// The same for a running container, looked up by its owner and id.
    pub async fn activate_by_id(&self, ask: Ask) -> Result<Attachment, Refused> {
        let shared = Arc::clone(&self.0);
        to_its_end(async move { making::activate_by_id(&shared, ask).await }).await
    }

    /// Takes this owner's attachment of this container away, by the record alone; of one that is a member of a
    /// pod, the name. False if there is nothing of it.
    pub fn deactivate(&self, owner: Uid, container: &ContainerId) -> bool {
        let found = self.0.ledger().book.of_container(owner, container).map(|a| a.id.clone());
        match found {
            Some(id) => !matches!(self.0.release(&id, "deactivated"), Released::Nothing),
            None => self.0.member_is_over(owner, container),
        }
    }

    /// Heeds the rumour that this owner's container has ended: the attachment ends, after the usual grace,
    /// if it has no lease and the process that held it is no more. Where it never had one the end is the
    /// kernel's to tell.
    pub async fn rumour_of_end(&self, owner: Uid, container: &ContainerId) {
        let held = {
            let ledger = self.0.ledger();
            let found = ledger.book.of_container(owner, container).filter(|a| !a.lease);
            found.and_then(|a| Some((a.holder?, a.id.clone(), a.generation)))
        };
        let Some((holder, id, generation)) = held else { return };
        let look = move |_: &mut Worker| -> Result<bool, kernel::Error> {
            // No descriptor left, for instance, is no news of a process.
            Ok(match Process::pin(holder.pid) {
                Ok(process) => process.start_time() == holder.start_time,
                Err(error) => !error.is_gone(),
            })
        };
        if let Ok(false) = self.0.workers.run_for(owner, look).await {
            // Without a receiver the daemon is stopping.
            let _ = self.0.ended.send(Ended { id, generation });
        }
    }

    /// Does a little of what every request needs: waits for a kernel worker, asks the kernel, takes
    /// the book. That it returns at all is what a watchdog wants to know.
    pub async fn pulse(&self) -> Result<(), kernel::Error> {
        let state = Arc::clone(&self.0);
        let beat = move |worker: &mut Worker| {
            worker.ping()?;
            drop(state.ledger());
            Ok(())
        };
        self.0.workers.run(beat).await
    }

    /// What this user may do here.
    pub async fn standing(&self, user: Uid) -> Standing {
        self.0.access.of(user).await
    }

    /// The same, if it is known without asking.
    pub fn known_standing(&self, user: Uid) -> Option<Standing> {
        self.0.access.known(user)
    }

    /// Closes what callers sent.
    pub fn closer(&self) -> Closer {
        self.0.closer.clone()
    }

    /// What of the daemon's time callers have had.
    pub fn paces(&self) -> &Paces {
        &self.0.paces
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self) -> kernel::Host {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_host(&self, host: kernel::Host) {
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = host;
    }
}

/// What has been begun is done to its end, though whoever asked hangs up: his request's future is
/// dropped then, and with it would be what comes behind the kernel's work, the name above all.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refused>> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::spawn(work).await;
    done.unwrap_or(Err(Refused::NotReady("the request was given up; the daemon is stopping")))
}
