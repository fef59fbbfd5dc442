//! What has ended leaves the kernel, in batches.
//!
//! Guarantee: however many attachments end at once, none waits for more than two batches: what comes
//! while one is at work goes with the next, and a batch costs the kernel hardly more than a single port.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use v6pod_proto::Uid;

use super::Shared;
use super::ending::{Undone, join, undo};
use crate::core::attachment::Attachment;
use crate::core::step::Port;
use crate::failpoint;
use crate::kernel::sweep::sweep;
use crate::kernel::workers::processor_time;
use crate::kernel::{self, Worker};

/// Which part of one processor's time goes into looking for the flows of what has ended, among all that
/// there are: one tenant can have as many as Linux lets him, and another ends a container each second.
const LOOKING: u32 = 4;

/// What ends does not wait longer than this for the sweeper to have rested.
const LONGEST: Duration = Duration::from_secs(1);

/// What waits for the sweeper's thread.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<VecDeque<Attachment>>);

impl Waiting {
    fn push(&self, attachment: Attachment) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(attachment);
    }

    fn take(&self) -> Vec<Attachment> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Shared {
    /// Has an attachment whose end is recorded taken away behind the caller's back.
    pub(super) fn sweep_soon(self: &Arc<Self>, attachment: Attachment) {
        self.waiting.push(attachment);
        let shared = Arc::clone(self);
        // Not `tokio::spawn`: this may be a worker's thread.
        self.runtime.spawn(async move { shared.sweep_waiting().await });
    }

    async fn sweep_waiting(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        // What an earlier job took leaves nothing for this one.
        let job = move |worker: &mut Worker| {
            let all = shared.waiting.take();
            // One batch is many owners'; the thread's own job is nobody's.
            let owners: Vec<Uid> = all.iter().map(|a| a.owner).collect();
            let began = processor_time();
            let left = take_away_all(&shared, worker, all);
            let looked = worker.rules.take_looked();
            let took = processor_time().saturating_sub(began).saturating_sub(looked);
            for owner in &owners {
                shared.paces.charge(*owner, took / owners.len() as u32, Instant::now());
            }
            // Looking is nobody's to pay for, so it is not done all the time. What ends meanwhile goes with the
            // next batch.
            thread::sleep((looked * (LOOKING - 1)).min(LONGEST));
            Ok::<_, kernel::Error>(left)
        };
        match self.sweeper.run(job).await {
            Ok(left) => {
                for attachment in left {
                    tokio::spawn(Arc::clone(self).take_away_later(attachment));
                }
            }
            Err(error) => {
                tracing::error!(%error, "lost what was to be taken away until the next start");
            }
        }
    }

    async fn take_away_later(self: Arc<Self>, attachment: Attachment) {
        tokio::time::sleep(super::ending::BETWEEN).await;
        self.take_away(attachment).await;
    }
}

/// Takes them away and forgets them; those of which something is left come back.
fn take_away_all(shared: &Shared, worker: &mut Worker, all: Vec<Attachment>) -> Vec<Attachment> {
    let results: Vec<_> = match &all[..] {
        [] => return all,
        [one] => vec![undo(shared, worker, one)],
        many => {
            let ports: Vec<&Port> = many.iter().map(|a| &a.port).collect();
            shared.rules.let_changes_end();
            let _rules = shared.rules.hold();
            let results = sweep(worker, &shared.host(), &ports).into_iter();
            results.map(|e| if e.is_empty() { Ok(()) } else { Err(Undone(e)) }).collect()
        }
    };
    failpoint::reach("ending:undone");
    let mut left = Vec::new();
    for (attachment, result) in all.into_iter().zip(results) {
        match result {
            Ok(()) => shared.forget(&attachment),
            Err(Undone(errors)) => {
                tracing::warn!(
                    attachment = %attachment.id, errors = %join(&errors),
                    "could not take everything away; trying again"
                );
                left.push(attachment);
            }
        }
    }
    left
}
