//! Files of the user's, to be read in part.
//!
//! Guarantees: only a regular file that belongs to this very user is read, and no link to one in its
//! place; opening it waits for nobody; and of one file no more than [`ALL`] is read, however it leads
//! on.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::OFlags;
use rustix::process::geteuid;

/// As much as is read of one file in all. What is looked for is a few kilobytes.
const ALL: usize = 8 << 20;

/// An open file, and how much more of it may be read.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    left: usize,
    exhausted: bool,
}

impl Source {
    pub(super) fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let flags = i32::try_from(flags.bits()).ok()?;
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let own = metadata.is_file() && metadata.uid() == geteuid().as_raw();
        own.then_some(Self { file, left: ALL, exhausted: false })
    }

    /// So many bytes from this place, if they are there.
    pub(super) fn read(&mut self, at: u64, length: usize) -> Option<Vec<u8>> {
        let Some(left) = self.left.checked_sub(length) else {
            self.exhausted = true;
            return None;
        };
        self.left = left;
        // A length that only a lie can have is not made room for.
        (at.checked_add(length as u64)? <= self.file.metadata().ok()?.len()).then_some(())?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    /// Whether more was asked for than is read.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// When it was last written to, and how long it is.
    pub(super) fn written(&self) -> Option<(SystemTime, u64)> {
        let metadata = self.file.metadata().ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }
}

/// All of a file that is no longer than this.
pub(super) fn whole(path: &Path, limit: usize) -> Option<Vec<u8>> {
    let mut source = Source::open(path)?;
    let (_, length) = source.written()?;
    let length = usize::try_from(length).ok().filter(|length| *length <= limit)?;
    source.read(0, length)
}

/// Whether there is something of this name that is not empty.
pub(super) fn has_content(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}
