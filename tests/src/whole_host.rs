//! A whole host: a Debian with systemd, booted, with a package manager, logins and real podman.
//!
//! ```text
//!   outside ── out0 ── up0 ┌─ WholeHost (systemd-nspawn) ─────────────────────────────┐
//!                          │  PID 1 systemd ── v6podd.socket, v6podd.service           │
//!                          │   └─ user@1000 ── podman ── conmon ── container          │
//!                          │  / = overlay on root-SUITE;  /home, /var/tmp = real dirs │
//!                          └──────────────────────────────────────────────────────────┘
//! ```
//!
//! What this module guarantees: the host's processes, mounts, cgroup and files are gone when the
//! value is dropped; what a killed run left is gone when the next test has its turn.

mod layers;
mod login;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use v6pod_proto::{Attachment, AttachmentList};

use crate::command::Background;
use crate::footprint::Place;
use crate::{Finished, Footprint, HostNs, PATIENCE, Process, eventually, run, run_within};

use layers::Layers;
pub use layers::Suite;
pub use login::Login;
pub use package::PROGRAMS;
use package::Package;

/// How long a host may take to boot, or a package to be installed.
const SLOW: Duration = Duration::from_secs(120);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Mounts the host's root and boots it, in a mount namespace of its own, where only cgroup v2 is to
/// be seen: crun and systemd refuse the machine's hybrid layout. Podman's storage cannot put an
/// overlay on an overlay, hence the real directories.
const BOOT: &str = r#"
set -e
dir=$1 lower=$2 cgroup=$3 netns=$4 name=$5 source=$6
shift 6
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo $$ >"/sys/fs/cgroup/$cgroup/cgroup.procs"
# In a network that it did not make itself, nspawn would keep /proc/sys/net from being written.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec systemd-nspawn --quiet --register=no --keep-unit --console=pipe --settings=no \
    --network-namespace-path="$netns" --capability=all --system-call-filter="@keyring bpf" \
    --resolv-conf=off \
    --bind=/dev/net/tun --bind=/dev/fuse --bind="$dir/home:/home" --bind="$dir/tmp:/var/tmp" \
    --bind="$dir/containers:/var/lib/containers" --bind-ro="$source:/mnt/v6pod" \
    --hostname="$name" --directory="$dir/root" "$@"
"#;

/// A running host. The project's source is at /mnt/v6pod, to be read.
#[derive(Debug)]
pub struct WholeHost {
    leader: Process,
    nspawn: Background,
    layers: Layers,
    net: HostNs,
    suite: Suite,
}

impl WholeHost {
    /// Boots a host with an uplink, as [`HostNs`] draws it, and waits until all of it is up.
    #[track_caller]
    pub fn boot(suite: Suite) -> Self {
        Self::start(Layers::make(suite).expect("directories and a cgroup for a host"), suite)
    }

    /// Boots a host with v6pod as its package installs it, switched on.
    #[track_caller]
    pub fn serving(suite: Suite) -> Self {
        let host = Self::boot(suite);
        host.install_and_enable("0.1.0");
        host
    }

    /// Switches it off and on again: the same files, everything else anew.
    #[track_caller]
    pub fn reboot(mut self) -> Self {
        self.power_off();
        let (layers, suite) = (self.layers.take_on(), self.suite);
        drop(self);
        Self::start(layers, suite)
    }

    #[track_caller]
    fn start(layers: Layers, suite: Suite) -> Self {
        let net = HostNs::new();
        let mut command = nspawn(&layers, &net, suite);
        command.arg("--boot");
        command.current_dir("/").stdin(Stdio::null());
        let log = fs::File::create(layers.dir().join("console")).expect("making a file");
        command.stdout(log.try_clone().expect("duplicating a descriptor")).stderr(log);
        let mut nspawn = Background::start(&mut command);
        let leader = eventually(PATIENCE, "a first process of the host", || {
            assert!(!nspawn.has_ended(), "it did not boot:\n{}", layers.console());
            leader_of(nspawn.pid())
        });
        let host = Self { leader, nspawn, layers, net, suite };
        eventually(PATIENCE, "systemd and D-Bus listen", || {
            let sockets = ["run/systemd/private", "run/dbus/system_bus_socket"];
            sockets.iter().all(|socket| host.file(socket).exists()).then_some(())
        });
        let up = run_within(SLOW, host.command("systemctl").args(["is-system-running", "--wait"]));
        assert_eq!(up.stdout.trim(), "running", "{}\n{}", up, host.layers.console());
        host
    }

    /// Why no host can be had here, if none can: all but the boot itself is tried, once. Only for
    /// whose turn it is.
    pub(crate) fn lack() -> Option<String> {
        static LACK: OnceLock<Option<String>> = OnceLock::new();
        let try_it = || {
            let net = HostNs::new();
            let layers = match Layers::make(Suite::Bookworm) {
                Ok(layers) => layers,
                Err(error) => return Some(format!("cannot boot a host here: {error}")),
            };
            let mut command = nspawn(&layers, &net, Suite::Bookworm);
            let tried = run_within(SLOW, command.args(["--as-pid2", "true"]));
            (!tried.status.success()).then(|| {
                let last = tried.stderr.trim().lines().last().unwrap_or("no reason given");
                format!("cannot boot a host here: {last}")
            })
        };
        LACK.get_or_init(try_it).clone()
    }

    /// Takes away what a killed run left behind. Only for whose turn it is.
    pub(crate) fn sweep() {
        Layers::sweep();
    }

    /// The network it is in, and the outside.
    pub fn net(&self) -> &HostNs {
        &self.net
    }

    /// What it is a Debian of.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// A file of the host's, by its path there, as the test can open it.
    pub fn file(&self, path: &str) -> PathBuf {
        let root = Path::new("/proc").join(self.leader.pid().to_string()).join("root");
        root.join(path.trim_start_matches('/'))
    }

    /// Writes a file of the host's, in place of what is there.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        // Through the host itself: absolute links in its tree are its own.
        run(self.command("mkdir").arg("-p").arg(Path::new(path).parent().expect("a file"))).ok();
        let script = r#"printf %s "$1" >"$2""#;
        run(self.command("sh").args(["-c", script, "sh", text, path])).ok();
    }

    /// Copies a file into the host's /var/tmp and gives its path there.
    #[track_caller]
    pub fn take_in(&self, file: &Path) -> String {
        let name = file.file_name().expect("a file's path");
        fs::copy(file, self.layers.dir().join("tmp").join(name)).expect("copying a file");
        format!("/var/tmp/{}", name.to_string_lossy())
    }

    /// A command that runs on the host as root.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.enter();
        command.args(["env", "-i", "-C", "/", &format!("PATH={PATH}"), "HOME=/root"]);
        command.arg(program.as_ref());
        command
    }

    /// Runs a line of shell on the host as root.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Finished {
        run_within(SLOW, self.command("sh").args(["-ec", script]))
    }

    /// Runs systemctl.
    #[track_caller]
    pub fn systemctl(&self, words: &str) -> Finished {
        run_within(SLOW, self.command("systemctl").args(words.split(' ')))
    }

    /// A property of a unit, as `systemctl show` has it.
    #[track_caller]
    pub fn property(&self, unit: &str, property: &str) -> String {
        let words = format!("show --value -p {property} {unit}");
        self.systemctl(&words).ok().to_owned()
    }

    /// The journal of a unit, for messages.
    pub fn journal(&self, unit: &str) -> String {
        let words = ["--no-pager", "-o", "cat", "-u", unit];
        run(self.command("journalctl").args(words)).stdout
    }

    /// Brings the package of this suite along; gives its path on the host.
    #[track_caller]
    pub fn package(&self, version: &str) -> String {
        let package = match self.suite {
            Suite::Bookworm | Suite::Trixie | Suite::NetworkManager => Package::make(version),
            // Too old for what the tests are linked with, and those that tell what is to come.
            Suite::Bullseye | Suite::Forky | Suite::Experimental => Package::portable(version),
        };
        self.take_in(package.file())
    }

    /// Installs the package of this suite as its README says, without a mirror to ask, and does
    /// what it then asks for; gives what was said.
    #[track_caller]
    pub fn install(&self, version: &str) -> Finished {
        let file = self.package(version);
        let said = self.sh(&format!("apt-get install --yes {file} 2>&1"));
        let line = said.stdout.lines().map(str::trim).find(|l| l.starts_with("network_cmd_path"));
        if let Some(line) = line {
            // Its last table is [engine].
            self.sh(&format!("echo '{line}' >>/etc/containers/containers.conf")).ok();
        }
        said
    }

    /// Installs the package, gives the daemon [`PREFIX`](crate::PREFIX) and has systemd start it.
    #[track_caller]
    pub fn install_and_enable(&self, version: &str) {
        self.install(version).ok();
        self.write("/etc/v6pod/v6pod.toml", &format!("prefix = \"{}\"\n", crate::PREFIX));
        self.systemctl("enable --now v6podd.socket v6podd.service").ok();
    }

    /// Runs podman as root.
    #[track_caller]
    pub fn podman(&self, args: &[&str]) -> Finished {
        run_within(SLOW, self.command("podman").args(args))
    }

    /// Makes an account, and a login session of it that lasts.
    #[track_caller]
    pub fn log_in(&self, name: &str) -> Login<'_> {
        Login::new(self, name)
    }

    /// Root, logged in.
    #[track_caller]
    pub fn root(&self) -> Login<'_> {
        Login::root(self)
    }

    /// Goes on with an account that lingers, after a [`WholeHost::reboot`].
    #[track_caller]
    pub fn log_in_again(&self, name: &str) -> Login<'_> {
        Login::again(self, name)
    }

    /// What there is of containers at this moment, where v6podd runs.
    #[track_caller]
    pub fn footprint(&self) -> Footprint {
        Footprint::of(self)
    }

    /// A command that goes on in the host, as whoever the test is.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.leader.pid().to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]);
        command
    }

    /// SIGRTMIN+4 is systemd's power button; whoever does not heed it is killed.
    fn power_off(&mut self) {
        run(Command::new("kill").args(["-s", "RTMIN+4", &self.leader.pid().to_string()]));
        self.ends();
    }

    /// Waits for its end, for a while.
    fn ends(&mut self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.nspawn.has_ended() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.nspawn.kill();
    }
}

impl Drop for WholeHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = run(self.command("journalctl").args(["--no-pager", "-n", "3000"]));
            eprintln!("--- journal of the host\n{}", last.stdout);
        }
        // Not by the power button: systemd would wait for the first processes of containers, which heed no
        // SIGTERM. With the host's own first process all of them go at once.
        self.leader.kill();
        self.ends();
        // The files and the cgroup go with `layers`.
    }
}

impl Place for WholeHost {
    fn command_at(&self, program: &Path) -> Command {
        self.command(program)
    }

    fn bridge(&self) -> String {
        "v6pod0".to_owned()
    }

    fn table(&self) -> String {
        "v6pod".to_owned()
    }

    fn run_dir(&self) -> PathBuf {
        self.file("/run/v6pod")
    }

    #[track_caller]
    fn attachments(&self) -> Vec<Attachment> {
        let list = run(self.command("v6podctl").args(["--json", "ls"]));
        let list: AttachmentList = serde_json::from_str(list.ok()).expect("v6podctl's JSON");
        list.attachments
    }
}

/// systemd-nspawn on a host's root, by [`BOOT`]; what it is to run is for the caller to add.
fn nspawn(layers: &Layers, net: &HostNs, suite: Suite) -> Command {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut command = Command::new("setpriv");
    // A test that is killed takes its hosts with it.
    command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation=private"]);
    command.args(["--", "sh", "-c", BOOT, "sh"]).arg(layers.dir()).arg(suite.root());
    command.arg(layers.name()).arg(net.path()).arg(layers.name()).arg(source);
    command
}

/// The host's first process: nspawn's own first child is only on the way there.
fn leader_of(nspawn: u32) -> Option<Process> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let is_leader = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        line("NSpid:").is_some_and(|pids| pids.split_whitespace().next_back() == Some("1"))
            && line("Name:").is_some_and(|name| name.trim() == "systemd")
    };
    let leader = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_leader);
    Process::open(leader?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;

    #[test]
    fn a_host_boots_runs_a_users_container_and_leaves_nothing() {
        let _machine = require!(WholeHost);
        let host = WholeHost::boot(Suite::Bookworm);
        let user = host.log_in("anna");
        let seen = user.podman(&["run", "--rm", crate::IMAGE, "cat", "/proc/net/if_inet6"]);
        assert!(seen.ok().contains("tap0"), "{seen}");
        let cgroup = user.run("cat", &["/proc/self/cgroup"]);
        assert!(cgroup.ok().contains("user@1000.service"), "{cgroup}");
        let (leader, dir, netns) =
            (host.leader.pid(), host.layers.dir().to_owned(), host.net().path());
        drop(host);
        assert!(Process::open(leader).is_none() && !dir.exists() && !netns.exists());
        let cgroups = run(Command::new("find").args(["/sys/fs/cgroup", "-name", "v6t-*"]));
        assert_eq!(cgroups.ok(), "");
    }
}
