//! `http:8080/health`: how it is seen whether a container is well.

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
}

impl FromStr for Check {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write tcp:PORT, or http:PORT/PATH such as http:8080/health";
        let port = |digits| u16::try_from(number(digits, 1..=65535)?).ok();
        match text.split_once(':') {
            Some(("tcp", digits)) => Ok(Self::Tcp { port: port(digits).ok_or(WRONG)? }),
            Some(("http", rest)) => {
                let (digits, path) = rest.split_at(rest.find('/').ok_or(WRONG)?);
                let plain = path.len() <= PATH && path.bytes().all(|b| b.is_ascii_graphic());
                let port = port(digits).filter(|_| plain).ok_or(WRONG)?;
                Ok(Self::Http { port, path: path.into() })
            }
            _ => Err(WRONG),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "tcp:{port}"),
            Self::Http { port, path } => write!(f, "http:{port}{path}"),
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
            &long,
        ] {
            assert!(wrong.parse::<Check>().is_err(), "{wrong:?}");
        }
    }
}
