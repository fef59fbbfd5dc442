use v6pod_daemon::config::Config;
use v6pod_proto::Obstacle;

use super::*;

fn status() -> Status {
    let text = r#"{"version":"1.2.3","instance":"v6pod","uptime":5,
        "prefix":{"prefix":"2001:db8:1:2:3::/80","source":"static","ula":false},"mode":"bridge",
        "gateway":"2001:db8:1:2:3::1","bridge":"v6pod0","mtu":1500,"uplink":"up0",
        "counts":{"attachments":0,"leases":0,"resting":0,"made":0,"released":0},
        "registry":{"kind":"embedded","healthy":true,"pending":0},
        "resolver":{"address":"fd3a:9ca3:76d6::53","zone":"v6pod.internal"},
        "last_repair":null,"off":[]}"#;
    serde_json::from_str(text).unwrap()
}

fn unit() -> Unit {
    let [load, active, file] = ["loaded", "active", "enabled"].map(str::to_owned);
    Unit { load, active, file, ..Unit::default() }
}

fn fine() -> Facts {
    Facts {
        units: Some([unit(), unit(), unit()]),
        config: Written::Fine,
        config_path: "/etc/v6pod/v6pod.toml".to_owned(),
        socket: Socket::Fine,
        socket_path: "/run/v6pod/v6pod.sock".to_owned(),
        socket_by_variable: false,
        account: true,
        status: Ok(status()),
        resolver_wanted: true,
        consul_unit: true,
        own_version: "1.2.3".to_owned(),
    }
}

/// A daemon that does not answer, and its units.
fn silent(service: Unit, socket: Unit) -> Facts {
    let status = Err("cannot reach v6podd".to_owned());
    Facts { units: Some([service, socket, unit()]), status, ..fine() }
}

fn in_state(active: &str) -> Unit {
    Unit { active: active.to_owned(), ..unit() }
}

fn judged(facts: &Facts) -> Vec<(&'static str, Option<String>)> {
    let all = [facts.judge_running(false), facts.judge_status(), facts.judge_firewalls()];
    let all = [all.concat(), facts.judge_registry()].concat();
    all.into_iter().map(|f| (f.code, f.commands.into_iter().next().map(|c| c.line))).collect()
}

fn says(change: impl FnOnce(&mut Status)) -> Facts {
    let mut status = status();
    change(&mut status);
    Facts { status: Ok(status), ..fine() }
}

fn consul(error: &str) -> Facts {
    let error = Some(error.to_owned());
    says(|s| s.registry = RegistryView { kind: "consul".into(), healthy: false, pending: 0, error })
}

#[test]
fn each_thing_that_is_not_right_is_named_with_what_mends_it() {
    assert_eq!(judged(&fine()), []);
    let dead = || in_state("failed");
    let enable = "systemctl enable --now v6podd.socket v6podd.service";
    let line = "sed -i '7s/^/#/' /etc/v6pod/v6pod.toml && systemctl restart v6podd.service";
    let drop_ins = vec!["/etc/systemd/system/v6podd.service.d/a.conf".to_owned()];
    let masked = Unit { load: "masked".to_owned(), ..dead() };
    let disabled = Unit { file: "disabled".to_owned(), ..unit() };
    let wrong = Written::Wrong { line: 7, why: "line 7: uplnk: no".to_owned(), can_go: true };
    let cases: [(&str, &str, Facts); 14] = [
        ("daemon-stopped", enable, silent(in_state("inactive"), in_state("inactive"))),
        (
            "daemon-masked",
            "systemctl unmask v6podd.service && systemctl enable --now v6podd.socket v6podd.service",
            silent(masked, unit()),
        ),
        (
            "daemon-disabled",
            "systemctl enable v6podd.socket v6podd.service",
            Facts { units: Some([disabled, unit(), unit()]), ..fine() },
        ),
        ("config-mistake", line, Facts { config: wrong, ..silent(dead(), unit()) }),
        (
            "daemon-account",
            "systemd-sysusers v6pod.conf && systemctl restart v6podd.service",
            Facts { account: false, ..silent(dead(), unit()) },
        ),
        (
            "daemon-unit-changed",
            "systemctl revert v6podd.service && systemctl restart v6podd.service",
            silent(Unit { drop_ins, ..dead() }, unit()),
        ),
        ("daemon-fails", "systemctl restart v6podd.socket v6podd.service", silent(dead(), unit())),
        (
            "socket-closed",
            "chmod 0666 /run/v6pod/v6pod.sock",
            Facts { socket: Socket::Closed, ..fine() },
        ),
        (
            "socket-hidden",
            "chmod 0755 /run/v6pod",
            Facts { socket: Socket::Hidden, ..silent(unit(), unit()) },
        ),
        (
            "socket-missing",
            "systemctl restart v6podd.socket v6podd.service",
            Facts { socket: Socket::Missing, ..fine() },
        ),
        (
            "socket-variable",
            "unset V6POD_SOCKET",
            Facts { socket_by_variable: true, ..silent(unit(), unit()) },
        ),
        ("daemon-old", RESTART, says(|s| s.version = "1.2.2".to_owned())),
        ("consul-away", "systemctl start consul.service", consul("the registry cannot be reached")),
        (
            "firewall-drops",
            "nft insert rule …",
            says(|s| {
                let [program, table, chain, hook, meaning] =
                    ["nft", "inet mine", "fwd", "forward", "it drops"].map(str::to_owned);
                let advice = vec!["nft insert rule …".to_owned()];
                s.obstacles = vec![Obstacle { program, table, chain, hook, meaning, advice }];
            }),
        ),
    ];
    for (code, line, facts) in cases {
        assert_eq!(judged(&facts), [(code, Some(line.to_owned()))]);
    }
}

#[test]
fn a_token_that_is_not_right_is_made_anew() {
    let codes =
        |error| judged(&consul(error)).into_iter().map(|(code, _)| code).collect::<Vec<_>>();
    assert_eq!(
        codes("the registry's token cannot be read: no such file"),
        ["consul-token-missing"]
    );
    assert_eq!(codes("the registry refuses: 403 ACL not found"), ["consul-token-refused"]);
    assert_eq!(codes("the agent is of the data centre a, and … says b"), ["consul-datacenter"]);
    assert_eq!(codes("the registry does not answer in time"), ["consul-away"]);
}

#[test]
fn what_keeps_it_from_starting_is_said_once() {
    let dead = silent(in_state("failed"), unit());
    assert_eq!(dead.judge_running(true), []);
    let resolver = says(|s| s.resolver = None);
    assert_eq!(judged(&resolver)[0].0, "resolver-off");
    assert_eq!(judged(&Facts { resolver_wanted: false, ..resolver }), []);
}

#[test]
fn a_restriction_that_is_mistyped_is_named_and_not_lifted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("it is.toml").display().to_string();
    let restricted = "[limits]\nusers = [\"alice\"]\nper_owner = 3\n";
    for (text, mended) in [
        (format!("uplnk = \"up0\"\n{restricted}"), true),
        (restricted.replace("users", "user"), false),
        (restricted.replace('3', "\"3\""), false),
    ] {
        std::fs::write(&path, &text).unwrap();
        let config = super::super::written::read(&text).1;
        let found =
            Facts { config, config_path: path.clone(), ..silent(in_state("failed"), unit()) }
                .judge_running(false);
        let [finding] = &*found else { panic!("{found:#?}") };
        assert!(finding.what.contains(&format!("{path}: line ")), "{}", finding.what);
        if !mended {
            assert_eq!(finding.commands, [], "{text}");
            continue;
        }
        // The command itself, on the file.
        let line = finding.commands[0].line.strip_suffix(&format!(" && {RESTART}")).unwrap();
        assert!(std::process::Command::new("sh").args(["-c", line]).status().unwrap().success());
        let after = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Config::parse(&after).unwrap(), Config::parse(restricted).unwrap(), "{after}");
    }
}

#[test]
fn of_a_socket_that_is_somebodys_own_nothing_is_said() {
    let socket_path = "/run/user/1000/v6pod.sock".to_owned();
    let own = Facts { socket: Socket::NotAsked, socket_path, ..fine() };
    assert_eq!(judged(&own), []);
    // What root is told to open is the usual one alone.
    let closed = Facts { socket: Socket::Hidden, ..own };
    assert_eq!(judged(&closed), [("socket-hidden", Some("chmod 0755 /run/v6pod".to_owned()))]);
}
