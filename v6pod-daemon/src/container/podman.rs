//! A container's name, from podman's files.
//!
//! Guarantees: a [`Name`] is one that podman itself takes, whatever the files say. The files are
//! their owner's: a name is what he wants it to be, and worth something only among his own.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use tracing::debug;
use v6pod_proto::{ContainerId, storage};

use super::Unknown;
use super::beneath::{Folder, Refused};

/// A container's name as podman knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Letters, digits, `_`, `.` and `-`; at most 255 bytes.
    pub name: String,
    /// Whether it is that of a pod's infra container, which no person chose.
    pub infra: bool,
}

/// The storage drivers that rootless podman can use, the usual ones first. Each has its own list.
const DRIVERS: [&str; 4] = ["overlay", "vfs", "btrfs", "zfs"];

/// One of the user's directories, and the path by which podman's files name it.
pub(super) struct Place {
    pub(super) folder: Folder,
    pub(super) path: PathBuf,
}

/// The user's directories; either may be missing.
pub(super) struct Places {
    /// `/run/user/UID`.
    pub(super) runtime: Option<Place>,
    /// The home directory.
    pub(super) home: Option<Place>,
}

/// The field of podman 1.x's `create-config` that matters here; the keys are Go's names.
#[derive(Deserialize)]
struct CreateConfig {
    #[serde(rename = "Name")]
    name: String,
}

/// The name in podman 1.x's `create-config`. Empty, and so none, if podman was to choose it.
pub fn parse_create_config(bytes: &[u8]) -> Option<Name> {
    let config: CreateConfig = serde_json::from_slice(bytes).ok()?;
    Name::checked(config.name)
}

/// The name of the container in containers/storage's list.
pub fn parse_list(bytes: &[u8], id: &ContainerId) -> Option<Name> {
    storage::name_in(bytes, id).and_then(Name::checked)
}

impl Name {
    /// podman's own rule (`NameRegex`): `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
    fn checked(name: String) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let good = first && name.len() <= 255 && name.bytes().all(allowed);
        good.then(|| Self { infra: storage::is_infra(&name), name })
    }
}

/// Looks for the container's name where podman 1.x and later ones keep it. None if nobody says it.
///
/// # Errors
/// What may say it cannot be read.
pub(super) fn name(places: &Places, id: &ContainerId) -> Result<Option<Name>, Unknown> {
    match create_config(places, id) {
        Ok(Some(name)) => Ok(Some(name)),
        unnamed => match listed(places, id)? {
            None => unnamed,
            name => Ok(name),
        },
    }
}

/// podman 1.0 to 1.4: `libpod/tmp/socket/ID`, made by conmon, is a link to the bundle. It is read,
/// and its target opened by the same rule as everything.
fn create_config(places: &Places, id: &ContainerId) -> Result<Option<Name>, Unknown> {
    let link: PathBuf = ["libpod", "tmp", "socket", id.as_str()].iter().collect();
    let Some(runtime) = &places.runtime else { return Ok(None) };
    let Some(target) = seen(&link, runtime.folder.read_link(&link))? else { return Ok(None) };
    let file = target.join("artifacts/create-config");
    let mut all = places.home.iter().chain(Some(runtime));
    let found = all.find_map(|place| Some((place, below(&place.path, &file)?)));
    let Some((place, below)) = found else { return Ok(None) };
    let config = seen(&below, place.folder.read(&below))?;
    Ok(config.and_then(|bytes| parse_create_config(&bytes)))
}

/// The rest of a path below another, if it goes up nowhere.
fn below(base: &Path, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(base).ok()?;
    rest.components().all(|part| matches!(part, Component::Normal(_))).then(|| rest.into())
}

/// containers/storage's lists: the graph root in the home directory, and the run root, where the
/// volatile list is if the storage is transient. One that cannot be read does not hide the next.
fn listed(places: &Places, id: &ContainerId) -> Result<Option<Name>, Unknown> {
    let roots =
        [(&places.home, ".local/share/containers/storage"), (&places.runtime, "containers")];
    let mut unnamed = Ok(None);
    for (place, root) in roots {
        let Some(place) = place else { continue };
        let folders = DRIVERS.map(|driver| format!("{root}/{driver}-containers"));
        let files = folders.iter().flat_map(|f| storage::FILES.map(|file| Path::new(f).join(file)));
        for file in files {
            match seen(&file, place.folder.read(&file)) {
                Ok(list) => {
                    if let Some(name) = list.and_then(|bytes| parse_list(&bytes, id)) {
                        return Ok(Some(name));
                    }
                }
                Err(unknown) => unnamed = Err(unknown),
            }
        }
    }
    unnamed
}

/// What was read; none if it is not there.
///
/// # Errors
/// It is there, and was not read; the log says why.
fn seen<T>(file: &Path, read: Result<T, Refused>) -> Result<Option<T>, Unknown> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(Refused::Absent) => Ok(None),
        Err(error) => {
            let cause = std::error::Error::source(&error);
            debug!(?file, %error, cause, "a file of podman's was not read");
            Err(Unknown)
        }
    }
}

#[cfg(test)]
#[path = "podman_tests.rs"]
mod tests;
