//! Issue 8: what `make dist` gives is the same for the same commit, and what is built of it has its version. What is
//! installed is what the packages list, and its documents' links lead somewhere.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use v6pod_tests::run;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `packaging/dist.sh` puts into this folder, but for a tree that is no git repository of ours.
#[track_caller]
fn dist(folder: &Path) -> Option<[String; 2]> {
    let root = root();
    let known = run(Command::new("git").current_dir(&root).args(["rev-parse", "HEAD"]));
    if !known.status.success() {
        return None;
    }
    run(Command::new(root.join("packaging/dist.sh")).arg(folder)).ok();
    Some(
        ["v6pod.spec", "PKGBUILD"]
            .map(|name| fs::read_to_string(folder.join(name)).expect("it is written")),
    )
}

#[test]
fn a_release_is_the_same_each_time_and_its_recipes_fit_it() {
    let [one, other] = [(), ()].map(|()| tempfile::tempdir().expect("a folder"));
    let (Some(recipes), Some(again)) = (dist(one.path()), dist(other.path())) else { return };
    // The tarball's sum stands in one of them.
    assert_eq!(recipes, again);
    let version = env!("CARGO_PKG_VERSION");
    let tarball = one.path().join(format!("v6pod-{version}.tar.gz"));
    let sum = run(Command::new("sha256sum").arg(&tarball)).ok().to_owned();
    let [spec, pkgbuild] = &recipes;
    assert!(pkgbuild.contains(sum.split(' ').next().unwrap_or_default()), "{sum}");
    for recipe in &recipes {
        assert!(recipe.contains(version) && !recipe.contains('@'), "{recipe}");
    }
    assert!(spec.contains("%files") && pkgbuild.contains("package()"));
    let files = run(Command::new("tar").arg("-tzf").arg(&tarball)).ok().to_owned();
    for file in ["Cargo.lock", "Makefile", "LICENSE-MIT", "systemd/v6podd.service"] {
        let path = format!("v6pod-{version}/{file}");
        assert!(files.lines().any(|line| line == path), "{path} is not in it");
    }
    run(Command::new("bash").arg("-n").arg(one.path().join("PKGBUILD"))).ok();
    // Where there is an rpm, it reads the other.
    if Path::new("/usr/bin/rpmspec").exists() {
        run(Command::new("rpmspec").arg("-P").arg(one.path().join("v6pod.spec"))).ok();
    }
}

/// What stands in for the programs that `make install` copies: it is about where they go. v6podctl writes its own
/// manuals there.
const STAND_IN: &str = r#"#!/bin/sh
case $1 in man) touch "$2/v6podctl.1" "$2/v6podctl-ls.1" "$2/v6podd.8" ;; esac
"#;

/// Puts into `$1` what is installed, as the recipe's script `$2` does it, and says where everything is but folders.
const INSTALLED: &str = r#"eval "$2" >&2
cd "$1"
find . ! -type d | sort"#;

/// Says what of it the entries `$2` name. One that names nothing is as wrong as a file that none names.
const LISTED: &str = r#"cd "$1"
found=$(for path in $2; do find "$path" ! -type d || exit; done)
echo "$found" | sort"#;

/// What is between this line and the scripts that follow, or the end.
#[track_caller]
fn section<'a>(spec: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (_, rest) = spec.split_once(&format!("\n{name}\n")).expect("the section");
    rest.lines().take_while(|line| !line.starts_with("%post"))
}

/// A line of the recipe as rpm has it on Fedora.
#[track_caller]
fn expanded(line: &str, buildroot: &str, sbin: &str) -> String {
    let macros = [
        ("%{buildroot}", buildroot),
        ("%{_sbindir}", sbin),
        ("%{_bindir}", "/usr/bin"),
        ("%{_libexecdir}", "/usr/libexec"),
        ("%{_datadir}", "/usr/share"),
        ("%{_docdir}", "/usr/share/doc"),
        ("%{_mandir}", "/usr/share/man"),
        ("%{_sysconfdir}", "/etc"),
    ];
    let line = macros.iter().fold(line.to_owned(), |line, (name, value)| line.replace(name, value));
    assert!(!line.contains("%{"), "{line}");
    line
}

/// Programs in a folder, and what has `make install` take those.
#[track_caller]
fn stand_ins() -> (TempDir, String) {
    let programs = tempfile::tempdir().expect("a folder");
    let ours = ["v6pod-shim", "v6pod-hook", "v6pod-wishes", "v6pod-cni", "v6pod-netavark"];
    for name in ["v6podd", "v6podctl"].into_iter().chain(ours) {
        let path = programs.path().join(name);
        fs::write(&path, STAND_IN).expect("a program");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a program");
    }
    let folder = programs.path().display();
    let flags = format!("RELEASE={folder} SHIM={folder}/v6pod-shim");
    (programs, flags)
}

#[test]
fn the_rpm_lists_each_file_that_is_installed_and_no_other() {
    let spec = fs::read_to_string(root().join("packaging/v6pod.spec")).expect("the recipe");
    let (_programs, flags) = stand_ins();
    // Fedora has one folder for both since 42.
    for sbin in ["/usr/sbin", "/usr/bin"] {
        let stage = tempfile::tempdir().expect("a folder");
        let buildroot = stage.path().display().to_string();
        let expanded = |line: &str| expanded(line, &buildroot, sbin);
        let script: Vec<String> = section(&spec, "%install").map(expanded).collect();
        // Licences are the sources' own, and a folder alone is no file.
        let entries = section(&spec, "%files")
            .filter(|line| !["#", "%license", "%dir"].iter().any(|word| line.starts_with(word)));
        let paths = entries.filter_map(|line| line.split_whitespace().last());
        let paths: Vec<String> = paths.map(|path| format!(".{}", expanded(path))).collect();
        let sh = |script: &str, of: &[String]| {
            let mut sh = Command::new("sh");
            sh.current_dir(root()).env("MAKEFLAGS", &flags).args(["-ec", script, "sh"]);
            run(sh.args([&*buildroot, &of.join("\n")])).ok().to_owned()
        };
        let installed = sh(INSTALLED, &script);
        assert!(installed.lines().any(|path| path == format!(".{sbin}/v6podd")), "{installed}");
        assert_eq!(installed, sh(LISTED, &paths), "what is installed, and what is listed");
    }
}

/// What the links of a document lead to, but for other sites.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://"))
}

/// The name by which a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

/// Links of the documents below this folder that lead nowhere.
#[track_caller]
fn dead_links(folder: &Path) -> Vec<String> {
    let inside = |sub: &str| fs::read_dir(folder.join(sub)).expect("a folder").flatten();
    let entries = inside("").chain(inside("docs")).map(|entry| entry.path());
    let mut dead = Vec::new();
    for page in entries.filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
        let text = fs::read_to_string(&page).expect("a document");
        for link in links(&text) {
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let target = fs::read_to_string(&file).unwrap_or_default();
            let headings = target.lines().filter(|line| line.starts_with('#'));
            let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#').trim()));
            if !file.exists() || !(part.is_empty() || anchors.any(|anchor| anchor == part)) {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    dead
}

#[test]
fn links_lead_somewhere_here_and_where_the_documents_are_installed() {
    assert_eq!(dead_links(&root()), Vec::<String>::new());
    let (_programs, flags) = stand_ins();
    let stage = tempfile::tempdir().expect("a folder");
    let mut make = Command::new("make");
    make.current_dir(root()).args(["-s", "install", "PREFIX=/usr"]).args(flags.split(' '));
    run(make.arg(format!("DESTDIR={}", stage.path().display()))).ok();
    let installed = stage.path().join("usr/share/doc/v6pod");
    assert_eq!(dead_links(&installed), Vec::<String>::new());
    let readme = fs::read_to_string(installed.join("README.md")).expect("the README");
    assert!(links(&readme).count() > 20, "it has links");
    // One that leads nowhere is seen.
    fs::remove_file(installed.join("docs/users.md")).expect("it is there");
    assert!(!dead_links(&installed).is_empty());
}
