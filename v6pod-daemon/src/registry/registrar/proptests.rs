//! Whatever happens, in quiet the registry holds exactly the living.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::time::sleep;

use super::*;
use crate::core::offer::Part;
use crate::registry::testing::{Fake, Mood, mark, registration, service};

#[derive(Debug, Clone)]
enum Move {
    /// With so many ports that are services of their own.
    Wish(u16, &'static str, u16),
    Withdraw(u16),
    Mood(Mood),
    Stick(u16),
    Forget,
    Leftover(u16),
    Reconcile,
    Wait(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let n = 0..12_u16;
    let name = prop::sample::select(vec!["web", "db", "cache"]);
    let mood = prop::sample::select(vec![
        Mood::Well,
        Mood::Away,
        Mood::Stuck,
        Mood::Mute,
        Mood::Late(1),
        Mood::Late(4),
        Mood::Busy,
        Mood::Refusing,
    ]);
    let wait = prop::sample::select(vec![0, 1, 4, 50, 700, 2_100, 6_000]);
    let step = prop_oneof![
        6 => (n.clone(), name, 0..3_u16).prop_map(|(n, name, ports)| Move::Wish(n, name, ports)),
        4 => n.clone().prop_map(Move::Withdraw),
        2 => mood.prop_map(Move::Mood),
        1 => n.clone().prop_map(Move::Stick),
        1 => Just(Move::Forget),
        1 => n.prop_map(Move::Leftover),
        1 => Just(Move::Reconcile),
        6 => wait.prop_map(Move::Wait),
    ];
    prop::collection::vec(step, 0..60)
}

/// What an attachment with so many ports of their own is registered as.
fn parts(n: u16, name: &str, ports: u16) -> Vec<Registration> {
    let port = |port| Registration {
        part: Part::Port(port),
        port: Some(port),
        ..registration(n, &format!("{name}-{port}"))
    };
    std::iter::once(registration(n, name)).chain((1..=ports).map(port)).collect()
}

async fn play(moves: Vec<Move>) -> Result<(), TestCaseError> {
    let fake = Fake::new(Mood::Well);
    let mut bits = 0_u32;
    let jitter = move || {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(bits) / f64::from(u32::MAX)
    };
    let registrar = Registrar::start(mark(), fake.clone(), Box::new(jitter));
    let mut living = BTreeMap::new();
    for step in moves {
        match step {
            Move::Wish(n, name, ports) => {
                let all = parts(n, name, ports);
                registrar.wish_all(&all[0].id, &all);
                living.insert(n, all);
            }
            Move::Withdraw(n) => {
                registrar.withdraw(&registration(n, "x").id);
                living.remove(&n);
            }
            Move::Mood(mood) => fake.state().mood = mood,
            Move::Stick(n) => {
                let id = mark().service_id(&registration(n, "x").id);
                fake.state().exception = Some((id, Mood::Stuck));
            }
            Move::Forget => fake.state().services.clear(),
            Move::Leftover(n) => {
                let left = service(n, "leftover");
                fake.state().services.insert(left.id.clone(), left);
            }
            Move::Reconcile => {
                registrar.reconcile(&living.values().flatten().cloned().collect::<Vec<_>>());
            }
            Move::Wait(millis) => sleep(Duration::from_millis(millis)).await,
        }
        prop_assert!(fake.state().most_at_once <= 8);
    }
    registrar.reconcile(&living.values().flatten().cloned().collect::<Vec<_>>());
    {
        let mut state = fake.state();
        (state.mood, state.exception) = (Mood::Well, None);
    }
    // The longest that anything is put off: what vanishes again and again, five minutes.
    sleep(Duration::from_secs(330)).await;
    prop_assert!(timeout(Duration::from_secs(10), registrar.settled()).await.is_ok());
    let mut right: Vec<_> =
        living.values().flatten().map(|r| Arc::new(Service::new(&mark(), r))).collect();
    right.sort_by(|a, b| a.id.cmp(&b.id));
    prop_assert_eq!(fake.services(), right);
    let health = registrar.health();
    prop_assert!(health.healthy && health.pending == 0, "{:?}", health);
    let writes = fake.state().writes;
    sleep(Duration::from_secs(600)).await;
    prop_assert_eq!(fake.state().writes, writes, "in quiet nothing is written");
    Ok(())
}

proptest! {
    #[test]
    fn in_quiet_the_registry_holds_exactly_the_living(moves in moves()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(moves))?;
    }
}
