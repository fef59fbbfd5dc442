//! The shim's settings: `/etc/v6pod/shim.toml`, overridden by the environment.
//!
//! Guarantee: settings come out whatever goes in. What cannot be used, a single key or the whole
//! file, stays at its default, and the first such thing is named in one line: a container's start is
//! no place to insist. Nothing here is a security boundary: podman hands on the user's environment,
//! and what a user may do is the daemon's decision.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::flat_toml::{self, NotToml};

/// Where the settings are, unless `V6POD_SHIM_CONFIG` names another file.
const DEFAULT_FILE: &str = "/etc/v6pod/shim.toml";
/// Of that file, this much is read at most.
const FILE_LIMIT: u64 = 64 << 10;
/// What can be set there.
const KEYS: [&str; 4] = ["socket", "slirp4netns", "pasta", "on_error"];
/// The longest path that a unix socket can have: `sun_path` less its terminating zero.
const SOCKET_PATH_LIMIT: usize = 107;

/// What an operator or a user can choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The daemon's socket.
    pub(crate) socket: PathBuf,
    /// The real slirp4netns.
    pub(crate) slirp4netns: Program,
    /// The real pasta.
    pub(crate) pasta: Program,
    /// What becomes of a container for which there is no address.
    pub(crate) on_error: OnError,
}

/// Where a real program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// The first on `PATH` or in the usual directories that is not this one.
    Auto,
    /// Here.
    At(PathBuf),
}

/// What becomes of a container for which there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// It starts as it would without v6pod.
    Continue,
    /// It does not start.
    Fail,
}

/// A setting that could not be used, as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint(String);

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: v6pod_proto::DEFAULT_SOCKET.into(),
            slirp4netns: Program::Auto,
            pasta: Program::Auto,
            on_error: OnError::Continue,
        }
    }
}

impl Config {
    /// The settings of this process, and what was wrong with them first.
    pub(crate) fn load() -> (Self, Option<Complaint>) {
        let mut loading = Loading::default();
        let file = env::var_os("V6POD_SHIM_CONFIG").filter(|path| !path.is_empty());
        let file = file.as_deref().unwrap_or(OsStr::new(DEFAULT_FILE));
        loading.file(Path::new(file));
        loading.environment(|name| env::var_os(name));
        (loading.config, loading.complaint)
    }
}

/// What the text of a settings file means, for who looks after a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// What cannot be used of it first: the key, or the line where it is no TOML, and why.
    pub mistake: Option<Mistake>,
    /// Where v6podd is asked.
    pub socket: PathBuf,
    /// The programs that are not looked for, by their keys.
    pub programs: Vec<(&'static str, PathBuf)>,
}

impl Written {
    /// Reads it as the shim does.
    pub fn read(text: &str) -> Self {
        let mut loading = Loading::default();
        loading.text(text, &"");
        let Config { socket, slirp4netns, pasta, .. } = loading.config;
        let programs = [("slirp4netns", slirp4netns), ("pasta", pasta)];
        let programs = programs.into_iter().filter_map(|(key, program)| match program {
            Program::At(path) => Some((key, path)),
            Program::Auto => None,
        });
        Self { mistake: loading.mistake, socket, programs: programs.collect() }
    }
}

/// Where a settings file cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mistake {
    /// It is no TOML, and nothing of it is used.
    Line(usize, String),
    /// This key is not used.
    Key(String, &'static str),
    /// This key stands there more than once: the first counts.
    Twice(String),
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line, what) => write!(f, "line {line}: {what}"),
            Self::Key(key, what) => write!(f, "{key}: {what}"),
            Self::Twice(key) => write!(f, "{key}: stands there twice"),
        }
    }
}

/// Settings in the making: a file first, then the environment over it.
#[derive(Default)]
pub(crate) struct Loading {
    pub(crate) config: Config,
    pub(crate) complaint: Option<Complaint>,
    /// The first of the file.
    mistake: Option<Mistake>,
}

impl Loading {
    fn file(&mut self, path: &Path) {
        match read(path) {
            Ok(Some(text)) => self.text(&text, &path.display()),
            Ok(None) => {}
            Err(what) => self.complain(format!("{}: {what}", path.display())),
        }
    }

    pub(crate) fn text(&mut self, text: &str, file: &dyn fmt::Display) {
        let entries = match flat_toml::parse(text) {
            Ok(entries) => entries,
            Err(NotToml { line, what }) => {
                return self.mistaken(file, Mistake::Line(line, what));
            }
        };
        let mut seen: Vec<&str> = Vec::new();
        for entry in &entries {
            let key = entry.key.as_str();
            if seen.contains(&key) {
                self.mistaken(file, Mistake::Twice(key.to_owned()));
                continue;
            }
            let taken = match &entry.value {
                _ if !KEYS.contains(&key) => {
                    Err("no such key; there are socket, slirp4netns, pasta and on_error")
                }
                Some(text) => self.set(key, OsStr::new(text)),
                None => Err("must be a string"),
            };
            if let Err(what) = taken {
                self.mistaken(file, Mistake::Key(key.to_owned(), what));
            }
            seen.push(key);
        }
    }

    fn environment(&mut self, variable: impl Fn(&str) -> Option<OsString>) {
        for (name, key) in [
            ("V6POD_SOCKET", "socket"),
            ("V6POD_SLIRP4NETNS", "slirp4netns"),
            ("V6POD_PASTA", "pasta"),
            ("V6POD_ON_ERROR", "on_error"),
        ] {
            // Set to nothing is how a shell says "not set".
            let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
            if let Err(what) = self.set(key, &value) {
                self.complain(format!("{name}: {what}"));
            }
        }
    }

    fn set(&mut self, key: &str, value: &OsStr) -> Result<(), &'static str> {
        match key {
            "socket" => self.config.socket = socket(value)?,
            "slirp4netns" => self.config.slirp4netns = program(value)?,
            "pasta" => self.config.pasta = program(value)?,
            _ => self.config.on_error = on_error(value)?,
        }
        Ok(())
    }

    fn mistaken(&mut self, file: &dyn fmt::Display, mistake: Mistake) {
        self.complain(format!("{file}: {mistake}"));
        self.mistake.get_or_insert(mistake);
    }

    fn complain(&mut self, text: String) {
        self.complaint.get_or_insert(Complaint(text));
    }
}

fn socket(value: &OsStr) -> Result<PathBuf, &'static str> {
    if value.len() > SOCKET_PATH_LIMIT {
        return Err("a socket's path has at most 107 bytes");
    }
    absolute(value)
}

fn program(value: &OsStr) -> Result<Program, &'static str> {
    if value == "auto" {
        return Ok(Program::Auto);
    }
    absolute(value).map(Program::At).map_err(|_| "must be \"auto\" or an absolute path")
}

fn on_error(value: &OsStr) -> Result<OnError, &'static str> {
    match value.as_bytes() {
        b"continue" => Ok(OnError::Continue),
        b"fail" => Ok(OnError::Fail),
        _ => Err("must be \"continue\" or \"fail\""),
    }
}

fn absolute(value: &OsStr) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path") }
}

/// The file's text; `None` if there is no file, which is how most machines are.
fn read(path: &Path) -> Result<Option<String>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    let length = file.take(FILE_LIMIT + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if length as u64 > FILE_LIMIT {
        return Err("longer than 64 KiB".to_owned());
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../systemd/shim.toml");

    fn from_text(text: &str) -> (Config, Option<String>) {
        let mut loading = Loading::default();
        loading.text(text, &"shim.toml");
        (loading.config, loading.complaint.map(|c| c.to_string()))
    }

    fn from_environment(name: &str, value: &str) -> (Config, Option<String>) {
        let mut loading = Loading::default();
        loading.environment(|n| (n == name).then(|| value.into()));
        (loading.config, loading.complaint.map(|c| c.to_string()))
    }

    #[test]
    fn the_sample_file_names_every_key_with_its_default() {
        assert_eq!(from_text(SAMPLE), (Config::default(), None));
        let entries = flat_toml::parse(SAMPLE).unwrap();
        assert_eq!(entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), KEYS);
    }

    #[test]
    fn every_key_is_taken() {
        let text =
            "socket = '/run/b.sock'\nslirp4netns = '/opt/s'\npasta = '/opt/p'\non_error = 'fail'";
        let config = Config {
            socket: "/run/b.sock".into(),
            slirp4netns: Program::At("/opt/s".into()),
            pasta: Program::At("/opt/p".into()),
            on_error: OnError::Fail,
        };
        assert_eq!(from_text(text), (config, None));
        assert_eq!(from_text(""), (Config::default(), None));
    }

    #[test]
    fn what_cannot_be_used_is_named_and_stays_at_its_default() {
        let long = format!("socket = '/{}'", "x".repeat(107));
        for (text, named) in [
            ("sokcet = '/run/b.sock'", "sokcet"),
            ("pasta = 'pasta'", "pasta"),
            ("socket = 7", "socket"),
            ("socket = 'relative'", "socket"),
            ("socket = ''", "socket"),
            (long.as_str(), "socket"),
            ("slirp4netns = 'slirp4netns'", "slirp4netns"),
            ("on_error = 'Continue'", "on_error"),
            ("[on_error]\nx = 1", "on_error"),
            ("socket.x = '/a'", "socket"),
            ("socket = ['/a']", "socket"),
            ("[[socket]]", "socket"),
            ("\n\nsocket", "line 3"),
        ] {
            let (config, complaint) = from_text(text);
            assert_eq!(config, Config::default(), "{text}");
            let complaint = complaint.unwrap_or_else(|| panic!("{text}"));
            assert!(complaint.contains(named), "{text}: {complaint}");
            assert!(!complaint.contains('\n'), "{text}: {complaint}");
        }
    }

    #[test]
    fn one_bad_key_does_not_take_the_others_with_it() {
        let (config, complaint) = from_text("tpyo = 1\non_error = 'fail'\nsocket = 2");
        assert_eq!(config.on_error, OnError::Fail);
        assert!(complaint.unwrap().contains("tpyo"), "the first mistake is the one named");
    }

    #[test]
    fn a_key_that_stands_there_twice_counts_once() {
        let (config, complaint) = from_text("socket = '/a'\nsocket = '/b'");
        assert_eq!(config.socket, Path::new("/a"));
        assert!(complaint.unwrap().contains("socket"));
    }

    #[test]
    fn the_environment_comes_last() {
        let mut loading = Loading::default();
        loading.text("on_error = 'fail'\nsocket = '/file'", &"shim.toml");
        loading.environment(|name| (name == "V6POD_SOCKET").then(|| "/variable".into()));
        assert_eq!(loading.config.socket, Path::new("/variable"));
        assert_eq!(loading.config.on_error, OnError::Fail);

        assert_eq!(
            from_environment("V6POD_SLIRP4NETNS", "/x").0.slirp4netns,
            Program::At("/x".into())
        );
        assert_eq!(from_environment("V6POD_ON_ERROR", "fail").0.on_error, OnError::Fail);
        assert_eq!(from_environment("V6POD_ON_ERROR", ""), (Config::default(), None));
        let (config, complaint) = from_environment("V6POD_ON_ERROR", "no");
        assert_eq!(config, Config::default());
        assert!(complaint.unwrap().starts_with("V6POD_ON_ERROR"));
    }

    #[test]
    fn a_file_that_is_not_there_is_no_complaint_and_one_that_cannot_be_read_is() {
        let folder = tempfile::tempdir().unwrap();
        let complaint_of = |path: &Path| {
            let mut loading = Loading::default();
            loading.file(path);
            assert_eq!(loading.config, Config::default());
            loading.complaint.map(|c| c.to_string())
        };
        assert_eq!(complaint_of(&folder.path().join("none")), None);
        assert!(complaint_of(folder.path()).is_some());
        let file = folder.path().join("shim.toml");
        std::fs::write(&file, b"\xff\xfe").unwrap();
        assert!(complaint_of(&file).is_some());
        std::fs::write(&file, " ".repeat(64 * 1024 + 1)).unwrap();
        assert!(complaint_of(&file).unwrap().contains("64 KiB"));
    }
}
