use proptest::prelude::*;
use v6pod_proto::wishes::{Findings, Source};

use super::*;
use crate::core::attachment::tests::attachment;
use crate::core::name::{Named, Template};
use crate::core::offer::{Offers, Part};

fn pod(n: u128) -> AttachmentId {
    AttachmentId::from_bits(n)
}

const OWNER: Uid = Uid::new(1000).unwrap();

fn container(n: u32) -> ContainerId {
    format!("{n:064x}").parse().unwrap()
}

/// Container `n`, by its `run`th process.
fn joining(n: u32, run: u64) -> Joining {
    Joining {
        container: container(n),
        name: Some(format!("c{n}")),
        wishes: Wishes::default(),
        found: OtherWishes::default(),
        process: Holder { pid: n + 1, start_time: run },
    }
}

fn join(
    all: &mut Members,
    pod: &AttachmentId,
    owner: Uid,
    n: u32,
    run: u64,
) -> Result<(), NotJoined> {
    if let Some(member) = all.plan(pod, owner, joining(n, run))? {
        all.take_in(pod, owner, member);
    }
    Ok(())
}

fn numbers(all: &Members, pod: &AttachmentId) -> Vec<u8> {
    all.of(pod).iter().map(|member| member.place.into()).collect()
}

#[test]
fn a_member_has_its_place_until_it_goes_and_over_a_restart_of_its_own() {
    let mut all = Members::with_room(usize::MAX);
    for n in 0..3 {
        join(&mut all, &pod(1), OWNER, n, 1).unwrap();
    }
    assert_eq!(numbers(&all, &pod(1)), [0, 1, 2]);
    assert_eq!(all.plan(&pod(1), OWNER, joining(1, 1)), Ok(None), "it is one already");
    join(&mut all, &pod(1), OWNER, 1, 2).unwrap();
    assert_eq!(
        all.leave(&pod(1), &container(1), joining(1, 1).process),
        None,
        "the last run's end"
    );
    assert_eq!(numbers(&all, &pod(1)), [0, 1, 2]);
    assert!(all.leave(&pod(1), &container(0), joining(0, 1).process).is_some());
    join(&mut all, &pod(1), OWNER, 7, 1).unwrap();
    assert_eq!(numbers(&all, &pod(1)), [0, 1, 2], "the place that is free");
    let found = all.find(OWNER, &container(7)).map(|(id, process)| (id.clone(), process));
    assert_eq!(found, Some((pod(1), joining(7, 1).process)));
    assert_eq!(all.find(Uid::new(1001).unwrap(), &container(7)), None);
    assert_eq!(all.end(&pod(1)).len(), 3);
    assert!(all.pods.is_empty());
}

#[test]
fn attack_21_an_attachment_has_so_many_members_and_an_owner_has() {
    let mut all = Members::with_room(usize::MAX);
    for n in 0..OF_OWNER as u32 {
        join(&mut all, &pod((n as usize / EACH) as u128), OWNER, n, 1).unwrap();
    }
    assert_eq!(all.plan(&pod(0), OWNER, joining(9999, 1)), Err(NotJoined::OwnerFull));
    assert!(join(&mut all, &pod(0), OWNER, 0, 2).is_ok(), "who is one already can come again");
    let other = Uid::new(1001).unwrap();
    for n in 0..EACH as u32 {
        join(&mut all, &pod(1 << 64), other, n, 1).unwrap();
    }
    assert_eq!(all.plan(&pod(1 << 64), other, joining(9999, 1)), Err(NotJoined::Full));
}

#[test]
fn attack_26_all_members_together_leave_descriptors_for_others() {
    let mut all = Members::with_room(2);
    for n in 0..2 {
        join(&mut all, &pod(n.into()), Uid::new(1000 + n).unwrap(), n, 1).unwrap();
    }
    let full = all.plan(&pod(2), Uid::new(1002).unwrap(), joining(2, 1));
    assert_eq!(full, Err(NotJoined::HostFull(2)));
    assert!(join(&mut all, &pod(0), Uid::new(1000).unwrap(), 0, 2).is_ok(), "who is one already");
}

#[test]
fn a_member_offers_a_name_and_nothing_else_of_it_counts() {
    let mut findings = Findings::default();
    for (source, name, value) in [
        (Source::Pod, "name", "mypod"),
        (Source::Label, "v6pod.ingress", "tcp/80"),
        (Source::Published, "v6pod.ingress", "tcp/81"),
        (Source::Environment, "SERVICE_TAGS", "a"),
        (Source::Environment, "SERVICE_82_NAME", "other"),
    ] {
        findings.add(source, name, value.to_owned());
    }
    let wishes = Wishes::read([("v6pod.egress", "deny"), ("v6pod.address", "stable")]).unwrap();
    let found = OtherWishes::read(&findings).unwrap();
    let asks = Joining { wishes, found, ..joining(1, 1) };
    let member = Members::with_room(usize::MAX).plan(&pod(1), OWNER, asks).unwrap().unwrap();
    assert_eq!(member.wishes, Wishes::default());
    let of = attachment();
    let named = Named { user: Some("alice"), owner: OWNER, host: "h" };
    let offers = Offers::of_member(&member, &of, &Template::default(), named);
    let [offer] = &offers.offers[..] else { panic!("{offers:?}") };
    assert_eq!(
        (offer.part, offer.label.as_str(), offer.port),
        (Part::Member(member.place), "c1", None)
    );
    assert_eq!(offer.tags, ["a"]);
    assert_eq!(member.speaking_for(&of).port, of.port);
}

proptest! {
    #[test]
    fn whoever_comes_and_goes_places_are_told_apart_and_bounds_hold(
        moves in prop::collection::vec((0..3_u128, 0..40_u32, 0..3_u64, any::<bool>()), 0..300),
    ) {
        let mut all = Members::with_room(usize::MAX);
        for (to, n, run, comes) in moves {
            let (id, owner) = (pod(to), Uid::new(u32::try_from(to / 2).unwrap()).unwrap());
            if comes {
                let there = all.of(&id).len();
                let known = all.of(&id).iter().any(|member| member.container == container(n));
                let joined = join(&mut all, &id, owner, n, run);
                prop_assert_eq!(joined.is_ok(), known || there < EACH);
            } else {
                all.leave(&id, &container(n), joining(n, run).process);
            }
            let members = all.of(&id);
            prop_assert!(members.len() <= EACH);
            prop_assert!(members.windows(2).all(|two| two[0].place < two[1].place));
            let ids: std::collections::HashSet<_> = members.iter().map(|m| &m.container).collect();
            prop_assert_eq!(ids.len(), members.len());
        }
        for id in 0..3 {
            all.end(&pod(id));
        }
        prop_assert!(all.pods.is_empty());
    }
}
