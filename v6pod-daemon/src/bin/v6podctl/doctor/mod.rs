//! `v6podctl doctor`: what is wrong on this host, and the command that mends it.
//!
//! What is seen (`look`) and what follows from it (the rest, which is pure) are apart. Nothing is changed, and
//! everything is looked at as who has called: what only root sees, an ordinary user is told that he does not.

mod conf;
mod daemon;
mod finding;
mod hooks;
mod host;
mod look;
mod network;
mod programs;
mod shim;
mod written;

use std::path::Path;
use std::process::ExitCode;

use finding::{By, Report, Severity};
use programs::Version;
use written::Written;

use super::table::printable;

/// What stands behind the help of `v6podctl doctor`.
pub(crate) const HELP: &str = "Each thing that is wrong has a code (docs/doctor.md) and the command that mends it, with who has to run it.
Nothing is changed. An ordinary user's own podman is looked at only when he runs this; root's run tells what
every user starts from.

Exit status: 0 nothing is broken, 1 something is, 2 nothing that was looked at is, and not all could be.";

/// What is taken for podman's version where none is told: most of what is asked then holds for all.
const USUAL_PODMAN: Version = Version(4, 3, 1);

/// What a daemon that does not answer is explained by, and the commands against which start it again.
const KEEP_FROM_STARTING: [&str; 6] =
    ["nft-missing", "nft-not-executable", "prefix-clash", "run-full", "kernel-old", "ipv6-off"];

/// A report that is not a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ill {
    /// Something does not work.
    #[error("something is broken")]
    Broken,
    /// Nobody knows.
    #[error("not all could be looked at")]
    NotSeen,
}

impl Ill {
    /// What a report is, unless it is a good one.
    pub(crate) fn of(report: &Report) -> Option<Self> {
        if report.findings.iter().any(|finding| finding.severity == Severity::Broken) {
            Some(Self::Broken)
        } else {
            report.not_seen.iter().any(|not_seen| !not_seen.by_others).then_some(Self::NotSeen)
        }
    }

    /// How to end.
    pub(crate) fn status(self) -> ExitCode {
        match self {
            Self::Broken => ExitCode::from(1),
            Self::NotSeen => ExitCode::from(2),
        }
    }
}

/// Looks at everything.
pub(crate) async fn examine(socket: &Path) -> Report {
    let mut report = Report::default();
    let look::programs::Seen { facts: programs, versions, not_asked } = look::programs::programs();
    report.versions.extend(versions);
    if !not_asked.is_empty() {
        let why = format!("others than root could have put them there: {}", not_asked.join(" "));
        report.by_others("programs' versions", why);
    }
    let podman = programs.podman.unwrap_or(USUAL_PODMAN);
    report.check("programs", programs.judge());
    report.check("podman's configuration", look::podman::configuration(podman).judge());
    if look::caller() == By::Root {
        report.by_others("users' own podman configuration", "each user's own doctor sees it");
    }
    match look::podman::hook_files() {
        Ok(hooks) => report.check("hooks", hooks.judge()),
        Err(why) => report.not_seen("hooks", why),
    }
    if let Some(shim) = look::podman::shim_settings(socket) {
        report.check("shim's settings", shim.judge());
    }
    let host = look::host::host();
    match &host.subordinate {
        Some(_) => report.check("subordinate ids", host.judge_ids()),
        None => report.by_others("subordinate ids", "a directory service gives them"),
    }
    report.check("system", host.judge_system());

    let (daemon, config) = look::daemon::daemon(socket).await;
    match look::daemon::network(&daemon, config.as_ref()) {
        Ok(network) => of_network(&mut report, &network),
        Err(why) => report.not_seen("network", why),
    }
    if daemon.units.is_none() {
        report.by_others("units", "systemd does not run here, or does not say");
    }
    if daemon.config == Written::Unread {
        report.by_others("v6podd's configuration", "only root can read it");
    }
    let explained =
        report.findings.iter().any(|finding| KEEP_FROM_STARTING.contains(&finding.code));
    report.check("daemon", daemon.judge_running(explained));
    if daemon.status.is_ok() {
        report.check("daemon's own state", daemon.judge_status());
        report.check("other firewalls", daemon.judge_firewalls());
        report.check("registry", daemon.judge_registry());
    } else {
        report.by_others("other firewalls, registry", "v6podd knows, and does not answer");
    }
    report.findings.sort_by_key(|finding| finding.severity);
    report
}

fn of_network(report: &mut Report, network: &network::Facts) {
    report.check("forwarding and routes", network.judge_ways());
    if network.prefixes.is_empty() {
        report.by_others("prefix", "v6podd knows it, and does not answer");
    } else {
        report.check("prefix", network.judge_prefix());
    }
    report.check("kernel's limits", network.judge_limits());
}

/// The report as text.
pub(crate) fn for_people(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Broken => "broken",
            Severity::Warning => "warning",
        };
        text += &format!("{severity}: {}: {}\n", finding.code, printable(&finding.what));
        let mut by = None;
        for command in &finding.commands {
            if by.replace(&command.by) != Some(&command.by) {
                text += &format!("  as {}:\n", printable(&command.by.to_string()));
            }
            text += &format!("    {}\n", printable(&command.line));
        }
    }
    if report.findings.is_empty() {
        text += "nothing is wrong\n";
    }
    text += &format!("fine: {}\n", report.passed.join(", "));
    for not_seen in &report.not_seen {
        text += &format!("not seen: {}: {}\n", not_seen.check, printable(&not_seen.why));
    }
    let versions = report.versions.iter().map(|(name, version)| format!("{name} {version}"));
    text + &format!("versions: {}\n", printable(&versions.collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::finding::Finding;
    use super::*;

    #[test]
    fn a_report_is_as_bad_as_the_worst_of_it() {
        let mut report = Report::default();
        report.check("fine", Vec::new());
        report.by_others("secret", "only root sees it");
        assert_eq!(Ill::of(&report), None);
        report.check("odd", vec![Finding::warning("odd", "it is odd")]);
        assert_eq!(Ill::of(&report), None);
        report.not_seen("slow", "it took too long");
        assert_eq!(Ill::of(&report), Some(Ill::NotSeen));
        report.check("bad", vec![Finding::broken("bad", "it is bad").root("mend it")]);
        assert_eq!(Ill::of(&report), Some(Ill::Broken));
        assert_eq!(report.passed, ["fine"]);
        let text = for_people(&report);
        assert!(text.contains("broken: bad: it is bad\n  as root:\n    mend it\n"), "{text}");
    }
}
