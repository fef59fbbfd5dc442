//! What other firewalls of this host do to containers: looked at when the daemon starts, and whenever
//! somebody has changed a chain or a rule, at most once a second.
//!
//! Guarantee: no request waits for it. What is shown is what the last look has found.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use v6pod_proto::Obstacle;

use super::Shared;
use crate::core::foreign;
use crate::kernel::firewall::foreign::{Ours, legacy_tables};
use crate::kernel::{self, Worker};

/// How long nobody looks again after a look: docker changes rules at each start of a container.
const PAUSE: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Obstacles {
    found: Mutex<Vec<Obstacle>>,
    changed: Notify,
}

impl Obstacles {
    /// What the last look has found.
    pub(super) fn found(&self) -> Vec<Obstacle> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether containers can ask this host for names, as far as is known.
    pub(super) fn let_ask(&self) -> bool {
        foreign::may_ask(&self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has somebody look again soon.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// Keeps what was found now, and says what is new of it.
    fn keep(&self, found: Vec<Obstacle>) {
        let mut before = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for new in found.iter().filter(|obstacle| !before.contains(obstacle)) {
            let Obstacle { program, table, chain, meaning, .. } = new;
            tracing::warn!(
                program,
                table,
                chain,
                "another firewall is in the way: {meaning}; `v6podctl status` says what to do"
            );
        }
        *before = found;
    }
}

/// Looks for as long as the daemon runs.
pub(super) async fn watch(shared: Arc<Shared>) {
    loop {
        let state = Arc::clone(&shared);
        match shared.workers.run(move |worker: &mut Worker| look(&state, worker)).await {
            Ok(found) => shared.obstacles.keep(found),
            Err(error) => tracing::warn!(%error, "cannot look at other firewalls"),
        }
        tokio::time::sleep(PAUSE).await;
        shared.obstacles.changed.notified().await;
    }
}

fn look(shared: &Shared, worker: &mut Worker) -> Result<Vec<Obstacle>, kernel::Error> {
    let prefix = shared.topology().prefix;
    let ours = Ours { net: prefix.net(), bridge: shared.links.bridge.to_string() };
    let tables = worker.rules.foreign(&shared.links, &ours)?;
    let mut found = foreign::obstacles(&tables, prefix, shared.topology.resolver);
    match legacy_tables() {
        Ok(names) => found.extend(foreign::legacy(&names, prefix)),
        Err(error) => tracing::debug!(%error, "cannot see whether there are legacy tables"),
    }
    Ok(found)
}
