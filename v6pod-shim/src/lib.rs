//! What podman and OCI runtimes run of v6pod, as the user whose container it is: small programs.
//!
//! * `v6pod-shim` stands in for a network program of podman's, slirp4netns or pasta. It asks v6podd
//!   for an IPv6 address for the container's network namespace and then *becomes* the real program by
//!   exec: nothing of it stays in memory, and arguments, descriptors, environment, signals, PID and
//!   exit code are the real program's own.
//! * `v6pod-hook` is an OCI hook: it tells v6podd which container is about to run in a namespace, and
//!   what that asks for.
//! * `v6pod-wishes` is run by that: it reads from podman's own files what a container's labels and
//!   published ports ask for.
//! * `v6pod-cni` is a CNI plugin ([`cni()`]), `v6pod-netavark` one of netavark's ([`netavark()`]).
//!
//! Blocking, no threads, no runtime: they are loaded anew at each container start, and small is quick.
//! That is also why they are several.
//!
//! Guarantees of the first two:
//! * A call that is not a container's start is handed on untouched, without a word to the daemon.
//! * No start waits for the daemon longer than five seconds.
//! * Unless the operator or the user chose otherwise, a container that gets no address starts as it
//!   would without v6pod, and the user is told in one line.
#![forbid(unsafe_code)]

mod asking;
mod cni;
mod config;
mod daemon;
mod flat_toml;
mod identity;
mod netavark;
mod network;
mod oci_hook;
mod pasta;
mod real;
mod resolv_conf;
mod say;
mod slirp4netns;
mod stand_in;
mod wishes;

pub use config::{Mistake, Written};

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// The exit status for a call that names no personality: BSD's `EX_USAGE`.
const USAGE: u8 = 64;

/// The program `v6pod-cni`.
pub fn cni() -> ExitCode {
    cni::run()
}

/// The program `v6pod-netavark`.
pub fn netavark() -> ExitCode {
    netavark::run()
}

/// The program `v6pod-hook`.
pub fn hook() -> ExitCode {
    oci_hook::run()
}

/// The program `v6pod-shim`.
pub fn shim() -> ExitCode {
    let mut words: Vec<OsString> = env::args_os().collect();
    match Personality::take(&mut words) {
        Some(Personality::Slirp4netns) => slirp4netns::run(&words),
        Some(Personality::Pasta) => pasta::run(&words),
        None => {
            say::on_stderr("v6pod-shim is run as slirp4netns or pasta, by a link of that name");
            ExitCode::from(USAGE)
        }
    }
}

/// The program `v6pod-wishes`.
pub fn wishes() -> ExitCode {
    wishes::run()
}

/// The programs that `v6pod-shim` can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Personality {
    Slirp4netns,
    Pasta,
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
        match Path::new(name).file_name()?.to_str()? {
            "slirp4netns" => Some(Self::Slirp4netns),
            "pasta" => Some(Self::Pasta),
            _ => None,
        }
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
        use Personality::{Pasta, Slirp4netns};
        for (line, is, left) in [
            ("slirp4netns --help", Slirp4netns, "slirp4netns --help"),
            (
                "/usr/libexec/v6pod/slirp4netns 1 tap0",
                Slirp4netns,
                "/usr/libexec/v6pod/slirp4netns 1 tap0",
            ),
            ("v6pod-shim slirp4netns --help", Slirp4netns, "slirp4netns --help"),
            ("/usr/libexec/v6pod/pasta -4", Pasta, "/usr/libexec/v6pod/pasta -4"),
            // A name that says it all is not looked behind.
            ("slirp4netns pasta", Slirp4netns, "slirp4netns pasta"),
        ] {
            let mut line = words(line);
            assert_eq!(Personality::take(&mut line), Some(is));
            assert_eq!(line, words(left));
        }
    }

    #[test]
    fn any_other_name_is_none_of_ours() {
        for line in ["v6pod-shim", "v6pod-shim --help", "passt slirp4netns2", "", "/"] {
            assert_eq!(Personality::take(&mut words(line)), None, "{line:?}");
        }
        assert_eq!(Personality::take(&mut Vec::new()), None);
    }
}
