//! What of a container is open, and to whom.
//!
//! Guarantees:
//! - Nothing is open that nobody asked for, or that the operator lets its owner not open. What an image
//!   asks for, or may have asked for, opens nothing (threat 22).
//! - One attachment has at most [`Holes::MOST`] elements of the firewall, and all of one owner's
//!   [`Holes::MOST_OF_OWNER`], whatever is asked for (threat 25).
//! - What was changed while the container ran stays as it was changed: its wishes do not come back.
//!
//! An annotation, or a label that counts, says everything about the ports that it names. A published
//! port opens what those do not name: who says `tcp/5432@2001:db8::/32` and publishes 5432 for IPv4's
//! sake has not opened it to all.

use std::net::Ipv6Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use v6pod_proto::wishes::{Egress, Opening, OpeningList, Openings, OtherWishes, Ports, Protocol};
use v6pod_proto::{Change, EgressView, Opened, OpenedBy, Uid, Wishes};

use super::egress::Reach;
use super::hole::{Hole, Holes, count, holes, most};

/// The most entries that one attachment's list has: it stands in a record of bounded size.
const ENTRIES: usize = 256;

/// How much of what is not open is told: it stands in answers of bounded size.
const TOLD: usize = 32;

/// Which ways of asking open anything (`firewall.openings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    /// Annotations, and labels of pods.
    pub annotations: bool,
    /// Published ports.
    pub published: bool,
    /// Labels.
    pub labels: bool,
}

/// Ports that somebody may open (`firewall.allow`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: Ports,
}

/// Which ports a user may open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rights {
    /// Every one.
    All,
    /// These.
    Only(Arc<[Allowed]>),
}

impl Rights {
    /// No port at all.
    pub fn none() -> Self {
        Self::Only(Arc::new([]))
    }

    /// What of an opening may be opened, and what may not.
    fn split(&self, opening: Opening) -> (Vec<Opening>, Vec<Opening>) {
        let Self::Only(allowed) = self else { return (vec![opening], vec![]) };
        let (mut may, mut rest) = (Vec::new(), vec![opening]);
        for one in allowed.iter().filter(|one| one.protocol == opening.protocol) {
            rest = rest
                .into_iter()
                .flat_map(|left| {
                    let [below, within, above] = left.ports.cut(one.ports).map(|p| with(left, p));
                    may.extend(within);
                    [below, above].into_iter().flatten()
                })
                .collect();
        }
        may.sort_unstable_by_key(|opening| opening.ports.first());
        (may, rest)
    }

    fn allow(&self, opening: Opening) -> bool {
        self.split(opening).1.is_empty()
    }
}

/// What decides about what a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTerms {
    /// Which ways of asking count.
    pub ways: Ways,
    /// What the owner may open.
    pub rights: Rights,
    /// What a container may reach that says nothing of that.
    pub egress: Egress,
    /// Whose it is, where an owner's containers reach each other freely (`firewall.east_west`).
    pub kin: Option<Uid>,
    /// How many elements are left for it of its owner's.
    pub room: usize,
}

/// What of a container is open, and what it may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenPorts {
    open: Vec<Opened>,
    unopened: Vec<NotOpened>,
    changed: bool,
    reach: Reach,
    kin: Option<Uid>,
}

/// The same as it stands in a record: without what is not open, which follows from the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedPorts {
    open: Vec<Opened>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    changed: bool,
    #[serde(default, skip_serializing_if = "is_unconfined")]
    egress: EgressView,
}

fn is_unconfined(egress: &EgressView) -> bool {
    *egress == EgressView::default()
}

/// Why something cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// `openings` beside `open` or `close`, or none of them.
    #[error("say `name`, or either `openings`, or `open` and `close`")]
    Unclear,
    /// The operator lets this user not open it.
    #[error("{opening} is not open: {}", Why::NotAllowed)]
    Forbidden {
        /// What.
        opening: Opening,
    },
    /// It is open to more addresses than it is to be closed for.
    #[error("{0} is open to more than that: close it, and open it to those that are left")]
    Wider(Opening),
    /// There is no room for it.
    #[error("{0}")]
    TooMany(TooMany),
}

/// More than one attachment may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "that is more than {} elements of the firewall for a container, or {} for all of its owner's: each \
     port counts once for each prefix of 32, 40, 48, 56, 64 or 128 bits that its addresses are made of; \
     tcp/1-65535 to all counts once; or it is more than {} openings",
    Holes::MOST,
    Holes::MOST_OF_OWNER,
    ENTRIES
)]
pub struct TooMany;

/// What was asked for and is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOpened {
    /// Ports, and to whom.
    pub opening: Opening,
    /// By what it was asked for.
    pub by: OpenedBy,
    /// Why not.
    pub why: Why,
}

/// Why something is not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// `firewall.openings` does not name this way of asking.
    #[error(
        "this way of asking opens nothing on this host, by its operator's word (firewall.openings)"
    )]
    Off,
    /// `firewall.allow` names other ports for this user.
    #[error("this host's operator lets you open other ports (firewall.allow)")]
    NotAllowed,
    /// There is no room for it.
    #[error(
        "a container has at most {} elements of the firewall, and all of its owner's {}",
        Holes::MOST,
        Holes::MOST_OF_OWNER
    )]
    NoRoom,
    /// An annotation or label says something else about this port.
    #[error("what an annotation or a label says of this port counts")]
    Named,
    /// An annotation or a pod's label says everything.
    #[error("what an annotation, or the pod's label, says is open counts")]
    Overruled,
    /// Its image bears it, or it is not known that it does not.
    #[error("an image opens nothing, and this is its image's, or may be")]
    Image,
}

impl OpenPorts {
    /// What is open of a container that asks for this.
    pub fn asked(wishes: &Wishes, found: &OtherWishes, terms: &OpenTerms) -> Self {
        let mut ports = Self::default().reaching(wishes, found, terms);
        let said = [
            (&wishes.ingress, OpenedBy::Annotation),
            (&found.pod_labels.ingress, OpenedBy::PodLabel),
            (&found.labels.ingress, OpenedBy::Label),
        ];
        let mut named: &[Opening] = &[];
        for (openings, by) in said {
            let Some(openings) = openings.as_ref().map(Openings::each) else { continue };
            if named.is_empty() || !terms.heed(by) {
                ports.take(openings, by, terms);
            } else {
                ports.refuse(openings, by, Why::Overruled);
            }
            if named.is_empty() && terms.heed(by) {
                named = openings;
            }
        }
        if let Some(published) = &found.published {
            let (rest, theirs) = without(published.each(), named);
            ports.take(&rest, OpenedBy::Published, terms);
            ports.refuse(&theirs, OpenedBy::Published, Why::Named);
        }
        for image in [&found.image_annotations, &found.image_labels] {
            if let Some(openings) = &image.ingress {
                ports.refuse(openings.each(), OpenedBy::Image, Why::Image);
            }
        }
        ports
    }

    /// What is open of a container after a restart: what it asks for, judged anew, or what it was
    /// changed to, as far as that is still allowed.
    pub fn again(&self, wishes: &Wishes, found: &OtherWishes, terms: &OpenTerms) -> Self {
        if !self.changed {
            return Self::asked(wishes, found, terms);
        }
        let mut ports = Self { changed: true, ..Self::default() }.reaching(wishes, found, terms);
        for Opened { opening, by } in &self.open {
            ports.take(&[*opening], *by, terms);
        }
        ports
    }

    /// The same, reaching what a container may that asks for this. What is open stays as it is.
    #[must_use]
    pub fn reaching(self, wishes: &Wishes, found: &OtherWishes, terms: &OpenTerms) -> Self {
        let OpenTerms { ways, egress, room, kin, .. } = terms;
        let reach = Reach::asked(wishes, found, egress, ways.labels, *room);
        Self { reach, kin: *kin, ..self }
    }

    /// What was open before a restart.
    pub fn as_recorded(recorded: Option<RecordedPorts>) -> Self {
        let recorded = recorded.unwrap_or(RecordedPorts {
            open: Vec::new(),
            changed: false,
            egress: EgressView::default(),
        });
        let reach = Reach::of(recorded.egress, Holes::MOST);
        let mut ports = Self { changed: recorded.changed, reach, ..Self::default() };
        for Opened { opening, by } in recorded.open {
            ports.fit(opening, by, Holes::MOST);
        }
        ports
    }

    /// How it stands in a record; nothing if nothing was ever open, and nothing is out of reach.
    pub fn recorded(&self) -> Option<RecordedPorts> {
        let Self { open, changed, reach, .. } = self;
        let egress = reach.view().clone();
        (!open.is_empty() || *changed || !is_unconfined(&egress)).then(|| RecordedPorts {
            open: open.clone(),
            changed: *changed,
            egress,
        })
    }

    /// What is open.
    pub fn open(&self) -> &[Opened] {
        &self.open
    }

    /// What it may reach.
    pub const fn reach(&self) -> &Reach {
        &self.reach
    }

    /// What was asked for and is not.
    pub fn unopened(&self) -> &[NotOpened] {
        &self.unopened
    }

    /// Whether it was changed while the container ran, so that its wishes count no more.
    pub const fn is_changed(&self) -> bool {
        self.changed
    }

    /// What was asked for by name, in an annotation or the label of a pod, and is not open: a container
    /// that asks for that does not start.
    pub fn forbidden(&self) -> Option<&NotOpened> {
        let named = |by| matches!(by, OpenedBy::Annotation | OpenedBy::PodLabel);
        self.unopened.iter().find(|one| named(one.by) && one.why != Why::Overruled)
    }

    /// Whether this address may begin to speak to this port.
    pub fn let_in(&self, peer: Ipv6Addr, protocol: Protocol, port: u16) -> bool {
        self.open.iter().any(|open| open.opening.is_for(peer, protocol, port))
    }

    /// What is open by this element: of several, what came first.
    pub fn opener(&self, hole: &Hole) -> Option<Opened> {
        self.open.iter().find(|open| holes(open.opening).contains(hole)).copied()
    }

    /// What was asked for of this port and is not open.
    pub fn not_opened(&self, protocol: Protocol, port: u16) -> Vec<NotOpened> {
        let of_port = |one: &&NotOpened| {
            let Opening { protocol: of, ports, .. } = one.opening;
            of == protocol && ports.first() <= port && port <= ports.last()
        };
        self.unopened.iter().filter(of_port).copied().collect()
    }

    /// The elements that let all of it in, and that hold the container to what it may reach.
    pub fn holes(&self) -> Holes {
        let open = self.open.iter().flat_map(|o| holes(o.opening));
        let kin = self.kin.map_or(0, Uid::as_raw);
        let bits = (0..32).filter(|bit| kin >> bit & 1 == 1).map(Hole::Kin);
        open.chain(self.reach.each()).chain(bits).collect()
    }

    /// What is open after a change that somebody with these rights asks for, with room for so many
    /// elements.
    pub fn change(
        &self,
        change: &Change,
        by: OpenedBy,
        rights: &Rights,
        room: usize,
    ) -> Result<Self, ChangeError> {
        let (kept, more) = match change {
            Change { openings: Some(all), open: None, close: None, .. } => (vec![], &all.0[..]),
            Change { openings: None, open: None, close: None, .. }
            | Change { openings: Some(_), .. } => return Err(ChangeError::Unclear),
            Change { openings: None, open, close, .. } => (self.closed(list(close))?, list(open)),
        };
        let mut next = Self { open: kept, unopened: Vec::new(), changed: true, ..self.clone() };
        for &opening in more {
            if next.open.iter().any(|open| open.opening == opening) {
                continue;
            }
            // Who opened it first has opened it.
            let known = self.open.iter().find(|open| open.opening == opening).copied();
            if known.is_none() && !rights.allow(opening) {
                return Err(ChangeError::Forbidden { opening });
            }
            let Opened { opening, by } = known.unwrap_or(Opened { opening, by });
            if !next.fit(opening, by, room) {
                return Err(ChangeError::TooMany(TooMany));
            }
        }
        // What is left of every port is many elements, and what is left of ranges many entries: a restart would
        // drop those behind the last that there is room for.
        let more_entries = next.open.len() > ENTRIES && next.open.len() > self.open.len();
        let more_elements = next.count() > most(room) && next.count() > self.count();
        if more_entries || more_elements {
            return Err(ChangeError::TooMany(TooMany));
        }
        Ok(next)
    }

    /// What is left of what is open.
    fn closed(&self, close: &[Opening]) -> Result<Vec<Opened>, ChangeError> {
        let mut kept = self.open.clone();
        for shut in close {
            let mut rest = Vec::new();
            for open in kept {
                let [below, within, above] = open.opening.ports.cut(shut.ports);
                if within.is_none() || open.opening.protocol != shut.protocol {
                    rest.push(open);
                } else if shut.peers.include(open.opening.peers) {
                    let left = [below, above].into_iter().filter_map(|p| with(open.opening, p));
                    rest.extend(left.map(|opening| Opened { opening, ..open }));
                } else if open.opening.peers.include(shut.peers) {
                    return Err(ChangeError::Wider(open.opening));
                } else {
                    rest.push(open);
                }
            }
            kept = rest;
        }
        Ok(kept)
    }

    /// Opens what may be opened of these, and notes the rest.
    fn take(&mut self, openings: &[Opening], by: OpenedBy, terms: &OpenTerms) {
        if !terms.heed(by) {
            return self.refuse(openings, by, Why::Off);
        }
        let all = Rights::All;
        let rights = if by == OpenedBy::Operator { &all } else { &terms.rights };
        for &opening in openings {
            let (may, may_not) = rights.split(opening);
            self.refuse(&may_not, by, Why::NotAllowed);
            for opening in may {
                if !self.fit(opening, by, terms.room) {
                    self.refuse(&[opening], by, Why::NoRoom);
                }
            }
        }
    }

    /// Opens it if there is room.
    fn fit(&mut self, opening: Opening, by: OpenedBy, room: usize) -> bool {
        let fits = self.count() + count(opening) <= most(room) && self.open.len() < ENTRIES;
        if fits {
            self.open.push(Opened { opening, by });
        }
        fits
    }

    /// How many elements it takes; what is open twice counts twice.
    fn count(&self) -> u128 {
        self.reach.count() + self.open.iter().map(|open| count(open.opening)).sum::<u128>()
    }

    fn refuse(&mut self, openings: &[Opening], by: OpenedBy, why: Why) {
        let room = TOLD.saturating_sub(self.unopened.len());
        let each = openings.iter().take(room);
        self.unopened.extend(each.map(|&opening| NotOpened { opening, by, why }));
    }
}

impl OpenTerms {
    /// Whether this way of asking counts.
    const fn heed(&self, by: OpenedBy) -> bool {
        let Ways { annotations, published, labels } = self.ways;
        match by {
            OpenedBy::Annotation | OpenedBy::PodLabel => annotations,
            OpenedBy::Label => labels,
            OpenedBy::Published => published,
            OpenedBy::Owner | OpenedBy::Operator => true,
            OpenedBy::Image => false,
        }
    }
}

fn list(openings: &Option<OpeningList>) -> &[Opening] {
    openings.as_ref().map_or(&[], |list| &list.0)
}

fn with(opening: Opening, ports: Option<Ports>) -> Option<Opening> {
    ports.map(|ports| Opening { ports, ..opening })
}

/// What of these names other ports than those, and what the same.
fn without(these: &[Opening], those: &[Opening]) -> (Vec<Opening>, Vec<Opening>) {
    let (mut rest, mut same) = (these.to_vec(), Vec::new());
    for named in those {
        let cut = |opening: Opening| {
            if opening.protocol != named.protocol {
                return [Some(opening), None];
            }
            let [below, within, above] = opening.ports.cut(named.ports).map(|p| with(opening, p));
            same.extend(within);
            [below, above]
        };
        rest = rest.into_iter().flat_map(cut).flatten().collect();
    }
    (rest, same)
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
