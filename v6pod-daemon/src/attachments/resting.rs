//! Which addresses rest, over a restart too: `resting` in the run directory.
//!
//! Guarantees:
//! - A released address is noted before its record goes. So however often the daemon crashes, a new
//!   one neither forgets an attachment nor gives its address to another too soon.
//! - One line per release is appended, and the file written anew when most of its lines are stale: a
//!   release costs one short write, the file never more than some three times what rests.
//! - A line that was cut off or makes no sense is passed over, and harms no other.
//!
//! Stamps are CLOCK_BOOTTIME: nobody can set it, and neither it nor the file outlives a boot.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv6Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ipnet::Ipv6Net;
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use nix::time::{ClockId, clock_gettime};
use v6pod_proto::Uid;

use crate::core::subnet::Length;

/// More than a full quarantine's worth of releases can take; a larger file is not ours.
const MAX_SIZE: u64 = 64 * 1024 * 1024;

/// The file of fewer stale lines than these is left as it is.
const SLACK: usize = 1024;

/// An address that rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rested {
    /// Which; also a subnet as a whole.
    pub(super) net: Ipv6Net,
    /// For how long already.
    pub(super) age: Duration,
    /// Whose it was, if that is known.
    pub(super) owner: Option<Uid>,
}

/// The file.
#[derive(Debug)]
pub(super) struct Resting {
    path: PathBuf,
    lines: Mutex<usize>,
}

impl Resting {
    /// The file in this run directory, which need not be there yet, and what it says.
    pub(super) fn open(run_dir: &Path) -> (Self, Vec<Rested>) {
        let path = run_dir.join("resting");
        let text = read(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(%error, "cannot read which addresses rest; none does");
                // Whatever it is, it must not stand in the way of the next lines.
                let _ = fs::rename(&path, run_dir.join("rejected/resting"));
            }
            String::new()
        });
        let now = uptime();
        let lines = text.lines().filter(|line| !line.is_empty());
        let resting = lines.clone().filter_map(|line| parse(line, now)).collect();
        (Self { path, lines: Mutex::new(lines.count()) }, resting)
    }

    /// Notes that this owner's address, or subnet, has been released now.
    pub(super) fn note(&self, net: Ipv6Net, owner: Uid) -> io::Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = open(OpenOptions::new().append(true).create(true).mode(0o600), &self.path)?;
        *lines += 1;
        file.write_all(line(net, uptime(), Some(owner)).as_bytes())
    }

    /// Whether the file is due to be written anew, if that many addresses rest.
    pub(super) fn is_stale(&self, resting: usize) -> bool {
        let lines = *self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines > SLACK + 2 * resting
    }

    /// Writes the file anew: these addresses rest. Those of which none is among them may be drawn again.
    pub(super) fn rewrite(&self, resting: impl Iterator<Item = Rested>) -> io::Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, mut text, mut count) = (uptime(), String::new(), 0);
        for Rested { net, age, owner } in resting {
            text.push_str(&line(net, now.saturating_sub(age), owner));
            count += 1;
        }
        let beside = self.path.with_extension("new");
        let written =
            open(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600), &beside)
                .and_then(|mut file| file.write_all(text.as_bytes()))
                .and_then(|()| fs::rename(&beside, &self.path));
        if written.is_err() {
            // A full /run must not fill further; the old file still says all that is true.
            let _ = fs::remove_file(&beside);
        }
        written?;
        *lines = count;
        Ok(())
    }
}

/// Begins with a line's end: what an earlier crash or a full disk cut off spoils this line no more.
/// Ends with a `;`: a line that was cut off itself is no line.
fn line(net: Ipv6Net, stamp: Duration, owner: Option<Uid>) -> String {
    let mut line = String::with_capacity(64);
    // Writing to a string cannot fail.
    let _ = match net.prefix_len() {
        128 => write!(line, "\n{} {}", net.addr(), stamp.as_millis()),
        _ => write!(line, "\n{net} {}", stamp.as_millis()),
    };
    if let Some(owner) = owner {
        let _ = write!(line, " {owner}");
    }
    line.push(';');
    line
}

/// Without an owner, as it was written before that was noted, it rests for all.
fn parse(line: &str, now: Duration) -> Option<Rested> {
    let mut words = line.strip_suffix(';')?.split(' ');
    let net = net(words.next()?)?;
    let stamp = Duration::from_millis(words.next()?.parse().ok()?);
    let owner = match words.next() {
        None => None,
        Some(owner) => Some(Uid::new(owner.parse().ok()?)?),
    };
    let age = now.saturating_sub(stamp);
    words.next().is_none().then_some(Rested { net, age, owner })
}

/// An address, or a subnet as there are.
fn net(word: &str) -> Option<Ipv6Net> {
    if let Ok(address) = word.parse::<Ipv6Addr>() {
        return Some(address.into());
    }
    let net: Ipv6Net = word.parse().ok()?;
    (Length::new(net.prefix_len()).is_some() && net.trunc() == net).then_some(net)
}

fn read(path: &Path) -> io::Result<String> {
    let file = open(OpenOptions::new().read(true), path)?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Only a file: no link is followed, no pipe waited for.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file"))
    }
}

/// Since boot. The clock is there on every kernel that this runs on.
pub(super) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n)
    }

    fn addresses(dir: &Path) -> Vec<Ipv6Addr> {
        Resting::open(dir).1.into_iter().map(|rested| rested.net.addr()).collect()
    }

    const ALICE: Uid = Uid::ROOT;

    #[test]
    fn what_was_noted_rests_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (file, before) = Resting::open(dir.path());
        assert_eq!(before, []);
        file.note(address(1).into(), ALICE).unwrap();
        file.note(address(2).into(), ALICE).unwrap();
        let (_, after) = Resting::open(dir.path());
        assert_eq!(addresses(dir.path()), [address(1), address(2)]);
        assert!(after.iter().all(|rested| rested.age < Duration::from_secs(60)), "{after:?}");
        assert!(after.iter().all(|rested| rested.owner == Some(ALICE)), "{after:?}");
        // As it was written before owners were.
        fs::write(dir.path().join("resting"), "\n2001:db8::5 1;").unwrap();
        let (_, before) = Resting::open(dir.path());
        assert_eq!((before[0].net, before[0].owner), (address(5).into(), None));
    }

    #[test]
    fn a_subnet_rests_as_a_whole_and_what_is_none_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = Resting::open(dir.path());
        let net: Ipv6Net = "2001:db8::5:0:0/96".parse().unwrap();
        file.note(net, ALICE).unwrap();
        let path = dir.path().join("resting");
        let good = fs::read_to_string(&path).unwrap();
        let wrong = "\n2001:db8::5:0:1/96 1;\n2001:db8::/97 1;\n2001:db8::/128 1;";
        fs::write(&path, format!("{wrong}{good}")).unwrap();
        let (_, after) = Resting::open(dir.path());
        let [rested] = after[..] else { panic!("{after:?}") };
        assert_eq!((rested.net, rested.owner), (net, Some(ALICE)));
    }

    #[test]
    fn what_is_cut_off_spoils_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = Resting::open(dir.path());
        file.note(address(1).into(), ALICE).unwrap();
        let path = dir.path().join("resting");
        let whole = fs::read(&path).unwrap();
        for cut in 1..whole.len() {
            fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
            file.note(address(2).into(), ALICE).unwrap();
            assert_eq!(addresses(dir.path()), [address(1), address(2)], "cut at {cut}");
        }
        fs::write(&path, b"\xff\0;\n1 2;\n::g 5;\n").unwrap();
        assert_eq!(addresses(dir.path()), [] as [Ipv6Addr; 0]);
    }

    #[test]
    fn rewriting_keeps_ages_and_forgets_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = Resting::open(dir.path());
        (0..=1024).for_each(|n| file.note(address(n).into(), ALICE).unwrap());
        assert!(file.is_stale(0) && !file.is_stale(1));
        let age = Duration::from_millis(3);
        let net = address(7).into();
        file.rewrite([Rested { net, age, owner: None }].into_iter()).unwrap();
        assert!(!file.is_stale(0));
        let (_, after) = Resting::open(dir.path());
        assert_eq!(after.len(), 1);
        assert!(after[0].net == net && after[0].age >= age, "{after:?}");
    }

    #[test]
    fn what_is_no_file_is_neither_followed_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rejected")).unwrap();
        let path = dir.path().join("resting");
        fs::write(dir.path().join("elsewhere"), "\n2001:db8::5 1;").unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert_eq!(addresses(dir.path()), [] as [Ipv6Addr; 0]);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (file, before) = Resting::open(dir.path());
        assert_eq!(before, []);
        file.note(address(3).into(), ALICE).unwrap();
        assert_eq!(addresses(dir.path()), [address(3)]);
    }
}
