//! How a Consul agent is come by: TCP, TLS over TCP, a unix socket.

use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

#[cfg(feature = "consul-tls")]
use super::tls::Tls;
use crate::config::{self, Authority, ConsulUrl};

/// Where the agent listens.
#[derive(Debug)]
pub(super) enum Endpoint {
    Tcp(Authority),
    #[cfg(feature = "consul-tls")]
    Tls(Authority, Tls),
    Unix(PathBuf),
}

/// A connection of any kind.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Endpoint {
    pub(super) fn new(consul: &config::Consul) -> Self {
        match &consul.address {
            ConsulUrl::Http(authority) => Self::Tcp(authority.clone()),
            #[cfg(feature = "consul-tls")]
            ConsulUrl::Https(authority) => Self::Tls(authority.clone(), Tls::new(consul)),
            // The configuration refuses it.
            #[cfg(not(feature = "consul-tls"))]
            ConsulUrl::Https(authority) => Self::Tcp(authority.clone()),
            ConsulUrl::Unix(path) => Self::Unix(path.clone()),
        }
    }

    /// What a request's `Host` says (RFC 9110, section 7.2).
    pub(super) fn host(&self) -> String {
        match self {
            Self::Tcp(authority) => authority.to_string(),
            #[cfg(feature = "consul-tls")]
            Self::Tls(authority, _) => authority.to_string(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// A new connection; over TLS one whose other end is who it should be.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Tcp(authority) => Box::new(tcp(authority).await?),
            #[cfg(feature = "consul-tls")]
            Self::Tls(authority, tls) => {
                // Files first: nobody is to be connected to for nothing.
                let connector = tls.connector().await?;
                let name = Tls::name(&authority.host)?;
                Box::new(connector.connect(name, tcp(authority).await?).await?)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

async fn tcp(authority: &Authority) -> io::Result<TcpStream> {
    let stream = match &authority.host {
        config::Host::Ip(ip) => TcpStream::connect((*ip, authority.port)).await?,
        config::Host::Name(name) => TcpStream::connect((name.as_str(), authority.port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}
