//! `GET /metrics`: totals only, so anybody may read it.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::attachments::Attachments;

/// The OpenMetrics text format.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics as they are now.
pub(crate) fn text(attachments: &Attachments) -> String {
    let mut registry = Registry::with_prefix("v6pod");
    attachments.metrics().register(&mut registry);
    let status = attachments.status();
    let by_mode: Family<[(&str, &str); 1], Gauge<i64, AtomicI64>> = Family::default();
    by_mode.get_or_create(&[("mode", "bridge")]).set(signed(status.counts.attachments));
    registry.register("attachments", "Attachments, by mode", by_mode);
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge: Gauge<i64, AtomicI64> = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge("leases", "Attachments that a connection holds", signed(status.counts.leases));
    gauge("addresses_resting", "Released addresses that rest", signed(status.counts.resting));
    gauge("registry_pending", "Names on their way", signed(status.registry.pending));
    gauge("registry_healthy", "Whether the registry answers", status.registry.healthy.into());
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
