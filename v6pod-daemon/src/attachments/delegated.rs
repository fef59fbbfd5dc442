//! What is delegated to this host is followed as if somebody had said it, where the configuration leaves the
//! prefix to the host (`prefix = "auto"`). Whose program keeps the lease need not know of us.
//!
//! Guarantees: what was said of a prefix by other ways after it was delegated counts, over restarts too; nobody
//! who can only make namespaces has a word here ([`kernel::delegations`]).

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::config::PrefixSource;
use crate::core::delegations::Said;
use crate::kernel::{self, Worker};

/// Where such a prefix is said to be from.
const SOURCE: &str = "delegated";

/// Looks at what is delegated, and hears of what has changed.
pub(super) async fn look(shared: &Arc<Shared>) {
    if shared.config.prefix != PrefixSource::Auto {
        return;
    }
    let look = |worker: &mut Worker| kernel::delegations::delegations(&mut worker.socket);
    let now = match shared.workers.run(look).await {
        Ok(now) => now,
        Err(error) => return tracing::warn!(%error, "cannot look at what is delegated"),
    };
    for said in shared.changing.look(now) {
        let (range, valid) = match said {
            Said::Delegated(range) => (range, None),
            Said::TakenBack(range) => (range, Some(Duration::ZERO)),
        };
        if let Err(refused) = shared.hear(range, valid, SOURCE).await
            && valid.is_none()
            && shared.changing.refused(range)
        {
            tracing::error!(%range, "what is delegated to this host cannot be used: {refused}");
        }
    }
}
