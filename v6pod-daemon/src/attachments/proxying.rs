//! On the uplink there is an answer for every attachment that serves and for the gateway, and for
//! nobody else: after a start, after the uplink has changed or lost its entries (Linux forgets them
//! when the link goes down), and after somebody has taken some away.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::sync::Arc;

use super::Shared;
use crate::core::attachment::Phase;
use crate::kernel::proxy::{self, Entry};
use crate::kernel::{self, Worker};

/// Looks at all entries of this instance and adds and removes what it takes. What fails waits for the
/// next look.
pub(super) async fn settle(shared: &Arc<Shared>) {
    let state = Arc::clone(shared);
    let job = move |worker: &mut Worker| settle_now(&state, worker);
    if let Err(error) = shared.workers.run(job).await {
        tracing::error!(%error, "cannot look after the answers on the uplink");
    }
}

fn settle_now(shared: &Shared, worker: &mut Worker) -> Result<(), kernel::Error> {
    let (link, prefix) = (shared.host().answers, shared.topology().prefix);
    // Before the look at the book: whose entry is there was in the book before.
    let seen = proxy::observe(&mut worker.socket, &shared.links, Some(prefix.net()))?;
    let gateway = link.map(|link| (prefix.gateway(), link));
    let strays = {
        let ledger = shared.ledger();
        let all = ledger.book.shown().flat_map(|a| a.port.addresses());
        let kept = all.filter_map(|address| Some((address, link?)));
        let kept: HashSet<Entry> = kept.chain(gateway).collect();
        seen.iter().copied().filter(|entry| !kept.contains(entry)).collect::<Vec<_>>()
    };
    for stray in strays {
        tracing::debug!(address = %stray.0, "nobody is to be answered for here any more");
        proxy::remove(&mut worker.socket, stray)?;
    }
    let Some(link) = link else { return Ok(()) };
    let seen: HashSet<Entry> = seen.into_iter().collect();
    let missing = |address: &Ipv6Addr| !seen.contains(&(*address, link));
    if missing(&prefix.gateway()) {
        proxy::add(&mut worker.socket, (prefix.gateway(), link))?;
    }
    // Nobody takes one of a container's addresses away meanwhile: kernel and book agree on which it has.
    let _rules = shared.rules.hold();
    let _alone = shared.rules.change_alone();
    let added: Vec<_> = serving(shared).into_iter().filter(missing).collect();
    for address in &added {
        proxy::add(&mut worker.socket, (*address, link))?;
    }
    // If one ended meanwhile, its undo may have come before this.
    let still = if added.is_empty() { HashSet::new() } else { serving(shared) };
    for address in added.into_iter().filter(|address| !still.contains(address)) {
        proxy::remove(&mut worker.socket, (address, link))?;
    }
    Ok(())
}

/// The addresses of those that serve. Who is being made makes his entry himself.
fn serving(shared: &Shared) -> HashSet<Ipv6Addr> {
    let ledger = shared.ledger();
    let whole = |phase| matches!(phase, Phase::Wired | Phase::Serving | Phase::Ending);
    ledger.book.shown().filter(|a| whole(a.phase)).flat_map(|a| a.port.addresses()).collect()
}
