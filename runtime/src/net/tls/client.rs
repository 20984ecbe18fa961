//! The client's side: whom it believes, and the certificate that it shows.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock::SharedClock;
use crate::net::tls::error::TlsError;
use crate::net::tls::identity::PeerCertificate;
use crate::net::tls::pem::{self, provider};
use crate::net::tls::reload::{Reloaded, Reloads};
use crate::net::tls::server::time;

/// The authorities that a client believes, and the certificate that it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientTlsConfig {
    /// Authorities whose certificates servers may show (PEM); those of the operating system where
    /// it is not set.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown to servers that ask for one, followed by its intermediates
    /// (PEM).
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate (PEM); readable by its owner alone.
    pub key_file: Option<PathBuf>,
}

impl ClientTlsConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A message that names the keys and what they may be.
    pub fn validate(&self) -> Result<(), String> {
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => Err("cert_file needs key_file beside it".to_owned()),
            (None, Some(_)) => Err("key_file needs cert_file beside it".to_owned()),
            _ => Ok(()),
        }
    }
}

/// The client's side at this moment.
pub struct ClientTls {
    files: ClientTlsConfig,
    protocol: &'static [u8],
    /// Cluster and role of the only processes that it talks to.
    only: Option<(String, String)>,
    clock: SharedClock,
    current: RwLock<Arc<Current>>,
}

struct Current {
    config: Arc<ClientConfig>,
    fingerprint: u64,
    expires_s: Option<u64>,
}

impl ClientTls {
    /// A client of HTTP/2 that believes the authorities of the configuration.
    ///
    /// # Errors
    /// When a file cannot be used, or the operating system has no authorities and none are set.
    pub fn load(files: &ClientTlsConfig, clock: SharedClock) -> Result<ClientTls, TlsError> {
        ClientTls::speaking(b"h2", files, clock)
    }

    /// The same of HTTP/1.
    ///
    /// # Errors
    /// Those of [`load`](ClientTls::load).
    pub fn http1(files: &ClientTlsConfig, clock: SharedClock) -> Result<ClientTls, TlsError> {
        ClientTls::speaking(b"http/1.1", files, clock)
    }

    fn speaking(
        protocol: &'static [u8],
        files: &ClientTlsConfig,
        clock: SharedClock,
    ) -> Result<ClientTls, TlsError> {
        let current = Read::from(files)?.build(protocol, files, &clock)?;
        Ok(ClientTls {
            files: files.clone(),
            protocol,
            only: None,
            clock,
            current: RwLock::new(Arc::new(current)),
        })
    }

    /// The same, which talks to nothing but processes of this role in this cluster.
    #[must_use]
    pub fn only(mut self, cluster: &str, role: &str) -> ClientTls {
        self.only = Some((cluster.to_owned(), role.to_owned()));
        self
    }

    /// Makes a connection secret, once chain, host and role of the peer are checked.
    ///
    /// # Errors
    /// When the host is no name, or the handshake fails.
    pub async fn connect(&self, stream: TcpStream, host: &str) -> io::Result<TlsStream<TcpStream>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let config = Arc::clone(&self.current.read().config);
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let Some((cluster, role)) = &self.only else {
            return Ok(stream);
        };
        let (_, session) = stream.get_ref();
        let peer = session.peer_certificates().and_then(PeerCertificate::of);
        let name = peer.and_then(|peer| peer.internal());
        if name.is_some_and(|name| name.cluster == *cluster && name.role == *role) {
            return Ok(stream);
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "the certificate of {host} names no {role} of cluster {cluster}: it needs the \
                 alternative name spiffe://{cluster}.aquifer/{role}/NAME"
            ),
        ))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("files", &self.files)
            .field("only", &self.only)
            .finish_non_exhaustive()
    }
}

impl Reloads for ClientTls {
    fn what(&self) -> &str {
        "client"
    }

    fn expires_s(&self) -> Option<u64> {
        self.current.read().expires_s
    }

    fn reload(&self) -> Result<Reloaded, TlsError> {
        let read = Read::from(&self.files)?;
        if read.fingerprint() == self.current.read().fingerprint {
            return Ok(Reloaded::Unchanged);
        }
        let next = read.build(self.protocol, &self.files, &self.clock)?;
        *self.current.write() = Arc::new(next);
        Ok(Reloaded::Changed)
    }
}

struct Read {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Read {
    fn from(files: &ClientTlsConfig) -> Result<Read, TlsError> {
        let file = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(Vec::new()), pem::read);
        Ok(Read {
            ca: file(&files.ca_file)?,
            cert: file(&files.cert_file)?,
            key: files
                .key_file
                .as_deref()
                .map_or(Ok(Vec::new()), pem::read_key)?,
        })
    }

    fn fingerprint(&self) -> u64 {
        pem::fingerprint(&[&self.ca, &self.cert, &self.key])
    }

    fn build(
        &self,
        protocol: &[u8],
        files: &ClientTlsConfig,
        clock: &SharedClock,
    ) -> Result<Current, TlsError> {
        let roots = match &files.ca_file {
            Some(path) => pem::authorities(path, &self.ca)?,
            None => system_authorities()?,
        };
        let refused = |error: rustls::Error| TlsError::Refused {
            path: files.cert_file.clone().unwrap_or_default(),
            reason: error.to_string(),
        };
        let shown = match (&files.cert_file, &files.key_file) {
            (Some(cert), Some(key)) => Some(pem::certified(
                (cert, &self.cert),
                (key, &self.key),
                clock.wall_ms() / 1_000,
            )?),
            _ => None,
        };
        let expires_s = shown.as_ref().map(|shown| shown.expires_s);
        let builder = ClientConfig::builder_with_details(provider(), time(clock))
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_root_certificates(roots);
        let mut config = match shown {
            Some(shown) => builder.with_client_cert_resolver(resolver(shown.key)),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Current {
            config: Arc::new(config),
            fingerprint: self.fingerprint(),
            expires_s,
        })
    }
}

fn resolver(key: Arc<CertifiedKey>) -> Arc<dyn ResolvesClientCert> {
    Arc::new(SingleCertAndKey::from(key))
}

/// The authorities that the operating system believes.
fn system_authorities() -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = match found.errors.first() {
            Some(error) => error.to_string(),
            None => "it is empty".to_owned(),
        };
        return Err(pem::content(
            "the operating system's list of authorities".as_ref(),
            format!("{reason}; name a file of authorities (--tls-ca-file, `tls.ca_file`)"),
        ));
    }
    Ok(Arc::new(roots))
}
