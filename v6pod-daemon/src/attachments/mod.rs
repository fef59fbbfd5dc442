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

mod ending;
mod holding;
mod lock;
mod making;
mod mending;
mod metrics;
mod naming;
pub mod records;
mod resting;
mod restoring;
mod rules;
mod sweeping;
mod view;

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use v6pod_proto::{Activate, Attachment, AttachmentId, ContainerId, LinkName, NetworkName, Uid};

use crate::access::{Access, Standing};
use crate::closer::{Closer, Foreign};
use crate::config::Config;
use crate::container::Containers;
use crate::core::Links;
use crate::core::attachment::Generation;
use crate::core::book::{Book, Released};
use crate::core::name::Names;
use crate::kernel::{self, Worker, Workers};
use crate::registry::Registrar;

pub use metrics::Metrics;
pub use restoring::{StartError, start};
pub(crate) use restoring::{prepare_folders, registrar};
pub use view::Viewer;

use holding::Holds;
use records::Records;
use resting::Resting;
use rules::Rules;
use sweeping::Waiting;

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
    topology: kernel::Topology,
    /// As the kernel last had it: the uplink moves, the bridge may have to be made again.
    host: Mutex<kernel::Host>,
    rules: Rules,
    prefix_source: &'static str,
    started: Instant,
    ledger: Mutex<Ledger>,
    /// Woken whenever an attachment has come to rest: made, or gone.
    rested: Notify,
    records: Records,
    resting: Resting,
    /// Where requests are worked on.
    workers: Workers,
    /// Where it is asked whose a TCP connection is.
    askers: Workers,
    /// Where ports are deleted: ~20 ms each, which no request is to wait for.
    sweeper: Workers,
    waiting: Waiting,
    containers: Containers,
    access: Access,
    registrar: Registrar,
    ended: mpsc::UnboundedSender<Ended>,
    holds: Holds,
    closer: Closer,
    /// For work that a worker's thread leaves to the runtime.
    runtime: Handle,
    metrics: Metrics,
    users: Mutex<HashMap<Uid, String>>,
    /// Held as long as the daemon is: there is one of its instance.
    _lock: File,
}

/// What changes together.
struct Ledger {
    book: Book,
    names: Names,
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
    container: ContainerId,
    name: Option<String>,
    /// Whose namespace it has to be.
    asker: Uid,
    /// In whose turn the work is done: whoever called.
    caller: Uid,
    /// Whether it may be anybody's instead.
    any_owner: bool,
    /// The process at the other end of the lease.
    holder: Option<u32>,
    lease: bool,
    plug: bool,
    exclusive: bool,
    interface: Option<LinkName>,
    network: Option<NetworkName>,
}

/// The longest name of a container that is taken from a caller, in bytes.
const NAME: usize = 255;

impl Ask {
    /// For the namespace whose descriptor came along.
    pub fn by_descriptor(request: Activate, asker: Uid, pid: u32) -> Self {
        let holder = request.lease.then_some(pid);
        Self { any_owner: asker.is_root(), holder, ..Self::of(request, asker) }
    }

    /// For a running container, which is looked up by its owner and id. What the owner's files say
    /// is good for namespaces of his own alone, also if it is root who asks: else they would make
    /// root attach whatever they name.
    pub fn by_id(request: Activate, owner: Uid, caller: Uid) -> Self {
        Self { caller, lease: false, ..Self::of(request, owner) }
    }

    fn of(request: Activate, asker: Uid) -> Self {
        Self {
            container: request.id,
            name: request.name.filter(|name| !name.is_empty() && name.len() <= NAME),
            asker,
            caller: asker,
            any_owner: false,
            holder: None,
            lease: request.lease,
            plug: request.plug,
            exclusive: request.exclusive,
            interface: request.interface,
            network: request.network,
        }
    }
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
        making::activate(&self.0, ask, namespace).await
    }

    /// The same for a running container, looked up by its owner and id.
    pub async fn activate_by_id(&self, ask: Ask) -> Result<Attachment, Refused> {
        making::activate_by_id(&self.0, ask).await
    }

    /// Takes this owner's attachment of this container away, by the record alone. False if there is
    /// none.
    pub fn deactivate(&self, owner: Uid, container: &ContainerId) -> bool {
        let found = self.0.ledger().book.of_container(owner, container).map(|a| a.id.clone());
        found.is_some_and(|id| !matches!(self.0.release(&id, "deactivated"), Released::Nothing))
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
