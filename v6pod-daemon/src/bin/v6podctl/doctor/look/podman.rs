//! Podman's configuration and its hooks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use v6pod_proto::DEFAULT_SOCKET;
use v6pod_shim::Written;

use super::super::conf::{self, Layer, Unread, Whose};
use super::super::finding::By;
use super::super::hooks::{self, HookFile};
use super::super::programs::Version;
use super::super::shim;
use super::{caller, libexec, names, text, variable};

/// Since when drop-ins are read, `CONTAINERS_CONF_OVERRIDE` is, and one main file alone is.
const DROP_INS: Version = Version(3, 3, 0);
const OVERRIDE: Version = Version(4, 5, 0);
const ONE_MAIN: Version = Version(6, 0, 0);

/// The configuration that the caller's podman reads.
pub(crate) fn configuration(podman: Version) -> conf::Facts {
    let mut layers = match variable("CONTAINERS_CONF") {
        Some(path) => vec![asked_for(&path, "CONTAINERS_CONF")],
        None => usual(podman),
    };
    if podman >= OVERRIDE
        && let Some(path) = variable("CONTAINERS_CONF_OVERRIDE")
    {
        layers.push(asked_for(&path, "CONTAINERS_CONF_OVERRIDE"));
    }
    let first_helpers = variable("CONTAINERS_HELPER_BINARY_DIR");
    conf::Facts {
        layers,
        user: caller(),
        podman,
        libexec: libexec(),
        first_helpers: first_helpers.map(|dir| dir.display().to_string()),
    }
}

/// The files that are read unless the environment says otherwise.
fn usual(podman: Version) -> Vec<Layer> {
    let (share, etc) = (Path::new("/usr/share/containers"), Path::new("/etc/containers"));
    let own = (caller() != By::Root).then(own_folder).flatten();
    let mut places = vec![(share, Whose::System), (etc, Whose::System)];
    places.extend(own.as_deref().map(|own| (own, Whose::User)));
    let main = |(folder, whose): &(&Path, Whose)| layer(&folder.join("containers.conf"), *whose);
    if podman >= ONE_MAIN {
        // The nearest file counts; of the drop-ins of one name the nearest.
        let mut layers: Vec<Layer> = places.iter().rev().find_map(main).into_iter().collect();
        let drop_ins = places.iter().flat_map(|(folder, whose)| drop_ins(folder, *whose));
        let by_name: BTreeMap<_, _> = drop_ins.collect();
        layers.extend(by_name.into_values());
        return layers;
    }
    let mut layers = Vec::new();
    for place in &places {
        layers.extend(main(place));
        if podman >= DROP_INS && place.0 != share {
            layers.extend(drop_ins(place.0, place.1).into_iter().map(|(_, layer)| layer));
        }
    }
    layers
}

fn own_folder() -> Option<PathBuf> {
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    Some(config?.join("containers"))
}

fn drop_ins(folder: &Path, whose: Whose) -> Vec<(String, Layer)> {
    let folder = folder.join("containers.conf.d");
    match names(&folder, ".conf") {
        Ok(names) => {
            let layers = names
                .into_iter()
                .map(|name| Some((name.clone(), layer(&folder.join(name), whose)?)));
            layers.flatten().collect()
        }
        Err(_) => {
            let path = folder.display().to_string();
            let layer =
                Layer { path: path.clone(), whose, text: Err(Unread::Denied), for_all: false };
            vec![(path, layer)]
        }
    }
}

fn asked_for(path: &Path, variable: &'static str) -> Layer {
    let whose = Whose::Variable(variable);
    let none = || Layer {
        path: path.display().to_string(),
        whose,
        text: Err(Unread::Failed("no such file".to_owned())),
        for_all: true,
    };
    layer(path, whose).unwrap_or_else(none)
}

fn layer(path: &Path, whose: Whose) -> Option<Layer> {
    let text = text(path)?;
    Some(Layer { path: path.display().to_string(), whose, text, for_all: is_for_all(path) })
}

/// Whether every user can read a file.
fn is_for_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o004 != 0)
}

/// The settings of the shim, if there are any. `socket` is one whose absence others tell.
pub(crate) fn shim_settings(socket: &Path) -> Option<shim::Facts> {
    let own = variable("V6POD_SHIM_CONFIG");
    let by = own.as_ref().map_or(By::Root, |_| caller());
    let is_own = own.is_some();
    let path = own.unwrap_or_else(|| shim::FILE.into());
    let written = text(&path)?.map(|text| Written::read(&text));
    let socket_there = written.as_ref().is_ok_and(|written| {
        written.socket == socket
            || written.socket == Path::new(DEFAULT_SOCKET)
            || fs::metadata(&written.socket).is_ok_and(|file| file.file_type().is_socket())
    });
    let programs = written.as_ref().map_or(&[][..], |written| &written.programs);
    let cannot_run = programs.iter().filter(|(_, path)| !can_all_run(path)).map(|(key, _)| *key);
    Some(shim::Facts {
        path: path.display().to_string(),
        by,
        for_all: is_own || is_for_all(&path),
        socket_there,
        cannot_run: cannot_run.collect(),
        written,
    })
}

/// Whether every user can run a file.
fn can_all_run(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.mode() & 0o001 != 0)
}

/// The hook files of this machine.
pub(crate) fn hook_files() -> Result<hooks::Facts, String> {
    let folder = Path::new(hooks::FOLDER);
    let names = names(folder, ".json").map_err(|error| format!("{}: {error}", hooks::FOLDER))?;
    let file = |name: String| {
        let path = folder.join(&name);
        Some(HookFile { text: text(&path)?, for_all: is_for_all(&path), name })
    };
    Ok(hooks::Facts { files: names.into_iter().filter_map(file).collect(), libexec: libexec() })
}
