//! What is off because the configuration asks for that. Said at
//! the start and by `/api/status`.

use v6pod_proto::SwitchedOff;

use super::{Config, PrefixSource, Registry};
use crate::core::ruleset::Ingress;

/// The list for `/api/status` and for the warning at the start.
pub(super) fn switched_off(config: &Config) -> Vec<SwitchedOff> {
    let nameless = ("registry", "Names go nowhere: a container is found by its address alone.");
    let open = (
        "firewall.ingress",
        "Every port of every container is open to whoever can route to it, as the configuration asks.",
    );
    let routed = (
        "ndp-proxy",
        "Nobody answers for the containers on the uplink: their prefix has to be routed to this \
         host. Where it is part of the uplink's own subnet instead, write ndp_proxy = true.",
    );
    let kept = (
        "nat66",
        "A unique local address (RFC 4193) reaches no further than its prefix is routed: nothing \
         translates it.",
    );
    let testing = (
        "own-prefix",
        "As long as the prefix is one that this host has made up (RFC 4193), containers reach the world by \
         the host's address (NAT66), and nobody there reaches them: that is for testing. With a prefix that is \
         routed to this host nothing is translated.",
    );
    let local = match config.prefix {
        PrefixSource::Static(prefix) => prefix.is_ula(),
        PrefixSource::Auto | PrefixSource::File(_) => true,
    };
    let nat66 = local.then_some(if config.nat66 { testing } else { kept });
    let proxy = (!config.ndp_proxy).then_some(routed);
    let unanswered = (
        "dns",
        "The daemon answers no DNS: names are found by its API, or in Consul if it has one.",
    );
    let dns = config.dns.is_none().then_some(unanswered);
    let registry = (config.registry == Registry::None).then_some(nameless);
    let ingress = (config.ingress == Ingress::Allow).then_some(open);
    let all = nat66.into_iter().chain(proxy).chain(registry).chain(dns).chain(ingress);
    all.map(|(feature, meaning)| SwitchedOff { feature: feature.into(), meaning: meaning.into() })
        .collect()
}
