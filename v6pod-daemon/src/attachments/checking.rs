//! Whether the checks that containers ask for can find them.
//!
//! A check opens nothing. Who asks for one may be the image, which must not open ports; and a port that is open
//! to this host is open to every process of it. So whoever asks is told what is missing, and decides.

use v6pod_proto::CheckStatus;
use v6pod_proto::wishes::Protocol;

use super::{Ledger, Shared};
use crate::config;
use crate::core::attachment::Attachment;
use crate::core::ruleset::Ingress;

impl Shared {
    /// The checks that Consul makes of this container and of the members of its pod, and what keeps an agent from
    /// making them. Without Consul there are none.
    pub(super) fn checks_of(&self, ledger: &Ledger, a: &Attachment) -> Vec<CheckStatus> {
        if !matches!(self.config.registry, config::Registry::Consul(_)) {
            return Vec::new();
        }
        // By which the host speaks to containers, in both modes.
        let host = ledger.book.terms().prefix.gateway();
        let closed = |port: &u16| {
            self.config.ingress == Ingress::Deny && !a.open.let_in(host, Protocol::Tcp, *port)
        };
        let mut all: Vec<CheckStatus> = Vec::new();
        let members = self.member_offers(ledger, a).into_iter().map(|(_, offers)| offers);
        let offers = std::iter::once(self.offers(a)).chain(members).flat_map(|all| all.offers);
        for check in offers.filter_map(|offer| offer.check) {
            let note = check.port().filter(closed).map(|port| {
                format!(
                    "this port is closed to an agent that is neither root nor the owner; \
                     tcp/{port}@{host} opens it to this host alone"
                )
            });
            let status = CheckStatus { check: check.to_string(), note };
            if !all.contains(&status) {
                all.push(status);
            }
        }
        all
    }
}
