//! v6podd under test.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use v6pod_proto::{Attachment, AttachmentList, Mode, Status};

use crate::command::Background;
use crate::user::world_readable_dir;
use crate::{
    Body, Caller, Finished, Footprint, HostNs, OUTSIDE_V6, PREFIX, Process, eventually, run,
};

const INSTANCE: &str = "v6t";

/// How long the daemon may take from its start to its first answer.
const READY: Duration = Duration::from_secs(10);

/// A program of this workspace, as it was built beside the running test (`cargo build --workspace
/// --bins`), or in the directory that `V6POD_BIN_DIR` names.
#[track_caller]
pub fn built(program: &str) -> PathBuf {
    let dir = env::var_os("V6POD_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        // target/PROFILE/deps/TEST-HASH
        let me = env::current_exe().expect("the test's own path");
        me.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_owned()
    });
    let file = dir.join(program);
    assert_current(&file, "cargo build --workspace --bins");
    file
}

/// Fails if the program is not there, or is older than what it is made of: cargo does not build what
/// a test only runs. Beside a program it writes down what that is made of.
#[track_caller]
fn assert_current(file: &Path, how: &str) {
    assert!(file.is_file(), "{} is not built: {how}", file.display());
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let built = changed(file);
    let sources = fs::read_to_string(file.with_extension("d")).unwrap_or_default();
    for source in sources.split_whitespace().skip(1) {
        let when = changed(Path::new(source));
        assert!(when <= built, "{} is older than {source}: {how}", file.display());
    }
}

/// The daemon with the feature `failpoints`, which tests/run.sh builds and puts into a folder of its own.
#[track_caller]
fn built_with_failpoints() -> PathBuf {
    let how = "tests/run.sh";
    built_otherwise("V6POD_FAILPOINTS_DIR", "failpoints", how)
}

/// The daemon as it is installed: `cargo build --release`, which tests/run.sh does.
#[track_caller]
fn built_for_release() -> PathBuf {
    let how = "cargo build --release -p v6pod-daemon --bin v6podd";
    built_otherwise("V6POD_RELEASE_DIR", "release", how)
}

/// The daemon by another profile than the tests', from its own folder or the one that the variable
/// names.
#[track_caller]
fn built_otherwise(variable: &str, folder: &str, how: &str) -> PathBuf {
    let dir = env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        // target/PROFILE/deps/TEST-HASH
        let me = env::current_exe().expect("the test's own path");
        me.ancestors().nth(3).expect("a test lies in target/PROFILE/deps").join(folder)
    });
    let file = dir.join("v6podd");
    assert_current(&file, how);
    file
}

/// The daemon's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The key `prefix`.
    pub prefix: String,
    /// Whether names go to the Consul at `http://[::1]:8500`, or to the embedded registry.
    pub consul: bool,
    /// More top-level keys, before any table.
    pub keys: String,
    /// More tables.
    pub tables: String,
}

impl Default for Config {
    fn default() -> Self {
        let (keys, tables) = (String::new(), String::new());
        Self { prefix: PREFIX.to_owned(), consul: false, keys, tables }
    }
}

impl Config {
    /// What to write into [`Config::tables`] for a test in which containers are reached by whoever
    /// has not been let in.
    pub const OPEN: &str = "[firewall]\ningress = \"allow\"\n";

    /// This one, with containers reached in that way.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        let mode = match mode {
            Mode::Bridge => "bridge",
            Mode::Routed => "routed",
        };
        self.keys += &format!("mode = \"{mode}\"\n");
        self
    }

    fn text(&self) -> String {
        let Self { prefix, consul, keys, tables } = self;
        let kind = if *consul { "consul" } else { "embedded" };
        format!(
            "instance = \"{INSTANCE}\"\nprefix = \"{prefix}\"\n{keys}\n\
             [registry]\nkind = \"{kind}\"\n{tables}\n"
        )
    }
}

/// A daemon in a host's network, with files of its own. It is killed when the value is dropped;
/// what it made in the kernel goes with the host's namespace.
#[derive(Debug)]
pub struct Daemon {
    dir: TempDir,
    netns: PathBuf,
    process: Option<Background>,
}

impl Daemon {
    /// Starts it with its defaults and waits until it answers.
    #[track_caller]
    pub fn start(host: &HostNs) -> Self {
        Self::configured(host, &Config::default())
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn configured(host: &HostNs, config: &Config) -> Self {
        let mut daemon = Self::prepared(host, config);
        daemon.restart();
        daemon
    }

    /// Writes its files and does not start it.
    #[track_caller]
    pub fn prepared(host: &HostNs, config: &Config) -> Self {
        let daemon = Self { dir: world_readable_dir(), netns: host.path(), process: None };
        daemon.reconfigure(config);
        daemon
    }

    /// Writes another configuration, for its next start.
    #[track_caller]
    pub fn reconfigure(&self, config: &Config) {
        fs::write(self.dir.path().join("v6pod.toml"), config.text()).expect("writing a file");
        // Not the machine's own: nothing leaves the test's namespaces.
        let resolvers = format!("nameserver {OUTSIDE_V6}\n");
        fs::write(self.dir.path().join("resolv.conf"), resolvers).expect("writing a file");
    }

    /// Starts it again, after [`Daemon::kill9`] or [`Daemon::stop`], on the same files.
    #[track_caller]
    pub fn restart(&mut self) {
        let answers = self.launch(&built("v6podd"), None);
        assert!(answers, "v6podd ended at once:\n{}", self.log());
    }

    /// Has the daemon as it is installed, with all optimisation, take this one's place: for a test
    /// that measures.
    #[track_caller]
    pub fn replace_by_release(&mut self) {
        self.stop();
        self.restart_release();
    }

    /// Starts that one again, after [`Daemon::kill9`] or [`Daemon::stop`].
    #[track_caller]
    pub fn restart_release(&mut self) {
        let answers = self.launch(&built_for_release(), None);
        assert!(answers, "v6podd ended at once:\n{}", self.log());
    }

    /// Starts the daemon that has failpoints, to die at this one. Whether it lived long enough to
    /// answer; if not, it is dead.
    #[track_caller]
    pub fn restart_to_die_at(&mut self, failpoint: &str) -> bool {
        let answers = self.launch(&built_with_failpoints(), Some(failpoint));
        if !answers {
            self.has_died();
        }
        answers
    }

    /// Starts the daemon that has failpoints, to have this fail once.
    #[track_caller]
    pub fn restart_to_fail_at(&mut self, failpoint: &str) {
        let answers = self.launch(&built_with_failpoints(), Some(failpoint));
        assert!(answers, "v6podd ended at once:\n{}", self.log());
    }

    /// Waits until it is dead by SIGKILL, as failpoints have it die. Dead already is dead.
    #[track_caller]
    pub fn has_died(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let status = process.wait_within(READY);
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(9), "it ended otherwise: {status}\n{}", self.log());
    }

    /// Whether it has ended by itself.
    pub fn is_dead(&mut self) -> bool {
        self.process.as_mut().is_none_or(Background::has_ended)
    }

    /// Starts it and waits until it answers or has ended.
    #[track_caller]
    fn launch(&mut self, program: &Path, failpoint: Option<&str>) -> bool {
        assert!(self.process.is_none(), "it still runs");
        let log = File::options().append(true).create(true).open(self.log_file());
        let log = log.expect("opening the log");
        // In a session of its own, as a service: Linux divides its processors among sessions.
        let (mut command, v6podd) = (Command::new("setsid"), self.command(program));
        command.arg(v6podd.get_program()).args(v6podd.get_args());
        command.args(self.overrides()).env("V6POD_LOG", "debug").stdin(Stdio::null());
        command.envs(failpoint.map(|name| ("V6POD_FAILPOINT", name)));
        command.stdout(log.try_clone().expect("duplicating a descriptor")).stderr(log);
        let mut process = Background::start(&mut command);
        let answers = eventually(READY, "v6podd answers", || {
            if process.has_ended() {
                return Some(false);
            }
            let health = self.root().try_call("GET", "/healthz", Body::None, None);
            health.is_ok_and(|(response, _)| response.status == 200).then_some(true)
        });
        self.process = Some(process);
        answers
    }

    /// Ends it as a crash would.
    pub fn kill9(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// Kills it and does not wait for its end, which something may stand in the way of. What is
    /// given is what is left of it.
    #[must_use]
    pub fn kill9_and_leave(&mut self) -> Background {
        let process = self.process.take().expect("it runs");
        self.pinned(&process).kill();
        process
    }

    /// Ends it as an operator would.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        self.pinned(&process).signal(Signal::TERM);
        process.wait_within(READY);
    }

    /// Stops its every thread (SIGSTOP) until [`Daemon::resume`].
    pub fn pause(&self) {
        self.pinned(self.process.as_ref().expect("it runs")).signal(Signal::STOP);
    }

    /// Undoes [`Daemon::pause`].
    pub fn resume(&self) {
        self.pinned(self.process.as_ref().expect("it runs")).signal(Signal::CONT);
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let pid = self.process.as_ref().expect("it runs").pid();
        fs::read_dir(format!("/proc/{pid}/fd")).expect("reading its descriptors").count()
    }

    /// What it has had of processors' time, to a hundredth of a second.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        // utime and stime, in USER_HZ, which is 100 everywhere.
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|count| count.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// What its descriptors are: the texts of their links under /proc.
    pub fn descriptor_links(&self) -> Vec<String> {
        let folder = format!("/proc/{}/fd", self.pid());
        let all = fs::read_dir(folder).expect("reading its descriptors").flatten();
        // One that is gone again was there only for a moment.
        let links = all.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.map(|link| link.display().to_string()).collect()
    }

    /// Its resident memory, in KiB.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it has had in memory since it began, in KiB.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, which: &str) -> u64 {
        let file = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(file).expect("reading its status");
        let line = status.lines().find_map(|line| line.strip_prefix(which));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).expect("a number of KiB")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Its unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(format!("run/{INSTANCE}.sock"))
    }

    /// Where it keeps its volatile state.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Its bridge.
    pub fn bridge(&self) -> String {
        format!("{INSTANCE}0")
    }

    /// The name of its firewall tables.
    pub fn table(&self) -> String {
        format!("v6pod-{INSTANCE}")
    }

    /// Whoever has this uid, at the unix socket.
    pub fn as_user(&self, uid: u32) -> Caller {
        Caller::new(&self.socket(), uid)
    }

    /// root, at the unix socket.
    pub fn root(&self) -> Caller {
        self.as_user(0)
    }

    /// All attachments.
    #[track_caller]
    pub fn attachments(&self) -> Vec<Attachment> {
        self.root().get("/api/attachments").ok::<AttachmentList>().attachments
    }

    /// The only attachment, once there is exactly one.
    #[track_caller]
    pub fn the_attachment(&self) -> Attachment {
        eventually(crate::PATIENCE, "exactly one attachment", || {
            let mut all = self.attachments();
            all.pop().filter(|_| all.is_empty())
        })
    }

    /// `GET /api/status`.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.root().get("/api/status").ok()
    }

    /// What its resolver says of a container's name, asked in the host's network.
    #[track_caller]
    pub fn resolved(&self, host: &HostNs, name: &str) -> String {
        host.resolved(self.status().resolver.expect("it answers").address, name)
    }

    /// How many connections it has refused (`v6pod_connections_refused_total`).
    #[track_caller]
    pub fn refused(&self) -> u64 {
        let body = self.root().get("/metrics").body;
        let metrics = String::from_utf8(body).expect("text");
        let line = metrics.lines().find_map(|l| l.strip_prefix("v6pod_connections_refused_total "));
        line.expect("it is counted").parse().expect("a number")
    }

    /// Runs v6podctl as root, in the host's network.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> Finished {
        let mut command = self.command(&built("v6podctl"));
        run(command.arg("--socket").arg(self.socket()).args(args))
    }

    /// Runs `v6podctl purge` on this daemon's files.
    #[track_caller]
    pub fn purge(&self) -> Finished {
        run(self.command(&built("v6podctl")).arg("purge").args(self.overrides()))
    }

    /// What there is of containers at this moment: in the kernel, on disk, in the registry.
    #[track_caller]
    pub fn footprint(&self) -> Footprint {
        Footprint::of(self)
    }

    /// A command in the daemon's network.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg("--").arg(program);
        command
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn overrides(&self) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let all = [
            ("--config", "v6pod.toml"),
            ("--run-dir", "run"),
            ("--state-dir", "state"),
            ("--resolv-conf", "resolv.conf"),
        ];
        all.into_iter().flat_map(|(option, name)| [option.to_owned(), path(name)]).collect()
    }

    fn pinned(&self, process: &Background) -> Process {
        let pid = i32::try_from(process.pid()).expect("process ids fit");
        Process::open(pid).unwrap_or_else(|| panic!("v6podd has ended:\n{}", self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of v6podd\n{}", self.log());
        }
    }
}
