//! A container's configuration, as podman keeps it in its database.
//!
//! Its fields have had these names since podman 1.0 (`libpod/container_config.go`), but for the published
//! ports, which changed with 4.0.

use std::collections::BTreeMap;

use serde::Deserialize;
use v6pod_proto::wishes::{
    Findings, IMAGE_NAME, Openings, POD_NAME, Published, Services, Source, USERS_ALONE, is_wish,
};

use super::image::Image;

#[derive(Debug, Deserialize)]
pub(super) struct Container {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    spec: Option<Spec>,
    /// Empty for one that runs a folder.
    #[serde(default, rename = "rootfsImageID")]
    image: String,
    /// What its user calls the image, with the registry that podman found it at.
    #[serde(default, rename = "rootfsImageName")]
    image_name: String,
    /// Whether it is a pod's first, which has the pod's network, labels and published ports.
    #[serde(default, rename = "pause")]
    is_infra: bool,
    /// The id of its pod, if it is in one.
    #[serde(default)]
    pod: String,
    #[serde(default, rename = "newPortMappings")]
    published: Option<Vec<PortMapping>>,
    /// Podman up to 3.
    #[serde(default, rename = "portMappings")]
    published_formerly: Option<Vec<FormerPortMapping>>,
}

#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    process: Option<Process>,
}

#[derive(Debug, Deserialize)]
struct Process {
    #[serde(default)]
    env: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct PortMapping {
    #[serde(default)]
    host_ip: String,
    container_port: u16,
    /// How many ports, in a row; 0 means 1.
    #[serde(default)]
    range: u16,
    #[serde(default)]
    protocol: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FormerPortMapping {
    #[serde(default, rename = "hostIP")]
    host_ip: String,
    container_port: u16,
    #[serde(default)]
    protocol: String,
}

impl Container {
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The id of its image, if it has one.
    pub(super) fn image(&self) -> Option<&str> {
        Some(self.image.as_str()).filter(|id| !id.is_empty())
    }

    /// The id of the pod whose first container it is.
    pub(super) fn pod_to_speak_for(&self) -> Option<&str> {
        Some(self.pod.as_str()).filter(|id| self.is_infra && !id.is_empty())
    }

    /// What was asked for by it, as far as it is known what its image brought, and what its pod is called.
    pub(super) fn findings(self, image: Option<&Image>, pod: Option<String>) -> Findings {
        let mut findings = Findings::default();
        if let Some(name) = pod {
            findings.add(Source::Pod, POD_NAME, name);
        }
        // A pod's first runs podman's own.
        if !self.image_name.is_empty() && !self.is_infra {
            findings.add(Source::Image, IMAGE_NAME, self.image_name.clone());
        }
        if let Some(openings) = self.openings() {
            findings.add_published(&openings);
        }
        let users = if self.is_infra { Source::PodLabel } else { Source::Label };
        // Registrator takes labels for variables, and these before those. Whose either is counts for nothing.
        let variables =
            self.spec.iter().filter_map(|spec| spec.process.as_ref()?.env.as_ref()).flatten();
        let variables = variables.filter_map(|variable| variable.split_once('='));
        let labels =
            self.labels.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in variables.chain(labels).filter(|(name, _)| Services::knows(name)) {
            findings.add(Source::Environment, name, value.to_owned());
        }
        let labels = self.labels.unwrap_or_default().into_iter();
        for (name, value) in labels.filter(|(name, _)| is_wish(name)) {
            // Without an image everything is the user's, with one that is not known nothing is.
            let is_users = image.is_none_or(|image| image.labels(&name, &value) == Some(false));
            findings.add(if is_users { users } else { Source::ImageLabel }, &name, value);
        }
        let spec = self.spec.unwrap_or_default();
        // Podman 4 makes the image's annotations the container's, podman 5 does not. Where that is not
        // known, what would open ports or choose an address is the image's.
        for (name, value) in spec.annotations.unwrap_or_default() {
            let doubtful = USERS_ALONE.contains(&name.as_str());
            let may_be = |image: &Image| image.annotates(&name, &value).unwrap_or(doubtful);
            if is_wish(&name) && image.is_some_and(may_be) {
                findings.add(Source::ImageAnnotation, &name, value);
            }
        }
        findings
    }

    fn openings(&self) -> Option<Openings> {
        let now = self.published.iter().flatten().map(|port| Published {
            host: &port.host_ip,
            first: port.container_port,
            count: port.range.max(1),
            protocol: &port.protocol,
        });
        let formerly = self.published_formerly.iter().flatten().map(|port| Published {
            host: &port.host_ip,
            first: port.container_port,
            count: 1,
            protocol: &port.protocol,
        });
        Openings::published(now.chain(formerly))
    }
}

/// What a pod's configuration says that it is called.
pub(super) fn pod_name(json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Pod {
        name: String,
    }

    serde_json::from_slice::<Pod>(json).ok().map(|pod| pod.name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn found(json: &str, image: Option<&Image>) -> Vec<(Source, String, String)> {
        let findings = Container::read(json.as_bytes()).unwrap().findings(image, None);
        let sources = [
            Source::PodLabel,
            Source::Label,
            Source::Published,
            Source::Environment,
            Source::ImageAnnotation,
            Source::ImageLabel,
        ];
        let of = |source| {
            let all: Vec<_> =
                findings.of(source).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            all.into_iter().map(move |(name, value)| (source, name, value))
        };
        sources.into_iter().flat_map(of).collect()
    }

    fn text(source: Source, name: &str, value: &str) -> (Source, String, String) {
        (source, name.to_owned(), value.to_owned())
    }

    #[test]
    fn ports_are_read_as_podman_3_and_later_ones_write_them() {
        let published = |ports: &str| text(Source::Published, "v6pod.ingress", ports);
        let since_4 = r#"{"newPortMappings":[
            {"host_ip":"","container_port":80,"host_port":8080,"range":1,"protocol":"tcp"},
            {"host_ip":"","container_port":7000,"host_port":7000,"range":11,"protocol":"udp"},
            {"host_ip":"127.0.0.1","container_port":90,"host_port":9000,"range":1,"protocol":"tcp"}]}"#;
        assert_eq!(found(since_4, None), [published("tcp/80,udp/7000-7010")]);
        let until_3 = r#"{"portMappings":[
            {"hostPort":8081,"containerPort":81,"protocol":"tcp","hostIP":""},
            {"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"0.0.0.0"},
            {"hostPort":9000,"containerPort":90,"protocol":"tcp","hostIP":"::1"}]}"#;
        assert_eq!(found(until_3, None), [published("tcp/80-81")]);
    }

    #[test]
    fn a_pods_first_container_speaks_for_it_by_its_name() {
        let read = |json: &str| Container::read(json.as_bytes()).unwrap();
        let infra = read(r#"{"pause":true,"pod":"ab"}"#);
        assert_eq!(infra.pod_to_speak_for(), Some("ab"));
        assert_eq!(read(r#"{"pod":"ab"}"#).pod_to_speak_for(), None);
        assert_eq!(read(r#"{"pause":true}"#).pod_to_speak_for(), None);
        let name = pod_name(br#"{"id":"ab","name":"web_pod","labels":null}"#);
        let findings = infra.findings(None, name);
        assert_eq!(findings.of(Source::Pod).collect::<Vec<_>>(), [(POD_NAME, "web_pod")]);
    }

    #[test]
    fn labels_count_as_registrators_variables_and_before_them() {
        let json = r#"{"labels":{"SERVICE_NAME":"label","SERVICE_CHECK_SCRIPT":"x"},
            "spec":{"process":{"env":["SERVICE_NAME=variable","SERVICE_TAGS=a,b","PATH=/bin"]}}}"#;
        let variable = |name: &str, value: &str| text(Source::Environment, name, value);
        let all = [variable("SERVICE_NAME", "label"), variable("SERVICE_TAGS", "a,b")];
        assert_eq!(found(json, None), all);
    }

    #[test]
    fn what_go_writes_of_nothing_is_nothing() {
        let nothing = r#"{"labels":null,"spec":{"process":{"env":null},"annotations":null},
            "rootfsImageID":"","newPortMappings":null}"#;
        assert_eq!(found(nothing, None), []);
        assert_eq!(found(r#"{"spec":{"process":null}}"#, None), []);
        assert!(Container::read(br#"{"labels":{"a":1}}"#).is_none());
        assert!(Container::read(b"").is_none());
    }

    #[test]
    fn whose_a_wish_is_depends_on_what_the_image_bears() {
        const ID: &str = "b64383199278b5bb0e51d8d713542efb25dcb6d8747da3cb1a50b155fd82a996";
        let images = tempfile::tempdir().unwrap();
        let folder = images.path().join(ID);
        fs::create_dir(&folder).unwrap();
        let json = |infra: bool| {
            format!(
                r#"{{"rootfsImageID":"{ID}","pause":{infra},
                    "labels":{{"v6pod.name":"web","v6pod.ingress":"tcp/22","other":"x"}},
                    "spec":{{"annotations":{{"v6pod.tags":"a","v6pod.egress":"deny"}}}}}}"#
            )
        };
        let name = |source| text(source, "v6pod.name", "web");
        let ingress = |source| text(source, "v6pod.ingress", "tcp/22");
        // Nothing is known of it.
        let image = Image::read(images.path(), ID);
        let all = [ingress(Source::ImageLabel), name(Source::ImageLabel)];
        assert_eq!(found(&json(false), Some(&image)), all);

        let manifest = r#"{"config":{"digest":"sha"},"annotations":{"v6pod.tags":"a","v6pod.egress":"allow"}}"#;
        fs::write(folder.join("manifest"), manifest).unwrap();
        // `=` and base64 of "sha".
        fs::write(folder.join("=c2hh"), r#"{"config":{"Labels":{"v6pod.ingress":"tcp/22"}}}"#)
            .unwrap();
        let image = Image::read(images.path(), ID);
        for (infra, users) in [(false, Source::Label), (true, Source::PodLabel)] {
            let tags = text(Source::ImageAnnotation, "v6pod.tags", "a");
            let all = [name(users), tags, ingress(Source::ImageLabel)];
            assert_eq!(found(&json(infra), Some(&image)), all);
        }
        // What would open ports or choose an address is the image's as long as it is not known that it is not.
        let unknown = Image::read(&images.path().join("elsewhere"), ID);
        for (wish, value) in
            [("v6pod.ingress", "tcp/80"), ("v6pod.address", "::42"), ("v6pod.subnet", "/96")]
        {
            let annotated = format!(
                r#"{{"rootfsImageID":"{ID}","spec":{{"annotations":{{"{wish}":"{value}"}}}}}}"#
            );
            assert_eq!(found(&annotated, Some(&image)), []);
            let annotation = text(Source::ImageAnnotation, wish, value);
            assert_eq!(found(&annotated, Some(&unknown)), [annotation]);
            assert_eq!(found(&annotated, None), []);
        }
        // Without an image there is nobody else.
        let all = [ingress(Source::Label), name(Source::Label)];
        assert_eq!(found(&json(false), None), all);
    }
}
