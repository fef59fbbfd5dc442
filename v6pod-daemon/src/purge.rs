//! Taking away all that a daemon has made.
//!
//! Guarantee: it comes to an end. A registry that does not answer is waited for [`PATIENCE`] and no
//! longer; what may be left in it is named.

use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;
use v6pod_proto::sockets;

use crate::attachments::records::Records;
use crate::attachments::{self, StartError};
use crate::attachments::{memberships, spoken};
use crate::config::Config;
use crate::core::Links;
use crate::core::reconcile::Recorded;
use crate::kernel::{self, Worker, Workers};
use crate::pace::Paces;
use crate::registry::{Embedded, Registrar};

/// How long the registry has to give up the names. A healthy one takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Ports that were deleted.
    pub ports: usize,
    /// Whether the bridge was there.
    pub bridge: bool,
    /// Records that were removed.
    pub records: usize,
    /// What the registry may still hold; nothing if it is known to hold nothing.
    pub registry: Option<Left>,
}

impl fmt::Display for Purged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bridge = if self.bridge { "the bridge" } else { "no bridge" };
        writeln!(f, "removed {} ports, {bridge} and {} records", self.ports, self.records)
    }
}

/// What could not be taken out of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The kind of registry.
    pub kind: String,
    /// Why not.
    pub error: String,
    /// The names that the records speak of, sorted.
    pub names: Vec<String>,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, error, names } = self;
        write!(f, "{kind} has not given up the names of this host: {error}. ")?;
        match &names[..] {
            [] => write!(f, "It may still hold some")?,
            names => write!(f, "It may still hold {}", names.join(", "))?,
        }
        write!(f, "; a v6podd that starts here takes them away, and so does `v6podctl purge`")
    }
}

impl std::error::Error for Left {}

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
    let (ports, bridge) = Workers::start(1, Paces::default())?.run(work).await?;
    let names = recorded_names(config);
    let registry = withdraw(&attachments::registrar(config, &Embedded::default()), PATIENCE).await;
    let registry = registry.err().map(|left| Left { names, ..left });
    let mut records = 0;
    match fs::remove_file(config.run_dir().join("resting")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PurgeError::Records(error));
        }
        _ => {}
    }
    attachments::prefixes::forget(config).map_err(PurgeError::Records)?;
    for folder in ["attachments", "rejected", spoken::FOLDER, memberships::FOLDER, sockets::FOLDER]
    {
        let path = config.run_dir().join(folder);
        if ["attachments", "rejected"].contains(&folder) {
            records += fs::read_dir(&path).map_or(0, Iterator::count);
        }
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PurgeError::Records(error));
            }
            _ => {}
        }
    }
    Ok(Purged { ports, bridge, records, registry })
}

/// The names that the records speak of. What is no record has none.
fn recorded_names(config: &Config) -> Vec<String> {
    let loaded = Records::open(&config.run_dir()).and_then(|records| records.load());
    let Recorded { living, ended } = loaded.map(|(recorded, _)| recorded).unwrap_or_default();
    let labels = living.into_iter().chain(ended).filter_map(|attachment| attachment.label);
    let mut names: Vec<_> = labels.map(|label| label.to_string()).collect();
    names.sort_unstable();
    names
}

/// Nobody lives: whatever the registry has of ours is stale.
async fn withdraw(registrar: &Registrar, patience: Duration) -> Result<(), Left> {
    registrar.reconcile(&[]);
    timeout(patience, registrar.settled()).await.map_err(|_| {
        let health = registrar.health();
        let error = health.error.unwrap_or_else(|| format!("no answer within {patience:?}"));
        Left { kind: health.kind, error, names: Vec::new() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_registry_that_is_not_there_is_not_waited_for_for_ever() {
        let table =
            "[registry]\nkind = \"consul\"\n[registry.consul]\naddress = \"http://[::1]:1\"";
        let config = Config::parse(table).unwrap();
        let left = withdraw(
            &attachments::registrar(&config, &Embedded::default()),
            Duration::from_millis(10),
        )
        .await;
        let left = Left { names: vec!["db".to_owned(), "web".to_owned()], ..left.unwrap_err() };
        assert_eq!(left.kind, "consul");
        assert!(left.to_string().contains("It may still hold db, web;"), "{left}");
        // One that answers is waited for.
        let embedded = attachments::registrar(&Config::default(), &Embedded::default());
        withdraw(&embedded, Duration::from_secs(60)).await.unwrap();
    }
}
