//! What a container asks for by other means than annotations, and where that comes from.
//!
//! Labels of the same names, published ports, registrator's variables: read from podman's files by
//! v6pod-wishes, as the container's user. Guarantees: what an image brought is never taken for what its
//! user asked; nothing here keeps a container from starting, but a label of a pod, which counts as an
//! annotation; and what is not understood is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{NameWish, Openings, Services, Source, WishError, Wishes};

/// How much of it is taken along in a request, in bytes of JSON. A request has 16 KiB for everything.
const BOUND: usize = 8 << 10;
/// How much of a pod's name counts, in characters: more than a label can have.
const POD: usize = 255;
/// And of an image's: more than a reference to one usually has.
const IMAGE: usize = 255;
/// How much of what is not understood is told.
const IGNORED: usize = 8;
/// And of each, in bytes: names are anybody's.
const IGNORED_LENGTH: usize = 200;

/// What v6pod-wishes found, as it stands there: values by where they come from and their names, with a
/// colon between, such as `labels:v6pod.name`. Published ports stand under the name of the annotation that
/// would open them. One flat map, because each program that reads it is loaded at each container's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Findings(BTreeMap<String, String>);

impl Findings {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds something.
    pub fn add(&mut self, source: Source, name: &str, value: String) {
        self.0.insert([source.as_str(), ":", name].concat(), value);
    }

    /// Adds what published ports open.
    pub fn add_published(&mut self, openings: &Openings) {
        self.add(Source::Published, super::INGRESS, openings.to_string());
    }

    /// Names and values of what comes from there.
    pub fn of(&self, source: Source) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(move |(key, value)| {
            let name = key.strip_prefix(source.as_str())?.strip_prefix(':')?;
            Some((name, value.as_str()))
        })
    }

    /// The same if it has room in a request; else without what comes from elsewhere than the user;
    /// else nothing. What an image says must not cost its user's own wishes. Of its annotations the names
    /// stay in any case, without their values: podman has made them the container's, and who did not
    /// know them would take them for the user's.
    pub fn within_bounds(mut self) -> Self {
        let fits =
            |findings: &Self| serde_json::to_vec(findings).is_ok_and(|bytes| bytes.len() <= BOUND);
        if fits(&self) {
            return self;
        }
        let mut least = Self::default();
        for (name, _) in self.of(Source::ImageAnnotation) {
            if super::NAMES.contains(&name) {
                least.add(Source::ImageAnnotation, name, String::new());
            }
        }
        let users: Vec<_> = Source::ALL.into_iter().filter(|source| source.is_users()).collect();
        let is_users = |key: &str| users.iter().any(|s| key.split(':').next() == Some(s.as_str()));
        self.0.retain(|key, _| is_users(key));
        self.0.extend(least.0.clone());
        if fits(&self) { self } else { least }
    }
}

/// What a container asks for by other means than annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct OtherWishes {
    /// What the pod is called whose first container it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What the image that it runs is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// By labels of the pod whose first container it is. They count as annotations.
    #[serde(skip_serializing_if = "Wishes::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub pod_labels: Wishes,
    /// By labels that are not the image's.
    #[serde(skip_serializing_if = "Wishes::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub labels: Wishes,
    /// By publishing ports on all addresses of the host, such as `tcp/80,udp/5000-5010`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub published: Option<Openings>,
    /// By registrator's variables in the environment, the user's or the image's.
    #[serde(skip_serializing_if = "Services::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub environment: Services,
    /// By annotations that its image bears.
    #[serde(skip_serializing_if = "Wishes::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub image_annotations: Wishes,
    /// By labels that its image bears, or may bear.
    #[serde(skip_serializing_if = "Wishes::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub image_labels: Wishes,
    /// What of all this is not understood, each in one sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
}

impl OtherWishes {
    /// Reads what was found. What is malformed is ignored, and told.
    ///
    /// # Errors
    /// A label of a pod is malformed.
    pub fn read(findings: &Findings) -> Result<Self, WishError> {
        let mut ignored = Vec::new();
        let mut wishes = |source| {
            let (wishes, mut wrong) = Wishes::read_each(source, findings.of(source));
            ignored.append(&mut wrong);
            wishes
        };
        let pod_labels = wishes(Source::PodLabel);
        let [labels, published] = [Source::Label, Source::Published].map(&mut wishes);
        let [image_annotations, image_labels] =
            [Source::ImageAnnotation, Source::ImageLabel].map(&mut wishes);
        let (environment, mut wrong) = Services::read_each(findings.of(Source::Environment));
        ignored.append(&mut wrong);
        if let Some(at) = ignored.iter().position(|wrong| wrong.source == Source::PodLabel) {
            return Err(ignored.swap_remove(at));
        }
        let called = |source, key, most| {
            let mut found = findings.of(source).filter(|(name, _)| *name == key);
            found.next().map(|(_, name)| name.chars().take(most).collect())
        };
        Ok(Self {
            pod: called(Source::Pod, super::POD_NAME, POD),
            image: called(Source::Image, super::IMAGE_NAME, IMAGE),
            pod_labels,
            labels,
            published: published.ingress,
            environment,
            image_annotations,
            image_labels,
            ignored: ignored.iter().take(IGNORED).map(told).collect(),
        })
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there is to be an attachment, if that is said. An image can do without one; where there
    /// would be none it cannot have one, or it would undo its user's `--network none`.
    pub fn attach(&self) -> Option<bool> {
        let declined = [&self.image_annotations, &self.image_labels]
            .into_iter()
            .any(|image| image.attach == Some(false));
        self.pod_labels.attach.or(self.labels.attach).or(declined.then_some(false))
    }

    /// The name to be registered by, if one is said: the user's before the image's.
    pub fn name(&self) -> Option<&NameWish> {
        let Self { pod_labels, labels, environment, image_annotations, image_labels, .. } = self;
        [
            &pod_labels.name,
            &labels.name,
            &environment.all.name,
            &image_annotations.name,
            &image_labels.name,
        ]
        .into_iter()
        .find_map(Option::as_ref)
    }

    /// Adds what was found in `more` and was not before. What is known stays as it is.
    pub fn complete(&mut self, more: &Self) {
        self.pod_labels.complete(&more.pod_labels);
        self.labels.complete(&more.labels);
        self.image_annotations.complete(&more.image_annotations);
        self.image_labels.complete(&more.image_labels);
        if self.pod.is_none() {
            self.pod.clone_from(&more.pod);
        }
        if self.image.is_none() {
            self.image.clone_from(&more.image);
        }
        if self.published.is_none() {
            self.published.clone_from(&more.published);
        }
        if self.environment.is_empty() {
            self.environment.clone_from(&more.environment);
        }
        if self.ignored.is_empty() {
            self.ignored.clone_from(&more.ignored);
        }
    }

    /// Each wish with its name, its value and where it comes from, as a person is shown it.
    pub fn each(&self) -> Vec<(Source, String, String)> {
        let of = |source, wishes: &Wishes| {
            let all = wishes.annotations().into_iter();
            all.map(|(name, value)| (source, name.to_owned(), value)).collect::<Vec<_>>()
        };
        let pod =
            self.pod.iter().map(|name| (Source::Pod, super::POD_NAME.to_owned(), name.clone()));
        let mut all: Vec<_> = pod.collect();
        all.extend(of(Source::PodLabel, &self.pod_labels));
        all.extend(of(Source::Label, &self.labels));
        let published = self.published.iter();
        all.extend(
            published.map(|openings| {
                (Source::Published, super::INGRESS.to_owned(), openings.to_string())
            }),
        );
        let variables = self.environment.variables().into_iter();
        all.extend(variables.map(|(name, value)| (Source::Environment, name, value)));
        all.extend(of(Source::ImageAnnotation, &self.image_annotations));
        all.extend(of(Source::ImageLabel, &self.image_labels));
        all
    }
}

/// In one short line of plain text, whoever chose the name.
fn told(wrong: &WishError) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    wrong.to_string().chars().map(plain).take(IGNORED_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(all: &[(Source, &str, &str)]) -> Findings {
        let mut findings = Findings::default();
        for (source, name, value) in all {
            findings.add(*source, name, (*value).to_owned());
        }
        findings
    }

    fn read(all: &[(Source, &str, &str)]) -> OtherWishes {
        OtherWishes::read(&findings(all)).unwrap()
    }

    #[test]
    fn what_is_malformed_is_ignored_and_told_but_for_a_pods_label() {
        let found = read(&[
            (Source::Label, "v6pod.ingress", "80"),
            (Source::Label, "v6pod.name", "web"),
            (Source::Label, "v6pod.\x1b[31m", ""),
            (Source::ImageLabel, "v6pod", "yes"),
            (Source::Published, "v6pod.ingress", "?"),
            (Source::Environment, "SERVICE_80_IPV6", "sctp"),
        ]);
        assert_eq!(found.name().unwrap().as_str(), "web");
        let begin = ["the label v6pod.?[31m: there", "the label v6pod.ingress: write openings"];
        let and =
            ["the published port v6pod.ingress: write", "the image's label v6pod: write true"];
        let last = ["the variable SERVICE_80_IPV6: write tcp or udp"];
        let told: Vec<_> = begin.into_iter().chain(and).chain(last).collect();
        assert_eq!(found.ignored.len(), told.len(), "{:?}", found.ignored);
        for (line, start) in found.ignored.iter().zip(told) {
            assert!(line.starts_with(start), "{line}");
        }
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<OtherWishes>(&json).unwrap(), found);

        let error = OtherWishes::read(&findings(&[
            (Source::Label, "v6pod.ingress", "80"),
            (Source::PodLabel, "v6pod.egres", "deny"),
        ]));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("the pod's label v6pod.egres: there are"), "{error}");
    }

    #[test]
    fn an_image_can_do_without_an_address_and_cannot_have_one() {
        let attach = |said: &[(Source, &str)]| {
            let all: Vec<_> =
                said.iter().map(|(source, value)| (*source, "v6pod", *value)).collect();
            read(&all).attach()
        };
        for image in [Source::ImageLabel, Source::ImageAnnotation] {
            assert_eq!(attach(&[(image, "true")]), None);
            assert_eq!(attach(&[(image, "false")]), Some(false));
            assert_eq!(attach(&[(image, "false"), (Source::Label, "true")]), Some(true));
        }
        let pod = [(Source::PodLabel, "false"), (Source::Label, "true")];
        assert_eq!(attach(&pod), Some(false));
    }

    #[test]
    fn the_users_name_comes_before_the_images() {
        let mut named = vec![
            (Source::ImageLabel, "v6pod.name", "labelled"),
            (Source::ImageAnnotation, "v6pod.name", "annotated"),
            (Source::Environment, "SERVICE_NAME", "variable"),
            (Source::Label, "v6pod.name", "user"),
            (Source::PodLabel, "v6pod.name", "pod"),
        ];
        while let Some((_, _, name)) = named.last().copied() {
            assert_eq!(read(&named).name().unwrap().as_str(), name);
            named.pop();
        }
    }

    #[test]
    fn what_an_image_says_at_length_does_not_cost_its_users_wishes() {
        let long = "x".repeat(BOUND);
        let user = (Source::Label, "v6pod.name", "web");
        let both = findings(&[user, (Source::ImageLabel, "v6pod.tags", &long)]);
        assert_eq!(both.within_bounds(), findings(&[user]));
        let nothing = findings(&[(Source::Label, "v6pod.tags", &long)]).within_bounds();
        assert_eq!(nothing, Findings::default());
    }

    #[test]
    fn an_image_does_not_pass_its_annotations_off_as_its_users_by_their_length() {
        let long = "x".repeat(BOUND);
        let images = (Source::ImageAnnotation, "v6pod.ingress", "tcp/22");
        let name = (Source::ImageAnnotation, "v6pod.ingress", "");
        let user = (Source::Label, "v6pod.name", "web");
        for length in [
            (Source::Environment, "SERVICE_NAME", &long[..]),
            (Source::ImageAnnotation, "v6pod.more", &long),
            (Source::ImageLabel, "v6pod.tags", &long),
        ] {
            let all = findings(&[user, images, length]);
            assert_eq!(all.within_bounds(), findings(&[user, name]));
        }
        let all = findings(&[user, images, (Source::Label, "v6pod.tags", &long)]);
        assert_eq!(all.within_bounds(), findings(&[name]));
    }

    #[test]
    fn what_is_found_is_one_flat_map() {
        let text = r#"{"labels:v6pod.name":"web","published:v6pod.ingress":"tcp/80"}"#;
        let findings: Findings = serde_json::from_str(text).unwrap();
        let found = OtherWishes::read(&findings).unwrap();
        assert_eq!(found.published.unwrap().to_string(), "tcp/80");
        assert_eq!(found.labels.name.unwrap().as_str(), "web");
        assert_eq!(serde_json::to_string(&findings).unwrap(), text);
        assert_eq!(findings.of(Source::Label).collect::<Vec<_>>(), [("v6pod.name", "web")]);
    }
}
