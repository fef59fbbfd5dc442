//! `v6podctl resolved`: tells systemd-resolved who answers for the names of this host's containers.
//!
//! For the bridge alone, and for the zone and the containers' addresses alone: of all other names resolved asks whom
//! it asked before. It needs root's rights, or polkit's word, which the daemon has neither of: the unit runs this
//! behind its start. What resolved is told goes with the bridge.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv6Net;
use v6pod_proto::Status;

use super::Failure;

/// It is there while resolved runs, and settings of links are in it.
const RUNNING: &str = "/run/systemd/resolve";

/// How long all of it may take: the start of a unit waits for it. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells it, if it runs.
pub(crate) fn tell(status: &Status) -> Result<String, Failure> {
    if !Path::new(RUNNING).is_dir() {
        return Ok("systemd-resolved does not run\n".to_owned());
    }
    let Some(commands) = commands(status) else {
        return Ok("v6podd answers for no zone\n".to_owned());
    };
    let end = Instant::now() + PATIENCE;
    commands.iter().try_for_each(|words| run(words, end))?;
    Ok(String::new())
}

/// Runs resolvectl until `end` at most; what it complains about is this program's complaint.
fn run(words: &[String], end: Instant) -> Result<(), Failure> {
    let mut child = Command::new("resolvectl")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run resolvectl: {error}"))?;
    let said = || words.join(" ");
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("resolvectl {}: {status}", said()).into()),
            None if Instant::now() >= end => {
                child.kill()?;
                child.wait()?;
                return Err(format!("resolvectl {}: no answer for {PATIENCE:?}", said()).into());
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// What to tell resolvectl; nothing where there are no names to be had.
fn commands(status: &Status) -> Option<Vec<Vec<String>>> {
    let resolver = status.resolver.as_ref()?;
    let (bridge, zone) = (status.bridge.as_str(), resolver.zone.as_ref()?);
    let prefix: Option<Ipv6Net> = status.prefix.prefix.parse().ok();
    let mut domains = vec![format!("~{zone}")];
    domains.extend(prefix.and_then(reverse).map(|name| format!("~{name}")));
    let words =
        |word: &str, more: &[String]| [&[word.to_owned(), bridge.to_owned()][..], more].concat();
    Some(vec![
        // Before the server: it is never asked for anything else.
        words("default-route", &["no".to_owned()]),
        words("domain", &domains),
        // The zone is nobody's to sign.
        words("dnssec", &["no".to_owned()]),
        words("dns", &[resolver.address.to_string()]),
    ])
}

/// The domain of a range's addresses; none of one that does not end with a digit.
fn reverse(range: Ipv6Net) -> Option<String> {
    let length = u32::from(range.prefix_len());
    let bits = range.network().to_bits();
    let digits = (1..=length / 4).rev().map(|at| bits >> (128 - 4 * at) & 0xf);
    let text: String = digits.map(|digit| format!("{digit:x}.")).collect();
    length.is_multiple_of(4).then(|| format!("{text}ip6.arpa"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_a_domain_if_it_ends_with_a_digit() {
        let name = |range: &str| reverse(range.parse().unwrap());
        let expected = "3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(name("2001:db8:1:2:3::/80").as_deref(), Some(expected));
        assert_eq!(name("fd00::/122"), None);
    }
}
