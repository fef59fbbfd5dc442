//! ```text
//!   container ── v6k0 [ host ] up0 ── isp0 [ router ]
//! ```

use std::mem::size_of_val;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};

use super::*;
use crate::kernel::mend::{is_whole, mend};
use crate::kernel::observe::observe;
use crate::kernel::testing::{
    Bench, Container, eventually, in_netns, load_rules, port, routed, sh, skipped, topology,
    try_sh, worker,
};

/// The router's namespace, its link to the calling thread's, and the host's link-local address there.
struct Router {
    namespace: Container,
    host: Ipv6Addr,
}

impl Router {
    fn new() -> Self {
        let namespace = Container::new();
        // Addresses are to be usable at once.
        for conf in ["all", "default"] {
            let no_dad = format!("echo 0 >/proc/sys/net/ipv6/conf/{conf}/accept_dad");
            sh(&no_dad);
            namespace.sh(&no_dad);
        }
        namespace.sh("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        sh("ip link add up0 type veth peer name isp0");
        let ns = format!("/proc/{}/fd/{}", std::process::id(), namespace.raw());
        sh(&format!("ip link set isp0 netns {ns} && ip link set up0 up"));
        namespace.sh("ip link set isp0 up");
        let mut host = None;
        eventually("both ends have a link-local address", || {
            let there = || sh("ip -6 -o addr show dev isp0 scope link");
            host = link_local(&sh("ip -6 -o addr show dev up0 scope link"));
            host.is_some() && link_local(&namespace.enter(there)).is_some()
        });
        Self { namespace, host: host.unwrap() }
    }

    /// Sends a router advertisement of that lifetime in seconds.
    fn advertise(&self, lifetime: u16) {
        let host = self.host;
        self.namespace.enter(|| {
            let raw = socket(
                AddressFamily::Inet6,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::IcmpV6,
            )
            .unwrap();
            // RFC 4861, section 6.1.2: what has crossed a router is no advertisement.
            setsockopt(&raw, sockopt::Ipv6Ttl, &255).unwrap();
            let mut packet = [0; 16];
            packet[0] = 134;
            packet[4] = 64;
            packet[6..8].copy_from_slice(&lifetime.to_be_bytes());
            let scope = nix::net::if_::if_nametoindex("isp0").unwrap();
            let to = SockaddrIn6::from(SocketAddrV6::new(host, 0, 0, scope));
            let sent = sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
            assert_eq!(sent, size_of_val(&packet));
        });
    }

    /// Teaches the host a default route.
    fn teach(&self) {
        eventually("the host takes the advertisement", || {
            self.advertise(1800);
            has_default()
        });
    }
}

/// The address that `ip addr` shows, once it can be used.
fn link_local(addresses: &str) -> Option<Ipv6Addr> {
    if addresses.contains("tentative") {
        return None;
    }
    addresses.split([' ', '/']).find_map(|word| word.parse().ok())
}

fn has_default() -> bool {
    sh("ip -6 route show default").contains("proto ra")
}

fn sysctl(path: &str) -> String {
    sh(&format!("cat /proc/sys/net/ipv6/conf/{path}")).trim().to_owned()
}

fn ready(forwarding: Forwarding) -> (crate::kernel::Worker, Topology) {
    (worker(), Topology { forwarding, ..topology() })
}

/// What a container and the far side of the uplink have to do with each other. The uplink goes with the
/// router.
fn reaches_outside(forwarding: Forwarding) -> Router {
    let router = Router::new();
    router.teach();
    let (mut worker, topology) = ready(forwarding);
    let host = prepare(&mut worker.socket, &topology).unwrap();
    assert_eq!(host.uplink, Some("up0".parse().unwrap()));
    // The router knows the way to the prefix, and has an address of the outside world.
    router
        .namespace
        .sh(&format!("ip -6 route add 2001:db8:1:2:3::/80 via {} dev isp0", router.host));
    router.namespace.sh("ip -6 addr add 2001:db8:ffff::1/128 dev lo && ip link set lo up");
    load_rules();
    let mut bench = Bench { worker, topology, host };
    for port in [port(1), routed(2)] {
        let container = Container::new();
        bench.attach(&container, &port);
        eventually("the container reaches the outside", || {
            container.enter(|| try_sh("ping -6 -n -c 1 -W 2 2001:db8:ffff::1").0)
        });
    }
    // What no container has is answered for at once, and goes nowhere (attack 14).
    let (_, text) = router
        .namespace
        .enter(|| try_sh("ping -6 -n -c 1 -W 5 -I 2001:db8:ffff::1 2001:db8:1:2:3::dead"));
    assert!(text.contains("unreachable"), "{text}");
    assert!(!sh("ip -6 neigh").contains("2001:db8:1:2:3::dead"));
    // The host is still taught by its router, for better or worse.
    assert!(has_default());
    eventually("the router takes its route back", || {
        router.advertise(0);
        !has_default()
    });
    router.teach();
    router
}

#[test]
fn the_host_keeps_its_router_where_interfaces_forward_one_by_one() {
    in_netns(|| {
        if Forwarding::probe().unwrap() != Forwarding::PerInterface {
            return skipped("this kernel has no force_forwarding");
        }
        let _router = reaches_outside(Forwarding::PerInterface);
        assert_eq!(sysctl("all/forwarding"), "0");
        assert_eq!(sysctl("up0/accept_ra"), "1");
    });
}

#[test]
fn the_host_keeps_its_router_where_all_of_it_forwards() {
    in_netns(|| {
        let _router = reaches_outside(Forwarding::WholeHost);
        assert_eq!(sysctl("all/forwarding"), "1");
        assert_eq!(sysctl("up0/accept_ra"), "2");
        assert_eq!(sysctl("v6k0/accept_ra"), "0");
    });
}

/// That the two tests above can fail: what happens without the care.
#[test]
fn forwarding_switched_on_first_loses_the_router() {
    in_netns(|| {
        let router = Router::new();
        router.teach();
        sh("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
        assert!(!has_default());
    });
}

/// `forwarding` of the uplink alone has Linux forget the routers of all interfaces.
#[test]
fn the_host_keeps_its_routers_where_its_uplink_answers_for_containers() {
    in_netns(|| {
        let router = Router::new();
        router.teach();
        let (mut worker, topology) = ready(Forwarding::probe().unwrap());
        // Whoever else is taught: here the uplink is another interface.
        sh("ip link add up1 type veth peer name isp1 && ip link set up1 up");
        let topology = Topology { proxy: true, uplink: Some("up1".parse().unwrap()), ..topology };
        for _ in 0..2 {
            prepare(&mut worker.socket, &topology).unwrap();
            assert!(has_default());
        }
        assert_eq!(sysctl("up1/forwarding"), "1");
        assert_eq!(sysctl("up1/proxy_ndp"), "1");
        assert_eq!(sysctl("../neigh/up1/proxy_delay"), "0");
        let topology = Topology { uplink: Some("up0".parse().unwrap()), ..topology };
        prepare(&mut worker.socket, &topology).unwrap();
        assert!(has_default());
        assert_eq!(sysctl("up0/forwarding"), "1");
        eventually("the router takes its route back", || {
            router.advertise(0);
            !has_default()
        });
        router.teach();
    });
}

/// That the test above can fail.
#[test]
fn an_interface_that_forwards_first_loses_the_routers_of_others() {
    in_netns(|| {
        let router = Router::new();
        router.teach();
        sh("ip link add up1 type veth peer name isp1 && ip link set up1 up");
        sh("echo 1 >/proc/sys/net/ipv6/conf/up1/forwarding");
        assert!(!has_default());
    });
}

#[test]
fn what_an_administrator_forbade_stays_forbidden() {
    in_netns(|| {
        sh("ip link add up0 type veth peer name isp0");
        sh("echo 0 >/proc/sys/net/ipv6/conf/up0/accept_ra");
        let (mut worker, topology) = ready(Forwarding::WholeHost);
        prepare(&mut worker.socket, &topology).unwrap();
        assert_eq!(sysctl("up0/accept_ra"), "0");
        // Forwarding that was on is nobody's business but the bridge's.
        sh("ip link add up1 type veth peer name isp1");
        sh("echo 1 >/proc/sys/net/ipv6/conf/up1/accept_ra");
        prepare(&mut worker.socket, &topology).unwrap();
        assert_eq!(sysctl("up1/accept_ra"), "1");
    });
}

#[test]
fn an_uplink_that_comes_later_is_followed() {
    in_netns(|| {
        let forwarding = Forwarding::probe().unwrap();
        let (mut worker, topology) = ready(forwarding);
        let host = prepare(&mut worker.socket, &topology).unwrap();
        assert_eq!((host.uplink.as_ref(), host.mtu), (None, 1500));
        let router = Router::new();
        router.teach();
        sh("ip link set up0 mtu 1400");
        for _ in 0..2 {
            let host = follow_uplink(&mut worker.socket, &topology, &host).unwrap();
            assert_eq!(host.uplink, Some("up0".parse().unwrap()));
            assert_eq!(host.mtu, 1400);
        }
        if forwarding == Forwarding::PerInterface {
            assert_eq!(sysctl("up0/force_forwarding"), "1");
        }
    });
}

fn state() -> String {
    let link = r"ip -o -d link show v6k0 | sed 's/gc_timer *[0-9.]*//'";
    sh(&format!("{link}; ip -6 -o addr show dev v6k0; ip -6 route"))
}

#[test]
fn preparing_twice_changes_nothing() {
    in_netns(|| {
        let mut bench = Bench::new();
        let before = state();
        for expected in [
            "02:76:",
            "state DOWN", // No carrier without ports: the administrative state is the flag.
            ",UP",
            "stp_state 0",
            "forward_delay 0",
            "mcast_snooping 0",
            "addrgenmode none",
            "inet6 2001:db8:1:2:3::1/128 scope global",
            "unreachable 2001:db8:1:2:3::/80 dev lo proto 118",
        ] {
            assert!(before.contains(expected), "{expected}: {before}");
        }
        let again = prepare(&mut bench.worker.socket, &bench.topology).unwrap();
        assert_eq!(again.bridge, bench.host.bridge);
        assert_eq!(state(), before);
        for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("accept_redirects", "0")] {
            assert_eq!(sysctl(&format!("v6k0/{key}")), value, "{key}");
        }
    });
}

#[test]
fn a_bridge_left_behind_is_put_right_with_its_ports() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        let ifindex = bench.attach(&container, &port(1));
        let before = state();
        // Whatever somebody did to it: a link-local address (Linux could send redirects again), …
        sh("ip link set v6k0 addrgenmode eui64 && ip link set v6k0 address 02:00:00:00:00:77");
        sh("ip -6 addr add fe80::1/64 dev v6k0 nodad && ip link set v6k0 type bridge stp_state 1");
        sh("echo 2 >/proc/sys/net/ipv6/conf/v6k0/accept_ra");
        sh("ip -6 route del unreachable 2001:db8:1:2:3::/80");
        let host = prepare(&mut bench.worker.socket, &bench.topology).unwrap();
        assert_eq!(host.bridge, bench.host.bridge);
        let after = state();
        assert!(!after.contains("fe80::"), "{after}");
        for line in before.lines().filter(|line| !line.contains("link/ether")) {
            assert!(after.contains(line), "{line}: {after}");
        }
        for expected in ["addrgenmode none", "stp_state 0", "link/ether 02:76:"] {
            assert!(after.contains(expected), "{expected}: {after}");
        }
        assert_eq!(sysctl("v6k0/accept_ra"), "0");
        // With its Ethernet address the bridge has lost its neighbours, which a start puts back next.
        let seen = observe(&mut bench.worker.socket, &host.links).unwrap();
        assert!(!is_whole(&seen, &port(1), ifindex));
        mend(&mut bench.worker, &host, &seen, &port(1), ifindex).unwrap();
        // With STP the port has begun to listen and to learn, which it finishes first.
        eventually("the container reaches its gateway again", || {
            container.enter(|| try_sh("ping -6 -n -c 1 -W 1 2001:db8:1:2:3::1").0)
        });
    });
}

#[test]
fn what_has_the_bridges_name_and_is_not_ours_is_refused_and_left_alone() {
    in_netns(|| {
        for other in ["type bridge", "type veth peer name v6kpeer"] {
            sh(&format!("ip link add v6k0 {other}"));
            let before = sh("ip -o link show v6k0");
            let (mut worker, topology) = ready(Forwarding::WholeHost);
            match prepare(&mut worker.socket, &topology).unwrap_err() {
                PrepareError::Kernel(error) => assert!(error.is_not_ours(), "{error}"),
                PrepareError::Overlap(overlap) => panic!("{overlap}"),
            }
            purge(&mut worker.socket, &topology.links);
            assert_eq!(sh("ip -o link show v6k0"), before);
            sh("ip link del v6k0");
        }
    });
}

#[test]
fn the_mtu_is_the_uplinks_and_stays_when_a_smaller_port_comes() {
    in_netns(|| {
        for (uplink, expected) in [("1500", 1500), ("9000", 9000), ("1280", 1280)] {
            sh("ip link add up0 type veth peer name isp0");
            sh(&format!("ip link set up0 mtu {uplink} up && ip link set isp0 up"));
            sh("ip -6 route add default via fe80::1 dev up0");
            let mut bench = Bench::new();
            assert_eq!(bench.host.mtu, expected);
            sh(
                "ip link add v6kx mtu 1280 type veth peer name v6ky && ip link set v6kx master v6k0",
            );
            let link = sh("ip -o link show v6k0");
            assert!(link.contains(&format!("mtu {expected} ")), "{link}");
            purge(&mut bench.worker.socket, &bench.topology.links);
            sh("ip link del v6kx && ip link del up0");
        }
    });
}

#[test]
fn a_bridge_with_ports_keeps_its_mtu() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        bench.attach(&container, &port(1));
        bench.topology.mtu = Some(9000);
        assert_eq!(prepare(&mut bench.worker.socket, &bench.topology).unwrap().mtu, 1500);
        remove_all_ports(&mut bench.worker.socket, &bench.topology.links).unwrap();
        assert_eq!(prepare(&mut bench.worker.socket, &bench.topology).unwrap().mtu, 9000);
    });
}

#[test]
fn an_old_prefix_goes_when_its_last_container_has() {
    for port in [port(1), routed(1)] {
        in_netns(move || old_prefix_goes(&port));
    }
}

fn old_prefix_goes(port: &crate::core::Port) {
    let mut bench = Bench::new();
    let container = Container::new();
    bench.attach(&container, port);
    bench.topology.prefix = "2001:db8:5:6:7::/80".parse().unwrap();
    prepare(&mut bench.worker.socket, &bench.topology).unwrap();
    let both = state();
    for expected in ["2001:db8:1:2:3::1/128", "2001:db8:5:6:7::1/128"] {
        assert!(both.contains(expected), "{expected}: {both}");
    }
    assert!(container.enter(|| try_sh("ping -6 -n -c 1 -W 5 2001:db8:1:2:3::1").0));
    let failed = crate::kernel::wire::undo_all(&mut bench.worker, &bench.host, port);
    assert!(failed.is_empty(), "{failed:?}");
    prepare(&mut bench.worker.socket, &bench.topology).unwrap();
    let one = state();
    assert!(!one.contains("2001:db8:1:2:3:"), "{one}");
    assert!(one.contains("unreachable 2001:db8:5:6:7::/80"), "{one}");
}

#[test]
fn two_instances_live_side_by_side() {
    in_netns(|| {
        let bench = Bench::new();
        let (mut worker, topology) = ready(Forwarding::WholeHost);
        let links = Links::of(&"v6k-b".parse().unwrap());
        let taken = Topology { links: links.clone(), ..topology.clone() };
        let error = prepare(&mut worker.socket, &taken).unwrap_err().to_string();
        assert!(
            error.contains("another v6podd on this machine has 2001:db8:1:2:3::/80"),
            "{error}"
        );
        let prefix = "2001:db8:5:6:7::/80".parse().unwrap();
        prepare(&mut worker.socket, &Topology { prefix, ..taken }).unwrap();
        assert!(purge(&mut worker.socket, &links).is_empty());
        assert!(state().contains("unreachable 2001:db8:1:2:3::/80"));
        drop(bench);
    });
}
