//! What holds attachments: connections and processes whose end is theirs.
//!
//! Guarantees: an attachment has at most one connection and one watched process. A new lease or the
//! attachment's end lets go of both, so nobody can pile up connections on one attachment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use v6pod_proto::AttachmentId;

use super::{Ended, Lease, Shared};
use crate::core::attachment::{Generation, Holder};
use crate::kernel::Process;

/// What becomes of the asker's hold.
pub(super) enum Hold {
    /// This generation is his.
    Mine(Generation, Option<Process>, Unheard),
    /// It is another start's, or another container's of the same pod.
    Others,
}

/// A lease whose caller has not been answered yet. If he has gone by then (the shim gives up after five
/// seconds, and starts the container without), nobody takes it, and it has ended.
pub(super) struct Unheard(Option<(mpsc::UnboundedSender<Ended>, Ended)>);

impl Unheard {
    /// That of this generation, if it is to have a lease at all.
    pub(super) fn of(
        shared: &Shared,
        id: &AttachmentId,
        generation: Generation,
        lease: bool,
    ) -> Self {
        let end = Ended { id: id.clone(), generation };
        Self(lease.then(|| (shared.ended.clone(), end)))
    }

    /// He has his answer, and the lease.
    pub(super) fn heard(mut self) {
        self.0 = None;
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if let Some((ended, end)) = self.0.take() {
            // Without a receiver the daemon is stopping.
            let _ = ended.send(end);
        }
    }
}

/// What a record says of a process, to find it again.
pub(super) fn holder(process: &Process) -> Holder {
    Holder { pid: process.pid(), start_time: process.start_time() }
}

/// All that holds, by attachment.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<HashMap<AttachmentId, Held>>);

/// What holds an attachment.
#[derive(Debug)]
struct Held {
    watcher: Option<AbortHandle>,
    /// Dropped with the hold; the lease's connection waits for that.
    _over: oneshot::Sender<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.abort();
        }
    }
}

impl Holds {
    /// Lets go of what holds the attachment.
    pub(super) fn end(&self, id: &AttachmentId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Shared {
    /// From now on this generation of the attachment ends with the process, and with the lease if
    /// there is to be one: then the caller keeps it. What held it before is let go of.
    pub(super) fn hold(
        self: &Arc<Self>,
        id: &AttachmentId,
        generation: Generation,
        process: Option<Process>,
        lease: bool,
    ) -> Option<Lease> {
        let (over, ended_elsewhere) = oneshot::channel();
        let watcher = process.map(|process| {
            let (sender, id) = (self.ended.clone(), id.clone());
            let watch = async move {
                if let Err(error) = process.exited().await {
                    // Its other ends (the port's, the lease's) are still seen.
                    tracing::warn!(attachment = %id, %error, "cannot watch a process");
                    return;
                }
                let _ = sender.send(Ended { id, generation });
            };
            tokio::spawn(watch).abort_handle()
        });
        let held = Held { watcher, _over: over };
        self.holds.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), held);
        lease.then(|| Lease {
            id: id.clone(),
            generation,
            ended: self.ended.clone(),
            over: ended_elsewhere,
        })
    }
}
