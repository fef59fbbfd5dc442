//! What a container may reach.
//!
//! Guarantees:
//! - Of annotation, pod's label and label the first that says anything counts; where none does, the
//!   host's default (`firewall.egress`).
//! - What may be the image's word, and a label where labels do not count, can only confine: who lets
//!   himself be told by it reaches less than the host's default, never more (threat 22).
//! - A list that has no room is cut short, never left out: what was to be confined is confined.

use std::net::Ipv6Addr;

use v6pod_proto::wishes::{Egress, Opening, OtherWishes, Protocol};
use v6pod_proto::{EgressBy, EgressView, Wishes};

use super::hole::{Hole, count, holes, most};

/// What one container may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    view: EgressView,
    /// What of the list had no room.
    cut: Vec<Opening>,
}

impl Default for Reach {
    /// All that the host reaches.
    fn default() -> Self {
        Self::of(EgressView::default(), usize::MAX)
    }
}

impl Reach {
    /// That of a container that asks for this, where the host's default is this one, with room for so
    /// many elements. Labels count if `labels`.
    pub fn asked(
        wishes: &Wishes,
        found: &OtherWishes,
        default: &Egress,
        labels: bool,
        room: usize,
    ) -> Self {
        let by_default = EgressView { rule: default.clone(), by: EgressBy::Host };
        let said = [
            (&wishes.egress, EgressBy::Annotation, true),
            (&found.pod_labels.egress, EgressBy::PodLabel, true),
            (&found.labels.egress, EgressBy::Label, labels),
            (&found.image_annotations.egress, EgressBy::Image, false),
            (&found.image_labels.egress, EgressBy::Image, false),
        ];
        let counts = |rule: &Egress, trusted: bool| {
            trusted || (*default == Egress::Allow && *rule != Egress::Allow)
        };
        let first = said.into_iter().find_map(|(rule, by, trusted)| {
            let rule = rule.as_ref().filter(|rule| counts(rule, trusted))?;
            Some(EgressView { rule: rule.clone(), by })
        });
        Self::of(first.unwrap_or(by_default), room)
    }

    /// As it stands in a record.
    pub fn of(mut view: EgressView, room: usize) -> Self {
        let mut cut = Vec::new();
        if let Egress::Deny(list) = &mut view.rule {
            let mut used = 0;
            list.retain(|opening| {
                let fits = used + count(*opening) <= most(room);
                used += if fits { count(*opening) } else { 0 };
                if !fits {
                    cut.push(*opening);
                }
                fits
            });
        }
        Self { view, cut }
    }

    /// The rule that is in force, and by whose word.
    pub const fn view(&self) -> &EgressView {
        &self.view
    }

    /// What was listed by name, in an annotation or the label of a pod, and has no room: a container that
    /// asks for that does not start.
    pub fn forbidden(&self) -> Option<Opening> {
        let named = matches!(self.view.by, EgressBy::Annotation | EgressBy::PodLabel);
        self.cut.first().copied().filter(|_| named)
    }

    /// What was listed and has no room.
    pub fn cut(&self) -> &[Opening] {
        &self.cut
    }

    /// Whether the container may begin to speak to this port.
    pub fn lets_out(&self, peer: Ipv6Addr, protocol: Protocol, port: u16) -> bool {
        match &self.view.rule {
            Egress::Allow => true,
            Egress::Deny(but) => but.iter().any(|listed| listed.is_for(peer, protocol, port)),
        }
    }

    /// Whether it reaches what is listed alone.
    pub fn is_confined(&self) -> bool {
        self.view.rule != Egress::Allow
    }

    /// How many elements the list takes, without the one that confines; what is listed twice counts
    /// twice.
    pub(super) fn count(&self) -> u128 {
        self.listed().iter().map(|opening| count(*opening)).sum()
    }

    /// The elements that bring it into force.
    pub(super) fn each(&self) -> impl Iterator<Item = Hole> {
        let confined = self.is_confined().then_some(Hole::Confined);
        let listed = self.listed().iter().flat_map(|opening| holes(*opening));
        confined.into_iter().chain(listed.map(Hole::outwards))
    }

    fn listed(&self) -> &[Opening] {
        match &self.view.rule {
            Egress::Allow => &[],
            Egress::Deny(but) => but,
        }
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
