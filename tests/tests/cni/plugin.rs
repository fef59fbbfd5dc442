//! A CNI plugin under test, as an engine runs it: a command, an environment, a configuration.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use v6pod_tests::{Daemon, Finished, HostNs, built, run};

/// Debian's containernetworking-plugins. Up to Debian 13 they speak no version with STATUS and GC.
const PLUGINS: &str = "/usr/lib/cni";

/// A plugin with its configuration.
pub(crate) struct Plugin<'a> {
    host: &'a HostNs,
    pub(crate) program: PathBuf,
    /// Where the plugins are that it asks in turn.
    others: PathBuf,
    pub(crate) config: Value,
    pub(crate) files: tempfile::TempDir,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The error's code, or none if it went well.
    pub(crate) code: Option<u64>,
    pub(crate) answer: Value,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.code, None, "{}", self.answer);
        self.answer
    }
}

impl<'a> Plugin<'a> {
    /// v6pod-cni, asking this daemon.
    pub(crate) fn ours(host: &'a HostNs, daemon: &Daemon) -> Self {
        let socket = daemon.socket();
        let config = json!({
            "cniVersion": "1.0.0", "name": "six", "type": "v6pod", "socket": socket,
        });
        Self::new(host, built("v6pod-cni"), config)
    }

    /// The CNI project's bridge plugin.
    pub(crate) fn bridge(host: &'a HostNs) -> Self {
        Self::bridge_in(host, Path::new(PLUGINS))
    }

    /// That of another release.
    pub(crate) fn bridge_in(host: &'a HostNs, plugins: &Path) -> Self {
        let mut this = Self::new(host, plugins.join("bridge"), Value::Null);
        this.config = json!({
            "cniVersion": "1.0.0", "name": "peer", "type": "bridge", "bridge": "v6tc0",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "2001:db8:99::/64" }]],
                "dataDir": this.files.path(),
            },
        });
        this
    }

    fn new(host: &'a HostNs, program: PathBuf, config: Value) -> Self {
        let others = program.parent().expect("a folder").to_owned();
        Self { host, program, others, config, files: tempfile::tempdir().expect("a folder") }
    }

    /// Its configuration with one thing changed.
    pub(crate) fn with(&self, key: &str, value: impl Into<Value>) -> Value {
        let mut config = self.config.clone();
        config[key] = value.into();
        config
    }

    /// Runs it with this environment and configuration.
    #[track_caller]
    pub(crate) fn call(&self, command: &str, pairs: &[(&str, &str)], config: &str) -> Outcome {
        outcome(&self.reading(&self.file(config), command, pairs))
    }

    /// For the container of this id in this namespace.
    #[track_caller]
    pub(crate) fn of(&self, command: &str, id: &str, netns: &str, config: &Value) -> Outcome {
        self.call(command, &container(id, netns), &config.to_string())
    }

    /// With a folder in the place of its configuration, which nobody can read.
    #[track_caller]
    pub(crate) fn unread(&self, command: &str, id: &str, netns: &str) -> Outcome {
        outcome(&self.reading(self.files.path(), command, &container(id, netns)))
    }

    /// Asks an IPAM plugin that kills it.
    #[track_caller]
    pub(crate) fn is_killed_half_way(&self, id: &str, netns: &str) {
        let fatal = self.files.path().join("fatal");
        fs::write(&fatal, "#!/bin/sh\nkill -9 $PPID\n").expect("writing a script");
        fs::set_permissions(&fatal, Permissions::from_mode(0o755)).expect("making it a program");
        let folder = [("CNI_PATH", self.files.path().to_str().expect("UTF-8"))];
        let pairs = [&container(id, netns)[..], &folder].concat();
        let file = self.file(&self.with("ipam", json!({ "type": "fatal" })).to_string());
        let finished = self.reading(&file, "ADD", &pairs);
        assert_eq!(finished.status.signal(), Some(9), "{finished}");
    }

    fn file(&self, config: &str) -> PathBuf {
        let file = self.files.path().join("config.json");
        fs::write(&file, config).expect("writing a file");
        file
    }

    #[track_caller]
    fn reading(&self, file: &Path, command: &str, pairs: &[(&str, &str)]) -> Finished {
        let mut shell = self.host.command("sh");
        shell.args(["-c", "exec \"$0\" < \"$1\""]).arg(&self.program).arg(file);
        shell.env("CNI_COMMAND", command).env("CNI_PATH", &self.others).envs(pairs.iter().copied());
        run(&mut shell)
    }
}

#[track_caller]
fn outcome(finished: &Finished) -> Outcome {
    let answer: Value = match finished.stdout.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {finished}")),
    };
    let code = match finished.status.success() {
        true => None,
        false => Some(answer["code"].as_u64().unwrap_or_else(|| panic!("no code: {finished}"))),
    };
    Outcome { code, answer }
}

/// What an engine tells of a container whose interface is to be `eth0`.
fn container<'a>(id: &'a str, netns: &'a str) -> [(&'a str, &'a str); 3] {
    [("CNI_CONTAINERID", id), ("CNI_NETNS", netns), ("CNI_IFNAME", "eth0")]
}
