//! netavark, as podman calls it for a bridge network with IPv6: one `setup`.
//!
//! Podman has chosen the address before. Versions that can be told to leave the firewall alone are
//! told so; Debian 12's cannot, and brings iptables rules along.

use std::fs::{self, File};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::program::{Finished, run_with};
use crate::samples::Series;
use crate::scene::{NetNs, Scene, calm};
use crate::{Contender, Result, Round};

pub(crate) const SERIES: &[Series] = &[Series::Netavark];

/// Where Debian, then Fedora, has it.
const PROGRAMS: [&str; 2] = ["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"];

/// The values of `NETAVARK_FW` to try, the quickest first.
const FIREWALLS: [&str; 2] = ["none", "iptables"];

pub(crate) struct Netavark {
    program: &'static Path,
    firewall: &'static str,
    state: PathBuf,
    input: PathBuf,
    /// Keeps the bridge in use: netavark deletes one that nobody uses.
    _anchor: NetNs,
}

impl Netavark {
    pub(crate) fn new(scene: &Scene) -> Result<Self> {
        let program = PROGRAMS.iter().map(Path::new).find(|file| file.is_file());
        let program = program.ok_or("netavark is not installed (make deps)")?;
        let (state, input) = (scene.file("netavark"), scene.file("netavark.json"));
        fs::create_dir(&state)?;
        let mut netavark =
            Self { program, firewall: FIREWALLS[0], state, input, _anchor: NetNs::new()? };
        let mut why = None;
        for firewall in FIREWALLS {
            netavark.firewall = firewall;
            match netavark.call("setup", &netavark._anchor, 2) {
                Ok(_) => return Ok(netavark),
                Err(error) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(|| "no firewall to try".into()))
    }

    /// Connects a namespace, which gets [`Netavark::address`] of this number.
    pub(crate) fn set_up(&self, netns: &NetNs, host_part: u16) -> Result<()> {
        self.call("setup", netns, host_part).map(drop)
    }

    /// The address of this number.
    pub(crate) fn address(host_part: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0xd, 0, 0, host_part)
    }

    fn call(&self, command: &str, netns: &NetNs, host_part: u16) -> Result<Finished> {
        fs::write(&self.input, options(host_part))?;
        let mut netavark = Command::new(self.program);
        netavark.env("NETAVARK_FW", self.firewall);
        netavark.arg("--config").arg(&self.state).arg(command).arg(netns.path());
        run_with(&mut netavark, File::open(&self.input)?)?.ok()
    }
}

impl Contender for Netavark {
    fn series(&self) -> &'static [Series] {
        SERIES
    }

    fn round(&mut self, scene: &Scene) -> Result<Round> {
        let netns = NetNs::new()?;
        calm();
        let took = self.call("setup", &netns, 5)?.took;
        scene.check_attached(&netns)?;
        self.call("teardown", &netns, 5)?;
        Ok(Round { took: vec![(Series::Netavark, took)], used: Some(netns) })
    }
}

/// What podman writes to netavark's standard input.
fn options(host_part: u16) -> String {
    let network = json!({
        "name": "v6b",
        "id": "b6".repeat(32),
        "driver": "bridge",
        "network_interface": "v6bnv0",
        "created": "2026-01-01T00:00:00Z",
        "subnets": [{ "subnet": "2001:db8:1:2:d::/80", "gateway": "2001:db8:1:2:d::1" }],
        "ipv6_enabled": true,
        "internal": false,
        "dns_enabled": false,
        "ipam_options": { "driver": "host-local" },
    });
    let container = json!({
        "static_ips": [Netavark::address(host_part).to_string()],
        "interface_name": "eth0",
    });
    json!({
        "container_id": format!("{host_part:064x}"),
        "container_name": format!("v6b{host_part}"),
        "networks": { "v6b": container },
        "network_info": { "v6b": network },
    })
    .to_string()
}
