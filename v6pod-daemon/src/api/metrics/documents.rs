//! What `/metrics` calls things, held against the conventions of Prometheus and OpenMetrics, and against the
//! documents that name them: docs/metrics.md has all of them, and the dashboard and the alerts ask for none
//! that there is not.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;

const METRICS_MD: &str = include_str!("../../../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../../../docs/grafana-dashboard.json");
const ALERTS: &str = include_str!("../../../../docs/alerts.yml");

/// Everything that there can be, as text.
fn all() -> String {
    let status = r#"{"version":"0","instance":"v6pod","uptime":1,"mode":"bridge","gateway":"2001:db8::1",
        "prefix":{"prefix":"2001:db8::/80","source":"static","ula":false},"bridge":"v6pod0","mtu":1500,
        "uplink":null,"counts":{"attachments":3,"leases":2,"resting":1,"made":3,"released":0,"routed":1},
        "registry":{"kind":"embedded","healthy":true,"pending":0},"last_repair":null,"off":[]}"#;
    let status: Status = serde_json::from_str(status).unwrap();
    let more = Gauged { open_elements: 1, at_flow_limit: [0, 1] };
    let metrics = Metrics::all_counted();
    encoded(&registry(&metrics, &status, &more, vec![tests::measured()]))
}

/// The families, by name, with their types.
fn families(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pairs = types.map(|line| line.split_once(' ').unwrap());
    pairs.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// The series, by name, with their labels' names.
fn series(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let labels = all.entry(name.to_owned()).or_default();
        // A label's name stands before each `="`.
        let names = rest.split("=\"").map(|before| before.rsplit([',', '{', '"']).next().unwrap());
        labels.extend(names.filter(|name| !name.contains([' ', '}'])).map(ToOwned::to_owned));
    }
    all
}

/// All words of a text that name a metric of ours.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
    words.filter(|word| word.starts_with("v6pod_")).map(ToOwned::to_owned).collect()
}

fn is_snake(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.contains("__")
}

#[test]
fn names_are_as_prometheus_has_them() {
    let text = all();
    let families = families(&text);
    assert!(families.len() >= 25, "{families:?}");
    for (name, kind) in &families {
        assert!(name.starts_with("v6pod_") && is_snake(name), "{name}");
        let help = format!("# HELP {name} ");
        let help = text.lines().find_map(|line| line.strip_prefix(&help)).unwrap_or_default();
        assert!(help.starts_with(|c: char| c.is_uppercase()), "{name}: {help:?}");
        // Base units alone, and none in the name that is not declared.
        for unit in ["milliseconds", "microseconds", "minutes", "kilobytes", "kib", "percent"] {
            assert!(!name.ends_with(unit), "{name}");
        }
        for unit in ["seconds", "bytes", "packets"] {
            let declared = text.contains(&format!("# UNIT {name} {unit}\n"));
            assert_eq!(declared, name.ends_with(&format!("_{unit}")), "{name}: {unit}");
        }
        // What only grows says so in its series, and nothing else does.
        let total = series(&text).contains_key(&format!("{name}_total"));
        assert_eq!(total, kind == "counter", "{name} is a {kind}");
        assert!(
            ["counter", "gauge", "histogram", "info"].contains(&kind.as_str()),
            "{name}: {kind}"
        );
    }
    for (name, labels) in series(&text) {
        assert!(labels.iter().all(|label| is_snake(label)), "{name}: {labels:?}");
        // A label that repeats a word of the name, or that Prometheus gives itself.
        for label in ["instance", "job", "type", "metric"] {
            assert!(!labels.contains(label), "{name}: {label}");
        }
    }
}

#[test]
fn docs_name_all_that_there_are_and_no_other() {
    let told = series(&all());
    let known: BTreeSet<String> = told.keys().cloned().collect();
    let named = named(METRICS_MD);
    // A histogram goes by its family's name.
    let is_told = |name: &str| {
        let parts = ["", "_bucket", "_sum", "_count"];
        parts.iter().any(|part| name.strip_suffix(part).is_some_and(|n| named.contains(n)))
    };
    let missing: Vec<_> = known.iter().filter(|name| !is_told(name)).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
    let families = families(&all());
    let stale: Vec<_> = named
        .iter()
        .filter(|name| !known.contains(*name) && !families.contains_key(*name))
        // The beginning of several, in a regular expression.
        .filter(|name| !name.ends_with('_'))
        .collect();
    assert!(stale.is_empty(), "docs/metrics.md has {stale:?}");
}

/// What an expression asks for is there: the series, and every label that it picks by, or sums by.
fn is_answered(expression: &str) {
    let told = series(&all());
    let names = named(expression);
    assert!(!names.is_empty(), "asks for nothing of v6podd's: {expression}");
    let mut labels: BTreeSet<&str> = BTreeSet::from(["instance", "job"]);
    for name in &names {
        let series = told.get(name).unwrap_or_else(|| panic!("no {name}: {expression}"));
        labels.extend(series.iter().map(String::as_str));
    }
    let alike =
        ["=~\"", "!=\"", "!~\""].iter().fold(expression.to_owned(), |e, o| e.replace(o, "=\""));
    let mut before: Vec<_> = alike.split("=\"").collect();
    // Behind the last one there is no label.
    before.pop();
    let picked = before.into_iter().map(|before| before.rsplit(['{', ',', ' ']).next().unwrap());
    let grouped = ["by (", "on (", "group_left (", "without ("].into_iter().flat_map(|word| {
        let lists = expression.split(word).skip(1).map(|rest| rest.split(')').next().unwrap());
        lists.flat_map(|list| list.split(',').map(str::trim)).collect::<Vec<_>>()
    });
    for label in picked.chain(grouped) {
        assert!(labels.contains(label), "no label {label:?}: {expression}");
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && panel["description"].is_string(), "{title}");
        for target in targets {
            is_answered(target["expr"].as_str().unwrap());
        }
    }
    assert!(panels.len() >= 8, "{}", panels.len());
}

#[test]
fn the_alerts_ask_for_what_there_is_and_say_what_to_do() {
    let rules: Vec<_> = ALERTS.split("- alert: ").skip(1).collect();
    assert!(rules.len() >= 5, "{}", rules.len());
    for rule in rules {
        let line = |key: &str| rule.lines().find_map(|line| line.trim().strip_prefix(key));
        is_answered(line("expr: ").unwrap_or_else(|| panic!("{rule}")));
        for key in ["for: ", "severity: ", "summary: ", "description: "] {
            assert!(line(key).is_some_and(|words| !words.is_empty()), "{key}: {rule}");
        }
    }
}
