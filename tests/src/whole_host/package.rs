//! The package as `make deb` makes it, of what was built beside the test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::SLOW;
use crate::{built, run, run_within};

/// How long the programs may take to be built.
const BUILD: Duration = Duration::from_secs(1800);

/// A .deb in a directory of its own.
#[derive(Debug)]
pub(super) struct Package {
    file: PathBuf,
    _dir: TempDir,
}

impl Package {
    /// Makes the package under this version.
    #[track_caller]
    pub(super) fn make(version: &str) -> Self {
        let programs = stripped();
        let mut command = Command::new("make");
        // As people make it, but of the programs under test, which are not built by that.
        command.args(["--old-file=build", "deb"]);
        for (variable, path) in
            [("RELEASE", programs.path()), ("SHIM", &programs.path().join("v6pod-shim"))]
        {
            command.arg(format!("{variable}={}", path.display()));
        }
        Self::by(command, version, SLOW)
    }

    /// Makes the package that runs from Debian 11 on under this version: what `make deb-portable`
    /// builds, which takes minutes the first time.
    #[track_caller]
    pub(super) fn portable(version: &str) -> Self {
        let mut command = Command::new("make");
        command.arg("deb-portable");
        Self::by(command, version, BUILD)
    }

    #[track_caller]
    fn by(mut make: Command, version: &str, limit: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        make.current_dir(workspace).arg(format!("DEBS={}", dir.path().display()));
        make.env("VERSION", version).env("COMPRESSION", "none");
        run_within(limit, &mut make).ok();
        let mut files = dir.path().read_dir().expect("reading a directory").flatten();
        let file = files.next().expect("deb.sh makes a file").path();
        Self { file, _dir: dir }
    }

    /// The file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }
}

/// All that is installed and run.
pub const PROGRAMS: [&str; 7] = [
    "v6podd",
    "v6podctl",
    "v6pod-shim",
    "v6pod-hook",
    "v6pod-wishes",
    "v6pod-cni",
    "v6pod-netavark",
];

/// The programs, without what debuggers want: a tenth of their size.
#[track_caller]
fn stripped() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for program in PROGRAMS {
        let mut strip = Command::new("strip");
        run(strip.arg("-o").arg(dir.path().join(program)).arg(built(program))).ok();
    }
    dir
}
