//! Network namespaces that a user owns, without podman around them.

use std::fs::{self, File};
use std::io::Read;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use v6pod_proto::ContainerId;

use crate::command::Background;
use crate::{Container, Finished, PATIENCE, User, eventually, run};

/// A network namespace in a user namespace of an ordinary user, as a container's is, and a process
/// that keeps both.
#[derive(Debug)]
pub struct OwnedNs {
    /// None of a container's, which ends with its user.
    _holder: Option<Background>,
    pid: u32,
    uid: u32,
}

impl OwnedNs {
    /// A new namespace of this user.
    #[track_caller]
    pub fn new(user: &User) -> Self {
        let mut command = user.command("unshare");
        command.args(["--user", "--map-root-user", "--net", "sleep", "1000"]);
        Self::held_by(&mut command, user.uid())
    }

    /// A new namespace of whoever has this uid, with an account or without, in a user namespace of his
    /// own or in the initial one, as root's are.
    #[track_caller]
    pub fn of_uid(uid: u32, own_user_namespace: bool) -> Self {
        let mut command = Command::new("setpriv");
        let raw = uid.to_string();
        command.args(["--reuid", &raw, "--regid", &raw, "--clear-groups", "--", "unshare"]);
        let own: &[&str] = if own_user_namespace { &["--user", "--map-root-user"] } else { &[] };
        command.args(own).args(["--net", "sleep", "1000"]);
        Self::held_by(&mut command, uid)
    }

    /// A namespace of this user whose user namespace is a child of another of his: made by root of a
    /// container, so to speak.
    #[track_caller]
    pub fn nested(user: &User) -> Self {
        let mut command = user.command("unshare");
        command.args(["--user", "--map-root-user"]);
        command.args(["unshare", "--user", "--map-root-user", "--net", "sleep", "1000"]);
        Self::held_by(&mut command, user.uid())
    }

    /// A container's, as long as that runs.
    #[track_caller]
    pub fn of_container(container: &Container<'_>, user: &User) -> Self {
        let pid = container.inspect("{{.State.Pid}}").trim().parse().expect("a process id");
        Self { _holder: None, pid, uid: user.uid() }
    }

    #[track_caller]
    fn held_by(command: &mut Command, uid: u32) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let holder = Background::start(command);
        let comm = format!("/proc/{}/comm", holder.pid());
        // By then it has made both namespaces and written the map.
        eventually(PATIENCE, "unshare becomes sleep", || {
            fs::read_to_string(&comm).is_ok_and(|name| name.trim_end() == "sleep").then_some(())
        });
        let pid = holder.pid();
        Self { _holder: Some(holder), pid, uid }
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When that process began, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub fn start_time(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
        let field = fields.and_then(|mut fields| fields.nth(19));
        field.and_then(|field| field.parse().ok()).expect("a start time")
    }

    /// The owner.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// A descriptor of the network namespace. Keeping it keeps the namespace.
    pub fn network(&self) -> File {
        self.open("net")
    }

    /// A descriptor of the user namespace.
    pub fn user_namespace(&self) -> File {
        self.open("user")
    }

    /// The global IPv6 addresses on `eth0` inside.
    #[track_caller]
    pub fn addresses(&self) -> Vec<Ipv6Addr> {
        let words = ["-6", "-o", "addr", "show", "dev", "eth0", "scope", "global"];
        let finished = self.run("ip", &words);
        // Without the interface there is no address, and ip says so.
        let addresses = finished.stdout.split_whitespace().filter_map(|word| word.split_once('/'));
        addresses.filter_map(|(address, _)| address.parse().ok()).collect()
    }

    /// Runs a program in the network namespace.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        run(self.command(program).args(args))
    }

    /// A command that runs in the network namespace, and in every other respect as the test does.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid)).arg("--").arg(program);
        command
    }

    fn open(&self, kind: &str) -> File {
        File::open(format!("/proc/{}/ns/{kind}", self.pid)).expect("opening a namespace")
    }
}

/// A network namespace of root's without a process: made in well under a millisecond, for tests that
/// need thousands. It goes with its last descriptor.
#[derive(Debug)]
pub struct BareNs(File);

impl BareNs {
    /// A new namespace.
    #[track_caller]
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("making a network namespace");
            File::open("/proc/thread-self/ns/net").expect("opening a namespace")
        };
        Self(thread::spawn(make).join().expect("the thread that makes a namespace"))
    }
}

impl Default for BareNs {
    fn default() -> Self {
        Self::new()
    }
}

impl AsFd for BareNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A container id that nobody else has.
pub fn random_container_id() -> ContainerId {
    let mut bytes = [0; 32];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.expect("reading random bytes");
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.parse().expect("64 hex digits")
}
