//! What an explanation speaks of: the hooks that a packet comes by, and the elements of the kernel's sets on
//! which a rule depends, as nft has them, so that they can be looked up.

use std::net::Ipv6Addr;

use v6pod_proto::{LinkName, Mac, Uid};

use crate::core::hole::Hole;
use crate::core::ruleset::{KNOWN_SET, OWNER_SET, PORT_SET, ROUTED_SET};
use crate::core::subnet::Length;

/// Where rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// None: no packet gets anywhere.
    Nowhere,
    /// What comes by a container's port, before anything else.
    Prerouting,
    /// No hook, but the host's routes.
    Routing,
    /// What the host passes on.
    Forward,
    /// What the host's own processes send.
    Output,
    /// What is for the host itself.
    Input,
}

impl Hook {
    /// Its name, as nft has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nowhere => "",
            Self::Prerouting => "prerouting",
            Self::Routing => "routing",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Input => "input",
        }
    }
}

/// An element of a set of the daemon's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Element {
    /// Who may send by a port of the bridge (bridge family).
    Sender(LinkName, Mac, Ipv6Addr),
    /// The same, as the inet family sees it.
    Known(Mac, Ipv6Addr),
    /// Who may send by a routed port.
    Routed(LinkName, Ipv6Addr),
    /// Whose processes on this host reach an address.
    Owner(Ipv6Addr, Uid),
    /// What is open of an address.
    Open(Ipv6Addr, Hole),
    /// That a subnet begins with an address.
    Subnet(Length, Ipv6Addr),
}

impl Element {
    /// Its set.
    pub fn set(&self) -> &'static str {
        match self {
            Self::Sender(..) => PORT_SET,
            Self::Known(..) => KNOWN_SET,
            Self::Routed(..) => ROUTED_SET,
            Self::Owner(..) => OWNER_SET,
            Self::Open(_, hole) => hole.set(),
            Self::Subnet(length, _) => length.set(),
        }
    }

    /// As nft writes it.
    pub fn text(&self) -> String {
        match self {
            Self::Sender(port, mac, address) => format!("{port} . {mac} . {address}"),
            Self::Known(mac, address) => format!("{mac} . {address}"),
            Self::Routed(port, address) => format!("{port} . {address}"),
            Self::Owner(address, uid) => format!("{address} . {uid}"),
            Self::Open(address, hole) => hole.text(*address),
            Self::Subnet(_, address) => address.to_string(),
        }
    }
}

/// An element, and whether it has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Which.
    pub element: Element,
    /// Whether it has to be.
    pub wanted: bool,
}
