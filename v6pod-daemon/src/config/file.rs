//! The file as it is written: one structure per table, every key optional and with its place in the
//! text. What a value may look like is in its type; what this version has is in `later`.

use serde::Deserialize;
use toml::Spanned;

use super::values::{
    ConsulUrl, Datacenter, Label, Loopback, Mtu, Ports, PrefixText, SecretFile, Slice, Span, Text,
    Uplink, Who, Zone,
};
use crate::core::Instance;
use crate::core::name::Template;

/// A key that may be written, with its place.
pub(super) type Key<T> = Option<Spanned<T>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) prefix: Key<Text<PrefixText>>,
    pub(super) subnet: Key<u64>,
    pub(super) mode: Key<Mode>,
    pub(super) instance: Key<Text<Instance>>,
    pub(super) mtu: Key<Mtu>,
    pub(super) uplink: Key<Text<Uplink>>,
    pub(super) nat66: Key<Nat66>,
    pub(super) ndp_proxy: Key<bool>,
    pub(super) addresses: Addresses,
    pub(super) renumber: Renumber,
    pub(super) limits: Limits,
    pub(super) firewall: Firewall,
    pub(super) registry: Registry,
    pub(super) dns: Dns,
    pub(super) api: Api,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Addresses {
    pub(super) quarantine: Key<Text<Span>>,
    pub(super) per_owner: Key<Text<Slice>>,
    pub(super) wished: Key<Vec<Text<Who>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Renumber {
    pub(super) grace: Key<Text<Span>>,
    pub(super) settle: Key<Text<Span>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) per_owner: Key<u32>,
    pub(super) flows: Key<u32>,
    pub(super) users: Key<Vec<Text<Who>>>,
    pub(super) operators: Key<Vec<Text<Who>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Firewall {
    pub(super) ingress: Key<Verdict>,
    pub(super) egress: Key<Verdict>,
    pub(super) openings: Key<Vec<Source>>,
    pub(super) east_west: Key<EastWest>,
    pub(super) host: Key<HostPolicy>,
    pub(super) allow: Key<Vec<Allow>>,
}

/// Who may open what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Allow {
    pub(super) users: Vec<Text<Who>>,
    pub(super) ports: Vec<Text<Ports>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Registry {
    pub(super) kind: Key<RegistryKind>,
    pub(super) name: Key<Text<Template>>,
    pub(super) reserved: Key<Vec<Text<Label>>>,
    pub(super) consul: Consul,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Consul {
    pub(super) address: Key<Text<ConsulUrl>>,
    pub(super) token_file: Key<Text<SecretFile>>,
    pub(super) datacenter: Key<Text<Datacenter>>,
    pub(super) ca_file: Key<Text<SecretFile>>,
    pub(super) cert_file: Key<Text<SecretFile>>,
    pub(super) key_file: Key<Text<SecretFile>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Dns {
    pub(super) enabled: Key<bool>,
    pub(super) zone: Key<Text<Zone>>,
    pub(super) scope: Key<Scope>,
    pub(super) forward: Key<Forward>,
    pub(super) containers: Key<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub(super) tcp: Key<Vec<Text<Loopback>>>,
}

/// Defines an enumeration of the words that a key takes. serde's error lists them.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($word:ident),+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(super) enum $name { $($word),+ }
    };
}

words!(Mode { Bridge, Routed });
words!(Nat66 { Auto, Never });
words!(
    /// What happens to a packet that no opening is about.
    Verdict { Allow, Deny }
);
words!(Source { Annotations, Published, Labels });
words!(EastWest { Policy, Owner, Deny });
words!(HostPolicy { AsOutside, Deny });
words!(RegistryKind { Embedded, Consul, None });
words!(Scope { Host, Owner });
words!(Forward { Auto });
