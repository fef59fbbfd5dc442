//! The shim, called as podman calls slirp4netns. What it would become is `true`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use v6pod_proto::ContainerId;

use crate::daemon::Daemon;
use crate::samples::Series;
use crate::scene::{NetNs, Scene};
use crate::user::User;
use crate::{Contender, Result, Round, as_podman, built, on_path};

pub(crate) const SERIES: &[Series] = &[Series::Shim];

/// Copies the shim to where users can run it, under the name by which it plays slirp4netns.
pub(crate) fn install(scene: &Scene) -> Result<PathBuf> {
    let name = scene.file("slirp4netns");
    if !name.exists() {
        scene.copy(&built("v6pod-shim")?, "v6pod-shim")?;
        symlink("v6pod-shim", &name)?;
    }
    Ok(name)
}

pub(crate) struct Shim {
    podman: Child,
    ids: ChildStdin,
    answers: BufReader<ChildStdout>,
    daemon: Rc<Daemon>,
    user: Rc<User>,
    calls: u64,
}

impl Shim {
    pub(crate) fn new(scene: &Scene, user: &Rc<User>, daemon: &Rc<Daemon>) -> Result<Self> {
        let shim = install(scene)?;
        let me = scene.copy(&std::env::current_exe()?, "v6pod-bench")?;
        let real = scene.copy(&on_path("true")?, "real-slirp4netns")?;
        let mut command: Command = user.command("unshare");
        command.args(["--user", "--map-root-user", "--"]).arg(me).arg(as_podman::WORD);
        command.arg(shim).arg(&real);
        command.env("V6POD_SOCKET", daemon.socket()).env("V6POD_SLIRP4NETNS", &real);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut podman = command.spawn().map_err(|e| format!("cannot start unshare: {e}"))?;
        let ids = podman.stdin.take().ok_or("no pipe")?;
        let answers = BufReader::new(podman.stdout.take().ok_or("no pipe")?);
        let (daemon, user) = (Rc::clone(daemon), Rc::clone(user));
        Ok(Self { podman, ids, answers, daemon, user, calls: 0 })
    }

    /// One call, with the namespace that it was for.
    fn call(&mut self, id: &ContainerId) -> Result<(Duration, NetNs)> {
        writeln!(self.ids, "{id}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        // Without one, the process has said why on stderr.
        let (path, nanos) = answer.trim().split_once(' ').ok_or("the call of the shim failed")?;
        let netns = NetNs::at(Path::new(path))?;
        writeln!(self.ids)?;
        Ok((Duration::from_nanos(nanos.parse()?), netns))
    }
}

impl Contender for Shim {
    fn series(&self) -> &'static [Series] {
        SERIES
    }

    fn round(&mut self, scene: &Scene) -> Result<Round> {
        self.calls += 1;
        let id: ContainerId = format!("5{:063x}", self.calls).parse()?;
        let (took, netns) = self.call(&id)?;
        if !self.daemon.serves(&id)? {
            return Err("the shim went on without the daemon".into());
        }
        scene.check_attached(&netns)?;
        self.daemon.deactivate(id, self.user.uid())?;
        Ok(Round { took: vec![(Series::Shim, took)], used: Some(netns) })
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.podman.kill();
        let _ = self.podman.wait();
    }
}
