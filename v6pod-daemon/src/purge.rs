//! Taking away all that a daemon has made.

use std::fmt;
use std::fs;
use std::io;

use serde::Serialize;

use crate::attachments::{self, StartError};
use crate::config::Config;
use crate::core::Links;
use crate::kernel::{self, Worker, Workers};

/// What was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Ports that were deleted.
    pub ports: usize,
    /// Whether the bridge was there.
    pub bridge: bool,
    /// Records that were removed.
    pub records: usize,
}

impl fmt::Display for Purged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bridge = if self.bridge { "the bridge" } else { "no bridge" };
        writeln!(f, "removed {} ports, {bridge} and {} records", self.ports, self.records)
    }
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// The daemon runs, or its folders cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel refused something.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The kernel refused several things.
    #[error("{0}")]
    Left(String),
    /// The records cannot be removed.
    #[error("cannot remove the records")]
    Records(#[source] io::Error),
}

/// Takes away the ports, the routes, the bridge, the rules, the names and the records of an instance whose
/// daemon does not run. Forwarding stays on: somebody else may count on it by now.
pub async fn purge(config: &Config) -> Result<Purged, PurgeError> {
    let _lock = attachments::prepare_folders(config)?;
    let links = Links::of(&config.instance);
    let work = move |worker: &mut Worker| -> Result<(usize, bool), PurgeError> {
        let observed = kernel::observe::observe(&mut worker.socket, &links)?;
        let mut errors = kernel::host::purge(&mut worker.socket, &links);
        // The rules last: as long as there is a port, it is under them.
        errors.extend(worker.rules.purge(&links).err());
        if !errors.is_empty() {
            let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
            return Err(PurgeError::Left(texts.join("; ")));
        }
        Ok((observed.ports.len(), observed.bridge.is_some()))
    };
    let (ports, bridge) = Workers::start(1)?.run(work).await?;
    // Nobody lives: whatever the registry has of ours is stale.
    let registrar = attachments::registrar(config);
    registrar.reconcile(&[]);
    registrar.settled().await;
    let mut records = 0;
    match fs::remove_file(config.run_dir().join("resting")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PurgeError::Records(error));
        }
        _ => {}
    }
    for folder in ["attachments", "rejected"] {
        let path = config.run_dir().join(folder);
        records += fs::read_dir(&path).map_or(0, Iterator::count);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PurgeError::Records(error));
            }
            _ => {}
        }
    }
    Ok(Purged { ports, bridge, records })
}
