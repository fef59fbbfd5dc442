//! A Debian that is booted, with v6podd and nothing that says a prefix.

use std::fs::File;

use v6pod_proto::PrefixView;
use v6pod_tests::{Login, Suite, WholeHost, run};

use super::GRACE;

/// Pasta is trixie's own choice, and calls the interface otherwise.
pub(crate) const SLIRP: &[&str] = &["--network", "slirp4netns"];

/// A host with v6podd, which has no prefix but one of its own making.
#[track_caller]
pub(crate) fn serving(suite: Suite) -> WholeHost {
    let host = WholeHost::boot(suite);
    host.install("0.1.0").ok();
    let config = format!(
        "prefix = \"auto\"\nrenumber.settle = \"1s\"\nrenumber.grace = \"{}s\"\n\
         [firewall]\ningress = \"allow\"\n",
        GRACE.as_secs()
    );
    host.write("/etc/v6pod/v6pod.toml", &config);
    host.systemctl("enable --now v6podd.socket v6podd.service").ok();
    assert!(prefix(&host).ula);
    host
}

/// What is in force there.
#[track_caller]
pub(crate) fn prefix(host: &WholeHost) -> PrefixView {
    let shown = run(host.command("v6podctl").args(["--json", "prefix", "show"]));
    serde_json::from_str(shown.ok()).expect("v6podctl's JSON")
}

/// The network of a container's.
#[track_caller]
pub(crate) fn network(host: &WholeHost, user: &Login<'_>, container: &str) -> File {
    let pid = user.pid(container);
    File::open(host.file(&format!("/proc/{pid}/ns/net"))).expect("its network")
}
