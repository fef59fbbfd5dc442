//! Issue 4: the OCI hook and the network program, joined by the namespace in either order, under runc and
//! crun.
//!
//! ```text
//!   no user namespace of its own:  shim (lease) → runtime: hook (who, what) → container → poststop
//!   with one:                      runtime: hook → shim → container → poststop
//!   restart, podman 4.3.1:         … end → shim, same namespace → poststop of the old run → hook → container
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs;

use v6pod_proto::{Attachment, NameState};
use v6pod_tests::{Footprint, HostNs, PATIENCE, Runtime, Stage, User, eventually, require};

const RUNTIMES: [Runtime; 2] = [Runtime::Runc, Runtime::Crun];

/// Prints the global IPv6 addresses of v6pod's interface, one a line; nothing if there is none.
const MINE: &str = "for i in eth0 v6eth0; do ip -6 -o addr show dev $i scope global 2>/dev/null; done | \
    awk '{print $4}'";

/// The start of every address here.
const OURS: &str = "2001:db8:1:2:3:";

/// Options that have the network program run after the runtime, and before it.
const LATE: &[&str] = &["--userns=keep-id"];
const EARLY: &[&str] = &[];

struct Scene {
    before: Footprint,
    stage: Stage,
}

impl Scene {
    fn new(runtime: Runtime) -> Self {
        let stage = Stage::with_users(1);
        stage.user().use_hook(&stage.daemon.socket());
        stage.user().use_runtime(runtime);
        eprintln!("--- {runtime:?}");
        Self { before: stage.daemon.footprint(), stage }
    }

    fn user(&self) -> &User {
        self.stage.user()
    }

    /// Has the hook told, as this user's podman would, that the container has ended; the hook hands on only
    /// what is said of one that has asked for an attachment.
    fn poststop(&self, id: &str) {
        let state = self.user().home().join("state.json");
        let text = format!(
            r#"{{"ociVersion":"1.0.2-dev","id":"{id}","status":"stopped","bundle":"/","annotations":{{"v6pod":"true"}}}}"#
        );
        fs::write(&state, text).expect("writing a file");
        let script = format!(
            "V6POD_SOCKET={} {} < {}",
            self.stage.daemon.socket().display(),
            self.user().hook().display(),
            state.display()
        );
        v6pod_tests::run(self.user().command("sh").args(["-c", &script])).ok();
    }

    fn is_clean(&self) {
        self.before.comes_back(&self.stage.daemon);
    }
}

/// Options and annotations, as `podman run` takes them.
fn with<'a>(options: &[&'a str], annotations: &[&'a str]) -> Vec<&'a str> {
    let annotations = annotations.iter().flat_map(|a| ["--annotation", a]);
    options.iter().copied().chain(annotations).collect()
}

#[test]
fn hook_and_network_program_make_one_attachment_in_either_order() {
    let _machine = require!(Podman);
    for runtime in RUNTIMES {
        let scene = Scene::new(runtime);
        for order in [EARLY, LATE, &["--uidmap=0:1:1000"]] {
            let watch = scene.stage.watch();
            let asked = ["v6pod.name=asked", "v6pod.ingress=tcp/80 udp/53@2001:db8::/32"];
            let container = scene.user().start("c", &with(order, &asked), &["sleep", "1000"]);
            let attachment = scene.stage.daemon.the_attachment();
            assert_eq!(attachment.container.as_str(), container.id, "{order:?}");
            assert!(attachment.lease, "{order:?}");
            let wishes: Vec<_> = attachment.wishes.annotations().into_iter().collect();
            let told = asked.map(|a| a.split_once('=').expect("a pair"));
            assert_eq!(
                wishes,
                [1, 0].map(|n| (told[n].0, told[n].1.replace(' ', ","))),
                "{order:?}"
            );
            let inside = container.exec(&["sh", "-c", MINE]);
            assert_eq!(inside.ok(), format!("{}/128", attachment.address), "{order:?}");
            eventually(PATIENCE, "the name that was asked for", || {
                let names = scene.stage.daemon.the_attachment().names;
                (names.len() == 1 && names[0].name == "asked").then_some(())
            });
            let shown = scene.stage.daemon.ctl(&["show", "asked"]);
            assert!(shown.ok().contains("v6pod.ingress=tcp/80,udp/53@2001:db8::/32"), "{shown}");
            assert_eq!(watch.most(), 1);
            container.remove();
            scene.is_clean();
        }
    }
}

#[test]
fn who_wants_no_address_has_none_from_the_first_instruction() {
    let _machine = require!(Podman);
    for runtime in RUNTIMES {
        let scene = Scene::new(runtime);
        for order in [EARLY, LATE] {
            let watch = scene.stage.watch();
            let script = format!("{MINE}; ip -o link | grep -c eth0");
            let seen = scene.user().run(&with(order, &["v6pod=false"]), &["sh", "-c", &script]);
            // grep fails where it finds nothing, which is what is wanted.
            assert_eq!(seen.stdout.trim(), "0", "{order:?}: {seen}");
            if order == LATE {
                assert_eq!(watch.most(), 0, "it was known before the network program ran");
            }
            scene.is_clean();
        }
        let stderr = scene.user().shim_stderr();
        assert!(!stderr.contains("v6pod: "), "it is no failure: {stderr}");
    }
}

#[test]
fn a_malformed_wish_fails_the_start_with_its_reason() {
    let _machine = require!(Podman);
    for runtime in RUNTIMES {
        let scene = Scene::new(runtime);
        for order in [EARLY, LATE, &["--network=none"]] {
            for (wish, reason) in [
                ("v6pod.ingress=80", "the annotation v6pod.ingress: write openings such as tcp/80"),
                ("v6pod.egres=deny", "the annotation v6pod.egres: there are v6pod and v6pod."),
                ("v6pod=yes", "the annotation v6pod: write true or false"),
            ] {
                let failed = scene.user().run(&with(order, &[wish]), &["true"]);
                let told = failed.fails();
                assert!(told.contains(reason), "{order:?}: {told}");
                scene.is_clean();
            }
        }
    }
}

#[test]
fn who_asks_for_an_address_has_one_on_any_network_of_its_own() {
    let _machine = require!(Podman);
    for runtime in RUNTIMES {
        let scene = Scene::new(runtime);
        for network in ["none", "bridge"] {
            let network = ["--network", network];
            let asked = with(&network, &["v6pod=true"]);
            let container = scene.user().start("c", &asked, &["sleep", "1000"]);
            let attachment = scene.stage.daemon.the_attachment();
            assert_eq!(attachment.container.as_str(), container.id);
            assert_eq!(attachment.interface.as_str(), "v6eth0");
            assert!(!attachment.lease);
            let inside = container.exec(&["sh", "-c", MINE]);
            assert_eq!(inside.ok(), format!("{}/128", attachment.address));
            // Nobody says so this time: no poststop comes when podman is not there to run it.
            container.init().kill();
            scene.is_clean();
            container.remove();
            let silent = scene.user().run(&network, &["sh", "-c", MINE]);
            assert_eq!(silent.ok(), "", "nothing was asked for on {network:?}");
        }
        // The host's network is no place for one, and the user is told.
        let host = with(&["--network=host"], &["v6pod=true"]);
        let told = scene.user().run(&host, &["true"]);
        told.ok();
        let line = "starts without what it asks for: it is on the host's network";
        assert!(told.stderr.contains(line), "{told}");
        let silent = scene.user().run(&["--network=host"], &["true"]);
        assert!(silent.status.success() && !silent.stderr.contains("v6pod"), "{silent}");
        fs::write(scene.user().shim_toml(), "on_error = \"fail\"\n").expect("writing a file");
        let failed = scene.user().run(&host, &["true"]);
        assert!(failed.fails().contains("it is on the host's network"), "{failed}");
        scene.is_clean();
    }
}

#[test]
fn a_poststop_after_the_next_start_ends_nothing() {
    let _machine = require!(Podman);
    for runtime in RUNTIMES {
        let scene = Scene::new(runtime);
        // Podman 4.3.1 starts the next run in the same namespace, and then runs the last one's poststop.
        // With a user namespace of the container's own it waits for itself there, v6pod or not.
        let script = format!("readlink /proc/self/ns/net; {MINE}; sleep 1; {MINE}; exit 1");
        for options in [with(EARLY, &[]), with(&["--network=bridge"], &["v6pod=true"])] {
            let watch = scene.stage.watch();
            let options = [&["--restart=on-failure:2"], &options[..]].concat();
            let container = scene.user().start("c", &options, &["sh", "-c", &script]);
            container.comes_to("three runs", "{{.RestartCount}} {{.State.Status}}", "2 exited");
            let logs = scene.user().podman(&["logs", "c"]);
            let lines: Vec<_> = logs.ok().lines().collect();
            assert_eq!(lines.len(), 9, "three runs of three lines each: {logs}");
            for run in lines.chunks(3) {
                assert!(run[1].starts_with(OURS), "{options:?}: {logs}");
                assert_eq!(run[1], run[2], "the address went while it ran: {options:?}: {logs}");
            }
            assert_eq!(watch.most(), 1, "{options:?}");
            container.remove();
            scene.is_clean();
        }
    }
}

#[test]
fn a_poststop_that_comes_twice_or_too_early_ends_nothing_that_lives() {
    let _machine = require!(Podman);
    for runtime in RUNTIMES {
        let scene = Scene::new(runtime);
        for options in [with(EARLY, &[]), with(&["--network=none"], &["v6pod=true"])] {
            let container = scene.user().start("c", &options, &["sleep", "1000"]);
            let attachment = scene.stage.daemon.the_attachment();
            scene.poststop(&container.id);
            scene.poststop(&container.id);
            // A rumour that was heeded would have its grace of half a second, and then act.
            std::thread::sleep(std::time::Duration::from_secs(2));
            assert_eq!(scene.stage.daemon.the_attachment(), attachment);
            let inside = container.exec(&["sh", "-c", MINE]);
            assert_eq!(inside.ok(), format!("{}/128", attachment.address));
            scene.user().podman(&["restart", "-t", "0", "c"]).ok();
            let again = scene.stage.daemon.the_attachment();
            assert_eq!(again.container, attachment.container);
            container.remove();
            scene.poststop(&container.id);
            scene.is_clean();
        }
    }
}

/// What of an attachment is not about names.
fn but_names(attachment: Attachment) -> Attachment {
    Attachment { names: Vec::new(), members: Vec::new(), ..attachment }
}

#[test]
fn a_pods_members_change_nothing_of_its_attachment_but_names() {
    let _machine = require!(Podman);
    for runtime in RUNTIMES {
        let scene = Scene::new(runtime);
        let (user, daemon) = (scene.user(), &scene.stage.daemon);
        user.podman(&["pod", "create", "--name", "p"]).ok();
        let one = user.start("one", &["--pod", "p"], &["sleep", "1000"]);
        let bears = |wanted: &[&str]| {
            eventually(PATIENCE, &format!("it bears {wanted:?}"), || {
                let names = daemon.the_attachment().names;
                let registered = names.iter().all(|name| name.state == NameState::Registered);
                let names: Vec<_> = names.iter().map(|name| name.name.as_str()).collect();
                (registered && names == wanted).then_some(())
            });
        };
        bears(&["p", "one"]);
        let attachment = but_names(daemon.the_attachment());
        for (wish, name) in [
            ("v6pod=true", Some("two")),
            ("v6pod.name=member", Some("member")),
            ("v6pod.ingress=tcp/80", Some("two")),
            ("v6pod=false", None),
        ] {
            let options = with(&["--pod", "p"], &[wish]);
            let two = user.start("two", &options, &["sleep", "1000"]);
            assert_eq!(two.exec(&["sh", "-c", MINE]).ok(), format!("{}/128", attachment.address));
            // Who wants no network wants no name in it, and that is known once it runs.
            let members = daemon.the_attachment().members;
            let its = members.iter().any(|member| member.container.as_str() == two.id);
            assert_eq!(its, name.is_some(), "{wish}: {members:?}");
            let mut all: Vec<_> = ["one"].into_iter().chain(name).collect();
            all.sort_unstable();
            bears(&[&["p"], &all[..]].concat());
            assert_eq!(but_names(daemon.the_attachment()), attachment, "{wish}");
            let shown = daemon.ctl(&["show", "p"]).ok().to_owned();
            let line = format!("two ({})", &two.id[..12]);
            let told = shown.lines().any(|l| l.starts_with("member ") && l.ends_with(&line));
            assert_eq!(told, name.is_some(), "{wish}: {shown}");
            two.remove();
            bears(&["p", "one"]);
            scene.poststop(&two.id);
            assert_eq!(but_names(daemon.the_attachment()), attachment, "{wish}");
        }
        one.remove();
        bears(&["p"]);
        user.podman(&["pod", "rm", "-f", "-t", "0", "p"]).ok();
        scene.is_clean();
    }
}

#[test]
fn without_a_daemon_the_hook_stops_only_who_is_to_be_stopped() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let user = User::create(1, &host);
    let nobody = user.home().join("nobody.sock");
    user.use_shim(&nobody);
    user.use_hook(&nobody);
    for runtime in RUNTIMES {
        user.use_runtime(runtime);
        let none = ["--network=none"];
        user.run(EARLY, &["true"]).ok();
        user.run(&none, &["true"]).ok();
        let told = user.run(&with(&none, &["v6pod=true"]), &["true"]);
        told.ok();
        let line = "starts without what it asks for: v6podd is not running";
        assert!(told.stderr.contains(line), "{told}");
        // What is no wish needs no daemon to be found so.
        for options in [EARLY, LATE, &none] {
            let failed = user.run(&with(options, &["v6pod.ingress=80"]), &["true"]);
            assert!(failed.fails().contains("the annotation v6pod.ingress: write"), "{failed}");
        }
        // An operator who would rather have no container than one without its wish.
        fs::write(user.shim_toml(), "on_error = \"fail\"\n").expect("writing a file");
        user.run(&none, &["true"]).ok();
        let failed = user.run(&with(&none, &["v6pod=true"]), &["true"]);
        assert!(failed.fails().contains("v6podd is not running"), "{failed}");
        fs::write(user.shim_toml(), "").expect("writing a file");
    }
}
