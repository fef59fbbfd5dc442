//! A hostile tenant: a program of a few hundred lines that does its worst as an ordinary user.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::command::Background;
use crate::{Daemon, User};

const SCRIPT: &str = include_str!("attacker.py");

/// The tenant at work. He and all his processes end when the value is dropped.
#[derive(Debug)]
pub struct Attacker {
    _process: Background,
    /// What he said before he was ready.
    pub said: Vec<String>,
}

impl Attacker {
    /// Has the user do one of the script's commands, and waits until it is done or under way.
    #[track_caller]
    pub fn start(user: &User, daemon: &Daemon, words: &[&str]) -> Self {
        let mut command = user.command("/usr/bin/python3");
        command.arg("-c").arg(SCRIPT).arg(daemon.socket()).args(words);
        let (process, said) = Self::run(&mut command);
        Self { _process: process, said }
    }

    #[track_caller]
    fn run(command: &mut Command) -> (Background, Vec<String>) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let process = Background::start(command.stdin(Stdio::null()).stdout(writer));
        // The command keeps the pipe's writing end.
        command.stdout(Stdio::null());
        let mut said = Vec::new();
        for line in BufReader::new(reader).lines() {
            let line = line.expect("reading what the attacker says");
            if line == "ready" {
                return (process, said);
            }
            said.push(line);
        }
        panic!("the attacker ended before he was ready: {said:?}");
    }
}
