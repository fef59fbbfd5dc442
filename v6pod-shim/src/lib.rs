//! The programs that container engines run, as v6pod has them: v6pod-shim and v6pod-cni.
//!
//! v6pod-shim is what podman runs in place of a network program of its own.
//!
//! It asks v6podd for an IPv6 address for the container's network namespace and then *becomes* the
//! real program by exec: nothing of it stays in memory, and arguments, descriptors, environment,
//! signals, PID and exit code are the real program's own. Blocking, no threads, no runtime: it is
//! loaded anew at each container start, and small is quick.
//!
//! v6pod-cni is a CNI plugin ([`cni`]): a program of its own, so that the shim stays small.
//!
//! Guarantees of the shim:
//! * A call that is not a container's start is handed on untouched, without a word to the daemon.
//! * No start waits for the daemon longer than [`daemon::TOTAL`].
//! * Unless the operator or the user chose otherwise, a container that gets no address starts as it
//!   would without v6pod, and the user is told in one line.
#![forbid(unsafe_code)]

mod cni;
mod config;
mod daemon;
mod flat_toml;
mod identity;
mod real;
mod say;
mod slirp4netns;

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// The exit status for a call that names no personality: BSD's `EX_USAGE`.
const USAGE: u8 = 64;

/// v6pod-cni.
pub fn cni() -> ExitCode {
    cni::run()
}

/// v6pod-shim.
pub fn shim() -> ExitCode {
    let mut words: Vec<OsString> = env::args_os().collect();
    match Personality::take(&mut words) {
        Some(Personality::Slirp4netns) => slirp4netns::run(&words),
        None => {
            say::on_stderr("v6pod-shim is run as slirp4netns, by a link of that name");
            ExitCode::from(USAGE)
        }
    }
}

/// The programs that this one can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Personality {
    Slirp4netns,
}

impl Personality {
    /// The personality by the name of the program, else by its first argument, which is then taken
    /// away so that `words` is the command line of that personality, name first.
    fn take(words: &mut Vec<OsString>) -> Option<Self> {
        if let Some(personality) = words.first().and_then(|name| Self::named(name)) {
            return Some(personality);
        }
        let personality = words.get(1).and_then(|word| Self::named(word))?;
        words.remove(0);
        Some(personality)
    }

    fn named(name: &OsStr) -> Option<Self> {
        (Path::new(name).file_name()? == "slirp4netns").then_some(Self::Slirp4netns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_name_decides_and_the_first_word_where_the_name_says_nothing() {
        for (line, left) in [
            ("slirp4netns --help", "slirp4netns --help"),
            (
                "/usr/libexec/v6pod/slirp4netns -c 1 tap0",
                "/usr/libexec/v6pod/slirp4netns -c 1 tap0",
            ),
            ("v6pod-shim slirp4netns --help", "slirp4netns --help"),
            // A name that says it all is not looked behind.
            ("slirp4netns slirp4netns", "slirp4netns slirp4netns"),
        ] {
            let mut line = words(line);
            assert_eq!(Personality::take(&mut line), Some(Personality::Slirp4netns));
            assert_eq!(line, words(left));
        }
    }

    #[test]
    fn any_other_name_is_none_of_ours() {
        for line in ["v6pod-shim", "v6pod-shim --help", "pasta slirp4netns2", "", "/"] {
            assert_eq!(Personality::take(&mut words(line)), None, "{line:?}");
        }
        assert_eq!(Personality::take(&mut Vec::new()), None);
    }
}
