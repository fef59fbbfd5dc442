//! What the engine asks: the environment and the configuration on stdin, parsed once (SPEC.md, sections 2
//! and 3). What is not right is an error with the code that the specification has for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use v6pod_proto::{ContainerId, LinkName, NetworkName};

use super::answer::{Broken, Code};
use crate::config::Config;
use crate::network::Plug;

/// The versions that are spoken.
pub(super) const SUPPORTED: [Version; 3] = [Version::V0_4, Version::V1_0, Version::V1_1];

/// A version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V0_4,
    V1_0,
    V1_1,
}

impl Version {
    pub(super) const LATEST: Self = Self::V1_1;

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::V0_4 => "0.4.0",
            Self::V1_0 => "1.0.0",
            Self::V1_1 => "1.1.0",
        }
    }

    /// A configuration without a version is one of 0.1.0 (libcni), which is not spoken.
    fn of(text: Option<&str>) -> Result<Self, Broken> {
        let asked = text.filter(|text| !text.is_empty()).unwrap_or("0.1.0");
        let found = SUPPORTED.into_iter().find(|version| version.as_str() == asked);
        found.ok_or_else(|| Broken::version(asked))
    }
}

/// CNI_COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    /// The command of an environment, of which it is also checked that nothing is missing.
    pub(super) fn of(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Broken> {
        let text = variable("CNI_COMMAND").unwrap_or_default();
        let (command, needed): (_, &[&str]) = match text.to_str().unwrap_or_default() {
            "ADD" => (Self::Add, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            "CHECK" => (Self::Check, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            "DEL" => (Self::Del, &["CNI_CONTAINERID", "CNI_IFNAME"]),
            "GC" => (Self::Gc, &[]),
            "STATUS" => (Self::Status, &[]),
            "VERSION" => (Self::Version, &[]),
            _ => return Err(environment(format!("CNI_COMMAND is {text:?}"))),
        };
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        match needed.iter().find(|name| !is_set(name)) {
            Some(name) => Err(environment(format!("{name} is not set"))),
            None => Ok(command),
        }
    }
}

/// A call, whole.
#[derive(Debug)]
pub(super) enum Call {
    Add(Network, Container),
    Del(Network, Container),
    Check(Network, Container),
    /// With those that are still there.
    Gc(Network, Vec<Plug>),
    Status(Network),
    Version,
}

/// The configuration, as far as it is heeded.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) version: Version,
    pub(super) name: NetworkName,
    /// What the plugins before this one came to, or ADD itself.
    pub(super) previous: Option<Value>,
    socket: Option<PathBuf>,
    /// Another than CNI_IFNAME, which a plugin before this one has made.
    interface: Option<LinkName>,
}

/// Which container, and which interface of it.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) plug: Plug,
    /// None where it is gone.
    pub(super) netns: Option<PathBuf>,
    /// The pod's name, where the engine says one.
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
    name: Option<String>,
    #[serde(rename = "prevResult")]
    previous: Option<Value>,
    ipam: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
    socket: Option<PathBuf>,
    interface: Option<LinkName>,
}

#[derive(Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

impl Call {
    /// The call that a command, the configuration and the rest of the environment make.
    pub(super) fn read(
        command: Command,
        config: &[u8],
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Broken> {
        if command == Command::Version {
            return Ok(Self::Version);
        }
        let text: Text = serde_json::from_slice(config)
            .map_err(|error| Broken::new(Code::Decode, format!("the configuration: {error}")))?;
        let version = Version::of(text.version.as_deref())?;
        let name = text.name.as_deref().unwrap_or_default();
        let name = name.parse().map_err(|error| {
            Broken::new(Code::Config, format!("the network's name {name:?}: {error}"))
        })?;
        if text.ipam.as_ref().is_some_and(|ipam| ipam.as_object().is_none_or(|o| !o.is_empty())) {
            let message = "ipam: v6podd gives addresses itself; leave the key out";
            return Err(Broken::new(Code::Unsupported, message));
        }
        let Text { previous, socket, interface, valid, .. } = text;
        // `null` is how Go writes what is not there.
        let previous = previous.filter(|previous| !previous.is_null());
        let network = Network { version, name, previous, socket, interface };
        if matches!(command, Command::Gc | Command::Status) && version < Version::V1_1 {
            let why = format!("version {} has neither GC nor STATUS", version.as_str());
            return Err(Broken::new(Code::Version, why));
        }
        let container = |network: &Network| Container::read(network, &variable);
        Ok(match command {
            Command::Add => {
                let container = container(&network)?;
                Self::Add(network, container)
            }
            Command::Del => {
                let container = container(&network)?;
                Self::Del(network, container)
            }
            Command::Check => {
                let container = container(&network)?;
                Self::Check(network, container)
            }
            Command::Gc => {
                let valid = still_there(valid, &network)?;
                Self::Gc(network, valid)
            }
            Command::Status => Self::Status(network),
            Command::Version => Self::Version,
        })
    }
}

impl Network {
    /// The daemon's socket.
    pub(super) fn socket<'a>(&'a self, config: &'a Config) -> &'a Path {
        self.socket.as_deref().unwrap_or(&config.socket)
    }

    /// The place of a container, by its id and interface as the engine says them.
    fn plug(&self, id: &str, interface: &str) -> Result<Plug, String> {
        let interface = match &self.interface {
            Some(interface) => interface.clone(),
            None => interface.parse().map_err(|error| format!("{interface:?}: {error}"))?,
        };
        let container = container_id(id).ok_or_else(|| format!("{id:?} is no container's id"))?;
        Ok(Plug { network: self.name.clone(), container, interface })
    }
}

impl Container {
    fn read(
        network: &Network,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Broken> {
        let text = |name: &str| -> Result<String, Broken> {
            let value = variable(name).unwrap_or_default();
            value.into_string().map_err(|value| environment(format!("{name} is {value:?}")))
        };
        let plug = network.plug(&text("CNI_CONTAINERID")?, &text("CNI_IFNAME")?);
        let plug = plug.map_err(environment)?;
        let netns = variable("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        let name = pod_name(&text("CNI_ARGS")?)?;
        Ok(Self { plug, netns, name })
    }
}

/// The attachments that GC is to leave. Without the list it would take all.
fn still_there(valid: Option<Vec<Valid>>, network: &Network) -> Result<Vec<Plug>, Broken> {
    let missing = || Broken::new(Code::Config, "GC without cni.dev/valid-attachments");
    let read = |valid: &Valid| network.plug(&valid.container, &valid.ifname);
    let all: Result<_, String> = valid.ok_or_else(missing)?.iter().map(read).collect();
    all.map_err(|what| Broken::new(Code::Config, format!("cni.dev/valid-attachments: {what}")))
}

/// `CNI_ARGS` is `KEY=VALUE;KEY=VALUE`. Kubernetes says the pod's name so.
fn pod_name(args: &str) -> Result<Option<String>, Broken> {
    let mut name = None;
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("K8S_POD_NAME", value)) => name = Some(value.to_owned()),
            Some(_) => {}
            None => return Err(environment(format!("CNI_ARGS has {pair:?}, which is no pair"))),
        }
    }
    Ok(name)
}

/// The daemon's ids have 64 hex digits, as most engines' have. Of any other that the specification allows
/// one is made that is always the same. An id is worth something among its owner's own alone, and tells no
/// more than that: no cryptography is needed.
fn container_id(text: &str) -> Option<ContainerId> {
    if let Ok(id) = text.parse() {
        return Some(id);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let begins = text.bytes().next()?.is_ascii_alphanumeric();
    (begins && text.bytes().all(allowed)).then_some(())?;
    // FNV-1a, from four different starts.
    let hash = |start: u64| {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        text.bytes().fold(0xcbf2_9ce4_8422_2325 ^ start, step)
    };
    let [a, b, c, d] = [0, 1, 2, 3].map(|start: u64| hash(start << 56 | start));
    format!("{a:016x}{b:016x}{c:016x}{d:016x}").parse().ok()
}

fn environment(message: String) -> Broken {
    Broken::new(Code::Environment, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn read(pairs: &[(&str, &str)], config: &str) -> Result<Call, u32> {
        let variable = |name: &str| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let command = Command::of(variable).map_err(|broken| broken.code as u32)?;
        Call::read(command, config.as_bytes(), variable).map_err(|broken| broken.code as u32)
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", ID),
        ("CNI_NETNS", "/proc/1/ns/net"),
        ("CNI_IFNAME", "eth0"),
    ];
    const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"six","type":"v6pod"}"#;

    fn with(key: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        let others = ADD.into_iter().filter(|(k, _)| *k != key);
        others.chain([(key, value)]).collect()
    }

    #[test]
    fn a_call_is_read() {
        let Ok(Call::Add(network, container)) = read(&ADD, CONFIG) else { panic!() };
        assert_eq!((network.name.as_str(), network.version), ("six", Version::V1_1));
        let Plug { container: id, interface, .. } = &container.plug;
        assert_eq!((id.as_str(), interface.as_str()), (ID, "eth0"));
        assert_eq!(container.netns.as_deref(), Some(Path::new("/proc/1/ns/net")));
        let args = with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0");
        let Ok(Call::Add(_, container)) = read(&args, CONFIG) else { panic!() };
        assert_eq!(container.name.as_deref(), Some("web-0"));
    }

    #[test]
    fn what_is_wrong_has_the_specifications_code() {
        for (key, value, code) in [
            ("CNI_COMMAND", "PLUG", 4),
            ("CNI_CONTAINERID", "", 4),
            ("CNI_CONTAINERID", "../x", 4),
            ("CNI_CONTAINERID", ".x", 4),
            ("CNI_NETNS", "", 4),
            ("CNI_IFNAME", "", 4),
            ("CNI_IFNAME", "a/b", 4),
            ("CNI_IFNAME", "sixteen-letters-", 4),
            ("CNI_ARGS", "K8S_POD_NAME", 4),
        ] {
            assert_eq!(read(&with(key, value), CONFIG).err(), Some(code), "{key}={value}");
        }
        for (config, code) in [
            ("", 6),
            ("[]", 6),
            (r#"{"cniVersion":1}"#, 6),
            (r#"{"name":"six"}"#, 1),
            (r#"{"cniVersion":"99.0.0","name":"six"}"#, 1),
            (r#"{"cniVersion":"0.3.1","name":"six"}"#, 1),
            (r#"{"cniVersion":"1.0.0"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"a b"}"#, 7),
            (r#"{"cniVersion":"1.0.0","name":"six","ipam":{"type":"host-local"}}"#, 2),
        ] {
            assert_eq!(read(&ADD, config).err(), Some(code), "{config}");
        }
        for command in ["GC", "STATUS"] {
            let old = r#"{"cniVersion":"1.0.0","name":"six","cni.dev/valid-attachments":[]}"#;
            assert_eq!(read(&[("CNI_COMMAND", command)], old).err(), Some(1), "{command}");
        }
        assert_eq!(read(&[("CNI_COMMAND", "GC")], CONFIG).err(), Some(7), "GC of everything");
    }

    #[test]
    fn a_namespace_that_is_gone_and_no_ipam_at_all_are_fine() {
        let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", ID), ("CNI_IFNAME", "eth0")];
        for config in [CONFIG, r#"{"cniVersion":"0.4.0","name":"six","ipam":{},"prevResult":null}"#]
        {
            let Ok(Call::Del(network, container)) = read(&del, config) else { panic!() };
            assert!(container.netns.is_none() && network.previous.is_none());
        }
    }

    #[test]
    fn an_id_of_another_form_is_always_the_same_and_its_own() {
        assert_eq!(container_id(ID).unwrap().as_str(), ID);
        let [a, again, b] = ["cnitool-1", "cnitool-1", "cnitool-2"].map(container_id);
        assert_eq!(a, again);
        assert_ne!(a, b);
        assert!(container_id("-x").is_none() && container_id("").is_none());
    }
}
