//! A container's configuration, as podman keeps it in its database.
//!
//! Its fields have had these names since podman 1.0 (`libpod/container_config.go`), but for the published
//! ports, which changed with 4.0.

use std::collections::BTreeMap;

use serde::Deserialize;
use v6pod_proto::wishes::{Findings, Openings, Published, Services, Source, is_wish};

use super::image::{Borne, Image};

#[derive(Debug, Deserialize)]
pub(super) struct Container {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    spec: Option<Spec>,
    /// Empty for one that runs a folder.
    #[serde(default, rename = "rootfsImageID")]
    image: String,
    /// Whether it is a pod's first, which has the pod's network, labels and published ports.
    #[serde(default, rename = "pause")]
    is_infra: bool,
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

    /// What was asked for by it, as far as it is known what its image brought.
    pub(super) fn findings(self, image: Option<&Image>) -> Findings {
        let mut findings = Findings::default();
        if let Some(openings) = self.openings() {
            findings.add_published(&openings);
        }
        let none = Borne::default();
        // Without an image everything is the user's, with one that is not known nothing is.
        let borne = image.map_or(Some(&none), Image::borne);
        let users = if self.is_infra { Source::PodLabel } else { Source::Label };
        let labels = self.labels.unwrap_or_default().into_iter();
        for (name, value) in labels.filter(|(name, _)| is_wish(name)) {
            let is_users = borne.is_some_and(|borne| borne.labels.get(&name) != Some(&value));
            findings.add(if is_users { users } else { Source::ImageLabel }, &name, value);
        }
        let spec = self.spec.unwrap_or_default();
        // Podman 4 makes the image's annotations the container's, podman 5 does not.
        for (name, value) in spec.annotations.unwrap_or_default() {
            let image = borne.and_then(|borne| borne.annotations.get(&name));
            if is_wish(&name) && image == Some(&value) {
                findings.add(Source::ImageAnnotation, &name, value);
            }
        }
        let variables = spec.process.and_then(|process| process.env).unwrap_or_default();
        let pairs = variables.iter().filter_map(|variable| variable.split_once('='));
        for (name, value) in pairs.filter(|(name, _)| Services::knows(name)) {
            findings.add(Source::Environment, name, value.to_owned());
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
