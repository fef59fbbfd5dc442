//! Issue 4: v6pod-shim as pasta. Podman 4.3.1 has no pasta, so a script plays podman 5: it makes the
//! namespace file, runs pasta with podman 5's words, waits for the end of its pipe, and has the runtime's hook run.
//!
//! ```text
//!   host   2001:db8:ffff::2 on up0
//!     ├── pasta ── up0 (IPv4, and without v6pod the host's own IPv6) ┌ a namespace of v6t1, mounted at
//!     └── v6t0 ── port ── v6eth0                                     └ $XDG_RUNTIME_DIR/netns/netns-…
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::path::Path;

use v6pod_tests::{Finished, Footprint, PATIENCE, Stage, User, eventually, require, run};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Shell functions of what podman does.
const PODMAN: &str = r#"
set -eu
ns=$XDG_RUNTIME_DIR/netns/netns-1b6a7d2e-0ff5-6d0c-d6f9-5d3f2a1b0c9e
make() { mkdir -p "${ns%/*}"; : > "$ns"; unshare --net="$ns" true; }
inside() { nsenter --net="$ns" "$@"; }
# Podman reads the pipe to its end; whoever holds it open holds podman up.
pasta() {
    said=$("$PASTA" --config-net "$@" -t none -u none -T none -U none --no-map-gw --quiet \
        --netns "$ns" 2>&1) || { echo "pasta: $said"; exit 1; }
}
# The state that the runtime gives at createRuntime, the container's first process being $1.
hook() {
    printf '{"ociVersion":"1.0","id":"%s","status":"created","pid":%d,"bundle":"/","annotations":{%s}}' \
        "$ID" "$1" "$2" | "$HOOK"
}
poststop() {
    printf '{"ociVersion":"1.0","id":"%s","status":"stopped","bundle":"/","annotations":{"v6pod":"true"}}' \
        "$ID" | "$HOOK"
}
first_process() {
    nsenter --net="$ns" sleep 1000 <&- >&- 2>&- & init=$!
    until [ "$(readlink /proc/$init/ns/net)" = "net:[$(stat -c %i "$ns")]" ]; do sleep 0.1; done
}
# The one that serves this namespace.
kill_pasta() {
    for process in /proc/[0-9]*; do
        case $(cat "$process/comm" 2>&1 || :) in
        pasta* | passt*) ! grep -q "$ns" "$process/cmdline" || kill "${process#/proc/}" ;;
        esac
    done
    while inside ip link show up0 >&- 2>&-; do sleep 0.1; done
}
# Pasta ends when its namespace's file goes.
end() { [ -z "${init:-}" ] || kill "$init"; umount -l "$ns"; rm "$ns"; }
seen() {
    inside ip -4 -o addr show scope global | awk '{print $2, $4}'
    inside ip -6 -o addr show scope global | awk '{print $2, $4}'
    inside ip -6 route show default | awk '{print $1, $2, $3, $4, $5}'
}
"#;

/// The stage with a user who has shim and hook.
fn stage() -> (Footprint, Stage) {
    let stage = Stage::with_users(1);
    stage.user().use_hook(&stage.daemon.socket());
    (stage.daemon.footprint(), stage)
}

/// Runs a script as podman would run: in podman's user and mount namespace, with that for pasta.
#[track_caller]
fn podman(user: &User, pasta: &Path, socket: &Path, script: &str) -> Finished {
    let script = format!("{PODMAN}{script}");
    let mut command = user.command("env");
    command.arg(format!("PASTA={}", pasta.display())).arg(format!("ID={ID}"));
    command.arg(format!("HOOK={}", user.hook().display()));
    command.arg(format!("V6POD_SOCKET={}", socket.display()));
    command.arg(format!("V6POD_SHIM_CONFIG={}", user.shim_toml().display()));
    run(command.args(["podman", "unshare", "sh", "-c", &script]))
}

#[test]
fn a_container_on_pasta_is_served_and_known_once_the_hook_has_spoken() {
    let _machine = require!(Podman);
    let (before, stage) = stage();
    let (user, socket) = (stage.user(), stage.daemon.socket());
    let shim = user.shim_as_pasta();
    let seen = podman(user, &shim, &socket, "make; pasta; seen");
    let attachment = stage.daemon.the_attachment();
    let (address, gateway) = (attachment.address, attachment.gateway);
    let wanted =
        format!("up0 198.51.100.2/24\nv6eth0 {address}/128\ndefault via {gateway} dev v6eth0");
    assert_eq!(seen.ok(), wanted, "no IPv6 but ours, and one default route");
    assert!(!attachment.lease);
    assert_eq!(attachment.container, attachment.id.stand_in());
    let shown = stage.daemon.ctl(&["show", attachment.id.as_str()]);
    assert!(!shown.ok().contains(attachment.container.as_str()), "{shown}");

    let described = podman(
        user,
        &shim,
        &socket,
        r#"first_process; hook $init '"v6pod.name":"web","io.podman.x":"y"'; kill $init"#,
    );
    described.ok();
    let attachment = eventually(PATIENCE, "its name", || {
        let now = stage.daemon.the_attachment();
        now.names.iter().any(|name| name.name == "web").then_some(now)
    });
    assert_eq!((attachment.container.as_str(), attachment.address), (ID, address));
    podman(user, &shim, &socket, "end").ok();
    before.comes_back(&stage.daemon);
}

#[test]
fn what_the_hook_has_said_before_counts() {
    let _machine = require!(Podman);
    let (before, stage) = stage();
    let (user, socket) = (stage.user(), stage.daemon.socket());
    let shim = user.shim_as_pasta();
    // With a user namespace of its own the runtime, and so the hook, comes first.
    let script = r#"make; first_process; hook $init '"v6pod.name":"web"'; pasta; seen; kill $init"#;
    let seen = podman(user, &shim, &socket, script);
    let attachment = stage.daemon.the_attachment();
    assert_eq!(attachment.container.as_str(), ID);
    assert_eq!(attachment.wishes.annotations()["v6pod.name"], "web");
    assert!(seen.ok().contains(&format!("v6eth0 {}/128", attachment.address)), "{seen}");
    podman(user, &shim, &socket, "end").ok();
    before.comes_back(&stage.daemon);

    let watch = stage.watch();
    let script = r#"make; first_process; hook $init '"v6pod":"false"'; pasta; seen; end"#;
    let seen = podman(user, &shim, &socket, script);
    assert!(seen.ok().contains("up0 2001:db8:ffff::2/64"), "pasta's own IPv6: {seen}");
    assert_eq!(watch.most(), 0);
    before.comes_back(&stage.daemon);
}

#[test]
fn the_next_run_in_the_same_namespace_keeps_its_address_after_the_last_ones_poststop() {
    let _machine = require!(Podman);
    let (before, stage) = stage();
    let (user, socket) = (stage.user(), stage.daemon.socket());
    let shim = user.shim_as_pasta();
    // As podman 4.4 to 4.9 restart. The first run's process has ended when the poststop comes.
    let script = r#"make; pasta; first_process; hook $init '"v6pod":"true"'; kill $init; kill_pasta
        pasta; poststop; poststop; first_process; sleep 2; seen; hook $init '"v6pod":"true"'; sleep 2; seen; end"#;
    let seen = podman(user, &shim, &socket, script);
    let ours: Vec<_> = seen.ok().lines().filter(|line| line.starts_with("v6eth0 ")).collect();
    assert_eq!(ours.len(), 2, "{seen}");
    assert_eq!(ours[0], ours[1], "{seen}");
    before.comes_back(&stage.daemon);
}

#[test]
fn without_a_daemon_pasta_does_what_it_always_does() {
    let _machine = require!(Podman);
    let (_, stage) = stage();
    let user = stage.user();
    let nobody = user.home().join("nobody.sock");
    let without = podman(user, Path::new("/usr/bin/pasta"), &nobody, "make; pasta; seen; end");
    assert!(without.ok().contains("up0 2001:db8:ffff::2/64"), "{without}");
    let with = podman(user, &user.shim_as_pasta(), &nobody, "make; pasta; seen; end");
    assert_eq!(with.ok(), without.ok());
}

#[test]
fn the_rootless_network_and_a_users_own_pasta_are_left_alone() {
    let _machine = require!(Podman);
    let (_, stage) = stage();
    let (user, socket) = (stage.user(), stage.daemon.socket());
    let watch = stage.watch();
    let script = r#"
        ns=$XDG_RUNTIME_DIR/networks/rootless-netns/rootless-netns
        make; pasta --pid "$ns-conn.pid"; seen; end"#;
    let seen = podman(user, &user.shim_as_pasta(), &socket, script);
    assert!(seen.ok().contains("up0 2001:db8:ffff::2/64"), "{seen}");
    let version = podman(user, &user.shim_as_pasta(), &socket, "\"$PASTA\" --version");
    assert!(version.ok().contains("pasta"), "{version}");
    assert_eq!(watch.most(), 0);
}
