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

pub(crate) use report::markdown;

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
}

/// All that was measured, round by round, and of who did not take part, why.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    measured: BTreeMap<(Way, Load), Vec<f64>>,
    absent: BTreeMap<Way, String>,
}

impl Traffic {
    fn of(&self, way: Way, load: Load) -> &[f64] {
        self.measured.get(&(way, load)).map_or(&[], Vec::as_slice)
    }

    /// The median; none without any.
    fn median(&self, way: Way, load: Load) -> Option<f64> {
        middle(self.of(way, load).to_vec())
    }

    /// The median of the quotients of each round: what disturbs a round disturbs both.
    fn ratio(&self, way: Way, other: Way, load: Load) -> Option<f64> {
        let both = self.of(way, load).iter().zip(self.of(other, load));
        middle(both.map(|(one, other)| one / other).collect())
    }
}

fn middle(mut all: Vec<f64>) -> Option<f64> {
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// Sets all ways up and measures them by turns.
pub(crate) fn measure(scene: &Scene, rounds: usize) -> Result<Traffic> {
    let mut traffic = Traffic::default();
    say("setting up the ways to connect a container");
    let mut ways = ways::all(scene, &mut traffic.absent);
    for round in 0..rounds {
        say(&format!("traffic, round {} of {rounds}", round + 1));
        for turn in 0..ways.len() {
            scene.uninterrupted()?;
            let path = &ways[(round + turn) % ways.len()];
            match path.measure() {
                Ok(found) => found.into_iter().for_each(|(load, figure)| {
                    traffic.measured.entry((path.way, load)).or_default().push(figure);
                }),
                Err(error) => {
                    traffic.absent.insert(path.way, format!("round {}: {error}", round + 1));
                }
            }
        }
        ways.retain(|path| !traffic.absent.contains_key(&path.way));
    }
    Ok(traffic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_those_of_the_rounds() {
        let mut traffic = Traffic::default();
        traffic.measured.insert((Way::Bare, Load::Out), vec![10.0, 20.0, 40.0]);
        traffic.measured.insert((Way::Bridge, Load::Out), vec![9.0, 19.0, 20.0]);
        assert_eq!(traffic.ratio(Way::Bridge, Way::Bare, Load::Out), Some(0.9));
        assert_eq!(traffic.median(Way::Bare, Load::Out), Some(20.0));
        assert_eq!(traffic.ratio(Way::Pasta, Way::Bare, Load::Out), None);
    }
}
