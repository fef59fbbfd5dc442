//! The part of podman that calls slirp4netns, in a process of its own.
//!
//! The bench starts itself again as an ordinary user in a user namespace, where podman would be.
//! Each line on standard input is the id of a container: it gets a network namespace, slirp4netns
//! is called for it as podman 4 does, and a line says where the namespace is and how long the call
//! took. The next line, whatever it is, lets go of that namespace.
//!
//! "How long" is from before the fork until the kernel opens the real slirp4netns to execute it: by
//! then the shim has had its answer. A watch on that file tells (inotify(7), `IN_OPEN`).

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use crate::Result;
use crate::program::wait;
use crate::scene::{NetNs, calm};

/// The first argument by which this program knows that it is to be podman.
pub(crate) const WORD: &str = "--as-podman";

/// Twice what the shim promises to need at most.
const LIMIT: Duration = Duration::from_secs(10);

/// Serves standard input until its end. The words are the shim, under the name slirp4netns, and the
/// real program.
pub(crate) fn run(words: &[OsString]) -> Result<()> {
    let [shim, real] = words else { return Err("not to be called by hand".into()) };
    let watch = Watch::on(Path::new(real))?;
    let mut lines = io::stdin().lines();
    while let Some(id) = lines.next() {
        let netns = NetNs::new()?;
        let took = call(shim, &id?, &netns, &watch)?;
        let mut out = io::stdout().lock();
        writeln!(out, "{} {}", netns.path(), took.as_nanos())?;
        out.flush()?;
        let _ = lines.next().transpose()?;
    }
    Ok(())
}

fn call(shim: &OsStr, id: &str, netns: &NetNs, watch: &Watch) -> Result<Duration> {
    let dir = env::var_os("XDG_RUNTIME_DIR").ok_or("no XDG_RUNTIME_DIR")?;
    let log = Path::new(&dir).join(format!("slirp4netns-{id}.log"));
    let mut output = File::options().read(true).write(true).create_new(true).open(&log)?;
    fs::remove_file(log)?;
    let (exit, _exit) = io::pipe()?;
    let (_ready, ready) = io::pipe()?;
    let (exit, ready) = (inherited(exit.into())?, inherited(ready.into())?);
    let mut command = Command::new(shim);
    command.args([
        "--disable-host-loopback",
        "--mtu=65520",
        "--enable-sandbox",
        "--enable-seccomp",
    ]);
    command.arg("--enable-ipv6").arg("-c");
    command.arg("-e").arg(exit.as_raw_fd().to_string());
    command.arg("-r").arg(ready.as_raw_fd().to_string());
    command.args(["--netns-type=path", &netns.path(), "tap0"]);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);

    calm();
    let began = Instant::now();
    let mut child = command.spawn().map_err(|e| format!("cannot start the shim: {e}"))?;
    let opened = watch.wait();
    let took = began.elapsed();
    finish(&mut child, &mut output)?;
    opened.map(|()| took)
}

/// The real program is one that ends at once.
fn finish(child: &mut Child, output: &mut File) -> Result<()> {
    if wait(child, LIMIT)?.success() {
        return Ok(());
    }
    let mut said = String::new();
    output.rewind()?;
    output.read_to_string(&mut said)?;
    Err(format!("the shim failed: {}", said.trim()).into())
}

/// Lets the child have it, under its number.
fn inherited(fd: OwnedFd) -> Result<OwnedFd> {
    fcntl_setfd(&fd, FdFlags::empty())?;
    Ok(fd)
}

struct Watch(OwnedFd);

impl Watch {
    fn on(file: &Path) -> Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, file, inotify::WatchFlags::OPEN)?;
        Ok(Self(watch))
    }

    /// Waits until somebody opens the file, and forgets what happened so far.
    fn wait(&self) -> Result<()> {
        let limit = Timespec::try_from(LIMIT)?;
        if poll(&mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)], Some(&limit))? == 0
        {
            return Err("the shim did not come to execute the real program".into());
        }
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
