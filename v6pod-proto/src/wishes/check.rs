//! `http:8080/health`: how it is seen whether a container is well.
//!
//! Guarantee: there is no way to say where else than at the container itself, and none to name a program.

use std::fmt;
use std::str::FromStr;

use super::number;

/// The longest path of a check, in bytes.
const PATH: usize = 256;

/// `v6pod.check`: what the registry asks the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Whether this port takes a connection.
    Tcp {
        /// The port.
        port: u16,
    },
    /// Whether a GET of the path is answered with 2xx.
    Http {
        /// The port.
        port: u16,
        /// The path, with its `/`, in printable ASCII.
        path: Box<str>,
    },
    /// Whether the container has told the registry within this time that it is.
    Ttl(Ttl),
}

/// How long a container is well that has said so: 1 second to a day, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl(u32);

impl Ttl {
    /// In seconds.
    pub const fn seconds(self) -> u32 {
        self.0
    }
}

impl FromStr for Ttl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const DAY: u32 = 86_400;
        let (digits, unit) = match text.strip_suffix('m') {
            Some(digits) => (digits, 60),
            None => (text.strip_suffix('s').unwrap_or_default(), 1),
        };
        let seconds = number(digits, 1..=DAY).and_then(|number| number.checked_mul(unit));
        seconds
            .filter(|s| *s <= DAY)
            .map(Self)
            .ok_or("write a time such as 30s or 5m, at most a day")
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

/// How it is seen whether a service is well, at whichever port it is: registrator's `CHECK_HTTP`,
/// `CHECK_TCP` and `CHECK_TTL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET of this path.
    Http(Box<str>),
    /// A connection.
    Tcp,
    /// The container's own word.
    Ttl(Ttl),
}

impl Probe {
    /// A path to GET.
    pub(super) fn http(path: &str) -> Result<Self, &'static str> {
        let whole = path.starts_with('/') && is_path(path);
        if whole { Ok(Self::Http(path.into())) } else { Err("write a path such as /health") }
    }

    /// The check of a service at this port, if it needs one and there is one.
    pub fn at(&self, port: Option<u16>) -> Option<Check> {
        match self {
            Self::Http(path) => Some(Check::Http { port: port?, path: path.clone() }),
            Self::Tcp => Some(Check::Tcp { port: port? }),
            Self::Ttl(ttl) => Some(Check::Ttl(*ttl)),
        }
    }
}

impl Check {
    /// The port that is asked, if any is.
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { port } | Self::Http { port, .. } => Some(*port),
            Self::Ttl(_) => None,
        }
    }
}

fn is_path(path: &str) -> bool {
    path.len() <= PATH && path.bytes().all(|b| b.is_ascii_graphic())
}

impl FromStr for Check {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write tcp:PORT, http:PORT/PATH such as http:8080/health, or ttl:30s";
        let port = |digits| u16::try_from(number(digits, 1..=65535)?).ok();
        match text.split_once(':') {
            Some(("tcp", digits)) => Ok(Self::Tcp { port: port(digits).ok_or(WRONG)? }),
            Some(("http", rest)) => {
                let (digits, path) = rest.split_at(rest.find('/').ok_or(WRONG)?);
                let port = port(digits).filter(|_| is_path(path)).ok_or(WRONG)?;
                Ok(Self::Http { port, path: path.into() })
            }
            Some(("ttl", time)) => time.parse().map(Self::Ttl).map_err(|_| WRONG),
            _ => Err(WRONG),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "tcp:{port}"),
            Self::Http { port, path } => write!(f, "http:{port}{path}"),
            Self::Ttl(ttl) => write!(f, "ttl:{ttl}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_is_not_one_is_refused() {
        let long = format!("http:1/{}", "x".repeat(PATH));
        for wrong in [
            "",
            "http",
            "http:80",
            "http:/x",
            "http:0/",
            "https:1/",
            "tcp:",
            "tcp:1/x",
            "http:1/a b",
            "http:80@192.0.2.1/",
            "http:[2001:db8::1]:80/",
            "script:/bin/sh",
            "ttl:30",
            "ttl:0s",
            "ttl:1441m",
            "ttl:4294967295m",
            &long,
        ] {
            assert!(wrong.parse::<Check>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_probe_is_a_check_once_its_port_is_known() {
        let http = Probe::http("/x").unwrap();
        assert_eq!(http.at(Some(80)), Some("http:80/x".parse().unwrap()));
        assert_eq!(http.at(None), None);
        let ttl = Probe::Ttl("2m".parse().unwrap());
        assert_eq!(ttl.at(None), Some("ttl:120s".parse().unwrap()));
        for wrong in ["", "x", "http://192.0.2.1/", "/a b"] {
            assert!(Probe::http(wrong).is_err(), "{wrong:?}");
        }
    }
}
