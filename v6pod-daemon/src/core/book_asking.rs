//! What the book is asked with, and what it answers.

use std::net::Ipv6Addr;
use std::time::Duration;

use v6pod_proto::wishes::OtherWishes;
use v6pod_proto::{AttachmentId, ContainerId, LinkName, Mode, NetworkName, Uid, Wishes};

use crate::core::Prefix;
use crate::core::attachment::{Holder, NamespaceId};
use crate::core::choice::Choice;
use crate::core::open::OpenPorts;
use crate::core::secret::Secret;
use crate::core::step::ROUTED_GATEWAY;
use crate::core::subnet::Length;

/// What does not change between attachments.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The range that addresses come from.
    pub prefix: Prefix,
    /// In bytes.
    pub mtu: u32,
    /// How packets are to reach containers. A bridge that is full is none.
    pub mode: Mode,
    /// How long a released address rests.
    pub quarantine: Duration,
    /// How many attachments one owner may have.
    pub per_owner: usize,
    /// How long the part of the prefix is that each owner's addresses come from, in bits; none: they come from
    /// all of it.
    pub slice: Option<u8>,
    /// What stable addresses and slices follow from.
    pub secret: Secret,
}

impl Terms {
    /// How many addresses an owner can have who has no slice yet.
    pub fn slice_room(&self) -> u128 {
        let part = self.slice.and_then(|length| self.prefix.part(length, 1));
        part.map_or_else(|| self.prefix.room(), |part| part.host_mask() + 1)
    }

    /// What the default route of a container points to that is reached like this.
    pub fn gateway(&self, mode: Mode) -> Ipv6Addr {
        match mode {
            Mode::Bridge => self.prefix.gateway(),
            Mode::Routed => ROUTED_GATEWAY,
        }
    }
}

/// What an attachment is asked for with.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whose it will be.
    pub owner: Uid,
    /// The container, as its owner says, if he has.
    pub container: Option<ContainerId>,
    /// The container's name, if known.
    pub name: Option<String>,
    /// What the container asks for.
    pub wishes: Wishes,
    /// And by other means than annotations.
    pub found: OtherWishes,
    /// Which address it is to have.
    pub choice: Choice,
    /// How long the subnet is that it is to have besides, if it is to have one.
    pub subnet: Option<Length>,
    /// What is to be open of it.
    pub open: OpenPorts,
    /// The container's network namespace.
    pub namespace: NamespaceId,
    /// The interface's name inside.
    pub interface: LinkName,
    /// The process that it ends with.
    pub holder: Option<Holder>,
    /// Whether a connection holds it.
    pub lease: bool,
    /// Seconds since the epoch.
    pub since: u64,
    /// The engine's network that it is for.
    pub network: Option<NetworkName>,
    /// The number of the request that asks for it.
    pub attempt: Option<u64>,
}

/// Why there is no attachment to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal<E> {
    /// The owner has as many as he may.
    #[error("{owner} has {limit} attachments and may have no more")]
    Quota {
        /// Whose.
        owner: Uid,
        /// How many.
        limit: usize,
    },
    /// The prefix, or the owner's part of it, has no free address.
    #[error("{0} has no address left")]
    Addresses(Prefix),
    /// The address that is to be had cannot be.
    #[error(transparent)]
    Spot(#[from] NoSpot),
    /// The system's generator failed.
    #[error("no random numbers")]
    Random(#[source] E),
}

/// Where an attachment is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Anywhere in its owner's range.
    Anywhere,
    /// Here.
    At(Ipv6Addr),
}

/// Why an attachment cannot be where it is to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSpot {
    /// It can as soon as this one is gone, which is an earlier start of the container, or on its way out.
    #[error("its address is still that of {0}")]
    Soon(AttachmentId),
    /// Somebody has the address, or had it a moment ago.
    #[error("{0} is taken, or rests")]
    Taken(Ipv6Addr),
    /// The owner's range has no such address.
    #[error("{} is none of {range}'s addresses for containers", Ipv6Addr::from(u128::from(*host)))]
    Outside {
        /// The host bits.
        host: u64,
        /// The range.
        range: Prefix,
    },
    /// What the owner's addresses come from is not longer than the subnet.
    #[error("{range} has no room for a subnet {length}")]
    Short {
        /// How long it was to be.
        length: Length,
        /// The range.
        range: Prefix,
    },
    /// In each there is somebody, or was a moment ago.
    #[error("{range} has no free subnet {length}")]
    Subnets {
        /// How long it was to be.
        length: Length,
        /// The range.
        range: Prefix,
    },
    /// With it the owner's subnets would be more than half of what all draw from.
    #[error("with a subnet {length} more than half of {range} would be yours")]
    Share {
        /// How long it was to be.
        length: Length,
        /// The range.
        range: Prefix,
    },
    /// All parts of the prefix are others'.
    #[error("{0} has no slice left (addresses.per_owner)")]
    Slices(Prefix),
}

/// What a lease finds at the namespace it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: one can be made.
    Nothing,
    /// An attachment that is being made or taken away: wait and ask again.
    InMotion,
    /// This attachment.
    Attached(AttachmentId),
}
