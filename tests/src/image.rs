//! The image of all containers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::machine::on_path;
use crate::run;
use crate::user::world_readable_dir;

/// What every user has: busybox and nothing else.
pub const IMAGE: &str = "localhost/v6test";

/// Makes an archive of the image's files.
#[track_caller]
pub(crate) fn archive(file: &Path) {
    let root = world_readable_dir();
    let bin = root.path().join("bin");
    fs::create_dir(&bin).expect("making a directory");
    let busybox = on_path("busybox").expect("busybox was asked for");
    fs::copy(busybox, bin.join("busybox")).expect("copying busybox");
    for applet in run(Command::new("busybox").arg("--list")).ok().lines() {
        // One applet is called busybox itself.
        let _ = symlink("busybox", bin.join(applet));
    }
    run(Command::new("tar").arg("-C").arg(root.path()).arg("-cf").arg(file).arg(".")).ok();
}
