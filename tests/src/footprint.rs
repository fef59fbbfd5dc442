//! What containers leave in the world, as a set that can be compared before and after.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use v6pod_proto::Attachment;

use crate::{Daemon, PATIENCE, eventually, run};

/// Every trace that an attachment may have: links, IPv6 routes, permanent neighbours, bridge entries
/// and firewall elements of the host's namespace, records on disk, attachments and names of the API. One line of
/// text each, so that a difference can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

/// Where a daemon runs, and leaves traces.
pub trait Place {
    /// A command in the network that the daemon is in.
    fn command_at(&self, program: &Path) -> Command;
    /// The daemon's bridge.
    fn bridge(&self) -> String;
    /// The daemon's tables in the firewall.
    fn table(&self) -> String;
    /// Where it keeps its volatile state.
    fn run_dir(&self) -> PathBuf;
    /// What it lists.
    fn attachments(&self) -> Vec<Attachment>;
}

impl Place for Daemon {
    fn command_at(&self, program: &Path) -> Command {
        self.command(program)
    }

    fn bridge(&self) -> String {
        self.bridge()
    }

    fn table(&self) -> String {
        self.table()
    }

    fn run_dir(&self) -> PathBuf {
        self.run_dir()
    }

    #[track_caller]
    fn attachments(&self) -> Vec<Attachment> {
        self.attachments()
    }
}

impl Footprint {
    #[track_caller]
    pub(crate) fn of(daemon: &impl Place) -> Self {
        let mut lines = BTreeSet::new();
        for link in list(daemon, "ip", &["link", "show"]) {
            lines.insert(format!("link {} {}", text(&link, "ifname"), text(&link, "master")));
        }
        for route in list(daemon, "ip", &["-6", "route", "show", "table", "all"]) {
            let [dst, dev, kind] = ["dst", "dev", "type"].map(|key| text(&route, key));
            // The kernel makes these itself, some only once a first port is up.
            if kind != "multicast" && kind != "anycast" {
                lines.insert(format!("route {kind} {dst} {dev}"));
            }
        }
        for neighbour in list(daemon, "ip", &["-6", "neigh", "show", "nud", "permanent"]) {
            let [dst, dev] = ["dst", "dev"].map(|key| text(&neighbour, key));
            lines.insert(format!("neighbour {dst} {dev}"));
        }
        for entry in list(daemon, "bridge", &["fdb", "show", "br", &daemon.bridge()]) {
            let [mac, dev] = ["mac", "ifname"].map(|key| text(&entry, key));
            if dev != daemon.bridge() {
                lines.insert(format!("fdb {mac} {dev}"));
            }
        }
        lines.extend(elements(daemon));
        for record in files_in(&daemon.run_dir().join("attachments")) {
            lines.insert(format!("record {record}"));
        }
        for attachment in daemon.attachments() {
            lines.insert(format!("attachment {} {}", attachment.id, attachment.address));
            lines.extend(attachment.names.iter().map(|name| format!("name {}", name.name)));
        }
        Self(lines)
    }

    /// Waits until the daemon's footprint is this one, or panics with the difference.
    #[track_caller]
    pub fn comes_back(&self, daemon: &impl Place) {
        self.comes_back_within(PATIENCE, daemon);
    }

    /// The same where there is so much to take away that it may take this long.
    #[track_caller]
    pub fn comes_back_within(&self, patience: Duration, daemon: &impl Place) {
        let mut now = self.clone();
        let back = eventually_or_none(patience, || {
            now = Self::of(daemon);
            (now == *self).then_some(())
        });
        assert!(back.is_some(), "after the end, against before:\n{}", self.difference(&now));
    }

    /// Whether any line contains this text.
    pub fn mentions(&self, what: &str) -> bool {
        self.0.iter().any(|line| line.contains(what))
    }

    fn difference(&self, now: &Self) -> String {
        let more = now.0.difference(&self.0).map(|line| format!("  + {line}\n"));
        let less = self.0.difference(&now.0).map(|line| format!("  - {line}\n"));
        more.chain(less).collect()
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

fn eventually_or_none(patience: Duration, mut ask: impl FnMut() -> Option<()>) -> Option<()> {
    let deadline = Instant::now() + patience;
    eventually(patience * 2, "unreachable: the closure gives up before", || match ask() {
        Some(()) => Some(Some(())),
        None if Instant::now() >= deadline => Some(None),
        None => None,
    })
}

#[track_caller]
fn list(daemon: &impl Place, program: &str, words: &[&str]) -> Vec<Value> {
    let finished = run(daemon.command_at(Path::new(program)).arg("-json").args(words));
    match finished.ok() {
        "" => Vec::new(),
        json => serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {finished}")),
    }
}

/// The elements of the daemon's firewall tables; none if these are not there. What packets put into a set is
/// no trace of the daemon's: it goes with time.
fn elements(daemon: &impl Place) -> Vec<String> {
    let (mut lines, table) = (Vec::new(), daemon.table());
    for family in ["bridge", "inet"] {
        let mut nft = daemon.command_at(Path::new("nft"));
        let listed = run(nft.args(["--json", "list", "table", family, &table]));
        if !listed.status.success() {
            continue;
        }
        let listed: Value = serde_json::from_str(listed.ok()).unwrap_or_else(|e| panic!("{e}"));
        let sets = listed["nftables"].as_array().into_iter().flatten();
        let by_packets = |element: &&Value| {
            ["ct count", "expires"].iter().any(|key| element["elem"].get(key).is_some())
        };
        for set in sets.filter_map(|entry| entry.get("set")) {
            let elements = set["elem"].as_array().into_iter().flatten();
            let elements = elements.filter(|element| !by_packets(element));
            let name = text(set, "name");
            lines.extend(elements.map(|element| format!("element {family} {name} {element}")));
        }
    }
    lines
}

fn text(entry: &Value, key: &str) -> String {
    entry.get(key).and_then(Value::as_str).unwrap_or("-").to_owned()
}

fn files_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
