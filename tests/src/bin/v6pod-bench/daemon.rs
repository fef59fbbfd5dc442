//! v6podd, and what an activation takes: as it measures it itself, and as a caller sees it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use v6pod_proto::{
    Activate as Request, Attachment, AttachmentList, ContainerId, Deactivate, Mode, Status, Uid,
};

use crate::samples::Series;
use crate::scene::{NetNs, Scene, calm};
use crate::{Contender, Result, Round, built};

pub(crate) const SERIES: &[Series] = &[Series::Total, Series::Wire, Series::RoundTrip];

const INSTANCE: &str = "v6b";

/// Past this an answer will not come.
const LIMIT: Duration = Duration::from_secs(10);

/// A daemon with files of its own in the scene's host. It is killed when the last user is gone.
pub(crate) struct Daemon {
    /// What its files are called by: no two that live at one time have the same.
    name: &'static str,
    process: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it answers.
    pub(crate) fn start(scene: &Scene) -> Result<Rc<Self>> {
        Self::with(scene, "v6podd", Mode::Bridge, "").map(Rc::new)
    }

    /// The same by another name, in this mode, with more tables of configuration.
    pub(crate) fn with(
        scene: &Scene,
        name: &'static str,
        mode: Mode,
        tables: &str,
    ) -> Result<Self> {
        let [config, log, state] =
            ["toml", "log", "state"].map(|kind| scene.file(&format!("{name}.{kind}")));
        let run = scene.run_dir().join(name);
        fs::create_dir_all(&run)?;
        let mode = if mode == Mode::Routed { "routed" } else { "bridge" };
        let text = format!(
            "instance = \"{INSTANCE}\"\nprefix = \"2001:db8:1:2:3::/80\"\nmtu = 1500\n\
             mode = \"{mode}\"\n[registry]\nkind = \"none\"\n[api]\ntcp = []\n{tables}"
        );
        fs::write(&config, text)?;
        let output = File::create(&log)?;
        let mut command = Command::new(built("v6podd")?);
        command
            .arg("--config")
            .arg(config)
            .arg("--run-dir")
            .arg(&run)
            .arg("--state-dir")
            .arg(state);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = command.spawn().map_err(|e| format!("cannot start v6podd: {e}"))?;
        let mut daemon = Self { name, process, socket: run.join(format!("{INSTANCE}.sock")) };
        let deadline = Instant::now() + LIMIT;
        while daemon.get("/healthz").is_err() {
            let ended = daemon.process.try_wait()?.is_some();
            if ended || Instant::now() > deadline {
                let log = fs::read_to_string(&log).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                return Err(format!("v6podd does not answer; its last words: {last}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// Ends it and starts it again on the same files; what it serves goes on.
    pub(crate) fn restart(&mut self, scene: &Scene, mode: Mode, tables: &str) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        *self = Self::with(scene, self.name, mode, tables)?;
        Ok(())
    }

    /// Attaches a namespace of root's, for a container with these annotations that nobody has heard of.
    pub(crate) fn attach(
        &self,
        netns: &NetNs,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Attachment> {
        let mut id = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut id)?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut request = Request::new(id.parse::<ContainerId>()?);
        request.annotations.clone_from(annotations);
        let request = serde_json::to_string(&request)?;
        let answer = self.call(&post("/api/activate", &request), Some(netns.as_fd()))?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Its unix socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether there is an attachment of this container.
    pub(crate) fn serves(&self, id: &ContainerId) -> Result<bool> {
        let list: AttachmentList = serde_json::from_slice(&self.get("/api/attachments")?)?;
        Ok(list.attachments.iter().any(|attachment| attachment.container == *id))
    }

    /// Waits until there is no attachment.
    pub(crate) fn is_idle(&self) -> Result<()> {
        self.has_left(0)
    }

    /// Waits until there are no more than so many.
    fn has_left(&self, most: usize) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status: Status = serde_json::from_slice(&self.get("/api/status")?)?;
            if status.counts.attachments <= most as u64 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("an attachment does not go".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many attachments it has made.
    pub(crate) fn made(&self) -> Result<u64> {
        let status: Status = serde_json::from_slice(&self.get("/api/status")?)?;
        Ok(status.counts.made)
    }

    /// Takes this owner's container away, and waits until it is gone.
    pub(crate) fn deactivate(&self, id: ContainerId, owner: u32) -> Result<()> {
        self.take_away(id, owner, 0)
    }

    /// The same where so many others stay.
    pub(crate) fn take_away(&self, id: ContainerId, owner: u32, others: usize) -> Result<()> {
        let body = serde_json::to_string(&Deactivate { id, user: Uid::new(owner), hint: false })?;
        self.call(&post("/api/deactivate", &body), None)?;
        self.has_left(others)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        self.call(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"), None)
    }

    /// One request on a connection of its own, and the body of the answer if that is a 200.
    fn call(&self, request: &str, descriptor: Option<BorrowedFd<'_>>) -> Result<Vec<u8>> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        send(&stream, request.as_bytes(), descriptor)?;
        let (status, body) = receive(&stream)?;
        match status {
            200 => Ok(body),
            _ => Err(format!("v6podd: {status} {}", String::from_utf8_lossy(&body)).into()),
        }
    }

    /// Its resident memory, in KiB.
    pub(crate) fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.ok_or_else(|| "no VmRSS in /proc".into())
    }

    /// The sum of its activation times: after one more activation, larger by that one's.
    pub(crate) fn total(&self) -> Result<Duration> {
        let text = String::from_utf8(self.get("/metrics")?)?;
        Ok(sum(&text, "total"))
    }

    /// The sums of its activation times by part: after one more activation, larger by that one's.
    fn sums(&self) -> Result<[(Series, Duration); 2]> {
        let text = String::from_utf8(self.get("/metrics")?)?;
        Ok([(Series::Total, sum(&text, "total")), (Series::Wire, sum(&text, "wire"))])
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only where it has ended already. What it made ends with the namespace.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The contender: requests by a client that does as little as the shim does.
pub(crate) struct Activate {
    daemon: Rc<Daemon>,
    calls: u64,
}

impl Activate {
    pub(crate) fn new(daemon: Rc<Daemon>) -> Self {
        Self { daemon, calls: 0 }
    }
}

impl Contender for Activate {
    fn series(&self) -> &'static [Series] {
        SERIES
    }

    fn round(&mut self, scene: &Scene) -> Result<Round> {
        self.calls += 1;
        let id: ContainerId = format!("{:064x}", self.calls).parse()?;
        let request = serde_json::to_string(&Request::new(id.clone()))?;
        let request = post("/api/activate", &request);
        let netns = NetNs::new()?;
        let before = self.daemon.sums()?;
        calm();
        let began = Instant::now();
        self.daemon.call(&request, Some(netns.as_fd()))?;
        let mut took = vec![(Series::RoundTrip, began.elapsed())];
        let after = self.daemon.sums()?;
        let differences = after.iter().zip(before);
        took.extend(differences.map(|((series, after), (_, before))| (*series, *after - before)));
        scene.check_attached(&netns)?;
        self.daemon.deactivate(id, 0)?;
        Ok(Round { took, used: Some(netns) })
    }
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The sum of the histogram of activations in OpenMetrics text; nothing before the first.
fn sum(metrics: &str, part: &str) -> Duration {
    let name = format!("v6pod_activation_seconds_sum{{part=\"{part}\"}} ");
    let seconds = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or_default())
}

fn send(stream: &UnixStream, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let raw = descriptor.map(|fd| [fd.as_raw_fd()]);
    let mut control = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    let mut rest = bytes;
    while !rest.is_empty() {
        let part = [IoSlice::new(rest)];
        let socket = stream.as_raw_fd();
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<UnixAddr>(socket, &part, control.as_slice(), flags, None)?;
        // The descriptor goes with the first byte.
        control = None;
        rest = &rest[sent..];
    }
    Ok(())
}

fn receive(stream: &UnixStream) -> Result<(u16, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or("v6podd gave no answer")?;
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_sum_of_a_part_is_found() {
        let text = "# UNIT v6pod_activation_seconds seconds\n\
                    v6pod_activation_seconds_sum{part=\"wire\"} 0.25\n\
                    v6pod_activation_seconds_sum{part=\"total\"} 0.5\n";
        assert_eq!(sum(text, "total"), Duration::from_millis(500));
        assert_eq!(sum(text, "record"), Duration::ZERO);
    }

    #[test]
    fn an_answer_is_read_to_the_end_of_its_body_and_no_further() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi, and more").unwrap();
        assert_eq!(receive(&ours).unwrap(), (200, b"hi".to_vec()));
    }
}
