//! Where names go: Consul, a table of this daemon's own, or nowhere.
//!
//! What this room guarantees:
//! - Nothing that a caller does here waits for a registry: [`Registrar::wish`] and
//!   [`Registrar::withdraw`] write down what should be, and one task in the background makes it so.
//! - In quiet, the registry holds under this daemon's mark exactly what was wished: what it lost is
//!   put back, what is stale is taken away. What does not bear the mark is never touched.
//! - Every request ends within [`WRITE_TIMEOUT`] or [`LIST_TIMEOUT`], however stuck the registry is,
//!   and there are never more than a few at once.
//!
//! `ledger` decides, without clock or I/O; [`registrar`] runs what it decides against a
//! [`Backend`]; [`consul`] and [`embedded`] are the backends.
//!
//! [`Registrar::wish`]: Registrar::wish
//! [`WRITE_TIMEOUT`]: registrar::WRITE_TIMEOUT
//! [`LIST_TIMEOUT`]: registrar::LIST_TIMEOUT

pub mod consul;
pub mod embedded;
mod ledger;
pub mod registrar;
mod service;

use std::net::Ipv6Addr;
use std::sync::Arc;

use v6pod_proto::wishes::Check;
use v6pod_proto::{AttachmentId, ContainerId, Uid};

use crate::core::Label;
use crate::core::offer::Part;

pub use consul::Consul;
pub use embedded::Embedded;
pub use ledger::{Happened, News};
pub use registrar::{Jitter, Registrar, system_jitter};
pub use service::{Mark, Service, ServiceId};

/// One service that should be in the registry for an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The attachment.
    pub id: AttachmentId,
    /// Which of its services.
    pub part: Part,
    /// The name it bears.
    pub label: Label,
    /// Its address.
    pub address: Ipv6Addr,
    /// Whose it is.
    pub owner: Uid,
    /// The owner's login name, if he has one.
    pub user: Option<String>,
    /// The container.
    pub container: ContainerId,
    /// The container's name as its engine knows it, before it became a label.
    pub name: String,
    /// The image that it runs, as its engine calls it, if that is known.
    pub image: Option<String>,
    /// The port that it is served at, if that is known.
    pub port: Option<u16>,
    /// Words to find it by, besides the owner's name.
    pub tags: Vec<String>,
    /// How it is seen whether it is well.
    pub check: Option<Check>,
}

/// A registry. Its methods may take as long as they like and may be dropped half-way: the caller
/// sets the time-outs, and asks again when it does not know what became of a request.
pub trait Backend: Send + Sync + 'static {
    /// The word for it in the configuration.
    fn kind(&self) -> &'static str;

    /// Puts the service in, in place of whatever has the same id.
    fn register(
        &self,
        service: &Arc<Service>,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Takes the service out. To take out what is not there is a success.
    fn deregister(&self, id: &ServiceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// All that is there under this daemon's mark.
    fn list(&self) -> impl Future<Output = Result<Vec<Listed>, BackendError>> + Send;
}

/// One thing that the registry has under this daemon's mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What to call it when it is to go.
    pub id: ServiceId,
    /// What it says; `None` if this daemon would never have written it so.
    pub service: Option<Arc<Service>>,
}

/// Why a request to a registry failed, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// No conversation came about, or it broke off. The request may have been carried out or not.
    #[error("the registry cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There was no answer in time. The request may still be carried out, even later.
    #[error("the registry does not answer in time")]
    TimedOut,
    /// The registry could not do it now (HTTP 5xx, 429).
    #[error("the registry is not able to answer now: {status} {message}")]
    Busy {
        /// The HTTP status.
        status: u16,
        /// The registry's own words, cut short.
        message: String,
    },
    /// The registry will not do it as it was asked (any other HTTP status but 2xx): a matter of
    /// rights, or of what was sent.
    #[error("the registry refuses: {status} {message}")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// The registry's own words, cut short.
        message: String,
    },
    /// The answer makes no sense.
    #[error("the registry's answer cannot be understood")]
    Garbled(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The agent is of another data centre than the operator wants names to be registered in.
    #[error("the agent is of the data centre {is}, and registry.consul.datacenter says {wanted}")]
    Elsewhere {
        /// The one in the configuration.
        wanted: String,
        /// The agent's own, cut short.
        is: String,
    },
    /// The token that the operator has given cannot be read or used.
    #[error("the registry's token cannot be read")]
    Token(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[cfg(test)]
mod testing;
