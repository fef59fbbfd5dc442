//! The CNI project's `bridge` plugin with `host-local` for the addresses: one ADD.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::program::{Finished, run_with};
use crate::samples::Series;
use crate::scene::{NetNs, Scene, calm};
use crate::{Contender, Result, Round};

pub(crate) const SERIES: &[Series] = &[Series::Cni];

/// Where Debian, then Fedora, has them.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/usr/libexec/cni"];

pub(crate) struct Cni {
    plugins: &'static Path,
    config: PathBuf,
    calls: u64,
    /// Keeps the bridge in use.
    _anchor: NetNs,
}

impl Cni {
    pub(crate) fn new(scene: &Scene) -> Result<Self> {
        let plugins = PLUGINS
            .iter()
            .map(Path::new)
            .find(|dir| dir.join("bridge").is_file() && dir.join("host-local").is_file())
            .ok_or("the CNI plugins are not installed (make deps)")?;
        let config = scene.file("cni.json");
        let text = json!({
            "cniVersion": "0.4.0",
            "name": "v6b",
            "type": "bridge",
            "bridge": "v6bcni0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": scene.file("cni-addresses"),
                "ranges": [[{ "subnet": "2001:db8:1:2:c::/80" }]],
                "routes": [{ "dst": "::/0" }],
            },
        });
        fs::write(&config, text.to_string())?;
        let anchor = NetNs::new()?;
        let cni = Self { plugins, config, calls: 0, _anchor: anchor };
        cni.call("ADD", &cni._anchor)?;
        Ok(cni)
    }

    fn call(&self, command: &str, netns: &NetNs) -> Result<Finished> {
        let mut plugin = Command::new(self.plugins.join("bridge"));
        plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", format!("v6b{}", self.calls));
        plugin.env("CNI_NETNS", netns.path()).env("CNI_IFNAME", "eth0");
        plugin.env("CNI_PATH", self.plugins);
        run_with(&mut plugin, File::open(&self.config)?)?.ok()
    }
}

impl Contender for Cni {
    fn series(&self) -> &'static [Series] {
        SERIES
    }

    fn round(&mut self, scene: &Scene) -> Result<Round> {
        self.calls += 1;
        let netns = NetNs::new()?;
        calm();
        let took = self.call("ADD", &netns)?.took;
        scene.check_attached(&netns)?;
        self.call("DEL", &netns)?;
        Ok(Round { took: vec![(Series::Cni, took)], used: Some(netns) })
    }
}
