//! v6pod-netavark: see the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    v6pod_shim::netavark()
}
