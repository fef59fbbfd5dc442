//! HTTP: listeners, who is calling, routes, errors.
//!
//! Guarantees:
//! - Every request has a caller whose uid the kernel told, never the request.
//! - A connection bears one request. So a descriptor that came with its first byte belongs to that
//!   request and to no other.
//! - Nothing received from a caller is closed on the runtime's threads: closing can block.
//! - One caller's connections leave room for those of others.
//! - What is another owner's is answered like what does not exist, byte by byte.

pub(crate) mod body;
mod caller;
#[cfg(test)]
mod contract;
mod events;
mod guard;
mod handlers;
mod inherited;
mod listener;
mod metrics;
mod own_sockets;
mod page;
mod problem;
mod routes;
mod shares;
mod stream;

pub use caller::{Caller, Via};
pub use inherited::Inherited;
pub use listener::{ListenError, Listeners};
pub use routes::router;
