//! What podman and netavark ask: the command line and stdin, parsed once. What v6podd would not do is an
//! error that says so, at the earliest call that asks for it.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use v6pod_proto::NetworkName;

use crate::network::Plug;

/// A call, whole.
#[derive(Debug)]
pub(super) enum Call {
    /// The network as it is to be.
    Create(Value),
    /// A container's namespace, and the container.
    Setup(PathBuf, Exec),
    /// The same again; the namespace may be gone.
    Teardown(PathBuf, Exec),
    Info,
}

/// Which container, and what it asks for.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) plug: Plug,
    /// The container's name as podman knows it; of a pod's first container, the pod's.
    pub(super) name: Option<String>,
    pub(super) fixed: Fixed,
}

/// Addresses that a container is to have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fixed {
    No,
    /// Those that it had, and its Ethernet address. `podman network reload` asks so, and `podman container
    /// restore`, of a container that would be without a network if they were refused.
    AsBefore(Vec<IpAddr>),
    /// By `--ip`, `--ip6` or `--mac-address`.
    Wanted,
}

#[derive(Deserialize)]
struct Text {
    container_id: String,
    container_name: Option<String>,
    network: Named,
    network_options: Options,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Options {
    interface_name: String,
    static_ips: Option<Vec<IpAddr>>,
    static_mac: Option<String>,
}

impl Call {
    /// The call that the words after the program's name and stdin make.
    pub(super) fn read(
        mut words: impl Iterator<Item = OsString>,
        stdin: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<Self, String> {
        let command = words.next().unwrap_or_else(|| "info".into());
        let netns = words.next().map(PathBuf::from).ok_or("a network namespace's path is missing");
        match command.to_str() {
            Some("info") => Ok(Self::Info),
            Some("create") => network(&stdin()?).map(Self::Create),
            Some("setup") => {
                let (netns, exec) = (netns?, Exec::read(&stdin()?)?);
                match exec.fixed {
                    Fixed::Wanted => Err("v6podd gives addresses itself: \
                                          leave out --ip, --ip6 and --mac-address"
                        .to_owned()),
                    _ => Ok(Self::Setup(netns, exec)),
                }
            }
            Some("teardown") => Ok(Self::Teardown(netns?, Exec::read(&stdin()?)?)),
            _ => Err(format!("no such command: {}", command.display())),
        }
    }
}

impl Exec {
    fn read(text: &[u8]) -> Result<Self, String> {
        let text: Text =
            serde_json::from_slice(text).map_err(|error| format!("what netavark says: {error}"))?;
        let Text { container_id, container_name, network, network_options: options } = text;
        let interface = options.interface_name;
        Ok(Self {
            plug: Plug {
                network: name(&network.name)?,
                container: container_id.parse().map_err(|e| format!("{container_id:?}: {e}"))?,
                interface: interface.parse().map_err(|e| format!("{interface:?}: {e}"))?,
            },
            name: container_name.filter(|name| !name.is_empty()),
            fixed: Fixed::of(options.static_ips.unwrap_or_default(), options.static_mac),
        })
    }
}

impl Fixed {
    fn of(ips: Vec<IpAddr>, mac: Option<String>) -> Self {
        let mac = mac.is_some_and(|mac| !mac.is_empty());
        match (ips.is_empty(), mac) {
            (true, false) => Self::No,
            (false, true) => Self::AsBefore(ips),
            _ => Self::Wanted,
        }
    }
}

fn name(text: &str) -> Result<NetworkName, String> {
    text.parse().map_err(|error| format!("the network's name {text:?}: {error}"))
}

/// The network that podman proposes, as v6podd can serve it.
fn network(text: &[u8]) -> Result<Value, String> {
    let mut network: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| format!("the network: {error}"))?;
    name(network.get("name").and_then(Value::as_str).unwrap_or_default())?;
    for (key, instead) in [
        ("subnets", "v6podd gives addresses itself: leave out --subnet, --gateway and --ip-range"),
        ("routes", "v6podd gives the default route and no other: leave out --route"),
        ("options", "the driver v6pod has no options: leave out --opt"),
        ("internal", "an attachment of v6podd's leads outside: leave out --internal"),
        ("network_interface", "the bridge is v6podd's: leave out --interface-name"),
        ("network_dns_servers", "v6podd serves no names here: leave out --dns"),
    ] {
        if network.get(key).is_some_and(is_said) {
            return Err(instead.to_owned());
        }
    }
    match network.get("ipam_options").map(|options| &options["driver"]) {
        None | Some(Value::Null) => {}
        Some(Value::String(driver)) if driver.is_empty() || driver == "none" => {}
        Some(_) => return Err("v6podd gives addresses itself: leave out --ipam-driver".to_owned()),
    }
    network.insert("ipv6_enabled".into(), true.into());
    network.insert("dns_enabled".into(), false.into());
    network.insert("ipam_options".into(), json!({ "driver": "none" }));
    Ok(network.into())
}

/// Whether a value is more than how Go writes that there is none.
fn is_said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(said) => *said,
        Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn read(line: &str, stdin: &Value) -> Result<Call, String> {
        let words = line.split_whitespace().map(OsString::from);
        Call::read(words, || Ok(stdin.to_string().into_bytes()))
    }

    fn exec() -> Value {
        json!({
            "container_id": ID, "container_name": "web", "port_mappings": [],
            "network": { "name": "six", "id": "2f25", "driver": "v6pod", "dns_enabled": false },
            "network_options": {
                "aliases": ["0123456789ab"], "interface_name": "eth1",
                "static_ips": null, "static_mac": null, "options": null,
            },
        })
    }

    /// As podman 5.4 proposes it.
    fn proposed() -> Value {
        json!({
            "name": "six", "id": "2f25", "driver": "v6pod", "created": "0001-01-01T00:00:00Z",
            "ipv6_enabled": false, "internal": false, "dns_enabled": true, "labels": { "a": "b" },
        })
    }

    #[test]
    fn a_call_is_read() {
        let Ok(Call::Setup(netns, exec)) = read("setup /run/netns/a", &exec()) else { panic!() };
        assert_eq!(netns, PathBuf::from("/run/netns/a"));
        assert_eq!((exec.name.as_deref(), &exec.fixed), (Some("web"), &Fixed::No));
        let Plug { network, container, interface } = exec.plug;
        assert_eq!((network.as_str(), container.as_str()), ("six", ID));
        assert_eq!(interface.as_str(), "eth1");
        assert!(matches!(read("", &Value::Null), Ok(Call::Info)));
        assert!(matches!(read("info", &Value::Null), Ok(Call::Info)));
        assert!(matches!(read("teardown /gone", &self::exec()), Ok(Call::Teardown(..))));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for line in ["setup", "teardown", "plug /run/netns/a"] {
            assert!(read(line, &exec()).is_err(), "{line}");
        }
        for (key, value) in [
            ("container_id", json!("web")),
            ("container_id", json!("../x")),
            ("network", json!({ "name": "a b" })),
            ("network_options", json!({ "interface_name": "a/b" })),
            ("network_options", json!({})),
        ] {
            let mut exec = exec();
            exec[key] = value;
            for line in ["setup /run/netns/a", "teardown /run/netns/a"] {
                assert!(read(line, &exec).is_err(), "{line} {exec}");
            }
        }
    }

    #[test]
    fn a_fixed_address_is_refused_and_one_of_before_is_not() {
        let ips = json!(["2001:db8::1"]);
        for (ips, mac, refused) in [
            (&ips, Value::Null, true),
            (&Value::Null, json!("02:00:00:00:00:01"), true),
            (&ips, json!("02:00:00:00:00:01"), false),
            (&json!([]), json!(""), false),
        ] {
            let mut exec = exec();
            exec["network_options"]["static_ips"] = ips.clone();
            exec["network_options"]["static_mac"] = mac;
            assert_eq!(read("setup /run/netns/a", &exec).is_err(), refused, "{exec}");
            assert!(read("teardown /run/netns/a", &exec).is_ok(), "{exec}");
        }
    }

    #[test]
    fn a_network_is_completed_and_otherwise_left_as_it_is() {
        let Ok(Call::Create(network)) = read("create", &proposed()) else { panic!() };
        let mut expected = proposed();
        expected["ipv6_enabled"] = true.into();
        expected["dns_enabled"] = false.into();
        expected["ipam_options"] = json!({ "driver": "none" });
        assert_eq!(network, expected);
        let Ok(Call::Create(again)) = read("create", &network) else { panic!() };
        assert_eq!(again, network);
    }

    #[test]
    fn a_network_that_asks_for_what_there_is_not_is_refused() {
        for (key, value, named) in [
            ("subnets", json!([{ "subnet": "10.0.0.0/16" }]), "--subnet"),
            ("routes", json!([{ "destination": "10.0.0.0/16", "gateway": "10.0.0.1" }]), "--route"),
            ("options", json!({ "mtu": "1400" }), "--opt"),
            ("internal", json!(true), "--internal"),
            ("network_interface", json!("br0"), "--interface-name"),
            ("network_dns_servers", json!(["::1"]), "--dns"),
            ("ipam_options", json!({ "driver": "host-local" }), "--ipam-driver"),
            ("name", json!("x".repeat(129)), "128"),
        ] {
            let mut network = proposed();
            network[key] = value;
            let error = read("create", &network).unwrap_err();
            assert!(error.contains(named), "{network}: {error}");
        }
        for network in [json!([]), json!(null), json!({})] {
            assert!(read("create", &network).is_err(), "{network}");
        }
    }
}
