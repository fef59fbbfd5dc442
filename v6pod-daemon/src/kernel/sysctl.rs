//! `/proc/sys/net/ipv6/conf` and `neigh`, as the calling thread's network namespace has it.
//!
//! The files are those of our own mount namespace's procfs, whichever network namespace the thread
//! is in: nobody can put something else in their place. An interface's name is one path component
//! ([`LinkName`] has no `/` and is not `..`), and no interface can be called `all` or `default`.

use std::fs;
use std::io;

use rustix::fs::{Mode, OFlags, open, openat};
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
        let (kind, name) = match self {
            Self::All => ("conf", "all"),
            Self::Default => ("conf", "default"),
            Self::Link(name) => ("conf", name.as_str()),
            Self::Neighbours(name) => ("neigh", name.as_str()),
        };
        format!("/proc/sys/net/ipv6/{kind}/{name}/{key}")
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

    /// Sets some values, having looked for the folder once: Linux keeps the folders `eth0` of all network
    /// namespaces in one hash bucket, and to find one of two thousand takes a millisecond.
    pub fn write_all(self, values: &[(&str, i64)]) -> Result<(), Error> {
        let folder = self.path("");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = open(&folder, flags, Mode::empty())
            .map_err(|errno| Error::io(format!("open {folder}"), errno))?;
        values.iter().try_for_each(|(key, value)| {
            let set = || -> io::Result<()> {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                let mut file = fs::File::from(openat(&opened, *key, flags, Mode::empty())?);
                io::Write::write_all(&mut file, value.to_string().as_bytes())
            };
            set().map_err(|error| Error::io(format!("set {folder}{key} to {value}"), error))
        })
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
