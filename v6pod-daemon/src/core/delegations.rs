//! Which of the ranges that are delegated to this host counts.
//!
//! Guarantees: what is said follows from the ranges that are there and those that were, so no look is one too
//! many, and a look that was missed is made up for by the next. Of several the one that came last counts,
//! until it goes; when a provider changes a prefix, the old one and the new one are there side by side.

use std::collections::BTreeSet;

use ipnet::Ipv6Net;

/// The ranges that were there at the last look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delegations {
    known: BTreeSet<Ipv6Net>,
    followed: Option<Ipv6Net>,
    /// Those that could not be used when they were said, the one that was longest not said first.
    refused: Vec<Ipv6Net>,
}

/// What is to be said of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It is delegated to this host.
    Delegated(Ipv6Net),
    /// It is no more.
    TakenBack(Ipv6Net),
}

impl Delegations {
    /// Those of which all has been said already; the followed one is among them.
    pub fn heard(known: BTreeSet<Ipv6Net>, followed: Option<Ipv6Net>) -> Self {
        let followed = followed.filter(|range| known.contains(range));
        Self { known, followed, refused: Vec::new() }
    }

    /// Those of which all has been said.
    pub fn known(&self) -> impl Iterator<Item = Ipv6Net> {
        self.known.iter().copied()
    }

    /// The one that counts.
    pub const fn followed(&self) -> Option<Ipv6Net> {
        self.followed
    }

    /// These are there now. What has gone is said first.
    pub fn look(&mut self, now: BTreeSet<Ipv6Net>) -> Vec<Said> {
        let mut said: Vec<_> =
            self.known.difference(&now).map(|gone| Said::TakenBack(*gone)).collect();
        // What was said and not refused is used.
        self.refused.retain(|range| now.contains(range) && self.followed != Some(*range));
        let untried = |range: &&Ipv6Net| !self.refused.contains(*range);
        let come = now.difference(&self.known).find(untried).copied();
        let stays = self.followed.filter(|range| now.contains(range));
        // If the one that counted has gone, another one that is still there has to be said again: those that
        // cannot be used by turns, and only where there is no other.
        let others = || now.iter().find(untried).or(self.refused.first()).copied();
        let next = come.or(stays).or_else(others);
        said.extend(next.filter(|_| next != stays).map(Said::Delegated));
        (self.known, self.followed) = (now, next);
        said
    }

    /// This one cannot be used now: the next look says another one, or this one again. False if it could not be
    /// used before either.
    pub fn refused(&mut self, range: Ipv6Net) -> bool {
        self.known.remove(&range);
        self.followed.take_if(|followed| *followed == range);
        let before = self.refused.len();
        self.refused.retain(|refused| *refused != range);
        let is_news = self.refused.len() == before;
        self.refused.push(range);
        is_news
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(n: u8) -> Ipv6Net {
        format!("2001:db8:{n:x}::/56").parse().unwrap()
    }

    fn ranges(all: &[u8]) -> BTreeSet<Ipv6Net> {
        all.iter().map(|n| range(*n)).collect()
    }

    #[test]
    fn the_last_that_came_counts_until_it_goes() {
        use Said::{Delegated, TakenBack};

        let mut known = Delegations::default();
        for (now, said) in [
            (&[][..], vec![]),
            (&[2], vec![Delegated(range(2))]),
            (&[2], vec![]),
            // Beside the old one, though it is the smaller one.
            (&[1, 2], vec![Delegated(range(1))]),
            (&[1], vec![TakenBack(range(2))]),
            // In its place.
            (&[3], vec![TakenBack(range(1)), Delegated(range(3))]),
            (&[3, 4], vec![Delegated(range(4))]),
            (&[3], vec![TakenBack(range(4)), Delegated(range(3))]),
            (&[], vec![TakenBack(range(3))]),
        ] {
            assert_eq!(known.look(ranges(now)), said, "{now:?}");
        }
    }

    #[test]
    fn what_was_heard_is_not_said_again_after_a_restart_and_what_was_refused_is() {
        let mut known = Delegations::heard(ranges(&[1]), Some(range(1)));
        assert_eq!(known.look(ranges(&[1])), []);
        for is_news in [true, false] {
            assert_eq!(known.refused(range(1)), is_news);
            assert_eq!(known.look(ranges(&[1])), [Said::Delegated(range(1))]);
        }
        known.look(ranges(&[]));
        known.look(ranges(&[1]));
        assert!(known.refused(range(1)), "it had gone");
        assert_eq!(Delegations::heard(ranges(&[1]), Some(range(9))).followed(), None);
    }

    #[test]
    fn one_that_cannot_be_used_keeps_no_other_from_being_tried() {
        let all = ranges(&[1, 2, 3]);
        let mut known = Delegations::default();
        let mut tried = Vec::new();
        for _ in 0..6 {
            for said in known.look(all.clone()) {
                let Said::Delegated(range) = said else { panic!("{said:?}") };
                known.refused(range);
                tried.push(range);
            }
        }
        assert_eq!(tried, [1, 2, 3, 1, 2, 3].map(range));
    }

    proptest! {
        #[test]
        fn one_that_can_be_used_is_found_whatever_else_is_there(
            looks in proptest::collection::vec(proptest::collection::btree_set(0_u8..5, 0..5), 1..12),
            bad in proptest::collection::btree_set(0_u8..5, 0..5),
        ) {
            let bad: BTreeSet<_> = bad.into_iter().map(range).collect();
            let mut known = Delegations::default();
            for look in looks {
                let now: BTreeSet<_> = look.into_iter().map(range).collect();
                for _ in 0..5 {
                    for said in known.look(now.clone()) {
                        if let Said::Delegated(range) = said && bad.contains(&range) {
                            known.refused(range);
                        }
                    }
                }
                let good = now.difference(&bad).next().is_some();
                prop_assert_eq!(known.followed().is_some(), good);
                prop_assert!(known.followed().is_none_or(|range| !bad.contains(&range)));
            }
        }

        #[test]
        fn whatever_comes_and_goes_one_that_is_there_counts_and_was_said_last(
            looks in proptest::collection::vec(proptest::collection::btree_set(0_u8..5, 0..5), 1..12)
        ) {
            let mut known = Delegations::default();
            let mut last = None;
            for look in looks {
                let now: BTreeSet<_> = look.into_iter().map(range).collect();
                for said in known.look(now.clone()) {
                    match said {
                        Said::Delegated(range) => last = Some(range),
                        Said::TakenBack(range) => prop_assert!(!now.contains(&range)),
                    }
                }
                prop_assert_eq!(known.followed().is_none(), now.is_empty());
                prop_assert!(known.followed().is_none_or(|range| now.contains(&range)));
                prop_assert!(known.followed().is_none() || known.followed() == last);
            }
        }
    }
}
