use proptest::prelude::*;

use super::*;

const SETTLE: Duration = Duration::from_secs(5);

fn prefix(n: u8) -> Prefix {
    format!("2001:db8:{n:x}::/80").parse().unwrap()
}

fn offer(n: u8) -> Offer {
    Offer { prefix: prefix(n), valid: None }
}

fn taken_back(n: u8) -> Offer {
    Offer { prefix: prefix(n), valid: Some(Duration::ZERO) }
}

fn cut(range: &str) -> Result<String, PrefixError> {
    Cut::default().of(range.parse().unwrap()).map(|prefix| prefix.to_string())
}

#[test]
fn a_delegated_range_is_cut_the_same_way_each_time() {
    for (range, ours) in [
        ("2001:db8::/48", "2001:db8:0:ffff:ffff::/80"),
        ("2001:db8:0:100::/56", "2001:db8:0:1ff:ffff::/80"),
        ("2001:db8:0:1230::/60", "2001:db8:0:123f:ffff::/80"),
        ("2001:db8:0:1::/64", "2001:db8:0:1:ffff::/80"),
        ("2001:db8:0:1:2::/80", "2001:db8:0:1:2::/80"),
        ("2001:db8:0:1:2:3::/96", "2001:db8:0:1:2:3::/96"),
    ] {
        for _ in 0..2 {
            assert_eq!(cut(range).as_deref(), Ok(ours));
        }
    }
    let fifth = Cut { subnet: Some(5) };
    let range = "2001:db8:0:1::/64".parse().unwrap();
    assert_eq!(fifth.of(range).unwrap().to_string(), "2001:db8:0:1:5::/80");
}

#[test]
fn a_range_of_the_wrong_length_or_kind_is_none() {
    for wrong in [
        "2000::/3",
        "2001::/16",
        "2000:db8::/31",
        "2001:db8::/125",
        "2001:db8::5/128",
        "fe80::/64",
        "ff02::/64",
        "2001:db8::1/64",
    ] {
        assert!(cut(wrong).is_err(), "{wrong}");
    }
    let beyond = Cut { subnet: Some(0x1_0000) };
    assert!(beyond.of("2001:db8:0:1::/64".parse().unwrap()).is_err());
}

#[test]
fn another_prefix_counts_when_it_has_settled_and_renewals_change_nothing() {
    let start = Instant::now();
    let mut all = Prefixes::new(prefix(1), SETTLE);
    assert_eq!(all.hear(offer(1), start), Heard::InForce);
    assert_eq!(all.hear(offer(2), start), Heard::Settles(SETTLE));
    let soon = start + Duration::from_secs(2);
    assert_eq!(all.hear(offer(2), soon), Heard::Settles(Duration::from_secs(3)));
    assert_eq!(all.settled(start + SETTLE - Duration::from_millis(1)), None);
    assert_eq!(all.settles_at(), Some(start + SETTLE));
    assert_eq!(all.settled(start + SETTLE), Some(prefix(2)));
    all.put_in_force(prefix(2));
    assert_eq!((all.in_force(), all.settles_at()), (prefix(2), None));
}

#[test]
fn the_old_prefixs_expiry_that_comes_last_does_not_clear_the_new_one() {
    let start = Instant::now();
    let mut all = Prefixes::new(prefix(1), SETTLE);
    all.hear(offer(2), start);
    // As dhclient tells it (EXPIRE6), behind the new lease.
    assert_eq!(all.hear(taken_back(1), start), Heard::Kept);
    assert_eq!(all.settled(start + SETTLE), Some(prefix(2)));
    all.put_in_force(prefix(2));
    assert_eq!(all.hear(taken_back(1), start + SETTLE), Heard::Nothing);
    assert_eq!(all.in_force(), prefix(2));
}

#[test]
fn the_last_good_one_stays_when_it_is_taken_back_or_its_successor_runs_out() {
    let start = Instant::now();
    let mut all = Prefixes::new(prefix(1), SETTLE);
    assert_eq!(all.hear(taken_back(1), start), Heard::Kept);
    let short = Offer { valid: Some(Duration::from_secs(3)), ..offer(2) };
    all.hear(short, start);
    assert_eq!((all.settles_at(), all.settled(start + SETTLE)), (None, None));
    all.hear(offer(3), start);
    assert_eq!(all.hear(taken_back(3), start), Heard::TakenBack);
    assert_eq!(all.settled(start + SETTLE), None);
    all.hear(offer(4), start);
    all.refuse(prefix(4));
    assert_eq!((all.settled(start + SETTLE), all.in_force()), (None, prefix(1)));
}

#[derive(Debug, Clone)]
enum Said {
    Offer(u8, Option<u64>),
    TakenBack(u8),
    Wait(u64),
    Refused(u8),
    /// The daemon is killed and starts again: it remembers what is in force, and what settled is forgotten.
    Crash,
}

#[test]
fn one_that_the_host_could_not_be_brought_to_is_tried_again_unless_something_else_was_said() {
    let start = Instant::now();
    let mut prefixes = Prefixes::new(prefix(1), Duration::ZERO);
    prefixes.hear(offer(2), start);
    for pause in [AGAIN, 2 * AGAIN, 4 * AGAIN] {
        prefixes.put_in_force(prefix(2));
        prefixes.put_back(prefix(1), true, start);
        assert_eq!(prefixes.in_force(), prefix(1));
        assert_eq!((prefixes.settled(start), prefixes.settles_at()), (None, Some(start + pause)));
        assert_eq!(prefixes.settled(start + pause), Some(prefix(2)));
    }
    prefixes.put_in_force(prefix(2));
    prefixes.hear(offer(3), start);
    prefixes.put_back(prefix(1), true, start);
    assert_eq!(prefixes.settled(start), Some(prefix(3)));

    for said in [offer(1), taken_back(3)] {
        prefixes.hear(offer(3), start);
        prefixes.put_in_force(prefix(3));
        prefixes.hear(said, start);
        prefixes.put_back(prefix(1), true, start);
        assert_eq!(prefixes.settles_at(), None, "{said:?}");
    }
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        4 => (1u8..5, proptest::option::of(0u64..20)).prop_map(|(n, valid)| Said::Offer(n, valid)),
        2 => (1u8..5).prop_map(Said::TakenBack),
        4 => (1u64..8).prop_map(Said::Wait),
        1 => (1u8..5).prop_map(Said::Refused),
        1 => Just(Said::Crash),
    ]
}

/// What a bystander knows: since when which prefix is the last word, and until when it is good.
#[derive(Debug, Clone, Copy)]
struct LastWord {
    prefix: Prefix,
    since: Instant,
    until: Option<Instant>,
}

proptest! {
    #[test]
    fn through_any_history_the_last_good_prefix_is_in_force_at_rest(
        history in proptest::collection::vec(said(), 0..40),
    ) {
        let mut now = Instant::now();
        let mut all = Prefixes::new(prefix(1), SETTLE);
        let mut word: Option<LastWord> = None;
        // At the end it is quiet for long enough.
        for said in history.into_iter().chain([Said::Wait(30)]) {
            match said {
                Said::Offer(n, valid) => {
                    let valid = valid.map(Duration::from_secs);
                    all.hear(Offer { prefix: prefix(n), valid }, now);
                    let lapsed = |w: &LastWord| w.until.is_some_and(|until| until <= now);
                    let before = word.filter(|w| w.prefix == prefix(n) && !lapsed(w));
                    if valid == Some(Duration::ZERO) {
                        word = word.filter(|w| w.prefix != prefix(n));
                    } else {
                        let since = before.map_or(now, |w| w.since);
                        word = Some(LastWord { prefix: prefix(n), since, until: valid.map(|v| now + v) });
                    }
                }
                Said::TakenBack(n) => {
                    all.hear(taken_back(n), now);
                    word = word.filter(|w| w.prefix != prefix(n));
                }
                Said::Refused(n) => {
                    all.refuse(prefix(n));
                    word = word.filter(|w| w.prefix != prefix(n) || w.prefix == all.in_force());
                }
                Said::Crash => {
                    all = Prefixes::new(all.in_force(), SETTLE);
                    word = word.filter(|w| w.prefix == all.in_force());
                }
                Said::Wait(seconds) => for _ in 0..seconds {
                    now += Duration::from_secs(1);
                    if let Some(settled) = all.settled(now) {
                        let said = word.expect("somebody has said so");
                        prop_assert_eq!(settled, said.prefix);
                        prop_assert!(now - said.since >= SETTLE, "it has not held for long enough");
                        prop_assert!(said.until.is_none_or(|until| until > now), "it has run out");
                        all.put_in_force(settled);
                    }
                },
            }
        }
        prop_assert_eq!(all.settled(now), None, "it rests");
        if let Some(last) = word {
            let good = last.until.is_none_or(|until| until > last.since + SETTLE + Duration::from_secs(1));
            prop_assert!(!good || all.in_force() == last.prefix, "{:?} is not in force", last);
        }
    }
}
