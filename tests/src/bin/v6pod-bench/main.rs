//! v6pod-bench: what an attachment costs, and what passes through it, beside other ways to the same end.
//!
//! All contenders take turns in one run, each time on a network namespace of its own that nobody
//! has touched: a veth pair, one end in a bridge, the other inside with an address, a way to the
//! gateway and a default route. What it prints are figures of this machine at this hour, and ratios
//! between them that hold elsewhere. It says nothing about whether they are good enough: no test
//! passes or fails on a time.
//!
//! What this program guarantees:
//! - All of it happens in network namespaces of its own, which end with the process. The rest that
//!   it
//!   makes (an account, files, a daemon) it takes away at its end, also after an error or a signal.
//! - A time counts only if the attachment was there afterwards.
//! - What cannot run here is printed as such, with the reason.
#![forbid(unsafe_code)]

mod as_podman;
mod crowd;
mod daemon;
mod floor;
mod podman;
mod program;
mod report;
mod rivals;
mod samples;
mod scene;
mod shim;
mod traffic;
mod user;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use daemon::{Activate, Daemon};
use floor::Floor;
use podman::Podman;
use rivals::{Cni, IpBatch, Netavark};
use samples::{Book, Series};
use scene::{NetNs, Scene};
use shim::Shim;
use user::User;

/// An error that ends one contender's part, or the whole run: one sentence for a person.
type Failure = Box<dyn std::error::Error>;
type Result<T> = std::result::Result<T, Failure>;

const USAGE: &str =
    "usage: v6pod-bench [--rounds N] [--traffic N] [--only costs|traffic|thousands] [--write FILE]";

/// Enough for a median that is steady to a few per cent, and done in about a minute.
const ROUNDS: usize = 25;

/// The same of traffic; each takes some thirty seconds.
const TRAFFIC: usize = 10;

/// One way to attach a network namespace.
trait Contender {
    /// What it measures.
    fn series(&self) -> &'static [Series];

    /// Attaches one new namespace, checks that it is attached, and takes the attachment away again.
    /// Only the first is timed.
    fn round(&mut self, scene: &Scene) -> Result<Round>;
}

/// One turn of one contender.
struct Round {
    took: Vec<(Series, Duration)>,
    /// Kept until all have had their turn: the end of a namespace keeps the kernel busy.
    used: Option<NetNs>,
}

struct Options {
    rounds: usize,
    traffic: usize,
    only: Option<Part>,
    write: Option<PathBuf>,
}

/// A section of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// What an attachment costs.
    Costs,
    /// What passes through it.
    Traffic,
    /// What thousands cost.
    Thousands,
}

impl Part {
    const ALL: [Self; 3] = [Self::Costs, Self::Traffic, Self::Thousands];

    fn named(word: &str) -> Option<Self> {
        match word {
            "costs" => Some(Self::Costs),
            "traffic" => Some(Self::Traffic),
            "thousands" => Some(Self::Thousands),
            _ => None,
        }
    }

    fn measure(self, options: &Options) -> Result<String> {
        match self {
            Self::Costs => Ok(report::markdown(&measure(&Scene::set()?, options.rounds)?)),
            Self::Traffic => {
                Ok(traffic::markdown(&traffic::measure(&Scene::set()?, options.traffic)?))
            }
            Self::Thousands => Ok(crowd::measure().markdown()),
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().collect();
    if words.get(1).is_some_and(|word| word == as_podman::WORD) {
        return end(as_podman::run(&words[2..]));
    }
    match Options::parse(env::args().skip(1)) {
        Some(options) => end(run(&options)),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(64)
        }
    }
}

fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("v6pod-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self { rounds: ROUNDS, traffic: TRAFFIC, only: None, write: None };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--rounds" => options.rounds = words.next()?.parse().ok().filter(|n| *n > 0)?,
                "--traffic" => options.traffic = words.next()?.parse().ok().filter(|n| *n > 0)?,
                "--only" => options.only = Some(Part::named(&words.next()?)?),
                "--write" => options.write = Some(words.next()?.into()),
                _ => return None,
            }
        }
        Some(options)
    }
}

fn run(options: &Options) -> Result<()> {
    let mut text = String::new();
    for part in Part::ALL.into_iter().filter(|part| options.only.is_none_or(|only| only == *part)) {
        let part = part.measure(options)?;
        io::stdout().write_all(part.as_bytes())?;
        text.push_str(&part);
    }
    if let Some(file) = &options.write {
        fs::write(file, &text).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    Ok(())
}

/// Sets everybody up and lets them take turns. What was set up is gone when this returns.
fn measure(scene: &Scene, rounds: usize) -> Result<Book> {
    let mut book = Book::default();
    say("setting up");
    let mut contenders = contenders(scene, &mut book);
    scene.uninterrupted()?;

    for round in 1..=rounds {
        say(&format!("round {round} of {rounds}"));
        take_turns(scene, &mut contenders, &mut book, round)?;
    }
    say("taking all of it away");
    Ok(book)
}

/// Everybody who can take part. Of who cannot, the book says why.
fn contenders(scene: &Scene, book: &mut Book) -> Vec<Box<dyn Contender>> {
    let user = User::create().map_err(|error| error.to_string());
    let daemon = Daemon::start(scene).map_err(|error| error.to_string());
    let both = || -> Result<_> { Ok((user.clone()?, daemon.clone()?)) };
    let activate = || -> Result<_> { Ok(Activate::new(daemon.clone()?)) };
    let shim = || both().and_then(|(user, daemon)| Shim::new(scene, &user, &daemon));
    let podman = || -> Result<_> { Podman::new(scene, &user.clone()?) };
    let pair =
        || both().and_then(|(user, daemon)| Podman::new(scene, &user)?.with_v6pod(scene, &daemon));

    let mut entered: Vec<Box<dyn Contender>> = Vec::new();
    let mut enter = |series, made: Result<Box<dyn Contender>>| match made {
        Ok(contender) => entered.push(contender),
        Err(error) => book.not_run(series, &error.to_string()),
    };
    enter(floor::SERIES, Floor::new(scene).map(boxed));
    enter(daemon::SERIES, activate().map(boxed));
    enter(shim::SERIES, shim().map(boxed));
    enter(rivals::ip_batch::SERIES, IpBatch::new(scene).map(boxed));
    enter(rivals::cni::SERIES, Cni::new(scene).map(boxed));
    enter(rivals::netavark::SERIES, Netavark::new(scene).map(boxed));
    match pair() {
        Ok(pair) => enter(podman::PLAIN, Ok(boxed(pair))),
        Err(error) => {
            enter(podman::WITH_V6POD, Err(error));
            enter(podman::PLAIN, podman().map(boxed));
        }
    }
    entered
}

/// One round. Who comes after whom changes from round to round. A contender that fails is out.
fn take_turns(
    scene: &Scene,
    contenders: &mut Vec<Box<dyn Contender>>,
    book: &mut Book,
    round: usize,
) -> Result<()> {
    let mut used = Vec::new();
    let mut out = Vec::new();
    let count = contenders.len();
    for turn in 0..count {
        let at = (round + turn) % count;
        let result = contenders[at].round(scene);
        scene.uninterrupted()?;
        match result {
            Ok(turn) => {
                book.add(&turn.took);
                used.extend(turn.used);
            }
            Err(error) => {
                book.not_run(contenders[at].series(), &format!("round {round}: {error}"));
                out.push(at);
            }
        }
    }
    out.sort_unstable();
    out.into_iter().rev().for_each(|at| drop(contenders.remove(at)));
    drop(used);
    Ok(())
}

fn boxed<C: Contender + 'static>(contender: C) -> Box<dyn Contender> {
    Box::new(contender)
}

/// Says on stderr what is going on: it takes a while.
fn say(what: &str) {
    eprintln!("==> bench: {what}");
}

/// A program of this workspace, wherever under target/ it is built best.
fn built(program: &str) -> Result<PathBuf> {
    let me = env::current_exe()?;
    // target/PROFILE/v6pod-bench
    let target = me.ancestors().nth(2).ok_or("this program lies in no target directory")?;
    ["shim", "release"]
        .into_iter()
        .map(|profile| target.join(profile).join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{program} is not built (make build)").into())
}

/// The first program of this name on `$PATH`.
fn on_path(program: impl AsRef<OsStr>) -> Result<PathBuf> {
    let program = program.as_ref();
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{} is not installed (make deps)", program.display()).into())
}
