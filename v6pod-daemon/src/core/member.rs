//! A pod's members: further containers in the network namespace of an attachment, and what each adds to it,
//! which is a name.
//!
//! What [`Members`] guarantees, whoever joins and leaves in whatever order:
//! - No attachment has more than [`EACH`], no owner more than [`OF_OWNER`] in all, and all together no more than
//!   there is room for.
//! - No two members of an attachment have the same place, and each keeps its own.
//! - The end of a process takes nobody away but who came with that process.
//! - An attachment without members takes no memory here.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use v6pod_proto::wishes::{OtherWishes, Services};
use v6pod_proto::{AttachmentId, ContainerId, Uid, Wishes};

use super::attachment::{Attachment, Holder};

/// How many members an attachment can have.
pub const EACH: usize = 32;

/// How many members an owner's attachments can have in all: each costs the daemon a descriptor.
pub const OF_OWNER: usize = 512;

/// Which of an attachment's members: from 0, below [`EACH`]. The number is another's once its member has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Place(u8);

/// Why a number is no [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an attachment has at most {EACH} members")]
pub struct NoPlace;

impl TryFrom<u8> for Place {
    type Error = NoPlace;

    fn try_from(number: u8) -> Result<Self, NoPlace> {
        (usize::from(number) < EACH).then_some(Self(number)).ok_or(NoPlace)
    }
}

impl From<Place> for u8 {
    fn from(place: Place) -> Self {
        place.0
    }
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Which of them.
    pub place: Place,
    /// The container, as its owner says.
    pub container: ContainerId,
    /// What its engine calls it, once known.
    pub name: Option<String>,
    /// What it asks for, as far as it is about names.
    pub wishes: Wishes,
    /// And by other means than annotations.
    pub found: OtherWishes,
    /// Its first process: it is a member as long as that runs.
    pub process: Holder,
}

/// A container that is to be a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    /// Which.
    pub container: ContainerId,
    /// What its engine calls it, if that was said.
    pub name: Option<String>,
    /// What it asks for.
    pub wishes: Wishes,
    /// And by other means than annotations.
    pub found: OtherWishes,
    /// Its first process.
    pub process: Holder,
}

/// Why a container is no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotJoined {
    /// The attachment has as many as it can have.
    #[error("its pod has {EACH} members with names already")]
    Full,
    /// The owner has.
    #[error("its owner's pods have {OF_OWNER} members with names already")]
    OwnerFull,
    /// All of this host have.
    #[error("this host's pods have {0} members with names already")]
    HostFull(usize),
}

impl Member {
    /// The attachment as if it were this member's alone: what it is to be found by follows from that.
    pub fn speaking_for(&self, pod: &Attachment) -> Attachment {
        Attachment {
            container: self.container.clone(),
            name: self.name.clone(),
            wishes: self.wishes.clone(),
            found: self.found.clone().into(),
            ..pod.clone()
        }
    }

    fn is(&self, joining: &Joining) -> bool {
        let Joining { container, name, wishes, found, process } = joining;
        let named = name.is_none() || self.name == *name;
        named
            && (&self.container, &self.wishes, &self.found, &self.process)
                == (container, wishes, found, process)
    }
}

impl Joining {
    /// Without what is not about names: openings and addresses are its pod's.
    #[must_use]
    pub fn about_names(self) -> Self {
        let Self { container, name, wishes, found, process } = self;
        let OtherWishes { image, labels, environment, image_annotations, image_labels, .. } = found;
        let found = OtherWishes {
            image,
            labels: names_of(labels),
            // What is said of a port is said of its pod's, and by that.
            environment: Services { ports: std::collections::BTreeMap::new(), ..environment },
            image_annotations: names_of(image_annotations),
            image_labels: names_of(image_labels),
            ..OtherWishes::default()
        };
        Self { container, name, wishes: names_of(wishes), found, process }
    }
}

fn names_of(wishes: Wishes) -> Wishes {
    let Wishes { name, tags, check, .. } = wishes;
    Wishes { name, tags, check, ..Wishes::default() }
}

/// All members of all attachments.
#[derive(Debug)]
pub struct Members {
    pods: HashMap<AttachmentId, Pod>,
    room: usize,
}

#[derive(Debug)]
struct Pod {
    owner: Uid,
    /// In order of place. Never empty.
    members: Vec<Member>,
}

impl Members {
    /// None, and room for so many.
    pub fn with_room(room: usize) -> Self {
        Self { pods: HashMap::new(), room }
    }

    /// Those of this attachment, in order of place.
    pub fn of(&self, pod: &AttachmentId) -> &[Member] {
        self.pods.get(pod).map_or(&[], |pod| &pod.members)
    }

    /// Where this owner's container is a member, and by which process.
    pub fn find(&self, owner: Uid, container: &ContainerId) -> Option<(&AttachmentId, Holder)> {
        let own = self.pods.iter().filter(|(_, pod)| pod.owner == owner);
        own.flat_map(|(id, pod)| pod.members.iter().map(move |member| (id, member)))
            .find(|(_, member)| member.container == *container)
            .map(|(id, member)| (id, member.process))
    }

    /// The member that the container will be once it is [taken in](Members::take_in); none if it is that
    /// already. A container that joins again, after a restart of its own, has its place.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn plan(
        &self,
        pod: &AttachmentId,
        owner: Uid,
        joining: Joining,
    ) -> Result<Option<Member>, NotJoined> {
        let joining = joining.about_names();
        let all = self.of(pod);
        let before = all.iter().find(|member| member.container == joining.container);
        if before.is_some_and(|before| before.is(&joining)) {
            return Ok(None);
        }
        let place = match before {
            Some(before) => before.place,
            None => self.free(pod, owner)?,
        };
        let Joining { container, name, wishes, found, process } = joining;
        let name = name.or_else(|| before?.name.clone());
        Ok(Some(Member { place, container, name, wishes, found, process }))
    }

    fn free(&self, pod: &AttachmentId, owner: Uid) -> Result<Place, NotJoined> {
        let own = self.pods.values().filter(|pod| pod.owner == owner);
        if own.map(|pod| pod.members.len()).sum::<usize>() >= OF_OWNER {
            return Err(NotJoined::OwnerFull);
        }
        if self.pods.values().map(|pod| pod.members.len()).sum::<usize>() >= self.room {
            return Err(NotJoined::HostFull(self.room));
        }
        let taken = self.of(pod);
        let mut places = (0..=u8::MAX).map_while(|number| Place::try_from(number).ok());
        places
            .find(|place| taken.iter().all(|member| member.place != *place))
            .ok_or(NotJoined::Full)
    }

    /// Takes a member in, in place of who has its place.
    pub fn take_in(&mut self, pod: &AttachmentId, owner: Uid, member: Member) {
        let pod =
            self.pods.entry(pod.clone()).or_insert_with(|| Pod { owner, members: Vec::new() });
        pod.members
            .retain(|there| there.place != member.place && there.container != member.container);
        let at = pod.members.partition_point(|there| there.place < member.place);
        pod.members.insert(at, member);
    }

    /// What its engine calls a member has become known. Gives the member, if it is one still.
    pub fn named(
        &mut self,
        pod: &AttachmentId,
        container: &ContainerId,
        name: Option<String>,
    ) -> Option<&Member> {
        let members = &mut self.pods.get_mut(pod)?.members;
        let member = members.iter_mut().find(|member| member.container == *container)?;
        member.name = name.or(member.name.take());
        Some(member)
    }

    /// A member goes, if it is the one with this process. Gives it.
    pub fn leave(
        &mut self,
        pod: &AttachmentId,
        container: &ContainerId,
        process: Holder,
    ) -> Option<Member> {
        let there = self.pods.get_mut(pod)?;
        let meant = |member: &Member| member.container == *container && member.process == process;
        let at = there.members.iter().position(meant)?;
        let gone = there.members.remove(at);
        if there.members.is_empty() {
            self.pods.remove(pod);
        }
        Some(gone)
    }

    /// The attachment ends, and its members with it.
    pub fn end(&mut self, pod: &AttachmentId) -> Vec<Member> {
        self.pods.remove(pod).map_or_else(Vec::new, |pod| pod.members)
    }
}

#[cfg(test)]
#[path = "member_tests.rs"]
mod tests;
