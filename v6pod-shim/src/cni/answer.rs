//! What the engine is told: results and errors of the specification, in the version that it asked in.

use std::net::Ipv6Addr;

use serde_json::{Value, json};
use v6pod_proto::Attachment;

use super::call::{Container, Network, SUPPORTED, Version};
use crate::daemon::Failure;

/// The codes of SPEC.md, section "Error", and from 100 on our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// A version that the plugin does not speak.
    Version = 1,
    /// A key of the configuration that the plugin cannot heed.
    Unsupported = 2,
    /// The container is not there, and nothing needs to be cleaned up.
    UnknownContainer = 3,
    /// The environment.
    Environment = 4,
    /// Reading or writing.
    Io = 5,
    /// The configuration is not JSON of the right shape.
    Decode = 6,
    /// The configuration contradicts itself.
    Config = 7,
    /// Later it may work.
    TryAgain = 11,
    /// STATUS: no ADD can succeed.
    Unavailable = 50,
    /// v6podd refused; the message is its reason.
    Refused = 100,
    /// ADD: the namespace has an attachment or an interface of that name.
    Taken = 101,
    /// CHECK: not as ADD left it.
    Changed = 102,
}

/// An error of the specification.
#[derive(Debug)]
pub(super) struct Broken {
    /// Which.
    pub(super) code: Code,
    message: String,
    details: String,
}

impl Broken {
    /// Without details.
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// A version that is not spoken.
    pub(super) fn version(asked: &str) -> Self {
        let details = format!("spoken are {}", SUPPORTED.map(Version::as_str).join(", "));
        let message = format!("CNI version {asked:?} is not spoken");
        Self { details, ..Self::new(Code::Version, message) }
    }

    /// The object that goes to stdout.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "cniVersion": Version::LATEST.as_str(),
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        let code = match &failure {
            Failure::Absent | Failure::Busy | Failure::Late | Failure::Ended => Code::TryAgain,
            Failure::Refused { status: 503 | 507 | 429, .. } => Code::TryAgain,
            Failure::Refused { status: 409, .. } => Code::Taken,
            Failure::Refused { .. } => Code::Refused,
            Failure::Garbled(_) | Failure::Namespace(_) | Failure::HostNetwork | Failure::Io(_) => {
                Code::Io
            }
        };
        Self::new(code, failure.to_string())
    }
}

/// The answer to VERSION.
pub(super) fn versions() -> Value {
    json!({
        "cniVersion": Version::LATEST.as_str(),
        "supportedVersions": SUPPORTED.map(Version::as_str),
    })
}

/// The answer to ADD: what came of the plugins before this one, and what this one added.
pub(super) fn added(
    network: &Network,
    container: &Container,
    attachment: &Attachment,
) -> Result<Value, Broken> {
    let shape = || Broken::new(Code::Decode, "prevResult is not a result of the specification");
    let mut result = network.previous.clone().unwrap_or_else(|| json!({}));
    let keys = result.as_object_mut().ok_or_else(shape)?;
    keys.insert("cniVersion".into(), network.version.as_str().into());
    let mut append = |key: &str, new: Vec<Value>| -> Result<usize, Broken> {
        let list = keys.entry(key).or_insert_with(|| json!([]));
        // Go's encoder writes null for a list that is not there.
        if list.is_null() {
            *list = json!([]);
        }
        let list = list.as_array_mut().ok_or_else(shape)?;
        let before = list.len();
        list.extend(new);
        Ok(before)
    };
    let sandbox = container.netns.as_deref().map(|path| path.display().to_string());
    let index = append(
        "interfaces",
        vec![
            json!({ "name": attachment.port }),
            json!({ "name": attachment.interface, "mac": attachment.mac, "sandbox": sandbox }),
        ],
    )?;
    let mut address = json!({
        "address": format!("{}/{}", attachment.address, attachment.prefix_length),
        "gateway": attachment.gateway,
        "interface": index + 1,
    });
    if network.version == Version::V0_4 {
        address["version"] = "6".into();
    }
    append("ips", vec![address])?;
    append("routes", vec![json!({ "dst": "::/0", "gw": attachment.gateway })])?;
    keys.entry("dns").or_insert_with(|| json!({}));
    Ok(result)
}

/// Whether a result speaks of this address.
pub(super) fn has_address(result: Option<&Value>, address: Ipv6Addr) -> bool {
    let ips = result.and_then(|result| result["ips"].as_array()).into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .any(|found: Ipv6Addr| found == address)
}
