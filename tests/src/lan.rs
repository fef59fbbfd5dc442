//! Several hosts on one link, IPv6 alone.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use crate::HostNs;
use crate::host::{NetNs, ip};

/// A link: a bridge in a namespace of its own. Its members are `lan0`, 2001:db8:5::N/64.
#[derive(Debug)]
pub struct Lan(NetNs);

/// A host that has nothing but its place on a link.
#[derive(Debug)]
pub struct Member {
    namespace: NetNs,
    number: u8,
}

impl Lan {
    /// Nobody is on it.
    #[track_caller]
    pub fn new() -> Self {
        let switch = NetNs::new("lan");
        switch.ip("link add br0 type bridge").ok();
        switch.ip("link set br0 up").ok();
        Self(switch)
    }

    /// A new host on it.
    #[track_caller]
    pub fn member(&self, number: u8) -> Member {
        let namespace = NetNs::new("member");
        self.plug(&namespace, number);
        Member { namespace, number }
    }

    /// Plugs a host in as well.
    #[track_caller]
    pub fn join(&self, host: &HostNs, number: u8) {
        self.plug(host.namespace(), number);
    }

    #[track_caller]
    fn plug(&self, namespace: &NetNs, number: u8) {
        let port = port(number);
        let veth = ["link", "add", "lan0", "netns", &namespace.0, "type", "veth", "peer"];
        ip(&[&veth[..], &["name", &port, "netns", &self.0.0]].concat()).ok();
        namespace.without_dad("lan0");
        namespace.ip(&format!("addr add {}/64 dev lan0 nodad", Self::address(number))).ok();
        namespace.ip("link set lan0 up").ok();
        self.0.ip(&format!("link set {port} master br0 up")).ok();
    }

    /// A member's address.
    pub fn address(number: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, number.into())
    }

    /// Pulls a member's cable.
    #[track_caller]
    pub fn cut(&self, number: u8) {
        self.0.ip(&format!("link set {} down", port(number))).ok();
    }

    /// Undoes [`Lan::cut`].
    #[track_caller]
    pub fn heal(&self, number: u8) {
        self.0.ip(&format!("link set {} up", port(number))).ok();
    }
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Member {
    /// Its number, from which its address follows.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The file that is its network namespace.
    pub fn path(&self) -> PathBuf {
        self.namespace.path()
    }
}

fn port(number: u8) -> String {
    format!("port{number}")
}
