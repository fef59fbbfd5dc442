//! What must be true of a daemon at rest, whatever happened before: a checker that knows nothing of the
//! daemon but its files, its API and what `ip`, `bridge` and `nft` print.
//!
//! Each record is exactly one attachment of the API, one port (up, and isolated on the bridge, or routed and
//! on none), one neighbour, one route, one answer on the uplink where it is to give any, one element of each of
//! the firewall's sets for its kind, and on the bridge one forwarding entry; what is open in the kernel is what
//! the API says; and there is nothing else. The bridge has the gateway's address, the resolver's and no other, what no
//! container has is unreachable, and no name is borne twice. Each file of a pod's member is one member of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use v6pod_proto::Attachment;

use crate::{
    Daemon, OwnedNs, PATIENCE, elements_of, open_in_kernel, reach_in_kernel, reach_of, run,
};

/// `RTPROT` of what the daemon makes, as `ip` prints it.
const PROTOCOL: &str = "118";

/// The invariants of one daemon.
#[derive(Debug)]
pub struct Invariants<'a> {
    daemon: &'a Daemon,
    broken: Vec<String>,
}

/// A record as the text that something is to have.
type Text = fn(&Record) -> String;

/// A record, as far as the kernel must bear it out.
#[derive(Clone)]
struct Record {
    id: String,
    port: String,
    mac: String,
    address: String,
    owner: String,
    routed: bool,
    /// The first addresses of its subnets, and how long these are.
    subnets: Vec<(String, u64)>,
}

impl Record {
    /// Once for its address and once for each of its subnets, by the first address of that.
    fn each(&self) -> impl Iterator<Item = Self> + '_ {
        let firsts = self.subnets.iter().map(|(first, _)| first);
        let all = [&self.address].into_iter().chain(firsts);
        all.map(|address| Self { address: address.clone(), ..self.clone() })
    }

    /// What its route and neighbour entry are by.
    fn link(&self, bridge: &str) -> String {
        if self.routed { self.port.clone() } else { bridge.to_owned() }
    }
}

impl<'a> Invariants<'a> {
    /// Waits until all of them hold and each of these containers has its address, or panics with
    /// what does not.
    #[track_caller]
    pub fn hold(daemon: &'a Daemon, living: &[(&OwnedNs, Ipv6Addr)]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut this = Self { daemon, broken: Vec::new() };
            this.check(living);
            if this.broken.is_empty() {
                return;
            }
            let broken = this.broken.join("\n  ");
            assert!(Instant::now() < deadline, "broken:\n  {broken}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn check(&mut self, living: &[(&OwnedNs, Ipv6Addr)]) {
        let records = self.records();
        let attachments = self.daemon.attachments();
        self.same("records and API", &ids(&records), &attachments.iter().map(api_id).collect());
        let keys: [fn(&Record) -> &String; 3] = [|r| &r.port, |r| &r.mac, |r| &r.address];
        for key in keys {
            let all: BTreeSet<_> = records.iter().map(key).collect();
            self.must(all.len() == records.len(), || "two records share something".to_owned());
        }
        self.check_links(&records);
        self.check_entries(&records);
        self.check_host();
        self.check_firewall(&records);
        self.check_openings(&attachments);
        self.check_members(&attachments);
        self.check_names(&attachments);
        for (namespace, address) in living {
            self.must(attachments.iter().any(|a| a.address == *address), || {
                format!("{address} is not listed any more")
            });
            let inside = namespace.addresses();
            self.must(inside == [*address], || format!("{address} has {inside:?} inside"));
        }
    }

    fn records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        let folder = self.daemon.run_dir().join("attachments");
        for entry in fs::read_dir(folder).expect("reading the records").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // It may be removed while we look.
            let Ok(bytes) = fs::read(entry.path()) else { continue };
            let parsed: Option<Value> = serde_json::from_slice(&bytes).ok();
            let record = parsed.filter(|_| name.ends_with(".json")).map(|value| Record {
                id: text(&value, "id"),
                port: text(&value["port"], "name"),
                mac: text(&value["port"], "mac"),
                address: text(&value["port"], "address"),
                owner: value["owner"].to_string(),
                routed: value["port"]["mode"] == "routed",
                subnets: subnets(&value["port"]["also"]),
            });
            match record {
                Some(record) => records.push(record),
                None => self.broken.push(format!("{name} is no record of what lives")),
            }
        }
        records
    }

    fn check_links(&mut self, records: &[Record]) {
        let bridge = self.daemon.bridge();
        let links = self.list("ip", &["-details", "link", "show"]);
        let Some(own) = links.iter().find(|link| text(link, "ifname") == bridge) else {
            return self.broken.push("there is no bridge".to_owned());
        };
        let mac = text(own, "address");
        let ports = text(own, "group").parse::<u32>().map_or(0, |group| group - 1);
        let (ports, doomed) = (ports.to_string(), (ports ^ 0x0100_0000).to_string());
        let ours: BTreeSet<_> = links
            .iter()
            .filter(|link| text(link, "group") == ports || text(link, "ifname").starts_with("v6p"))
            .map(|link| text(link, "ifname"))
            .collect();
        self.same("records and ports", &records.iter().map(|r| r.port.clone()).collect(), &ours);
        for link in &links {
            let name = text(link, "ifname");
            self.must(text(link, "group") != doomed, || {
                format!("{name} is doomed and still there")
            });
            if !ours.contains(&name) {
                continue;
            }
            let up = link["flags"].as_array().is_some_and(|flags| flags.contains(&"UP".into()));
            let isolated = link["linkinfo"]["info_slave_data"]["isolated"] == Value::Bool(true);
            let routed = records.iter().any(|record| record.port == name && record.routed);
            let whole = up
                && match routed {
                    true => text(link, "master") == "-" && text(link, "address") == mac,
                    false => isolated && text(link, "master") == bridge,
                };
            let grouped = text(link, "group") == ports;
            self.must(whole && grouped, || format!("{name} is not a whole port: {link}"));
        }
    }

    fn check_entries(&mut self, records: &[Record]) {
        let bridge = self.daemon.bridge();
        let fdb = self.list("bridge", &["fdb", "show", "br", &bridge]);
        let is_static = |entry: &&Value| text(entry, "state") == "static";
        let entries = fdb.iter().filter(is_static).map(|e| join(e, "ifname", "mac"));
        let bridged = records.iter().filter(|r| !r.routed);
        let expected = bridged.map(|r| format!("{} {}", r.port, r.mac)).collect();
        self.same_list("forwarding", expected, entries);
        let neighbours = self.list("ip", &["-6", "neigh", "show", "nud", "permanent"]);
        let entries = neighbours.iter().map(|e| join(e, "dst", "lladdr") + " " + &text(e, "dev"));
        let of = |r: &Record| format!("{} {} {}", r.address, r.mac, r.link(&bridge));
        let each: Vec<_> = records.iter().flat_map(Record::each).collect();
        self.same_list("neighbours", each.iter().map(of).collect(), entries);
        let routes = ["-6", "route", "show", "table", "all", "proto", PROTOCOL];
        let routes = self.list("ip", &routes);
        let routes = routes.iter().filter(|e| text(e, "type") != "unreachable");
        let entries = routes.map(|e| join(e, "dst", "dev"));
        let of = |r: &Record| format!("{} {}", r.address, r.link(&bridge));
        let whole = |r: &Record| -> Vec<_> {
            let nets = r.subnets.iter();
            nets.map(|(first, length)| format!("{first}/{length} {}", r.link(&bridge))).collect()
        };
        let expected = each.iter().map(of).chain(records.iter().flat_map(whole)).collect();
        self.same_list("routes", expected, entries);
        for record in records.iter().filter(|record| record.routed) {
            let shown = self.list("ip", &["-6", "addr", "show", "dev", &record.port]);
            self.must(shown.is_empty(), || format!("{} has addresses: {shown:?}", record.port));
        }
        self.check_proxies(records);
    }

    /// The uplink answers for all and for the bridge, or for nobody.
    fn check_proxies(&mut self, records: &[Record]) {
        let status = self.daemon.status();
        let answers = status.off.iter().all(|off| off.feature != "ndp-proxy");
        let gateway = format!("{}1", status.prefix.prefix.trim_end_matches("/80"));
        let all = records.iter().map(|r| &r.address).chain([&gateway]).filter(|_| answers);
        let uplink = status.uplink.map(|uplink| uplink.to_string()).unwrap_or_default();
        let expected = all.map(|address| format!("{address} {uplink}")).collect();
        let proxies = self.list("ip", &["-6", "neigh", "show", "proxy"]);
        let ours = proxies.iter().filter(|entry| text(entry, "protocol") == PROTOCOL);
        self.same_list("answers", expected, ours.map(|e| join(e, "dst", "dev")));
    }

    fn check_host(&mut self) {
        let words = ["-6", "route", "show", "table", "all", "type", "unreachable"];
        let routes = self.list("ip", &words);
        let ours = routes.iter().filter(|route| text(route, "protocol") == PROTOCOL);
        let nets: Vec<_> = ours.map(|route| text(route, "dst")).collect();
        let status = self.daemon.status();
        let prefix = status.prefix.prefix;
        self.must(nets == [prefix.as_str()], || format!("unreachable: {nets:?}"));
        let bridge = self.daemon.bridge();
        let links = self.list("ip", &["-6", "addr", "show", "dev", &bridge]);
        let mut addresses: Vec<_> = links
            .iter()
            .filter_map(|link| link["addr_info"].as_array())
            .flatten()
            .map(|info| format!("{}/{}", text(info, "local"), info["prefixlen"]))
            .collect();
        let resolver = status.resolver.map(|r| format!("{}/128", r.address));
        let gateway = format!("{}1/128", prefix.trim_end_matches("/80"));
        let mut own: Vec<_> = [gateway].into_iter().chain(resolver).collect();
        own.sort_unstable();
        addresses.sort_unstable();
        self.must(addresses == own, || format!("addresses of the bridge: {addresses:?}"));
    }

    /// The sets have each container's elements, and no others.
    fn check_firewall(&mut self, records: &[Record]) {
        let mut command = self.daemon.command(Path::new("nft"));
        let finished = run(command.args(["-j", "-n", "list", "ruleset"]));
        let ruleset: Value = serde_json::from_str(&finished.stdout).unwrap_or_default();
        let objects = ruleset["nftables"].as_array().cloned().unwrap_or_default();
        let sets: Vec<_> = objects.iter().filter_map(|object| object.get("set")).collect();
        self.check_subnets(&sets, records);
        let each: Vec<_> = records.iter().flat_map(Record::each).collect();
        let [bridged, routed] =
            [false, true].map(|mode| each.iter().filter(|r| r.routed == mode).collect());
        let all: Vec<&Record> = each.iter().collect();
        let expected: [(&str, &Vec<&Record>, Text); 4] = [
            ("bridge sender", &bridged, |r| format!("{} {} {}", r.port, r.mac, r.address)),
            ("inet known", &bridged, |r| format!("{} {}", r.mac, r.address)),
            ("inet routed", &routed, |r| format!("{} {}", r.port, r.address)),
            ("inet owner", &all, |r| format!("{} {}", r.address, r.owner)),
        ];
        let arp = objects.iter().filter_map(|object| object.get("rule"));
        let arp = arp.filter(|rule| text(rule, "family") == "arp").count();
        self.must(arp == 1, || format!("{arp} rules about ARP"));
        for (which, records, of) in expected {
            let is_it = |set: &&&Value| join(set, "family", "name") == which;
            let [set] = sets.iter().filter(is_it).collect::<Vec<_>>()[..] else {
                self.broken.push(format!("the firewall has no set {which}, or two"));
                continue;
            };
            let elements = set["elem"].as_array().cloned().unwrap_or_default();
            let words = elements.iter().map(|element| {
                let parts = element["concat"].as_array().cloned().unwrap_or_default();
                let words = parts.iter().map(|p| p.as_str().map_or(p.to_string(), str::to_owned));
                words.collect::<Vec<_>>().join(" ")
            });
            self.same_list(which, records.iter().map(|r| of(r)).collect(), words);
        }
    }

    /// Each subnet stands in the set for its length, and nothing else does.
    fn check_subnets(&mut self, sets: &[&Value], records: &[Record]) {
        for (family, length) in
            [96, 104, 112, 120].into_iter().flat_map(|l| [("bridge", l), ("inet", l)])
        {
            let which = format!("{family} subnet{length}");
            let set = sets.iter().find(|set| join(set, "family", "name") == which);
            let elements = set.and_then(|set| set["elem"].as_array().cloned()).unwrap_or_default();
            let found = elements.iter().filter_map(|e| e.as_str().map(str::to_owned));
            let there = records.iter().filter(|r| family == "inet" || !r.routed);
            let firsts = there.flat_map(|r| &r.subnets).filter(|(_, its)| *its == length);
            let expected = firsts.map(|(first, _)| first.clone()).collect();
            self.same_list(&which, expected, found);
        }
    }

    fn check_openings(&mut self, attachments: &[Attachment]) {
        let firsts = |a: &Attachment| -> Vec<Ipv6Addr> {
            let nets = a.subnets.iter().filter_map(|net| net.split_once('/')?.0.parse().ok());
            [a.address].into_iter().chain(nets).collect()
        };
        let of = |a: &Attachment| {
            let openings: Vec<_> = a.openings.iter().map(|open| open.opening).collect();
            firsts(a).into_iter().flat_map(|at| elements_of(at, &openings)).collect::<Vec<_>>()
        };
        let expected = attachments.iter().flat_map(of).collect();
        self.same("what is open", &expected, &open_in_kernel(self.daemon));
        let reach = |a: &Attachment| {
            firsts(a).into_iter().flat_map(|at| reach_of(at, &a.egress.rule)).collect::<Vec<_>>()
        };
        let reach = attachments.iter().flat_map(reach).collect();
        self.same("what is in reach", &reach, &reach_in_kernel(self.daemon));
    }

    /// Each file of a pod's member is one member of the API.
    fn check_members(&mut self, attachments: &[Attachment]) {
        let all = attachments.iter().flat_map(|a| a.members.iter().map(move |m| (a, m)));
        let all = all.map(|(a, member)| format!("{} {}", a.id, member.container)).collect();
        let files = fs::read_dir(self.daemon.run_dir().join("members")).into_iter().flatten();
        let values = files
            .flatten()
            .filter_map(|file| serde_json::from_slice::<Value>(&fs::read(file.path()).ok()?).ok());
        let values = values.map(|value| {
            format!("{} {}", text(&value, "attachment"), text(&value["member"], "container"))
        });
        self.same("members", &values.collect(), &all);
    }

    fn check_names(&mut self, attachments: &[Attachment]) {
        let mut bearers: BTreeMap<&str, usize> = BTreeMap::new();
        for name in attachments.iter().flat_map(|a| &a.names).filter(|n| !n.name.is_empty()) {
            *bearers.entry(&name.name).or_default() += 1;
        }
        for (name, count) in bearers {
            self.must(count == 1, || format!("{count} bear the name {name}"));
        }
    }

    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(what());
        }
    }

    fn same(&mut self, what: &str, expected: &BTreeSet<String>, found: &BTreeSet<String>) {
        self.must(expected == found, || format!("{what}: {expected:?} against {found:?}"));
    }

    fn same_list(
        &mut self,
        what: &str,
        mut expected: Vec<String>,
        found: impl Iterator<Item = String>,
    ) {
        let mut found: Vec<_> = found.collect();
        expected.sort();
        found.sort();
        self.must(expected == found, || format!("{what}: {expected:?} against {found:?}"));
    }

    fn list(&self, program: &str, words: &[&str]) -> Vec<Value> {
        let finished = run(self.daemon.command(Path::new(program)).arg("-json").args(words));
        let lists: Vec<Value> = serde_json::from_str(finished.stdout.trim()).unwrap_or_default();
        // `ip -json` prints an empty object for what does not fit a filter.
        lists.into_iter().filter(|value| value.as_object().is_some_and(|o| !o.is_empty())).collect()
    }
}

/// The subnets among what a record's port has besides its address.
fn subnets(also: &Value) -> Vec<(String, u64)> {
    let all = also.as_array().into_iter().flatten();
    all.filter_map(|also| Some((text(also, "address"), also["subnet"].as_u64()?))).collect()
}

fn ids(records: &[Record]) -> BTreeSet<String> {
    records.iter().map(|record| record.id.clone()).collect()
}

fn api_id(attachment: &Attachment) -> String {
    attachment.id.to_string()
}

fn join(value: &Value, a: &str, b: &str) -> String {
    format!("{} {}", text(value, a), text(value, b))
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or("-").to_owned()
}
