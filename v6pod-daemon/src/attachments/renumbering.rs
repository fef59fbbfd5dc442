//! Running containers follow the prefix (RFC 4192): another address, another gateway, the old one deprecated,
//! the name, and after the grace the old one goes. None is restarted.
//!
//! Guarantees: what is to be done follows from the book and the prefix alone, so it is the same after a crash,
//! and each step can be done again. The record says what a step is about to make before the kernel is
//! touched, and that something is gone after it is. A container whose namespace cannot be found, for it has no
//! process yet, stays where it is and is looked for again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::Ipv6Net;
use tokio::time::{sleep_until, timeout};
use v6pod_proto::{AttachmentId, Happening};

use super::reserving::random;
use super::{Shared, proxying, subnets};
use crate::config::PrefixSource;
use crate::core::attachment::{Attachment, NamespaceId};
use crate::core::step::{Also, Port};
use crate::failpoint;
use crate::kernel::renumber::{self, processes_in};
use crate::kernel::{self, NetNs, Process, Worker};

/// When those are looked for again that could not be moved, at first and at last.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];

/// How much longer than the grace Linux itself keeps an old address, should no daemon be there to take it away.
const SLACK: Duration = Duration::from_secs(300);

/// How often the file of `prefix = "file:..."` is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Larger than what says one prefix; what is behind it is not read.
const LARGEST: u64 = 4096;

/// Has everybody follow the prefix, for as long as the daemon runs.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut pause = AGAIN[0];
    loop {
        if shared.switch_prefix().await {
            pause = AGAIN[0];
        }
        let left = pass(&shared).await;
        shared.retire_prefixes().await;
        let now = Instant::now();
        let again = left.then(|| now + pause);
        let leaves = shared.ledger().book.next_leaves();
        let leaves = leaves.map(|at| now + Duration::from_secs(at.saturating_sub(epoch()).max(1)));
        let settles = shared.changing.settles_at().map(|at| at.max(now + AGAIN[0] / 2));
        let next = [again, leaves, settles].into_iter().flatten().min();
        let woken = shared.changing.woken.notified();
        match next {
            None => woken.await,
            Some(at) => tokio::select! {
                () = woken => pause = AGAIN[0],
                () = sleep_until(at.into()) => pause = (pause * 2).min(AGAIN[1]),
            },
        }
    }
}

/// Moves whom it can, and takes away what has had its time. True if there is somebody whom it could not move.
async fn pass(shared: &Arc<Shared>) -> bool {
    let now = epoch();
    let (outside, leaving) = {
        let ledger = shared.ledger();
        let outside: Vec<_> = ledger.book.outside().cloned().collect();
        (outside, ledger.book.leaving(now))
    };
    let behind = subnets::outside(shared);
    if outside.is_empty() && behind.is_empty() && leaving.is_empty() {
        return false;
    }
    let mut wanted: HashSet<u64> =
        outside.iter().chain(&behind).map(|a| a.namespace.inode).collect();
    wanted.extend(
        leaving
            .iter()
            .filter_map(|(id, _)| shared.ledger().book.find(id).map(|a| a.namespace.inode)),
    );
    let look = move |_: &mut Worker| processes_in(&wanted);
    let found = match shared.sweeper.run(look).await {
        Ok(found) => Arc::new(found),
        Err(error) => {
            tracing::warn!(%error, "cannot look for containers");
            return true;
        }
    };
    let mut left = false;
    for a in outside {
        left |= !bring(shared, &a.id, &found, bring_now).await;
    }
    // Behind the addresses: a subnet follows the one that its attachment is known by.
    for a in subnets::outside(shared) {
        left |= !bring(shared, &a.id, &found, subnets::bring).await;
    }
    for (id, also) in leaving {
        left |= !let_go(shared, &id, also, &found).await;
    }
    if !left {
        proxying::settle(shared).await;
    }
    left
}

type Found = Arc<HashMap<u64, Vec<u32>>>;

/// How one follows the prefix: with its address, or with its subnet.
type Bring = fn(
    &Shared,
    &mut Worker,
    &AttachmentId,
    &HashMap<u64, Vec<u32>>,
) -> Result<Moved, kernel::Error>;

/// True if the attachment needs nothing more.
async fn bring(shared: &Arc<Shared>, id: &AttachmentId, found: &Found, how: Bring) -> bool {
    let (state, id, found) = (Arc::clone(shared), id.clone(), Arc::clone(found));
    let work = {
        let id = id.clone();
        move |worker: &mut Worker| how(&state, worker, &id, &found)
    };
    match shared.workers.run(work).await {
        Ok(Moved::Now(a)) => {
            tracing::info!(
                attachment = %a.id, owner = %a.owner, address = %a.port.address, "renumbered"
            );
            shared.tell(Happening::Renumbered, &a, None, None);
            shared.name_in_background(&a);
            true
        }
        Ok(Moved::Not) => true,
        Ok(Moved::Later(why)) => {
            tracing::debug!(attachment = %id, why, "cannot be renumbered yet");
            false
        }
        Err(error) => {
            tracing::warn!(attachment = %id, %error, "cannot be renumbered yet");
            false
        }
    }
}

/// What became of one.
pub(super) enum Moved {
    /// It has its new address.
    Now(Box<Attachment>),
    /// It needs none.
    Not,
    /// It is to be tried again.
    Later(&'static str),
}

fn bring_now(
    shared: &Shared,
    worker: &mut Worker,
    id: &AttachmentId,
    found: &HashMap<u64, Vec<u32>>,
) -> Result<Moved, kernel::Error> {
    let brought = {
        let mut ledger = shared.ledger();
        let prefix = ledger.book.terms().prefix;
        if ledger.book.find(id).is_none_or(|a| prefix.contains(a.port.address)) {
            return Ok(Moved::Not);
        }
        let brought = match ledger.book.bring(id, Instant::now(), random) {
            Ok(Some((a, also))) => (a.clone(), also),
            Ok(None) => return Ok(Moved::Later("it is being made, or the prefix is full")),
            Err(_) => return Ok(Moved::Later("no random numbers")),
        };
        shared.keep_slices(&mut ledger);
        // Under the book's lock, as all records of what changes are written.
        if let Err(error) = shared.records.write(&brought.0) {
            tracing::error!(attachment = %id, %error, "cannot write a record");
            return Ok(Moved::Later("its record cannot be written"));
        }
        brought
    };
    let (a, also) = brought;
    failpoint::reach("renumbering:coming");
    let Some(ifindex) = a.ifindex else { return Ok(Moved::Later("it is being made")) };
    let (host, new) = (shared.host(), a.port.with(&also));
    {
        let _rules = shared.rules.hold();
        let _alone = shared.rules.change_alone();
        // What is open of it may be another thing by now.
        let open = shared.ledger().book.open_of(id, also.net());
        let Some(open) = open else { return Ok(Moved::Not) };
        let new = Port { open, ..new.clone() };
        let made = renumber::make_ready(worker, &host, &new, ifindex);
        // If it ended meanwhile, its undo may have come before this.
        let ended = shared.ledger().book.find(id).is_none_or(|a| a.phase.shown().is_none());
        if ended {
            renumber::unmake(worker, &host, &new, ifindex)?;
            return Ok(Moved::Not);
        }
        made?;
    }
    failpoint::reach("renumbering:ready");
    let Some(namespace) = namespace_of(worker, &a, found) else {
        return Ok(Moved::Later("no process of it is found"));
    };
    // Of subnets the container has no address.
    let alone = a.port.also.iter().filter(|also| also.subnet.is_none());
    let others = [a.port.address].into_iter().chain(alone.map(|also| also.address));
    let others: Vec<_> = others.filter(|other| *other != new.address).collect();
    let grace = shared.config.grace;
    let valid = u32::try_from((grace + SLACK).as_secs()).unwrap_or(u32::MAX - 1);
    if !renumber::arrive(worker, &host, &namespace, &new, &others, valid)? {
        return Ok(Moved::Later("its interface is not there"));
    }
    drop(namespace);
    failpoint::reach("renumbering:arrived");
    let mut ledger = shared.ledger();
    let until = epoch().saturating_add(grace.as_secs());
    let Some(a) = ledger.book.arrive(id, new.address, until).cloned() else {
        return Ok(Moved::Not);
    };
    if ledger.book.find(id).is_some_and(|a| a.phase.shown().is_some())
        && let Err(error) = shared.records.write(&a)
    {
        // The one before says what is coming, which the next daemon does again.
        tracing::warn!(attachment = %id, %error, "cannot record the new address");
    }
    drop(ledger);
    failpoint::reach("renumbering:moved");
    Ok(Moved::Now(Box::new(a)))
}

/// Takes away what has had its time. True if it is gone.
async fn let_go(shared: &Arc<Shared>, id: &AttachmentId, also: Also, found: &Found) -> bool {
    let (state, id, found) = (Arc::clone(shared), id.clone(), Arc::clone(found));
    let work = {
        let id = id.clone();
        move |worker: &mut Worker| let_go_now(&state, worker, &id, also, &found)
    };
    // Its flows are looked for among all: not on a request's thread.
    match shared.sweeper.run(work).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                attachment = %id, address = %also.address, %error,
                "cannot take the old address away yet"
            );
            false
        }
    }
}

fn let_go_now(
    shared: &Shared,
    worker: &mut Worker,
    id: &AttachmentId,
    also: Also,
    found: &Found,
) -> Result<(), kernel::Error> {
    let Some(a) = shared.ledger().book.find(id).cloned() else { return Ok(()) };
    let namespace = namespace_of(worker, &a, found);
    let_go_at(shared, worker, id, also, namespace.as_ref())
}

/// The same, inside too if its namespace is known.
pub(super) fn let_go_at(
    shared: &Shared,
    worker: &mut Worker,
    id: &AttachmentId,
    also: Also,
    namespace: Option<&NetNs>,
) -> Result<(), kernel::Error> {
    // Until the book knows it too: whoever loads the rules meanwhile would load its elements again, and what is
    // given at last would be taken away.
    let _rules = shared.rules.hold();
    let _alone = shared.rules.change_alone();
    let Some(a) = shared.ledger().book.find(id).cloned() else { return Ok(()) };
    // It may have been taken up again, or be on its way out, since it was chosen.
    let leaves = shared.ledger().book.leaving(epoch());
    let Some(ifindex) = a.ifindex.filter(|_| leaves.contains(&(id.clone(), also))) else {
        return Ok(());
    };
    let (host, old) = (shared.host(), a.port.with(&also));
    // Where no process of it is found nobody can use the address either; Linux ends it by its lifetime.
    if let Some(namespace) = namespace {
        let keep = a.port.gateway;
        let left = match also.subnet {
            None => renumber::leave(worker, &host, namespace, &old, keep),
            Some(_) => renumber::leave_subnet(worker, &host, namespace, &old, also.net()),
        };
        match left {
            Ok(_) => {}
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    failpoint::reach("renumbering:left");
    renumber::unmake(worker, &host, &old, ifindex)?;
    failpoint::reach("renumbering:unmade");
    let mut ledger = shared.ledger();
    shared.note_rest_of(also.net(), a.owner);
    if let Some(a) = ledger.book.let_go(id, also.net(), Instant::now())
        && a.phase.shown().is_some()
        && let Err(error) = shared.records.write(a)
    {
        tracing::warn!(attachment = %id, %error, "cannot record that the old address is gone");
    }
    drop(ledger);
    shared.rested.notify_waiters();
    failpoint::reach("renumbering:gone");
    tracing::debug!(attachment = %id, address = %also.address, "the old address is gone");
    Ok(())
}

/// The attachment's namespace, by one of these processes. Whether it is that is asked after it was opened:
/// numbers of processes and namespaces are given again.
pub(super) fn namespace_of(
    worker: &mut Worker,
    a: &Attachment,
    found: &HashMap<u64, Vec<u32>>,
) -> Option<NetNs> {
    let witnesses = found.get(&a.namespace.inode)?;
    witnesses.iter().find_map(|pid| {
        let opened = Process::pin(*pid).and_then(|process| process.net_ns()).ok()?;
        let namespace = NetNs::verify(opened, worker.home()).ok()?;
        let seen = worker.identify(&namespace).ok()?;
        let seen = NamespaceId { inode: seen.inode, cookie: seen.cookie };
        (a.namespace.is(&seen) && namespace.owner() == a.owner).then_some(namespace)
    })
}

/// Hears what the file of `prefix = "file:..."` says, for as long as the daemon runs; at once if that is
/// another source.
pub(super) async fn watch_file(shared: Arc<Shared>) {
    let PrefixSource::File(path) = shared.config.prefix.clone() else { return };
    let mut before = None;
    loop {
        let place = path.clone();
        let read = tokio::task::spawn_blocking(move || read_file(&place));
        // A file that cannot be read says nothing: the last good prefix stays.
        let said = timeout(LOOK * 10, read).await.ok().and_then(Result::ok).flatten();
        if said != before {
            if let Some(text) = &said {
                match parse_file(text) {
                    Some((range, valid)) => {
                        if let Err(refused) = shared.hear(range, valid, "file").await {
                            tracing::error!(file = %path.display(), "the prefix cannot be used: {refused}");
                        }
                    }
                    None => tracing::error!(
                        file = %path.display(), "does not say a prefix; the last good one stays"
                    ),
                }
            }
            before = said;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn read_file(path: &std::path::Path) -> Option<String> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut text = String::new();
    // A pipe is not waited for.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    file.take(LARGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The first line that is not empty and no comment: a range, and for how many seconds it is good if that is
/// known.
fn parse_file(text: &str) -> Option<(Ipv6Net, Option<Duration>)> {
    let mut lines = text.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let mut words = line.split_ascii_whitespace();
    let range = words.next()?.parse().ok()?;
    let valid = match words.next() {
        None => None,
        Some(seconds) => Some(Duration::from_secs(seconds.parse().ok()?)),
    };
    words.next().is_none().then_some((range, valid))
}

/// Seconds since the epoch.
pub(super) fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_a_range_and_perhaps_for_how_long() {
        let range: Ipv6Net = "2001:db8::/56".parse().unwrap();
        let hour = Some(Duration::from_secs(3600));
        for (text, said) in [
            ("2001:db8::/56\n", Some((range, None))),
            ("# by dhcpcd\n\n  2001:db8::/56 3600", Some((range, hour))),
            ("2001:db8::/56 0\nmore", Some((range, Some(Duration::ZERO)))),
            ("", None),
            ("# nothing\n", None),
            ("2001:db8::/56 soon", None),
            ("2001:db8::/56 1 2", None),
            ("2001:db8::", None),
        ] {
            assert_eq!(parse_file(text), said, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_file_says_nothing_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_file(dir.path()), None);
        assert_eq!(read_file(&dir.path().join("none")), None);
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_file(&pipe), None);
    }
}
