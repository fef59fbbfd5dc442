//! Whoever sends: real processes, with the uid and in the network that are meant.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use v6pod_tests::{Background, run};

const SCRIPT: &str = include_str!("probe.py");

/// Where a process is, and whose it is.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    /// Its network namespace.
    pub(crate) network: PathBuf,
    /// Its uid. It has CAP_NET_RAW besides, to send what no socket would.
    pub(crate) uid: u32,
}

impl Who {
    /// Runs one of the script's commands, and whether the answer is yes.
    #[track_caller]
    pub(crate) fn asks(&self, words: &[&str]) -> bool {
        let finished = run(&mut self.command(words));
        match finished.ok() {
            "yes" => true,
            "no" => false,
            _ => panic!("{finished}"),
        }
    }

    /// A server on this port, TCP and UDP, which says what it is told. It ends when it is dropped.
    #[track_caller]
    pub(crate) fn serves(&self, port: u16) -> Background {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = self.command(&["serve", &port.to_string()]);
        let server = Background::start(command.stdin(Stdio::null()).stdout(writer));
        drop(command);
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).expect("reading what the server says");
        assert_eq!(line.trim(), "ready");
        server
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network.display())).args(["--", "setpriv"]);
        let uid = self.uid.to_string();
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        command.args(["--inh-caps=+net_raw", "--ambient-caps=+net_raw", "--"]);
        command.args(["/usr/bin/python3", "-I", "-c", SCRIPT]).args(words);
        command
    }
}
