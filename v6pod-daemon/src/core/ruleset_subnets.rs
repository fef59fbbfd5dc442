//! The rules' words about subnets: once for each length that there is.
//!
//! Guarantee: no rule takes a subnet's first address for another address before the set for the subnet's length
//! has said that there is such a subnet.

use std::fmt::Write as _;

use v6pod_proto::Mode;

use super::{Elements, elements};
use crate::core::subnet::Length;

/// Whether a packet is from, or for, an address of a subnet of a length.
const FROM: &str = "ip6 saddr & {MASK} @{SUBNET}";
const TO: &str = "ip6 daddr & {MASK} @{SUBNET}";

/// Who may send with an address of a subnet: by the bridge, the same by what can be seen on it, by a routed port.
const SENDERS: &str = "\t\tip6 saddr & {MASK} @{SUBNET} iifname . ether saddr . (ip6 saddr & {MASK}) @sender return\n";
const KNOWN: &str =
    "\t\tip6 saddr & {MASK} @{SUBNET} ether saddr . (ip6 saddr & {MASK}) @known return\n";
const ROUTED: &str =
    "\t\tip6 saddr & {MASK} @{SUBNET} iifname . (ip6 saddr & {MASK}) @routed return\n";
/// Of which only what is listed is reached. Mostly the first of the two sets is empty.
const CONFINED: &str =
    "\t\tip6 saddr & {MASK} @confined ip6 saddr & {MASK} @{SUBNET} goto confined_{SUBNET}\n";
/// Whose processes on this host reach them.
const OWNERS: &str =
    "\t\tip6 daddr & {MASK} @{SUBNET} (ip6 daddr & {MASK}) . meta skuid @owner accept\n";

/// What stands in the template in the place of each word; `counted`: of containers the flows are counted.
pub(super) fn words(
    known: &[&Elements],
    counted: bool,
) -> impl Iterator<Item = (&'static str, String)> {
    let words = [
        ("{SUBNET_CHAINS}", each_length(include_str!("ruleset/subnet_chains.nft"))),
        (
            "{SUBNET_FLOWS}",
            each_length(if counted { include_str!("ruleset/subnet_flows.nft") } else { "" }),
        ),
        ("{SUBNET_SETS}", each_length("\tset {SUBNET} { type ipv6_addr; }\n")),
        ("{BRIDGE_SUBNET_FLUSHES}", each_length("flush set bridge {TABLE} {SUBNET}\n")),
        ("{INET_SUBNET_FLUSHES}", each_length("flush set inet {TABLE} {SUBNET}\n")),
        ("{BRIDGE_SUBNETS}", sets(known, Some(Mode::Bridge))),
        ("{INET_SUBNETS}", sets(known, None)),
        ("{SUBNET_SENDERS}", each_length(SENDERS)),
        ("{SUBNET_KNOWN}", each_length(KNOWN)),
        ("{SUBNET_ROUTED}", each_length(ROUTED)),
        ("{SUBNET_CONFINED}", each_length(CONFINED)),
        ("{SUBNET_OWNERS}", each_length(OWNERS)),
        ("{SUBNET_TO_CONTAINER}", each_length(&format!("\t\t{TO} goto to_{{SUBNET}}\n"))),
        ("{SUBNET_BEGUN}", each_length(&format!("\t\t{FROM} goto begun_{{SUBNET}}\n"))),
        ("{SUBNET_OFFERED}", each_length(&format!("\t\t{TO} goto offered_{{SUBNET}}\n"))),
        ("{SUBNET_ASKING}", each_length(&format!("\t\t{FROM} drop\n"))),
        ("{SUBNET_KIN}", each_length(&format!("\t\t{FROM} return\n\t\t{TO} return\n"))),
    ];
    words.into_iter()
}

/// The text, once for each length of subnets.
fn each_length(text: &str) -> String {
    let each = |length: Length| {
        text.replace("{MASK}", &length.mask().to_string()).replace("{SUBNET}", length.set())
    };
    Length::ALL.map(each).concat()
}

/// The sets with the first addresses of subnets, of all or only of those at such ports.
fn sets(known: &[&Elements], only: Option<Mode>) -> String {
    let mut text =
        "\t# The first addresses of subnets that are containers', by their length.\n".to_owned();
    for length in Length::ALL {
        let these = known.iter().filter(|e| e.subnet == Some(length));
        let these = these.filter(|e| only.is_none_or(|mode| e.mode == mode));
        let elements = elements(these.map(|e| e.address.to_string()));
        let _infallible =
            write!(text, "\tset {} {{\n\t\ttype ipv6_addr{elements}\n\t}}\n\n", length.set());
    }
    text
}
