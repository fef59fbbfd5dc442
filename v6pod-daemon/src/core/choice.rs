//! Which address a container asks for, and which part of the prefix is its owner's.
//!
//! Guarantees: a container that asks for a stable address tries the same ones in the same order each time,
//! which follow from its owner, its name and this host's secret, and from nothing else: neither from when it is
//! started nor from the prefix, so that the address has the same host part in each. An owner has the same
//! slice for as long as it is remembered, and no two owners have the same.

use std::collections::HashMap;

use v6pod_proto::wishes::{AddressWish, NameWish, OtherWishes, Source};
use v6pod_proto::{ContainerId, Uid, Wishes, storage};

use super::Prefix;
use super::secret::Secret;

/// How many addresses are tried for one that is to be stable (RFC 7217, section 6: the counter of
/// collisions). In a /80 the first one is free but for one in millions.
pub const STABLE_TRIES: u8 = 16;

/// Which address is to be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Choice {
    /// Any.
    #[default]
    Any,
    /// The same as whenever the owner's container of this name asks for that.
    Stable(Box<str>),
    /// The one with these host bits in the owner's range.
    Host(u64),
    /// The same, or any if that cannot be had.
    Preferably(u64),
}

impl Choice {
    /// The wish that counts, and where it comes from: an annotation before a pod's label before a label. An
    /// image asks for nothing here: addresses are its user's.
    pub fn said(wishes: &Wishes, found: &OtherWishes) -> Option<(AddressWish, Source)> {
        let all = [
            (wishes, Source::Annotation),
            (&found.pod_labels, Source::PodLabel),
            (&found.labels, Source::Label),
        ];
        all.into_iter().find_map(|(wishes, source)| Some((wishes.address?, source)))
    }

    /// Whether its user says what it is called, whatever its engine does.
    pub fn is_called(wishes: &Wishes, found: &OtherWishes) -> bool {
        called(wishes, found, None).is_some()
    }

    /// The stable one of a container that is called so; by its id if nobody has called it anything.
    pub fn stable(
        wishes: &Wishes,
        found: &OtherWishes,
        name: Option<&str>,
        container: Option<&ContainerId>,
    ) -> Self {
        let named = called(wishes, found, name);
        // An id is longer than a label and has no dot: no container's name is another's id by chance.
        let named = named.or_else(|| container.map(ContainerId::as_str));
        named.map_or(Self::Any, |name| Self::Stable(name.into()))
    }

    /// The host bits that are tried for a stable address, the first ones first.
    pub fn stable_hosts(secret: &Secret, owner: Uid, name: &str) -> impl Iterator<Item = u128> {
        let owner = owner.as_raw().to_be_bytes();
        (0..STABLE_TRIES).map(move |n| secret.number(&[b"address", &owner, name.as_bytes(), &[n]]))
    }
}

/// What a container's user calls it: as it is to be registered, else as its engine calls it. A pod's first
/// container has a name that nobody chose, and is called as its pod. What an image is called by its maker does
/// not count, or all containers of it would be one.
fn called<'a>(
    wishes: &'a Wishes,
    found: &'a OtherWishes,
    name: Option<&'a str>,
) -> Option<&'a str> {
    let asked = [&wishes.name, &found.pod_labels.name, &found.labels.name];
    let asked = asked.into_iter().find_map(Option::as_ref).map(NameWish::as_str);
    let own = || name.filter(|name| !storage::is_infra(name));
    asked.or(found.pod.as_deref()).or_else(own)
}

/// The owners' parts of the prefix.
#[derive(Debug)]
pub struct Slices {
    secret: Secret,
    /// How long each is, in bits; none: there are none.
    length: Option<u8>,
    /// The number of each owner's, among so many bits' worth of them.
    numbers: HashMap<(Uid, u8), u128>,
    /// Whether there is one that nobody has been told of.
    news: bool,
}

/// An owner's slice as it is remembered: its number among two to the power of `bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Whose.
    pub owner: Uid,
    /// How many bits tell slices apart: their length less that of the prefix.
    pub bits: u8,
    /// Which.
    pub number: u128,
}

impl Slices {
    /// Slices of this length.
    pub fn new(secret: Secret, length: Option<u8>) -> Self {
        Self { secret, length, numbers: HashMap::new(), news: false }
    }

    /// Remembers a slice that was chosen before. One that is another's by then is not.
    pub fn recall(&mut self, slice: Slice) {
        let Slice { owner, bits, number } = slice;
        if number.checked_shr(bits.into()).unwrap_or(0) == 0 && !self.is_taken(bits, number) {
            self.numbers.entry((owner, bits)).or_insert(number);
        }
    }

    /// All that were chosen, if there is one more since this was asked last.
    pub fn news(&mut self) -> Option<Vec<Slice>> {
        let each = |(&(owner, bits), &number): (&(Uid, u8), &u128)| Slice { owner, bits, number };
        std::mem::take(&mut self.news).then(|| self.numbers.iter().map(each).collect())
    }

    /// This owner's part of the prefix, chosen if he has none; the prefix itself if there are no slices or it
    /// is no longer than one. `None` if all are others'.
    pub fn of(&mut self, owner: Uid, prefix: Prefix) -> Option<Prefix> {
        let Some((length, bits)) = self.bits(prefix) else { return Some(prefix) };
        if let Some(number) = self.numbers.get(&(owner, bits)) {
            return prefix.part(length, *number);
        }
        let last = (1_u128 << bits) - 1;
        let others = self.numbers.keys().filter(|(_, of)| *of == bits).count() as u128;
        let first = self.secret.number(&[b"slice", &owner.as_raw().to_be_bytes(), &[bits]]);
        // Among one more than are taken there is a free one, if there is one at all.
        let mut places = (0..=others.min(last)).map(|n| first.wrapping_add(n) & last);
        let number = places.find(|number| !self.is_taken(bits, *number))?;
        self.numbers.insert((owner, bits), number);
        self.news = true;
        prefix.part(length, number)
    }

    /// The same of an owner who has one.
    pub fn known(&self, owner: Uid, prefix: Prefix) -> Option<Prefix> {
        let Some((length, bits)) = self.bits(prefix) else { return Some(prefix) };
        prefix.part(length, *self.numbers.get(&(owner, bits))?)
    }

    /// How long a slice of this prefix is, and by how many bits longer than that; none: it has none.
    fn bits(&self, prefix: Prefix) -> Option<(u8, u8)> {
        let length = self.length?;
        let bits = length.checked_sub(prefix.length()).filter(|bits| *bits > 0)?;
        Some((length, bits))
    }

    fn is_taken(&self, bits: u8, number: u128) -> bool {
        self.numbers.iter().any(|((_, of), taken)| *of == bits && *taken == number)
    }
}

#[cfg(test)]
mod tests {
    use v6pod_proto::wishes::Findings;

    use super::*;

    fn uid(n: u32) -> Uid {
        Uid::new(n).unwrap()
    }

    #[test]
    fn a_stable_address_follows_from_owner_and_name_alone() {
        let secret = Secret::new(1);
        let hosts = |owner, name| -> Vec<u128> {
            Choice::stable_hosts(&secret, uid(owner), name).collect()
        };
        assert_eq!(hosts(1, "web"), hosts(1, "web"));
        let all = [hosts(1, "web"), hosts(2, "web"), hosts(1, "db")].concat();
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), 3 * usize::from(STABLE_TRIES));
        let other: Vec<_> = Choice::stable_hosts(&Secret::new(2), uid(1), "web").collect();
        assert!(!other.iter().any(|host| all.contains(host)));
    }

    #[test]
    fn a_container_is_meant_by_what_it_is_called_else_by_its_id() {
        let id: ContainerId = "1".repeat(64).parse().unwrap();
        let stable = |annotations: &[(&str, &str)], found: &[(Source, &str, &str)], name| {
            let mut findings = Findings::default();
            found.iter().for_each(|(s, n, v)| findings.add(*s, n, (*v).to_owned()));
            let wishes = Wishes::read(annotations.iter().copied()).unwrap();
            match Choice::stable(&wishes, &OtherWishes::read(&findings).unwrap(), name, Some(&id)) {
                Choice::Stable(name) => name.into_string(),
                other => panic!("{other:?}"),
            }
        };
        let pod = [(Source::Pod, "name", "shop")];
        assert_eq!(stable(&[], &[], Some("web")), "web");
        assert_eq!(stable(&[("v6pod.name", "www")], &[], Some("web")), "www");
        assert_eq!(stable(&[], &pod, Some("0123456789ab-infra")), "shop");
        for name in [None, Some("0123456789ab-infra")] {
            assert_eq!(stable(&[], &[], name), id.as_str());
        }
        let nobody = Choice::stable(&Wishes::default(), &OtherWishes::default(), None, None);
        assert_eq!(nobody, Choice::Any);
    }

    #[test]
    fn attack_22_an_image_asks_for_no_address_and_does_not_choose_by_its_name() {
        let said = |source| {
            let mut findings = Findings::default();
            findings.add(source, "v6pod.address", "::42".to_owned());
            Choice::said(&Wishes::default(), &OtherWishes::read(&findings).unwrap())
        };
        let host = AddressWish::Host(0x42);
        for users in [Source::PodLabel, Source::Label] {
            assert_eq!(said(users), Some((host, users)));
        }
        for images in [Source::ImageAnnotation, Source::ImageLabel] {
            assert_eq!(said(images), None);
        }
        let mut named = Findings::default();
        named.add(Source::ImageLabel, "v6pod.name", "db".to_owned());
        named.add(Source::Environment, "SERVICE_NAME", "db".to_owned());
        let named = OtherWishes::read(&named).unwrap();
        let stable = Choice::stable(&Wishes::default(), &named, Some("web"), None);
        assert_eq!(stable, Choice::Stable("web".into()));
    }

    #[test]
    fn every_owner_has_a_slice_of_his_own_until_there_is_none_left() {
        let prefix: Prefix = "2001:db8::/112".parse().unwrap();
        let mut slices = Slices::new(Secret::new(3), Some(116));
        let all: Vec<_> = (0..16).map(|n| slices.of(uid(n), prefix).unwrap()).collect();
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), 16);
        assert!(all.iter().all(|slice| slice.length() == 116 && prefix.contains(slice.gateway())));
        assert_eq!(slices.of(uid(16), prefix), None);
        assert_eq!(slices.of(uid(3), prefix), Some(all[3]));

        // The same with what was remembered, whoever comes first.
        let remembered = slices.news().unwrap();
        assert_eq!((remembered.len(), slices.news()), (16, None));
        let mut again = Slices::new(Secret::new(3), Some(116));
        remembered.into_iter().for_each(|slice| again.recall(slice));
        for n in (0..16).rev() {
            assert_eq!(again.known(uid(n), prefix), Some(all[n as usize]));
            assert_eq!(again.of(uid(n), prefix), Some(all[n as usize]));
        }
        assert_eq!(again.news(), None);
    }

    #[test]
    fn what_is_remembered_wrongly_makes_no_two_share() {
        let prefix: Prefix = "2001:db8::/112".parse().unwrap();
        let mut slices = Slices::new(Secret::new(3), Some(116));
        for (owner, number) in [(1, 5), (2, 5), (3, 16), (1, 6)] {
            slices.recall(Slice { owner: uid(owner), bits: 4, number });
        }
        let known = |owner| slices.known(uid(owner), prefix).map(|slice| slice.to_string());
        assert_eq!(known(1).as_deref(), Some("2001:db8::5000/116"));
        assert_eq!((known(2), known(3)), (None, None));
    }

    #[test]
    fn a_prefix_that_is_no_longer_than_a_slice_has_none() {
        let prefix: Prefix = "2001:db8::/112".parse().unwrap();
        for length in [None, Some(96), Some(112)] {
            assert_eq!(Slices::new(Secret::new(3), length).of(uid(1), prefix), Some(prefix));
        }
    }
}
