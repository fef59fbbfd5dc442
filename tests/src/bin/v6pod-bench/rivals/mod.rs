//! Other ways to give a network namespace an address, each at its best: with a bridge that stands
//! already, started from where it needs no further program to get there, and without a firewall
//! where that can be said.

pub(crate) mod cni;
pub(crate) mod ip_batch;
pub(crate) mod netavark;

pub(crate) use cni::Cni;
pub(crate) use ip_batch::IpBatch;
pub(crate) use netavark::Netavark;
