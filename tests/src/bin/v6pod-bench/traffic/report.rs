//! The table of what passes.

use std::fmt::Write as _;

use super::{Load, Traffic, Way};

/// What the budgets ask of v6pod's ports: beside a bare bridge, and beside slirp4netns.
const BUDGETS: [(Load, Way, f64); 5] = [
    (Load::Between, Way::Bare, 0.90),
    (Load::Out, Way::Bare, 0.95),
    (Load::Back, Way::Bare, 0.95),
    (Load::Out, Way::Slirp4netns, 5.0),
    (Load::Back, Way::Slirp4netns, 5.0),
];

/// The section as Markdown.
pub(crate) fn markdown(traffic: &Traffic) -> String {
    let rounds = Way::ALL.into_iter().map(|way| traffic.of(way, Load::Out).len()).max();
    let mut text = format!(
        "\n# What passes through it\n\nOne run of {} rounds, all ways by turns, 0.3 s each, on the \
         same machine. Medians; in brackets the median of the\nrounds' quotients with the bare \
         bridge's. With v6pod's whole ruleset in force, `firewall.ingress = \"allow\"`.\n\n|",
        rounds.unwrap_or(0)
    );
    // Writing to a string cannot fail.
    for load in [""].into_iter().chain(Load::ALL.map(title)) {
        let _ = write!(text, " {load} |");
    }
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(Load::ALL.len()));
    for way in Way::ALL {
        let _ = writeln!(text, "{}", table_row(traffic, way));
    }
    text.push_str("\n| budget | least | v6pod, bridge | v6pod, routed |\n|---|---:|---:|---:|\n");
    for (load, beside, least) in BUDGETS {
        let ratio = |way| quotient(traffic.ratio(way, beside, load));
        let (bridge, routed) = (ratio(Way::Bridge), ratio(Way::Routed));
        let (load, beside) = (title(load), name(beside));
        let _ = writeln!(text, "| {load}, beside {beside} | {least:.2} | {bridge} | {routed} |");
    }
    text.push_str(
        "\nStreams are one TCP connection each, opened by the container. Small packets are UDP with 64 \
         bytes, sent by one thread; those count\nthat arrive. New flows are TCP connections opened and \
         reset one after the other. All is IPv6, but for pasta and slirp4netns\n(IPv4; `--config-net`, \
         and as podman calls it); these have no way from container to container of their own.\n",
    );
    text
}

fn table_row(traffic: &Traffic, way: Way) -> String {
    let mut row = format!("| {} |", name(way));
    if let Some(why) = traffic.absent.get(&way) {
        let _ = write!(row, " not run: {why} |{}", " |".repeat(Load::ALL.len() - 1));
        return row;
    }
    for load in Load::ALL {
        let figure = traffic.median(way, load).map(|figure| figure_of(load, figure));
        let beside = traffic.ratio(way, Way::Bare, load).filter(|_| way != Way::Bare);
        let beside = beside.map(|ratio| format!(" ({ratio:.2})")).unwrap_or_default();
        let _ = write!(row, " {}{beside} |", figure.unwrap_or_default());
    }
    row
}

fn quotient(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "not run".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn figure_of(load: Load, figure: f64) -> String {
    match load {
        Load::Between | Load::Out | Load::Back => format!("{:.1} Gbit/s", figure / 1e9),
        Load::Packets | Load::PacketsOut => format!("{:.0} k/s", figure / 1e3),
        Load::Flows | Load::FlowsOut => format!("{:.1} k/s", figure / 1e3),
    }
}

fn title(load: Load) -> &'static str {
    match load {
        Load::Between => "container to container",
        Load::Out => "container to host",
        Load::Back => "host back to container",
        Load::Packets => "small packets, to container",
        Load::PacketsOut => "small packets, to host",
        Load::Flows => "new flows, to container",
        Load::FlowsOut => "new flows, to host",
    }
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Bare => "bare veth + bridge",
        Way::Bridge => "v6pod, bridge",
        Way::Routed => "v6pod, routed",
        Way::Netavark => "netavark bridge, rootful",
        Way::Pasta => "pasta",
        Way::Slirp4netns => "slirp4netns",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_stands_beside_what_was_measured() {
        let mut traffic = Traffic::default();
        traffic.measured.insert((Way::Bare, Load::Between), vec![20e9]);
        traffic.measured.insert((Way::Routed, Load::Between), vec![19e9]);
        traffic.absent.insert(Way::Pasta, "not installed".to_owned());
        let text = markdown(&traffic);
        let has = |line: &str| assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        has("| container to container, beside bare veth + bridge | 0.90 | not run | 0.95 |");
        assert!(text.contains("| v6pod, routed | 19.0 Gbit/s (0.95) |"), "{text}");
        assert!(text.contains("| pasta | not run: not installed |"), "{text}");
    }
}
