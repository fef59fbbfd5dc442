//! Thousands of attachments on one host, beside ten: what one more costs, what passes between two, what
//! the daemon needs, and how long it is away when it is started again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use v6pod_proto::{Attachment, Mode};

use crate::daemon::Daemon;
use crate::samples::Samples;
use crate::scene::{NetNs, Scene, calm};
use crate::traffic::{Course, Load, inside};
use crate::{Result, say};

const FEW: usize = 10;
/// So many when the daemon is started again.
const RESTARTED: usize = 1000;
const MANY: usize = 5000;

/// How many activations, and how many streams and floods, a median is taken of.
const ACTIVATIONS: usize = 40;
const TURNS: usize = 10;

/// How long it is left alone before.
const REST: Duration = Duration::from_secs(5);

/// What is open of each.
const PORT: u16 = 5202;

const TABLES: &str = "[limits]\nper_owner = 10000\n";

/// What was measured with so many.
#[derive(Debug)]
struct Figures {
    activate: Duration,
    /// Bits a second, and datagrams.
    stream: f64,
    packets: f64,
}

/// All of one mode.
#[derive(Debug)]
struct Crowd {
    few: Figures,
    many: Figures,
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
    let mut growing = Growing { daemon: Daemon::with(&scene, mode, TABLES)?, living: Vec::new() };
    growing.grow_to(&scene, FEW)?;
    let few = growing.figures()?;
    growing.grow_to(&scene, RESTARTED)?;
    let restart = growing.restart(&scene, mode)?;
    growing.grow_to(&scene, MANY)?;
    let memory = growing.daemon.resident()?;
    let many = growing.figures()?;
    Ok(Crowd { few, many, memory, restart })
}

struct Growing {
    daemon: Daemon,
    living: Vec<(NetNs, Attachment)>,
}

impl Growing {
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

    fn figures(&self) -> Result<Figures> {
        // What the kernel has to do about new interfaces is done.
        thread::sleep(REST);
        let between = self.course()?;
        let of = |load| -> Result<f64> {
            let mut all: Vec<_> =
                (0..TURNS).map(|_| between.measure(load)).collect::<Result<_>>()?;
            all.sort_unstable_by(f64::total_cmp);
            Ok(all[all.len() / 2])
        };
        let (stream, packets) = (of(Load::Between)?, of(Load::Packets)?);
        Ok(Figures { activate: self.activate()?, stream, packets })
    }

    /// From the first to the last.
    fn course(&self) -> Result<Course<'_>> {
        let (Some((from, _)), Some((to, made))) = (self.living.first(), self.living.last()) else {
            return Err("nobody is there".into());
        };
        Ok(Course { from, to, address: made.address.into(), port: PORT })
    }

    /// One more, by the daemon's own clock: the median of some, of which none is left.
    fn activate(&self) -> Result<Duration> {
        let mut samples = Samples::default();
        for _ in 0..ACTIVATIONS {
            let netns = NetNs::new()?;
            let before = self.daemon.total()?;
            calm();
            let made = self.daemon.attach(&netns, &BTreeMap::new())?;
            samples.add(self.daemon.total()?.saturating_sub(before));
            self.daemon.take_away(made.container, 0, self.living.len())?;
        }
        samples.median().ok_or_else(|| "no activation".into())
    }

    /// Kills the daemon and starts it again, while the first sends datagrams to the last.
    fn restart(&mut self, scene: &Scene, mode: Mode) -> Result<Restart> {
        let course = self.course()?;
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
            "\n# What thousands cost\n\nMeasured with {FEW} attachments, then with {MANY}, of one daemon, \
             all with an opening. Medians of {ACTIVATIONS} activations and of\n{TURNS} streams and floods of \
             0.3 s each, from the first container to the last.\n\n\
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
        let Self { few, many, memory, restart } = self;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (one, other) = (ms(few.activate), ms(many.activate));
        let mut row = |what: &str, cells: [String; 3], budget: &str| {
            let cells = cells.join(" | ");
            let _ = writeln!(text, "| {mode}: {what} | {cells} | {budget} |");
        };
        let times = |many: f64, few: f64| format!("{:.2}", many / few);
        let figures = [format!("{one:.3} ms"), format!("{other:.3} ms"), times(other, one)];
        row("activate, by the daemon's clock", figures, "≤ 1.5");
        let gigabits = |rate: f64| format!("{:.1} Gbit/s", rate / 1e9);
        let (one, other) = (few.stream, many.stream);
        row("TCP", [gigabits(one), gigabits(other), times(other, one)], "≥ 0.95");
        let thousands = |rate: f64| format!("{:.0} k/s", rate / 1e3);
        let (one, other) = (few.packets, many.packets);
        row("small packets", [thousands(one), thousands(other), times(other, one)], "≥ 0.95");
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
        let figures =
            |ms, stream, packets| Figures { activate: Duration::from_millis(ms), stream, packets };
        let restart = Restart { took: Duration::from_millis(210), sent: 100, arrived: 99 };
        let (few, many) = (figures(1, 10e9, 2e5), figures(2, 9e9, 1e5));
        let routed = Ok(Crowd { few, many, memory: 25 << 10, restart });
        let text =
            Crowds([(Mode::Bridge, Err("no room".into())), (Mode::Routed, routed)]).markdown();
        for line in [
            "| bridge, then overflow: not run: no room | | | | |",
            "| routed: activate, by the daemon's clock | 1.000 ms | 2.000 ms | 2.00 | ≤ 1.5 |",
            "| routed: TCP | 10.0 Gbit/s | 9.0 Gbit/s | 0.90 | ≥ 0.95 |",
            "| routed: small packets | 200 k/s | 100 k/s | 0.50 | ≥ 0.95 |",
            "| routed: resident memory |  | 25.0 MiB |  | ≤ 32 MiB |",
            "| routed: restart with 1000 | 210 ms | 1 of 100 lost |  | ≤ 1 s, 0 lost |",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}:\n{text}");
        }
    }
}
