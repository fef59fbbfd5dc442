//! Issue 2, line 5: v6podd dies and comes back, and running containers notice nothing.
//!
//! ```text
//!   host ── v6podd (killed, started again) ── v6t0
//!     ├── port ── eth0 ┌ c0 ┐ ──ping──▶ c1
//!     ├── port ── eth0 ┌ c1 ┐ ──ping──▶ c2
//!     ┆
//!     └── port ── eth0 ┌ c19 ┐ ──ping──▶ c0      all of v6t1
//! ```
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use v6pod_proto::{Activate, Attachment, AttachmentId, Code, NameState};
use v6pod_tests::{
    Background, BareNs, Caller, Container, Daemon, HostNs, OwnedNs, PATIENCE, Stage, User,
    eventually, random_container_id, require,
};

const CONTAINERS: usize = 20;

/// Fifty a second for six seconds, from a container's namespace, its summary in a file.
struct Ping {
    process: Background,
    summary: std::path::PathBuf,
}

impl Ping {
    fn start(container: &Container<'_>, target: &Attachment, dir: &Path) -> Self {
        let summary = dir.join(&container.id);
        let out = File::create(&summary).expect("making a file");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", container.init().pid()));
        command.args(["--", "ping", "-q", "-i", "0.02", "-c", "300"]);
        command.arg(target.address.to_string());
        command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        Self { process: Background::start(&mut command), summary }
    }

    #[track_caller]
    fn lost_nothing(mut self) {
        self.process.wait_within(Duration::from_secs(60));
        let summary = fs::read_to_string(&self.summary).expect("reading a file");
        assert!(summary.contains("300 received, 0% packet loss"), "{summary}");
    }
}

fn sorted(mut all: Vec<Attachment>) -> Vec<Attachment> {
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

/// Without what a restart may change: who held a lease is watched by other means now, and the
/// registry has yet to be told.
fn lasting(mut attachment: Attachment) -> Attachment {
    attachment.lease = false;
    attachment.names.iter_mut().for_each(|name| name.state = NameState::Pending);
    attachment
}

#[track_caller]
fn is_gone(stage: &Stage, id: &AttachmentId) {
    eventually(PATIENCE, "the attachment is gone", || {
        stage.daemon.attachments().iter().all(|attachment| attachment.id != *id).then_some(())
    });
}

fn attachment_of(all: &[Attachment], container: &Container<'_>) -> Attachment {
    let found = all.iter().find(|attachment| attachment.container.as_str() == container.id);
    found.expect("every container has an attachment").clone()
}

#[test]
fn no_packet_is_lost_and_the_books_are_the_same() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = &stage.users[0];
    let names = (0..CONTAINERS).map(|number| format!("c{number}"));
    let containers: Vec<_> = names.map(|name| user.sleeper(&name)).collect();
    let listed = sorted(stage.daemon.attachments());
    assert_eq!(listed.len(), CONTAINERS);

    let dir = tempfile::tempdir().expect("a directory");
    let next = |number: usize| &containers[(number + 1) % CONTAINERS];
    let pings: Vec<_> = (0..CONTAINERS)
        .map(|number| {
            let target = attachment_of(&listed, next(number));
            Ping::start(&containers[number], &target, dir.path())
        })
        .collect();
    stage.daemon.kill9();
    stage.daemon.restart();
    let again = sorted(stage.daemon.attachments());
    pings.into_iter().for_each(Ping::lost_nothing);

    assert_eq!(again.len(), CONTAINERS);
    for (before, after) in listed.into_iter().zip(again) {
        assert_eq!(lasting(after), lasting(before));
    }
    drop(containers);
    user.podman(&["rm", "-f", "-a", "-t", "0"]).ok();
    before.comes_back(&stage.daemon);
}

#[test]
fn who_ended_meanwhile_is_gone_and_who_ends_later_is_noticed() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let user = &stage.users[0];
    let [stays, meanwhile, later] = ["stays", "meanwhile", "later"].map(|name| user.sleeper(name));
    let listed = stage.daemon.attachments();
    let of = |container| attachment_of(&listed, container).id;
    let (meanwhile_id, later_id) = (of(&meanwhile), of(&later));

    stage.daemon.kill9();
    meanwhile.remove();
    stage.daemon.restart();
    is_gone(&stage, &meanwhile_id);
    assert_eq!(stage.daemon.attachments().len(), 2);

    // The lease is lost with the old daemon, and yet its holder's end is seen.
    later.slirp4netns().kill();
    is_gone(&stage, &later_id);
    stays.conmon().kill();
    eventually(PATIENCE, "the last attachment is gone", || {
        stage.daemon.attachments().is_empty().then_some(())
    });
    before.comes_back(&stage.daemon);
}

#[test]
fn stopped_in_peace_it_leaves_what_serves() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let container = stage.users[0].sleeper("c");
    let attachment = stage.daemon.the_attachment();
    let ping = ["-c", "3", "-i", "0.1", "-W", "5", &attachment.address.to_string()];
    stage.daemon.stop();
    v6pod_tests::run(stage.host.outside("ping").args(ping)).ok();
    stage.daemon.restart();
    assert_eq!(stage.daemon.the_attachment().address, attachment.address);
    container.remove();
    before.comes_back(&stage.daemon);
}

#[test]
fn a_new_start_in_an_adopted_namespace_is_no_second_attachment() {
    let _machine = require!(Podman);
    let mut stage = Stage::with_users(1);
    let before = stage.daemon.footprint();
    let script = "sleep 3; exit 1";
    let options = ["--restart=on-failure:1"];
    let container = stage.users[0].start("c", &options, &["sh", "-c", script]);
    stage.daemon.the_attachment();
    stage.daemon.kill9();
    stage.daemon.restart();
    let watch = stage.watch();
    container.comes_to("the second run", "{{.RestartCount}}", "1");
    stage.daemon.the_attachment();
    container.comes_to("the end of the second run", "{{.State.Status}}", "exited");
    assert_eq!(watch.most(), 1);
    before.comes_back(&stage.daemon);
}

#[test]
fn what_a_hook_has_said_is_known_to_the_next_daemon() {
    let _machine = require!(Root);
    let host = HostNs::new();
    let mut daemon = Daemon::start(&host);
    let user = User::account(1, &host);
    let caller = daemon.as_user(user.uid());
    for (annotation, value) in [("v6pod.name", "web"), ("v6pod", "false")] {
        let namespace = OwnedNs::new(&user);
        let hook = Activate {
            plug: false,
            annotations: [(annotation.to_owned(), value.to_owned())].into(),
            ..Activate::new(random_container_id())
        };
        let (described, _) = caller.activate(&hook, namespace.network().as_fd());
        assert_eq!(described.map_err(|refused| refused.problem().code), Err(Code::NotFound));
        assert!(!daemon.log().contains("refused:"), "nobody has to hear of it: {}", daemon.log());
        daemon.kill9();
        daemon.restart();
        // The wrapper, which knows of no annotations, and pasta's not even whose network it is.
        let wrapper = Activate { lease: true, ..Activate::unidentified() };
        let (outcome, lease) = caller.activate(&wrapper, namespace.network().as_fd());
        match value {
            "false" => {
                let declined = outcome.map_err(|refused| refused.problem().code);
                assert_eq!(declined, Err(Code::Declined));
            }
            wish => {
                let attachment = outcome.unwrap_or_else(|refused| panic!("{refused}"));
                assert_eq!(Some(&attachment.container), hook.id.as_ref());
                assert_eq!(attachment.wishes.annotations()[annotation], wish);
                // Another's namespace is another's, whatever was said of this one.
                let other = OwnedNs::new(&user);
                let (other, _) = caller.activate(&wrapper, other.network().as_fd());
                let other = other.unwrap_or_else(|refused| panic!("{refused}"));
                assert!(other.wishes.is_empty());
            }
        }
        drop(lease);
    }
    // Who takes all away takes this away too.
    daemon.stop();
    daemon.purge().ok();
    assert!(!daemon.run_dir().join("spoken").exists());
}

/// The first look at the kernel, as soon as the daemon serves, took the ports that were made during it
/// for gone.
#[test]
fn what_is_attached_while_the_daemon_looks_at_the_kernel_is_not_taken_for_gone() {
    const STARTS: usize = 10;
    const NEW: usize = 24;
    let _machine = require!(Root);
    let host = HostNs::new();
    let mut daemon = Daemon::start(&host);
    let attach = |root: &Caller, namespace: &BareNs| {
        let (answer, _) = root.activate(&Activate::new(random_container_id()), namespace.as_fd());
        answer.unwrap_or_else(|refused| panic!("{refused}"));
    };
    // The more there is, the longer it looks.
    let crowd: Vec<_> = (0..200).map(|_| BareNs::new()).collect();
    crowd.iter().for_each(|namespace| attach(&daemon.root(), namespace));
    for _ in 0..STARTS {
        let new: Vec<_> = (0..NEW).map(|_| BareNs::new()).collect();
        daemon.kill9();
        let root = daemon.root();
        thread::scope(|scope| {
            for some in new.chunks(NEW / 3) {
                let root = &root;
                scope.spawn(move || {
                    while root.connect().is_err() {
                        thread::sleep(Duration::from_millis(1));
                    }
                    some.iter().for_each(|namespace| attach(root, namespace));
                });
            }
            daemon.restart();
        });
        assert_eq!(daemon.attachments().len(), crowd.len() + NEW);
        drop(new);
        eventually(PATIENCE, "they have left", || {
            (daemon.attachments().len() == crowd.len()).then_some(())
        });
    }
}
