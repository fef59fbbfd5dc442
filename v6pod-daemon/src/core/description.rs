//! What was said of containers whose network namespace nobody has plugged yet.
//!
//! With a user namespace of its own a container's OCI hook runs before its network program: the hook
//! knows which container it is and what that asks for, the program knows that it wants a network. What
//! the hook says is kept until then.
//!
//! Guarantees: an owner makes nobody but himself forgotten; nothing is kept for longer than [`KEPT`]
//! beyond the next thing that is said; and what was said of one container is never given to another.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use v6pod_proto::wishes::OtherWishes;
use v6pod_proto::{ContainerId, Uid, Wishes};

use super::attachment::{Holder, NamespaceId};

/// How long something is kept. Between a hook and the network program there is nothing but podman.
pub const KEPT: Duration = Duration::from_secs(60);

/// How many each owner has kept. Beyond them the oldest goes.
pub const EACH: usize = 64;

/// What was said of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Which it is.
    pub container: ContainerId,
    /// What it is called, where that had to be known.
    pub name: Option<String>,
    /// What it asks for.
    pub wishes: Wishes,
    /// And by other means than annotations.
    pub found: OtherWishes,
    /// Its first process, if that was said and is in the namespace.
    pub process: Option<Holder>,
}

/// Where a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Whose network namespace it is.
    pub owner: Uid,
    /// Which.
    pub namespace: NamespaceId,
}

/// All that was said lately.
#[derive(Debug, Default)]
pub struct Descriptions(HashMap<Uid, VecDeque<Said>>);

#[derive(Debug)]
struct Said {
    namespace: NamespaceId,
    at: Instant,
    description: Description,
}

impl Descriptions {
    /// Keeps what was said of a container, in place of what was said of it there before. Gives what is
    /// not kept any longer.
    pub fn keep(
        &mut self,
        place: Place,
        description: Description,
        now: Instant,
    ) -> Vec<(Place, ContainerId)> {
        let mut gone = Vec::new();
        let mut forget = |owner: Uid, said: &Said| {
            let place = Place { owner, namespace: said.namespace };
            gone.push((place, said.description.container.clone()));
        };
        self.0.retain(|owner, said| {
            said.retain(|s| {
                let kept = now.saturating_duration_since(s.at) < KEPT;
                if !kept {
                    forget(*owner, s);
                }
                kept
            });
            !said.is_empty()
        });
        let Place { owner, namespace } = place;
        let said = self.0.entry(owner).or_default();
        let container = &description.container;
        said.retain(|s| s.namespace != namespace || s.description.container != *container);
        if said.len() >= EACH
            && let Some(oldest) = said.pop_front()
        {
            forget(owner, &oldest);
        }
        // Said again at the end of its time, it is kept.
        gone.retain(|(there, which)| *there != place || which != container);
        said.push_back(Said { namespace, at: now, description });
        gone
    }

    /// What was said of this container in this namespace. Where it is not known which container it is,
    /// what was said first of any there: a pod's first container brings the network. But not where
    /// namespaces cannot be told from earlier ones of the same number (before Linux 5.14).
    pub fn of(
        &self,
        place: Place,
        container: Option<&ContainerId>,
        now: Instant,
    ) -> Option<&Description> {
        let Place { owner, namespace } = place;
        let here = self.0.get(&owner)?.iter().find(|s| {
            let meant = match container {
                Some(container) => s.description.container == *container,
                None => namespace.cookie.is_some(),
            };
            meant && s.namespace == namespace && now.saturating_duration_since(s.at) < KEPT
        });
        here.map(|said| &said.description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u32) -> Uid {
        Uid::new(n).unwrap()
    }

    fn ns(owner: u32, n: u64) -> Place {
        Place { owner: uid(owner), namespace: NamespaceId { inode: n, cookie: Some(n) } }
    }

    fn of(container: &str) -> Description {
        Description {
            container: container.repeat(32).parse().unwrap(),
            name: None,
            wishes: Wishes::default(),
            found: OtherWishes::default(),
            process: None,
        }
    }

    #[test]
    fn what_was_said_is_found_by_container_or_else_by_namespace() {
        let (mut all, now) = (Descriptions::default(), Instant::now());
        all.keep(ns(1, 1), of("aa"), now);
        all.keep(ns(1, 1), of("bb"), now);
        let ids = ["bb", "cc"].map(|id| of(id).container);
        let found = |owner, n, id| all.of(ns(owner, n), id, now).cloned();
        assert_eq!(found(1, 1, Some(&ids[0])), Some(of("bb")));
        assert_eq!(found(1, 1, None), Some(of("aa")), "the first one brings the network");
        assert_eq!(found(1, 1, Some(&ids[1])), None);
        assert_eq!(found(1, 2, None), None);
        assert_eq!(found(2, 1, None), None);
    }

    #[test]
    fn without_cookies_only_a_known_container_is_found() {
        let (mut all, now) = (Descriptions::default(), Instant::now());
        let namespace = NamespaceId { inode: 1, cookie: None };
        let old = Place { owner: uid(1), namespace };
        all.keep(old, of("aa"), now);
        assert_eq!(all.of(old, None, now), None);
        assert!(all.of(old, Some(&of("aa").container), now).is_some());
    }

    #[test]
    fn it_is_forgotten_with_time_and_by_more_of_the_same_owner_alone() {
        let (mut all, now) = (Descriptions::default(), Instant::now());
        all.keep(ns(1, 0), of("aa"), now);
        assert_eq!(all.of(ns(1, 0), None, now + KEPT), None);
        all.keep(ns(2, 0), of("aa"), now);
        for n in 1..=EACH as u64 {
            all.keep(ns(1, n), of("aa"), now);
        }
        assert_eq!(all.of(ns(1, 0), None, now), None);
        assert!(all.of(ns(2, 0), None, now).is_some());
        all.keep(ns(3, 0), of("aa"), now + KEPT);
        assert_eq!(all.0.len(), 1, "nobody is remembered");
    }
}
