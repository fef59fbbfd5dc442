//! Which prefix is in force, and how another takes its place.
//!
//! Guarantees:
//! - What is in force is on disk before the kernel is touched, and with it the prefixes before it, so a daemon
//!   that dies in between goes on where it was.
//! - A prefix that something of this host's overlaps never comes into force. The one before stays.
//! - The host is ready for a prefix (route, gateway, rules) before an address of it is given, and stays ready
//!   for the old one as long as anybody has an address of that.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv6Net;
use tokio::sync::Notify;
use v6pod_proto as proto;
use v6pod_proto::PrefixView;

use super::rules::RulesError;
use super::{Attachments, Refused, Shared};
use crate::config::Config;
use crate::core::Prefix;
use crate::core::delegations::{Delegations, Said};
use crate::core::prefixes::{Cut, Heard, Offer, Prefixes};
use crate::failpoint;
use crate::kernel::host::PrepareError;
use crate::kernel::overlap::overlaps;
use crate::kernel::{self, Worker};

mod kept;

use kept::configured;
pub(super) use kept::{AtStart, Kept, kept};
pub(crate) use kept::{FILE, forget};

/// How many prefixes containers may have addresses in besides the one in force. While there are more,
/// another one waits: a grace that was promised is not cut short, and whoever makes the prefix flap makes no
/// more addresses than this.
const MOST_FORMER: usize = 3;

/// The prefixes of a daemon that runs.
#[derive(Debug)]
pub(super) struct Changing {
    state: Mutex<State>,
    /// Woken when there may be something to do.
    pub(super) woken: Notify,
    file: PathBuf,
    cut: Cut,
}

#[derive(Debug)]
struct State {
    prefixes: Prefixes,
    former: Vec<Prefix>,
    source: String,
    delegations: Delegations,
    /// That of what settles.
    coming_from: String,
    /// Said to be one too many.
    told_full: bool,
    configured: String,
}

/// Why another prefix is not in force.
#[derive(Debug, thiserror::Error)]
enum NotSwitched {
    #[error(transparent)]
    Host(#[from] PrepareError),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error("cannot record it")]
    Record(#[from] io::Error),
}

impl NotSwitched {
    /// Whether it may be otherwise later on. What else has the prefix is an operator's to take away.
    const fn may_pass(&self) -> bool {
        !matches!(self, Self::Host(PrepareError::Overlap(_)))
    }
}

/// What [`Changing::switch`] has changed.
#[derive(Debug)]
struct Before {
    in_force: Prefix,
    former: Vec<Prefix>,
    source: String,
}

impl Changing {
    pub(super) fn new(config: &Config, base: Prefix, start: &AtStart) -> Self {
        let state = State {
            prefixes: Prefixes::new(start.in_force, config.settle),
            former: start.former.clone(),
            source: start.source.clone(),
            delegations: start.delegations.clone(),
            coming_from: String::new(),
            told_full: false,
            configured: configured(config, base),
        };
        let file = config.run_dir().join(FILE);
        let cut = Cut { subnet: config.subnet };
        Self { state: Mutex::new(state), woken: Notify::new(), file, cut }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When something settles.
    pub(super) fn settles_at(&self) -> Option<Instant> {
        self.state().prefixes.settles_at()
    }

    /// Those in which containers may still have addresses, besides the one in force.
    pub(super) fn former(&self) -> Vec<Prefix> {
        self.state().former.clone()
    }

    /// As callers see it.
    pub(super) fn view(&self) -> PrefixView {
        let state = self.state();
        let prefix = state.prefixes.in_force();
        PrefixView {
            prefix: prefix.to_string(),
            source: state.source.clone(),
            ula: prefix.is_ula(),
            former: state.former.iter().map(ToString::to_string).collect(),
            settling: state.prefixes.waiting(Instant::now()).map(|prefix| prefix.to_string()),
        }
    }

    /// Keeps what is in force, for the next daemon.
    pub(super) fn keep(&self) -> io::Result<()> {
        self.keep_after(None)
    }

    /// The same if the file says this. Where that is what it should say nothing is written: a daemon has to be
    /// able to take up its containers on a full disk.
    pub(super) fn keep_after(&self, before: Option<&Kept>) -> io::Result<()> {
        let kept = {
            let state = self.state();
            Kept {
                version: kept::VERSION,
                configured: state.configured.clone(),
                in_force: state.prefixes.in_force().to_string(),
                source: state.source.clone(),
                former: state.former.iter().map(ToString::to_string).collect(),
                delegated: self.heard_out(&state),
            }
        };
        if before == Some(&kept) {
            return Ok(());
        }
        kept.write(&self.file)
    }

    /// The delegated ranges of which the next daemon need not hear again. What still settles it does.
    fn heard_out(&self, state: &State) -> Vec<String> {
        let waiting = state.prefixes.waiting(Instant::now());
        let settles = |range: &Ipv6Net| self.cut.of(*range).is_ok_and(|p| Some(p) == waiting);
        let followed = state.delegations.followed();
        let rest = state.delegations.known().filter(|range| Some(*range) != followed);
        let all = followed.into_iter().chain(rest).filter(|range| !settles(range));
        all.map(|range| range.to_string()).collect()
    }

    /// What is to be said, now that these ranges are delegated to this host.
    pub(super) fn look(&self, now: BTreeSet<Ipv6Net>) -> Vec<Said> {
        self.state().delegations.look(now)
    }

    /// This delegated range cannot be used now. False if that is no news.
    pub(super) fn refused(&self, range: Ipv6Net) -> bool {
        self.state().delegations.refused(range)
    }

    /// The one that is to be in force now.
    fn due(&self) -> Option<Prefix> {
        let mut state = self.state();
        let settled = state.prefixes.settled(Instant::now())?;
        let room = state.former.len() < MOST_FORMER || state.former.contains(&settled);
        if !room && !std::mem::replace(&mut state.told_full, true) {
            tracing::warn!(
                prefix = %settled,
                "the prefix has changed too often: the next one waits until an old one is out of use"
            );
        }
        room.then_some(settled)
    }

    /// Has it in force in memory. Gives what was.
    fn switch(&self, to: Prefix) -> Before {
        let mut state = self.state();
        let (in_force, former) = (state.prefixes.in_force(), state.former.clone());
        state.former.retain(|former| *former != to);
        state.former.push(in_force);
        let coming_from = state.coming_from.clone();
        let source = std::mem::replace(&mut state.source, coming_from);
        state.prefixes.put_in_force(to);
        state.told_full = false;
        Before { in_force, former, source }
    }

    /// Undoes [`Changing::switch`]. The other one is tried again later, or heard of no more until it is said again.
    fn switch_back(&self, before: Before, again: bool) {
        let mut state = self.state();
        state.prefixes.put_back(before.in_force, again, Instant::now());
        (state.former, state.source) = (before.former, before.source);
    }

    /// These are out of use.
    fn retire(&self, gone: &[Prefix]) {
        let mut state = self.state();
        state.former.retain(|former| !gone.contains(former));
        state.told_full = false;
    }
}

impl Attachments {
    /// Hears what an operator, or a program of his, says of a prefix.
    ///
    /// # Errors
    /// [`Refused::Wish`]: it is none that containers could be in, or something of this host's is in its way.
    pub async fn hear_prefix(&self, said: proto::PrefixOffer) -> Result<PrefixView, Refused> {
        let range: Ipv6Net = said
            .prefix
            .parse()
            .map_err(|_| Refused::Unclear(format!("{:?} is not an IPv6 prefix", said.prefix)))?;
        let valid = said.valid.map(Duration::from_secs);
        let source = said.source.as_deref().filter(|source| is_word(source)).unwrap_or("put");
        self.0.hear(range, valid, source).await?;
        Ok(self.0.changing.view())
    }
}

/// Whether it can stand in a log and a table as it is.
fn is_word(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !text.is_empty() && text.len() <= 32 && text.bytes().all(plain)
}

impl Shared {
    /// Hears of a range from this source.
    pub(super) async fn hear(
        self: &Arc<Self>,
        range: Ipv6Net,
        valid: Option<Duration>,
        source: &str,
    ) -> Result<Heard, Refused> {
        let wrong = |error: crate::core::prefix::PrefixError| Refused::Wish(error.to_string());
        let prefix = self.changing.cut.of(range).map_err(wrong)?;
        let taken_back = valid.is_some_and(|valid| valid.is_zero());
        if !taken_back {
            self.refuse_overlap(prefix).await?;
        }
        let heard = {
            let mut state = self.changing.state();
            let heard = state.prefixes.hear(Offer { prefix, valid }, Instant::now());
            match heard {
                Heard::Settles(_) => state.coming_from = source.to_owned(),
                Heard::InForce => state.source = source.to_owned(),
                Heard::TakenBack | Heard::Nothing | Heard::Kept => {}
            }
            heard
        };
        tracing::info!(%range, %prefix, source, ?valid, ?heard, "heard of a prefix");
        self.changing.woken.notify_one();
        Ok(heard)
    }

    async fn refuse_overlap(self: &Arc<Self>, prefix: Prefix) -> Result<(), Refused> {
        let topology = self.topology();
        if let Some(ours) = topology.prefixes().find(|p| *p != prefix && !p.is_apart_from(prefix)) {
            let why =
                "take one that is apart from it, or write it into the configuration and restart";
            return Err(Refused::Wish(format!("{prefix} overlaps {ours}, which is in use: {why}")));
        }
        let job = move |worker: &mut Worker| overlaps(&mut worker.socket, &topology, prefix);
        let overlaps = self.workers.run(job).await?;
        if overlaps.found.is_empty() { Ok(()) } else { Err(Refused::Wish(overlaps.to_string())) }
    }

    /// Has another prefix in force if one is due. True if so.
    pub(super) async fn switch_prefix(self: &Arc<Self>) -> bool {
        let Some(to) = self.changing.due() else { return false };
        let before = self.changing.switch(to);
        let shared = Arc::clone(self);
        let job = move |worker: &mut Worker| -> Result<(), NotSwitched> {
            shared.changing.keep()?;
            failpoint::reach("renumbering:recorded");
            shared.bring_in(worker)?;
            shared.ledger().book.move_to(to);
            Ok(())
        };
        match self.workers.run(job).await {
            Ok(()) => {
                self.changing.state().prefixes.stands();
                tracing::info!(from = %before.in_force, %to, "the prefix has changed");
                self.tell_prefix(to);
                super::proxying::settle(self).await;
                true
            }
            Err(error) => {
                let again = error.may_pass();
                tracing::error!(prefix = %to, %error, again, "cannot change the prefix; the old one stays");
                self.changing.switch_back(before, again);
                self.bring_in_soon().await;
                false
            }
        }
    }

    /// Forgets the prefixes that nobody has an address in any more.
    pub(super) async fn retire_prefixes(self: &Arc<Self>) {
        let gone: Vec<_> = {
            let ledger = self.ledger();
            let former = self.changing.former();
            former.into_iter().filter(|former| !ledger.book.is_in_use(*former)).collect()
        };
        if gone.is_empty() {
            return;
        }
        self.changing.retire(&gone);
        self.bring_in_soon().await;
        for prefix in gone {
            tracing::info!(%prefix, "the old prefix is out of use");
        }
    }

    async fn bring_in_soon(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let job = move |worker: &mut Worker| -> Result<(), NotSwitched> {
            shared.changing.keep()?;
            shared.bring_in(worker)
        };
        if let Err(error) = self.workers.run(job).await {
            tracing::error!(%error, "cannot bring the host to its prefixes; it is tried at the next change");
        }
    }

    /// Brings the host's side and the rules to the prefixes that are in force and that were.
    fn bring_in(self: &Arc<Self>, worker: &mut Worker) -> Result<(), NotSwitched> {
        let topology = self.topology();
        self.prepare_host(worker)?;
        failpoint::reach("renumbering:prepared");
        self.load_rules_for(worker, topology.prefix, &topology.former)?;
        failpoint::reach("renumbering:ruled");
        self.ranges.set(topology.prefixes());
        Ok(())
    }

    /// What the host's side should be, now.
    pub(super) fn topology(&self) -> kernel::Topology {
        let state = self.changing.state();
        let (prefix, former) = (state.prefixes.in_force(), state.former.clone());
        kernel::Topology { prefix, former, ..self.topology.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::kept::testing::{config, kept, prefix};
    use super::*;

    #[test]
    fn a_delegated_range_is_kept_once_it_has_settled_and_not_heard_of_again() {
        let config = config("prefix = \"auto\"\nrenumber.settle = \"1h\"");
        let base = prefix("fd00:1::/80");
        let ranges = |all: &[&str]| all.iter().map(|range| range.parse().unwrap()).collect();
        let changing = Changing::new(&config, base, &AtStart::of(&config, base, None));
        let (a, b) = ("2001:db8:a::/56", "2001:db8:b::/56");
        assert_eq!(changing.look(ranges(&[a])), [Said::Delegated(a.parse().unwrap())]);
        let to = changing.cut.of(a.parse().unwrap()).unwrap();
        changing.state().prefixes.hear(Offer { prefix: to, valid: None }, Instant::now());
        assert_eq!(changing.heard_out(&changing.state()), [""; 0], "it settles");
        changing.switch(to);
        changing.look(ranges(&[a, b]));
        let kept = Kept {
            delegated: changing.heard_out(&changing.state()),
            ..kept(&config, base, &to.to_string())
        };
        assert_eq!(kept.delegated, [b, a]);
        let again = Changing::new(&config, base, &AtStart::of(&config, base, Some(&kept)));
        assert_eq!(again.look(ranges(&[a, b])), []);
    }

    #[test]
    fn a_prefix_waits_while_too_many_are_in_use_and_one_that_comes_back_does_not() {
        let config = config("prefix = \"2001:db8:1::/80\"\nrenumber.settle = \"0s\"");
        let start = AtStart::of(&config, prefix("2001:db8:1::/80"), None);
        let changing = Changing::new(&config, prefix("2001:db8:1::/80"), &start);
        let hear = |text: &str| {
            let offer = Offer { prefix: prefix(text), valid: None };
            changing.state().prefixes.hear(offer, Instant::now());
            changing.due()
        };
        for text in ["2001:db8:2::/80", "2001:db8:3::/80", "2001:db8:4::/80"] {
            let to = hear(text).unwrap();
            changing.switch(to);
        }
        assert_eq!(hear("2001:db8:5::/80"), None);
        let back = hear("2001:db8:1::/80").unwrap();
        let before = changing.switch(back);
        assert_eq!(changing.former().len(), 3);
        changing.switch_back(before, false);
        assert_eq!(changing.state().prefixes.in_force(), prefix("2001:db8:4::/80"));
        changing.retire(&[prefix("2001:db8:1::/80")]);
        assert!(hear("2001:db8:5::/80").is_some());
    }
}
