//! A container's resolv.conf, which podman has written for it: points it at v6podd's resolver.
//!
//! Guarantees:
//! - Nothing but the file that podman made for this container, and only if it asks podman's own network
//!   program first: what a user has chosen (`--dns`, a mount, containers.conf), what a network has (aardvark)
//!   and what is another container's stays.
//! - The file is written in place, in one go: it may be mounted already, and a mount is of the file and not
//!   of its name. Its container does not run yet.
//! - No link is followed, and nothing is waited for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Deserialize;
use v6pod_proto::{ContainerId, Resolver};

/// Where it is in every container.
const PATH: &str = "/etc/resolv.conf";
/// The longest configuration of a container that is read, in bytes; podman's have some ten thousand.
const CONFIG_LIMIT: u64 = 4 << 20;
/// The longest resolv.conf.
const FILE_LIMIT: u64 = 64 << 10;

/// The resolvers in podman's network programs, as podman names them first where nobody has chosen others:
/// slirp4netns's, in the subnet that it has by default, and pasta's.
const PODMANS: [&str; 2] = ["10.0.2.3", "169.254.1.1"];

/// What is of interest of a container's configuration (OCI runtime specification, "Mounts").
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    mounts: Vec<Mount>,
}

#[derive(Deserialize)]
struct Mount {
    destination: PathBuf,
    #[serde(default)]
    source: PathBuf,
}

/// Points the container with this bundle at the resolver, if that is for us to do. Whether it was.
pub(crate) fn point(bundle: &Path, id: &ContainerId, resolver: &Resolver) -> io::Result<bool> {
    let config = read(&open(&bundle.join("config.json"), false)?, CONFIG_LIMIT)?;
    let spec: Spec = serde_json::from_slice(&config)?;
    // A later mount hides an earlier one.
    let mounted = spec.mounts.iter().rev().find(|mount| mount.destination == Path::new(PATH));
    let Some(mount) = mounted.filter(|mount| is_podmans(&mount.source, id)) else {
        return Ok(false);
    };
    let mut file = open(&mount.source, true)?;
    let text = String::from_utf8(read(&file, FILE_LIMIT)?);
    let Some(text) = text.ok().and_then(|text| pointed(&text, resolver)) else { return Ok(false) };
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    Ok(true)
}

/// Whether podman has made this file for the container: `…/overlay-containers/ID/userdata/resolv.conf`.
fn is_podmans(source: &Path, id: &ContainerId) -> bool {
    let own = Path::new(id.as_str()).join("userdata/resolv.conf");
    source.is_absolute() && source.ends_with(own)
}

/// The text with the resolver in the place of podman's own; none if somebody has chosen others.
fn pointed(text: &str, resolver: &Resolver) -> Option<String> {
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is = |line: &&str, key: &str| words(line).first().is_some_and(|word| word == key);
    let first = text.lines().find(|line| is(line, "nameserver"))?;
    if !words(first).get(1).is_some_and(|address| PODMANS.contains(&address.as_str())) {
        return None;
    }
    let mut lines = Vec::new();
    let mut searched = false;
    for line in text.lines().filter(|line| !is(line, "nameserver")) {
        match &resolver.zone {
            // Behind the others: a container's name must not stand before a machine's of the same name.
            Some(zone) if is(&line, "search") && !searched => {
                searched = true;
                lines.push(format!("{} {zone}", line.trim_end()));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    if let Some(zone) = resolver.zone.as_ref().filter(|_| !searched) {
        lines.push(format!("search {zone}"));
    }
    lines.push(format!("nameserver {}\n", resolver.address));
    Some(lines.join("\n"))
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn read(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn resolver(zone: Option<&str>) -> Resolver {
        let address = "fd3a:9ca3:76d6::53".parse().unwrap();
        Resolver { address, zone: zone.map(str::to_owned) }
    }

    #[test]
    fn it_is_asked_alone_and_all_else_stays() {
        let with = |text: &str| pointed(text, &resolver(Some("v6pod.internal")));
        let ours = "nameserver fd3a:9ca3:76d6::53\n";
        for (before, after) in [
            (
                "nameserver 10.0.2.3\nnameserver 192.0.2.1\n",
                format!("search v6pod.internal\n{ours}"),
            ),
            (
                "search corp.example lan\nnameserver 169.254.1.1\noptions ndots:2\n",
                format!("search corp.example lan v6pod.internal\noptions ndots:2\n{ours}"),
            ),
        ] {
            assert_eq!(with(before), Some(after));
        }
        let nowhere = pointed("nameserver 10.0.2.3\nsearch a", &resolver(None));
        assert_eq!(nowhere, Some(format!("search a\n{ours}")));
    }

    #[test]
    fn what_somebody_has_chosen_stays() {
        for text in [
            "",
            "nameserver 1.1.1.1\nnameserver 10.0.2.3\n",
            "nameserver 10.89.0.1\n",
            "nameserver 10.0.2.33\n",
            "search a\n",
            "nameserver\n",
            "#nameserver 10.0.2.3\n",
        ] {
            assert_eq!(pointed(text, &resolver(Some("x"))), None, "{text:?}");
        }
    }

    #[test]
    fn only_the_containers_own_file_is_written_and_it_stays_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let id: ContainerId = "a1".repeat(32).parse().unwrap();
        let other = "b2".repeat(32);
        let userdata = |id: &str| {
            let userdata = folder.path().join(id).join("userdata");
            fs::create_dir_all(&userdata).unwrap();
            fs::write(userdata.join("resolv.conf"), "nameserver 10.0.2.3\n").unwrap();
            userdata
        };
        let (own, others) = (userdata(id.as_str()), userdata(&other));
        let pointed_at = |source: &Path| {
            let mounts = serde_json::json!([
                { "destination": "/etc/resolv.conf", "source": "/nowhere" },
                { "destination": "/etc/resolv.conf", "source": source, "type": "bind" },
                { "destination": "/proc", "type": "proc" },
            ]);
            let config = serde_json::json!({ "ociVersion": "1.0.2", "mounts": mounts });
            fs::write(own.join("config.json"), config.to_string()).unwrap();
            point(&own, &id, &resolver(None))
        };
        assert!(!pointed_at(&others.join("resolv.conf")).unwrap());
        let file = own.join("resolv.conf");
        let inode = fs::metadata(&file).unwrap().ino();
        assert!(pointed_at(&file).unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver fd3a:9ca3:76d6::53\n");
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
        assert!(!pointed_at(&file).unwrap(), "once");

        fs::remove_file(&file).unwrap();
        symlink(others.join("resolv.conf"), &file).unwrap();
        assert!(pointed_at(&file).is_err());
        fs::remove_file(&file).unwrap();
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, mode, 0).unwrap();
        assert!(pointed_at(&file).is_err());
        fs::remove_file(own.join("config.json")).unwrap();
        assert!(point(&own, &id, &resolver(None)).is_err());
        let left = fs::read_to_string(others.join("resolv.conf")).unwrap();
        assert_eq!(left, "nameserver 10.0.2.3\n");
    }
}
