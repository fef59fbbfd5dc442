//! The ways, each on a host of its own.
//!
//! ```text
//!   bare, v6pod, netavark:   host ── bridge or ports ──┬── first
//!                            lo: SERVER                └── second
//!   pasta, slirp4netns:      host ── the program ── first
//! ```

use std::any::Any;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use v6pod_proto::{Attachment, Mode};

use super::load::{Course, Sender};
use super::{Load, Way};
use crate::daemon::Daemon;
use crate::program::run;
use crate::rivals::Netavark;
use crate::scene::{NetNs, Scene};
use crate::user::User;
use crate::{Result, on_path};

/// What the host is reached by: no address that pasta gives the container too.
const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xeeee, 0, 0, 0, 0, 7);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

const LIMIT: Duration = Duration::from_secs(10);

/// A container or two, and how they are connected.
pub(super) struct Path {
    pub(super) way: Way,
    host: Rc<NetNs>,
    server: IpAddr,
    first: NetNs,
    second: Option<(NetNs, IpAddr)>,
    /// What has to live meanwhile.
    _held: Option<Box<dyn Any>>,
}

impl Path {
    /// One round of all that can be sent here.
    pub(super) fn measure(&self) -> Result<Vec<(Load, f64)>> {
        let out = Course { from: &self.first, to: &self.host, address: self.server };
        let mut all = vec![
            (Load::Out, out.stream(Sender::Near)?),
            (Load::Back, out.stream(Sender::Far)?),
            (Load::PacketsOut, out.packets()?),
            (Load::FlowsOut, out.flows()?),
        ];
        if let Some((second, address)) = &self.second {
            let between = Course { from: &self.first, to: second, address: *address };
            all.push((Load::Between, between.stream(Sender::Near)?));
            all.push((Load::Packets, between.packets()?));
            all.push((Load::Flows, between.flows()?));
        }
        Ok(all)
    }
}

/// All that can be set up here. Of what cannot, the other says why.
pub(super) fn all(scene: &Scene, absent: &mut BTreeMap<Way, String>) -> Vec<Path> {
    let mut paths = Vec::new();
    let mut enter = |way, made: Result<Path>| match made {
        Ok(path) => paths.push(path),
        Err(error) => drop(absent.insert(way, error.to_string())),
    };
    enter(Way::Bare, bare(scene));
    match v6pod(scene) {
        Ok([bridge, routed]) => {
            enter(Way::Bridge, Ok(bridge));
            enter(Way::Routed, Ok(routed));
        }
        Err(error) => {
            let why = error.to_string();
            enter(Way::Bridge, Err(why.clone().into()));
            enter(Way::Routed, Err(why.into()));
        }
    }
    enter(Way::Netavark, netavark(scene));
    let user = User::create().map_err(|error| error.to_string());
    for way in [Way::Pasta, Way::Slirp4netns] {
        let made = user.clone().map_err(Into::into).and_then(|user| rootless(scene, way, user));
        enter(way, made);
    }
    paths
}

/// A host whose loopback has the servers' addresses.
fn host(scene: &Scene) -> Result<NetNs> {
    let host = NetNs::new()?;
    scene.inside(&host, || {
        ip("link set lo up")?;
        ip(&format!("addr add {SERVER}/128 dev lo nodad"))?;
        ip(&format!("addr add {SERVER_V4}/32 dev lo"))
    })?;
    Ok(host)
}

/// Two pairs and a bridge, and nothing else.
fn bare(scene: &Scene) -> Result<Path> {
    let (host, first, second) = (host(scene)?, NetNs::new()?, NetNs::new()?);
    let address = |n: u16| Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0xba, 0, 0, n);
    scene.inside(&host, || {
        ip("link add v6bare0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        ip("link set v6bare0 up")?;
        ip(&format!("addr add {}/80 dev v6bare0 nodad", address(1)))?;
        for (n, netns) in [(5, &first), (6, &second)] {
            let netns = netns.path();
            ip(&format!("link add v6bare{n} type veth peer name eth0 netns {netns}"))?;
            ip(&format!("link set v6bare{n} master v6bare0 up"))?;
        }
        Ok(())
    })?;
    for (n, netns) in [(5, &first), (6, &second)] {
        scene.inside(netns, || {
            ip("link set eth0 up")?;
            ip(&format!("addr add {}/80 dev eth0 nodad", address(n)))?;
            ip(&format!("-6 route add default via {}", address(1)))
        })?;
    }
    Ok(Path {
        way: Way::Bare,
        host: Rc::new(host),
        server: SERVER.into(),
        first,
        second: Some((second, address(6).into())),
        _held: None,
    })
}

/// Two containers on the bridge, and after a change of the mode two on ports of their own: of one daemon,
/// under one set of rules.
fn v6pod(scene: &Scene) -> Result<[Path; 2]> {
    const POLICY: &str = "[firewall]\ningress = \"allow\"\n";
    let host = Rc::new(host(scene)?);
    let mut daemon = scene.inside(&host, || Daemon::with(scene, Mode::Bridge, POLICY))?;
    let pair = |daemon: &Daemon| -> Result<_> {
        let (first, second) = (NetNs::new()?, NetNs::new()?);
        daemon.attach(&first)?;
        let made = daemon.attach(&second)?;
        Ok((first, second, made))
    };
    let bridge = pair(&daemon)?;
    scene.inside(&host, || daemon.restart(scene, Mode::Routed, POLICY))?;
    let routed = pair(&daemon)?;
    for (found, mode) in [(&bridge.2, Mode::Bridge), (&routed.2, Mode::Routed)] {
        if found.mode != mode {
            return Err(format!("an attachment is {:?}", found.mode).into());
        }
    }
    let daemon = Rc::new(daemon);
    let path = |way, (first, second, made): (NetNs, NetNs, Attachment)| Path {
        way,
        host: Rc::clone(&host),
        server: SERVER.into(),
        first,
        second: Some((second, made.address.into())),
        _held: Some(Box::new(Rc::clone(&daemon))),
    };
    Ok([path(Way::Bridge, bridge), path(Way::Routed, routed)])
}

fn netavark(scene: &Scene) -> Result<Path> {
    let (host, first, second) = (host(scene)?, NetNs::new()?, NetNs::new()?);
    let netavark = scene.inside(&host, || {
        let netavark = Netavark::new(scene)?;
        netavark.set_up(&first, 5)?;
        netavark.set_up(&second, 6)?;
        Ok(netavark)
    })?;
    Ok(Path {
        way: Way::Netavark,
        host: Rc::new(host),
        server: SERVER.into(),
        first,
        second: Some((second, Netavark::address(6).into())),
        _held: Some(Box::new(netavark)),
    })
}

/// A user's namespaces, and the program that connects them.
struct Rootless {
    programs: Vec<Child>,
    user: Rc<User>,
}

impl Drop for Rootless {
    fn drop(&mut self) {
        for program in &mut self.programs {
            // Both fail only where it has ended already.
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

fn rootless(scene: &Scene, way: Way, user: Rc<User>) -> Result<Path> {
    let host = host(scene)?;
    let mut held = Rootless { programs: Vec::new(), user };
    // pasta looks for the way out, and gives its addresses to the container.
    scene.inside(&host, || {
        for line in [
            "link add up0 type veth peer name out0",
            "link set out0 up",
            "addr add 198.51.100.2/24 dev up0",
            "addr add 2001:db8:ffff::2/64 dev up0 nodad",
            "link set up0 up",
            "route add default via 198.51.100.1",
            "-6 route add default via 2001:db8:ffff::1",
        ] {
            ip(line)?;
        }
        let mut holder = held.user.command("unshare");
        holder.args(["--user", "--map-root-user", "--net", "--", "sleep", "10000"]);
        held.programs.push(start(&mut holder)?);
        let holder = held.programs.first().map_or(0, Child::id);
        eventually("the user's namespaces", || {
            std::fs::read_to_string(format!("/proc/{holder}/comm"))
                .is_ok_and(|name| name.trim_end() == "sleep")
        })?;
        let mut program = match way {
            Way::Pasta => {
                let mut pasta = held.user.command(on_path("pasta")?);
                pasta.args(["--config-net", "--foreground", "--quiet"]).arg(holder.to_string());
                pasta
            }
            _ => {
                let mut slirp4netns = held.user.command(on_path("slirp4netns")?);
                // As podman calls it.
                slirp4netns.args(["--disable-host-loopback", "--mtu=65520", "--enable-sandbox"]);
                slirp4netns.args(["--enable-seccomp", "-c"]).arg(holder.to_string()).arg("tap0");
                slirp4netns
            }
        };
        held.programs.push(start(&mut program)?);
        Ok(())
    })?;
    let holder = held.programs.first().map_or(0, Child::id);
    let first = NetNs::at(std::path::Path::new(&format!("/proc/{holder}/ns/net")))?;
    eventually("a default route", || {
        let routes = || Ok(std::fs::read_to_string("/proc/thread-self/net/route")?);
        let found = scene.inside(&first, routes);
        found.is_ok_and(|routes| routes.lines().any(|l| l.split('\t').nth(1) == Some("00000000")))
    })?;
    Ok(Path {
        way,
        host: Rc::new(host),
        server: SERVER_V4.into(),
        first,
        second: None,
        _held: Some(Box::new(held)),
    })
}

fn start(command: &mut Command) -> Result<Child> {
    let what = command.get_program().display().to_string();
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.spawn().map_err(|error| format!("cannot start {what}: {error}").into())
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {LIMIT:?}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn ip(words: &str) -> Result<()> {
    run(Command::new("ip").args(words.split(' ')))?.ok().map(drop)
}
