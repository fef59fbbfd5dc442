//! What the kernel tells while the daemon runs, and what it is found to have not told.
//!
//! Guarantees:
//! - A port's end is its attachment's. The bridge, the route of what no container has, the rules and each
//!   attachment's entries come back if somebody takes them away.
//! - What could not be put back is tried again, and so is all of it each minute: no event needs to arrive.
//! - Two never bring the host's side about at once: each would take the other's half for a stranger's.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Shared, delegated, mending, proxying};
use crate::kernel::host::PrepareError;
use crate::kernel::{self, Event, Events, Worker};

/// How often the kernel is compared with the book when nothing has happened.
const ROUND: Duration = Duration::from_secs(60);

/// How soon after a failure; twice as long after each further one.
const AGAIN: Duration = Duration::from_secs(1);

/// The host's side of all attachments could not be put back.
struct NotPutBack;

/// Heeds the kernel, for as long as the daemon runs.
pub(super) async fn watch(shared: Arc<Shared>, mut events: Events) {
    let mut rounds = tokio::time::interval(ROUND);
    let mut pause = AGAIN;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = rounds.tick() => Ok(Event::Overrun),
        };
        let heeded = match event {
            Ok(event) => heed(&shared, event).await,
            Err(error) => {
                tracing::error!(%error, "cannot hear the kernel; looking instead");
                tokio::time::sleep(AGAIN).await;
                look_again(&shared).await
            }
        };
        match heeded {
            Ok(()) => pause = AGAIN,
            Err(NotPutBack) => {
                rounds.reset_after(pause);
                pause = (pause * 2).min(ROUND);
            }
        }
    }
}

async fn heed(shared: &Arc<Shared>, event: Event) -> Result<(), NotPutBack> {
    match event {
        Event::PortGone { ifindex } => shared.port_gone(ifindex),
        Event::DefaultRouteChanged => return follow_uplink(shared).await,
        Event::DelegationsChanged => delegated::look(shared).await,
        Event::RangeGone => mending::hold_ranges(shared).await,
        Event::BridgeGone | Event::Overrun => return look_again(shared).await,
    }
    Ok(())
}

/// Events were lost, or it is time for a round: what has no port any more has ended, and what
/// is gone comes back.
async fn look_again(shared: &Arc<Shared>) -> Result<(), NotPutBack> {
    // Before the look: a port that is made during it is not gone.
    let known = shared.ledger().book.ports();
    let mut done = Ok(());
    let mut observed = observe(shared).await;
    if observed.as_ref().is_ok_and(|seen| seen.bridge != Some(shared.host().bridge)) {
        done = make_bridge_again(shared).await;
        observed = observe(shared).await;
    }
    match observed {
        Ok(observed) => {
            let there: HashSet<u32> = observed.ports.iter().map(|port| port.ifindex).collect();
            for ifindex in known.difference(&there) {
                shared.port_gone(*ifindex);
            }
            mending::mend_all(shared, observed).await;
        }
        Err(error) => {
            tracing::warn!(%error, "cannot look at the kernel");
            done = Err(NotPutBack);
        }
    }
    mending::hold_ranges(shared).await;
    delegated::look(shared).await;
    done = follow_uplink(shared).await.and(done);
    let state = Arc::clone(shared);
    let look = move |worker: &mut Worker| state.look_after_rules(worker);
    if let Err(error) = shared.workers.run(look).await {
        tracing::error!(%error, "cannot look after the firewall's rules");
    }
    done
}

async fn observe(shared: &Arc<Shared>) -> Result<kernel::Observed, kernel::Error> {
    let links = shared.links.clone();
    let look = move |worker: &mut Worker| kernel::observe::observe(&mut worker.socket, &links);
    shared.workers.run(look).await
}

/// Somebody deleted the bridge. Its ports are still there, and on no bridge.
async fn make_bridge_again(shared: &Arc<Shared>) -> Result<(), NotPutBack> {
    tracing::warn!(bridge = %shared.links.bridge, "the bridge was deleted; making it again");
    let state = Arc::clone(shared);
    let prepare = move |worker: &mut Worker| state.prepare_host(worker);
    shared.workers.run(prepare).await.map_err(|error| {
        tracing::error!(%error, "cannot make the bridge again");
        NotPutBack
    })
}

async fn follow_uplink(shared: &Arc<Shared>) -> Result<(), NotPutBack> {
    let before = shared.host().uplink;
    let state = Arc::clone(shared);
    let follow = move |worker: &mut Worker| {
        let _alone = state.prepare_alone();
        let (topology, host) = (state.topology(), state.host());
        let host = kernel::host::follow_uplink(&mut worker.socket, &topology, &host)?;
        state.take_host(host);
        Ok::<_, kernel::Error>(())
    };
    let followed = shared.workers.run(follow).await;
    match &followed {
        Ok(()) => {
            let now = shared.host().uplink;
            if now != before {
                let now = now.as_ref().map_or("none", |uplink| uplink.as_str());
                tracing::info!(uplink = now, "the uplink has changed");
            }
            let state = Arc::clone(shared);
            let translate = move |worker: &mut Worker| state.translate_towards_uplink(worker);
            if let Err(error) = shared.workers.run(translate).await {
                tracing::error!(%error, "cannot translate towards the uplink");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot follow the uplink"),
    }
    proxying::settle(shared).await;
    followed.map_err(|_| NotPutBack)
}

impl Shared {
    /// Makes the host's side what it should be, from whatever it is.
    ///
    /// # Errors
    /// The kernel refused something, or something else has the prefix.
    pub(super) fn prepare_host(&self, worker: &mut Worker) -> Result<(), PrepareError> {
        let _alone = self.prepare_alone();
        let host = kernel::host::prepare(&mut worker.socket, &self.topology())?;
        self.take_host(host);
        Ok(())
    }

    fn prepare_alone(&self) -> MutexGuard<'_, ()> {
        self.preparing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_host(&self, host: kernel::Host) {
        self.ledger().book.set_mtu(host.mtu);
        self.set_host(host);
    }
}
