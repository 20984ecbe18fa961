//! TLS for every port and every connection of this process: which certificates it shows, which it
//! accepts, and how both change while it runs.
//!
//! Invariants:
//! - TLS 1.2 at least; cryptography comes from `ring` alone.
//! - A reload takes effect as a whole or not at all: files that cannot be used leave the former
//!   certificates in service, and say why ([`TlsError`]).
//! - No session is resumed: a resumed one shows no certificate, so that one which has expired, or
//!   whose authority was removed, would still enter.
//! - A peer whose certificate is not accepted any more (expired, authority removed) loses its open
//!   connections within [`RECHECK`].
//! - A client checks chain, host and, inside a cluster, the role of its peer before it sends a byte.

mod client;
mod describe;
mod identity;
mod pem;
mod reload;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use serde::{Deserialize, Serialize};

pub use self::client::{ClientTls, ClientTlsConfig};
pub use self::describe::{CertificateInfo, describe};
pub use self::identity::{InternalName, PeerCertificate};
pub use self::reload::{Reloaded, Reloads, reload_when_changed};
pub(in crate::net) use self::server::certificate_of;
pub use self::server::{Accepting, ServerTls};

/// How often the certificates of peers with open connections are checked again.
pub const RECHECK: Duration = Duration::from_secs(30);

/// Which certificates a port asks its clients for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// None.
    #[default]
    None,
    /// One that is checked if the client has it.
    Optional,
    /// One of an authority in `client_ca_file`; others are refused.
    Required,
}

/// What a port shows and accepts. Empty: the port speaks plain text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerTlsConfig {
    /// The port's certificate, followed by its intermediates (PEM).
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate (PEM); readable by its owner alone.
    pub key_file: Option<PathBuf>,
    /// Authorities whose certificates clients may show (PEM).
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients are asked for a certificate.
    pub client_certificates: ClientCertificates,
}

impl ServerTlsConfig {
    /// Whether the port speaks TLS.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.cert_file.is_some() || self.key_file.is_some()
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A message that names the keys and what they may be.
    pub fn validate(&self) -> Result<(), String> {
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => return Err("cert_file needs key_file beside it".to_owned()),
            (None, Some(_)) => return Err("key_file needs cert_file beside it".to_owned()),
            _ => {}
        }
        let wants = self.client_certificates != ClientCertificates::None;
        match (&self.client_ca_file, wants) {
            (None, true) => Err("client_certificates needs client_ca_file beside it".to_owned()),
            (Some(_), false) => Err(
                "client_ca_file is not used: set client_certificates to optional or required"
                    .to_owned(),
            ),
            (Some(_), true) if !self.is_on() => {
                Err("client_ca_file needs cert_file and key_file beside it".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Why certificates cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// A file holds nothing of what it must hold.
    #[error("{} is not usable: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Others may read a key.
    #[error(
        "{} can be read by other users (mode {mode:o}): run `chmod 600` on it, or `chmod 640` when a group must read it",
        path.display()
    )]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A certificate is over.
    #[error("the certificate in {} expired: make or request a new one", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together, or the library refuses them.
    #[error("the certificate in {} cannot be used: {reason}", path.display())]
    Refused {
        /// The certificate.
        path: PathBuf,
        /// What the TLS library said.
        reason: String,
    },
}

/// The one provider of cryptography.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests;
