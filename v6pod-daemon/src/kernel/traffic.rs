//! What has passed a link, as the kernel has counted it since the link was made.
//!
//! Asked by RTM_GETSTATS (Linux 4.7), not RTM_GETLINK: a tenth of the bytes for a link, and of one link
//! only its number and its counters.
//!
//! What veth counts (`drivers/net/veth.c`): a packet when its sender hands it over, before the receiving
//! side's bridge, firewall or stack has seen it; with its Ethernet header; a segment that the sender
//! leaves to others to cut (GSO) as one packet, however many there will be on a wire.

use std::collections::HashMap;

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::stats::{StatsFilterMask, StatsMessage};

use super::error::Error;
use super::netlink::RouteSocket;
use super::view::Stats;

/// One link's counters, as its own side sees them: `rx` is what comes in by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets in.
    pub rx_packets: u64,
    /// Packets out.
    pub tx_packets: u64,
    /// Bytes in.
    pub rx_bytes: u64,
    /// Bytes out.
    pub tx_bytes: u64,
    /// Packets that came in and were lost before anything looked at them: the processor's queue was
    /// full. What a firewall drops is not among them.
    pub rx_dropped: u64,
    /// Packets that were to go out and that the other end did not take: it is down, its MTU is smaller,
    /// the queue was full.
    pub tx_dropped: u64,
}

/// The counters of all links, by their number: one dump.
pub fn of_all(socket: &mut RouteSocket) -> Result<HashMap<u32, Counters>, Error> {
    let read = |_, payload: &[u8]| Stats::parse(payload).map(|stats| (stats.link, stats.counters));
    let all = socket.dump("read all counters", &question(0), read)?;
    Ok(all.into_iter().collect())
}

/// The counters of one link; none if it is gone.
pub fn of_one(socket: &mut RouteSocket, link: u32) -> Result<Option<Counters>, Error> {
    let read = |_, payload: &[u8]| {
        let stats = Stats::parse(payload)?;
        (stats.link == link).then_some(stats.counters)
    };
    match socket.get("read counters", &question(link), read) {
        Err(error) if error.is_gone() => Ok(None),
        other => other,
    }
}

/// Zero asks for all.
fn question(link: u32) -> Message {
    let mut message = StatsMessage::default();
    message.header.ifindex = link;
    message.header.filter_mask = StatsFilterMask::Link64;
    Message::GetStats(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{Bench, Container, in_netns, port, sh};

    #[test]
    fn what_a_container_sends_comes_in_by_its_port_and_no_other() {
        in_netns(|| {
            let mut bench = Bench::new();
            let containers = [Container::new(), Container::new()];
            let [sender, other] =
                [(1, 0), (2, 1)].map(|(n, at)| bench.attach(&containers[at], &port(n)));
            let read =
                |bench: &mut Bench, link| of_one(&mut bench.worker.socket, link).unwrap().unwrap();
            let before = [read(&mut bench, sender), read(&mut bench, other)];
            // 14 bytes of Ethernet, 40 of IPv6, 8 of ICMPv6: 1062 bytes.
            containers[0].sh("ping -c 100 -i 0.002 -s 1000 -W 10 2001:db8:1:2:3::1");
            let after = [read(&mut bench, sender), read(&mut bench, other)];
            for (now, was) in [
                (after[0].rx_packets, before[0].rx_packets),
                (after[0].tx_packets, before[0].tx_packets),
                (after[0].rx_bytes / 1062, before[0].rx_bytes / 1062),
                (after[0].tx_bytes / 1062, before[0].tx_bytes / 1062),
            ] {
                // And a few of neighbour discovery.
                assert!((100..120).contains(&(now - was)), "{before:?} {after:?}");
            }
            assert!(after[1].rx_packets - before[1].rx_packets < 20, "{before:?} {after:?}");
            assert!(after[1].tx_packets - before[1].tx_packets < 20, "{before:?} {after:?}");
        });
    }

    #[test]
    fn all_are_read_at_once_and_one_that_is_gone_is_none() {
        in_netns(|| {
            let mut bench = Bench::new();
            let container = Container::new();
            let gone = bench.attach(&container, &port(1));
            let mut links = String::new();
            for n in 0..300 {
                links += &format!("link add v6kl{n} type veth peer name v6kp{n}\n");
            }
            sh(&format!("printf '{links}' | ip -batch -"));
            let socket = &mut bench.worker.socket;
            let all = of_all(socket).unwrap();
            // With lo, the bridge and the port.
            assert_eq!(all.len(), 603);
            assert!(all.contains_key(&gone));
            sh("ip link del v6k-1");
            assert_eq!(of_one(socket, gone).unwrap(), None);
            assert!(!of_all(socket).unwrap().contains_key(&gone));
        });
    }
}
