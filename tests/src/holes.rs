//! What of containers is open: as the kernel has it, and as it has to be, as texts that can be compared.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::path::Path;

use serde_json::Value;
use v6pod_proto::wishes::{Egress, Opening, Peers, Ports};

use crate::{Daemon, run};

/// The lengths of prefixes that have a set each.
const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 128];

/// The elements of all sets of openings in the daemon's table.
#[track_caller]
pub fn open_in_kernel(daemon: &Daemon) -> BTreeSet<String> {
    in_kernel(daemon, &["open", "from"])
}

/// The elements of all sets with who reaches what alone.
#[track_caller]
pub fn reach_in_kernel(daemon: &Daemon) -> BTreeSet<String> {
    in_kernel(daemon, &["confined", "reach"])
}

#[track_caller]
fn in_kernel(daemon: &Daemon, names: &[&str]) -> BTreeSet<String> {
    let mut command = daemon.command(Path::new("nft"));
    let finished = run(command.args(["-j", "-n", "list", "table", "inet", &daemon.table()]));
    // None, for the moment that somebody has taken it away.
    let listed: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
    let objects = listed["nftables"].as_array().cloned().unwrap_or_default();
    let mut all = BTreeSet::new();
    for set in objects.iter().filter_map(|object| object.get("set")) {
        let name = set["name"].as_str().unwrap_or_default();
        if !names.iter().any(|beginning| name.starts_with(beginning)) {
            continue;
        }
        for element in set["elem"].as_array().into_iter().flatten() {
            if let Some(address) = element.as_str() {
                all.insert(format!("{name} {address}"));
                continue;
            }
            let parts = element["concat"].as_array().into_iter().flatten().enumerate();
            let words = parts.map(|(at, part)| {
                let word = part.as_str().map_or(part.to_string(), str::to_owned);
                match (at, word.as_str()) {
                    (1, "6") => "tcp".to_owned(),
                    (1, "17") => "udp".to_owned(),
                    _ => word,
                }
            });
            all.insert(format!("{name} {}", words.collect::<Vec<_>>().join(" ")));
        }
    }
    all
}

/// The elements for what is open at this address.
pub fn elements_of(address: Ipv6Addr, openings: &[Opening]) -> BTreeSet<String> {
    openings.iter().flat_map(|opening| of_one(address, *opening)).collect()
}

/// The elements for what is in reach of this address.
pub fn reach_of(address: Ipv6Addr, rule: &Egress) -> BTreeSet<String> {
    let Egress::Deny(but) = rule else { return BTreeSet::new() };
    let to = |element: &String| element.replacen("open", "reach", 1).replacen("from", "reach", 1);
    let listed = elements_of(address, but);
    listed.iter().map(to).chain([format!("confined {address}")]).collect()
}

fn of_one(address: Ipv6Addr, opening: Opening) -> Vec<String> {
    let Opening { protocol, ports, peers } = opening;
    let protocol = protocol.as_str();
    if peers == Peers::ALL && ports == Ports::ALL {
        return vec![format!("openall {address} {protocol}")];
    }
    let each = || ports.first()..=ports.last();
    if peers == Peers::ALL {
        return each().map(|port| format!("open {address} {protocol} {port}")).collect();
    }
    let length = LENGTHS.into_iter().find(|length| *length >= peers.length()).unwrap_or(128);
    let of_prefix = |n: u128| {
        let bits = u128::from(peers.prefix()) | n << (128 - u32::from(length));
        let prefix = Ipv6Addr::from(bits);
        each().map(move |port| format!("from{length} {address} {protocol} {port} {prefix}"))
    };
    (0..1_u128 << (length - peers.length())).flat_map(of_prefix).collect()
}
