//! The provider: a router that advertises itself and delegates one prefix by DHCPv6. Both are real programs,
//! in the outside's network.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use v6pod_tests::{Background, HostNs, PATIENCE, eventually, run};

/// How long a lease may take to come or to change: with these times a client asks anew each three seconds.
pub(crate) const LEASE: Duration = Duration::from_secs(60);

pub(crate) struct Provider {
    dir: tempfile::TempDir,
    server: Option<Background>,
    router: Option<Background>,
}

impl Provider {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), server: None, router: None }
    }

    /// From now on it delegates this /56, and remembers nothing of another one. It routes that to the host.
    #[track_caller]
    pub(crate) fn delegate(&mut self, host: &HostNs, range: &str) {
        drop(self.server.take());
        let text = format!(
            "authoritative;\ndefault-lease-time 20;\npreferred-lifetime 12;\n\
             option dhcp-renewal-time 3;\noption dhcp-rebinding-time 6;\n\
             subnet6 2001:db8:ffff::/64 {{\n  range6 2001:db8:ffff::1000 2001:db8:ffff::1fff;\n  \
             prefix6 {range} {range} /56;\n}}\n"
        );
        fs::write(self.file("dhcpd.conf"), text).expect("writing a file");
        fs::write(self.file("leases"), "").expect("writing a file");
        let mut dhcpd = host.outside("dhcpd");
        dhcpd.args(["-6", "-f", "-q", "-cf"]).arg(self.file("dhcpd.conf")).arg("-lf");
        dhcpd.arg(self.file("leases")).arg("-pf").arg(self.file("pid")).arg("out0");
        self.server = Some(self.start(&mut dhcpd, "dhcpd.log"));
        let via = eventually(PATIENCE, "the host has a link-local address", || link_local(host));
        let route = ["-6", "route", "replace", &format!("{range}/56"), "via", &via, "dev", "out0"];
        run(host.outside("ip").args(route)).ok();
    }

    /// Says from now on that it is a router, and that addresses are to be had by DHCPv6.
    #[track_caller]
    pub(crate) fn advertise(&mut self, host: &HostNs) {
        let text = "interface out0 {\n  AdvSendAdvert on;\n  AdvManagedFlag on;\n  AdvOtherConfigFlag on;\n  \
                    MinRtrAdvInterval 3;\n  MaxRtrAdvInterval 4;\n  prefix 2001:db8:ffff::/64 { };\n};\n";
        fs::write(self.file("radvd.conf"), text).expect("writing a file");
        let mut radvd = host.outside("radvd");
        radvd.args(["--nodaemon", "--logmethod=stderr", "--config"]).arg(self.file("radvd.conf"));
        radvd.arg("--pidfile").arg(self.file("radvd.pid"));
        self.router = Some(self.start(&mut radvd, "radvd.log"));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, command: &mut Command, log: &str) -> Background {
        let log = File::create(self.file(log)).expect("a log");
        Background::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))
    }
}

/// The host's link-local address on its uplink, by which a provider routes what it delegates.
fn link_local(host: &HostNs) -> Option<String> {
    let shown = host.ip("-6 -o addr show dev up0 scope link -tentative").stdout;
    let address = shown.split_whitespace().find(|word| word.starts_with("fe80:"))?;
    address.split('/').next().map(str::to_owned)
}
