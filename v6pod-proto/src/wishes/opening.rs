//! `tcp/80@2001:db8::/32`: ports, and who is at the other end.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{number, words};

const OPENINGS: &str = "write openings such as tcp/80, udp/5000-5010 or tcp/5432@2001:db8::/32, \
                        with commas between";
const EGRESS: &str = "write allow, or deny and behind it what is reached all the same, such as \
                      deny,tcp/443@2001:db8::/32";

/// More than a container serves; each becomes an element of the firewall.
const MAX: usize = 64;

/// A transport protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl FromStr for Protocol {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err("write tcp or udp"),
        }
    }
}

/// Ports from first to last, neither of them 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// All of them.
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    /// From first to last; none if that is none, or begins with 0.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last { None } else { Some(Self { first, last }) }
    }

    /// Those of these that are below, within and above others.
    pub fn cut(self, others: Self) -> [Option<Self>; 3] {
        let (low, high) = (self.first.max(others.first), self.last.min(others.last));
        let below =
            others.first.checked_sub(1).and_then(|b| Self::new(self.first, self.last.min(b)));
        let above =
            others.last.checked_add(1).and_then(|a| Self::new(self.first.max(a), self.last));
        [below, Self::new(low, high), above]
    }

    /// The first one.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last one, which may be the first.
    pub const fn last(self) -> u16 {
        self.last
    }
}

/// The addresses at the other end: a prefix, without bits behind its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peers {
    prefix: Ipv6Addr,
    length: u8,
}

impl Peers {
    /// All there are.
    pub const ALL: Self = Self { prefix: Ipv6Addr::UNSPECIFIED, length: 0 };

    /// The prefix.
    pub const fn prefix(self) -> Ipv6Addr {
        self.prefix
    }

    /// Its length in bits.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// Whether all of the others are among these.
    pub fn include(self, others: Self) -> bool {
        self.length <= others.length && self.has(others.prefix)
    }

    /// Whether this address is among them.
    pub fn has(self, address: Ipv6Addr) -> bool {
        let behind = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
        u128::from(address) & !behind == u128::from(self.prefix)
    }
}

/// Ports of one protocol, for some addresses. Serialised as it is written: `tcp/80@2001:db8::/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opening {
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: Ports,
    /// The addresses at the other end.
    pub peers: Peers,
}

impl Opening {
    /// Whether it is about this port of this protocol, with this address at the other end.
    pub fn is_for(&self, peer: Ipv6Addr, protocol: Protocol, port: u16) -> bool {
        let within = self.ports.first <= port && port <= self.ports.last;
        self.protocol == protocol && within && self.peers.has(peer)
    }
}

/// `v6pod.ingress`: one to 64 openings, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Openings(Vec<Opening>);

impl Openings {
    /// Each of them.
    pub fn each(&self) -> &[Opening] {
        &self.0
    }
}

/// `v6pod.egress`. Serialised as it is written: `deny,tcp/443@2001:db8::/32`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Egress {
    /// All that the host reaches.
    #[default]
    Allow,
    /// Nothing but these.
    Deny(Vec<Opening>),
}

/// A port that a container's user had published: `-p HOST:PORT:FIRST-LAST/PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published<'a> {
    /// The host's address, or nothing for all it has.
    pub host: &'a str,
    /// The first of the container's ports.
    pub first: u16,
    /// How many there are, in a row.
    pub count: u16,
    /// `tcp`, `udp`, or what is not known here; several with commas between.
    pub protocol: &'a str,
}

impl Published<'_> {
    /// Whether it is for everybody: one that is bound to a certain address of the host, loopback
    /// above all, was meant for who reaches that.
    fn is_for_all(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host.is_empty() || address.is_ok_and(|address| address.is_unspecified())
    }

    fn protocols(&self) -> impl Iterator<Item = Protocol> {
        self.protocol.split(',').filter_map(|word| match word {
            // As podman takes it where nothing is said.
            "" => Some(Protocol::Tcp),
            word => word.parse().ok(),
        })
    }
}

impl Openings {
    /// What published ports open, with neighbours as one; the first 64, by protocol and number. `None`
    /// if that is nothing.
    pub fn published<'a>(all: impl Iterator<Item = Published<'a>>) -> Option<Self> {
        let mut ports: Vec<(Protocol, u16, u16)> = Vec::new();
        for published in all.filter(Published::is_for_all) {
            let last = published.first.saturating_add(published.count.saturating_sub(1));
            if published.first != 0 && published.count != 0 {
                ports.extend(published.protocols().map(|p| (p, published.first, last)));
            }
        }
        ports.sort_unstable();
        ports.dedup_by(|next, before| {
            let joins = next.0 == before.0 && next.1 <= before.2.saturating_add(1);
            if joins {
                before.2 = before.2.max(next.2);
            }
            joins
        });
        let opening = |(protocol, first, last)| Opening {
            protocol,
            ports: Ports { first, last },
            peers: Peers::ALL,
        };
        let openings: Vec<_> = ports.into_iter().take(MAX).map(opening).collect();
        (!openings.is_empty()).then_some(Self(openings))
    }
}

impl Serialize for Opening {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Opening {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Any number of openings in a request, none included: an array of them, or one text with commas or
/// spaces between, as a form says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct OpeningList(pub Vec<Opening>);

impl<'de> Deserialize<'de> for OpeningList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = OpeningList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("openings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OpeningList, E> {
                let each = words(text).filter(|_| !text.is_empty());
                each.map(str::parse).collect::<Result<_, _>>().map(OpeningList).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut all: A) -> Result<OpeningList, A::Error> {
                let mut list = Vec::new();
                while let Some(opening) = all.next_element()? {
                    list.push(opening);
                }
                Ok(OpeningList(list))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Egress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Egress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Openings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Openings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl FromStr for Opening {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (what, peers) = match text.split_once('@') {
            Some((what, peers)) => (what, peers_of(peers).ok_or(OPENINGS)?),
            None => (text, Peers::ALL),
        };
        let (protocol, ports) = what.split_once('/').ok_or(OPENINGS)?;
        let protocol = protocol.parse().map_err(|_| OPENINGS)?;
        Ok(Self { protocol, ports: ports_of(ports).ok_or(OPENINGS)?, peers })
    }
}

fn ports_of(text: &str) -> Option<Ports> {
    let port = |digits| u16::try_from(number(digits, 1..=65535)?).ok();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ports = Ports { first: port(first)?, last: port(last)? };
    (ports.first <= ports.last).then_some(ports)
}

/// A prefix, or an address, which is one of 128 bits.
fn peers_of(text: &str) -> Option<Peers> {
    let (prefix, length) = text.split_once('/').unwrap_or((text, "128"));
    let prefix: Ipv6Addr = prefix.parse().ok()?;
    let length = match length {
        "0" => 0,
        digits => u8::try_from(number(digits, 1..=128)?).ok()?,
    };
    let behind = u128::MAX.checked_shr(length.into()).unwrap_or(0);
    (u128::from(prefix) & behind == 0).then_some(Peers { prefix, length })
}

impl FromStr for Openings {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        all(words(text)).map(Self)
    }
}

impl FromStr for Egress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = words(text);
        match (words.next(), text) {
            (_, "allow") => Ok(Self::Allow),
            (Some("deny"), _) => all(words).map(Self::Deny).map_err(|_| EGRESS),
            _ => Err(EGRESS),
        }
    }
}

fn all<'a>(words: impl Iterator<Item = &'a str>) -> Result<Vec<Opening>, &'static str> {
    let openings: Vec<Opening> = words.take(MAX + 1).map(str::parse).collect::<Result<_, _>>()?;
    if openings.len() > MAX { Err("write at most 64 openings") } else { Ok(openings) }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ports { first, last } = self.ports;
        write!(f, "{}/{first}", self.protocol.as_str())?;
        if last != first {
            write!(f, "-{last}")?;
        }
        if self.peers != Peers::ALL {
            write!(f, "@{}/{}", self.peers.prefix, self.peers.length)?;
        }
        Ok(())
    }
}

impl fmt::Display for Openings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, opening) in self.0.iter().enumerate() {
            write!(f, "{}{opening}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny(but) => {
                f.write_str("deny")?;
                but.iter().try_for_each(|opening| write!(f, ",{opening}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_alone_is_a_prefix_of_128_bits() {
        let one: Opening = "tcp/1@2001:db8::5".parse().unwrap();
        assert_eq!(one.to_string(), "tcp/1@2001:db8::5/128");
        let all: Opening = "udp/1@::/0".parse().unwrap();
        assert_eq!(all.peers, Peers::ALL);
    }

    #[test]
    fn an_opening_that_is_not_one_is_refused() {
        for wrong in [
            "",
            "80",
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/65536",
            "tcp/+80",
            "tcp/080",
            "tcp/ 80",
            "TCP/80",
            "sctp/80",
            "tcp/80-79",
            "tcp/80-",
            "tcp/1-2-3",
            "tcp/80@",
            "tcp/80@10.0.0.0/8",
            "tcp/80@2001:db8::/129",
            "tcp/80@2001:db8::1/64",
            "tcp/80@2001:db8::/",
            "tcp/80@fe80::%eth0/64",
            "tcp/80@::/00",
            "tcp/80@::/0@::/0",
        ] {
            assert!(wrong.parse::<Opening>().is_err(), "{wrong:?}");
            assert!(format!("tcp/1,{wrong}").parse::<Openings>().is_err(), "{wrong:?}");
            assert!(format!("deny,{wrong}").parse::<Egress>().is_err(), "{wrong:?}");
        }
        for wrong in ["tcp/80", "allow,tcp/80", "deny,deny", "Deny", "deny,"] {
            assert!(wrong.parse::<Egress>().is_err(), "{wrong:?}");
        }
    }

    fn published(ports: &[(&str, u16, u16, &str)]) -> Option<String> {
        let each = ports.iter().map(|&(host, first, count, protocol)| Published {
            host,
            first,
            count,
            protocol,
        });
        Openings::published(each).map(|openings| openings.to_string())
    }

    #[test]
    fn a_publish_opens_for_all_or_not_at_all() {
        for all in ["", "0.0.0.0", "::"] {
            assert_eq!(published(&[(all, 80, 1, "tcp")]).as_deref(), Some("tcp/80"), "{all:?}");
        }
        for some in [
            "127.0.0.1",
            "::1",
            "127.1.2.3",
            "192.0.2.1",
            "2001:db8::1",
            "localhost",
            "::ffff:0.0.0.0",
        ] {
            assert_eq!(published(&[(some, 80, 1, "tcp")]), None, "{some:?}");
        }
        for strange in [("", 80, 1, "sctp"), ("", 0, 1, "tcp"), ("", 80, 0, "tcp")] {
            assert_eq!(published(&[strange]), None, "{strange:?}");
        }
    }

    #[test]
    fn published_neighbours_are_one_and_all_of_them_have_room() {
        let row: Vec<_> = (1000..3000).rev().map(|port| ("", port, 1, "udp")).collect();
        assert_eq!(published(&row).as_deref(), Some("udp/1000-2999"));
        let mixed = [
            ("", 65530, 100, "tcp"),
            ("::1", 70, 1, "tcp"),
            ("", 80, 3, ""),
            ("", 81, 1, "tcp,udp"),
        ];
        assert_eq!(published(&mixed).as_deref(), Some("tcp/80-82,tcp/65530-65535,udp/81"));
        let many: Vec<_> = (0..200).map(|n| ("", 1 + 2 * n, 1, "tcp")).collect();
        let openings: Openings = published(&many).unwrap().parse().unwrap();
        assert_eq!(openings.each().len(), 64);
    }

    #[test]
    fn a_list_is_an_array_or_a_text_and_may_be_empty() {
        let read = |json: &str| serde_json::from_str::<OpeningList>(json);
        let two = read("[\"tcp/80\", \"udp/53@2001:db8::/32\"]").unwrap();
        for between in [',', ' '] {
            let text = format!("\"tcp/80{between}udp/53@2001:db8::/32\"");
            assert_eq!(read(&text).unwrap(), two);
        }
        let json = serde_json::to_string(&two).unwrap();
        assert_eq!(json, "[\"tcp/80\",\"udp/53@2001:db8::/32\"]");
        for none in ["[]", "\"\""] {
            assert_eq!(read(none).unwrap(), OpeningList::default());
        }
        for wrong in ["\"80\"", "80", "null", "[\"tcp/80,udp/53\"]", "{\"tcp/80\":1}"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_are_cut_into_below_within_and_above() {
        let ports = |first, last| Ports::new(first, last);
        let cut =
            |a: (u16, u16), b: (u16, u16)| ports(a.0, a.1).unwrap().cut(ports(b.0, b.1).unwrap());
        assert_eq!(cut((10, 20), (12, 15)), [ports(10, 11), ports(12, 15), ports(16, 20)]);
        assert_eq!(cut((10, 20), (1, 65535)), [None, ports(10, 20), None]);
        assert_eq!(cut((10, 20), (30, 40)), [ports(10, 20), None, None]);
        assert_eq!(cut((10, 20), (1, 9)), [None, None, ports(10, 20)]);
        assert_eq!(cut((1, 65535), (65535, 65535)), [ports(1, 65534), ports(65535, 65535), None]);
        assert_eq!((ports(0, 5), ports(6, 5)), (None, None));
    }

    #[test]
    fn a_prefix_has_its_addresses_and_includes_longer_ones() {
        let peers = |text: &str| format!("tcp/1@{text}").parse::<Opening>().unwrap().peers;
        let wide = peers("2001:db8::/32");
        assert!(wide.include(peers("2001:db8:1::/48")) && wide.include(wide));
        assert!(!peers("2001:db8:1::/48").include(wide) && !wide.include(peers("2001:db9::/48")));
        assert!(Peers::ALL.include(wide) && !wide.include(Peers::ALL));
        let has = |prefix: &str, address: &str| peers(prefix).has(address.parse().unwrap());
        assert!(has("2001:db8::/32", "2001:db8:ffff::1") && !has("2001:db8::/32", "2001:db9::1"));
        assert!(has("2001:db8::1", "2001:db8::1") && !has("2001:db8::1", "2001:db8::2"));
        assert!(Peers::ALL.has("fe80::1".parse().unwrap()));
    }

    #[test]
    fn there_are_not_too_many() {
        let many = |n| vec!["tcp/80"; n].join(",");
        assert_eq!(many(64).parse::<Openings>().unwrap().each().len(), 64);
        assert_eq!(many(65).parse::<Openings>(), Err("write at most 64 openings"));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_so_that_it_is_read_as_the_same(
            text in "(tcp|udp)/[0-9]{1,5}(-[0-9]{1,5})?(@[0-9a-f:]{2,20}(/[0-9]{1,3})?)?"
        ) {
            if let Ok(opening) = text.parse::<Opening>() {
                prop_assert_eq!(opening.to_string().parse::<Opening>(), Ok(opening));
            }
        }
    }
}
