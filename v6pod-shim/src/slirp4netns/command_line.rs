//! slirp4netns's command line, read as slirp4netns reads it: by glibc's `getopt_long`.
//!
//! Guarantees: pure; what is not understood to the last word is not a [`CommandLine`]; and
//! [`CommandLine::without_ipv6`] is the given line without its IPv6 options and nothing else
//! changed, neither in order nor in bytes.
//!
//! The options are those of slirp4netns 1.3 (`main.c`, `parse_args`), of which every version since
//! 0.3 has a part. An older version may take an abbreviation that is ambiguous here (`--d` before
//! 1.1.0); podman abbreviates nothing, and such a line is handed on as not understood.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::slice;

use rustix::process::Pid;

/// A command line that makes slirp4netns serve a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The descriptor whose end is slirp4netns's end. Podman gives one for containers alone.
    pub(crate) exit_fd: Option<i32>,
    /// The descriptor on which slirp4netns says that it is ready.
    pub(crate) ready_fd: Option<i32>,
    /// The network namespace.
    pub(crate) target: Target,
    /// The arguments without those that switch slirp4netns's own IPv6 on.
    pub(crate) without_ipv6: Vec<OsString>,
}

/// Where a network namespace is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// It is that of this process.
    Process(Pid),
    /// It is mounted here.
    Mounted(PathBuf),
}

impl CommandLine {
    /// Reads the arguments, program name excluded. `posixly_correct` says whether the environment
    /// variable of that name is set: then `getopt_long` takes no option after the first operand.
    ///
    /// `None` for all else: `--help`, `--version`, a target that is no namespace, a line that
    /// slirp4netns would refuse.
    pub(crate) fn parse(arguments: &[OsString], posixly_correct: bool) -> Option<Self> {
        let mut reader = Reader {
            words: arguments.iter(),
            kept: Vec::with_capacity(arguments.len()),
            operands: Vec::new(),
            wanted: Wanted::default(),
        };
        reader.read(posixly_correct)?;
        let Reader { kept, operands, wanted, .. } = reader;

        if wanted.only_talk || wanted.target_type.is_some_and(|t| t != "netns") {
            return None;
        }
        // The second operand is the tap device's name; more are warned of and ignored.
        let [target, _tap, ..] = operands.as_slice() else { return None };
        let target = match wanted.netns_type.map(OsStr::as_bytes) {
            None | Some(b"pid") => Target::Process(Pid::from_raw(decimal(target)?)?),
            Some(b"path") => Target::Mounted(PathBuf::from(target)),
            // "tapfd", and words that slirp4netns happens to take for "path".
            Some(_) => return None,
        };
        Some(Self {
            exit_fd: wanted.exit_fd,
            ready_fd: wanted.ready_fd,
            target,
            without_ipv6: kept,
        })
    }
}

/// What an option means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    ExitFd,
    ReadyFd,
    NetnsType,
    TargetType,
    /// Part of slirp4netns's own IPv6: left out for a container that has an address of ours.
    Ipv6,
    /// Prints something and ends.
    Talk,
    /// Handed on.
    Other,
}

/// Whether an option has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
}

struct LongOption {
    name: &'static str,
    takes: Takes,
    meaning: Meaning,
}

const fn long(name: &'static str, takes: Takes, meaning: Meaning) -> LongOption {
    LongOption { name, takes, meaning }
}

const LONG: [LongOption; 21] = [
    long("configure", Takes::Nothing, Meaning::Other),
    long("exit-fd", Takes::Value, Meaning::ExitFd),
    long("ready-fd", Takes::Value, Meaning::ReadyFd),
    long("mtu", Takes::Value, Meaning::Other),
    long("cidr", Takes::Value, Meaning::Other),
    long("disable-host-loopback", Takes::Nothing, Meaning::Other),
    long("no-host-loopback", Takes::Nothing, Meaning::Other),
    long("netns-type", Takes::Value, Meaning::NetnsType),
    long("userns-path", Takes::Value, Meaning::Other),
    long("api-socket", Takes::Value, Meaning::Other),
    long("enable-ipv6", Takes::Nothing, Meaning::Ipv6),
    long("enable-sandbox", Takes::Nothing, Meaning::Other),
    long("create-sandbox", Takes::Nothing, Meaning::Other),
    long("enable-seccomp", Takes::Nothing, Meaning::Other),
    long("help", Takes::Nothing, Meaning::Talk),
    long("version", Takes::Nothing, Meaning::Talk),
    long("outbound-addr", Takes::Value, Meaning::Other),
    long("outbound-addr6", Takes::Value, Meaning::Ipv6),
    long("disable-dns", Takes::Nothing, Meaning::Other),
    long("macaddress", Takes::Value, Meaning::Other),
    long("target-type", Takes::Value, Meaning::TargetType),
];

/// The option that a long name means: one that matches exactly, else the only one that begins so.
fn long_option(name: &[u8]) -> Option<&'static LongOption> {
    if let Some(exact) = LONG.iter().find(|o| o.name.as_bytes() == name) {
        return Some(exact);
    }
    let mut candidates = LONG.iter().filter(|o| o.name.as_bytes().starts_with(name));
    let first = candidates.next()?;
    candidates.next().is_none().then_some(first)
}

/// The option that a letter means: `ce:r:m:a:6hv` in slirp4netns's own notation.
const fn short_option(letter: u8) -> Option<(Takes, Meaning)> {
    Some(match letter {
        b'c' => (Takes::Nothing, Meaning::Other),
        b'e' => (Takes::Value, Meaning::ExitFd),
        b'r' => (Takes::Value, Meaning::ReadyFd),
        b'm' | b'a' => (Takes::Value, Meaning::Other),
        b'6' => (Takes::Nothing, Meaning::Ipv6),
        b'h' | b'v' => (Takes::Nothing, Meaning::Talk),
        _ => return None,
    })
}

/// What the options say, the last of each kind.
#[derive(Default)]
struct Wanted<'a> {
    exit_fd: Option<i32>,
    ready_fd: Option<i32>,
    netns_type: Option<&'a OsStr>,
    target_type: Option<&'a OsStr>,
    only_talk: bool,
}

impl<'a> Wanted<'a> {
    /// Takes an option in; `None` if its value is not one that slirp4netns takes.
    fn option(&mut self, meaning: Meaning, value: &'a OsStr) -> Option<()> {
        match meaning {
            Meaning::ExitFd => self.exit_fd = Some(decimal(value)?),
            Meaning::ReadyFd => self.ready_fd = Some(decimal(value)?),
            Meaning::NetnsType => self.netns_type = Some(value),
            Meaning::TargetType => self.target_type = Some(value),
            Meaning::Talk => self.only_talk = true,
            Meaning::Ipv6 | Meaning::Other => {}
        }
        Some(())
    }
}

/// Walks the words once, as `getopt_long` would. `None` anywhere: it would have stopped there.
struct Reader<'a> {
    words: slice::Iter<'a, OsString>,
    kept: Vec<OsString>,
    operands: Vec<&'a OsString>,
    wanted: Wanted<'a>,
}

impl<'a> Reader<'a> {
    fn read(&mut self, posixly_correct: bool) -> Option<()> {
        while let Some(word) = self.words.next() {
            match word.as_bytes() {
                b"--" => {
                    self.kept.push(word.clone());
                    self.rest_are_operands();
                }
                [b'-', b'-', name @ ..] => self.long(word, name)?,
                [b'-', letters @ ..] if !letters.is_empty() => self.cluster(word, letters)?,
                _ => {
                    self.operands.push(word);
                    self.kept.push(word.clone());
                    if posixly_correct {
                        self.rest_are_operands();
                    }
                }
            }
        }
        Some(())
    }

    fn rest_are_operands(&mut self) {
        for word in self.words.by_ref() {
            self.operands.push(word);
            self.kept.push(word.clone());
        }
    }

    /// `--name`, `--name=value`, `--name value`.
    fn long(&mut self, word: &'a OsString, text: &'a [u8]) -> Option<()> {
        let equals = text.iter().position(|&b| b == b'=');
        let option = long_option(equals.map_or(text, |at| &text[..at]))?;
        let (value, separate) = match (option.takes, equals) {
            (Takes::Nothing, None) => (OsStr::new(""), None),
            (Takes::Nothing, Some(_)) => return None,
            (Takes::Value, Some(at)) => (OsStr::from_bytes(&text[at + 1..]), None),
            (Takes::Value, None) => {
                let value = self.words.next()?;
                (value.as_os_str(), Some(value))
            }
        };
        self.wanted.option(option.meaning, value)?;
        if option.meaning != Meaning::Ipv6 {
            self.kept.push(word.clone());
            self.kept.extend(separate.cloned());
        }
        Some(())
    }

    /// One or more letters behind one dash, the last of them perhaps with a value, in the same
    /// word or the next: `-c`, `-c6`, `-ce3`, `-6e 3`.
    fn cluster(&mut self, word: &'a OsString, letters: &'a [u8]) -> Option<()> {
        let mut left = vec![b'-'];
        let mut separate = None;
        for (at, &letter) in letters.iter().enumerate() {
            let (takes, meaning) = short_option(letter)?;
            if meaning != Meaning::Ipv6 {
                left.push(letter);
            }
            if takes == Takes::Nothing {
                self.wanted.option(meaning, OsStr::new(""))?;
                continue;
            }
            let joined = &letters[at + 1..];
            if joined.is_empty() {
                let value = self.words.next()?;
                separate = Some(value);
                self.wanted.option(meaning, value)?;
            } else {
                left.extend_from_slice(joined);
                self.wanted.option(meaning, OsStr::from_bytes(joined))?;
            }
            break;
        }
        if left.len() == word.len() {
            self.kept.push(word.clone());
        } else if left.len() > 1 {
            self.kept.push(OsString::from_vec(left));
        }
        self.kept.extend(separate.cloned());
        Some(())
    }
}

/// A number without sign, space or anything else that `strtol` would let pass.
fn decimal(text: &OsStr) -> Option<i32> {
    let text = text.to_str()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
#[path = "command_line_tests.rs"]
mod tests;
