//! Which names are ours to answer for: those in the zone, and the addresses of the containers' range.
//!
//! Pure: a name in, what it is about out.

use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError, RwLock};

use domain::base::name::{Label as Part, Name, ToLabelIter as _, ToName as _};

use super::message::AnyName;
use crate::core::{Label, Prefix};

/// How many labels an address has under `ip6.arpa` (RFC 3596, section 2.5).
const NIBBLES: usize = 32;

/// Names that nobody else knows.
#[derive(Debug, Clone)]
pub struct Zone {
    apex: AnyName,
    ranges: Ranges,
}

/// The ranges that containers' addresses are in, while the prefix changes more than one. All clones are one.
#[derive(Debug, Clone, Default)]
pub struct Ranges(Arc<RwLock<Vec<Prefix>>>);

impl Ranges {
    /// It is these from now on.
    pub fn set(&self, ranges: impl IntoIterator<Item = Prefix>) {
        let ranges = ranges.into_iter().collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ranges;
    }

    /// The one that this address is in.
    fn of(&self, address: Ipv6Addr) -> Option<Prefix> {
        let ranges = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().copied().find(|range| range.contains(address))
    }
}

impl FromIterator<Prefix> for Ranges {
    fn from_iter<T: IntoIterator<Item = Prefix>>(all: T) -> Self {
        let ranges = Self::default();
        ranges.set(all);
        ranges
    }
}

/// What a name is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// The zone itself.
    Apex,
    /// Whoever bears this name.
    Label(Label),
    /// Nothing that there can be in the zone.
    Nothing,
    /// Whose name goes with this address.
    Address(Ipv6Addr),
    /// A part of the range: there may be addresses under it.
    Range,
    /// Nothing of ours.
    Elsewhere,
}

/// A zone whose name is none.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no name of a zone")]
pub struct NoZone(String);

impl Zone {
    /// The zone of this name, for containers in these ranges.
    ///
    /// # Errors
    /// [`NoZone`]: it is no name.
    pub fn new(name: &str, ranges: Ranges) -> Result<Self, NoZone> {
        let apex = name.parse().map_err(|_| NoZone(name.to_owned()))?;
        Ok(Self { apex, ranges })
    }

    /// What this name is about.
    pub(super) fn subject(&self, name: &AnyName) -> Subject {
        if name.ends_with(&self.apex) {
            return self.inside(name);
        }
        match nibbles(name) {
            Some(nibbles) => self.reverse(&nibbles),
            None => Subject::Elsewhere,
        }
    }

    /// Whose word on a name counts: that of the zone, or of the range's.
    pub(super) fn authority(&self, name: &AnyName) -> AnyName {
        if name.ends_with(&self.apex) {
            return self.apex.clone();
        }
        let range = nibbles(name).and_then(|nibbles| self.ranges.of(first_of(&nibbles)));
        range.map_or_else(Name::root, |range| {
            let net = range.net();
            reverse_name(net.network(), net.prefix_len().div_ceil(4))
        })
    }

    /// Whether an address of the containers' range is none of this host's own.
    pub(super) fn is_containers(&self, address: Ipv6Addr) -> bool {
        self.ranges.of(address).is_some_and(|range| address != range.gateway())
    }

    /// The name of a label in the zone.
    pub(super) fn name_of(&self, label: &Label) -> Option<AnyName> {
        let relative: domain::base::RelativeName<Vec<u8>> = label.as_str().parse().ok()?;
        Some(relative.chain(&self.apex).ok()?.to_vec())
    }

    fn inside(&self, name: &AnyName) -> Subject {
        match name.label_count() - self.apex.label_count() {
            0 => Subject::Apex,
            1 => name
                .first()
                .to_string()
                .to_ascii_lowercase()
                .parse()
                .map_or(Subject::Nothing, Subject::Label),
            _ => Subject::Nothing,
        }
    }

    fn reverse(&self, nibbles: &[u8]) -> Subject {
        let first = first_of(nibbles);
        let Some(range) = self.ranges.of(first) else { return Subject::Elsewhere };
        match nibbles.len() {
            NIBBLES => Subject::Address(first),
            said if 4 * said >= usize::from(range.net().prefix_len()) => Subject::Range,
            _ => Subject::Elsewhere,
        }
    }
}

/// The digits of an address that a name under `ip6.arpa` says, the first one first; none if it is no such
/// name.
fn nibbles(name: &AnyName) -> Option<Vec<u8>> {
    let labels: Vec<&Part> = name.iter_labels().collect();
    let [said @ .., ip6, arpa, _root] = &labels[..] else { return None };
    let reverse = ip6.as_slice().eq_ignore_ascii_case(b"ip6")
        && arpa.as_slice().eq_ignore_ascii_case(b"arpa");
    if !reverse || said.len() > NIBBLES {
        return None;
    }
    let digit = |label: &&Part| match label.as_slice() {
        [digit] => char::from(*digit).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok()),
        _ => None,
    };
    said.iter().rev().map(digit).collect()
}

/// The first address that begins with these.
fn first_of(nibbles: &[u8]) -> Ipv6Addr {
    let bits = nibbles.iter().fold(0, |bits, nibble| bits << 4 | u128::from(*nibble));
    let unsaid = 4 * NIBBLES.saturating_sub(nibbles.len());
    Ipv6Addr::from_bits(bits.checked_shl(unsaid as u32).unwrap_or(0))
}

/// The name of the first nibbles of an address.
fn reverse_name(address: Ipv6Addr, nibbles: u8) -> AnyName {
    let bits = address.to_bits();
    let digits = (0..nibbles).rev().map(|at| bits >> (124 - 4 * u32::from(at)) & 0xf);
    let text: String = digits.map(|digit| format!("{digit:x}.")).collect();
    // Of single digits and two short labels.
    format!("{text}ip6.arpa").parse().unwrap_or_else(|_| Name::root())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(range: &str) -> Ranges {
        [range.parse().unwrap()].into_iter().collect()
    }

    fn zone() -> Zone {
        Zone::new("v6pod.internal", ranges("2001:db8:1:2:3::/80")).unwrap()
    }

    fn name(text: &str) -> AnyName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_ours_by_its_zone_alone() {
        let zone = zone();
        let label = |text: &str| Subject::Label(text.parse().unwrap());
        for (text, subject) in [
            ("v6pod.internal", Subject::Apex),
            ("V6POD.Internal.", Subject::Apex),
            ("web.v6pod.internal", label("web")),
            ("WEB-u1000.v6pod.INTERNAL", label("web-u1000")),
            ("a.web.v6pod.internal", Subject::Nothing),
            ("_srv.v6pod.internal", Subject::Nothing),
            ("we\\.b.v6pod.internal", Subject::Nothing),
            ("web.v6pod.internal.example", Subject::Elsewhere),
            ("xv6pod.internal", Subject::Elsewhere),
            ("internal", Subject::Elsewhere),
            (".", Subject::Elsewhere),
            ("1.0.0.127.in-addr.arpa", Subject::Elsewhere),
            ("ip6.arpa", Subject::Elsewhere),
        ] {
            assert_eq!(zone.subject(&name(text)), subject, "{text}");
        }
        assert_eq!(zone.name_of(&"web".parse().unwrap()), Some(name("web.v6pod.internal")));
    }

    #[test]
    fn while_the_prefix_changes_the_addresses_of_both_are_ours_and_then_of_the_new_one_alone() {
        let zone = zone();
        let (old, new) =
            ("3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2", "4.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2");
        let subject = |range: &str| zone.subject(&name(&format!("{range}.ip6.arpa")));
        assert_eq!((subject(old), subject(new)), (Subject::Range, Subject::Elsewhere));
        let prefix = |text: &str| text.parse().unwrap();
        zone.ranges.set([prefix("2001:db8:1:2:4::/80"), prefix("2001:db8:1:2:3::/80")]);
        assert_eq!((subject(old), subject(new)), (Subject::Range, Subject::Range));
        zone.ranges.set([prefix("2001:db8:1:2:4::/80")]);
        assert_eq!((subject(old), subject(new)), (Subject::Elsewhere, Subject::Range));
    }

    #[test]
    fn an_address_of_the_range_is_ours_however_much_of_it_is_said() {
        let zone = zone();
        let range = "3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(zone.authority(&name(&format!("1.{range}"))), name(range));
        let seven = format!("7.0.0.0.0.0.0.0.0.0.0.0.{range}");
        let address = "2001:db8:1:2:3::7".parse().unwrap();
        assert_eq!(zone.subject(&name(&seven)), Subject::Address(address));
        assert_eq!(zone.subject(&name(&seven.to_uppercase())), Subject::Address(address));
        assert_eq!(zone.subject(&name(range)), Subject::Range);
        assert_eq!(zone.subject(&name(&format!("0.{range}"))), Subject::Range);
        for other in [
            "0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa".to_owned(),
            format!("4{}", &range[1..]),
            format!("g.{range}"),
            format!("00.{range}"),
            format!("0.{seven}"),
        ] {
            assert_eq!(zone.subject(&name(&other)), Subject::Elsewhere, "{other}");
        }
        // A range that does not end with a digit.
        let odd = Zone::new("x", ranges("fd00::/122")).unwrap();
        let text = |last: &str| name(&format!("{last}.{}d.f.ip6.arpa", "0.".repeat(28)));
        assert!(matches!(odd.subject(&text("f.3")), Subject::Address(_)));
        assert_eq!(odd.subject(&text("0.4")), Subject::Elsewhere);
    }
}
