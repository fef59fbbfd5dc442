//! The ways, each on a host of its own.
//!
//! ```text
//!   bare, v6pod, netavark:   host ── bridge or ports ──┬── first
//!                            lo: SERVER                └── second
//!   pasta, slirp4netns:      host ──┬── a program ── first
//!                                   └── a program, which forwards a port ── second
//! ```

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use v6pod_proto::{Attachment, Mode};

use super::load::Course;
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

/// What is listened on, by the host and by the second container.
const HOST_PORT: u16 = 5201;
const SECOND_PORT: u16 = 5202;

/// Two containers, and how they are connected.
pub(super) struct Path {
    pub(super) way: Way,
    host: Rc<NetNs>,
    server: IpAddr,
    first: NetNs,
    second: NetNs,
    /// Where the first finds the second.
    address: IpAddr,
    /// What has to live meanwhile.
    _held: Option<Box<dyn Any>>,
}

impl Path {
    /// From where to where this is sent.
    pub(super) fn course(&self, load: Load) -> Course<'_> {
        let from = &self.first;
        match load {
            Load::Between | Load::Packets | Load::Flows => {
                Course { from, to: &self.second, address: self.address, port: SECOND_PORT }
            }
            Load::Out | Load::Back | Load::PacketsOut | Load::FlowsOut => {
                Course { from, to: &self.host, address: self.server, port: HOST_PORT }
            }
        }
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
        second,
        address: address(6).into(),
        _held: None,
    })
}

/// Two containers on the bridge, and after a change of the mode two on ports of their own: of one daemon,
/// under one set of rules. Everything is closed but what the second opens; both reach only what they list.
fn v6pod(scene: &Scene) -> Result<[Path; 2]> {
    const POLICY: &str = "[firewall]\ningress = \"deny\"\negress = \"deny\"\n";
    let opened = format!("tcp/{SECOND_PORT},udp/{SECOND_PORT}");
    let listed = format!("deny,{opened},tcp/{HOST_PORT},udp/{HOST_PORT}");
    let annotations = BTreeMap::from(
        [("v6pod.ingress", opened), ("v6pod.egress", listed)]
            .map(|(key, value)| (key.to_owned(), value)),
    );
    let host = Rc::new(host(scene)?);
    let mut daemon = scene.inside(&host, || Daemon::with(scene, "v6podd", Mode::Bridge, POLICY))?;
    let pair = |daemon: &Daemon| -> Result<_> {
        let (first, second) = (NetNs::new()?, NetNs::new()?);
        daemon.attach(&first, &annotations)?;
        let made = daemon.attach(&second, &annotations)?;
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
        second,
        address: made.address.into(),
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
        second,
        address: Netavark::address(6).into(),
        _held: Some(Box::new(netavark)),
    })
}

/// A user's namespaces, and the programs that connect them.
struct Rootless {
    programs: Vec<Child>,
    user: Rc<User>,
}

impl Rootless {
    /// Its process, which ends with this value.
    fn run(&mut self, program: &mut Command) -> Result<u32> {
        let program = start(program)?;
        let id = program.id();
        self.programs.push(program);
        Ok(id)
    }
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
        Ok(())
    })?;
    let first = connected(scene, &host, &mut held, way, false)?;
    let second = connected(scene, &host, &mut held, way, true)?;
    Ok(Path {
        way,
        host: Rc::new(host),
        server: SERVER_V4.into(),
        first,
        second,
        address: SERVER_V4.into(),
        _held: Some(Box::new(held)),
    })
}

/// One container of the user's. With `forward` the host's [`SECOND_PORT`] is its own.
fn connected(
    scene: &Scene,
    host: &NetNs,
    held: &mut Rootless,
    way: Way,
    forward: bool,
) -> Result<NetNs> {
    let mut holder = held.user.command("unshare");
    holder.args(["--user", "--map-root-user", "--net", "--", "sleep", "10000"]);
    let holder = held.run(&mut holder)?;
    eventually("the user's namespaces", || {
        std::fs::read_to_string(format!("/proc/{holder}/comm"))
            .is_ok_and(|name| name.trim_end() == "sleep")
    })?;
    let api = held.user.runtime_dir().join(format!("slirp4netns-{holder}"));
    let mut program = match way {
        Way::Pasta => {
            let mut pasta = held.user.command(on_path("pasta")?);
            let port = if forward { SECOND_PORT.to_string() } else { "none".to_owned() };
            pasta.args(["--config-net", "--foreground", "--quiet", "-t", &port, "-u", &port]);
            pasta.arg(holder.to_string());
            pasta
        }
        _ => {
            let mut slirp4netns = held.user.command(on_path("slirp4netns")?);
            // As podman calls it; with `port_handler=slirp4netns`.
            slirp4netns.args(["--disable-host-loopback", "--mtu=65520", "--enable-sandbox"]);
            slirp4netns.args(["--enable-seccomp", "-c"]).arg("--api-socket").arg(&api);
            slirp4netns.arg(holder.to_string()).arg("tap0");
            slirp4netns
        }
    };
    scene.inside(host, || held.run(&mut program).map(drop))?;
    let netns = NetNs::at(std::path::Path::new(&format!("/proc/{holder}/ns/net")))?;
    eventually("a default route", || {
        let routes = || Ok(std::fs::read_to_string("/proc/thread-self/net/route")?);
        let found = scene.inside(&netns, routes);
        found.is_ok_and(|routes| routes.lines().any(|l| l.split('\t').nth(1) == Some("00000000")))
    })?;
    if forward && way == Way::Slirp4netns {
        forward_by(&api)?;
    }
    Ok(netns)
}

/// Tells slirp4netns to forward the port, as podman does.
fn forward_by(api: &std::path::Path) -> Result<()> {
    for proto in ["tcp", "udp"] {
        let mut stream = None;
        eventually("slirp4netns's socket", || {
            stream = UnixStream::connect(api).ok();
            stream.is_some()
        })?;
        let mut stream = stream.ok_or("no socket")?;
        let request = json!({
            "execute": "add_hostfwd",
            "arguments": {
                "proto": proto,
                "host_addr": "0.0.0.0", "host_port": SECOND_PORT,
                "guest_addr": "10.0.2.100", "guest_port": SECOND_PORT,
            },
        });
        stream.write_all(request.to_string().as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if !answer.contains("return") {
            return Err(format!("slirp4netns: {answer}").into());
        }
    }
    Ok(())
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
