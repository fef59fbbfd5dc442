//! Network namespaces by descriptor: whether one is what it should be, whose it is, which it is.
//!
//! Guarantees: none of the questions here can block, whatever somebody sent as a descriptor, and none
//! trusts a path. That a descriptor is a namespace is known from the device number of its inode,
//! asked for without synchronisation (`AT_STATX_DONT_SYNC`: a FUSE or NFS server is not consulted;
//! fstat(2) and fstatfs(2) would wait for it), and only a descriptor that is one is asked more.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::statfs::{FsType, fstatfs};
use rustix::fs::{AtFlags, StatxFlags, statx};
use v6pod_proto::Uid;

use super::error::{Cause, Error};
use super::sys;

/// The magic number of nsfs, the file system of namespaces (`linux/magic.h`).
const NSFS: FsType = FsType(libc::NSFS_MAGIC);

/// The namespaces of the daemon itself.
#[derive(Debug)]
pub struct Home {
    net: OwnedFd,
    nsfs: (u32, u32),
    net_inode: u64,
    user_inode: u64,
}

impl Home {
    /// Those of the calling thread.
    pub fn here() -> Result<Self, Error> {
        let doing = "look at the daemon's own namespaces";
        let find = || -> io::Result<_> {
            let net = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
            let user = OwnedFd::from(File::open("/proc/self/ns/user")?);
            let is_nsfs = fstatfs(&net)?.filesystem_type() == NSFS;
            Ok((inode(&net)?, inode(&user)?, net, is_nsfs))
        };
        let ((nsfs, net_inode), (_, user_inode), net, is_nsfs) =
            find().map_err(|error| Error::io(doing, error))?;
        if !is_nsfs {
            return Err(Error::new(doing, Cause::Garbled("/proc has no namespaces in it")));
        }
        Ok(Self { net, nsfs, net_inode, user_inode })
    }
}

impl AsFd for Home {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }
}

/// A network namespace other than the daemon's own. Holding it keeps the namespace alive: it belongs
/// to one request and is dropped with it.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    inode: u64,
    owner: Uid,
    initial: bool,
}

/// Why a descriptor is not a namespace that anybody can be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotANetNs {
    /// A file, a socket, a pipe, a pidfd …
    #[error("the descriptor is not a namespace")]
    NotANamespace,
    /// Opened with O_PATH: names a file and gives no access to it.
    #[error("the descriptor is only a path")]
    PathOnly,
    /// A user, mount, process … namespace.
    #[error("the namespace is not one of networks")]
    OtherKind,
    /// The daemon's own: attaching to it would be attaching to the host.
    #[error("the namespace is the host's own")]
    Own,
    /// Owned by a user namespace that is not the daemon's or a descendant of it.
    #[error("the namespace's owner cannot be told")]
    Foreign,
}

/// A refused descriptor, given back: to close it may block (a FUSE file flushes), so it must be
/// closed where that harms nobody.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// Why.
    pub why: NotANetNs,
    /// What was given.
    pub descriptor: OwnedFd,
}

impl NetNs {
    /// Asks the questions of threat 1, one after the other: is it a namespace, open, of networks, not
    /// ours, and who owns it. Whether that owner may is the caller's question.
    pub fn verify(fd: OwnedFd, home: &Home) -> Result<Self, Refused> {
        match examine(fd.as_fd(), home) {
            Ok((inode, owner, initial)) => Ok(Self { fd, inode, owner, initial }),
            Err(why) => Err(Refused { why, descriptor: fd }),
        }
    }

    /// The user who made the user namespace that owns it (`NS_GET_OWNER_UID`), as the daemon's user
    /// namespace numbers users.
    pub fn owner(&self) -> Uid {
        self.owner
    }

    /// Whether the daemon's own user namespace owns it, as it owns what root makes. The daemon is
    /// meant to run in the initial one.
    pub fn in_initial_userns(&self) -> bool {
        self.initial
    }

    /// Its number in nsfs. Used again after its death: never an identity by itself.
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What tells a namespace from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The inode: unique among the living.
    pub inode: u64,
    /// The cookie: unique since the machine started (`SO_NETNS_COOKIE`). None before Linux 5.14.
    pub cookie: Option<u64>,
}

impl Identity {
    /// Whether both are certainly the same namespace, though one of them may have been seen long ago.
    /// False also where it cannot be told: without cookies.
    pub fn certainly_is(&self, other: &Self) -> bool {
        self.cookie.is_some() && self == other
    }
}

/// The cookie of the namespace that a socket was opened in.
pub(super) fn cookie(socket: impl AsFd) -> Result<Option<u64>, Error> {
    match sys::netns_cookie(socket) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(Error::io("tell a namespace's cookie", error)),
    }
}

fn examine(fd: BorrowedFd<'_>, home: &Home) -> Result<(u64, Uid, bool), NotANetNs> {
    let (device, number) = inode(fd).map_err(|_| NotANetNs::NotANamespace)?;
    // There is one nsfs, and no file system can have its device number.
    if device != home.nsfs {
        return Err(NotANetNs::NotANamespace);
    }
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|_| NotANetNs::NotANamespace)?;
    if OFlag::from_bits_retain(flags).contains(OFlag::O_PATH) {
        return Err(NotANetNs::PathOnly);
    }
    match sys::ns_type(fd) {
        Ok(libc::CLONE_NEWNET) => {}
        Ok(_) => return Err(NotANetNs::OtherKind),
        Err(_) => return Err(NotANetNs::NotANamespace),
    }
    if number == home.net_inode {
        return Err(NotANetNs::Own);
    }
    let owner_ns = sys::owning_user_ns(fd).map_err(|_| NotANetNs::Foreign)?;
    let owner = sys::user_ns_owner(&owner_ns).ok().and_then(Uid::new);
    let (_, user_inode) = inode(&owner_ns).map_err(|_| NotANetNs::Foreign)?;
    Ok((number, owner.ok_or(NotANetNs::Foreign)?, user_inode == home.user_inode))
}

/// Device and inode, from what the kernel has in memory.
fn inode(fd: impl AsFd) -> io::Result<((u32, u32), u64)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(fd, "", flags, StatxFlags::INO)?;
    Ok(((stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::fcntl::open;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::stat::Mode;

    use super::*;
    use crate::kernel::testing::{Container, Rootless, in_netns, sh, skipped, worker};

    fn refused(fd: OwnedFd, home: &Home) -> NotANetNs {
        NetNs::verify(fd, home).unwrap_err().why
    }

    #[test]
    fn attack_01_a_descriptor_of_anything_else_is_refused_for_its_own_reason() {
        in_netns(|| {
            let home = Home::here().unwrap();
            let rootless = Rootless::start();
            let container = Container::new().fd();
            let path_only = open(
                format!("/proc/self/fd/{}", container.as_raw_fd()).as_str(),
                OFlag::O_PATH,
                Mode::empty(),
            );
            let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
            let pidfd = rustix::process::pidfd_open(
                rustix::process::getpid(),
                rustix::process::PidfdFlags::empty(),
            );
            let file = tempfile::tempfile().unwrap();
            let own = File::open("/proc/thread-self/ns/net").unwrap();
            for (what, fd, why) in [
                ("file", file.into(), NotANetNs::NotANamespace),
                ("directory", File::open("/").unwrap().into(), NotANetNs::NotANamespace),
                ("proc", File::open("/proc/self/stat").unwrap().into(), NotANetNs::NotANamespace),
                ("socket", socket.into(), NotANetNs::NotANamespace),
                ("pidfd", pidfd.unwrap(), NotANetNs::NotANamespace),
                ("path", path_only.unwrap(), NotANetNs::PathOnly),
                ("user namespace", rootless.ns("user"), NotANetNs::OtherKind),
                ("mount namespace", rootless.ns("mnt"), NotANetNs::OtherKind),
                ("own", own.into(), NotANetNs::Own),
            ] {
                assert_eq!(refused(fd, &home), why, "{what}");
            }
        });
    }

    /// Whoever serves a FUSE file may take his time over every question about it. This one never
    /// answers: fstat(2) or fstatfs(2) would hang.
    #[test]
    fn attack_33_a_descriptor_of_a_file_system_that_never_answers_is_refused_at_once() {
        in_netns(|| {
            if !std::path::Path::new("/dev/fuse").exists() {
                return skipped("no /dev/fuse");
            }
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            sh("mount --make-rprivate /");
            let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let folder = tempfile::tempdir().unwrap();
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            let (kind, flags) = (Some("fuse"), MsFlags::empty());
            mount(Some("v6k"), folder.path(), kind, flags, Some(options.as_str())).unwrap();
            let path_only = open(folder.path(), OFlag::O_PATH, Mode::empty()).unwrap();
            let home = Home::here().unwrap();
            let (done, result) = std::sync::mpsc::channel();
            std::thread::spawn(move || done.send(refused(path_only, &home)));
            let answer = result.recv_timeout(std::time::Duration::from_secs(20));
            // Ends the connection, and so whatever still waits for it.
            drop(server);
            assert_eq!(answer, Ok(NotANetNs::NotANamespace));
            sh(&format!("umount -l {}", folder.path().display()));
        });
    }

    #[test]
    fn a_namespace_says_whose_it_is() {
        in_netns(|| {
            let home = Home::here().unwrap();
            let rootless = Rootless::start();
            let ns = NetNs::verify(rootless.ns("net"), &home).unwrap();
            assert_eq!(ns.owner().as_raw(), Rootless::UID);
            assert!(!ns.in_initial_userns());
            let container = Container::new();
            let ns = container.verified(&home);
            assert_eq!(ns.owner(), Uid::ROOT);
            assert!(ns.in_initial_userns());
        });
    }

    #[test]
    fn a_namespace_is_the_same_however_it_is_opened_and_no_other() {
        in_netns(|| {
            let mut worker = worker();
            let (a, b) = (Container::new(), Container::new());
            let mut identity = |c: &Container| {
                let ns = c.verified(worker.home());
                worker.identify(&ns).unwrap()
            };
            let first = identity(&a);
            assert_eq!(first, identity(&a));
            assert_ne!(first, identity(&b));
            assert!(first.cookie.is_some(), "Linux 5.14 and later have cookies");
            assert!(first.certainly_is(&first));
            let before_5_14 = Identity { cookie: None, ..first };
            assert!(!before_5_14.certainly_is(&before_5_14));
        });
    }
}
