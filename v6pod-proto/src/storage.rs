//! containers/storage's list of containers: where an id becomes a name.
//!
//! `containers.json` and, since the storage of podman 4.4, `volatile-containers.json` are arrays of
//! objects with `id` and `names`. They are written before podman starts a container's network.
//! Pure: the bytes come from the caller, who had a reason to trust or distrust them.

use serde::Deserialize;

use crate::ContainerId;

/// The files that list containers, in a folder `<driver>-containers` of the graph root.
pub const FILES: [&str; 2] = ["containers.json", "volatile-containers.json"];

#[derive(Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
}

/// The first name of the container in the list, if it is there and the list can be read.
pub fn name_in(list: &[u8], id: &ContainerId) -> Option<String> {
    let entries: Vec<Entry> = serde_json::from_slice(list).ok()?;
    let entry = entries.into_iter().find(|e| e.id == id.as_str())?;
    entry.names?.into_iter().next().filter(|name| !name.is_empty())
}

/// Whether the name is that of a pod's infra container as podman makes it: the first twelve digits
/// of the pod's id and `-infra`. Such a container has the pod's network and no name of its own.
pub fn is_infra(name: &str) -> bool {
    name.strip_suffix("-infra").is_some_and(|id| {
        id.len() == 12 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_found_among_others() {
        let id = "ab".repeat(32);
        let list = format!(
            r#"[{{"id":"{}","names":["other"]}},
                {{"id":"{id}","names":["web","second"],"image":"x","metadata":"{{\"image-name\":\"y\"}}","flags":{{}}}}]"#,
            "cd".repeat(32)
        );
        let id = id.parse().unwrap();
        assert_eq!(name_in(list.as_bytes(), &id).as_deref(), Some("web"));
        assert_eq!(name_in(b"[]", &id), None);
        assert_eq!(name_in(b"{", &id), None);
        assert_eq!(name_in(format!(r#"[{{"id":"{id}","names":null}}]"#).as_bytes(), &id), None);
    }

    #[test]
    fn an_infra_container_is_known_by_its_name() {
        assert!(is_infra("0123456789ab-infra"));
        assert!(!is_infra("my-infra") && !is_infra("0123456789AB-infra"));
    }
}
