//! Properties of [`Names`] under arbitrary claims and releases.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Move {
    Claim(u128, String),
    Release(u128),
    /// All but this name.
    Keep(u128, String),
}

/// Few names, so that they collide: plain, of somebody's shape, cut at the same place.
fn wanted() -> impl Strategy<Value = String> {
    let long = || "x".repeat(70);
    prop_oneof![
        Just("web".to_owned()),
        Just("Web".to_owned()),
        Just("web-u1".to_owned()),
        Just("web-u2".to_owned()),
        Just("web-u1-u2".to_owned()),
        Just(long()),
        Just(format!("{}-u1", "x".repeat(60))),
        Just("reserved".to_owned()),
        ".{0,4}",
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let id = 0..12_u128;
    let claim = (id.clone(), wanted()).prop_map(|(id, name)| Move::Claim(id, name));
    let keep = (id.clone(), wanted()).prop_map(|(id, name)| Move::Keep(id, name));
    let release = id.prop_map(Move::Release);
    prop::collection::vec(prop_oneof![4 => claim, 2 => release, 1 => keep], 0..80)
}

/// An attachment has one owner all its life.
fn owner_of(id: u128) -> Uid {
    Uid::new(u32::try_from(id % 4).unwrap()).unwrap()
}

/// Who bears what, by what was said to the caller alone.
type Seen = BTreeMap<(u128, Label), Label>;

fn play(names: &mut Names, seen: &mut Seen, step: &Move) {
    match step {
        Move::Claim(n, name) => {
            let claim = names.claim(&AttachmentId::from_bits(*n), owner_of(*n), name);
            if let (Some(label), Some(wanted)) = (claim.label(), Label::from_name(name)) {
                seen.insert((*n, wanted), label.clone());
            }
        }
        Move::Release(n) => {
            seen.retain(|(id, _), _| id != n);
            promote(seen, names.release(&AttachmentId::from_bits(*n)));
        }
        Move::Keep(n, name) => {
            let kept: BTreeSet<_> = Label::from_name(name).into_iter().collect();
            seen.retain(|(id, wanted), _| id != n || kept.contains(wanted));
            promote(seen, names.keep(&AttachmentId::from_bits(*n), &kept));
        }
    }
}

fn promote(seen: &mut Seen, promotions: Vec<Promotion>) {
    for promotion in promotions {
        let bits = u128::from_str_radix(promotion.attachment.as_str(), 16).unwrap();
        let before = seen.insert((bits, promotion.to.clone()), promotion.to);
        assert_eq!(before, Some(promotion.from), "promoted from what it bore");
    }
}

proptest! {
    #[test]
    fn a_label_has_one_owner_and_a_bound_one_has_its_uid(moves in moves()) {
        let mut names = Names::new([Label::from_name("reserved").unwrap()]);
        let mut seen = Seen::new();
        for step in &moves {
            play(&mut names, &mut seen, step);
            let mut owners: BTreeMap<&Label, Uid> = BTreeMap::new();
            for ((id, wanted), label) in &seen {
                let owner = owner_of(*id);
                prop_assert_eq!(*owners.entry(label).or_insert(owner), owner);
                prop_assert!(label.bound_to().is_none_or(|uid| uid == owner));
                prop_assert_ne!(label.as_str(), "reserved");
                prop_assert!(label.as_str().parse::<Label>().is_ok());
                // Nobody waits for a plain label that nobody bears.
                let borne = seen.iter().any(|((_, w), l)| w == wanted && l == wanted);
                prop_assert!(borne || wanted.bound_to().is_some());
            }
        }
        for id in 0..12 {
            let bits = AttachmentId::from_bits(id);
            let told: Vec<_> = seen.iter().filter(|((n, _), _)| *n == id).map(|(_, l)| l).collect();
            let borne = names.borne_by(&bits);
            prop_assert_eq!(borne.iter().filter_map(Claim::label).collect::<Vec<_>>(), told);
        }
        for id in 0..12 {
            names.release(&AttachmentId::from_bits(id));
        }
        prop_assert!(names.is_empty());
    }

    #[test]
    fn any_name_becomes_a_label_that_is_its_own(name in ".{0,80}") {
        if let Some(label) = Label::from_name(&name) {
            prop_assert_eq!(Label::from_name(label.as_str()), Some(label.clone()));
            let uid = Uid::new(u32::MAX - 1).unwrap();
            let bound = label.bound(uid);
            prop_assert!(bound.as_str().len() <= Label::MAX);
            prop_assert_eq!(bound.bound_to(), Some(uid));
            prop_assert!(bound.as_str().parse::<Label>().is_ok());
        } else {
            prop_assert!(!name.chars().any(|c| c.is_ascii_alphanumeric()));
        }
    }
}
