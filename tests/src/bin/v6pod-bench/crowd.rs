//! Thousands of attachments on one host, beside ten: what one more costs, what passes between two, what
//! the daemon needs, and how long it is away when it is started again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use v6pod_proto::{Attachment, Mode};

use crate::daemon::Daemon;
use crate::program::run;
use crate::samples::Samples;
use crate::scene::{NetNs, Scene, calm};
use crate::traffic::{Course, Load, inside};
use crate::{Result, say};

const FEW: usize = 10;
/// So many when the daemon is started again.
const RESTARTED: usize = 1000;
const MANY: usize = 5000;

/// How many activations a median is taken of, where there are few half of them before there are many, and half when
/// those have gone: so that it is not the machine's slower hour that is measured. And how many more before each: the
/// first of thousands use memory that a virtual machine has yet to be given.
const ACTIVATIONS: usize = 40;
const WARMING: usize = 10;

/// How many streams and floods.
const TURNS: usize = 30;

/// How long it is left alone before.
const REST: Duration = Duration::from_secs(5);

/// Past this the kernel does not take away what has ended.
const LEAVING: Duration = Duration::from_secs(600);

/// What is open of each.
const PORT: u16 = 5202;

const TABLES: &str = "[limits]\nper_owner = 10000\n";

/// What passes between two, with few on their host and with many on another: the medians, and that of the turns'
/// quotients.
#[derive(Debug)]
struct Beside {
    few: f64,
    many: f64,
    ratio: f64,
}

/// All of one mode.
#[derive(Debug)]
struct Crowd {
    /// One more activation, with few and with many.
    activate: [Duration; 2],
    /// Bits a second.
    stream: Beside,
    /// Datagrams a second.
    packets: Beside,
    /// Resident, in KiB, with [`MANY`].
    memory: u64,
    restart: Restart,
}

/// The daemon was killed and started again.
#[derive(Debug)]
struct Restart {
    took: Duration,
    sent: usize,
    arrived: usize,
}

/// The crowd of each mode, or why there is none.
pub(crate) struct Crowds([(Mode, Result<Crowd>); 2]);

/// Measures one after the other: the second begins when the first has gone.
pub(crate) fn measure() -> Crowds {
    Crowds([Mode::Bridge, Mode::Routed].map(|mode| (mode, crowd(mode))))
}

fn crowd(mode: Mode) -> Result<Crowd> {
    // A descriptor for each namespace.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let scene = Scene::set()?;
    // A network is there as long as somebody holds it, and their ports with it.
    let host_of_few = NetNs::new()?;
    let few = scene.inside(&host_of_few, || {
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?.ok()?;
        Growing::with(&scene, "few", mode)
    });
    let mut few = few?;
    few.grow_to(&scene, FEW)?;
    thread::sleep(REST);
    let before = few.activate(ACTIVATIONS / 2)?;

    let mut many = Growing::with(&scene, "many", mode)?;
    let alone = links()?;
    many.grow_to(&scene, RESTARTED)?;
    let restart = many.restart(&scene, mode)?;
    many.grow_to(&scene, MANY)?;
    let memory = many.daemon.resident()?;
    // What the kernel has to do about new interfaces is done.
    thread::sleep(REST);
    let stream = beside(&scene, &few.living, &many.living, Load::Between)?;
    let packets = beside(&scene, &few.living, &many.living, Load::Packets)?;
    let among_many = many.activate(ACTIVATIONS)?;

    drop(many);
    are_no_more_than(alone)?;
    thread::sleep(REST);
    let among_few = before.and(&few.activate(ACTIVATIONS / 2)?);
    let median = |samples: &Samples| samples.median().ok_or("no activation");
    let activate = [median(&among_few)?, median(&among_many)?];
    Ok(Crowd { activate, stream, packets, memory, restart })
}

/// How many links this thread's network has.
fn links() -> Result<usize> {
    Ok(fs::read_to_string("/proc/thread-self/net/dev")?.matches(':').count())
}

/// Waits until there are only so many links: the kernel takes away one network after the other, under the lock that an
/// activation needs.
fn are_no_more_than(alone: usize) -> Result<()> {
    let deadline = Instant::now() + LEAVING;
    while links()? > alone {
        if Instant::now() > deadline {
            return Err("what has ended does not leave".into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What passes between the first two of both, which are of one kind, by turns.
fn beside(scene: &Scene, few: &Living, many: &Living, load: Load) -> Result<Beside> {
    let (few, many) = (course(few)?, course(many)?);
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        scene.uninterrupted()?;
        let first = if turn % 2 == 0 { few } else { many }.measure(load)?;
        let second = if turn % 2 == 0 { many } else { few }.measure(load)?;
        turns.push(if turn % 2 == 0 { (first, second) } else { (second, first) });
    }
    let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut all: Vec<_> = turns.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Ok(Beside {
        few: median(&|turn| turn.0),
        many: median(&|turn| turn.1),
        ratio: median(&|turn| turn.1 / turn.0),
    })
}

type Living = Vec<(NetNs, Attachment)>;

/// From the first to the second.
fn course(living: &Living) -> Result<Course<'_>> {
    let [(from, _), (to, made), ..] = &living[..] else { return Err("nobody is there".into()) };
    Ok(Course { from, to, address: made.address.into(), port: PORT })
}

struct Growing {
    daemon: Daemon,
    living: Living,
}

impl Growing {
    fn with(scene: &Scene, name: &'static str, mode: Mode) -> Result<Self> {
        Ok(Self { daemon: Daemon::with(scene, name, mode, TABLES)?, living: Vec::new() })
    }

    fn grow_to(&mut self, scene: &Scene, count: usize) -> Result<()> {
        say(&format!("{count} attachments"));
        let opened = format!("tcp/{PORT},udp/{PORT}");
        let annotations = BTreeMap::from([("v6pod.ingress".to_owned(), opened)]);
        while self.living.len() < count {
            scene.uninterrupted()?;
            let netns = NetNs::new()?;
            let made = self.daemon.attach(&netns, &annotations)?;
            self.living.push((netns, made));
        }
        Ok(())
    }

    /// One more, by the daemon's own clock: so many times, of which none is left.
    fn activate(&self, count: usize) -> Result<Samples> {
        let mut samples = Samples::default();
        // An end of a network takes the kernel longer than the rest before the next.
        let mut used = Vec::new();
        for turn in 0..WARMING + count {
            let netns = NetNs::new()?;
            let before = self.daemon.total()?;
            calm();
            let made = self.daemon.attach(&netns, &BTreeMap::new())?;
            let took = self.daemon.total()?.saturating_sub(before);
            if turn >= WARMING {
                samples.add(took);
            }
            self.daemon.take_away(made.container, 0, self.living.len())?;
            used.push(netns);
        }
        Ok(samples)
    }

    /// Kills the daemon and starts it again, while the first sends datagrams to the second.
    fn restart(&mut self, scene: &Scene, mode: Mode) -> Result<Restart> {
        let course = course(&self.living)?;
        let any = (Ipv6Addr::UNSPECIFIED, PORT);
        let far = inside(course.to, || UdpSocket::bind(any))??;
        far.set_read_timeout(Some(Duration::from_millis(500)))?;
        let near = inside(course.from, || UdpSocket::bind("[::]:0"))??;
        near.connect(SocketAddr::new(course.address, PORT))?;
        let over = AtomicBool::new(false);
        let daemon = &mut self.daemon;
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    count += usize::from(near.send(b"v6b").is_ok());
                    thread::sleep(Duration::from_millis(1));
                }
                count
            });
            let arriving =
                scope.spawn(|| std::iter::from_fn(|| far.recv(&mut [0; 8]).ok()).count());
            thread::sleep(Duration::from_millis(200));
            let began = Instant::now();
            let restarted = daemon.restart(scene, mode, TABLES);
            let took = began.elapsed();
            thread::sleep(Duration::from_millis(200));
            over.store(true, Ordering::Relaxed);
            let died = |_| "a thread died";
            let (sent, arrived) = (sending.join().map_err(died)?, arriving.join().map_err(died)?);
            restarted?;
            Ok(Restart { took, sent, arrived })
        })
    }
}

impl Crowds {
    /// The section as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "\n# What thousands cost\n\nMeasured with {FEW} attachments of one daemon on a host, and with {MANY} \
             of another on another, all with an\nopening. Medians of {ACTIVATIONS} activations, \
             of which with {FEW} one half is before there are {MANY} and one when they have gone,\nand of {TURNS} streams \
             of 0.1 s and as many floods of 0.3 s from the first container to the second, on both hosts by turns;\nthe \
             ratio of these is the median of the turns' quotients.\n\n\
             | what | {FEW} | {MANY} | ratio | budget |\n|---|---:|---:|---:|---:|\n"
        );
        for (mode, crowd) in &self.0 {
            let mode = match mode {
                Mode::Bridge => "bridge, then overflow",
                Mode::Routed => "routed",
            };
            match crowd {
                Ok(crowd) => crowd.rows(mode, &mut text),
                // Writing to a string cannot fail.
                Err(error) => drop(writeln!(text, "| {mode}: not run: {error} | | | | |")),
            }
        }
        text
    }
}

impl Crowd {
    fn rows(&self, mode: &str, text: &mut String) {
        let Self { activate: [few, many], stream, packets, memory, restart } = self;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (one, other) = (ms(*few), ms(*many));
        let mut row = |what: &str, cells: [String; 3], budget: &str| {
            let cells = cells.join(" | ");
            let _ = writeln!(text, "| {mode}: {what} | {cells} | {budget} |");
        };
        let times = format!("{:.2}", other / one);
        let figures = [format!("{one:.3} ms"), format!("{other:.3} ms"), times];
        row("activate, by the daemon's clock", figures, "≤ 1.5");
        let mut beside = |what, Beside { few, many, ratio }: &Beside, show: fn(f64) -> String| {
            row(what, [show(*few), show(*many), format!("{ratio:.2}")], "≥ 0.95");
        };
        beside("TCP", stream, |rate| format!("{:.1} Gbit/s", rate / 1e9));
        beside("small packets", packets, |rate| format!("{:.0} k/s", rate / 1e3));
        let mib = format!("{:.1} MiB", *memory as f64 / 1024.0);
        row("resident memory", [String::new(), mib, String::new()], "≤ 32 MiB");
        let Restart { took, sent, arrived } = restart;
        let what = format!("restart with {RESTARTED}");
        let lost = format!("{} of {sent} lost", sent.saturating_sub(*arrived));
        row(&what, [format!("{:.0} ms", ms(*took)), lost, String::new()], "≤ 1 s, 0 lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_has_its_budget_beside_it() {
        let beside = |few, many, ratio| Beside { few, many, ratio };
        let restart = Restart { took: Duration::from_millis(210), sent: 100, arrived: 99 };
        let routed = Ok(Crowd {
            activate: [1, 2].map(Duration::from_millis),
            stream: beside(10e9, 9e9, 0.91),
            packets: beside(2e5, 1e5, 0.5),
            memory: 25 << 10,
            restart,
        });
        let text =
            Crowds([(Mode::Bridge, Err("no room".into())), (Mode::Routed, routed)]).markdown();
        for line in [
            "| bridge, then overflow: not run: no room | | | | |",
            "| routed: activate, by the daemon's clock | 1.000 ms | 2.000 ms | 2.00 | ≤ 1.5 |",
            "| routed: TCP | 10.0 Gbit/s | 9.0 Gbit/s | 0.91 | ≥ 0.95 |",
            "| routed: small packets | 200 k/s | 100 k/s | 0.50 | ≥ 0.95 |",
            "| routed: resident memory |  | 25.0 MiB |  | ≤ 32 MiB |",
            "| routed: restart with 1000 | 210 ms | 1 of 100 lost |  | ≤ 1 s, 0 lost |",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
    }
}
