//! Reads what the user asked for by other means than annotations: labels, published ports, variables
//! of the environment, from podman's own files, as that user.
//!
//! Podman itself cannot be asked: it holds the container's lock until the container runs, and
//! `podman inspect` waits for it. Its database is read behind its back instead, and what of it is the
//! image's own is found in the image.
//!
//! A program of its own, because all of this is podman's private matter and may be anything: another
//! format, half written, on a file system that does not answer. Whoever runs it gives it 200 ms and then
//! kills it. Guarantees: nothing is locked, written or waited for; nothing but regular files of the
//! user's own is read, and of them no more than so much; whatever cannot be read is nothing that anybody
//! asked for, and no error; but what is too long to be read is told, for an image can make it so. If it
//! is not known what the image bears, everything may be the image's.

pub(crate) mod bolt;
mod container;
mod files;
mod image;
pub(crate) mod sqlite;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use v6pod_proto::ContainerId;
use v6pod_proto::wishes::Findings;

use self::container::Container;
use self::files::Source;
use self::image::Image;
use self::sqlite::What;

/// How long a database is read again that changes meanwhile.
const PATIENCE: Duration = Duration::from_millis(120);
/// Between two attempts. A transaction of podman's takes some milliseconds.
const PAUSE: Duration = Duration::from_millis(2);

/// What a database says of a container.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// This.
    Found(Vec<u8>),
    /// Nothing, or nothing that is understood.
    Nothing,
    /// It was being written: what was read may be of two times.
    Moved,
    /// More than is read.
    TooMuch,
}

/// Gives so many bytes from this place, if they are there.
pub(crate) type Read<'a> = &'a mut dyn FnMut(u64, usize) -> Option<Vec<u8>>;

/// The status if podman keeps more of the container than is read: it is not known what its image brought.
pub(crate) const TOO_MUCH: u8 = 3;

/// Writes what was found of the container with the bundle that the first argument names, as JSON, also if
/// there is nothing to be found, as of another engine's; and nothing at all if it could not be read.
pub(crate) fn run() -> ExitCode {
    let Some(bundle) = env::args_os().nth(1).map(PathBuf::from) else { return ExitCode::SUCCESS };
    let findings = match Place::of_bundle(&bundle) {
        None => Some(Findings::default()),
        Some(place) => match place.configuration() {
            Lookup::Found(configuration) => place.findings(&configuration),
            Lookup::TooMuch => return TOO_MUCH.into(),
            Lookup::Nothing | Lookup::Moved => None,
        },
    };
    if let Some(text) = findings.and_then(|findings| serde_json::to_vec(&findings).ok()) {
        // Nobody is left to be told that it failed.
        let _ = io::stdout().write_all(&text);
    }
    ExitCode::SUCCESS
}

/// Where podman keeps a container, and everything else.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// `~/.local/share/containers/storage`, or wherever `--root` or a storage.conf has it.
    root: PathBuf,
    /// The storage driver.
    driver: String,
    id: ContainerId,
}

impl Place {
    /// By the container's bundle, `ROOT/DRIVER-containers/ID/userdata`: what other engines call a
    /// bundle is none.
    fn of_bundle(bundle: &Path) -> Option<Self> {
        let folder =
            bundle.parent().filter(|_| bundle.file_name() == Some(OsStr::new("userdata")))?;
        let containers = folder.parent()?;
        let driver = containers.file_name()?.to_str()?.strip_suffix("-containers")?.to_owned();
        let id = folder.file_name()?.to_str()?.parse().ok()?;
        let root = containers.parent().filter(|root| root.is_absolute())?.to_owned();
        Some(Self { root, driver, id })
    }

    fn findings(&self, configuration: &[u8]) -> Option<Findings> {
        let container = Container::read(configuration)?;
        let images = self.root.join(format!("{}-images", self.driver));
        let image = container.image().map(|id| Image::read(&images, id));
        let pod = container.pod_to_speak_for().and_then(|pod| self.pod_name(pod));
        Some(container.findings(image.as_ref(), pod).within_bounds())
    }

    fn pod_name(&self, pod: &str) -> Option<String> {
        match self.look_up(What::Pod, pod) {
            Lookup::Found(configuration) => container::pod_name(&configuration),
            Lookup::Nothing | Lookup::Moved | Lookup::TooMuch => None,
        }
    }

    /// The container's configuration.
    fn configuration(&self) -> Lookup {
        self.look_up(What::Container, self.id.as_str())
    }

    /// What is kept under this id. Both databases can be there, where podman has changed from one to the
    /// other: the newer kind first.
    fn look_up(&self, what: What, id: &str) -> Lookup {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut moved = false;
            for lookup in [Self::in_sqlite, Self::in_bolt] {
                match lookup(self, what, id) {
                    Lookup::Nothing => {}
                    Lookup::Moved => moved = true,
                    found => return found,
                }
            }
            if !moved || Instant::now() >= end {
                return Lookup::Nothing;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Podman 4.8 and later, unless it found the other one there.
    fn in_sqlite(&self, what: What, id: &str) -> Lookup {
        let path = self.root.join("db.sql");
        let Some(mut source) = Source::open(&path) else { return Lookup::Nothing };
        // What stands in a journal is what the file was before: it is being written.
        let journal = self.root.join("db.sql-journal");
        let in_motion = |source: &Source| (files::has_content(&journal), source.written());
        let before = in_motion(&source);
        let found = sqlite::find(&mut |at, length| source.read(at, length), what, id);
        let after = in_motion(&source);
        match found {
            _ if before.0 || after.0 || before != after => Lookup::Moved,
            // Whatever is in a write-ahead log is not in the file.
            Lookup::Found(_) if files::has_content(&self.root.join("db.sql-wal")) => {
                Lookup::Nothing
            }
            found => enough(&source, found),
        }
    }

    /// Podman up to 5.
    fn in_bolt(&self, what: What, id: &str) -> Lookup {
        let path = self.root.join("libpod/bolt_state.db");
        let Some(mut source) = Source::open(&path) else { return Lookup::Nothing };
        let bucket: &[u8] = match what {
            What::Container => b"ctr",
            What::Pod => b"pod",
        };
        let key = [bucket, id.as_bytes(), b"config"];
        let found = bolt::find(&mut |at, length| source.read(at, length), &key);
        enough(&source, found)
    }
}

/// What was looked up, if it is not for want of reading on that nothing was.
fn enough(source: &Source, found: Lookup) -> Lookup {
    match found {
        Lookup::Nothing if source.is_exhausted() => Lookup::TooMuch,
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_too_long_to_be_read_is_not_taken_for_nothing() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join("vfs-containers").join("ab".repeat(32)).join("userdata");
        let place = Place::of_bundle(&bundle).unwrap();
        assert_eq!(place.configuration(), Lookup::Nothing);
        let database = include_bytes!("../../fuzz/corpus/podman_bolt/one-page");
        let file = root.path().join("libpod/bolt_state.db");
        fs::create_dir(root.path().join("libpod")).unwrap();
        fs::write(&file, database).unwrap();
        assert!(matches!(place.configuration(), Lookup::Found(_)));
        // The page with the container goes on for 16 MiB: podman 4.3.1 keeps 4 MiB of an image's `<`
        // as six times as much.
        let mut long = database.to_vec();
        long[2 * 4096 + 12..2 * 4096 + 16].copy_from_slice(&4095_u32.to_ne_bytes());
        fs::write(&file, long).unwrap();
        assert_eq!(place.configuration(), Lookup::TooMuch);
    }
}
