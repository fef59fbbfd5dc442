//! What outlives a boot: the secret behind stable addresses, and the owners' slices, in `/var/lib/INSTANCE`.
//!
//! Guarantees: the secret is made once, and nobody but root and the daemon reads it. A slice that was given is
//! an owner's for good. A file is whole or absent, and what makes no sense in it harms nothing else. A disk that
//! is full or broken keeps no daemon from starting: without its secret the next one's stable addresses are
//! others, and the log says so.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::rngs::SysError;
use v6pod_proto::Uid;

use super::records::read;
use super::{Ledger, Shared};
use crate::core::choice::Slice;
use crate::core::secret::Secret;

/// The file of the secret, below the state directory: 32 hex digits.
const SECRET: &str = "secret";
/// The file of the slices: `UID BITS NUMBER` in a line each, the number in hex.
const SLICES: &str = "slices";

/// This host's secret, drawn and kept if there is none. What is there and cannot be read is not overwritten.
///
/// # Errors
/// There is none, and there are no random numbers.
pub(super) fn secret(
    state_dir: &Path,
    draw: impl FnOnce() -> Result<u128, SysError>,
) -> Result<Secret, SysError> {
    let path = state_dir.join(SECRET);
    let mut keeps = true;
    match read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            match parse_secret(text.trim()) {
                Some(bits) => return Ok(Secret::new(bits)),
                None => tracing::error!(
                    file = %path.display(),
                    "is no secret; drawing another: stable addresses will be others from now on"
                ),
            }
        }
        Err(why) if fs::symlink_metadata(&path).is_ok() => {
            keeps = false;
            tracing::error!(
                file = %path.display(), why,
                "cannot be read: stable addresses are others for as long as this daemon runs"
            );
        }
        Err(_) => {}
    }
    let bits = draw()?;
    if keeps && let Err(error) = keep(&path, format!("{bits:032x}\n").as_bytes()) {
        tracing::error!(
            file = %path.display(), %error,
            "cannot be kept: the next daemon's stable addresses will be others"
        );
    }
    Ok(Secret::new(bits))
}

/// The slices that owners have.
pub(super) fn slices(state_dir: &Path) -> Vec<Slice> {
    let path = state_dir.join(SLICES);
    match read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).lines().filter_map(parse_slice).collect(),
        Err(why) => {
            if fs::symlink_metadata(&path).is_ok() {
                tracing::error!(file = %path.display(), why, "cannot read the owners' slices");
            }
            Vec::new()
        }
    }
}

impl Shared {
    /// Keeps the owners' slices, if one has been chosen.
    pub(super) fn keep_slices(&self, ledger: &mut Ledger) {
        let Some(mut all) = ledger.book.new_slices() else { return };
        all.sort_by_key(|slice| (slice.owner, slice.bits));
        let mut text = String::new();
        for Slice { owner, bits, number } in all {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{owner} {bits} {number:x}");
        }
        if let Err(error) = keep(&self.config.state_dir().join(SLICES), text.as_bytes()) {
            // It follows from the secret again, unless somebody else comes first.
            tracing::error!(%error, "cannot keep the owners' slices");
        }
    }
}

/// Exactly what is written: a file that was cut off is none.
fn parse_secret(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| digits)
}

fn parse_slice(line: &str) -> Option<Slice> {
    let mut words = line.split(' ');
    let owner = words.next()?.parse().ok().and_then(Uid::new)?;
    let bits = words.next()?.parse().ok()?;
    let number = u128::from_str_radix(words.next()?, 16).ok()?;
    words.next().is_none().then_some(Slice { owner, bits, number })
}

/// Writes a file that a power failure leaves whole, or as it was.
fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside: PathBuf = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let kept = written.and_then(|()| fs::rename(&beside, path));
    if kept.is_err() {
        let _ = fs::remove_file(&beside);
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_secret_is_made_once_and_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let first = secret(dir.path(), || Ok(0xabc)).unwrap();
        let path = dir.path().join(SECRET);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(secret(dir.path(), || panic!("drawn again")).unwrap(), first);
        // Half a secret is none.
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..20]).unwrap();
        assert_eq!(secret(dir.path(), || Ok(0xdef)).unwrap(), Secret::new(0xdef));
        assert_eq!(secret(dir.path(), || panic!("drawn again")).unwrap(), Secret::new(0xdef));
    }

    #[test]
    fn a_secret_that_cannot_be_read_or_kept_is_one_for_this_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(SECRET)).unwrap();
        assert_eq!(secret(dir.path(), || Ok(1)).unwrap(), Secret::new(1));
        assert!(dir.path().join(SECRET).is_dir(), "it was replaced");
        let nowhere = dir.path().join("none");
        assert_eq!(secret(&nowhere, || Ok(2)).unwrap(), Secret::new(2));
    }

    #[test]
    fn what_makes_no_sense_among_slices_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(slices(dir.path()), []);
        let text = "1000 16 ab\n\n1001 16\nx 16 1\n1002 16 g\n1003 16 1 1\n1004 300 1\n1005 8 f\n";
        fs::write(dir.path().join(SLICES), text).unwrap();
        let uid = |n| Uid::new(n).unwrap();
        let good = [(1000, 16, 0xab), (1005, 8, 0xf)].map(|(owner, bits, number)| Slice {
            owner: uid(owner),
            bits,
            number,
        });
        assert_eq!(slices(dir.path()), good);
    }
}
