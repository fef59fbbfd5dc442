//! What callers are shown.

use std::net::Ipv6Addr;

use v6pod_proto as proto;
use v6pod_proto::{Mode, NameState, NameStatus, RegistryView, Resolver, Uid, Unopened};

use super::{Attachments, Ledger, Refused, Shared};
use crate::config;
use crate::core::attachment::Attachment;
use crate::core::name::Claim;
use crate::core::open::NotOpened;
use crate::core::step::Role;
use crate::kernel::{descriptors, sock_diag};

/// The largest integer that every JSON reader keeps exact (RFC 7493, section 2.2).
const MAX_SAFE: u128 = (1 << 53) - 1;

/// Whose attachments a caller is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// Everybody's.
    All,
    /// One owner's.
    Owner(Uid),
}

impl Viewer {
    pub(super) fn sees(self, attachment: &Attachment) -> bool {
        match self {
            Self::All => true,
            Self::Owner(uid) => attachment.owner == uid,
        }
    }
}

impl Attachments {
    /// What the viewer may see, by owner, then name, then id.
    pub fn list(&self, viewer: Viewer) -> Vec<proto::Attachment> {
        let ledger = self.0.ledger();
        let seen = ledger.book.shown().filter(|a| viewer.sees(a));
        let mut list: Vec<_> = seen.filter_map(|a| self.0.view(&ledger, a)).collect();
        drop(ledger);
        list.sort_by(|a, b| (a.owner, &a.name, &a.id).cmp(&(b.owner, &b.name, &b.id)));
        list
    }

    /// The one attachment that this id, prefix of an id, name or address means, with its counters, which
    /// the kernel is asked for in the caller's turn.
    pub async fn show(
        &self,
        viewer: Viewer,
        caller: Uid,
        reference: &str,
    ) -> Result<proto::Attachment, Refused> {
        let (mut view, port) = {
            let ledger = self.0.ledger();
            let a = find(&ledger, viewer, reference)?;
            (self.0.view(&ledger, a).ok_or(Refused::Unknown)?, a.ifindex)
        };
        if let Some(port) = port {
            view.traffic = self.0.traffic_of(caller, port).await;
        }
        Ok(view)
    }

    /// The daemon's own state.
    pub fn status(&self) -> proto::Status {
        let shared = &self.0;
        let host = shared.host();
        let ledger = shared.ledger();
        let (made, released) = ledger.book.turnover();
        let counts = proto::Counts {
            attachments: ledger.book.shown().count() as u64,
            leases: ledger.book.shown().filter(|a| a.lease).count() as u64,
            resting: ledger.book.pool().resting() as u64,
            made,
            released,
            routed: ledger.book.shown().filter(|a| a.port.mode == Mode::Routed).count() as u64,
        };
        let gateway = ledger.book.terms().gateway(shared.config.mode);
        drop(ledger);
        proto::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: shared.config.instance.to_string(),
            uptime: shared.started.elapsed().as_secs(),
            prefix: shared.changing.view(),
            mode: shared.config.mode,
            gateway,
            bridge: shared.links.bridge.clone(),
            mtu: host.mtu,
            uplink: host.uplink,
            counts,
            registry: self.registry(),
            resolver: shared.resolver(),
            last_repair: shared.rules.last_repair(),
            off: shared.config.switched_off(),
            obstacles: shared.obstacles.found(),
        }
    }

    /// How many more attachments this caller can have, and what ends first.
    pub fn capacity(&self, caller: Uid) -> proto::Capacity {
        let ledger = self.0.ledger();
        let book = &ledger.book;
        let limit = |name: &str, used: usize, max: u128| proto::CapLimit {
            name: name.to_owned(),
            used: used as u64,
            max: max.min(MAX_SAFE) as u64,
        };
        let terms = book.terms();
        // Who has no slice yet gets an empty one.
        let range = book.range(caller);
        let (taken, room) = match range {
            Some(range) => (book.pool().taken_in(range), book.pool().room(range)),
            None => (0, terms.slice_room()),
        };
        let limits = vec![
            limit("per-owner", book.of_owner(caller), terms.per_owner as u128),
            limit("leases", book.shown().filter(|a| a.lease).count(), most_leases().into()),
            limit("addresses", taken, room),
        ];
        let left = |limit: &proto::CapLimit| limit.max.saturating_sub(limit.used);
        let first = limits.iter().min_by_key(|limit| left(limit));
        proto::Capacity {
            more: first.map_or(0, left),
            first_limit: first.map_or_else(String::new, |limit| limit.name.clone()),
            limits,
        }
    }

    /// The registry's health.
    pub fn registry(&self) -> RegistryView {
        self.0.registrar.health()
    }

    /// The uid that owns the other end of a loopback TCP connection; `None` if nobody does any more.
    pub async fn owner_of_peer(
        &self,
        local: std::net::SocketAddr,
        peer: std::net::SocketAddr,
    ) -> Option<Uid> {
        let asked = self.0.askers.run(move |_| sock_diag::owner_of_peer(local, peer)).await;
        asked.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot ask whose a connection is");
            None
        })
    }
}

/// The subnets that it has. One that is coming it does not have yet.
fn subnets_of(a: &Attachment) -> Vec<String> {
    let there = a.port.subnets().filter(|also| also.role != Role::Coming);
    there.map(|also| also.net().to_string()).collect()
}

/// The members of its pod, as far as they bear names of it.
fn members_of(ledger: &Ledger, a: &Attachment) -> Vec<proto::Member> {
    let members = ledger.members.of(&a.id).iter();
    members
        .map(|m| proto::Member { container: m.container.clone(), name: m.name.clone() })
        .collect()
}

pub(super) fn unopened(NotOpened { opening, by, why }: &NotOpened) -> Unopened {
    Unopened { opening: *opening, by: *by, why: why.to_string() }
}

/// How many leases the daemon's descriptors are enough for: each takes its connection and its holder's
/// pidfd.
fn most_leases() -> u64 {
    /// What connections that are no leases may take.
    const OTHERS: u64 = 2048;

    descriptors::limit().saturating_sub(OTHERS).saturating_sub(for_members()) / 2
}

/// How many members pods may have in all: each takes the pidfd of its first process.
pub(super) fn most_members() -> usize {
    usize::try_from(for_members()).unwrap_or(usize::MAX)
}

/// The part of the daemon's descriptors that is members'.
fn for_members() -> u64 {
    descriptors::limit() / 8
}

/// The one attachment that this reference means to this viewer.
pub(super) fn find<'a>(
    ledger: &'a Ledger,
    viewer: Viewer,
    reference: &str,
) -> Result<&'a Attachment, Refused> {
    let visible: Vec<&Attachment> = ledger.book.shown().filter(|a| viewer.sees(a)).collect();
    let address: Option<Ipv6Addr> = reference.parse().ok();
    let borne = |a: &Attachment| {
        let mut claims = ledger.names.borne_by(&a.id).into_iter();
        claims.any(|claim| claim.label().is_some_and(|label| label.as_str() == reference))
    };
    // From the most to the least exact meaning; the first that anything answers to counts.
    let meanings: [&dyn Fn(&Attachment) -> bool; 4] = [
        &|a| {
            address.is_some_and(|address| a.port.has(address))
                || a.id.as_str() == reference
                || a.container.as_str() == reference
        },
        &borne,
        &|a| a.name.as_deref() == Some(reference),
        &|a| {
            !reference.is_empty()
                && (a.id.as_str().starts_with(reference)
                    || a.container.as_str().starts_with(reference))
        },
    ];
    for means in meanings {
        let mut found = visible.iter().copied().filter(|a| means(a));
        let Some(first) = found.next() else { continue };
        let more = found.count();
        return if more > 0 { Err(Refused::Ambiguous(more + 1)) } else { Ok(first) };
    }
    Err(Refused::Unknown)
}

impl Shared {
    /// The attachment as a caller sees it; `None` once it is on its way out.
    pub(super) fn view(&self, ledger: &Ledger, a: &Attachment) -> Option<proto::Attachment> {
        Some(proto::Attachment {
            id: a.id.clone(),
            container: a.container.clone(),
            name: a.name.clone(),
            owner: a.owner,
            address: a.port.address,
            prefix_length: 128,
            subnets: subnets_of(a),
            gateway: a.port.gateway,
            interface: a.port.interface.clone(),
            port: a.port.name.clone(),
            mac: a.port.mac,
            mode: a.port.mode,
            state: a.phase.shown()?,
            names: self.names_of(ledger, a),
            members: members_of(ledger, a),
            checks: self.checks_of(ledger, a),
            wishes: a.wishes.clone(),
            found: (*a.found).clone(),
            openings: a.open.open().to_vec(),
            unopened: a.open.unopened().iter().map(unopened).collect(),
            egress: a.open.reach().view().clone(),
            lease: a.lease,
            since: a.since,
            network: a.network.clone(),
            traffic: None,
            resolver: self.resolver_of(a),
        })
    }

    /// Who is to be asked for names in this container. One that reaches only what is listed has nobody asked
    /// on for it, and so keeps whom it would ask without us; so does every one whose questions another
    /// firewall drops.
    fn resolver_of(&self, a: &Attachment) -> Option<Resolver> {
        let told = self.config.dns.as_ref().is_some_and(|dns| dns.containers);
        let reached = || !a.open.reach().is_confined() && self.obstacles.let_ask();
        self.resolver().filter(|_| told && reached())
    }

    fn resolver(&self) -> Option<Resolver> {
        let (dns, address) = (self.config.dns.as_ref()?, self.topology.resolver?);
        let has_names = self.config.registry == config::Registry::Embedded;
        Some(Resolver { address, zone: has_names.then(|| dns.zone.clone()) })
    }

    fn names_of(&self, ledger: &Ledger, a: &Attachment) -> Vec<NameStatus> {
        let status = |claim: Claim, asked: &str| NameStatus {
            name: claim.label().map_or_else(|| asked.to_owned(), ToString::to_string),
            state: match claim.label() {
                None => NameState::Refused,
                Some(label) => self.registrar.state_as(&a.id, label).unwrap_or(NameState::Pending),
            },
            note: claim.note(),
        };
        let conflicts = ledger.conflicts.get(&a.id).into_iter().flatten();
        let refused = conflicts.filter(|(_, claim)| matches!(claim, Claim::Refused(_)));
        let refused = refused.map(|(asked, claim)| status(claim.clone(), asked));
        let mut borne = ledger.names.borne_by(&a.id);
        // The container's own before those of its ports.
        borne.sort_by_key(|claim| claim.label() != a.label.as_ref());
        borne.into_iter().map(|claim| status(claim, "")).chain(refused).collect()
    }
}
