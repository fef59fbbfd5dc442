//! `GET /metrics`: totals, which anybody may read, and the counters of the attachments that the reader
//! may see: an owner's own; all only to root and operators on the unix socket.
//!
//! No label has what a user wrote in it: ids are hex digits, the name is a label of the DNS.

use std::fmt;
use std::sync::atomic::AtomicI64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use v6pod_proto::{Status, Traffic};

use crate::attachments::{Attachments, Measured, Metrics, Viewer};

/// The OpenMetrics text format.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics as they are now, and this viewer's attachments.
pub(crate) async fn text(attachments: &Attachments, viewer: Viewer) -> String {
    let status = attachments.status();
    let more = Gauged {
        open_elements: attachments.open_elements(),
        at_flow_limit: attachments.at_flow_limit().await,
    };
    let measured = attachments.measured(viewer).await;
    encoded(&registry(attachments.metrics(), &status, &more, measured))
}

/// What is asked for when it is told, beside the status.
#[derive(Debug)]
struct Gauged {
    open_elements: usize,
    at_flow_limit: [usize; 2],
}

/// Everything under its name.
fn registry(
    metrics: &Metrics,
    status: &Status,
    more: &Gauged,
    measured: Vec<Measured>,
) -> Registry {
    let mut registry = Registry::with_prefix("v6pod");
    metrics.register(&mut registry);
    let by_mode: Family<[(&str, &str); 1], Gauge<i64, AtomicI64>> = Family::default();
    let counts = status.counts;
    let bridged = counts.attachments - counts.routed;
    for (mode, count) in [("bridge", bridged), ("routed", counts.routed)] {
        by_mode.get_or_create(&[("mode", mode)]).set(signed(count));
    }
    registry.register("attachments", "Attachments, by mode", by_mode);
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge: Gauge<i64, AtomicI64> = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge("leases", "Attachments that a connection holds", signed(counts.leases));
    gauge("addresses_resting", "Released addresses that rest", signed(counts.resting));
    gauge(
        "open_elements",
        "Elements of the firewall that openings take",
        signed(more.open_elements as u64),
    );
    gauge("registry_pending", "Names on their way", signed(status.registry.pending));
    gauge("registry_healthy", "Whether the registry answers", status.registry.healthy.into());
    let at_limit: Family<[(&str, &str); 1], Gauge<i64, AtomicI64>> = Family::default();
    for (flows, count) in ["begun", "offered"].into_iter().zip(more.at_flow_limit) {
        at_limit.get_or_create(&[("flows", flows)]).set(signed(count as u64));
    }
    let help =
        "Attachments that were refused a flow in the last second: they hold as many as they may";
    registry.register("attachments_at_flow_limit", help, at_limit);
    registry.register_collector(Box::new(PerAttachment(measured)));
    registry
}

fn encoded(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, registry);
    text
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Series of their own for each of these.
#[derive(Debug)]
struct PerAttachment(Vec<Measured>);

/// A family of counters: name, help, unit, and which of an attachment's numbers it is.
type Counted = (&'static str, &'static str, Unit, fn(&Traffic) -> u64);

/// From the container's point of view: received is what came to it.
fn counted() -> [Counted; 6] {
    let packets = || Unit::Other("packets".to_owned());
    [
        (
            "attachment_receive",
            "Bytes that came to the container, with Ethernet headers",
            Unit::Bytes,
            |t| t.received.bytes,
        ),
        ("attachment_receive", "Packets that came to the container", packets(), |t| {
            t.received.packets
        }),
        (
            "attachment_receive_dropped",
            "Packets lost on the last step to the container; not what the firewall drops",
            packets(),
            |t| t.received.dropped,
        ),
        (
            "attachment_transmit",
            "Bytes that the container sent, with Ethernet headers, before the firewall decides",
            Unit::Bytes,
            |t| t.sent.bytes,
        ),
        (
            "attachment_transmit",
            "Packets that the container sent, before the firewall decides",
            packets(),
            |t| t.sent.packets,
        ),
        (
            "attachment_transmit_dropped",
            "Packets lost on the first step from the container; not what the firewall drops",
            packets(),
            |t| t.sent.dropped,
        ),
    ]
}

impl Collector for PerAttachment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        // What an attachment is stands once, not in each of its series: whoever wants it joins it.
        let help = "What each attachment is";
        let mut info = encoder.encode_descriptor("attachment", help, None, MetricType::Info)?;
        for measured in &self.0 {
            info.encode_info(&described(measured))?;
        }
        let labels: Vec<_> = self.0.iter().map(labels).collect();
        for (name, help, unit, number) in counted() {
            let mut family =
                encoder.encode_descriptor(name, help, Some(&unit), MetricType::Counter)?;
            for (labels, measured) in labels.iter().zip(&self.0) {
                let counter = ConstCounter::new(number(&measured.traffic));
                counter.encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn labels(measured: &Measured) -> [(&'static str, String); 2] {
    [("attachment", measured.id.to_string()), ("owner", measured.owner.to_string())]
}

fn described(measured: &Measured) -> Vec<(&'static str, String)> {
    let mut labels = Vec::from(labels(measured));
    labels.push(("address", measured.address.to_string()));
    labels.push(("container", measured.container.to_string()));
    labels.extend(measured.label.iter().map(|label| ("name", label.to_string())));
    labels
}

#[cfg(test)]
mod documents;

#[cfg(test)]
mod tests {
    use v6pod_proto::{Passed, Uid};

    use super::*;

    pub(super) fn measured() -> Measured {
        let passed = |packets, bytes, dropped| Passed { packets, bytes, dropped };
        Measured {
            id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            owner: Uid::new(1000).unwrap(),
            container: "ab".repeat(32).parse().unwrap(),
            address: "2001:db8::5".parse().unwrap(),
            label: Some("web".parse().unwrap()),
            traffic: Traffic { received: passed(1, 2, 3), sent: passed(4, 5, 6) },
        }
    }

    fn encoded(all: Vec<Measured>) -> String {
        let mut registry = Registry::with_prefix("v6pod");
        registry.register_collector(Box::new(PerAttachment(all)));
        super::encoded(&registry)
    }

    #[test]
    fn an_attachment_has_six_counters_and_is_described_once() {
        let text = encoded(vec![measured()]);
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let who = r#"attachment="0123456789abcdef0123456789abcdef",owner="1000""#;
        let container = "ab".repeat(32);
        let more = format!(r#"address="2001:db8::5",container="{container}",name="web""#);
        assert_eq!(
            samples,
            [
                format!("v6pod_attachment_info{{{who},{more}}} 1"),
                format!("v6pod_attachment_receive_bytes_total{{{who}}} 2"),
                format!("v6pod_attachment_receive_packets_total{{{who}}} 1"),
                format!("v6pod_attachment_receive_dropped_packets_total{{{who}}} 3"),
                format!("v6pod_attachment_transmit_bytes_total{{{who}}} 5"),
                format!("v6pod_attachment_transmit_packets_total{{{who}}} 4"),
                format!("v6pod_attachment_transmit_dropped_packets_total{{{who}}} 6"),
            ]
        );
    }

    #[test]
    fn without_attachments_there_are_no_series() {
        assert_eq!(encoded(Vec::new()), "# EOF\n");
    }
}
