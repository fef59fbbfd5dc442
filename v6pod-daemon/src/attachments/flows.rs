//! Flows that go on though nothing allows them any more, and their end.
//!
//! The rules decide when a flow begins, so what is closed, or out of reach from now on, goes on until
//! conntrack forgets it. Guarantee: a flow that would be let begin does not end.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;

use ipnet::Ipv6Net;
use v6pod_proto::wishes::Protocol;
use v6pod_proto::{AttachmentId, Uid};

use super::Shared;
use crate::core::attachment::Attachment;
use crate::core::open::OpenPorts;
use crate::core::ruleset::{EastWest, HostAccess, Ingress};
use crate::core::subnet::{ByNet, Nets};
use crate::kernel::firewall::Flow;
use crate::kernel::netlink::RouteSocket;
use crate::kernel::sock_diag::Holders;
use crate::kernel::{self, Worker};

/// What decides about flows: attachments by their address, and the configuration.
struct Judge {
    all: ByNet<(Uid, OpenPorts)>,
    /// Whose containers reach each other freely, by address: of every one, and of no subnet.
    kin: HashMap<Ipv6Addr, Uid>,
    gateways: Vec<Ipv6Addr>,
    resolver: Option<Ipv6Addr>,
    ingress: Ingress,
    east_west: EastWest,
    host: HostAccess,
}

impl Judge {
    /// Whether it could end anything.
    fn is_needed(&self) -> bool {
        self.ingress == Ingress::Deny
            || self.east_west == EastWest::Deny
            || self.host == HostAccess::Deny
            || self.confined().next().is_some()
    }

    /// Those that reach what is listed alone.
    fn confined(&self) -> impl Iterator<Item = Ipv6Net> {
        let confined = self.all.iter().filter(|(_, (_, open))| open.reach().is_confined());
        confined.map(|(net, _)| *net)
    }

    /// Whether something allows it. Without anybody to ask about this host, only what is allowed whatever the
    /// answer would be.
    fn allows(&self, mut here: Option<&mut Here<'_>>, flow: &Flow) -> bool {
        let Flow { protocol, asks, answers, port, .. } = *flow;
        if Some(answers) == self.resolver {
            return true;
        }
        let (from, to) = (self.all.find(asks), self.all.find(answers));
        let kept_apart = match (from, to) {
            (Some(_), Some(_)) => self.east_west == EastWest::Deny,
            (Some(_), None) if self.host == HostAccess::Deny => {
                let resolver = port == 53 && self.gateways.contains(&answers);
                !resolver && here.as_mut().is_none_or(|here| here.has(answers))
            }
            _ => false,
        };
        let kept_in = from.is_some_and(|(_, open)| !open.reach().lets_out(answers, protocol, port));
        let kept_out = self.ingress == Ingress::Deny
            && to.is_some_and(|(owner, open)| {
                let kin = self.kin.contains_key(&answers) && self.kin.get(&asks) == Some(owner);
                let may = kin || open.let_in(asks, protocol, port);
                !may && !here.as_mut().is_some_and(|here| here.began(flow, *owner))
            });
        !kept_apart && !kept_in && !kept_out
    }
}

impl Shared {
    /// Ends every flow of this attachment, or of all, that nothing allows. One to it is allowed by an
    /// opening, or as its owner's or root's on this host; one that it began, by what it may reach.
    ///
    /// What fails is tried again by the next [look](Shared::look_after_rules).
    pub(super) fn end_flows(
        &self,
        worker: &mut Worker,
        only: Option<&AttachmentId>,
    ) -> Result<(), kernel::Error> {
        if only.is_none() {
            // First: what fails meanwhile for another is due again.
            self.rules.flows_due.store(false, Ordering::SeqCst);
        }
        let ended = self.try_to_end_flows(worker, only);
        if ended.is_err() {
            self.rules.flows_due.store(true, Ordering::SeqCst);
        }
        ended
    }

    fn try_to_end_flows(
        &self,
        worker: &mut Worker,
        only: Option<&AttachmentId>,
    ) -> Result<(), kernel::Error> {
        let of = |a: &Attachment| -> Vec<_> {
            a.port.nets().map(|net| (net, (a.owner, a.open.clone()))).collect()
        };
        let judge = {
            let ledger = self.ledger();
            let all = match only {
                Some(id) => ledger.book.find(id).map(of).into_iter().flatten().collect(),
                None => ledger.book.shown().flat_map(of).collect(),
            };
            let kin = match self.config.east_west {
                EastWest::Owner => {
                    let each = |a: &Attachment| -> Vec<_> {
                        let alone = a.port.nets().filter(|net| net.prefix_len() == 128);
                        alone.map(|net| (net.addr(), a.owner)).collect()
                    };
                    ledger.book.all().flat_map(each).collect()
                }
                EastWest::Policy | EastWest::Deny => HashMap::new(),
            };
            let gateways = self.rules.policy().gateways().collect();
            let resolver = self.topology.resolver;
            let config = &self.config;
            let (ingress, east_west, host) = (config.ingress, config.east_west, config.host);
            Judge { all, kin, gateways, resolver, ingress, east_west, host }
        };
        if !judge.is_needed() {
            return Ok(());
        }
        let Worker { rules, socket, .. } = worker;
        let mut flows = rules.flows(|flow| !judge.allows(None, flow))?;
        // Sockets are looked at behind the flows: whoever began one of these has his by now.
        let mut here = Here { socket, local: HashMap::new(), holders: Holders::default() };
        flows.retain(|begun| !judge.allows(Some(&mut here), &begun.flow));
        rules.end_flows(&self.links, &flows)?;
        let confined: Nets = judge.confined().collect();
        let ended = flows.len() + rules.forget_portless(&confined)?;
        if ended > 0 {
            self.metrics.ended_flows(ended);
            tracing::info!(ended, "ended flows that nothing allows");
        }
        Ok(())
    }
}

/// What was found out about this host for one look at its flows. Of these there are as many as a tenant cares
/// to begin, so nothing is asked twice.
struct Here<'a> {
    socket: &'a mut RouteSocket,
    local: HashMap<Ipv6Addr, bool>,
    holders: Holders,
}

impl Here<'_> {
    /// Whether it is an address of this host's. One that cannot be looked up is not.
    fn has(&mut self, address: Ipv6Addr) -> bool {
        let socket = &mut *self.socket;
        let local = self.local.entry(address);
        *local.or_insert_with(|| kernel::is_local(socket, address).unwrap_or(false))
    }

    /// Whether a process on this host began it that is let in anyway: root's, or the owner's. What cannot be
    /// looked up is nobody's; nor is a port that they share with others.
    fn began(&mut self, flow: &Flow, owner: Uid) -> bool {
        let Flow { asks, from, answers, port, .. } = *flow;
        if !self.has(asks) {
            return false;
        }
        let (there, here) = (SocketAddr::from((answers, port)), SocketAddr::from((asks, from)));
        let holders = match flow.protocol {
            Protocol::Tcp => self.holders.of_tcp(here, there).map(|uid| uid.into_iter().collect()),
            Protocol::Udp => self.holders.of_udp(here),
        };
        let holders = holders.unwrap_or_default();
        !holders.is_empty() && holders.iter().all(|uid| uid.is_root() || *uid == owner)
    }
}
