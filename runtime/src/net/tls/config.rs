//! Settings of a port: which certificate it shows, and which it accepts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
