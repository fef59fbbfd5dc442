//! Issue 2, line 4: names in a real Consul.
//!
//! ```text
//!   host ── v6podd ─── http://[::1]:8500 ── consul agent (its own server)
//!     │                dns  [::1]:8600  ──┘
//!     └── v6t0 ── port ── eth0 ┌ container(s) of v6t1 ┐
//! ```
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;
use std::time::Duration;

use serde_json::json;
use v6pod_proto::NameState;
use v6pod_tests::{Attached, Config, Consul, Daemon, HostNs, Stage, User, eventually, require};

/// The contract: a name is gone this long after its container's end.
const GONE: Duration = Duration::from_secs(2);
/// The contract: names are right this long after Consul is back.
const RIGHT_AGAIN: Duration = Duration::from_secs(10);

fn stage(host: HostNs) -> Stage {
    Stage::on(host, &Config { consul: true, ..Config::default() }, 1)
}

#[track_caller]
fn answers(consul: &Consul, name: &str, wanted: &[Ipv6Addr], limit: Duration) {
    let awaited = format!("{name}.service.consul is {wanted:?}");
    eventually(limit, &awaited, || (consul.aaaa(name) == wanted).then_some(()));
}

#[test]
fn a_name_answers_while_its_container_lives() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let stage = stage(host);
    for (name, kill) in [("removed", false), ("killed", true)] {
        let container = stage.user().sleeper(name);
        let address = stage.daemon.the_attachment().address;
        answers(&consul, name, &[address], RIGHT_AGAIN);
        if kill {
            container.conmon().kill();
        } else {
            container.remove();
        }
        answers(&consul, name, &[], GONE);
    }
}

#[test]
fn a_name_becomes_a_dns_label() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let stage = stage(host);
    stage.user().sleeper("My_Web.1");
    let attachment = stage.daemon.the_attachment();
    answers(&consul, "my-web-1", &[attachment.address], RIGHT_AGAIN);
    assert_eq!(stage.daemon.the_attachment().names[0].name, "my-web-1");
}

#[test]
fn consul_away_before_a_start_holds_nothing_up() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let mut consul = Consul::stopped(&host);
    let stage = stage(host);
    let alive = stage.user().sleeper("alive");
    let address = stage.daemon.the_attachment().address;
    stage.user().sleeper("ended").remove();
    // The container runs, its attachment serves, and only the name is still on its way.
    assert!(alive.init().is_alive());
    let names = stage.daemon.the_attachment().names;
    assert_eq!(names.first().map(|name| name.state), Some(NameState::Pending), "{names:?}");
    consul.start_up();
    answers(&consul, "alive", &[address], RIGHT_AGAIN);
    answers(&consul, "ended", &[], RIGHT_AGAIN);
}

#[test]
fn consul_lost_with_all_its_state_gets_the_names_back() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let mut consul = Consul::start(&host);
    let stage = stage(host);
    stage.user().sleeper("alive");
    let alive = stage.daemon.the_attachment().address;
    let ending = stage.user().sleeper("ending");
    answers(&consul, "alive", &[alive], RIGHT_AGAIN);
    consul.kill9();
    ending.remove();
    consul.start_up();
    answers(&consul, "alive", &[alive], RIGHT_AGAIN);
    answers(&consul, "ending", &[], RIGHT_AGAIN);
}

#[test]
fn a_consul_that_hangs_holds_nothing_up() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let stage = stage(host);
    let ending = stage.user().sleeper("ending");
    let ended = stage.daemon.the_attachment().address;
    answers(&consul, "ending", &[ended], RIGHT_AGAIN);
    // It accepts connections and never answers.
    consul.pause();
    stage.user().sleeper("begun");
    ending.remove();
    let address = stage.daemon.the_attachment().address;
    assert_ne!(address, ended);
    consul.resume();
    answers(&consul, "begun", &[address], RIGHT_AGAIN);
    answers(&consul, "ending", &[], RIGHT_AGAIN);
}

#[test]
fn what_is_stale_goes_and_what_is_not_ours_stays() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    consul.register("foreign");
    let mut stage = stage(host);
    let ending = stage.users[0].sleeper("ending");
    let address = stage.daemon.the_attachment().address;
    answers(&consul, "ending", &[address], RIGHT_AGAIN);
    // It ends while nobody is there to deregister it.
    stage.daemon.kill9();
    ending.remove();
    stage.daemon.restart();
    answers(&consul, "ending", &[], RIGHT_AGAIN);
    assert!(consul.services().contains_key("foreign"));
}

#[test]
fn a_service_says_what_image_it_is_of() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let stage = stage(host);
    stage.user().use_hook(&stage.daemon.socket());
    stage.user().sleeper("web");
    let image = "localhost/v6test:latest";
    eventually(RIGHT_AGAIN, "its image is there", || {
        let all = consul.services();
        all.values().any(|s| s["Meta"]["v6pod-image"] == image).then_some(())
    });
    let shown = stage.daemon.ctl(&["show", "web"]).ok().to_owned();
    assert!(
        shown.lines().any(|line| line.starts_with("image ") && line.ends_with(image)),
        "{shown}"
    );
}

#[test]
fn a_pods_members_are_services_of_their_own_as_long_as_they_run() {
    let _machine = require!(Podman, Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let mut stage = stage(host);
    stage.users[0].use_hook(&stage.daemon.socket());
    let user = &stage.users[0];
    user.podman(&["pod", "create", "--name", "p"]).ok();
    let one = user.start("one", &["--pod", "p", "--label", "v6pod.tags=v1"], &["sleep", "1000"]);
    let two = user.start("two", &["--pod", "p"], &["sleep", "1000"]);
    let pod = stage.daemon.the_attachment();
    for name in ["p", "one", "v1.one", "two"] {
        answers(&consul, name, &[pod.address], RIGHT_AGAIN);
    }
    let services = consul.services();
    let service = |name: &str| services.iter().find(|(_, service)| service["Service"] == name);
    let (of_pod, _) = service("p").unwrap_or_else(|| panic!("{services:?}"));
    for (number, member) in [&one, &two].into_iter().enumerate() {
        let name = member.inspect("{{.Name}}");
        let (id, service) = service(&name).unwrap_or_else(|| panic!("{services:?}"));
        assert_eq!(*id, format!("{of_pod}-m{number}"));
        let meta = &service["Meta"];
        assert_eq!(
            (&meta["v6pod-container"], &meta["v6pod-name"]),
            (&json!(member.id), &json!(name))
        );
        assert_eq!(meta["v6pod-attachment"], json!(pod.id));
    }
    one.init().kill();
    answers(&consul, "one", &[], GONE);
    // Nothing is lost with the daemon, and what has ended meanwhile goes.
    stage.daemon.kill9();
    stage.daemon.restart();
    for name in ["p", "two"] {
        answers(&consul, name, &[pod.address], RIGHT_AGAIN);
    }
    stage.daemon.kill9();
    two.remove();
    stage.daemon.restart();
    answers(&consul, "two", &[], RIGHT_AGAIN);
    answers(&consul, "p", &[pod.address], GONE);
}

#[test]
fn a_check_that_cannot_pass_is_told_and_one_that_is_taken_away_comes_back() {
    let _machine = require!(Consul);
    let host = HostNs::new();
    let consul = Consul::start(&host);
    let daemon = Daemon::configured(&host, &Config { consul: true, ..Config::default() });
    let user = User::account(1, &host);
    let gateway = daemon.status().gateway;
    let closed = [("v6pod.name", "web"), ("v6pod.check", "tcp:80")];
    let container = Attached::asking(&daemon, &user, &closed);
    let note = format!("tcp/80@{gateway} opens it to this host alone");
    let shown = || daemon.ctl(&["show", "web"]).ok().to_owned();
    let said = eventually(RIGHT_AGAIN, "it bears its name", || {
        Some(shown()).filter(|shown| shown.contains("web (registered)"))
    });
    let check = said.lines().find(|line| line.starts_with("check ")).unwrap_or_default();
    assert!(check.contains("tcp:80: ") && check.ends_with(&note), "{said}");
    daemon.ctl(&["open", "web", &format!("tcp/80@{gateway}")]).ok();
    assert!(!shown().contains(&note));

    let check = || consul.checks("web").iter().map(|c| c["CheckID"].to_string()).next();
    let id = eventually(RIGHT_AGAIN, "the check is there", check);
    consul.deregister_check(id.trim_matches('"'));
    eventually(RIGHT_AGAIN, "it is gone", || check().is_none().then_some(()));
    eventually(RIGHT_AGAIN, "it is back", || (check().as_ref() == Some(&id)).then_some(()));
    answers(&consul, "web", &[], GONE);
    drop(container);
}
