//! What we need of the kernel's messages, read without trust in the rest of them.
//!
//! A dump brings everybody's links and routes. The typed decoder of netlink-packet-route refuses a
//! message as a whole if it does not understand one attribute, and a new kernel could so make the
//! daemon blind. These views skip what they do not know and never allocate.

use std::net::Ipv6Addr;

use nix::libc;

use super::traffic::Counters;

/// The attributes of a message: (type without flags, value).
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or_default()
}

fn ipv6(value: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?))
}

/// `struct ifinfomsg` and its attributes.
#[derive(Debug, Clone, Default)]
pub(super) struct Link<'a> {
    pub(super) family: u8,
    pub(super) index: u32,
    pub(super) flags: u32,
    pub(super) name: &'a str,
    pub(super) alias: &'a str,
    pub(super) kind: &'a str,
    pub(super) group: u32,
    pub(super) mtu: u32,
    /// RFC 2863's ifOperStatus as Linux numbers it (`IF_OPER_*`).
    pub(super) state: u8,
    pub(super) master: Option<u32>,
    /// The other end of a veth pair, as a number of the namespace that it is in.
    pub(super) peer: Option<u32>,
    pub(super) mac: &'a [u8],
}

impl<'a> Link<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Option<Self> {
        let mut link = Self {
            family: *payload.first()?,
            index: u32_at(payload, 4)?,
            flags: u32_at(payload, 8)?,
            ..Self::default()
        };
        for (kind, value) in Attributes(payload.get(16..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_IFALIAS => link.alias = text(value),
                libc::IFLA_ADDRESS => link.mac = value,
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_OPERSTATE => link.state = *value.first()?,
                libc::IFLA_LINK => link.peer = u32_at(value, 0),
                libc::IFLA_MASTER => link.master = u32_at(value, 0),
                libc::IFLA_GROUP => link.group = u32_at(value, 0)?,
                libc::IFLA_LINKINFO => {
                    let info = Attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                    link.kind = info.map(|(_, kind)| text(kind)).unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(link)
    }

    pub(super) fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }
}

/// `struct rtmsg` of an IPv6 route and its attributes.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) destination: Ipv6Addr,
    pub(super) length: u8,
    pub(super) table: u32,
    pub(super) protocol: u8,
    pub(super) kind: u8,
    pub(super) metric: u32,
    pub(super) gateway: bool,
    /// The interface; of several next hops, that of the first.
    pub(super) interface: Option<u32>,
}

impl Route {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let [family, length, _, _, table, protocol, _, kind] = *payload.first_chunk()?;
        if i32::from(family) != libc::AF_INET6 {
            return None;
        }
        let mut route = Self {
            destination: Ipv6Addr::UNSPECIFIED,
            length,
            table: table.into(),
            protocol,
            kind,
            metric: 0,
            gateway: false,
            interface: None,
        };
        for (kind, value) in Attributes(payload.get(12..)?) {
            match kind {
                libc::RTA_DST => route.destination = ipv6(value)?,
                libc::RTA_TABLE => route.table = u32_at(value, 0)?,
                libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                libc::RTA_OIF => route.interface = u32_at(value, 0),
                libc::RTA_GATEWAY | libc::RTA_VIA => route.gateway = true,
                // struct rtnexthop: length, flags, hops, interface, attributes.
                libc::RTA_MULTIPATH => {
                    route.interface = u32_at(value, 4);
                    let end = usize::from(u16_at(value, 0)?);
                    let mut hop = Attributes(value.get(8..end)?);
                    route.gateway |= hop.any(|(kind, _)| kind == libc::RTA_GATEWAY);
                }
                _ => {}
            }
        }
        Some(route)
    }

    /// Whether it is a default route that packets leave by.
    pub(super) fn is_default(&self) -> bool {
        self.length == 0
            && self.table == u32::from(libc::RT_TABLE_MAIN)
            && self.kind == libc::RTN_UNICAST
    }
}

/// What `struct rtmsg` of a route that was looked up says of the address to send with.
pub(super) fn preferred_source(payload: &[u8]) -> Option<Ipv6Addr> {
    let mut attributes = Attributes(payload.get(12..)?);
    attributes.find(|(kind, _)| *kind == libc::RTA_PREFSRC).and_then(|(_, value)| ipv6(value))
}

/// `struct ifaddrmsg` of an IPv6 address and its attributes.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) interface: u32,
    pub(super) length: u8,
    pub(super) address: Ipv6Addr,
}

impl Address {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let (interface, length) = (u32_at(payload, 4)?, *payload.get(1)?);
        let mut found = None;
        for (kind, value) in Attributes(payload.get(8..)?) {
            match kind {
                // On a link with a peer, the local one is the interface's own.
                libc::IFA_LOCAL => found = ipv6(value),
                libc::IFA_ADDRESS => found = found.or_else(|| ipv6(value)),
                _ => {}
            }
        }
        Some(Self { interface, length, address: found? })
    }
}

/// `struct ndmsg` and its attributes: a neighbour or a bridge's forwarding entry.
#[derive(Debug, Clone)]
pub(super) struct Neighbour<'a> {
    pub(super) interface: u32,
    pub(super) state: u16,
    /// `NTF_*`.
    pub(super) flags: u8,
    /// Whose it is (`NDA_PROTOCOL`), a number as of routes; zero if nobody said so.
    pub(super) protocol: u8,
    pub(super) address: Option<Ipv6Addr>,
    pub(super) mac: &'a [u8],
}

impl<'a> Neighbour<'a> {
    pub(super) fn parse(payload: &'a [u8]) -> Option<Self> {
        const PROTOCOL: u16 = 12; // NDA_PROTOCOL

        let (interface, state) = (u32_at(payload, 4)?, u16_at(payload, 8)?);
        let (flags, mut protocol) = (*payload.get(10)?, 0);
        let (mut address, mut mac) = (None, &payload[..0]);
        for (kind, value) in Attributes(payload.get(12..)?) {
            match kind {
                libc::NDA_DST => address = ipv6(value),
                libc::NDA_LLADDR => mac = value,
                PROTOCOL => protocol = *value.first()?,
                _ => {}
            }
        }
        Some(Self { interface, state, flags, protocol, address, mac })
    }
}

/// `struct if_stats_msg` and the one attribute that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) link: u32,
    pub(super) counters: Counters,
}

impl Stats {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        const LINK_64: u16 = 1; // IFLA_STATS_LINK_64

        let link = u32_at(payload, 4)?;
        let (_, value) = Attributes(payload.get(12..)?).find(|(kind, _)| *kind == LINK_64)?;
        // struct rtnl_link_stats64, which later kernels make longer.
        let counters = Counters {
            rx_packets: u64_at(value, 0)?,
            tx_packets: u64_at(value, 8)?,
            rx_bytes: u64_at(value, 16)?,
            tx_bytes: u64_at(value, 24)?,
            rx_dropped: u64_at(value, 48)?,
            tx_dropped: u64_at(value, 56)?,
        };
        Some(Self { link, counters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_where_they_no_longer_fit() {
        let good = [8, 0, 3, 0, b'e', b't', b'h', 0, 5, 0, 4, 0x80, 9, 0, 0, 0];
        let read: Vec<_> = Attributes(&good).collect();
        assert_eq!(read, [(3, &b"eth\0"[..]), (4, &[9][..])]);
        for wrong in [&[][..], &[1], &[0, 0, 0, 0], &[3, 0, 1, 0], &[200, 0, 1, 0, 1]] {
            assert_eq!(Attributes(wrong).count(), 0, "{wrong:?}");
        }
    }

    #[test]
    fn a_message_cut_anywhere_does_no_harm() {
        let whole: Vec<u8> = (0..96).map(|i| if i % 8 == 0 { 8 } else { i }).collect();
        for end in 0..whole.len() {
            let cut = &whole[..end];
            let _ =
                (Link::parse(cut), Route::parse(cut), Address::parse(cut), Neighbour::parse(cut));
            let _ = Stats::parse(cut);
        }
    }

    #[test]
    fn counters_cut_short_are_none() {
        let numbers = (1..=25_u64).flat_map(u64::to_ne_bytes);
        let header = [0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0];
        // The kernel puts an empty attribute before, so that the numbers lie on multiples of eight.
        let attributes = [4, 0, 0, 0, 204, 0, 1, 0];
        let whole: Vec<u8> = header.into_iter().chain(attributes).chain(numbers).collect();
        let counters = Counters {
            rx_packets: 1,
            tx_packets: 2,
            rx_bytes: 3,
            tx_bytes: 4,
            rx_dropped: 7,
            tx_dropped: 8,
        };
        assert_eq!(Stats::parse(&whole), Some(Stats { link: 7, counters }));
        for end in 0..whole.len() {
            assert_eq!(Stats::parse(&whole[..end]), None, "{end}");
        }
    }
}
