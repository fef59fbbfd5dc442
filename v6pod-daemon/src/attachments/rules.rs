//! The firewall of a running daemon.
//!
//! Guarantees: elements are changed by many at once, the rules are loaded by one alone, with the
//! elements of every attachment that is not on its way out. So no element is lost to a load, and none
//! comes back by it.
//!
//! If somebody takes the tables away (`nft flush ruleset`, a restart of nftables.service), they are
//! put back when the next attachment is made or at the next round, whichever comes first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Shared;
use crate::core::attachment::Phase;
use crate::core::ruleset::{Elements, Policy, Ruleset};
use crate::kernel::firewall::ObservedElements;
use crate::kernel::firewall::nft::{self, NftError};
use crate::kernel::{self, Worker};

/// The rules and whose turn it is to change them.
#[derive(Debug)]
pub(super) struct Rules {
    policy: Policy,
    turn: RwLock<()>,
    /// In seconds since the epoch; zero for never.
    last_repair: AtomicU64,
}

/// Why the firewall could not be looked after.
#[derive(Debug, thiserror::Error)]
pub(super) enum RepairError {
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Nft(#[from] NftError),
}

impl Rules {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy, turn: RwLock::default(), last_repair: AtomicU64::default() }
    }

    /// Asks whether the rules would be taken. Nothing is changed.
    pub(super) fn check(policy: &Policy) -> Result<(), NftError> {
        nft::check(&(Ruleset::afresh(&policy.links) + &Ruleset::of(policy, &[])))
    }

    /// Puts the rules in force in the place of an earlier daemon's, with these elements.
    pub(super) fn load(&self, elements: &[Elements]) -> Result<(), NftError> {
        let text = Ruleset::of(&self.policy, elements);
        match nft::load(&text) {
            Err(NftError::Refused(why)) => {
                tracing::info!("the tables cannot stay, they are made anew: {why}");
                nft::load(&(Ruleset::afresh(&self.policy.links) + &text))
            }
            other => other,
        }
    }

    /// As long as it is held, the rules are not loaded: to be held by who changes elements.
    pub(super) fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.turn.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the tables were last put back, in seconds since the epoch.
    pub(super) fn last_repair(&self) -> Option<u64> {
        Some(self.last_repair.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }
}

impl Shared {
    /// Puts the tables back if they, or elements of attachments that serve, are gone.
    pub(super) fn look_after_rules(&self, worker: &mut Worker) -> Result<(), RepairError> {
        let _alone = self.rules.turn.write().unwrap_or_else(PoisonError::into_inner);
        let observed = worker.rules.observe(&self.links)?;
        // Those that are being made have their elements, or will have them after this.
        let whole = |phase| matches!(phase, Phase::Wired | Phase::Serving | Phase::Ending);
        let (expected, all) = {
            let ledger = self.ledger();
            let of = |only: &dyn Fn(Phase) -> bool| -> Vec<_> {
                let chosen = ledger.book.shown().filter(|a| only(a.phase));
                chosen.map(|a| Elements::of(&a.port)).collect()
            };
            (of(&whole), of(&|_| true))
        };
        let expected = ObservedElements::expected(&expected);
        if observed.is_some_and(|observed| observed.has_all_of(&expected)) {
            return Ok(());
        }
        tracing::warn!("the firewall's rules were taken away; putting them back");
        self.rules.load(&all)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        self.rules.last_repair.store(now, Ordering::Relaxed);
        self.metrics.repaired();
        Ok(())
    }
}
