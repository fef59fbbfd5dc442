//! What an image bears by itself, from containers/storage.
//!
//! Labels stand in the image's configuration, annotations in its manifest; podman makes the container's
//! own of them, where they look like what its user asked for. Whoever made the image wrote these files,
//! and podman reads them as Go does: `"labels"` for `"Labels"`, what stands twice one over the other, any
//! depth. So nothing is made of their structure here: all pairs of a wish's name and a text, wherever
//! in the one file or the other, are what it bears.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use v6pod_proto::wishes::is_wish;

use super::files;

/// Registries and podman take no longer manifest or configuration.
const LIMIT: usize = 4 << 20;
/// More files than podman keeps of one image.
const FILES: usize = 64;
/// The manifest's file.
const MANIFEST: &str = "manifest";
/// How the file of a configuration begins: containers/storage calls that of a key that could not be a
/// file's name as it is `=` and its base64 (`makeBigDataBaseName`), and this one's is a digest, `sha…`.
const CONFIGURATION: &str = "=c2hh";

/// What an image bears; of which nothing is known if it cannot be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Image(Option<Borne>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Borne {
    labels: Pairs,
    annotations: Pairs,
}

type Pairs = BTreeSet<(String, String)>;

impl Image {
    /// The image of this id in the folder of images.
    pub(super) fn read(images: &Path, id: &str) -> Self {
        let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        Self(is_id.then(|| Borne::read(&images.join(id))).flatten())
    }

    /// Whether it bears this label, if that is known.
    pub(super) fn labels(&self, name: &str, value: &str) -> Option<bool> {
        let pair = (name.to_owned(), value.to_owned());
        self.0.as_ref().map(|borne| borne.labels.contains(&pair))
    }

    /// Whether it bears this annotation, if that is known.
    pub(super) fn annotates(&self, name: &str, value: &str) -> Option<bool> {
        let pair = (name.to_owned(), value.to_owned());
        self.0.as_ref().map(|borne| borne.annotations.contains(&pair))
    }
}

impl Borne {
    fn read(folder: &Path) -> Option<Self> {
        let (mut all, mut manifest, mut configuration) = (Self::default(), false, false);
        for (nth, entry) in fs::read_dir(folder).ok()?.enumerate() {
            let name = entry.ok().filter(|_| nth < FILES)?.file_name();
            let mut pairs = pairs(&files::whole(&folder.join(&name), LIMIT)?);
            if name.as_encoded_bytes().starts_with(CONFIGURATION.as_bytes()) {
                configuration = true;
                all.labels.append(&mut pairs);
            } else {
                manifest |= name == MANIFEST;
                all.annotations.append(&mut pairs);
            }
        }
        (manifest && configuration).then_some(all)
    }
}

/// All wishes with their texts in a document of JSON. Go writes `null` for a text that is empty.
fn pairs(json: &[u8]) -> Pairs {
    let (mut all, mut at) = (BTreeSet::new(), 0);
    // The text before this place, and the wish whose value is to come.
    let (mut text, mut wish) = (None, None);
    while let Some(&byte) = json.get(at) {
        let start = at;
        at += 1;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'"' => {
                let Some(end) = end_of_text(json, at) else { break };
                at = end;
                text = json.get(start..end);
                if let Some(value) = wish.take().and_then(|name| Some((name, content(text?)?))) {
                    all.insert(value);
                }
            }
            b':' => wish = text.take().and_then(content).filter(|name| is_wish(name)),
            b'n' => all.extend(wish.take().map(|name| (name, String::new()))),
            _ => (text, wish) = (None, None),
        }
    }
    all
}

/// Behind the quote that ends a text.
fn end_of_text(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match json.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// What stands between quotes. What is not Unicode is no wish, as a name or as a value.
fn content(quoted: &[u8]) -> Option<String> {
    match String::from_utf8_lossy(quoted) {
        Cow::Borrowed(text) => serde_json::from_str(text).ok(),
        Cow::Owned(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "b64383199278b5bb0e51d8d713542efb25dcb6d8747da3cb1a50b155fd82a996";
    /// Of podman 4.3.1.
    const FILE: &str = "=c2hhMjU2OmI2NDM4MzE5OTI3OGI1YmIwZTUxZDhkNzEzNTQyZWZiMjVkY2I2ZDg3NDdkYTNj\
                        YjFhNTBiMTU1ZmQ4MmE5OTY=";

    #[test]
    fn labels_are_the_configurations_and_annotations_the_manifests() {
        let images = tempfile::tempdir().unwrap();
        let folder = images.path().join(ID);
        fs::create_dir(&folder).unwrap();
        let read = || Image::read(images.path(), ID);
        assert_eq!(read().labels("v6pod.name", "a"), None);
        fs::write(folder.join("manifest"), r#"{"annotations":{"v6pod.name":"a"}}"#).unwrap();
        assert_eq!(read().annotates("v6pod.name", "a"), None, "half of it is nothing");
        let file = folder.join(FILE);
        fs::write(&file, r#"{"config":{"Labels":{"v6pod.ingress":"tcp/22"}}}"#).unwrap();
        assert_eq!(read().labels("v6pod.ingress", "tcp/22"), Some(true));
        assert_eq!(read().annotates("v6pod.ingress", "tcp/22"), Some(false));
        assert_eq!(read().annotates("v6pod.name", "a"), Some(true));
        assert_eq!(read().labels("v6pod.name", "a"), Some(false));
        assert_eq!(read().annotates("v6pod.name", "b"), Some(false));
        fs::write(&file, r#"{"config":{"Labels":null}}"#).unwrap();
        assert_eq!(read().labels("v6pod.ingress", "tcp/22"), Some(false));
        assert_eq!(Image::read(images.path(), "../x"), Image(None));
        fs::write(&file, vec![b' '; LIMIT + 1]).unwrap();
        assert_eq!(read(), Image(None));
    }

    /// Each seen to give the container the label, with podman 4.3.1.
    #[test]
    fn a_label_is_the_images_however_go_lets_it_be_written() {
        let deep = format!(
            r#"{{"z":{}{},"config":{{"Labels":{{"v6pod.name":"a"}}}}}}"#,
            "[".repeat(300),
            "]".repeat(300)
        );
        for json in [
            r#"{"config":{"labels":{"v6pod.name":"a"}}}"#,
            r#"{"config":{"Labels":{}},"CONFIG":{"Labels":{"v6pod.name":"a"}}}"#,
            r#"{"config":{"Labels":{"v6pod.name":"a"},"Labels":{"v6pod.tags":"b"}}}"#,
            r#"{"config":{"Labels":{"x":null,"v6pod.name" : "\u0061"}}}"#,
            r#"{"config":{"Labels":{"\"":"\\","v\u0036pod.name":"a"}}}"#,
            &deep,
        ] {
            let all = pairs(json.as_bytes());
            assert!(all.contains(&("v6pod.name".to_owned(), "a".to_owned())), "{json}");
        }
        let null = pairs(br#"{"Labels":{"v6pod.name":null}}"#);
        assert!(null.contains(&("v6pod.name".to_owned(), String::new())));
    }

    #[test]
    fn what_is_no_pair_is_not_borne() {
        for json in [
            r#"["v6pod.name","a"]"#,
            r#"{"v6pod.name":["a"]}"#,
            r#"{"x":"\"v6pod.name\":\"a\""}"#,
            r#"{"v6pod.name":"a"#,
            r#"{"v6pod.name":"a\"#,
        ] {
            assert_eq!(pairs(json.as_bytes()), BTreeSet::new(), "{json}");
        }
    }
}
