//! The server's side: the certificate that a port shows, and those of clients that it accepts.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::SharedClock;
use crate::net::tls::config::{ClientCertificates, ServerTlsConfig};
use crate::net::tls::error::TlsError;
use crate::net::tls::identity::PeerCertificate;
use crate::net::tls::pem::{self, provider};
use crate::net::tls::reload::{Reloaded, Reloads};

/// The protocols of HTTP, as a handshake names them.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// What a port shows and accepts at this moment.
pub struct ServerTls {
    what: String,
    files: ServerTlsConfig,
    protocol: &'static [u8],
    /// The only processes that it lets in: this cluster, in one of these roles.
    only: Option<(String, &'static [&'static str])>,
    clock: SharedClock,
    current: RwLock<Arc<Current>>,
}

struct Current {
    config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    fingerprint: u64,
    expires_s: u64,
}

impl ServerTls {
    /// The certificates of a port that speaks HTTP/2, or `None` where the files are not set.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn http2(
        what: &str,
        files: &ServerTlsConfig,
        clock: SharedClock,
    ) -> Result<Option<Arc<ServerTls>>, TlsError> {
        Ok(Self::load(what, files, HTTP2, clock)?.map(Arc::new))
    }

    /// The same for a port that lets in nothing but processes of this cluster in these roles.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn internal(
        what: &str,
        files: &ServerTlsConfig,
        (cluster, roles): (&str, &'static [&'static str]),
        clock: SharedClock,
    ) -> Result<Option<Arc<ServerTls>>, TlsError> {
        let loaded = Self::load(what, files, HTTP2, clock)?;
        Ok(loaded.map(|loaded| {
            Arc::new(ServerTls {
                only: Some((cluster.to_owned(), roles)),
                ..loaded
            })
        }))
    }

    /// The same for HTTP/1.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn http1(
        what: &str,
        files: &ServerTlsConfig,
        clock: SharedClock,
    ) -> Result<Option<Arc<ServerTls>>, TlsError> {
        Ok(Self::load(what, files, HTTP1, clock)?.map(Arc::new))
    }

    fn load(
        what: &str,
        files: &ServerTlsConfig,
        protocol: &'static [u8],
        clock: SharedClock,
    ) -> Result<Option<ServerTls>, TlsError> {
        let Some(read) = Read::from(files)? else {
            return Ok(None);
        };
        let current = read.build(files, protocol, &clock)?;
        Ok(Some(ServerTls {
            what: what.to_owned(),
            files: files.clone(),
            protocol,
            only: None,
            clock,
            current: RwLock::new(Arc::new(current)),
        }))
    }

    /// Begins a handshake; the connection's own task completes it.
    #[must_use]
    pub fn accept(&self, stream: TcpStream) -> Accepting {
        let config = Arc::clone(&self.current.read().config);
        Accepting(TlsAcceptor::from(config).accept(stream))
    }

    /// Whether a peer whose certificate was accepted may enter: an internal port asks for the
    /// cluster and the role too.
    #[must_use]
    pub fn admits(&self, peer: Option<&PeerCertificate>) -> bool {
        let Some((cluster, roles)) = &self.only else {
            return true;
        };
        let name = peer.and_then(PeerCertificate::internal);
        name.is_some_and(|name| name.cluster == *cluster && roles.contains(&&*name.role))
    }

    /// Whether the certificate of an open connection would be accepted now.
    #[must_use]
    pub fn still_accepts(&self, peer: &PeerCertificate) -> bool {
        let current = Arc::clone(&self.current.read());
        let (Some(verifier), Some((own, rest))) = (&current.verifier, peer.chain.split_first())
        else {
            return false;
        };
        verifier
            .verify_client_cert(own, rest, now(&self.clock))
            .is_ok()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("what", &self.what)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Reloads for ServerTls {
    fn what(&self) -> &str {
        &self.what
    }

    fn expires_s(&self) -> Option<u64> {
        Some(self.current.read().expires_s)
    }

    fn reload(&self) -> Result<Reloaded, TlsError> {
        // The files cannot be unset while the process runs.
        let Some(read) = Read::from(&self.files)? else {
            return Ok(Reloaded::Unchanged);
        };
        if read.fingerprint() == self.current.read().fingerprint {
            return Ok(Reloaded::Unchanged);
        }
        let next = read.build(&self.files, self.protocol, &self.clock)?;
        *self.current.write() = Arc::new(next);
        Ok(Reloaded::Changed)
    }
}

/// The contents of the files, read once so that all parts are of the same moment.
struct Read {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
}

impl Read {
    fn from(files: &ServerTlsConfig) -> Result<Option<Read>, TlsError> {
        let (Some(cert), Some(key)) = (&files.cert_file, &files.key_file) else {
            return Ok(None);
        };
        Ok(Some(Read {
            cert: pem::read(cert)?,
            key: pem::read_key(key)?,
            client_ca: match &files.client_ca_file {
                Some(path) => pem::read(path)?,
                None => Vec::new(),
            },
        }))
    }

    fn fingerprint(&self) -> u64 {
        pem::fingerprint(&[&self.cert, &self.key, &self.client_ca])
    }

    fn build(
        &self,
        files: &ServerTlsConfig,
        protocol: &'static [u8],
        clock: &SharedClock,
    ) -> Result<Current, TlsError> {
        let path = |path: &Option<std::path::PathBuf>| path.clone().unwrap_or_default();
        let (cert_path, key_path) = (path(&files.cert_file), path(&files.key_file));
        let refused = |reason: String| TlsError::Refused {
            path: cert_path.clone(),
            reason,
        };
        let certified = pem::certified(
            (&cert_path, &self.cert),
            (&key_path, &self.key),
            clock.wall_ms() / 1_000,
        )?;
        let verifier = match (&files.client_ca_file, files.client_certificates) {
            (None, _) | (_, ClientCertificates::None) => None,
            (Some(path), wanted) => {
                let roots = pem::authorities(path, &self.client_ca)?;
                let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let builder = match wanted {
                    ClientCertificates::Required => builder,
                    _ => builder.allow_unauthenticated(),
                };
                Some(
                    builder
                        .build()
                        .map_err(|error| refused(error.to_string()))?,
                )
            }
        };
        let builder = ServerConfig::builder_with_details(provider(), time(clock))
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(error.to_string()))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let shown = SingleCertAndKey::from(certified.key);
        let mut config = builder.with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![protocol.to_vec()];
        // A resumed session shows no certificate, so that one that has expired would still enter.
        // Connections are few and long: what resumption saves is not worth that.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Current {
            config: Arc::new(config),
            verifier,
            fingerprint: self.fingerprint(),
            expires_s: certified.expires_s,
        })
    }
}

/// A handshake that is under way.
pub struct Accepting(tokio_rustls::Accept<TcpStream>);

impl Accepting {
    pub(in crate::net) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<TlsStream<TcpStream>>> {
        Pin::new(&mut self.0).poll(context)
    }
}

pub(in crate::net) fn certificate_of(stream: &TlsStream<TcpStream>) -> Option<PeerCertificate> {
    let (_, session) = stream.get_ref();
    PeerCertificate::of(session.peer_certificates()?)
}

/// The process clock as the TLS library wants it.
#[derive(Debug)]
struct Time(SharedClock);

impl rustls::time_provider::TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(now(&self.0))
    }
}

pub(super) fn time(clock: &SharedClock) -> Arc<dyn rustls::time_provider::TimeProvider> {
    Arc::new(Time(Arc::clone(clock)))
}

fn now(clock: &SharedClock) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(clock.wall_ms()))
}
