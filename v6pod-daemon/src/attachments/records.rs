//! What survives the daemon: one file per attachment in `/run/INSTANCE/attachments`.
//!
//! Guarantees: a file is whole or absent (written beside and renamed into place). It lies in /run,
//! because the kernel objects it speaks of do not outlive a boot either; so nothing is synced. A
//! file that cannot be read is put aside, reported, and never trusted.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use v6pod_proto::{AttachmentId, ContainerId, Uid};

use crate::core::Label;
use crate::core::Port;
use crate::core::attachment::{Attachment, Generation, Holder, NamespaceId, Phase};

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
    namespace: NamespaceId,
    port: Port,
    holder: Option<Holder>,
    lease: bool,
    since: u64,
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
            namespace: a.namespace,
            port: a.port.clone(),
            holder: a.holder,
            lease: a.lease,
            since: a.since,
        }
    }

    /// The attachment, of which only the kernel can say how far it got.
    fn into_attachment(self) -> Attachment {
        Attachment {
            id: self.id,
            owner: self.owner,
            container: self.container,
            name: self.name,
            label: self.label,
            namespace: self.namespace,
            port: Port { owner: self.owner, ..self.port },
            holder: self.holder,
            lease: self.lease,
            since: self.since,
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
        for dir in [&folder, &rejected] {
            DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
        }
        Ok(Self { folder, rejected })
    }

    /// Writes the attachment's record, whole, in place of the one before.
    pub fn write(&self, attachment: &Attachment) -> io::Result<()> {
        let bytes = serde_json::to_vec(&Record::of(attachment))?;
        let beside = self.folder.join(format!(".{}", attachment.id));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&beside, self.path(&attachment.id)));
        if written.is_err() {
            // A full /run must not fill further. The first error is the one that counts.
            let _ = fs::remove_file(&beside);
        }
        written
    }

    /// Removes the record. One that is not there is removed.
    pub fn remove(&self, id: &AttachmentId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// All records, and what was put aside. Files that were being written are removed: what they
    /// were to say never began.
    pub fn load(&self) -> io::Result<(Vec<Attachment>, Vec<Rejected>)> {
        let (mut attachments, mut rejected) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                fs::remove_file(entry.path())?;
                continue;
            }
            match read(&entry.path()).and_then(|bytes| parse(&name, &bytes)) {
                Ok(attachment) => attachments.push(attachment),
                Err(reason) => {
                    fs::rename(entry.path(), self.rejected.join(entry.file_name()))?;
                    rejected.push(Rejected { file: name, reason });
                }
            }
        }
        Ok((attachments, rejected))
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|f| f.take(MAX_SIZE + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() as u64 > MAX_SIZE => Err("it is too large".to_owned()),
        Ok(_) => Ok(bytes),
    }
}

pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Attachment, String> {
    let record: Record = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if record.version != VERSION {
        return Err(format!("it has version {}, not {VERSION}", record.version));
    }
    if file != format!("{}.json", record.id) {
        return Err(format!("it says that it is {}", record.id));
    }
    Ok(record.into_attachment())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            id: AttachmentId::from_bits(5),
            owner: Uid::new(1000).unwrap(),
            container: "ab".repeat(32).parse().unwrap(),
            name: Some("web".into()),
            label: Some("web-u1000".parse().unwrap()),
            namespace: NamespaceId { inode: 4_026_531_840, cookie: Some(9) },
            port: Port {
                name: "v6p000".parse().unwrap(),
                interface: "eth0".parse().unwrap(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                address: "2001:db8::5".parse().unwrap(),
                gateway: "2001:db8::1".parse().unwrap(),
                mtu: 1500,
                owner: Uid::new(1000).unwrap(),
                alias: "x".into(),
            },
            holder: Some(Holder { pid: 5, start_time: 6 }),
            lease: true,
            since: 7,
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
        assert_eq!(records.load().unwrap().0, std::slice::from_ref(&a));
        records.remove(&a.id).unwrap();
        records.remove(&a.id).unwrap();
        assert!(records.load().unwrap().0.is_empty());
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
        let (kept, rejected) = records.load().unwrap();
        assert_eq!(kept, [a]);
        assert_eq!(rejected.len(), 5);
        assert_eq!(fs::read_dir(dir.path().join("rejected")).unwrap().count(), 5);
        assert!(records.load().unwrap().1.is_empty());
        assert!(!folder.join(".half").exists());
    }
}
