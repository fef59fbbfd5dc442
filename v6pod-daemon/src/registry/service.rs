//! What a registry holds for an attachment, and the mark by which it is known as ours.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use v6pod_proto::wishes::Check;
use v6pod_proto::{AttachmentId, Uid};

use super::Registration;
use crate::core::offer::Part;
use crate::core::{Instance, Label};

/// Consul takes no longer values in a service's meta, in bytes.
const META_VALUE_MAX: usize = 512;

const META_HOST: &str = "v6pod-host";
const META_INSTANCE: &str = "v6pod-instance";
const META_ATTACHMENT: &str = "v6pod-attachment";
const META_CONTAINER: &str = "v6pod-container";
const META_OWNER: &str = "v6pod-owner";
const META_USER: &str = "v6pod-user";
const META_NAME: &str = "v6pod-name";
const META_IMAGE: &str = "v6pod-image";
const META_CHECK: &str = "v6pod-check";
/// Of a member of a pod alone: which.
const META_MEMBER: &str = "v6pod-member";

/// What tells this daemon's services from all others, also where several hosts or several daemons of
/// one host share a registry. It stands in the services' meta; an id alone proves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    host: String,
    instance: Instance,
}

impl Mark {
    /// The mark of this instance on the host of this name. The name is brought to lower-case
    /// letters, digits, `-` and `.`, so that it can stand in an id and in a filter as it is.
    pub fn new(host: &str, instance: Instance) -> Self {
        let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let host: String = host.chars().map(allowed).take(253).collect();
        let host = if host.is_empty() { "localhost".to_owned() } else { host };
        Self { host: host.to_ascii_lowercase(), instance }
    }

    /// The id under which an attachment's own service stands in the registry: of `[a-z0-9-.]`. Those of its
    /// further services begin with it, and no other attachment's do: each has 32 digits.
    pub fn service_id(&self, attachment: &AttachmentId) -> ServiceId {
        ServiceId::new(format!("{}{attachment}", self.stem()))
    }

    /// What all ids of this daemon's services begin with.
    pub fn stem(&self) -> String {
        format!("v6pod-{}-{}-", self.host, self.instance)
    }

    /// The id of one of an attachment's services.
    pub fn part_id(&self, attachment: &AttachmentId, part: Part) -> ServiceId {
        let whole = self.service_id(attachment);
        match part {
            Part::Whole => whole,
            Part::Port(port) => ServiceId::new(format!("{whole}-{port}")),
            Part::Member(place) => ServiceId::new(format!("{whole}-m{}", u8::from(place))),
        }
    }

    /// The pairs of a service's meta that make it ours.
    pub fn meta(&self) -> [(&'static str, &str); 2] {
        [(META_HOST, &self.host), (META_INSTANCE, self.instance.as_str())]
    }

    /// Whether a service of this meta is ours.
    pub fn is_on(&self, meta: &BTreeMap<String, String>) -> bool {
        self.meta().iter().all(|(key, value)| meta.get(*key).is_some_and(|v| v == value))
    }
}

/// What a registry calls one service of ours. Clones share the text: it stands in each table of services.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(Arc<str>);

impl ServiceId {
    /// An id as a registry tells it.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a registry holds for an attachment. Two are equal if and only if there is nothing to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What the registry calls it.
    pub id: ServiceId,
    /// The name to be found by.
    pub label: Label,
    /// The address to be found.
    pub address: Ipv6Addr,
    /// Where it is served; 0 if that is not known.
    pub port: u16,
    /// Further words to be found by: the owner's login name, and what the container asks for.
    pub tags: Vec<String>,
    /// How it is seen whether it is well. It stands in the meta too, which lists bring.
    pub check: Option<Check>,
    /// The mark, and where the service comes from.
    pub meta: BTreeMap<String, String>,
}

impl Service {
    /// What stands for the registration under this mark.
    pub fn new(mark: &Mark, registration: &Registration) -> Self {
        let Registration { id, part, label, address, owner, user, container, name, .. } =
            registration;
        let check = registration.check.as_ref().map(ToString::to_string).unwrap_or_default();
        let owner = owner.to_string();
        let origin = [
            (META_ATTACHMENT, id.as_str()),
            (META_CONTAINER, container.as_str()),
            (META_OWNER, owner.as_str()),
            (META_USER, user.as_deref().unwrap_or_default()),
            (META_NAME, name.as_str()),
        ];
        let check = (!check.is_empty()).then_some((META_CHECK, check.as_str()));
        let image = registration.image.as_deref().map(|image| (META_IMAGE, image));
        let member = match part {
            Part::Member(place) => Some(u8::from(*place).to_string()),
            Part::Whole | Part::Port(_) => None,
        };
        let member = member.as_deref().map(|member| (META_MEMBER, member));
        let pairs = mark.meta().into_iter().chain(origin).chain(image).chain(check).chain(member);
        Self {
            id: mark.part_id(id, *part),
            label: label.clone(),
            address: *address,
            port: registration.port.unwrap_or(0),
            tags: tags(user.as_deref(), &registration.tags),
            check: registration.check.clone(),
            meta: pairs.map(|(key, value)| (key.to_owned(), meta_value(value))).collect(),
        }
    }

    /// The attachment that it stands for, if the meta tells.
    pub fn attachment(&self) -> Option<AttachmentId> {
        self.meta.get(META_ATTACHMENT)?.parse().ok()
    }

    /// Whether it stands for a member of the pod whose attachment it is.
    pub fn is_members(&self) -> bool {
        self.meta.contains_key(META_MEMBER)
    }

    /// Whose it is, if the meta tells.
    pub fn owner(&self) -> Option<Uid> {
        self.meta.get(META_OWNER)?.parse().ok()
    }

    /// The check that a service of this meta has.
    pub fn check_in(meta: &BTreeMap<String, String>) -> Option<Check> {
        meta.get(META_CHECK)?.parse().ok()
    }
}

/// The owner's name, as a label, for `alice.web.service.consul` must be a name; then what was asked for, each
/// once. Nobody gets in under another user's name by what he asks for: with the name of a user, only the
/// first one says who it is.
fn tags(user: Option<&str>, asked: &[String]) -> Vec<String> {
    let mut tags: Vec<String> =
        user.and_then(Label::from_name).map(|l| l.to_string()).into_iter().collect();
    for tag in asked {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    tags
}

/// A text as a meta value: without control characters, which would reach other people's terminals,
/// and no longer than Consul takes.
fn meta_value(text: &str) -> String {
    let mut value = String::new();
    for c in text.chars() {
        let c = if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        if value.len() + c.len_utf8() > META_VALUE_MAX {
            break;
        }
        value.push(c);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::testing::registration;

    #[test]
    fn a_service_bears_its_mark_and_its_origin() {
        let mark = Mark::new("Host_1.example", Instance::default());
        let service = Service::new(&mark, &registration(1, "web"));
        assert_eq!(service.id.as_str(), format!("v6pod-host-1.example-v6pod-{:032x}", 1));
        assert!(mark.is_on(&service.meta));
        assert!(!Mark::new("other", Instance::default()).is_on(&service.meta));
        assert!(!Mark::new("host-1.example", "x".parse().unwrap()).is_on(&service.meta));
        assert_eq!(service.attachment(), Some(AttachmentId::from_bits(1)));
        assert_eq!(service.tags, ["alice"]);
        assert_eq!(service.meta[META_IMAGE], "docker.io/library/nginx:1");
    }

    #[test]
    fn attack_20_hostile_names_are_harmless_in_the_meta() {
        let mut hostile = registration(1, "web");
        hostile.name = format!("\u{1b}[2J\n{}", "é".repeat(600));
        hostile.user = Some("Ali.ce".to_owned());
        let service = Service::new(&Mark::new("", Instance::default()), &hostile);
        let name = &service.meta[META_NAME];
        assert!(name.len() <= META_VALUE_MAX && !name.chars().any(char::is_control));
        assert_eq!(service.tags, ["ali-ce"]);
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        assert!(service.id.as_str().bytes().all(allowed));
    }
}
