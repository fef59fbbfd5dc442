//! The host's range of addresses.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use ipnet::Ipv6Net;

/// A range that addresses can be drawn from: between 16 and 124 bits long, its host bits zero,
/// unicast, and neither link-local nor loopback nor IPv4-mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix(Ipv6Net);

/// Why a text is not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not `ADDRESS/LENGTH`.
    #[error("{0:?} is not an IPv6 prefix such as 2001:db8:1:2:3::/80")]
    Syntax(String),
    /// Bits set behind the prefix length.
    #[error("{0} has bits set behind its length; the prefix is {1}")]
    HostBits(Ipv6Net, Ipv6Net),
    /// Too short or too long.
    #[error("{0} is too {1}: a prefix has between 16 and 124 bits")]
    Length(Ipv6Net, &'static str),
    /// Not a range whose addresses can be routed to a host.
    #[error("{0} is not a range of global or unique local unicast addresses")]
    Kind(Ipv6Net),
    /// More than a host is ever delegated.
    #[error("{0} is too much to be delegated to a host: a range has at least 32 bits")]
    Delegated(Ipv6Net),
    /// A subnet number that does not fit.
    #[error("subnet {0} does not fit: {1} has subnets 0 to {2} of 80 bits")]
    Subnet(u64, Prefix, u64),
}

impl Prefix {
    /// Checks the range.
    pub fn new(net: Ipv6Net) -> Result<Self, PrefixError> {
        if net.addr() != net.network() {
            return Err(PrefixError::HostBits(net, net.trunc()));
        }
        match net.prefix_len() {
            0..16 => return Err(PrefixError::Length(net, "short")),
            125.. => return Err(PrefixError::Length(net, "long")),
            _ => {}
        }
        let first = net.network();
        let routable = (0x2000..0x4000).contains(&first.segments()[0]) || first.is_unique_local();
        if routable { Ok(Self(net)) } else { Err(PrefixError::Kind(net)) }
    }

    /// The range in CIDR notation's parts.
    pub const fn net(self) -> Ipv6Net {
        self.0
    }

    /// Whether no address is in both.
    pub fn is_apart_from(self, other: Self) -> bool {
        !self.0.contains(&other.0) && !other.0.contains(&self.0)
    }

    /// The host's own address in the range, `P::1`: the containers' gateway.
    pub fn gateway(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.network().to_bits() | 1)
    }

    /// Whether the address is in the range.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        self.0.contains(&address)
    }

    /// Whether the rest of the world cannot reach it (RFC 4193).
    pub fn is_ula(self) -> bool {
        self.0.network().is_unique_local()
    }

    /// The mask of the bits that tell hosts apart.
    pub fn host_mask(self) -> u128 {
        self.0.hostmask().to_bits()
    }

    /// The address whose host bits are the low bits of the number.
    pub fn address(self, bits: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.network().to_bits() | (bits & self.host_mask()))
    }

    /// How long it is, in bits.
    pub const fn length(self) -> u8 {
        self.0.prefix_len()
    }

    /// The `index`th part of this length, which is no shorter than its own; `None` if it does not have
    /// that many, or the length is none of a prefix's.
    pub fn part(self, length: u8, index: u128) -> Option<Self> {
        let bits = length.checked_sub(self.length())?;
        let fits = index.checked_shr(bits.into()).unwrap_or(0) == 0;
        let shift = 128_u32.checked_sub(length.into())?;
        let network = self.0.network().to_bits() | index.checked_shl(shift).unwrap_or(0);
        let net = Ipv6Net::new(Ipv6Addr::from_bits(network), length).ok().filter(|_| fits)?;
        Self::new(net).ok()
    }

    /// How many addresses a container can have: all but `P::` (the subnet-router anycast address,
    /// RFC 4291, section 2.6.1) and the gateway.
    pub fn room(self) -> u128 {
        self.host_mask() - 1
    }

    /// The `number`th /80 of a shorter prefix.
    pub fn subnet(self, number: u64) -> Result<Self, PrefixError> {
        let last = self.last_subnet();
        if number > last {
            return Err(PrefixError::Subnet(number, self, last));
        }
        let network = self.0.network().to_bits() | (u128::from(number) << 48);
        let net = Ipv6Net::new(Ipv6Addr::from_bits(network), 80.max(self.0.prefix_len()));
        Self::new(net.map_err(|_| PrefixError::Syntax(self.to_string()))?)
    }

    /// The number of its last /80; 0 if it is no shorter itself.
    pub fn last_subnet(self) -> u64 {
        let bits = 80u8.saturating_sub(self.0.prefix_len());
        if bits >= 64 { u64::MAX } else { (1u64 << bits) - 1 }
    }

    /// A unique local /80 from 40 random bits (RFC 4193, section 3.2.2; the algorithm there is a
    /// suggestion, section 3.2.1 asks for a pseudo-random global id). Subnet and the next 16 bits are
    /// zero.
    pub fn unique_local(global_id: u64) -> Self {
        let id = u128::from(global_id & 0xff_ffff_ffff);
        let network = Ipv6Addr::from_bits((0xfd << 120) | (id << 80));
        Self(Ipv6Net::new_assert(network, 80))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text.parse().map_err(|_| PrefixError::Syntax(text.to_owned()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_is_routable_and_has_no_host_bits() {
        for good in ["2001:db8:1:2:3::/80", "fd12:3456:789a::/48", "2001:db8::/124"] {
            assert_eq!(prefix(good).to_string(), good);
        }
        for wrong in [
            "",
            "2001:db8::",
            "10.0.0.0/8",
            "2001:db8::1/80",
            "2001:db8::/125",
            "2000::/3",
            "fe80::/64",
            "ff02::/64",
            "::/96",
            "::ffff:0:0/96",
        ] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_gateway_is_the_first_address() {
        assert_eq!(prefix("2001:db8:1:2:3::/80").gateway().to_string(), "2001:db8:1:2:3::1");
        assert_eq!(prefix("2001:db8::/124").room(), 14);
    }

    #[test]
    fn subnets_are_eighties_of_a_shorter_prefix() {
        let sixty_four = prefix("2001:db8:1:2::/64");
        assert_eq!(sixty_four.subnet(0).unwrap(), prefix("2001:db8:1:2::/80"));
        assert_eq!(sixty_four.subnet(0xffff).unwrap(), prefix("2001:db8:1:2:ffff::/80"));
        assert!(sixty_four.subnet(0x10000).is_err());
        assert_eq!(prefix("2001:db8::/96").subnet(0).unwrap(), prefix("2001:db8::/96"));
        assert!(prefix("2001:db8::/96").subnet(1).is_err());
    }

    #[test]
    fn a_part_lies_in_its_prefix_and_there_is_no_more_than_there_are_bits_for() {
        let eighty = prefix("2001:db8:1:2:3::/80");
        assert_eq!(eighty.part(96, 0xab), Some(prefix("2001:db8:1:2:3:ab::/96")));
        assert_eq!(eighty.part(96, 0xffff), Some(prefix("2001:db8:1:2:3:ffff::/96")));
        assert_eq!(eighty.part(80, 0), Some(eighty));
        for (length, index) in [(96, 0x10000), (80, 1), (79, 0), (125, 0), (129, 0)] {
            assert_eq!(eighty.part(length, index), None, "/{length} number {index}");
        }
    }

    #[test]
    fn a_unique_local_prefix_bears_its_global_id() {
        let ula = Prefix::unique_local(0x12_3456_789a);
        assert_eq!(ula.to_string(), "fd12:3456:789a::/80");
        assert!(ula.is_ula());
    }
}
