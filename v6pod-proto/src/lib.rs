//! The types of v6pod's API: what the daemon, the shim and the operator's CLI say to each other.
//!
//! Guarantees of this crate: no I/O, no clock, no randomness. A value that exists is valid: a
//! [`ContainerId`] is 64 hex digits, a [`LinkName`] is one that Linux takes, a [`Uid`] is a number
//! that can own something. Unknown fields in a request are an error that names the field.
#![forbid(unsafe_code)]

pub mod explain;
mod ids;
pub mod oci;
mod problem;
pub mod sockets;
pub mod storage;
mod wire;
pub mod wishes;

pub use ids::{AttachmentId, ContainerId, LinkName, Mac, NetworkName, ParseIdError, Uid};
pub use problem::{Code, Problem};
pub use wire::{
    Activate, Attachment, AttachmentList, CapLimit, Capacity, Change, CheckStatus, Counts,
    Deactivate, Deactivated, EgressBy, EgressView, Event, Happening, Member, Mode, NameState,
    NameStatus, Obstacle, Opened, OpenedBy, Passed, PrefixOffer, PrefixView, RegistryView,
    Resolver, State, Status, SwitchedOff, Traffic, Unopened,
};
pub use wishes::Wishes;

/// Where the daemon listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/v6pod/v6pod.sock";
