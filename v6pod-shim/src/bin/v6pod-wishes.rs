//! v6pod-wishes: what v6pod-hook asks about a container's labels and published ports. See the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    v6pod_shim::wishes()
}
