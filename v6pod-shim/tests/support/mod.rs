//! A place where the shim is run as podman runs it, with a daemon and a slirp4netns of the tests' own.
//!
//! ```text
//! test ── unshare -rn ── sh (descriptors, log) ── shim ── fake slirp4netns     one process, by exec
//!   └──── fake v6podd: a thread behind a unix socket ──┘ (connection: the lease)
//! ```

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

pub(crate) const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Longer than anything here takes, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// As podman 4.3 calls it, the namespace being that of the calling process.
pub(crate) const CALL: &str = "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
     --enable-ipv6 -c -e 3 -r 4 --netns-type=path /proc/self/ns/net tap0";

/// The same without IPv6.
pub(crate) const CALL_WITHOUT_IPV6: &str = "--disable-host-loopback --mtu=65520 --enable-sandbox \
     --enable-seccomp -c -e 3 -r 4 --netns-type=path /proc/self/ns/net tap0";

/// Says what it was given and does as `FAKE_THEN` says.
const FAKE_SLIRP4NETNS: &str = r#"#!/bin/sh
cat /proc/$$/cmdline > "$DUMP/cmdline"
cat /proc/$$/environ > "$DUMP/environ"
while read -r line; do
    case "$line" in SigBlk:*|SigIgn:*) signals="$signals $line" ;; esac
done < /proc/$$/status
(for fd in /proc/$$/fd/*; do echo "${fd##*/} $(readlink "$fd")"; done > "$DUMP/fds")
echo "$signals" > "$DUMP/signals"
: > "$DUMP/done"
eval "$FAKE_THEN"
"#;

/// What podman has done by the time that it runs slirp4netns.
const PODMANS_PART: &str = r#"
exec 0</dev/null 3</dev/null 4>/dev/null
readlink /proc/self/ns/net > "$DUMP/netns"
env -0 > "$DUMP/environ.before"
while read -r line; do
    case "$line" in SigBlk:*|SigIgn:*) signals="$signals $line" ;; esac
done < /proc/$$/status
echo "$signals" > "$DUMP/signals.before"
eval "$BEFORE"
exec 1<>"$LOG"
case "$LOG" in /dev/*) ;; *) rm "$LOG" ;; esac
(for fd in /proc/$$/fd/*; do echo "${fd##*/} $(readlink "$fd")"; done > "$DUMP/fds.before")
run() { eval exec '"$@"' "$ARGUMENTS" '2>>"$DUMP/stderr"'; }
if [ -n "$AS_CHILD" ]; then
    # A real fork: dash's vfork would lend its own descriptor 2 to the child.
    (run "$@")
else
    run "$@"
fi
exit $?
"#;

/// One container's start, or another call.
pub(crate) struct Call {
    pub(crate) dir: TempDir,
    pub(crate) arguments: String,
    /// Runs in podman's place: shell.
    pub(crate) before: String,
    /// Runs in slirp4netns's place: shell.
    pub(crate) then: String,
    pub(crate) log: PathBuf,
    pub(crate) in_userns: bool,
    pub(crate) environment: Vec<(String, String)>,
}

impl Call {
    /// A container's start that goes well if there is a daemon.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["real", "libexec", "dump"] {
            fs::create_dir(at(folder)).unwrap();
        }
        let fake = at("real/slirp4netns");
        fs::write(&fake, FAKE_SLIRP4NETNS).unwrap();
        fs::set_permissions(&fake, Permissions::from_mode(0o755)).unwrap();
        symlink(env!("CARGO_BIN_EXE_v6pod-shim"), at("libexec/slirp4netns")).unwrap();
        let log = at(&format!("slirp4netns-{ID}.log"));
        let call = Self {
            dir,
            arguments: CALL.to_owned(),
            before: String::new(),
            then: String::new(),
            log,
            in_userns: true,
            environment: Vec::new(),
        };
        call.with_name("vfs-containers/containers.json", "web")
    }

    pub(crate) fn arguments(mut self, arguments: &str) -> Self {
        arguments.clone_into(&mut self.arguments);
        self
    }

    pub(crate) fn then(mut self, shell: &str) -> Self {
        shell.clone_into(&mut self.then);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.environment.push((name.to_owned(), value.as_ref().to_str().unwrap().to_owned()));
        self
    }

    /// Names the container in the user's storage.
    pub(crate) fn with_name(self, list: &str, name: &str) -> Self {
        let list = self.dir.path().join("home/.local/share/containers/storage").join(list);
        fs::create_dir_all(list.parent().unwrap()).unwrap();
        fs::write(list, format!(r#"[{{"id":"{ID}","names":["{name}"],"flags":{{}}}}]"#)).unwrap();
        self
    }

    pub(crate) fn config(self, text: &str) -> Self {
        let file = self.dir.path().join("shim.toml");
        fs::write(&file, text).unwrap();
        self.env("V6POD_SHIM_CONFIG", file)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("v6pod.sock")
    }

    /// The command, ready to be run: `/bin/sh` is the program that does podman's part.
    pub(crate) fn command(&self, shell: impl AsRef<OsStr>) -> Command {
        let at = |path: &str| self.dir.path().join(path);
        let mut command = if self.in_userns {
            let mut command = Command::new("unshare");
            command.args(["-rn", "--"]).arg(shell);
            command
        } else {
            Command::new(shell)
        };
        command
            .args(["-c", PODMANS_PART, "sh"])
            .arg(at("libexec/slirp4netns"))
            .env_clear()
            .env("PATH", format!("{0}/libexec:{0}/real:/usr/bin:/bin", self.dir.path().display()))
            .env("HOME", at("home"))
            .env("V6POD_SOCKET", self.socket())
            .env("V6POD_SHIM_CONFIG", at("no-such-file"))
            .env("DUMP", at("dump"))
            .env("LOG", &self.log)
            .env("ARGUMENTS", &self.arguments)
            .env("BEFORE", &self.before)
            .env("FAKE_THEN", &self.then)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn spawn(&self) -> Child {
        self.command("/bin/sh").spawn().unwrap()
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> Outcome {
        let start = Instant::now();
        let output = self.spawn().wait_with_output().unwrap();
        let podmans_stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(podmans_stderr, "", "the test's own shell complains");
        Outcome { status: output.status, took: start.elapsed(), stderr: self.dump("stderr") }
    }

    pub(crate) fn dump(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join("dump").join(file)).unwrap_or_default()
    }

    /// The arguments that the real program got, if it was run.
    pub(crate) fn got(&self) -> Option<String> {
        let line = fs::read(self.dir.path().join("dump/cmdline")).ok()?;
        let words = String::from_utf8(line).unwrap();
        // The interpreter and the script's path come first.
        Some(words.trim_end_matches('\0').split('\0').skip(2).collect::<Vec<_>>().join(" "))
    }

    /// Whether the real program has said what it was given.
    pub(crate) fn has_run(&self) -> bool {
        self.dir.path().join("dump/done").exists()
    }

    /// How many sockets the real program has inherited from the shim.
    pub(crate) fn sockets(&self) -> usize {
        self.extra_descriptors().iter().filter(|line| line.contains(" socket:[")).count()
    }

    /// The inode of the network namespace that the call was for.
    pub(crate) fn netns(&self) -> u64 {
        let link = self.dump("netns");
        link.trim().trim_start_matches("net:[").trim_end_matches(']').parse().unwrap()
    }

    /// The real program was run as if there were no shim: arguments, environment, descriptors and
    /// signals are those that podman gave.
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.got().expect("the real program was not run"), flat(&self.arguments));
        self.assert_same_surroundings();
        let extra: Vec<_> = self.extra_descriptors();
        assert!(extra.is_empty(), "{extra:?}");
    }

    pub(crate) fn assert_same_surroundings(&self) {
        let sorted = |text: String| {
            let mut words: Vec<_> = text.split('\0').map(str::to_owned).collect();
            // The shell's own, which says what it runs at the moment.
            words.retain(|word| !word.is_empty() && !word.starts_with("_="));
            words.sort();
            words
        };
        assert_eq!(sorted(self.dump("environ")), sorted(self.dump("environ.before")));
        assert_eq!(self.dump("signals"), self.dump("signals.before"));
        let after = self.dump("fds");
        for line in self.dump("fds.before").lines().filter(|line| !line.starts_with("2 ")) {
            assert!(after.lines().any(|l| l == line), "{line} is not among\n{after}");
        }
    }

    /// What is open beyond what podman had open and the script that the fake one is.
    pub(crate) fn extra_descriptors(&self) -> Vec<String> {
        let before = self.dump("fds.before");
        let known = |line: &str| {
            line.starts_with("2 ")
                || line.ends_with("/real/slirp4netns")
                || before.lines().any(|l| l == line)
        };
        self.dump("fds").lines().filter(|line| !known(line)).map(str::to_owned).collect()
    }
}

/// One space between words.
pub(crate) fn flat(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) took: Duration,
    /// What the shim has said.
    pub(crate) stderr: String,
}

impl Outcome {
    /// The real one ran, and one line tells why without an address.
    pub(crate) fn assert_continued(&self, call: &Call, why: &str) {
        assert!(self.status.success(), "{}", self.stderr);
        call.assert_untouched();
        self.assert_one_line(why);
        assert!(self.stderr.contains(" web: "), "{}", self.stderr);
    }

    /// The real one did not run, and one line tells why.
    pub(crate) fn assert_refused(&self, call: &Call, why: &str) {
        assert_eq!(self.status.code(), Some(1), "{}", self.stderr);
        assert_eq!(call.got(), None);
        self.assert_one_line(why);
    }

    pub(crate) fn assert_one_line(&self, why: &str) {
        assert_eq!(self.stderr.matches('\n').count(), 1, "{:?}", self.stderr);
        assert!(self.stderr.starts_with("v6pod: "), "{}", self.stderr);
        assert!(self.stderr.contains(why), "{why:?} is not in {:?}", self.stderr);
    }
}

/// What the fake daemon does with a connection.
#[derive(Clone)]
pub(crate) enum Reply {
    /// Answers and waits for the other side to end it.
    Say(Vec<u8>),
    /// Answers that much and ends it.
    SayAndClose(Vec<u8>),
    /// Reads the request and ends it.
    Close,
    /// Ends it without reading.
    Slam,
    /// Never answers.
    Mute,
}

pub(crate) fn http(status: u16, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

pub(crate) fn yes() -> Reply {
    Reply::Say(http(200, "application/json", r#"{"address":"2001:db8::42"}"#))
}

/// What the fake daemon saw.
#[derive(Debug)]
pub(crate) enum Event {
    Request(Request),
    /// The other side has ended the connection.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) body: serde_json::Value,
    /// Inode of the descriptor that came with the first byte.
    pub(crate) netns: Option<u64>,
}

pub(crate) struct Daemon {
    events: Receiver<Event>,
}

impl Daemon {
    /// One that replies to its nth connection as told, and to any later one as to the last.
    pub(crate) fn start(socket: &Path, replies: Vec<Reply>) -> Self {
        Self::serve(UnixListener::bind(socket).unwrap(), replies)
    }

    fn serve(listener: UnixListener, replies: Vec<Reply>) -> Self {
        let (sender, events) = channel();
        thread::spawn(move || {
            for (nth, stream) in listener.incoming().enumerate() {
                let reply = replies[nth.min(replies.len() - 1)].clone();
                let sender = sender.clone();
                thread::spawn(move || connection(stream.unwrap(), reply, &sender));
            }
        });
        Self { events }
    }

    pub(crate) fn request(&self) -> Request {
        match self.events.recv_timeout(PATIENCE) {
            Ok(Event::Request(request)) => request,
            other => panic!("a request was due, not {other:?}"),
        }
    }

    /// Waits for the connection's end.
    pub(crate) fn ended(&self) {
        match self.events.recv_timeout(PATIENCE) {
            Ok(Event::Ended) => {}
            other => panic!("the end was due, not {other:?}"),
        }
    }

    pub(crate) fn assert_quiet(&self, time: Duration) {
        match self.events.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => {}
            other => panic!("nothing was due, not {other:?}"),
        }
    }
}

fn connection(mut stream: UnixStream, reply: Reply, events: &Sender<Event>) {
    if matches!(reply, Reply::Slam) {
        return;
    }
    let request = read_request(&mut stream);
    // The test may be over.
    let _ = events.send(Event::Request(request));
    match reply {
        Reply::Say(bytes) => stream.write_all(&bytes).unwrap_or_default(),
        Reply::SayAndClose(bytes) => return stream.write_all(&bytes).unwrap_or_default(),
        Reply::Close | Reply::Slam => return,
        Reply::Mute => {}
    }
    let _ = stream.read_to_end(&mut Vec::new());
    let _ = events.send(Event::Ended);
}

fn read_request(stream: &mut UnixStream) -> Request {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0; 1];
    let got = recvmsg(
        &*stream,
        &mut [IoSliceMut::new(&mut first)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    assert_eq!(got.bytes, 1);
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    assert!(descriptors.len() <= 1, "more than one descriptor");
    let netns = descriptors.pop().map(|fd| fs::File::from(fd).metadata().unwrap().ino());

    let mut bytes = first.to_vec();
    let mut chunk = [0; 1024];
    loop {
        let got = stream.read(&mut chunk).unwrap();
        assert_ne!(got, 0, "the request ended early");
        bytes.extend_from_slice(&chunk[..got]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            let line = head.lines().next().unwrap().to_owned();
            return Request { line, body: serde_json::from_str(body).unwrap(), netns };
        }
    }
}

/// Whether a user namespace can be had here. Says so if not, and fails where that is wanted.
pub(crate) fn possible() -> bool {
    let unshare = Command::new("unshare").args(["-rn", "true"]).stderr(Stdio::null()).status();
    if unshare.is_ok_and(|status| status.success()) {
        return true;
    }
    assert_ne!(std::env::var("V6POD_TEST_REQUIRE").as_deref(), Ok("all"), "no user namespaces");
    eprintln!("skipped: needs unshare(1) and user namespaces (or root)");
    false
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
