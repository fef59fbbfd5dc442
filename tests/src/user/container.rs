//! A container of an ordinary user, as podman knows it.

use crate::{Finished, PATIENCE, Process, User, eventually};

/// A container, by its user and id. It ends at the latest with its user.
#[derive(Debug)]
pub struct Container<'a> {
    user: &'a User,
    /// 64 hex digits.
    pub id: String,
}

impl<'a> Container<'a> {
    pub(super) fn new(user: &'a User, id: String) -> Self {
        Self { user, id }
    }

    /// Runs a command in it.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> Finished {
        self.user.podman(&[&["exec", &self.id], command].concat())
    }

    /// What `podman inspect` says for this Go template.
    #[track_caller]
    pub fn inspect(&self, format: &str) -> String {
        self.user.podman(&["inspect", "--format", format, &self.id]).ok().to_owned()
    }

    /// Waits until `podman inspect` says this for that Go template. Whose process ends while podman reads about it, of
    /// that podman says that there is no such process: then it is asked again.
    #[track_caller]
    pub fn comes_to(&self, what: &str, format: &str, wanted: &str) {
        eventually(PATIENCE, what, || {
            let said = self.user.podman(&["inspect", "--format", format, &self.id]);
            let ended = !said.status.success() && said.stderr.contains("no such process");
            (!ended && said.ok() == wanted).then_some(())
        });
    }

    /// Its init process.
    #[track_caller]
    pub fn init(&self) -> Process {
        self.process("{{.State.Pid}}")
    }

    /// Its conmon.
    #[track_caller]
    pub fn conmon(&self) -> Process {
        self.process("{{.State.ConmonPid}}")
    }

    /// Its slirp4netns: the one that was given this container's namespace.
    #[track_caller]
    pub fn slirp4netns(&self) -> Process {
        let netns = self.inspect("{{.NetworkSettings.SandboxKey}}");
        let mut all = self.user.processes("slirp4netns").into_iter();
        all.find(|process| process.cmdline().contains(&netns))
            .unwrap_or_else(|| panic!("no slirp4netns of {}", self.id))
    }

    /// Removes it, running or not.
    #[track_caller]
    pub fn remove(&self) {
        self.user.podman(&["rm", "-f", "-t", "0", &self.id]).ok();
    }

    #[track_caller]
    fn process(&self, format: &str) -> Process {
        let pid = self.inspect(format).parse().expect("podman gives a number");
        Process::open(pid).unwrap_or_else(|| panic!("{} does not run", self.id))
    }
}
