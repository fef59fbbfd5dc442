//! What attachments carry, as the kernel counts it.
//!
//! Guarantees: all attachments together cost one dump, however many there are, and however many ask
//! there is at most one in [`FRESH`]; who waits for the kernel waits no longer than [`PATIENCE`]. Where
//! the kernel does not say, there are no counters, and everything else goes on.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;
use v6pod_proto::{AttachmentId, ContainerId, Passed, Traffic, Uid};

use super::{Attachments, Shared, Viewer};
use crate::core::name::Label;
use crate::kernel::traffic::{self, Counters};
use crate::kernel::{self, Worker};

/// How long a reading of all ports is good. A dump holds the lock under which ports are made, a
/// millisecond for a thousand: whoever floods the daemon with questions must not hold it for long.
const FRESH: Duration = Duration::from_secs(1);

/// How long a question about counters waits for the kernel. They are worth no more.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the kernel last said of all ports, or of all containers. Those who want it meanwhile wait for it, and
/// share it.
#[derive(Debug)]
pub(super) struct Readings<T>(Mutex<Option<(Instant, Arc<T>)>>);

/// An attachment and what it has carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// Which.
    pub id: AttachmentId,
    /// Whose.
    pub owner: Uid,
    /// The container.
    pub container: ContainerId,
    /// Its address.
    pub address: Ipv6Addr,
    /// The first of the names that it bears.
    pub label: Option<Label>,
    /// Since it was made.
    pub traffic: Traffic,
}

impl Attachments {
    /// How many containers were refused a flow in the last second, of those that they began, and of those that
    /// others began with them (`limits.flows`); at most a second old.
    pub async fn at_flow_limit(&self) -> [usize; 2] {
        let shared = &self.0;
        let links = shared.links.clone();
        let ask = || async {
            let ask = move |worker: &mut Worker| worker.rules.at_flow_limit(&links);
            in_time(shared.workers.run(ask)).await.unwrap_or_default()
        };
        *shared.full.last_or(ask).await
    }

    /// The counters of what the viewer may see, at most a second old, by owner, then id. What has gone
    /// since, or has come, is not among them.
    pub async fn measured(&self, viewer: Viewer) -> Vec<Measured> {
        let shared = &self.0;
        // Who has nothing asks the kernel nothing.
        if !shared.ledger().book.shown().any(|a| viewer.sees(a)) {
            return Vec::new();
        }
        let counters = shared.readings.last_or(|| shared.read()).await;
        let ledger = shared.ledger();
        let measured = ledger.book.shown().filter(|a| viewer.sees(a)).filter_map(|a| {
            // Its own name before those of its ports, and of the members of its pod.
            let (own, claims) = (a.label.clone(), ledger.names.borne_by(&a.id));
            Some(Measured {
                id: a.id.clone(),
                owner: a.owner,
                container: a.container.clone(),
                address: a.port.address,
                label: own.or_else(|| claims.iter().find_map(|claim| claim.label().cloned())),
                traffic: seen_inside(*counters.get(&a.ifindex?)?),
            })
        });
        let mut measured: Vec<_> = measured.collect();
        drop(ledger);
        measured.sort_by(|a, b| (a.owner, &a.id).cmp(&(b.owner, &b.id)));
        measured
    }
}

impl Shared {
    /// The counters of one port, now.
    pub(super) async fn traffic_of(&self, caller: Uid, port: u32) -> Option<Traffic> {
        let ask =
            self.workers.run_for(caller, move |worker| traffic::of_one(&mut worker.socket, port));
        in_time(ask).await.flatten().map(seen_inside)
    }

    async fn read(&self) -> HashMap<u32, Counters> {
        let ask = self.workers.run(|worker| traffic::of_all(&mut worker.socket));
        in_time(ask).await.unwrap_or_default()
    }
}

impl<T> Default for Readings<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Readings<T> {
    /// The last reading, or what `read` brings. One that failed brings nothing, and counts too: it is
    /// not tried again at once.
    async fn last_or<F: Future<Output = T>>(&self, read: impl FnOnce() -> F) -> Arc<T> {
        let mut last = self.0.lock().await;
        if let Some((_, fresh)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Arc::clone(fresh);
        }
        let read = Arc::new(read().await);
        *last = Some((Instant::now(), Arc::clone(&read)));
        read
    }
}

async fn in_time<T>(ask: impl Future<Output = Result<T, kernel::Error>>) -> Option<T> {
    match timeout(PATIENCE, ask).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::warn!(%error, "no counters");
            None
        }
        Err(_) => {
            tracing::debug!("no counters: the kernel's workers are busy");
            None
        }
    }
}

/// The port is the host's end: what comes in by it is what the container sent.
const fn seen_inside(port: Counters) -> Traffic {
    Traffic {
        received: Passed {
            packets: port.tx_packets,
            bytes: port.tx_bytes,
            dropped: port.tx_dropped,
        },
        sent: Passed { packets: port.rx_packets, bytes: port.rx_bytes, dropped: port.rx_dropped },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn what_leaves_the_port_the_container_has_received() {
        let port = Counters {
            rx_packets: 1,
            tx_packets: 2,
            rx_bytes: 3,
            tx_bytes: 4,
            rx_dropped: 5,
            tx_dropped: 6,
        };
        let passed = |packets, bytes, dropped| Passed { packets, bytes, dropped };
        let inside = Traffic { received: passed(2, 4, 6), sent: passed(1, 3, 5) };
        assert_eq!(seen_inside(port), inside);
    }

    #[tokio::test]
    async fn attack_26_a_crowd_that_asks_at_once_costs_one_dump() {
        let (readings, dumps) = (Readings::default(), AtomicU64::new(0));
        let dump = || async {
            let rx_packets = 1 + dumps.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            HashMap::from([(7, Counters { rx_packets, ..Counters::default() })])
        };
        let ask = || async { readings.last_or(dump).await[&7].rx_packets };
        assert_eq!(tokio::join!(ask(), ask(), ask()), (1, 1, 1));
        // What is too old is read again.
        let old = Instant::now().checked_sub(2 * FRESH).unwrap();
        readings.0.lock().await.as_mut().unwrap().0 = old;
        assert_eq!(ask().await, 2);
    }
}
