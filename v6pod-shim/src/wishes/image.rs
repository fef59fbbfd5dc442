//! What an image bears by itself, from containers/storage.
//!
//! Labels stand in the image's configuration, annotations in its manifest; podman makes the container's
//! own of them, where they look like what its user asked for.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::files;

/// More than registries take for a manifest, and an image's configuration.
const LIMIT: usize = 4 << 20;

/// An image's labels and annotations; of none of which it is known if it cannot be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Image(Option<Borne>);

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Borne {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Configuration>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default, rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

impl Image {
    /// The image of this id in the folder of images.
    pub(super) fn read(images: &Path, id: &str) -> Self {
        Self(Borne::read(images, id))
    }

    /// What it bears, if that is known.
    pub(super) fn borne(&self) -> Option<&Borne> {
        self.0.as_ref()
    }
}

impl Borne {
    fn read(images: &Path, id: &str) -> Option<Self> {
        let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        let folder = images.join(id);
        let manifest = is_id.then(|| files::whole(&folder.join("manifest"), LIMIT))??;
        let Manifest { config, annotations } = serde_json::from_slice(&manifest).ok()?;
        let file = folder.join(file_name(&config.digest));
        let Document { config } = serde_json::from_slice(&files::whole(&file, LIMIT)?).ok()?;
        let labels = config.and_then(|config| config.labels);
        Some(Self {
            labels: labels.unwrap_or_default(),
            annotations: annotations.unwrap_or_default(),
        })
    }
}

/// How containers/storage calls the file of a key that could not be a file's name as it is: `=` and
/// base64, here of a digest, whose colon makes it one (`makeBigDataBaseName`).
fn file_name(digest: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut name = String::from("=");
    for bytes in digest.as_bytes().chunks(3) {
        let three = [0, 1, 2].map(|n| u32::from(bytes.get(n).copied().unwrap_or(0)));
        let bits = three[0] << 16 | three[1] << 8 | three[2];
        for nth in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * nth)) as usize & 63];
            name.push(if nth > bytes.len() { '=' } else { char::from(digit) });
        }
    }
    // A digest has no character that would make one.
    name.replace('/', "_")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ID: &str = "b64383199278b5bb0e51d8d713542efb25dcb6d8747da3cb1a50b155fd82a996";

    #[test]
    fn a_files_name_is_made_as_podman_makes_it() {
        // Of podman 4.3.1.
        let seen = "=c2hhMjU2OmI2NDM4MzE5OTI3OGI1YmIwZTUxZDhkNzEzNTQyZWZiMjVkY2I2ZDg3NDdkYTNjYjFhNTBi\
                    MTU1ZmQ4MmE5OTY=";
        assert_eq!(file_name(&format!("sha256:{ID}")), seen);
        assert_eq!(file_name("a"), "=YQ==");
        assert!(!file_name("???>>>").contains('/'));
    }

    #[test]
    fn labels_are_the_configurations_and_annotations_the_manifests() {
        let images = tempfile::tempdir().unwrap();
        let folder = images.path().join(ID);
        fs::create_dir(&folder).unwrap();
        assert_eq!(Image::read(images.path(), ID).borne(), None);
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{ID}","size":5}},
                "annotations":{{"v6pod.name":"a"}}}}"#
        );
        fs::write(folder.join("manifest"), manifest).unwrap();
        assert_eq!(Image::read(images.path(), ID).borne(), None, "half of it is nothing");
        let file = folder.join(file_name(&format!("sha256:{ID}")));
        fs::write(&file, r#"{"config":{"Labels":{"v6pod.ingress":"tcp/22"}}}"#).unwrap();
        let image = Image::read(images.path(), ID);
        let borne = image.borne().unwrap();
        assert_eq!(borne.labels["v6pod.ingress"], "tcp/22");
        assert_eq!(borne.annotations["v6pod.name"], "a");
        fs::write(&file, r#"{"config":{"Labels":null}}"#).unwrap();
        assert!(Image::read(images.path(), ID).borne().unwrap().labels.is_empty());
        assert_eq!(Image::read(images.path(), "../x").borne(), None);
    }
}
