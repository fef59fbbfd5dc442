//! The tables of what passes.

use std::fmt::Write as _;

use super::{Load, Traffic, Way, at};

/// What v6pod's ports have to reach beside a bare bridge.
fn budget(load: Load) -> Option<f64> {
    match load {
        Load::Between => Some(0.90),
        Load::Out | Load::Back => Some(0.95),
        _ => None,
    }
}

/// And beside slirp4netns: so many times of what passes between two containers.
const BESIDE_SLIRP4NETNS: f64 = 5.0;

/// The section as Markdown.
pub(crate) fn markdown(traffic: &Traffic) -> String {
    let mut text = format!(
        "\n# What passes through it\n\nOne run of {} rounds, all ways by turns, on the same machine: \
         of streams ten turns of 0.1 s\na round, of all else one of 0.3 s. Medians:\n\n",
        traffic.rounds()
    );
    head(&mut text, "", Way::ALL, "");
    for load in Load::ALL {
        let figure = |way| traffic.median(way, load).map(|figure| figure_of(load, figure));
        row(&mut text, title(load), &Way::ALL.map(|way| figure(way).unwrap_or_default()), "");
    }
    text.push_str(
        "\nThe same beside the bare bridge: median (p10–p90) of the turns' quotients:\n\n",
    );
    let others = [Way::Bridge, Way::Routed, Way::Netavark, Way::Pasta, Way::Slirp4netns];
    head(&mut text, "", others, " budget |");
    for load in Load::ALL {
        let quotients = others.map(|way| spread(&traffic.ratios((way, load), (Way::Bare, load))));
        let least = budget(load).map(|least| format!(" ≥ {least:.2} |"));
        row(&mut text, title(load), &quotients, &least.unwrap_or_else(|| " |".to_owned()));
    }
    let slirp4netns = (Way::Slirp4netns, Load::Between);
    let times = others.map(|way| match way {
        Way::Slirp4netns => String::new(),
        _ => spread(&traffic.ratios((way, Load::Between), slirp4netns)),
    });
    let least = format!(" ≥ {BESIDE_SLIRP4NETNS:.0} |");
    row(&mut text, "container to container, beside slirp4netns", &times, &least);
    text.push('\n');
    for (way, why) in &traffic.absent {
        let _ = writeln!(text, "- not run: **{}**: {why}", name(*way));
    }
    for ((way, load), (count, why)) in &traffic.failed {
        let (way, load) = (name(*way), title(*load));
        let _ = writeln!(text, "- did not pass in {count} rounds: **{way}**, {load}: {why}");
    }
    text.push_str(MEANING);
    text
}

const MEANING: &str = "\
- **v6pod**: with its whole ruleset; `ingress` and `egress` are `deny`, the second container opens its port, both \
list what they reach
- **netavark**: a rootful bridge with IPv6, on which containers reach each other without passing the host's rules
- **pasta**, **slirp4netns**: IPv4, as podman calls them, `port_handler=slirp4netns`; from container to container \
by a port of the host that is forwarded to the second
- **who sends and who receives** each stay on a processor, the first and the last, whatever the way
- **container to host, host back to container**: one TCP connection, opened by the container
- **small packets**: UDP with 64 bytes, sent by one thread; those count that arrive
- **new flows**: TCP connections, opened, accepted and reset by one thread, one after the other
";

fn head<const N: usize>(text: &mut String, first: &str, ways: [Way; N], last: &str) {
    row(text, first, &ways.map(|way| name(way).to_owned()), last);
    let columns = N + usize::from(!last.is_empty());
    let _ = writeln!(text, "|---|{}", "---:|".repeat(columns));
}

fn row<const N: usize>(text: &mut String, first: &str, cells: &[String; N], last: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "| {first} | {} |{last}", cells.join(" | "));
}

/// Of quotients in order.
fn spread(ratios: &[f64]) -> String {
    let (Some(low), Some(median), Some(high)) = (at(10, ratios), at(50, ratios), at(90, ratios))
    else {
        return "not run".to_owned();
    };
    let digits = if median < 10.0 { 2 } else { 1 };
    format!("{median:.digits$} ({low:.digits$}–{high:.digits$})")
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
        for (round, routed) in [18e9, 19e9].into_iter().enumerate() {
            let mut add = |way, figure| traffic.add(way, Load::Between, round, Ok(figure));
            add(Way::Bare, 20e9);
            add(Way::Routed, routed);
            add(Way::Slirp4netns, 1e9);
        }
        traffic.add(Way::Slirp4netns, Load::Back, 0, Err("stalled".into()));
        traffic.absent.insert(Way::Pasta, "not installed".to_owned());
        let text = markdown(&traffic);
        let has = |line: &str| assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        has("| container to container | 20.0 Gbit/s |  | 18.0 Gbit/s |  |  | 1.0 Gbit/s |");
        has("| container to container | not run | 0.90 (0.90–0.95) | not run | not run \
             | 0.05 (0.05–0.05) | ≥ 0.90 |");
        has("| container to container, beside slirp4netns | not run | 18.0 (18.0–19.0) | not run \
             | not run |  | ≥ 5 |");
        has("- not run: **pasta**: not installed");
        has("- did not pass in 1 rounds: **slirp4netns**, host back to container: stalled");
    }
}
