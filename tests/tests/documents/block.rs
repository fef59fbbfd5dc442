//! Blocks of commands in the documents, and what is said above each of how it is run.

use std::fs;
use std::path::{Path, PathBuf};

/// How a block's commands are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum How {
    /// On the host that this test boots, in the order in which they stand.
    Here,
    /// By these tests of the first of these files; the others are what it calls.
    By { tests: Vec<String>, files: Vec<String> },
    /// By nobody, for this reason.
    Not(String),
}

/// Who types a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    User,
    Root,
}

/// A command, and what is shown of what it prints.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) who: Who,
    pub(crate) command: String,
    pub(crate) shown: Vec<String>,
}

/// What stands between two fences.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) document: String,
    /// The number of its first line.
    pub(crate) line: usize,
    pub(crate) how: How,
    /// Whether what is printed stands beside what is typed.
    pub(crate) session: bool,
    pub(crate) steps: Vec<Step>,
    /// How many lines it has.
    pub(crate) length: usize,
}

/// The languages of commands.
const LANGUAGES: [&str; 4] = ["sh", "bash", "shell", "console"];

/// How what is shown of podman's own configuration begins.
const PODMANS: [&str; 2] = ["[engine]", "[containers]"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The documents of which commands are run, by their paths from the root.
pub(crate) fn documents() -> Vec<String> {
    let docs = root().join("docs").read_dir().expect("docs").flatten();
    let names = docs.filter_map(|entry| entry.file_name().into_string().ok());
    let pages = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    let mut all: Vec<_> = ["README.md", "SECURITY.md"].map(str::to_owned).into();
    all.extend(pages);
    all[2..].sort();
    all
}

pub(crate) fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).expect("reading a document")
}

/// What stands between two fences: the language, the number of the first line, the line above, and the lines.
struct Fenced {
    language: String,
    line: usize,
    above: String,
    lines: Vec<String>,
}

fn fenced(document: &str) -> Vec<Fenced> {
    let text = read(document);
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let Some(language) = lines[at].trim_start().strip_prefix("```") else {
            at += 1;
            continue;
        };
        let body = &lines[at + 1..];
        let length = body.iter().position(|line| line.trim_start() == "```").expect("its end");
        found.push(Fenced {
            language: language.trim().to_owned(),
            line: at + 2,
            above: at.checked_sub(1).map(|above| lines[above].clone()).unwrap_or_default(),
            lines: body[..length].to_vec(),
        });
        at += length + 2;
    }
    found
}

/// All blocks of commands of a document, in order.
pub(crate) fn blocks(document: &str) -> Vec<Block> {
    let all = fenced(document).into_iter();
    let commands = all.filter(|fenced| LANGUAGES.contains(&fenced.language.as_str()));
    let block = |fenced: Fenced| {
        let session = fenced.language == "console";
        let Fenced { line, above, lines, .. } = fenced;
        let steps = if session { session_steps(&lines) } else { script_steps(&lines) };
        let (document, how) = (document.to_owned(), how(&above));
        Block { document, line, how, session, steps, length: lines.len() }
    };
    commands.map(block).collect()
}

/// What a document shows of v6pod.toml, each with the number of its first line. Others' files begin with tables that
/// v6pod has not.
pub(crate) fn configurations(document: &str) -> Vec<(usize, String)> {
    let all = fenced(document).into_iter().filter(|fenced| fenced.language == "toml");
    let ours = all.filter(|fenced| {
        !PODMANS.iter().any(|table| fenced.lines.first().is_some_and(|first| first == table))
    });
    ours.map(|fenced| (fenced.line, fenced.lines.join("\n"))).collect()
}

/// What the line above a block says. What cannot be read is no marker: the block is run then.
fn how(line: &str) -> How {
    let Some(text) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) else {
        return How::Here;
    };
    let list = |text: &str| text.split(", ").map(str::to_owned).collect();
    if let Some(reason) = text.strip_prefix("Not run: ") {
        return How::Not(reason.to_owned());
    }
    let by =
        text.strip_prefix("Run by ").and_then(|rest| rest.trim_end_matches('.').split_once(" in "));
    by.map_or(How::Here, |(tests, files)| How::By { tests: list(tests), files: list(files) })
}

/// The commands of a session: behind a prompt, and below each what it prints.
fn session_steps(lines: &[String]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in lines {
        let typed = match line.split_once(['$', '#']) {
            Some((before, rest)) if is_prompt(before) && rest.starts_with(' ') => Some(rest.trim()),
            _ => None,
        };
        match (typed, steps.last_mut()) {
            (Some(command), _) => {
                let root = line.starts_with('#') || line.starts_with("root@");
                let who = if root { Who::Root } else { Who::User };
                steps.push(Step { who, command: command.to_owned(), shown: Vec::new() });
            }
            (None, Some(step)) => step.shown.push(line.clone()),
            (None, None) => panic!("a session begins with a prompt: {line}"),
        }
    }
    steps
}

/// Whether this stands before a prompt's sign: nothing, or who is where.
fn is_prompt(text: &str) -> bool {
    text.is_empty() || (text.contains('@') && !text.contains(' '))
}

/// The commands of a script: one a line, or more lines with a backslash at the end of each but the last.
fn script_steps(lines: &[String]) -> Vec<Step> {
    let joined = lines.join("\n").replace("\\\n", " ");
    let steps =
        joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let step = |line: &str| match line.strip_prefix("sudo ") {
        Some(command) => Step { who: Who::Root, command: command.to_owned(), shown: Vec::new() },
        None => Step { who: Who::User, command: line.to_owned(), shown: Vec::new() },
    };
    steps.map(step).collect()
}

/// The words by which a command is known again in a test's source: its program, what it is told to do first, and its
/// long options.
pub(crate) fn essence(command: &str) -> Vec<String> {
    let command = command.split(" # ").next().unwrap_or_default();
    let words: Vec<_> = command.split_whitespace().collect();
    let assigned =
        |word: &&&str| word.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
    let from = words.iter().take_while(assigned).count();
    let mut essence = Vec::new();
    let program = words.get(from).copied().unwrap_or_default();
    essence.push(program.rsplit('/').next().unwrap_or_default().to_owned());
    let plain = |word: &&&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    let told = words.iter().skip(from + 1).find(|word| !word.starts_with('-'));
    essence.extend(told.filter(plain).map(|word| (*word).to_owned()));
    let options = words.iter().filter_map(|word| word.strip_prefix("--"));
    let names = options.map(|word| word.split('=').next().unwrap_or_default());
    essence.extend(names.filter(|name| !name.is_empty()).map(|name| format!("--{name}")));
    essence
}

/// Whether a word stands in a text by itself.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(inside) && !after.is_some_and(inside)
    })
}
