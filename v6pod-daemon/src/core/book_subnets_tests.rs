use std::convert::Infallible;
use std::time::Duration;

use v6pod_proto::wishes::OtherWishes;
use v6pod_proto::{Mode, Wishes};

use super::*;
use crate::core::attachment::NamespaceId;
use crate::core::book::{Refusal, Terms, Wanted};
use crate::core::choice::Choice;
use crate::core::open::OpenPorts;
use crate::core::secret::Secret;

const MANY: usize = 100;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn length(bits: u8) -> Length {
    Length::new(bits).unwrap()
}

fn walk(seed: u64) -> impl FnMut() -> Result<u128, Infallible> {
    let mut state = 2 * u128::from(seed) + 1;
    move || {
        state = state.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).wrapping_add(1);
        Ok(state.rotate_left(64))
    }
}

fn book(range: &str) -> Book {
    Book::new(Terms {
        prefix: prefix(range),
        mtu: 1500,
        mode: Mode::Bridge,
        quarantine: Duration::from_secs(300),
        per_owner: MANY,
        slice: None,
        secret: Secret::new(1),
    })
}

fn at_first() -> Book {
    book("2001:db8:1::/80")
}

fn wanted(n: u64, subnet: Option<Length>) -> Wanted {
    Wanted {
        owner: Uid::new(1000).unwrap(),
        container: Some(format!("{n:064x}").parse().unwrap()),
        name: None,
        wishes: Wishes::default(),
        found: OtherWishes::default(),
        choice: Choice::Any,
        subnet,
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

fn serve(book: &mut Book, n: u64, subnet: Option<Length>) -> AttachmentId {
    let id = book.reserve(wanted(n, subnet), Instant::now(), walk(n)).unwrap().id.clone();
    assert!(book.wired(&id, u32::try_from(n).unwrap()));
    book.serving(&id);
    id
}

fn subnets(book: &Book, id: &AttachmentId) -> Vec<(Ipv6Net, Role)> {
    book.find(id).unwrap().port.subnets().map(|also| (also.net(), also.role)).collect()
}

#[test]
fn one_that_is_asked_for_at_first_stays_and_rests_afterwards() {
    let mut book = book("2001:db8:1::/80");
    let id = serve(&mut book, 1, Some(length(96)));
    let [(net, Role::Staying)] = subnets(&book, &id)[..] else { panic!("one that stays") };
    let port = &book.find(&id).unwrap().port;
    assert!(!net.contains(&port.address) && port.has(net.broadcast()));
    assert_eq!(book.has(net.broadcast()).map(|a| &a.id), Some(&id));
    assert_eq!(book.leaving(u64::MAX), []);
    // Nobody is given any of it.
    let now = Instant::now();
    for n in 2..=60 {
        let other = serve(&mut book, n, None);
        assert!(!net.contains(&book.find(&other).unwrap().port.address));
    }
    assert_eq!(book.give(&id, length(112), now, walk(1)).unwrap(), Ok(None), "it has one");
    book.forget(&id, now);
    assert!(book.has(net.network()).is_none());
    assert_eq!(book.pool().resting_subnets().map(|(net, _)| net).collect::<Vec<_>>(), [net]);
}

#[test]
fn what_cannot_be_had_is_refused_and_takes_no_address() {
    let mut book = book("2001:db8:1::/112");
    let reserve = |book: &mut Book, n, bits| {
        let made = book.reserve(wanted(n, Some(length(bits))), Instant::now(), walk(n));
        made.map(|a| a.id.clone())
    };
    for bits in [96, 104, 112] {
        let no = reserve(&mut book, 1, bits).unwrap_err();
        assert!(matches!(no, Refusal::Spot(NoSpot::Short { .. })), "{no}");
    }
    assert_eq!(book.pool().taken_in(prefix("2001:db8:1::/112")), 0);
    // Each of these takes an address too, and so is in the way of one at most.
    let full = (1..=MANY as u64).map(|n| reserve(&mut book, n, 120)).collect::<Vec<_>>();
    assert!(full.iter().all(Result::is_ok), "{full:?}");
    let all: Vec<_> = book.all().flat_map(|a| a.port.nets()).collect();
    for (at, net) in all.iter().enumerate() {
        assert!(all[..at].iter().all(|other| !crate::core::subnet::overlap(net, other)));
    }
}

#[test]
fn one_that_is_known_of_late_is_coming_until_the_container_has_it() {
    let (mut book, now) = (book("2001:db8:1::/80"), Instant::now());
    let id = serve(&mut book, 1, None);
    let (a, also) = book.give(&id, length(104), now, walk(2)).unwrap().unwrap().unwrap();
    assert_eq!((a.port.also.as_slice(), also.role), (&[also][..], Role::Coming));
    assert!(book.is_giving(&id));
    assert_eq!(book.leaving(u64::MAX), [], "somebody is at it");
    // A crash, or a refusal of the kernel's.
    book.not_given(&id);
    assert_eq!(book.leaving(0), [(id.clone(), also)]);
    assert!(book.is_giving(&id), "who asks again waits until it has gone");
    book.let_go(&id, also.net(), now);
    assert_eq!(
        (book.find(&id).unwrap().port.also.as_slice(), book.is_giving(&id)),
        (&[][..], false)
    );

    let (_, also) = book.give(&id, length(104), now, walk(3)).unwrap().unwrap().unwrap();
    assert!(book.given(&id, also.net()).is_some());
    assert_eq!((book.leaving(u64::MAX), book.is_giving(&id)), (vec![], false));
    assert_eq!(subnets(&book, &id), [(also.net(), Role::Staying)]);
    // An address can take the place of the first one all the same.
    let address = prefix("2001:db8:1::/80").address(0x42);
    assert!(book.replace(&id, address, now).is_some());
    book.arrive(&id, address, 0);
    assert!(subnets(&book, &id).contains(&(also.net(), Role::Staying)));
}

#[test]
fn it_follows_the_prefix_with_the_same_bits_behind_the_address() {
    let (mut book, now) = (book("2001:db8:1::/80"), Instant::now());
    let id = serve(&mut book, 1, Some(length(96)));
    let [(before, _)] = subnets(&book, &id)[..] else { panic!("one") };
    let next = prefix("2001:db8:2::/80");
    book.move_to(next);
    assert!(book.bring_subnet(&id, now, walk(2)).unwrap().is_none(), "the address is first");
    let (_, coming) = book.bring(&id, now, walk(2)).unwrap().unwrap();
    book.arrive(&id, coming.address, 600);
    assert_eq!(book.with_subnets_outside().count(), 1);
    let (_, also) = book.bring_subnet(&id, now, walk(3)).unwrap().unwrap();
    let net = also.net();
    assert_eq!(net, length(96).around(next.address(before.network().to_bits())));
    // Twice is the same, as after a crash, and it does not go meanwhile.
    assert_eq!(book.bring_subnet(&id, now, walk(4)).unwrap().unwrap().1, also);
    assert!(book.leaving(0).is_empty(), "{:?}", book.leaving(0));
    book.subnet_arrived(&id, net, 600);
    assert_eq!(book.with_subnets_outside().count(), 0);
    let mut all = subnets(&book, &id);
    all.sort_unstable_by_key(|(net, _)| *net);
    assert_eq!(all, [(before, Role::Going(600)), (net, Role::Staying)]);
    let leaving: Vec<_> = book.leaving(600).into_iter().map(|(_, also)| also.net()).collect();
    assert!(leaving.len() == 2 && leaving.contains(&before), "{leaving:?}");
    for net in leaving {
        book.let_go(&id, net, now);
    }
    assert!(!book.is_in_use(prefix("2001:db8:1::/80")));
    assert_eq!(subnets(&book, &id), [(net, Role::Staying)]);
}

#[test]
fn where_the_new_prefix_is_too_small_for_it_it_goes_with_its_time() {
    let (mut book, now) = (book("2001:db8:1::/80"), Instant::now());
    let id = serve(&mut book, 1, Some(length(96)));
    let [(before, _)] = subnets(&book, &id)[..] else { panic!("one") };
    book.move_to(prefix("2001:db8:2::/96"));
    let (_, coming) = book.bring(&id, now, walk(2)).unwrap().unwrap();
    book.arrive(&id, coming.address, 600);
    assert!(book.bring_subnet(&id, now, walk(3)).unwrap().is_none());
    assert!(book.lose_subnet(&id, 600).is_some());
    assert_eq!(subnets(&book, &id), [(before, Role::Going(600))]);
    assert_eq!((book.with_subnets_outside().count(), book.leaving(600).len()), (0, 2));
    assert!(book.lose_subnet(&id, 900).is_none(), "once");
    // Where it is only full it waits.
    let mut other = at_first();
    let id = serve(&mut other, 1, Some(length(96)));
    other.move_to(prefix("2001:db8:2::/80"));
    let (_, coming) = other.bring(&id, now, walk(2)).unwrap().unwrap();
    other.arrive(&id, coming.address, 600);
    assert!(other.lose_subnet(&id, 600).is_none());
}

#[test]
fn what_is_recorded_is_taken_over_unless_it_is_anothers() {
    let mut first = book("2001:db8:1::/80");
    let id = serve(&mut first, 1, Some(length(96)));
    let [(net, _)] = subnets(&first, &id)[..] else { panic!("one") };
    let a = first.find(&id).unwrap().clone();
    let mut next = book("2001:db8:1::/80");
    assert!(next.adopt(a.clone(), 1));
    assert_eq!(next.has(net.broadcast()).map(|a| &a.id), Some(&id));
    // One that says that its address is in there.
    let second = serve(&mut first, 2, None);
    let mut lie = first.find(&second).unwrap().clone();
    lie.port.address = net.broadcast();
    assert!(!next.adopt(lie.clone(), 2));
    assert!(next.by_address(net.broadcast()).is_none());
    // And a subnet that holds somebody's address.
    lie.port.address = prefix("2001:db8:1::/80").address(0x42);
    let around = Also {
        address: length(112).around(net.broadcast()).network(),
        subnet: Some(length(112)),
        ..a.port.also[0]
    };
    lie.port.also = vec![around];
    assert!(!next.adopt(lie, 2));
}

#[test]
fn one_owners_subnets_are_half_of_the_prefix_at_most_unless_he_has_a_slice() {
    let of = |n: u64, owner: u32, bits| Wanted {
        owner: Uid::new(owner).unwrap(),
        ..wanted(n, Some(length(bits)))
    };
    let mut book = book("2001:db8:1::/90");
    let ask = |book: &mut Book, n, owner, bits| {
        let made = book.reserve(of(n, owner, bits), Instant::now(), walk(n));
        made.map(|a| a.id.clone()).map_err(|no| no.to_string())
    };
    let his: Vec<_> = (1..=32).map(|n| ask(&mut book, n, 1000, 96).unwrap()).collect();
    for bits in [96, 120] {
        let no = ask(&mut book, 40, 1000, bits).unwrap_err();
        assert!(no.contains("more than half of 2001:db8:1::/90"), "{no}");
    }
    ask(&mut book, 41, 1001, 112).unwrap();
    book.forget(&his[0], Instant::now());
    ask(&mut book, 42, 1000, 104).unwrap();

    // As many as there are in a slice, which is nobody else's.
    let slice = Terms { slice: Some(114), ..book.terms().clone() };
    let mut book = Book::new(slice);
    for n in 1..=36 {
        ask(&mut book, n, 1000, 120).unwrap();
    }
}

#[test]
fn what_would_be_more_than_an_owners_share_of_the_next_prefix_stays_behind() {
    let (mut book, now) = (book("2001:db8:1::/80"), Instant::now());
    let ids = [1, 2, 3].map(|n| serve(&mut book, n, Some(length(96))));
    book.move_to(prefix("2001:db8:2::/94"));
    let mut came = 0;
    for (n, id) in (10..).zip(&ids) {
        let (_, coming) = book.bring(id, now, walk(n)).unwrap().unwrap();
        book.arrive(id, coming.address, 600);
        let lost = book.lose_subnet(id, 600).is_some();
        if let Some((_, also)) = book.bring_subnet(id, now, walk(n)).unwrap() {
            assert!(!lost && book.lose_subnet(id, 600).is_none(), "as after a crash");
            book.subnet_arrived(id, also.net(), 600);
            came += 1;
        }
    }
    assert_eq!((came, book.with_subnets_outside().count()), (2, 0));
}
