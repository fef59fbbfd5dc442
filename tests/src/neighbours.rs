//! Two containers of two users on one host, and the outside: who attacks, and who is attacked.
//!
//! ```text
//!   outside  out0 ── up0  host ── v6podd ── v6t0
//!                          ├── port ── eth0 ┌ attacker, of v6t1 ┐
//!                          └── port ── eth0 ┌ victim, of v6t2 ┐
//! ```

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use v6pod_proto::{Activate, Attachment};

use crate::packet::{IPV6, Route, frame};
use crate::{Config, Daemon, HostNs, OwnedNs, Tap, User, random_container_id, run};

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

/// A namespace with its attachment.
#[derive(Debug)]
pub struct Attached {
    /// The attachment.
    pub attachment: Attachment,
    /// The namespace.
    pub namespace: OwnedNs,
    /// Its `eth0`.
    pub tap: Tap,
    _lease: UnixStream,
}

impl Attached {
    /// A new namespace of this user, attached.
    #[track_caller]
    pub fn new(daemon: &Daemon, user: &User) -> Self {
        let namespace = OwnedNs::new(user);
        let request = Activate { lease: true, ..Activate::new(random_container_id()) };
        let network = namespace.network();
        let (outcome, lease) = daemon.as_user(user.uid()).activate(&request, network.as_fd());
        let attachment = outcome.unwrap_or_else(|refused| panic!("{refused}"));
        let tap = Tap::open(&network, attachment.interface.as_str());
        Self { attachment, namespace, tap, _lease: lease }
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
    /// What they are under.
    pub law: Law,
    /// `v6t1` and `v6t2`, without podman.
    pub users: [User; 2],
    /// The daemon; killed already under [`Law::None`].
    pub daemon: Daemon,
    /// The host and the outside.
    pub host: HostNs,
}

impl Neighbours {
    /// Both, under this law.
    #[track_caller]
    pub fn under(law: Law) -> Self {
        let host = HostNs::new();
        let mut config = Config::default();
        if law == Law::Allow {
            config.tables = Config::OPEN.to_owned();
        }
        let daemon = Daemon::configured(&host, &config);
        let users = [1, 2].map(|number| User::account(number, &host));
        let [attacker, victim] = [&users[0], &users[1]].map(|user| Attached::new(&daemon, user));
        let mut scene = Self { attacker, victim, law, users, daemon, host };
        // Everybody knows the way to everybody, and the first packets are over.
        for from in [&scene.attacker, &scene.victim] {
            for to in [crate::OUTSIDE_V6, &scene.gateway().to_string()] {
                from.namespace.run("ping", &["-c", "1", "-W", "10", to]).ok();
            }
        }
        if law == Law::None {
            scene.daemon.kill9();
            scene.without_rules(&["bridge", "inet"]);
            scene.bare_bridge();
        }
        scene
    }

    /// The gateway's address.
    pub fn gateway(&self) -> Ipv6Addr {
        self.victim.attachment.gateway
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
            let Attachment { port, mac, address, .. } = &attached.attachment;
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
