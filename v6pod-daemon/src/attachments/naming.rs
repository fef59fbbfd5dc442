//! Names, behind the answer.
//!
//! Guarantees: no request waits for a name. An attachment that is on its way out claims none, and
//! one that went while its name was looked up is not registered. Nobody passes for another user by a tag.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use v6pod_proto::wishes::NameWish;
use v6pod_proto::{AttachmentId, Happening, Uid};

use super::{Ledger, Shared};
use crate::core::attachment::{Attachment, Phase};
use crate::core::member::Member;
use crate::core::name::{Claim, Label, Loss, Named, Promotion, Refusal};
use crate::core::offer::{Offer, Offers, Part};
use crate::failpoint;
use crate::registry::Registration;

/// More tags than this of one container are not looked at, and not registered.
const TAGS: usize = 64;

/// When what is known of tags is forgotten.
const WORDS: usize = 4096;

/// What is known of the system's accounts. Asked anew whenever something is named: an account can be
/// another person's by now.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// What owners are called.
    logins: HashMap<Uid, String>,
    /// Whom a tag names, if it names anybody.
    words: HashMap<String, Option<Uid>>,
}

/// What attachments asked for and did not get as they asked for it, by what they asked for.
pub(super) type Conflicts = HashMap<AttachmentId, BTreeMap<String, Claim>>;

impl Accounts {
    fn login(&self, owner: Uid) -> Option<&str> {
        self.logins.get(&owner).map(String::as_str)
    }

    /// Whether this owner may be found by this tag: it is known, and nobody else's name. The DNS does not
    /// tell upper from lower case.
    fn allows(&self, owner: Uid, tag: &str) -> bool {
        let tag = tag.to_ascii_lowercase();
        let others = |(uid, login): (&Uid, &String)| {
            *uid != owner && Label::from_name(login).is_some_and(|label| label.as_str() == tag)
        };
        let named = self.words.get(&tag);
        named.is_some_and(|named| named.is_none_or(|uid| uid == owner))
            && !self.logins.iter().any(others)
    }
}

impl Shared {
    /// Sees to the attachment's name in the background: looks it up if its start did not bring it,
    /// claims it, hands it to the registry.
    pub(super) fn name_in_background(self: &Arc<Self>, attachment: &Attachment) {
        let (shared, mut a) = (Arc::clone(self), attachment.clone());
        tokio::spawn(async move {
            let name = match &a.name {
                Some(name) => Some(name.clone()),
                None => {
                    let said = shared.containers.name(a.owner, &a.container).await;
                    said.ok().flatten().map(|name| name.name)
                }
            };
            // Without a name it offers nothing, and no tags.
            a.name.clone_from(&name);
            shared.learn_owner(a.owner).await;
            shared.learn_tags_of_all(&a).await;
            // Claimed and wished for under one lock: a release comes before both or after both.
            let mut ledger = shared.ledger();
            let all = shared.claim(&mut ledger, &a.id, name.as_deref());
            if let Some(all) = all {
                shared.registrar.wish_all(&a.id, &all);
                failpoint::reach("naming:wished");
            }
        });
    }

    /// Claims anew the names of attachments that an earlier daemon left, and tells the registry who
    /// lives: everything else of ours that it has is stale. Before anything is served.
    pub(super) async fn name_again(self: &Arc<Self>, mut attachments: Vec<Attachment>) {
        attachments.sort_by_key(|a| (a.since, a.id.clone()));
        let owners: HashSet<Uid> = attachments.iter().map(|a| a.owner).collect();
        for owner in owners {
            self.learn_owner(owner).await;
        }
        for a in &attachments {
            self.learn_tags_of_all(a).await;
        }
        let mut ledger = self.ledger();
        // Who bore what he asked for claims that first, then all claim what they ask for; the older ones
        // first. So everyone gets what he had.
        for a in &attachments {
            let (own, members) = (self.offers(a), self.member_offers(&ledger, a));
            let members = members.iter().flat_map(|(_, offers)| offers.labels());
            for label in own.labels().chain(members) {
                if a.bears(label) {
                    ledger.names.claim_label(&a.id, a.owner, label);
                }
            }
        }
        let mut living = Vec::new();
        for a in attachments {
            self.name_nameless_members(&ledger, &a);
            match &a.name {
                Some(name) => {
                    let all = self.claim(&mut ledger, &a.id, Some(name));
                    living.extend(all.into_iter().flatten());
                }
                None => self.name_in_background(&a),
            }
        }
        self.registrar.reconcile(&living);
    }

    /// Claims all names that the container and its pod's members are to be found by, for an attachment, and gives
    /// back those that it bore and that nobody asks for any more; gives what the registry is to be told. `None`
    /// if the attachment is on its way out.
    fn claim(
        &self,
        ledger: &mut Ledger,
        id: &AttachmentId,
        name: Option<&str>,
    ) -> Option<Vec<Registration>> {
        let living = ledger.book.find(id).filter(|a| a.phase != Phase::Releasing)?;
        let mut a = living.clone();
        a.name = name.map(str::to_owned).or(a.name);
        let (own, members) = (self.offers(&a), self.member_offers(ledger, &a));
        let speakers = || std::iter::once((&a, &own)).chain(members.iter().map(|(a, o)| (a, o)));
        let (mut conflicts, mut granted) = (BTreeMap::new(), Vec::new());
        for (speaker, Offers { offers, refused }) in speakers() {
            for (asked, why) in refused {
                conflicts.insert(asked.clone(), Claim::Refused(*why));
            }
            for offer in offers {
                let claim = ledger.names.claim_label(id, a.owner, &offer.label);
                granted.extend(claim.label().map(|label| (speaker, offer, label.clone())));
                if !matches!(claim, Claim::Granted(_)) {
                    conflicts.insert(offer.label.to_string(), claim);
                }
            }
        }
        failpoint::reach("naming:claimed");
        let labels = granted.iter().map(|(_, offer, label)| (offer.part, label));
        self.remember(ledger, id, name, labels);
        failpoint::reach("naming:recorded");
        self.tell_conflicts(ledger, &a, conflicts);
        let asked: BTreeSet<_> =
            speakers().flat_map(|(_, offers)| offers.labels()).cloned().collect();
        let promotions = ledger.names.keep(id, &asked);
        self.promote(ledger, &promotions);
        let registrations = granted.into_iter();
        Some(registrations.map(|(a, offer, label)| self.registration(a, offer, label)).collect())
    }

    /// The same, and has the registry told: something has become known, or is not so any more.
    pub(super) fn claim_and_wish(&self, ledger: &mut Ledger, id: &AttachmentId) {
        if let Some(all) = self.claim(ledger, id, None) {
            self.registrar.wish_all(id, &all);
        }
    }

    /// What the members of its pod offer, each by the attachment as if that were its own.
    pub(super) fn member_offers(
        &self,
        ledger: &Ledger,
        a: &Attachment,
    ) -> Vec<(Attachment, Offers)> {
        let accounts = self.accounts();
        let named = Named { user: accounts.login(a.owner), owner: a.owner, host: &self.host_name };
        let offers = |member: &Member| {
            let offers = Offers::of_member(member, a, &self.config.name, named);
            (member.speaking_for(a), offers)
        };
        ledger.members.of(&a.id).iter().map(offers).collect()
    }

    /// What its container offers to the registry.
    pub(super) fn offers(&self, a: &Attachment) -> Offers {
        let accounts = self.accounts();
        let user = accounts.login(a.owner);
        Offers::of(a, &self.config.name, Named { user, owner: a.owner, host: &self.host_name })
    }

    /// Keeps what the attachment did not get, and tells of what is new in it.
    fn tell_conflicts(&self, ledger: &mut Ledger, a: &Attachment, now: BTreeMap<String, Claim>) {
        let before = ledger.conflicts.remove(&a.id).unwrap_or_default();
        for (asked, claim) in &now {
            if before.get(asked) == Some(claim) {
                continue;
            }
            let note = claim.note().unwrap_or_default();
            tracing::info!(attachment = %a.id, asked, note, "a name is not as it was asked for");
            self.metrics.conflict(match claim {
                Claim::Suffixed { why: Loss::Held, .. } => "held",
                Claim::Suffixed { why: Loss::Bound, .. } => "bound",
                Claim::Refused(Refusal::Reserved) => "reserved",
                Claim::Refused(Refusal::Empty) | Claim::Granted(_) => "empty",
            });
            self.tell(Happening::Conflict, a, Some(asked.clone()), Some(note));
        }
        if !now.is_empty() {
            ledger.conflicts.insert(a.id.clone(), now);
        }
    }

    /// Keeps the name and what the attachment bears, in memory and on disk.
    fn remember<'a>(
        &self,
        ledger: &mut Ledger,
        id: &AttachmentId,
        name: Option<&str>,
        granted: impl Iterator<Item = (Part, &'a Label)> + Clone,
    ) {
        let main = granted.clone().find(|(part, _)| *part == Part::Whole).map(|(_, label)| label);
        let mut further: Vec<Label> = Vec::new();
        for (_, label) in granted {
            if Some(label) != main && !further.contains(label) {
                further.push(label.clone());
            }
        }
        let Some(changed) = ledger.book.named(id, name, main, &further) else { return };
        if let Err(error) = self.records.write(changed) {
            // The name is looked up again after a restart.
            tracing::warn!(attachment = %id, %error, "cannot add the name to the record");
        }
    }

    /// Asks for the owner's name, which the registry gets as a tag.
    pub(super) async fn learn_owner(&self, owner: Uid) {
        let user = self.containers.user_name(owner).await;
        let mut accounts = self.accounts();
        match user {
            Some(user) => accounts.logins.insert(owner, user),
            None => accounts.logins.remove(&owner),
        };
    }

    /// Has the attachment ask for this name from now on. Its record says so already.
    pub(super) fn rename(&self, ledger: &mut Ledger, id: &AttachmentId, name: NameWish) {
        ledger.book.rename(id, name);
        self.claim_and_wish(ledger, id);
    }

    /// Asks whom the tags name of the container, and of the members of its pod.
    async fn learn_tags_of_all(&self, a: &Attachment) {
        self.learn_tags(a).await;
        let members = self.ledger().members.of(&a.id).to_vec();
        for member in members {
            self.learn_tags(&member.speaking_for(a)).await;
        }
    }

    /// Asks whom the container's own tags name.
    pub(super) async fn learn_tags(&self, a: &Attachment) {
        let tags: HashSet<String> =
            self.offers(a).offers.into_iter().flat_map(|o| o.tags).collect();
        let mut words = Vec::new();
        for tag in tags.into_iter().take(TAGS) {
            let word = tag.to_ascii_lowercase();
            // What cannot be known is not known to be nobody's.
            if let Ok(named) = self.containers.user_named(a.owner, word.clone()).await {
                words.push((word, named));
            }
        }
        let mut accounts = self.accounts();
        if accounts.words.len() + words.len() > WORDS {
            accounts.words.clear();
        }
        accounts.words.extend(words);
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the attachment's names away and passes them on to whom they are due next.
    pub(super) fn unname(&self, ledger: &mut Ledger, id: &AttachmentId) {
        self.registrar.withdraw(id);
        ledger.conflicts.remove(id);
        let promotions = ledger.names.release(id);
        self.promote(ledger, &promotions);
    }

    /// Has those told who bear another name from now on.
    fn promote(&self, ledger: &mut Ledger, promotions: &[Promotion]) {
        let mut promoted = HashSet::new();
        for promotion in promotions {
            tracing::info!(
                attachment = %promotion.attachment, from = %promotion.from, to = %promotion.to, "promoted"
            );
            promoted.insert(promotion.attachment.clone());
        }
        for id in promoted {
            // Claims what it has already, and so learns what that is now.
            self.claim_and_wish(ledger, &id);
        }
    }

    fn registration(&self, a: &Attachment, offer: &Offer, label: Label) -> Registration {
        let accounts = self.accounts();
        let Offer { part, port, mut tags, check, .. } = offer.clone();
        tags.retain(|tag| accounts.allows(a.owner, tag));
        Registration {
            id: a.id.clone(),
            part,
            label,
            address: a.port.address,
            owner: a.owner,
            user: accounts.login(a.owner).map(str::to_owned),
            container: a.container.clone(),
            name: a.name.clone().unwrap_or_else(|| a.container.short().to_owned()),
            image: a.found.image.clone(),
            port,
            tags,
            check,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_21_nobody_is_found_by_another_users_name() {
        let [alice, bob] = [1000, 1001].map(|uid| Uid::new(uid).unwrap());
        let mut accounts = Accounts::default();
        accounts.logins.insert(alice, "Al.ice".to_owned());
        for (word, named) in
            [("v1", None), ("al-ice", None), ("alice", Some(alice)), ("bob", Some(bob))]
        {
            accounts.words.insert(word.to_owned(), named);
        }
        assert!(accounts.allows(bob, "v1") && accounts.allows(bob, "Bob"));
        assert!(accounts.allows(alice, "ALICE") && accounts.allows(alice, "al-ice"));
        assert!(!accounts.allows(bob, "Alice"), "an account's name");
        assert!(!accounts.allows(bob, "al-ice"), "what an account's name becomes");
        assert!(!accounts.allows(bob, "never-asked"), "what nobody has looked at");
    }
}
