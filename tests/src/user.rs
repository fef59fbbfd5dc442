//! Ordinary users and their rootless podman.

mod container;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::ops::Range;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use v6pod_proto::ContainerId;

use crate::command::run_within;
use crate::daemon::built;
use crate::image::{IMAGE, archive};
use crate::lanes::lane;
use crate::{Finished, HostNs, PATIENCE, Process, eventually, processes, run};

pub use container::Container;

/// The deadline of a podman command.
const LIMIT: Duration = Duration::from_secs(60);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An ordinary user with subordinate ids, a home, a runtime directory and podman set up, who works
/// in a host's network. All of it goes when the value is dropped: containers, processes, account.
#[derive(Debug)]
pub struct User {
    name: String,
    uid: u32,
    gid: u32,
    subordinate: Range<u32>,
    netns: PathBuf,
    /// What the user runs but does not own: the shim, the wrapper around it, the shim's stderr.
    tools: TempDir,
    environment: Mutex<Vec<(String, String)>>,
    settings: Mutex<Settings>,
}

/// What stands in the user's containers.conf.
#[derive(Debug, Clone, Default)]
struct Settings {
    network_cmd_path: Option<PathBuf>,
    hooks: bool,
    runtime: Option<Runtime>,
}

/// An OCI runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// runc.
    Runc,
    /// crun, which takes cgroup v2 alone.
    Crun,
}

/// As the package installs it.
const HOOK: &str = include_str!("../../systemd/v6pod-hook.json");

/// Shows the program cgroup v2 alone, in a mount namespace of its own.
const CGROUP2_ALONE: &str = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
    exec \"$@\"";

impl User {
    /// The user `v6tNUMBER` in this host's network, with [`IMAGE`] and podman as it comes: without
    /// v6pod, until [`User::use_shim`].
    #[track_caller]
    pub fn create(number: u8, host: &HostNs) -> Self {
        let user = Self::account(number, host);
        user.use_plain();
        user.import_image();
        user
    }

    /// The user `v6tNUMBER` in this host's network, without an image: a uid that owns things. Where cases stand
    /// side by side, `v6t1` of the second is `v6t11`.
    #[track_caller]
    pub fn account(number: u8, host: &HostNs) -> Self {
        let name = format!("v6t{}", 10 * lane() + number);
        // One that a killed run left behind.
        if let Some(account) = account(&name) {
            drop(Self::from_account(account, host));
        }
        {
            let _accounts = accounts();
            run(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", &name])).ok();
        }
        let user = Self::from_account(account(&name).expect("useradd makes an account"), host);
        user.make_directories();
        user
    }

    fn from_account(account: nix::unistd::User, host: &HostNs) -> Self {
        Self {
            uid: account.uid.as_raw(),
            gid: account.gid.as_raw(),
            subordinate: subordinate_ids(&account.name),
            name: account.name,
            netns: host.path(),
            tools: world_readable_dir(),
            environment: Mutex::default(),
            settings: Mutex::default(),
        }
    }

    /// The account's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The account's number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The ids that are the account's for its containers' users.
    pub fn subordinate_ids(&self) -> Range<u32> {
        self.subordinate.clone()
    }

    /// The account's home.
    pub fn home(&self) -> PathBuf {
        Path::new("/home").join(&self.name)
    }

    /// `/run/user/UID`.
    pub fn runtime_dir(&self) -> PathBuf {
        Path::new("/run/user").join(self.uid.to_string())
    }

    /// From here on podman runs the real slirp4netns, as if v6pod were not installed.
    pub fn use_plain(&self) {
        self.set(|settings| settings.network_cmd_path = None);
    }

    /// From here on podman has the runtime run v6pod-hook, by the hook file that the package installs,
    /// and the hook tells the daemon at `socket`.
    #[track_caller]
    pub fn use_hook(&self, socket: &Path) {
        let tools = self.tools.path();
        let (hook, folder) = (self.hook(), tools.join("hooks.d"));
        if !hook.exists() {
            fs::copy(built("v6pod-hook"), &hook).expect("copying the hook");
            fs::copy(built("v6pod-wishes"), self.wishes()).expect("copying v6pod-wishes");
            fs::create_dir(&folder).expect("making a directory");
        }
        let mut file: serde_json::Value =
            serde_json::from_str(HOOK).expect("the hook file is JSON");
        file["hook"]["path"] = hook.display().to_string().into();
        let config = tools.join("shim.toml").display().to_string();
        // Neither the runtime nor podman hands on what the user's shell has.
        file["hook"]["env"] = serde_json::json!([
            format!("V6POD_SOCKET={}", socket.display()),
            format!("V6POD_SHIM_CONFIG={config}"),
        ]);
        fs::write(folder.join("v6pod.json"), file.to_string()).expect("writing the hook file");
        self.set(|settings| settings.hooks = true);
    }

    /// v6pod-hook. It is there after [`User::use_hook`].
    pub fn hook(&self) -> PathBuf {
        self.tools.path().join("v6pod-hook")
    }

    /// v6pod-wishes, beside the hook. It is there after [`User::use_hook`].
    pub fn wishes(&self) -> PathBuf {
        self.tools.path().join("v6pod-wishes")
    }

    /// The settings of shim and hook. The file is there after [`User::use_shim`].
    pub fn shim_toml(&self) -> PathBuf {
        self.tools.path().join("shim.toml")
    }

    /// From here on podman runs this runtime.
    #[track_caller]
    pub fn use_runtime(&self, runtime: Runtime) {
        self.set(|settings| settings.runtime = Some(runtime));
        // Podman's pause process would keep the mounts of before.
        self.podman(&["system", "migrate"]).ok();
    }

    /// From here on podman runs the shim in place of slirp4netns, and the shim asks the daemon that
    /// listens, or does not, at `socket`.
    ///
    /// A script stands in between: it alone reaches the shim with `V6POD_SOCKET` also where podman
    /// 4.3.1 restarts a container by itself and keeps little of the environment. The shim's stderr,
    /// which podman shows only when a start fails, goes to [`User::shim_stderr`].
    #[track_caller]
    pub fn use_shim(&self, socket: &Path) {
        let tools = self.tools.path();
        let shim = tools.join("v6pod-shim");
        if !shim.exists() {
            fs::copy(built("v6pod-shim"), &shim).expect("copying the shim");
            for link in [self.shim_as_slirp4netns(), self.shim_as_pasta()] {
                symlink("v6pod-shim", link).expect("linking the shim");
            }
            // In place of the machine's own /etc/v6pod/shim.toml.
            fs::write(tools.join("shim.toml"), "").expect("making a file");
            let stderr = tools.join("stderr");
            fs::write(&stderr, "").expect("making a file");
            fs::set_permissions(stderr, Permissions::from_mode(0o666)).expect("chmod");
        }
        let wrapper = tools.join("wrapper");
        let script = format!(
            "#!/bin/sh\nexport V6POD_SOCKET='{}' V6POD_SHIM_CONFIG='{}'\nexec '{}' \"$@\" 2>>'{}'\n",
            socket.display(),
            tools.join("shim.toml").display(),
            self.shim_as_slirp4netns().display(),
            tools.join("stderr").display()
        );
        fs::write(&wrapper, script).expect("writing the wrapper");
        fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).expect("chmod");
        self.set(|settings| settings.network_cmd_path = Some(wrapper));
    }

    /// The shim under the name by which it plays slirp4netns. It is there after
    /// [`User::use_shim`].
    pub fn shim_as_slirp4netns(&self) -> PathBuf {
        self.tools.path().join("slirp4netns")
    }

    /// The shim under the name by which it plays pasta. It is there after [`User::use_shim`].
    pub fn shim_as_pasta(&self) -> PathBuf {
        self.tools.path().join("pasta")
    }

    /// Writes what runc writes of a container, as this user could: that its first process is this one.
    #[track_caller]
    pub fn claim(&self, container: &ContainerId, pid: u32, start_time: u64) {
        let folder = self.container_folder(container);
        fs::create_dir_all(&folder).expect("making a directory");
        let state = format!(
            r#"{{"id":"{container}","init_process_pid":{pid},"init_process_start":{start_time}}}"#
        );
        let (new, file) = (folder.join("new"), folder.join("state.json"));
        fs::write(&new, state).expect("writing a file");
        for path in [self.runtime_dir().join("runc"), folder, new.clone()] {
            chown(path, Some(self.uid), Some(self.gid)).expect("chown");
        }
        fs::rename(new, file).expect("renaming a file");
    }

    /// Where runc keeps what it knows of a container of this user.
    pub fn container_folder(&self, container: &ContainerId) -> PathBuf {
        self.runtime_dir().join("runc").join(container.as_str())
    }

    /// All that the shim, and slirp4netns after it, complained about.
    pub fn shim_stderr(&self) -> String {
        fs::read_to_string(self.tools.path().join("stderr")).unwrap_or_default()
    }

    /// A variable in the environment of this user's commands.
    pub fn set_env(&self, name: &str, value: &str) {
        let mut environment = self.environment();
        environment.retain(|(known, _)| known != name);
        environment.push((name.to_owned(), value.to_owned()));
    }

    /// A command that runs as this user, in the host's network, from his home, with a login's
    /// environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.current_dir(self.home());
        command.arg(format!("--net={}", self.netns.display())).arg("--");
        if self.settings().runtime == Some(Runtime::Crun) && !is_unified() {
            command.args(["unshare", "--mount", "sh", "-c", CGROUP2_ALONE, "sh"]);
        }
        command.arg("setpriv");
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        command.args(["--reuid", &uid, "--regid", &gid, "--init-groups", "--", "env", "-i"]);
        command.arg(format!("HOME={}", self.home().display()));
        command.arg(format!("XDG_RUNTIME_DIR={}", self.runtime_dir().display()));
        command.args([format!("USER={}", self.name), format!("LOGNAME={}", self.name)]);
        command.arg(format!("PATH={PATH}"));
        command.args(self.environment().iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(program);
        command
    }

    /// Runs podman.
    #[track_caller]
    pub fn podman(&self, args: &[&str]) -> Finished {
        run_within(LIMIT, self.command("podman").args(args))
    }

    /// `podman run --rm` of a command in [`IMAGE`], with these options.
    #[track_caller]
    pub fn run(&self, options: &[&str], command: &[&str]) -> Finished {
        self.podman(&[&["run", "--rm"], options, &[IMAGE], command].concat())
    }

    /// `podman run --detach` of a command in [`IMAGE`].
    #[track_caller]
    pub fn start(&self, name: &str, options: &[&str], command: &[&str]) -> Container<'_> {
        let words = [&["run", "--detach", "--name", name], options, &[IMAGE], command].concat();
        let id = self.podman(&words).ok().lines().last().unwrap_or_default().to_owned();
        Container::new(self, id)
    }

    /// A container that sleeps until somebody ends it.
    #[track_caller]
    pub fn sleeper(&self, name: &str) -> Container<'_> {
        self.start(name, &[], &["sleep", "1000"])
    }

    /// This user's running processes of this name.
    pub fn processes(&self, comm: &str) -> Vec<Process> {
        processes(Some(comm), |uid| self.owns(uid))
    }

    fn environment(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.environment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owns(&self, uid: u32) -> bool {
        uid == self.uid || self.subordinate.contains(&uid)
    }

    fn make_directories(&self) {
        let config = self.home().join(".config/containers");
        let runtime = self.runtime_dir();
        fs::create_dir_all(&config).expect("making a directory");
        fs::create_dir_all(&runtime).expect("making a directory");
        fs::set_permissions(&runtime, Permissions::from_mode(0o700)).expect("chmod");
        for dir in [&config, &self.home().join(".config"), &runtime] {
            chown(dir, Some(self.uid), Some(self.gid)).expect("chown");
        }
    }

    fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[track_caller]
    fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.lock().unwrap_or_else(PoisonError::into_inner));
        self.write_containers_conf(&self.settings());
    }

    #[track_caller]
    fn write_containers_conf(&self, settings: &Settings) {
        // crun, podman's default, wants cgroup v2 alone; runc takes the other layouts too.
        let usual = if is_unified() { Runtime::Crun } else { Runtime::Runc };
        let (runtime, cgroups) = match settings.runtime.unwrap_or(usual) {
            Runtime::Runc => ("runc", ""),
            Runtime::Crun if is_unified() => ("crun", ""),
            // Nobody delegates any of v2 there.
            Runtime::Crun => ("crun", "cgroups = \"disabled\"\n"),
        };
        // There may be no pids controller, no journal and no systemd session.
        let mut text = format!(
            "[containers]\npids_limit = 0\n{cgroups}\n[engine]\nruntime = \"{runtime}\"\n\
             cgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
        );
        if let Some(path) = &settings.network_cmd_path {
            text.push_str(&format!("network_cmd_path = \"{}\"\n", path.display()));
        }
        if settings.hooks {
            let folder = self.tools.path().join("hooks.d");
            text.push_str(&format!("hooks_dir = [\"{}\"]\n", folder.display()));
        }
        let file = self.home().join(".config/containers/containers.conf");
        fs::write(file, text).expect("writing containers.conf");
    }

    #[track_caller]
    fn import_image(&self) {
        let file = self.tools.path().join("image.tar");
        archive(&file);
        let text = file.display().to_string();
        self.podman(&["import", "--change", "ENV PATH=/bin", &text, IMAGE]).ok();
        fs::remove_file(file).expect("removing the image's archive");
    }

    /// Takes all of the user away. What fails here may have been gone before, except the account.
    fn remove(&self) {
        if self.runtime_dir().exists() {
            // Podman's own way first: it also unmounts.
            let script = "podman pod rm -fa -t 0; podman rm -fa -t 0";
            run(self.command("sh").args(["-c", script]));
        }
        eventually(PATIENCE, "the end of the user's processes", || {
            let left = processes(None, |uid| self.owns(uid));
            left.iter().for_each(Process::kill);
            left.is_empty().then_some(())
        });
        let _ = fs::remove_dir_all(self.runtime_dir());
        // What a killed podman held there is held for ever, and the next user has this one's number.
        let _ = fs::remove_file(format!("/dev/shm/libpod_rootless_lock_{}", self.uid));
        let _accounts = accounts();
        run(Command::new("userdel").args(["--remove", "--force", &self.name]));
        assert!(account(&self.name).is_none(), "{} is still there", self.name);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of {}'s shim\n{}", self.name, self.shim_stderr());
            // A second panic would abort the process, and nothing else would be taken away.
            let _ = catch_unwind(AssertUnwindSafe(|| self.remove()));
        } else {
            self.remove();
        }
    }
}

/// The account files, for one alone: useradd and userdel of others fail meanwhile.
fn accounts() -> MutexGuard<'static, ()> {
    static ACCOUNTS: Mutex<()> = Mutex::new(());
    ACCOUNTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the machine has cgroup v2 and nothing else.
fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A temporary directory that every user can look into.
pub(crate) fn world_readable_dir() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("v6t-").permissions(Permissions::from_mode(0o755));
    builder.tempdir().expect("a temporary directory")
}

fn account(name: &str) -> Option<nix::unistd::User> {
    nix::unistd::User::from_name(name).expect("reading the list of accounts")
}

fn subordinate_ids(name: &str) -> Range<u32> {
    let list = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let range = list.lines().find_map(|line| {
        let (start, count) = line.strip_prefix(name)?.strip_prefix(':')?.split_once(':')?;
        let start: u32 = start.parse().ok()?;
        Some(start..start.checked_add(count.parse().ok()?)?)
    });
    range.unwrap_or(0..0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;

    #[test]
    fn a_user_runs_podman_and_leaves_nothing() {
        let _machine = require!(Podman);
        let host = HostNs::new();
        let user = User::create(1, &host);
        let seen = user.run(&[], &["cat", "/proc/net/if_inet6"]);
        assert!(seen.ok().contains("tap0"), "{seen}");
        let container = user.sleeper("one");
        assert!(container.init().is_alive() && container.conmon().is_alive());
        let slirp4netns = container.slirp4netns();
        assert!(slirp4netns.is_alive());
        let (home, runtime, uid) = (user.home(), user.runtime_dir(), user.uid());
        drop(user);
        assert!(!slirp4netns.is_alive() && !home.exists() && !runtime.exists());
        assert!(processes(None, |other| other == uid).is_empty());
    }
}
