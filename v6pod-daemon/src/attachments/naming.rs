//! Names, behind the answer.
//!
//! Guarantees: no request waits for a name. An attachment that is on its way out claims none, and
//! one that went while its name was looked up is not registered.

use std::sync::Arc;

use v6pod_proto::{AttachmentId, storage};

use super::{Ledger, Shared};
use crate::core::attachment::{Attachment, Phase};
use crate::core::name::Label;
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
            if let Some(name) = name {
                let user = shared.containers.user_name(a.owner).await;
                let _held = shared.naming.lock().await;
                if let Some(registration) = shared.claim(&a.id, &name, user) {
                    shared.registrar.wish(&registration);
                }
            }
        });
    }

    /// Claims a name for an attachment; gives what the registry is to be told.
    fn claim(&self, id: &AttachmentId, name: &str, user: Option<String>) -> Option<Registration> {
        let mut ledger = self.ledger();
        let a = ledger.book.find(id).filter(|a| a.phase != Phase::Releasing)?;
        let news = a.name.as_deref() != Some(name);
        ledger.book.named(id, name);
        let a = ledger.book.find(id).cloned()?;
        if news &&  let Err(error) = self.records.write(&a)
        {
            // The name is found again after a restart.
            tracing::warn!(attachment = %id, %error, "cannot add the name to the record");
        }
        // A pod's infra container speaks for the pod, not for a name that podman made up.
        if storage::is_infra(name) {
            return None;
        }
        let claim = ledger.names.claim(id, a.owner, name);
        let Some(label) = claim.label() else {
            let note = claim.note().unwrap_or_default();
            tracing::info!(attachment = %id, note, "the container's name is not registered");
            return None;
        };
        Some(registration(&a, label.clone(), name, user))
    }

    /// Claims anew the names of attachments that an earlier daemon left, the oldest first, and tells
    /// the registry who lives: everything else of ours that it has is stale.
    pub(super) async fn name_again(self: &Arc<Self>, attachments: Vec<Attachment>) {
        let mut living = Vec::new();
        for a in attachments {
            let name = match a.name.clone() {
                Some(name) => Some(name),
                None => self.containers.name(a.owner, &a.container).await.map(|n| n.name),
            };
            let user = self.containers.user_name(a.owner).await;
            living.extend(name.and_then(|name| self.claim(&a.id, &name, user)));
        }
        self.registrar.reconcile(&living);
    }

    /// Takes the attachment's name away and passes it on to whom it is due next.
    pub(super) fn unname(&self, ledger: &mut Ledger, id: &AttachmentId) {
        self.registrar.withdraw(id);
        for promotion in ledger.names.release(id) {
            let Some(a) = ledger.book.find(&promotion.attachment) else { continue };
            if a.phase == Phase::Releasing {
                continue;
            }
            tracing::info!(attachment = %a.id, from = %promotion.from, to = %promotion.to, "promoted");
            let name = a.name.clone().unwrap_or_default();
            let user = self.containers.known_user_name(a.owner);
            self.registrar.wish(&registration(a, promotion.to, &name, user));
        }
    }
}

fn registration(a: &Attachment, label: Label, name: &str, user: Option<String>) -> Registration {
    Registration {
        id: a.id.clone(),
        label,
        address: a.port.address,
        owner: a.owner,
        user,
        container: a.container.clone(),
        name: name.to_owned(),
    }
}
