//! Which programs are there, and what they say of themselves.

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::super::finding::By;
use super::super::programs::{Facts, Found, Installer, Mapper, Version};
use super::{caller, libexec, say};

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

/// Where v6podd looks for nft.
const NFT: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// The programs, and the versions of those that tell.
pub(crate) fn programs() -> (Facts, Vec<(&'static str, String)>) {
    let libexec = libexec();
    let podman = find("podman", &path());
    let mut versions = Vec::new();
    let mut version = |name: &'static str, program: &Option<PathBuf>| {
        let said = say(program.as_deref()?, &["--version"]).ok()?;
        let line = said.lines().next().unwrap_or_default();
        let line = line.strip_prefix(name).unwrap_or(line).trim();
        let version = Version::find(&said);
        let told = version.map_or_else(|| line.to_owned(), |version| version.to_string());
        // Some builds of pasta do not know theirs.
        versions.extend(Some((name, told)).filter(|(_, told)| !told.is_empty()));
        version
    };
    let real: Vec<PathBuf> = path()
        .into_iter()
        .chain(USUAL.map(PathBuf::from))
        .filter(|folder| folder.is_absolute() && folder != Path::new(&libexec))
        .collect();
    let (slirp4netns, pasta) = (find("slirp4netns", &real), find("pasta", &real));
    let nft = find("nft", &NFT.map(PathBuf::from));
    let podman_version = version("podman", &podman);
    version("slirp4netns", &slirp4netns);
    version("pasta", &pasta);
    version("crun", &find("crun", &real));
    version("runc", &find("runc", &real));
    version("nft", &nft);
    let own = ["v6pod-shim", "v6pod-hook", "v6pod-wishes"];
    let own = own.map(|name| (name, found(existing(Path::new(&libexec).join(name)).as_deref())));
    let shim = fs::metadata(Path::new(&libexec).join("v6pod-shim"));
    let is_shim = |name: &&str| {
        let link = fs::metadata(Path::new(&libexec).join(name));
        // Without the shim itself there is nothing that a link could lead to.
        let Ok(shim) = &shim else { return true };
        link.is_ok_and(|link| (link.dev(), link.ino()) == (shim.dev(), shim.ino()))
    };
    let mapper = |name| (name, mapper(find(name, &path())));
    let facts = Facts {
        installer: installer(),
        podman: podman_version,
        podman_found: found(podman.as_deref()),
        own: own.into(),
        broken_links: ["slirp4netns", "pasta"].into_iter().filter(|name| !is_shim(name)).collect(),
        slirp4netns: found(slirp4netns.as_deref()),
        pasta: found(pasta.as_deref()),
        nft: found(nft.as_deref()),
        mappers: ["newuidmap", "newgidmap"].map(mapper).into(),
        libexec,
    };
    (facts, versions)
}

fn path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    fs::metadata(&path).is_ok_and(|file| file.is_file()).then_some(path)
}

/// The first that can be run, or else the first that is there.
fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let mut there = folders.iter().filter_map(|folder| existing(folder.join(name)));
    let first = there.next()?;
    let runs = |path: &PathBuf| found(Some(path)) == Found::Fine;
    if runs(&first) { Some(first) } else { there.find(runs).or(Some(first)) }
}

fn found(program: Option<&Path>) -> Found {
    let Some(path) = program else { return Found::Missing };
    // What root may run says nothing about others.
    let runs = match caller() {
        By::Root => fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o001 != 0),
        By::User(_) => rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok(),
    };
    if runs { Found::Fine } else { Found::NotExecutable(path.display().to_string()) }
}

fn mapper(program: Option<PathBuf>) -> Mapper {
    let Some(path) = program else { return Mapper::Missing };
    let setuid = |file: fs::Metadata| file.uid() == 0 && file.permissions().mode() & 0o4000 != 0;
    let mut value = [0; 64];
    let mut capable = || rustix::fs::getxattr(&path, "security.capability", &mut value).is_ok();
    if fs::metadata(&path).is_ok_and(setuid) || capable() {
        Mapper::Fine
    } else {
        Mapper::Powerless(path.display().to_string())
    }
}

fn installer() -> Option<Installer> {
    [("/usr/bin/apt-get", Installer::Apt), ("/usr/bin/dnf", Installer::Dnf)]
        .into_iter()
        .find_map(|(path, installer)| Path::new(path).exists().then_some(installer))
}
