//! Issue 2, line 7: many at once.
//!
//! ```text
//!   host ── v6podd ── v6t0 ── 64 ports ── eth0 ┌ 64 namespaces, 16 each of v6t1 … v6t4 ┐
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;

use v6pod_proto::{Activate, Attachment};
use v6pod_tests::{OwnedNs, PATIENCE, Stage, eventually, random_container_id, require};

const EACH: usize = 16;

/// Activates all at the same instant, each as its owner; the connections are the leases.
#[track_caller]
fn all_at_once(
    stage: &Stage,
    namespaces: &[OwnedNs],
    lease: bool,
) -> Vec<(Attachment, UnixStream)> {
    let barrier = Barrier::new(namespaces.len());
    let activate = |namespace: &OwnedNs| {
        let caller = stage.daemon.as_user(namespace.uid());
        let request = Activate { lease, ..Activate::new(random_container_id()) };
        let network: File = namespace.network();
        barrier.wait();
        let (outcome, stream) = caller.activate(&request, network.as_fd());
        (outcome.unwrap_or_else(|refused| panic!("{refused}")), stream)
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            namespaces.iter().map(|namespace| scope.spawn(|| activate(namespace))).collect();
        threads.into_iter().map(|thread| thread.join().expect("an activation")).collect()
    })
}

#[track_caller]
fn are_left(stage: &Stage, count: usize) {
    eventually(PATIENCE, &format!("{count} attachments are left"), || {
        (stage.daemon.attachments().len() == count).then_some(())
    });
}

#[test]
fn sixty_four_activations_of_four_users_get_sixty_four_addresses() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(4);
    let before = stage.daemon.footprint();
    let of = |user| (0..EACH).map(move |_| OwnedNs::new(user));
    let mut namespaces: Vec<_> = stage.users.iter().flat_map(of).collect();
    let count = namespaces.len();
    assert_eq!(count, 64);

    let held = all_at_once(&stage, &namespaces, true);
    let addresses: BTreeSet<_> = held.iter().map(|(attachment, _)| attachment.address).collect();
    assert_eq!(addresses.len(), count, "an address was given twice");
    let listed: BTreeSet<_> = stage.daemon.attachments().iter().map(|a| a.address).collect();
    assert_eq!(listed, addresses);
    for ((attachment, _), namespace) in held.iter().zip(&namespaces) {
        assert_eq!(attachment.owner.as_raw(), namespace.uid());
        assert_eq!(namespace.addresses(), [attachment.address]);
    }

    // A quarter ends by its lease, a quarter by its namespace, the rest by both at once.
    let mut held = held;
    held.drain(..count / 4);
    are_left(&stage, count - count / 4);
    namespaces.drain(count / 4..count / 2);
    are_left(&stage, count / 2);
    drop((held, namespaces));
    before.comes_back(&stage.daemon);
}

#[test]
fn without_a_lease_the_connection_means_nothing_and_the_namespace_all() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let namespaces: Vec<_> = (0..8).map(|_| OwnedNs::new(stage.user())).collect();
    let made: Vec<_> =
        all_at_once(&stage, &namespaces, false).into_iter().map(|(made, _)| made).collect();
    // The connections are closed by now; a lease's grace would be over after this.
    thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(stage.daemon.attachments().len(), made.len());
    drop(namespaces);
    before.comes_back(&stage.daemon);
}

#[test]
fn sixteen_requests_about_one_namespace_are_one_attachment() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let namespace = OwnedNs::new(stage.user());
    let request = Activate::new(random_container_id());
    let caller = stage.daemon.as_user(namespace.uid());
    let barrier = Barrier::new(EACH);
    let answers: BTreeSet<_> = thread::scope(|scope| {
        let activate = || {
            let network = namespace.network();
            barrier.wait();
            let (outcome, _) = caller.activate(&request, network.as_fd());
            let made = outcome.unwrap_or_else(|refused| panic!("{refused}"));
            (made.id, made.address)
        };
        let threads: Vec<_> = (0..EACH).map(|_| scope.spawn(activate)).collect();
        threads.into_iter().map(|thread| thread.join().expect("an activation")).collect()
    });
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(stage.daemon.attachments().len(), 1);
    drop(namespace);
    before.comes_back(&stage.daemon);
}

#[test]
fn begun_and_broken_off_at_once_leaves_nothing() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    for _ in 0..8 {
        let namespaces: Vec<_> = (0..8).map(|_| OwnedNs::new(stage.user())).collect();
        let held = all_at_once(&stage, &namespaces, true);
        // Both ends of life at the same instant, in either order.
        thread::scope(|scope| {
            scope.spawn(|| drop(held));
            scope.spawn(|| drop(namespaces));
        });
    }
    before.comes_back(&stage.daemon);
}
