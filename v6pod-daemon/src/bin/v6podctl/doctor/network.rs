//! The host's side of the network: forwarding, the way out, who else has the prefix, and tables that fill up.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use super::daemon::RESTART;
use super::finding::{Finding, word};

/// How the names of containers' ports begin.
const PORTS: &str = "v6p";

/// Subnets on a link are this long or longer (RFC 4291, section 2.5.4).
const SUBNET: u8 = 64;

/// Bits of a route's flags (`linux/route.h`, `linux/ipv6_route.h`).
const REJECT: u32 = 0x0200;
const ADDRCONF: u32 = 0x0004_0000;
const ANYCAST: u32 = 0x0010_0000;
const CACHE: u32 = 0x0100_0000;
const LOCAL: u32 = 0x8000_0000;

/// A line of `/proc/net/ipv6_route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) net: Ipv6Net,
    pub(crate) gateway: Option<Ipv6Addr>,
    pub(crate) flags: u32,
    pub(crate) link: String,
}

/// A line of `/proc/net/if_inet6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) address: Ipv6Addr,
    pub(crate) length: u8,
    pub(crate) link: String,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Of `/proc/sys/net/ipv6/conf/NAME`; none: there is no such setting.
    pub(crate) forwarding: Option<i64>,
    pub(crate) force_forwarding: Option<i64>,
    pub(crate) accept_ra: Option<i64>,
    pub(crate) disable_ipv6: Option<i64>,
}

/// A table, and how many entries it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filling {
    pub(crate) entries: u64,
    pub(crate) most: u64,
}

impl Filling {
    fn is_nearly_full(self) -> bool {
        self.entries.saturating_mul(10) > self.most.saturating_mul(9)
    }
}

/// What was seen of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Whether the daemon runs: what it makes is there only then.
    pub(crate) serving: bool,
    /// The prefix first, then those before it. None where it is not known.
    pub(crate) prefixes: Vec<Ipv6Net>,
    pub(crate) bridge: String,
    /// What the configuration says, if it says any.
    pub(crate) uplink_wanted: Option<String>,
    /// What the daemon has found.
    pub(crate) uplink: Option<String>,
    pub(crate) ndp_proxy: bool,
    pub(crate) config_path: String,
    pub(crate) links: Vec<Link>,
    /// `net.ipv6.conf.all.forwarding`.
    pub(crate) forwarding: Option<i64>,
    pub(crate) routes: Vec<Route>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) conntrack: Option<Filling>,
    pub(crate) neighbours: Option<Filling>,
    /// `net.bridge.bridge-nf-call-ip6tables`.
    pub(crate) bridge_calls: Option<i64>,
}

/// The routes of `/proc/net/ipv6_route`.
pub(crate) fn routes(text: &str) -> Vec<Route> {
    text.lines().filter_map(route).collect()
}

fn route(line: &str) -> Option<Route> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [net, length, _, _, gateway, _, _, _, flags, link] = words[..] else { return None };
    let gateway = Some(address(gateway)?).filter(|gateway| !gateway.is_unspecified());
    let net = Ipv6Net::new(address(net)?, u8::from_str_radix(length, 16).ok()?).ok()?;
    Some(Route { net, gateway, flags: u32::from_str_radix(flags, 16).ok()?, link: link.to_owned() })
}

/// The addresses of `/proc/net/if_inet6`.
pub(crate) fn addresses(text: &str) -> Vec<Address> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [found, _, length, _, _, link] = words[..] else { return None };
        let length = u8::from_str_radix(length, 16).ok()?;
        Some(Address { address: address(found)?, length, link: link.to_owned() })
    };
    text.lines().filter_map(parse).collect()
}

fn address(hex: &str) -> Option<Ipv6Addr> {
    u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from_bits)
}

impl Route {
    fn is_default(&self) -> bool {
        self.net.prefix_len() == 0 && self.flags & REJECT == 0 && self.link != "lo"
    }

    /// Whether it is one that somebody has made for packets to go by.
    fn counts(&self) -> bool {
        self.flags & (LOCAL | ANYCAST | CACHE) == 0 && !self.net.network().is_multicast()
    }
}

impl Facts {
    /// What is wrong with what the daemon has made, and with the way out.
    pub(crate) fn judge_ways(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if let Some(name) = &self.uplink_wanted
            && self.link(name).is_none()
        {
            let what = format!(
                "there is no interface {name}, which {} names as uplink: containers reach nobody outside",
                self.config_path
            );
            let line = format!(
                "sed -i 's/^[[:space:]]*uplink[[:space:]]*=/#&/' {} && {RESTART}",
                word(&self.config_path)
            );
            found.push(Finding::broken("uplink-missing", what).root(line));
        }
        if !self.serving {
            return found;
        }
        let gateway =
            self.prefixes.first().map(|prefix| Ipv6Addr::from_bits(prefix.network().to_bits() | 1));
        let has_gateway =
            self.addresses.iter().any(|a| a.link == self.bridge && Some(a.address) == gateway);
        match self.link(&self.bridge) {
            Some(link) if link.up && (has_gateway || gateway.is_none()) => {
                found.extend(self.forwards(link));
            }
            bridge => {
                let how = match bridge {
                    None => "is not there",
                    Some(link) if !link.up => "is down",
                    Some(_) => "has lost its address",
                };
                let what =
                    format!("the bridge {} {how}: containers on it reach nobody", self.bridge);
                found.push(Finding::broken("bridge-down", what).root(RESTART));
            }
        }
        let uplink = self.uplink.as_deref().and_then(|name| self.link(name));
        if let Some(uplink) = uplink {
            found.extend(self.forwards(uplink));
            if uplink.disable_ipv6 == Some(1) {
                let key = word(&format!("net/ipv6/conf/{}/disable_ipv6=0", uplink.name));
                let what = format!(
                    "IPv6 is switched off on the uplink {}: containers reach nobody outside",
                    uplink.name
                );
                found.push(
                    Finding::broken("uplink-without-ipv6", what).root(format!("sysctl -w {key}")),
                );
            }
        }
        found.extend(self.judge_default_route(uplink));
        found
    }

    fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Linux forwards what comes in by an interface if all or it may (`ip6_forward`).
    fn forwards(&self, link: &Link) -> Option<Finding> {
        if self.forwarding == Some(1) || link.force_forwarding == Some(1) {
            return None;
        }
        let what = format!(
            "what comes in by {} is not forwarded: containers and the outside do not reach each other",
            link.name
        );
        let finding = Finding::broken("forwarding-off", what);
        Some(if link.force_forwarding.is_some() {
            let key = word(&format!("net/ipv6/conf/{}/force_forwarding=1", link.name));
            finding.root(format!("sysctl -w {key}"))
        } else {
            // Behind that Linux takes no router advertisements any more, unless it is told before.
            let confs = self
                .links
                .iter()
                .filter(|link| link.accept_ra == Some(1) && !self.is_ours(&link.name));
            let keep = confs.map(|link| word(&format!("net/ipv6/conf/{}/accept_ra=2", link.name)));
            let keys: Vec<String> =
                keep.chain(["net/ipv6/conf/all/forwarding=1".to_owned()]).collect();
            finding.root(format!("sysctl -w {}", keys.join(" ")))
        })
    }

    fn is_ours(&self, name: &str) -> bool {
        name == self.bridge || name == "lo" || name.starts_with(PORTS)
    }

    /// Whether the way out is there, and stays.
    fn judge_default_route(&self, uplink: Option<&Link>) -> Vec<Finding> {
        let defaults: Vec<&Route> = self.routes.iter().filter(|route| route.is_default()).collect();
        let advertised =
            |link: &Link| defaults.iter().any(|r| r.link == link.name && r.flags & ADDRCONF != 0);
        // A router takes no advertisements from others, unless it is told to.
        let deaf = |link: &&Link| {
            link.accept_ra == Some(1) && link.forwarding == Some(1) && !self.is_ours(&link.name)
        };
        let has_global = |link: &Link| {
            self.addresses.iter().any(|a| a.link == link.name && !a.address.is_unicast_link_local())
        };
        let mut found = Vec::new();
        for link in self.links.iter().filter(deaf) {
            let is_it = uplink.is_none_or(|uplink| uplink.name == link.name) && has_global(link);
            if !(advertised(link) || defaults.is_empty() && is_it) {
                continue;
            }
            let how = if advertised(link) { "will lose" } else { "has lost" };
            let name = &link.name;
            let what = format!(
                "{name} forwards and so takes no router advertisements (accept_ra is 1): this host {how} the default route that it had by them"
            );
            let key = word(&format!("net/ipv6/conf/{name}/accept_ra=2"));
            found.push(Finding::broken("ra-lost", what).root(format!("sysctl -w {key}")));
        }
        if defaults.is_empty() && found.is_empty() {
            let what = "this host has no IPv6 default route: containers reach nobody outside, and nobody there reaches them";
            let ula =
                self.prefixes.first().is_some_and(|prefix| prefix.network().is_unique_local());
            found.push(if ula {
                Finding::warning("no-default-route", what)
            } else {
                Finding::broken("no-default-route", what)
            });
        }
        found
    }

    /// Who else has the prefix, and whether anybody sends packets for it here.
    pub(crate) fn judge_prefix(&self) -> Vec<Finding> {
        let Some(&prefix) = self.prefixes.first() else { return Vec::new() };
        let inside = |a: &&Address| prefix.contains(&a.address) && !self.is_ours(&a.link);
        let of_addresses = self.addresses.iter().filter(inside).map(|a| {
            let what = format!("{} of the prefix {prefix} is an address of {}", a.address, a.link);
            self.clash(&what, &format!("addr del {}/{} dev {}", a.address, a.length, word(&a.link)))
        });
        let of_ours = |route: &Route| {
            self.is_ours(&route.link) && route.link != "lo"
                || route.flags & REJECT != 0 && self.prefixes.contains(&route.net)
        };
        let of_others = self.routes.iter().filter(|route| route.counts() && !of_ours(route));
        of_addresses.chain(of_others.filter_map(|route| self.judge_route(prefix, route))).collect()
    }

    fn judge_route(&self, prefix: Ipv6Net, route: &Route) -> Option<Finding> {
        let (net, link) = (route.net, &route.link);
        // What is unreachable around the prefix, as an administrator has it of all that was delegated to him, is in
        // nobody's way: ours is longer. v6podd judges likewise when it starts.
        let leads = route.flags & REJECT == 0 && route.gateway.is_none();
        let around = net.contains(&prefix) && leads && net.prefix_len() >= SUBNET;
        let uplink = self.uplink.as_ref().or(self.uplink_wanted.as_ref());
        let elsewhere = self.uplink.is_some() && uplink != Some(link);
        // The address of such a subnet is named already.
        let is_it = |a: &Address| {
            a.link == *link && prefix.contains(&a.address) && net.contains(&a.address)
        };
        if self.addresses.iter().any(is_it) {
            return None;
        }
        if prefix.contains(&net) || around && elsewhere {
            let what =
                format!("there is a route to {net} by {link}, which the prefix {prefix} overlaps");
            let kind = if route.flags & REJECT != 0 { "unreachable " } else { "" };
            return Some(self.clash(&what, &format!("route del {kind}{net} dev {}", word(link))));
        }
        (around && uplink == Some(link) && !self.ndp_proxy).then(|| {
            let what = format!(
                "the prefix {prefix} is a part of the subnet {net} on {link}: unless a router there has a route to it by this host, nobody outside reaches containers, or answers them"
            );
            let path = word(&self.config_path);
            Finding::warning("prefix-on-link", what).root(format!(
                "sed -i -e '1i ndp_proxy = true' -e '/^[[:space:]]*ndp_proxy[[:space:]]*=/d' {path} && {RESTART}"
            ))
        })
    }

    /// Somebody else has a part of the prefix, which these words of `ip -6` take from him.
    fn clash(&self, what: &str, words: &str) -> Finding {
        let (meaning, restart) = match self.serving {
            true => ("its packets go astray", String::new()),
            false => ("v6podd does not start", format!(" && {RESTART}")),
        };
        let finding = Finding::broken("prefix-clash", format!("{what}: {meaning}"));
        finding.root(format!("ip -6 {words}{restart}"))
    }

    /// Tables of the kernel's that are about to be full, and a setting that breaks fragments.
    pub(crate) fn judge_limits(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (code, table, key, filling) in [
            ("conntrack-full", "connections", "net.netfilter.nf_conntrack_max", self.conntrack),
            (
                "neighbours-full",
                "IPv6 neighbours",
                "net.ipv6.neigh.default.gc_thresh3",
                self.neighbours,
            ),
        ] {
            if let Some(Filling { entries, most }) =
                filling.filter(|filling| filling.is_nearly_full())
            {
                let what = format!(
                    "the kernel's table of {table} is nearly full ({entries} of {most}): nothing new can be begun once it is"
                );
                let line = format!("sysctl -w {key}={}", most.saturating_mul(2).max(entries));
                found.push(Finding::warning(code, what).root(line));
            }
        }
        if self.bridge_calls == Some(1) {
            let what = "net.bridge.bridge-nf-call-ip6tables is 1: fragments that a container sends may not get out (docs/known-issues.md)";
            let line = "sysctl -w net.bridge.bridge-nf-call-ip6tables=0";
            found.push(Finding::warning("bridge-calls", what).root(line));
        }
        found
    }
}

#[cfg(test)]
mod tests;
