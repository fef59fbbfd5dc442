//! A socket for each user, which nobody else can connect to.
//!
//! Guarantee: whoever has one is served however many wait at the common socket. Callers wait there in one
//! queue, in connect(2), before anybody can tell who they are: a user with ten thousand threads is ten
//! thousand places of it. Here each user has a queue of his own, and what comes in by it is accepted at his
//! own pace, so that nothing has to be refused.
//!
//! Who has logged in has one ([`LOGGED_IN`]), who was served once, and whoever had one under the
//! daemon before. They stay as long as the daemon runs.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use rustix::net::listen;
use rustix::process::geteuid;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use v6pod_proto::{Uid, sockets};

use crate::kernel;

/// The system's folder with one for each user who has logged in, named by his uid (pam_systemd(8)).
const LOGGED_IN: &str = "/run/user";

/// How many users may have one: accounts that have logged in since the machine started.
const MOST: usize = 4096;

/// How many connections of one user may wait to be accepted.
const WAITING: i32 = 64;

/// The folder, and whose sockets are in it or could not be made.
#[derive(Debug)]
pub(super) struct OwnSockets {
    folder: PathBuf,
    tried: HashSet<Uid>,
}

impl OwnSockets {
    /// The sockets beside this common one; there are none yet.
    pub(super) fn beside(common: &Path) -> io::Result<Self> {
        let folder = sockets::folder(common).ok_or(io::ErrorKind::NotFound)?;
        match DirBuilder::new().mode(0o711).create(&folder) {
            // One that another daemon of ours left, and nothing else that somebody has put there.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let there = fs::symlink_metadata(&folder)?;
                if !there.is_dir() || there.uid() != geteuid().as_raw() {
                    return Err(error);
                }
            }
            made => made?,
        }
        // Whatever the umask has made of it.
        fs::set_permissions(&folder, Permissions::from_mode(0o711))?;
        Ok(Self { folder, tried: HashSet::new() })
    }

    /// Who is to have one from the start: root, and whoever had one under the daemon before.
    pub(super) fn due(&self) -> impl Iterator<Item = Uid> + use<> {
        [Uid::ROOT].into_iter().chain(named_in(&self.folder, sockets::owner))
    }

    /// Makes this user's, unless that was tried before. The caller holds the instance's lock, so that a file which is
    /// there was left by a daemon that is not.
    pub(super) fn make(&mut self, uid: Uid) -> io::Result<Option<AsyncFd<OwnedFd>>> {
        if self.tried.len() >= MOST || !self.tried.insert(uid) {
            return Ok(None);
        }
        bind(&self.folder.join(sockets::name(uid)), uid).map(Some)
    }
}

/// Binds a socket that this user can connect to, and nobody else but root.
fn bind(path: &Path, uid: Uid) -> io::Result<AsyncFd<OwnedFd>> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // bind(2) gave it what the umask left. Not the daemon's to give away (CAP_CHOWN), but to share.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    setxattr(path, "system.posix_acl_access", &acl(uid), XattrFlags::empty())?;
    listen(&listener, WAITING)?;
    listener.set_nonblocking(true)?;
    kernel::watch(listener.into())
}

/// An access control list, as the kernel reads it (linux/posix_acl_xattr.h): the owner and this user read and
/// write, nobody else anything.
fn acl(user: Uid) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NOBODY: u32 = u32::MAX;
    const READ_WRITE: u16 = 6;
    let (owner, named, group, mask, other) = (0x01, 0x02, 0x04, 0x10, 0x20);
    let entries: [(u16, u16, u32); 5] = [
        (owner, READ_WRITE, NOBODY),
        (named, READ_WRITE, user.as_raw()),
        (group, 0, NOBODY),
        (mask, READ_WRITE, NOBODY),
        (other, 0, NOBODY),
    ];
    let mut list = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permissions.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    list
}

/// Who has logged in.
fn logged_in() -> Vec<Uid> {
    named_in(Path::new(LOGGED_IN), |name| name.parse().ok())
}

/// Those whom the entries of a folder name; nobody if there is no such folder.
fn named_in(folder: &Path, named: impl Fn(&str) -> Option<Uid>) -> Vec<Uid> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| named(entry.file_name().to_str()?)).collect()
}

/// Tells who has logged in and who does from now on, for as long as anybody listens. Tells of all of them
/// again and again.
pub(super) async fn tell_of_logins(tell: mpsc::Sender<Uid>) -> io::Result<()> {
    loop {
        // Before the look, and anew each time: what is watched may be the folder that is there now.
        let logins = Logins::listen()?;
        for uid in logged_in() {
            if tell.send(uid).await.is_err() {
                return Ok(());
            }
        }
        logins.next().await?;
    }
}

/// An inotify(7) queue that hears of logins.
struct Logins(AsyncFd<OwnedFd>);

impl Logins {
    fn listen() -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watch = |path: &Path| inotify::add_watch(&queue, path, WatchFlags::CREATE);
        let folder = Path::new(LOGGED_IN);
        match watch(folder) {
            // Nobody has ever logged in. The first login makes it.
            Err(Errno::NOENT) => watch(folder.parent().unwrap_or(folder))?,
            watched => watched?,
        };
        Ok(Self(kernel::watch(queue)?))
    }

    /// Waits until somebody may have logged in.
    async fn next(self) -> io::Result<()> {
        // What it says does not matter: who looks sees more.
        self.0.readable().await.map(drop)
    }
}
