//! Single values of the file: each is parsed whole or refused with what it should have been.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use v6pod_proto::LinkName;
use v6pod_proto::wishes::Opening;

use crate::core::Prefix;
use crate::core::open::Allowed;
use crate::core::prefix::PrefixError;

/// Why a text is not the value it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    fn new(wrong: &str, right: &str) -> Self {
        // The file is the administrator's: its words may be repeated, escaped.
        Self(format!("{wrong:?} is not {right}"))
    }
}

/// A TOML string that is parsed by its type's [`FromStr`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
    }
}

/// A span of time: a whole number and one of `s`, `m`, `h`, `d`, at most 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const LONGEST: u64 = 365 * 86400;
        let refused = || Refused::new(text, "a time of at most 365 days such as \"90s\" or \"5m\"");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
        let (number, unit) = text.split_at(split);
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86400,
            _ => return Err(refused()),
        };
        let number: u64 = number.parse().map_err(|_| refused())?;
        let total = number.checked_mul(seconds).filter(|total| *total <= LONGEST);
        total.map(|total| Self(Duration::from_secs(total))).ok_or_else(refused)
    }
}

/// `prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PrefixText {
    Auto,
    Range(Prefix),
    File(PathBuf),
}

impl FromStr for PrefixText {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("file:") {
            Some(path) => path.parse().map(|Absolute(path)| Self::File(path)),
            None if text == "auto" => Ok(Self::Auto),
            None => text
                .parse()
                .map(Self::Range)
                .map_err(|e: PrefixError| Refused(format!("{e}; or write \"auto\""))),
        }
    }
}

/// `uplink`: an interface, or none for that of the default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uplink(pub(super) Option<LinkName>);

impl FromStr for Uplink {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self(None)),
            name => name.parse().map(|name| Self(Some(name))).map_err(|e| {
                Refused(format!("{name:?} is neither \"auto\" nor an interface: {e}"))
            }),
        }
    }
}

/// `mtu`, in bytes: IPv6's least (RFC 8200, section 5) to veth's most (`ETH_MAX_MTU`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mtu(pub(super) Option<u32>);

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Mtu;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a number of bytes from 1280 to 65535")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mtu, E> {
                let auto = (text == "auto").then_some(Mtu(None));
                auto.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Mtu, E> {
                let bytes = u32::try_from(number).ok().filter(|n| (1280..=65535).contains(n));
                let set = bytes.map(|bytes| Mtu(Some(bytes)));
                set.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// `addresses.per_owner`: `"none"`, or the length of each owner's slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slice {
    None,
    Length(u8),
}

impl FromStr for Slice {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || Refused::new(text, "\"none\" or a prefix length such as \"/96\"");
        if text == "none" {
            return Ok(Self::None);
        }
        let digits = text.strip_prefix('/').filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        let length: u8 = digits.ok_or_else(refused)?.parse().map_err(|_| refused())?;
        if (17..=124).contains(&length) { Ok(Self::Length(length)) } else { Err(refused()) }
    }
}

/// Somebody that the file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// `*`.
    Everybody,
    /// A user, by name or number.
    User(String),
    /// `@group`, by name or number: everybody who is in it.
    Group(String),
}

/// The users and groups of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct People(pub Vec<Who>);

impl FromStr for Who {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self::Everybody);
        }
        let (name, who): (_, fn(String) -> Self) = match text.strip_prefix('@') {
            Some(name) => (name, Self::Group),
            None => (text, Self::User),
        };
        // What useradd(8) takes by default, or a number.
        let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let first = name.bytes().next().is_some_and(|b| b != b'-' && b != b'.');
        if first && name.len() <= 32 && name.bytes().all(letter) {
            Ok(who(name.to_owned()))
        } else {
            Err(Refused::new(text, "\"*\", a user such as \"alice\" or a group such as \"@staff\""))
        }
    }
}

/// `firewall.allow.ports`: `tcp/80`, `udp/1024-65535`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports(pub(super) Allowed);

impl FromStr for Ports {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // From where is the user's to say.
        let opening = text.parse::<Opening>().ok().filter(|_| !text.contains('@'));
        let allowed = opening.map(|Opening { protocol, ports, .. }| Allowed { protocol, ports });
        let refused = || Refused::new(text, "ports such as \"tcp/80\" or \"udp/1024-65535\"");
        allowed.map(Self).ok_or_else(refused)
    }
}

/// A DNS label as names are registered: 1 to 63 lower-case letters, digits and inner `-`
/// (RFC 1123, section 2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label(pub(super) String);

impl FromStr for Label {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let ends = !text.starts_with('-') && !text.ends_with('-');
        if (1..=63).contains(&text.len()) && ends && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Refused::new(text, "a name of 1 to 63 lower-case letters, digits and inner '-'"))
        }
    }
}

/// A DNS name of such labels, at most 253 characters long (RFC 1035, section 2.3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Zone(pub(super) String);

impl FromStr for Zone {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= 253 && text.split('.').all(|label| label.parse::<Label>().is_ok()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Refused::new(text, "a zone such as \"v6pod.internal\""))
        }
    }
}

/// A path that begins at the root and goes up nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Absolute(PathBuf);

impl FromStr for Absolute {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = Path::new(text);
        let up = path.components().any(|part| part == std::path::Component::ParentDir);
        if path.is_absolute() && !up && !text.contains('\0') {
            Ok(Self(path.to_owned()))
        } else {
            Err(Refused::new(text, "an absolute path without \"..\""))
        }
    }
}

/// `registry.consul.token_file`, `ca_file`, `cert_file`, `key_file`: the empty text, an absolute path, or
/// a credential's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SecretFile(pub(super) Option<PathBuf>);

impl FromStr for SecretFile {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed) {
            return Ok(Self(Some(text.into())));
        }
        if text.is_empty() {
            return Ok(Self(None));
        }
        let refused = |_| Refused::new(text, "an absolute path, or the name of a credential");
        text.parse().map(|Absolute(path)| Self(Some(path))).map_err(refused)
    }
}

/// `registry.consul.datacenter`: the empty text, or a name of letters, digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Datacenter(String);

impl Datacenter {
    /// The name, unless the agent's own will do, whichever that is.
    pub(super) fn named(self) -> Option<String> {
        Some(self.0).filter(|name| !name.is_empty())
    }
}

impl FromStr for Datacenter {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if text.len() <= 63 && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Refused::new(text, "a data centre's name"))
        }
    }
}

/// Where a server is: a literal address or a name to look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A name, not looked up yet.
    Name(String),
}

/// `HOST:PORT` as a URL writes it: IPv6 addresses in brackets (RFC 3986, section 3.2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The TCP port; never 0.
    pub port: u16,
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Authority {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || Refused::new(text, "HOST:PORT, such as \"[::1]:8500\"");
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port != 0 && digits).ok_or_else(refused)?;
        let inner = host.strip_prefix('[').map(|rest| rest.strip_suffix(']'));
        let host = match inner {
            Some(inner) => {
                let ip: Option<Ipv6Addr> = inner.and_then(|inner| inner.parse().ok());
                Host::Ip(ip.ok_or_else(refused)?.into())
            }
            None => match host.parse() {
                Ok(IpAddr::V4(ip)) => Host::Ip(ip.into()),
                // All digits and dots is a mistyped address, not a name.
                _ if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') => return Err(refused()),
                _ => host
                    .to_ascii_lowercase()
                    .parse::<Zone>()
                    .map(|_| Host::Name(host.to_ascii_lowercase()))
                    .map_err(|_| refused())?,
            },
        };
        Ok(Self { host, port })
    }
}

/// `registry.consul.address`: where an agent of Consul listens, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsulUrl {
    /// HTTP over TCP, readable by whoever is in between: for the loopback.
    Http(Authority),
    /// HTTP over TLS.
    Https(Authority),
    /// HTTP over a unix socket at this path.
    Unix(PathBuf),
}

impl FromStr for ConsulUrl {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || Refused::new(text, "an address such as \"http://[::1]:8500\"");
        match text.split_once("://").ok_or_else(refused)? {
            ("unix", path) => path.parse().map(|Absolute(path)| Self::Unix(path)),
            (scheme @ ("http" | "https"), rest) => {
                let authority = rest.strip_suffix('/').unwrap_or(rest).parse();
                let authority = authority.map_err(|_| refused())?;
                Ok(if scheme == "http" { Self::Http(authority) } else { Self::Https(authority) })
            }
            _ => Err(refused()),
        }
    }
}

/// `api.tcp`: an address of this machine that nobody else can send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loopback(pub(super) SocketAddr);

impl FromStr for Loopback {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse::<SocketAddr>().ok();
        // Not to_canonical(): an IPv4-mapped listener is nobody's intention.
        let loopback = address.filter(|a| a.ip().is_loopback() && a.port() != 0);
        let refused = || Refused::new(text, "a loopback address and port such as \"[::1]:6781\"");
        loopback.map(Self).ok_or_else(refused)
    }
}
