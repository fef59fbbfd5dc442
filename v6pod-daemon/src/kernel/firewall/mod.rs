//! The firewall: its rules as a text for nft, once, at the start; a container's elements in them by
//! netlink, in microseconds, as it comes and goes.
//!
//! Guarantees:
//! - All elements of an attachment come in one transaction. Adding what is there and removing what is
//!   not are successes.
//! - No other table is written; others are read to tell where they stop containers ([`foreign`]).
//! - An element that cannot be added because the table is gone is an error that says so: an attachment
//!   is never made without its rules.
//!
//! The few messages are written by hand ([`message`]): what netlink-packet-netfilter 0.4 would save is
//! less than the six crates that it brings, and it refuses a listed message as a whole if it does not
//! understand one attribute.

mod conntrack;
pub mod foreign;
mod message;
pub mod nft;
mod watch;

use std::collections::HashSet;
use std::net::Ipv6Addr;

use netlink_packet_core::NLM_F_CREATE;
use nix::errno::Errno;
use nix::libc;
use v6pod_proto::Mode;

use self::message::{Message, Table};
use super::error::{Cause, Error, gone_is_fine};
use super::netlink::Socket;
use crate::core::links::Links;
use crate::core::ruleset::{Elements, KNOWN_SET, OWNER_SET, PORT_SET, ROUTED_SET};

pub use watch::{Losses, News};

/// The families of an instance's tables.
const FAMILIES: [u8; 3] = [message::ARP, message::BRIDGE, message::INET];

/// The rules of all of an instance's tables, sorted: family, and the number that the kernel gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedRules(Vec<(u8, u64)>);

impl ObservedRules {
    /// Whether all of the other's rules are still among these.
    pub fn has_all_of(&self, other: &Self) -> bool {
        other.0.iter().all(|rule| self.0.binary_search(rule).is_ok())
    }
}

/// A socket for the elements of an instance's sets, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct RulesSocket(Socket<Message>);

/// The elements of an instance's sets, sorted, as bytes: the fields of a key, each filled up to four
/// bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedElements {
    /// Port, Ethernet address and address.
    pub ports: Vec<Vec<u8>>,
    /// Ethernet address and address.
    pub known: Vec<Vec<u8>>,
    /// Routed port and address.
    pub routed: Vec<Vec<u8>>,
    /// Address and uid.
    pub owners: Vec<Vec<u8>>,
}

impl ObservedElements {
    /// Those that these attachments should have, sorted.
    pub fn expected<'a>(attachments: impl IntoIterator<Item = &'a Elements>) -> Self {
        let mut all = Self::default();
        for elements in attachments {
            for (_, set, key) in keys(elements) {
                let of_set = match set {
                    PORT_SET => &mut all.ports,
                    KNOWN_SET => &mut all.known,
                    ROUTED_SET => &mut all.routed,
                    _ => &mut all.owners,
                };
                of_set.push(key);
            }
        }
        all.sorted()
    }

    /// Whether all elements of the other are among these.
    pub fn has_all_of(&self, other: &Self) -> bool {
        let within = |all: &[Vec<u8>], some: &[Vec<u8>]| {
            some.iter().all(|element| all.binary_search(element).is_ok())
        };
        within(&self.ports, &other.ports)
            && within(&self.known, &other.known)
            && within(&self.routed, &other.routed)
            && within(&self.owners, &other.owners)
    }

    fn sorted(mut self) -> Self {
        for set in [&mut self.ports, &mut self.known, &mut self.routed, &mut self.owners] {
            set.sort_unstable();
        }
        self
    }
}

impl RulesSocket {
    /// Opens one.
    pub fn open() -> Result<Self, Error> {
        Socket::open(libc::NETLINK_NETFILTER as isize).map(Self)
    }

    /// Adds an attachment's elements to all sets, or to none. [`Error::has_no_rules`] if the tables
    /// are not there.
    pub fn add(&mut self, links: &Links, elements: &Elements) -> Result<(), Error> {
        let add = |(family, set, key): (u8, &str, Vec<u8>)| {
            (Message::new_element(Table { family, name: &links.table }, set, &key), NLM_F_CREATE)
        };
        let messages: Vec<_> = keys(elements).into_iter().map(add).collect();
        let doing = format!("let {} pass", elements.address);
        match self.transaction(doing.clone(), &messages) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                Err(Error::new(doing, Cause::NoRules(links.table.clone())))
            }
            other => other,
        }
    }

    /// Removes an attachment's elements from all sets.
    pub fn remove(&mut self, links: &Links, elements: &Elements) -> Result<(), Error> {
        let delete = |(family, set, key): (u8, &str, Vec<u8>)| {
            (Message::delete_element(Table { family, name: &links.table }, set, &key), 0)
        };
        let messages: Vec<_> = keys(elements).into_iter().map(delete).collect();
        let doing = || format!("let {} pass no more", elements.address);
        match self.transaction(doing(), &messages) {
            // One that is gone keeps all from being removed.
            Err(error) if error.is_gone() => messages.iter().try_for_each(|one| {
                gone_is_fine(self.transaction(doing(), std::slice::from_ref(one)))
            }),
            other => other,
        }
    }

    /// The elements of all sets, sorted; none if a table is not there.
    pub fn observe(&mut self, links: &Links) -> Result<Option<ObservedElements>, Error> {
        let mut list = |family, set: &str| {
            let question = Message::list_elements(Table { family, name: &links.table }, set);
            let doing = format!("list the set {set} of {}", links.table);
            let read = |kind, payload: &[u8]| message::elements(kind, payload);
            Ok(self.0.dump(doing, &question, read)?.into_iter().flatten().collect())
        };
        let mut all = || -> Result<ObservedElements, Error> {
            Ok(ObservedElements {
                ports: list(message::BRIDGE, PORT_SET)?,
                known: list(message::INET, KNOWN_SET)?,
                routed: list(message::INET, ROUTED_SET)?,
                owners: list(message::INET, OWNER_SET)?,
            })
        };
        match all() {
            Ok(elements) => Ok(Some(elements.sorted())),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The rules of all tables; none of a table that is not there.
    pub fn observe_rules(&mut self, links: &Links) -> Result<ObservedRules, Error> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let question = Message::list_rules(Table { family, name: &links.table });
            let doing = format!("list the rules of {}", links.table);
            let read = |kind, payload: &[u8]| message::rule(kind, payload, &links.table);
            match self.0.dump(doing, &question, read) {
                Ok(numbers) => rules.extend(numbers.into_iter().map(|number| (family, number))),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        rules.sort_unstable();
        Ok(ObservedRules(rules))
    }

    /// Has conntrack forget every flow from or to these addresses. Asks the kernel to look at each flow
    /// that it knows, once: milliseconds, and not for a request's path.
    pub fn forget_flows(&mut self, addresses: &HashSet<Ipv6Addr>) -> Result<(), Error> {
        conntrack::forget(&mut self.0, addresses)
    }

    /// Does all of it or nothing.
    fn transaction(&mut self, doing: String, messages: &[(Message, u16)]) -> Result<(), Error> {
        self.0.transaction(doing, &Message::begin(), messages, &Message::end())
    }

    /// Deletes all tables.
    pub fn purge(&mut self, links: &Links) -> Result<(), Error> {
        FAMILIES.into_iter().try_for_each(|family| {
            let table = Message::delete_table(Table { family, name: &links.table });
            let doing = format!("delete the table {}", links.table);
            gone_is_fine(self.transaction(doing, &[(table, 0)]))
        })
    }
}

/// Family, set and key of each of an attachment's elements.
fn keys(elements: &Elements) -> Vec<(u8, &'static str, Vec<u8>)> {
    let Elements { port, mode, mac, address, owner } = elements;
    // IFNAMSIZ is 16; a name has 15 bytes at most. An Ethernet address takes two registers.
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(port.as_str().bytes()) {
        *to = from;
    }
    let [a, b, c, d, e, f] = mac.octets();
    let mac = [a, b, c, d, e, f, 0, 0];
    let address = address.octets();
    // A uid is a number of the host's byte order to nft.
    let uid = owner.as_raw().to_ne_bytes();
    let mut keys = match mode {
        Mode::Bridge => vec![
            (message::BRIDGE, PORT_SET, [&name[..], &mac, &address].concat()),
            (message::INET, KNOWN_SET, [&mac[..], &address].concat()),
        ],
        Mode::Routed => vec![(message::INET, ROUTED_SET, [&name[..], &address].concat())],
    };
    keys.push((message::INET, OWNER_SET, [&address[..], &uid].concat()));
    keys
}

#[cfg(test)]
mod tests;
