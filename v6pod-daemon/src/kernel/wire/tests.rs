use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::*;
use crate::core::step::{Also, Role, attach};
use crate::core::subnet::Length;
use crate::kernel::firewall::ObservedElements;
use crate::kernel::mend::{is_whole, mend};
use crate::kernel::observe::{Observed, observe};
use crate::kernel::renumber::{arrive_subnet, leave_subnet, make_ready, unmake};
use crate::kernel::testing::{
    Bench, Container, Rootless, eventually, in_netns, port, routed, sh, try_sh,
};

fn left(bench: &mut Bench) -> Observed {
    observe(&mut bench.worker.socket, &bench.host.links).unwrap()
}

fn empty(bench: &Bench) -> Observed {
    Observed { bridge: Some(bench.host.bridge), ..Observed::default() }
}

#[test]
fn a_port_is_known_to_lead_to_its_own_container_only() {
    in_netns(|| {
        let mut bench = Bench::new();
        let (a, b) = (Container::new(), Container::new());
        bench.attach(&a, &port(1));
        bench.attach(&b, &port(2));
        for (container, n, leads) in [(&a, 1, true), (&b, 1, false), (&a, 2, false)] {
            let ns = container.verified(bench.worker.home());
            let found = leads_to(&mut bench.worker, &bench.host, &port(n), &ns).unwrap();
            assert_eq!(found, leads);
        }
    });
}

fn pings(container: &Container, address: &str) -> bool {
    container.enter(|| try_sh(&format!("ping -6 -n -c 1 -W 2 {address}")).0)
}

#[test]
fn two_containers_reach_the_gateway_and_each_other_and_leave_nothing() {
    in_netns(|| {
        let mut bench = Bench::new();
        let (a, b) = (Container::new(), Container::new());
        let (first, second) = (bench.attach(&a, &port(1)), bench.attach(&b, &port(2)));
        assert_ne!(first, second);
        assert!(pings(&a, "2001:db8:1:2:3::1"));
        assert!(pings(&a, "2001:db8:1:2:3::1002"));
        assert!(pings(&b, "2001:db8:1:2:3::1001"));
        let seen = left(&mut bench);
        assert_eq!(
            (seen.ports.len(), seen.routes.len(), seen.neighbours.len()),
            (2, 2, 2),
            "{seen:?}"
        );
        assert_eq!(seen.forwarding.len(), 2);
        for n in [1, 2] {
            assert!(undo_all(&mut bench.worker, &bench.host, &port(n)).is_empty());
        }
        assert_eq!(left(&mut bench), empty(&bench));
        assert!(!a.sh("ip -o link").contains("eth0"));
    });
}

#[test]
fn a_routed_container_reaches_those_on_the_bridge_and_the_host_and_is_reached() {
    in_netns(|| {
        let mut bench = Bench::new();
        let containers = [Container::new(), Container::new(), Container::new()];
        let ports = [port(1), routed(2), routed(3)];
        for (container, port) in containers.iter().zip(&ports) {
            bench.attach(container, port);
        }
        let [bridged, first, second] = &containers;
        for (from, to) in [(first, 3), (second, 2), (first, 1), (bridged, 2), (second, 1)] {
            assert!(pings(from, &port(to).address.to_string()), "to {to}");
        }
        assert!(pings(first, "2001:db8:1:2:3::1"));
        assert!(try_sh("ping -6 -n -c 1 -W 2 2001:db8:1:2:3::1002").0);
        // Nobody asked who the gateway is, and nobody could have been told.
        let entries = first.sh("ip -6 neigh show dev eth0");
        let mac = &bench.host.links.bridge_mac;
        assert_eq!(entries.trim(), format!("fe80::1 lladdr {mac} PERMANENT proto 118"));
        assert_eq!(sh("ip -6 addr show dev v6k-2"), "");
        assert!(first.sh("ip -6 route").contains("default via fe80::1 dev eth0"));
        for port in &ports {
            assert!(undo_all(&mut bench.worker, &bench.host, port).is_empty());
        }
        assert_eq!(left(&mut bench), empty(&bench));
    });
}

#[test]
fn attack_06_16_a_routed_port_is_deaf_and_without_address_before_it_is_up() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        // Whatever the host gives its interfaces.
        sh("cd /proc/sys/net/ipv6/conf/default; echo 1 >disable_ipv6; echo 2 >accept_ra");
        let (port, ns) = (routed(1), container.verified(bench.worker.home()));
        let mut wire = Wire::new(&mut bench.worker, &bench.host, &port, &ns);
        for step in attach(port.mode) {
            wire.run(step).unwrap();
            let up = sh("ip -o link show v6k-1 2>/dev/null || :").contains(",UP");
            assert_eq!(up, [Step::Up, Step::Route].contains(step), "{step:?}");
        }
        eventually("both ends have a carrier", || sh("ip -o link show v6k-1").contains("LOWER_UP"));
        assert_eq!(sh("ip -6 addr show dev v6k-1"), "");
        for key in ["accept_ra", "autoconf", "accept_redirects", "disable_ipv6"] {
            assert_eq!(sh(&format!("cat /proc/sys/net/ipv6/conf/v6k-1/{key}")), "0\n", "{key}");
        }
        let link = sh("ip -o link show v6k-1");
        let mac = bench.host.links.bridge_mac.to_string();
        assert!(link.contains("alias v6pod test 1") && link.contains(&mac), "{link}");
        // What a link does by itself.
        sh("ip link add v6kx type veth peer name v6ky; ip link set v6kx up; ip link set v6ky up");
        sh("echo 0 >/proc/sys/net/ipv6/conf/v6kx/disable_ipv6");
        eventually("a plain port gives itself an address", || {
            sh("ip -6 addr show dev v6kx").contains("fe80::")
        });
    });
}

#[test]
fn the_interface_inside_has_one_address_and_is_complete_at_once() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        bench.attach(&container, &port(1));
        let addresses = container.sh("ip -6 -o addr show dev eth0");
        assert_eq!(addresses.lines().count(), 1, "{addresses}");
        assert!(addresses.contains("2001:db8:1:2:3::1001/128 scope global"), "{addresses}");
        assert!(!addresses.contains("tentative"), "{addresses}");
        let routes = container.sh("ip -6 route");
        assert!(routes.contains("default via 2001:db8:1:2:3::1 dev eth0"), "{routes}");
        for key in ["accept_ra", "autoconf", "accept_redirects"] {
            let value = container.sh(&format!("cat /proc/sys/net/ipv6/conf/eth0/{key}"));
            assert_eq!(value, "0\n", "{key}");
        }
        let link = container.sh("ip -o link show eth0");
        assert!(link.contains("02:00:00:00:00:01") && link.contains("mtu 1500"), "{link}");
        assert!(container.sh("ip -o link show lo").contains(",UP"));
    });
}

#[test]
fn attack_06_07_32_a_port_is_isolated_quiet_and_without_address_before_it_is_up() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        let (port, ns) = (port(1), container.verified(bench.worker.home()));
        let mut wire = Wire::new(&mut bench.worker, &bench.host, &port, &ns);
        for step in attach(port.mode).iter().filter(|step| **step != Step::Up) {
            assert!(!sh("ip -o link show v6k-1 2>/dev/null || :").contains(",UP"));
            wire.run(step).unwrap();
        }
        let flags = sh("bridge -d link show dev v6k-1");
        for flag in [
            "isolated on",
            "learning off",
            "flood off",
            "mcast_flood off",
            "bcast_flood off",
            "hairpin off",
            "neigh_suppress off",
            "locked on",
            "mcast_router 0",
        ] {
            assert!(flags.contains(flag), "{flag}: {flags}");
        }
        wire.run(&Step::Up).unwrap();
        eventually("both ends have a carrier", || sh("ip -o link show v6k-1").contains("LOWER_UP"));
        assert_eq!(sh("ip -6 addr show dev v6k-1"), "");
        let fdb = sh("bridge fdb show dev v6k-1");
        assert!(fdb.contains("02:00:00:00:00:01") && fdb.contains("static"), "{fdb}");
        let link = sh("ip -o link show v6k-1");
        assert!(link.contains("alias v6pod test 1"), "{link}");
        // Not even when somebody takes it out of the bridge and would have it configure itself.
        sh("ip link set v6k-1 nomaster addrgenmode eui64");
        sh("ip link set v6k-1 down && ip link set v6k-1 up");
        assert_eq!(sh("ip -6 addr show dev v6k-1"), "");
    });
}

#[test]
fn a_routed_port_leaves_no_route_for_multicast_and_works_without() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        bench.attach(&container, &routed(1));
        let local = sh("ip -6 route show table local");
        assert!(!local.contains("v6k-1"), "{local}");
        container.sh(&format!("ping -c 1 -W 10 {}", bench.topology.prefix.gateway()));
    });
}

#[test]
fn any_beginning_of_the_steps_is_undone_and_undoing_twice_is_fine() {
    in_netns(|| {
        let mut bench = Bench::new();
        for port in [port(1), routed(1)] {
            for count in 0..=attach(port.mode).len() {
                let container = Container::new();
                let ns = container.verified(bench.worker.home());
                let mut wire = Wire::new(&mut bench.worker, &bench.host, &port, &ns);
                for step in &attach(port.mode)[..count] {
                    wire.run(step).unwrap();
                }
                for _ in 0..2 {
                    let errors = undo_all(&mut bench.worker, &bench.host, &port);
                    assert!(errors.is_empty(), "{count}: {errors:?}");
                    let left = left(&mut bench);
                    assert_eq!(left, empty(&bench), "{:?} after {count} steps", port.mode);
                }
            }
        }
    });
}

#[test]
fn attack_29_an_interface_taken_away_between_steps_is_an_error_about_itself() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        let ns = container.verified(bench.worker.home());
        for port in [port(1), routed(1)] {
            for sabotage in ["ip link del eth0", "ip link set eth0 name eth9"] {
                let mut wire = Wire::new(&mut bench.worker, &bench.host, &port, &ns);
                let before = attach(port.mode).iter().take_while(|step| **step != Step::Inside);
                before.for_each(|step| wire.run(step).unwrap());
                container.sh(sabotage);
                let error = wire.run(&Step::Inside).unwrap_err();
                assert!(error.is_gone(), "{sabotage}: {error}");
                assert!(undo_all(&mut bench.worker, &bench.host, &port).is_empty());
                assert_eq!(left(&mut bench), empty(&bench), "{sabotage}");
            }
        }
    });
}

#[test]
fn a_name_taken_inside_is_told_from_a_name_taken_on_the_host() {
    in_netns(|| {
        let mut bench = Bench::new();
        let container = Container::new();
        container.sh("ip link add eth0 type veth peer name eth0-peer");
        let (port, ns) = (port(1), container.verified(bench.worker.home()));
        let error =
            Wire::new(&mut bench.worker, &bench.host, &port, &ns).run(&Step::Pair).unwrap_err();
        assert_eq!(error.name_taken(), Some(&port.interface), "{error}");
        assert_eq!(left(&mut bench), empty(&bench));

        sh("ip link add v6k-1 type veth peer name v6k-other");
        let error =
            Wire::new(&mut bench.worker, &bench.host, &port, &ns).run(&Step::Pair).unwrap_err();
        assert!(error.already_exists() && error.name_taken().is_none(), "{error}");
        // And what is not ours stays when the step is undone.
        assert!(undo_all(&mut bench.worker, &bench.host, &port).is_empty());
        assert!(sh("ip -o link").contains("v6k-1"));
    });
}

/// What the calling thread's namespace has counted of TCP (segments sent, first or again, and received)
/// and of what should not be.
fn counted() -> (u64, u64, Vec<(String, u64)>) {
    let tcp = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut tcp = tcp.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let of = |wanted: &str| -> u64 {
        let mut both = names.split(' ').zip(values.split(' '));
        both.find(|(name, _)| *name == wanted).unwrap().1.parse().unwrap()
    };
    let ip6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let ip6 = ip6.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let ip6 = ip6.map(|(name, value)| (name.to_owned(), value.trim().parse::<u64>().unwrap()));
    // Nobody has to ask who the gateway is.
    let bad = ["Icmp6OutNeighborSolicits", "Ip6InAddrErrors"];
    let bad = ip6.filter(|(name, value)| bad.contains(&name.as_str()) && *value > 0).collect();
    (of("OutSegs") + of("RetransSegs"), of("InSegs"), bad)
}

#[test]
fn once_settled_not_even_the_first_packet_is_lost() {
    in_netns(|| {
        let mut bench = Bench::new();
        for n in 1..=60 {
            let container = Container::new();
            bench.attach(&container, &port(n));
            let (out_before, in_before, _) = counted();
            container.enter(|| {
                let refused = TcpStream::connect("[2001:db8:1:2:3::1]:9").unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            });
            // All that one end has sent has come to the other. What is sent again says nothing by itself:
            // where the machine is busy for a second, nothing is lost by that.
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let (out_here, in_here, _) = counted();
                let (sent, received, bad) = container.enter(counted);
                assert_eq!(bad, [], "container {n}");
                let both = (sent, out_here - out_before);
                if both == (in_here - in_before, received) {
                    break;
                }
                assert!(Instant::now() < deadline, "container {n}: sent {both:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
            // So that the next is the bridge's first port again.
            assert!(undo_all(&mut bench.worker, &bench.host, &port(n)).is_empty());
        }
    });
}

/// What systemd makes of the daemon: a user of its own with four capabilities, a rootless container's
/// namespace before it.
#[test]
fn four_capabilities_and_no_root_are_enough_to_attach_a_rootless_container() {
    in_netns(|| {
        let rootless = Rootless::start();
        let exe = std::env::current_exe().unwrap();
        let caps = ["inh", "ambient"].map(|set| {
            format!("--{set}-caps=-all,+net_admin,+sys_admin,+sys_ptrace,+dac_read_search")
        });
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=64323", "--regid=64323", "--clear-groups"])
            .args(["--bounding-set=-all,+net_admin,+sys_admin,+sys_ptrace,+dac_read_search"])
            .args(caps)
            .arg(exe)
            .args(["--ignored", "--exact", "kernel::wire::tests::as_the_daemons_user"])
            .env("V6K_PID", rootless.pid().to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
        assert!(sh("ip -o link show v6k-1").contains("LOWER_UP"));
    });
}

#[test]
#[ignore = "run by the test before it, as another user"]
fn as_the_daemons_user() {
    let Some(pid) = std::env::var("V6K_PID").ok().and_then(|pid| pid.parse().ok()) else {
        eprintln!("skipped: no test of its own");
        return;
    };
    crate::kernel::privileges::keep_only_needed().unwrap();
    let mut bench = Bench::new();
    let fd = crate::kernel::Process::pin(pid).unwrap().net_ns().unwrap();
    let ns = NetNs::verify(fd, bench.worker.home()).unwrap();
    assert_eq!(ns.owner().as_raw(), Rootless::UID);
    bench.attach_to(&ns, &port(1));
    let seen = left(&mut bench);
    assert_eq!((seen.ports.len(), seen.routes.len(), seen.forwarding.len()), (1, 1, 1));
    assert!(bench.worker.identify(&ns).is_ok());
    // And an event's socket, larger than an ordinary user may have.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { crate::kernel::Events::listen(&bench.host.links).unwrap() });
}

/// The same with a subnet.
fn with_subnet(port: Port) -> Port {
    let length = Length::new(96).unwrap();
    let address = "2001:db8:1:2:3:7::".parse().unwrap();
    let gateway = port.gateway;
    Port {
        also: vec![Also { address, subnet: Some(length), gateway, role: Role::Staying }],
        ..port
    }
}

#[test]
fn every_address_of_a_subnet_is_its_containers_and_nothing_of_it_is_left() {
    for one in [port(1), routed(1)] {
        in_netns(move || {
            let mut bench = Bench::new();
            let (container, other) = (Container::new(), Container::new());
            let one = with_subnet(one.clone());
            let ifindex = bench.attach(&container, &one);
            bench.attach(&other, &port(2));
            let links = bench.host.links.clone();
            for within in ["7::", "7::1", "7:0:beef", "7:ffff:ffff"] {
                let address = format!("2001:db8:1:2:3:{within}");
                assert!(try_sh(&format!("ping -6 -n -c 1 -W 2 {address}")).0, "{address}");
                assert!(pings(&other, &address), "{address}");
            }
            assert!(!try_sh("ping -6 -n -c 1 -W 1 2001:db8:1:2:3:8::1").0, "beside it");
            let local = container.sh("ip -6 route show table local type local");
            assert!(local.contains("2001:db8:1:2:3:7::/96 dev lo"), "{local}");
            let whole = observe(&mut bench.worker.socket, &links).unwrap();
            assert_eq!(whole.subnets.len(), 1);
            assert!(is_whole(&whole, &one, ifindex));
            // What somebody takes away comes back.
            sh("ip -6 route del 2001:db8:1:2:3:7::/96");
            let torn = observe(&mut bench.worker.socket, &links).unwrap();
            assert!(!is_whole(&torn, &one, ifindex));
            for _ in 0..2 {
                mend(&mut bench.worker, &bench.host, &torn, &one, ifindex).unwrap();
            }
            assert_eq!(observe(&mut bench.worker.socket, &links).unwrap(), whole);
            assert!(undo_all(&mut bench.worker, &bench.host, &port(2)).is_empty());
            for _ in 0..2 {
                assert!(undo_all(&mut bench.worker, &bench.host, &one).is_empty());
            }
            assert_eq!(left(&mut bench), empty(&bench));
            let rules = bench.worker.rules.observe(&links).unwrap();
            assert_eq!(rules, Some(ObservedElements::default()));
            assert!(!sh("ip -6 route").contains(":7::"));
        });
    }
}

#[test]
fn a_container_gets_a_subnet_and_loses_it_while_it_runs_and_twice_is_fine() {
    for one in [port(1), routed(1)] {
        in_netns(move || {
            let mut bench = Bench::new();
            let container = Container::new();
            let ifindex = bench.attach(&container, &one);
            let links = bench.host.links.clone();
            let before = observe(&mut bench.worker.socket, &links).unwrap();
            let both = with_subnet(one.clone());
            let (new, net) = (both.with(&both.also[0]), both.also[0].net());
            let (worker, host) = (&mut bench.worker, &bench.host);
            for _ in 0..2 {
                make_ready(worker, host, &new, ifindex).unwrap();
                let namespace = container.verified(worker.home());
                assert!(arrive_subnet(worker, host, &namespace, &new, net).unwrap());
            }
            assert!(try_sh("ping -6 -n -c 1 -W 2 2001:db8:1:2:3:7:8:9").0);
            let addresses = container.sh("ip -6 -o addr show dev eth0");
            assert_eq!(addresses.lines().count(), 1, "{addresses}");
            for _ in 0..2 {
                let namespace = container.verified(worker.home());
                assert!(leave_subnet(worker, host, &namespace, &new, net).unwrap());
                unmake(worker, host, &new, ifindex).unwrap();
            }
            assert!(!container.sh("ip -6 route show table local").contains(":7::"));
            assert_eq!(observe(&mut worker.socket, &links).unwrap(), before);
            assert!(try_sh(&format!("ping -6 -n -c 1 -W 2 {}", one.address)).0);
        });
    }
}
