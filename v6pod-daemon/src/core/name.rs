//! Names: how a container's name becomes a DNS label, and who of this host's owners may bear it.
//!
//! What [`Names`] guarantees, whatever is claimed and released in whatever order:
//! - At no time do two owners bear the same label.
//! - A label of the shape `…-uUID` is borne by that uid alone, also while he has no container.
//! - Who bears a label keeps it as long as one of his attachments does. Then the owner who has
//!   waited longest has it.
//! - When all is released, nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use v6pod_proto::{AttachmentId, Uid};

/// One label of a DNS name: 1 to 63 lower-case letters, digits and `-`, the latter neither first
/// nor last (RFC 1035, section 2.3.4 for the length; RFC 1123, section 2.1 for a first digit).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Arc<str>);

/// Why a text is not a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a label is 1 to 63 lower-case letters, digits and '-', the latter neither first nor last")]
pub struct LabelError;

impl Label {
    /// The greatest length, in bytes.
    pub const MAX: usize = 63;

    /// The label that a name becomes: lower case, each other character a `-`, none of these at
    /// either end, cut at 63. `None` if nothing is left. Different names can become the same label.
    pub fn from_name(name: &str) -> Option<Self> {
        let label: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .skip_while(|c| *c == '-')
            .take(Self::MAX)
            .collect();
        let label = label.trim_end_matches('-');
        (!label.is_empty()).then(|| Self(label.into()))
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The uid that this label belongs to, if it has the shape `…-uUID`. Only the number as it is
    /// usually written counts: `web-u01` is a label like any other.
    pub fn bound_to(&self) -> Option<Uid> {
        let (_, digits) = self.0.rsplit_once("-u")?;
        let uid: Uid = digits.parse().ok()?;
        (uid.to_string() == digits).then_some(uid)
    }

    /// What the owner bears in this label's place: `LABEL-uUID`, the label cut so that it fits.
    fn bound(&self, owner: Uid) -> Self {
        let suffix = format!("-u{owner}");
        let room = Self::MAX.saturating_sub(suffix.len()).min(self.0.len());
        // A label is ASCII, so every length is a boundary. The second cut spares a double dash.
        let stem = self.0.get(..room).unwrap_or_default().trim_end_matches('-');
        Self(format!("{stem}{suffix}").into())
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_name(text).filter(|label| label.as_str() == text).ok_or(LabelError)
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The attachment bears the label that the name became.
    Granted(Label),
    /// The attachment bears a label of its owner's own instead.
    Suffixed {
        /// What it bears.
        label: Label,
        /// Why not what it asked for.
        why: Loss,
    },
    /// The attachment bears no label for this name.
    Refused(Refusal),
}

impl Claim {
    /// The label to register, if there is one.
    pub const fn label(&self) -> Option<&Label> {
        match self {
            Self::Granted(label) | Self::Suffixed { label, .. } => Some(label),
            Self::Refused(_) => None,
        }
    }

    /// For people: why the name is not the one asked for, or not there. It tells nothing of other
    /// owners but that there is one.
    pub fn note(&self) -> Option<String> {
        match self {
            Self::Granted(_) => None,
            Self::Suffixed { why, .. } => Some(why.to_string()),
            Self::Refused(why) => Some(why.to_string()),
        }
    }
}

/// Why an attachment bears `LABEL-uUID` instead of `LABEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Another owner bears it. A [`Promotion`] follows when he no longer does.
    #[error("another owner's container has this name; it is yours when that one goes")]
    Held,
    /// It has the shape `…-uUID` with another's uid. No promotion will follow.
    #[error("names that end in -u and a number belong to the user of that number")]
    Bound,
}

/// Why a name is not registered at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No letter and no digit in it.
    #[error("nothing in this name can stand in a DNS name")]
    Empty,
    /// The operator keeps it from containers.
    #[error("this name is reserved by the operator")]
    Reserved,
}

/// An attachment bears another label from now on: the one it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    /// The attachment.
    pub attachment: AttachmentId,
    /// What it bore.
    pub from: Label,
    /// What it bears.
    pub to: Label,
}

/// Who bears which label on this host.
///
/// An attachment can claim several names (a pod's and its members'). Several attachments of *one*
/// owner can bear one label: a restart overlaps with what it replaces, and a name with several
/// addresses is how DNS and Consul spread load. Keeping an owner's second container from its name
/// would only make its name depend on which of the two was quicker.
#[derive(Debug, Clone, Default)]
pub struct Names {
    reserved: BTreeSet<Label>,
    /// By the label that was asked for.
    queues: BTreeMap<Label, Queue>,
    /// The labels that each attachment asked for.
    wanted: BTreeMap<AttachmentId, BTreeSet<Label>>,
}

/// All who asked for one label.
#[derive(Debug, Clone)]
struct Queue {
    /// Whose the label is. Everyone else in the queue bears `LABEL-uUID`.
    holder: Uid,
    /// The oldest first. Never empty.
    claims: Vec<(AttachmentId, Uid)>,
}

impl Names {
    /// No names yet. `reserved`: labels that no attachment ever bears.
    pub fn new(reserved: impl IntoIterator<Item = Label>) -> Self {
        Self { reserved: reserved.into_iter().collect(), ..Self::default() }
    }

    /// Claims a name for an attachment. To claim again what the attachment has claimed already
    /// changes nothing and gives the present answer.
    ///
    /// A daemon that takes up its records after a restart claims first for those that bore what
    /// they asked for, then for the others, each in order of age: so everyone gets what he had.
    pub fn claim(&mut self, attachment: &AttachmentId, owner: Uid, wanted: &str) -> Claim {
        let wanted = Label::from_name(wanted);
        wanted.map_or(Claim::Refused(Refusal::Empty), |l| self.claim_label(attachment, owner, &l))
    }

    /// The same for what is a label already.
    pub fn claim_label(&mut self, attachment: &AttachmentId, owner: Uid, wanted: &Label) -> Claim {
        // The owner's own form is looked at too: the operator may have reserved that.
        if [wanted, &wanted.bound(owner)].iter().any(|label| self.reserved.contains(label)) {
            return Claim::Refused(Refusal::Reserved);
        }
        let holder = wanted.bound_to().unwrap_or(owner);
        let queue = self
            .queues
            .entry(wanted.clone())
            .or_insert_with(|| Queue { holder, claims: Vec::new() });
        let asked = self.wanted.entry(attachment.clone()).or_default();
        if asked.insert(wanted.clone()) {
            queue.claims.push((attachment.clone(), owner));
        }
        answer(wanted, owner, queue.holder)
    }

    /// Gives back all that the attachment bears or waits for. The promotions that follow from it
    /// are in order of label, then of age. An attachment that is not known has nothing to give.
    pub fn release(&mut self, attachment: &AttachmentId) -> Vec<Promotion> {
        let asked = self.wanted.remove(attachment).unwrap_or_default();
        asked.iter().flat_map(|wanted| self.leave(attachment, wanted)).collect()
    }

    /// Gives back what the attachment bears or waits for, but for these labels. The promotions that follow
    /// are as those of [`Names::release`].
    pub fn keep(&mut self, attachment: &AttachmentId, kept: &BTreeSet<Label>) -> Vec<Promotion> {
        let Some(asked) = self.wanted.get_mut(attachment) else { return Vec::new() };
        let given: Vec<Label> = asked.difference(kept).cloned().collect();
        asked.retain(|label| kept.contains(label));
        if asked.is_empty() {
            self.wanted.remove(attachment);
        }
        given.iter().flat_map(|label| self.leave(attachment, label)).collect()
    }

    /// The labels that the attachment bears, in order of the labels it asked for.
    pub fn borne_by(&self, attachment: &AttachmentId) -> Vec<Claim> {
        let asked = self.wanted.get(attachment).into_iter().flatten();
        asked
            .filter_map(|wanted| {
                let queue = self.queues.get(wanted)?;
                let (_, owner) = queue.claims.iter().find(|(id, _)| id == attachment)?;
                Some(answer(wanted, *owner, queue.holder))
            })
            .collect()
    }

    /// Whether nobody bears or waits for anything.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.wanted.is_empty()
    }

    /// Takes the attachment out of one label's queue and passes the label on if its owner has no
    /// other there.
    fn leave(&mut self, attachment: &AttachmentId, wanted: &Label) -> Vec<Promotion> {
        let Some(queue) = self.queues.get_mut(wanted) else { return Vec::new() };
        queue.claims.retain(|(id, _)| id != attachment);
        let Some(&(_, oldest)) = queue.claims.first() else {
            self.queues.remove(wanted);
            return Vec::new();
        };
        let held = queue.claims.iter().any(|(_, owner)| *owner == queue.holder);
        if held || wanted.bound_to().is_some() {
            return Vec::new();
        }
        queue.holder = oldest;
        let promoted = queue.claims.iter().filter(|(_, owner)| *owner == oldest);
        promoted
            .map(|(id, owner)| Promotion {
                attachment: id.clone(),
                from: wanted.bound(*owner),
                to: wanted.clone(),
            })
            .collect()
    }
}

/// What an owner bears for a label, given whose it is.
fn answer(wanted: &Label, owner: Uid, holder: Uid) -> Claim {
    if owner == holder {
        return Claim::Granted(wanted.clone());
    }
    let why = if wanted.bound_to().is_some() { Loss::Bound } else { Loss::Held };
    Claim::Suffixed { label: wanted.bound(owner), why }
}

#[cfg(test)]
mod proptests;
mod template;

pub use template::{Named, Template};

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> AttachmentId {
        AttachmentId::from_bits(n)
    }

    fn uid(n: u32) -> Uid {
        Uid::new(n).unwrap()
    }

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_becomes_a_label() {
        let becomes = |name: &str| Label::from_name(name).map(|l| l.to_string());
        assert_eq!(becomes("My_Web.1").as_deref(), Some("my-web-1"));
        assert_eq!(becomes("--a--").as_deref(), Some("a"));
        assert_eq!(becomes("7").as_deref(), Some("7"));
        assert_eq!(becomes("Zoë").as_deref(), Some("zo"));
        assert_eq!(becomes("aİb").as_deref(), Some("a-b"));
        for nothing in ["", "-", "___", "日本"] {
            assert_eq!(becomes(nothing), None, "{nothing:?}");
        }
        assert_eq!(becomes(&"a".repeat(64)), Some("a".repeat(63)));
        // The 63rd is a dash: it may not be last.
        assert_eq!(becomes(&format!("{}.b", "a".repeat(62))), Some("a".repeat(62)));
    }

    #[test]
    fn a_label_is_parsed_only_as_it_is() {
        assert!("web-1".parse::<Label>().is_ok());
        for wrong in ["", "Web", "a.b", "-a", "a-", "a_b", "é", &"a".repeat(64)] {
            assert_eq!(wrong.parse::<Label>(), Err(LabelError), "{wrong:?}");
        }
    }

    #[test]
    fn a_bound_label_tells_its_uid() {
        assert_eq!(label("web-u1000").bound_to(), Some(uid(1000)));
        assert_eq!(label("web-u1000-u0").bound_to(), Some(uid(0)));
        for plain in
            ["web", "u1000", "web-u", "web-u01", "web-u4294967295", "web-u1000-x", "web-v1"]
        {
            assert_eq!(label(plain).bound_to(), None, "{plain:?}");
        }
    }

    #[test]
    fn a_long_label_is_cut_for_its_suffix() {
        let bound = label(&"a".repeat(63)).bound(uid(4_294_967_294));
        assert_eq!(bound.as_str().len(), 63);
        assert_eq!(bound.bound_to(), Some(uid(4_294_967_294)));
        let dashed = label(&format!("{}--b", "a".repeat(57))).bound(uid(1));
        assert_eq!(dashed.as_str(), format!("{}--b-u1", "a".repeat(57)));
        let dashed = label(&format!("{}---b", "a".repeat(58))).bound(uid(12));
        assert_eq!(dashed.as_str(), format!("{}-u12", "a".repeat(58)));
    }

    #[test]
    fn the_first_owner_keeps_the_name_and_the_oldest_loser_has_it_next() {
        let mut names = Names::default();
        assert_eq!(names.claim(&id(1), uid(1000), "Web"), Claim::Granted(label("web")));
        let lost = Claim::Suffixed { label: label("web-u1001"), why: Loss::Held };
        assert_eq!(names.claim(&id(2), uid(1001), "web"), lost);
        names.claim(&id(3), uid(1002), "web");
        names.claim(&id(4), uid(1001), "web");

        let promotion =
            |n| Promotion { attachment: id(n), from: label("web-u1001"), to: label("web") };
        assert_eq!(names.release(&id(1)), [promotion(2), promotion(4)]);
        assert_eq!(names.borne_by(&id(2)), [Claim::Granted(label("web"))]);
        assert_eq!(names.release(&id(2)), [], "the same owner has another one");
        assert_eq!(names.release(&id(4)).len(), 1);
        assert_eq!(names.borne_by(&id(3)), [Claim::Granted(label("web"))]);
        assert_eq!(names.release(&id(3)), []);
        assert!(names.is_empty());
    }

    #[test]
    fn an_owners_second_container_bears_the_same_name() {
        let mut names = Names::default();
        names.claim(&id(1), uid(1000), "web");
        assert_eq!(names.claim(&id(2), uid(1000), "web"), Claim::Granted(label("web")));
        // The restart's old half goes; the name stays its owner's.
        assert_eq!(names.release(&id(1)), []);
        assert!(matches!(names.claim(&id(3), uid(1001), "web"), Claim::Suffixed { .. }));
    }

    #[test]
    fn attack_21_nobody_squats_anothers_suffix() {
        let mut names = Names::default();
        let lost = Claim::Suffixed { label: label("web-u1000-u1001"), why: Loss::Bound };
        assert_eq!(names.claim(&id(1), uid(1001), "web-u1000"), lost);
        assert_eq!(names.claim(&id(2), uid(1000), "web-u1000"), Claim::Granted(label("web-u1000")));
        assert_eq!(names.release(&id(2)), [], "it never passes to another uid");
        assert_eq!(names.borne_by(&id(1)), [lost]);
        names.release(&id(1));
        assert!(names.is_empty());
    }

    #[test]
    fn a_reserved_or_empty_name_is_refused_with_the_reason() {
        let mut names = Names::new([label("consul"), label("db-u7")]);
        let refused = names.claim(&id(1), uid(0), "CONSUL");
        assert_eq!(refused, Claim::Refused(Refusal::Reserved));
        assert!(refused.note().unwrap().contains("reserved"));
        assert_eq!(names.claim(&id(1), uid(7), "db"), Claim::Refused(Refusal::Reserved));
        assert_eq!(names.claim(&id(1), uid(7), "._."), Claim::Refused(Refusal::Empty));
        assert!(names.is_empty(), "a refusal leaves nothing behind");
    }

    #[test]
    fn an_attachment_bears_several_names_and_claims_them_once() {
        let mut names = Names::default();
        names.claim(&id(1), uid(1000), "pod");
        names.claim(&id(1), uid(1000), "web");
        names.claim(&id(1), uid(1000), "web");
        let borne = [Claim::Granted(label("pod")), Claim::Granted(label("web"))];
        assert_eq!(names.borne_by(&id(1)), borne);
        names.release(&id(1));
        assert!(names.is_empty());
    }
}
