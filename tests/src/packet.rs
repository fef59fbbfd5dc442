//! Packets by hand: what no honest stack would send.

use std::net::Ipv6Addr;

/// The EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// The next header of TCP.
pub const TCP: u8 = 6;
/// The next header of UDP.
pub const UDP: u8 = 17;
/// The next header of ICMPv6.
pub const ICMPV6: u8 = 58;

/// The flags of TCP that begin a connection (RFC 9293, section 3.1).
pub const SYN: u8 = 2;
/// And that acknowledge.
pub const ACK: u8 = 16;

/// Hop-by-hop options, routing, fragment, destination options.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// An Ethernet frame.
pub fn frame(to: [u8; 6], from: [u8; 6], ether_type: u16, packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), packet].concat()
}

/// The Ethernet address of a multicast address (RFC 2464, section 7).
pub fn multicast_mac(address: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = address.octets();
    [0x33, 0x33, a, b, c, d]
}

/// Between whom, and how far.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Who says that he sends it.
    pub source: Ipv6Addr,
    /// Who is to have it.
    pub destination: Ipv6Addr,
    /// The hop limit.
    pub hops: u8,
}

/// Something to carry: its next header, and its bytes.
#[derive(Debug, Clone)]
pub struct Load {
    next: u8,
    bytes: Vec<u8>,
}

/// An extension header of eight bytes.
#[derive(Debug, Clone, Copy)]
pub enum Extension {
    /// Hop-by-hop options, padding alone.
    HopByHop,
    /// Destination options, padding alone.
    Destination,
    /// Routing header 0 (RFC 5095 forbids it).
    Routing,
    /// Of a packet that is in one piece (RFC 6946).
    Atomic,
}

impl Load {
    /// Any bytes under any number.
    pub fn raw(next: u8, bytes: &[u8]) -> Self {
        Self { next, bytes: bytes.to_owned() }
    }

    /// Behind an extension header.
    pub fn behind(self, extension: Extension) -> Self {
        // PadN of six bytes.
        let padding = [1, 4, 0, 0, 0, 0];
        let (next, rest) = match extension {
            Extension::HopByHop => (HOP_BY_HOP, padding),
            Extension::Destination => (DESTINATION, padding),
            // Type 0, no segments left.
            Extension::Routing => (ROUTING, [0; 6]),
            Extension::Atomic => (FRAGMENT, [0, 0, 0, 0, 0, 7]),
        };
        Self { next, bytes: [&[self.next, 0][..], &rest, &self.bytes].concat() }
    }

    /// Cut in two after so many bytes, a multiple of eight.
    pub fn cut(self, at: usize) -> [Self; 2] {
        let part = |offset: usize, more: bool, bytes: &[u8]| {
            let place = u16::try_from(offset).expect("a short packet") | u16::from(more);
            let header = [&[self.next, 0][..], &place.to_be_bytes(), &[0, 0, 0, 9]].concat();
            Self { next: FRAGMENT, bytes: [&header, bytes].concat() }
        };
        [part(0, true, &self.bytes[..at]), part(at, false, &self.bytes[at..])]
    }
}

impl Route {
    /// A route with the usual hop limit.
    pub fn new(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { source, destination, hops: 64 }
    }

    /// A route of neighbour discovery, which goes no hop (RFC 4861, section 7.1).
    pub fn on_link(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { source, destination, hops: 255 }
    }

    /// The packet.
    pub fn carry(&self, load: &Load) -> Vec<u8> {
        let length = u16::try_from(load.bytes.len()).expect("a short packet").to_be_bytes();
        let head = [0x60, 0, 0, 0, length[0], length[1], load.next, self.hops];
        [&head[..], &self.source.octets(), &self.destination.octets(), &load.bytes].concat()
    }

    /// A datagram.
    pub fn udp(&self, from: u16, to: u16, data: &[u8]) -> Load {
        let length = u16::try_from(8 + data.len()).expect("a short datagram");
        let head = [from, to, length, 0].map(u16::to_be_bytes).concat();
        self.checked(UDP, [&head, data].concat(), 6)
    }

    /// A segment that asks for a connection, with data.
    pub fn syn(&self, from: u16, to: u16, data: &[u8]) -> Load {
        self.tcp([from, to], SYN, [1, 0], data)
    }

    /// A segment without data, with these flags, its sequence number and what it acknowledges.
    pub fn segment(&self, from: u16, to: u16, flags: u8, numbers: [u32; 2]) -> Load {
        self.tcp([from, to], flags, numbers, &[])
    }

    fn tcp(&self, ports: [u16; 2], flags: u8, numbers: [u32; 2], data: &[u8]) -> Load {
        let ports = ports.map(u16::to_be_bytes).concat();
        let numbers = numbers.map(u32::to_be_bytes).concat();
        // Five words of header; flags; window; checksum; urgent.
        let rest = [5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0];
        self.checked(TCP, [&ports, &numbers, &rest[..], data].concat(), 16)
    }

    /// A message of ICMPv6, what follows its checksum in `body`.
    pub fn icmp(&self, kind: u8, code: u8, body: &[u8]) -> Load {
        self.checked(ICMPV6, [&[kind, code, 0, 0], body].concat(), 2)
    }

    /// An echo request.
    pub fn echo(&self, data: &[u8]) -> Load {
        self.icmp(128, 0, &[&[0, 1, 0, 1], data].concat())
    }

    /// Puts the checksum in (RFC 8200, section 8.1).
    fn checked(&self, next: u8, mut bytes: Vec<u8>, at: usize) -> Load {
        let length = u32::try_from(bytes.len()).expect("a short packet").to_be_bytes();
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let pseudo = [&source[..], &destination, &length, &[0, 0, 0, next]].concat();
        let words = pseudo.chunks(2).chain(bytes.chunks(2));
        let mut sum: u32 = words
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = !u16::try_from(sum).expect("folded");
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        Load { next, bytes }
    }
}

/// An option of neighbour discovery that nobody knows (RFC 4727): what a tap can find a message by.
pub fn marked(mark: &[u8]) -> Vec<u8> {
    let words = (2 + mark.len()).div_ceil(8);
    let mut option = vec![253, u8::try_from(words).expect("a short mark")];
    option.extend_from_slice(mark);
    option.resize(words * 8, 0);
    option
}

/// The option with the sender's (1) or the target's (2) Ethernet address.
pub fn address_option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_the_one_that_the_kernel_gives() {
        // From a capture: ::1 to ::1, echo request, id 1, sequence 1, no data.
        let route = Route::new(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let packet = route.carry(&route.echo(&[]));
        assert_eq!(packet.len(), 48);
        // 1 + 1 + 8 + 58 + 0x8000 + 1 + 1 = 0x8046.
        assert_eq!(packet[40..44], [128, 0, 0x7f, 0xb9]);
    }

    #[test]
    fn fragments_follow_each_other() {
        let [first, second] = Load::raw(UDP, &[1; 24]).cut(8);
        assert_eq!(first.bytes[..4], [UDP, 0, 0, 1]);
        assert_eq!(second.bytes[..4], [UDP, 0, 0, 8]);
        assert_eq!((first.bytes.len(), second.bytes.len()), (16, 24));
    }
}
