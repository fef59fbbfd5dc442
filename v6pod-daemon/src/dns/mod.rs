//! Names by DNS: those of this host's containers answered, all others asked for at the host's own resolvers.
//!
//! Guarantees:
//! - A name is in the zone as long as an attachment bears it and no longer: answers say not to be
//!   remembered.
//! - Who sees whose names follows from the address that asks, which the firewall has tied to a container.
//!   What an asker is not to see is not there for him, to the byte.
//! - Containers alone are asked on for, and not those that reach only what is listed: this host never, so no
//!   resolver of the host's that asks us is asked by us because of that.
//! - It has a thread of its own, which nothing else waits for. Questions on their way and connections are
//!   bounded, for each owner and in all; a connection that says nothing ends after some seconds.
//!
//! It knows names from a [`Directory`] and nothing else of containers.

mod bounds;
mod counts;
mod forward;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod message;
mod server;
mod sockets;
mod zone;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;

use v6pod_proto::Uid;

use crate::config::Scope;
use crate::core::Label;

pub use counts::Counts;
pub use sockets::{PORT, Sockets};
pub use zone::{NoZone, Ranges, Zone};

use forward::Upstream;
use server::Server;

/// Who bears which name. It is asked on the server's thread, and answers from memory.
pub trait Directory: Send + Sync + 'static {
    /// The container that has this address.
    fn asker(&self, address: Ipv6Addr) -> Option<Asker>;

    /// All who bear this name.
    fn bearers(&self, label: &Label) -> Vec<Bearer>;

    /// All names that who has this address bears.
    fn borne(&self, address: Ipv6Addr) -> Vec<(Label, Bearer)>;
}

/// A container that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Whose it is.
    pub owner: Uid,
    /// Whether it reaches nothing but what is listed.
    pub confined: bool,
}

/// A container that bears a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bearer {
    /// Its address.
    pub address: Ipv6Addr,
    /// Whose it is.
    pub owner: Uid,
}

/// What to answer, and to whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where we are asked, so that nobody asks us what he was asked by us.
    pub address: Ipv6Addr,
    /// Which names are ours.
    pub zone: Zone,
    /// Who sees whose.
    pub scope: Scope,
    /// Where names under `consul` are asked for.
    pub consul: Option<SocketAddr>,
    /// The file that names the host's own resolvers (resolv.conf(5)).
    pub resolv_conf: PathBuf,
    /// Where it is counted.
    pub counts: Counts,
}

/// Answers on a thread of its own from now on, until the process ends.
///
/// # Errors
/// There is no thread to be had.
pub fn serve(sockets: Sockets, settings: Settings, directory: impl Directory) -> io::Result<()> {
    let Settings { address, zone, scope, consul, resolv_conf, counts } = settings;
    let upstream = Upstream::new(&resolv_conf, address, consul);
    let server = Server::new(directory, zone, scope, upstream, counts);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (udp, tcp) = {
        let _entered = runtime.enter();
        let Sockets { udp, tcp } = sockets;
        (tokio::net::UdpSocket::from_std(udp)?, tokio::net::TcpListener::from_std(tcp)?)
    };
    let work = move || {
        runtime.block_on(async move {
            tokio::join!(std::sync::Arc::clone(&server).serve_udp(udp), server.serve_tcp(tcp));
        });
    };
    thread::Builder::new().name("dns".into()).spawn(work).map(drop)
}
