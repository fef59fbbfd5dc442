//! Issue 8: every command in the documents is run by a test.
//!
//! ```text
//!   outside ── up0 ┌ Debian 12, booted, with the .deb installed ─────────────────────┐
//!                  │ anna and root type what README.md, SECURITY.md and docs/*.md say │
//!                  └──────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A block of commands is run here, line by line, in the order in which it stands, and what it shows has to be what is
//! printed but for what is another each time; `V6POD_BLESS=1` writes what was printed into the document. What is shown
//! of v6pod.toml is given to `v6podd --check`. Or a
//! comment right above it names the tests that run it, which have to be there and to know its commands; or it says why
//! nobody runs it. What is neither fails here: nothing that is not run comes into the documents.
#![allow(clippy::expect_used, reason = "a test")]
#![forbid(unsafe_code)]

mod block;
mod session;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Instant;

use block::{Block, How, Who, blocks, configurations, documents, essence, has_word, read, root};
use session::{PAGE, Reader, beside};
use v6pod_tests::{IMAGE, Suite, WholeHost, built, require, run};

/// What a block takes for granted: its document, how its first command begins, and what is done before it, by whom.
const BEFORE: [(&str, &str, Who, &str); 12] = [
    ("README.md", "v6podctl show web", Who::User, READ),
    ("README.md", "v6podctl explain outside web", Who::User, WEB),
    ("README.md", "podman exec client", Who::User, "podman run -d --name client IMAGE"),
    ("README.md", "curl -s localhost", Who::User, LATE),
    ("docs/addresses.md", "podman run -d --name site", Who::Root, WISHED),
    ("docs/api.md", "socket=", Who::User, WEB),
    ("docs/api.md", "curl -s -d", Who::User, LATE),
    ("docs/cni.md", "CNI_COMMAND=ADD", Who::Root, NETNS),
    ("docs/explain.md", "v6podctl explain web db", Who::User, WEB_AND_DB),
    ("docs/explain.md", "nft delete element", Who::User, ASKED),
    ("docs/metrics.md", "v6podctl show web", Who::User, READ),
    (
        "docs/users.md",
        "v6podctl show web",
        Who::User,
        "podman stop -a -t 0; podman pod rm -f shop; podman start web",
    ),
];

const WEB: &str = "podman rm -f -a -t 0; podman run -d --name web -p 8080:80 IMAGE";

/// The same, and its page was read some times.
const READ: &str = "podman rm -f -a -t 0; podman run -d --name web -p 8080:80 IMAGE
    page=http://[$(v6podctl ls | awk '/^web/ { print $2 }')]/
    for i in $(seq 40); do curl $page; done";

/// A container that runs and has no address, for nothing asks for one.
const LATE: &str = "podman rm -f -i -t 0 late; podman run -d --name late --network bridge IMAGE";

/// She may ask for a subnet.
const WISHED: &str = "printf '[addresses]\\nwished = [\"anna\"]\\n' >>/etc/v6pod/v6pod.toml
    systemctl restart v6podd";

const NETNS: &str = "ip netns add web; \
    echo '{ \"cniVersion\": \"1.1.0\", \"name\": \"six\", \"type\": \"v6pod\" }' >six.conf";

const WEB_AND_DB: &str = "podman run -d --name web IMAGE; \
    podman run -d --name db --annotation v6pod.ingress=tcp/5432@2001:db8:1::/48 -p 5432:5432 IMAGE";

const ASKED: &str =
    "podman rm -f -a -t 0; podman run -d --name web --annotation v6pod.ingress=tcp/80 IMAGE";

fn all() -> Vec<Block> {
    documents().iter().flat_map(|document| blocks(document)).collect()
}

/// The preparation of a block, if it has one.
fn before(block: &Block) -> Option<usize> {
    let first = &block.steps.first().expect("a command").command;
    BEFORE
        .iter()
        .position(|(document, begins, ..)| *document == block.document && first.starts_with(begins))
}

#[test]
fn every_command_of_the_documents_is_run_or_says_why_not() {
    let all = all();
    let mut wrong = Vec::new();
    for Block { document, line, how, steps, .. } in &all {
        let mut say = |what: String| wrong.push(format!("{document}:{line}: {what}"));
        match how {
            How::Here => {}
            How::Not(reason) if reason.split(' ').count() >= 4 => {}
            How::Not(reason) => say(format!("{reason:?} is no reason")),
            How::By { tests, files } => {
                let sources = files.iter().map(|file| fs::read_to_string(root().join(file)));
                let sources: Vec<_> = sources.map(Result::unwrap_or_default).collect();
                for test in tests {
                    if !sources[0].contains(&format!("#[test]\nfn {test}()")) {
                        say(format!("{} has no test {test}", files[0]));
                    }
                }
                // It takes its commands from the document itself.
                if sources[0].contains(&format!("\"{document}\"")) {
                    continue;
                }
                for word in steps.iter().flat_map(|step| essence(&step.command)) {
                    if !sources.iter().any(|source| has_word(source, &word)) {
                        say(format!("{word} is in none of {}", files.join(", ")));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let prepared: BTreeSet<_> = all.iter().filter_map(before).collect();
    assert_eq!(prepared.len(), BEFORE.len(), "a preparation is for no block");
    let run = all.iter().filter(|block| block.how == How::Here);
    assert!(run.count() > all.len() / 2, "most of them are run here");
}

#[test]
fn what_is_printed_otherwise_than_shown_is_seen() {
    let shown = |lines: &str| lines.lines().map(str::to_owned).collect::<Vec<_>>();
    let printed = ["name  web", "address  2001:db8:1:2:3:4:5:6", "open  tcp/80", "age  3s"];
    let now = beside(&shown("name  web\n…\nopen  tcp/80\nage  9s"), &printed);
    assert_eq!(now, Some(shown("name  web\n…\nopen  tcp/80\nage  3s")));
    assert!(beside(&shown("…\naddress  2001:db8:1:2:3:9:9:9\n…"), &printed).is_some());
    assert!(beside(&shown("name … web\n…"), &["name  is web", "age 1s"]).is_some());
    for wrong in ["name  web", "name  web\n…\nopen  tcp/81\n…", "name  db\n…", "…\nname  web", ""]
    {
        assert_eq!(beside(&shown(wrong), &printed), None, "{wrong}");
    }

    assert_eq!(essence("A=1 /usr/bin/podman run -d --name=web x"), ["podman", "run", "--name"]);
    assert!(has_word("args([\"make\", \"deb\"])", "deb") && !has_word("make debug", "deb"));
}

#[test]
fn what_the_documents_show_is_what_is_printed() {
    let _machine = require!(WholeHost);
    let host = WholeHost::boot(Suite::Bookworm);
    host.install_and_enable("0.1.0");
    // Whom the configurations name.
    host.sh("groupadd containers; groupadd web; useradd carol; useradd alice").ok();
    let user = host.log_in("anna");
    let page = "mkdir /www && echo 'Hello from a rootless container.' >/www/index.html";
    user.podman(&["run", "--name", "made", IMAGE, "sh", "-c", page]).ok();
    let serves = r#"CMD ["httpd", "-f", "-p", "80", "-h", "/www"]"#;
    user.podman(&["commit", "--quiet", "--change", serves, "made", PAGE]).ok();
    user.remove(&["made"]);
    let mut differences = String::new();
    for document in documents() {
        let began = Instant::now();
        let blocks: Vec<_> = blocks(&document).into_iter().filter(|b| b.how == How::Here).collect();
        let mut reader = Reader::new(&host, &user);
        let mut text: Vec<String> = read(&document).lines().map(str::to_owned).collect();
        let mut moved = 0isize;
        for block in &blocks {
            if let Some((_, _, who, script)) = before(block).map(|at| BEFORE[at]) {
                reader.prepare(who, script);
            }
            let fresh = reader.follow(block, &mut differences);
            if block.session {
                let from = (block.line - 1).checked_add_signed(moved).expect("a line");
                moved += fresh.len().cast_signed() - block.length.cast_signed();
                text.splice(from..from + block.length, fresh);
            }
        }
        if !blocks.is_empty() {
            user.remove_all();
        }
        for (line, text) in configurations(&document) {
            host.write("/run/written.toml", &text);
            let said = host.sh("v6podd --check --config /run/written.toml");
            if !said.status.success() {
                let _ = writeln!(differences, "{document}:{line}: {said}");
            }
        }
        if !blocks.is_empty() {
            eprintln!("{document}: {} blocks, {:.1?}", blocks.len(), began.elapsed());
        }
        if std::env::var_os("V6POD_BLESS").is_some() {
            fs::write(root().join(&document), text.join("\n") + "\n").expect("writing a document");
        }
    }
    assert!(differences.is_empty(), "not as shown (V6POD_BLESS=1):\n{differences}");
}

#[test]
fn the_demo_shows_what_it_says_and_leaves_nothing() {
    let _machine = require!(Podman);
    // As `make demo` ends, with the programs under test for those that it builds.
    let mut demo = Command::new(root().join("tests/demo.sh"));
    demo.env("RELEASE", built("v6podd").parent().expect("a folder"));
    let said = run(demo.env("SHIM", built("v6pod-shim")));
    assert!(said.ok().ends_with("all as it should be"), "{said}");
}
