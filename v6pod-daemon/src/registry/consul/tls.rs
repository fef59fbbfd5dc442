//! TLS towards an agent: who vouches for it, and who this daemon is.
//!
//! Guarantees: a certificate that nobody vouches for, or that is another's, is an error, and there is no way
//! to have it otherwise. Files that have been replaced count from the next connection on, so that
//! certificates can be renewed. Nothing of a key is in an error.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::{Config, Consul, Host};

/// The largest file that is read, in bytes: several times a system's bundle.
const FILE_MAX: u64 = 4 << 20;

/// What is needed for connections by TLS.
#[derive(Debug)]
pub(super) struct Tls {
    files: Arc<Files>,
    /// What the files last said. Kept, because with it goes the memory of sessions, which spares the other
    /// end most of a handshake.
    last: Arc<Mutex<Option<Read>>>,
}

#[derive(Debug)]
struct Files {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug)]
struct Read {
    stamps: Vec<Stamp>,
    config: Arc<ClientConfig>,
}

/// What changes when a file is written anew or replaced.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Tls {
    pub(super) fn new(consul: &Consul) -> Self {
        let identity = consul.identity.as_ref();
        let files = Files {
            ca: consul.ca_file.as_deref().map(Config::secret),
            identity: identity.map(|i| (Config::secret(&i.cert_file), Config::secret(&i.key_file))),
        };
        Self { files: Arc::new(files), last: Arc::default() }
    }

    /// The name that the other end's certificate has to be for.
    pub(super) fn name(host: &Host) -> io::Result<ServerName<'static>> {
        match host {
            Host::Ip(ip) => Ok(ServerName::IpAddress((*ip).into())),
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error)),
        }
    }

    /// What makes connections. Files can block, so they are read off the runtime's threads.
    pub(super) async fn connector(&self) -> io::Result<TlsConnector> {
        let (files, last) = (Arc::clone(&self.files), Arc::clone(&self.last));
        let config = tokio::task::spawn_blocking(move || current(&files, &last)).await;
        Ok(TlsConnector::from(config.map_err(io::Error::other)??))
    }
}

fn current(files: &Files, last: &Mutex<Option<Read>>) -> io::Result<Arc<ClientConfig>> {
    let stamps = files.stamps()?;
    let known = {
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|read| read.stamps == stamps).map(|read| Arc::clone(&read.config))
    };
    if let Some(config) = known {
        return Ok(config);
    }
    let config = Arc::new(files.read()?);
    let read = Read { stamps, config: Arc::clone(&config) };
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
    Ok(config)
}

impl Files {
    fn stamps(&self) -> io::Result<Vec<Stamp>> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        let all = self.ca.iter().chain(identity);
        all.map(|file| {
            let data = fs::metadata(file).map_err(|error| told(file, &error))?;
            let changed = (data.ctime(), data.ctime_nsec());
            Ok(Stamp { device: data.dev(), inode: data.ino(), size: data.size(), changed })
        })
        .collect()
    }

    fn read(&self) -> io::Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let versions =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = versions.map_err(io::Error::other)?.with_root_certificates(self.roots()?);
        let Some((cert, key)) = &self.identity else { return Ok(builder.with_no_client_auth()) };
        let (certs, bytes) = (certificates(cert)?, bytes(key)?);
        let parsed = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| told(key, &"no private key in PEM"))?;
        builder.with_client_auth_cert(certs, parsed).map_err(|error| told(cert, &error))
    }

    fn roots(&self) -> io::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.ca {
            for cert in certificates(file)? {
                roots.add(cert).map_err(|error| told(file, &error))?;
            }
            return Ok(roots);
        }
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err(io::Error::other("the system trusts no certificates; write ca_file"));
        }
        Ok(roots)
    }
}

/// All certificates of a file; at least one.
fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let bytes = bytes(file)?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certs {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) => Err(told(file, &"no certificate in PEM")),
        Err(error) => Err(told(file, &error)),
    }
}

fn bytes(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|error| told(file, &error))?;
    let read = opened.take(FILE_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| told(file, &error))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(told(file, &"too large"));
    }
    Ok(bytes)
}

fn told(file: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {why}", file.display()))
}
