//! What should be: prefixes, address choice, names, and the steps that make an attachment.
//!
//! Guarantees: no I/O, no clock, no kernel. Time and randomness come in as arguments.

pub mod address;
pub mod attachment;
pub mod book;
pub mod choice;
pub mod delegations;
pub mod description;
pub mod egress;
pub mod explain;
pub mod foreign;
pub mod hole;
pub mod links;
pub mod member;
pub mod name;
pub mod offer;
pub mod open;
pub mod prefix;
pub mod prefixes;
pub mod rare;
pub mod reconcile;
pub mod ruleset;
pub mod secret;
pub mod step;
pub mod subnet;

#[cfg(test)]
mod crash_tests;

pub use links::{Instance, Links};
pub use name::{Claim, Label, Names};
pub use prefix::Prefix;
pub use step::{Port, Step};
