//! A real Consul agent.

use std::env;
use std::fs::File;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::command::Background;
use crate::{HostNs, PATIENCE, Process, eventually, machine, run};

/// Where `make deps` puts the program.
const CACHED: &str = "/var/cache/v6pod-tests/consul";

/// A single agent, also its own server, in a host's network: HTTP on `[::1]:8500`, DNS on
/// `[::1]:8600`. Its state is in memory alone: a new start begins empty.
#[derive(Debug)]
pub struct Consul {
    netns: PathBuf,
    dir: TempDir,
    process: Option<Background>,
}

impl Consul {
    /// The program: `$V6POD_CONSUL`, the one on `$PATH`, or that of `make deps`.
    pub fn program() -> Option<PathBuf> {
        let named = env::var_os("V6POD_CONSUL").map(PathBuf::from);
        let cached = Some(Path::new(CACHED).to_owned()).filter(|file| file.is_file());
        named.or_else(|| machine::on_path("consul")).or(cached)
    }

    /// An agent that does not run yet.
    pub fn stopped(host: &HostNs) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { netns: host.path(), dir, process: None }
    }

    /// An agent that answers.
    #[track_caller]
    pub fn start(host: &HostNs) -> Self {
        let mut consul = Self::stopped(host);
        consul.start_up();
        consul
    }

    /// Starts it and waits until it has elected itself.
    #[track_caller]
    pub fn start_up(&mut self) {
        assert!(self.process.is_none(), "it still runs");
        let log = File::create(self.dir.path().join("log")).expect("making the log");
        let mut command = self.command(&Self::program().expect("Consul was asked for"));
        command.args(["agent", "-dev", "-bind", "127.0.0.1", "-client", "::1"]);
        // Under a new node id the old node would still hold the name.
        command.args(["-node", "v6t", "-node-id", "76367436-7436-7436-7436-763674763674"]);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("duplicating a descriptor")).stderr(log);
        self.process = Some(Background::start(&mut command));
        eventually(PATIENCE, "Consul has a leader", || {
            let leader = self.get("/v1/status/leader")?;
            leader.as_str().is_some_and(|leader| !leader.is_empty()).then_some(())
        });
    }

    /// Ends it at once (SIGKILL).
    pub fn kill9(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// Makes it stop answering without closing anything (SIGSTOP), until [`Consul::resume`].
    pub fn pause(&self) {
        self.pinned().signal(Signal::STOP);
    }

    /// Undoes [`Consul::pause`].
    pub fn resume(&self) {
        self.pinned().signal(Signal::CONT);
    }

    /// The AAAA records of `NAME.service.consul`.
    #[track_caller]
    pub fn aaaa(&self, name: &str) -> Vec<Ipv6Addr> {
        let name = format!("{name}.service.consul");
        let mut dig = self.command(Path::new("dig"));
        dig.args(["@::1", "-p", "8600", "+short", "+time=2", "+tries=2", &name, "AAAA"]);
        run(&mut dig).stdout.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The services that the agent knows, by id.
    #[track_caller]
    pub fn services(&self) -> serde_json::Map<String, Value> {
        match self.get("/v1/agent/services") {
            Some(Value::Object(services)) => services,
            other => panic!("Consul's services: {other:?}"),
        }
    }

    /// Registers a service that is not v6pod's.
    #[track_caller]
    pub fn register(&self, name: &str) {
        let body = format!(r#"{{"Name":"{name}","ID":"{name}","Address":"192.0.2.1"}}"#);
        let url = "http://[::1]:8500/v1/agent/service/register";
        let mut curl = self.command(Path::new("curl"));
        run(curl.args(["-sS", "--fail", "--globoff", "-X", "PUT", "-d", &body, url])).ok();
    }

    fn get(&self, path: &str) -> Option<Value> {
        let url = format!("http://[::1]:8500{path}");
        let mut curl = self.command(Path::new("curl"));
        let finished = run(curl.args(["-sS", "--fail", "--globoff", "--max-time", "5", &url]));
        serde_json::from_str(&finished.stdout).ok()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(program);
        command
    }

    fn pinned(&self) -> Process {
        let pid = self.process.as_ref().expect("it runs").pid();
        Process::open(i32::try_from(pid).expect("process ids fit")).expect("it runs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;

    #[test]
    fn an_agent_answers_and_comes_back_empty() {
        let _machine = require!(Consul);
        let host = HostNs::new();
        let mut consul = Consul::start(&host);
        consul.register("foreign");
        assert!(consul.services().contains_key("foreign"));
        // It is found, by an IPv4 address alone.
        assert!(consul.aaaa("foreign").is_empty());
        consul.pause();
        consul.resume();
        consul.kill9();
        consul.start_up();
        assert!(!consul.services().contains_key("foreign"));
    }
}
