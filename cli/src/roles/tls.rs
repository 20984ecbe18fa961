//! Certificates of a server process: those of its ports for clients (`tls`), and those by which the
//! processes of a cluster know each other (`internal_tls`).
//!
//! Invariant: with `internal_tls` a bookie lets in nothing but processes of its cluster, and
//! nothing but a bookie of its cluster is sent what is to be stored. A certificate for clients
//! opens no bookie, because another authority signs it or it names no role.

use std::path::PathBuf;
use std::sync::Arc;

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::net::tls::{
    ClientCertificates, ClientTls, ClientTlsConfig, Reloads, ServerTls, ServerTlsConfig, TlsError,
    reload_when_changed,
};
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::exit::CliError;

/// Roles of processes in a cluster, each of which a bookie serves.
pub const ROLES: [&str; 5] = [BROKER, BOOKIE, "autorecovery", "offloader", "tool"];
const BROKER: &str = "broker";
const BOOKIE: &str = "bookie";

/// The certificate by which a process is known inside its cluster. Empty: plain text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InternalTls {
    /// Its certificate (PEM), with the name `spiffe://CLUSTER.aquifer/ROLE/NAME`.
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate (PEM).
    pub key_file: Option<PathBuf>,
    /// Authorities of the cluster's certificates (PEM).
    pub ca_file: Option<PathBuf>,
}

impl InternalTls {
    /// Checks that all files are named, or none.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn check(&self) -> Result<(), CliError> {
        let set = [&self.cert_file, &self.key_file, &self.ca_file];
        match set.iter().filter(|file| file.is_some()).count() {
            0 | 3 => Ok(()),
            _ => Err(CliError::usage(
                "internal_tls needs cert_file, key_file and ca_file together",
            )),
        }
    }

    /// Whether it is set.
    pub fn is_on(&self) -> bool {
        self.cert_file.is_some()
    }

    /// What the process shows to others, and what it believes: bookies, and other brokers as a
    /// client of their ports.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig {
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
        }
    }
}

/// Everything of a process that is made of certificates, and reloaded.
pub struct Certificates {
    clock: SharedClock,
    reloads: Mutex<Vec<Arc<dyn Reloads>>>,
}

impl Certificates {
    /// None yet.
    pub fn new(clock: SharedClock) -> Certificates {
        Certificates {
            clock,
            reloads: Mutex::default(),
        }
    }

    /// Those of a protocol.
    pub fn add(&self, more: Vec<Arc<dyn Reloads>>) {
        self.reloads.lock().extend(more);
    }

    /// The port of health checks and metrics.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn http_port(&self, files: &ServerTlsConfig) -> Result<Option<Arc<ServerTls>>, CliError> {
        self.port(ServerTls::http1("http", files, Arc::clone(&self.clock)))
    }

    /// The port of a bookie.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn bookie_port(
        &self,
        cluster: &str,
        internal: &InternalTls,
    ) -> Result<Option<Arc<ServerTls>>, CliError> {
        self.internal("bookie_api", (cluster, &ROLES), internal)
    }

    /// What tells the brokers of a cluster from other peers with a certificate.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn brokers(
        &self,
        cluster: &str,
        internal: &InternalTls,
    ) -> Result<Option<Arc<ServerTls>>, CliError> {
        self.internal("brokers", (cluster, &[BROKER]), internal)
    }

    fn internal(
        &self,
        what: &str,
        only: (&str, &'static [&'static str]),
        internal: &InternalTls,
    ) -> Result<Option<Arc<ServerTls>>, CliError> {
        let files = ServerTlsConfig {
            cert_file: internal.cert_file.clone(),
            key_file: internal.key_file.clone(),
            client_ca_file: internal.ca_file.clone(),
            client_certificates: ClientCertificates::Required,
        };
        let clock = Arc::clone(&self.clock);
        self.port(ServerTls::internal(what, &files, only, clock))
    }

    /// The way to the bookies of a cluster.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn to_bookies(
        &self,
        cluster: &str,
        internal: &InternalTls,
    ) -> Result<Option<Arc<ClientTls>>, CliError> {
        if !internal.is_on() {
            return Ok(None);
        }
        let loaded = ClientTls::load(&internal.client(), Arc::clone(&self.clock));
        let loaded = Arc::new(
            loaded
                .map_err(|error| unusable(&error))?
                .only(cluster, BOOKIE),
        );
        self.reloads.lock().push(loaded.clone());
        Ok(Some(loaded))
    }

    /// Reloads all of them when their files change, until `tasks` shuts down.
    pub fn watch(&self, telemetry: &Telemetry, tasks: &TaskGroup) {
        let all = self.reloads.lock().clone();
        reload_when_changed(all, &telemetry.meter("aquifer_tls"), tasks);
    }

    fn port(
        &self,
        loaded: Result<Option<Arc<ServerTls>>, TlsError>,
    ) -> Result<Option<Arc<ServerTls>>, CliError> {
        let loaded = loaded.map_err(|error| unusable(&error))?;
        if let Some(loaded) = &loaded {
            self.reloads.lock().push(loaded.clone());
        }
        Ok(loaded)
    }
}

fn unusable(error: &TlsError) -> CliError {
    CliError::failed(error.to_string()).advise(
        "make certificates with `aquifer tls init`, and look at them with `aquifer tls show`",
    )
}
