//! v6podd's library. `docs/architecture.md` draws it.
//!
//! - [`core`]: what should be. Pure: no I/O, no clock, no kernel.
//! - [`kernel`]: what is: netlink, namespaces, sysctls. Knows nothing of containers or users.
//! - [`container`]: who asks: files of runc, crun and podman. Reads hostile input.
//! - [`registry`]: where names go.
//! - [`attachments`]: the thin middle: turns requests into steps, runs them and undoes them.
//! - [`dns`]: names by DNS: those of containers, and others asked on for them.
//! - [`api`]: HTTP: listeners, who is calling, routes, errors.
//! - [`client`]: the API from the other end, for v6podctl.
//! - [`closer`]: closes what callers sent, where that harms nobody.
//! - [`fair`]: a queue in which owners take turns.
//! - [`pace`]: how fast one caller may have the daemon work.
//! - [`access`]: who may attach and who operates.
//! - [`failpoint`]: where tests make the daemon die; nothing in ordinary builds.
//! - [`purge`]: takes all away.
//! - [`report`]: errors for people.
//! - [`config`]: the configuration file.
//! - [`service`]: what systemd gives and wants.
//!
//! Imports run one way: `api` → `attachments` → the others; `core` imports none of them.

pub mod access;
pub mod api;
pub mod attachments;
pub mod client;
pub mod closer;
pub mod config;
pub mod container;
pub mod core;
pub mod dns;
pub mod failpoint;
pub mod fair;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod kernel;
pub mod pace;
pub mod purge;
pub mod registry;
pub mod report;
pub mod service;
