//! Issue 8: kube YAML as docs/users.md shows it, of two containers of which one ends.
//!
//! ```text
//!   outside ── up0 ┌ Debian 12, podman 4.3; 13, podman 5.4 ── v6podd ─────────────┐
//!                  │ podman kube play: a pod on a bridge of podman's ── eth0      │
//!                  │   └─ v6eth0 ── port ── v6pod0    infra, c (page), second     │
//!                  └──────────────────────────────────────────────────────────────┘
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;
use std::thread;
use std::time::Duration;

use v6pod_proto::Attachment;
use v6pod_tests::{
    IMAGE, Login, PATIENCE, Place as _, Suite, WholeHost, eventually, require, run, shown_to_users,
};

/// The pod that docs/users.md shows, and a second container.
#[track_caller]
fn pod_of_two() -> String {
    let shown = shown_to_users("yaml\napiVersion");
    let page = "      command: [sh, -c, 'echo Hello >/index.html; exec httpd -f -p 80 -h /']\n";
    let second = "    - name: second\n      image: IMAGE\n      command: [sleep, '1000']\n";
    let stable = "    v6pod.ingress: tcp/80\n    v6pod.address: stable\n";
    let shown = shown.replace("    v6pod.ingress: tcp/80\n", stable);
    format!("apiVersion{shown}{page}{second}").replace("IMAGE", IMAGE)
}

#[track_caller]
fn the_attachment(host: &WholeHost) -> Attachment {
    match host.attachments().as_slice() {
        [one] => one.clone(),
        other => panic!("not one attachment: {other:#?}"),
    }
}

#[track_caller]
fn is_reached(host: &WholeHost, address: Ipv6Addr) {
    let address = address.to_string();
    run(host.net().outside("ping").args(["-n", "-c", "1", "-W", "10", &address])).ok();
}

#[track_caller]
fn play(user: &Login<'_>, yaml: &str) {
    user.run("sh", &["-ec", "printf %s \"$1\" >kube.yaml", "sh", yaml]).ok();
    user.podman(&["kube", "play", "kube.yaml"]).ok();
}

#[track_caller]
fn a_pod_keeps_its_address(suite: Suite) {
    let host = WholeHost::serving(suite);
    let user = host.log_in("anna");
    let mut addresses = Vec::new();
    for goes in ["web-c", "web-second"] {
        play(&user, &pod_of_two());
        let before = the_attachment(&host);
        is_reached(&host, before.address);
        let page = format!("http://[{}]/", before.address);
        let shown = run(host.net().outside("curl").args([
            "-sS",
            "--retry-connrefused",
            "--retry",
            "5",
            &page,
        ]));
        assert_eq!(shown.ok(), "Hello");
        addresses.push(before.address);
        let names = ["web", "web-c", "web-second"];
        eventually(PATIENCE, "the pod and its members have their names", || {
            let now = the_attachment(&host);
            let known = |name: &&str| now.names.iter().any(|status| status.name == **name);
            (now.names.len() == 3 && names.iter().all(known)).then_some(())
        });
        user.podman(&["stop", "--time", "0", goes]).ok();
        // Longer than a lease's grace.
        thread::sleep(Duration::from_secs(2));
        let after = the_attachment(&host);
        assert_eq!(after.address, before.address, "{goes} has ended, the pod has not");
        assert!(after.names.iter().all(|status| status.name != goes), "{after:#?}");
        is_reached(&host, after.address);
        // Whoever comes again has the pod's.
        user.podman(&["start", goes]).ok();
        assert_eq!(the_attachment(&host).address, before.address);
        user.podman(&["stop", "--all", "--time", "0"]).ok();
        user.podman(&["kube", "down", "kube.yaml"]).ok();
        eventually(PATIENCE, "the pod's end", || host.attachments().is_empty().then_some(()));
    }
    // Whichever of its containers asked first.
    assert_eq!(addresses[0], addresses[1], "it is the pod's stable one");
}

#[test]
fn a_pod_of_debian_12_keeps_its_address_when_a_container_of_it_ends() {
    let _machine = require!(WholeHost);
    a_pod_keeps_its_address(Suite::Bookworm);
}

#[test]
fn a_pod_of_debian_13_keeps_its_address_when_a_container_of_it_ends() {
    let _machine = require!(WholeHost);
    a_pod_keeps_its_address(Suite::Trixie);
}
