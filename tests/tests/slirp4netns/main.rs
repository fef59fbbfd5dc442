//! Issue 4, line 3: what slirp4netns's own tests (`tests/*.sh` of rootless-containers/slirp4netns) expect
//! of slirp4netns, through the shim. Each expectation is held to the bare slirp4netns first.
//!
//! ```text
//!   host   v6podd ── unix socket ── slirp4netns │ v6pod-shim, which becomes it: as v6t1, in the initial
//!     │                                  │        user namespace or in one of his own, as podman's
//!     │                                  └── tap11 ┌ network namespace of v6t1
//!     └── v6t0 ── port ─────────────────────  eth0 └ where the call is a container's
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

mod trial;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use v6pod_tests::{Background, Finished, PATIENCE, User, eventually, require, run};

use trial::{ALL, BOTH, Form, ID, INHERITED, Program, TAP, same, text};

#[test]
fn ready_is_said_in_one_byte_once_the_tap_device_is_configured() {
    let _machine = require!(Podman);
    same(ALL, |trial| {
        let running = trial.start(&["--configure"]).once_ready();
        let tap = trial.tap();
        assert!(tap["flags"].as_array().is_some_and(|all| all.contains(&json!("UP"))), "{tap}");
        assert_eq!(trial.addresses(), ["10.0.2.100"]);
        let route = run(&mut trial.inside(&["ip", "-4", "route", "show", "default"]));
        assert!(route.ok().contains("via 10.0.2.2 dev tap11"), "{route}");
        drop(running);
        // And not at all where it cannot be.
        let refused = trial.refuses(&["--configure", "--cidr=foo"]);
        assert!(refused.1.contains("invalid CIDR"), "{}", refused.1);
        refused
    });
}

#[test]
fn nothing_is_said_while_the_daemon_is_waited_for() {
    let _machine = require!(Podman);
    same(&[Form::ContainersPath, Form::ContainersPid], |trial| {
        if trial.program == Program::Real {
            return;
        }
        trial.stage.daemon.pause();
        let mut running = trial.start(&["--configure"]);
        // A byte that came too early would be there by now.
        thread::sleep(Duration::from_secs(1));
        assert_eq!(trial.ready(), "");
        assert!(!running.process.has_ended(), "{}", running.log());
        trial.stage.daemon.resume();
        running.once_ready();
    });
}

#[test]
fn the_end_of_the_exit_descriptor_is_its_end() {
    let _machine = require!(Podman);
    same(ALL, |trial| {
        let options: &[&str] = if trial.form.is_containers() { &[] } else { &["--exit-fd=4"] };
        let mut running = trial.start(options).once_ready();
        thread::sleep(Duration::from_millis(300));
        assert!(!running.process.has_ended(), "{}", running.log());
        drop(running.exit.take());
        running.process.wait_within(PATIENCE)
    });
}

/// One request on a connection of its own, as the API socket takes them.
#[track_caller]
fn ask(socket: &Path, request: &[u8]) -> Value {
    let mut stream = UnixStream::connect(socket).expect("connecting to the API socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("setting a limit");
    // It answers a request that is too long before it has read it.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[test]
fn the_api_socket_answers_as_ever() {
    let _machine = require!(Podman);
    same(ALL, |trial| {
        let socket = trial.file("api.sock");
        let option = format!("--api-socket={}", socket.display());
        let running = trial.start(&["-c", &option]).once_ready();
        let file = fs::metadata(&socket).expect("the API socket is there");
        let mut answers = Vec::new();
        for (request, error) in [
            (&b"badjson"[..], "bad request: cannot parse JSON"),
            (br#"{"unexpectedjson": 42}"#, "bad request: no execute found"),
            (br#"{"execute": "bad"}"#, "bad request: unknown execute"),
            (
                br#"{"execute": "add_hostfwd", "arguments": {"proto": "bad"}}"#,
                "bad request: add_hostfwd: bad arguments.proto",
            ),
            (&[0; 100_000], "bad request: too large message"),
        ] {
            let answer = ask(&socket, request);
            assert!(text(&answer["error"]["desc"]).contains(error), "{answer}");
            answers.push(answer);
        }
        let add = br#"{"execute": "add_hostfwd", "arguments":
            {"proto": "tcp", "host_port": 8080, "guest_port": 80}}"#;
        let list = br#"{"execute": "list_hostfwd"}"#;
        let remove = br#"{"execute": "remove_hostfwd", "arguments": {"id": 1}}"#;
        assert_eq!(ask(&socket, add), json!({"return": {"id": 1}}));
        let entry = json!({"id": 1, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
            "guest_addr": "10.0.2.100", "guest_port": 80});
        // 1.2.0 has no word around it; later ones have.
        let entries = |answer: Value| answer.get("return").unwrap_or(&answer)["entries"].clone();
        assert_eq!(entries(ask(&socket, list)), json!([entry]));
        let serving = ["sh", "-c", "echo inside | busybox nc -l -p 80"];
        let _server = Background::start(trial.inside(&serving).stdin(Stdio::null()));
        eventually(PATIENCE, "the forwarded port leads inside", || {
            (fetch(trial.user(), "8080").stdout == "inside\n").then_some(())
        });
        assert_eq!(ask(&socket, remove), json!({"return": {}}));
        assert_eq!(entries(ask(&socket, list)), json!([]));
        fetch(trial.user(), "8080").fails();
        drop(running);
        let long =
            format!("--api-socket={}/{}.sock", trial.folder.path().display(), "A".repeat(110));
        let refused = trial.refuses(&["-c", &long]);
        // The folder's name is another one each time.
        let told = refused.1.replace(&trial.folder.path().display().to_string(), "");
        assert!(told.contains("the specified API socket path is too long"), "{told}");
        // The lease has a descriptor's number, and the next one is the tap device's.
        let told: Vec<_> = told.lines().filter(|line| !line.contains("tapfd=")).collect();
        let told = told.join("\n");
        (answers, file.mode(), file.uid(), refused.0, told)
    });
}

/// What a host's port gives to who connects there.
fn fetch(user: &User, port: &str) -> Finished {
    run(user.command("busybox").args(["nc", "-w", "5", "127.0.0.1", port]))
}

#[test]
fn the_network_is_the_one_that_was_asked_for() {
    let _machine = require!(Podman);
    same(BOTH, |trial| {
        let mut refused = Vec::new();
        for (cidr, error) in [
            ("24", "invalid CIDR"),
            ("10.0.2.0", "invalid CIDR"),
            (
                "10.0.2.100/24",
                "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24",
            ),
            ("10.0.2.100/26", "prefix length needs to be 1-25"),
        ] {
            refused.push(trial.refuses(&["-c", "--cidr", cidr]));
            let log = &refused[refused.len() - 1].1;
            assert!(log.contains(error), "{cidr}: {log}");
        }
        for bad in
            ["--mtu=70000", "--mtu=x", "--ready-fd=x", "--outbound-addr=x", "--enable-ipv6=1"]
        {
            refused.push(trial.refuses(&["-c", bad]));
        }
        refused
    });
    for (options, mtu, addresses) in [
        (&["-c"][..], 1500, &["10.0.2.100"][..]),
        (&["-c", "--cidr", "10.0.135.128/25", "--mtu=65520"], 65520, &["10.0.135.228"]),
        (&["-cm", "1400", "--outbound-addr=198.51.100.2"], 1400, &["10.0.2.100"]),
        // Not asked for: the device alone.
        (&["--mtu", "1400"], 1500, &[]),
    ] {
        same(BOTH, |trial| {
            let _running = trial.start(options).once_ready();
            assert_eq!((&trial.tap()["mtu"], trial.addresses()), (&json!(mtu), owned(addresses)));
        });
    }
    same(ALL, |trial| {
        let _running = trial.start(&["-c", "--macaddress", "0e:d4:18:d9:38:fb"]).once_ready();
        assert_eq!(trial.tap()["address"], "0e:d4:18:d9:38:fb");
    });
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn dhcp_gives_the_first_address() {
    let _machine = require!(Podman);
    same(BOTH, |trial| {
        let _running = trial.start(&[]).once_ready();
        run(&mut trial.inside(&["ip", "link", "set", TAP, "up"])).ok();
        let words = ["busybox", "udhcpc", "-n", "-q", "-f", "-i", TAP, "-s", "/bin/true"];
        let finished = run(&mut trial.inside(&words));
        assert!(finished.status.success(), "{finished}");
        assert!(finished.stderr.contains("lease of 10.0.2.15 obtained"), "{finished}");
    });
}

#[test]
fn the_hosts_loopback_is_reached_unless_it_is_not_to_be() {
    let _machine = require!(Podman);
    for (option, reached) in [("--configure", true), ("--disable-host-loopback", false)] {
        same(BOTH, |trial| {
            let mut serving = trial.user().command("python3");
            serving.args([
                "-c",
                "import socket; s = socket.create_server(('127.0.0.1', 12121)); \
                s.accept()[0].sendall(b'outside\\n')",
            ]);
            let _server = Background::start(serving.stdin(Stdio::null()));
            eventually(PATIENCE, "somebody listens on the host", || {
                let sockets = run(trial.user().command("cat").arg("/proc/net/tcp"));
                // 127.0.0.1:12121, listening.
                sockets.ok().contains("0100007F:2F59 00000000:0000 0A").then_some(())
            });
            let _running = trial.start(&["-c", option]).once_ready();
            let words = ["busybox", "nc", "-w", "5", "10.0.2.2", "12121"];
            let got = run(&mut trial.inside(&words));
            assert_eq!(got.stdout, if reached { "outside\n" } else { "" }, "{got}");
            (got.status, got.stderr)
        });
    }
}

#[test]
fn its_own_ipv6_is_switched_on_by_its_option_unless_there_is_an_address() {
    let _machine = require!(Podman);
    same(ALL, |trial| {
        let _running = trial.start(&["-c", "--enable-ipv6"]).once_ready();
        if trial.is_served_if_a_containers().is_some() {
            // It would have come with the router advertisement that follows upon the first packets.
            thread::sleep(Duration::from_secs(2));
            assert_eq!(trial.addresses(), ["10.0.2.100"]);
        } else {
            eventually(PATIENCE, "slirp4netns's own IPv6 address", || {
                trial.addresses().iter().any(|address| address.starts_with("fd00:")).then_some(())
            });
        }
    });
}

#[test]
fn sandbox_and_seccomp_hold() {
    let _machine = require!(Podman);
    // By the path of a user namespace slirp4netns makes no sandbox.
    same(&[Form::Pid, Form::Path, Form::ContainersPath, Form::ContainersPid], |trial| {
        let running = trial.start(&["-c", "--enable-sandbox", "--enable-seccomp"]).once_ready();
        let root = format!("/proc/{}/root", running.process.pid());
        let there = ["etc", "run", "home", "root", "var"]
            .map(|name| Path::new(&root).join(name).symlink_metadata().is_ok());
        assert_eq!(there, [true, true, false, false, false]);
        let status = running.status(INHERITED);
        // CAP_NET_BIND_SERVICE alone, and a filter.
        assert!(status.contains(&"CapEff:\t0000000000000400".to_owned()), "{status:?}");
        assert!(status.contains(&"Seccomp:\t2".to_owned()), "{status:?}");
        let served = trial.is_served_if_a_containers();
        // The filter lets it live on with a descriptor that it does not know of.
        let pinged = run(&mut trial.inside(&["ping", "-n", "-c", "1", "-W", "10", "10.0.2.2"]));
        pinged.ok();
        assert_eq!(trial.is_served_if_a_containers(), served);
        status
    });
}

#[test]
fn what_is_mounted_outside_stays_mounted_behind_a_sandbox() {
    let _machine = require!(Podman);
    same(BOTH, |trial| {
        // In podman's mount namespace alone.
        let script = "mount -t tmpfs tmpfs /run; mkdir /run/v6t; mount -t tmpfs tmpfs /run/v6t
            mount --make-rshared /run";
        let _running = trial.start_after(script, &["-c", "--enable-sandbox"]).once_ready();
        let podman = trial.podman.as_ref().expect("in both forms");
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", podman.pid()));
        assert!(mounts.expect("reading its mounts").contains(" /run/v6t "));
    });
}

#[test]
fn help_version_and_misuse_are_answered_byte_for_byte() {
    let _machine = require!(Podman);
    for line in [
        &["--help"][..],
        &["-h", "--enable-ipv6"],
        &["--version"],
        &["-v"],
        &["-6", "--vers"],
        &[],
        &["1"],
        &["x", "tap0"],
        &["--nonsense", "1", "tap0"],
        &["--netns-type=path", "/nonexistent", "tap0"],
        &["-e", "x", "-r", "4", "--netns-type=path", "/proc/self/ns/net", "tap0"],
        &["-c", "-e", "3", "-r", "4", "-6", "--netns-type=path", "/nonexistent", "tap0"],
        &["-c", "-e", "3", "-r", "4", "999999999", "tap0"],
    ] {
        same(&[Form::Pid, Form::Path], |trial| {
            let answered = run(trial.command("").args(line));
            (answered.status, answered.stdout, answered.stderr)
        });
    }
    // Podman asks with what may be a container's log.
    same(&[Form::ContainersPath], |trial| {
        let path = trial.file(&format!("slirp4netns-{ID}.log"));
        let script = format!("exec >'{}'", path.display());
        let answered = run(trial.command(&script).arg("--help"));
        (answered.status, answered.stderr, fs::read_to_string(path).expect("reading the log"))
    });
}

#[test]
fn it_finds_itself_in_the_surroundings_it_was_called_in() {
    let _machine = require!(Podman);
    same(ALL, |trial| {
        let script =
            "trap '' HUP USR1; umask 027; cd /usr; exec 19</usr/bin/env; export V6TEST=$'a\\nb'";
        let running = trial.start_after(script, &["-c", "-6", "--mtu=1500"]).once_ready();
        assert_eq!(running.link("exe"), "/usr/bin/slirp4netns");
        let folder = trial.folder.path().display().to_string();
        let plain = |text: String| text.replace(&folder, "");
        let of = |n: u8| running.link(&format!("fd/{n}"));
        assert_eq!((of(0), of(1), of(19)), ("/dev/null".into(), of(2), "/usr/bin/env".into()));
        // It closes the ready descriptor once it has written to it.
        let inherited = [0, 1, 2, 7, 19].map(|n| plain(of(n)));
        let flags = [0, 1, 2, 4, 7, 19].map(|n| {
            let info = running.proc(&format!("fdinfo/{n}"));
            let flags = info.lines().find(|line| line.starts_with("flags:"));
            flags.unwrap_or_default().to_owned()
        });
        assert!(of(4).starts_with("pipe:"), "{}", of(4));
        let served = trial.is_served_if_a_containers().is_some();
        // The one thing more: the connection that is the lease.
        let mut kinds: Vec<_> = running.descriptors();
        kinds.iter_mut().for_each(|link| link.truncate(link.find('[').unwrap_or(link.len())));
        if served {
            let at = kinds.iter().position(|link| link == "socket:").expect("the lease");
            kinds.remove(at);
        }
        kinds.sort();
        // The one thing less: its own IPv6.
        let cmdline = running.proc("cmdline");
        let words: Vec<_> = cmdline.split_terminator('\0').collect();
        assert_eq!((words[0], words.contains(&"-6")), ("slirp4netns", !served));
        // The target has a number or a folder of its own in each trial.
        let told = words.len() - 1 - trial.target.len();
        let words = owned(&words[..told]).into_iter().filter(|word| word != "-6");
        let environment = running.proc("environ");
        assert!(environment.contains("V6TEST=a\nb\0"), "{environment}");
        (
            (inherited, flags, kinds.into_iter().map(plain).collect::<Vec<_>>()),
            (words.collect::<Vec<_>>(), environment, running.link("cwd")),
            (running.status(INHERITED), running.proc("oom_score_adj"), running.proc("limits")),
        )
    });
}

#[test]
fn its_end_is_told_as_it_was() {
    let _machine = require!(Podman);
    for signal in [Signal::TERM, Signal::USR1, Signal::KILL] {
        same(BOTH, |trial| {
            let mut running = trial.start(&["-c"]).once_ready();
            running.signal(signal);
            let status = running.process.wait_within(PATIENCE);
            (status.code(), status.signal())
        });
    }
}
