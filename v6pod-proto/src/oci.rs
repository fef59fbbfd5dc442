//! The state of a container that an OCI runtime gives its hooks.
//!
//! OCI runtime specification, "State". Pure: the bytes come from the caller. Of the annotations only
//! [wishes](crate::wishes) are kept, whatever else a container bears.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::wishes::is_wish;

/// What a hook is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct State {
    /// The container, as its engine calls it.
    pub id: String,
    /// What it is doing: `creating` or `created` before its program runs, `stopped` behind its end.
    #[serde(default)]
    pub status: String,
    /// Its first process. Podman leaves it out once there is none, others write 0.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its folder, as the runtime was given it.
    #[serde(default)]
    pub bundle: String,
    /// The annotations that are wishes, well-formed or not.
    #[serde(default, deserialize_with = "wishes_alone")]
    pub annotations: BTreeMap<String, String>,
}

impl State {
    /// Reads a state; `None` if it is none.
    pub fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// Whether the container's end is behind it.
    pub fn has_ended(&self) -> bool {
        self.status == "stopped"
    }
}

fn wishes_alone<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct Wishes;

    impl<'de> Visitor<'de> for Wishes {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations")
        }

        // `null`, as Go writes a map that there is none of.
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut wishes = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                if is_wish(&name) {
                    wishes.insert(name, map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(wishes)
        }
    }

    deserializer.deserialize_any(Wishes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runc_and_crun_and_podman_say_is_read() {
        let id = "ab".repeat(32);
        // runc 1.1.5 at createRuntime.
        let runc = format!(
            r#"{{"ociVersion":"1.0.2-dev","id":"{id}","status":"creating","pid":77,"bundle":"/b",
                "annotations":{{"io.container.manager":"libpod","v6pod":"true","v6pod.x":"y"}}}}"#
        );
        let state = State::read(runc.as_bytes()).unwrap();
        assert_eq!(
            (state.id.as_str(), state.pid, state.has_ended()),
            (id.as_str(), Some(77), false)
        );
        let wishes: Vec<_> = state.annotations.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(wishes, [("v6pod", "true"), ("v6pod.x", "y")]);
        // crun 1.8.1, over several lines.
        let crun = format!(
            "{{\n \"ociVersion\":\"1.0\",\n \"id\":\"{id}\",\n \"pid\":77,\n \"root\":\"/r\",\n \
             \"bundle\":\"/b\",\n \"status\":\"created\"\n}}\n"
        );
        assert_eq!(State::read(crun.as_bytes()).unwrap().pid, Some(77));
        // podman 4.3.1 at poststop.
        let podman = format!(
            r#"{{"ociVersion":"1.0.2-dev","id":"{id}","status":"stopped","bundle":"/b","annotations":null}}"#
        );
        let state = State::read(podman.as_bytes()).unwrap();
        assert!(state.has_ended() && state.pid.is_none() && state.annotations.is_empty());
    }

    #[test]
    fn what_is_no_state_is_none() {
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"id":7}"#,
            r#"{"id":"x","pid":-1}"#,
            r#"{"id":"x","annotations":[]}"#,
            r#"{"id":"x","annotations":{"v6pod":true}}"#,
            r#"{"id":"x"} {"#,
        ] {
            assert_eq!(State::read(wrong.as_bytes()), None, "{wrong}");
        }
        let deep = format!(r#"{{"id":"x","annotations":{{"x":{}}}}}"#, "[".repeat(100_000));
        assert_eq!(State::read(deep.as_bytes()), None);
    }
}
