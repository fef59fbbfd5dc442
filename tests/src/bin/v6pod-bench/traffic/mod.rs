//! What passes through an attachment: TCP streams, small packets and new flows, on v6pod's two kinds of
//! ports and beside other ways to connect a container, by turns.
//!
//! Each way has a host of its own, a network namespace: no firewall but its own is in its path. All send
//! from and to sockets of this process, which are made in those namespaces and stay there.

mod load;
mod report;
mod ways;

use std::collections::BTreeMap;

use crate::scene::Scene;
use crate::{Result, say};

pub(crate) use load::{Course, inside};
pub(crate) use report::markdown;

/// Who has failed so often with something has no more turns.
const FAILURES: usize = 3;

/// A way to connect a container, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Bare,
    Bridge,
    Routed,
    Netavark,
    Pasta,
    Slirp4netns,
}

impl Way {
    const ALL: [Self; 6] =
        [Self::Bare, Self::Bridge, Self::Routed, Self::Netavark, Self::Pasta, Self::Slirp4netns];
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// One TCP stream from a container to another, in bits a second.
    Between,
    /// From a container to its host.
    Out,
    /// From the host to the container that has opened the connection.
    Back,
    /// Datagrams of 64 bytes that arrive at another container, a second.
    Packets,
    /// TCP connections that a container opens to another, a second.
    Flows,
    /// As [`Load::Packets`], to the host.
    PacketsOut,
    /// As [`Load::Flows`], to the host.
    FlowsOut,
}

impl Load {
    const ALL: [Self; 7] = [
        Self::Between,
        Self::Out,
        Self::Back,
        Self::Packets,
        Self::PacketsOut,
        Self::Flows,
        Self::FlowsOut,
    ];

    /// How often each way has its turn in a round. A stream's speed changes from one tenth of a second to the
    /// next more than what a host's rules cost, so that only many short ones, side by side, can be compared.
    fn turns(self) -> usize {
        match self {
            Self::Between | Self::Out | Self::Back => 10,
            Self::Packets | Self::PacketsOut | Self::Flows | Self::FlowsOut => 1,
        }
    }
}

/// All that was measured, and of what was not, why.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// By turns.
    measured: BTreeMap<(Way, Load), BTreeMap<usize, f64>>,
    /// Why nothing could be sent this way.
    absent: BTreeMap<Way, String>,
    /// How often this did not pass, and why at last.
    failed: BTreeMap<(Way, Load), (usize, String)>,
}

impl Traffic {
    fn add(&mut self, way: Way, load: Load, round: usize, result: Result<f64>) {
        match result {
            Ok(figure) => {
                self.measured.entry((way, load)).or_default().insert(round, figure);
            }
            Err(error) => {
                let (count, why) = self.failed.entry((way, load)).or_default();
                (*count, *why) = (*count + 1, error.to_string());
            }
        }
    }

    /// Whether it has failed so often that it is not tried again.
    fn is_out(&self, way: Way, load: Load) -> bool {
        self.failed.get(&(way, load)).is_some_and(|(count, _)| *count >= FAILURES)
    }

    fn rounds(&self) -> usize {
        let turns = |((_, load), all): (&(Way, Load), &BTreeMap<_, _>)| all.len() / load.turns();
        self.measured.iter().map(turns).max().unwrap_or(0)
    }

    /// The median; none without any.
    fn median(&self, way: Way, load: Load) -> Option<f64> {
        let all = self.measured.get(&(way, load))?.values();
        at(50, &sorted(all.copied().collect()))
    }

    /// The quotients of each turn, in order: what disturbs one disturbs both.
    fn ratios(&self, one: (Way, Load), other: (Way, Load)) -> Vec<f64> {
        let (Some(one), Some(other)) = (self.measured.get(&one), self.measured.get(&other)) else {
            return Vec::new();
        };
        sorted(one.iter().filter_map(|(round, one)| Some(one / other.get(round)?)).collect())
    }
}

/// The value that so many hundredths of all do not exceed; none without any.
fn at(percent: usize, sorted: &[f64]) -> Option<f64> {
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}

fn sorted(mut all: Vec<f64>) -> Vec<f64> {
    all.sort_unstable_by(f64::total_cmp);
    all
}

/// Sets all ways up and measures them by turns.
pub(crate) fn measure(scene: &Scene, rounds: usize) -> Result<Traffic> {
    let mut traffic = Traffic::default();
    say("setting up the ways to connect a container");
    let ways = ways::all(scene, &mut traffic.absent);
    for round in 0..rounds {
        say(&format!("traffic, round {} of {rounds}", round + 1));
        for load in Load::ALL {
            for turn in (round * load.turns()..).take(load.turns()) {
                take_turns(scene, &ways, load, turn, &mut traffic)?;
            }
        }
    }
    Ok(traffic)
}

/// All ways one right after the other: what disturbs one disturbs its neighbours.
fn take_turns(
    scene: &Scene,
    ways: &[ways::Path],
    load: Load,
    turn: usize,
    traffic: &mut Traffic,
) -> Result<()> {
    for at in 0..ways.len() {
        scene.uninterrupted()?;
        let path = &ways[(turn + at) % ways.len()];
        if !traffic.is_out(path.way, load) {
            traffic.add(path.way, load, turn, path.course(load).measure(load));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_one_turn() {
        let mut traffic = Traffic::default();
        let mut add = |way, load, round, figure| traffic.add(way, load, round, Ok(figure));
        for (round, (bare, bridge)) in
            [(10.0, 9.0), (20.0, 19.0), (40.0, 20.0)].into_iter().enumerate()
        {
            add(Way::Bare, Load::Out, round, bare);
            add(Way::Bridge, Load::Between, round, bridge);
        }
        add(Way::Pasta, Load::Out, 2, 4.0);
        let ratios = traffic.ratios((Way::Bridge, Load::Between), (Way::Bare, Load::Out));
        assert_eq!(ratios, [0.5, 0.9, 0.95]);
        assert_eq!([at(10, &ratios), at(50, &ratios)], [Some(0.5), Some(0.9)]);
        assert_eq!(traffic.median(Way::Bare, Load::Out), Some(20.0));
        let one = traffic.ratios((Way::Pasta, Load::Out), (Way::Bare, Load::Out));
        assert_eq!(one, [0.1]);
        let none = traffic.ratios((Way::Pasta, Load::Back), (Way::Bare, Load::Back));
        assert_eq!(at(50, &none), None);
    }

    #[test]
    fn who_fails_often_is_out() {
        let mut traffic = Traffic::default();
        for _ in 0..FAILURES {
            assert!(!traffic.is_out(Way::Pasta, Load::Out));
            traffic.add(Way::Pasta, Load::Out, 0, Err("stalled".into()));
        }
        assert!(traffic.is_out(Way::Pasta, Load::Out) && !traffic.is_out(Way::Pasta, Load::Back));
    }
}
