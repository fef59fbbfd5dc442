//! Issue 8, line 3: who follows the README on a host of his own sees what it shows.
//!
//! ```text
//!   bert@other ── up0 ┌ Debian 12, booted, with podman and the .deb in a folder ┐
//!                     │ root@host, anna@host                                    │
//!                     └─────────────────────────────────────────────────────────┘
//! ```
//!
//! Each line of the README's session that begins with a prompt is run as it stands there, by whom the prompt
//! names. What is printed has to be what stands below it but for what is drawn anew each time: addresses in the
//! prefix (a command is given the one that was printed in its place), ids, ages, counts of files.
//! `V6POD_BLESS=1` writes what was printed into the README.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use v6pod_tests::{
    IMAGE, Login, Suite, WholeHost, lasting, require, run, shown_address as address,
};

/// What stands before the session.
const MARK: &str = "<!-- Run by who_follows_the_readme_sees_what_it_shows in tests/tests/readme.rs. -->\n```console\n";

/// The image of the session, which a test has to have.
const PUBLIC_IMAGE: &str = "docker.io/library/busybox";

/// A line that was typed, and what came of it.
#[derive(Debug)]
struct Step {
    prompt: &'static str,
    command: String,
    printed: Vec<String>,
}

/// What dpkg says while it works, and what is said only where a host has no more than tests need.
const PASSING: [&str; 2] = ["(Reading database", "debconf: delaying"];

const PROMPTS: [&str; 3] = ["root@host:~# ", "anna@host:~$ ", "bert@other:~$ "];

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("README.md")
}

/// The session of a README: what stands before it, its steps, and the rest.
fn session(text: &str) -> (&str, Vec<Step>, &str) {
    let at = text.find(MARK).expect("a session in the README") + MARK.len();
    let end = at + text[at..].find("```").expect("its end");
    let mut steps: Vec<Step> = Vec::new();
    for line in text[at..end].lines() {
        let typed = PROMPTS.iter().find_map(|prompt| Some((*prompt, line.strip_prefix(prompt)?)));
        match typed {
            Some((prompt, command)) => {
                steps.push(Step { prompt, command: command.to_owned(), printed: Vec::new() });
            }
            None => {
                let step = steps.last_mut().expect("a prompt in the first line");
                step.printed.push(line.to_owned());
            }
        }
    }
    (&text[..at], steps, &text[end..])
}

/// What whoever the prompt names gets for this line.
fn typed(host: &WholeHost, anna: &Login<'_>, prompt: &str, command: &str) -> String {
    // In a terminal both come to the same place.
    let script = format!("exec 2>&1; {command}");
    let shell = |mut sh: Command| run(sh.args(["-c", &script]));
    let finished = match prompt {
        "root@host:~# " => host.sh(&format!("cd /var/tmp; {script}")),
        "anna@host:~$ " => anna.run("bash", &["-c", &script]),
        _ => shell(host.net().outside("sh")),
    };
    assert!(finished.status.success(), "{prompt}{command}\n{finished}");
    let lines = finished.stdout.lines().filter_map(|line| {
        let last = line.trim_end().rsplit('\r').next().unwrap_or_default();
        (!PASSING.iter().any(|passing| line.starts_with(passing))).then_some(last)
    });
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

#[test]
fn who_follows_the_readme_sees_what_it_shows() {
    let _machine = require!(WholeHost);
    let host = WholeHost::boot(Suite::Bookworm);
    let anna = host.log_in("anna");
    anna.podman(&["tag", IMAGE, PUBLIC_IMAGE]).ok();
    let package = host.package("0.1.0");
    let text = fs::read_to_string(readme()).expect("reading the README");
    let (before, steps, after) = session(&text);
    let named = format!("/var/tmp/{}", steps[0].command.rsplit('/').next().unwrap_or_default());
    if package != named {
        host.sh(&format!("mv {package} {named}")).ok();
    }
    let mut drawn: Option<(String, String)> = None;
    let mut fresh = String::new();
    let mut differences = String::new();
    for Step { prompt, command, printed } in &steps {
        let command = match &drawn {
            Some((there, here)) => command.replace(there.as_str(), here),
            None => command.clone(),
        };
        let said = typed(&host, &anna, prompt, &command);
        let _ = writeln!(fresh, "{prompt}{command}");
        for line in said.lines() {
            let _ = writeln!(fresh, "{}", line.trim_end());
        }
        let known = printed.iter().find_map(|line| address(line));
        if let Some(here) = said.lines().find_map(address).filter(|_| drawn.is_none()) {
            drawn = Some((known.unwrap_or("2001:db8:1:2:3::").to_owned(), here.to_owned()));
        }
        let shown: Vec<_> = printed.iter().map(|line| lasting(line)).collect();
        let is: Vec<_> = said.lines().map(lasting).collect();
        if shown != is {
            let _ =
                writeln!(differences, "{prompt}{command}\nREADME: {shown:#?}\nprinted: {is:#?}");
        }
    }
    assert!(steps.iter().filter(|step| step.prompt != PROMPTS[2]).count() <= 6);
    if std::env::var_os("V6POD_BLESS").is_some() {
        fs::write(readme(), format!("{before}{fresh}{after}")).expect("writing the README");
        return;
    }
    assert!(
        differences.is_empty(),
        "the README is not what is printed (V6POD_BLESS=1):\n{differences}"
    );
}
