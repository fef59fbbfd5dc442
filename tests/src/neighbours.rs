//! Two containers of two users on one host, and the outside: who attacks, and who is attacked.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0
//!                          ├── port ── eth0 ┌ attacker, of v6t1 ┐
//!                          └── port ── eth0 ┌ victim, of v6t2 ┐
//! ```
//!
//! Each port is on the bridge or on none: [`Ports`].

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use v6pod_proto::{Activate, Attachment, Mode};

use crate::packet::{IPV6, Route, frame};
use crate::{Config, Daemon, HostNs, OwnedNs, PREFIX, Tap, User, random_container_id, run};

/// What the packets are under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// A bridge as it comes: without rules, without the settings of the ports, without permanent
    /// entries, without a daemon that puts them back. Here an attack has to work, or it is none.
    None,
    /// `firewall.ingress = "deny"`.
    Deny,
    /// `firewall.ingress = "allow"`: ports are open, but nobody may pretend to be another.
    Allow,
}

/// All laws, that of the jungle first.
pub const LAWS: [Law; 3] = [Law::None, Law::Deny, Law::Allow];

/// Where the attacker's port and the victim's are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Both on the bridge.
    Bridge,
    /// Both on none.
    Routed,
    /// The attacker's on none, the victim's on the bridge, where it was before the daemon was told to
    /// route.
    Mixed,
}

impl Ports {
    /// The modes of the victim's port and of the attacker's.
    const fn modes(self) -> [Mode; 2] {
        match self {
            Self::Bridge => [Mode::Bridge, Mode::Bridge],
            Self::Routed => [Mode::Routed, Mode::Routed],
            Self::Mixed => [Mode::Bridge, Mode::Routed],
        }
    }
}

/// Every place with each of these laws.
pub fn everywhere<const N: usize>(laws: [Law; N]) -> Vec<(Ports, Law)> {
    let all = [Ports::Bridge, Ports::Routed, Ports::Mixed];
    all.into_iter().flat_map(|ports| laws.map(|law| (ports, law))).collect()
}

/// A namespace with its attachment.
#[derive(Debug)]
pub struct Attached {
    /// The attachment.
    pub attachment: Attachment,
    /// The namespace.
    pub namespace: OwnedNs,
    /// Its `eth0`.
    pub tap: Tap,
    /// None of a container's, whose shim has it.
    _lease: Option<UnixStream>,
}

impl Attached {
    /// A new namespace of this user, attached.
    #[track_caller]
    pub fn new(daemon: &Daemon, user: &User) -> Self {
        Self::asking(daemon, user, &[])
    }

    /// The same for a container with these annotations.
    #[track_caller]
    pub fn asking(daemon: &Daemon, user: &User, annotations: &[(&str, &str)]) -> Self {
        let namespace = OwnedNs::new(user);
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let annotations = annotations.iter().map(text).collect();
        let container = random_container_id();
        let request = Activate { lease: true, annotations, ..Activate::new(container) };
        let network = namespace.network();
        let (outcome, lease) = daemon.as_user(user.uid()).activate(&request, network.as_fd());
        let attachment = outcome.unwrap_or_else(|refused| panic!("{refused}"));
        let tap = Tap::open(&network, attachment.interface.as_str());
        Self { attachment, namespace, tap, _lease: Some(lease) }
    }

    /// A container of this user's with all that podman gives it over its network.
    #[track_caller]
    fn contained(daemon: &Daemon, user: &User) -> Self {
        user.use_shim(&daemon.socket());
        let container = user.start("c", &["--cap-add=NET_ADMIN,NET_RAW"], &["sleep", "1000"]);
        let namespace = OwnedNs::of_container(&container, user);
        let its = |a: &Attachment| a.owner.as_raw() == user.uid();
        let attachment = daemon.attachments().into_iter().find(its).expect("it has its address");
        let tap = Tap::open(&namespace.network(), attachment.interface.as_str());
        Self { attachment, namespace, tap, _lease: None }
    }

    /// The address.
    pub fn address(&self) -> Ipv6Addr {
        self.attachment.address
    }

    /// The Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.attachment.mac.octets()
    }
}

/// The scene. Dropped in this order: namespaces, users, daemon, host.
#[derive(Debug)]
pub struct Neighbours {
    /// Whose frames are not honest.
    pub attacker: Attached,
    /// Who must not see them.
    pub victim: Attached,
    /// Where they are.
    pub ports: Ports,
    /// What they are under.
    pub law: Law,
    /// `v6t1` and `v6t2`.
    pub users: [User; 2],
    /// The daemon; killed already under [`Law::None`].
    pub daemon: Daemon,
    /// The host and the outside.
    pub host: HostNs,
}

impl Neighbours {
    /// Both on the bridge, under this law.
    #[track_caller]
    pub fn under(law: Law) -> Self {
        Self::on(Ports::Bridge, law)
    }

    /// Both on ports of these kinds, under this law.
    #[track_caller]
    pub fn on(ports: Ports, law: Law) -> Self {
        eprintln!("    {ports:?}, {law:?}");
        Self::made(ports, law, User::account, Attached::new)
    }

    /// The same with podman's containers, which have CAP_NET_ADMIN and CAP_NET_RAW.
    #[track_caller]
    pub fn contained(ports: Ports, law: Law) -> Self {
        eprintln!("    {ports:?}, {law:?}, by podman's containers");
        Self::made(ports, law, User::create, Attached::contained)
    }

    #[track_caller]
    fn made(
        ports: Ports,
        law: Law,
        user: fn(u8, &HostNs) -> User,
        attached: fn(&Daemon, &User) -> Attached,
    ) -> Self {
        let host = HostNs::new();
        let config = |mode| {
            let tables = if law == Law::Allow { Config::OPEN.to_owned() } else { String::new() };
            Config { tables, ..Config::default() }.with_mode(mode)
        };
        let [first, second] = ports.modes();
        let mut daemon = Daemon::configured(&host, &config(first));
        let users = [1, 2].map(|number| user(number, &host));
        let victim = attached(&daemon, &users[1]);
        if first != second {
            daemon.stop();
            daemon.reconfigure(&config(second));
            daemon.restart();
        }
        let attacker = attached(&daemon, &users[0]);
        assert_eq!([&victim, &attacker].map(|a| a.attachment.mode), ports.modes());
        let mut scene = Self { attacker, victim, ports, law, users, daemon, host };
        // Everybody knows the way to everybody, and the first packets are over.
        for from in [&scene.attacker, &scene.victim] {
            for to in [crate::OUTSIDE_V6, &scene.service().to_string()] {
                from.namespace.run("ping", &["-c", "1", "-W", "10", to]).ok();
            }
        }
        if law == Law::None {
            scene.daemon.kill9();
            scene.without_rules(&["arp", "bridge", "inet"]);
            scene.bare_bridge();
            for attached in [&scene.attacker, &scene.victim] {
                scene.bare_port(attached);
            }
        }
        scene
    }

    /// The victim's gateway's address.
    pub fn gateway(&self) -> Ipv6Addr {
        self.victim.attachment.gateway
    }

    /// The host's own address in the containers' range.
    pub fn service(&self) -> Ipv6Addr {
        format!("{}1", PREFIX.trim_end_matches("/80")).parse().expect("an address")
    }

    /// Whether the attacker's port is on no bridge.
    pub fn is_routed(&self) -> bool {
        self.attacker.attachment.mode == Mode::Routed
    }

    /// A tap on one of the host's interfaces.
    #[track_caller]
    pub fn host_tap(&self, interface: &str) -> Tap {
        Tap::open(&File::open(self.host.path()).expect("the host"), interface)
    }

    /// A tap on the bridge itself: what the host gets to see.
    #[track_caller]
    pub fn bridge_tap(&self) -> Tap {
        self.host_tap(&self.daemon.bridge())
    }

    /// A tap in the outside.
    #[track_caller]
    pub fn outside_tap(&self) -> Tap {
        Tap::open(&File::open(self.host.outside_path()).expect("the outside"), "out0")
    }

    /// Takes the daemon's tables of these families away.
    #[track_caller]
    pub fn without_rules(&self, families: &[&str]) {
        for family in families {
            let words = ["delete", "table", family, &self.daemon.table()];
            run(self.host.command("nft").args(words)).ok();
        }
    }

    /// Undoes what the daemon sets at bridge and ports.
    #[track_caller]
    fn bare_bridge(&self) {
        let bridge = self.daemon.bridge();
        // The link-local address that every bridge gives itself, and that Linux needs to ask for
        // the neighbours of what it forwards.
        let mut script = format!("ip -6 addr add fe80::1/64 dev {bridge} nodad\n");
        for attached in [&self.attacker, &self.victim] {
            let Attachment { port, mac, address, mode, .. } = &attached.attachment;
            if *mode == Mode::Routed {
                continue;
            }
            script += &format!(
                "set -e; bridge link set dev {port} isolated off learning on flood on \
                 mcast_flood on bcast_flood on neigh_suppress off\n\
                 bridge link set dev {port} locked off || :\n\
                 bridge fdb del {mac} dev {port} master static sticky\n\
                 ip -6 neigh del {address} dev {bridge}\n"
            );
        }
        run(self.host.command("sh").args(["-c", &script])).ok();
    }

    /// Has a routed port be what an interface of a router is that nobody has thought about, and who is on
    /// the bridge ask who the gateway is.
    #[track_caller]
    fn bare_port(&self, attached: &Attached) {
        let Attachment { port, mode, .. } = &attached.attachment;
        if *mode == Mode::Bridge {
            let flush = ["-6", "neigh", "flush", "dev", "eth0", "nud", "permanent"];
            attached.namespace.run("ip", &flush).ok();
        } else {
            let script = format!(
                "set -e; ip -6 addr add fe80::1/64 dev {port} nodad\n\
                 cd /proc/sys/net/ipv6/conf/{port}; echo 2 >accept_ra; echo 1 >autoconf\n"
            );
            run(self.host.command("sh").args(["-c", &script])).ok();
        }
    }

    /// Counts from now on what the host's stack gets of the attacker, past the daemon's first rules.
    /// Only for a routed port: a bridge has a tap.
    #[track_caller]
    pub fn witness(&self) {
        let port = &self.attacker.attachment.port;
        let text = format!(
            "add table inet v6t-witness; delete table inet v6t-witness\n\
             table inet v6t-witness {{ chain seen {{\n\
             type filter hook prerouting priority -440; policy accept;\n\
             iifname \"{port}\" counter\n}}\n}}\n"
        );
        run(self.host.command("nft").arg(text)).ok();
    }

    /// What the witness has counted.
    #[track_caller]
    pub fn witnessed(&self) -> usize {
        let words = ["list", "table", "inet", "v6t-witness"];
        let listed = run(self.host.command("nft").args(words));
        let count = listed.ok().split("counter packets ").nth(1);
        let count = count.and_then(|rest| rest.split(' ').next()?.parse().ok());
        count.expect("a count of packets")
    }

    /// Sends an honest echo request of the attacker's that bears `mark`, by way of this Ethernet
    /// address. Whatever was sent before it has arrived, or never will, when it arrives.
    #[track_caller]
    pub fn honest(&self, by: [u8; 6], to: Ipv6Addr, mark: &[u8]) {
        let route = Route::new(self.attacker.address(), to);
        let packet = route.carry(&route.echo(mark));
        self.attacker.tap.send(&frame(by, self.attacker.mac(), IPV6, &packet));
    }

    /// The bridge's Ethernet address.
    #[track_caller]
    pub fn gateway_mac(&self) -> [u8; 6] {
        self.bridge_tap().mac()
    }
}
