//! Issue 4: what labels and published ports ask for, read from podman's database behind its back.
//!
//! ```text
//!   podman (holds the container's lock) → runtime → v6pod-hook → v6pod-wishes → bolt_state.db | db.sql
//!                                                      ↓                        images
//!                                                   v6podd
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use v6pod_proto::wishes::{OtherWishes, Source};
use v6pod_tests::{
    Container, Finished, Footprint, IMAGE, Login, PATIENCE, Place as _, Stage, Suite, User,
    WholeHost, built, eventually, require, run,
};

/// Labels, publishes and variables of a container, as podman takes them.
const ASKED: &[&str] = &[
    "--label=v6pod.name=asked",
    "--label=v6pod.ingress=tcp/5432",
    "--label=org.example=x",
    "--publish=18080:80",
    "--publish=0.0.0.0:18443:443/udp",
    "--publish=127.0.0.1:15432:5432",
    "--publish=17000-17010:7000-7010",
    "--env=SERVICE_80_TAGS=a,b",
    "--env=SERVICE_80_SCRIPT=/bin/false",
];

/// What is to be found of that.
const FOUND: &[(Source, &str, &str)] = &[
    (Source::Label, "v6pod.ingress", "tcp/5432"),
    (Source::Label, "v6pod.name", "asked"),
    (Source::Published, "v6pod.ingress", "tcp/80,tcp/7000-7010,udp/443"),
    (Source::Environment, "SERVICE_80_TAGS", "a,b"),
];

#[track_caller]
fn finds(found: &OtherWishes, expected: &[(Source, &str, &str)]) {
    let each = found.each();
    let each: Vec<_> = each.iter().map(|(s, n, v)| (*s, n.as_str(), v.as_str())).collect();
    assert_eq!(each, expected, "ignored: {:?}", found.ignored);
}

struct Scene {
    before: Footprint,
    stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::with_users(1);
        stage.user().use_hook(&stage.daemon.socket());
        Self { before: stage.daemon.footprint(), stage }
    }

    fn user(&self) -> &User {
        self.stage.user()
    }

    #[track_caller]
    fn start(&self, options: &[&str]) -> Container<'_> {
        self.user().start("c", options, &["sleep", "1000"])
    }

    fn found(&self) -> OtherWishes {
        self.stage.daemon.the_attachment().found
    }

    /// Podman's storage.
    fn storage(&self) -> PathBuf {
        self.user().home().join(".local/share/containers/storage")
    }

    fn is_clean(&self) {
        self.before.comes_back(&self.stage.daemon);
    }
}

/// Builds [`IMAGE`] with labels and annotations of its own, as `localhost/bearing`.
const BUILD: &str = "printf 'FROM localhost/v6test\\nLABEL v6pod.ingress=tcp/22 v6pod.name=images v6pod=true\\n' | \
     podman build --quiet --format oci --annotation v6pod.egress=allow --annotation v6pod.tags=image \
     --tag localhost/bearing -f - .";

#[test]
fn labels_publishes_and_variables_are_shown_with_where_they_come_from() {
    let _machine = require!(Podman);
    let mut scene = Scene::new();
    for order in [&[][..], &["--userns=keep-id"]] {
        let options = [ASKED, order].concat();
        let container = scene.stage.users[0].start("c", &options, &["sleep", "1000"]);
        finds(&scene.found(), FOUND);
        let shown = scene.stage.daemon.ctl(&["show", "asked"]);
        for line in [
            "v6pod.name=asked (label)",
            "v6pod.ingress=tcp/80,tcp/7000-7010,udp/443 (published port)",
            "SERVICE_80_TAGS=a,b (variable)",
        ] {
            assert!(shown.ok().contains(line), "{line} is not in {shown}");
        }
        let before = scene.stage.daemon.the_attachment();
        scene.stage.daemon.kill9();
        scene.stage.daemon.restart();
        assert_eq!(scene.stage.daemon.the_attachment().found, before.found);
        container.remove();
        scene.is_clean();
    }
}

#[test]
fn what_a_pods_user_says_by_labels_counts_as_annotations() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let user = scene.user();
    let pod =
        |label: &str| user.podman(&["pod", "create", "--name=p", label, "--publish=18080:80"]);
    pod("--label=v6pod.name=pods").ok();
    let member = user.start("m", &["--pod=p", "--label=v6pod.name=members"], &["sleep", "1000"]);
    let published = (Source::Published, "v6pod.ingress", "tcp/80");
    let name = (Source::Pod, "name", "p");
    finds(&scene.found(), &[name, (Source::PodLabel, "v6pod.name", "pods"), published]);
    member.remove();
    user.podman(&["pod", "rm", "-f", "-t", "0", "p"]).ok();
    scene.is_clean();

    // Without a word about its name it is the pod's.
    pod("--label=other=x").ok();
    let member = user.start("m", &["--pod=p"], &["sleep", "1000"]);
    finds(&scene.found(), &[name, published]);
    eventually(PATIENCE, "the attachment bears the pod's name, and its member's", || {
        let names = scene.stage.daemon.the_attachment().names;
        let names: Vec<_> = names.iter().map(|name| name.name.as_str()).collect();
        (names == ["p", "m"]).then_some(())
    });
    member.remove();
    user.podman(&["pod", "rm", "-f", "-t", "0", "p"]).ok();
    scene.is_clean();

    pod("--label=v6pod.ingress=80").ok();
    let failed = user.podman(&["run", "--rm", "--pod=p", IMAGE, "true"]);
    assert!(failed.fails().contains("the pod's label v6pod.ingress: write openings"), "{failed}");
    user.podman(&["pod", "rm", "-f", "-t", "0", "p"]).ok();
    scene.is_clean();
}

#[test]
fn what_an_image_brings_is_not_what_its_user_asks_for() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let user = scene.user();
    run(user.command("sh").args(["-c", BUILD])).ok();
    let start = |options: &[&str]| {
        let words =
            [&["run", "--detach", "--name=c"], options, &["localhost/bearing", "sleep", "1000"]];
        user.podman(&words.concat()).ok();
    };
    start(&["--label=v6pod.name=users", "--annotation=v6pod.tags=users"]);
    let attachment = scene.stage.daemon.the_attachment();
    finds(
        &attachment.found,
        &[
            (Source::Label, "v6pod.name", "users"),
            (Source::ImageAnnotation, "v6pod.egress", "allow"),
            (Source::ImageLabel, "v6pod", "true"),
            (Source::ImageLabel, "v6pod.ingress", "tcp/22"),
        ],
    );
    let own: Vec<_> = attachment.wishes.annotations().into_iter().collect();
    assert_eq!(own, [("v6pod.tags", "users".to_owned())]);
    user.podman(&["rm", "-f", "-t", "0", "c"]).ok();
    scene.is_clean();

    // It cannot undo its user's --network none; its user can.
    start(&["--network=none"]);
    assert_eq!(scene.stage.daemon.attachments(), []);
    user.podman(&["rm", "-f", "-t", "0", "c"]).ok();
    // The image's own value, said by the user: nobody can tell that it is his.
    start(&["--network=none", "--annotation=v6pod=true"]);
    finds(
        &scene.found(),
        &[
            (Source::ImageAnnotation, "v6pod.egress", "allow"),
            (Source::ImageAnnotation, "v6pod.tags", "image"),
            (Source::ImageLabel, "v6pod", "true"),
            (Source::ImageLabel, "v6pod.ingress", "tcp/22"),
            (Source::ImageLabel, "v6pod.name", "images"),
        ],
    );
    user.podman(&["rm", "-f", "-t", "0", "c"]).ok();
    scene.is_clean();

    // Where the image cannot be read, every label may be its own.
    let images = ["overlay", "vfs"].map(|driver| scene.storage().join(format!("{driver}-images")));
    let images = images.iter().find(|folder| folder.exists()).expect("a folder of images");
    user.podman(&[
        "create",
        "--name=c",
        "--label=v6pod.name=users",
        "localhost/bearing",
        "sleep",
        "1000",
    ])
    .ok();
    let each = |what: &str| {
        let script = format!("cd {} && for m in */manifest*; do {what}; done", images.display());
        run(user.command("sh").args(["-c", &script])).ok();
    };
    each("mv $m $m.x; ln -s manifest.x $m");
    user.podman(&["start", "c"]).ok();
    let found = scene.found();
    each("test -L $m || mv $m ${m%.x}");
    assert!(found.labels.is_empty(), "{found:?}");
    assert_eq!(found.image_labels.name.expect("a name").as_str(), "users");
    user.podman(&["rm", "-f", "-t", "0", "c"]).ok();
    scene.is_clean();
}

#[test]
fn a_label_says_whether_there_is_an_address_and_a_malformed_one_is_only_told() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let declined = scene.start(&["--label=v6pod=false"]);
    assert_eq!(scene.stage.daemon.attachments(), []);
    declined.remove();
    let asked = scene.start(&["--network=none", "--label=v6pod=true"]);
    assert_eq!(scene.stage.daemon.the_attachment().container.as_str(), asked.id);
    asked.remove();
    let annotated = ["--network=none", "--label=v6pod=true", "--annotation=v6pod=false"];
    let annotated = scene.start(&annotated);
    assert_eq!(scene.stage.daemon.attachments(), []);
    annotated.remove();
    scene.is_clean();

    let container = scene.start(&["--label=v6pod.ingress=80", "--label=v6pod.name=web"]);
    let found = scene.found();
    finds(&found, &[(Source::Label, "v6pod.name", "web")]);
    assert!(found.ignored[0].starts_with("the label v6pod.ingress: write openings"), "{found:?}");
    let shown = scene.stage.daemon.ctl(&["show", "web"]);
    assert!(shown.ok().contains("the label v6pod.ingress: write openings"), "{shown}");
    container.remove();
    scene.is_clean();
}

/// What a person would write first: a hook that asks podman.
const ASKS_PODMAN: &str = "#!/bin/sh\nexport PATH=/usr/bin:/bin\ncat >/dev/null\n\
    timeout -k 1 5 podman inspect c >/dev/null 2>&1\necho $? >>RESULT\n";

#[test]
fn podman_cannot_be_asked_and_a_locked_database_can() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let user = scene.user();
    // In the hook's place, beside the real hook file.
    let (result, script) = (user.home().join("result"), user.home().join("asks"));
    fs::write(&script, ASKS_PODMAN.replace("RESULT", &result.display().to_string()))
        .expect("writing");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
    let folder = user.hook().with_file_name("hooks.d");
    let naive = folder.join("naive.json");
    let file = serde_json::json!({
        "version": "1.0.0", "hook": { "path": script, "args": ["asks"] },
        "when": { "always": true }, "stages": ["createRuntime"],
    });
    fs::write(&naive, file.to_string()).expect("writing a file");
    scene.start(&[]).remove();
    assert_eq!(fs::read_to_string(&result).expect("the hook ran").trim(), "124", "it was killed");
    fs::remove_file(naive).expect("removing a file");

    // Podman's own lock, as it holds it while it writes. A reader that takes one of its own waits.
    let container = scene.start(ASKED);
    let database = File::open(scene.storage().join("libpod/bolt_state.db")).expect("Bolt");
    let lock = Flock::lock(database, FlockArg::LockExclusive).expect("the lock");
    let bundle = bundle(&scene, &container.id);
    let again = File::open(scene.storage().join("libpod/bolt_state.db")).expect("Bolt");
    assert!(Flock::lock(again, FlockArg::LockSharedNonblock).is_err(), "a blocking one would hang");
    let seen = run(user.command(user.wishes()).arg(&bundle));
    assert!(seen.ok().contains(r#""labels:v6pod.name":"asked""#), "{seen}");
    drop(lock);
    container.remove();
    scene.is_clean();
}

fn bundle(scene: &Scene, id: &str) -> PathBuf {
    let driver = |driver: &str| scene.storage().join(format!("{driver}-containers/{id}/userdata"));
    let both = ["overlay", "vfs"].map(driver);
    both.into_iter().find(|bundle| bundle.exists()).expect("a bundle")
}

#[test]
fn whatever_lies_beside_podmans_database_containers_start_and_are_read() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let user = scene.user();
    // Podman 4.3.1 does not know this file; v6pod-wishes looks there first.
    let other = scene.storage().join("db.sql");
    for script in [
        "mkfifo db.sql",
        "ln -s /dev/zero db.sql",
        "truncate -s 1T db.sql",
        "head -c 4096 /dev/urandom >db.sql",
        "mkdir db.sql",
        // A journal that stays: 120 ms, and no more than that.
        "cp /bin/true db.sql; echo x >db.sql-journal",
    ] {
        let cd = format!("cd {} && {script}", scene.storage().display());
        run(user.command("sh").args(["-c", &cd])).ok();
        let container = scene.start(ASKED);
        finds(&scene.found(), FOUND);
        container.remove();
        scene.is_clean();
        run(user.command("rm").arg("-rf").arg(&other)).ok();
    }
    // Who answers nothing is not waited for, and who is not there is not missed.
    fs::write(user.wishes(), "#!/bin/sh\nexec sleep 1000\n").expect("writing a file");
    for _ in 0..2 {
        let container = scene.start(ASKED);
        assert_eq!(scene.found(), OtherWishes::default());
        container.remove();
        scene.is_clean();
        let _ = fs::remove_file(user.wishes());
    }
    assert!(user.processes("sleep").is_empty(), "it is still there");
}

/// A storage with one container in an SQLite database, as podman 5 makes it, of the user who runs
/// the test.
struct Sqlite {
    root: TempDir,
    id: String,
}

/// Podman's tables as far as they are read, many containers, JSON as bytes.
const MAKE: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("CREATE TABLE DBConfig(ID INTEGER PRIMARY KEY NOT NULL, SchemaVersion INTEGER NOT NULL)")
db.execute("CREATE TABLE ContainerConfig(ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, "
           "PodID TEXT, JSON TEXT NOT NULL)")
db.execute("INSERT INTO DBConfig VALUES (1, 1)")
for n in range(3000):
    id = "%064x" % (n * 0x9e3779b97f4a7c15 % 2**64)
    json = '{"labels":{"v6pod.name":"n%d"},"filling":"%s"}' % (n, "x" * (n % 9000))
    db.execute("INSERT INTO ContainerConfig VALUES (?, ?, NULL, ?)", (id, "c%d" % n, json.encode()))
db.commit()
"#;

impl Sqlite {
    #[track_caller]
    fn make() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let made =
            Self { root, id: format!("{:064x}", 2999 * 0x9e37_79b9_7f4a_7c15_u128 % (1 << 64)) };
        run(Command::new("python3").args(["-c", MAKE]).arg(made.database())).ok();
        made
    }

    fn database(&self) -> PathBuf {
        self.root.path().join("db.sql")
    }

    /// What is read of a container.
    #[track_caller]
    fn read(&self, id: &str) -> Finished {
        let bundle = self.root.path().join(format!("overlay-containers/{id}/userdata"));
        run(Command::new(built("v6pod-wishes")).arg(bundle))
    }

    #[track_caller]
    fn sql(&self, script: &str) -> Finished {
        let program = format!(
            "import sqlite3,sys\ndb=sqlite3.connect(sys.argv[1],isolation_level=None)\n{script}"
        );
        run(Command::new("python3").args(["-c", &program]).arg(self.database()))
    }
}

const OWN: &str = r#"{"labels:v6pod.name":"n2999"}"#;

#[test]
fn a_database_is_read_whatever_it_is_in_the_middle_of_or_not_at_all() {
    let _machine = require!(Podman);
    let made = Sqlite::make();
    assert_eq!(made.read(&made.id).ok(), OWN);
    for n in [0, 1, 77, 1500_u128] {
        let id = format!("{:064x}", n * 0x9e37_79b9_7f4a_7c15 % (1 << 64));
        assert_eq!(made.read(&id).ok(), format!(r#"{{"labels:v6pod.name":"n{n}"}}"#));
    }
    assert_eq!(made.read(&"0f".repeat(32)).ok(), "");
    let left: Vec<_> = made.root.path().read_dir().expect("a folder").flatten().collect();
    assert_eq!(left.len(), 1, "nothing is left beside it: {left:?}");

    // SQLite's locks, all of which podman takes while it writes: nothing has been written yet.
    let locked = "db.execute('BEGIN EXCLUSIVE')\nimport subprocess\n\
                  print(subprocess.run(sys.argv[2:],capture_output=True,text=True).stdout)";
    let bundle = made.root.path().join(format!("overlay-containers/{}/userdata", made.id));
    let program = format!(
        "import sqlite3,sys\ndb=sqlite3.connect(sys.argv[1],isolation_level=None)\n{locked}"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &program]).arg(made.database()).arg(built("v6pod-wishes")).arg(&bundle);
    assert_eq!(run(&mut command).ok(), OWN);

    // In the middle of a transaction that has written: what there is may be half of it.
    let writing = locked.replace(
        "import subprocess",
        "db.execute('PRAGMA cache_size=1')\ndb.execute(\"UPDATE ContainerConfig SET Name='x'||Name\")\nimport subprocess",
    );
    let program = format!(
        "import sqlite3,sys\ndb=sqlite3.connect(sys.argv[1],isolation_level=None)\n{writing}"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &program]).arg(made.database()).arg(built("v6pod-wishes")).arg(&bundle);
    assert_eq!(run(&mut command).ok(), "");
    // It ended without a commit: its journal is the next writer's to roll back, and no reader's.
    made.sql("db.execute('SELECT count(*) FROM ContainerConfig').fetchall()").ok();
    assert_eq!(made.read(&made.id).ok(), OWN);

    // With a write-ahead log what counts may be elsewhere.
    made.sql("db.execute('PRAGMA journal_mode=wal')").ok();
    assert_eq!(made.read(&made.id).ok(), "");
    made.sql("db.execute('PRAGMA journal_mode=delete')").ok();
    assert_eq!(made.read(&made.id).ok(), OWN);
    made.sql("db.execute('UPDATE DBConfig SET SchemaVersion=2')").ok();
    assert_eq!(made.read(&made.id).ok(), "", "a schema that nobody knows");
    made.sql("db.execute('UPDATE DBConfig SET SchemaVersion=1')").ok();
}

#[test]
fn a_file_that_is_no_database_of_the_users_is_none() {
    let _machine = require!(Podman);
    let made = Sqlite::make();
    let (file, kept) = (made.database(), made.root.path().join("kept"));
    let whole = fs::read(&file).expect("reading a file");
    let put = |bytes: &[u8]| fs::write(&file, bytes).expect("writing a file");
    for length in [0, 1, 99, 100, 4096, 4097, whole.len() / 2] {
        put(&whole[..length]);
        let seen = made.read(&made.id);
        assert!(["", OWN].contains(&seen.ok()), "{length}: {seen}");
    }
    put(&whole);
    assert_eq!(made.read(&made.id).ok(), OWN);
    chown(&file, Some(65534), None).expect("chown");
    assert_eq!(made.read(&made.id).ok(), "", "it is somebody else's");
    chown(&file, Some(0), None).expect("chown");
    fs::rename(&file, &kept).expect("renaming a file");
    symlink(&kept, &file).expect("a link");
    assert_eq!(made.read(&made.id).ok(), "", "a link");
    for make in ["mkfifo", "mkdir"] {
        remove(&file);
        run(Command::new(make).arg(&file)).ok();
        assert_eq!(made.read(&made.id).ok(), "", "{make}");
    }
    for bundle in ["", "/", "userdata", "overlay-containers/x/userdata", "/a-containers/b/userdata"]
    {
        // No container of podman's: there is nothing, and that is known.
        assert_eq!(run(Command::new(built("v6pod-wishes")).arg(bundle)).ok(), "{}", "{bundle:?}");
    }
    assert_eq!(run(&mut Command::new(built("v6pod-wishes"))).ok(), "");
}

fn remove(file: &Path) {
    let _ = fs::remove_file(file).or_else(|_| fs::remove_dir(file));
}

#[test]
fn podman_5s_own_database_is_read() {
    let _machine = require!(WholeHost);
    let host = WholeHost::serving(Suite::Trixie);
    let user = host.log_in("anna");
    let before = host.footprint();
    let storage = "/home/anna/.local/share/containers/storage";
    host.sh(&format!("test -e {storage}/db.sql && test ! -e {storage}/libpod/bolt_state.db")).ok();
    for network in ["pasta", "slirp4netns"] {
        let id = user.sleeper("c", &[ASKED, &["--network", network]].concat());
        finds(&user.attachment(&id).found, FOUND);
        user.remove(&["c"]);
    }
    told_apart(&host, &user);
    pod(&host, &user);
    before.comes_back(&host);
}

/// Podman 5 makes no annotations of an image's.
#[track_caller]
fn told_apart(host: &WholeHost, user: &Login<'_>) {
    user.run("sh", &["-c", BUILD]).ok();
    let words = ["run", "--detach", "--name=c", "--label=v6pod.name=users", "localhost/bearing"];
    user.podman(&[&words[..], &["sleep", "1000"]].concat()).ok();
    let attachment = host.attachments().remove(0);
    assert!(attachment.wishes.is_empty(), "{attachment:?}");
    finds(
        &attachment.found,
        &[
            (Source::Label, "v6pod.name", "users"),
            (Source::ImageLabel, "v6pod", "true"),
            (Source::ImageLabel, "v6pod.ingress", "tcp/22"),
        ],
    );
    user.remove(&["c"]);
}

#[track_caller]
fn pod(host: &WholeHost, user: &Login<'_>) {
    let words = ["pod", "create", "--name=p", "--label=v6pod.name=pods", "--publish=18080:80"];
    user.podman(&words).ok();
    user.sleeper("m", &["--pod=p"]);
    let published = (Source::Published, "v6pod.ingress", "tcp/80");
    let found = host.attachments().remove(0).found;
    let name = (Source::Pod, "name", "p");
    finds(&found, &[name, (Source::PodLabel, "v6pod.name", "pods"), published]);
    user.podman(&["pod", "rm", "--force", "--time=0", "p"]).ok();
}

/// An image that says much in its environment, and whose labels are written as Go takes them too.
const ODD: &str = r#"set -e
long=$(head -c 9000 /dev/zero | tr '\0' x)
printf 'FROM localhost/v6test\nENV SERVICE_80_TAGS=%s\nLABEL v6pod=true v6pod.name=images\n' $long |
    podman build --quiet --format oci --annotation v6pod.egress=allow --annotation v6pod=true \
        --tag localhost/even -f - .
podman save --quiet --format oci-dir --output odd localhost/even
cd odd/blobs/sha256
again() { new=$(sha256sum <$1 | cut -d' ' -f1); mv $1 $new; sed -i s/$1/$new/g $2; }
config=$(grep -l '"Labels"' *)
manifest=$(grep -l "\"digest\":\"sha256:$config\"" *)
sed -i 's/"Labels"/"labels"/' $config
again $config $manifest
again $manifest ../../index.json
podman tag $(podman pull --quiet oci:$HOME/odd) localhost/odd
"#;

#[test]
fn an_image_does_not_pass_for_its_user_by_saying_much_or_writing_oddly() {
    let _machine = require!(Podman);
    let scene = Scene::new();
    let user = scene.user();
    run(user.command("sh").args(["-c", ODD])).ok();
    let start = |options: &[&str]| {
        let words = [&["run", "--detach", "--name=c"], options, &["localhost/odd", "sleep", "99"]];
        user.podman(&words.concat()).ok();
    };
    start(&["--network=none"]);
    assert_eq!(scene.stage.daemon.attachments(), [], "its user wants none");
    user.podman(&["rm", "-f", "-t", "0", "c"]).ok();
    start(&["--label=v6pod.tags=users"]);
    let labels = user.podman(&["inspect", "--format={{.Config.Labels}}", "c"]);
    assert!(labels.ok().contains("v6pod.name:images"), "podman takes them: {labels}");
    let attachment = scene.stage.daemon.the_attachment();
    assert!(attachment.wishes.is_empty(), "{:?}", attachment.wishes);
    finds(&attachment.found, &[(Source::Label, "v6pod.tags", "users")]);
    user.podman(&["rm", "-f", "-t", "0", "c"]).ok();
    scene.is_clean();
}
