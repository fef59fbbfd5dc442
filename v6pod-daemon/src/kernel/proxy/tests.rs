//! ```text
//!   container ── v6k0 [ host ] up0 2001:db8:1:2::2/64 ── isp0 2001:db8:1:2::9/64 [ neighbour ]
//! ```
//! The prefix is a part of the link's own subnet, and nobody has a route to it.

use super::*;
use crate::kernel::host::{Topology, prepare, purge};
use crate::kernel::testing::{
    Bench, Container, eventually, in_netns, load_rules, port, sh, topology, try_sh, worker,
};
use crate::kernel::wire::undo_all;

const GATEWAY: &str = "2001:db8:1:2:3::1";

/// The neighbour, and the host with the uplink that they share.
fn subnet() -> (Container, Bench) {
    let neighbour = Container::new();
    for conf in ["all", "default"] {
        let no_dad = format!("echo 0 >/proc/sys/net/ipv6/conf/{conf}/accept_dad");
        sh(&no_dad);
        neighbour.sh(&no_dad);
    }
    sh("ip link add up0 type veth peer name isp0");
    let ns = format!("/proc/{}/fd/{}", std::process::id(), neighbour.raw());
    sh(&format!("ip link set isp0 netns {ns} && ip link set up0 up"));
    sh("ip -6 addr add 2001:db8:1:2::2/64 dev up0 nodad");
    neighbour.sh("ip link set isp0 up && ip -6 addr add 2001:db8:1:2::9/64 dev isp0 nodad");
    eventually("host and neighbour see each other", || {
        neighbour.enter(|| try_sh("ping -6 -n -c 1 -W 1 2001:db8:1:2::2").0)
    });
    let mut worker = worker();
    let topology = Topology { proxy: true, uplink: Some("up0".parse().unwrap()), ..topology() };
    let host = prepare(&mut worker.socket, &topology).unwrap();
    load_rules();
    (neighbour, Bench { worker, topology, host })
}

fn proxies() -> String {
    sh("ip -6 neigh show proxy")
}

fn reaches(neighbour: &Container, address: &str) -> bool {
    let ping = format!("ping -6 -n -c 1 -W 1 {address}");
    neighbour.enter(|| try_sh(&ping).0)
}

#[test]
fn who_is_on_the_uplinks_subnet_reaches_what_has_an_entry_and_nothing_else() {
    in_netns(|| {
        let (neighbour, mut bench) = subnet();
        let container = Container::new();
        bench.attach(&container, &port(1));
        let address = port(1).address;
        assert!(proxies().contains(&format!("{address} dev up0")), "{}", proxies());
        eventually("the neighbour reaches the container", || {
            reaches(&neighbour, &address.to_string())
        });
        // The other way the host asks, as a router does.
        assert!(container.enter(|| try_sh("ping -6 -n -c 1 -W 5 2001:db8:1:2::9").0));
        let host = bench.host.clone();
        let up0 = host.answers.unwrap();
        assert!(!reaches(&neighbour, GATEWAY));
        neighbour.sh("ip -6 neigh flush dev isp0");
        add(&mut bench.worker.socket, (GATEWAY.parse().unwrap(), up0)).unwrap();
        assert!(reaches(&neighbour, GATEWAY));
        for _ in 0..2 {
            let failed = undo_all(&mut bench.worker, &host, &port(1));
            assert!(failed.is_empty(), "{failed:?}");
        }
        assert!(!proxies().contains(&address.to_string()), "{}", proxies());
        neighbour.sh("ip -6 neigh flush dev isp0");
        assert!(!reaches(&neighbour, &address.to_string()));
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/all/proxy_ndp").trim(), "0");
    });
}

#[test]
fn an_administrators_entry_stays_his() {
    in_netns(|| {
        let (_neighbour, mut bench) = subnet();
        let socket = &mut bench.worker.socket;
        let up0 = bench.host.answers.unwrap();
        let address: Ipv6Addr = "2001:db8:1:2:3::5".parse().unwrap();
        sh(&format!("ip -6 neigh add proxy {address} dev up0"));
        // With our number, and of no prefix of ours.
        sh("ip -6 neigh add proxy 2001:db8:1:2:4::5 dev up0 protocol 118");
        let before = proxies();
        add(socket, (address, up0)).unwrap();
        assert_eq!(proxies(), before);
        remove(socket, (address, up0)).unwrap();
        let ours = "2001:db8:1:2:3::6".parse().unwrap();
        add(socket, (ours, up0)).unwrap();
        let links = &bench.topology.links;
        assert_eq!(observe(socket, links, None).unwrap(), [(ours, up0)]);
        for _ in 0..2 {
            let errors = purge(socket, links);
            assert!(errors.is_empty(), "{errors:?}");
            assert_eq!(proxies(), before);
        }
    });
}

#[test]
fn entries_go_with_the_prefix_that_they_were_of_and_the_link_that_they_were_on() {
    in_netns(|| {
        let (_neighbour, mut bench) = subnet();
        let up0 = bench.host.answers.unwrap();
        let socket = &mut bench.worker.socket;
        add(socket, (GATEWAY.parse().unwrap(), up0)).unwrap();
        bench.topology.prefix = "2001:db8:1:2:7::/80".parse().unwrap();
        prepare(socket, &bench.topology).unwrap();
        assert_eq!(proxies(), "");
        let other = "2001:db8:1:2:7::5".parse().unwrap();
        add(socket, (other, up0)).unwrap();
        assert_eq!(observe(socket, &bench.topology.links, None).unwrap(), [(other, up0)]);
        // A link that is gone has none, and nothing is to be removed from it.
        sh("ip link del up0");
        remove(socket, (other, up0)).unwrap();
        assert!(add(socket, (other, up0)).unwrap_err().is_gone());
        assert_eq!(observe(socket, &bench.topology.links, None).unwrap(), []);
    });
}
