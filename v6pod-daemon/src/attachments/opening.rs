//! What is open of attachments that serve: changed, brought into force, and the flows that it ends. And their
//! names, changed by the same request.
//!
//! Guarantees: what is to be open is on disk before the kernel hears of it. Of many changes at once
//! the last that was recorded is in force when all are done, whatever the order in which they got to the
//! kernel. Nothing is opened for an attachment that has ended. When a change is answered, every flow
//! that it forbids has ended, and no other.

use std::sync::{Arc, RwLockReadGuard};

use v6pod_proto as proto;
use v6pod_proto::{AttachmentId, Change, EgressView, OpenedBy, Uid};

use super::view::find;
use super::{Attachments, Ledger, Refused, Shared, Viewer};
use crate::core::attachment::{Attachment, Phase};
use crate::core::hole::Holes;
use crate::core::open::{ChangeError, NotOpened, OpenPorts, OpenTerms, Rights, TooMany};
use crate::core::ruleset::EastWest;
use crate::failpoint;
use crate::kernel::Worker;

/// A change that memory and disk know of, and the kernel does not yet.
#[must_use]
pub(super) struct Pending {
    id: AttachmentId,
    before: Holes,
}

/// Who changes something.
#[derive(Debug, Clone)]
pub struct Changer {
    /// In whose turn.
    pub caller: Uid,
    /// What he is shown.
    pub viewer: Viewer,
    /// What he may open; `None` if that cannot be told just now.
    pub rights: Option<Rights>,
}

impl Attachments {
    /// Which ports this user may open; `None` if that cannot be told just now.
    pub async fn rights(&self, user: Uid) -> Option<Rights> {
        self.0.access.rights(user).await
    }

    /// Whether this user may ask for a certain address; `None` if that cannot be told just now.
    pub async fn may_place(&self, user: Uid) -> Option<bool> {
        self.0.access.may_place(user).await
    }

    /// How many elements of the firewall all openings take.
    pub fn open_elements(&self) -> usize {
        self.0.ledger().book.all_holes()
    }

    /// Changes what is open, or the name, of the one attachment that this reference means to the changer.
    pub async fn change(
        &self,
        changer: Changer,
        reference: String,
        change: Change,
    ) -> Result<proto::Attachment, Refused> {
        let shared = Arc::clone(&self.0);
        let caller = changer.caller;
        let job =
            move |worker: &mut Worker| changed(&shared, worker, &changer, &reference, &change);
        self.0.work_for(caller, job).await
    }
}

fn changed(
    shared: &Arc<Shared>,
    worker: &mut Worker,
    changer: &Changer,
    reference: &str,
    change: &Change,
) -> Result<proto::Attachment, Refused> {
    let rules = shared.rules.hold();
    let mut ledger = shared.ledger();
    let there = find(&ledger, changer.viewer, reference)?;
    if there.phase == Phase::Reserved {
        return Err(Refused::NotReady("it is still being made"));
    }
    let by = match changer.viewer {
        Viewer::All => OpenedBy::Operator,
        Viewer::Owner(_) => OpenedBy::Owner,
    };
    let id = there.id.clone();
    let mut changed = there.clone();
    if change.is_of_openings() || change.name.is_none() {
        let rights = changer.rights.as_ref().ok_or(UNKNOWN_RIGHTS)?;
        let room = ledger.book.room(there.owner, Some(&there.id));
        changed.open = there.open.change(change, by, rights, room)?;
    }
    let name = change.name.as_ref().filter(|name| there.asked_name() != Some(name));
    if let Some(name) = name {
        changed.wishes.name = Some(name.clone());
    }
    // What is nothing new is neither written nor told again, but answered like the rest: when it is in force.
    let reopened = changed.open.recorded() != there.open.recorded();
    if reopened || name.is_some() {
        // Recorded first: what cannot be recorded is not changed.
        shared.records.write(&changed).map_err(|error| {
            tracing::error!(attachment = %id, %error, "cannot record a change");
            Refused::Failed("the daemon cannot write its record; its log says why".to_owned())
        })?;
        failpoint::reach("opening:recorded");
        if reopened {
            tell_change(&changed, changer.caller);
        }
    }
    if let Some(name) = name {
        tracing::info!(attachment = %id, owner = %changed.owner, by = %changer.caller, %name, "renamed");
        shared.rename(&mut ledger, &id, name.clone());
    }
    let pending = shared.open(&mut ledger, &id, changed.open);
    drop(ledger);
    shared.enforce(worker, rules, pending)?;
    let ledger = shared.ledger();
    let there = ledger.book.find(&id).and_then(|a| shared.view(&ledger, a));
    there.ok_or(Refused::Unknown)
}

/// Tells the log what is open now. Of a long list only the beginning: a line's length is not to be a tenant's
/// to choose.
fn tell_change(changed: &Attachment, by: Uid) {
    const TOLD: usize = 16;

    let all = changed.open.open();
    let openings: Vec<_> = all.iter().take(TOLD).map(|open| open.opening.to_string()).collect();
    tracing::info!(
        attachment = %changed.id, owner = %changed.owner, %by, openings = openings.join(","),
        more = all.len().saturating_sub(TOLD), "what is open has changed"
    );
}

/// Tells the log what was asked for and is not open, and what is out of reach.
pub(super) fn tell_unopened(id: &AttachmentId, open: &OpenPorts) {
    for NotOpened { opening, by, why } in open.unopened() {
        tracing::info!(attachment = %id, %opening, %by, "not open: {why}");
    }
    let reach = open.reach();
    if reach.is_confined() {
        let EgressView { rule, by } = reach.view();
        tracing::info!(attachment = %id, egress = %rule, %by, "reaches nothing else");
    }
    for opening in reach.cut() {
        tracing::info!(attachment = %id, %opening, "not in reach: {TooMany}");
    }
}

/// Why nobody can say what the caller may open.
pub(super) const UNKNOWN_RIGHTS: Refused =
    Refused::NotReady("the system does not say what you may open (firewall.allow)");

impl Shared {
    /// What decides about what this owner asks for with these rights, who has room for so much.
    pub(super) fn open_terms(&self, owner: Uid, rights: Rights, room: usize) -> OpenTerms {
        let (ways, egress) = (self.config.openings, self.config.egress.clone());
        let kin = (self.config.east_west == EastWest::Owner).then_some(owner);
        OpenTerms { ways, rights, egress, kin, room }
    }

    /// Notes in memory what is open from now on; nothing if that is nothing new. Goes with
    /// [`Shared::enforce`], and a guard of the rules over both.
    pub(super) fn open(
        &self,
        ledger: &mut Ledger,
        id: &AttachmentId,
        open: OpenPorts,
    ) -> Option<Pending> {
        let before = ledger.book.open(id, open)?;
        Some(Pending { id: id.clone(), before })
    }

    /// Brings into force what is open by now of an attachment. Gives the guard up.
    pub(super) fn enforce(
        &self,
        worker: &mut Worker,
        rules: RwLockReadGuard<'_, ()>,
        pending: Option<Pending>,
    ) -> Result<(), Refused> {
        let Some(Pending { id, before }) = pending else { return Ok(()) };
        let changed = {
            let _alone = self.rules.change_alone();
            // Another's change may have brought this one into force with it.
            let (behind, addresses) = {
                let mut ledger = self.ledger();
                let addresses: Vec<_> =
                    ledger.book.find(&id).into_iter().flat_map(|a| a.port.addresses()).collect();
                (ledger.book.follow(&id), addresses)
            };
            behind.map_or(Ok(()), |(has, now)| {
                let mut all = addresses.into_iter();
                all.try_for_each(|address| worker.rules.change(&self.links, address, &has, &now))
            })
        };
        drop(rules);
        failpoint::reach("opening:enforced");
        if let Err(error) = changed {
            tracing::warn!(attachment = %id, %error, "cannot change what is open; loading all rules");
            self.look_after_rules(worker).map_err(|error| {
                tracing::error!(attachment = %id, %error, "what is open is not yet as it should be");
                Refused::NotReady("the firewall could not be changed; it is tried again each minute")
            })?;
        }
        let closed = self.open_now(&id).is_none_or(|now| before.allow_more_than(&now));
        if closed { Ok(self.end_flows(worker, Some(&id))?) } else { Ok(()) }
    }

    /// The elements of what is open by now; none of what has ended, whose undo removes them.
    fn open_now(&self, id: &AttachmentId) -> Option<Holes> {
        let ledger = self.ledger();
        let there = ledger.book.find(id).filter(|a| a.phase.shown().is_some());
        there.map(|a| a.port.open.clone())
    }
}

impl From<ChangeError> for Refused {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::Unclear => Self::Unclear(text),
            ChangeError::Forbidden { .. } => Self::Forbidden(text),
            ChangeError::Wider(_) => Self::Wider(text),
            ChangeError::TooMany(_) => Self::Wish(text),
        }
    }
}
