//! `podman run --rm` of a program that does nothing, as an ordinary user: without v6pod, and with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::program::{Finished, run};
use crate::samples::Series;
use crate::scene::{Scene, calm};
use crate::user::User;
use crate::{Contender, Result, Round, on_path, shim};

pub(crate) const PLAIN: &[Series] = &[Series::PodmanPlain];
pub(crate) const WITH_V6POD: &[Series] = &[Series::PodmanV6pod];
const BOTH: &[Series] = &[Series::PodmanPlain, Series::PodmanV6pod];

const IMAGE: &str = "localhost/v6bench";

/// runc runs under every layout of cgroups, and there may be no pids controller, no journal and no
/// systemd.
const CONFIGURATION: &str = "[containers]\npids_limit = 0\n\n[engine]\nruntime = \"runc\"\n\
    cgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";

pub(crate) struct Podman {
    user: Rc<User>,
    plain: PathBuf,
    v6pod: Option<V6pod>,
    rounds: usize,
}

struct V6pod {
    configuration: PathBuf,
    daemon: Rc<Daemon>,
}

impl Podman {
    /// Makes the image, and runs it once so that podman has all that it makes once.
    pub(crate) fn new(scene: &Scene, user: &Rc<User>) -> Result<Self> {
        let plain = scene.file("plain.conf");
        fs::write(&plain, CONFIGURATION)?;
        let podman = Self { user: Rc::clone(user), plain, v6pod: None, rounds: 0 };
        let archive = image(scene)?;
        let mut import = podman.command(&podman.plain);
        run(import.args(["import", "--change", "ENV PATH=/bin"]).arg(archive).arg(IMAGE))?.ok()?;
        podman.run_plain()?;
        Ok(podman)
    }

    /// From here on every other container is one of v6pod's.
    pub(crate) fn with_v6pod(mut self, scene: &Scene, daemon: &Rc<Daemon>) -> Result<Self> {
        let configuration = scene.file("v6pod.conf");
        let shim = shim::install(scene)?;
        let text = format!("{CONFIGURATION}network_cmd_path = \"{}\"\n", shim.display());
        fs::write(&configuration, text)?;
        let v6pod = V6pod { configuration, daemon: Rc::clone(daemon) };
        self.run_with(&v6pod)?;
        self.v6pod = Some(v6pod);
        Ok(self)
    }

    fn command(&self, configuration: &Path) -> Command {
        let mut command = self.user.command("podman");
        command.env("CONTAINERS_CONF", configuration);
        command
    }

    fn run_plain(&self) -> Result<Duration> {
        no_op(&mut self.command(&self.plain)).map(|done| done.took)
    }

    fn run_with(&self, v6pod: &V6pod) -> Result<Duration> {
        let before = v6pod.daemon.made()?;
        let mut command = self.command(&v6pod.configuration);
        let done = no_op(command.env("V6POD_SOCKET", v6pod.daemon.socket()))?;
        if v6pod.daemon.made()? != before + 1 {
            return Err("podman ran the container without v6pod".into());
        }
        v6pod.daemon.is_idle()?;
        Ok(done.took)
    }
}

impl Contender for Podman {
    fn series(&self) -> &'static [Series] {
        if self.v6pod.is_some() { BOTH } else { PLAIN }
    }

    /// One of each, by turns in either order.
    fn round(&mut self, _: &Scene) -> Result<Round> {
        self.rounds += 1;
        let plain_first = self.rounds.is_multiple_of(2);
        let mut took = Vec::new();
        for plain in [plain_first, !plain_first] {
            match &self.v6pod {
                _ if plain => took.push((Series::PodmanPlain, self.run_plain()?)),
                Some(v6pod) => took.push((Series::PodmanV6pod, self.run_with(v6pod)?)),
                None => {}
            }
        }
        Ok(Round { took, used: None })
    }
}

fn no_op(podman: &mut Command) -> Result<Finished> {
    calm();
    run(podman.args(["run", "--rm", IMAGE, "true"]))?.ok()
}

/// An archive of a root folder with busybox in it and nothing else.
fn image(scene: &Scene) -> Result<PathBuf> {
    let (root, archive) = (scene.file("image"), scene.file("image.tar"));
    let bin = root.join("bin");
    if archive.exists() {
        return Ok(archive);
    }
    fs::create_dir_all(&bin)?;
    fs::copy(on_path("busybox")?, bin.join("busybox"))?;
    symlink("busybox", bin.join("true"))?;
    run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg("."))?.ok()?;
    Ok(archive)
}
