//! Which container a call is for.
//!
//! Podman says it nowhere outright. Since 1.6.3 its name for slirp4netns's log bears the
//! container's id, and that log is descriptor 1; before, slirp4netns was given a process that conmon
//! had started, and conmon's arguments bear the id. Nothing here decides anything on its own: the
//! daemon takes an id for a claim, worth something among the caller's own containers alone.
//!
//! Podman itself must not be asked: it holds the container's lock until this program's successor is
//! ready, and would wait for itself.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::Pid;
use v6pod_proto::{ContainerId, storage};

/// The container through which podman 3.0 and 3.1 serve all rootless bridge networks. It is called
/// like any other container, and is none.
pub(crate) const ROOTLESS_CNI_INFRA: &str = "rootless-cni-infra";

/// Of a list of containers, this much is read at most: over ten thousand of them.
const LIST_LIMIT: u64 = 16 << 20;
/// Of a file in /proc, this much is read at most. A conmon's command line has a few kilobytes.
const PROC_LIMIT: u64 = 64 << 10;

/// What descriptor 1 is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stdout {
    /// The log that podman opens for this container's slirp4netns.
    Container(ContainerId),
    /// The log of a slirp4netns that serves no single container: a rootless bridge, a build.
    NoContainer,
    /// Anything else, as under podman before 1.6.3 or when somebody runs slirp4netns by hand.
    NoLog,
}

impl Stdout {
    /// Descriptor 1 of this process.
    pub(crate) fn of_self() -> Self {
        rustix::fs::readlink("/proc/self/fd/1", Vec::new())
            .map_or(Self::NoLog, |link| Self::named(link.as_bytes()))
    }

    /// A descriptor by the text of its link in /proc. Only the file's name is podman's promise: the
    /// directory is a setting, and the file has been removed by now.
    fn named(link: &[u8]) -> Self {
        let name = link.rsplit(|&b| b == b'/').next().unwrap_or(link);
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        let Some(whose) =
            name.strip_prefix(b"slirp4netns-").and_then(|rest| rest.strip_suffix(b".log"))
        else {
            return Self::NoLog;
        };
        str::from_utf8(whose)
            .ok()
            .and_then(|text| text.parse().ok())
            .map_or(Self::NoContainer, Self::Container)
    }
}

/// Whether this process is in a user namespace other than the machine's own. Uid 0 says nothing:
/// podman's users are uid 0 in theirs.
pub(crate) fn is_rootless() -> bool {
    // Unreadable: no /proc, no namespaces to speak of.
    read_some(Path::new("/proc/self/uid_map"), PROC_LIMIT).is_ok_and(|map| !is_identity(&map))
}

/// This process's uid as it is outside its user namespace, where the daemon sees it.
pub(crate) fn outer_uid() -> u32 {
    let uid = rustix::process::geteuid().as_raw();
    let map = read_some(Path::new("/proc/self/uid_map"), PROC_LIMIT).unwrap_or_default();
    outside(&map, uid).unwrap_or(uid)
}

/// Lines of three numbers: the first uid inside, the first outside, how many (user_namespaces(7)).
fn outside(uid_map: &[u8], uid: u32) -> Option<u32> {
    str::from_utf8(uid_map).ok()?.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map_while(|word| word.parse::<u32>().ok());
        let (inside, outside, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let nth = uid.checked_sub(inside).filter(|nth| *nth < count)?;
        outside.checked_add(nth)
    })
}

fn is_identity(uid_map: &[u8]) -> bool {
    let mut words = uid_map.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.by_ref().take(3).eq([&b"0"[..], b"0", b"4294967295"]) && words.next().is_none()
}

/// The container whose conmon started this process.
pub(crate) fn by_conmon_of(pid: Pid) -> Option<ContainerId> {
    let proc = |pid: i32, file: &str| {
        read_some(Path::new(&format!("/proc/{pid}/{file}")), PROC_LIMIT).ok()
    };
    let parent = parent_in_stat(&proc(pid.as_raw_nonzero().get(), "stat")?)?;
    (proc(parent, "comm")? == b"conmon\n").then_some(())?;
    id_in_conmon_arguments(&proc(parent, "cmdline")?)
}

/// The fourth field of /proc/PID/stat. The second is the process's own choice and may contain spaces
/// and parentheses: what counts is the last of these (proc_pid_stat(5)).
fn parent_in_stat(stat: &[u8]) -> Option<i32> {
    let text = str::from_utf8(&stat[stat.iter().rposition(|&b| b == b')')? + 1..]).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The value of conmon's first `-c`. Podman puts it before everything that a user had a say in.
fn id_in_conmon_arguments(cmdline: &[u8]) -> Option<ContainerId> {
    let mut words = cmdline.split(|&b| b == 0).skip(1);
    words.find(|&word| word == b"-c" || word == b"--cid")?;
    str::from_utf8(words.next()?).ok()?.parse().ok()
}

/// The container's name by the lists that podman keeps in the user's storage, if it is there. No
/// failure matters: the name is for people, and the attachment does without.
pub(crate) fn name_of(id: &ContainerId) -> Option<String> {
    let root = graph_root(env::var_os("XDG_DATA_HOME").as_deref(), env::var_os("HOME").as_deref())?;
    name_under(&root, id)
}

/// Where rootless podman keeps its storage unless a storage.conf or `--root` says otherwise.
fn graph_root(data_home: Option<&OsStr>, home: Option<&OsStr>) -> Option<PathBuf> {
    let absolute = |path: &OsStr| Some(PathBuf::from(path)).filter(|p| p.is_absolute());
    let data = data_home
        .and_then(absolute)
        .or_else(|| Some(home.and_then(absolute)?.join(".local/share")))?;
    Some(data.join("containers/storage"))
}

/// Looks into the list of each storage driver: which one is in use stands in yet another file.
fn name_under(root: &Path, id: &ContainerId) -> Option<String> {
    for entry in root.read_dir().ok()?.filter_map(Result::ok) {
        if !entry.file_name().as_bytes().ends_with(b"-containers") {
            continue;
        }
        for file in storage::FILES {
            let list = read_some(&entry.path().join(file), LIST_LIMIT).ok();
            if let Some(name) = list.and_then(|list| storage::name_in(&list, id)) {
                return Some(name);
            }
        }
    }
    None
}

/// The whole of a file of at most `limit` bytes. Never waits for the other end of a pipe.
fn read_some(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn id() -> ContainerId {
        ID.parse().unwrap()
    }

    #[test]
    fn a_uid_is_found_in_the_map() {
        let map = b"         0       1000          1\n         1     100000      65536\n";
        assert_eq!(
            [0, 1, 65_536].map(|uid| outside(map, uid)),
            [Some(1000), Some(100_000), Some(165_535)]
        );
        assert_eq!(outside(map, 65_537), None);
        assert_eq!(outside(b"0 0 4294967295\n", 7), Some(7));
        assert_eq!(outside(b"rubbish", 7), None);
    }

    #[test]
    fn the_logs_name_tells_containers_from_the_rest() {
        for link in [
            format!("/run/user/1000/libpod/tmp/slirp4netns-{ID}.log (deleted)"),
            format!("/elsewhere/slirp4netns-{ID}.log"),
        ] {
            assert_eq!(Stdout::named(link.as_bytes()), Stdout::Container(id()), "{link}");
        }
        for link in [
            "/run/user/1000/libpod/tmp/slirp4netns-rootless-netns.log (deleted)",
            "/run/user/1000/libpod/tmp/slirp4netns-rootless-cni.log",
            "/tmp/slirp4netns-buildah-buildah3141592.log (deleted)",
            &format!("/x/slirp4netns-{}.log (deleted)", &ID[1..]),
            &format!("/x/slirp4netns-{}.log", ID.to_uppercase()),
        ] {
            assert_eq!(Stdout::named(link.as_bytes()), Stdout::NoContainer, "{link}");
        }
        for link in [
            "/dev/null",
            "pipe:[4711]",
            "",
            &format!("/x/slirp4netns-{ID}.log.bak"),
            &format!("/x/my-slirp4netns-{ID}.log"),
            &format!("/slirp4netns-{ID}.log/x"),
        ] {
            assert_eq!(Stdout::named(link.as_bytes()), Stdout::NoLog, "{link}");
        }
        assert_eq!(Stdout::named(b"/x/slirp4netns-\xff.log"), Stdout::NoContainer);
    }

    #[test]
    fn only_the_whole_range_onto_itself_is_the_machines_own_namespace() {
        assert!(is_identity(b"         0          0 4294967295\n"));
        for map in [
            &b"         0       1000          1\n         1     100000      65536\n"[..],
            b"         0          0          1\n",
            b"         0          0 4294967294\n",
            b"         0          0 4294967295\n         1          1          1\n",
            b"",
        ] {
            assert!(!is_identity(map), "{}", String::from_utf8_lossy(map));
        }
    }

    #[test]
    fn a_process_may_call_itself_what_it_likes() {
        assert_eq!(parent_in_stat(b"7 (sh) S 6 5 4 0"), Some(6));
        assert_eq!(parent_in_stat(b"7 (a) S 1 (b) R) S 6 5 4 0"), Some(6));
        assert_eq!(parent_in_stat(b"7 (\xff) S 6 5 4 0"), Some(6));
        assert_eq!(parent_in_stat(b"7 sh S 6"), None);
        assert_eq!(parent_in_stat(b"7 (sh)"), None);
    }

    #[test]
    fn conmons_first_c_is_the_container() {
        let line = |words: &[&str]| words.join("\0").into_bytes();
        let other = "f".repeat(64);
        for words in [
            // podman 1.1
            &["/usr/libexec/podman/conmon", "-s", "-c", ID, "-u", &other, "-r", "/usr/bin/runc"][..],
            // podman 4.3
            &["/usr/bin/conmon", "--api-version", "1", "-c", ID, "-u", ID, "-r", "/usr/bin/crun"],
            &["conmon", "-c", ID, "--exit-command-arg", "-c", &other],
        ] {
            assert_eq!(id_in_conmon_arguments(&line(words)), Some(id()), "{words:?}");
        }
        for words in [&["conmon"][..], &["conmon", "-c"], &["conmon", "-c", "x", "-c", ID], &["-c"]]
        {
            assert_eq!(id_in_conmon_arguments(&line(words)), None, "{words:?}");
        }
    }

    #[test]
    fn storage_is_where_the_user_keeps_data() {
        let root = |data: Option<&str>, home: Option<&str>| {
            graph_root(data.map(OsStr::new), home.map(OsStr::new))
        };
        assert_eq!(root(Some("/d"), Some("/h")), Some("/d/containers/storage".into()));
        for data in [None, Some(""), Some("relative")] {
            let usual = Some(PathBuf::from("/h/.local/share/containers/storage"));
            assert_eq!(root(data, Some("/h")), usual, "{data:?}");
        }
        assert_eq!(root(None, None), None);
        assert_eq!(root(None, Some("h")), None);
    }

    #[test]
    fn the_name_is_found_under_any_driver_and_in_either_list() {
        for (driver, file) in [
            ("vfs-containers", "containers.json"),
            ("overlay-containers", "volatile-containers.json"),
        ] {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(name_under(root.path(), &id()), None);
            for folder in ["aufs-containers", "overlay-layers", driver] {
                fs::create_dir(root.path().join(folder)).unwrap();
            }
            fs::write(root.path().join("aufs-containers/containers.json"), "not JSON").unwrap();
            let list = format!(r#"[{{"id":"{ID}","names":["web"]}}]"#);
            fs::write(root.path().join("overlay-layers/containers.json"), &list).unwrap();
            assert_eq!(name_under(root.path(), &id()), None);
            fs::write(root.path().join(driver).join(file), &list).unwrap();
            assert_eq!(name_under(root.path(), &id()).as_deref(), Some("web"));
        }
    }

    #[test]
    fn a_list_that_is_a_pipe_or_too_long_is_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("containers.json");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(read_some(&pipe, 10).unwrap(), b"");
        let long = folder.path().join("long");
        fs::write(&long, [b' '; 11]).unwrap();
        assert!(read_some(&long, 10).is_err());
        assert_eq!(read_some(&long, 11).unwrap().len(), 11);
    }
}
