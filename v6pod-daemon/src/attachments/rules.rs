//! The firewall of a running daemon.
//!
//! Guarantees: elements are changed by many at once, the rules are loaded by one alone, with the
//! elements of every attachment that is not on its way out. So no element is lost to a load, and none
//! comes back by it.
//!
//! If somebody takes the tables away, or rules out of them (`nft flush ruleset`, a restart of
//! nftables.service), they are put back as soon as the kernel has told of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use v6pod_proto::LinkName;

use super::Shared;
use crate::core::Prefix;
use crate::core::attachment::Phase;
use crate::core::ruleset::{Elements, Policy, Ruleset};
use crate::kernel::firewall::nft::{self, NftError};
use crate::kernel::firewall::{Losses, News, ObservedElements, ObservedRules};
use crate::kernel::{self, Worker};

/// How long nobody looks again after a look. Who takes rules away in a loop does not keep the daemon
/// from its work; and what somebody does in many steps is one loss.
const PAUSE: Duration = Duration::from_millis(200);

/// The rules and whose turn it is to change them.
#[derive(Debug)]
pub(super) struct Rules {
    policy: Mutex<Policy>,
    turn: RwLock<()>,
    /// Held by who changes what is open, from his look at the book until the kernel has it.
    changing: Mutex<()>,
    /// What was in force after the last load.
    loaded: Mutex<ObservedRules>,
    /// In seconds since the epoch; zero for never.
    last_repair: AtomicU64,
    /// Whether flows that nothing allows may go on: they began without rules, or ending them has failed.
    pub(super) flows_due: AtomicBool,
}

/// Why the rules could not be looked after, or put in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum RulesError {
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Nft(#[from] NftError),
}

impl Rules {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy: Mutex::new(policy),
            turn: RwLock::default(),
            changing: Mutex::default(),
            loaded: Mutex::default(),
            last_repair: AtomicU64::default(),
            flows_due: AtomicBool::default(),
        }
    }

    /// Asks whether the rules would be taken. Nothing is changed.
    pub(super) fn check(policy: &Policy) -> Result<(), NftError> {
        nft::check(&(Ruleset::afresh(&policy.links) + &Ruleset::of(policy, &[])))
    }

    /// Puts the rules in force in the place of an earlier daemon's, with these elements.
    pub(super) fn load(
        &self,
        worker: &mut Worker,
        elements: &[Elements],
    ) -> Result<(), RulesError> {
        match self.load_once(worker, elements) {
            Err(RulesError::Nft(NftError::Refused(why))) if self.policy().nat66.is_some() => {
                tracing::error!("addresses cannot be translated here (nat66): {why}");
                self.set_uplink(None);
                self.load_once(worker, elements)
            }
            other => other,
        }
    }

    fn load_once(&self, worker: &mut Worker, elements: &[Elements]) -> Result<(), RulesError> {
        let policy = self.policy();
        let text = Ruleset::of(&policy, elements);
        match nft::load(&text) {
            Err(NftError::Refused(why)) => {
                tracing::info!("the tables cannot stay, they are made anew: {why}");
                nft::load(&(Ruleset::afresh(&policy.links) + &text))?;
            }
            other => other?,
        }
        *self.loaded() = worker.rules.observe_rules(&policy.links)?;
        Ok(())
    }

    /// Whether all rules are in force, and elements: the least that there must be, and no more than there
    /// may be.
    fn are_whole(
        &self,
        worker: &mut Worker,
        least: &[Elements],
        most: &[Elements],
    ) -> Result<bool, kernel::Error> {
        let links = &self.policy().links;
        let Some(observed) = worker.rules.observe(links)? else { return Ok(false) };
        Ok(observed.has_all_of(&ObservedElements::expected(least))
            && ObservedElements::expected(most).has_all_of(&observed)
            && worker.rules.observe_rules(links)?.has_all_of(&self.loaded()))
    }

    /// What the rules follow from.
    pub(super) fn policy(&self) -> Policy {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has a unique local address leaves by this interface with the host's own, from the next load on.
    fn set_uplink(&self, uplink: Option<LinkName>) {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).nat66 = uplink;
    }

    /// They follow from these prefixes from the next load on.
    fn set_prefixes(&self, prefix: Prefix, former: &[Prefix]) {
        let mut policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        policy.prefix = prefix;
        policy.former = former.to_vec();
    }

    /// Whether all rules that were loaded are in force, whatever their sets hold.
    pub(super) fn are_in_force(&self, worker: &mut Worker) -> Result<bool, kernel::Error> {
        Ok(worker.rules.observe_rules(&self.policy().links)?.has_all_of(&self.loaded()))
    }

    fn loaded(&self) -> MutexGuard<'_, ObservedRules> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As long as it is held, the rules are not loaded: to be held by who changes elements.
    pub(super) fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.turn.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As long as it is held, nobody else changes what is open.
    pub(super) fn change_alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is opened any more for what has ended in the book.
    pub(super) fn let_changes_end(&self) {
        drop(self.change_alone());
    }

    /// When the tables were last put back, in seconds since the epoch.
    pub(super) fn last_repair(&self) -> Option<u64> {
        Some(self.last_repair.load(Ordering::Relaxed)).filter(|time| *time != 0)
    }
}

impl Shared {
    /// Has addresses translated towards the uplink that there is by now, if they are to be translated at all.
    pub(super) fn translate_towards_uplink(&self, worker: &mut Worker) -> Result<(), RulesError> {
        let topology = self.topology();
        let uplink = self.host().uplink.filter(|_| self.config.nat66);
        let local = topology.prefixes().any(Prefix::is_ula);
        if !local || self.rules.policy().nat66 == uplink {
            return Ok(());
        }
        self.load_rules_for(worker, topology.prefix, &topology.former)
    }

    /// Loads the rules for these prefixes, with the elements of all that are not on their way out.
    pub(super) fn load_rules_for(
        &self,
        worker: &mut Worker,
        prefix: Prefix,
        former: &[Prefix],
    ) -> Result<(), RulesError> {
        let _alone = self.rules.turn.write().unwrap_or_else(PoisonError::into_inner);
        self.rules.set_prefixes(prefix, former);
        self.rules.set_uplink(self.host().uplink.filter(|_| self.config.nat66));
        let all: Vec<_> = {
            let ledger = self.ledger();
            let shown = ledger.book.all().filter(|a| a.phase.shown().is_some());
            shown.flat_map(|a| Elements::of_all(&a.port)).collect()
        };
        self.rules.load(worker, &all)
    }

    /// Puts the tables back if they, rules of theirs, or elements of attachments that serve are gone, or
    /// if there are elements that are nobody's. What began meanwhile and is not let in ends, now or, if that
    /// fails, with a later look.
    pub(super) fn look_after_rules(&self, worker: &mut Worker) -> Result<(), RulesError> {
        let alone = self.rules.turn.write().unwrap_or_else(PoisonError::into_inner);
        // Those that are being made have their elements, or will have them after this.
        let whole = |phase| matches!(phase, Phase::Wired | Phase::Serving | Phase::Ending);
        let (least, all, most) = {
            let ledger = self.ledger();
            let of = |only: &dyn Fn(Phase) -> bool| -> Vec<_> {
                let chosen = ledger.book.all().filter(|a| only(a.phase));
                chosen.flat_map(|a| Elements::of_all(&a.port)).collect()
            };
            // Those that are being taken away have their elements, or have them no more.
            (of(&whole), of(&|phase| phase.shown().is_some()), of(&|_| true))
        };
        if !self.rules.are_whole(worker, &least, &most)? {
            tracing::warn!("somebody changed the firewall's rules; putting them back");
            // Whoever puts them back, should this fail.
            self.rules.flows_due.store(true, Ordering::SeqCst);
            self.rules.load(worker, &all)?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
            self.rules.last_repair.store(now, Ordering::Relaxed);
            self.metrics.repaired();
            self.tell_repair("the firewall's rules");
        }
        drop(alone);
        if self.rules.flows_due.load(Ordering::SeqCst)
            && let Err(error) = self.end_flows(worker, None)
        {
            tracing::error!(%error, "cannot end flows that nothing allows; trying again in a minute");
        }
        Ok(())
    }
}

/// Looks after the rules whenever the kernel tells of a loss, for as long as the daemon runs.
pub(super) async fn watch(shared: Arc<Shared>, mut losses: Losses) {
    loop {
        let news = losses.next().await.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot hear the kernel; looking instead");
            News { lost: true, others: true }
        });
        if news.others {
            shared.obstacles.look_again();
        }
        if news.lost {
            let state = Arc::clone(&shared);
            let look = move |worker: &mut Worker| state.look_after_rules(worker);
            if let Err(error) = shared.workers.run(look).await {
                tracing::error!(%error, "cannot look after the firewall's rules");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
