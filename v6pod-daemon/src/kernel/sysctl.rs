//! `/proc/sys/net/ipv6/conf` and `neigh`, as the calling thread's network namespace has it.
//!
//! The files are those of our own mount namespace's procfs or of one that nobody else has, whichever
//! network namespace the thread is in: nobody can put something else in their place. An interface's name
//! is one path component ([`LinkName`] has no `/` and is not `..`), and no interface can be called `all` or
//! `default`.
//!
//! To Linux `ipv6` below `/proc/sys/net` is another folder for each network namespace, all with one parent
//! and one name, so that it keeps them in one hash bucket (`proc_sys_compare`). Who has looked at five
//! thousand pays 1.5 ms for every path through there, and more for one that is new. So what an attachment
//! needs is not found by such a path: the host's folder is opened once ([`Folders`]), and containers' are
//! looked for in a procfs ([`Procfs`]) that is replaced before there are many in it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use v6pod_proto::LinkName;

use super::error::{Cause, Error};

/// Whose setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conf<'a> {
    /// The namespace's.
    All,
    /// What later interfaces start with.
    Default,
    /// One interface's.
    Link(&'a LinkName),
    /// One interface's of neighbour discovery (`neigh`).
    Neighbours(&'a LinkName),
}

impl Conf<'_> {
    fn path(self, key: &str) -> String {
        format!("/proc/sys/net/ipv6/{}/{key}", self.folder())
    }

    fn folder(self) -> String {
        let (kind, name) = match self {
            Self::All => ("conf", "all"),
            Self::Default => ("conf", "default"),
            Self::Link(name) => ("conf", name.as_str()),
            Self::Neighbours(name) => ("neigh", name.as_str()),
        };
        format!("{kind}/{name}")
    }

    /// The value; none if this kernel or this namespace has no such file.
    pub fn read(self, key: &str) -> Result<Option<i64>, Error> {
        let path = self.path(key);
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::new(format!("read {path}"), Cause::Garbled("no number"))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {path}"), error)),
        }
    }

    /// Sets the value.
    pub fn write(self, key: &str, value: i64) -> Result<(), Error> {
        let path = self.path(key);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| Error::io(format!("set {path} to {value}"), error))?;
        io::Write::write_all(&mut file, value.to_string().as_bytes())
            .map_err(|error| Error::io(format!("set {path} to {value}"), error))
    }

    /// Sets the value unless it is that already: so what can be read stays untouched where nothing
    /// need be written, and a read-only `/proc/sys` does no harm. Whether anything was written.
    pub fn ensure(self, key: &str, value: i64) -> Result<bool, Error> {
        if self.read(key)? == Some(value) {
            return Ok(false);
        }
        self.write(key, value).map(|()| true)
    }
}

/// The settings of one network namespace, found once.
#[derive(Debug)]
pub struct Folders(OwnedFd);

impl Folders {
    /// Those of the calling thread's.
    pub fn here() -> Result<Self, Error> {
        find(CWD, "/proc/sys/net/ipv6").map(Self)
    }

    /// One interface's, or all interfaces'.
    pub fn open(&self, conf: Conf<'_>) -> Result<Folder, Error> {
        let path = conf.folder();
        Ok(Folder { opened: find(&self.0, &path)?, path })
    }
}

/// The settings of one interface, found once.
#[derive(Debug)]
pub struct Folder {
    opened: OwnedFd,
    path: String,
}

impl Folder {
    /// Sets the value.
    pub fn write(&self, key: &str, value: i64) -> Result<(), Error> {
        let set = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let mut file = fs::File::from(openat(&self.opened, key, flags, Mode::empty())?);
            io::Write::write_all(&mut file, value.to_string().as_bytes())
        };
        set().map_err(|error| Error::io(format!("set {}/{key} to {value}", self.path), error))
    }

    /// Sets the value unless it is that already. Whether anything was written.
    pub fn ensure(&self, key: &str, value: i64) -> Result<bool, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let read = openat(&self.opened, key, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| io::read_to_string(fs::File::from(file)))
            .map_err(|error| Error::io(format!("read {}/{key}", self.path), error))?;
        if read.trim().parse() == Ok(value) {
            return Ok(false);
        }
        self.write(key, value).map(|()| true)
    }
}

/// A procfs for the settings of containers: one of our own, mounted nowhere, as long as we may make any
/// (Linux 5.8, `fsopen`), else that of our mount namespace.
#[derive(Debug)]
pub struct Procfs {
    own: Option<OwnedFd>,
    /// How many namespaces have been looked at in it.
    seen: u32,
}

impl Procfs {
    /// How many namespaces one is good for: to look through so many takes some microseconds.
    const ROOM: u32 = 16;

    /// A new one.
    pub fn make() -> Self {
        // Without the right to make one, all goes on, only slower with thousands of containers.
        Self { own: instance().ok(), seen: 0 }
    }

    /// The settings of the calling thread's network namespace.
    pub fn here(&mut self) -> Result<Folders, Error> {
        self.seen += 1;
        match &self.own {
            Some(own) => find(own, "sys/net/ipv6").map(Folders),
            None => Folders::here(),
        }
    }

    /// Has another take its place if there are many in it. The end of one takes the kernel a moment
    /// (RCU): not for whoever waits for an answer.
    pub fn renew(&mut self) {
        if self.seen >= Self::ROOM
            && self.own.is_some()
            && let Ok(own) = instance()
        {
            *self = Self { own: Some(own), seen: 0 };
        }
    }
}

fn instance() -> Result<OwnedFd, Errno> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn find(from: impl AsFd, path: &str) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(from, path, flags, Mode::empty())
        .map_err(|errno| Error::io(format!("open {path}"), errno))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, setns};

    use super::*;
    use crate::kernel::namespace::Home;
    use crate::kernel::testing::{Container, in_netns, sh};

    const VALUE: &str = "cat /proc/sys/net/ipv6/conf/default/accept_ra";

    #[test]
    fn what_was_opened_at_home_is_home_wherever_the_thread_is() {
        in_netns(|| {
            let (home, folders) = (Home::here().unwrap(), Folders::here().unwrap());
            let container = Container::new();
            setns(container.fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let default = folders.open(Conf::Default).unwrap();
            assert!(default.ensure("accept_ra", 2).unwrap());
            assert!(!default.ensure("accept_ra", 2).unwrap());
            assert_ne!(sh(VALUE), "2\n");
            setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
            assert_eq!(sh(VALUE), "2\n");
        });
    }

    #[test]
    fn a_procfs_shows_the_namespace_that_the_thread_is_in_also_its_successor() {
        in_netns(|| {
            let (mut procfs, home) = (Procfs::make(), Home::here().unwrap());
            assert!(procfs.own.is_some(), "Linux 5.8 and later let root make one");
            for n in 0..2 * Procfs::ROOM {
                let container = Container::new();
                setns(container.fd(), CloneFlags::CLONE_NEWNET).unwrap();
                procfs.here().unwrap().open(Conf::Default).unwrap().write("accept_ra", 2).unwrap();
                assert_eq!(Conf::Default.read("accept_ra").unwrap(), Some(2), "{n}");
                setns(&home, CloneFlags::CLONE_NEWNET).unwrap();
                assert_ne!(Conf::Default.read("accept_ra").unwrap(), Some(2), "{n}");
                procfs.renew();
                assert!(procfs.seen < Procfs::ROOM);
            }
        });
    }

    #[test]
    fn without_a_procfs_of_ones_own_the_usual_one_does() {
        in_netns(|| {
            let mut procfs = Procfs { own: None, seen: Procfs::ROOM };
            procfs.renew();
            procfs.here().unwrap().open(Conf::Default).unwrap().write("accept_ra", 2).unwrap();
            assert_eq!(sh(VALUE), "2\n");
        });
    }
}
