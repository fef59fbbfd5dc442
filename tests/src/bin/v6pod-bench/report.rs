//! The report: a table of figures, what they are figures of, and on what machine.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::program::run;
use crate::samples::{Book, Series};

/// How this program is run.
const COMMAND: &str = "cargo run --locked --release -p v6pod-tests --bin v6pod-bench";

/// How a series is presented.
struct Row {
    title: &'static str,
    /// Whose median is divided by whose, and how that is said.
    ratio: Option<(Series, Series, &'static str)>,
    budget: &'static str,
}

/// The report as Markdown.
pub(crate) fn markdown(book: &Book) -> String {
    let mut text = String::from("# What an attachment costs\n\n");
    let words: Vec<_> = env::args().skip(1).collect();
    let command = format!("{COMMAND} -- {}", words.join(" "));
    let command = command.trim_end_matches([' ', '-']);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "Printed on {}, after `make build`, by\n`{command}` on:\n", date());
    for line in machine() {
        let _ = writeln!(text, "- {line}");
    }
    text.push_str(
        "\nOne run, all contenders by turns, each time with a new network namespace. Figures are \
         of this machine; the\nratios are what to look at. A ratio is one of medians.\n\n\
         | what | median | p10–p90 | ratio | budget | n |\n|---|---:|---:|---:|---:|---:|\n",
    );
    for series in Series::ALL {
        let _ = writeln!(text, "{}", table_row(book, series));
    }
    text.push_str("\nWhat is measured:\n\n");
    for series in Series::ALL {
        let _ = writeln!(text, "- **{}**: {}", row(series).title, meaning(series));
    }
    text
}

fn table_row(book: &Book, series: Series) -> String {
    let Row { title, ratio, budget, .. } = row(series);
    let samples = book.of(series);
    let of = |percent| samples.and_then(|samples| samples.percentile(percent));
    let (Some(low), Some(median), Some(high)) = (of(10), of(50), of(90)) else {
        let reason = samples.and_then(|samples| samples.not_run.as_deref());
        return format!("| {title} | not run: {} | | | {budget} | 0 |", reason.unwrap_or("?"));
    };
    let ratio = ratio.and_then(|(one, other, unit)| {
        book.ratio(one, other).map(|ratio| format!("{ratio:.2} {unit}"))
    });
    let count = samples.map_or(0, |samples| samples.count());
    let stopped = samples.and_then(|samples| samples.not_run.as_deref());
    let stopped = stopped.map(|why| format!(" (stopped in {why})")).unwrap_or_default();
    format!(
        "| {title} | {} | {}–{} | {} | {budget} | {count}{stopped} |",
        milliseconds(median),
        milliseconds(low).trim_end_matches(" ms"),
        milliseconds(high),
        ratio.unwrap_or_default(),
    )
}

fn row(series: Series) -> Row {
    let (title, ratio, budget) = match series {
        Series::Floor => ("raw netlink floor", None, ""),
        Series::Wire => {
            ("activate: steps in the kernel", Some((series, Series::Floor, "× floor")), "")
        }
        Series::Total => ("activate: daemon", Some((series, Series::Floor, "× floor")), "≤ 1.5"),
        Series::RoundTrip => ("activate: round trip", Some((series, Series::Floor, "× floor")), ""),
        Series::Shim => ("shim call, fork to answer", None, ""),
        Series::IpBatch => ("`ip -batch`", Some((Series::Shim, series, "shim to this")), ""),
        Series::Cni => {
            ("CNI bridge + host-local, ADD", Some((Series::Shim, series, "shim to this")), "≤ 0.25")
        }
        Series::Netavark => {
            ("netavark setup", Some((Series::Shim, series, "shim to this")), "≤ 0.10")
        }
        Series::PodmanPlain => ("`podman run --rm`, plain", None, ""),
        Series::PodmanV6pod => {
            ("`podman run --rm`, v6pod", Some((series, Series::PodmanPlain, "× plain")), "≤ 1.05")
        }
    };
    Row { title, ratio, budget }
}

/// What exactly is timed.
fn meaning(series: Series) -> &'static str {
    match series {
        Series::Floor => {
            "the messages and sysctls of one attachment, one after the other, from a \
             thread that does nothing else"
        }
        Series::Wire => {
            "the same in v6podd, by its own clock (`v6pod_activation_seconds{part=\"wire\"}`); its \
             check has been in the namespace before, which the floor has not"
        }
        Series::Total => {
            "from the request to the answer in v6podd, by its own clock (`part=\"total\"`): \
             checks and record included"
        }
        Series::RoundTrip => "from connect(2) to the whole answer, for a client on the unix socket",
        Series::Shim => {
            "v6pod-shim run as podman runs slirp4netns, from before the fork until it \
             executes the real one"
        }
        Series::IpBatch => {
            "one for the host's end and one for the inside, fork to end, added up; less \
             work: no forwarding entry, no sysctls"
        }
        Series::Cni => "fork to end, on a bridge that stands, without masquerading",
        Series::Netavark => {
            "fork to end, on a bridge that stands, address given; without its firewall \
             where this version can do without"
        }
        Series::PodmanPlain => "busybox `true`, as a rootless user, runc, slirp4netns",
        Series::PodmanV6pod => "the same with v6pod-shim as `network_cmd_path`",
    }
}

/// Three digits that mean something.
fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..10.0 => format!("{ms:.3} ms"),
        ..100.0 => format!("{ms:.1} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

fn machine() -> Vec<String> {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut lines = vec![
        format!("{} cores of {}", cores, model.unwrap_or("an unnamed processor")),
        format!("Linux {}, {}", kernel.trim(), system.unwrap_or("?").trim_matches('"')),
        format!("v6pod {}", env!("CARGO_PKG_VERSION")),
    ];
    for program in ["podman", "slirp4netns", "runc"] {
        lines.extend(first_line(program, &["--version"]));
    }
    lines.extend(first_line("ip", &["-V"]));
    for package in ["netavark", "containernetworking-plugins"] {
        let format = "-f=${Package} ${Version} (Debian)";
        lines.extend(first_line("dpkg-query", &["-W", format, package]));
    }
    lines
}

fn first_line(program: &str, words: &[&str]) -> Option<String> {
    let finished = run(Command::new(program).args(words)).and_then(|done| done.ok()).ok()?;
    finished.stdout.lines().next().map(str::to_owned)
}

fn date() -> String {
    first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_else(|| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_run_says_why_in_its_row() {
        let mut book = Book::default();
        book.not_run(&[Series::Netavark], "netavark is not installed");
        let text = markdown(&book);
        let row = text.lines().find(|line| line.starts_with("| netavark")).unwrap();
        assert!(row.contains("not run: netavark is not installed") && row.contains("≤ 0.10"));
    }

    #[test]
    fn a_ratio_stands_beside_its_budget() {
        let mut book = Book::default();
        let ms = Duration::from_millis;
        book.add(&[(Series::Floor, ms(2)), (Series::Total, ms(3))]);
        let row = table_row(&book, Series::Total);
        assert_eq!(
            row,
            "| activate: daemon | 3.000 ms | 3.000–3.000 ms | 1.50 × floor | ≤ 1.5 | 1 |"
        );
        assert_eq!(milliseconds(ms(66)), "66.0 ms");
        assert_eq!(milliseconds(ms(666)), "666 ms");
    }
}
