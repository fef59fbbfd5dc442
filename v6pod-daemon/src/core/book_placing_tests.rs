use std::convert::Infallible;
use std::time::{Duration, Instant};

use v6pod_proto::wishes::OtherWishes;
use v6pod_proto::{Mode, Wishes};

use super::*;
use crate::core::attachment::NamespaceId;
use crate::core::book::{Refusal, Terms, Wanted};
use crate::core::open::OpenPorts;
use crate::core::secret::Secret;

fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

fn walk(seed: u64) -> impl FnMut() -> Result<u128, Infallible> {
    let mut state = 2 * u128::from(seed) + 1;
    move || {
        state = state.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).wrapping_add(1);
        Ok(state.rotate_left(64))
    }
}

fn book(prefix: &str, slice: Option<u8>) -> Book {
    Book::new(Terms {
        prefix: prefix.parse().unwrap(),
        mtu: 1500,
        mode: Mode::Bridge,
        quarantine: Duration::from_secs(300),
        per_owner: 1000,
        slice,
        secret: Secret::new(1),
    })
}

fn another(prefix: &str) -> Book {
    book(prefix, None)
}

/// A container of this owner's asks for this, in its `n`th namespace.
fn ask(
    book: &mut Book,
    (owner, container, n): (u32, u64, u64),
    choice: Choice,
) -> Result<AttachmentId, Refusal<Infallible>> {
    let wanted = Wanted {
        owner: uid(owner),
        container: Some(format!("{container:064x}").parse().unwrap()),
        name: None,
        wishes: Wishes::default(),
        found: OtherWishes::default(),
        choice,
        subnet: None,
        open: OpenPorts::default(),
        namespace: NamespaceId { inode: n, cookie: Some(n) },
        interface: "eth0".parse().unwrap(),
        holder: None,
        lease: true,
        since: 0,
        network: None,
        attempt: None,
    };
    let id = book.reserve(wanted, Instant::now(), walk(n))?.id.clone();
    assert!(book.wired(&id, u32::try_from(n).unwrap()));
    book.serving(&id);
    Ok(id)
}

fn address(book: &Book, id: &AttachmentId) -> Ipv6Addr {
    book.find(id).unwrap().port.address
}

fn stable(name: &str) -> Choice {
    Choice::Stable(name.into())
}

/// Ends it, and lets its address rest.
fn end(book: &mut Book, id: &AttachmentId) {
    book.begin_release(id);
    book.forget(id, Instant::now());
}

#[test]
fn a_stable_address_comes_again_at_once_and_in_another_book() {
    let mut book = book("2001:db8::/80", None);
    let first = ask(&mut book, (1, 1, 1), stable("web")).unwrap();
    let there = address(&book, &first);
    end(&mut book, &first);
    let second = ask(&mut book, (1, 2, 2), stable("web")).unwrap();
    assert_eq!(address(&book, &second), there);
    // Another's of the same name, and another name of his, are elsewhere.
    let bobs = ask(&mut book, (2, 3, 3), stable("web")).unwrap();
    let other = ask(&mut book, (1, 4, 4), stable("db")).unwrap();
    assert!(address(&book, &bobs) != there && address(&book, &other) != there);
    // The host part is the same in another prefix.
    let mut elsewhere = another("2001:db8:9::/80");
    let again = ask(&mut elsewhere, (1, 1, 1), stable("web")).unwrap();
    let host = |address: Ipv6Addr| address.to_bits() & ((1 << 48) - 1);
    assert_eq!(host(address(&elsewhere, &again)), host(there));
}

#[test]
fn two_of_one_name_are_told_apart_and_an_earlier_start_is_waited_for() {
    let mut book = book("2001:db8::/80", None);
    let first = ask(&mut book, (1, 1, 1), stable("web")).unwrap();
    let second = ask(&mut book, (1, 2, 2), stable("web")).unwrap();
    assert_ne!(address(&book, &first), address(&book, &second));
    // The same container, started again before its last start has gone.
    let soon = Err(Refusal::Spot(NoSpot::Soon(first.clone())));
    assert_eq!(ask(&mut book, (1, 1, 3), stable("web")), soon);
    // Another one of that name, while the first is on its way out.
    book.begin_release(&first);
    assert_eq!(ask(&mut book, (1, 3, 3), stable("web")), soon);
    assert!(ask(&mut book, (2, 3, 4), stable("web")).is_ok(), "nobody waits for another's");
    let there = address(&book, &first);
    book.forget(&first, Instant::now());
    let third = ask(&mut book, (1, 3, 5), stable("web")).unwrap();
    assert_eq!(address(&book, &third), there);
}

#[test]
fn a_wished_address_is_given_once_and_to_nobody_too_soon() {
    let mut book = book("2001:db8::/112", None);
    let first = ask(&mut book, (1, 1, 1), Choice::Host(0x42)).unwrap();
    let there: Ipv6Addr = "2001:db8::42".parse().unwrap();
    assert_eq!(address(&book, &first), there);
    let taken = Err(Refusal::Spot(NoSpot::Taken(there)));
    assert_eq!(ask(&mut book, (1, 2, 2), Choice::Host(0x42)), taken);
    for (n, host) in [(7, 0x42), (8, 0x1_0000), (9, 1)] {
        let elsewhere = ask(&mut book, (1, n, n), Choice::Preferably(host)).unwrap();
        assert_ne!(address(&book, &elsewhere), there);
    }
    let preferred = ask(&mut book, (1, 10, 10), Choice::Preferably(0x43)).unwrap();
    assert_eq!(address(&book, &preferred).to_string(), "2001:db8::43");
    end(&mut book, &first);
    assert_eq!(ask(&mut book, (2, 2, 2), Choice::Host(0x42)), taken, "it rests");
    assert!(ask(&mut book, (1, 2, 3), Choice::Host(0x42)).is_ok());
    for host in [0x1_0000, 1] {
        let range = "2001:db8::/112".parse().unwrap();
        let outside = Err(Refusal::Spot(NoSpot::Outside { host, range }));
        assert_eq!(ask(&mut book, (1, 3, 4), Choice::Host(host)), outside, "{host:x}");
    }
}

#[test]
fn another_owner_may_have_a_wished_address_once_it_has_rested_though_nobody_has_drawn() {
    let mut book = book("2001:db8::/112", None);
    let first = ask(&mut book, (1, 1, 1), Choice::Host(0x42)).unwrap();
    let there = address(&book, &first);
    book.begin_release(&first);
    let ended = Instant::now();
    book.forget(&first, ended);
    let mut at = |seconds| {
        let now = ended + Duration::from_secs(seconds);
        book.spot(uid(2), None, &Choice::Host(0x42), None, now)
    };
    assert_eq!(at(299), Err(NoSpot::Taken(there)));
    assert_eq!(at(300), Ok(Spot::At(there)));
}

#[test]
fn with_slices_everything_of_an_owner_is_in_his() {
    let mut book = book("2001:db8::/112", Some(116));
    let mut slices = std::collections::HashSet::new();
    for owner in 1..=16 {
        let n = u64::from(owner) * 10;
        let any = ask(&mut book, (owner, n, n), Choice::Any).unwrap();
        let stable = ask(&mut book, (owner, n + 1, n + 1), stable("web")).unwrap();
        let host = ask(&mut book, (owner, n + 2, n + 2), Choice::Host(0x42)).unwrap();
        let slice = book.range(uid(owner)).unwrap();
        assert!(slices.insert(slice), "{slice} twice");
        for id in [any, stable, host.clone()] {
            assert!(slice.contains(address(&book, &id)));
        }
        assert_eq!(address(&book, &host), slice.address(0x42));
    }
    let full = Err(Refusal::Spot(NoSpot::Slices("2001:db8::/112".parse().unwrap())));
    assert_eq!(ask(&mut book, (17, 1, 1), Choice::Any), full);
    assert_eq!(book.new_slices().unwrap().len(), 16);
    assert_eq!(book.new_slices(), None);
}

#[test]
fn fourteen_have_a_slash_124_and_the_fifteenth_is_told() {
    let mut book = book("2001:db8::/124", None);
    let all: std::collections::HashSet<_> = (1..=14)
        .map(|n| {
            let id = ask(&mut book, (1, n, n), Choice::Any).unwrap();
            address(&book, &id)
        })
        .collect();
    assert_eq!(all.len(), 14);
    let full = ask(&mut book, (1, 15, 15), Choice::Any).unwrap_err();
    assert_eq!(full.to_string(), "2001:db8::/124 has no address left");
    // Also one that asks for a stable one.
    assert!(matches!(ask(&mut book, (1, 15, 15), stable("x")), Err(Refusal::Addresses(_))));
}

#[test]
fn the_first_address_is_replaced_and_what_a_crash_leaves_of_it_goes() {
    let mut book = book("2001:db8::/80", None);
    let id = ask(&mut book, (1, 1, 1), Choice::Any).unwrap();
    let first = address(&book, &id);
    let (there, now) = (Ipv6Addr::from_bits(first.to_bits() ^ 0xff00), Instant::now());
    let (recorded, also) = book.replace(&id, there, now).unwrap();
    assert_eq!((also.address, address(&book, &id)), (there, first));
    assert!(book.is_replacing(&id) && book.replace(&id, there, now).is_none());
    assert_eq!(book.leaving(0), [], "somebody is at it");
    assert_eq!(book.by_address(there).map(|a| a.id.clone()), Some(id.clone()));

    // A crash here: the next daemon takes away what was coming.
    let mut next = another("2001:db8::/80");
    assert!(next.adopt(recorded, 1));
    assert_eq!(next.leaving(0), [(id.clone(), also)]);
    next.let_go(&id, there.into(), Instant::now()).unwrap();
    assert_eq!((address(&next, &id), next.leaving(0)), (first, vec![]));

    // Else the first one goes.
    let moved = book.arrive(&id, there, 0).unwrap().clone();
    book.replaced(&id);
    assert_eq!(moved.port.address, there);
    let left = book.leaving(0);
    assert_eq!(left.iter().map(|(_, also)| also.address).collect::<Vec<_>>(), [first]);
    let mut next = another("2001:db8::/80");
    assert!(next.adopt(moved, 1));
    assert_eq!(next.leaving(0), left);
    book.let_go(&id, first.into(), Instant::now()).unwrap();
    assert_eq!((book.leaving(0), book.by_address(first).is_none()), (vec![], true));
}

#[test]
fn who_did_not_get_the_address_that_he_asks_for_is_not_taken_for_served() {
    let asks = Wishes::read([("v6pod.address", "stable"), ("v6pod.name", "web")]).unwrap();
    let mut found = OtherWishes { pod_labels: asks.clone(), ..OtherWishes::default() };
    found.labels = asks.clone();
    let left = |a: &Attachment| {
        let all = [&a.wishes, &a.found.pod_labels, &a.found.labels];
        assert!(all.iter().all(|wishes| wishes.name.is_some()), "the rest of it counts");
        Choice::said(&a.wishes, &a.found)
    };
    let container = format!("{:064x}", 1).parse().unwrap();
    let begun = || {
        let mut book = book("2001:db8::/80", None);
        let id = ask(&mut book, (1, 1, 1), Choice::Any).unwrap();
        book.describe(&id, &container, &asks, &found).unwrap();
        let there = Ipv6Addr::from_bits(address(&book, &id).to_bits() ^ 0xff00);
        let (recorded, _) = book.replace(&id, there, Instant::now()).unwrap();
        assert!(Choice::said(&recorded.wishes, &recorded.found).is_some());
        (book, id, there, recorded)
    };
    let (mut book, id, _, _) = begun();
    assert_eq!(left(book.not_replaced(&id).unwrap()), None);
    assert!(!book.is_replacing(&id) && book.leaving(0).len() == 1);

    // By a daemon that died.
    let (_, id, _, recorded) = begun();
    let mut next = another("2001:db8::/80");
    assert!(next.adopt(recorded, 1));
    assert_eq!(left(next.find(&id).unwrap()), None);

    // Who has it has what he asks for.
    let (mut book, id, there, _) = begun();
    let moved = book.arrive(&id, there, 0).unwrap().clone();
    assert!(left(&moved).is_some());
    let mut next = another("2001:db8::/80");
    assert!(next.adopt(moved, 1));
    assert!(left(next.find(&id).unwrap()).is_some());
}

#[test]
fn what_asks_for_nothing_stays_and_what_is_there_already_too() {
    let mut book = book("2001:db8::/80", None);
    let id = ask(&mut book, (1, 1, 1), stable("web")).unwrap();
    let there = address(&book, &id);
    let mut spot = |choice| book.spot(uid(1), None, &choice, Some(&id), Instant::now()).unwrap();
    assert_eq!(spot(Choice::Any), Spot::Anywhere);
    assert_eq!(spot(stable("web")), Spot::At(there));
}
