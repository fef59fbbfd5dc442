//! The life of attachments, event by event.

use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;
use v6pod_proto::wishes::{NameWish, OpeningList};
use v6pod_proto::{Change, OpenedBy};

use super::*;
use crate::core::choice::Choice;
use crate::core::open::{OpenPorts, Rights};
use crate::core::secret::Secret;

fn book(per_owner: usize) -> Book {
    Book::new(Terms {
        prefix: "2001:db8::/116".parse().unwrap(),
        mtu: 1500,
        mode: Mode::Bridge,
        quarantine: Duration::from_secs(300),
        per_owner,
        slice: None,
        secret: Secret::new(1),
    })
}

fn taken(book: &Book) -> usize {
    book.pool().taken_in(book.terms().prefix)
}

fn container(n: u64) -> ContainerId {
    format!("{n:064x}").parse().unwrap()
}

fn wanted(owner: u32, n: u64) -> Wanted {
    Wanted {
        owner: Uid::new(owner).unwrap(),
        container: Some(container(n)),
        name: None,
        wishes: Wishes::default(),
        found: OtherWishes::default(),
        choice: Choice::Any,
        subnet: None,
        open: OpenPorts::default(),
        namespace: NamespaceId { inode: n, cookie: Some(n) },
        interface: "eth0".parse().unwrap(),
        holder: None,
        lease: true,
        since: 0,
        network: None,
        attempt: None,
    }
}

fn walk(seed: u64) -> impl FnMut() -> Result<u128, Infallible> {
    let mut state = u128::from(seed) | 1;
    move || {
        state = state.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).wrapping_add(1);
        Ok(state.rotate_left(64))
    }
}

/// A book with one attachment that serves.
fn serving() -> (Book, AttachmentId, Generation) {
    let mut book = book(10);
    let made = book.reserve(wanted(1000, 1), Instant::now(), walk(1)).unwrap();
    let (id, generation) = (made.id.clone(), made.generation);
    assert!(book.wired(&id, 7));
    book.serving(&id);
    (book, id, generation)
}

#[test]
fn a_new_lease_takes_over_and_the_old_ones_end_means_nothing() {
    let (mut book, id, old) = serving();
    let address = book.find(&id).unwrap().port.address;
    assert!(book.ended(&id, old));
    let new = book.take_over(&id, None, true).unwrap().generation;
    assert!(!book.grace_over(&id, old));
    assert!(!book.ended(&id, old), "an old lease's end came late");
    assert_eq!(book.find(&id).unwrap().port.address, address);
    assert!(book.ended(&id, new) && book.grace_over(&id, new));
}

/// These ports of TCP, open to all.
fn opened(ports: std::ops::RangeInclusive<u16>) -> OpenPorts {
    let one = format!("tcp/{}-{}", ports.start(), ports.end()).parse().unwrap();
    let change = Change { openings: Some(OpeningList(vec![one])), ..Change::default() };
    OpenPorts::default().change(&change, OpenedBy::Owner, &Rights::All, Holes::MOST).unwrap()
}

#[test]
fn of_many_changes_the_kernel_follows_the_last_and_an_end_takes_all_away() {
    let (mut book, id, _) = serving();
    let [one, two, three] = [1..=1, 1..=2, 3..=3].map(opened);
    assert_eq!(book.follow(&id), None);
    assert_eq!(book.open(&id, one.clone()), Some(Holes::default()));
    assert_eq!(book.open(&id, two.clone()), Some(one.holes()));
    assert_eq!(book.follow(&id), Some((Holes::default(), two.holes())));
    assert_eq!(book.follow(&id), None, "the second change came into force with the first");
    // What the kernel still has goes too, though the book has closed it.
    book.open(&id, three.clone()).unwrap();
    let Released::Yours(released) = book.begin_release(&id) else { panic!() };
    assert_eq!(released.port.open, two.holes().and(&three.holes()));
    assert_eq!((book.follow(&id), book.open(&id, one)), (None, None));
    book.forget(&id, Instant::now());
    assert_eq!(book.room(released.owner, None), Holes::MOST_OF_OWNER);
}

#[test]
fn attack_25_an_owners_elements_are_counted_over_all_that_he_has() {
    let mut book = book(100);
    let mut random = walk(1);
    let mut ids = Vec::new();
    for n in 0..16 {
        let want = Wanted { open: opened(1..=1024), ..wanted(1000, n) };
        ids.push(book.reserve(want, Instant::now(), &mut random).unwrap().id.clone());
    }
    let (owner, other) = (Uid::new(1000).unwrap(), Uid::new(1001).unwrap());
    assert_eq!((book.room(owner, None), book.room(other, None)), (0, Holes::MOST_OF_OWNER));
    assert_eq!(book.room(owner, Some(&ids[0])), 1024);
    assert!(book.wired(&ids[0], 1));
    book.open(&ids[0], opened(1..=24)).unwrap();
    assert_eq!((book.room(owner, None), book.room(owner, Some(&ids[0]))), (1000, 1024));
    book.begin_release(&ids[1]);
    assert_eq!(book.room(owner, None), 1000, "until the kernel is rid of them");
    book.forget(&ids[1], Instant::now());
    assert_eq!(book.room(owner, None), 2024);
}

#[test]
fn a_namespace_in_motion_is_waited_for() {
    let mut book = book(10);
    let want = wanted(1000, 1);
    let id = book.reserve(want.clone(), Instant::now(), walk(1)).unwrap().id.clone();
    assert_eq!(book.at(want.owner, &want.namespace), Found::InMotion);
    book.wired(&id, 3);
    assert_eq!(book.at(want.owner, &want.namespace), Found::Attached(id.clone()));
    assert!(matches!(book.begin_release(&id), Released::Yours(_)));
    assert_eq!(book.at(want.owner, &want.namespace), Found::InMotion);
    book.forget(&id, Instant::now());
    assert_eq!(book.at(want.owner, &want.namespace), Found::Nothing);
}

#[test]
fn a_release_while_it_is_made_is_left_to_its_maker() {
    let mut book = book(10);
    let id = book.reserve(wanted(1000, 1), Instant::now(), walk(1)).unwrap().id.clone();
    assert_eq!(book.begin_release(&id), Released::ByItsMaker);
    assert!(!book.wired(&id, 3), "its maker must undo it");
    assert_eq!(book.begin_release(&id), Released::Already);
}

#[test]
fn one_owner_cannot_take_what_is_anothers_share() {
    let mut book = book(2);
    let mut random = walk(5);
    for n in 0..2 {
        book.reserve(wanted(1000, n), Instant::now(), &mut random).unwrap();
    }
    let refused = book.reserve(wanted(1000, 9), Instant::now(), &mut random);
    assert!(matches!(refused, Err(Refusal::Quota { limit: 2, .. })));
    assert!(book.reserve(wanted(1001, 9), Instant::now(), &mut random).is_ok());
}

#[test]
fn a_restart_in_a_new_namespace_needs_no_second_share() {
    let mut book = book(1);
    let mut random = walk(5);
    let first = wanted(1000, 1);
    let again = Wanted { namespace: NamespaceId { inode: 2, cookie: Some(2) }, ..first.clone() };
    let id = book.reserve(first, Instant::now(), &mut random).unwrap().id.clone();
    book.wired(&id, 3);
    assert_eq!(book.starts_of(again.owner, &container(1)), std::slice::from_ref(&id));
    book.reserve(again.clone(), Instant::now(), &mut random).unwrap();
    book.begin_release(&id);
    // The first one is being taken away and the second one is there: that is a share and more.
    let third = Wanted { namespace: NamespaceId { inode: 3, cookie: Some(3) }, ..again };
    assert!(matches!(book.reserve(third, Instant::now(), &mut random), Err(Refusal::Quota { .. })));
}

#[test]
fn a_container_is_known_once_it_has_been_said_and_its_wishes_add_up() {
    let mut book = book(10);
    let nameless = Wanted { container: None, ..wanted(1000, 1) };
    let id = book.reserve(nameless, Instant::now(), walk(6)).unwrap().id.clone();
    book.wired(&id, 3);
    let owner = Uid::new(1000).unwrap();
    assert!(!book.find(&id).unwrap().is_identified());
    assert_eq!(book.of_container(owner, &container(1)), None);

    let named = Wishes::read([("v6pod.name", "web")]).unwrap();
    assert!(
        book.describe(&id, &container(1), &Wishes::default(), &OtherWishes::default())
            .unwrap()
            .is_identified()
    );
    assert!(
        book.describe(&id, &container(1), &Wishes::default(), &OtherWishes::default()).is_none(),
        "it is no news"
    );
    let labelled = OtherWishes {
        labels: Wishes::read([("v6pod.name", "l")]).unwrap(),
        ..OtherWishes::default()
    };
    let described = book.describe(&id, &container(1), &Wishes::default(), &labelled).unwrap();
    assert_eq!(described.asked_name().map(NameWish::as_str), Some("l"));
    assert_eq!(
        book.describe(&id, &container(1), &named, &OtherWishes::default())
            .unwrap()
            .asked_name()
            .map(NameWish::as_str),
        Some("web")
    );
    assert!(
        book.describe(&id, &container(2), &named, &OtherWishes::default()).is_none(),
        "a pod's member says nothing"
    );
    assert_eq!(book.of_container(owner, &container(1)).unwrap().id, id);
    book.forget(&id, Instant::now());
    assert_eq!(book.of_container(owner, &container(1)), None);
}

#[test]
fn another_owners_claim_on_an_inode_number_finds_nothing() {
    let (book, _, _) = serving();
    let other = Uid::new(1001).unwrap();
    assert_eq!(book.at(other, &NamespaceId { inode: 1, cookie: Some(1) }), Found::Nothing);
}

#[test]
fn a_bridge_has_room_for_1023_and_who_comes_then_is_routed() {
    let mut book = book(usize::MAX);
    let mut random = walk(11);
    let gateway = book.terms().prefix.gateway();
    let mut reserve = |book: &mut Book, n| {
        let made = book.reserve(wanted(1000, n), Instant::now(), &mut random).unwrap();
        (made.id.clone(), made.port.mode, made.port.gateway)
    };
    let mut ids = Vec::new();
    for n in 0..1023 {
        let (id, mode, via) = reserve(&mut book, n);
        assert_eq!((mode, via), (Mode::Bridge, gateway));
        ids.push(id);
    }
    for n in 2000..2010 {
        let (_, mode, via) = reserve(&mut book, n);
        assert_eq!((mode, via), (Mode::Routed, ROUTED_GATEWAY));
    }
    // What is being taken away still has its port.
    book.begin_release(&ids[7]);
    assert_eq!(reserve(&mut book, 3000).1, Mode::Routed);
    book.forget(&ids[7], Instant::now());
    let (id, mode, _) = reserve(&mut book, 3001);
    assert_eq!(mode, Mode::Bridge);
    // And one that found no room there has none.
    let moved = book.reroute(&id).unwrap();
    assert_eq!((moved.port.mode, moved.port.gateway), (Mode::Routed, ROUTED_GATEWAY));
    assert_eq!(reserve(&mut book, 3002).1, Mode::Bridge);
}

#[test]
fn where_all_are_to_be_routed_all_are() {
    let mut book = book(10);
    book.terms.mode = Mode::Routed;
    let made = book.reserve(wanted(1000, 1), Instant::now(), walk(1)).unwrap();
    assert_eq!((made.port.mode, made.port.gateway), (Mode::Routed, ROUTED_GATEWAY));
}

#[derive(Debug, Clone)]
enum Event {
    Reserve { owner: u32, namespace: u64 },
    Wired(prop::sample::Index),
    Takeover(prop::sample::Index),
    Ended { which: prop::sample::Index, stale: bool },
    Release(prop::sample::Index),
    Forget(prop::sample::Index),
}

fn event() -> impl Strategy<Value = Event> {
    let which = any::<prop::sample::Index>;
    prop_oneof![
        (1000u32..1003, 0u64..12)
            .prop_map(|(owner, namespace)| Event::Reserve { owner, namespace }),
        which().prop_map(Event::Wired),
        which().prop_map(Event::Takeover),
        (which(), any::<bool>()).prop_map(|(which, stale)| Event::Ended { which, stale }),
        which().prop_map(Event::Release),
        which().prop_map(Event::Forget),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_shared_and_counts_agree(
        seed: u64,
        events in proptest::collection::vec(event(), 1..300),
    ) {
        let mut book = book(5);
        let mut random = walk(seed);
        let now = Instant::now();
        let mut ids: Vec<AttachmentId> = Vec::new();
        let mut next_ifindex = 1;
        for event in events {
            if ids.is_empty() && !matches!(event, Event::Reserve { .. }) {
                continue;
            }
            match event {
                Event::Reserve { owner, namespace } => {
                    let mut want = wanted(owner, namespace);
                    // Some are other starts of one container.
                    let start_of = container(namespace / 2);
                    let replaced = book.starts_of(want.owner, &start_of);
                    want.container = Some(start_of);
                    if book.at(want.owner, &want.namespace) == Found::Nothing
                        && let Ok(made) = book.reserve(want, now, &mut random)
                    {
                        ids.push(made.id.clone());
                        for id in replaced {
                            book.begin_release(&id);
                        }
                    }
                }
                Event::Wired(which) => {
                    let id = which.get(&ids);
                    if book.find(id).unwrap().ifindex.is_none() {
                        next_ifindex += 1;
                        book.wired(id, next_ifindex);
                        book.serving(id);
                    }
                }
                Event::Takeover(which) => {
                    let id = which.get(&ids);
                    let a = book.find(id).unwrap();
                    if book.at(a.owner, &a.namespace) == Found::Attached(id.clone()) {
                        book.take_over(id, None, true);
                    }
                }
                Event::Ended { which, stale } => {
                    let id = which.get(&ids);
                    let generation = book.find(id).unwrap().generation;
                    let told = Generation(generation.0 - u64::from(stale));
                    let acted = book.ended(id, told);
                    prop_assert!(!(stale && acted));
                }
                Event::Release(which) => {
                    book.begin_release(which.get(&ids));
                }
                Event::Forget(which) => {
                    let at = which.index(ids.len());
                    if book.find(&ids[at]).unwrap().phase == Phase::Releasing {
                        book.forget(&ids.swap_remove(at), now);
                    }
                }
            }
            prop_assert_eq!(book.len(), ids.len());
            prop_assert_eq!(taken(&book), ids.len());
            let mut addresses: Vec<_> = ids.iter().map(|i| book.find(i).unwrap().port.address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            prop_assert_eq!(addresses.len(), ids.len());
            let owners: usize = (1000..1003).map(|u| book.of_owner(Uid::new(u).unwrap())).sum();
            prop_assert_eq!(owners, ids.len());
            // One more than the limit while a restart replaces what was before.
            prop_assert!((1000..1003).all(|u| book.of_owner(Uid::new(u).unwrap()) <= 6));
        }
        for id in ids {
            book.begin_release(&id);
            book.forget(&id, now);
        }
        prop_assert!(book.is_empty() && taken(&book) == 0);
        prop_assert!(book.by_inode.is_empty() && book.by_container.is_empty());
        prop_assert!(book.macs.is_empty() && book.by_ifindex.is_empty() && book.bridged == 0);
    }
}
