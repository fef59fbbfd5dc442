//! What was said of containers that nobody has plugged yet, over a restart of the daemon: one file each
//! in `spoken` in the run directory.
//!
//! Guarantees: a file is whole or absent; there is one for each [description](Descriptions) that is kept,
//! so that no owner has more of them than are kept for him; what cannot be read or is too old is removed
//! at the next start. Who is the owner of a file's container is what the kernel said when it was written, and
//! the namespace that it speaks of is known by its cookie, which is never given twice between two boots.
//!
//! Stamps are CLOCK_BOOTTIME: nobody can set it, and neither it nor the folder outlives a boot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use v6pod_proto::wishes::OtherWishes;
use v6pod_proto::{ContainerId, Uid, Wishes};

use super::records::{absent_is_fine, make_folder, read, write_whole};
use super::resting::uptime;
use crate::core::attachment::{Holder, NamespaceId};
use crate::core::description::{Description, Descriptions, KEPT, Place};

/// The folder, below the run directory.
pub(crate) const FOLDER: &str = "spoken";

/// The format of a file. A daemon removes what bears another number.
const VERSION: u32 = 1;

/// A description as it stands on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    owner: Uid,
    namespace: NamespaceId,
    container: ContainerId,
    // Left out of what was written before there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    wishes: Wishes,
    found: OtherWishes,
    // As above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<Holder>,
    /// When it was said.
    uptime: Duration,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Spoken(PathBuf);

impl Spoken {
    /// The folder in this run directory, made if it is not there, and what it says.
    ///
    /// # Errors
    /// It can be neither made nor read. No file in it is reason enough.
    pub(super) fn open(run_dir: &Path) -> io::Result<(Self, Descriptions)> {
        let folder = run_dir.join(FOLDER);
        make_folder(&folder)?;
        let (spoken, mut said) = (Self(folder), Vec::new());
        for entry in fs::read_dir(&spoken.0)? {
            let entry = entry?;
            let text = spoken.load(&entry.file_name().to_string_lossy());
            match text.filter(|text| uptime().saturating_sub(text.uptime) < KEPT) {
                Some(text) => said.push(text),
                // What it is else, it is in nobody's way.
                None => drop(fs::remove_file(entry.path())),
            }
        }
        said.sort_by_key(|text| text.uptime);
        let (mut all, now) = (Descriptions::default(), Instant::now());
        for text in said {
            let at = now.checked_sub(uptime().saturating_sub(text.uptime)).unwrap_or(now);
            let place = Place { owner: text.owner, namespace: text.namespace };
            let Text { container, name, wishes, found, process, .. } = text;
            let description = Description { container, name, wishes, found, process };
            spoken.forget(all.keep(place, description, at));
        }
        Ok((spoken, all))
    }

    /// Writes what was said just now, in place of what was said of the same container there before.
    pub(super) fn write(&self, place: Place, said: &Description) -> io::Result<()> {
        let text = Text {
            version: VERSION,
            owner: place.owner,
            namespace: place.namespace,
            container: said.container.clone(),
            name: said.name.clone(),
            wishes: said.wishes.clone(),
            found: said.found.clone(),
            process: said.process,
            uptime: uptime(),
        };
        let name = name(place, &said.container);
        let beside = self.0.join(format!(".{name}"));
        write_whole(&beside, &self.0.join(name), &serde_json::to_vec(&text)?)
    }

    /// Removes what is not kept any longer. What cannot be removed is, at the next start.
    pub(super) fn forget(&self, forgotten: Vec<(Place, ContainerId)>) {
        for (place, container) in forgotten {
            let removed = fs::remove_file(self.0.join(name(place, &container)));
            if let Err(error) = absent_is_fine(removed) {
                tracing::warn!(%error, "cannot remove what was said of a container");
            }
        }
    }

    fn load(&self, file: &str) -> Option<Text> {
        let text: Text = serde_json::from_slice(&read(&self.0.join(file)).ok()?).ok()?;
        let place = Place { owner: text.owner, namespace: text.namespace };
        (text.version == VERSION && file == name(place, &text.container)).then_some(text)
    }
}

/// One name for one container in one namespace.
fn name(place: Place, container: &ContainerId) -> String {
    let Place { owner, namespace: NamespaceId { inode, cookie } } = place;
    let cookie = cookie.map_or_else(|| "none".to_owned(), |cookie| cookie.to_string());
    format!("{owner}.{inode}.{cookie}.{container}.json")
}

#[cfg(test)]
mod tests {
    use v6pod_proto::wishes::{Findings, Source};

    use super::*;
    use crate::core::description::EACH;

    fn place(owner: u32, n: u64) -> Place {
        let namespace = NamespaceId { inode: n, cookie: Some(n) };
        Place { owner: Uid::new(owner).unwrap(), namespace }
    }

    fn said(n: u64, wish: &str) -> Description {
        let wishes = Wishes::read([("v6pod.name", wish)]).unwrap();
        let mut found = Findings::default();
        found.add(Source::Label, "v6pod.name", wish.to_owned());
        let found = OtherWishes::read(&found).unwrap();
        Description {
            container: format!("{n:064x}").parse().unwrap(),
            name: Some("web".to_owned()),
            wishes,
            found,
            process: Some(Holder { pid: 7, start_time: n }),
        }
    }

    fn files(spoken: &Spoken) -> Vec<String> {
        let names = fs::read_dir(&spoken.0).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_said_is_known_after_a_restart_and_last_words_count() {
        let run = tempfile::tempdir().unwrap();
        let (spoken, _) = Spoken::open(run.path()).unwrap();
        for (owner, n, wish) in [(1, 1, "old"), (1, 1, "new"), (2, 1, "other")] {
            spoken.write(place(owner, n), &said(n, wish)).unwrap();
        }
        for _ in 0..2 {
            let (spoken, all) = Spoken::open(run.path()).unwrap();
            for (owner, wish) in [(1, "new"), (2, "other")] {
                let found = all.of(place(owner, 1), None, Instant::now());
                assert_eq!(found, Some(&said(1, wish)));
            }
            assert_eq!(files(&spoken).len(), 2);
        }
    }

    #[test]
    fn what_is_old_or_makes_no_sense_or_says_another_name_is_removed() {
        let run = tempfile::tempdir().unwrap();
        let (spoken, _) = Spoken::open(run.path()).unwrap();
        spoken.write(place(1, 1), &said(1, "x")).unwrap();
        let good = files(&spoken).pop().unwrap();
        let text = fs::read_to_string(spoken.0.join(&good)).unwrap();
        fs::write(spoken.0.join("1.1.1.x.json"), &text).unwrap();
        fs::write(spoken.0.join(format!(".{good}")), &text[..40]).unwrap();
        fs::write(spoken.0.join(&good), text.replace("\"version\":1", "\"version\":2")).unwrap();
        assert_eq!(files(&Spoken::open(run.path()).unwrap().0), Vec::<String>::new());
        let mut old: Text = serde_json::from_str(&text).unwrap();
        old.uptime = uptime().saturating_sub(KEPT);
        fs::write(spoken.0.join(&good), serde_json::to_vec(&old).unwrap()).unwrap();
        assert_eq!(files(&Spoken::open(run.path()).unwrap().0), Vec::<String>::new());
    }

    #[test]
    fn an_owner_has_as_many_files_as_are_kept_for_him() {
        let run = tempfile::tempdir().unwrap();
        let (spoken, mut all) = Spoken::open(run.path()).unwrap();
        let started = Instant::now();
        for n in 0..2 * EACH as u64 {
            spoken.write(place(1, n), &said(n, "x")).unwrap();
            spoken.forget(all.keep(place(1, n), said(n, "x"), started));
        }
        assert_eq!(files(&spoken).len(), EACH);
        spoken.write(place(2, 1), &said(1, "x")).unwrap();
        spoken.forget(all.keep(place(2, 1), said(1, "x"), started + KEPT));
        assert_eq!(files(&spoken).len(), 1, "the others are too old");
    }
}
