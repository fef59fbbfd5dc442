//! Who may attach containers, and who operates the daemon.
//!
//! Guarantees: a uid without an account attaches nothing. (Else a user could be as many as he has
//! subordinate ids, each with connections, turns and a quota of its own.) What `limits.users` and
//! `limits.operators` say is asked of the accounts and groups that the system knows now, at most
//! [`FRESH`] ago. The system's databases can be slow (NSS): they are asked on threads that may hang,
//! and who cannot be looked up is no operator and nobody listed.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Group, User, getgrouplist};
use v6pod_proto::Uid;

use crate::config::{People, Who};
use crate::container::{Limits, reader::Reader};

/// How long an answer about a user is good.
const FRESH: Duration = Duration::from_secs(5);

/// How many answers are kept. There are not many more users on a machine; others are asked again.
const KEPT: usize = 1024;

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Has an account. What cannot be told counts as one.
    pub account: bool,
    /// May have attachments of his own.
    pub attaches: bool,
    /// Sees and changes all, on the unix socket.
    pub operates: bool,
}

impl Standing {
    /// root's: the configuration cannot take it away.
    pub const ROOT: Self = Self { account: true, attaches: true, operates: true };
}

/// The rules, and who was looked up lately.
#[derive(Debug)]
pub struct Access {
    users: People,
    operators: People,
    reader: Reader,
    known: Mutex<HashMap<Uid, (Instant, Standing)>>,
}

impl Access {
    /// These users may attach, these operate.
    pub fn new(users: People, operators: People) -> Self {
        Self { users, operators, reader: Reader::new(Limits::default()), known: Mutex::default() }
    }

    /// What this user may do.
    pub async fn of(&self, uid: Uid) -> Standing {
        if uid.is_root() {
            return Standing::ROOT;
        }
        let now = Instant::now();
        let remembered = self.known().get(&uid).copied();
        if let Some((_, standing)) =
            remembered.filter(|(asked, _)| now.duration_since(*asked) < FRESH)
        {
            return standing;
        }
        let (users, operators) = (self.users.clone(), self.operators.clone());
        let ask = move || Identity::look_up(uid).map(|who| who.standing(&users, &operators));
        let standing = match self.reader.run(uid, ask).await {
            Ok(Some(standing)) => standing,
            Ok(None) | Err(_) => {
                tracing::warn!(%uid, "cannot look a user up; only what holds for all holds for him");
                Identity::unknown(uid).standing(&self.users, &self.operators)
            }
        };
        let mut known = self.known();
        if known.len() >= KEPT {
            known.retain(|_, (asked, _)| now.duration_since(*asked) < FRESH);
        }
        if known.len() < KEPT {
            known.insert(uid, (now, standing));
        }
        standing
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Uid, (Instant, Standing)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the system knows of a uid.
#[derive(Debug)]
struct Identity {
    uid: Uid,
    account: bool,
    name: Option<String>,
    groups: Vec<u32>,
}

impl Identity {
    /// Blocks. None if the databases do not answer.
    fn look_up(uid: Uid) -> Option<Self> {
        let user = User::from_uid(uid.as_raw().into()).ok()?;
        let Some(user) = user else {
            return Some(Self { account: false, ..Self::unknown(uid) });
        };
        let name = CString::new(user.name.as_str()).ok()?;
        let groups = getgrouplist(&name, user.gid).ok()?;
        let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
        Some(Self { uid, account: true, name: Some(user.name), groups })
    }

    const fn unknown(uid: Uid) -> Self {
        Self { uid, account: true, name: None, groups: Vec::new() }
    }

    /// Blocks: a group's name is looked up.
    fn standing(&self, users: &People, operators: &People) -> Standing {
        let account = self.account;
        Standing {
            account,
            attaches: account && self.is_among(users),
            operates: account && self.is_among(operators),
        }
    }

    fn is_among(&self, people: &People) -> bool {
        people.0.iter().any(|who| match who {
            Who::Everybody => true,
            Who::User(name) => {
                self.name.as_deref() == Some(name) || is_number(name, self.uid.as_raw())
            }
            Who::Group(_) if self.groups.is_empty() => false,
            Who::Group(name) => {
                let named = || Group::from_name(name).ok().flatten().map(|g| g.gid.as_raw());
                self.groups.iter().any(|&gid| is_number(name, gid))
                    || named().is_some_and(|gid| self.groups.contains(&gid))
            }
        })
    }
}

fn is_number(text: &str, number: u32) -> bool {
    text.parse() == Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn people(who: &[&str]) -> People {
        People(who.iter().map(|who| who.parse().unwrap()).collect())
    }

    fn someone() -> Identity {
        let groups = vec![5000, 0];
        let uid = Uid::new(1234).unwrap();
        Identity { uid, account: true, name: Some("alice".into()), groups }
    }

    #[test]
    fn users_and_groups_are_meant_by_name_and_by_number() {
        for list in [&["*"][..], &["alice"], &["bob", "1234"], &["@5000"], &["@root"]] {
            assert!(someone().is_among(&people(list)), "{list:?}");
        }
        for list in [&[][..], &["bob"], &["5000"], &["@1234"], &["@alice"], &["@no-such-group"]] {
            assert!(!someone().is_among(&people(list)), "{list:?}");
        }
    }

    #[test]
    fn who_has_no_account_may_nothing_and_who_cannot_be_looked_up_what_all_may() {
        let nobody = Identity { account: false, ..Identity::unknown(Uid::new(9).unwrap()) };
        let standing = nobody.standing(&people(&["*", "9"]), &people(&["9"]));
        assert_eq!(standing, Standing { account: false, attaches: false, operates: false });
        let unknown = Identity::unknown(Uid::new(9).unwrap());
        assert!(unknown.standing(&people(&["*"]), &people(&[])).attaches);
        assert!(!unknown.standing(&people(&["alice", "@root"]), &people(&["@root"])).attaches);
    }

    #[tokio::test]
    async fn the_systems_accounts_are_asked() {
        let access = Access::new(people(&["@daemon"]), people(&["daemon"]));
        let daemon = User::from_name("daemon").unwrap().unwrap();
        let standing = access.of(Uid::new(daemon.uid.as_raw()).unwrap()).await;
        assert!(standing.attaches && standing.operates, "{standing:?}");
        let none = access.of(Uid::new(3_999_999_999).unwrap()).await;
        assert!(!none.account && !none.attaches && !none.operates, "{none:?}");
        assert_eq!(access.of(Uid::ROOT).await, Standing::ROOT);
    }
}
