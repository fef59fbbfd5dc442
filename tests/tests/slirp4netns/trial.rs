//! slirp4netns on trial: a network namespace, and slirp4netns called for it as by hand or as by podman.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{PipeWriter, Read, Seek, pipe};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use v6pod_proto::Attachment;
use v6pod_tests::{Background, Footprint, PATIENCE, Process, Stage, User, eventually, run};

pub(crate) const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The tap device, as slirp4netns's own tests call it.
pub(crate) const TAP: &str = "tap11";

/// Of what a program inherits without a descriptor: what may be seen of it in /proc/PID/status.
pub(crate) const INHERITED: &[&str] = &[
    "Name:",
    "Umask:",
    "Uid:",
    "Gid:",
    "Groups:",
    "SigBlk:",
    "SigIgn:",
    "SigCgt:",
    "CapEff:",
    "CapInh:",
    "CapAmb:",
    "NoNewPrivs:",
    "Seccomp:",
];

/// How slirp4netns is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// In the initial user namespace, with the process to serve.
    Pid,
    /// The same, with the paths of both its namespaces.
    UsernsPath,
    /// In podman's user and mount namespace, with the file where a network namespace is mounted.
    Path,
    /// The same, as podman calls it for a container: that has to be served.
    ContainersPath,
    /// The same for a container with a user namespace of its own: with its first process.
    ContainersPid,
}

pub(crate) const ALL: &[Form] =
    &[Form::Pid, Form::UsernsPath, Form::Path, Form::ContainersPath, Form::ContainersPid];
/// One that is handed on untouched, and one that is served.
pub(crate) const BOTH: &[Form] = &[Form::Path, Form::ContainersPath];

impl Form {
    pub(crate) const fn in_podmans(self) -> bool {
        matches!(self, Self::Path | Self::ContainersPath | Self::ContainersPid)
    }

    pub(crate) const fn is_containers(self) -> bool {
        matches!(self, Self::ContainersPath | Self::ContainersPid)
    }
}

/// Has the expectation come true of the bare program, and then of the shim, in each form; what can be
/// seen has to be the same.
#[track_caller]
pub(crate) fn same<T: PartialEq + Debug>(forms: &[Form], expectation: impl Fn(&Trial<'_>) -> T) {
    let stage = Stage::with_users(1);
    stage.user().set_env("V6POD_SOCKET", &stage.daemon.socket().display().to_string());
    let config = stage.user().shim_toml().display().to_string();
    stage.user().set_env("V6POD_SHIM_CONFIG", &config);
    let before = stage.daemon.footprint();
    for form in forms {
        let seen = [Program::Real, Program::Shim].map(|program| {
            eprintln!("--- {form:?} {program:?}");
            let seen = expectation(&Trial::new(&stage, &before, *form, program));
            before.comes_back(&stage.daemon);
            seen
        });
        assert_eq!(seen[0], seen[1], "{form:?}: by itself, and through the shim");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Real,
    Shim,
}

/// A network namespace of a user's, and slirp4netns to serve it.
pub(crate) struct Trial<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) before: &'a Footprint,
    pub(crate) form: Form,
    pub(crate) program: Program,
    /// Podman's user and mount namespace.
    pub(crate) podman: Option<Background>,
    /// What keeps the network namespace.
    network: Background,
    /// What slirp4netns is told of it.
    pub(crate) target: Vec<String>,
    pub(crate) folder: tempfile::TempDir,
}

impl<'a> Trial<'a> {
    #[track_caller]
    pub(crate) fn new(
        stage: &'a Stage,
        before: &'a Footprint,
        form: Form,
        program: Program,
    ) -> Self {
        let user = stage.user();
        let folder = tempfile::tempdir_in(user.home()).expect("a directory");
        chown(folder.path(), Some(user.uid()), Some(user.uid())).expect("chown");
        let sleep = ["sleep", "1000"];
        let podman = form.in_podmans().then(|| {
            let mut command = user.command("unshare");
            sleeper(command.args(["--user", "--map-root-user", "--mount"]).args(sleep))
        });
        let inside = |words: &[&str]| {
            let mut command = enter(user, podman.as_ref());
            sleeper(command.arg("unshare").args(words).args(sleep))
        };
        let (network, target) = match form {
            Form::Pid | Form::ContainersPid => {
                let network = inside(&["--user", "--map-root-user", "--net"]);
                let target = vec![network.pid().to_string()];
                (network, target)
            }
            Form::UsernsPath => {
                let network = inside(&["--user", "--map-root-user", "--net"]);
                let of = |kind: &str| format!("/proc/{}/ns/{kind}", network.pid());
                let userns = format!("--userns-path={}", of("user"));
                let target = vec![userns, "--netns-type=path".to_owned(), of("net")];
                (network, target)
            }
            Form::Path | Form::ContainersPath => {
                let file = folder.path().join("netns");
                fs::write(&file, "").expect("making a file");
                let network = inside(&[&format!("--net={}", file.display())]);
                (network, vec!["--netns-type=path".to_owned(), file.display().to_string()])
            }
        };
        Self { stage, before, form, program, podman, network, target, folder }
    }

    pub(crate) fn user(&self) -> &User {
        self.stage.user()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program that is tried, called slirp4netns, where it is to run; the shell script that comes
    /// before it arranges its surroundings.
    pub(crate) fn command(&self, script: &str) -> Command {
        let program = match self.program {
            Program::Real => PathBuf::from("/usr/bin/slirp4netns"),
            Program::Shim => self.user().shim_as_slirp4netns(),
        };
        let mut command = enter(self.user(), self.podman.as_ref());
        let script = format!("{script}\nexec -a slirp4netns \"$0\" \"$@\"");
        command.args(["bash", "-ec", &script]).arg(program);
        command
    }

    /// Starts it with these options. It has podman's descriptors: the ready file is 3, the exit pipe 4,
    /// and one is just there, 7.
    #[track_caller]
    pub(crate) fn start(&self, options: &[&str]) -> Running<'_> {
        self.start_after("", options)
    }

    #[track_caller]
    pub(crate) fn start_after(&self, script: &str, options: &[&str]) -> Running<'_> {
        // As podman makes it, a container's with its id, and in either case nowhere to be found.
        let name = if self.form.is_containers() { ID } else { "rootless-netns" };
        let path = self.file(&format!("slirp4netns-{name}.log"));
        let log = File::options().read(true).append(true).create_new(true).open(&path);
        let log = log.expect("making a log");
        fs::remove_file(path).expect("removing the log");
        let _ = fs::remove_file(self.file("ready"));
        fs::write(self.file("extra"), "").expect("making a file");
        let (reader, exit) = pipe().expect("making a pipe");
        let folder = self.folder.path().display();
        let descriptors =
            format!("{script}\nexec 3>'{folder}/ready' 4<&0 7<'{folder}/extra' </dev/null");
        let mut command = self.command(&descriptors);
        if self.form.is_containers() {
            command.args(["-e", "4"]);
        }
        command.args(["-r", "3"]).args(options).args(&self.target).arg(TAP).stdin(reader);
        let copy = || log.try_clone().expect("duplicating a descriptor");
        let process = Background::start(command.stdout(copy()).stderr(copy()));
        Running { trial: self, process, exit: Some(exit), log }
    }

    /// Starts it with options that it refuses: its status and all that it says.
    #[track_caller]
    pub(crate) fn refuses(&self, options: &[&str]) -> (ExitStatus, String) {
        let mut running = self.start(options);
        let status = running.process.wait_within(PATIENCE);
        assert!(!status.success(), "{options:?}: {}", running.log());
        assert_eq!(self.ready(), "", "{options:?}");
        let log = running.log();
        drop(running);
        self.before.comes_back(&self.stage.daemon);
        (status, log)
    }

    pub(crate) fn ready(&self) -> String {
        fs::read_to_string(self.file("ready")).unwrap_or_default()
    }

    /// A command in the network namespace.
    pub(crate) fn inside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.network.pid())).arg("--").args(words);
        command
    }

    /// What `ip -json` shows of the tap device.
    #[track_caller]
    pub(crate) fn tap(&self) -> Value {
        let shown = run(&mut self.inside(&["ip", "-json", "addr", "show", "dev", TAP]));
        let shown: Value = serde_json::from_str(shown.ok()).expect("ip writes JSON");
        shown[0].clone()
    }

    /// The addresses of the tap device: IPv4, and global IPv6.
    #[track_caller]
    pub(crate) fn addresses(&self) -> Vec<String> {
        let tap = self.tap();
        let all = tap["addr_info"].as_array().into_iter().flatten();
        let global = all.filter(|address| address["scope"] == "global");
        global.map(|address| text(&address["local"])).collect()
    }

    /// The attachment, if this is a trial of the shim for a container; and that there is none otherwise.
    #[track_caller]
    pub(crate) fn is_served_if_a_containers(&self) -> Option<Attachment> {
        if self.program == Program::Real || !self.form.is_containers() {
            assert_eq!(self.stage.daemon.attachments(), []);
            return None;
        }
        let attachment = self.stage.daemon.the_attachment();
        assert_eq!((attachment.container.as_str(), attachment.lease), (ID, true));
        let words = ["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global"];
        let shown = run(&mut self.inside(&words));
        assert!(shown.ok().contains(&format!("{}/128", attachment.address)), "{shown}");
        Some(attachment)
    }
}

/// slirp4netns under way. It is killed when the value is dropped.
pub(crate) struct Running<'a> {
    trial: &'a Trial<'a>,
    pub(crate) process: Background,
    /// Its end is to be slirp4netns's, where that was told so.
    pub(crate) exit: Option<PipeWriter>,
    log: File,
}

impl Running<'_> {
    /// Waits until it says that it is ready, in one byte.
    #[track_caller]
    pub(crate) fn once_ready(mut self) -> Self {
        eventually(PATIENCE, "it is ready", || {
            assert!(!self.process.has_ended(), "{}", self.log());
            let ready = self.trial.ready();
            (!ready.is_empty()).then(|| assert_eq!(ready, "1"))
        });
        self.trial.is_served_if_a_containers();
        self
    }

    pub(crate) fn log(&self) -> String {
        let mut log = self.log.try_clone().expect("duplicating a descriptor");
        let mut text = String::new();
        log.rewind().and_then(|()| log.read_to_string(&mut text)).expect("reading the log");
        text
    }

    pub(crate) fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.process.pid());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn status(&self, fields: &[&str]) -> Vec<String> {
        let status = self.proc("status");
        let wanted = |line: &&str| fields.iter().any(|field| line.starts_with(field));
        status.lines().filter(wanted).map(str::to_owned).collect()
    }

    pub(crate) fn link(&self, what: &str) -> String {
        let path = format!("/proc/{}/{what}", self.process.pid());
        fs::read_link(path).expect("reading a link").display().to_string()
    }

    pub(crate) fn descriptors(&self) -> Vec<String> {
        let folder = format!("/proc/{}/fd", self.process.pid());
        let all = fs::read_dir(folder).expect("reading its descriptors").flatten();
        all.map(|entry| self.link(&format!("fd/{}", entry.file_name().display()))).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.pid()).expect("process ids fit");
        Process::open(pid).expect("it runs").signal(signal);
    }
}

/// A command of this user's, in podman's namespaces if there are any.
pub(crate) fn enter(user: &User, podman: Option<&Background>) -> Command {
    let Some(podman) = podman else { return user.command("env") };
    let mut command = user.command("nsenter");
    let target = format!("--target={}", podman.pid());
    command.args(["--preserve-credentials", "--user", "--mount", &target, "--"]);
    command
}

/// Starts a command whose last words are `sleep 1000`, and waits until it sleeps.
#[track_caller]
pub(crate) fn sleeper(command: &mut Command) -> Background {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process = Background::start(command);
    let comm = format!("/proc/{}/comm", process.pid());
    eventually(PATIENCE, "a process sleeps", || {
        fs::read_to_string(&comm).is_ok_and(|name| name.trim_end() == "sleep").then_some(())
    });
    process
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
