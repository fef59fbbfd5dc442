//! Names, behind the answer.
//!
//! Guarantees: no request waits for a name. An attachment that is on its way out claims none, and
//! one that went while its name was looked up is not registered.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use v6pod_proto::wishes::NameWish;
use v6pod_proto::{AttachmentId, Uid, storage};

use super::{Ledger, Shared};
use crate::core::attachment::{Attachment, Phase};
use crate::core::name::Label;
use crate::failpoint;
use crate::registry::Registration;

impl Shared {
    /// Sees to the attachment's name in the background: looks it up if its start did not bring it,
    /// claims it, hands it to the registry.
    pub(super) fn name_in_background(self: &Arc<Self>, attachment: &Attachment) {
        let (shared, a) = (Arc::clone(self), attachment.clone());
        tokio::spawn(async move {
            let name = match a.name {
                Some(name) => Some(name),
                None => shared.containers.name(a.owner, &a.container).await.map(|n| n.name),
            };
            shared.learn_user(a.owner).await;
            // Claimed and wished for under one lock: a release comes before both or after both.
            let mut ledger = shared.ledger();
            if let Some(registration) = shared.claim(&mut ledger, &a.id, name.as_deref()) {
                shared.registrar.wish(&registration);
                failpoint::reach("naming:wished");
            }
        });
    }

    /// Claims anew the names of attachments that an earlier daemon left, and tells the registry who
    /// lives: everything else of ours that it has is stale. Before anything is served.
    pub(super) async fn name_again(self: &Arc<Self>, mut attachments: Vec<Attachment>) {
        // Who bore what he asked for claims first, then who waited for it; the older ones first. So
        // everyone gets what he had.
        attachments.sort_by_key(|a| (!bears_its_name(a), a.since, a.id.clone()));
        let owners: HashSet<Uid> = attachments.iter().map(|a| a.owner).collect();
        for owner in owners {
            self.learn_user(owner).await;
        }
        let mut ledger = self.ledger();
        let mut living = Vec::new();
        for a in attachments {
            match &a.name {
                Some(name) => living.extend(self.claim(&mut ledger, &a.id, Some(name))),
                None => self.name_in_background(&a),
            }
        }
        self.registrar.reconcile(&living);
    }

    /// Claims the name that the container asks for, or else the engine's name for it, for an
    /// attachment; gives what the registry is to be told.
    fn claim(
        &self,
        ledger: &mut Ledger,
        id: &AttachmentId,
        name: Option<&str>,
    ) -> Option<Registration> {
        let living = ledger.book.find(id).filter(|a| a.phase != Phase::Releasing)?;
        let owner = living.owner;
        let wish = living.asked_name().map(|wish| wish.as_str().to_owned());
        let wanted = match (wish, name) {
            (Some(wish), _) => wish,
            // A pod's infra container speaks for the pod, not for a name that podman made up.
            (None, Some(name)) if storage::is_infra(name) => {
                self.remember(ledger, id, Some(name), None);
                return None;
            }
            (None, name) => name?.to_owned(),
        };
        let claim = ledger.names.claim(id, owner, &wanted);
        failpoint::reach("naming:claimed");
        self.remember(ledger, id, name, claim.label());
        failpoint::reach("naming:recorded");
        let Some(label) = claim.label() else {
            let note = claim.note().unwrap_or_default();
            tracing::info!(attachment = %id, note, "the container's name is not registered");
            return None;
        };
        Some(self.registration(ledger.book.find(id)?, label.clone()))
    }

    /// Keeps the name and what the attachment bears for it, in memory and on disk.
    fn remember(
        &self,
        ledger: &mut Ledger,
        id: &AttachmentId,
        name: Option<&str>,
        label: Option<&Label>,
    ) {
        let Some(changed) = ledger.book.named(id, name, label) else { return };
        if let Err(error) = self.records.write(changed) {
            // The name is looked up again after a restart.
            tracing::warn!(attachment = %id, %error, "cannot add the name to the record");
        }
    }

    /// Asks for the owner's name, which the registry gets as a tag. Asked anew each time: an account
    /// can be another person's by now.
    async fn learn_user(&self, owner: Uid) {
        let user = self.containers.user_name(owner).await;
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        match user {
            Some(user) => users.insert(owner, user),
            None => users.remove(&owner),
        };
    }

    /// Has the attachment ask for this name from now on. Its record says so already.
    pub(super) fn rename(&self, ledger: &mut Ledger, id: &AttachmentId, name: NameWish) {
        ledger.book.rename(id, name);
        self.unname(ledger, id);
        if let Some(registration) = self.claim(ledger, id, None) {
            self.registrar.wish(&registration);
        }
    }

    /// Takes the attachment's name away and passes it on to whom it is due next.
    pub(super) fn unname(&self, ledger: &mut Ledger, id: &AttachmentId) {
        self.registrar.withdraw(id);
        for promotion in ledger.names.release(id) {
            let Some(a) = ledger.book.find(&promotion.attachment).cloned() else { continue };
            if a.phase == Phase::Releasing {
                continue;
            }
            tracing::info!(attachment = %a.id, from = %promotion.from, to = %promotion.to, "promoted");
            self.remember(ledger, &a.id, None, Some(&promotion.to));
            self.registrar.wish(&self.registration(&a, promotion.to));
        }
    }

    fn registration(&self, a: &Attachment, label: Label) -> Registration {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        Registration {
            id: a.id.clone(),
            label,
            address: a.port.address,
            owner: a.owner,
            user: users.get(&a.owner).cloned(),
            container: a.container.clone(),
            name: a.name.clone().unwrap_or_else(|| a.container.short().to_owned()),
        }
    }
}

fn bears_its_name(a: &Attachment) -> bool {
    a.label.is_some() && a.label == a.wanted_name().and_then(Label::from_name)
}
