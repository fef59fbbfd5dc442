//! Who asks, by id: a container's process and name, from files of runc, crun and podman.
//!
//! Guarantees: everything read here was written by the container's owner, who may be hostile. It is
//! read by the rule of [`beneath`], on the threads of [`reader`], and parsed by pure functions.
//! What is found is that owner's claim: the process has to be pinned and its namespace's owner
//! asked before anything is done with it.

pub mod beneath;
pub mod podman;
pub mod reader;
pub mod runtime;

use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::User;
use tracing::debug;
use v6pod_proto::{ContainerId, Uid};

use beneath::{Folder, Refused};
pub use podman::Name;
use podman::Place;
pub use reader::Limits;
use reader::{Reader, Unread};
use runtime::Unusable;
pub use runtime::{Found, Runtime};

/// Where users' files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The directory of the users' runtime directories, whose names are their uids.
    pub run_user: PathBuf,
    /// The home directory of every user, for tests; none: what the passwd database says.
    pub home: Option<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self { run_user: "/run/user".into(), home: None }
    }
}

/// Why there is no process. All of these are the same 404 to a caller, but for
/// [`NotFound::Unread`], which is about the daemon and not about the container.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The user has no runtime directory that can be used: he does not exist, or is not logged in.
    #[error("no runtime directory of user {0}")]
    User(Uid, #[source] Refused),
    /// No runtime has a usable state file of this container.
    #[error("no state file of container {0}")]
    Container(ContainerId, #[source] Unusable),
    /// Nothing was read, or not in time.
    #[error(transparent)]
    Unread(#[from] Unread),
}

/// Finds users' containers.
#[derive(Debug)]
pub struct Containers {
    places: Arc<Places>,
    reader: Reader,
}

impl Containers {
    /// Finds containers in these places.
    pub fn new(places: Places, limits: Limits) -> Self {
        Self { places: Arc::new(places), reader: Reader::new(limits) }
    }

    /// The process of a running container of this user.
    pub async fn find(&self, uid: Uid, id: &ContainerId) -> Result<Found, NotFound> {
        let (places, id) = (Arc::clone(&self.places), id.clone());
        let work = move || {
            let folder = places.runtime(uid).map_err(|error| NotFound::User(uid, error))?;
            runtime::find(&folder.folder, &id).map_err(|error| NotFound::Container(id, error))
        };
        self.reader.run(uid, work).await?
    }

    /// The name of a container of this user, running or not. None if nobody says it.
    ///
    /// # Errors
    /// What may say it was not read, or not in time.
    pub async fn name(&self, uid: Uid, id: &ContainerId) -> Result<Option<Name>, Unknown> {
        let (places, id) = (Arc::clone(&self.places), id.clone());
        let work = move || {
            let own = [usable(uid, places.runtime(uid)), places.home(uid)];
            let unread = own.iter().any(Result::is_err);
            let [runtime, home] = own.map(|place| place.ok().flatten());
            match podman::name(&podman::Places { runtime, home }, &id) {
                Ok(None) if unread => Err(Unknown),
                said => said,
            }
        };
        self.reader.run(uid, work).await.unwrap_or_else(|error| {
            debug!(%uid, %error, "a container's name was not read");
            Err(Unknown)
        })
    }
}

impl Containers {
    /// What the passwd database calls this user, if it knows him and says so in time.
    pub async fn user_name(&self, uid: Uid) -> Option<String> {
        let ask = move || User::from_uid(uid.as_raw().into()).ok().flatten().map(|user| user.name);
        self.reader.run(uid, ask).await.ok().flatten()
    }

    /// Who of the passwd database is called so, if anybody is. For this user it is asked.
    ///
    /// # Errors
    /// It did not say so, or not in time.
    pub async fn user_named(&self, asker: Uid, name: String) -> Result<Option<Uid>, Unknown> {
        let ask =
            move || User::from_name(&name).map(|user| user.and_then(|u| Uid::new(u.uid.as_raw())));
        self.reader.run(asker, ask).await.ok().and_then(Result::ok).ok_or(Unknown)
    }
}

/// The system does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system does not say")]
pub struct Unknown;

impl Places {
    fn runtime(&self, uid: Uid) -> Result<Place, Refused> {
        let path = self.run_user.join(uid.to_string());
        Ok(Place { folder: Folder::open(&path, uid)?, path })
    }

    /// Asks the passwd database, which may block (NSS): only on the reader's threads.
    fn home(&self, uid: Uid) -> Result<Option<Place>, Unknown> {
        let path = match &self.home {
            Some(path) => path.clone(),
            None => match User::from_uid(uid.as_raw().into()).map_err(|_| Unknown)? {
                Some(user) => user.dir,
                None => return Ok(None),
            },
        };
        usable(uid, Folder::open(&path, uid).map(|folder| Place { folder, path }))
    }
}

/// The directory, if it is this user's own: podman keeps nothing of his in another.
///
/// # Errors
/// Nobody can say, or he keeps it where it is not read.
fn usable(uid: Uid, place: Result<Place, Refused>) -> Result<Option<Place>, Unknown> {
    match place {
        Ok(place) => Ok(Some(place)),
        Err(Refused::Absent) => Ok(None),
        Err(error) => {
            debug!(%uid, %error, "a user's directory is not used");
            match error {
                Refused::Io(_) | Refused::Fuse => Err(Unknown),
                _ => Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests;
