//! The registrar and its ledger against a registry that fails, in time that a test turns by hand.

use tokio::time::sleep;

use super::*;
use crate::registry::Happened;
use crate::registry::testing::{Fake, Mood, mark, registration, service};

fn start(fake: &Fake) -> Registrar {
    Registrar::start(mark(), fake.clone(), Box::new(|| 1.0))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn settled_within(registrar: &Registrar, time: Duration) {
    timeout(time, registrar.settled()).await.expect("settled in time");
}

fn id(n: u16) -> AttachmentId {
    registration(n, "x").id
}

#[tokio::test(start_paused = true)]
async fn what_is_wished_is_there_and_what_is_withdrawn_is_gone() {
    let fake = Fake::new(Mood::Well);
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    registrar.wish(&registration(2, "db"));
    assert_eq!(registrar.state(&id(1)), Some(NameState::Pending));
    assert_eq!(registrar.health().pending, 2);
    settled_within(&registrar, secs(1)).await;
    assert_eq!(fake.services(), [service(1, "web"), service(2, "db")]);
    assert_eq!(registrar.state(&id(1)), Some(NameState::Registered));

    registrar.withdraw(&id(1));
    registrar.withdraw(&id(7));
    assert_eq!(registrar.state(&id(1)), None);
    settled_within(&registrar, secs(1)).await;
    assert_eq!(fake.services(), [service(2, "db")]);
    let health = registrar.health();
    assert!(health.healthy && health.pending == 0 && health.kind == "fake");
}

#[tokio::test(start_paused = true)]
async fn no_registry_takes_every_wish_and_tells_nothing() {
    let registrar = Registrar::none();
    registrar.wish(&registration(1, "web"));
    registrar.reconcile(&[]);
    registrar.settled().await;
    assert_eq!(registrar.state(&id(1)), None);
    assert_eq!(registrar.health().kind, "none");
}

#[tokio::test(start_paused = true)]
async fn only_the_latest_of_many_wishes_is_carried_out() {
    let fake = Fake::new(Mood::Well);
    let registrar = start(&fake);
    registrar.wish(&registration(1, "first"));
    // The first is under way when the others come.
    sleep(Duration::from_micros(500)).await;
    for name in ["second", "third", "last"] {
        registrar.wish(&registration(1, name));
    }
    settled_within(&registrar, secs(1)).await;
    assert_eq!(fake.services(), [service(1, "last")]);
    assert_eq!(fake.state().writes, 2);
    registrar.wish(&registration(1, "last"));
    settled_within(&registrar, secs(1)).await;
    assert_eq!(fake.state().writes, 2, "what is there is not written again");
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_a_few_probes_and_as_many_writes_as_there_were_changes() {
    let fake = Fake::new(Mood::Away);
    let registrar = start(&fake);
    for n in 0..100 {
        registrar.wish(&registration(n, "web"));
    }
    sleep(secs(3600)).await;
    assert_eq!(registrar.state(&id(1)), Some(NameState::Pending));
    assert!(registrar.error(&id(1)).unwrap().contains("cannot be reached"));
    let health = registrar.health();
    assert!(!health.healthy && health.pending == 100 && health.error.is_some());
    let lists = fake.state().lists;
    let writes = fake.state().writes;
    assert!(writes <= 8, "{writes} writes to a registry that is away");
    assert!((700..800).contains(&lists), "a probe each 5 s: {lists}");

    fake.state().mood = Mood::Well;
    fake.state().writes = 0;
    settled_within(&registrar, secs(10)).await;
    assert_eq!(fake.services().len(), 100);
    assert_eq!(fake.state().writes, 100);
    assert!(fake.state().most_at_once <= 8);
    assert!(registrar.health().healthy);
}

#[tokio::test(start_paused = true)]
async fn a_new_wish_does_not_wait_for_the_backoff_to_end() {
    let fake = Fake::new(Mood::Away);
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    sleep(secs(600)).await;
    fake.state().mood = Mood::Well;
    registrar.wish(&registration(2, "db"));
    settled_within(&registrar, Duration::from_millis(300)).await;
    assert_eq!(fake.services().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_forgets_is_put_back_within_ten_seconds() {
    let fake = Fake::new(Mood::Well);
    let registrar = start(&fake);
    for n in 0..20 {
        registrar.wish(&registration(n, "web"));
    }
    settled_within(&registrar, secs(1)).await;
    let there = fake.services();
    fake.state().services.clear();
    sleep(secs(10)).await;
    assert_eq!(fake.services(), there);
    assert_eq!(fake.state().writes, 40);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_changes_is_put_right() {
    let fake = Fake::new(Mood::Well);
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    settled_within(&registrar, secs(1)).await;
    let mut changed = service(1, "web");
    Arc::make_mut(&mut changed).address = "2001:db8::bad".parse().unwrap();
    fake.state().services.insert(changed.id.clone(), changed);
    sleep(secs(10)).await;
    assert_eq!(fake.services(), [service(1, "web")]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_does_not_answer_keeps_nobody_and_is_right_when_it_does() {
    let fake = Fake::new(Mood::Stuck);
    let registrar = start(&fake);
    for n in 0..50 {
        registrar.wish(&registration(n, "web"));
        registrar.withdraw(&id(n / 2));
    }
    sleep(secs(120)).await;
    assert!(fake.state().most_at_once <= 8);
    assert_eq!(registrar.state(&id(49)), Some(NameState::Pending));
    assert!(registrar.health().error.unwrap().contains("in time"));
    fake.state().mood = Mood::Well;
    settled_within(&registrar, secs(10) + LIST_TIMEOUT).await;
    assert_eq!(fake.services().len(), 25);
}

#[tokio::test(start_paused = true)]
async fn one_stuck_service_holds_up_no_other() {
    let fake = Fake::new(Mood::Well);
    fake.state().exception = Some((mark().service_id(&id(0)), Mood::Stuck));
    let registrar = start(&fake);
    for n in 0..200 {
        registrar.wish(&registration(n, "web"));
    }
    sleep(secs(1)).await;
    assert_eq!(fake.services().len(), 199);
    sleep(secs(60)).await;
    assert_eq!(registrar.state(&id(0)), Some(NameState::Pending));
    fake.state().exception = None;
    settled_within(&registrar, secs(10)).await;
    assert_eq!(fake.services().len(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_is_confirmed_by_the_next_list() {
    // Consul's agent without its servers takes a service in and blocks the call: 37 s were seen.
    let fake = Fake::new(Mood::Mute);
    let registrar = start(&fake);
    for n in 0..16 {
        registrar.wish(&registration(n, "web"));
    }
    settled_within(&registrar, secs(10)).await;
    assert_eq!(fake.state().writes, 16, "each was sent once");
    assert_eq!(registrar.state(&id(3)), Some(NameState::Registered));
    registrar.withdraw(&id(3));
    settled_within(&registrar, secs(10)).await;
    assert_eq!(fake.services().len(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_registration_carried_out_after_its_withdrawal_is_taken_back() {
    let fake = Fake::new(Mood::Late(30));
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    registrar.reconcile(&[registration(1, "web")]);
    sleep(secs(1)).await;
    fake.state().mood = Mood::Well;
    registrar.withdraw(&id(1));
    sleep(secs(29)).await;
    assert!(fake.services().is_empty());
    sleep(secs(1)).await;
    assert_eq!(fake.services().len(), 1, "the late one is there");
    sleep(secs(6)).await;
    assert!(fake.services().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_and_not_repeated_in_haste() {
    let fake = Fake::new(Mood::Well);
    fake.state().exception = Some((mark().service_id(&id(1)), Mood::Refusing));
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    registrar.wish(&registration(2, "db"));
    sleep(secs(300)).await;
    assert_eq!(registrar.state(&id(1)), Some(NameState::Refused));
    assert!(registrar.error(&id(1)).unwrap().contains("403 as told"));
    assert_eq!(registrar.state(&id(2)), Some(NameState::Registered));
    assert!(!registrar.health().healthy);
    let writes = fake.state().writes - 1;
    assert!((10..=15).contains(&writes), "{writes} in five minutes");
    fake.state().exception = None;
    settled_within(&registrar, secs(31)).await;
    assert_eq!(registrar.error(&id(1)), None);
}

#[tokio::test(start_paused = true)]
async fn a_busy_registry_is_asked_again_within_five_seconds() {
    let fake = Fake::new(Mood::Busy);
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    sleep(secs(300)).await;
    assert_eq!(registrar.state(&id(1)), Some(NameState::Pending));
    let writes = fake.state().writes;
    assert!((60..70).contains(&writes), "{writes} in five minutes");
    fake.state().mood = Mood::Well;
    settled_within(&registrar, secs(6)).await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_shows_nothing_is_not_flooded() {
    let fake = Fake::new(Mood::Well);
    fake.state().blind = true;
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    sleep(secs(3600)).await;
    assert_eq!(fake.services().len(), 1);
    let writes = fake.state().writes;
    assert!(writes < 30, "{writes} in an hour");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_away_before_it_is_said_who_lives() {
    let fake = Fake::new(Mood::Well);
    for n in 0..4 {
        fake.state().services.insert(service(n, "web").id.clone(), service(n, "web"));
    }
    let registrar = start(&fake);
    registrar.wish(&registration(9, "new"));
    sleep(secs(60)).await;
    assert_eq!(fake.services().len(), 5);
    fake.state().writes = 0;

    // 0 lives as it was, 1 under another name, 9 was made meanwhile; 2 and 3 are stale; 5 was lost.
    let living = [
        registration(0, "web"),
        registration(1, "other"),
        registration(5, "lost"),
        registration(9, "new"),
    ];
    registrar.reconcile(&living);
    assert_eq!(registrar.state(&id(5)), Some(NameState::Pending));
    settled_within(&registrar, secs(1)).await;
    let right = [service(0, "web"), service(1, "other"), service(5, "lost"), service(9, "new")];
    assert_eq!(fake.services(), right);
    assert_eq!(fake.state().writes, 4, "two away, two in, nothing else");
}

#[tokio::test(start_paused = true)]
async fn reconciling_withdraws_what_was_wished_and_does_not_live() {
    let fake = Fake::new(Mood::Well);
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    settled_within(&registrar, secs(1)).await;
    registrar.reconcile(&[]);
    settled_within(&registrar, secs(1)).await;
    assert!(fake.services().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_backend_is_one_failed_request() {
    let fake = Fake::new(Mood::Well);
    fake.state().exception = Some((mark().service_id(&id(1)), Mood::Panicking));
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    registrar.wish(&registration(2, "db"));
    sleep(secs(20)).await;
    assert_eq!(registrar.state(&id(2)), Some(NameState::Registered));
    fake.state().exception = None;
    settled_within(&registrar, secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_one_dropped_ends_the_background_and_leaves_the_names() {
    let fake = Fake::new(Mood::Well);
    let registrar = start(&fake);
    registrar.wish(&registration(1, "web"));
    settled_within(&registrar, secs(1)).await;
    let clone = registrar.clone();
    drop(registrar);
    clone.wish(&registration(2, "db"));
    settled_within(&clone, secs(1)).await;
    drop(clone);
    sleep(secs(1)).await;
    let lists = fake.state().lists;
    sleep(secs(60)).await;
    assert_eq!(fake.state().lists, lists);
    assert_eq!(fake.services().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_is_registered_is_told_once_whatever_else_is_said_of_him_later() {
    let fake = Fake::new(Mood::Well);
    let registrar = start(&fake);
    let mut news = registrar.news().unwrap();
    let mut web = registration(1, "web");
    web.image = None;
    registrar.wish(&web);
    settled_within(&registrar, secs(5)).await;
    registrar.wish(&registration(1, "web"));
    settled_within(&registrar, secs(5)).await;
    registrar.wish(&registration(1, "www"));
    settled_within(&registrar, secs(5)).await;
    let mut told = Vec::new();
    while let Ok(one) = news.try_recv() {
        told.push((one.happened, one.service.label.to_string()));
    }
    let registered = |name: &str| (Happened::Registered, name.to_owned());
    assert_eq!(told, [registered("web"), registered("www")]);
}
