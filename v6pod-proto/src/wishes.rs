//! What a container asks for, by its annotations.
//!
//! Guarantees: [`Wishes`] that exist are well-formed, and they are written again (as annotations, in
//! the API, in a record) so that they are read as the same. A text that is not understood to its last
//! character is an error that names the annotation and says what is right: a wish that was half
//! understood would be another one. Whether a wish is allowed is the daemon's question.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

mod check;
mod found;
mod opening;
mod services;

pub use check::{Check, Probe, Ttl};
pub use found::{Findings, OtherWishes};
pub use opening::{Egress, Opening, OpeningList, Openings, Peers, Ports, Protocol, Published};
pub use services::{Service, Services};

/// Whether an annotation of this name is a wish, understood or not.
pub fn is_wish(annotation: &str) -> bool {
    annotation.strip_prefix(ATTACH).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

const ATTACH: &str = "v6pod";
/// The annotation that opens ports.
const INGRESS: &str = "v6pod.ingress";
/// What a pod is called stands under this name.
pub const POD_NAME: &str = "name";
/// What an image is called stands under this name.
pub const IMAGE_NAME: &str = "name";
const EGRESS: &str = "v6pod.egress";
const ADDRESS: &str = "v6pod.address";
const SUBNET: &str = "v6pod.subnet";
const NAME: &str = "v6pod.name";
const TAGS: &str = "v6pod.tags";
const CHECK: &str = "v6pod.check";

/// What its user alone asks for: it opens ports, or chooses addresses. Where nobody can tell his annotation of
/// such a name from his image's, it is taken for the image's.
pub const USERS_ALONE: [&str; 3] = [INGRESS, ADDRESS, SUBNET];

/// Of all that there are.
const NAMES: [&str; 8] = [ATTACH, INGRESS, EGRESS, ADDRESS, SUBNET, NAME, TAGS, CHECK];

/// What [`WishError`] says of an annotation that nobody knows.
const ALL: &str =
    "there are v6pod and v6pod. with ingress, egress, address, subnet, name, tags or check";

/// The most tags.
const TAGS_MAX: usize = 16;

/// All wishes of one container. Serialised as the map of annotations that says the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `v6pod`: an attachment where it is not the default, or none where it is.
    pub attach: Option<bool>,
    /// `v6pod.ingress`: what is open to whom.
    pub ingress: Option<Openings>,
    /// `v6pod.egress`: what it may reach.
    pub egress: Option<Egress>,
    /// `v6pod.address`: a certain address.
    pub address: Option<AddressWish>,
    /// `v6pod.subnet`: the prefix length of a subnet of its own.
    pub subnet: Option<SubnetWish>,
    /// `v6pod.name`: the name to be registered by.
    pub name: Option<NameWish>,
    /// `v6pod.tags`: words for the registry.
    pub tags: Option<Tags>,
    /// `v6pod.check`: how the registry sees whether it is well.
    pub check: Option<Check>,
}

/// Where a wish comes from: whether it counts depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The container's user, by an annotation.
    Annotation,
    /// The user, by what he calls the container's pod.
    Pod,
    /// What its engine calls the image that it runs.
    Image,
    /// The user, by a label of the container's pod.
    PodLabel,
    /// The user, by a label.
    Label,
    /// The user, by publishing a port.
    Published,
    /// A variable of the container's environment, the user's or the image's.
    Environment,
    /// Whoever made the image, by an annotation of its manifest.
    ImageAnnotation,
    /// Whoever made the image, by a label.
    ImageLabel,
}

impl Source {
    const ALL: [Self; 9] = [
        Self::Annotation,
        Self::Pod,
        Self::Image,
        Self::PodLabel,
        Self::Label,
        Self::Published,
        Self::Environment,
        Self::ImageAnnotation,
        Self::ImageLabel,
    ];

    /// What is found there, as [`Findings`] have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Annotation => "annotations",
            Self::Pod => "pod",
            Self::Image => "image",
            Self::PodLabel => "pod_labels",
            Self::Label => "labels",
            Self::Published => "published",
            Self::Environment => "environment",
            Self::ImageAnnotation => "image_annotations",
            Self::ImageLabel => "image_labels",
        }
    }

    /// Whether it is certainly the container's user who says it.
    const fn is_users(self) -> bool {
        match self {
            Self::Annotation | Self::Pod | Self::PodLabel | Self::Label | Self::Published => true,
            Self::Image | Self::Environment | Self::ImageAnnotation | Self::ImageLabel => false,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Annotation => "annotation",
            Self::Pod => "pod",
            Self::Image => "image",
            Self::PodLabel => "pod's label",
            Self::Label => "label",
            Self::Published => "published port",
            Self::Environment => "variable",
            Self::ImageAnnotation => "image's annotation",
            Self::ImageLabel => "image's label",
        })
    }
}

/// An annotation, or a label, that is no wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WishError {
    /// What it is.
    pub source: Source,
    /// Its name.
    pub annotation: String,
    /// What would be right.
    pub right: &'static str,
}

impl fmt::Display for WishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} {}: {}", self.source, self.annotation, self.right)
    }
}

impl std::error::Error for WishError {}

impl Wishes {
    /// Reads a container's annotations. Those of other people are passed over.
    ///
    /// # Errors
    /// One of ours, the first by name, is not understood.
    pub fn read<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, WishError> {
        let (wishes, wrong) = Self::read_each(Source::Annotation, annotations);
        wrong.into_iter().next().map_or(Ok(wishes), Err)
    }

    /// Reads what comes from somewhere: what is understood, and what is not.
    pub fn read_each<'a>(
        source: Source,
        all: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> (Self, Vec<WishError>) {
        let (mut wishes, mut wrong) = (Self::default(), Vec::new());
        for (name, value) in all.into_iter().filter(|(name, _)| is_wish(name)) {
            if let Err(right) = wishes.take(name, value) {
                wrong.push(WishError { source, annotation: name.to_owned(), right });
            }
        }
        (wishes, wrong)
    }

    /// The annotations that say the same, by name.
    pub fn annotations(&self) -> BTreeMap<&'static str, String> {
        let texts = [
            (ATTACH, text(self.attach.as_ref())),
            (INGRESS, text(self.ingress.as_ref())),
            (EGRESS, text(self.egress.as_ref())),
            (ADDRESS, text(self.address.as_ref())),
            (SUBNET, text(self.subnet.as_ref())),
            (NAME, text(self.name.as_ref())),
            (TAGS, text(self.tags.as_ref())),
            (CHECK, text(self.check.as_ref())),
        ];
        texts.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()
    }

    /// Adds what is asked for in `more` and was not before. What is known stays as it is.
    pub fn complete(&mut self, more: &Self) {
        fn add<T: Clone>(known: &mut Option<T>, more: &Option<T>) {
            if known.is_none() {
                known.clone_from(more);
            }
        }
        add(&mut self.attach, &more.attach);
        add(&mut self.ingress, &more.ingress);
        add(&mut self.egress, &more.egress);
        add(&mut self.address, &more.address);
        add(&mut self.subnet, &more.subnet);
        add(&mut self.name, &more.name);
        add(&mut self.tags, &more.tags);
        add(&mut self.check, &more.check);
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            ATTACH => {
                let attach = value.parse().map_err(|_| "write true or false")?;
                self.attach = Some(attach);
            }
            INGRESS => self.ingress = Some(value.parse()?),
            EGRESS => self.egress = Some(value.parse()?),
            ADDRESS => self.address = Some(value.parse()?),
            SUBNET => self.subnet = Some(value.parse()?),
            NAME => self.name = Some(value.parse()?),
            TAGS => self.tags = Some(value.parse()?),
            CHECK => self.check = Some(value.parse()?),
            _ => return Err(ALL),
        }
        Ok(())
    }
}

fn text<T: fmt::Display>(wish: Option<&T>) -> Option<String> {
    wish.map(ToString::to_string)
}

impl Serialize for Wishes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.annotations())
    }
}

impl<'de> Deserialize<'de> for Wishes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        // Here everything is ours: what is not would be lost in silence.
        if let Some(foreign) = map.keys().find(|name| !is_wish(name)) {
            return Err(de::Error::custom(format_args!("{foreign} is no annotation of v6pod")));
        }
        Self::read(map.iter().map(|(k, v)| (k.as_str(), v.as_str()))).map_err(de::Error::custom)
    }
}

/// `v6pod.address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressWish {
    /// `stable`: the same at each start, made of owner and name.
    Stable,
    /// `::42`: these low bits in whatever prefix there is.
    Host(u64),
}

impl FromStr for AddressWish {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write stable, or the address's end such as ::42";
        if text == "stable" {
            return Ok(Self::Stable);
        }
        let address: std::net::Ipv6Addr = text.parse().map_err(|_| WRONG)?;
        // Beyond the low 64 bits it would speak of a prefix, which is not the container's to choose.
        let host = u64::try_from(u128::from(address)).map_err(|_| WRONG)?;
        // ::0 is the prefix's anycast address (RFC 4291, section 2.6.1), ::1 the gateway.
        if host < 2 { Err(WRONG) } else { Ok(Self::Host(host)) }
    }
}

impl fmt::Display for AddressWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stable => f.write_str("stable"),
            Self::Host(host) => std::net::Ipv6Addr::from(u128::from(*host)).fmt(f),
        }
    }
}

/// `v6pod.subnet`: the prefix length of the subnet, 64 to 126 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetWish(u8);

impl SubnetWish {
    /// The prefix length.
    pub const fn length(self) -> u8 {
        self.0
    }
}

impl FromStr for SubnetWish {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let length = text.strip_prefix('/').and_then(|digits| number(digits, 64..=126));
        length.and_then(|n| u8::try_from(n).ok()).map(Self).ok_or("write a length from /64 to /126")
    }
}

impl fmt::Display for SubnetWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

/// `v6pod.name`: one label of a DNS name, as it is registered (RFC 1035, section 2.3.1; a first digit
/// by RFC 1123, section 2.1). Unlike an engine's name it is not made to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameWish(Box<str>);

impl NameWish {
    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NameWish {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let whole = (1..=63).contains(&text.len()) && text.bytes().all(allowed);
        if whole && !text.starts_with('-') && !text.ends_with('-') {
            Ok(Self(text.into()))
        } else {
            Err(
                "write 1 to 63 lower-case letters, digits and '-', the latter neither first nor last",
            )
        }
    }
}

impl fmt::Display for NameWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NameWish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NameWish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// `v6pod.tags`: words for the registry, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags(Vec<String>);

impl Tags {
    /// The words.
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for Tags {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_graphic() && b != b',';
        let tags: Vec<String> = words(text).map(str::to_owned).collect();
        let good = |tag: &String| (1..=64).contains(&tag.len()) && tag.bytes().all(allowed);
        if tags.len() <= TAGS_MAX && tags.iter().all(good) {
            Ok(Self(tags))
        } else {
            Err("write at most 16 words of 1 to 64 printable ASCII characters, with commas between")
        }
    }
}

impl fmt::Display for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// The parts of a list, between commas or spaces: the command line of podman 4 takes a comma for the end
/// of an annotation.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' '])
}

/// A decimal number in a range, as it is usually written: without sign or leading zero.
fn number(digits: &str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    let number = digits.parse().ok().filter(|_| plain)?;
    range.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Result<Wishes, WishError> {
        Wishes::read([(name, value)])
    }

    #[test]
    fn what_is_right_is_written_as_it_is_read() {
        for (name, value) in [
            ("v6pod", "true"),
            ("v6pod", "false"),
            ("v6pod.ingress", "tcp/80,udp/53,tcp/5432@2001:db8::/32"),
            ("v6pod.ingress", "tcp/8000-8010@2001:db8::1/128"),
            ("v6pod.egress", "deny,tcp/443@2001:db8::/32"),
            ("v6pod.egress", "deny"),
            ("v6pod.egress", "allow"),
            ("v6pod.address", "stable"),
            ("v6pod.address", "::42"),
            ("v6pod.subnet", "/96"),
            ("v6pod.name", "web-1"),
            ("v6pod.tags", "a,b=c"),
            ("v6pod.check", "http:8080/health"),
            ("v6pod.check", "tcp:5432"),
            ("v6pod.check", "ttl:30s"),
        ] {
            let wishes = one(name, value).unwrap();
            assert!(!wishes.is_empty());
            assert_eq!(wishes.annotations()[name], value);
            let json = serde_json::to_string(&wishes).unwrap();
            assert_eq!(serde_json::from_str::<Wishes>(&json).unwrap(), wishes, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_right() {
        let error = one("v6pod.ingress", "80").unwrap_err();
        assert_eq!(error.annotation, "v6pod.ingress");
        assert_eq!(
            error.to_string(),
            "the annotation v6pod.ingress: write openings such as tcp/80, udp/5000-5010 or \
             tcp/5432@2001:db8::/32, with commas between"
        );
        for (name, value) in [
            ("v6pod", ""),
            ("v6pod", "yes"),
            ("v6pod", "True"),
            ("v6pod.address", "2001:db8::42"),
            ("v6pod.address", "::1"),
            ("v6pod.address", "::"),
            ("v6pod.address", "10.0.0.1"),
            ("v6pod.subnet", "96"),
            ("v6pod.subnet", "/63"),
            ("v6pod.subnet", "/127"),
            ("v6pod.subnet", "/+96"),
            ("v6pod.name", "Web"),
            ("v6pod.name", "-web"),
            ("v6pod.name", "a.b"),
            ("v6pod.name", ""),
            ("v6pod.tags", "a,,b"),
            ("v6pod.tags", "a, b"),
            ("v6pod.tags", "a\tb"),
            ("v6pod.tags", &["x"; 17].join(",")),
        ] {
            assert_eq!(one(name, value).unwrap_err().annotation, name, "{value:?}");
        }
    }

    #[test]
    fn a_list_has_commas_or_spaces_between() {
        for (name, spaces, commas) in [
            ("v6pod.ingress", "tcp/80 udp/53", "tcp/80,udp/53"),
            ("v6pod.egress", "deny tcp/443", "deny,tcp/443"),
            ("v6pod.tags", "a b", "a,b"),
        ] {
            assert_eq!(one(name, spaces).unwrap(), one(name, commas).unwrap());
            assert_eq!(one(name, spaces).unwrap().annotations()[name], commas);
        }
    }

    #[test]
    fn what_is_known_stays_and_what_is_not_is_added() {
        let mut known = one("v6pod.name", "web").unwrap();
        known.complete(&one("v6pod.name", "db").unwrap());
        known.complete(&one("v6pod.tags", "a").unwrap());
        let texts: Vec<_> = known.annotations().into_iter().collect();
        assert_eq!(texts, [("v6pod.name", "web".to_owned()), ("v6pod.tags", "a".to_owned())]);
    }

    #[test]
    fn a_slip_in_the_name_is_not_passed_over() {
        for name in ["v6pod.ingres", "v6pod.", "v6pod.Egress", "v6pod.egress.x"] {
            assert_eq!(one(name, "deny").unwrap_err().right, ALL, "{name}");
        }
    }

    #[test]
    fn annotations_of_others_are_passed_over() {
        for name in ["io.podman.x", "v6podx", "xv6pod", "V6POD", ""] {
            assert_eq!(one(name, "\0").unwrap(), Wishes::default());
        }
        assert!(serde_json::from_str::<Wishes>(r#"{"io.podman.x":"y"}"#).is_err());
    }
}
