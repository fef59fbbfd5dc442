//! v6pod-shim: what podman runs in place of a network program of its own. See the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    v6pod_shim::shim()
}
