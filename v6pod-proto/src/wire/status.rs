//! What the daemon says of itself and of its host, and what it is told of the prefix.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::{Mode, Resolver};
use crate::LinkName;

/// `GET /api/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The name that tells daemons of one machine apart.
    pub instance: String,
    /// Seconds since the daemon was started.
    pub uptime: u64,
    /// The range that addresses come from.
    pub prefix: PrefixView,
    /// How packets are to reach containers. A bridge takes 1023; those that come after are routed.
    pub mode: Mode,
    /// What new containers' default routes point to.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "ipv6"))]
    pub gateway: Ipv6Addr,
    /// The bridge.
    pub bridge: LinkName,
    /// The MTU of bridge and containers, in bytes.
    pub mtu: u32,
    /// The interface towards the rest of the world.
    pub uplink: Option<LinkName>,
    /// How many there are.
    pub counts: Counts,
    /// The registry.
    pub registry: RegistryView,
    /// Who answers containers, and this host, what they ask for by name; nobody unless it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<Resolver>,
    /// Seconds since the epoch of the last time a firewall table was put back.
    pub last_repair: Option<u64>,
    /// What this daemon does not do, and why.
    pub off: Vec<SwitchedOff>,
    /// Other firewalls of this host that stop containers' packets.
    #[serde(default)]
    pub obstacles: Vec<Obstacle>,
}

/// `GET /api/prefix`, and a part of [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrefixView {
    /// In CIDR notation.
    pub prefix: String,
    /// Where it comes from: `static`, `auto`, `file`, `delegated`, or the word of whoever said it with `PUT`.
    pub source: String,
    /// Whether the rest of the world cannot reach it (RFC 4193).
    pub ula: bool,
    /// Those that it took the place of and in which containers still have addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<String>,
    /// The one that takes its place when it has held for long enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settling: Option<String>,
}

/// `PUT /api/prefix`: what somebody says of a range that is delegated to this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrefixOffer {
    /// In CIDR notation. One shorter than 80 bits is cut, by the same rule each time.
    pub prefix: String,
    /// For how many seconds it is good; left out: until something else is said. Zero takes it back, and
    /// changes nothing if it is in force: the last good prefix stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<u64>,
    /// One word for who says so, such as `dhclient`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Counts in [`Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Counts {
    /// All attachments.
    pub attachments: u64,
    /// Those held by a connection.
    pub leases: u64,
    /// Released addresses that rest before they may be drawn again.
    pub resting: u64,
    /// Attachments made since the daemon was started.
    pub made: u64,
    /// Attachments released since the daemon was started.
    pub released: u64,
    /// Those of all attachments that have an interface of their own instead of a port of the bridge.
    #[serde(default)]
    pub routed: u64,
}

/// The registry in [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistryView {
    /// `embedded`, `consul` or `none`.
    pub kind: String,
    /// Whether the last word with it went well.
    pub healthy: bool,
    /// Names that are on their way to it or out of it.
    pub pending: u64,
    /// The last error, if it is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Something that this daemon does not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SwitchedOff {
    /// What.
    pub feature: String,
    /// What that means, in one sentence.
    pub meaning: String,
}

/// A chain of another firewall that stops containers' packets, whatever v6pod's own rules say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Obstacle {
    /// Whose it is: `ufw`, `firewalld`, `docker`, `ip6tables`, `ip6tables-legacy` or `nft`.
    pub program: String,
    /// The table, its family first.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Where it is asked: `forward`, `input`, `output`, `prerouting` or `postrouting`.
    pub hook: String,
    /// What that means, in one sentence.
    pub meaning: String,
    /// The commands that mend it, to be run as root in this order.
    pub advice: Vec<String>,
}

/// `GET /api/capacity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Capacity {
    /// How many more attachments the caller can have.
    pub more: u64,
    /// Which of the limits comes first.
    pub first_limit: String,
    /// All limits.
    pub limits: Vec<CapLimit>,
}

/// One limit in [`Capacity`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CapLimit {
    /// `addresses`, `leases`, `per-owner`.
    pub name: String,
    /// How many are taken.
    pub used: u64,
    /// How many there can be; 2^53 - 1 at most, so that every JSON reader takes it.
    pub max: u64,
}
