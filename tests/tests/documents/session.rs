//! Who types what the documents say, and what comes of it.

use std::fmt::Write as _;
use std::net::Ipv6Addr;
use std::process::Command;

use v6pod_tests::{Finished, Login, Place as _, WholeHost, lasting, run, shown_address};

use super::block::{Block, Who};

/// What all of a document's `IMAGE`s and `…` are: it serves a page, whatever else it is told.
pub(crate) const PAGE: &str = "localhost/v6demo";

/// What a command is that has no end by itself.
const LASTING: [&str; 2] = ["v6podctl watch", "curl -sN "];

/// How many seconds a command has, which may wait for what never comes.
const ENOUGH: &str = "20";

/// A curl that says by its status what the server said, and no more beside than in a terminal.
const CURL: &str = "curl() { command curl --silent --show-error --fail-with-body \"$@\"; }\n";

/// A document that is followed on a host.
pub(crate) struct Reader<'a> {
    host: &'a WholeHost,
    user: &'a Login<'a>,
    /// What was assigned in the document's blocks, as lines of shell.
    assigned: String,
    /// The container that the preparation named last.
    container: String,
    /// Addresses as they are shown, and what is here in their place.
    drawn: Vec<(String, String)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(host: &'a WholeHost, user: &'a Login<'a>) -> Self {
        let container = "7c".repeat(32);
        Self { host, user, assigned: String::new(), container, drawn: Vec::new() }
    }

    /// Does what a block takes for granted. A container's id in the last line is `$CONTAINER_ID`.
    #[track_caller]
    pub(crate) fn prepare(&mut self, who: Who, script: &str) {
        let said = self.bash(who, &format!("set -e; {}", script.replace("IMAGE", PAGE)));
        let last = said.ok().lines().last().unwrap_or_default();
        if last.len() == 64 {
            self.container = last.to_owned();
        }
    }

    /// Runs a block's commands in order. Gives its lines as they would stand there now, and writes down what is
    /// printed otherwise than shown.
    #[track_caller]
    pub(crate) fn follow(&mut self, block: &Block, differences: &mut String) -> Vec<String> {
        let mut fresh = Vec::new();
        for step in &block.steps {
            let at = format!("{}:{}: {}", block.document, block.line, step.command);
            let prompt = if step.who == Who::Root { '#' } else { '$' };
            fresh.push(format!("{prompt} {}", self.shown_now(&step.command)));
            let command = self.command(&step.command);
            if command.split_once('=').is_some_and(|(name, rest)| {
                name.bytes().all(|b| b.is_ascii_lowercase()) && !rest.contains(' ')
            }) {
                let _ = writeln!(self.assigned, "{command}");
                continue;
            }
            let said = self.typed(step.who, &command);
            let fails = step.shown.iter().any(|line| is_complaint(line));
            if said.status.success() == fails {
                let _ = writeln!(differences, "{at}\n{said}");
                fresh.extend(step.shown.iter().cloned());
                continue;
            }
            let printed: Vec<_> = said.stdout.lines().map(str::trim_end).collect();
            if !block.session || step.shown.is_empty() {
                continue;
            }
            match beside(&step.shown, &printed) {
                Some(now) => {
                    for (shown, printed) in step.shown.iter().zip(&now) {
                        self.learn(shown, printed);
                    }
                    fresh.extend(now);
                }
                None => {
                    let _ = writeln!(
                        differences,
                        "{at}\nshown: {:#?}\nprinted: {printed:#?}",
                        step.shown
                    );
                    fresh.extend(printed.iter().map(|line| (*line).to_owned()));
                }
            }
        }
        fresh
    }

    /// Which address of the host's stands for which of the document's.
    fn learn(&mut self, shown: &str, printed: &str) {
        let pairs = shown.split_whitespace().zip(printed.split_whitespace());
        for (there, here) in pairs {
            if let (Some(there), Some(here)) = (shown_address(there), shown_address(here))
                && self.drawn.iter().all(|(known, _)| known != there)
            {
                self.drawn.push((there.to_owned(), here.to_owned()));
            }
        }
    }

    /// A command with the addresses that are the document's, for those that it would have now.
    fn shown_now(&self, command: &str) -> String {
        self.drawn
            .iter()
            .fold(command.to_owned(), |command, (there, here)| command.replace(there, here))
    }

    /// A command as it is typed here: with this host's addresses, and an image.
    fn command(&self, command: &str) -> String {
        let command = self.shown_now(command).replace("IMAGE", PAGE).replace('…', PAGE);
        if command.contains("ADDRESS") {
            command.replace("ADDRESS", &self.newest().to_string())
        } else {
            command
        }
    }

    /// The address of the container that came last.
    fn newest(&self) -> Ipv6Addr {
        let all = self.host.attachments();
        all.iter().max_by_key(|one| one.since).expect("there is a container").address
    }

    fn typed(&self, who: Who, command: &str) -> Finished {
        if let Some(edited) = command.strip_prefix("sudoedit ") {
            // An administrator writes what the comment says.
            let (file, line) = edited.split_once(" # ").expect("what to write");
            let line = line.rsplit_once(": ").map_or(line, |(line, _)| line);
            self.host.write(file.trim(), &format!("{line}\n"));
            return self.bash(Who::Root, &format!("test -s {file}"));
        }
        // These the host has not, and the machine has: in the host's network, or of what was printed there.
        if command.starts_with("dig ") {
            return run(self.host.net().command("sh").args(["-c", command]));
        }
        if let Some((first, filter)) = command.split_once(" | jq ") {
            let said = self.bash(who, first);
            let script = format!("printf %s \"$1\" | jq {filter}");
            return run(Command::new("sh").args(["-c", &script, "sh", said.ok()]));
        }
        if LASTING.iter().any(|lasting| command.starts_with(lasting)) {
            return self.bash(who, &format!("timeout 2 {command}\ntest $? = 124"));
        }
        self.bash(who, &format!("exec 2>&1; {command}"))
    }

    fn bash(&self, who: Who, script: &str) -> Finished {
        let known = format!("{CURL}{}CONTAINER_ID={}\n{script}", self.assigned, self.container);
        match who {
            Who::User => self.user.run("timeout", &[ENOUGH, "bash", "-c", &known]),
            Who::Root => {
                let script = format!("cd\n{known}");
                run(self.host.command("timeout").args([ENOUGH, "bash", "-c", &script]))
            }
        }
    }
}

/// Whether a program says here that it did not do what it was told.
fn is_complaint(line: &str) -> bool {
    ["Error: ", "v6podctl: "].iter().any(|start| line.starts_with(start))
}

/// The lines that were printed in place of those that are shown, if they are the same but for what is another each
/// time. `…` is as many lines as there are, or what is left out of one.
pub(crate) fn beside(shown: &[String], printed: &[&str]) -> Option<Vec<String>> {
    let Some((first, rest)) = shown.split_first() else {
        return printed.is_empty().then(Vec::new);
    };
    let put = |line: &str, mut rest: Vec<String>| {
        rest.insert(0, line.to_owned());
        rest
    };
    if first.trim() == "…" {
        let later = (0..=printed.len()).find_map(|skipped| beside(rest, &printed[skipped..]));
        return later.map(|rest| put("…", rest));
    }
    let (line, left) = printed.split_first()?;
    let now = same(first, line)?;
    beside(rest, left).map(|rest| put(&now, rest))
}

/// The line that was printed, if it is what is shown; shortened where that is.
fn same(shown: &str, printed: &str) -> Option<String> {
    let [is, was] = [printed, shown].map(lasting);
    let mut parts = was.split('…').map(str::trim);
    let begins = parts.next().unwrap_or_default();
    let mut rest = is.strip_prefix(begins)?;
    let mut shortened = false;
    for part in parts {
        shortened = true;
        rest = &rest[rest.find(part)? + part.len()..];
    }
    let ends = shown.trim_end().ends_with('…');
    (rest.is_empty() || (shortened && ends))
        .then(|| if shortened { shown } else { printed }.to_owned())
}
