use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;
use v6pod_proto::wishes::OtherWishes;
use v6pod_proto::{Mode, Uid, Wishes};

use super::*;
use crate::core::attachment::NamespaceId;
use crate::core::book::{Terms, Wanted};
use crate::core::choice::Choice;
use crate::core::open::OpenPorts;
use crate::core::secret::Secret;

fn prefix(n: usize) -> Prefix {
    // One is smaller, so that host parts do not fit.
    ["2001:db8:1::/80", "2001:db8:2::/80", "2001:db8:3::/120", "2001:db8:4::/64"][n % 4]
        .parse()
        .unwrap()
}

fn walk(seed: u64) -> impl FnMut() -> Result<u128, Infallible> {
    let mut state = 2 * u128::from(seed) + 1;
    move || {
        state = state.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).wrapping_add(1);
        Ok(state.rotate_left(64))
    }
}

fn book(prefix: Prefix) -> Book {
    let quarantine = Duration::from_secs(300);
    Book::new(Terms {
        prefix,
        mtu: 1500,
        mode: Mode::Bridge,
        quarantine,
        per_owner: 1000,
        slice: None,
        secret: Secret::new(1),
    })
}

fn serve(book: &mut Book, n: u64) -> AttachmentId {
    let wanted = Wanted {
        owner: Uid::new(1000).unwrap(),
        container: Some(format!("{n:064x}").parse().unwrap()),
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
    };
    let id = book.reserve(wanted, Instant::now(), walk(n)).unwrap().id.clone();
    assert!(book.wired(&id, u32::try_from(n).unwrap()));
    book.serving(&id);
    id
}

fn address(book: &Book, id: &AttachmentId) -> Ipv6Addr {
    book.find(id).unwrap().port.address
}

#[test]
fn an_address_keeps_its_host_part_and_comes_back_with_its_prefix() {
    let (mut book, now) = (book(prefix(0)), Instant::now());
    let id = serve(&mut book, 1);
    let first = address(&book, &id);
    book.move_to(prefix(1));
    let (_, coming) = book.bring(&id, now, walk(2)).unwrap().unwrap();
    let mask = prefix(0).host_mask();
    assert_eq!(coming.address.to_bits() & mask, first.to_bits() & mask);
    assert_eq!(address(&book, &id), first, "it does not have the other one yet");
    let a = book.arrive(&id, coming.address, 600).unwrap();
    assert_eq!((a.port.address, a.port.gateway), (coming.address, prefix(1).gateway()));
    assert_eq!(book.leaving(599), []);
    // Back again before the first one has gone.
    book.move_to(prefix(0));
    assert_eq!(book.leaving(700), [], "it is wanted again");
    let (_, back) = book.bring(&id, now, walk(2)).unwrap().unwrap();
    assert_eq!(back.address, first);
    book.arrive(&id, first, 1200);
    let [(_, going)] = book.leaving(1200)[..] else { panic!("the second one goes") };
    assert_eq!(going.address, coming.address);
    book.let_go(&id, going.net(), now);
    assert_eq!(book.find(&id).unwrap().port.also, []);
    assert!(book.is_in_use(prefix(0)) && !book.is_in_use(prefix(1)));
}

#[test]
fn what_was_coming_in_a_prefix_that_did_not_last_goes_at_once() {
    let (mut book, now) = (book(prefix(0)), Instant::now());
    let id = serve(&mut book, 1);
    book.move_to(prefix(1));
    let (_, coming) = book.bring(&id, now, walk(2)).unwrap().unwrap();
    book.move_to(prefix(0));
    assert!(book.bring(&id, now, walk(2)).unwrap().is_none());
    assert_eq!(book.leaving(0), [(id, coming)]);
}

#[test]
fn a_prefix_without_room_leaves_who_finds_none_where_he_is() {
    let (mut book, now) = (book(prefix(0)), Instant::now());
    let ids: Vec<_> = (1..=20).map(|n| serve(&mut book, n)).collect();
    book.move_to("2001:db8:5::/124".parse().unwrap());
    let brought = ids.iter().filter(|id| book.bring(id, now, walk(5)).unwrap().is_some()).count();
    assert_eq!(brought, 14);
    assert_eq!(book.outside().count(), 20, "none has arrived yet");
}

#[derive(Debug, Clone)]
enum Event {
    Attach,
    Release(usize),
    Move(usize),
    /// One pass over all, of which this many steps are done before the daemon is killed, if it is.
    Pass(Option<usize>),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Attach),
        1 => any::<usize>().prop_map(Event::Release),
        3 => (0usize..4).prop_map(Event::Move),
        4 => proptest::option::of(0usize..12).prop_map(Event::Pass),
        2 => (1u64..20).prop_map(Event::Wait),
    ]
}

/// A book, what of it is on disk, and what containers have.
struct World {
    book: Book,
    disk: BTreeMap<AttachmentId, Attachment>,
    inside: BTreeMap<AttachmentId, BTreeSet<Ipv6Addr>>,
    now: u64,
    made: u64,
}

const GRACE: u64 = 10;

impl World {
    /// Does one thing after the other until the fuse has burnt down.
    fn pass(&mut self, fuse: &mut usize) -> Option<()> {
        let mut burn = move || {
            *fuse = fuse.checked_sub(1)?;
            Some(())
        };
        let ids: Vec<_> = self.book.outside().map(|a| a.id.clone()).collect();
        for id in ids {
            self.made += 1;
            let brought = self.book.bring(&id, Instant::now(), walk(self.made)).unwrap();
            let Some((a, coming)) = brought else { continue };
            self.disk.insert(id.clone(), a.clone());
            burn()?;
            self.inside.get_mut(&id).unwrap().insert(coming.address);
            self.is_in_order();
            burn()?;
            let a = self.book.arrive(&id, coming.address, self.now + GRACE).unwrap();
            self.disk.insert(id, a.clone());
            self.is_in_order();
            burn()?;
        }
        for (id, also) in self.book.leaving(self.now) {
            self.inside.get_mut(&id).unwrap().remove(&also.address);
            self.is_in_order();
            burn()?;
            let a = self.book.let_go(&id, also.net(), Instant::now()).unwrap();
            self.disk.insert(id, a.clone());
            burn()?;
        }
        Some(())
    }

    fn crash(&mut self) {
        self.book = book(self.book.terms().prefix);
        for (a, ifindex) in self.disk.values().zip(1..) {
            assert!(self.book.adopt(a.clone(), ifindex), "{a:?}");
        }
        self.is_in_order();
    }

    fn is_in_order(&self) {
        let mut held = BTreeSet::new();
        for (id, inside) in &self.inside {
            let a = self.book.find(id).unwrap();
            assert!(inside.contains(&a.port.address), "it has not what it is known by");
            for address in inside {
                assert!(held.insert(*address), "{address} has two holders");
                assert!(a.port.addresses().any(|its| its == *address), "{address} is nobody's");
            }
        }
    }
}

proptest! {
    #[test]
    fn attack_31_through_any_changes_and_crashes_everyone_has_an_address_and_nobody_anothers(
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut world = World {
            book: book(prefix(0)),
            disk: BTreeMap::new(),
            inside: BTreeMap::new(),
            now: 0,
            made: 0,
        };
        for event in events {
            match event {
                Event::Attach => {
                    world.made += 1;
                    let id = serve(&mut world.book, world.made);
                    let a = world.book.find(&id).unwrap().clone();
                    world.inside.insert(id.clone(), [a.port.address].into());
                    world.disk.insert(id, a);
                }
                Event::Release(which) => {
                    let len = world.disk.len();
                    let Some(at) = which.checked_rem(len) else { continue };
                    let id = world.disk.keys().nth(at).cloned().unwrap();
                    world.disk.remove(&id);
                    world.inside.remove(&id);
                    let _ = world.book.begin_release(&id);
                    world.book.forget(&id, Instant::now());
                }
                Event::Move(to) => world.book.move_to(prefix(to)),
                Event::Pass(fuse) => {
                    if world.pass(&mut fuse.unwrap_or(usize::MAX)).is_none() {
                        world.crash();
                    }
                }
                Event::Wait(seconds) => world.now += seconds,
            }
            world.is_in_order();
        }
        prop_assert!(world.pass(&mut usize::MAX.clone()).is_some());
        world.now += GRACE;
        prop_assert!(world.pass(&mut usize::MAX.clone()).is_some());
        let prefix = world.book.terms().prefix;
        for (id, inside) in &world.inside {
            prop_assert_eq!(inside.len(), 1, "at rest it has one address");
            prop_assert!(prefix.contains(world.book.find(id).unwrap().port.address));
        }
    }
}
