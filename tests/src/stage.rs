//! The scene of most tests: a host, its daemon, and users who use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use v6pod_proto::{AttachmentList, State};

use crate::{Config, Daemon, HostNs, User};

/// A host with a running daemon and users whose podman runs the shim. Dropped in this order: the
/// users while the daemon still runs, then the daemon, then the host.
#[derive(Debug)]
pub struct Stage {
    /// `v6t1`, `v6t2`, ….
    pub users: Vec<User>,
    /// The daemon.
    pub daemon: Daemon,
    /// The host.
    pub host: HostNs,
}

impl Stage {
    /// A host, a daemon with its defaults, and this many users.
    #[track_caller]
    pub fn with_users(users: u8) -> Self {
        Self::on(HostNs::new(), &Config::default(), users)
    }

    /// The same on a host that is there already.
    #[track_caller]
    pub fn on(host: HostNs, config: &Config, users: u8) -> Self {
        let daemon = Daemon::configured(&host, config);
        let users = (1..=users).map(|number| {
            let user = User::create(number, &host);
            user.use_shim(&daemon.socket());
            user
        });
        Self { users: users.collect(), daemon, host }
    }

    /// The first user.
    pub fn user(&self) -> &User {
        &self.users[0]
    }

    /// Watches from now on how many attachments there are at once, those that are ending aside.
    pub fn watch(&self) -> Watch {
        let root = self.daemon.root();
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let most = thread::spawn(move || {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                let all = root.get("/api/attachments").ok::<AttachmentList>().attachments;
                most = most.max(all.iter().filter(|a| a.state != State::Ending).count());
                thread::sleep(Duration::from_millis(10));
            }
            most
        });
        Watch { done, most: Some(most) }
    }
}

/// A watch on the number of attachments; ends with [`Watch::most`] or when it is dropped.
#[derive(Debug)]
pub struct Watch {
    done: Arc<AtomicBool>,
    most: Option<JoinHandle<usize>>,
}

impl Watch {
    /// The most that there were at once.
    #[track_caller]
    pub fn most(mut self) -> usize {
        self.done.store(true, Ordering::Relaxed);
        let most = self.most.take().expect("taken once, here");
        most.join().expect("watching the attachments")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}
