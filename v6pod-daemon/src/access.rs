//! Who may attach containers, and who operates the daemon.
//!
//! Guarantees: a uid without an account attaches nothing. (Else a user could be as many as he has
//! subordinate ids, each with connections, turns and a quota of its own.) What `limits.users` and
//! `limits.operators` say is asked of the accounts and groups that the system knows now, at most
//! [`FRESH`] ago. The system's databases can be slow (NSS): they are asked on threads that may hang,
//! once for a user however many connections he has. Who cannot be looked up is what he was found to
//! be before, but no operator; and if he never was, he is nobody: a crowd of subordinate ids must
//! not gain by keeping the databases busy.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Group, User, getgrouplist};
use tokio::sync::OnceCell;
use v6pod_proto::Uid;

use crate::config::{Allow, Config, People, Who};
use crate::container::{Limits, reader::Reader};
use crate::core::open::Rights;

/// How long an answer about a user is good.
const FRESH: Duration = Duration::from_secs(5);

/// How long it is not asked again where there was no answer.
const UNANSWERED: Duration = Duration::from_secs(1);

/// How many answers are kept. There are not many more users on a machine; others are asked again.
const KEPT: usize = 4096;

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether the system has told at all.
    pub known: bool,
    /// Has an account.
    pub account: bool,
    /// May have attachments of his own.
    pub attaches: bool,
    /// Sees and changes all, on the unix socket.
    pub operates: bool,
}

impl Standing {
    /// root's: the configuration cannot take it away.
    pub const ROOT: Self = Self { known: true, account: true, attaches: true, operates: true };

    /// Of whom nothing can be told.
    pub const UNKNOWN: Self =
        Self { known: false, account: false, attaches: false, operates: false };
}

/// The rules, and who was looked up lately.
#[derive(Debug)]
pub struct Access {
    users: People,
    operators: People,
    /// Who may open what; everybody every port if nobody has said.
    allow: Option<Vec<Allow>>,
    /// Who may ask for a certain address or a subnet.
    wished: People,
    reader: Reader,
    known: Mutex<HashMap<Uid, Arc<Question>>>,
}

/// A question about a user. All who have it wait for the one answer.
#[derive(Debug)]
struct Question {
    asked: Instant,
    /// What was answered the last time that there was an answer.
    before: Option<Answer>,
    /// `None` inside: there is no answer.
    answer: OnceCell<Option<Answer>>,
}

/// What was found out about a user.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    standing: Standing,
    rights: Rights,
    places: bool,
}

impl Question {
    fn new(before: Option<Answer>) -> Arc<Self> {
        Arc::new(Self { asked: Instant::now(), before, answer: OnceCell::new() })
    }

    fn is_fresh(&self) -> bool {
        let unanswered = self.answer.get().is_some_and(Option::is_none);
        self.asked.elapsed() < if unanswered { UNANSWERED } else { FRESH }
    }

    fn last(&self) -> Option<&Answer> {
        self.answer.get().and_then(Option::as_ref).or(self.before.as_ref())
    }

    /// Whether it is the one about somebody without an account: of these there can be very many.
    fn is_about_a_stranger(&self) -> bool {
        self.last().is_none_or(|answer| !answer.standing.account)
    }
}

impl Access {
    /// What this configuration says.
    pub fn new(config: &Config) -> Self {
        let Config { users, operators, allow, wished, .. } = config.clone();
        let reader = Reader::new(Limits::default());
        Self { users, operators, allow, wished, reader, known: Mutex::default() }
    }

    /// What this user may do.
    pub async fn of(&self, uid: Uid) -> Standing {
        if uid.is_root() {
            return Standing::ROOT;
        }
        let question = self.question(uid);
        let answer = question.answer.get_or_init(|| self.ask(uid)).await;
        let before = || {
            let before = question.before.as_ref()?;
            Some(Standing { operates: false, ..before.standing })
        };
        let now = answer.as_ref().map(|answer| answer.standing);
        now.or_else(before).unwrap_or(Standing::UNKNOWN)
    }

    /// Which ports this user may open; of who cannot be looked up, what he might before. `None` if nothing
    /// was ever told of him.
    pub async fn rights(&self, uid: Uid) -> Option<Rights> {
        if uid.is_root() || self.allow.is_none() {
            return Some(Rights::All);
        }
        let question = self.question(uid);
        question.answer.get_or_init(|| self.ask(uid)).await;
        question.last().map(|answer| answer.rights.clone())
    }

    /// Whether this user may ask for a certain address; of who cannot be looked up, whether he might
    /// before. `None` if nothing was ever told of him.
    pub async fn may_place(&self, uid: Uid) -> Option<bool> {
        if uid.is_root() {
            return Some(true);
        }
        if self.wished.0.is_empty() && self.operators.0.is_empty() {
            return Some(false);
        }
        let question = self.question(uid);
        question.answer.get_or_init(|| self.ask(uid)).await;
        question.last().map(|answer| answer.places)
    }

    /// What this user may do, if that was found out lately.
    pub fn known(&self, uid: Uid) -> Option<Standing> {
        let known = self.lock();
        let fresh = known.get(&uid).filter(|question| question.is_fresh());
        let answer = fresh.and_then(|question| question.answer.get()?.as_ref());
        answer.map(|answer| answer.standing)
    }

    async fn ask(&self, uid: Uid) -> Option<Answer> {
        let (users, operators) = (self.users.clone(), self.operators.clone());
        let (allow, wished) = (self.allow.clone(), self.wished.clone());
        let ask = move || {
            let who = Identity::look_up(uid)?;
            let standing = who.standing(&users, &operators);
            let rights = if standing.operates { Rights::All } else { who.rights(allow.as_deref()) };
            let places = standing.operates || (standing.account && who.is_among(&wished));
            Some(Answer { standing, rights, places })
        };
        let answer = self.reader.run(uid, ask).await.ok().flatten();
        if answer.is_none() {
            tracing::warn!(%uid, "cannot look a user up");
        }
        answer
    }

    /// The question about this user that is open or was answered lately, or a new one.
    fn question(&self, uid: Uid) -> Arc<Question> {
        let mut known = self.lock();
        let last = known.get(&uid);
        if let Some(fresh) = last.filter(|question| question.is_fresh()) {
            return Arc::clone(fresh);
        }
        let question = Question::new(last.and_then(|question| question.last().cloned()));
        if known.len() >= KEPT && !known.contains_key(&uid) {
            known.retain(|_, question| !question.is_about_a_stranger());
        }
        if known.len() < KEPT || known.contains_key(&uid) {
            known.insert(uid, Arc::clone(&question));
        }
        question
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uid, Arc<Question>>> {
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
            return Some(Self { uid, account: false, name: None, groups: Vec::new() });
        };
        let name = CString::new(user.name.as_str()).ok()?;
        let groups = getgrouplist(&name, user.gid).ok()?;
        let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
        Some(Self { uid, account: true, name: Some(user.name), groups })
    }

    /// Blocks: a group's name is looked up.
    fn standing(&self, users: &People, operators: &People) -> Standing {
        let account = self.account;
        Standing {
            known: true,
            account,
            attaches: account && self.is_among(users),
            operates: account && self.is_among(operators),
        }
    }

    /// Blocks likewise.
    fn rights(&self, allow: Option<&[Allow]>) -> Rights {
        let Some(allow) = allow else { return Rights::All };
        let own = allow.iter().filter(|allow| self.account && self.is_among(&allow.users));
        Rights::Only(own.flat_map(|allow| allow.ports.iter().copied()).collect())
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
    use v6pod_proto::wishes::Opening;

    use super::*;
    use crate::core::open::Allowed;

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
    fn who_has_no_account_may_nothing() {
        let nobody = Identity { account: false, name: None, ..someone() };
        let standing = nobody.standing(&people(&["*", "1234"]), &people(&["1234"]));
        assert_eq!(standing, Standing { known: true, ..Standing::UNKNOWN });
    }

    #[tokio::test]
    async fn attack_26_who_cannot_be_looked_up_is_nobody_or_what_he_was_but_no_operator() {
        let uid = Uid::new(1234).unwrap();
        let config = Config {
            users: people(&["*"]),
            operators: people(&["*"]),
            allow: Some(vec![]),
            ..Config::default()
        };
        let access = Access::new(&config);
        let unanswered = |before: Option<Standing>| {
            let before =
                before.map(|standing| Answer { standing, rights: Rights::none(), places: true });
            let question = Question::new(before);
            question.answer.set(None).unwrap();
            access.lock().insert(uid, question);
        };
        unanswered(None);
        assert_eq!(access.of(uid).await, Standing::UNKNOWN);
        assert_eq!(access.rights(uid).await, None);
        unanswered(Some(Standing::ROOT));
        assert_eq!(access.of(uid).await, Standing { operates: false, ..Standing::ROOT });
        assert_eq!(access.rights(uid).await, Some(Rights::none()));
        // Where nobody is limited, nobody has to be looked up.
        let free = Access::new(&Config::default());
        assert_eq!(free.rights(uid).await, Some(Rights::All));
        assert!(free.lock().is_empty());
    }

    #[test]
    fn attack_22_a_user_opens_what_any_entry_that_means_him_allows() {
        let allow = |who: &[&str], ports: &[&str]| {
            let ports = ports.iter().map(|text| {
                let Opening { protocol, ports, .. } = text.parse().unwrap();
                Allowed { protocol, ports }
            });
            Allow { users: people(who), ports: ports.collect() }
        };
        let all = [
            allow(&["@5000"], &["tcp/80", "udp/53"]),
            allow(&["bob"], &["tcp/1-65535"]),
            allow(&["alice", "bob"], &["tcp/8000-8999"]),
        ];
        let Rights::Only(ports) = someone().rights(Some(&all)) else { panic!() };
        let firsts: Vec<_> = ports.iter().map(|allowed| allowed.ports.first()).collect();
        assert_eq!(firsts, [80, 53, 8000]);
        assert_eq!(someone().rights(None), Rights::All);
        assert_eq!(someone().rights(Some(&[])), Rights::none());
        let nobody = Identity { account: false, ..someone() };
        assert_eq!(nobody.rights(Some(&[allow(&["*"], &["tcp/1"])])), Rights::none());
    }

    #[tokio::test]
    async fn attack_26_a_crowd_asks_once_and_forgets_nobody_who_has_an_account() {
        let access = Access::new(&Config::default());
        let daemon = Uid::new(User::from_name("daemon").unwrap().unwrap().uid.as_raw()).unwrap();
        let first = access.question(daemon);
        assert!(access.of(daemon).await.account);
        for n in 0..=KEPT as u32 {
            access.question(Uid::new(3_000_000_000 + n).unwrap());
        }
        assert!(Arc::ptr_eq(&first, &access.question(daemon)));
        assert!(access.lock().len() <= KEPT);
    }

    #[tokio::test]
    async fn the_systems_accounts_are_asked() {
        let access = Access::new(&Config {
            users: people(&["@daemon"]),
            operators: people(&["daemon"]),
            ..Config::default()
        });
        let daemon = User::from_name("daemon").unwrap().unwrap();
        let standing = access.of(Uid::new(daemon.uid.as_raw()).unwrap()).await;
        assert!(standing.attaches && standing.operates, "{standing:?}");
        let none = access.of(Uid::new(3_999_999_999).unwrap()).await;
        assert!(!none.account && !none.attaches && !none.operates, "{none:?}");
        assert_eq!(access.of(Uid::ROOT).await, Standing::ROOT);
    }

    #[tokio::test]
    async fn addresses_are_asked_for_by_root_operators_and_whom_the_administrator_names() {
        let uid = |name| Uid::new(User::from_name(name).unwrap().unwrap().uid.as_raw()).unwrap();
        let (daemon, bin, sys) = (uid("daemon"), uid("bin"), uid("sys"));
        let nobody = Access::new(&Config::default());
        assert_eq!(nobody.may_place(daemon).await, Some(false));
        assert_eq!(nobody.may_place(Uid::ROOT).await, Some(true));
        let config = Config {
            operators: people(&["daemon"]),
            wished: people(&["@bin"]),
            ..Config::default()
        };
        let access = Access::new(&config);
        assert_eq!(access.may_place(daemon).await, Some(true));
        assert_eq!(access.may_place(bin).await, Some(true));
        assert_eq!(access.may_place(sys).await, Some(false));
        let stranger = Uid::new(3_999_999_999).unwrap();
        let all = Access::new(&Config { wished: people(&["*"]), ..Config::default() });
        assert_eq!(all.may_place(stranger).await, Some(false), "without an account");
        assert_eq!(all.may_place(sys).await, Some(true));
    }
}
