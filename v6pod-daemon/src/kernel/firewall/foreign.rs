//! Other programs' tables, as far as [`core::foreign`](crate::core::foreign) needs to know them. Read,
//! and never written.
//!
//! Guarantees: of a table in which no base chain can refuse anything, only the base chains' own rules
//! are read; of others no more than [`MOST_CHAINS`] chains are kept. Whatever is not understood counts
//! as nothing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;

use ipnet::Ipv6Net;

use super::RulesSocket;
use super::message::{BRIDGE, INET, Message, value};
use crate::core::foreign::{Base, Chain, Family, Hook, Table};
use crate::core::links::Links;
use crate::kernel::error::Error;
use crate::kernel::view::Attributes;

/// Of tables with more chains (a Kubernetes node has ten thousands) the rest is not looked at: what
/// stands in chains that packets come to first is found, and the advice goes there.
const MOST_CHAINS: usize = 4096;

/// NFPROTO_IPV6.
const IP6: u8 = 10;

const NFTABLES: u16 = 10 << 8;
const NEW_CHAIN: u16 = NFTABLES | 3;
const GET_CHAIN: u16 = NFTABLES | 4;
const NEW_RULE: u16 = NFTABLES | 6;
const GET_RULE: u16 = NFTABLES | 7;

/// `enum nft_chain_attributes`, `nft_hook_attributes`, `nft_rule_attributes`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;

/// `enum nft_list_attributes`, `nft_expr_attributes`, and of the expressions' own those that are read.
const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const META_KEY: u16 = 2;
const CMP_OPERATION: u16 = 2;
const CMP_DATA: u16 = 3;
/// NFTA_TARGET_NAME and NFTA_MATCH_NAME.
const XT_NAME: u16 = 1;

/// Whose packets are meant.
#[derive(Debug, Clone)]
pub struct Ours {
    /// The containers' addresses.
    pub net: Ipv6Net,
    /// The name of the bridge that they are behind.
    pub bridge: String,
}

impl RulesSocket {
    /// All tables of others that have a chain at a hook that IPv6 packets pass.
    pub fn foreign(&mut self, links: &Links, ours: &Ours) -> Result<Vec<Table>, Error> {
        let mut tables = self.foreign_chains(links)?;
        for table in &mut tables {
            let bases = table.bases.iter().map(|base| base.name.clone()).collect::<Vec<_>>();
            for base in bases {
                self.read_rules(table, Some(&base), ours)?;
            }
            if table.may_refuse() {
                table.chains.clear();
                self.read_rules(table, None, ours)?;
            }
        }
        Ok(tables)
    }

    fn foreign_chains(&mut self, links: &Links) -> Result<Vec<Table>, Error> {
        let mut tables: HashMap<(u8, String), Table> = HashMap::new();
        let question = Message::new(GET_CHAIN, 0, 0);
        let chains =
            self.socket.dump("list the chains of others", &question, |kind, payload| {
                let (family, attributes) = body(kind, payload, NEW_CHAIN)?;
                let table = text(value(attributes, CHAIN_TABLE)?);
                if table == &*links.table {
                    return None;
                }
                let base = base(attributes);
                Some((
                    family,
                    table.to_owned(),
                    text(value(attributes, CHAIN_NAME)?).to_owned(),
                    base,
                ))
            })?;
        for (number, name, chain, base) in chains {
            let Some(family) = family(number) else { continue };
            let table = tables.entry((number, name.clone())).or_insert_with(|| Table {
                family,
                name,
                bases: Vec::new(),
                chains: HashMap::new(),
                names: HashSet::new(),
            });
            table.bases.extend(base);
            table.names.insert(chain);
        }
        let mut tables: Vec<_> = tables.into_values().filter(|t| !t.bases.is_empty()).collect();
        tables.sort_by(|a, b| (a.family as u8, &a.name).cmp(&(b.family as u8, &b.name)));
        Ok(tables)
    }

    /// Reads the rules of a table, or of one chain of it. One that has gone since has none.
    fn read_rules(
        &mut self,
        table: &mut Table,
        only: Option<&str>,
        ours: &Ours,
    ) -> Result<(), Error> {
        let number = match table.family {
            Family::Inet => INET,
            Family::Ip6 => IP6,
            Family::Bridge => BRIDGE,
        };
        let mut question = Message::new(GET_RULE, number, 0);
        question.text(RULE_TABLE, &table.name);
        if let Some(chain) = only {
            question.text(RULE_CHAIN, chain);
        }
        let doing = format!("list the rules of {}", table.name);
        let name = table.name.clone();
        let chains = &mut table.chains;
        let read = self.socket.dump(doing, &question, |kind, payload| {
            let (family, attributes) = body(kind, payload, NEW_RULE)?;
            if family != number || text(value(attributes, RULE_TABLE)?) != name {
                return None::<()>;
            }
            let chain = text(value(attributes, RULE_CHAIN)?);
            if chains.len() < MOST_CHAINS || chains.contains_key(chain) {
                let chain = chains.entry(chain.to_owned()).or_default();
                note(chain, value(attributes, RULE_EXPRESSIONS)?, ours);
            }
            None
        });
        match read {
            Err(error) if error.is_gone() => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The tables of the legacy ip6tables in the calling thread's namespace, one a line; nothing where this
/// kernel has none, or keeps them from this process.
pub fn legacy_tables() -> Result<String, Error> {
    let path = "/proc/thread-self/net/ip6_tables_names";
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|error| Error::io(format!("read {path}"), error)),
    }
}

/// Family and attributes of a message of this kind.
fn body(kind: u16, payload: &[u8], wanted: u16) -> Option<(u8, &[u8])> {
    let attributes = payload.get(4..).filter(|_| kind == wanted)?;
    Some((*payload.first()?, attributes))
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).unwrap_or_default()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

const fn family(number: u8) -> Option<Family> {
    match number {
        INET => Some(Family::Inet),
        IP6 => Some(Family::Ip6),
        BRIDGE => Some(Family::Bridge),
        _ => None,
    }
}

/// The base chain that these are the attributes of, if it is one.
fn base(attributes: &[u8]) -> Option<Base> {
    const DROP: u32 = 0; // NF_DROP

    let hook = match number(value(value(attributes, CHAIN_HOOK)?, HOOK_NUMBER)?)? {
        0 => Hook::Prerouting,
        1 => Hook::Input,
        2 => Hook::Forward,
        3 => Hook::Output,
        4 => Hook::Postrouting,
        _ => return None,
    };
    Some(Base {
        name: text(value(attributes, CHAIN_NAME)?).to_owned(),
        hook,
        drops: value(attributes, CHAIN_POLICY).and_then(number) == Some(DROP),
    })
}

/// What a rule's last expression did with the packet's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Source,
    Destination,
    FromInterface,
    ToInterface,
    NextHeader,
    Other,
}

/// What a rule does in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Refuses,
    GoesTo(String),
    /// It accepts, counts, marks or returns.
    Other,
}

/// Adds what one rule does to what its chain does.
fn note(chain: &mut Chain, expressions: &[u8], ours: &Ours) {
    let (mut about, mut conditions, mut end) = (Chain::default(), false, End::Other);
    let mut loaded = Loaded::Other;
    for (_, expression) in Attributes(expressions).filter(|(kind, _)| *kind == LIST_ELEM) {
        let Some(name) = value(expression, EXPR_NAME).map(text) else { continue };
        let data = value(expression, EXPR_DATA).unwrap_or_default();
        match name {
            "counter" | "log" | "quota" => {}
            "immediate" => end = verdict(data).unwrap_or(end),
            "reject" => end = End::Refuses,
            "target" if matches!(xt_name(data), "DROP" | "REJECT") => end = End::Refuses,
            "payload" => (loaded, conditions) = (payload(data), true),
            "meta" => (loaded, conditions) = (meta(data), true),
            "bitwise" => conditions = true,
            "cmp" => {
                compare(&mut about, loaded, data, ours);
                conditions = true;
            }
            "lookup" => {
                about.icmpv6 |= loaded == Loaded::NextHeader;
                conditions = true;
            }
            "match" if xt_name(data) == "comment" => {}
            "match" => {
                about.icmpv6 |= xt_name(data) == "icmp6";
                conditions = true;
            }
            _ => conditions = true,
        }
    }
    match end {
        End::Refuses => {
            chain.refuses |= !conditions;
            return;
        }
        End::GoesTo(target) => drop(chain.targets.insert(target)),
        End::Other => {}
    }
    chain.from_containers |= about.from_containers;
    chain.to_containers |= about.to_containers;
    chain.icmpv6 |= about.icmpv6;
}

fn xt_name(data: &[u8]) -> &str {
    value(data, XT_NAME).map(text).unwrap_or_default()
}

fn verdict(data: &[u8]) -> Option<End> {
    const REGISTER: u32 = 0; // NFT_REG_VERDICT
    const DROP: i32 = 0; // NF_DROP
    const JUMP: i32 = -3; // NFT_JUMP
    const GOTO: i32 = -4; // NFT_GOTO

    if number(value(data, IMMEDIATE_REGISTER)?)? != REGISTER {
        return None;
    }
    let verdict = value(value(data, IMMEDIATE_DATA)?, DATA_VERDICT)?;
    Some(match number(value(verdict, VERDICT_CODE)?)?.cast_signed() {
        DROP => End::Refuses,
        JUMP | GOTO => End::GoesTo(text(value(verdict, VERDICT_CHAIN)?).to_owned()),
        _ => End::Other,
    })
}

/// Which field of the IPv6 header (RFC 8200, section 3) was loaded.
fn payload(data: &[u8]) -> Loaded {
    const NETWORK: u32 = 1; // NFT_PAYLOAD_NETWORK_HEADER

    let field = |kind| value(data, kind).and_then(number);
    match (field(PAYLOAD_BASE), field(PAYLOAD_OFFSET)) {
        (Some(NETWORK), Some(6)) => Loaded::NextHeader,
        (Some(NETWORK), Some(8)) => Loaded::Source,
        (Some(NETWORK), Some(24)) => Loaded::Destination,
        _ => Loaded::Other,
    }
}

fn meta(data: &[u8]) -> Loaded {
    match value(data, META_KEY).and_then(number) {
        Some(6) => Loaded::FromInterface, // NFT_META_IIFNAME
        Some(7) => Loaded::ToInterface,   // NFT_META_OIFNAME
        Some(16) => Loaded::NextHeader,   // NFT_META_L4PROTO
        _ => Loaded::Other,
    }
}

fn compare(about: &mut Chain, loaded: Loaded, data: &[u8], ours: &Ours) {
    const EQUAL: u32 = 0; // NFT_CMP_EQ
    const ICMPV6: u8 = 58;

    let equal = value(data, CMP_OPERATION).and_then(number) == Some(EQUAL);
    let Some(with) = value(data, CMP_DATA).and_then(|data| value(data, DATA_VALUE)) else { return };
    if !equal {
        return;
    }
    match loaded {
        Loaded::Source => about.from_containers |= is_net(with, ours.net),
        Loaded::Destination => about.to_containers |= is_net(with, ours.net),
        Loaded::FromInterface => about.from_containers |= is_interface(with, &ours.bridge),
        Loaded::ToInterface => about.to_containers |= is_interface(with, &ours.bridge),
        Loaded::NextHeader => about.icmpv6 |= with.first() == Some(&ICMPV6),
        Loaded::Other => {}
    }
}

/// Whether an address is compared with the containers' prefix, or one around or within it: by whole
/// bytes, as nft does where a length is a multiple of eight.
fn is_net(with: &[u8], net: Ipv6Net) -> bool {
    let bytes = usize::from(net.prefix_len() / 8).min(with.len());
    bytes > 0 && with[..bytes] == net.network().octets()[..bytes]
}

/// Whether it is this interface's name, filled up with zeros, or the beginning of it (`v6pod*`).
fn is_interface(with: &[u8], name: &str) -> bool {
    match with.split(|b| *b == 0).next().unwrap_or_default() {
        b"" => false,
        whole if whole.len() < with.len() => whole == name.as_bytes(),
        beginning => name.as_bytes().starts_with(beginning),
    }
}

#[cfg(test)]
mod tests;
