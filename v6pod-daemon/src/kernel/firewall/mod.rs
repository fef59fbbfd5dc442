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
mod lookup;
mod message;
pub mod nft;
mod watch;

use std::collections::{BTreeSet, HashSet};
use std::net::Ipv6Addr;
use std::thread;
use std::time::Duration;

use netlink_packet_core::NLM_F_CREATE;
use nix::errno::Errno;
use nix::libc;
use v6pod_proto::Mode;
use v6pod_proto::wishes::Protocol;

use self::message::{Message, Table};
use super::error::{Cause, Error, gone_is_fine};
use super::netlink::Socket;
use super::workers::processor_time;
use crate::core::hole::{Hole, Holes};
use crate::core::links::Links;
use crate::core::ruleset::{
    CONFINED_SET, ENDED_SET, Elements, FROM_SETS, FULL_BY_SET, FULL_TO_SET, KIN_SET, KNOWN_SET,
    OPEN_ALL_SET, OPEN_SET, OWNER_SET, PORT_SET, REACH_ALL_SET, REACH_SET, REACH_SETS, ROUTED_SET,
    with_bit,
};
use crate::core::subnet::{Length, Nets};
use crate::failpoint;

pub use conntrack::{Begun, Flow};
pub use watch::{Losses, News};

/// How often a set is listed that is being hashed anew, and what is waited each time for the thread of
/// the kernel's that does it.
const LISTS: usize = 16;
const HASHING: Duration = Duration::from_millis(1);

/// The families of an instance's tables.
const FAMILIES: [u8; 4] = [message::ARP, message::BRIDGE, message::INET, message::IP6];

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
pub struct RulesSocket {
    socket: Socket<Message>,
    /// What looking for ended ports' flows among everybody's has taken of the thread's time.
    looked: Duration,
}

/// One element: the family of its table, its set, and its key, whose fields are each filled up to four
/// bytes.
type Element = (u8, &'static str, Vec<u8>);

/// All sets whose elements are attachments'.
const SETS: [(u8, &str); 30] = [
    (message::BRIDGE, PORT_SET),
    (message::INET, KNOWN_SET),
    (message::INET, ROUTED_SET),
    (message::INET, OWNER_SET),
    (message::INET, OPEN_SET),
    (message::INET, OPEN_ALL_SET),
    (message::INET, FROM_SETS[0].1),
    (message::INET, FROM_SETS[1].1),
    (message::INET, FROM_SETS[2].1),
    (message::INET, FROM_SETS[3].1),
    (message::INET, FROM_SETS[4].1),
    (message::INET, FROM_SETS[5].1),
    (message::INET, CONFINED_SET),
    (message::INET, REACH_SET),
    (message::INET, REACH_ALL_SET),
    (message::INET, KIN_SET),
    (message::INET, REACH_SETS[0].1),
    (message::INET, REACH_SETS[1].1),
    (message::INET, REACH_SETS[2].1),
    (message::INET, REACH_SETS[3].1),
    (message::INET, REACH_SETS[4].1),
    (message::INET, REACH_SETS[5].1),
    (message::BRIDGE, Length::ALL[0].set()),
    (message::BRIDGE, Length::ALL[1].set()),
    (message::BRIDGE, Length::ALL[2].set()),
    (message::BRIDGE, Length::ALL[3].set()),
    (message::INET, Length::ALL[0].set()),
    (message::INET, Length::ALL[1].set()),
    (message::INET, Length::ALL[2].set()),
    (message::INET, Length::ALL[3].set()),
];

/// The elements of an instance's sets, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedElements(Vec<Element>);

impl ObservedElements {
    /// Those that these attachments should have.
    pub fn expected<'a>(attachments: impl IntoIterator<Item = &'a Elements>) -> Self {
        let mut all: Vec<_> = attachments.into_iter().flat_map(every).collect();
        all.sort_unstable();
        Self(all)
    }

    /// Whether all elements of the other are among these.
    pub fn has_all_of(&self, other: &Self) -> bool {
        other.0.iter().all(|element| self.0.binary_search(element).is_ok())
    }
}

impl RulesSocket {
    /// Opens one.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(libc::NETLINK_NETFILTER as isize)?;
        Ok(Self { socket, looked: Duration::ZERO })
    }

    /// Adds an attachment's elements to all sets, or to none. [`Error::has_no_rules`] if the tables
    /// are not there.
    pub fn add(&mut self, links: &Links, elements: &Elements) -> Result<(), Error> {
        let messages = Self::messages(links, &every(elements), Do::Add);
        let doing = format!("let {} pass", elements.address);
        self.transaction(doing.clone(), &messages).map_err(|error| no_rules(error, doing, links))
    }

    /// Removes an attachment's elements from all sets.
    pub fn remove(&mut self, links: &Links, elements: &Elements) -> Result<(), Error> {
        self.take_away(&format!("let {} pass no more", elements.address), links, &every(elements))
    }

    /// Has what is open of this address be these, and no more what it was, in one transaction.
    /// [`Error::has_no_rules`] if the table is not there.
    pub fn change(
        &mut self,
        links: &Links,
        address: Ipv6Addr,
        before: &Holes,
        now: &Holes,
    ) -> Result<(), Error> {
        let holes = |holes: &Holes| -> Vec<Element> {
            holes.each().iter().map(|hole| hole_element(address, hole)).collect()
        };
        let (gone, come) = (holes(&before.without(now)), holes(&now.without(before)));
        if gone.is_empty() && come.is_empty() {
            return Ok(());
        }
        let doing = format!("change what is open of {address}");
        let add = Self::messages(links, &come, Do::Add);
        let both = [Self::messages(links, &gone, Do::Delete), add.clone()].concat();
        match self.transaction(doing.clone(), &both) {
            Err(error) if error.is_gone() => {
                // One of those to go is gone already, or all is. What comes must come.
                self.take_away(&doing, links, &gone)?;
                self.transaction(doing.clone(), &add).map_err(|error| no_rules(error, doing, links))
            }
            other => other,
        }
    }

    /// Removes these elements, whatever of them is there.
    fn take_away(&mut self, doing: &str, links: &Links, all: &[Element]) -> Result<(), Error> {
        match self.transaction(doing.to_owned(), &Self::messages(links, all, Do::Delete)) {
            // One that is gone keeps all from being removed. To try them one by one would not do: Linux
            // waits for a grace period of RCU at each transaction that fails.
            Err(error) if error.is_gone() => {
                let there = self.among(links, all)?;
                let rest = Self::messages(links, &there, Do::Delete);
                gone_is_fine(self.transaction(doing.to_owned(), &rest))
            }
            other => other,
        }
    }

    /// Those of these elements that are there.
    fn among(&mut self, links: &Links, all: &[Element]) -> Result<Vec<Element>, Error> {
        let mut there = Vec::new();
        for some in all.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Some(&(family, set, _)) = some.first() else { continue };
            let keys: HashSet<Vec<u8>> = match self.list(links, family, set) {
                Ok(keys) => keys.into_iter().collect(),
                Err(error) if error.is_gone() => continue,
                Err(error) => return Err(error),
            };
            there.extend(some.iter().filter(|(_, _, key)| keys.contains(key)).cloned());
        }
        Ok(there)
    }

    /// The keys of all elements of a set, sorted.
    ///
    /// A hash set that has grown or shrunk is hashed anew behind the transaction's back. Of a list that this
    /// overtakes the kernel skips as many elements as it has told already, but now in another order:
    /// some come twice and as many not at all, and nothing marks the answer as interrupted, as that
    /// is told of transactions alone (`nft_rhash_walk`; seen in 1 of 100 lists of a set just filled,
    /// Linux 6.18). It never tells fewer than there are, so none is missing unless one came twice.
    fn list(&mut self, links: &Links, family: u8, set: &str) -> Result<Vec<Vec<u8>>, Error> {
        let question = Message::list_elements(Table { family, name: &links.table }, set);
        let doing = format!("list the set {set} of {}", links.table);
        let read = |kind, payload: &[u8]| message::elements(kind, payload);
        for _ in 0..LISTS {
            let told = self.socket.dump(doing.clone(), &question, read)?;
            let mut keys: Vec<_> = told.into_iter().flatten().collect();
            keys.sort_unstable();
            if keys.windows(2).all(|two| two.first() != two.last()) {
                return Ok(keys);
            }
            thread::sleep(HASHING);
        }
        Err(Error::new(doing, Cause::Unsettled))
    }

    /// How many containers were refused a flow in the last second: that they began, and that others began with
    /// them.
    pub fn at_flow_limit(&mut self, links: &Links) -> Result<[usize; 2], Error> {
        let mut count = |set| match self.list(links, message::INET, set) {
            // Where flows are not limited there are no such sets.
            Err(error) if error.is_gone() => Ok(0),
            other => other.map(|keys| keys.len()),
        };
        Ok([count(FULL_BY_SET)?, count(FULL_TO_SET)?])
    }

    /// The messages for these elements, of which those of one set stand together.
    fn messages(links: &Links, elements: &[Element], what: Do) -> Vec<(Message, u16)> {
        let of_one_set = elements.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1));
        let few = of_one_set.flat_map(|elements| elements.chunks(message::TOGETHER));
        let message = |elements: &[Element]| {
            let keys: Vec<&[u8]> = elements.iter().map(|(_, _, key)| &key[..]).collect();
            let (family, set, _) = elements.first()?;
            let table = Table { family: *family, name: &links.table };
            Some(match what {
                Do::Add => (Message::new_elements(table, set, &keys), NLM_F_CREATE),
                Do::Delete => (Message::delete_elements(table, set, &keys), 0),
            })
        };
        few.filter_map(message).collect()
    }

    /// The elements of all sets, sorted; none if a table is not there.
    pub fn observe(&mut self, links: &Links) -> Result<Option<ObservedElements>, Error> {
        let mut all = Vec::new();
        for (family, set) in SETS {
            match self.list(links, family, set) {
                Ok(keys) => all.extend(keys.into_iter().map(|key| (family, set, key))),
                Err(error) if error.is_gone() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        all.sort_unstable();
        Ok(Some(ObservedElements(all)))
    }

    /// The rules of all tables; none of a table that is not there.
    pub fn observe_rules(&mut self, links: &Links) -> Result<ObservedRules, Error> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let question = Message::list_rules(Table { family, name: &links.table });
            let doing = format!("list the rules of {}", links.table);
            let read = |kind, payload: &[u8]| message::rule(kind, payload, &links.table);
            match self.socket.dump(doing, &question, read) {
                Ok(numbers) => rules.extend(numbers.into_iter().map(|number| (family, number))),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        rules.sort_unstable();
        Ok(ObservedRules(rules))
    }

    /// Has conntrack forget every flow from or to these addresses and subnets. Asks the kernel to look at each flow
    /// that it knows, once: milliseconds, and not for a request's path.
    pub fn forget_flows(&mut self, nets: &Nets) -> Result<(), Error> {
        let began = processor_time();
        let names = conntrack::flows(&mut self.socket, nets);
        self.looked += processor_time().saturating_sub(began);
        conntrack::forget(&mut self.socket, &names?)
    }

    /// How much of the thread's time [`RulesSocket::forget_flows`] has spent on others' flows as well,
    /// since this was last asked for. Nobody's to pay for: of these there are as many as others care to begin.
    pub fn take_looked(&mut self) -> Duration {
        std::mem::take(&mut self.looked)
    }

    /// The flows of TCP and UDP that are chosen. Asks for each flow that there is, as
    /// [`RulesSocket::forget_flows`] does.
    pub fn flows(&mut self, chosen: impl FnMut(&Flow) -> bool) -> Result<Vec<Begun>, Error> {
        if failpoint::fails("flows") {
            return Err(Error::io("look at the flows", Errno::ENOBUFS));
        }
        conntrack::choose(&mut self.socket, chosen)
    }

    /// Ends these flows: conntrack forgets them, and what their answering side sends on in them does not
    /// begin them anew (the chains forward and input).
    pub fn end_flows(&mut self, links: &Links, flows: &[Begun]) -> Result<(), Error> {
        let datagrams = flows.iter().filter(|begun| begun.flow.protocol == Protocol::Udp);
        let ended: BTreeSet<_> = datagrams.map(|begun| ended_element(&begun.flow)).collect();
        let ended: Vec<_> = ended.into_iter().collect();
        for some in ended.chunks(message::TOGETHER) {
            let listed =
                self.transaction("list ended flows".into(), &Self::messages(links, some, Do::Add));
            if let Err(error) = listed {
                // The set is full, or gone: these can be begun anew by the side that is closed, and so can the
                // rest, for which there is no room either. Each try costs a grace period of RCU.
                tracing::warn!(%error, "flows that were ended may come back");
                break;
            }
        }
        flows.iter().try_for_each(|begun| conntrack::forget_one(&mut self.socket, begun))
    }

    /// Has conntrack forget all flows that these addresses began and that have no ports, such as echo. Gives
    /// how many there were.
    pub fn forget_portless(&mut self, began: &Nets) -> Result<usize, Error> {
        if began.is_empty() { Ok(0) } else { conntrack::forget_portless(&mut self.socket, began) }
    }

    /// Does all of it or nothing.
    fn transaction(&mut self, doing: String, messages: &[(Message, u16)]) -> Result<(), Error> {
        self.socket.transaction(doing, &Message::begin(), messages, &Message::end())
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

/// What becomes of elements.
#[derive(Clone, Copy)]
enum Do {
    Add,
    Delete,
}

fn no_rules(error: Error, doing: String, links: &Links) -> Error {
    match error.errno() {
        Some(Errno::ENOENT) => Error::new(doing, Cause::NoRules(links.table.clone())),
        _ => error,
    }
}

/// All of an attachment's elements, set by set.
fn every(elements: &Elements) -> Vec<Element> {
    let Elements { port, mode, mac, address, subnet, owner, open } = elements;
    let (name, mac) = (lookup::name_key(port), lookup::mac_key(*mac));
    let octets = address.octets();
    // A uid is a number of the host's byte order to nft.
    let uid = owner.as_raw().to_ne_bytes();
    let mut all = match mode {
        Mode::Bridge => vec![
            (message::BRIDGE, PORT_SET, [&name[..], &mac, &octets].concat()),
            (message::INET, KNOWN_SET, [&mac[..], &octets].concat()),
        ],
        Mode::Routed => vec![(message::INET, ROUTED_SET, [&name[..], &octets].concat())],
    };
    all.push((message::INET, OWNER_SET, [&octets[..], &uid].concat()));
    if let Some(length) = subnet {
        all.push((message::INET, length.set(), octets.to_vec()));
        if *mode == Mode::Bridge {
            all.push((message::BRIDGE, length.set(), octets.to_vec()));
        }
    }
    // Sorted by kind, so those of one set are neighbours.
    all.extend(open.each().iter().map(|hole| hole_element(*address, hole)));
    all
}

fn hole_element(address: Ipv6Addr, hole: &Hole) -> Element {
    if let Hole::Kin(bit) = hole {
        return (message::INET, KIN_SET, with_bit(address, *bit).octets().to_vec());
    }
    let address = address.octets();
    let key = match hole {
        Hole::Confined | Hole::Kin(_) => address.to_vec(),
        Hole::Port(protocol, port) | Hole::Reach(protocol, port) => {
            [&address[..], &number(*protocol), &port_key(*port)].concat()
        }
        Hole::Every(protocol) | Hole::ReachEvery(protocol) => {
            [&address[..], &number(*protocol)].concat()
        }
        Hole::From(_, protocol, port, peers) | Hole::ReachIn(_, protocol, port, peers) => {
            [&address[..], &number(*protocol), &port_key(*port), &peers.octets()].concat()
        }
    };
    (message::INET, hole.set(), key)
}

fn ended_element(flow: &Flow) -> Element {
    let Flow { protocol, asks, from, answers, port } = flow;
    let answers = [&answers.octets()[..], &number(*protocol), &port_key(*port)].concat();
    let key = [&answers[..], &asks.octets(), &port_key(*from)].concat();
    (message::INET, ENDED_SET, key)
}

/// `inet_proto`.
fn number(protocol: Protocol) -> [u8; 4] {
    let number = match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP,
        Protocol::Udp => libc::IPPROTO_UDP,
    };
    [number as u8, 0, 0, 0]
}

/// `inet_service`.
fn port_key(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

#[cfg(test)]
mod tests;
