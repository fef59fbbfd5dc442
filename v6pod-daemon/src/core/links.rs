//! The names and numbers by which one daemon's kernel objects are told from everybody else's.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use v6pod_proto::{LinkName, Mac};

/// The instance of a machine that has but one.
const DEFAULT: &str = "v6pod";

/// What tells several daemons of one machine apart: 1 to 8 lower-case letters, digits and `-`,
/// beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(Box<str>);

/// Why a text is not an instance's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an instance's name is 1 to 8 lower-case letters, digits and '-', and begins with a letter"
)]
pub struct InstanceError;

impl Instance {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// FNV-1a, 32 bits: all that is asked of it is to differ and never to change.
    fn hash(&self) -> u32 {
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        self.0.bytes().fold(0x811c_9dc5, step)
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

impl FromStr for Instance {
    type Err = InstanceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if first && text.len() <= 8 && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InstanceError)
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One instance's links, and the name of its firewall tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links {
    /// The bridge: the instance's name and `0`.
    pub bridge: LinkName,
    /// The Ethernet address of the bridge and of every routed port, fixed: Linux would otherwise take
    /// that of a port, or draw one, and a container's neighbour entry of its gateway must never go
    /// stale.
    pub bridge_mac: Mac,
    /// The link group of the containers' ports. The kernel deletes a group in one go.
    pub ports: u32,
    /// The link group of the bridge, the ports' and one, which is odd: deleting the ports' group must
    /// spare it, and the firewall tells both from others by one comparison.
    pub bridges: u32,
    /// The nftables tables, one each of the arp, bridge and inet families: `v6pod`, or of another
    /// instance `v6pod-INSTANCE`. An instance may be called `meta` or `set`, which nft takes for
    /// words of its language.
    pub table: Box<str>,
    /// The address at which containers are answered what they ask for by name: of the software's own
    /// range, [`RESOLVERS`], and so the same whatever prefix the containers have.
    pub resolver: Ipv6Addr,
}

/// The range of the addresses of resolvers, a /48 (RFC 4193): its global id was drawn once, for all hosts.
/// No packet to it leaves a host.
const RESOLVERS: u128 = 0xfd3a_9ca3_76d6 << 80;

impl Links {
    /// The links of this instance.
    #[expect(clippy::expect_used, reason = "an instance's name and one digit are a link's name")]
    pub fn of(instance: &Instance) -> Self {
        let hash = instance.hash();
        let [a, b, c, d] = hash.to_be_bytes();
        let ports = 0x7600_0000 | (hash & 0x00ff_fffe);
        Self {
            bridge: format!("{instance}0").parse().expect("valid by construction"),
            bridge_mac: Mac::local([0x02, 0x76, a, b, c, d]),
            ports,
            bridges: ports + 1,
            table: match instance.as_str() {
                DEFAULT => DEFAULT.into(),
                other => format!("{DEFAULT}-{other}").into(),
            },
            resolver: match instance.as_str() {
                DEFAULT => Ipv6Addr::from_bits(RESOLVERS | 0x53),
                _ => Ipv6Addr::from_bits(RESOLVERS | u128::from(hash) << 16 | 0x53),
            },
        }
    }

    /// The link group of ports that are being deleted: what is in it is nobody's any more. One bit from
    /// the ports' own, which the firewall masks: its rules hold for both.
    pub const fn doomed(&self) -> u32 {
        self.ports ^ 0x0100_0000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_differ_in_everything() {
        let (a, b) = (Links::of(&"v6pod".parse().unwrap()), Links::of(&"other".parse().unwrap()));
        assert_eq!(a.bridge.as_str(), "v6pod0");
        assert!(a.bridge != b.bridge && a.bridge_mac != b.bridge_mac);
        assert_eq!((&*a.table, &*b.table), ("v6pod", "v6pod-other"));
        // As in systemd/v6podd.socket.
        assert_eq!(a.resolver.to_string(), "fd3a:9ca3:76d6::53");
        assert!(b.resolver.is_unique_local() && b.resolver != a.resolver);
        let groups = [a.ports, a.bridges, a.doomed(), b.ports, b.bridges, b.doomed()];
        assert!(groups.iter().enumerate().all(|(i, g)| !groups[..i].contains(g)));
    }

    #[test]
    fn an_instance_is_short_and_plain() {
        for wrong in ["", "0a", "-a", "abcdefghi", "A", "a/b", "a.b"] {
            assert!(wrong.parse::<Instance>().is_err(), "{wrong:?}");
        }
    }
}
