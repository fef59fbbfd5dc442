//! Issue 8: what `make dist` gives is the same for the same commit, and what is built of it has its version.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;

use v6pod_tests::run;

/// What `packaging/dist.sh` puts into this folder, but for a tree that is no git repository of ours.
#[track_caller]
fn dist(folder: &Path) -> Option<[String; 2]> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
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
