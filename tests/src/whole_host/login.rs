//! Ordinary users of a whole host, logged in.

use std::ffi::OsStr;
use std::net::Ipv6Addr;
use std::process::Command;

use v6pod_proto::Attachment;

use super::{PATH, SLOW, Suite, WholeHost};
use crate::footprint::Place;
use crate::image;
use crate::{Finished, IMAGE, PATIENCE, eventually, run, run_within};

/// What a pod's own container runs where podman 3.0 makes it; later ones bring a program along.
pub(super) const INFRA_IMAGE: &str = "localhost/v6infra";

/// A user of a host with a session that lasts (lingering) and [`IMAGE`].
#[derive(Debug)]
pub struct Login<'a> {
    host: &'a WholeHost,
    name: String,
    uid: u32,
}

impl<'a> Login<'a> {
    #[track_caller]
    pub(super) fn new(host: &'a WholeHost, name: &str) -> Self {
        host.sh(&format!("useradd --create-home --shell /bin/bash {name}")).ok();
        let uid = host.sh(&format!("id -u {name}")).ok().to_owned();
        // What `loginctl enable-linger` does, which asks a polkit that is not there on every suite.
        let linger = "/var/lib/systemd/linger";
        host.sh(&format!("mkdir -p {linger}; touch {linger}/{name}")).ok();
        host.systemctl(&format!("start user@{uid}.service")).ok();
        let login = Self::again(host, name);
        login.import_images();
        login
    }

    /// Root, who always has a session.
    #[track_caller]
    pub(super) fn root(host: &'a WholeHost) -> Self {
        let login = Self { host, name: "root".to_owned(), uid: 0 };
        login.import_images();
        login
    }

    #[track_caller]
    fn import_images(&self) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let archive = dir.path().join("image.tar");
        image::archive(&archive);
        let archive = self.host.take_in(&archive);
        let import = ["import", "--quiet", "--change", "ENV PATH=/bin"];
        self.podman(&[&import[..], &[&archive, IMAGE]].concat()).ok();
        if self.host.suite == Suite::Bullseye {
            // One word: podman 3.0 has a shell read it.
            let sleep = ["--change", r#"CMD ["sleep 10000"]"#, &archive, INFRA_IMAGE];
            self.podman(&[&import[..], &sleep].concat()).ok();
        }
    }

    #[track_caller]
    pub(super) fn again(host: &'a WholeHost, name: &str) -> Self {
        let uid = host.sh(&format!("id -u {name}")).ok().parse().expect("a number");
        let login = Self { host, name: name.to_owned(), uid };
        eventually(PATIENCE, "the user's session", || {
            host.file(&format!("/run/user/{uid}/bus")).exists().then_some(())
        });
        login
    }

    /// The account's number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// A command in the user's session: under his systemd, in a cgroup that is delegated to him, as
    /// after a login by ssh.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Self { name, uid, .. } = self;
        let mut command = self.host.enter();
        command.args(["setpriv", "--reuid", name, "--regid", name, "--init-groups", "--"]);
        let home = if *uid == 0 { "/root".to_owned() } else { format!("/home/{name}") };
        command.args(["env", "-i", "-C", &home, &format!("PATH={PATH}")]);
        command.args([format!("HOME={home}"), format!("USER={name}"), format!("LOGNAME={name}")]);
        if *uid != 0 {
            command.arg(format!("XDG_RUNTIME_DIR=/run/user/{uid}"));
            command.arg(format!("DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus"));
        }
        command.arg("systemd-run").args((*uid != 0).then_some("--user"));
        command.args(["--scope", "--quiet", "--collect", "--"]).arg(program);
        command
    }

    /// Runs a command in the session.
    #[track_caller]
    pub fn run(&self, program: &str, args: &[&str]) -> Finished {
        run_within(SLOW, self.command(program).args(args))
    }

    /// Runs podman in the session.
    #[track_caller]
    pub fn podman(&self, args: &[&str]) -> Finished {
        self.run("podman", args)
    }

    /// A container that sleeps until somebody ends it; gives its id.
    #[track_caller]
    pub fn sleeper(&self, name: &str, options: &[&str]) -> String {
        let words = [&["run", "--detach", "--name", name], options, &[IMAGE, "sleep", "1000"]];
        self.podman(&words.concat()).ok().lines().last().unwrap_or_default().to_owned()
    }

    /// The first process of a container, by the number that the host has for it.
    #[track_caller]
    pub fn pid(&self, container: &str) -> u32 {
        let words = ["inspect", "--format", "{{.State.Pid}}", container];
        self.podman(&words).ok().parse().expect("podman gives a number")
    }

    /// Ends and removes containers, running or not.
    #[track_caller]
    pub fn remove(&self, containers: &[&str]) {
        // Podman 3.0 knows no time at `rm`, and would wait ten seconds.
        self.podman(&[&["stop", "--time", "0"], containers].concat()).ok();
        self.podman(&[&["rm", "--force"], containers].concat()).ok();
    }

    /// Ends and removes all containers and pods; whatever there are.
    pub fn remove_all(&self) {
        self.podman(&["stop", "--all", "--time", "0"]);
        self.podman(&["pod", "rm", "--all", "--force"]);
        self.podman(&["rm", "--all", "--force"]);
    }

    /// The attachment of a container, which is there.
    #[track_caller]
    pub fn attachment(&self, container: &str) -> Attachment {
        let all = self.host.attachments();
        let found = all.iter().find(|attachment| attachment.container.as_str() == container);
        found.unwrap_or_else(|| panic!("{container} is not among {all:#?}")).clone()
    }

    /// Pings an address from a container's network.
    #[track_caller]
    pub fn ping(&self, container: &str, address: Ipv6Addr) -> Finished {
        let net = format!("--net=/proc/{}/ns/net", self.pid(container));
        let mut command = self.host.command("nsenter");
        run(command.args([&net, "ping", "-c", "1", "-W", "10", &address.to_string()]))
    }
}
