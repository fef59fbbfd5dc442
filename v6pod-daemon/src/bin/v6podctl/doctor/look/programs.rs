//! Which programs are there, and what they say of themselves.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::super::finding::By;
use super::super::programs::{Facts, Found, Installer, Mapper, Version};
use super::search::{self, Program};
use super::{caller, libexec};

/// Where v6podd looks for nft.
const NFT: [&str; 6] =
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// The programs, and what was told by those that were asked.
pub(crate) struct Seen {
    pub(crate) facts: Facts,
    pub(crate) versions: Vec<(&'static str, String)>,
    /// Those that were not asked, for others than root could have put them there.
    pub(crate) not_asked: Vec<String>,
}

/// Looks at the programs.
pub(crate) fn programs() -> Seen {
    let (by, libexec) = (caller(), libexec());
    let (mut versions, mut not_asked) = (Vec::new(), Vec::new());
    let mut version = |name: &'static str, program: &Option<Program>| {
        let program = program.as_ref()?;
        if !program.is_trusted() {
            not_asked.push(program.path().display().to_string());
        }
        let said = program.say(&["--version"]).ok()?;
        let line = said.lines().next().unwrap_or_default();
        let line = line.strip_prefix(name).unwrap_or(line).trim();
        let version = Version::find(&said);
        let told = version.map_or_else(|| line.to_owned(), |version| version.to_string());
        // Some builds of pasta do not know theirs.
        versions.extend(Some((name, told)).filter(|(_, told)| !told.is_empty()));
        version
    };
    // Ours stand in for some of them.
    let mut real = search::folders();
    real.retain(|folder| folder != Path::new(&libexec));
    let find = |name| search::find(name, &real, &by);
    let [podman, slirp4netns, pasta] = ["podman", "slirp4netns", "pasta"].map(find);
    let nft = search::find("nft", &NFT.map(PathBuf::from), &by);
    let podman_version = version("podman", &podman);
    version("slirp4netns", &slirp4netns);
    version("pasta", &pasta);
    version("crun", &find("crun"));
    version("runc", &find("runc"));
    version("nft", &nft);
    let own = ["v6pod-shim", "v6pod-hook", "v6pod-wishes"];
    let own = own.map(|name| {
        let path = Path::new(&libexec).join(name);
        (name, found(path.is_file().then_some(&path), &by))
    });
    let shim = fs::metadata(Path::new(&libexec).join("v6pod-shim"));
    let is_shim = |name: &&str| {
        let link = fs::metadata(Path::new(&libexec).join(name));
        // Without the shim itself there is nothing that a link could lead to.
        let Ok(shim) = &shim else { return true };
        link.is_ok_and(|link| (link.dev(), link.ino()) == (shim.dev(), shim.ino()))
    };
    let found = |program: &Option<Program>| found(program.as_ref().map(Program::path), &by);
    let facts = Facts {
        installer: installer(),
        podman: podman_version,
        podman_found: found(&podman),
        own: own.into(),
        broken_links: ["slirp4netns", "pasta"].into_iter().filter(|name| !is_shim(name)).collect(),
        slirp4netns: found(&slirp4netns),
        pasta: found(&pasta),
        nft: found(&nft),
        mappers: ["newuidmap", "newgidmap"].map(|name| (name, mapper(find(name)))).into(),
        libexec,
    };
    Seen { facts, versions, not_asked }
}

fn found(program: Option<impl AsRef<Path>>, by: &By) -> Found {
    let Some(path) = program else { return Found::Missing };
    let path = path.as_ref();
    if search::runs(path, by) {
        Found::Fine
    } else {
        Found::NotExecutable(path.display().to_string())
    }
}

fn mapper(program: Option<Program>) -> Mapper {
    let Some(program) = program else { return Mapper::Missing };
    let path = program.path();
    let setuid = |file: fs::Metadata| file.uid() == 0 && file.permissions().mode() & 0o4000 != 0;
    let mut value = [0; 64];
    let mut capable = || rustix::fs::getxattr(path, "security.capability", &mut value).is_ok();
    if fs::metadata(path).is_ok_and(setuid) || capable() {
        Mapper::Fine
    } else if program.is_trusted() {
        Mapper::Powerless(path.display().to_string())
    } else {
        // Root's right is nothing to give to what anybody may have put there.
        Mapper::Missing
    }
}

fn installer() -> Option<Installer> {
    [("/usr/bin/apt-get", Installer::Apt), ("/usr/bin/dnf", Installer::Dnf)]
        .into_iter()
        .find_map(|(path, installer)| Path::new(path).exists().then_some(installer))
}
