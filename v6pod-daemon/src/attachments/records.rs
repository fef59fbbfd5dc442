//! What survives the daemon: one file per attachment in `/run/INSTANCE/attachments`.
//!
//! Guarantees: a file is whole or absent (written beside and renamed into place). It lies in /run,
//! because the kernel objects it speaks of do not outlive a boot either; so nothing is synced. A
//! file that cannot be read is put aside, reported, and never trusted; no link is followed, no pipe
//! waited for, and nothing that lies there keeps a daemon from starting.
//!
//! `ID.json` is an attachment. `ID.ended` is one whose end was asked for: whatever the kernel still has
//! of it goes. The one becomes the other by a rename, which needs no room on a full disk.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use serde::{Deserialize, Serialize};
use v6pod_proto::wishes::OtherWishes;
use v6pod_proto::{AttachmentId, ContainerId, NetworkName, Uid, Wishes};

use crate::core::Label;
use crate::core::Port;
use crate::core::attachment::{Attachment, Generation, Holder, NamespaceId, Phase, port_name};
use crate::core::open::{OpenPorts, RecordedPorts};
use crate::core::reconcile::Recorded;
use crate::failpoint;

/// The format of a record. A daemon puts aside what bears another number.
const VERSION: u32 = 1;

/// More than any record can have; a larger file is none.
const MAX_SIZE: u64 = 64 * 1024;

/// An attachment as it stands on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    id: AttachmentId,
    owner: Uid,
    container: ContainerId,
    name: Option<String>,
    label: Option<Label>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    further: Vec<Label>,
    // Left out of what was written before there were any.
    #[serde(default, skip_serializing_if = "Wishes::is_empty")]
    wishes: Wishes,
    #[serde(default, skip_serializing_if = "OtherWishes::is_empty")]
    found: OtherWishes,
    // And before anything was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open: Option<RecordedPorts>,
    namespace: NamespaceId,
    port: Port,
    holder: Option<Holder>,
    lease: bool,
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<NetworkName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u64>,
}

impl Record {
    pub(crate) fn of(a: &Attachment) -> Self {
        Self {
            version: VERSION,
            id: a.id.clone(),
            owner: a.owner,
            container: a.container.clone(),
            name: a.name.clone(),
            label: a.label.clone(),
            further: a.further.clone(),
            wishes: a.wishes.clone(),
            found: (*a.found).clone(),
            open: a.open.recorded(),
            namespace: a.namespace,
            port: a.port.clone(),
            holder: a.holder,
            lease: a.lease,
            since: a.since,
            network: a.network.clone(),
            attempt: a.attempt,
        }
    }

    /// The attachment, of which only the kernel can say how far it got. What is open of it is what was
    /// recorded, until it is judged anew.
    fn into_attachment(self) -> Attachment {
        let open = OpenPorts::as_recorded(self.open);
        Attachment {
            id: self.id,
            owner: self.owner,
            container: self.container,
            name: self.name,
            label: self.label,
            further: self.further,
            wishes: self.wishes,
            found: self.found.into(),
            namespace: self.namespace,
            port: Port { owner: self.owner, open: open.holes(), ..self.port },
            open,
            holder: self.holder,
            lease: self.lease,
            since: self.since,
            network: self.network,
            attempt: self.attempt,
            generation: Generation::default(),
            phase: Phase::Reserved,
            ifindex: None,
        }
    }
}

/// A file that is no record.
#[derive(Debug)]
pub struct Rejected {
    /// Its name.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// The folder of records.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
    rejected: PathBuf,
}

impl Records {
    /// The records below a daemon's run directory; the folders are made if they are not there.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let (folder, rejected) = (run_dir.join("attachments"), run_dir.join("rejected"));
        [&folder, &rejected].into_iter().try_for_each(|dir| make_folder(dir))?;
        Ok(Self { folder, rejected })
    }

    /// Writes the attachment's record, whole, in place of the one before.
    pub fn write(&self, attachment: &Attachment) -> io::Result<()> {
        let bytes = serde_json::to_vec(&Record::of(attachment))?;
        let beside = self.folder.join(format!(".{}", attachment.id));
        write_whole(&beside, &self.path(&attachment.id), &bytes)
    }

    /// Notes that the attachment's end was asked for: from here no daemon takes it up again. One
    /// that is not recorded has nothing to be noted.
    pub fn end(&self, id: &AttachmentId) -> io::Result<()> {
        absent_is_fine(fs::rename(self.path(id), self.ended_path(id)))
    }

    /// Removes the record. One that is not there is removed.
    pub fn remove(&self, id: &AttachmentId) -> io::Result<()> {
        // The mark last: until then it is known that the attachment has ended.
        absent_is_fine(fs::remove_file(self.path(id)))?;
        absent_is_fine(fs::remove_file(self.ended_path(id)))
    }

    /// All records, and what was put aside. Files that were being written are removed: what they
    /// were to say never began.
    ///
    /// # Errors
    /// The folder itself cannot be read. No file in it is reason enough.
    pub fn load(&self) -> io::Result<(Recorded, Vec<Rejected>)> {
        let (mut recorded, mut rejected) = (Recorded::default(), Vec::new());
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let half = name.starts_with('.');
            if half && fs::remove_file(entry.path()).is_ok() {
                continue;
            }
            let record = if half {
                Err("it is no file".to_owned())
            } else {
                read(&entry.path()).and_then(|bytes| parse(&name, &bytes))
            };
            match record {
                Ok((attachment, Whether::Lives)) => recorded.living.push(attachment),
                Ok((attachment, Whether::Ended)) => recorded.ended.push(attachment),
                Err(reason) => {
                    let reason = self.put_aside(&name, reason);
                    rejected.push(Rejected { file: name, reason });
                }
            }
        }
        // Written once more after it had been marked: the mark counts.
        let ended: HashSet<_> = recorded.ended.iter().map(|a| a.id.clone()).collect();
        recorded.living.retain(|a| !ended.contains(&a.id));
        Ok((recorded, rejected))
    }

    /// Puts aside the record of an attachment that is not what it says.
    pub fn reject(&self, id: &AttachmentId, reason: &str) -> Rejected {
        let file = format!("{id}.json");
        let reason = self.put_aside(&file, reason.to_owned());
        let _ = fs::remove_file(self.ended_path(id));
        Rejected { file, reason }
    }

    /// The reason, with what is wrong besides if it could not be put aside. Then it stays, and is
    /// trusted no more the next time.
    fn put_aside(&self, name: &str, reason: String) -> String {
        // What was put aside before it under this name makes room; a folder with something in it
        // cannot be replaced, so every other name is tried.
        let mut to = self.rejected.join(name);
        for n in 1..100 {
            if fs::symlink_metadata(&to).is_ok_and(|there| there.is_dir()) {
                to = self.rejected.join(format!("{name}.{n}"));
            }
        }
        match fs::rename(self.folder.join(name), to) {
            Ok(()) => reason,
            Err(error) => format!("{reason}; and it cannot be moved: {error}"),
        }
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn ended_path(&self, id: &AttachmentId) -> PathBuf {
        self.folder.join(format!("{id}.ended"))
    }
}

/// What a record's file name says.
pub(crate) enum Whether {
    Lives,
    Ended,
}

/// Makes a folder of the daemon's own, unless it is there.
pub(super) fn make_folder(dir: &Path) -> io::Result<()> {
    // `v6podctl purge` is root's, and this lies in a folder that is not: through a link it would remove
    // and move away root's own files.
    if fs::symlink_metadata(dir).is_ok_and(|there| there.is_symlink()) {
        fs::remove_file(dir)?;
    }
    DirBuilder::new().mode(0o700).recursive(true).create(dir)
}

/// Writes a file whole, in place of the one before.
pub(super) fn write_whole(beside: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| {
            failpoint::reach("record:beside");
            fs::rename(beside, path)
        });
    if written.is_err() {
        // A full /run must not fill further. The first error is the one that counts.
        let _ = fs::remove_file(beside);
    }
    written
}

pub(super) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The bytes of a file that may be one of the daemon's own; else why it is none.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let flags = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let read = file.and_then(|file| match file.metadata()?.is_file() {
        true => file.take(MAX_SIZE + 1).read_to_end(&mut bytes),
        false => Err(io::Error::other("it is no file")),
    });
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() as u64 > MAX_SIZE => Err("it is too large".to_owned()),
        Ok(_) => Ok(bytes),
    }
}

pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<(Attachment, Whether), String> {
    let record: Record = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if record.version != VERSION {
        return Err(format!("it has version {}, not {VERSION}", record.version));
    }
    let whether = match file.strip_prefix(record.id.as_str()) {
        Some(".json") => Whether::Lives,
        Some(".ended") => Whether::Ended,
        _ => return Err(format!("it says that it is {}", record.id)),
    };
    if record.port.name != port_name(&record.id) {
        return Err(format!("it speaks of {}, a link that is not its own", record.port.name));
    }
    if let Some(also) = record.port.subnets().find(|also| also.net().network() != also.address) {
        return Err(format!("it speaks of {}, which begins no subnet", also.address));
    }
    Ok((record.into_attachment(), whether))
}

#[cfg(test)]
mod tests {
    use v6pod_proto::wishes::OpeningList;
    use v6pod_proto::{Change, Mode, OpenedBy};

    use super::*;
    use crate::core::hole::Holes;
    use crate::core::open::Rights;

    #[test]
    fn no_folder_of_somebody_elses_is_taken_for_that_of_the_records() {
        let dir = tempfile::tempdir().unwrap();
        let (run, elsewhere) = (dir.path().join("run"), dir.path().join("elsewhere"));
        [&run, &elsewhere].iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let files = ["key", ".profile"].map(|name| elsewhere.join(name));
        files.iter().for_each(|file| fs::write(file, "root's").unwrap());
        std::os::unix::fs::symlink(&elsewhere, run.join("attachments")).unwrap();
        let (recorded, rejected) = Records::open(&run).unwrap().load().unwrap();
        assert!(recorded == Recorded::default() && rejected.is_empty());
        assert!(files.iter().all(|file| file.exists()));
    }

    fn attachment() -> Attachment {
        let list: OpeningList =
            serde_json::from_str(r#"["tcp/80", "udp/53@2001:db8::/32"]"#).unwrap();
        let change = Change { openings: Some(list), ..Change::default() };
        let open = OpenPorts::default()
            .change(&change, OpenedBy::Owner, &Rights::All, Holes::MOST)
            .unwrap();
        Attachment {
            id: AttachmentId::from_bits(5),
            owner: Uid::new(1000).unwrap(),
            container: "ab".repeat(32).parse().unwrap(),
            name: Some("web".into()),
            label: Some("web-u1000".parse().unwrap()),
            further: vec!["api".parse().unwrap()],
            wishes: Wishes::read([("v6pod.ingress", "tcp/80")]).unwrap(),
            found: OtherWishes {
                published: Some("tcp/80,udp/53-60".parse().unwrap()),
                labels: Wishes::read([("v6pod.name", "web")]).unwrap(),
                ignored: vec!["the label v6pod.x: \"?\"".to_owned()],
                ..OtherWishes::default()
            }
            .into(),
            open: open.clone(),
            namespace: NamespaceId { inode: 4_026_531_840, cookie: Some(9) },
            port: Port {
                name: port_name(&AttachmentId::from_bits(5)),
                interface: "eth0".parse().unwrap(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                address: "2001:db8::5".parse().unwrap(),
                gateway: "2001:db8::1".parse().unwrap(),
                mtu: 1500,
                owner: Uid::new(1000).unwrap(),
                open: open.holes(),
                subnet: None,
                also: Vec::new(),
                alias: "x".into(),
                mode: Mode::Routed,
            },
            holder: Some(Holder { pid: 5, start_time: 6 }),
            lease: true,
            since: 7,
            network: Some("six".parse().unwrap()),
            attempt: Some(u64::MAX),
            generation: Generation::default(),
            phase: Phase::Reserved,
            ifindex: None,
        }
    }

    #[test]
    fn a_record_survives_and_is_removed_once_and_twice() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let a = attachment();
        records.write(&a).unwrap();
        records.write(&a).unwrap();
        assert_eq!(records.load().unwrap().0.living, std::slice::from_ref(&a));
        records.remove(&a.id).unwrap();
        records.remove(&a.id).unwrap();
        assert_eq!(records.load().unwrap().0, Recorded::default());
    }

    #[test]
    fn a_record_of_the_time_before_wishes_openings_and_routed_ports_is_read() {
        let mut plain = attachment();
        plain.wishes = Wishes::default();
        plain.found = OtherWishes::default().into();
        plain.open = OpenPorts::default();
        plain.port.open = Holes::default();
        plain.port.mode = Mode::Bridge;
        let text = serde_json::to_string(&Record::of(&plain)).unwrap();
        let text = text.replace(",\"mode\":\"bridge\"", "");
        for later in ["wishes", "found", "open", "mode"] {
            assert!(!text.contains(later), "{later}: {text}");
        }
        let file = format!("{}.json", plain.id);
        assert_eq!(parse(&file, text.as_bytes()).unwrap().0, plain);
    }

    #[test]
    fn what_is_no_record_is_put_aside_and_not_met_again() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let a = attachment();
        records.write(&a).unwrap();
        let good = fs::read(records.path(&a.id)).unwrap();
        let folder = dir.path().join("attachments");
        fs::write(folder.join("garbage.json"), b"\0\0\0").unwrap();
        fs::write(folder.join("cut.json"), &good[..good.len() / 2]).unwrap();
        fs::write(folder.join("large.json"), vec![b' '; 100_000]).unwrap();
        fs::write(folder.join("misnamed.json"), &good).unwrap();
        let text = String::from_utf8(good).unwrap();
        fs::write(folder.join("later.json"), text.replace("\"version\":1", "\"version\":2"))
            .unwrap();
        fs::write(folder.join(".half"), b"{").unwrap();
        fs::write(folder.join("foreign.json"), text.replace(a.port.name.as_str(), "up0")).unwrap();
        let (kept, rejected) = records.load().unwrap();
        assert_eq!(kept.living, [a]);
        assert_eq!(rejected.len(), 6);
        assert_eq!(fs::read_dir(dir.path().join("rejected")).unwrap().count(), 6);
        assert!(records.load().unwrap().1.is_empty());
        assert!(!folder.join(".half").exists());
    }

    #[test]
    fn what_is_no_file_is_put_aside_unopened() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let a = attachment();
        records.write(&a).unwrap();
        let folder = dir.path().join("attachments");
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(records.path(&a.id), &elsewhere).unwrap();
        for _ in 0..3 {
            // As good as the record itself, but for being a link.
            std::os::unix::fs::symlink(&elsewhere, records.path(&a.id)).unwrap();
            nix::unistd::mkfifo(&folder.join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            for name in ["dir.json", ".half"] {
                fs::create_dir(folder.join(name)).unwrap();
                fs::write(folder.join(name).join("x"), "x").unwrap();
            }
            let (kept, rejected) = records.load().unwrap();
            assert_eq!((kept, rejected.len()), (Recorded::default(), 4));
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        }
        assert!(elsewhere.exists());
    }

    #[test]
    fn whose_end_was_asked_for_is_not_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let a = attachment();
        records.end(&a.id).unwrap();
        records.write(&a).unwrap();
        records.end(&a.id).unwrap();
        let ended = Recorded { living: vec![], ended: vec![a.clone()] };
        assert_eq!(records.load().unwrap().0, ended);
        // By a maker who had not heard of it.
        records.write(&a).unwrap();
        assert_eq!(records.load().unwrap().0, ended);
        records.remove(&a.id).unwrap();
        assert_eq!(records.load().unwrap().0, Recorded::default());
    }
}
