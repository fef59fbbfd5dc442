//! Where programs are looked for, and which of them the doctor asks anything.
//!
//! Guarantee: as root he runs nothing, and tells root to change nothing, that anybody else could have put there: the
//! program, its folder, all folders above and all links on the way belong to root, and nobody else may write to them. Nobody's doctor
//! runs what a relative entry of `PATH` leads to, which means the folder that he happens to be in.

use std::env;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use super::super::finding::By;
use super::say;

/// Where a program is looked for behind `PATH`, as v6pod-shim does it.
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

/// As many links as Linux follows on one way.
const LINKS: Range<u8> = 0..40;

/// A program that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    path: PathBuf,
    trusted: bool,
}

impl Program {
    fn at(path: PathBuf, by: &By) -> Self {
        let trusted = match by {
            By::Root => is_roots_alone(&path),
            By::User(_) => true,
        };
        Self { path, trusted }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it may be run, and root be told to change it.
    pub(super) fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// What it says, if it may be run and ends well.
    pub(super) fn say(&self, words: &[&str]) -> Result<String, String> {
        if !self.trusted {
            return Err(format!("{} can be changed by others than root", self.path.display()));
        }
        say(&self.path, words)
    }
}

/// The folders of `PATH`, then the usual ones.
pub(super) fn folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(USUAL.map(PathBuf::from)).collect()
}

/// The first that can be run, trusted ones before others; or else the first trusted one that is there.
pub(super) fn find(name: &str, folders: &[PathBuf], by: &By) -> Option<Program> {
    let absolute = folders.iter().filter(|folder| folder.is_absolute());
    let there: Vec<Program> = absolute
        .map(|folder| folder.join(name))
        .filter(|path| fs::metadata(path).is_ok_and(|file| file.is_file()))
        .map(|path| Program::at(path, by))
        .collect();
    let kinds: [fn(&Program, &By) -> bool; 3] = [
        |program, by| program.trusted && runs(&program.path, by),
        |program, by| runs(&program.path, by),
        |program, _| program.trusted,
    ];
    kinds.into_iter().find_map(|is_it| there.iter().find(|program| is_it(program, by))).cloned()
}

/// Whether who asks can run it; for root, whether everybody can: what root may run says nothing about others.
pub(super) fn runs(path: &Path, by: &By) -> bool {
    match by {
        By::Root => fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o001 != 0),
        By::User(_) => rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok(),
    }
}

/// Whether nobody but root can change a file, or what stands at its path: each folder and each link on the way.
fn is_roots_alone(path: &Path) -> bool {
    real_way(path, &mut LINKS.clone()).is_some()
}

/// Where an absolute path leads by root's links and folders alone.
fn real_way(path: &Path, links: &mut Range<u8>) -> Option<PathBuf> {
    let mut at = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir => at.push(part),
            Component::Normal(name) => at.push(name),
            Component::ParentDir => drop(at.pop()),
            Component::CurDir => {}
            Component::Prefix(_) => return None,
        }
        let found = fs::symlink_metadata(&at).ok().filter(|it| it.uid() == 0)?;
        if found.is_symlink() {
            links.next()?;
            let target = fs::read_link(&at).ok()?;
            at.pop();
            at = real_way(&at.join(target), links)?;
        } else if found.permissions().mode() & 0o022 != 0 {
            return None;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    /// A folder with a program that leaves a mark when it runs.
    fn planted(name: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (path, mark) = (dir.path().join(name), dir.path().join("mark"));
        // By another process: who holds a file open for writing keeps it from being run.
        let script = "printf '#!/bin/sh\\n: >%s\\n' \"$2\" >\"$1\" && chmod 0755 \"$1\"";
        let mut sh = Command::new("sh");
        let made = sh.args(["-c", script, "sh"]).args([&path, &mark]).status().unwrap();
        assert!(made.success());
        (dir, mark)
    }

    #[test]
    fn root_runs_no_program_that_somebody_else_could_have_put_on_the_path() {
        let (dir, mark) = planted("sh");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let path = [dir.path().to_owned(), PathBuf::from("/bin")];
        let usual = find("sh", &path, &By::Root).unwrap();
        assert_eq!((usual.path(), usual.is_trusted()), (Path::new("/bin/sh"), true));
        assert_eq!(usual.say(&["-c", "echo yes"]).as_deref(), Ok("yes\n"));
        // Where there is no other, it is known to be there, and not asked.
        let planted = find("sh", &path[..1], &By::Root).unwrap();
        assert!(!planted.is_trusted() && planted.say(&["--version"]).is_err());
        assert!(!mark.exists());
        // Nor is root told to have everybody run it.
        fs::set_permissions(planted.path(), Permissions::from_mode(0o644)).unwrap();
        assert_eq!(find("sh", &path[..1], &By::Root), None);
    }

    #[test]
    fn root_follows_no_link_that_is_somebody_elses() {
        // Not below /tmp, which is everybody's.
        let dir = tempfile::tempdir_in("/var/lib").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("/bin/sh", at("theirs")).unwrap();
        symlink("theirs", at("sh")).unwrap();
        let alone = |name| is_roots_alone(&at(name));
        assert!(alone("sh"));
        std::os::unix::fs::lchown(at("theirs"), Some(1), None).unwrap();
        assert!(!alone("sh") && !alone("theirs"));
        symlink("round", at("round")).unwrap();
        assert!(!alone("round") && !alone("nowhere"));
    }

    #[test]
    fn a_user_runs_what_his_path_names_but_for_relative_folders() {
        let (dir, mark) = planted("podman");
        let anna = By::User("anna".to_owned());
        let own = find("podman", &[dir.path().to_owned()], &anna).unwrap();
        assert!(own.say(&[]).is_ok() && mark.exists());
        // The tests run in the crate's folder.
        let here = PathBuf::from("src");
        assert!(here.join("lib.rs").exists());
        for by in [&anna, &By::Root] {
            assert_eq!(find("lib.rs", &[here.clone(), PathBuf::new(), ".".into()], by), None);
        }
        let absolute = here.canonicalize().unwrap();
        assert!(find("lib.rs", &[absolute], &anna).is_some());
    }
}
