//! `GET /api/explain`: which rule decides about a flow, and who opened it.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::wishes::Protocol;
use crate::{ContainerId, Opened, Uid, Unopened};

const KINDS: &str = "write tcp/80, udp/53, echo, reply, packet-too-big, destination-unreachable, \
                     time-exceeded or parameter-problem";

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The first packet of a flow to a port.
    Port(Protocol, u16),
    /// An echo request.
    Echo,
    /// An error about a packet of the destination's (RFC 4443, section 3).
    Error(IcmpError),
    /// A packet of a flow that the destination began.
    Reply,
}

/// The errors that IPv6 cannot live without (RFC 4890, section 4.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IcmpError {
    /// Type 1.
    DestinationUnreachable,
    /// Type 2: by which a sender learns its path MTU.
    PacketTooBig,
    /// Type 3.
    TimeExceeded,
    /// Type 4.
    ParameterProblem,
}

impl IcmpError {
    const ALL: [(&'static str, Self); 4] = [
        ("destination-unreachable", Self::DestinationUnreachable),
        ("packet-too-big", Self::PacketTooBig),
        ("time-exceeded", Self::TimeExceeded),
        ("parameter-problem", Self::ParameterProblem),
    ];
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "echo" => return Ok(Self::Echo),
            "reply" => return Ok(Self::Reply),
            _ => {}
        }
        if let Some((_, error)) = IcmpError::ALL.into_iter().find(|(word, _)| *word == text) {
            return Ok(Self::Error(error));
        }
        let (protocol, port) = text.split_once('/').ok_or(KINDS)?;
        let protocol = protocol.parse().map_err(|_| KINDS)?;
        let plain = !port.starts_with(['+', '0']);
        let port: u16 = port.parse().ok().filter(|_| plain).ok_or(KINDS)?;
        Ok(Self::Port(protocol, port))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{}/{port}", protocol.as_str()),
            Self::Echo => f.write_str("echo"),
            Self::Reply => f.write_str("reply"),
            Self::Error(error) => {
                let all = IcmpError::ALL.into_iter();
                let mut words = all.filter(|(_, of)| of == error).map(|(word, _)| word);
                f.write_str(words.next().unwrap_or_default())
            }
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The query of `GET /api/explain`.
///
/// An end is `host`, `outside`, an address, or a container's name, id, or beginning of an id. A container
/// that bears one of these two words as its name is meant by its address or id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// Who sends: `host`, `outside`, an address, or a container's name or id, or the beginning of one.
    pub source: String,
    /// To whom: the same.
    pub destination: String,
    /// What: `tcp/80`, `udp/53`, `echo`, `reply` (in a flow that the destination began),
    /// `packet-too-big`, `destination-unreachable`, `time-exceeded`, `parameter-problem`.
    #[cfg_attr(feature = "openapi", param(value_type = String))]
    pub flow: Kind,
    /// Whose process sends, where the source is this host; the caller's unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// With which address it sends, where the source is a container; its own unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", param(value_type = Option<String>))]
    pub sends_as: Option<Ipv6Addr>,
}

/// The answer to [`Explain`]: what the daemon's rules do with such a packet, and whether the kernel has
/// what that depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explanation {
    /// Who sends.
    pub source: End,
    /// To whom.
    pub destination: End,
    /// What.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub flow: Kind,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Which rule decides: the last of `chain`.
    pub rule: Rule,
    /// Why, in one sentence.
    pub why: String,
    /// What opened it, if an opening decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Opened>,
    /// What of the destination was asked for that would have opened it, and is not open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unopened: Vec<Unopened>,
    /// The rules that had something to say, in the order in which the packet meets them.
    pub chain: Vec<Met>,
    /// What the kernel has of it.
    pub kernel: Kernel,
}

/// One end of a flow, as far as the caller is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum End {
    /// A container that the caller may see.
    Container {
        /// The container.
        container: ContainerId,
        /// Its name, if it is known.
        name: Option<String>,
        /// Whose it is.
        owner: Uid,
        /// Its address.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = "ipv6"))]
        address: Ipv6Addr,
    },
    /// This host.
    Host {
        /// Whose process it is, where that matters.
        uid: Option<Uid>,
        /// The address that it was asked by, or sends with.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = "ipv6"))]
        address: Option<Ipv6Addr>,
    },
    /// An address, wherever it is: of another's container the caller is told no more than of one that
    /// is at the other end of the world.
    Address {
        /// The address.
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = "ipv6"))]
        address: Ipv6Addr,
    },
    /// Anybody outside.
    Outside,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It gets there, as far as the daemon's rules go.
    Passes,
    /// It is dropped without a word.
    Dropped,
    /// Its sender is told that nobody is there.
    Unreachable,
    /// It leaves what the caller may see: others decide.
    Leaves,
    /// No rule of the daemon's is about it.
    NotOurs,
}

/// A rule, by a word that does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Both ends are one container, whose packets do not leave it.
    Loopback,
    /// A container sends by its own port with its own address.
    Sender,
    /// It sends with another.
    Spoofed,
    /// It sends to where nothing of a container's may go: link-local, multicast, loopback.
    Scope,
    /// No container has the address.
    Vacant,
    /// An answer to what the other side began.
    Established,
    /// An error about what the other side sent.
    Related,
    /// An echo request.
    Echo,
    /// ICMPv6 of this host's own.
    HostIcmp,
    /// A process of root's on this host.
    Root,
    /// A process of the container's owner on this host.
    Owner,
    /// It was opened.
    Opening,
    /// Nothing lets it in.
    Closed,
    /// The operator has every port of every container open (`firewall.ingress`).
    IngressAllow,
    /// Containers of this host are kept apart (`firewall.east_west`).
    EastWest,
    /// Containers of one owner reach each other (`firewall.east_west`).
    SameOwner,
    /// It may reach this, of all that it does not (`firewall.egress`, `v6pod.egress`).
    Reach,
    /// It reaches what is listed alone, and this is not.
    Confined,
    /// It is for the resolver that the daemon is, which containers ask for names and nothing else.
    Resolver,
    /// It is for this host itself, whose own firewall decides; or not let through to it (`firewall.host`).
    Host,
    /// It is for somebody whom the caller is not told of.
    Leaves,
    /// Neither end is a container's.
    NotOurs,
}

/// A rule that had something to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Met {
    /// Where: `prerouting`, `routing`, `forward`, `output` or `input`; nothing for a packet that meets
    /// no rule.
    pub hook: String,
    /// Which.
    pub rule: Rule,
    /// What it says, in one sentence.
    pub why: String,
}

/// What the kernel has, looked up for this answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Kernel {
    /// Whether it does what is said here. If not, somebody has changed the daemon's tables; within a
    /// minute the daemon puts them back.
    pub agrees: bool,
    /// Whether all rules that the daemon has loaded are in force.
    pub rules: bool,
    /// The elements of sets on which the answer depends.
    pub elements: Vec<Element>,
}

/// One element of a set of the daemon's tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Element {
    /// The set.
    pub set: String,
    /// The element, as nft writes it.
    pub element: String,
    /// Whether it has to be there.
    pub wanted: bool,
    /// Whether it is.
    pub there: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_said_as_it_is_read() {
        for text in ["tcp/80", "udp/65535", "echo", "reply", "packet-too-big", "time-exceeded"] {
            let kind: Kind = text.parse().unwrap();
            assert_eq!(kind.to_string(), text);
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{text}\""));
        }
    }

    #[test]
    fn what_nobody_can_send_is_refused() {
        for wrong in
            ["", "tcp", "tcp/0", "tcp/080", "tcp/+1", "tcp/65536", "sctp/1", "TCP/1", "ping"]
        {
            assert!(wrong.parse::<Kind>().is_err(), "{wrong:?}");
        }
    }
}
