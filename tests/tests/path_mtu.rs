//! Issue 5: what is too large for a hop, of the uplink's or behind it.
//!
//! ```text
//!   container ── v6t0 [ host ] up0 ── out0 [ outside ] r0 ═ 1300 ═ r1 [ hop ] h0 ── far0 [ far ]
//!                                                                        2001:db8:fffe::2
//! ```
#![allow(clippy::expect_used, reason = "a test")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;

use nix::sched::{CloneFlags, setns};
use v6pod_proto::{Activate, Attachment};
use v6pod_tests::packet::{IPV6, Load, Route, frame};
use v6pod_tests::{
    Config, Daemon, HostNs, OUTSIDE_V6, OwnedNs, PATIENCE, Tap, eventually, random_container_id,
    require, run,
};

/// `daemon`, an account that every system has and that owns nothing here.
const UID: u32 = 1;
/// The far host.
const FAR: &str = "2001:db8:fffe::2";
/// The MTU between the outside and the hop behind it.
const NARROW: u32 = 1300;
/// More than any window holds at first: lost segments are sent again, and the rest depends on it.
const BULK: usize = 400_000;

/// Runs the body in that network namespace.
fn inside<T: Send>(namespace: &File, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering a namespace");
            body()
        };
        scope.spawn(inside).join().expect("the thread inside")
    })
}

struct Scene {
    attachment: Attachment,
    container: OwnedNs,
    far: OwnedNs,
    _hop: OwnedNs,
    daemon: Daemon,
    host: HostNs,
}

impl Scene {
    /// With an uplink of this MTU and these keys of the daemon's.
    fn new(uplink: u32, keys: &str) -> Self {
        let host = HostNs::new();
        host.ip(&format!("link set up0 mtu {uplink}")).ok();
        let outside = |words: &str| run(host.outside("ip").args(words.split(' '))).ok().to_owned();
        outside(&format!("link set out0 mtu {uplink}"));
        let (hop, far) = (OwnedNs::of_uid(0, false), OwnedNs::of_uid(0, false));
        let (hop_pid, far_pid) = (hop.pid(), far.pid());
        outside(&format!(
            "link add r0 mtu {NARROW} type veth peer name r1 mtu {NARROW} netns {hop_pid}"
        ));
        let hops =
            |words: &str| hop.run("ip", &words.split(' ').collect::<Vec<_>>()).ok().to_owned();
        let fars =
            |words: &str| far.run("ip", &words.split(' ').collect::<Vec<_>>()).ok().to_owned();
        hops(&format!("link add h0 type veth peer name far0 netns {far_pid}"));
        let quiet = "for c in all default; do echo 0 >/proc/sys/net/ipv6/conf/$c/accept_dad; done; \
                     for d in r0 r1 h0 far0; do \
                     echo 0 >/proc/sys/net/ipv6/conf/$d/accept_dad || :; done 2>/dev/null; \
                     echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
        run(host.outside("sh").args(["-c", quiet])).ok();
        hop.run("sh", &["-c", quiet]).ok();
        far.run("sh", &["-c", quiet]).ok();
        for words in ["addr add 2001:db8:fffd::1/64 dev r0 nodad", "link set r0 up"] {
            outside(words);
        }
        for words in [
            "addr add 2001:db8:fffd::2/64 dev r1 nodad",
            "addr add 2001:db8:fffe::1/64 dev h0 nodad",
            "link set r1 up",
            "link set h0 up",
            "-6 route add default via 2001:db8:fffd::1",
        ] {
            hops(words);
        }
        for words in [
            &*format!("addr add {FAR}/64 dev far0 nodad"),
            "link set far0 up",
            "-6 route add default via 2001:db8:fffe::1",
        ] {
            fars(words);
        }
        outside("-6 route add 2001:db8:fffe::/64 via 2001:db8:fffd::2");
        let daemon =
            Daemon::configured(&host, &Config { keys: keys.to_owned(), ..Config::default() });
        let container = OwnedNs::of_uid(UID, true);
        let request = Activate::new(random_container_id());
        let made = daemon.as_user(UID).activate(&request, container.network().as_fd()).0;
        let attachment = made.unwrap_or_else(|refused| panic!("{refused}"));
        let scene = Self { attachment, container, far, _hop: hop, daemon, host };
        eventually(PATIENCE, "the far host is reached", || {
            scene
                .container
                .run("ping", &["-6", "-n", "-c", "1", "-W", "1", FAR])
                .status
                .success()
                .then_some(())
        });
        scene
    }

    fn mtu_inside(&self) -> u32 {
        let link = self.container.run("ip", &["-o", "link", "show", "eth0"]);
        let words: Vec<_> = link.ok().split_whitespace().collect();
        let at = words.iter().position(|word| *word == "mtu").expect("an MTU");
        words[at + 1].parse().expect("a number")
    }

    /// What the container has learnt of the way to the far host.
    fn learnt(&self) -> String {
        self.container.run("ip", &["-6", "route", "get", FAR]).ok().to_owned()
    }

    /// As many bytes as it takes, one way and then the other, by a connection of the container's.
    fn bulk_both_ways(&self) {
        let far: SocketAddr = format!("[{FAR}]:7000").parse().expect("an address");
        let listener = inside(&self.far.network(), || TcpListener::bind(far)).expect("listening");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut bytes = vec![0; BULK];
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)
        });
        let network = self.container.network();
        let stream = inside(&network, || TcpStream::connect_timeout(&far, PATIENCE));
        let mut stream = stream.expect("connecting");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(&vec![7; BULK]).expect("sending");
        let mut back = vec![0; BULK];
        stream.read_exact(&mut back).expect("receiving");
        assert!(back.iter().all(|byte| *byte == 7));
        server.join().expect("the server").expect("what comes in goes back");
    }
}

#[test]
fn a_small_uplink_is_the_mtu_of_bridge_and_container_and_a_smaller_hop_is_learnt() {
    let _machine = require!(Root);
    let scene = Scene::new(1400, "");
    assert_eq!(scene.daemon.status().mtu, 1400);
    assert_eq!(scene.mtu_inside(), 1400);
    assert!(scene.host.ip("-o link show v6t0").ok().contains(" mtu 1400 "));
    assert!(!scene.learnt().contains("mtu 1300"), "{}", scene.learnt());
    scene.bulk_both_ways();
    // The packets too big of the outside came in through the rules (RFC 4890, section 4.3.1).
    assert!(scene.learnt().contains("mtu 1300"), "{}", scene.learnt());
    // Nothing leaves that is larger than the uplink takes.
    let ping = ["-6", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", OUTSIDE_V6];
    let refused = scene.container.run("ping", &ping);
    assert!(refused.to_string().contains("mtu: 1400"), "{refused}");
}

#[test]
fn a_datagram_too_large_for_a_hop_is_refused_in_words_and_the_next_arrives_in_fragments() {
    let _machine = require!(Root);
    let scene = Scene::new(1500, "");
    // With br_netfilter's call Linux forgets, for bridge ports, that a datagram came in fragments
    // (docs/known-issues.md).
    let off = "f=/proc/sys/net/bridge/bridge-nf-call-ip6tables; [ ! -e $f ] || echo 0 >$f";
    run(scene.host.command("sh").args(["-c", off])).ok();
    let far: SocketAddr = format!("[{FAR}]:7001").parse().expect("an address");
    let there = inside(&scene.far.network(), || UdpSocket::bind(far)).expect("binding");
    there.set_read_timeout(Some(std::time::Duration::from_millis(200))).expect("a timeout");
    let here = inside(&scene.container.network(), || UdpSocket::bind("[::]:0")).expect("binding");
    let mut bytes = [0; 2048];
    // The first is lost: the hop says that it is too big.
    eventually(PATIENCE, "a datagram of 1440 bytes arrives", || {
        here.send_to(&[1; 1440], far).expect("sending");
        there.recv(&mut bytes).ok().filter(|length| *length == 1440).map(drop)
    });
    assert!(scene.learnt().contains("mtu 1300"), "{}", scene.learnt());
    // One that must not be cut is refused by the container's own kernel from now on.
    let ping = ["-6", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", FAR];
    let refused = scene.container.run("ping", &ping);
    assert!(refused.to_string().contains("mtu: 1300"), "{refused}");
}

#[test]
fn what_is_too_large_for_the_containers_link_is_answered_by_the_host() {
    let _machine = require!(Root);
    let scene = Scene::new(1500, "mtu = 1280\n");
    assert_eq!(scene.mtu_inside(), 1280);
    scene.bulk_both_ways();
    let to = scene.attachment.address.to_string();
    let ping = |size| {
        let words =
            ["-6", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", size, &to].map(str::to_owned);
        run(scene.host.outside("ping").args(words))
    };
    let refused = ping("1400").to_string();
    assert!(refused.contains("mtu=1280") || refused.contains("mtu: 1280"), "{refused}");
    ping("1200").ok();
}

/// An error about a packet that a container has not sent is none; one about a packet that it has is
/// believed, as on any host, and never below what every link carries (RFC 8201, section 4).
#[test]
fn a_forged_packet_too_big_does_not_arrive_or_does_no_harm() {
    let _machine = require!(Root);
    let scene = Scene::new(1500, "");
    let outside = File::open(scene.host.outside_path()).expect("the outside");
    let (wire, container) =
        (Tap::open(&outside, "out0"), Tap::open(&scene.container.network(), "eth0"));
    let host = Tap::open(&File::open(scene.host.path()).expect("the host"), "up0");
    let far: Ipv6Addr = FAR.parse().expect("an address");
    let to = scene.attachment.address;
    let forge = |about: &Load, mark: &[u8]| {
        let sent = Route::new(to, far).carry(about);
        // Type 2: the MTU, and as much of the packet as fits.
        let route = Route::new(OUTSIDE_V6.parse().expect("an address"), to);
        let error = route.icmp(2, 0, &[&600_u32.to_be_bytes()[..], &sent, mark].concat());
        wire.send(&frame(host.mac(), wire.mac(), IPV6, &route.carry(&error)));
    };
    let honest = |mark: &[u8]| {
        let route = Route::new(OUTSIDE_V6.parse().expect("an address"), to);
        let packet = route.carry(&route.echo(mark));
        wire.send(&frame(host.mac(), wire.mac(), IPV6, &packet));
    };
    // About a connection that there is not.
    forge(&Route::new(to, far).syn(4000, 5000, b""), b"a-forged-error");
    honest(b"an-honest-packet");
    let frames = container.frames_until(b"an-honest-packet");
    assert_eq!(frames.with(b"a-forged-error"), 0);
    assert!(!scene.learnt().contains("mtu "), "{}", scene.learnt());
    // About one that there is, by somebody who can see it: the attack arrives, which shows that the one
    // above was a whole packet.
    let listener =
        inside(&scene.far.network(), || TcpListener::bind((far, 7002))).expect("listening");
    let network = scene.container.network();
    let stream = inside(&network, || TcpStream::connect((far, 7002))).expect("connecting");
    let (mut there, _) = listener.accept().expect("a connection");
    let port = stream.local_addr().expect("an address").port();
    forge(&Route::new(to, far).syn(port, 7002, b""), b"a-seen-connection");
    honest(b"another-honest-packet");
    assert_eq!(container.frames_until(b"another-honest-packet").with(b"a-seen-connection"), 1);
    let learnt = scene.learnt();
    assert!(!learnt.contains("mtu 600"), "{learnt}");
    (&stream).write_all(&vec![7; BULK]).expect("sending");
    there.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    there.read_exact(&mut vec![0; BULK]).expect("receiving");
}
