//! The real program: finding it, and becoming it.
//!
//! Guarantee: what is found is never this program itself under one of its names, for that would
//! exec itself for ever. Device and inode decide, not the path: links lead here from many places.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Access;

use crate::config::Program;

/// Where a program is looked for behind `PATH`: podman run by a service manager may have next to
/// none. The places of Debian and Fedora, then those of podman's own helpers.
const USUAL: [&str; 8] = [
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/sbin",
    "/usr/local/libexec/podman",
    "/usr/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/lib/podman",
];

/// A program that is not this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Real(PathBuf);

/// There is no such program.
#[derive(Debug)]
pub(crate) enum NotFound {
    /// The one that the settings name cannot be run, or is this program.
    Configured(PathBuf),
    /// There is none of this name in any of the places.
    Anywhere(&'static str),
    /// The kernel does not tell which file this program is, so any might be.
    Oneself(io::Error),
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured(path) => {
                write!(f, "{} is not a program, or is v6pod-shim itself", path.display())
            }
            Self::Anywhere(name) => write!(f, "{name} is not installed"),
            Self::Oneself(error) => write!(f, "/proc/self/exe: {error}"),
        }
    }
}

impl Real {
    /// The program of this name by the settings, which for [`Program::Auto`] means `PATH` and the
    /// usual directories.
    pub(crate) fn find(name: &'static str, program: &Program) -> Result<Self, NotFound> {
        let oneself = fs::metadata("/proc/self/exe").map_err(NotFound::Oneself)?;
        match program {
            Program::At(path) if is_program(path, &oneself) => Ok(Self(path.clone())),
            Program::At(path) => Err(NotFound::Configured(path.clone())),
            Program::Auto => {
                let path = env::var_os("PATH").unwrap_or_default();
                search(name, &path, &USUAL, &oneself).ok_or(NotFound::Anywhere(name))
            }
        }
    }

    /// Becomes the program, under the name by which this one was called. Returns only if that
    /// fails.
    pub(crate) fn exec(&self, name: &OsStr, arguments: &[OsString]) -> io::Error {
        Command::new(&self.0).arg0(name).args(arguments).exec()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

fn search(name: &str, path: &OsStr, usual: &[&str], oneself: &Metadata) -> Option<Real> {
    env::split_paths(path)
        // A relative entry means the directory podman happens to be in.
        .filter(|directory| directory.is_absolute())
        .chain(usual.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_program(candidate, oneself))
        .map(Real)
}

fn is_program(path: &Path, oneself: &Metadata) -> bool {
    fs::metadata(path).is_ok_and(|file| {
        file.is_file()
            && (file.dev(), file.ino()) != (oneself.dev(), oneself.ino())
            && rustix::fs::access(path, Access::EXEC_OK).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn program(path: &Path, mode: u32) {
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn one_is_never_found_oneself_by_whatever_link() {
        let root = tempfile::tempdir().unwrap();
        let at = |folder: &str| {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            folder
        };
        let shim = root.path().join("v6pod-shim");
        program(&shim, 0o755);
        let oneself = fs::metadata(&shim).unwrap();

        symlink(&shim, at("linked").join("prog")).unwrap();
        symlink("../linked/prog", at("twice").join("prog")).unwrap();
        fs::hard_link(&shim, at("hard").join("prog")).unwrap();
        program(&at("not-executable").join("prog"), 0o644);
        fs::create_dir(at("directory").join("prog")).unwrap();
        symlink("nowhere", at("dangling").join("prog")).unwrap();
        program(&at("real").join("prog"), 0o755);
        program(&at("later").join("prog"), 0o755);

        let folders = ["linked", "twice", "hard", "not-executable", "directory", "dangling"];
        let mut path: Vec<PathBuf> = folders.iter().map(|f| root.path().join(f)).collect();
        path.insert(0, PathBuf::from("relative"));
        path.insert(0, PathBuf::new());
        let find = |path: &[PathBuf], usual: &[&str]| {
            search("prog", &env::join_paths(path).unwrap(), usual, &oneself)
        };
        assert_eq!(find(&path, &[]), None);
        let later = root.path().join("later");
        let real = Real(root.path().join("real/prog"));
        path.push(root.path().join("real"));
        assert_eq!(find(&path, &[later.to_str().unwrap()]), Some(real));
        path.pop();
        assert_eq!(find(&path, &[later.to_str().unwrap()]), Some(Real(later.join("prog"))));
        assert!(!is_program(&shim, &oneself));
    }
}
