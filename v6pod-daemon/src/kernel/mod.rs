//! What is: links, addresses, routes, firewall rules, namespaces, sysctls, processes and sockets as Linux has them.
//!
//! Guarantees:
//! - Knows nothing of containers, users' rights or records. Policy is the caller's.
//! - Everything here blocks, and belongs on a thread of [`Workers`], except [`Events`] and
//!   [`Process::exited`]. No thread but a worker's ever enters another namespace.
//! - Whatever takes something away treats "is gone already" as success.
//! - Nothing of a container's namespace is trusted: its owner may rename, move or delete what is in
//!   there between any two calls, and then gets an error about his own container.

pub mod delegations;
pub mod descriptors;
mod dump;
mod error;
pub mod events;
pub mod firewall;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
pub mod handed;
pub mod host;
pub(crate) mod last_close;
pub mod mend;
mod message;
pub mod namespace;
pub mod netlink;
pub mod observe;
pub mod overlap;
pub mod privileges;
pub mod process;
pub mod proxy;
pub mod renumber;
pub mod sock_diag;
pub mod sweep;
mod sys;
pub mod sysctl;
pub mod traffic;
mod view;
pub mod wire;
pub mod workers;

#[cfg(test)]
mod testing;

pub use error::Error;
pub use events::{Event, Events};
pub use host::{Host, Topology};
pub use message::{is_local, source_for};
pub use namespace::{Home, Identity, NetNs, NotANetNs, Refused};
pub use observe::{Observed, ObservedPort};
pub use overlap::{Overlap, Overlaps};
pub use process::Process;
pub(crate) use sys::watch;
pub use wire::Wire;
pub use workers::{Inside, Worker, Workers};

/// The number by which our routes and neighbour entries are told from others'
/// (`/etc/iproute2/rt_protos` has no name for it): 0x76, a `v`.
pub const PROTOCOL: u8 = 0x76;
