//! The fuzz targets: each is a function that takes any bytes and asserts what must hold.
//!
//! libFuzzer runs them by `fuzz_targets/NAME.rs`; `tests/smoke.rs` runs them without it, over the
//! corpus and a fixed number of its mutations, so that every change is tried a little.
#![forbid(unsafe_code)]

mod api;
mod config;
mod dns;
mod files;
// The shim's own, under the name by which its settings refer to it.
#[path = "../../v6pod-shim/src/flat_toml.rs"]
mod flat_toml;
mod kernel;
mod names;
mod podman_db;
mod shim;
mod wishes;

/// A target: it panics if what it asserts does not hold.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($module:ident :: $name:ident),+ $(,)?) => {
        $(pub use $module::$name;)+

        /// All targets by their names, which are those of their folders in `corpus`.
        pub const TARGETS: &[(&str, Target)] = &[$((stringify!($name), $name)),+];
    };
}

targets![
    api::bodies,
    config::v6pod_toml,
    dns::dns_answer,
    dns::dns_question,
    files::containers_json,
    files::create_config,
    files::crun_status,
    files::record,
    files::state_json,
    kernel::link,
    kernel::netlink,
    kernel::sock_diag,
    names::ids,
    names::label,
    podman_db::podman_bolt,
    podman_db::podman_sqlite,
    shim::oci_state,
    shim::shim_toml,
    shim::slirp4netns,
    wishes::wishes,
];
