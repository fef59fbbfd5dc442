//! What holds attachments: connections and processes whose end is theirs.
//!
//! Guarantees: an attachment has at most one connection and one watched process. A new lease or the
//! attachment's end lets go of both, so nobody can pile up connections on one attachment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use v6pod_proto::AttachmentId;

use super::{Ended, Lease, Shared};
use crate::core::attachment::Generation;
use crate::kernel::Process;

/// All holds, by attachment.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<HashMap<AttachmentId, Hold>>);

#[derive(Debug)]
struct Hold {
    watcher: Option<AbortHandle>,
    /// Dropped with the hold; the lease's connection waits for that.
    _over: oneshot::Sender<()>,
}

impl Drop for Hold {
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
        let hold = Hold { watcher, _over: over };
        self.holds.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), hold);
        lease.then(|| Lease {
            id: id.clone(),
            generation,
            ended: self.ended.clone(),
            over: ended_elsewhere,
        })
    }
}
