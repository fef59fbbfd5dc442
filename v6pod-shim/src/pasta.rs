//! As pasta: podman's network program for rootless containers from podman 5 on.
//!
//! A container that gets an address of v6podd is served without pasta's IPv6, which would copy the
//! host's own global address and default route into it. IPv4 is pasta's as before.
//!
//! Nothing in the call names the container: the OCI hook does, before or after. And there is no lease:
//! pasta closes whatever it inherits when it goes into the background, so the end is the kernel's to
//! tell. Podman waits for the end of the pipe that is descriptors 1 and 2, so nothing that is left
//! running may hold it; nothing is.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use v6pod_proto::Activate;

use crate::config::Config;
use crate::daemon::{self, Deadline, Failure};
use crate::identity;
use crate::stand_in::{self, Call, Part};

/// The interface inside: pasta brings one of the name of the host's uplink, which may be eth0.
pub(crate) const INTERFACE: &str = "v6eth0";

/// Serves the container that this command line is about, if it is about one, and becomes the real
/// pasta. Returns only if there is nothing to become, or nothing to start.
pub(crate) fn run(words: &[OsString]) -> ExitCode {
    let part = Part {
        name: "pasta",
        program: |config| &config.pasta,
        recognise: |arguments| {
            // What costs least is asked first.
            let call = ContainerCall::parse(arguments).filter(|_| identity::is_rootless())?;
            Some(Box::new(call) as Box<dyn Call>)
        },
    };
    stand_in::run(&part, words)
}

/// A call that starts the network of a rootless container.
#[derive(Debug, PartialEq, Eq)]
struct ContainerCall {
    netns: PathBuf,
    without_ipv6: Vec<OsString>,
}

impl ContainerCall {
    /// The call that these arguments amount to; `None` for every other use of pasta: rootless bridge
    /// networks, builds, by hand. Podman itself puts `--netns` and its path as two words behind all that
    /// a user had a say in, once; a line in which it stands otherwise is none of podman's.
    fn parse(arguments: &[OsString]) -> Option<Self> {
        let says = |option: &str| arguments.iter().any(|word| is_option(word, option));
        // `--pid` is the rootless network's: pasta lives longer than any one container there.
        if ["--pid", "-P", "--help", "-h", "--version"].into_iter().any(says) {
            return None;
        }
        let mut at = arguments.iter().enumerate().filter(|(_, word)| is_option(word, "--netns"));
        let (at, word) = at.next().filter(|_| at.next().is_none())?;
        let path = arguments.get(at + 1).filter(|_| word == "--netns")?;
        let netns = Path::new(path);
        if !is_containers(netns) {
            return None;
        }
        // Of `-4` and `-6` pasta takes the last one.
        let last = OsString::from("--ipv4-only");
        let without_ipv6 = arguments.iter().cloned().chain([last]).collect();
        Some(Self { netns: netns.to_owned(), without_ipv6 })
    }
}

/// Whether a word is this option, alone or with its value.
fn is_option(word: &OsStr, option: &str) -> bool {
    let rest = word.as_bytes().strip_prefix(option.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="))
}

/// Whether podman mounts a container's network namespace at such a path: `…/netns/netns-UUID`, where
/// the rootless network's is `…/rootless-netns/rootless-netns` and a build's `/proc/PID/ns/net`.
fn is_containers(netns: &Path) -> bool {
    let name = netns.file_name().unwrap_or_default();
    let folder = netns.parent().and_then(Path::file_name).unwrap_or_default();
    netns.is_absolute() && name.as_bytes().starts_with(b"netns-") && folder == "netns"
}

impl Call for ContainerCall {
    fn serve(&self, config: &Config) -> Result<(), Failure> {
        let end = Deadline::start();
        let netns = File::open(&self.netns).map_err(Failure::Namespace)?;
        let mut request = Activate::unidentified();
        request.interface = INTERFACE.parse().ok();
        daemon::activate(&config.socket, &request, netns.as_fd(), end).map(drop)
    }

    fn without_ipv6(&self) -> &[OsString] {
        &self.without_ipv6
    }

    fn whose(&self) -> &str {
        "the container"
    }

    fn is_shown(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETNS: &str = "/run/user/1000/netns/netns-1b6a7d2e-0ff5-6d0c-d6f9-5d3f2a1b0c9e";

    fn words(line: &str) -> Vec<OsString> {
        line.replace("NETNS", NETNS).split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_containers_call_is_known_by_its_namespace_and_changed_at_its_end_alone() {
        for line in [
            // podman 5.4 and 5.8.
            "--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw \
             --quiet --netns NETNS --map-guest-addr 169.254.1.2",
            // podman 6.1, with a user's own options and a published port.
            "--config-net -6 --mtu 1400 -t 0.0.0.0/8080-8080:80-80 --dns-forward 169.254.1.1 -u none \
             -T none -U none --no-map-gw --quiet --map-guest-addr 169.254.1.2 --netns NETNS",
            // podman 4.4.
            "--config-net -t none -u none -T none -U none --no-map-gw --netns NETNS",
        ] {
            let line = words(line);
            let call = ContainerCall::parse(&line).unwrap();
            assert_eq!(call.netns, Path::new(NETNS));
            assert_eq!(call.without_ipv6[..line.len()], line);
            assert_eq!(call.without_ipv6[line.len()..], ["--ipv4-only"]);
        }
    }

    #[test]
    fn every_other_call_is_left_alone() {
        for line in [
            "",
            "--help",
            "--version",
            "1234",
            "--config-net --pid /run/user/1000/networks/rootless-netns/rootless-netns-conn.pid --netns \
             /run/user/1000/networks/rootless-netns/rootless-netns",
            "--config-net --pid /run/x.pid --netns NETNS",
            "--config-net --pid=/run/x.pid --netns NETNS",
            "--config-net --netns /proc/77/ns/net",
            "--config-net --netns netns/netns-x",
            "--config-net --netns /run/netns/other",
            "--config-net --netns=NETNS",
            "--config-net --netns NETNS --netns NETNS",
            "--config-net --netns",
            "--config-net --quiet",
        ] {
            assert_eq!(ContainerCall::parse(&words(line)), None, "{line}");
        }
    }
}
