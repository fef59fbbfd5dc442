//! What the DNS server is told of containers.
//!
//! Guarantee: no name of an attachment that is on its way out, however far the registry has come.

use std::net::Ipv6Addr;

use v6pod_proto::{AttachmentId, Uid};

use super::{Attachments, Ledger};
use crate::config::{self, ConsulUrl};
use crate::core::attachment::Phase;
use crate::core::name::Label;
use crate::dns::{Asker, Bearer, Directory, NoZone, Settings, Zone};

/// Where an agent of Consul answers DNS unless it is told otherwise.
const CONSUL_DNS: u16 = 8600;

impl Directory for Attachments {
    fn asker(&self, address: Ipv6Addr) -> Option<Asker> {
        let ledger = self.0.ledger();
        let asker = ledger.book.by_address(address)?;
        Some(Asker { owner: asker.owner, confined: asker.open.reach().is_confined() })
    }

    fn bearers(&self, label: &Label) -> Vec<Bearer> {
        let found = self.0.names.lookup(label.as_str());
        let ledger = self.0.ledger();
        let living = found
            .into_iter()
            .filter_map(|(id, address)| Some(Bearer { address, owner: owner_of(&ledger, &id)? }));
        living.collect()
    }

    fn borne(&self, address: Ipv6Addr) -> Vec<(Label, Bearer)> {
        let found = self.0.names.borne(address);
        let ledger = self.0.ledger();
        let living = found.into_iter().filter_map(|(id, label)| {
            Some((label, Bearer { address, owner: owner_of(&ledger, &id)? }))
        });
        living.collect()
    }
}

impl Attachments {
    /// What is to be answered by DNS, if anything is.
    pub fn dns_settings(&self) -> Option<Result<Settings, NoZone>> {
        let shared = &self.0;
        let (dns, address) = (shared.config.dns.as_ref()?, shared.topology.resolver?);
        let consul = match &shared.config.registry {
            config::Registry::Consul(consul) => match &consul.address {
                ConsulUrl::Http(at) | ConsulUrl::Https(at) => match at.host {
                    config::Host::Ip(ip) => Some((ip, CONSUL_DNS).into()),
                    config::Host::Name(_) => None,
                },
                ConsulUrl::Unix(_) => None,
            },
            config::Registry::Embedded | config::Registry::None => None,
        };
        let scope = dns.scope;
        let zone = Zone::new(&dns.zone, shared.ranges.clone());
        let resolv_conf = shared.config.resolv_conf();
        let counts = shared.metrics.dns.clone();
        Some(zone.map(|zone| Settings { address, zone, scope, consul, resolv_conf, counts }))
    }
}

/// Whose a living attachment is.
fn owner_of(ledger: &Ledger, id: &AttachmentId) -> Option<Uid> {
    ledger.book.find(id).filter(|a| a.phase != Phase::Releasing).map(|a| a.owner)
}
