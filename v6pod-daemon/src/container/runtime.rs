//! A container's process, from the state file of runc or crun.
//!
//! Guarantees: the parsers are pure, never panic, and take no more from the file than a process id
//! and a start time. Both are claims of the file's writer until the process was pinned and
//! compared.

use std::path::PathBuf;

use serde::Deserialize;
use v6pod_proto::ContainerId;

use super::beneath::{Folder, Refused};

/// `PID_MAX_LIMIT` of linux/threads.h on 64-bit machines.
const PID_MAX: i64 = 1 << 22;

/// An OCI runtime that podman uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// `runc`.
    Runc,
    /// `crun`.
    Crun,
}

/// A container's process as its runtime wrote it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The container's first process, in the host's pid namespace; never 1 or less.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`), if it is known.
    pub start_time: Option<u64>,
    /// Who wrote it down.
    pub runtime: Runtime,
}

/// Why a state file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It was not read.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is not what the runtime writes.
    #[error("not a state file")]
    Json(#[from] serde_json::Error),
    /// It is that of another container.
    #[error("the state file of another container")]
    OtherId,
    /// Its process cannot be a container's: none, the system's first, or no process id at all.
    #[error("{0} is not the id of a container's process")]
    Pid(i64),
}

/// The fields of runc's `state.json` that matter here (runc 1.0.0-rc93 to 1.3.6).
#[derive(Deserialize)]
struct State {
    id: ContainerId,
    init_process_pid: i64,
    #[serde(default)]
    init_process_start: Option<u64>,
}

/// The fields of crun's `status` that matter here (crun 0.17 to 1.28). It does not bear the
/// container's id; the bundle's path does.
#[derive(Deserialize)]
struct Status {
    pid: i64,
    #[serde(default, rename = "process-start-time")]
    process_start_time: Option<u64>,
    bundle: PathBuf,
}

/// The process in runc's `state.json`.
pub fn parse_state(bytes: &[u8], id: &ContainerId) -> Result<Found, Unusable> {
    let state: State = serde_json::from_slice(bytes)?;
    if state.id != *id {
        return Err(Unusable::OtherId);
    }
    found(state.init_process_pid, state.init_process_start, Runtime::Runc)
}

/// The process in crun's `status`.
pub fn parse_status(bytes: &[u8], id: &ContainerId) -> Result<Found, Unusable> {
    let status: Status = serde_json::from_slice(bytes)?;
    if !status.bundle.iter().any(|part| part == id.as_str()) {
        return Err(Unusable::OtherId);
    }
    found(status.pid, status.process_start_time, Runtime::Crun)
}

/// Looks for the container among those of the user whose runtime directory (`/run/user/UID`) this
/// is. If both runtimes know it, as after a change of podman's settings, the file that can be used
/// counts, runc's before crun's.
pub(super) fn find(folder: &Folder, id: &ContainerId) -> Result<Found, Unusable> {
    let path = |parts: [&str; 3]| parts.iter().collect::<PathBuf>();
    let runc = folder.read(&path(["runc", id.as_str(), "state.json"]));
    let runc = runc.map_err(Unusable::from).and_then(|bytes| parse_state(&bytes, id));
    let Err(first) = runc else { return runc };
    let crun = folder.read(&path(["crun", id.as_str(), "status"]));
    let crun = crun.map_err(Unusable::from).and_then(|bytes| parse_status(&bytes, id));
    match crun {
        // The error that says more.
        Err(Unusable::Refused(Refused::Absent)) => Err(first),
        other => other,
    }
}

/// Both runtimes write 0 for a container that has no process.
fn found(pid: i64, start_time: Option<u64>, runtime: Runtime) -> Result<Found, Unusable> {
    let checked = i32::try_from(pid).ok().filter(|_| (2..=PID_MAX).contains(&pid));
    let pid = checked.ok_or(Unusable::Pid(pid))?;
    Ok(Found { pid, start_time: start_time.filter(|time| *time != 0), runtime })
}

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
