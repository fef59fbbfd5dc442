//! What an operator, and a user, sees by v6podctl, and how all of it is taken away.
//!
//! ```text
//!   host ── v6podd ── unix socket ◀── v6podctl
//!     └── v6t0 ── port ── eth0 ┌ web (v6t1), db (v6t2) ┐
//! ```
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::Command;

use serde_json::Value;
use v6pod_proto::Activate;
use v6pod_tests::{
    Config, Daemon, HostNs, OwnedNs, PATIENCE, Stage, User, built, eventually, random_container_id,
    require, run,
};

fn ctl_as(user: &User, daemon: &Daemon, args: &[&str]) -> Value {
    // The program under test, where an ordinary user can run it.
    let program = user.home().join("v6podctl");
    if !program.exists() {
        run(Command::new("cp").arg(built("v6podctl")).arg(&program)).ok();
    }
    let mut command = user.command(program);
    command.arg("--socket").arg(daemon.socket()).arg("--json").args(args);
    serde_json::from_str(run(&mut command).ok()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn address_and_name_are_where_a_person_looks_first() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(1);
    stage.user().sleeper("web");
    let attachment = stage.daemon.the_attachment();
    let (address, short) = (attachment.address.to_string(), &attachment.container.as_str()[..12]);
    let table = stage.daemon.ctl(&["ls"]);
    let row = table.ok().lines().nth(1).unwrap_or_default();
    assert!(row.contains("web") && row.contains(&address), "{table}");
    for reference in ["web", &address, short, attachment.id.as_str()] {
        let shown = stage.daemon.ctl(&["show", reference]);
        assert!(shown.ok().contains(&address), "show {reference}: {shown}");
        let json = stage.daemon.ctl(&["--json", "show", reference]);
        let mut shown: v6pod_proto::Attachment =
            serde_json::from_str(json.ok()).unwrap_or_else(|e| panic!("{e}: {json}"));
        // Counted for who looks at one, and not in a list.
        assert!(shown.traffic.take().is_some(), "{json}");
        assert_eq!(shown, attachment);
    }
    let nothing = stage.daemon.ctl(&["show", "nothing"]);
    assert!(!nothing.fails().is_empty(), "{nothing}");
    let capacity: v6pod_proto::Capacity =
        serde_json::from_str(stage.daemon.ctl(&["--json", "capacity"]).ok())
            .unwrap_or_else(|e| panic!("{e}"));
    let limit = |name: &str| capacity.limits.iter().find(|limit| limit.name == name);
    assert_eq!(limit("addresses").map(|limit| limit.used), Some(1), "{capacity:?}");
    assert!(limit(&capacity.first_limit).is_some_and(|limit| limit.max > 0), "{capacity:?}");
    assert!(capacity.more > 0, "{capacity:?}");
}

#[test]
fn a_user_sees_his_own_and_root_sees_all() {
    let _machine = require!(Podman);
    let stage = Stage::with_users(2);
    stage.users[0].sleeper("web");
    stage.users[1].sleeper("db");
    assert_eq!(stage.daemon.attachments().len(), 2);
    for (user, name) in stage.users.iter().zip(["web", "db"]) {
        let list = ctl_as(user, &stage.daemon, &["ls"]);
        let list = list.get("attachments").unwrap_or(&list);
        let names: Vec<_> = list.as_array().into_iter().flatten().map(|a| &a["name"]).collect();
        assert_eq!(names, [name], "{list}");
    }
}

#[test]
fn a_person_at_a_terminal_is_told_more_than_a_pipe() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let user = User::account(1, &host);
    let namespace = OwnedNs::new(&user);
    let name = Some("we\u{1b}[31mb\u{202e}".to_owned());
    let request = Activate { name, ..Activate::new(random_container_id()) };
    let (made, _) = daemon.as_user(user.uid()).activate(&request, namespace.network().as_fd());
    let made = made.unwrap_or_else(|refused| panic!("{refused}"));
    let by_terminal = |words: &str, colour: &str| {
        let program = built("v6podctl").display().to_string();
        let line = format!("{colour} {program} --socket {} {words}", daemon.socket().display());
        let mut script = host.command("script");
        run(script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm")).ok().to_owned()
    };
    let show = format!("show {}", made.id);
    for words in ["ls", &show] {
        let shown = by_terminal(words, "NO_COLOR=");
        let plain = by_terminal(words, "NO_COLOR=1");
        let piped = daemon.ctl(&words.split(' ').collect::<Vec<_>>());
        assert!(shown.contains("\u{1b}[1m") && shown.contains("\u{1b}[32m"), "{shown:?}");
        assert!(!plain.contains('\u{1b}') && !piped.ok().contains('\u{1b}'), "{plain:?} {piped}");
        for text in [&shown, &plain] {
            // The owner by his name, and where to go next.
            assert!(text.contains(user.name()) && text.contains("`v6podctl "), "{text:?}");
            // The container's name does not speak to the terminal.
            assert!(!text.contains("\u{1b}[31m") && !text.contains('\u{202e}'), "{text:?}");
        }
        let quiet = !piped.ok().contains(user.name()) && piped.stderr.is_empty();
        assert!(quiet && piped.ok().contains(&user.uid().to_string()), "{piped}");
    }
    assert!(!by_terminal("--json ls", "NO_COLOR=").contains('`'));
}

#[test]
fn bash_completes_commands_and_there_are_man_pages() {
    let program = built("v6podctl");
    let complete = |words: &str| {
        let script = "source <(\"$0\" completions bash); COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
            _v6podctl v6podctl \"${COMP_WORDS[-1]}\" v6podctl; echo \"${COMPREPLY[@]}\"";
        run(Command::new("bash").args(["-c", script]).arg(&program).arg(words)).ok().to_owned()
    };
    assert_eq!(complete("v6podctl sh"), "show");
    assert_eq!(complete("v6podctl prefix se"), "set");
    assert_eq!(complete("v6podctl completions z"), "zsh");
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    run(Command::new(&program).arg("man").arg(folder.path())).ok();
    let pages = std::fs::read_dir(folder.path()).unwrap_or_else(|e| panic!("{e}")).flatten();
    let pages: Vec<_> = pages.map(|entry| entry.path()).collect();
    assert!(pages.iter().any(|page| page.ends_with("v6podctl-explain.1")), "{pages:?}");
    assert!(pages.iter().any(|page| page.ends_with("v6podd.8")), "{pages:?}");
}

#[test]
fn an_owner_renames_a_running_container_and_a_name_that_is_anothers_stays_his() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(2);
    stage.users[0].sleeper("web");
    stage.users[1].sleeper("db");
    let shown = |daemon: &Daemon, reference: &str| -> v6pod_proto::Attachment {
        daemon.root().get(&format!("/api/attachments/{reference}")).ok()
    };
    let rename = |daemon: &Daemon, user: usize, words: [&str; 2]| {
        let mut command = stage.users[user].command(built("v6podctl"));
        run(command.arg("--socket").arg(daemon.socket()).arg("rename").args(words))
    };
    let labels = |a: &v6pod_proto::Attachment| -> Vec<String> {
        a.names.iter().map(|name| name.name.clone()).collect()
    };
    let before = eventually(PATIENCE, "its name is registered", || {
        let there = shown(&stage.daemon, "web");
        (labels(&there) == ["web"]).then_some(there)
    });
    // Another's is unknown to him, and what is no label is refused here already.
    assert!(rename(&stage.daemon, 1, ["web", "x"]).fails().contains("no attachment of yours"));
    assert!(rename(&stage.daemon, 0, ["web", "No.Label"]).fails().contains("lower-case"));
    rename(&stage.daemon, 0, ["web", "shop"]).ok();
    let after = shown(&stage.daemon, "shop");
    assert_eq!((after.id.clone(), after.address), (before.id, before.address));
    assert_eq!((labels(&after), after.name.as_deref()), (vec!["shop".to_owned()], Some("web")));
    // The name that it had is free, one that another has is not.
    rename(&stage.daemon, 1, ["db", "web"]).ok();
    let other = shown(&stage.daemon, "web");
    assert_eq!(labels(&other), ["web"]);
    rename(&stage.daemon, 0, ["shop", "web"]).ok();
    let owner = stage.users[0].uid();
    assert_eq!(labels(&shown(&stage.daemon, &after.id.to_string())), [format!("web-u{owner}")]);
    stage.daemon.stop();
    stage.daemon.restart();
    eventually(PATIENCE, "both are called so after a restart", || {
        let both = [&after.id, &other.id].map(|id| labels(&shown(&stage.daemon, &id.to_string())));
        (both == [[format!("web-u{owner}")], ["web".to_owned()]]).then_some(())
    });
}

#[test]
fn status_says_what_is_off() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let daemon = Daemon::start(&host);
    let status = daemon.status();
    assert_eq!((status.instance.as_str(), status.counts.attachments), ("v6t", 0));
    assert!(!status.prefix.ula && status.prefix.prefix == v6pod_tests::PREFIX, "{status:?}");
    assert_eq!(status.uplink.map(|uplink| uplink.to_string()).as_deref(), Some("up0"));
    // What is not there yet is said where an operator looks, and at every start.
    assert!(status.off.iter().any(|off| off.feature == "ndp-proxy"), "{:?}", status.off);
    assert!(daemon.log().contains("off: ndp-proxy"), "{}", daemon.log());
}

#[test]
fn a_prefix_of_ones_own_is_made_once_and_kept() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let config = Config { prefix: "auto".to_owned(), ..Config::default() };
    let mut daemon = Daemon::configured(&host, &config);
    let first = daemon.status().prefix;
    assert!(first.ula && first.prefix.starts_with("fd") && first.prefix.ends_with("/80"));
    daemon.stop();
    daemon.restart();
    assert_eq!(daemon.status().prefix, first);
}

#[test]
fn purge_takes_all_away() {
    let _machine = require!(Podman);
    let host = HostNs::new();
    let links = |host: &HostNs| host.ip("-o link show").ok().lines().count();
    let routes = |host: &HostNs| host.ip("-6 route show table all").ok().to_owned();
    let (links_before, routes_before) = (links(&host), routes(&host));
    let mut stage = Stage::on(host, &Config::default(), 1);
    let container = stage.users[0].sleeper("c");
    stage.daemon.the_attachment();
    stage.daemon.kill9();
    stage.daemon.purge().ok();
    assert_eq!(links(&stage.host), links_before);
    assert_eq!(routes(&stage.host), routes_before);
    let left = std::fs::read_dir(stage.daemon.run_dir().join("attachments"));
    assert_eq!(left.into_iter().flatten().count(), 0);
    assert!(!stage.daemon.run_dir().join("users").exists(), "users' own sockets");
    // A purge of nothing is no error, and the container only lost its address.
    stage.daemon.purge().ok();
    assert!(container.init().is_alive());
    stage.daemon.restart();
    assert!(stage.daemon.attachments().is_empty());
}
