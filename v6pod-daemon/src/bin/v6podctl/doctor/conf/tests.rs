use std::process::Command;

use super::*;

const OURS: &str = DROP_IN_TEXT;
const USER: &str = "/home/anna/.config/containers/containers.conf";

fn layer(path: &str, whose: Whose, text: &str) -> Layer {
    Layer { path: path.to_owned(), whose, text: Ok(text.to_owned()), for_all: true }
}

fn system(text: &str) -> Layer {
    layer(DROP_IN, Whose::System, text)
}

fn facts(podman: Version, layers: Vec<Layer>) -> Facts {
    Facts {
        layers,
        user: By::User("anna".to_owned()),
        podman,
        libexec: LIBEXEC.to_owned(),
        first_helpers: None,
    }
}

fn codes(facts: &Facts) -> Vec<&'static str> {
    facts.judge().into_iter().map(|finding| finding.code).collect()
}

#[test]
fn our_drop_in_alone_is_fine_for_every_podman() {
    for podman in [Version(3, 4, 0), Version(4, 3, 1), Version(5, 4, 2), Version(6, 1, 1)] {
        assert_eq!(facts(podman, vec![system(OURS)]).judge(), [], "{podman}");
        let unrelated = "[engine]\nruntime = \"crun\"\n[containers]\nlog_size_max = 5\n";
        let user = layer(USER, Whose::User, unrelated);
        assert_eq!(facts(podman, vec![system(OURS), user]).judge(), [], "{podman}");
    }
}

#[test]
fn what_overrules_it_is_named_and_taken_out_by_whose_it_is() {
    let (old, new) = (Version(4, 3, 1), Version(5, 4, 2));
    let cmd = "[engine]\n  network_cmd_path = \"/usr/bin/slirp4netns\"\nruntime = \"crun\"\n";
    let helpers =
        "[engine]\nhelper_binaries_dir = [\n  \"/usr/libexec/podman\",\n]\nruntime = \"crun\"\n";
    let short = "[engine]\nhelper_binaries_dir = [\"/usr/libexec/podman\"]\nhooks_dir = [\"/a\"]\n";
    let user = |text| layer(USER, Whose::User, text);
    let other = |text| layer("/etc/containers/containers.conf.d/50-a b.conf", Whose::System, text);
    let cases: [(Version, Layer, &[&str]); 10] = [
        (old, user(cmd), &["dropin-overruled-by-user"]),
        (old, other(cmd), &["dropin-overruled"]),
        (new, user(helpers), &["dropin-overruled-by-user"]),
        (new, user(short), &["dropin-overruled-by-user", "hooks-dir-overridden"]),
        (Version(6, 1, 1), user(cmd), &[]),
        (old, user(helpers), &[]),
        (old, user("[containers]\nnetns = \"host\"\n"), &["network-default"]),
        (old, user("[containers]\nnetns = \"private\"\n"), &[]),
        (
            old,
            user("[containers]\nannotations = [\"a=b\", \"v6pod=false\"]\n"),
            &["declined-by-default"],
        ),
        (old, user("[engine\n"), &["podman-conf-broken"]),
    ];
    for (podman, layer, expected) in cases {
        let before = facts(podman, vec![system(OURS), layer.clone()]);
        assert_eq!(codes(&before), expected, "{layer:?}");
        if expected.is_empty() || expected == ["podman-conf-broken"] {
            continue;
        }
        // The commands themselves, on a file of that text.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it is").display().to_string();
        let text = layer.text.as_ref().unwrap();
        std::fs::write(&path, text).unwrap();
        let real = facts(podman, vec![system(OURS), Layer { path: path.clone(), ..layer.clone() }]);
        for finding in real.judge() {
            let [command] = &*finding.commands else { panic!("{finding:#?}") };
            let by = if layer.whose == Whose::System { By::Root } else { real.user.clone() };
            assert_eq!(command.by, by);
            let run = Command::new("sh").args(["-c", &command.line]).status().unwrap();
            assert!(run.success(), "{}", command.line);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mended = facts(podman, vec![system(OURS), Layer { text: Ok(text.clone()), ..layer }]);
        assert_eq!(mended.judge(), [], "{text}");
    }
}

#[test]
fn a_list_that_appends_overrules_nothing() {
    let text = "[engine]\nhelper_binaries_dir = [\"/opt/podman\", {append=true}]\n";
    let user = layer(USER, Whose::User, text);
    assert_eq!(facts(Version(5, 4, 2), vec![system(OURS), user]).judge(), []);
}

#[test]
fn the_drop_in_is_written_as_it_was() {
    let missing = facts(Version(5, 4, 2), Vec::new());
    let found = missing.judge();
    let [finding] = &*found else { panic!("{found:#?}") };
    assert_eq!((finding.code, &finding.commands[0].by), ("dropin-missing", &By::Root));
    let line = &finding.commands[0].line;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("10-v6pod.conf");
    let here = line.replace(DROP_IN, &path.display().to_string());
    assert!(Command::new("sh").args(["-c", &here]).status().unwrap().success());
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(facts(Version(5, 4, 2), vec![system(&text)]).judge(), []);
    assert_eq!(codes(&facts(Version(3, 0, 1), Vec::new())), ["dropin-not-read"]);
}

#[test]
fn a_table_that_the_main_file_has_is_not_written_a_second_time() {
    let old = |layers| facts(Version(3, 0, 1), layers);
    let main = |text: &str| layer(MAIN, Whose::System, text);
    let network = "[network]\ndns_bind_port = 5\n";
    for text in [
        "",
        network,
        "[containers]\nlog_size_max = 5",
        "[engine]\nruntime = \"crun\"\n",
        "[containers]\n  [engine] # ours\nruntime = \"crun\"\n[engine.runtimes]\na = [\"/a\"]\n",
        "[engine]",
    ] {
        let before = old(vec![main(text)]).judge();
        let [finding] = &*before else { panic!("{text}: {before:#?}") };
        let [command] = &*finding.commands else { panic!("{text}: {finding:#?}") };
        assert_eq!((finding.code, &command.by), ("dropin-not-read", &By::Root));
        // The command itself, on a file of that text.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("containers.conf");
        std::fs::write(&path, text).unwrap();
        let here = command.line.replace(MAIN, &path.display().to_string());
        assert!(Command::new("sh").args(["-c", &here]).status().unwrap().success(), "{here}");
        let after = std::fs::read_to_string(&path).unwrap();
        assert_eq!(old(vec![main(&after)]).judge(), [], "{after}");
        assert!(after.starts_with(text.lines().next().unwrap_or_default()), "{after}");
    }
    // Where one line more would make no TOML of it, or say something else.
    for text in [
        "engine.runtime = \"crun\"\n",
        "engine = { runtime = \"crun\" }\n",
        "[ engine ]\nruntime = \"crun\"\n",
        "[engine]\nnetwork_cmd_path = \"\"\n",
        "[containers]\nnote = \"\"\"\n[engine]\n\"\"\"\n",
    ] {
        let found = old(vec![main(text)]).judge();
        let [finding] = &*found else { panic!("{text}: {found:#?}") };
        assert_eq!((finding.code, &*finding.commands), ("dropin-not-read", &[][..]), "{text}");
    }
}

#[test]
fn what_cannot_be_read_and_what_the_environment_says_is_named() {
    let podman = Version(4, 3, 1);
    let denied = Layer { text: Err(Unread::Denied), for_all: false, ..system("") };
    assert_eq!(codes(&facts(podman, vec![denied])), ["podman-conf-unreadable"]);
    // Root can read it.
    let closed = Layer { for_all: false, ..system(OURS) };
    assert_eq!(codes(&facts(podman, vec![closed])), ["podman-conf-unreadable"]);
    let found = facts(podman, vec![layer("/a", Whose::Variable("CONTAINERS_CONF"), "")]).judge();
    assert_eq!(found[0].code, "dropin-overruled-by-variable");
    assert_eq!(found[0].commands[0].line, "unset CONTAINERS_CONF");
    let mut helpers = facts(Version(5, 0, 0), vec![system(OURS)]);
    helpers.first_helpers = Some("/opt".to_owned());
    assert_eq!(codes(&helpers), ["helpers-variable"]);
}
