//! Members of pods over a restart of the daemon: one file each in `members` in the run directory.
//!
//! Guarantees: a file is whole or absent. There is one for each member that is told of, from before that until
//! its name is taken back; what cannot be read is removed at the next start. No file makes anybody a member:
//! it counts for an attachment that goes on, and as long as the process runs that it speaks of.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use v6pod_proto::AttachmentId;

use super::records::{absent_is_fine, make_folder, read, write_whole};
use crate::core::member::{Member, Place};

/// The folder, below the run directory.
pub(crate) const FOLDER: &str = "members";

/// The format of a file. A daemon removes what bears another number.
const VERSION: u32 = 1;

/// A member as it stands on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    attachment: AttachmentId,
    member: Member,
}

/// What an earlier daemon knew, by attachment.
pub(super) type Remembered = HashMap<AttachmentId, Vec<Member>>;

/// The folder.
#[derive(Debug)]
pub(super) struct Memberships(PathBuf);

impl Memberships {
    /// The folder in this run directory, made if it is not there, and what it says.
    ///
    /// # Errors
    /// It can be neither made nor read. No file in it is reason enough.
    pub(super) fn open(run_dir: &Path) -> io::Result<(Self, Remembered)> {
        let folder = run_dir.join(FOLDER);
        make_folder(&folder)?;
        let (memberships, mut all) = (Self(folder), Remembered::new());
        for entry in fs::read_dir(&memberships.0)? {
            let entry = entry?;
            match memberships.load(&entry.file_name().to_string_lossy()) {
                Some(Text { attachment, member, .. }) => {
                    all.entry(attachment).or_default().push(member);
                }
                // What it is else, it is in nobody's way.
                None => drop(fs::remove_file(entry.path())),
            }
        }
        all.values_mut().for_each(|members| members.sort_by_key(|member| member.place));
        Ok((memberships, all))
    }

    /// Writes a member of this attachment, in place of who had its place before.
    pub(super) fn write(&self, attachment: &AttachmentId, member: &Member) -> io::Result<()> {
        let name = name(attachment, member.place);
        let text =
            Text { version: VERSION, attachment: attachment.clone(), member: member.clone() };
        let beside = self.0.join(format!(".{name}"));
        write_whole(&beside, &self.0.join(name), &serde_json::to_vec(&text)?)
    }

    /// Removes a member. What cannot be removed is, at the next start: its process has ended by then, or its
    /// attachment.
    pub(super) fn forget(&self, attachment: &AttachmentId, place: Place) {
        let removed = fs::remove_file(self.0.join(name(attachment, place)));
        if let Err(error) = absent_is_fine(removed) {
            tracing::warn!(%attachment, %error, "cannot remove the file of a pod's member");
        }
    }

    fn load(&self, file: &str) -> Option<Text> {
        let text: Text = serde_json::from_slice(&read(&self.0.join(file)).ok()?).ok()?;
        let named = file == name(&text.attachment, text.member.place);
        (text.version == VERSION && named).then_some(text)
    }
}

/// One name for one place of one attachment.
fn name(attachment: &AttachmentId, place: Place) -> String {
    format!("{attachment}.{}.json", u8::from(place))
}

#[cfg(test)]
mod tests {
    use v6pod_proto::Wishes;
    use v6pod_proto::wishes::{Findings, OtherWishes, Source};

    use super::*;
    use crate::core::attachment::Holder;

    fn member(place: u8) -> Member {
        let mut found = Findings::default();
        found.add(Source::Environment, "SERVICE_NAME", "env".to_owned());
        Member {
            place: place.try_into().unwrap(),
            container: format!("{place:064x}").parse().unwrap(),
            name: Some("one".to_owned()),
            wishes: Wishes::read([("v6pod.name", "asked")]).unwrap(),
            found: OtherWishes::read(&found).unwrap(),
            process: Holder { pid: 5, start_time: 6 },
        }
    }

    #[test]
    fn a_member_is_known_after_a_restart_until_it_is_forgotten() {
        let (run, id) = (tempfile::tempdir().unwrap(), AttachmentId::from_bits(1));
        let (memberships, none) = Memberships::open(run.path()).unwrap();
        assert!(none.is_empty());
        for place in [3, 1] {
            memberships.write(&id, &member(place)).unwrap();
        }
        let again = || Memberships::open(run.path()).unwrap().1;
        assert_eq!(again()[&id], [member(1), member(3)]);
        for _ in 0..2 {
            memberships.forget(&id, member(1).place);
            assert_eq!(again()[&id], [member(3)]);
        }
    }

    #[test]
    fn what_makes_no_sense_or_says_another_place_is_removed() {
        let (run, id) = (tempfile::tempdir().unwrap(), AttachmentId::from_bits(1));
        let (memberships, _) = Memberships::open(run.path()).unwrap();
        memberships.write(&id, &member(1)).unwrap();
        let good = memberships.0.join(name(&id, member(1).place));
        let text = fs::read_to_string(&good).unwrap();
        let beyond = text.replace("\"place\":1", "\"place\":32");
        fs::write(memberships.0.join(format!("{id}.32.json")), beyond).unwrap();
        fs::write(memberships.0.join(format!("{id}.2.json")), &text).unwrap();
        fs::write(memberships.0.join(format!(".{id}.1.json")), &text[..40]).unwrap();
        fs::write(&good, text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert!(Memberships::open(run.path()).unwrap().1.is_empty());
        assert_eq!(fs::read_dir(&memberships.0).unwrap().count(), 0);
    }
}
