//! iproute2, as a script would use it that wants to be quick: one `ip -batch` for the host's end
//! and one for the inside.
//!
//! It does less than v6podd: no forwarding entry (that is another program's, `bridge`), no sysctls.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::program::run;
use crate::samples::Series;
use crate::scene::{NetNs, Scene, calm};
use crate::{Contender, Result, Round};

pub(crate) const SERIES: &[Series] = &[Series::IpBatch];

const BRIDGE: &str = "v6bip0";
const PORT: &str = "v6bip1";
const PREFIX: &str = "2001:db8:1:2:b";

pub(crate) struct IpBatch {
    host: PathBuf,
    inside: PathBuf,
}

impl IpBatch {
    pub(crate) fn new(scene: &Scene) -> Result<Self> {
        let (host, inside) = (scene.file("ip-host"), scene.file("ip-inside"));
        let bridge = format!(
            "link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {BRIDGE} up\naddr add {PREFIX}::1/128 dev {BRIDGE} nodad\n"
        );
        fs::write(&host, bridge)?;
        run(Command::new("ip").args(["-6", "-batch"]).arg(&host))?.ok()?;
        fs::write(
            &inside,
            format!(
                "link set lo up\nlink set eth0 addrgenmode none\nlink set eth0 up\n\
                 addr add {PREFIX}::5/128 dev eth0 nodad\nroute add {PREFIX}::1 dev eth0\n\
                 route add default via {PREFIX}::1 dev eth0\n"
            ),
        )?;
        Ok(Self { host, inside })
    }

    fn host_script(netns: &NetNs) -> String {
        const MAC: &str = "02:b6:00:00:00:02";
        let netns = netns.path();
        format!(
            "link add {PORT} mtu 1500 master {BRIDGE} group 6779 type veth \
             peer name eth0 address {MAC} mtu 1500 netns {netns}\n\
             link set {PORT} addrgenmode none\n\
             link set {PORT} type bridge_slave isolated on learning off flood off \
             mcast_flood off bcast_flood off\n\
             neigh replace {PREFIX}::5 lladdr {MAC} nud permanent dev {BRIDGE}\n\
             route replace {PREFIX}::5 dev {BRIDGE}\n\
             link set {PORT} alias v6b\nlink set {PORT} up\n"
        )
    }
}

impl Contender for IpBatch {
    fn series(&self) -> &'static [Series] {
        SERIES
    }

    fn round(&mut self, scene: &Scene) -> Result<Round> {
        let netns = NetNs::new()?;
        fs::write(&self.host, Self::host_script(&netns))?;
        let batch = |file| run(Command::new("ip").args(["-6", "-batch"]).arg(file))?.ok();
        calm();
        let host = batch(&self.host)?;
        let inside = scene.inside(&netns, || batch(&self.inside))?;
        scene.check_attached(&netns)?;
        run(Command::new("ip").args(["link", "del", PORT]))?.ok()?;
        Ok(Round { took: vec![(Series::IpBatch, host.took + inside.took)], used: Some(netns) })
    }
}
