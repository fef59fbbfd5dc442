//! v6pod-hook: what OCI runtimes run before a container's first instruction, and podman behind its end.
//! See the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    v6pod_shim::hook()
}
