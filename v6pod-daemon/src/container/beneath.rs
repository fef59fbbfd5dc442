//! Reading files that somebody hostile wrote, as root.
//!
//! Guarantees, for a path below a [`Folder`]: no symbolic link is followed, no mount is crossed,
//! nothing above the folder is reached. Only regular files that belong to the
//! folder's owner are opened, and no more than [`LIMIT`] bytes of them are read. A pipe, a device
//! or a file of somebody else is looked at and never opened, so looking has no effect on it.
//!
//! That is what openat2(2) does in one call, and what is done here part by part, each checked by its
//! descriptor before the next: systemd's RestrictSUIDSGID= takes openat2 away, for no seccomp filter can
//! look at what it is asked.
//!
//! Nothing here can promise to return: a disk may be slow, and a FUSE server may never answer. The
//! caller runs it where that is bearable ([`super::reader`]).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, openat};
use rustix::io::Errno;
use v6pod_proto::Uid;

/// How many bytes a file may have.
pub const LIMIT: u64 = 1 << 20;

/// `FUSE_SUPER_MAGIC` of linux/magic.h; virtiofs and fuseblk bear it too.
const FUSE: u64 = 0x6573_5546;

/// Why a file was not read. To whoever asked all of these are "not found": a difference would tell
/// about files that are not the asker's (CVE-2022-47952).
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nothing of that name.
    #[error("no such file")]
    Absent,
    /// The name is one of a symbolic link, or leads through one.
    #[error("a symbolic link")]
    Link,
    /// The name leads above the folder or into another mount.
    #[error("leads out of the folder or into another mount")]
    Outside,
    /// A file system that its owner's own program serves, and may never serve.
    #[error("on a FUSE file system")]
    Fuse,
    /// Belongs to somebody else.
    #[error("belongs to user {0}, not to the folder's owner")]
    Owner(u32),
    /// A pipe, a device, a socket, a directory where a file should be or the reverse.
    #[error("not of the right type: {0:?}")]
    Type(FileType),
    /// Longer than [`LIMIT`].
    #[error("longer than {LIMIT} bytes")]
    TooLarge,
    /// The system's refusal.
    #[error("cannot be read")]
    Io(#[source] io::Error),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Absent,
            Errno::LOOP => Self::Link,
            Errno::XDEV => Self::Outside,
            other => Self::Io(other.into()),
        }
    }
}

/// A directory of a user's, pinned by a descriptor, below which his files are read.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    owner: Uid,
}

impl Folder {
    /// Opens a directory that belongs to the user. The path is one that root chose
    /// (`/run/user/UID`, a home from the passwd database); it may lead through links, such as
    /// `/home` is on some systems.
    pub fn open(path: &Path, owner: Uid) -> Result<Self, Refused> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        check(fd.as_fd(), owner, FileType::Directory)?;
        Ok(Self { fd, owner })
    }

    /// The whole of a file.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>, Refused> {
        let fd = self.pin(path)?;
        let stat = check(fd.as_fd(), self.owner, FileType::RegularFile)?;
        if u64::try_from(stat.st_size).is_ok_and(|size| size > LIMIT) {
            return Err(Refused::TooLarge);
        }
        // By the pinned inode, not by the path again, which may lead elsewhere by now. The magic
        // link is the daemon's own. O_NONBLOCK: another's lease on the file would hold the open up
        // for lease-break-time, 45 seconds (fcntl(2)).
        let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        drain(File::from(rustix::fs::open(own, flags, Mode::empty())?))
    }

    /// What a symbolic link says. It is not followed.
    pub fn read_link(&self, path: &Path) -> Result<PathBuf, Refused> {
        let fd = self.pin(path)?;
        check(fd.as_fd(), self.owner, FileType::Symlink)?;
        let target = rustix::fs::readlinkat(&fd, "", Vec::new())?;
        Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }

    /// A descriptor of what the path names, with which nothing can be done but ask what it is. With
    /// these flags the last part may be a symbolic link, which is then what is pinned (open(2)).
    fn pin(&self, path: &Path) -> Result<OwnedFd, Refused> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mount = mount_of(self.fd.as_fd())?;
        let mut pinned: Option<OwnedFd> = None;
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(Refused::Outside) };
            let from = pinned.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let fd = openat(from, name, flags, Mode::empty()).map_err(|errno| match errno {
                // What was pinned before is no directory.
                Errno::NOTDIR => not_a_way(from),
                other => other.into(),
            })?;
            if mount_of(fd.as_fd())? != mount {
                return Err(Refused::Outside);
            }
            pinned = Some(fd);
        }
        pinned.ok_or(Refused::Absent)
    }
}

/// Why a pinned file leads to nothing.
fn not_a_way(fd: BorrowedFd<'_>) -> Refused {
    match rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Symlink) => Refused::Link,
        _ => Refused::Absent,
    }
}

/// The number of the mount that a descriptor is in: nobody else's while the descriptor is open. The
/// kernel tells it by itself: statx(2) would have the file system asked, and FUSE refuse.
fn mount_of(fd: BorrowedFd<'_>) -> Result<u64, Refused> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let info = info.map_err(Refused::Io)?;
    let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    line.and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| Refused::Io(io::ErrorKind::InvalidData.into()))
}

/// Asks a pinned file what it is. The file system first: FUSE's answer to statfs does not leave the
/// kernel where the server is another user's, that to stat may.
fn check(fd: BorrowedFd<'_>, owner: Uid, wanted: FileType) -> Result<Stat, Refused> {
    if u64::try_from(rustix::fs::fstatfs(fd)?.f_type) == Ok(FUSE) {
        return Err(Refused::Fuse);
    }
    let stat = rustix::fs::fstat(fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        _ if stat.st_uid != owner.as_raw() => Err(Refused::Owner(stat.st_uid)),
        found if found == wanted => Ok(stat),
        FileType::Symlink => Err(Refused::Link),
        found => Err(Refused::Type(found)),
    }
}

/// Reads to the end, which may have moved since the file's length was asked.
fn drain(file: impl Read) -> Result<Vec<u8>, Refused> {
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(Refused::Io)?;
    if bytes.len() as u64 > LIMIT { Err(Refused::TooLarge) } else { Ok(bytes) }
}

#[cfg(test)]
#[path = "beneath_tests.rs"]
mod tests;
