//! Members of pods: further containers in the network namespace of an attachment.
//!
//! Guarantees: a member adds names to the attachment and changes nothing else of it. Only the owner of the
//! namespace has members there, each by a process of its own that runs in it. A member is on disk before
//! anybody is told its name, and its name goes with its process, with the word of its owner, or with the
//! attachment, whichever comes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;
use v6pod_proto::{AttachmentId, ContainerId, Happening, Uid};

use super::holding::holder;
use super::memberships::Remembered;
use super::{Ask, Ledger, Shared};
use crate::core::attachment::{Attachment, Holder};
use crate::core::member::{Joining, Member, NotJoined};
use crate::failpoint;
use crate::kernel::{self, Process, Worker};

/// Who watches the processes of members.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<HashMap<(AttachmentId, ContainerId), Watch>>);

#[derive(Debug)]
struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watches {
    fn begin(&self, pod: &AttachmentId, container: &ContainerId, watcher: AbortHandle) {
        let key = (pod.clone(), container.clone());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Watch(watcher));
    }

    fn end(&self, pod: &AttachmentId, container: &ContainerId) {
        let key = (pod.clone(), container.clone());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

/// Has the container that is asked for become a member where another's attachment is, if it can be one.
pub(super) fn join(
    shared: &Arc<Shared>,
    ledger: &mut Ledger,
    ask: &Ask,
    id: &AttachmentId,
    process: Option<Process>,
) {
    let Some(pod) = ledger.book.find(id).cloned() else { return };
    // A lease is a network program's. Who wants no network wants no name in it.
    if ask.asker != pod.owner || ask.lease || ask.declines() {
        return;
    }
    let (Some(container), Some(process)) = (&ask.container, process) else { return };
    let joining = Joining {
        container: container.clone(),
        name: ask.name.clone(),
        wishes: ask.wishes.clone(),
        found: ask.found.clone(),
        process: holder(&process),
    };
    let member = match ledger.members.plan(id, pod.owner, joining) {
        Ok(Some(member)) => member,
        Ok(None) => return,
        Err(why) => return shared.tell_not_joined(&pod, ask, why),
    };
    if let Err(error) = shared.memberships.write(id, &member) {
        // A restart would know nothing of it, and its name would be told until then.
        tracing::warn!(attachment = %id, %error, "cannot write a pod's member; it gets no name");
        return;
    }
    failpoint::reach("joining:recorded");
    tracing::info!(attachment = %id, container = container.short(), "a member of its pod");
    shared.take_in(ledger, &pod, member, process);
    shared.name_member_in_background(pod, container.clone());
}

impl Shared {
    /// From now on it is a member, as long as its process runs.
    fn take_in(
        self: &Arc<Self>,
        ledger: &mut Ledger,
        pod: &Attachment,
        member: Member,
        process: Process,
    ) {
        let (container, held_by) = (member.container.clone(), member.process);
        let (shared, id, its) = (Arc::clone(self), pod.id.clone(), container.clone());
        ledger.members.take_in(&pod.id, pod.owner, member);
        let watch = async move {
            if let Err(error) = process.exited().await {
                // Nobody is to be found by the name of what may have ended.
                tracing::warn!(attachment = %id, %error, "cannot watch a pod's member");
            }
            shared.part(&id, &its, held_by);
        };
        // Not `tokio::spawn`: this may be a worker's thread. Whoever ends at once waits for the ledger.
        let watcher = self.runtime.spawn(watch).abort_handle();
        self.watches.begin(&pod.id, &container, watcher);
    }

    /// Sees to a member's name in the background: looks it up if it was not said, and has it claimed.
    pub(super) fn name_member_in_background(
        self: &Arc<Self>,
        pod: Attachment,
        container: ContainerId,
    ) {
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let known = |ledger: &Ledger| {
                let mut all = ledger.members.of(&pod.id).iter();
                all.find(|member| member.container == container).cloned()
            };
            let Some(mut member) = known(&shared.ledger()) else { return };
            let name = match &member.name {
                Some(_) => None,
                None => {
                    let said = shared.containers.name(pod.owner, &container).await;
                    said.ok().flatten().map(|name| name.name)
                }
            };
            shared.learn_owner(pod.owner).await;
            // Without a name it offers nothing, and no tags.
            member.name = name.clone().or(member.name);
            shared.learn_tags(&member.speaking_for(&pod)).await;
            // Claimed and wished for under one lock, as an attachment's own is.
            let mut ledger = shared.ledger();
            let new = name.is_some();
            let Some(member) = ledger.members.named(&pod.id, &container, name) else { return };
            if new && let Err(error) = shared.memberships.write(&pod.id, member) {
                // It is looked up again after a restart.
                tracing::warn!(attachment = %pod.id, %error, "cannot write what a member is called");
            }
            shared.claim_and_wish(&mut ledger, &pod.id);
            failpoint::reach("joining:wished");
        });
    }

    /// A member goes, if it is the one with this process, and its name with it. False if there is none.
    pub(super) fn part(
        self: &Arc<Self>,
        pod: &AttachmentId,
        container: &ContainerId,
        process: Holder,
    ) -> bool {
        let mut ledger = self.ledger();
        let Some(member) = ledger.members.leave(pod, container, process) else { return false };
        self.memberships.forget(pod, member.place);
        failpoint::reach("leaving:forgotten");
        tracing::info!(attachment = %pod, container = container.short(), "no member of its pod any more");
        self.claim_and_wish(&mut ledger, pod);
        failpoint::reach("leaving:withdrawn");
        // Under the lock still: who joins again has a watch of his own.
        self.watches.end(pod, container);
        true
    }

    /// The attachment ends, and with it all that is known of its members. Their names are its own.
    pub(super) fn dismiss(&self, ledger: &mut Ledger, pod: &AttachmentId) {
        for member in ledger.members.end(pod) {
            self.watches.end(pod, &member.container);
            self.memberships.forget(pod, member.place);
        }
    }

    /// Its owner says that this container, which has no attachment, is over. False if it is no member.
    pub(super) fn member_is_over(self: &Arc<Self>, owner: Uid, container: &ContainerId) -> bool {
        let found = {
            let ledger = self.ledger();
            let found = ledger.members.find(owner, container);
            found.map(|(pod, process)| (pod.clone(), process))
        };
        found.is_some_and(|(pod, process)| self.part(&pod, container, process))
    }

    /// Takes up the members that an earlier daemon knew, as far as their processes still run and their pods go
    /// on. What else it knew is forgotten.
    pub(super) async fn take_up(
        self: &Arc<Self>,
        remembered: Remembered,
    ) -> Result<(), kernel::Error> {
        if remembered.is_empty() {
            return Ok(());
        }
        let look = |_: &mut Worker| -> Result<_, kernel::Error> {
            let all = remembered.into_iter().flat_map(|(pod, members)| {
                members.into_iter().map(move |member| (pod.clone(), member))
            });
            let runs = |member: &Member| {
                let process = Process::pin(member.process.pid).ok()?;
                (process.start_time() == member.process.start_time).then_some(process)
            };
            Ok(all.map(|(pod, member)| (runs(&member), pod, member)).collect::<Vec<_>>())
        };
        for (process, id, member) in self.workers.run(look).await? {
            let mut ledger = self.ledger();
            match (ledger.book.find(&id).cloned(), process) {
                (Some(pod), Some(process)) => self.take_in(&mut ledger, &pod, member, process),
                _ => self.memberships.forget(&id, member.place),
            }
        }
        Ok(())
    }

    /// Looks for the names of members that an earlier daemon did not come to know.
    pub(super) fn name_nameless_members(self: &Arc<Self>, ledger: &Ledger, pod: &Attachment) {
        for member in ledger.members.of(&pod.id).iter().filter(|member| member.name.is_none()) {
            self.name_member_in_background(pod.clone(), member.container.clone());
        }
    }

    fn tell_not_joined(&self, pod: &Attachment, ask: &Ask, why: NotJoined) {
        let container = ask.container.as_ref().map_or("-", |container| container.short());
        tracing::info!(attachment = %pod.id, container, "a member gets no name: {why}");
        self.metrics.conflict("members");
        let name = ask.name.clone().or_else(|| Some(container.to_owned()));
        self.tell(Happening::Conflict, pod, name, Some(why.to_string()));
    }
}
