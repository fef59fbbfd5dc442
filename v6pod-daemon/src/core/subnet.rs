//! Subnets that are a container's as a whole (AnyIP): which lengths there are, and who has the one that an
//! address is in.
//!
//! Guarantee: an address is in a subnet if all bits that tell the subnet from others are equal, and only then.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

/// How long a subnet of a container's is. Few lengths: the rules ask for each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Length(u8);

impl Length {
    /// All that there are, in bits, the shortest first.
    pub const ALL: [Self; 4] = [Self(96), Self(104), Self(112), Self(120)];

    /// The length of so many bits, if there is one.
    pub fn new(bits: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|length| length.0 == bits)
    }

    /// In bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The bits that tell subnets of this length apart.
    pub const fn mask(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(u128::MAX << (128 - self.0 as u32))
    }

    /// The subnet of this length that the address is in.
    pub fn around(self, address: Ipv6Addr) -> Ipv6Net {
        Ipv6Net::new_assert(address, self.0).trunc()
    }

    /// Its name where it stands in those of chains and sets.
    pub const fn set(self) -> &'static str {
        match self.0 {
            96 => "subnet96",
            104 => "subnet104",
            112 => "subnet112",
            _ => "subnet120",
        }
    }
}

impl TryFrom<u8> for Length {
    type Error = &'static str;

    fn try_from(bits: u8) -> Result<Self, Self::Error> {
        Self::new(bits).ok_or("no subnet is that long")
    }
}

impl From<Length> for u8 {
    fn from(length: Length) -> Self {
        length.0
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

/// An address, or the subnet that begins with it.
pub fn net(address: Ipv6Addr, subnet: Option<Length>) -> Ipv6Net {
    subnet.map_or_else(|| Ipv6Net::from(address), |length| length.around(address))
}

/// Whether the two have an address in common.
pub fn overlap(a: &Ipv6Net, b: &Ipv6Net) -> bool {
    a.contains(b) || b.contains(a)
}

/// Something for each of some addresses and subnets, to be found by any address in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByNet<V> {
    all: HashMap<Ipv6Net, V>,
    /// How many there are of each of [`Length::ALL`]: mostly none, and then nothing is looked up.
    subnets: [usize; 4],
}

impl<V> Default for ByNet<V> {
    fn default() -> Self {
        Self { all: HashMap::new(), subnets: [0; 4] }
    }
}

impl<V> ByNet<V> {
    /// Notes it in the place of what was noted of the same.
    pub fn insert(&mut self, net: Ipv6Net, value: V) {
        if self.all.insert(net, value).is_none() {
            self.count(&net, |count| count + 1);
        }
    }

    /// Forgets it.
    pub fn remove(&mut self, net: &Ipv6Net) -> Option<V> {
        let gone = self.all.remove(net)?;
        self.count(net, |count| count.saturating_sub(1));
        Some(gone)
    }

    /// What was noted of this very address or subnet.
    pub fn get(&self, net: &Ipv6Net) -> Option<&V> {
        self.all.get(net)
    }

    /// What was noted of the address, or of a subnet that it is in.
    pub fn find(&self, address: Ipv6Addr) -> Option<&V> {
        let there = self.all.get(&Ipv6Net::from(address));
        there.or_else(|| self.around(address).and_then(|net| self.all.get(&net)))
    }

    /// The subnet that the address is in.
    pub fn around(&self, address: Ipv6Addr) -> Option<Ipv6Net> {
        let some = Length::ALL.into_iter().zip(self.subnets).filter(|(_, count)| *count > 0);
        some.map(|(length, _)| length.around(address)).find(|net| self.all.contains_key(net))
    }

    /// Whether there is one that has an address in common with it.
    pub fn overlaps(&self, net: &Ipv6Net) -> bool {
        let around = self.find(net.network()).is_some();
        around || (net.prefix_len() < 128 && self.all.keys().any(|other| overlap(net, other)))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// All, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Ipv6Net, &V)> {
        self.all.iter()
    }

    fn count(&mut self, net: &Ipv6Net, change: impl Fn(usize) -> usize) {
        for (length, count) in Length::ALL.into_iter().zip(&mut self.subnets) {
            if length.0 == net.prefix_len() {
                *count = change(*count);
            }
        }
    }
}

impl<V> FromIterator<(Ipv6Net, V)> for ByNet<V> {
    fn from_iter<I: IntoIterator<Item = (Ipv6Net, V)>>(all: I) -> Self {
        let mut these = Self::default();
        all.into_iter().for_each(|(net, value)| these.insert(net, value));
        these
    }
}

/// Addresses and subnets.
pub type Nets = ByNet<()>;

impl FromIterator<Ipv6Net> for Nets {
    fn from_iter<I: IntoIterator<Item = Ipv6Net>>(all: I) -> Self {
        all.into_iter().map(|net| (net, ())).collect()
    }
}

impl Nets {
    /// Whether the address is one of these or in one of these.
    pub fn contain(&self, address: Ipv6Addr) -> bool {
        self.find(address).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_in_a_subnet_if_all_its_bits_are_equal() {
        for length in Length::ALL {
            let first = address("2001:db8:1:2:3:a5a5:5a5a:a500");
            let net = length.around(first);
            let nets: Nets = [net].into_iter().collect();
            for bit in 0..128 {
                let other = Ipv6Addr::from_bits(first.to_bits() ^ (1 << (127 - bit)));
                assert_eq!(nets.contain(other), bit >= u32::from(length.bits()), "{net} {other}");
            }
            assert_eq!(net.network().to_bits(), first.to_bits() & length.mask().to_bits());
        }
    }

    #[test]
    fn what_is_noted_of_an_address_counts_before_what_is_of_the_subnet_around_it() {
        let net: Ipv6Net = "2001:db8::5:0:0/96".parse().unwrap();
        let one = Ipv6Net::from(address("2001:db8::5:0:9"));
        let mut all: ByNet<u8> = [(net, 1), (one, 2)].into_iter().collect();
        assert_eq!(all.find(address("2001:db8::5:0:8")), Some(&1));
        assert_eq!(all.find(address("2001:db8::5:0:9")), Some(&2));
        assert_eq!(all.find(address("2001:db8::6:0:9")), None);
        assert_eq!(all.get(&Ipv6Net::from(net.network())), None);
        assert_eq!((all.remove(&net), all.remove(&net)), (Some(1), None));
        assert_eq!(all.find(address("2001:db8::5:0:8")), None);
        assert_eq!((all.len(), all.around(address("2001:db8::5:0:8"))), (1, None));
    }

    #[test]
    fn no_other_lengths_are_read() {
        for bits in 0..=u8::MAX {
            let read: Result<Length, _> = serde_json::from_str(&bits.to_string());
            assert_eq!(read.is_ok(), [96, 104, 112, 120].contains(&bits), "{bits}");
        }
    }
}
