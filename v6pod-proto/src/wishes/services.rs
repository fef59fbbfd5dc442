//! `SERVICE_NAME`, `SERVICE_80_TAGS`: what a container's environment says of its services, as
//! registrator takes it.
//!
//! Only what is told here is known: `SERVICE_IGNORE`, `SERVICE_NAME`, and of a port `_NAME`, `_TAGS`
//! and `_IPV6`. Above all never a `_SCRIPT`, with which registrator has programs run.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{NameWish, Protocol, Source, Tags, WishError, number};

const IGNORE: &str = "SERVICE_IGNORE";
const NAME: &str = "SERVICE_NAME";

/// More ports than a container has services on.
const PORTS: usize = 64;

/// What is said of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// `SERVICE_80_NAME`: the name to be registered by.
    pub name: Option<NameWish>,
    /// `SERVICE_80_TAGS`: words for the registry.
    pub tags: Option<Tags>,
    /// `SERVICE_80_IPV6=tcp`: the port is served on the container's own address.
    pub ipv6: Option<Protocol>,
}

/// All that is said. Serialised as the map of variables that says the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// `SERVICE_IGNORE`: nothing of it is to be registered. Any value that is not empty.
    pub ignore: bool,
    /// `SERVICE_NAME`: the name to be registered by.
    pub name: Option<NameWish>,
    /// By port.
    pub ports: BTreeMap<u16, Service>,
}

enum Variable {
    Ignore,
    Name,
    Of(u16, Part),
}

enum Part {
    Name,
    Tags,
    Ipv6,
}

impl Variable {
    fn named(name: &str) -> Option<Self> {
        match name {
            IGNORE => return Some(Self::Ignore),
            NAME => return Some(Self::Name),
            _ => {}
        }
        let (port, part) = name.strip_prefix("SERVICE_")?.split_once('_')?;
        let port = u16::try_from(number(port, 1..=65535)?).ok()?;
        let part = match part {
            "NAME" => Part::Name,
            "TAGS" => Part::Tags,
            "IPV6" => Part::Ipv6,
            _ => return None,
        };
        Some(Self::Of(port, part))
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
        all.extend(self.name.iter().map(|name| (NAME.to_owned(), name.to_string())));
        for (port, service) in &self.ports {
            let mut say = |part: &str, value: Option<String>| {
                all.extend(value.map(|value| (format!("SERVICE_{port}_{part}"), value)));
            };
            say("NAME", service.name.as_ref().map(ToString::to_string));
            say("TAGS", service.tags.as_ref().map(ToString::to_string));
            say("IPV6", service.ipv6.map(|protocol| protocol.as_str().to_owned()));
        }
        all
    }

    fn take(&mut self, variable: &str, value: &str) -> Result<(), &'static str> {
        match Variable::named(variable) {
            // What is empty says nothing.
            Some(_) if value.is_empty() => {}
            None => {}
            Some(Variable::Ignore) => self.ignore = true,
            Some(Variable::Name) => self.name = Some(value.parse()?),
            Some(Variable::Of(port, part)) => {
                if self.ports.len() >= PORTS && !self.ports.contains_key(&port) {
                    return Err("there are 64 ports with variables already");
                }
                let mut service = self.ports.get(&port).cloned().unwrap_or_default();
                match part {
                    Part::Name => service.name = Some(value.parse()?),
                    Part::Tags => service.tags = Some(value.parse()?),
                    Part::Ipv6 => service.ipv6 = Some(value.parse()?),
                }
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
    fn what_is_said_is_written_as_it_is_read_and_what_is_not_known_is_passed_over() {
        let said = [
            ("SERVICE_80_IPV6", "tcp"),
            ("SERVICE_80_NAME", "web"),
            ("SERVICE_80_TAGS", "a,b"),
            ("SERVICE_IGNORE", "true"),
            ("SERVICE_NAME", "all"),
        ];
        let more = [
            ("SERVICE_80_SCRIPT", "rm -rf /"),
            ("SERVICE_80_CHECK_SCRIPT", "rm -rf /"),
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
        let said =
            [("SERVICE_NAME", "Web Server"), ("SERVICE_80_IPV6", "sctp"), ("SERVICE_81_NAME", "x")];
        let (services, wrong) = Services::read_each(said);
        assert_eq!(services.variables().into_keys().collect::<Vec<_>>(), ["SERVICE_81_NAME"]);
        assert_eq!(wrong.len(), 2);
        assert!(wrong[0].to_string().starts_with("the variable SERVICE_NAME: write 1 to 63"));
    }
}
