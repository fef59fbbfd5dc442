//! The configuration file (`/etc/v6pod/v6pod.toml`), read once into typed values.
//!
//! Guarantees: every key has a default; an unknown key and a value that a key does not take are errors that
//! name the line, the key and what to do. A [`Config`] that exists asks for nothing that is not there.

mod error;
mod file;
mod later;
mod options;
#[cfg(test)]
mod tests;
mod values;

use std::env;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use v6pod_proto::wishes::Egress;
use v6pod_proto::{LinkName, Mode, SwitchedOff};

pub use error::{ConfigError, Mistake};
pub use options::{CommandLine, Options};
pub use values::{Authority, ConsulUrl, Host, People, Refused, Who};

use crate::core::name::Template;
use crate::core::open::{Allowed, Ways};
use crate::core::ruleset::{EastWest, HostAccess, Ingress};
use crate::core::{Instance, Prefix};
use file::{File, RegistryKind, Verdict};
use values::{Label, Loopback, PrefixText, SecretFile, Slice, Text};

/// Where the configuration is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/v6pod/v6pod.toml";

/// What the daemon is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What tells this daemon from others of the machine. Names of links, files and directories
    /// follow from it.
    pub instance: Instance,
    /// The range that addresses come from.
    pub prefix: PrefixSource,
    /// Whether what has a unique local address leaves by the uplink with the host's own.
    pub nat66: bool,
    /// Which /80 of a range that is delegated later is ours; none: the last.
    pub subnet: Option<u64>,
    /// How long an address of the old prefix stays valid when another is in force.
    pub grace: Duration,
    /// How long another prefix must hold before it is in force.
    pub settle: Duration,
    /// How packets are to reach containers.
    pub mode: Mode,
    /// The MTU of bridge and containers in bytes, 1280 to 65535; none: that of the uplink.
    pub mtu: Option<u32>,
    /// The interface towards the rest of the world; none: that of the IPv6 default route.
    pub uplink: Option<LinkName>,
    /// Whether the uplink answers for the containers: where the prefix is part of its own subnet and
    /// nobody routes it here.
    pub ndp_proxy: bool,
    /// How long a released address rests before it may be drawn again.
    pub quarantine: Duration,
    /// How long the part of the prefix is that each owner's addresses come from, in bits; none: they come
    /// from all of it.
    pub slice: Option<u8>,
    /// Who, besides root and operators, may ask for a certain address.
    pub wished: People,
    /// How many attachments one owner may have.
    pub per_owner: u32,
    /// What happens to packets for containers that nothing lets in.
    pub ingress: Ingress,
    /// What a container may reach that does not say.
    pub egress: Egress,
    /// What containers of this host may begin with each other.
    pub east_west: EastWest,
    /// What containers may begin with this host.
    pub host: HostAccess,
    /// How many flows one container may have begun, and as many others with it; none: any number.
    pub flows: Option<NonZeroU32>,
    /// Which ways of asking open anything.
    pub openings: Ways,
    /// Who may open what. Without any, everybody every port; with one, nobody but whom they mean, and
    /// root and operators.
    pub allow: Option<Vec<Allow>>,
    /// Who may have attachments.
    pub users: People,
    /// Who, besides root, sees and changes all.
    pub operators: People,
    /// Where names go.
    pub registry: Registry,
    /// What a container's name becomes before it is a label.
    pub name: Template,
    /// Names that no container gets, as DNS labels in lower case.
    pub reserved: Vec<String>,
    /// What is answered of names; none: nothing.
    pub dns: Option<Dns>,
    /// The TCP addresses to listen on, all of them loopback; may be empty.
    pub tcp: Vec<SocketAddr>,
    /// Another place than `/run/INSTANCE`, for tests. Not in the file.
    pub run_dir: Option<PathBuf>,
    /// Another place than `/var/lib/INSTANCE`, for tests. Not in the file.
    pub state_dir: Option<PathBuf>,
    /// Another file than `/etc/resolv.conf`, for tests. Not in the file.
    pub resolv_conf: Option<PathBuf>,
}

/// `[[firewall.allow]]`: who may open what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Who.
    pub users: People,
    /// What.
    pub ports: Vec<Allowed>,
}

/// Where the host's range comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrefixSource {
    /// The configuration.
    Static(Prefix),
    /// This file, which something writes; as long as it never said one, as `Auto`.
    File(PathBuf),
    /// A unique local prefix (RFC 4193), generated once for this host and kept.
    Auto,
}

/// Where names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registry {
    /// The daemon's own memory.
    Embedded,
    /// A Consul agent.
    Consul(Consul),
    /// Nowhere.
    None,
}

/// What is answered of names, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The zone in which containers' names are, in lower case, without a dot at its end.
    pub zone: String,
    /// Who sees whose names.
    pub scope: Scope,
    /// Whether containers are told of it at their start.
    pub containers: bool,
}

/// Who sees whose names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everybody on this host all of them.
    Host,
    /// A container those of its owner's.
    Owner,
}

impl Default for Dns {
    fn default() -> Self {
        Self { zone: "v6pod.internal".to_owned(), scope: Scope::Host, containers: true }
    }
}

/// How to speak to a Consul agent. Files are absolute, or mere names: see [`Config::secret`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consul {
    /// The agent.
    pub address: ConsulUrl,
    /// The data centre that the agent has to be of, if that matters.
    pub datacenter: Option<String>,
    /// The file with the token.
    pub token_file: Option<PathBuf>,
    /// The certificates of who may vouch for the agent, in PEM; none: those that the system trusts.
    /// Without TLS it means nothing.
    pub ca_file: Option<PathBuf>,
    /// What this daemon shows the agent, if it shows anything. Without TLS it means nothing.
    pub identity: Option<Identity>,
}

/// A certificate of this daemon's own and the key that goes with it, both in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and its authority's.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

impl Config {
    /// Reads the file at `--config`, or at [`DEFAULT_PATH`], where no file means all defaults.
    pub fn load(chosen: Option<&Path>) -> Result<Self, ConfigError> {
        let path = chosen.unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|wrong| ConfigError::Wrong(path.into(), wrong)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match chosen {
                None => Ok(Self::default()),
                Some(path) => Err(ConfigError::Missing(path.into())),
            },
            Err(error) => Err(ConfigError::Unreadable(path.into(), error)),
        }
    }

    /// The configuration that a file's text means.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let file: File = toml::from_str(text).map_err(|error| Mistake::located(text, &error))?;
        let default = Self::default();
        let operators = operators(text, &file)?;
        let dns = dns(&file);
        let slice = slice(text, &file)?;
        Ok(Self {
            prefix: prefix(text, &file)?,
            nat66: match file.nat66.as_ref().map(Spanned::get_ref) {
                None | Some(file::Nat66::Auto) => true,
                Some(file::Nat66::Never) => false,
            },
            subnet: file.subnet.as_ref().map(|number| *number.get_ref()),
            grace: file.renumber.grace.as_ref().map_or(default.grace, |v| v.get_ref().0.0),
            settle: file.renumber.settle.as_ref().map_or(default.settle, |v| v.get_ref().0.0),
            instance: file.instance.map_or(default.instance, |v| v.into_inner().0),
            mode: match file.mode.map(Spanned::into_inner) {
                None => default.mode,
                Some(file::Mode::Bridge) => Mode::Bridge,
                Some(file::Mode::Routed) => Mode::Routed,
            },
            mtu: file.mtu.and_then(|v| v.into_inner().0),
            uplink: file.uplink.and_then(|v| v.into_inner().0.0),
            ndp_proxy: file.ndp_proxy.is_some_and(Spanned::into_inner),
            quarantine: file
                .addresses
                .quarantine
                .map_or(default.quarantine, |v| v.into_inner().0.0),
            slice,
            wished: file.addresses.wished.as_ref().map_or(default.wished, people),
            users: file.limits.users.as_ref().map_or(default.users, people),
            operators,
            per_owner: file.limits.per_owner.map_or(default.per_owner, Spanned::into_inner),
            ingress: match file.firewall.ingress.map(Spanned::into_inner) {
                None => default.ingress,
                Some(Verdict::Deny) => Ingress::Deny,
                Some(Verdict::Allow) => Ingress::Allow,
            },
            egress: match file.firewall.egress.map(Spanned::into_inner) {
                None => default.egress,
                Some(Verdict::Allow) => Egress::Allow,
                Some(Verdict::Deny) => Egress::Deny(Vec::new()),
            },
            east_west: match file.firewall.east_west.map(Spanned::into_inner) {
                None => default.east_west,
                Some(file::EastWest::Policy) => EastWest::Policy,
                Some(file::EastWest::Owner) => EastWest::Owner,
                Some(file::EastWest::Deny) => EastWest::Deny,
            },
            host: match file.firewall.host.map(Spanned::into_inner) {
                None => default.host,
                Some(file::HostPolicy::AsOutside) => HostAccess::AsOutside,
                Some(file::HostPolicy::Deny) => HostAccess::Deny,
            },
            flows: file.limits.flows.map_or(default.flows, |v| NonZeroU32::new(v.into_inner())),
            openings: file.firewall.openings.as_ref().map_or(default.openings, ways),
            allow: file
                .firewall
                .allow
                .as_ref()
                .map(|all| all.get_ref().iter().map(allow).collect()),
            name: file.registry.name.as_ref().map_or(default.name, |name| name.get_ref().0.clone()),
            reserved: file.registry.reserved.as_ref().map_or(default.reserved, labels),
            dns,
            registry: registry(text, file.registry)?,
            tcp: file.api.tcp.as_ref().map_or(default.tcp, addresses),
            run_dir: None,
            state_dir: None,
            resolv_conf: None,
        })
    }

    /// The directory of volatile state: `/run/INSTANCE`.
    pub fn run_dir(&self) -> PathBuf {
        let usual = || Path::new("/run").join(self.instance.as_str());
        self.run_dir.clone().unwrap_or_else(usual)
    }

    /// The directory of lasting state: `/var/lib/INSTANCE`.
    pub fn state_dir(&self) -> PathBuf {
        let usual = || Path::new("/var/lib").join(self.instance.as_str());
        self.state_dir.clone().unwrap_or_else(usual)
    }

    /// Where the host's resolvers are named.
    pub fn resolv_conf(&self) -> PathBuf {
        self.resolv_conf.clone().unwrap_or_else(|| PathBuf::from("/etc/resolv.conf"))
    }

    /// The unix socket: `INSTANCE.sock` in [`Self::run_dir`].
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join(format!("{}.sock", self.instance))
    }

    /// Where a secret is that the configuration names: an absolute path is itself, a mere name that
    /// of a credential (`LoadCredential=` of the unit). Where there are no credentials, as when the
    /// daemon is started by hand, it is a file beside the configuration.
    pub fn secret(path: &Path) -> PathBuf {
        let credentials = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        credentials.unwrap_or_else(|| PathBuf::from("/etc/v6pod")).join(path)
    }

    /// What this daemon does not do, and what that means for its users.
    pub fn switched_off(&self) -> Vec<SwitchedOff> {
        later::switched_off(self)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: Instance::default(),
            prefix: PrefixSource::Auto,
            nat66: true,
            subnet: None,
            grace: Duration::from_secs(600),
            settle: Duration::from_secs(5),
            mode: Mode::Bridge,
            mtu: None,
            uplink: None,
            ndp_proxy: false,
            quarantine: Duration::from_secs(300),
            slice: None,
            wished: People::default(),
            per_owner: 256,
            ingress: Ingress::Deny,
            egress: Egress::Allow,
            east_west: EastWest::Policy,
            host: HostAccess::AsOutside,
            flows: NonZeroU32::new(16_384),
            openings: Ways { annotations: true, published: true, labels: false },
            allow: None,
            users: People(vec![Who::Everybody]),
            operators: People::default(),
            registry: Registry::Embedded,
            dns: Some(Dns::default()),
            name: Template::default(),
            reserved: ["consul", "vault", "nomad"].map(str::to_owned).into(),
            tcp: vec![(Ipv4Addr::LOCALHOST, 6781).into(), (Ipv6Addr::LOCALHOST, 6781).into()],
            run_dir: None,
            state_dir: None,
            resolv_conf: None,
        }
    }
}

fn addresses(written: &Spanned<Vec<Text<Loopback>>>) -> Vec<SocketAddr> {
    written.get_ref().iter().map(|address| address.0.0).collect()
}

fn ways(written: &Spanned<Vec<file::Source>>) -> Ways {
    let has = |source| written.get_ref().contains(&source);
    Ways {
        annotations: has(file::Source::Annotations),
        published: has(file::Source::Published),
        labels: has(file::Source::Labels),
    }
}

fn allow(written: &file::Allow) -> Allow {
    Allow {
        users: People(written.users.iter().map(|who| who.0.clone()).collect()),
        ports: written.ports.iter().map(|ports| ports.0.0).collect(),
    }
}

fn people(written: &Spanned<Vec<Text<Who>>>) -> People {
    People(written.get_ref().iter().map(|who| who.0.clone()).collect())
}

/// `limits.operators`: what everybody may is no operator's right.
fn operators(text: &str, file: &File) -> Result<People, Mistake> {
    let Some(written) = &file.limits.operators else { return Ok(People::default()) };
    let operators = people(written);
    if operators.0.contains(&Who::Everybody) {
        let reason = "\"*\" would give every user everybody's containers; name users and @groups";
        return Err(Mistake::value(text, written.span().start, "limits.operators", &reason));
    }
    Ok(operators)
}

fn labels(written: &Spanned<Vec<Text<Label>>>) -> Vec<String> {
    written.get_ref().iter().map(|label| label.0.0.clone()).collect()
}

/// `prefix` and `subnet` together.
fn prefix(text: &str, file: &File) -> Result<PrefixSource, Mistake> {
    let range = match file.prefix.as_ref().map(|prefix| &prefix.get_ref().0) {
        Some(PrefixText::Range(range)) => *range,
        // What is delegated later is cut by the number.
        Some(PrefixText::File(path)) => return Ok(PrefixSource::File(path.clone())),
        Some(PrefixText::Auto) | None => return Ok(PrefixSource::Auto),
    };
    let Some(number) = &file.subnet else { return Ok(PrefixSource::Static(range)) };
    range
        .subnet(*number.get_ref())
        .map(PrefixSource::Static)
        .map_err(|error| Mistake::value(text, number.span().start, "subnet", &error))
}

/// `addresses.per_owner`: a part of the prefix, if that is known here.
fn slice(text: &str, file: &File) -> Result<Option<u8>, Mistake> {
    let Some(written) = &file.addresses.per_owner else { return Ok(None) };
    let Slice::Length(length) = written.get_ref().0 else { return Ok(None) };
    match prefix(text, file)? {
        PrefixSource::Static(prefix) if length <= prefix.length() => {
            let reason = format!("{prefix} has no parts of this length; write a longer one");
            Err(Mistake::value(text, written.span().start, "addresses.per_owner", &reason))
        }
        _ => Ok(Some(length)),
    }
}

/// `dns`: where names go nowhere there is none.
fn dns(file: &File) -> Option<Dns> {
    let written = &file.dns;
    let nowhere = file.registry.kind.as_ref().is_some_and(|k| *k.get_ref() == RegistryKind::None);
    if nowhere || written.enabled.as_ref().is_some_and(|on| !on.get_ref()) {
        return None;
    }
    let default = Dns::default();
    Some(Dns {
        zone: written.zone.as_ref().map_or(default.zone, |zone| zone.get_ref().0.0.clone()),
        scope: match written.scope.as_ref().map(Spanned::get_ref) {
            None | Some(file::Scope::Host) => Scope::Host,
            Some(file::Scope::Owner) => Scope::Owner,
        },
        containers: written.containers.as_ref().is_none_or(|on| *on.get_ref()),
    })
}

/// `registry`; the table of a registry that is not chosen is checked and means nothing.
fn registry(text: &str, written: file::Registry) -> Result<Registry, Mistake> {
    let consul = consul(text, written.consul)?;
    Ok(match written.kind.map(Spanned::into_inner) {
        None | Some(RegistryKind::Embedded) => Registry::Embedded,
        Some(RegistryKind::None) => Registry::None,
        Some(RegistryKind::Consul) => Registry::Consul(consul),
    })
}

fn consul(text: &str, written: file::Consul) -> Result<Consul, Mistake> {
    let usual =
        ConsulUrl::Http(Authority { host: Host::Ip(Ipv6Addr::LOCALHOST.into()), port: 8500 });
    let tls = [
        ("registry.consul.ca_file", &written.ca_file),
        ("registry.consul.cert_file", &written.cert_file),
        ("registry.consul.key_file", &written.key_file),
    ];
    let places =
        tls.map(|(key, file)| Some((key, file.as_ref().filter(|f| f.get_ref().0.0.is_some())?)));
    let at = written.address.as_ref().map_or(0, |url| url.span().start);
    let address = written.address.map_or(usual, |url| url.into_inner().0);
    let encrypted = matches!(address, ConsulUrl::Https(_));
    if encrypted && !cfg!(feature = "consul-tls") {
        let reason = "this v6podd was built without TLS; write http:// or unix://";
        return Err(Mistake::value(text, at, "registry.consul.address", &reason));
    }
    if let Some((key, file)) = places.into_iter().flatten().next().filter(|_| !encrypted) {
        let reason = "it is for an address that begins with https://; leave it out";
        return Err(Mistake::value(text, file.span().start, key, &reason));
    }
    let [_, cert, key] = places;
    if let (Some((name, file)), None) | (None, Some((name, file))) = (cert, key) {
        let reason = "cert_file and key_file go together; write both or none";
        return Err(Mistake::value(text, file.span().start, name, &reason));
    }
    let file =
        |written: Option<Spanned<Text<SecretFile>>>| written.and_then(|f| f.into_inner().0.0);
    let identity = file(written.cert_file).zip(file(written.key_file));
    Ok(Consul {
        address,
        datacenter: written.datacenter.and_then(|d| d.into_inner().0.named()),
        token_file: file(written.token_file),
        ca_file: file(written.ca_file),
        identity: identity.map(|(cert_file, key_file)| Identity { cert_file, key_file }),
    })
}
