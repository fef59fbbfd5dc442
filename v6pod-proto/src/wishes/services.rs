//! `SERVICE_NAME`, `SERVICE_80_TAGS`: what a container's environment says of its services, as
//! registrator takes it.
//!
//! Only what is told here is known: `SERVICE_IGNORE`, `SERVICE_NAME`, `_TAGS`, `_CHECK_HTTP`, `_CHECK_TCP`
//! and `_CHECK_TTL`, the same of a port, and of one `_IPV6`. Above all never a `_SCRIPT` or a `_CMD`, with
//! which registrator has programs run.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::check::Probe;
use super::{NameWish, Protocol, Source, Tags, WishError, number};

const IGNORE: &str = "SERVICE_IGNORE";
const PREFIX: &str = "SERVICE_";

/// More ports than a container has services on.
const PORTS: usize = 64;

/// What is said of one port, or of all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// `SERVICE_80_NAME`: the name to be registered by.
    pub name: Option<NameWish>,
    /// `SERVICE_80_TAGS`: words for the registry.
    pub tags: Option<Tags>,
    /// `SERVICE_80_IPV6=tcp`: the port is served on the container's own address. Of no port it means nothing.
    pub ipv6: Option<Protocol>,
    /// `SERVICE_80_CHECK_HTTP=/health`, `SERVICE_80_CHECK_TCP=true`, `SERVICE_80_CHECK_TTL=30s`: how it is
    /// seen whether it is well. Of several the first by name counts.
    pub check: Option<Probe>,
}

/// All that is said. Serialised as the map of variables that says the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// `SERVICE_IGNORE`: nothing of it is to be registered. Any value that is not empty.
    pub ignore: bool,
    /// Of whatever port: `SERVICE_NAME`, `SERVICE_TAGS`, `SERVICE_CHECK_HTTP`.
    pub all: Service,
    /// By port.
    pub ports: BTreeMap<u16, Service>,
}

enum Variable {
    Ignore,
    /// Of a port, or of all.
    Of(Option<u16>, Part),
}

#[derive(Clone, Copy)]
enum Part {
    Name,
    Tags,
    Ipv6,
    CheckHttp,
    CheckTcp,
    CheckTtl,
}

impl Part {
    const ALL: [(&str, Self); 6] = [
        ("CHECK_HTTP", Self::CheckHttp),
        ("CHECK_TCP", Self::CheckTcp),
        ("CHECK_TTL", Self::CheckTtl),
        ("IPV6", Self::Ipv6),
        ("NAME", Self::Name),
        ("TAGS", Self::Tags),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(known, part)| (known == name).then_some(part))
    }
}

impl Variable {
    fn named(name: &str) -> Option<Self> {
        if name == IGNORE {
            return Some(Self::Ignore);
        }
        let rest = name.strip_prefix(PREFIX)?;
        if let Some(part) = Part::named(rest) {
            let of_all = !matches!(part, Part::Ipv6);
            return of_all.then_some(Self::Of(None, part));
        }
        let (port, part) = rest.split_once('_')?;
        let port = u16::try_from(number(port, 1..=65535)?).ok()?;
        Some(Self::Of(Some(port), Part::named(part)?))
    }
}

impl Service {
    fn take(&mut self, part: Part, value: &str) -> Result<(), &'static str> {
        let check = |known: &Option<Probe>, check| Some(known.clone().unwrap_or(check));
        match part {
            Part::Name => self.name = Some(value.parse()?),
            Part::Tags => self.tags = Some(value.parse()?),
            Part::Ipv6 => self.ipv6 = Some(value.parse()?),
            Part::CheckHttp => self.check = check(&self.check, Probe::http(value)?),
            Part::CheckTcp if value == "true" => self.check = check(&self.check, Probe::Tcp),
            Part::CheckTcp => return Err("write true"),
            Part::CheckTtl => self.check = check(&self.check, Probe::Ttl(value.parse()?)),
        }
        Ok(())
    }

    /// What is said, by the names of its parts.
    fn parts(&self) -> Vec<(&'static str, String)> {
        let check = self.check.as_ref().map(|check| match check {
            Probe::Http(path) => ("CHECK_HTTP", path.to_string()),
            Probe::Tcp => ("CHECK_TCP", "true".to_owned()),
            Probe::Ttl(ttl) => ("CHECK_TTL", ttl.to_string()),
        });
        let all = [
            self.name.as_ref().map(|name| ("NAME", name.to_string())),
            self.tags.as_ref().map(|tags| ("TAGS", tags.to_string())),
            self.ipv6.map(|protocol| ("IPV6", protocol.as_str().to_owned())),
            check,
        ];
        all.into_iter().flatten().collect()
    }
}

impl Services {
    /// Whether a variable of this name says something of services.
    pub fn knows(variable: &str) -> bool {
        Variable::named(variable).is_some()
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads variables. Those that say nothing of services are passed over.
    pub(super) fn read_each<'a>(
        all: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> (Self, Vec<WishError>) {
        let (mut services, mut wrong) = (Self::default(), Vec::new());
        for (name, value) in all {
            if let Err(right) = services.take(name, value) {
                let annotation = name.to_owned();
                wrong.push(WishError { source: Source::Environment, annotation, right });
            }
        }
        (services, wrong)
    }

    /// The variables that say the same, by name.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        if self.ignore {
            all.insert(IGNORE.to_owned(), "true".to_owned());
        }
        all.extend(
            self.all.parts().into_iter().map(|(part, value)| ([PREFIX, part].concat(), value)),
        );
        for (port, service) in &self.ports {
            let parts = service.parts().into_iter();
            all.extend(parts.map(|(part, value)| (format!("{PREFIX}{port}_{part}"), value)));
        }
        all
    }

    fn take(&mut self, variable: &str, value: &str) -> Result<(), &'static str> {
        match Variable::named(variable) {
            // What is empty says nothing.
            Some(_) if value.is_empty() => {}
            None => {}
            Some(Variable::Ignore) => self.ignore = true,
            Some(Variable::Of(None, part)) => self.all.take(part, value)?,
            Some(Variable::Of(Some(port), part)) => {
                if self.ports.len() >= PORTS && !self.ports.contains_key(&port) {
                    return Err("there are 64 ports with variables already");
                }
                let mut service = self.ports.get(&port).cloned().unwrap_or_default();
                service.take(part, value)?;
                self.ports.insert(port, service);
            }
        }
        Ok(())
    }
}

impl Serialize for Services {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.variables())
    }
}

impl<'de> Deserialize<'de> for Services {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        let (services, wrong) =
            Self::read_each(map.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        wrong.into_iter().next().map_or(Ok(services), |wrong| Err(de::Error::custom(wrong)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_20_what_is_said_is_written_as_it_is_read_and_what_is_not_known_is_passed_over() {
        let said = [
            ("SERVICE_443_CHECK_TCP", "true"),
            ("SERVICE_80_CHECK_HTTP", "/health"),
            ("SERVICE_80_IPV6", "tcp"),
            ("SERVICE_80_NAME", "web"),
            ("SERVICE_80_TAGS", "a,b"),
            ("SERVICE_CHECK_TTL", "90s"),
            ("SERVICE_IGNORE", "true"),
            ("SERVICE_NAME", "all"),
            ("SERVICE_TAGS", "c"),
        ];
        let more = [
            ("SERVICE_80_SCRIPT", "rm -rf /"),
            ("SERVICE_80_CHECK_SCRIPT", "rm -rf /"),
            ("SERVICE_80_CHECK_CMD", "rm -rf /"),
            ("SERVICE_80_CHECK_DOCKER", "rm -rf /"),
            ("SERVICE_CHECK_CMD", "x"),
            ("SERVICE_IPV6", "tcp"),
            ("SERVICE_CHECK_SCRIPT", "x"),
            ("SERVICE_0_NAME", "x"),
            ("SERVICE_080_NAME", "x"),
            ("SERVICE_65536_NAME", "x"),
            ("SERVICE_ID", "x"),
            ("X_SERVICE_NAME", "x"),
            ("SERVICE_81_NAME", ""),
        ];
        let (services, wrong) = Services::read_each(said.into_iter().chain(more));
        assert_eq!(wrong, []);
        let written = services.variables();
        let pairs: Vec<_> = written.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(pairs, said);
        let json = serde_json::to_string(&services).unwrap();
        assert_eq!(serde_json::from_str::<Services>(&json).unwrap(), services);
    }

    #[test]
    fn what_is_wrong_is_named_and_the_rest_stays() {
        let said = [
            ("SERVICE_NAME", "Web Server"),
            ("SERVICE_80_IPV6", "sctp"),
            ("SERVICE_81_NAME", "x"),
            ("SERVICE_81_CHECK_HTTP", "http://192.0.2.1/"),
            ("SERVICE_81_CHECK_TCP", "192.0.2.1:22"),
        ];
        let (services, wrong) = Services::read_each(said);
        assert_eq!(services.variables().into_keys().collect::<Vec<_>>(), ["SERVICE_81_NAME"]);
        assert_eq!(wrong.len(), 4);
        assert!(wrong[0].to_string().starts_with("the variable SERVICE_NAME: write 1 to 63"));
    }
}
