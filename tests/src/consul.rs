//! A real Consul agent.

use std::env;
use std::fs::File;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::command::Background;
use crate::lan::{Lan, Member};
use crate::{HostNs, PATIENCE, Process, eventually, machine, run};

/// Where `make deps` puts the program.
const CACHED: &str = "/var/cache/v6pod-tests/consul";

/// An agent of Consul in a host's network: HTTP on `[::1]:8500`, DNS on `[::1]:8600`. Its state is in memory
/// alone: a new start begins empty.
#[derive(Debug)]
pub struct Consul {
    netns: PathBuf,
    dir: TempDir,
    /// Whether it asks others, or is its own server, or one of several.
    role: Vec<String>,
    /// Where its DNS is.
    dns: u16,
    process: Option<Background>,
}

impl Consul {
    /// The program: `$V6POD_CONSUL`, the one on `$PATH`, or that of `make deps`.
    pub fn program() -> Option<PathBuf> {
        let named = env::var_os("V6POD_CONSUL").map(PathBuf::from);
        let cached = Some(Path::new(CACHED).to_owned()).filter(|file| file.is_file());
        named.or_else(|| machine::on_path("consul")).or(cached)
    }

    /// An agent that does not run yet, and is its own server.
    pub fn stopped(host: &HostNs) -> Self {
        let role = ["-dev", "-bind", "127.0.0.1", "-client", "::1", "-node", "v6t"];
        // Under a new node id the old node would still hold the name.
        let id = ["-node-id", "76367436-7436-7436-7436-763674763674"];
        Self::of(host.path(), &[&role[..], &id].concat(), 8600)
    }

    /// One of three servers, on a link that has nothing but IPv6. The others are those of these numbers.
    #[track_caller]
    pub fn one_of_three(member: &Member, others: &[u8]) -> Self {
        let mut words = vec!["-server", "-bootstrap-expect", "3", "-client", "::1"];
        words.extend(["-hcl", "performance { raft_multiplier = 1 }"]);
        let mut consul = Self::of(member.path(), &words, 8600);
        consul.on_link(member.number(), others);
        consul.launch();
        consul
    }

    /// The agent of a host on such a link. Its DNS is at port 53, also of the host's address there.
    #[track_caller]
    pub fn agent_of(host: &HostNs, number: u8, servers: &[u8]) -> Self {
        let dns =
            format!("addresses {{ dns = \"::1 {}\" }} ports {{ dns = 53 }}", Lan::address(number));
        let mut consul = Self::of(host.path(), &["-client", "::1", "-hcl", &dns], 53);
        consul.on_link(number, servers);
        consul.launch();
        consul
    }

    fn of(netns: PathBuf, role: &[&str], dns: u16) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let role = role.iter().map(|word| (*word).to_owned()).collect();
        Self { netns, dir, role, dns, process: None }
    }

    fn on_link(&mut self, number: u8, servers: &[u8]) {
        let data = self.dir.path().join("data").display().to_string();
        let bind = Lan::address(number).to_string();
        let words = ["-data-dir", &data, "-bind", &bind, "-node", &format!("v6t{number}")];
        self.role.extend(words.map(str::to_owned));
        for server in servers {
            self.role
                .extend(["-retry-join".to_owned(), format!("[{}]:8301", Lan::address(*server))]);
        }
        self.role.extend(["-retry-interval", "1s"].map(str::to_owned));
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
        self.launch();
        eventually(PATIENCE, "Consul has a leader", || self.leader().map(drop));
    }

    #[track_caller]
    fn launch(&mut self) {
        assert!(self.process.is_none(), "it still runs");
        let log = File::create(self.dir.path().join("log")).expect("making the log");
        let mut command = self.command(&Self::program().expect("Consul was asked for"));
        command.arg("agent").args(&self.role).args(["-hcl", "disable_update_check = true"]);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("duplicating a descriptor")).stderr(log);
        self.process = Some(Background::start(&mut command));
    }

    /// Where the leader is, if there is one and this agent knows it.
    pub fn leader(&self) -> Option<SocketAddr> {
        self.get("/v1/status/leader")?.as_str()?.parse().ok()
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
        dig.args([
            "@::1",
            "-p",
            &self.dns.to_string(),
            "+short",
            "+time=2",
            "+tries=2",
            &name,
            "AAAA",
        ]);
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

    /// What is known of a service's health: its checks, as Consul tells them.
    #[track_caller]
    pub fn checks(&self, service: &str) -> Vec<Value> {
        match self.get(&format!("/v1/health/checks/{service}")) {
            Some(Value::Array(checks)) => checks,
            other => panic!("Consul's checks: {other:?}"),
        }
    }

    /// Registers a service that is not v6pod's.
    #[track_caller]
    pub fn register(&self, name: &str) {
        self.register_as(&format!(r#"{{"Name":"{name}","ID":"{name}","Address":"192.0.2.1"}}"#));
    }

    /// Registers a service by its definition.
    #[track_caller]
    pub fn register_as(&self, body: &str) {
        let url = "http://[::1]:8500/v1/agent/service/register";
        let mut curl = self.command(Path::new("curl"));
        run(curl.args(["-sS", "--fail", "--globoff", "-X", "PUT", "-d", body, url])).ok();
    }

    /// Takes a service out that is not v6pod's.
    #[track_caller]
    pub fn deregister(&self, id: &str) {
        let url = format!("http://[::1]:8500/v1/agent/service/deregister/{id}");
        run(self.command(Path::new("curl")).args([
            "-sS",
            "--fail",
            "--globoff",
            "-X",
            "PUT",
            &url,
        ]))
        .ok();
    }

    /// Takes a check away by itself; its service stays.
    #[track_caller]
    pub fn deregister_check(&self, id: &str) {
        let url = format!("http://[::1]:8500/v1/agent/check/deregister/{id}");
        let mut curl = self.command(Path::new("curl"));
        run(curl.args(["-sS", "--fail", "--globoff", "-X", "PUT", &url])).ok();
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
