//! Counters and histograms, for Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::dns::Counts;

/// Bounds of the time histograms, in seconds: an activation takes about half a millisecond.
const BOUNDS: [f64; 12] =
    [0.0001, 0.0002, 0.0004, 0.0007, 0.001, 0.002, 0.004, 0.01, 0.03, 0.1, 0.5, 2.0];

type Label = [(&'static str, &'static str); 1];

/// What the daemon counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    activation: Family<Label, Histogram>,
    made: Counter<u64, AtomicU64>,
    taken_over: Counter<u64, AtomicU64>,
    released: Counter<u64, AtomicU64>,
    refused: Family<Label, Counter<u64, AtomicU64>>,
    repaired: Counter<u64, AtomicU64>,
    turned_away: Counter<u64, AtomicU64>,
    flows_ended: Counter<u64, AtomicU64>,
    conflicts: Family<Label, Counter<u64, AtomicU64>>,
    reregistered: Counter<u64, AtomicU64>,
    pub(super) dns: Counts,
}

/// A part of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// From the arrival at a worker to knowing which namespace this is and that it is the asker's.
    Check,
    /// Writing the record.
    Record,
    /// All steps in the kernel.
    Wire,
    /// From the request to the answer.
    Total,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            activation: Family::new_with_constructor(|| Histogram::new(BOUNDS)),
            made: Counter::default(),
            taken_over: Counter::default(),
            released: Counter::default(),
            refused: Family::default(),
            repaired: Counter::default(),
            turned_away: Counter::default(),
            flows_ended: Counter::default(),
            conflicts: Family::default(),
            reregistered: Counter::default(),
            dns: Counts::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics known under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "activation",
            "Time of activations that made an attachment, by part",
            Unit::Seconds,
            self.activation.clone(),
        );
        registry.register("attachments_made", "Attachments made", self.made.clone());
        registry.register(
            "attachments_taken_over",
            "Attachments that a restarted container took over",
            self.taken_over.clone(),
        );
        registry.register("attachments_released", "Attachments released", self.released.clone());
        registry.register(
            "activations_refused",
            "Activations refused, by reason",
            self.refused.clone(),
        );
        registry.register(
            "firewall_repairs",
            "How often the firewall's rules were gone and put back",
            self.repaired.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections refused because their caller has too many, has had his share of time, or has left",
            self.turned_away.clone(),
        );
        registry.register(
            "flows_ended",
            "Flows that were ended because nothing lets them in any more",
            self.flows_ended.clone(),
        );
        registry.register(
            "name_conflicts",
            "Names that a container did not get as it asked for them, by reason",
            self.conflicts.clone(),
        );
        registry.register(
            "registry_repairs",
            "Services that the registry had lost and has again",
            self.reregistered.clone(),
        );
        self.dns.register(registry);
    }

    /// Counters that have each counted something: what has not does not appear.
    #[cfg(test)]
    pub(crate) fn all_counted() -> Self {
        let all = Self::default();
        for part in [Part::Check, Part::Record, Part::Wire, Part::Total] {
            all.took(part, Duration::from_micros(300));
        }
        all.conflict("test");
        all.refused("test");
        all.dns.count_one();
        all
    }

    pub(super) fn took(&self, part: Part, time: Duration) {
        let label = match part {
            Part::Check => "check",
            Part::Record => "record",
            Part::Wire => "wire",
            Part::Total => "total",
        };
        self.activation.get_or_create(&[("part", label)]).observe(time.as_secs_f64());
    }

    pub(super) fn made(&self) {
        self.made.inc();
    }

    pub(super) fn taken_over(&self) {
        self.taken_over.inc();
    }

    pub(super) fn released(&self) {
        self.released.inc();
    }

    pub(super) fn repaired(&self) {
        self.repaired.inc();
    }

    pub(crate) fn turned_away(&self) {
        self.turned_away.inc();
    }

    pub(super) fn ended_flows(&self, count: usize) {
        self.flows_ended.inc_by(count as u64);
    }

    pub(super) fn conflict(&self, reason: &'static str) {
        self.conflicts.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn reregistered(&self) {
        self.reregistered.inc();
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }
}
