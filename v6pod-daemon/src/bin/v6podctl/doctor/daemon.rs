//! The daemon: whether it runs, comes back after a boot, can be asked, and what it says of itself.

use v6pod_proto::{DEFAULT_SOCKET, RegistryView, Status};

use super::finding::{Finding, word};
use super::written::Written;

/// Starts the daemon again.
pub(crate) const RESTART: &str = "systemctl restart v6podd.service";
/// The service, the sockets that it is asked by, and the resolver's.
pub(crate) const UNITS: [&str; 3] = ["v6podd.service", "v6podd.socket", "v6podd-dns.socket"];

/// Makes a token for v6podd, by the policy that docs/consul.md asks for, and has it taken.
const NEW_TOKEN: [&str; 2] = [
    r#"consul acl policy read -name v6podd >/dev/null 2>&1 || printf 'service_prefix "" { policy = "write" }\nagent_prefix "" { policy = "read" }\nnode_prefix "" { policy = "read" }\n' | consul acl policy create -name v6podd -rules - >/dev/null"#,
    r#"(umask 077 && consul acl token create -description v6podd -policy-name v6podd | sed -n 's/^SecretID: *//p' >/etc/v6pod/consul-token) && systemctl restart v6podd.service"#,
];

/// What systemd says of a unit, in its own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    /// `LoadState`.
    pub(crate) load: String,
    /// `ActiveState`.
    pub(crate) active: String,
    /// `UnitFileState`.
    pub(crate) file: String,
    /// `ExecMainStatus`; 217 is what systemd ends with where there is no such user.
    pub(crate) status: i32,
    /// `DropInPaths`, those of an administrator.
    pub(crate) drop_ins: Vec<String>,
}

/// The socket for everybody, which is at [`DEFAULT_SOCKET`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// Another is asked, of whose access nothing is known: it may be meant for one user alone.
    NotAsked,
    /// It is there, for everybody.
    Fine,
    /// It is there, and not for everybody.
    Closed,
    /// It is in a folder that not everybody may look into.
    Hidden,
    /// There is none, whatever else is there.
    Missing,
}

/// What was seen of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// As [`UNITS`] has them; none where there is no systemd to ask.
    pub(crate) units: Option<[Unit; 3]>,
    pub(crate) config: Written,
    /// Where the configuration is.
    pub(crate) config_path: String,
    pub(crate) socket: Socket,
    /// Which is asked.
    pub(crate) socket_path: String,
    /// Whether `V6POD_SOCKET` is set to somewhere else than the usual place.
    pub(crate) socket_by_variable: bool,
    /// Whether there is the account that the unit runs as.
    pub(crate) account: bool,
    /// What it answers, or why it does not.
    pub(crate) status: Result<Status, String>,
    /// Whether the configuration asks for a resolver.
    pub(crate) resolver_wanted: bool,
    /// Whether systemd has a unit consul.service.
    pub(crate) consul_unit: bool,
    /// This program's version.
    pub(crate) own_version: String,
}

impl Facts {
    /// What is wrong with its being there; `explained`: something that was found besides keeps it from starting.
    pub(crate) fn judge_running(&self, explained: bool) -> Vec<Finding> {
        let mut found = Vec::new();
        let explained = explained || matches!(self.socket, Socket::Closed | Socket::Hidden);
        let nobody = "no container gets an address";
        if self.socket_by_variable && self.status.is_err() {
            let what = format!(
                "V6POD_SOCKET is {:?} in this environment, where no v6podd answers: containers that you start get no address",
                self.socket_path
            );
            let by = super::look::caller();
            return vec![Finding::broken("socket-variable", what).run(by, "unset V6POD_SOCKET")];
        }
        if let Written::Wrong { line, why, can_go } = &self.config {
            let what = format!("{}: {why}: v6podd does not start", self.config_path);
            let finding = Finding::broken("config-mistake", what);
            let path = word(&self.config_path);
            // Otherwise it may be somebody's restriction, which only who has written it can put right.
            found.push(match can_go {
                true => finding.root(format!("sed -i '{line}s/^/#/' {path} && {RESTART}")),
                false => finding,
            });
        }
        let Some([service, socket, _]) = &self.units else {
            if let Err(why) = &self.status {
                let what = format!("v6podd does not answer: {why}: {nobody}");
                found.push(Finding::broken("daemon-stopped", what));
            }
            return found;
        };
        let masked: Vec<&str> = [("v6podd.service", service), ("v6podd.socket", socket)]
            .into_iter()
            .filter(|(_, unit)| unit.load == "masked")
            .map(|(name, _)| name)
            .collect();
        if !masked.is_empty() {
            let what = format!("{} is masked: {nobody}", masked.join(" and "));
            let line = format!(
                "systemctl unmask {} && systemctl enable --now v6podd.socket v6podd.service",
                masked.join(" ")
            );
            found.push(Finding::broken("daemon-masked", what).root(line));
            return found;
        }
        if service.load == "not-found" {
            let what = format!(
                "there is no unit v6podd.service: {nobody} unless v6podd is started by hand"
            );
            found.push(Finding::warning("unit-missing", what));
            return found;
        }
        if self.status.is_err() && found.is_empty() && !explained {
            found.push(self.why_silent(service, socket));
        } else if self.status.is_ok()
            && [service, socket].iter().any(|unit| unit.file == "disabled")
        {
            let what = "v6podd.service or v6podd.socket is not enabled: after the next boot no container gets an address";
            let line = "systemctl enable v6podd.socket v6podd.service";
            found.push(Finding::warning("daemon-disabled", what).root(line));
        }
        found.extend(self.judge_socket());
        found
    }

    fn why_silent(&self, service: &Unit, socket: &Unit) -> Finding {
        let nobody = "no container gets an address";
        if !self.account || service.status == 217 {
            let what = format!("there is no account v6pod, as which v6podd runs: {nobody}");
            let line = format!("systemd-sysusers v6pod.conf && {RESTART}");
            return Finding::broken("daemon-account", what).root(line);
        }
        let stopped = service.active == "inactive" && socket.active != "active";
        if stopped {
            let what = format!("v6podd.service and v6podd.socket are stopped: {nobody}");
            let line = "systemctl enable --now v6podd.socket v6podd.service";
            return Finding::broken("daemon-stopped", what).root(line);
        }
        let why = self.status.as_ref().err().map_or("", |why| why);
        let log = "`journalctl -u v6podd.service` says why";
        if !service.drop_ins.is_empty() {
            let what = format!(
                "v6podd does not start ({why}), and its unit is changed by {}: {nobody}; {log}",
                service.drop_ins.join(" ")
            );
            let line = format!("systemctl revert v6podd.service && {RESTART}");
            return Finding::broken("daemon-unit-changed", what).root(line);
        }
        let what = format!("v6podd does not answer ({why}): {nobody}; {log}");
        Finding::broken("daemon-fails", what).root("systemctl restart v6podd.socket v6podd.service")
    }

    fn judge_socket(&self) -> Option<Finding> {
        let (path, nobody) = (DEFAULT_SOCKET, "who starts a container by it gets no address");
        match self.socket {
            Socket::Fine | Socket::NotAsked => None,
            Socket::Closed => {
                let what = format!("{path} is not for everybody: {nobody}");
                let line = format!("chmod 0666 {}", word(path));
                Some(Finding::broken("socket-closed", what).root(line))
            }
            Socket::Hidden => {
                let folder = path.rsplit_once('/').map_or("/", |(folder, _)| folder);
                let what = format!(
                    "{folder}, in which v6podd's socket is, is not for everybody: {nobody}"
                );
                let line = format!("chmod 0755 {}", word(folder));
                Some(Finding::broken("socket-hidden", what).root(line))
            }
            // It is not there either while nobody is.
            Socket::Missing if self.status.is_err() => None,
            Socket::Missing => {
                let what = format!("there is no socket {path}, though v6podd runs: {nobody}");
                let line = "systemctl restart v6podd.socket v6podd.service";
                Some(Finding::broken("socket-missing", what).root(line))
            }
        }
    }

    /// What it says of itself that is not as it should be.
    pub(crate) fn judge_status(&self) -> Vec<Finding> {
        let Ok(status) = &self.status else { return Vec::new() };
        let mut found = Vec::new();
        if status.version != self.own_version {
            let what = format!(
                "v6podd is of version {}, and v6podctl of {}: it was not started again after an upgrade",
                status.version, self.own_version
            );
            found.push(Finding::warning("daemon-old", what).root(RESTART));
        }
        if status.resolver.is_none() && self.resolver_wanted {
            let what = "v6podd has no port 53 for its resolver: containers and this host find no names of containers";
            let finding = Finding::warning("resolver-off", what);
            let masked = self.units.as_ref().is_some_and(|[_, _, dns]| dns.load == "masked");
            let unmask = if masked { "systemctl unmask v6podd-dns.socket && " } else { "" };
            found.push(finding.root(format!(
                "{unmask}systemctl enable v6podd-dns.socket && systemctl stop v6podd.service && systemctl restart v6podd-dns.socket && systemctl start v6podd.service"
            )));
        }
        found
    }

    /// Other firewalls that drop what v6pod lets pass.
    pub(crate) fn judge_firewalls(&self) -> Vec<Finding> {
        let Ok(status) = &self.status else { return Vec::new() };
        let found = status.obstacles.iter().map(|obstacle| {
            let what = format!(
                "{}: {} {} (hook {}): {}",
                obstacle.program, obstacle.table, obstacle.chain, obstacle.hook, obstacle.meaning
            );
            // Of rules that cannot be read nothing is certain; and who cannot ask v6podd asks another.
            let names_alone = obstacle.hook == "input" && obstacle.meaning.contains("resolver");
            let warning = obstacle.program == "ip6tables-legacy" || names_alone;
            let make = if warning { Finding::warning } else { Finding::broken };
            obstacle
                .advice
                .iter()
                .fold(make("firewall-drops", what), |f, line| f.root(line.clone()))
        });
        found.collect()
    }

    /// Where names go.
    pub(crate) fn judge_registry(&self) -> Vec<Finding> {
        let Ok(status) = &self.status else { return Vec::new() };
        let RegistryView { kind, healthy, error, .. } = &status.registry;
        if *healthy || kind != "consul" {
            return Vec::new();
        }
        let why = error.as_deref().unwrap_or("it has not answered yet");
        let nobody = "names of containers are not registered";
        let policy = "(by a token that may make others, in CONSUL_HTTP_TOKEN)";
        let new_token = |code, what| {
            NEW_TOKEN.iter().fold(Finding::broken(code, what), |finding, line| finding.root(*line))
        };
        let finding = if why.contains("token cannot be read") {
            new_token(
                "consul-token-missing",
                format!("v6podd cannot read its token {policy}: {nobody}: {why}"),
            )
        } else if why.contains("refuses: 403") || why.contains("refuses: 401") {
            new_token(
                "consul-token-refused",
                format!("Consul refuses v6podd's token {policy}: {nobody}: {why}"),
            )
        } else if why.contains("data centre") {
            Finding::broken("consul-datacenter", format!("{nobody}: {why}"))
        } else {
            let finding =
                Finding::broken("consul-away", format!("Consul does not answer: {nobody}: {why}"));
            if self.consul_unit { finding.root("systemctl start consul.service") } else { finding }
        };
        vec![finding]
    }
}

#[cfg(test)]
mod tests;
