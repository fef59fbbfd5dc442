//! What a container offers: the services under which it is to be found.
//!
//! Pure: what stands in its wishes and what the operator makes of names. Whether it gets the names is
//! decided in [`super::name`]. What this guarantees:
//! - Each [`Part`] of an attachment is offered once, and there are at most 65 of them, and one of each member of
//!   a pod.
//! - A check asks the container itself, at a port of its own, or waits for its word.
//! - Where the operator has a template, no name goes past it.

use v6pod_proto::storage;
use v6pod_proto::wishes::{Check, NameWish, Protocol, Service as Said, Tags, Wishes};

use super::attachment::Attachment;
use super::member::{Member, Place};
use super::name::{Label, Named, Refusal, Template};

/// Which of an attachment's services: what tells them apart, whatever they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The container itself.
    Whole,
    /// What it has at this port.
    Port(u16),
    /// A member of the pod whose attachment it is.
    Member(Place),
}

/// One service that a container offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which of its services.
    pub part: Part,
    /// The name that it asks for.
    pub label: Label,
    /// Where it is served, if that is said.
    pub port: Option<u16>,
    /// Words to find it by, besides the owner's name.
    pub tags: Vec<String>,
    /// How it is seen whether it is well.
    pub check: Option<Check>,
}

/// All that a container offers, and what it asks for and cannot have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offers {
    /// The container itself first.
    pub offers: Vec<Offer>,
    /// Names that are none, and why.
    pub refused: Vec<(String, Refusal)>,
}

impl Offers {
    /// The names that are asked for.
    pub fn labels(&self) -> impl Iterator<Item = &Label> {
        self.offers.iter().map(|offer| &offer.label)
    }

    /// What a member of a pod offers, by the pod's attachment: itself, by a name of its own.
    pub fn of_member(
        member: &Member,
        pod: &Attachment,
        template: &Template,
        named: Named<'_>,
    ) -> Self {
        let mut all = Self::of(&member.speaking_for(pod), template, named);
        all.offers.retain(|offer| offer.part == Part::Whole);
        all.offers.iter_mut().for_each(|offer| offer.part = Part::Member(member.place));
        all
    }

    /// What this attachment's container offers, as the operator has it named.
    pub fn of(a: &Attachment, template: &Template, named: Named<'_>) -> Self {
        let environment = &a.found.environment;
        let mut all = Self::default();
        if environment.ignore {
            return all;
        }
        let mut fill = |name: &str| {
            let label = template.fill(name, named);
            if label.is_none() {
                all.refused.push((name.to_owned(), Refusal::Empty));
            }
            label
        };
        let whole = main_name(a).and_then(&mut fill);
        let mut unnamed = Vec::new();
        let mut offers = Vec::new();
        for (&port, said) in &environment.ports {
            match &said.name {
                Some(name) => offers.extend(fill(name.as_str()).map(|label| (port, said, label))),
                None => unnamed.push((port, said)),
            }
        }
        if let Some(label) = whole {
            // What is said of a port without a name is said of the container's own service there.
            let mut unnamed = unnamed.into_iter();
            let first = unnamed.next();
            all.offers.push(main(a, label.clone(), first));
            offers.extend(unnamed.map(|(port, said)| (port, said, label.clone())));
        }
        offers.sort_by_key(|(port, ..)| *port);
        all.offers.extend(offers.into_iter().map(|(port, said, label)| {
            Offer {
                part: Part::Port(port),
                label,
                port: Some(port),
                tags: words(said.tags.as_ref().or(environment.all.tags.as_ref())),
                check: said
                    .check
                    .as_ref()
                    .or(environment.all.check.as_ref())
                    .and_then(|c| c.at(Some(port))),
            }
        }));
        all
    }
}

/// The name that the container itself is to be found by: the one that it asks for, else the engine's. A
/// pod's first container has none that anybody chose, and is called as its pod.
fn main_name(a: &Attachment) -> Option<&str> {
    let own = || a.name.as_deref().filter(|name| !storage::is_infra(name));
    let engines = || a.found.pod.as_deref().or_else(own);
    a.asked_name().map(NameWish::as_str).or_else(engines)
}

fn main(a: &Attachment, label: Label, at: Option<(u16, &Said)>) -> Offer {
    let all = &a.found.environment.all;
    let said = at.map(|(_, said)| said);
    let wished = wish(a, |w| w.check.clone());
    let port = at.map(|(port, _)| port);
    let port = port.or_else(|| wished.as_ref()?.port()).or_else(|| only_port(a));
    let probe = said.and_then(|said| said.check.as_ref()).or(all.check.as_ref());
    let tags = wish(a, |w| w.tags.clone());
    let tags = tags.or_else(|| said?.tags.clone()).or_else(|| all.tags.clone());
    Offer {
        part: Part::Whole,
        label,
        port,
        tags: words(tags.as_ref()),
        check: wished.or_else(|| probe?.at(port)),
    }
}

/// What is said by an annotation or a label: the user's before the image's.
fn wish<T>(a: &Attachment, part: impl Fn(&Wishes) -> Option<T>) -> Option<T> {
    let found = &a.found;
    let all = [
        &a.wishes,
        &found.pod_labels,
        &found.labels,
        &found.image_annotations,
        &found.image_labels,
    ];
    all.into_iter().find_map(part)
}

/// The TCP port that the container asks to be open, if it is one and no more.
fn only_port(a: &Attachment) -> Option<u16> {
    let asked = wish(a, |w| w.ingress.clone());
    let openings = asked.iter().chain(&a.found.published).flat_map(|openings| openings.each());
    let mut ports = openings.filter(|opening| opening.protocol == Protocol::Tcp).map(|o| o.ports);
    let first = ports.next().filter(|ports| ports.first() == ports.last())?;
    ports.all(|more| more == first).then(|| first.first())
}

fn words(tags: Option<&Tags>) -> Vec<String> {
    tags.map_or_else(Vec::new, |tags| tags.words().to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use v6pod_proto::Uid;
    use v6pod_proto::wishes::{Findings, OtherWishes, Source};

    use super::*;
    use crate::core::attachment::tests::attachment;

    /// What a container offers that says this, by annotations and otherwise.
    fn offers(name: &str, annotations: &[(&str, &str)], found: &[(Source, &str, &str)]) -> Offers {
        let mut findings = Findings::default();
        for (source, name, value) in found {
            findings.add(*source, name, (*value).to_owned());
        }
        let a = Attachment {
            name: Some(name.to_owned()),
            wishes: Wishes::read(annotations.iter().copied()).unwrap(),
            found: OtherWishes::read(&findings).unwrap().into(),
            ..attachment()
        };
        let named = Named { user: Some("alice"), owner: Uid::new(1000).unwrap(), host: "h" };
        Offers::of(&a, &Template::default(), named)
    }

    fn told(offers: &Offers) -> Vec<String> {
        let one = |o: &Offer| {
            let check = o.check.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            format!(
                "{:?} {} {:?} {} {check}",
                o.part,
                o.label,
                o.port.unwrap_or(0),
                o.tags.join(",")
            )
        };
        offers.offers.iter().map(one).collect()
    }

    const ENV: Source = Source::Environment;

    #[test]
    fn a_container_is_offered_by_its_name_and_as_it_says() {
        assert_eq!(told(&offers("My_Web", &[], &[])), ["Whole my-web 0  -"]);
        let asked = [("v6pod.name", "www"), ("v6pod.tags", "a,b"), ("v6pod.check", "http:8080/x")];
        assert_eq!(told(&offers("web", &asked, &[])), ["Whole www 8080 a,b http:8080/x"]);
        let user = (Source::Label, "v6pod.tags", "user");
        let image = (Source::ImageLabel, "v6pod.tags", "image");
        assert_eq!(told(&offers("web", &[], &[user, image])), ["Whole web 0 user -"]);
        assert_eq!(told(&offers("0123456789ab-infra", &[], &[])), [""; 0]);
        let pod = [(Source::Pod, "name", "My_Pod")];
        assert_eq!(told(&offers("0123456789ab-infra", &[], &pod)), ["Whole my-pod 0  -"]);
        assert_eq!(offers("___", &[], &[]).refused, [("___".to_owned(), Refusal::Empty)]);
    }

    #[test]
    fn its_port_is_the_only_one_that_it_has_open() {
        let port =
            |openings: &str| offers("web", &[("v6pod.ingress", openings)], &[]).offers[0].port;
        assert_eq!(port("tcp/80"), Some(80));
        assert_eq!(port("tcp/80,udp/53"), Some(80));
        assert_eq!(port("tcp/80@2001:db8::/32,tcp/80@2001:db9::/32"), Some(80));
        assert_eq!((port("tcp/80,tcp/443"), port("tcp/80-81"), port("udp/53")), (None, None, None));
        let published = [(Source::Published, "v6pod.ingress", "tcp/80")];
        assert_eq!(offers("web", &[], &published).offers[0].port, Some(80));
    }

    #[test]
    fn registrators_variables_mean_what_they_mean_to_registrator() {
        let all = [
            (ENV, "SERVICE_NAME", "app"),
            (ENV, "SERVICE_TAGS", "t"),
            (ENV, "SERVICE_CHECK_TCP", "true"),
            (ENV, "SERVICE_80_NAME", "web"),
            (ENV, "SERVICE_80_CHECK_HTTP", "/"),
            (ENV, "SERVICE_443_TAGS", "s"),
            (ENV, "SERVICE_8080_IPV6", "tcp"),
        ];
        let whole = "Whole app 443 s tcp:443";
        let ports = ["Port(80) web 80 t http:80/", "Port(8080) app 8080 t tcp:8080"];
        assert_eq!(told(&offers("x", &[], &all)), [&[whole], &ports[..]].concat());
        let ignored = [all[0], all[3], (ENV, "SERVICE_IGNORE", "1")];
        assert_eq!(offers("x", &[], &ignored), Offers::default());
        // Nobody knows the port, and nobody's word is needed for it.
        let check = |name| {
            told(&offers(
                "x",
                &[],
                &[(ENV, name, if name.ends_with("TTL") { "30s" } else { "true" })],
            ))
        };
        assert_eq!(check("SERVICE_CHECK_TCP"), ["Whole x 0  -"]);
        assert_eq!(check("SERVICE_CHECK_TTL"), ["Whole x 0  ttl:30s"]);
    }

    proptest! {
        #[test]
        fn whatever_is_said_each_part_is_offered_once_and_within_bounds(
            said in prop::collection::vec(
                (
                    prop::sample::select(vec!["", "80_", "81_", "443_", "65535_", "0_", "x_"]),
                    prop::sample::select(vec!["NAME", "TAGS", "IPV6", "CHECK_HTTP", "CHECK_TCP", "CHECK_TTL", "CHECK_SCRIPT"]),
                    prop::sample::select(vec!["web", "tcp", "true", "/x", "30s", "a,b", "UP", "", "http://[::1]/"]),
                ),
                0..24,
            ),
            name in "[a-z._-]{0,80}",
        ) {
            let said: Vec<_> =
                said.iter().map(|(port, part, value)| (format!("SERVICE_{port}{part}"), *value)).collect();
            let found: Vec<_> = said.iter().map(|(name, value)| (ENV, name.as_str(), *value)).collect();
            let Offers { offers, .. } = offers(&name, &[], &found);
            let parts: std::collections::BTreeSet<_> = offers.iter().map(|offer| offer.part).collect();
            prop_assert_eq!(parts.len(), offers.len());
            for offer in &offers {
                if let Part::Port(port) = offer.part {
                    prop_assert_eq!(offer.port, Some(port));
                }
                let asked = offer.check.as_ref().and_then(Check::port);
                prop_assert!(asked.is_none() || asked == offer.port, "it asks another port: {:?}", offer);
            }
        }
    }
}
